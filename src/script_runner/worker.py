"""Claims tasks, runs them, keeps the lease, finishes them; drains when asked to stop."""

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from script_runner import journal
from script_runner.errors import Error
from script_runner.ports import Lease, Shelter, Span, Tasks, Traces, Untraced, Unwatched, Watch
from script_runner.run import GivenUp, Halt, Stop, Workshop, run
from script_runner.service import let_go, note_end, settle_lost
from script_runner.task import Outcome, State, Task

WAIT_SECONDS = 5.0
"""How long one wait for work lasts; also the longest that a lost wake-up can delay a task."""

RETRY_SECONDS = 0.25
"""The pause after the store was away."""

SHORTAGE_SECONDS = 1.0
"""The pause of a slot after a script could not be started for want of descriptors, processes or memory."""

RENEWALS = 5
"""How often a lease is renewed in its time."""

REMEMBERED = 1_000
"""How many outcomes are remembered, to be reported once more should the store have forgotten them."""

HELD_PART = 0.85
"""Scripts are killed when this part of the lease has passed without renewal, so that they are dead at its end."""

DRAINED = "The worker was stopped while the script ran; on_worker_lost lets it not run again."

_log = logging.getLogger("script_runner.worker")


@dataclass(frozen=True, slots=True)
class Terms:
    """How a worker works."""

    name: str
    concurrency: int
    configuration: str = ""
    lease_seconds: float = 10.0
    drain_seconds: float = 30.0
    version: str = ""


_Run = tuple[str, int]
"""A run by the id of its task and its own number."""


def _run_of(task: Task) -> _Run:
    return task.id, task.run


@dataclass(slots=True)
class _Running:
    task: Task
    halt: Halt
    over: asyncio.Event
    lapses: int = 0
    """How often the lease had lapsed when its claim was sent."""
    is_unstarted: bool = False
    seconds: float = 0.0


def _new_running(task: Task, lapses: int = 0) -> _Running:
    return _Running(task, Halt(), asyncio.Event(), lapses)


