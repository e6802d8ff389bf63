"""Tasks, leases and log tails in Redis or Valkey (6.2 and newer).

Every change of a task is one Lua script (``lua/``), so that it happens whole or not at all. All keys begin with
``{namespace}:1:`` (the braces keep them in one slot of a cluster, the 1 is the version of this layout)::

    task:ID        hash    the record: id, owner, arguments, state, attempt, max_attempts, retention, sequence,
                           created, started, finished (ms), worker, cancelling, outcome (JSON)
    queue          zset    ids that wait, by sequence
    sequence       number  the last sequence given
    wake           list    one token a waiting task (at most 128); workers that wait block on it
    workers        zset    worker -> end of its lease (ms)
    worker:NAME    hash    its last claim: number and ids, so that a lost answer can be asked for again
    held:NAME      set     ids that the worker runs
    stop:NAME      list    ids that the worker is to stop; a wake-up, the truth is ``cancelling``
    owner:OWNER    zset    the owner's ids, by sequence
    finished       zset    final ids -> end of their retention (ms)
    log:ID         hash    tail and start of each stream of a running script
    reaper         hash    when somebody last looked for dead workers, and until when to leave them
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.exceptions
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from script_runner.errors import Code, Error, Problem
from script_runner.ports import BAD_CURSOR, LogChunk, Page
from script_runner.task import Outcome, State, Task

OLDEST_VERSION = (6, 2)
ANSWER_SECONDS: Final = 1.5
"""How long one call may take before the store counts as away."""

TAIL_BYTES: Final = 64 * 1024
"""How much of each stream of a running script is kept here."""

SCAN_PAGES: Final = 20
"""How many pages a filtered listing looks through before it hands back what it has."""

_Arguments = dict[str, str | tuple[str, ...]]


class RedisTasks:
    """The ledger and queue in Redis."""

    def __init__(self, url: str, namespace: str) -> None:
        self._client = _connect(url, is_waiting=False)
        self._waiting = _connect(url, is_waiting=True)
        self._prefix = _prefix(namespace)
        self._scripts = _scripts(self._client)
        self._claims = 1

    async def add(self, task: Task) -> Task:
        fields: dict[str, bytes | int] = {
            "arguments": msgspec.json.encode(task.arguments),
            "max_attempts": task.max_attempts,
            "retention": round(task.retention_seconds * 1000),
        }
        flat: Sequence[str | bytes | int] = [part for item in fields.items() for part in item]
        created = await self._run("add", task.id, task.owner, *flat)
        return replace(task, created_at=_seconds(created))

    async def get(self, task_id: str) -> Task | None:
        async with _answering():
            return _task(await self._client.hgetall(self._key("task", task_id)))

    async def list(self, owner: str, *, states: Sequence[State], cursor: str | None, limit: int) -> Page:
        before = _cursor(cursor)
        found: list[Task] = []
        async with _answering():
            for _ in range(SCAN_PAGES):
                ids = await self._client.zrevrangebyscore(
                    self._key("owner", owner), before, "-inf", start=0, num=limit, withscores=True
                )
                for task, (_, sequence) in zip(await self._records([name for name, _ in ids]), ids, strict=True):
                    before = f"({sequence:.0f}"
                    if task and (not states or task.state in states):
                        found.append(task)
                    if len(found) == limit:
                        return Page(tuple(found), before[1:])
                if len(ids) < limit:
                    return Page(tuple(found), None)
        return Page(tuple(found), before[1:])

    async def remove(self, task_id: str) -> bool:
        return bool(await self._run("remove", task_id))

    async def cancel(self, task_id: str) -> Task | None:
        return _task(_pairs(await self._run("cancel", task_id)))

    async def claim(self, worker: str, *, limit: int, wait_seconds: float) -> Sequence[Task]:
        records = await self._claim(worker, limit)
        if not records and wait_seconds and await self._wait(self._key("wake"), wait_seconds):
            records = await self._claim(worker, limit)
        return records

    async def cancellations(self, worker: str, *, wait_seconds: float) -> Sequence[str]:
        if wait_seconds:
            await self._wait(self._key("stop", worker), wait_seconds)
        return [task_id.decode() for task_id in await self._run("cancelling", worker)]

    async def finish(self, task: Task, outcome: Outcome) -> bool:
        document = msgspec.json.encode(outcome)
        return bool(
            await self._run("finish", task.id, task.worker or "", task.attempt, outcome.state.value, document)
        )

    async def release(self, task: Task, *, counted: bool) -> bool:
        return bool(await self._run("release", task.id, task.worker or "", task.attempt, int(counted)))

    async def reap(self) -> Sequence[Task]:
        ids = await self._run("reap")
        async with _answering():
            return [task for task in await self._records(ids) if task]

    async def expired(self, *, limit: int) -> Sequence[str]:
        return [task_id.decode() for task_id in await self._run("expired", limit)]

    async def workers(self) -> int:
        return int(await self._run("alive"))

    async def leave(self, worker: str) -> None:
        await self._run("leave", worker)

    async def check(self) -> Sequence[str]:
        """What about this server endangers tasks; Error(INVALID_CONFIG) if it is too old or refuses us."""
        async with _answering():
            try:
                return _dangers(await self._client.info())
            except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
                message = "Redis refuses the name or password in its URL, or lacks permissions for them."
                raise Error(Code.INVALID_CONFIG, message) from error

    async def close(self) -> None:
        await _close(self._client)
        await _close(self._waiting)

    async def _claim(self, worker: str, limit: int) -> Sequence[Task]:
        """Claim under the next number; the number is used again until an answer has come."""
        records = await self._run("claim", worker, self._claims, limit)
        if records:
            self._claims += 1
        return [task for record in records if (task := _task(_pairs(record)))]

    async def _wait(self, key: str, seconds: float) -> bool:
        async with _answering(seconds + ANSWER_SECONDS):
            return await self._waiting.blpop([key], timeout=seconds) is not None

    async def _records(self, ids: Sequence[bytes]) -> Sequence[Task | None]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for task_id in ids:
                pipeline.hgetall(self._key("task", task_id.decode()))
            return [_task(record) for record in await pipeline.execute()]

    async def _run(self, script: str, *arguments: str | bytes | float) -> Any:
        async with _answering():
            return await self._scripts[script](keys=[self._prefix], args=arguments)

    def _key(self, kind: str, name: str | None = None) -> str:
        return f"{self._prefix}{kind}" if name is None else f"{self._prefix}{kind}:{name}"


class RedisLogs:
    """The tails of running scripts in Redis."""

    def __init__(self, url: str, namespace: str) -> None:
        self._client = _connect(url, is_waiting=False)
        self._prefix = _prefix(namespace)
        self._append = _scripts(self._client)["append"]

    async def append(self, task_id: str, stream: str, chunk: LogChunk) -> None:
        async with _answering():
            await self._append(keys=[self._prefix], args=[task_id, stream, chunk.offset, chunk.data, TAIL_BYTES])

    async def read(self, task_id: str, stream: str, *, offset: int, limit: int) -> LogChunk:
        async with _answering():
            tail, start = await self._client.hmget(f"{self._prefix}log:{task_id}", [stream, f"{stream}:start"])
        if tail is None:
            return LogChunk(offset, b"")
        first = max(offset, int(start))
        return LogChunk(first, tail[first - int(start) :][:limit])

    async def close(self) -> None:
        await _close(self._client)


class RedisLease:
    """A worker's lease in Redis, over a blocking connection of its own."""

    def __init__(self, url: str, namespace: str) -> None:
        self._client = _connect_blocking(url)
        self._prefix = _prefix(namespace)
        self._renew = self._client.register_script(_source("renew"))

    def renew(self, worker: str, *, seconds: float) -> bool:
        with _explained():
            return bool(self._renew(keys=[self._prefix], args=[worker, round(seconds * 1000)]))

    def close(self) -> None:
        self._client.close()
        for sentinel in _sentinels(self._client):
            sentinel.close()


