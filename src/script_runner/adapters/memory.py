"""Tasks, lease and log tails in this process: for tests, and the plainest statement of what the ports promise."""

import asyncio
import contextlib
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from msgspec.structs import replace

from script_runner.errors import Code, Error, Problem
from script_runner.ports import (
    BAD_CURSOR,
    CLOSED,
    ENDED,
    LATELY_SECONDS,
    MOVED,
    Cancelled,
    Figures,
    Limits,
    Page,
    Tell,
    Word,
)
from script_runner.streams import LogChunk
from script_runner.task import Outcome, Place, State, Task

LOST = "The worker was lost while the script ran (attempt {attempt} of {max_attempts})."
WAITED = "The task waited longer than it was allowed to, and was not run."
WAITED_AGAIN = "The task waited longer than it was allowed to before it was run again."
LONG_WAIT_SECONDS = 60


class MemoryTasks:
    """The ledger and queue of one process, with the leases of its workers."""

    def __init__(self, clock: Callable[[], float] = time.time, limits: Limits | None = None) -> None:
        self._clock = clock
        self._limits = limits or Limits()
        self._tasks: dict[str, Task] = {}
        self._ids_by_key: dict[tuple[str, str], str] = {}
        self._sequence: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._expires: dict[str, float] = {}
        self._expired: list[str] = []
        self._numbers = itertools.count(1)
        self._turns: dict[str, int] = {}
        self._turn = defaultdict[int, int](int)
        self._turn_of_owner: dict[tuple[int, str], int] = {}
        self._pace: float | None = None
        self._slots: dict[str, int] = {}
        self._loaded: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._deadlines: dict[str, float] = {}
        self._quiet_until: float | None = None
        self._looked = 0.0
        self._lease_seconds = 10.0
        self._told_to_stop: set[str] = set()
        self._changed = asyncio.Event()
        self.tails: dict[str, dict[str, LogChunk]] = {}
        self.changes = MemoryChanges()

    async def add(self, task: Task) -> Task:
        key = (task.owner, task.idempotency_key or "")
        earlier = self._tasks.get(self._ids_by_key.get(key, ""))
        if earlier and earlier.id != task.id and earlier.fingerprint != task.fingerprint:
            raise Error(Code.KEY_REUSED, "This Idempotency-Key was used for another request.")
        if earlier or task.id in self._tasks:
            return self._told(earlier or self._tasks[task.id])
        self._require_room(task.owner)
        if task.idempotency_key:
            self._ids_by_key[key] = task.id
        self._sequence[task.id] = next(self._numbers)
        self._tasks[task.id] = replace(task, created_at=self._clock())
        self._since[task.id] = self._clock()
        if task.expires_in_seconds is not None:
            self._expires[task.id] = self._clock() + task.expires_in_seconds
        self._tick()
        self._pulse()
        return self._told(self._tasks[task.id])

    async def get(self, task_id: str) -> Task | None:
        task = self._tasks.get(task_id)
        return self._told(task) if task else None

    async def list(self, owner: str, *, states: Sequence[State], cursor: str | None, limit: int) -> Page:
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 16):  # noqa: PLR2004 - a sequence number
            raise Error(Code.INVALID_INPUT, BAD_CURSOR, (Problem("query", "cursor", BAD_CURSOR),))
        before = float("inf") if cursor is None else int(cursor)
        newest_first = sorted(self._tasks.values(), key=lambda task: -self._sequence[task.id])
        found = [
            task.listed()
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
        if task:
            self._dequeue(task)
            del self._tasks[task_id], self._sequence[task_id], self._since[task_id]
            self._expires.pop(task_id, None)
            self._ids_by_key.pop((task.owner, task.idempotency_key or ""), None)
            self.changes.tell(task_id, MOVED, ENDED)
        return True

    async def cancel(self, task_id: str) -> Cancelled | None:
        task = self._tasks.get(task_id)
        if task and task.state is State.QUEUED:
            self._finish(task, Outcome(State.CANCELLED, error="The task was cancelled before it started."))
        elif task and task.state is State.RUNNING:
            self._tasks[task_id] = replace(task, is_cancelling=True)
            self._told_to_stop.add(task.worker or "")
            self._pulse()
        has_ended = task is not None and task.state is State.QUEUED
        return Cancelled(self._told(self._tasks[task_id]), has_ended=has_ended) if task else None

    async def claim(
        self, worker: str, *, limit: int, wait_seconds: float, on_ask: Callable[[], None] = lambda: None
    ) -> Sequence[Task]:
        self._tick()
        if not self._startable():
            await self._wait(lambda: bool(self._startable()), wait_seconds)
        on_ask()
        if self._deadlines.get(worker, 0.0) <= self._clock():
            return []
        self._tick()
        claimed: list[Task] = []
        while len(claimed) < limit and (startable := self._startable()):
            task = startable[0]
            self._turn[task.priority] = max(self._turn[task.priority], self._turns[task.id])
            self._tasks[task.id] = task.started(worker=worker, at=self._clock())
            self.tails[task.id] = {}
            self.changes.tell(task.id, MOVED)
            claimed.append(self._tasks[task.id])
        return claimed

    async def wait_for_word(self, worker: str, *, seconds: float) -> None:
        await self._wait(lambda: worker in self._told_to_stop, seconds)
        self._told_to_stop.discard(worker)

    async def hear(self, worker: str, running: Sequence[Task]) -> Word:
        held = {task.id: task for task in self._held([worker])}
        ours = [task for task in running if task.id in held and held[task.id].is_held_by(task)]
        return Word(
            cancelled=[task.id for task in ours if held[task.id].is_cancelling],
            taken=[task.id for task in running if task not in ours],
            left=[task for task in held.values() if task.id not in {known.id for known in running}],
        )

    async def finish(self, task: Task, outcome: Outcome) -> bool:
        now = self._tasks.get(task.id)
        if now is None:
            return False
        if now.is_held_by(task):
            self._finish(now, outcome)
            return True
        return (now.state, now.worker, now.run) == (outcome.state, task.worker, task.run)

    async def release(self, task: Task, *, counted: bool) -> State | None:
        now = self._tasks.get(task.id)
        if now is None or not now.is_held_by(task):
            return None
        self._give_up(now, counted=counted)
        return self._tasks[task.id].state

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
            del self._deadlines[worker], self._loaded[worker]
            self._told_to_stop.discard(worker)
            self._slots.pop(worker, None)
            self._versions.pop(worker, None)
        self._tick()
        if not self._waiting():  # nobody waits for a turn: no owner need be remembered
            self._turn_of_owner.clear()
        changed = [*(task.id for task in held), *self._expired]
        self._expired = []
        return [self._tasks[task_id] for task_id in changed if task_id in self._tasks]

    async def expired(self, *, limit: int, counts: Mapping[State, int] | None = None) -> Sequence[str]:
        def end(task: Task) -> float:
            return (task.finished_at or 0.0) + task.keep_seconds(task.state)

        over = [task for task in self._tasks.values() if task.state.is_final and end(task) <= self._clock()]
        ids = [task.id for task in sorted(over, key=end)[:limit]]
        for state, count in (counts or {}).items():
            oldest = sorted(self._in(state), key=lambda task: task.finished_at or 0.0)
            ids += [task.id for task in oldest[: max(0, len(oldest) - count)][:limit]]
        return ids

    async def workers(self) -> Mapping[str, int]:
        return Counter(self._loaded[worker] for worker, end in self._deadlines.items() if end > self._clock())

    async def figures(self) -> Figures:
        self._tick()
        now = self._clock()
        queued, running = self._in(State.QUEUED), len(self._in(State.RUNNING))
        since = [start for task in queued if (start := max(self._since[task.id], task.not_before or 0.0)) <= now]
        most = self._limits.max_running
        backlog = running + self._admissible()
        return Figures(
            queued=len(since),
            scheduled=len(queued) - len(since),
            running=running,
            backlog=backlog if most is None else max(running, min(most, backlog)),
            oldest_seconds=now - min(since, default=now),
            workers=sum(end > now for end in self._deadlines.values()),
            slots=sum(self._slots.values()),
            lately={
                state: sum((task.finished_at or 0.0) >= now - LATELY_SECONDS for task in self._in(state))
                for state in State
                if state.is_final
            },
            versions=Counter(self._versions.values()),
        )

    async def product(self) -> str:
        return "memory"

    async def leave(self, worker: str) -> None:
        if worker in self._deadlines:
            self._deadlines[worker] = 0.0
            self._slots.pop(worker, None)
            self._versions.pop(worker, None)

    def renew(
        self, worker: str, *, seconds: float, slots: int = 1, configuration: str = "", version: str = ""
    ) -> bool:
        """As Lease.renew."""
        known = worker in self._deadlines
        if version:
            self._versions[worker] = version
        self._slots[worker] = slots
        self._loaded[worker] = configuration
        self._lease_seconds = seconds
        self._deadlines[worker] = self._clock() + seconds
        return known

    def is_held_by(self, run: Task) -> bool:
        """Whether this run (worker and its number) holds its task now."""
        task = self._tasks.get(run.id)
        return task is not None and task.is_held_by(run)

    async def check(self) -> Sequence[str]:
        return ["Tasks are kept in memory and end with this process."]

    async def close(self) -> None:
        """Nothing is held open."""

    def _held(self, workers: Sequence[str]) -> Sequence[Task]:
        return [task for task in self._tasks.values() if task.state is State.RUNNING and task.worker in workers]

    def _in(self, state: State, owner: str | None = None) -> Sequence[Task]:
        tasks = self._tasks.values()
        return [task for task in tasks if task.state is state and (owner is None or task.owner == owner)]

    def _require_room(self, owner: str) -> None:
        if _is_reached(self._limits.max_queued, len(self._in(State.QUEUED))):
            message = "The queue is full. Try again later."
            raise Error(Code.QUEUE_FULL, message, retry_after=self._retry_after())
        if _is_reached(self._limits.max_queued_per_caller, len(self._in(State.QUEUED, owner))):
            message = "You have as many tasks waiting as one caller may."
            raise Error(Code.TOO_MANY_QUEUED, message, retry_after=self._retry_after())

    def _retry_after(self) -> int:
        wait = self._expected_wait(1)
        return LONG_WAIT_SECONDS if wait is None else min(max(1, math.ceil(wait)), LONG_WAIT_SECONDS)

    def _tick(self) -> None:
        """What the clock brings: tasks whose time has come take their turn, those that waited too long end."""
        now = self._clock()
        for task in sorted(self._in(State.QUEUED), key=lambda task: self._sequence[task.id]):
            if self._expires.get(task.id, math.inf) <= now:
                self._expired.append(task.id)
                error = WAITED_AGAIN if task.run else WAITED
                self._finish(task, Outcome(State.TIMED_OUT, error=error))
            elif task.id not in self._turns and (task.not_before or 0.0) <= now:
                line = (task.priority, task.owner)
                turn = max(self._turn[task.priority], self._turn_of_owner.get(line, -1) + 1)
                self._turns[task.id] = self._turn_of_owner[line] = turn
                self._pulse()

    def _waiting(self) -> Sequence[Task]:
        """What waits, in its order: by priority, then the owners in turns, then by age."""
        due = [task for task in self._in(State.QUEUED) if task.id in self._turns]
        return sorted(due, key=lambda task: (-task.priority, self._turns[task.id], self._sequence[task.id]))

    def _startable(self) -> Sequence[Task]:
        if _is_reached(self._limits.max_running, len(self._in(State.RUNNING))):
            return []
        most = self._limits.max_running_per_caller
        running = Counter(task.owner for task in self._in(State.RUNNING))
        return [task for task in self._waiting() if not _is_reached(most, running[task.owner])]

    def _admissible(self) -> int:
        """How many of those that wait the limits of their owners would let start."""
        most = self._limits.max_running_per_caller
        running = Counter(task.owner for task in self._in(State.RUNNING))
        waiting = Counter(task.owner for task in self._waiting())
        return sum(
            count if most is None else min(count, max(0, most - running[owner]))
            for owner, count in waiting.items()
        )

    def _told(self, task: Task) -> Task:
        """The task with its place."""
        for position, other in enumerate(self._waiting(), start=1):
            if other.id == task.id:
                return replace(task, place=Place(position, self._expected_wait(position)))
        return task

    def _expected_wait(self, position: int) -> float | None:
        slots = sum(self._slots.values())
        if self._limits.max_running is not None:
            slots = min(slots, self._limits.max_running)
        behind = position - (slots - len(self._in(State.RUNNING)))
        if slots == 0 or (behind > 0 and self._pace is None):
            return None
        return behind * (self._pace or 0.0) / slots if behind > 0 else 0.0

    def _finish(self, task: Task, outcome: Outcome) -> None:
        self.tails.pop(task.id, None)
        self._dequeue(task)
        now = self._clock()
        if task.started_at is not None and outcome.state in (State.SUCCEEDED, State.FAILED):
            took = now - task.started_at
            self._pace = took if self._pace is None else self._pace * 0.8 + took * 0.2
        self._tasks[task.id] = task.finished(outcome, at=now)
        self.changes.tell(task.id, MOVED, ENDED)
        self._pulse()

    def _dequeue(self, task: Task) -> None:
        """Its turn is over, or will not come; then it is not held against an owner of whom nothing more waits."""
        self._turns.pop(task.id, None)
        if self._in(State.QUEUED, task.owner) == [task]:
            self._turn_of_owner.pop((task.priority, task.owner), None)

    def _give_up(self, task: Task, *, counted: bool) -> None:
        task = task if counted else replace(task, attempt=task.attempt - 1)
        if task.is_cancelling:
            self._finish(task, Outcome(State.CANCELLED, error="The task was cancelled."))
        elif task.attempt < task.max_attempts:
            self.tails.pop(task.id, None)
            self._tasks[task.id] = task.released()
            self._since[task.id] = self._clock()
            if task.id in self._expires:  # while it ran it did not wait
                self._expires[task.id] += self._clock() - (task.started_at or 0.0)
            self.changes.tell(task.id, MOVED)
            self._pulse()
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


def _is_reached(limit: int | None, count: int) -> bool:
    return limit is not None and count >= limit


class MemoryLease:
    """The leases that ``tasks`` knows of."""

    def __init__(self, tasks: MemoryTasks) -> None:
        self._tasks = tasks

    def renew(
        self, worker: str, *, seconds: float, slots: int = 1, configuration: str = "", version: str = ""
    ) -> bool:
        return self._tasks.renew(
            worker, seconds=seconds, slots=slots, configuration=configuration, version=version
        )

    def close(self) -> None:
        """Nothing is held open."""


class MemoryChanges:
    """Word of what happens to the tasks of one process."""

    def __init__(self) -> None:
        self._watching = defaultdict[str, list[Tell]](list)
        self._is_dismissed = False

    def tell(self, task_id: str, *words: str) -> None:
        """Hand words to all who watch this task."""
        for tell in self._watching.get(task_id, ()):
            tell(words)

    @contextlib.asynccontextmanager
    async def watch(self, task_id: str, tell: Tell, *, logs: bool = False) -> AsyncIterator[None]:  # noqa: ARG002 - all are told of logs
        self._watching[task_id].append(tell)
        if self._is_dismissed:
            tell([CLOSED])
        try:
            yield
        finally:
            self._watching[task_id].remove(tell)
            if not self._watching[task_id]:
                del self._watching[task_id]

    def dismiss(self) -> None:
        self._is_dismissed = True
        for task_id in self._watching:
            self.tell(task_id, CLOSED)

    async def close(self) -> None:
        """Nothing is held open."""


class MemoryLogs:
    """The tails of running scripts of one process."""

    def __init__(self, tasks: MemoryTasks, keep_bytes: int = 64 * 1024) -> None:
        self._keep = keep_bytes
        self._tasks = tasks

    async def append(self, task: Task, stream: str, chunk: LogChunk) -> None:
        if not self._tasks.is_held_by(task):
            return
        streams = self._tasks.tails[task.id]
        tail = streams.get(stream, LogChunk(chunk.offset, b""))
        expected = tail.offset + len(tail.data)
        is_after_gap = chunk.offset > expected
        whole = chunk.data if is_after_gap else tail.data + chunk.data[expected - chunk.offset :]
        end = max(expected, chunk.offset + len(chunk.data))
        kept = whole[-self._keep :]
        streams[stream] = LogChunk(end - len(kept), kept)
        self._tasks.changes.tell(task.id, stream)

    async def read(self, task_id: str, stream: str, *, offset: int, limit: int) -> LogChunk:
        tail = self._tasks.tails.get(task_id, {}).get(stream)
        if tail is None:
            return LogChunk(offset, b"")
        first = max(offset, tail.offset)
        return LogChunk(first, tail.data[first - tail.offset :][:limit])

    async def close(self) -> None:
        """Nothing is held open."""
