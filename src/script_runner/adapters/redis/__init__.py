"""Tasks, leases and log tails in Redis or Valkey (6.2 and newer).

Every change of a task is one Lua script (``lua/``), so that it happens whole or not at all. All keys begin with
``{namespace}:1:`` (the braces keep them in one slot of a cluster, the 1 is the version of this layout; each record
carries the version of its own form, ``format``)::

    task:ID        hash    the record: format, id, owner, arguments, configuration, state, attempt, run,
                           max_attempts, priority, rank, sequence, retention (also one for a state), not_before,
                           expires, created, started, finished (ms), worker, cancelling, once, fingerprint,
                           request_id, traceparent, outcome (JSON), exit_code, followed
    owner:OWNER    zset    the owner's ids, by sequence
    STATE          zset    ids in a state -> when they came there (ms)
    STATE:OWNER    zset    the owner's ids in a state, by sequence
    once:DIGEST    text    the id that an owner's idempotency key stands for

    queue          zset    what may start: SEQUENCE and ID, by rank (priority, then turn)
    backlog:OWNER  zset    the same, held back while the owner has as many running as it may
    backlogs       set     owners with a backlog
    newer:FORMAT   zset    the same, put aside for workers that understand it
    scheduled      zset    ids that wait for a time (ms)
    expiring       zset    waiting ids -> until when they may start (ms)
    sequence       number  the last sequence given
    turn           hash    priority -> the turn of the task started last
    turns:PRIORITY zset    owner -> the last turn it was given
    limits         hash    the most that may run, of all and of one caller, as the last claim had it
    pace           number  how long runs took of late (ms)
    wake           list    one token a waiting task (at most 128); workers that wait block on it

    workers        zset    worker -> end of its lease (ms)
    slots          hash    worker -> how many it runs at once
    loaded         hash    worker -> the configuration it has loaded
    versions       hash    worker -> its version of this package
    worker:NAME    hash    its last claim: number and ids, so that a lost answer can be asked for again
    held:NAME      set     ids that the worker runs
    stop:NAME      list    ids that the worker is to stop; a wake-up, the truth is ``cancelling``
    log:ID         hash    tail and start of each stream of a running script
    finished       zset    final ids -> end of their retention (ms)
    reaper         hash    when somebody last looked for dead workers, and until when to leave them
    server         hash    the run id of the server, when it changed, and the end of the leases of before
    unheard        set     workers that have not compared what they run since then
    mark           number  written when replicas are waited for

And channels, which are no keys: nothing of them is kept::

    changes        ID and the state that a task comes into, or ``removed``, as the scripts publish it; servers
                   listen while anybody waits there
    changes:ID     the name of a stream of the task's log of which more can be read; servers listen while the log
                   is followed there

A word says only that there is something to be read. So it may be lost: who listens looks for himself after every
new connection, and every few seconds. In a cluster a word goes to all nodes; replicas get it too.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
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

from script_runner.adapters.redis.wire import Listening, Wire
from script_runner.errors import Code, Error, Problem
from script_runner.ports import (
    BAD_CURSOR,
    CLOSED,
    ENDED,
    LATELY_SECONDS,
    MOVED,
    STREAMS,
    Figures,
    Limits,
    LogChunk,
    Page,
    Tell,
    Unwatched,
    Watch,
    Word,
)
from script_runner.task import Outcome, Place, State, Task

OLDEST_VERSION = (6, 2)
ANSWER_SECONDS: Final = 1.5
"""How long one call may take before the store counts as away."""

LONG_WAIT_SECONDS: Final = 60
"""The longest that a caller is told to wait, and what it is told when nobody knows."""

REMEMBERED: Final = 10_000
"""Of how many ended tasks it is remembered that replicas know of them."""

TAIL_BYTES: Final = 64 * 1024
"""How much of each stream of a running script is kept here."""

FORMAT: Final = 1
"""The form of the records that this version writes, and the newest that it understands."""

REPLICA_SECONDS: Final = 1.0
"""How long replicas may take to follow a write."""

LOOK_SECONDS: Final = (5.0, 10.0)
"""How often one looks for what was not told; at random in between, so that servers do not do so together."""

LOOK_UNTOLD_SECONDS: Final = 1.0
"""The same while one cannot be told."""

PING_SECONDS: Final = 5.0
"""After how much silence a connection on which one is told has to show that it lives."""

TICK_SECONDS: Final = 1.0
RECONNECT_SECONDS: Final = 0.25
IDLE_SECONDS: Final = 10.0
"""How long a connection on which one is told is kept while nobody wants to be."""

REFUSED_SECONDS: Final = 30.0
"""When to ask again for a right that was refused."""

IDS_AT_ONCE: Final = 500

_Arguments = dict[str, str | tuple[str, ...]]
_Argument = str | bytes | float
_arguments_of = msgspec.json.Decoder(_Arguments).decode
_outcome_of = msgspec.json.Decoder(Outcome).decode

_LISTED = (
    "id", "owner", "format", "configuration", "state", "attempt", "run", "max_attempts", "retention", "priority",
    "not_before", "created", "started", "finished", "worker", "cancelling", "exit_code", "followed",
)  # fmt: skip
"""What a listing reads of a record: nothing that can be large."""

_ENDS = frozenset({"removed", *(state.value for state in State if state.is_final)})

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
        self._prefix = _prefix(namespace)
        self._client = _connect(url, self._prefix, is_waiting=False)
        self._waiting = _connect(url, self._prefix, is_waiting=True)
        self._wire = Wire(self._client.connection_pool, patience_seconds=ANSWER_SECONDS)
        self._waits: dict[tuple[str, str], Wire] = {}
        self._scripts = _scripts(self._client)
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
            _or_empty(self._limits.max_queued),
            _or_empty(self._limits.max_queued_per_caller),
            "" if task.expires_in_seconds is None else round(task.expires_in_seconds * 1000),
            *(part for item in self._fields(task).items() for part in item),
        )
        match answer:
            case [bytes(word), *wait]:
                raise _refusal(word.decode(), *wait)
            case [int(created), *place]:
                return replace(task, created_at=created / 1000, place=_place(*place))
            case _:
                return self._told(answer) or task

    async def get(self, task_id: str) -> Task | None:
        task = self._told(await self._run("get", task_id))
        await self._require_followed([task] if task else [])
        return task

    async def list(self, owner: str, *, states: Sequence[State], cursor: str | None, limit: int) -> Page:
        before = _cursor(cursor)
        keys = [self._key(state.value, owner) for state in dict.fromkeys(states)] or [self._key("owner", owner)]
        async with _answering(self._watch):
            async with self._client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.zrevrangebyscore(key, before, "-inf", start=0, num=limit, withscores=True)
                entries = [item for items in await pipeline.execute() for item in items]
            newest = sorted(entries, key=lambda item: -item[1])[:limit]
            tasks = await self._records([task_id for task_id, _ in newest], _LISTED)
        cursor = f"{newest[-1][1]:.0f}" if len(newest) == limit else None
        found = [task for task in tasks if task and (not states or task.state in states)]
        await self._require_followed(found)
        return Page(tuple(found), cursor)

    async def remove(self, task_id: str) -> bool:
        return bool(await self._run("remove", task_id))

    async def cancel(self, task_id: str) -> Task | None:
        return self._told(await self._run("cancel", task_id))

    async def claim(self, worker: str, *, limit: int, wait_seconds: float) -> Sequence[Task]:
        if self._may_more or not wait_seconds:
            records = await self._claim(worker, limit)
            if records or not wait_seconds:
                return records
        self._may_more = True  # unless a claim says otherwise, as the wait may fail
        return await self._claim(worker, limit) if await self._wait(worker, "wake", wait_seconds) else []

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
            left=[task for record in left if (task := self._task(_pairs(record)))],
        )

    async def finish(self, task: Task, outcome: Outcome) -> bool:
        document = msgspec.json.encode(outcome)
        code = _or_empty(outcome.exit_code)
        is_taken = bool(await self._run("finish", *_holder(task), outcome.state.value, document, code))
        if is_taken and self._replicas:
            await self._note_followed(task.id)
        return is_taken

    async def release(self, task: Task, *, counted: bool) -> bool:
        return bool(await self._run("release", *_holder(task), int(counted)))

    async def reap(self) -> Sequence[Task]:
        settled, newer = await self._run("reap")
        self._leave_alone(newer)
        settled += self._expired
        self._expired = []
        return [task for task_id in settled if (task := await self.get(task_id.decode()))]

    async def expired(self, *, limit: int, counts: Mapping[State, int] | None = None) -> Sequence[str]:
        most = (part for state, count in (counts or {}).items() for part in (state.value, count))
        return [task_id.decode() for task_id in await self._run("expired", limit, *most)]

    async def workers(self) -> Mapping[str, int]:
        return Counter(loaded.decode() for loaded in await self._run("alive"))

    async def figures(self) -> Figures:
        states = [state for state in State if state.is_final]
        queued, scheduled, running, backlog, oldest, workers, slots, versions, *lately = await self._run(
            "figures", _milliseconds(LATELY_SECONDS), *(state.value for state in states)
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
        async with _answering(self._watch):
            return _product(await self._client.info("server"))

    async def leave(self, worker: str) -> None:
        await self._run("leave", worker)

    async def check(self) -> Sequence[str]:
        """What about this server endangers tasks; Error(INVALID_CONFIG) if it is too old, refuses us, or is not
        trusted.
        """
        async with _answering(self._watch):
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
        await _close(self._client)
        await _close(self._waiting)

    async def _claim(self, worker: str, limit: int) -> Sequence[Task]:
        """Claim under the next number; the number is used again until an answer has come.

        When no more may start there is nothing to ask for until a token says so.
        """
        most = (_or_empty(self._limits.max_running), _or_empty(self._limits.max_running_per_caller))
        self._may_more = True
        records, newer, expired, may_more = await self._run("claim", worker, self._claims, limit, *most)
        self._may_more = bool(may_more)
        self._leave_alone(newer)
        self._expired += expired
        if records:
            self._claims += 1
        return [task for record in records if (task := self._task(_pairs(record)))]

    async def _wait(self, worker: str, name: str, seconds: float) -> bool:
        """Whether there was something in a list within the time; each wait blocks a connection of its own."""
        wire = self._waits.get((worker, name))
        if wire is None:
            wire = Wire(self._waiting.connection_pool, patience_seconds=ANSWER_SECONDS)
            self._waits[worker, name] = wire
        try:
            with _explained(self._watch):
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

    async def _run(self, script: str, *arguments: _Argument) -> Any:
        """What a script answers; when somebody is to act upon it, only once enough replicas know of it."""
        known = self._scripts[script]
        if not self._replicas:
            with _explained(self._watch):
                return await self._wire.run(known, self._prefix, self._format, *arguments)
        call = {"keys": [self._prefix], "args": [self._format, *arguments]}
        async with _answering(self._watch):
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
        async with _answering(self._watch), self._client.pipeline(transaction=False) as pipeline:
            for task_id in unsure:
                pipeline.hget(self._key("task", task_id), "state")
            states = await self._followed_by_replicas(pipeline)
        if [state and state.decode() for state in states] != [task.state.value for task in unsure.values()]:
            raise _away()  # another server answered than before
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
        pipeline.set(self._key("mark"), 1)
        pipeline.execute_command("WAIT", self._replicas, round(REPLICA_SECONDS * 1000))
        *answers, _, following = await pipeline.execute()
        if following < self._replicas:
            message = "Too few replicas of the task store (Redis) follow. Try again in a moment."
            raise Error(Code.UNAVAILABLE, message)
        return answers

    def _fields(self, task: Task) -> dict[str, _Argument]:
        """The fields of a new record."""
        fields: dict[str, _Argument] = {
            "format": self._format,
            "arguments": msgspec.json.encode(task.arguments),
            "configuration": task.configuration,
            "max_attempts": task.max_attempts,
            "priority": task.priority,
            "fingerprint": task.fingerprint,
            "retention": _milliseconds(task.retention_seconds),
        }
        fields |= {f"retention:{state}": _milliseconds(kept) for state, kept in task.retention.items()}
        fields |= {"request_id": task.request_id} if task.request_id else {}
        fields |= {"traceparent": task.traceparent} if task.traceparent else {}
        return fields if task.not_before is None else fields | {"not_before": _milliseconds(task.not_before)}

    def _told(self, answer: Sequence[Any]) -> Task | None:
        """A task with its place among those that wait."""
        record, *place = answer
        task = self._task(_pairs(record))
        return replace(task, place=_place(*place)) if task and place[0] else task

    def _task(self, record: Mapping[bytes, bytes]) -> Task | None:
        """The task in a record, None if there is none; Error(UNAVAILABLE) if a newer version wrote it."""
        if self._is_newer(record):
            self._leave_alone([record[b"id"]])
            message = "The task was made by a newer version of this service. Try again in a moment."
            raise Error(Code.UNAVAILABLE, message)
        if b"followed" in record:
            self._followed[record[b"id"].decode()] = None
        return _task(record)

    def _is_newer(self, record: Mapping[bytes, bytes]) -> bool:
        return int(record.get(b"format", 0)) > self._format

    def _leave_alone(self, ids: Sequence[bytes]) -> None:
        """Say once of each task that it is left to a newer version."""
        for task_id in {task_id.decode() for task_id in ids} - self._left_alone:
            _log.warning("task %s was made by a newer version of script-runner: it is left alone here", task_id)
            self._left_alone.add(task_id)

    def _key(self, kind: str, name: str | None = None) -> str:
        return f"{self._prefix}{kind}" if name is None else f"{self._prefix}{kind}:{name}"


class RedisLogs:
    """The tails of running scripts in Redis."""

    def __init__(self, url: str, namespace: str, *, watch: Watch | None = None) -> None:
        self._watch = watch or Unwatched()
        self._prefix = _prefix(namespace)
        self._client = _connect(url, self._prefix, is_waiting=False)
        self._append = _scripts(self._client)["append"]

    async def append(self, task_id: str, stream: str, chunk: LogChunk) -> None:
        arguments = [FORMAT, task_id, stream, chunk.offset, chunk.data, TAIL_BYTES]
        async with _answering(self._watch):
            await self._append(keys=[self._prefix], args=arguments)

    async def read(self, task_id: str, stream: str, *, offset: int, limit: int) -> LogChunk:
        async with _answering(self._watch):
            tail, start = await self._client.hmget(f"{self._prefix}log:{task_id}", [stream, f"{stream}:start"])
        if tail is None:
            return LogChunk(offset, b"")
        first = max(offset, int(start))
        return LogChunk(first, tail[first - int(start) :][:limit])

    async def close(self) -> None:
        await _close(self._client)


class RedisChanges:
    """Word of what happens to tasks, told by Redis on one connection for all who wait here.

    It is opened with the first of them. What was told while there was no connection is made up for by looking, all
    tasks in one go: after every new connection, and every few seconds besides.
    """

    def __init__(self, url: str, namespace: str, *, watch: Watch | None = None) -> None:
        self._watch = watch or Unwatched()
        self._prefix = _prefix(namespace)
        self._states = f"{self._prefix}changes"
        self._states_bytes = self._states.encode()
        self._client = _connect(url, self._prefix, is_waiting=False)
        self._wire = Wire(self._client.connection_pool, patience_seconds=ANSWER_SECONDS)
        self._versions_of = _scripts(self._client)["versions"]
        self._watching: dict[str, list[Tell]] = {}
        self._versions: dict[str, Sequence[bytes]] = {}
        """What the last look at each task saw."""
        self._readers = Counter[str]()
        """How many want to know of which task's log."""
        self._asked: set[str] = set()
        self._heard: set[str] = set()
        """The channels that were asked for, and those that are told, on the connection of now."""
        self._trusted: set[str] = set()
        """The channels of which somebody believes to be told all."""
        self._acknowledged: dict[str, asyncio.Event] = {}
        self._wanted = asyncio.Event()
        self._news = asyncio.Event()
        self._doubts = asyncio.Event()
        self._chores: list[asyncio.Task[None]] = []
        self._refusal: Exception | None = None
        self._heard_at = 0.0
        self._is_away = False
        self._is_dismissed = False
        self._has_complained = False

    @contextlib.asynccontextmanager
    async def watch(self, task_id: str, tell: Tell, *, logs: bool = False) -> AsyncIterator[None]:
        self._watching.setdefault(task_id, []).append(tell)
        if logs:
            self._readers[task_id] += 1
        self._watch.waiting(1)
        try:
            await self._begin(self._log(task_id) if logs else self._states)
            if self._is_dismissed:
                tell([CLOSED])
            yield
        finally:
            self._watch.waiting(-1)
            self._leave(task_id, tell, logs=logs)

    def dismiss(self) -> None:
        self._is_dismissed = True
        for task_id in self._watching:
            self._tell(task_id, (CLOSED,))

    async def close(self) -> None:
        while pending := [chore for chore in self._chores if not chore.done()]:
            for chore in pending:
                chore.cancel()
            await asyncio.wait(pending, timeout=1)  # a cancel may be swallowed (bpo-37658)
        await self._wire.close()
        await _close(self._client)

    async def _begin(self, channel: str) -> None:
        """Return when one is told what comes on a channel, or when that cannot be for the moment."""
        if not self._chores:
            self._chores = [asyncio.create_task(self._listen()), asyncio.create_task(self._look_for_ever())]
        self._wanted.set()
        if channel not in self._heard and not self._is_away and not self._is_dismissed:
            self._news.set()
            acknowledged = self._acknowledged.setdefault(channel, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await acknowledged.wait()
        self._trusted |= {self._states, channel}

    def _leave(self, task_id: str, tell: Tell, *, logs: bool) -> None:
        self._watching[task_id].remove(tell)
        if logs:
            self._readers[task_id] -= 1
            if not self._readers[task_id]:
                del self._readers[task_id]
                self._trusted.discard(self._log(task_id))
        if not self._watching[task_id]:
            del self._watching[task_id]
            self._versions.pop(task_id, None)

    def _log(self, task_id: str) -> str:
        return f"{self._states}:{task_id}"

    def _tell(self, task_id: str, words: Sequence[str]) -> None:
        for tell in self._watching.get(task_id, ()):
            tell(words)

    # Being told

    @property
    def _channels(self) -> set[str]:
        """What has to be listened to: the states of all tasks, and the logs that are followed."""
        return {self._states, *map(self._log, self._readers)}

    async def _listen(self) -> None:
        """Keep one connection on which Redis tells us, while anybody watches."""
        while True:
            await self._wanted.wait()
            try:
                with _explained(self._watch):
                    await self._converse()
            except Error:
                self._is_away = True
                if self._refusal:
                    self._complain()
                    self._doubts.set()
                await asyncio.sleep(REFUSED_SECONDS if self._refusal else RECONNECT_SECONDS)

    def _complain(self) -> None:
        if not self._has_complained:
            sentence = (
                "Redis lets its user not subscribe to the channels %s* (%s): ends are told up to a second late"
            )
            _log.warning(sentence, self._states, self._refusal)
        self._has_complained = True

    async def _converse(self) -> None:
        """One connection from its beginning to its end, which is when nobody watches any more."""
        self._refusal = None
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            connection = self._client.connection_pool.make_connection()
            await connection.connect()
        listening = Listening(connection, self._hear)
        self._is_away, self._heard_at = False, _clock()
        try:
            await self._ask(listening)
        finally:
            self._asked.clear()
            self._heard.clear()
            for acknowledged in self._acknowledged.values():
                acknowledged.set()
            self._acknowledged.clear()
            await listening.close()

    async def _ask(self, listening: Listening) -> None:
        """Ask for the channels that are new at once, and no more for others later. Return when nobody watches."""
        tick_at = _clock() + TICK_SECONDS
        idle_at = _clock() + IDLE_SECONDS
        while self._watching or _clock() < idle_at:
            self._news.clear()
            new = self._channels - self._asked
            self._asked |= new
            _say(listening, "SUBSCRIBE", new)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, tick_at - _clock())):
                    await self._news.wait()
            if self._refusal or not listening.is_open:
                raise self._refusal or _away()
            if _clock() < tick_at:
                continue
            tick_at = _clock() + TICK_SECONDS
            idle_at = _clock() + IDLE_SECONDS if self._watching else idle_at
            stale = self._heard - self._channels
            self._asked -= stale
            self._heard -= stale
            _say(listening, "UNSUBSCRIBE", stale)
            silence = _clock() - self._heard_at
            if silence > PING_SECONDS + ANSWER_SECONDS:
                raise _away()
            if silence > PING_SECONDS:
                listening.say("PING")
        self._wanted.clear()

    def _hear(self, said: Any) -> None:
        self._heard_at = _clock()
        match said:
            case [b"message", channel, word] if channel == self._states_bytes:
                task_id, _, state = word.decode().rpartition(" ")
                self._tell(task_id, _meaning(state))
            case [b"message", channel, word]:
                self._tell(channel.decode().removeprefix(f"{self._states}:"), (word.decode(),))
            case [b"subscribe", channel, _]:
                self._is_told(channel.decode())
            case Exception():
                self._refusal = said
                self._news.set()
            case None:
                self._news.set()

    def _is_told(self, channel: str) -> None:
        self._heard.add(channel)
        if acknowledged := self._acknowledged.pop(channel, None):
            acknowledged.set()
        if channel in self._trusted:  # something may have happened while nobody told
            self._doubts.set()

    # Looking for oneself

    async def _look_for_ever(self) -> None:
        while True:
            await self._wanted.wait()
            is_told = not self._is_away and self._channels <= self._heard
            pause = random.uniform(*LOOK_SECONDS) if is_told else LOOK_UNTOLD_SECONDS  # noqa: S311 - no secret
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._doubts.wait()
            self._doubts.clear()
            with contextlib.suppress(Error):
                await self._look()

    async def _look(self) -> None:
        """Tell what has changed since the last look; at the first look at a task, all that could have."""
        watched = list(self._watching)
        for start in range(0, len(watched), IDS_AT_ONCE):
            ids = watched[start : start + IDS_AT_ONCE]
            with _explained(self._watch):
                versions = await self._wire.run(self._versions_of, self._prefix, FORMAT, *ids)
            for task_id, version in zip(ids, versions, strict=True):
                before = self._versions.get(task_id)
                if task_id in self._watching and version != before:
                    self._versions[task_id] = version
                    self._tell(task_id, _difference(before, version))


