"""All that a front door may ask: submit, get, list, cancel, remove, logs, artifacts."""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import asdict

from script_runner import inputs, journal
from script_runner.errors import Code, Error, Problem
from script_runner.follow import Ear, Event, Follower, Place, end_of
from script_runner.inputs import Request
from script_runner.ports import ENDED, Artifacts, Changes, Figures, Identity, Logs, Page, Tasks, Unwatched, Watch
from script_runner.spec import LEAST_PRIORITY, Spec
from script_runner.streams import LogChunk
from script_runner.task import Artifact, Outcome, Results, State, Task

MAX_PAGE = 200
MAX_LOG_OFFSET = 1 << 53
"""The largest whole number that every reader of JSON keeps exact (RFC 8259, section 6)."""

LOG_BYTES = 1 << 20
"""How much of a log one answer carries."""

FIGURES_SECONDS = 1.0
STORE_SECONDS = 30.0
"""How old what is known of the queue, and of the store itself, may be when it is told."""

EXPIRY_PIECE = 100
EXPIRY_ROUNDS = 20
"""How many tasks past their retention are let go at a time, and how often, before other chores have their turn."""

EXPIRY_AT_ONCE = 10
"""Of how many tasks the files are removed at the same time: an object store takes its time for each."""

_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A UUID as it is given out (RFC 9562, section 4)."""

_log = logging.getLogger("script_runner.service")


class Wishes(Struct, frozen=True):
    """What a caller asks of the queue, beside what it asks of the script. ``not_before`` is in epoch seconds."""

    idempotency_key: str | None = None
    priority: int = 0
    not_before: float | None = None
    expires_in_seconds: float | None = None


class Origin(Struct, frozen=True):
    """By which request a task came, for those who look into it later. ``traceparent``: W3C Trace Context."""

    request_id: str | None = None
    traceparent: str | None = None


UNKNOWN_ORIGIN = Origin()


@dataclass(frozen=True, slots=True)
class Awaited:
    """A task that was queued, and an ear for its end that has missed nothing."""

    task: Task
    tasks: Tasks
    ear: Ear

    async def end(self, *, seconds: float) -> Task:
        """The task once it is final, or as it is after this time; as it was queued when nobody can say."""
        try:
            return await end_of(self.task, self.ear, self.tasks, seconds=seconds)
        except Error as error:
            _log.debug("task %s cannot be waited for: %s", self.task.id, error.message)
            return self.task


@dataclass(frozen=True, slots=True)
class Service:
    """The script's front: knows who may see what, and nothing of HTTP."""

    spec: Spec
    tasks: Tasks
    logs: Logs
    artifacts: Artifacts
    changes: Changes
    watch: Watch = field(default_factory=Unwatched)
    lookout: "Lookout" = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lookout", Lookout(self.tasks))

    async def submit(
        self, identity: Identity, request: Request, wishes: Wishes | None = None, origin: Origin = UNKNOWN_ORIGIN
    ) -> Task:
        """Check the request and queue a task durably; Error says what is wrong with it.

        A request that repeats an earlier one under its idempotency key gets the task of that one.
        """
        return await self._add(self._asked(identity, request, wishes or Wishes(), origin))

    @contextlib.asynccontextmanager
    async def submit_awaited(
        self, identity: Identity, request: Request, wishes: Wishes | None = None, origin: Origin = UNKNOWN_ORIGIN
    ) -> AsyncIterator[Awaited]:
        """As ``submit``, to wait for the end of the task."""
        asked = self._asked(identity, request, wishes or Wishes(), origin)
        ear = Ear([ENDED])
        async with self.changes.watch(asked.id, ear.tell):
            task = await self._add(asked)
            if task.id == asked.id:
                yield Awaited(task, self.tasks, ear)
                return
        async with self.changes.watch(task.id, ear.tell):
            ear.tell([ENDED])  # it is an earlier one, and may have ended
            yield Awaited(task, self.tasks, ear)

    async def _add(self, task: Task) -> Task:
        stands = await self.tasks.add(task)
        if stands.id == task.id:
            fields = {"task_id": task.id}
            journal.event(_log, "submitted", f"task {task.id} is queued", fields, level=logging.DEBUG)
        return stands

    def _asked(self, identity: Identity, request: Request, wishes: Wishes, origin: Origin) -> Task:
        """The task that a request asks for; Error says what is wrong with it."""
        _check(wishes, self.spec)
        return Task(
            id=str(uuid.uuid4()),
            owner=identity.owner,
            arguments=inputs.bind(self.spec, request),
            configuration=self.spec.fingerprint,
            max_attempts=self.spec.attempts,
            retention_seconds=self.spec.retention_seconds,
            retention=self.spec.kept_seconds,
            priority=wishes.priority,
            not_before=wishes.not_before,
            expires_in_seconds=wishes.expires_in_seconds or self.spec.expires_in_seconds,
            idempotency_key=wishes.idempotency_key,
            fingerprint=_fingerprint(request, wishes) if wishes.idempotency_key else "",
            request_id=origin.request_id,
            traceparent=origin.traceparent,
        )

    async def get(self, identity: Identity, task_id: str, *, wait_seconds: float = 0.0) -> Task:
        """The caller's task; Error(NOT_FOUND) alike for one that is unknown and one of somebody else.

        One that is not final is waited for until it is, at most for ``wait_seconds``.
        """
        task = await self._own(identity, task_id)
        if task.state.is_final or not wait_seconds:
            return task
        ear = Ear([ENDED])
        async with self.changes.watch(task_id, ear.tell):
            ear.tell([ENDED])  # it may have ended before we listened
            return await end_of(task, ear, self.tasks, seconds=wait_seconds)

    def events(
        self, task: Task, place: Place, *, is_whole: bool = False, seconds: float = math.inf
    ) -> AsyncGenerator[Event, None]:
        """What happens to a task that ``get`` has given, from a place on, until its end (``Follower.events``)."""
        follower = Follower(self.tasks, self.logs, self.artifacts, self.changes)
        return follower.events(task, place, is_whole=is_whole, seconds=seconds)

    async def _own(self, identity: Identity, task_id: str) -> Task:
        task = await self.tasks.get(task_id) if _is_id(task_id) else None
        if task is None or task.owner != identity.owner:
            raise Error(Code.NOT_FOUND, "There is no such task.")
        return task

    async def list(
        self, identity: Identity, *, states: Sequence[State] = (), cursor: str | None = None, limit: int = 50
    ) -> Page:
        """Up to ``limit`` of the caller's tasks, newest first."""
        return await self.tasks.list(identity.owner, states=states, cursor=cursor, limit=min(limit, MAX_PAGE))

    async def cancel(self, identity: Identity, task_id: str) -> Task:
        """Ask a task to stop; a final one stays as it is."""
        await self.get(identity, task_id)
        cancelled = await self.tasks.cancel(task_id)
        if cancelled is None:
            raise Error(Code.NOT_FOUND, "There is no such task.")
        if cancelled.has_ended:
            note_end(cancelled.task, self.watch)
        return cancelled.task

    async def remove(self, identity: Identity, task_id: str) -> None:
        """Forget a task and its files; Error(CONFLICT) while it runs."""
        task = await self.get(identity, task_id)
        if task.state.is_final:  # the files first: should the store be away, the task can be removed again
            await self.artifacts.remove(task_id)
        if not await self.tasks.remove(task_id):
            raise Error(Code.CONFLICT, "The task is running; cancel it first.")
        await self.artifacts.remove(task_id)

    async def results(self, identity: Identity, task_id: str) -> Results:
        """The results of a task that succeeded and has some."""
        task = await self.get(identity, task_id)
        if task.state is not State.SUCCEEDED:
            raise Error(Code.CONFLICT, f"The task has no results: it is {task.state}.")
        if task.outcome is None or task.outcome.results is None:
            raise Error(Code.NOT_FOUND, "This script has no results.")
        return task.outcome.results

    async def attachment(self, identity: Identity, task_id: str, name: str) -> Artifact:
        """The kept file of this name."""
        task = await self.get(identity, task_id)
        for artifact in task.outcome.files if task.outcome else ():
            if artifact.name == name:
                return artifact
        raise Error(Code.NOT_FOUND, "The task has no attachment of this name.")

    async def log(self, identity: Identity, task_id: str, stream: str, *, offset: int) -> LogChunk:
        """What the script said on one of ``STREAMS`` from ``offset``: the last part while it runs, then all."""
        task = await self.get(identity, task_id)
        if not task.state.is_final:
            return await self.logs.read(task_id, stream, offset=offset, limit=LOG_BYTES)
        for artifact in task.outcome.logs if task.outcome else ():
            if artifact.name == stream and offset < artifact.size:
                pieces = self.artifacts.read(artifact.key, start=offset, stop=offset + LOG_BYTES)
                return LogChunk(offset, b"".join([piece async for piece in pieces]))
        return LogChunk(offset, b"")

    def read(self, artifact: Artifact, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of a kept file."""
        return self.artifacts.read(artifact.key, start=start, stop=stop)

    async def url_for(self, artifact: Artifact, *, seconds: int) -> str | None:
        """Where the file can be fetched from the store itself for so long; None if it cannot."""
        return await self.artifacts.url_for(artifact.key, seconds=seconds)

    async def readiness(self) -> "Readiness":
        """How the installation is; Error(UNAVAILABLE) with what is missing."""
        configurations, figures = await self.tasks.workers(), await self.tasks.figures()
        await self.artifacts.check()
        product, dangers = await self.lookout.store()
        return Readiness(figures, configurations, product, tuple(dangers))


@dataclass(frozen=True, slots=True)
class Readiness:
    """How the installation is.

    Its figures; how many workers have loaded which configuration; which store it has, and what about that
    endangers tasks.
    """

    figures: Figures
    configurations: Mapping[str, int]
    store: str
    warnings: Sequence[str]


class Lookout:
    """What those who watch ask for again and again: the store is asked once in a while, however many they are."""

    def __init__(self, tasks: Tasks, clock: Callable[[], float] = time.monotonic) -> None:
        self._tasks = tasks
        self._clock = clock
        self._asking = asyncio.Lock()
        self._figures: tuple[float, Figures] | None = None
        self._store: tuple[float, tuple[str, Sequence[str]]] | None = None

    async def figures(self) -> Figures:
        """The figures of now, or of a moment ago; Error(UNAVAILABLE) while the store is away."""
        async with self._asking:
            if self._figures is None or self._clock() - self._figures[0] >= FIGURES_SECONDS:
                self._figures = (self._clock(), await self._tasks.figures())
            return self._figures[1]

    async def store(self) -> tuple[str, Sequence[str]]:
        """Which store it is, and what about it endangers tasks; Error(UNAVAILABLE) if it is away or no use."""
        async with self._asking:
            if self._store is None or self._clock() - self._store[0] >= STORE_SECONDS:
                self._store = (self._clock(), await self._asked())
            return self._store[1]

    async def _asked(self) -> tuple[str, Sequence[str]]:
        try:
            return await self._tasks.product(), await self._tasks.check()
        except Error as error:
            raise Error(Code.UNAVAILABLE, error.message) from None


def note_end(task: Task, watch: Watch) -> None:
    """Count and log the end of a task that no worker reports."""
    outcome = task.outcome or Outcome(task.state)
    watch.finished(outcome)
    sentence = f"task {task.id} ended: {task.state}"
    fields = {
        "task_id": task.id,
        "request_id": task.request_id,
        "attempt": task.attempt,
        "state": task.state.value,
        "reason": outcome.reason,
    }
    journal.event(_log, "finished", sentence, fields)


async def settle_lost(tasks: Tasks, watch: Watch | None = None) -> None:
    """Settle what dead workers held, and what has waited too long. Any number may do so at once."""
    for task in await tasks.reap():
        if task.outcome is None or task.outcome.reason != "queue":
            sentence = "the worker of task %s was lost: the task is now %s"
            _log.warning(sentence, task.id, task.state, extra=journal.of_task(task.id))
        if task.state.is_final:
            note_end(task, watch or Unwatched())


async def let_go(tasks: Tasks, artifacts: Artifacts, counts: Mapping[State, int]) -> None:
    """Let go of what is past its retention or beyond its ``counts``. Any number may do so at once.

    It takes as long as the store does, so nothing else may wait for it.
    """
    for _ in range(EXPIRY_ROUNDS):
        ids = await tasks.expired(limit=EXPIRY_PIECE, counts=counts)
        for first in range(0, len(ids), EXPIRY_AT_ONCE):
            piece = ids[first : first + EXPIRY_AT_ONCE]
            await asyncio.gather(*(artifacts.remove(task_id) for task_id in piece))
            for task_id in piece:
                await tasks.remove(task_id)
        if len(ids) < EXPIRY_PIECE:
            break


def _check(wishes: Wishes, spec: Spec) -> None:
    """Raise Error(INVALID_INPUT) for wishes that this script does not grant, or that cannot come true."""
    if not LEAST_PRIORITY <= wishes.priority <= spec.max_priority:
        allowed = f"must be from {LEAST_PRIORITY} to {spec.max_priority}"
        hint = "" if wishes.priority <= spec.max_priority else " (max_priority of the configuration)"
        raise _not_granted("Task-Priority", allowed + hint)
    start, patience = wishes.not_before, wishes.expires_in_seconds or spec.expires_in_seconds
    if start is not None and patience is not None and start >= time.time() + patience:
        raise _not_granted("Task-Not-Before", f"is later than the {patience:g} seconds that the task may wait")


def _not_granted(name: str, problem: str) -> Error:
    return Error(Code.INVALID_INPUT, f"{name} {problem}.", (Problem("header", name, problem),))


def _fingerprint(request: Request, wishes: Wishes) -> str:
    """What tells a repeated request from another one under the same key."""
    asked = [request.path, request.query, request.body.hex(), {**asdict(wishes), "idempotency_key": None}]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None