class Worker:
    """Runs up to ``concurrency`` scripts at once, under one lease."""

    def __init__(
        self,
        terms: Terms,
        *,
        tasks: Tasks,
        lease: Lease,
        workshop: Workshop,
        watch: Watch | None = None,
        traces: Traces | None = None,
        shelter: Shelter | None = None,
    ) -> None:
        self._terms = terms
        self._tasks = tasks
        self._lease = lease
        self._workshop = workshop
        self._watch = watch or Unwatched()
        self._traces = traces or Untraced()
        self._shelter = shelter
        self._heart: _Heart
        self._takes_tasks = False
        self._trouble = ""
        self._configurations = {terms.configuration}
        self._running: dict[_Run, _Running] = {}
        self._reported: dict[_Run, Outcome] = {}
        self._carriers: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether it takes tasks: it holds its lease, and does not drain."""
        return self._takes_tasks and not self._heart.is_overdue

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
        chores = [asyncio.create_task(chore) for chore in (again(self._hear), *self._tending())]
        try:
            await first_of(registered.wait(), drain.wait())
            self._takes_tasks = not drain.is_set()
            await self._claim_until(drain)
            self._takes_tasks = False
            await self._drain(hurry)
        finally:
            await cancelled(chores)
            await asyncio.to_thread(heart.stop)
            with contextlib.suppress(Error):
                await self._tasks.leave(self._terms.name)

    # Claiming

    async def _claim_until(self, drain: asyncio.Event) -> None:
        await first_of(again(self._claim), drain.wait())
        await self._return_unstarted()

    async def _claim(self) -> None:
        """Begin what may start now, or wait until something may."""
        free = self._terms.concurrency - len(self._carriers)
        if not free:
            await asyncio.wait(self._carriers, return_when=asyncio.FIRST_COMPLETED)
            return
        lapses = 0

        def note_lapses() -> None:
            nonlocal lapses
            lapses = self._heart.lapses

        try:
            claimed = await self._tasks.claim(
                self._terms.name, limit=free, wait_seconds=WAIT_SECONDS, on_ask=note_lapses
            )
        except Error as error:
            if error.message != self._trouble:
                _log.warning("cannot claim: %s", error.message)
            self._trouble = error.message
            await asyncio.sleep(RETRY_SECONDS)
            return
        self._trouble = ""
        for task in claimed:
            self._begin(task, lapses)

    async def _return_unstarted(self) -> None:
        """A claim cut off by the stop may have been carried out: ask again, and give back what it got."""
        with contextlib.suppress(Error):
            for task in await self._tasks.claim(self._terms.name, limit=1, wait_seconds=0):
                if _run_of(task) not in self._running:
                    self._begin_return(task)

    def _begin_return(self, task: Task) -> None:
        """Give back a task that was not begun; it is ours until that is done."""
        returned = self._running[_run_of(task)] = _new_running(task)
        returned.is_unstarted = True
        returned.over.set()
        self._pick_up(self._give_back(returned))

    async def _give_back(self, returned: _Running) -> None:
        try:
            await self._settle(returned.task, None, returned)
        finally:
            del self._running[_run_of(returned.task)]

    def _begin(self, task: Task, lapses: int) -> None:
        if _run_of(task) in self._running:  # an answer that came twice
            return
        if task.configuration not in self._configurations:
            self._configurations.add(task.configuration)
            _log.warning(
                "tasks come that were accepted under configuration %s; they run under ours, %s",
                task.configuration or "(none)",
                self._terms.configuration,
            )
        running = self._running[_run_of(task)] = _new_running(task, lapses)
        self._pick_up(self._carry(running))

    def _pick_up(self, work: Coroutine[Any, Any, None]) -> None:
        carrier = asyncio.create_task(work)
        self._carriers.add(carrier)
        if self._shelter:
            self._shelter.hold()
        carrier.add_done_callback(self._put_down)

    def _put_down(self, carrier: "asyncio.Task[None]") -> None:
        self._carriers.discard(carrier)
        if self._shelter and not self._carriers:
            self._shelter.release()

    # Carrying one task from claim to its end

    async def _carry(self, running: _Running) -> None:
        task = running.task
        journal.about(
            request_id=task.request_id, task_id=task.id, worker=task.worker, attempt=task.attempt, run=task.run
        )
        try:
            await self._end_of_earlier(task)
            outcome = await self._watched(running)
            running.over.set()
            await self._settle(task, outcome, running)
        finally:
            running.over.set()
            del self._running[_run_of(task)]

    async def _end_of_earlier(self, task: Task) -> None:
        """A task that was taken from this worker may come back to it before its script here is dead."""
        for earlier in list(self._running.values()):
            if earlier.task.id == task.id and earlier.task.run < task.run:
                earlier.halt.ask(Stop.LAPSED)
                await earlier.over.wait()

    async def _watched(self, running: _Running) -> Outcome | None:
        """The outcome of a run, which is told to those who watch."""
        task = running.task
        journal.event(_log, "started", f"task {task.id} starts (attempt {task.attempt})", {})
        self._watch.started(task)
        if task.run == 1:
            self._traces.begin("queued", parent=task.traceparent, at=task.due_at).end(at=task.started_at)
        span = self._traces.begin("run", parent=task.traceparent, kind="consumer")
        began = time.monotonic()
        outcome = None
        try:
            outcome = await self._outcome(running, span)
        finally:
            running.seconds = time.monotonic() - began
            _end(span, task, outcome)
        return outcome

    async def _outcome(self, running: _Running, span: Span) -> Outcome | None:
        if self._has_lapsed(running):  # the task may be another's by now
            running.is_unstarted = True
            if self._heart.is_overdue:
                await asyncio.sleep(RETRY_SECONDS)
            return None
        try:
            task = running.task
            if span.traceparent != task.traceparent:
                task = replace(task, traceparent=span.traceparent)
            ended = await run(task, self._workshop, running.halt)
        except Error as error:
            _log.error("task %s goes back to the queue: %s", running.task.id, error.message)
            running.is_unstarted = True
            await asyncio.sleep(SHORTAGE_SECONDS)  # the slot stays taken: others may do better
            return None
        except Exception:  # noqa: BLE001 - whatever it was, the task must reach an end
            _log.exception("task %s failed inside the runner", running.task.id)
            return Outcome(State.FAILED, error="The runner failed at this task; its log says why.")
        if isinstance(ended, GivenUp):
            running.is_unstarted = ended is GivenUp.UNSTARTED
            return None
        if ended.exit_code == -signal.SIGKILL and self._has_lapsed(running):
            return None  # the guardian killed it: the run was given up, it did not fail
        return ended

    def _has_lapsed(self, running: _Running) -> bool:
        """Whether the lease was not held at all times since the task was claimed."""
        return self._heart.is_overdue or self._heart.lapses > running.lapses

    async def _settle(self, task: Task, outcome: Outcome | None, running: _Running) -> None:
        """Report the end until the store has taken it, or says that the task is no longer ours."""
        is_drained = running.halt.reason is Stop.DRAINED and not running.is_unstarted
        if outcome is None and is_drained and self._workshop.spec.on_worker_lost == "fail":
            outcome = Outcome(State.LOST, error=DRAINED)
        counted = not (running.is_unstarted or is_drained)
        is_told = False
        while True:
            try:
                if outcome is None:
                    await self._release(task, counted=counted)
                elif await self._tasks.finish(task, outcome):
                    self._remember(task, outcome)
                    self._tell_end(task, outcome, running.seconds)
                else:
                    _log.warning("task %s was given to another worker; its outcome here is dropped", task.id)
                    await self._workshop.artifacts.remove(f"{task.id}/{task.run}")
            except Error as error:
                if not is_told:
                    _log.warning("cannot report task %s yet: %s", task.id, error.message)
                is_told = True
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _release(self, task: Task, *, counted: bool) -> None:
        """Give a task back; one that may not run again ends by that."""
        state = await self._tasks.release(task, counted=counted)
        if state and state.is_final:
            with contextlib.suppress(Error):
                if ended := await self._tasks.get(task.id):
                    note_end(ended, self._watch)

    def _tell_end(self, task: Task, outcome: Outcome, seconds: float) -> None:
        self._watch.finished(outcome, seconds=seconds)
        fields = {
            "state": outcome.state.value,
            "reason": outcome.reason,
            "exit_code": outcome.exit_code,
            "seconds": round(seconds, 3),
        }
        journal.event(_log, "finished", f"task {task.id} ended: {outcome.state} ({seconds:.3g} s)", fields)

    def _remember(self, task: Task, outcome: Outcome) -> None:
        self._reported[_run_of(task)] = outcome
        if len(self._reported) > REMEMBERED:
            del self._reported[next(iter(self._reported))]

    # Hearing from the ledger

    async def _hear(self) -> None:
        """Compare what runs here with the ledger, which may have been told to stop it, or have lost a write."""
        runs = sorted(self._running)
        latest = {run[0]: self._running[run] for run in runs}
        word = await self._tasks.hear(self._terms.name, [running.task for running in latest.values()])
        for task_id in word.cancelled:
            latest[task_id].halt.ask(Stop.CANCELLED)
        for task_id in word.taken:
            if not latest[task_id].over.is_set():
                sentence = "task %s is no longer held by this worker: its script is killed"
                _log.warning(sentence, task_id, extra=journal.of_task(task_id))
                latest[task_id].halt.ask(Stop.LAPSED)
        for task in word.left:
            if task.id not in latest and _run_of(task) not in self._running:
                await self._settle_left(task)
        seconds = min(WAIT_SECONDS, self._terms.lease_seconds / RENEWALS)
        await self._tasks.wait_for_word(self._terms.name, seconds=seconds)

    async def _settle_left(self, task: Task) -> None:
        """The ledger has this worker hold a task that it does not run: it has forgotten how that ended."""
        outcome = self._reported.get(_run_of(task))
        sentence = "task %s is held by this worker, which does not run it: it is settled"
        _log.warning(sentence, task.id, extra=journal.of_task(task.id))
        if outcome is None:
            await self._release(task, counted=True)
        elif await self._tasks.finish(task, outcome):
            note_end(replace(task, state=outcome.state, outcome=outcome), self._watch)

    # Being stopped

    def _lapse(self) -> None:
        """The lease may be gone: what runs here may be given to another at any moment, so it must not run on."""
        for running in self._running.values():
            if not running.over.is_set():
                sentence = "the lease lapsed: the script of task %s is killed"
                _log.warning(sentence, running.task.id, extra=journal.of_task(running.task.id))
                running.halt.ask(Stop.LAPSED)

    async def _drain(self, hurry: asyncio.Event) -> None:
        if self._carriers:
            seconds, count = self._terms.drain_seconds, len(self._carriers)
            _log.info("waiting up to %g s for %d running script(s)", seconds, count)
            done = asyncio.wait(self._carriers, timeout=seconds)
            await first_of(done, hurry.wait())
        for running in self._running.values():
            running.halt.ask(Stop.DRAINED)
        if self._carriers:
            grace = self._workshop.spec.grace_seconds
            await asyncio.wait(self._carriers, timeout=grace + self._terms.lease_seconds)
        await cancelled(list(self._carriers))

    def _tending(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What any process does for all: neither waits for the other."""
        counts, pause = self._workshop.spec.kept_counts, min(1.0, self._terms.lease_seconds / RENEWALS)
        yield again(lambda: settle_lost(self._tasks, self._watch), pause_seconds=pause)
        yield again(lambda: let_go(self._tasks, self._workshop.artifacts, counts), pause_seconds=pause)