# Connections


def _connect(url: str, *, is_waiting: bool) -> Any:
    """A client; a waiting one has no time limit on its answers, for commands that block."""
    options: dict[str, Any] = {
        "socket_timeout": None if is_waiting else ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS / 2,
        "retry": AsyncRetry(ConstantBackoff(0.05), 1),
        "protocol": 2,
    }
    if sentinel := _sentinel(url):
        return _master(redis.asyncio.sentinel.Sentinel, sentinel, options)
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url, max_connections=8 if is_waiting else 32, timeout=ANSWER_SECONDS, **options
    )
    return redis.asyncio.Redis.from_pool(pool)


def _connect_blocking(url: str) -> Any:
    options: dict[str, Any] = {
        "socket_timeout": 1.0,
        "socket_connect_timeout": 1.0,
        "retry": Retry(ConstantBackoff(0), 0),
        "protocol": 2,
    }
    if sentinel := _sentinel(url):
        return _master(redis.sentinel.Sentinel, sentinel, options)
    return redis.Redis.from_url(url, **options)


def _master(kind: Any, sentinel: "_Sentinel", options: dict[str, Any]) -> Any:
    """A client that follows the master of a service."""
    hosts, service, own = sentinel
    asking = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "retry": options["retry"], "protocol": 2}
    return kind(hosts, sentinel_kwargs=asking).master_for(service, **options, **own)


