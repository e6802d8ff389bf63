"""All that a front door may ask: submit, get, list, cancel, remove, logs, artifacts."""

import hashlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from script_runner import inputs
from script_runner.errors import Code, Error, Problem
from script_runner.inputs import Request
from script_runner.ports import Artifacts, Identity, LogChunk, Logs, Page, Tasks
from script_runner.spec import LEAST_PRIORITY, Spec
from script_runner.task import Artifact, Results, State, Task

MAX_PAGE = 200
MAX_LOG_OFFSET = 1 << 53
"""The largest whole number that every reader of JSON keeps exact (RFC 8259, section 6)."""

LOG_BYTES = 1 << 20
"""How much of a log one answer carries."""

EXPIRY_PIECE = 100
EXPIRY_ROUNDS = 20
"""How many tasks past their retention are let go at a time, and how often, before other chores have their turn."""

_log = logging.getLogger("script_runner.service")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller asks of the queue, beside what it asks of the script. ``not_before`` is in epoch seconds."""

    idempotency_key: str | None = None
    priority: int = 0
    not_before: float | None = None
    expires_in_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """The script's front: knows who may see what, and nothing of HTTP."""

    spec: Spec
    tasks: Tasks
    logs: Logs
    artifacts: Artifacts

    async def submit(self, identity: Identity, request: Request, wishes: Wishes | None = None) -> Task:
        """Check the request and queue a task durably; Error says what is wrong with it.

        A request that repeats an earlier one under its idempotency key gets the task of that one.
        """
        wishes = wishes or Wishes()
        _check(wishes, self.spec)
        task = Task(
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
        )
        return await self.tasks.add(task)

    async def get(self, identity: Identity, task_id: str) -> Task:
        """The caller's task; Error(NOT_FOUND) alike for one that is unknown and one of somebody else."""
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
        task = await self.tasks.cancel(task_id)
        if task is None:
            raise Error(Code.NOT_FOUND, "There is no such task.")
        return task

    async def remove(self, identity: Identity, task_id: str) -> None:
        """Forget a task and its files; Error(CONFLICT) while it runs."""
        await self.get(identity, task_id)
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

    async def readiness(self) -> Mapping[str, int]:
        """How many workers are alive, by their configuration; Error(UNAVAILABLE) with what is missing."""
        workers = await self.tasks.workers()
        await self.artifacts.check()
        return workers


async def tend(tasks: Tasks, artifacts: Artifacts, counts: Mapping[State, int]) -> None:
    """Settle what dead workers held, and let go of what is past its retention or beyond its ``counts``.

    Any number may do so at once.
    """
    for task in await tasks.reap():
        _log.warning("the worker of task %s was lost: the task is now %s", task.id, task.state)
    for _ in range(EXPIRY_ROUNDS):
        ids = await tasks.expired(limit=EXPIRY_PIECE, counts=counts)
        for task_id in ids:
            await artifacts.remove(task_id)
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
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