def _end(span: Span, task: Task, outcome: Outcome | None) -> None:
    """The end of a run in its trace; one without an outcome was given up."""
    state = outcome.state.value if outcome else "given up"
    attributes: dict[str, str | float] = {"task.id": task.id, "task.attempt": task.attempt, "task.state": state}
    if outcome and outcome.exit_code is not None:
        attributes["process.exit.code"] = outcome.exit_code
    span.end(attributes, is_error=outcome is None or outcome.state is not State.SUCCEEDED)


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
            self._held_until = 0.0
            self._lapse()
        terms = self._terms
        was_there = self._lease.renew(
            terms.name,
            seconds=terms.lease_seconds,
            slots=terms.concurrency,
            configuration=terms.configuration,
            version=terms.version,
        )
        held_before, held_until = self._held_until, beat_at + terms.lease_seconds * HELD_PART
        self._on_hold(held_until)
        # the answer may have come when the guardian had already killed what runs
        if held_before and (not was_there or boot_time() > held_before):
            self._lapse()
        self._held_until = held_until
        self._on_registered()

    def _lapse(self) -> None:
        self.lapses += 1
        self._on_lapse()

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._lease.close()


def boot_time() -> float:
    """Seconds of a clock that goes on while the machine sleeps (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def again(chore: Callable[[], Awaitable[None]], *, pause_seconds: float = 0.0) -> None:
    """Do a chore for ever, with a pause in between; after a failure, again in a moment."""
    while True:
        try:
            await chore()
            if pause_seconds:
                await asyncio.sleep(pause_seconds)
        except Error as error:
            _log.debug("a chore is put off: %s", error.message)
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:  # noqa: BLE001 - a chore that stopped would be missed by nobody until it is too late
            _log.exception("a chore failed")
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
