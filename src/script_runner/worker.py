"""Claims tasks, runs them, keeps the lease, finishes them; drains when asked to stop."""

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from script_runner.errors import Error
from script_runner.ports import Lease, Tasks
from script_runner.run import Stop, Workshop, run
from script_runner.service import tend
from script_runner.task import Outcome, State, Task

WAIT_SECONDS = 5.0
"""How long one wait for work lasts; also the longest that a lost wake-up can delay a task."""

RETRY_SECONDS = 0.25
"""The pause after the store was away."""

SHORTAGE_SECONDS = 1.0
"""The pause of a slot after a script could not be started for want of descriptors, processes or memory."""

RENEWALS = 5
"""How often a lease is renewed in its time."""

HELD_PART = 0.85
"""Scripts are killed when this part of the lease has passed without renewal, so that they are dead at its end."""

_log = logging.getLogger("script_runner.worker")


@dataclass(frozen=True, slots=True)
class Terms:
    """How a worker works."""

    name: str
    concurrency: int
    lease_seconds: float = 10.0
    drain_seconds: float = 30.0


@dataclass(slots=True)
class _Running:
    task: Task
    stop: "asyncio.Future[Stop]"
    is_unstarted: bool = False


class Worker:
    """Runs up to ``concurrency`` scripts at once, under one lease."""

    def __init__(self, terms: Terms, *, tasks: Tasks, lease: Lease, workshop: Workshop) -> None:
        self._terms = terms
        self._tasks = tasks
        self._lease = lease
        self._workshop = workshop
        self._heart: _Heart
        self._running: dict[str, _Running] = {}
        self._carriers: set[asyncio.Task[None]] = set()

    async def work(self, drain: asyncio.Event, *, hurry: asyncio.Event) -> None:
        """Work until ``drain`` is set, then finish what runs; ``hurry`` ends that at once."""
        loop = asyncio.get_running_loop()
        registered = asyncio.Event()
        heart = self._heart = _Heart(
            self._terms,
            self._lease,
            on_hold=self._workshop.executor.hold_until,
            on_lapse=lambda: loop.call_soon_threadsafe(self._lapse),
            on_registered=lambda: loop.call_soon_threadsafe(registered.set),
        )
        heart.start()
        chores = [asyncio.create_task(_again(chore)) for chore in (self._hear_cancellations, self._tend)]
        try:
            await first_of(registered.wait(), drain.wait())
            await self._claim_until(drain)
            await self._drain(hurry)
        finally:
            await cancelled(chores)
            await asyncio.to_thread(heart.stop)
            with contextlib.suppress(Error):
                await self._tasks.leave(self._terms.name)

    # Claiming

    async def _claim_until(self, drain: asyncio.Event) -> None:
        draining = asyncio.ensure_future(drain.wait())
        while not draining.done():
            is_full = len(self._carriers) >= self._terms.concurrency
            awaited = self._carriers if is_full else {asyncio.create_task(self._claim())}
            await asyncio.wait({*awaited, draining}, return_when=asyncio.FIRST_COMPLETED)
            if draining.done() and not is_full:
                await cancelled(awaited)
        await self._return_unstarted()

    async def _claim(self) -> None:
        free = self._terms.concurrency - len(self._carriers)
        try:
            claimed = await self._tasks.claim(self._terms.name, limit=free, wait_seconds=WAIT_SECONDS)
        except Error as error:
            _log.warning("cannot claim: %s", error.message)
            await asyncio.sleep(RETRY_SECONDS)
            return
        for task in claimed:
            self._begin(task)

    async def _return_unstarted(self) -> None:
        """A claim cut off by the stop may have been carried out: ask again, and give back what it got."""
        with contextlib.suppress(Error):
            for task in await self._tasks.claim(self._terms.name, limit=1, wait_seconds=0):
                if task.id not in self._running:
                    await self._tasks.release(task, counted=False)

    def _begin(self, task: Task) -> None:
        if task.id in self._running:  # an answer that came twice
            return
        running = _Running(task, asyncio.get_running_loop().create_future())
        self._running[task.id] = running
        carrier = asyncio.create_task(self._carry(running))
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)

    # Carrying one task from claim to its end

    async def _carry(self, running: _Running) -> None:
        task = running.task
        try:
            outcome = await self._outcome(running)
            await self._settle(task, outcome, running)
        finally:
            self._running.pop(task.id, None)

    async def _outcome(self, running: _Running) -> Outcome | None:
        lapses = self._heart.lapses
        try:
            outcome = await run(running.task, self._workshop, running.stop)
        except Error as error:
            _log.error("task %s goes back to the queue: %s", running.task.id, error.message)
            running.is_unstarted = True
            await asyncio.sleep(SHORTAGE_SECONDS)  # the slot stays taken: others may do better
            return None
        except Exception:  # noqa: BLE001 - whatever it was, the task must reach an end
            _log.exception("task %s failed inside the runner", running.task.id)
            return Outcome(State.FAILED, error="The runner failed at this task; its log says why.")
        has_lapsed = self._heart.lapses > lapses or self._heart.is_overdue
        if outcome and outcome.exit_code == -signal.SIGKILL and has_lapsed:
            return None  # the guardian killed it: the run was given up, it did not fail
        return outcome

    async def _settle(self, task: Task, outcome: Outcome | None, running: _Running) -> None:
        """Report the end until the store has taken it, or says that the task is no longer ours."""
        is_drained = running.stop.done() and running.stop.result() is Stop.DRAINED
        counted = not (running.is_unstarted or (is_drained and task.max_attempts > 1))
        is_told = False
        while True:
            try:
                if outcome is None:
                    await self._tasks.release(task, counted=counted)
                elif not await self._tasks.finish(task, outcome):
                    _log.warning("task %s was given to another worker; its outcome here is dropped", task.id)
                    await self._workshop.artifacts.remove(f"{task.id}/{task.attempt}")
            except Error as error:
                if not is_told:
                    _log.warning("cannot report task %s yet: %s", task.id, error.message)
                is_told = True
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    # Being stopped

    async def _hear_cancellations(self) -> None:
        for task_id in await self._tasks.cancellations(self._terms.name, wait_seconds=WAIT_SECONDS):
            self._stop(task_id, Stop.CANCELLED)

    def _stop(self, task_id: str, reason: Stop) -> None:
        running = self._running.get(task_id)
        if running and not running.stop.done():
            running.stop.set_result(reason)

    def _lapse(self) -> None:
        """The lease may be gone: what runs here may be given to another at any moment, so it must not run on."""
        for task_id in list(self._running):
            _log.warning("the lease lapsed: the script of task %s is killed", task_id)
            self._stop(task_id, Stop.LAPSED)

    async def _drain(self, hurry: asyncio.Event) -> None:
        if self._carriers:
            _log.info(
                "waiting up to %g s for %d running script(s)", self._terms.drain_seconds, len(self._carriers)
            )
            done = asyncio.wait(self._carriers, timeout=self._terms.drain_seconds)
            await first_of(done, hurry.wait())
        for task_id in list(self._running):
            self._stop(task_id, Stop.DRAINED)
        if self._carriers:
            grace = self._workshop.spec.grace_seconds
            await asyncio.wait(self._carriers, timeout=grace + self._terms.lease_seconds)
        await cancelled(list(self._carriers))

    async def _tend(self) -> None:
        await tend(self._tasks, self._workshop.artifacts)
        await asyncio.sleep(min(1.0, self._terms.lease_seconds / RENEWALS))


