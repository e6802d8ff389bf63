"""Tasks, lease and log tails in this process: for tests, and the plainest statement of what the ports promise."""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from script_runner.errors import Code, Error, Problem
from script_runner.ports import BAD_CURSOR, LogChunk, Page
from script_runner.task import Outcome, State, Task

LOST = "The worker was lost while the script ran (attempt {attempt} of {max_attempts})."


class MemoryTasks:
    """The ledger and queue of one process, with the leases of its workers."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._tasks: dict[str, Task] = {}
        self._queue: set[str] = set()
        self._sequence: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._deadlines: dict[str, float] = {}
        self._quiet_until: float | None = None
        self._looked = 0.0
        self._lease_seconds = 10.0
        self._told: set[str] = set()
        self._changed = asyncio.Event()
        self.tails: dict[str, dict[str, LogChunk]] = {}

    async def add(self, task: Task) -> Task:
        if task.id not in self._tasks:
            self._sequence[task.id] = next(self._numbers)
            self._tasks[task.id] = replace(task, created_at=self._clock())
            self._enqueue(task.id)
        return replace(task, created_at=self._tasks[task.id].created_at)

    async def get(self, task_id: str) -> Task | None:
        return self._tasks.get(task_id)

    async def list(self, owner: str, *, states: Sequence[State], cursor: str | None, limit: int) -> Page:
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 16):  # noqa: PLR2004 - a sequence number
            raise Error(Code.INVALID_INPUT, BAD_CURSOR, (Problem("query", "cursor", BAD_CURSOR),))
        before = float("inf") if cursor is None else int(cursor)
        newest_first = sorted(self._tasks.values(), key=lambda task: -self._sequence[task.id])
        found = [
            task
            for task in newest_first
            if task.owner == owner and self._sequence[task.id] < before and (not states or task.state in states)
        ]
        more = len(found) >= limit
        page = tuple(found[:limit])
        return Page(page, str(self._sequence[page[-1].id]) if more else None)

    async def remove(self, task_id: str) -> bool:
        task = self._tasks.get(task_id)
        if task and task.state is State.RUNNING:
            return False
        self._tasks.pop(task_id, None)
        self._sequence.pop(task_id, None)
        self._queue.discard(task_id)
        return True

    async def cancel(self, task_id: str) -> Task | None:
        task = self._tasks.get(task_id)
        if task and task.state is State.QUEUED:
            self._queue.remove(task_id)
            self._finish(task, Outcome(State.CANCELLED, error="The task was cancelled before it started."))
        elif task and task.state is State.RUNNING:
            self._tasks[task_id] = replace(task, is_cancelling=True)
            self._told.add(task.worker or "")
            self._pulse()
        return self._tasks.get(task_id)

    async def claim(self, worker: str, *, limit: int, wait_seconds: float) -> Sequence[Task]:
        if not self._queue:
            await self._wait(lambda: bool(self._queue), wait_seconds)
        if self._deadlines.get(worker, 0.0) <= self._clock():
            return []
        ids = sorted(self._queue, key=self._sequence.__getitem__)[:limit]
        for task_id in ids:
            self._queue.remove(task_id)
            self._tasks[task_id] = self._tasks[task_id].started(worker=worker, at=self._clock())
            self.tails[task_id] = {}
        return [self._tasks[task_id] for task_id in ids]

    async def cancellations(self, worker: str, *, wait_seconds: float) -> Sequence[str]:
        await self._wait(lambda: worker in self._told, wait_seconds)
        self._told.discard(worker)
        return [task.id for task in self._held([worker]) if task.is_cancelling]

    async def finish(self, task: Task, outcome: Outcome) -> bool:
        now = self._tasks.get(task.id)
        if now is None:
            return False
        if now.is_held_by(task):
            self._finish(now, outcome)
            return True
        return (now.state, now.worker, now.attempt) == (outcome.state, task.worker, task.attempt)

    async def release(self, task: Task, *, counted: bool) -> bool:
        now = self._tasks.get(task.id)
        if now is None or not now.is_held_by(task):
            return False
        self._give_up(now, counted=counted)
        return True

    async def reap(self) -> Sequence[Task]:
        now = self._clock()
        if not 0 <= now - self._looked <= max(self._lease_seconds / 2, 0.5):
            self._quiet_until = now + self._lease_seconds
        if now < self._looked:  # the clock went back: no lease may reach further than one length from now
            self._deadlines = {name: min(end, now + self._lease_seconds) for name, end in self._deadlines.items()}
        self._looked = now
        limit = 0.0 if self._quiet_until is not None and now < self._quiet_until else now
        dead = [worker for worker, end in self._deadlines.items() if end <= limit]
        held = self._held(dead)
        for task in held:
            self._give_up(task, counted=True)
        for worker in dead:
            del self._deadlines[worker]
            self._told.discard(worker)
        return [self._tasks[task.id] for task in held]

    async def expired(self, *, limit: int) -> Sequence[str]:
        def end(task: Task) -> float:
            return (task.finished_at or 0.0) + task.retention_seconds

        over = [task for task in self._tasks.values() if task.state.is_final and end(task) <= self._clock()]
        return [task.id for task in sorted(over, key=end)[:limit]]

    async def workers(self) -> int:
        return sum(end > self._clock() for end in self._deadlines.values())

    async def leave(self, worker: str) -> None:
        if worker in self._deadlines:
            self._deadlines[worker] = 0.0

    def renew(self, worker: str, *, seconds: float) -> bool:
        """As Lease.renew."""
        known = worker in self._deadlines
        self._lease_seconds = seconds
        self._deadlines[worker] = self._clock() + seconds
        return known

    async def check(self) -> Sequence[str]:
        return ["Tasks are kept in memory and end with this process."]

    async def close(self) -> None:
        """Nothing is held open."""

    def _held(self, workers: Sequence[str]) -> Sequence[Task]:
        return [task for task in self._tasks.values() if task.state is State.RUNNING and task.worker in workers]

    def _enqueue(self, task_id: str) -> None:
        self._queue.add(task_id)
        self._pulse()

    def _finish(self, task: Task, outcome: Outcome) -> None:
        self.tails.pop(task.id, None)
        self._tasks[task.id] = task.finished(outcome, at=self._clock())

    def _give_up(self, task: Task, *, counted: bool) -> None:
        task = task if counted else replace(task, attempt=task.attempt - 1)
        if task.is_cancelling:
            self._finish(task, Outcome(State.CANCELLED, error="The task was cancelled."))
        elif task.attempt < task.max_attempts:
            self.tails.pop(task.id, None)
            self._tasks[task.id] = task.released()
            self._enqueue(task.id)
        else:
            error = LOST.format(attempt=task.attempt, max_attempts=task.max_attempts)
            self._finish(task, Outcome(State.LOST, error=error))

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, is_there: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not is_there():
                    await self._changed.wait()
        except TimeoutError:
            return


class MemoryLease:
    """The leases that ``tasks`` knows of."""

    def __init__(self, tasks: MemoryTasks) -> None:
        self._tasks = tasks

    def renew(self, worker: str, *, seconds: float) -> bool:
        return self._tasks.renew(worker, seconds=seconds)

    def close(self) -> None:
        """Nothing is held open."""


class MemoryLogs:
    """The tails of running scripts of one process; without ``tasks`` they stay, as if every script ran on."""

    def __init__(self, tasks: MemoryTasks | None = None, keep_bytes: int = 64 * 1024) -> None:
        self._keep = keep_bytes
        self._tails = defaultdict[str, dict[str, LogChunk]](dict) if tasks is None else tasks.tails

    async def append(self, task_id: str, stream: str, chunk: LogChunk) -> None:
        try:
            streams = self._tails[task_id]
        except KeyError:  # it does not run
            return
        tail = streams.get(stream, LogChunk(chunk.offset, b""))
        expected = tail.offset + len(tail.data)
        is_after_gap = chunk.offset > expected
        whole = chunk.data if is_after_gap else tail.data + chunk.data[expected - chunk.offset :]
        end = max(expected, chunk.offset + len(chunk.data))
        kept = whole[-self._keep :]
        streams[stream] = LogChunk(end - len(kept), kept)

    async def read(self, task_id: str, stream: str, *, offset: int, limit: int) -> LogChunk:
        tail = self._tails.get(task_id, {}).get(stream)
        if tail is None:
            return LogChunk(offset, b"")
        first = max(offset, tail.offset)
        return LogChunk(first, tail.data[first - tail.offset :][:limit])

    async def close(self) -> None:
        """Nothing is held open."""