def _say(listening: Listening, command: str, channels: Iterable[str]) -> None:
    names = sorted(channels)  # that of the states first
    for start in range(0, len(names), IDS_AT_ONCE):
        listening.say(command, *names[start : start + IDS_AT_ONCE])


class RedisLease:
    """A worker's lease in Redis, over a blocking connection of its own."""

    def __init__(self, url: str, namespace: str) -> None:
        self._client = _connect_blocking(url)
        self._prefix = _prefix(namespace)
        self._renew = self._client.register_script(_source("renew"))

    def renew(
        self, worker: str, *, seconds: float, slots: int = 1, configuration: str = "", version: str = ""
    ) -> bool:
        arguments = [FORMAT, worker, _milliseconds(seconds), slots, configuration, version]
        with _explained(Unwatched()):
            return bool(self._renew(keys=[self._prefix], args=arguments))

    def close(self) -> None:
        self._client.close()
        for sentinel in _sentinels(self._client):
            sentinel.close()


# Connections


def _connect(url: str, prefix: str, *, is_waiting: bool) -> Any:
    """A client; a waiting one has no time limit on its answers, for commands that block."""

    async def introduce(connection: Any) -> None:
        """Before anything else is said on a new connection: which server is this?"""
        await connection.on_connect()
        try:
            await connection.send_command("INFO", "server")
            run_id = _run_id(await connection.read_response())
            await connection.send_command("EVAL", _source("meet"), 1, prefix, FORMAT, run_id)
            await connection.read_response()
        except redis.exceptions.ResponseError as error:  # it may not be asked, or takes no writes now
            _log.debug("the server did not say which it is: %s", error)

    options: dict[str, Any] = {
        "socket_timeout": None if is_waiting else ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS / 2,
        "retry": AsyncRetry(ConstantBackoff(0.05), 1),
        "protocol": 2,
        "redis_connect_func": introduce,
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


CERTIFICATE_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

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
        _connect_blocking(url).connection_pool.make_connection()
    except (TypeError, ValueError):  # for an unknown option or a bad value; the library's words may hold secrets
        message = (
            "The Redis URL cannot be used: expected redis://, rediss://, unix:// or redis+sentinel://, "
            "a number as port, known options, and / # ? @ written as %2F %23 %3F %40 in the password."
        )
        raise Error(Code.INVALID_CONFIG, message, (Problem("environment", "REDIS_URL", message),)) from None
    for name, path in parse_qsl(urlsplit(url).query):
        if name in CERTIFICATE_FILES:
            _check_readable(name, path)


def _check_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123 - a text of the URL
            return
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "no such file"
        message = f"The file {path!r}, which the Redis URL names as {name}, cannot be read: {reason}."
        raise Error(Code.INVALID_CONFIG, message, (Problem("environment", "REDIS_URL", message),)) from None


def _version(info: Mapping[str, Any]) -> tuple[int, ...]:
    """Which version of Redis the server is like."""
    return tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])


