"""The ledger of tasks and their queue."""

import asyncio
import hashlib
import logging
import math
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
import redis.exceptions
from msgspec.structs import replace

from script_runner.adapters.redis.connection import (
    ANSWER_SECONDS,
    FORMAT,
    Explained,
    answering,
    away,
    close,
    connect,
    prefix_of,
    source_of,
)
from script_runner.adapters.redis.records import (
    LISTED,
    Argument,
    fields_of,
    holder,
    milliseconds,
    or_empty,
    pairs,
    place_of,
    task_of,
)
from script_runner.adapters.redis.wire import Wire
from script_runner.errors import Code, Error, Problem
from script_runner.ports import (
    BAD_CURSOR,
    LATELY_SECONDS,
    Cancelled,
    Figures,
    Limits,
    Page,
    Unwatched,
    Watch,
    Word,
)
from script_runner.task import Outcome, State, Task

OLDEST_VERSION = (6, 2)

LONG_WAIT_SECONDS: Final = 60
"""The longest that a caller is told to wait, and what it is told when nobody knows."""

REMEMBERED: Final = 10_000
"""Of how many ended tasks it is remembered that replicas know of them."""

REPLICA_SECONDS: Final = 1.0
"""How long replicas may take to follow a write."""

_SCRIPTS = (
    "add", "alive", "cancel", "claim", "expired", "figures", "finish", "followed", "get", "hear", "leave", "mark",
    "reap", "release", "remove",
)  # fmt: skip

_DURABLE = frozenset({"add", "cancel", "claim", "finish", "release", "remove"})
"""The scripts after which somebody acts on what was written."""

_log = logging.getLogger("script_runner.redis")