def _sentinels(client: Any) -> Sequence[Any]:
    """The clients through which a client finds its master; they are not closed with it."""
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    return manager.sentinels if manager else ()


async def _close(client: Any) -> None:
    await client.aclose()
    for sentinel in _sentinels(client):
        await sentinel.aclose()


_Sentinel = tuple[list[tuple[str, int]], str, dict[str, Any]]


def _sentinel(url: str) -> _Sentinel | None:
    """Hosts, service name and options of ``redis+sentinel://user:password@host:port,host:port/service/db``."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis+sentinel", "rediss+sentinel"):
        return None
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    options |= {"username": unquote(user) or None, "password": unquote(password) or None}
    options |= {"db": int(database or 0), "ssl": parts.scheme == "rediss+sentinel"}
    addresses = [(host, int(port or 26379)) for host, _, port in (h.partition(":") for h in hosts.split(","))]
    if not service or not all(host for host, _ in addresses):
        raise ValueError("a Sentinel URL names hosts and a service: redis+sentinel://host:port/service")
    return addresses, service, options


def check_url(url: str) -> None:
    """Raise Error(INVALID_CONFIG) if this is no URL of a Redis, without asking it."""
    try:
        if not _sentinel(url):
            redis.ConnectionPool.from_url(url).make_connection()
    except (TypeError, ValueError):  # for an unknown option or a bad value; the library's words may hold secrets
        message = (
            "The Redis URL cannot be used: expected redis://, rediss://, unix:// or redis+sentinel://, "
            "a number as port, known options, and / # ? @ written as %2F %23 %3F %40 in the password."
        )
        raise Error(Code.INVALID_CONFIG, message, (Problem("environment", "REDIS_URL", message),)) from None


def _dangers(info: Mapping[str, Any]) -> list[str]:
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        raise Error(Code.INVALID_CONFIG, f"Redis {version} is too old: 6.2 or newer is needed.")
    found = []
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        found.append(f"Redis may evict tasks (maxmemory-policy {policy}); set it to noeviction.")
    if not info.get("aof_enabled"):
        found.append("Redis keeps no append-only file: tasks may be lost when it restarts (appendonly yes).")
    return found


@contextlib.asynccontextmanager
async def _answering(seconds: float = ANSWER_SECONDS) -> AsyncIterator[None]:
    """Raise Error(UNAVAILABLE) when the store does not answer in time."""
    try:
        with _explained():
            async with asyncio.timeout(seconds):
                yield
    except TimeoutError:
        raise _away() from None


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        raise _away() from error


def _away() -> Error:
    return Error(Code.UNAVAILABLE, "The task store (Redis) is away. Try again in a moment.")


# Scripts and records


def _prefix(namespace: str) -> str:
    return f"{{{namespace}}}:1:"


def _source(name: str) -> str:
    folder = resources.files("script_runner.adapters") / "lua"
    return (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()


def _scripts(client: Any) -> dict[str, Any]:
    names = (
        "add", "alive", "append", "cancel", "cancelling", "claim", "expired",
        "finish", "leave", "reap", "release", "remove",
    )  # fmt: skip
    return {name: client.register_script(_source(name)) for name in names}


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _task(record: Mapping[bytes, bytes]) -> Task | None:
    """The task in a record; None if there is no record."""
    if not record:
        return None
    outcome = record.get(b"outcome")
    worker = record.get(b"worker")
    return Task(
        id=record[b"id"].decode(),
        owner=record[b"owner"].decode(),
        arguments=msgspec.json.decode(record[b"arguments"], type=_Arguments),
        max_attempts=int(record[b"max_attempts"]),
        retention_seconds=_seconds(record[b"retention"]),
        state=State(record[b"state"].decode()),
        created_at=_seconds(record[b"created"]),
        started_at=_seconds(record[b"started"]) if b"started" in record else None,
        finished_at=_seconds(record[b"finished"]) if b"finished" in record else None,
        worker=worker.decode() if worker else None,
        attempt=int(record[b"attempt"]),
        is_cancelling=b"cancelling" in record,
        outcome=msgspec.json.decode(outcome, type=Outcome) if outcome else None,
    )


def _seconds(milliseconds: bytes) -> float:
    return int(milliseconds) / 1000


def _cursor(cursor: str | None) -> str:
    if cursor is None:
        return "+inf"
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 16):  # noqa: PLR2004 - a sequence number
        raise Error(Code.INVALID_INPUT, BAD_CURSOR, (Problem("query", "cursor", BAD_CURSOR),))
    return f"({cursor}"