def _product(info: Mapping[str, Any]) -> str:
    """The name and version of a server; Valkey says also which Redis it is like."""
    if version := info.get("valkey_version"):
        return f"Valkey {version}"
    return f"Redis {info.get('redis_version', 'of an unknown version')}"


def _dangers(info: Mapping[str, Any]) -> list[str]:
    if _version(info) < OLDEST_VERSION:
        raise Error(Code.INVALID_CONFIG, f"{_product(info)} is too old: 6.2 or newer is needed.")
    found = []
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        found.append(f"Redis may evict tasks (maxmemory-policy {policy}); set it to noeviction.")
    if not info.get("aof_enabled"):
        found.append("Redis keeps no append-only file: tasks may be lost when it restarts (appendonly yes).")
    return found


@contextlib.asynccontextmanager
async def _answering(watch: Watch) -> AsyncIterator[None]:
    """Raise Error(UNAVAILABLE) when the store does not answer in time, and tell those who watch."""
    with _explained(watch):
        async with asyncio.timeout(ANSWER_SECONDS):
            yield


@contextlib.contextmanager
def _explained(watch: Watch) -> Iterator[None]:
    try:
        yield
    except (redis.exceptions.RedisError, OSError, RuntimeError) as error:  # uvloop's word for a closed connection
        watch.store_failed("redis")
        raise _away() from error
    except Error as error:
        if error.code is Code.UNAVAILABLE:
            watch.store_failed("redis")
        raise


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
        "add", "alive", "append", "cancel", "claim", "expired", "figures", "finish", "followed", "get",
        "hear", "leave", "reap", "release", "remove", "versions",
    )  # fmt: skip
    return {name: client.register_script(_source(name)) for name in names}