class RedisTasks:
    """The ledger and queue in Redis.

    With ``replicas``, what somebody acts upon (an acknowledged task, a claim, an outcome) is first followed by so
    many replicas, so that a failover to one of them forgets none of it. ``newest`` is the format of the records it
    writes and the newest that it understands.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        limits: Limits | None = None,
        *,
        replicas: int = 0,
        newest: int = FORMAT,
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch or Unwatched()
        self._explained = Explained(self._watch)
        self._prefix = prefix_of(namespace)
        self._client = connect(url, self._prefix, is_waiting=False)
        self._waiting = connect(url, self._prefix, is_waiting=True)
        self._wire = Wire(self._client.connection_pool, patience_seconds=ANSWER_SECONDS)
        self._waits: dict[tuple[str, str], Wire] = {}
        self._scripts = {name: self._client.register_script(source_of(name)) for name in _SCRIPTS}
        self._limits = limits or Limits()
        self._replicas = replicas
        self._format = newest
        self._claims = 1
        self._may_more = True
        self._expired: list[bytes] = []
        self._left_alone: set[str] = set()
        self._followed: dict[str, None] = {}

    async def add(self, task: Task) -> Task:
        answer = await self._run(
            "add",
            task.id,
            task.owner,
            _digest(task.owner, task.idempotency_key) if task.idempotency_key else "",
            or_empty(self._limits.max_queued),
            or_empty(self._limits.max_queued_per_caller),
            "" if task.expires_in_seconds is None else round(task.expires_in_seconds * 1000),
            *chain.from_iterable(fields_of(task, version=self._format).items()),
        )
        match answer:
            case [bytes(word), *wait]:
                raise _refusal(word.decode(), *wait)
            case [int(created), *place]:
                return replace(task, created_at=created / 1000, place=place_of(*place))
            case _:
                return self._told(answer) or task

    async def get(self, task_id: str) -> Task | None:
        with self._explained:
            record = await self._wire.call("HGETALL", self._key("task", task_id))
        task = self._task(pairs(record))
        if task and task.state is State.QUEUED:  # it has a place besides, which a script finds out
            task = self._told(await self._run("get", task_id))
        if task and self._replicas:
            await self._require_followed([task])
        return task

    async def list(self, owner: str, *, states: Sequence[State], cursor: str | None, limit: int) -> Page:
        before = _cursor(cursor)
        keys = [self._key(state.value, owner) for state in dict.fromkeys(states)] or [self._key("owner", owner)]
        async with answering(self._watch):
            async with self._client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.zrevrangebyscore(key, before, "-inf", start=0, num=limit, withscores=True)
                entries = [item for items in await pipeline.execute() for item in items]
            newest = sorted(entries, key=lambda item: -item[1])[:limit]
            tasks = await self._records([task_id for task_id, _ in newest], LISTED)
        cursor = f"{newest[-1][1]:.0f}" if len(newest) == limit else None
        found = [task for task in tasks if task and (not states or task.state in states)]
        await self._require_followed(found)
        return Page(tuple(found), cursor)

    async def remove(self, task_id: str) -> bool:
        return bool(await self._run("remove", task_id))

    async def cancel(self, task_id: str) -> Cancelled | None:
        answer, has_ended = await self._run("cancel", task_id)
        task = self._told(answer)
        return Cancelled(task, has_ended=bool(has_ended)) if task else None

    async def claim(
        self, worker: str, *, limit: int, wait_seconds: float, on_ask: Callable[[], None] = lambda: None
    ) -> Sequence[Task]:
        if self._may_more or not wait_seconds:
            on_ask()
            records = await self._claim(worker, limit)
            if records or not wait_seconds:
                return records
        self._may_more = True  # unless a claim says otherwise, as the wait may fail
        if not await self._wait(worker, "wake", wait_seconds):
            return []
        on_ask()
        return await self._claim(worker, limit)

    async def wait_for_word(self, worker: str, *, seconds: float) -> None:
        await self._wait(worker, f"stop:{worker}", seconds)

    async def hear(self, worker: str, running: Sequence[Task]) -> Word:
        runs = (part for task in running for part in (task.id, task.run))
        cancelled, taken, left, claim = await self._run("hear", worker, *runs)
        if claim >= self._claims:  # its answer is on the way: what it brings is not left
            left = []
        return Word(
            cancelled=[task_id.decode() for task_id in cancelled],
            taken=[task_id.decode() for task_id in taken],
            left=[task for record in left if (task := self._task(pairs(record)))],
        )

    async def finish(self, task: Task, outcome: Outcome) -> bool:
        document = msgspec.json.encode(outcome)
        code = or_empty(outcome.exit_code)
        is_taken = bool(await self._run("finish", *holder(task), outcome.state.value, document, code))
        if is_taken and self._replicas:
            await self._note_followed(task.id)
        return is_taken

    async def release(self, task: Task, *, counted: bool) -> State | None:
        state = await self._run("release", *holder(task), int(counted))
        return State(state.decode()) if state else None

    async def reap(self) -> Sequence[Task]:
        records, newer = await self._run("reap")
        self._leave_alone(newer)
        settled = [task for record in records if (task := self._task(pairs(record)))]
        expired, self._expired = self._expired, []
        return settled + [task for task_id in expired if (task := await self.get(task_id.decode()))]

    async def expired(self, *, limit: int, counts: Mapping[State, int] | None = None) -> Sequence[str]:
        most = (part for state, count in (counts or {}).items() for part in (state.value, count))
        return [task_id.decode() for task_id in await self._run("expired", limit, *most)]

    async def workers(self) -> Mapping[str, int]:
        return Counter(loaded.decode() for loaded in await self._run("alive"))

    async def figures(self) -> Figures:
        states = [state for state in State if state.is_final]
        queued, scheduled, running, backlog, oldest, workers, slots, versions, *lately = await self._run(
            "figures", milliseconds(LATELY_SECONDS), *(state.value for state in states)
        )
        return Figures(
            queued=queued,
            scheduled=scheduled,
            running=running,
            backlog=backlog,
            oldest_seconds=oldest / 1000,
            workers=workers,
            slots=slots,
            lately=dict(zip(states, lately, strict=True)),
            versions=Counter(version.decode() for version in versions),
        )

    async def product(self) -> str:
        async with answering(self._watch):
            return product_of(await self._client.info("server"))

    async def leave(self, worker: str) -> None:
        await self._run("leave", worker)

    async def check(self) -> Sequence[str]:
        """What about this server endangers tasks; Error(INVALID_CONFIG) if it is too old, refuses us, or is not
        trusted.
        """
        async with answering(self._watch):
            try:
                return _dangers(await self._client.info())
            except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
                message = "Redis refuses the name or password, or their user lacks permissions."
                raise Error(Code.INVALID_CONFIG, message) from error
            except redis.exceptions.ConnectionError as error:
                if isinstance(cause := error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
                    message = (
                        f"The certificate of Redis is not trusted: {cause.verify_message.rstrip('.')}. "
                        "Name the file of the authority that signed it as ssl_ca_certs in the Redis URL."
                    )
                    raise Error(Code.INVALID_CONFIG, message) from error
                raise

    async def close(self) -> None:
        for wire in (self._wire, *self._waits.values()):
            await wire.close()
        await close(self._client)
        await close(self._waiting)

    async def _claim(self, worker: str, limit: int) -> Sequence[Task]:
        """Claim under the next number; the number is used again until an answer has come.

        When no more may start there is nothing to ask for until a token says so.
        """
        most = (or_empty(self._limits.max_running), or_empty(self._limits.max_running_per_caller))
        self._may_more = True
        records, newer, expired, may_more = await self._run("claim", worker, self._claims, limit, *most)
        self._may_more = bool(may_more)
        self._leave_alone(newer)
        self._expired += expired
        if records:
            self._claims += 1
        return [task for record in records if (task := self._task(pairs(record)))]

    async def _wait(self, worker: str, name: str, seconds: float) -> bool:
        """Whether there was something in a list within the time; each wait blocks a connection of its own."""
        wire = self._waits.get((worker, name))
        if wire is None:
            wire = Wire(self._waiting.connection_pool, patience_seconds=ANSWER_SECONDS)
            self._waits[worker, name] = wire
        try:
            with self._explained:
                return await wire.call("BLPOP", self._key(name), seconds, more_seconds=seconds) is not None
        except asyncio.CancelledError:
            wire.drop()  # or the next would wait behind this one
            raise

    async def _records(self, ids: Sequence[bytes], fields: Sequence[str]) -> Sequence[Task | None]:
        """The tasks with these ids as far as these fields go; None for one that is gone, or newer than we know."""
        async with self._client.pipeline(transaction=False) as pipeline:
            for task_id in ids:
                pipeline.hmget(self._key("task", task_id.decode()), fields)
            records = await pipeline.execute()
        names = [name.encode() for name in fields]
        given = [{n: v for n, v in zip(names, values, strict=True) if v is not None} for values in records]
        self._leave_alone([record[b"id"] for record in given if self._is_newer(record)])
        return [None if self._is_newer(record) else self._task(record) for record in given]

    async def _run(self, script: str, *arguments: Argument) -> Any:
        """What a script answers; when somebody is to act upon it, only once enough replicas know of it."""
        known = self._scripts[script]
        if not self._replicas:
            with self._explained:
                return await self._wire.run(known, self._prefix, self._format, *arguments)
        call = {"keys": [self._prefix], "args": [self._format, *arguments]}
        async with answering(self._watch):
            if script not in _DURABLE:
                return await known(**call)
            async with self._client.pipeline(transaction=False) as pipeline:
                await known(**call, client=pipeline)
                return (await self._followed_by_replicas(pipeline))[0]

    async def _require_followed(self, tasks: Sequence[Task]) -> None:
        """Wait until enough replicas know how these ended; Error(UNAVAILABLE) for an end that could be undone."""
        unsure = {task.id: task for task in tasks if task.state.is_final and task.id not in self._followed}
        if not self._replicas or not unsure:
            return
        async with answering(self._watch), self._client.pipeline(transaction=False) as pipeline:
            for task_id in unsure:
                pipeline.hget(self._key("task", task_id), "state")
            states = await self._followed_by_replicas(pipeline)
        if [state and state.decode() for state in states] != [task.state.value for task in unsure.values()]:
            raise away()  # another server answered than before
        await self._note_followed(*unsure)

    async def _note_followed(self, *ids: str) -> None:
        await self._run("followed", *ids)
        self._followed |= dict.fromkeys(ids)
        while len(self._followed) > REMEMBERED:
            del self._followed[next(iter(self._followed))]

    async def _followed_by_replicas(self, pipeline: Any) -> Any:
        """What the commands of a pipeline answer, once enough replicas follow.

        All in one pipeline, so that no part of it is repeated at another server than the rest. WAIT counts from
        the last write of its connection, so there is one.
        """
        await self._scripts["mark"](keys=[self._prefix], args=[self._format], client=pipeline)
        pipeline.execute_command("WAIT", self._replicas, round(REPLICA_SECONDS * 1000))
        *answers, _, following = await pipeline.execute()
        if following < self._replicas:
            message = "Too few replicas of the task store (Redis) follow. Try again in a moment."
            raise Error(Code.UNAVAILABLE, message)
        return answers

    def _told(self, answer: Sequence[Any]) -> Task | None:
        """A task with its place among those that wait."""
        record, *place = answer
        task = self._task(pairs(record))
        return replace(task, place=place_of(*place)) if task and place[0] else task

    def _task(self, record: Mapping[bytes, bytes]) -> Task | None:
        """The task in a record, None if there is none; Error(UNAVAILABLE) if a newer version wrote it."""
        if self._is_newer(record):
            self._leave_alone([record[b"id"]])
            message = "The task was made by a newer version of this service. Try again in a moment."
            raise Error(Code.UNAVAILABLE, message)
        if b"followed" in record:
            self._followed[record[b"id"].decode()] = None
        return task_of(record)

    def _is_newer(self, record: Mapping[bytes, bytes]) -> bool:
        return int(record.get(b"format", 0)) > self._format

    def _leave_alone(self, ids: Sequence[bytes]) -> None:
        """Say once of each task that it is left to a newer version."""
        for task_id in {task_id.decode() for task_id in ids} - self._left_alone:
            _log.warning("task %s was made by a newer version of script-runner: it is left alone here", task_id)
            self._left_alone.add(task_id)

    def _key(self, kind: str, name: str | None = None) -> str:
        return f"{self._prefix}{kind}" if name is None else f"{self._prefix}{kind}:{name}"


def _digest(owner: str, key: str) -> str:
    return hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()


def version_of(info: Mapping[str, Any]) -> tuple[int, ...]:
    """Which version of Redis the server is like."""
    return tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])


def product_of(info: Mapping[str, Any]) -> str:
    """The name and version of a server; Valkey says also which Redis it is like."""
    if version := info.get("valkey_version"):
        return f"Valkey {version}"
    return f"Redis {info.get('redis_version', 'of an unknown version')}"


def _dangers(info: Mapping[str, Any]) -> list[str]:
    if version_of(info) < OLDEST_VERSION:
        raise Error(Code.INVALID_CONFIG, f"{product_of(info)} is too old: 6.2 or newer is needed.")
    found = []
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        found.append(f"Redis may evict tasks (maxmemory-policy {policy}); set it to noeviction.")
    if not info.get("aof_enabled"):
        found.append("Redis keeps no append-only file: tasks may be lost when it restarts (appendonly yes).")
    return found


def _refusal(word: str, expected_wait: int = 0) -> Error:
    """Why a task was not queued."""
    if word == "differs":
        return Error(Code.KEY_REUSED, "This Idempotency-Key was used for another request.")
    seconds = LONG_WAIT_SECONDS if expected_wait < 0 else math.ceil(expected_wait / 1000)
    wait = min(max(seconds, 1), LONG_WAIT_SECONDS)
    if word == "full":
        return Error(Code.QUEUE_FULL, "The queue is full. Try again later.", retry_after=wait)
    return Error(Code.TOO_MANY_QUEUED, "You have as many tasks waiting as one caller may.", retry_after=wait)


def _cursor(cursor: str | None) -> str:
    if cursor is None:
        return "+inf"
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 16):  # noqa: PLR2004 - a sequence number
        raise Error(Code.INVALID_INPUT, BAD_CURSOR, (Problem("query", "cursor", BAD_CURSOR),))
    return f"({cursor}"
