"""All that a front door may ask: submit, get, list, cancel, remove, logs, artifacts."""

import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from script_runner import inputs
from script_runner.errors import Code, Error
from script_runner.inputs import Request
from script_runner.ports import Artifacts, Identity, LogChunk, Logs, Page, Tasks
from script_runner.spec import Spec
from script_runner.task import Artifact, Results, State, Task

MAX_PAGE = 200
MAX_LOG_OFFSET = 1 << 53
"""The largest whole number that every reader of JSON keeps exact (RFC 8259, section 6)."""

LOG_BYTES = 1 << 20
"""How much of a log one answer carries."""

_log = logging.getLogger("script_runner.service")


@dataclass(frozen=True, slots=True)
class Service:
    """The script's front: knows who may see what, and nothing of HTTP."""

    spec: Spec
    tasks: Tasks
    logs: Logs
    artifacts: Artifacts

    async def submit(self, identity: Identity, request: Request) -> Task:
        """Check the request and queue a task durably; Error says what is wrong with it."""
        task = Task(
            id=str(uuid.uuid4()),
            owner=identity.owner,
            arguments=inputs.bind(self.spec, request),
            max_attempts=self.spec.attempts,
            retention_seconds=self.spec.retention_seconds,
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

    async def readiness(self) -> int:
        """How many workers are alive; Error(UNAVAILABLE) with what is missing."""
        workers = await self.tasks.workers()
        await self.artifacts.check()
        return workers


async def tend(tasks: Tasks, artifacts: Artifacts) -> None:
    """Settle what dead workers held, and let go of what is past its retention. Any number may do so at once."""
    for task in await tasks.reap():
        _log.warning("the worker of task %s was lost: the task is now %s", task.id, task.state)
    for task_id in await tasks.expired(limit=100):
        await artifacts.remove(task_id)
        await tasks.remove(task_id)


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