def _meaning(word: str) -> Sequence[str]:
    """What a word on a task's channel says."""
    if word in STREAMS:
        return (word,)
    return (MOVED, ENDED) if word in _ENDS else (MOVED,)


def _difference(before: Sequence[bytes] | None, now: Sequence[bytes]) -> Sequence[str]:
    """The words for what has changed between two looks at a task."""
    state, run, *ends = before or (None, None, None, None)
    moved = _meaning(now[0].decode()) if [state, run] != now[:2] else ()
    return (*moved, *(name for name, old, new in zip(STREAMS, ends, now[2:], strict=True) if old != new))


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _task(record: Mapping[bytes, bytes]) -> Task | None:
    """The task in a record, as far as it is there; None if there is none."""
    if not record:
        return None
    state = State(record[b"state"].decode())
    return Task(
        id=record[b"id"].decode(),
        owner=record[b"owner"].decode(),
        arguments=_arguments_of(record.get(b"arguments", b"{}")),
        configuration=record.get(b"configuration", b"").decode(),
        max_attempts=int(record[b"max_attempts"]),
        retention_seconds=_seconds(record[b"retention"]),
        priority=int(record.get(b"priority", 0)),
        not_before=_moment(record, b"not_before"),
        request_id=_text(record, b"request_id"),
        traceparent=_text(record, b"traceparent"),
        state=state,
        created_at=_seconds(record[b"created"]),
        started_at=_moment(record, b"started"),
        finished_at=_moment(record, b"finished"),
        worker=_text(record, b"worker"),
        attempt=int(record[b"attempt"]),
        run=int(record[b"run"]),
        is_cancelling=b"cancelling" in record,
        outcome=_outcome(record, state),
    )