class _Heart(threading.Thread):
    """Renews the lease from a thread of its own, so that nothing in the event loop can delay it."""

    def __init__(
        self,
        terms: Terms,
        lease: Lease,
        *,
        on_hold: Callable[[float], None],
        on_lapse: Callable[[], object],
        on_registered: Callable[[], object],
    ) -> None:
        super().__init__(name="heart", daemon=True)
        self.lapses = 0
        self._terms = terms
        self._lease = lease
        self._on_hold = on_hold
        self._on_lapse = on_lapse
        self._on_registered = on_registered
        self._held_until = 0.0
        self._stopped = threading.Event()

    @property
    def is_overdue(self) -> bool:
        return boot_time() > self._held_until

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._beat()
                pause = min(self._terms.lease_seconds / RENEWALS, 2.0)
            except Error:
                pause = RETRY_SECONDS
            except Exception:  # noqa: BLE001 - without a heart the worker would hold tasks that it must not run
                _log.exception("the lease could not be renewed")
                pause = RETRY_SECONDS
            self._stopped.wait(pause)

    def _beat(self) -> None:
        beat_at = boot_time()
        if self._held_until and self.is_overdue:
            self._lapse()
        was_there = self._lease.renew(self._terms.name, seconds=self._terms.lease_seconds)
        if self._held_until and not was_there:
            self._lapse()
        self._held_until = beat_at + self._terms.lease_seconds * HELD_PART
        self._on_hold(self._held_until)
        self._on_registered()

    def _lapse(self) -> None:
        self.lapses += 1
        self._held_until = 0.0
        self._on_lapse()

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._lease.close()


def boot_time() -> float:
    """Seconds of a clock that goes on while the machine sleeps (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def _again(chore: Callable[[], Awaitable[None]]) -> None:
    """Do a chore for ever; after a failure, again in a moment."""
    while True:
        try:
            await chore()
        except Error:
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:  # noqa: BLE001 - a chore that stopped would be missed by nobody until it is too late
            _log.exception("a chore of the worker failed")
            await asyncio.sleep(RETRY_SECONDS)


async def cancelled(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel these until they have taken it.

    Once may not be enough: ``asyncio.wait_for``, which the Redis client uses, swallows a cancel that comes in the
    same moment as its answer (Python before 3.12, bpo-37658).
    """
    tasks = tuple(tasks)
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=RETRY_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of these and drop the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancelled(tasks)