def _place(position: int, expected_wait: int) -> Place | None:
    """Where a task stands, 0 being nowhere; the milliseconds are -1 when nobody knows."""
    return Place(position, None if expected_wait < 0 else expected_wait / 1000) if position else None


def _outcome(record: Mapping[bytes, bytes], state: State) -> Outcome | None:
    """The outcome in a record; of one that was read in part, how it ended and no more."""
    if outcome := record.get(b"outcome"):
        return _outcome_of(outcome)
    code = record.get(b"exit_code")
    return Outcome(state, int(code) if code else None) if state.is_final else None


def _moment(record: Mapping[bytes, bytes], name: bytes) -> float | None:
    return _seconds(record[name]) if name in record else None


def _text(record: Mapping[bytes, bytes], name: bytes) -> str | None:
    return record[name].decode() if record.get(name) else None


def _seconds(milliseconds: bytes) -> float:
    return int(milliseconds) / 1000


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _or_empty(number: int | None) -> int | str:
    return "" if number is None else number


def _holder(task: Task) -> tuple[str, str, int]:
    return task.id, task.worker or "", task.run


def _digest(owner: str, key: str) -> str:
    return hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()


def _run_id(info: bytes) -> str:
    """The run id in an answer to INFO: another one after each start of a server."""
    lines = (line.partition(b":") for line in info.splitlines())
    return next((value.decode() for name, _, value in lines if name == b"run_id"), "")


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
