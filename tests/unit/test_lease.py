"""The worker's side of the lease, with a ledger that loses answers, takes tasks away and forgets."""

import asyncio
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.servers import until

from script_runner import run
from script_runner.adapters.memory import MemoryLease, MemoryLogs, MemoryTasks
from script_runner.adapters.process import PR_SET_CHILD_SUBREAPER, LocalExecutor
from script_runner.adapters.store import FileArtifacts
from script_runner.ports import Artifacts, Label, Lease, Saved, Word
from script_runner.run import Halt, Stop, Workshop
from script_runner.spec import Spec
from script_runner.task import Outcome, State, Task
from script_runner.worker import Terms, Worker, boot_time

ALONE = 'exec 9> "$LOCK"; flock -n 9 || { echo twice >> "$LEDGER"; exit 9; }; echo once >> "$LEDGER"'
"""A run that says so in the ledger when another one is beside it."""

FIRST_STAYS = ALONE + '; [ "$(wc -l < "$LEDGER")" = 2 ] || sleep 600'


@pytest.fixture(autouse=True)
def no_orphans_of_other_tests() -> Iterator[None]:
    yield
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Ledger(MemoryTasks):
    """The in-memory ledger with the faults of a network and of a failover."""

    def __init__(self) -> None:
        super().__init__()
        self.reports = asyncio.Event()
        self.reports.set()
        self.finishes_to_forget = 0
        self.claims_to_lose = 0
        self.unanswered: Sequence[Task] = ()
        self.held_up = asyncio.Event()
        self.claims_to_hang = 0
        self.claim_answers = asyncio.Event()
        self.claim_answers.set()
        self.is_deaf = False
        self.releases = asyncio.Event()
        self.releases.set()
        self.given_back = 0
        self.hears = 0

    async def hear(self, worker: str, running: Sequence[Task]) -> Word:
        self.hears += 1
        return Word() if self.is_deaf else await super().hear(worker, running)

    async def release(self, task: Task, *, counted: bool) -> State | None:
        if not counted:
            await self.releases.wait()
            self.given_back += 1
        return await super().release(task, counted=counted)

    async def finish(self, task: Task, outcome: Outcome) -> bool:
        if self.finishes_to_forget:
            self.finishes_to_forget -= 1
            return True
        self.held_up.set()
        await self.reports.wait()
        return await super().finish(task, outcome)

    async def claim(
        self, worker: str, *, limit: int, wait_seconds: float, on_ask: Callable[[], None] = lambda: None
    ) -> Sequence[Task]:
        claimed = await super().claim(worker, limit=limit, wait_seconds=wait_seconds, on_ask=on_ask)
        if claimed and self.claims_to_hang:
            self.claims_to_hang -= 1
            self.unanswered = claimed
            self.held_up.set()
            await asyncio.Event().wait()
        if claimed and not self.claim_answers.is_set():
            self.held_up.set()
            await self.claim_answers.wait()
        if not claimed and not wait_seconds:
            return self.unanswered
        if claimed and self.claims_to_lose:
            self.claims_to_lose -= 1
            return []
        return claimed

    async def take_away(self, task_id: str) -> None:
        """As a reaper does that believes the worker dead."""
        task = await self.get(task_id)
        assert task
        assert await self.release(task, counted=True)

    async def give_to(self, worker: str) -> None:
        """What waits, to another worker."""
        MemoryLease(self).renew(worker, seconds=60.0, slots=1, configuration="", version="")
        assert await super().claim(worker, limit=1, wait_seconds=0)

    async def state(self, task_id: str) -> State | None:
        task = await self.get(task_id)
        return task.state if task else None


class LateLease(MemoryLease):
    """A lease whose second renewal is answered when it is told to."""

    def __init__(self, tasks: MemoryTasks) -> None:
        super().__init__(tasks)
        self.renewals = 0
        self.answers = threading.Event()

    def renew(self, worker: str, **terms: Any) -> bool:
        self.renewals += 1
        if self.renewals == 2:
            assert self.answers.wait(60)
        return super().renew(worker, **terms)


class UntoldLease(MemoryLease):
    """A lease whose second renewal is granted for a minute, which the worker is told only later."""

    def __init__(self, tasks: MemoryTasks) -> None:
        super().__init__(tasks)
        self.renewals = 0
        self.overdue_at = 0.0
        self.answers = threading.Event()

    async def is_overdue(self) -> bool:
        """Whether it is so for the worker: it was not told of the second renewal, and the first one is over."""
        return self.renewals == 2 and boot_time() > self.overdue_at

    def renew(self, worker: str, *, seconds: float, **terms: Any) -> bool:
        self.renewals += 1
        self.overdue_at = self.overdue_at or boot_time() + seconds
        was_there = super().renew(worker, seconds=60.0, **terms)
        if self.renewals == 2:
            assert self.answers.wait(60)
        return was_there


class CountingExecutor(LocalExecutor):
    """An executor that knows how often it was told of a new deadline."""

    holds = 0

    def hold_until(self, deadline: float) -> None:
        super().hold_until(deadline)
        self.holds += 1


class LateStore(FileArtifacts):
    """A store that keeps nothing before it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_asked = asyncio.Event()
        self.keeps = asyncio.Event()

    async def save(self, key: str, chunks: Iterable[bytes], label: Label | None = None) -> Saved:
        self.is_asked.set()
        await self.keeps.wait()
        return await super().save(key, chunks, label)


class StuckStore(FileArtifacts):
    """A store that never answers when it is to let go."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_asked = asyncio.Event()

    async def remove(self, prefix: str) -> None:
        del prefix
        self.is_asked.set()
        await asyncio.Event().wait()


class Bench:
    """A worker with real processes over such a ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger()
        self.executor: CountingExecutor

    @property
    def stamps(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "ledger").read_text().split()
        return []

    @contextlib.asynccontextmanager
    async def working(
        self,
        script: str,
        *,
        lease_seconds: float = 60.0,
        drained: asyncio.Event | None = None,
        lease: Lease | None = None,
        store: Artifacts | None = None,
        base: Path | None = None,
    ) -> AsyncIterator[None]:
        """While a worker runs, two at once; it drains at the end, or when it is told to."""
        spec = Spec.read(
            {
                "command": ["/bin/sh", "-c", script.replace("$", "$$")],
                "command_rundir": str(self.folder),
                "command_rundir_base": str(base) if base else None,
                "environment": {"set": {"LOCK": str(self.folder / "lock"), "LEDGER": str(self.folder / "ledger")}},
            }
        )
        executor = self.executor = CountingExecutor()
        store = store or FileArtifacts((self.folder / "store").as_uri())
        inherited = {"PATH": os.environ["PATH"]}
        workshop = Workshop(spec, inherited, executor, store, MemoryLogs(self.ledger))
        terms = Terms("w1", concurrency=2, lease_seconds=lease_seconds, drain_seconds=0.0)
        worker = Worker(terms, tasks=self.ledger, lease=lease or MemoryLease(self.ledger), workshop=workshop)
        drain, hurry = drained or asyncio.Event(), asyncio.Event()
        work = asyncio.create_task(worker.work(drain, hurry=hurry))
        try:
            yield
        finally:
            self.ledger.reports.set()
            drain.set()
            await work
            await executor.close()

    async def submit(self) -> None:
        await self.ledger.add(Task(id="a", owner="ada", arguments={}, max_attempts=3))

    async def until_state(self, state: State) -> Task:
        async def is_there() -> bool:
            return await self.ledger.state("a") is state

        await until(is_there)
        task = await self.ledger.get("a")
        assert task
        return task

    async def until_stamps(self, count: int) -> None:
        async def are_there() -> bool:
            return len(self.stamps) >= count

        await until(are_there)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "store").mkdir()
    return Bench(tmp_path)


def test_a_task_that_comes_while_the_lease_is_not_known_to_be_held_is_given_back(bench: Bench) -> None:
    """As after an outage, when a claim is answered before a renewal: what would be killed at once is not begun."""

    async def scenario() -> Task:
        lease = UntoldLease(bench.ledger)

        async def is_given_back() -> bool:
            return bench.ledger.given_back > 0

        async with bench.working(ALONE, lease_seconds=1.0, lease=lease):
            await until(lease.is_overdue)
            await bench.ledger.add(Task(id="a", owner="ada", arguments={}, max_attempts=1))
            await until(is_given_back)
            lease.answers.set()
            return await bench.until_state(State.SUCCEEDED)

    task = asyncio.run(scenario())

    assert task.attempt == 1
    assert bench.stamps == ["once"]


def test_a_run_that_is_drained_before_its_script_starts_is_not_lost(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stops while a base folder is copied gives the task back: nothing of it ran."""
    copies, goes_on, is_asked = threading.Event(), threading.Event(), threading.Event()
    ask = Halt.ask

    def copy(_base: Path, _folder: Path) -> None:
        copies.set()
        assert goes_on.wait(60)

    def noted_ask(halt: Halt, reason: Stop) -> None:
        ask(halt, reason)
        is_asked.set()

    monkeypatch.setattr(run, "_copy_base", copy)
    monkeypatch.setattr(Halt, "ask", noted_ask)

    async def scenario() -> Task | None:
        drained = asyncio.Event()
        async with bench.working(ALONE, drained=drained, base=tmp_path):
            await bench.ledger.add(Task(id="a", owner="ada", arguments={}))
            assert await asyncio.to_thread(copies.wait, 60)
            drained.set()
            assert await asyncio.to_thread(is_asked.wait, 60)
            goes_on.set()
        return await bench.ledger.get("a")

    task = asyncio.run(scenario())

    assert task
    assert (task.state, task.attempt) == (State.QUEUED, 0)
    assert bench.stamps == []


def test_dead_workers_are_noticed_while_the_store_does_not_answer(bench: Bench, tmp_path: Path) -> None:
    """Letting go of old tasks takes as long as the artifact store does; what a dead worker held does not wait."""

    async def scenario() -> Task:
        store = StuckStore((tmp_path / "store").as_uri())
        await bench.submit()
        await bench.ledger.give_to("w2")
        async with bench.working("true", store=store):
            await bench.ledger.add(Task(id="old", owner="ada", arguments={}, retention_seconds=0))
            await store.is_asked.wait()
            await bench.ledger.leave("w2")
            return await bench.until_state(State.SUCCEEDED)

    assert asyncio.run(scenario()).worker == "w1"


def test_a_claim_that_is_answered_after_the_lease_had_lapsed_begins_nothing(bench: Bench) -> None:
    """As on a machine that stood still: the task is another's by now, though the lease is held anew."""

    async def scenario() -> Task:
        lease = UntoldLease(bench.ledger)

        async def is_held_anew() -> bool:
            return lease.renewals > 2

        async def is_dealt_with() -> bool:
            return bench.ledger.given_back > 0 or bool(bench.stamps)

        bench.ledger.claim_answers.clear()
        bench.ledger.is_deaf = True
        async with bench.working(ALONE, lease_seconds=1.0, lease=lease):
            await bench.submit()
            await bench.ledger.held_up.wait()
            await until(lease.is_overdue)
            await bench.ledger.take_away("a")
            await bench.ledger.give_to("w2")
            lease.answers.set()
            await until(is_held_anew)
            bench.ledger.claim_answers.set()
            await until(is_dealt_with)
            return await bench.until_state(State.RUNNING)

    task = asyncio.run(scenario())

    assert task.worker == "w2"
    assert bench.stamps == []


def test_a_task_that_comes_back_while_its_end_is_being_reported_is_run_again(bench: Bench) -> None:
    """A task taken from a worker and claimed by it anew is another run, also while the first still reports."""

    async def scenario() -> Task:
        bench.ledger.reports.clear()
        async with bench.working(ALONE):
            await bench.submit()
            await bench.ledger.held_up.wait()
            await bench.ledger.take_away("a")
            await bench.until_stamps(2)
            bench.ledger.reports.set()
            return await bench.until_state(State.SUCCEEDED)

    task = asyncio.run(scenario())

    assert (task.attempt, task.run) == (2, 2)
    assert bench.stamps == ["once", "once"]


def test_what_was_taken_away_is_killed_before_it_runs_again(bench: Bench) -> None:
    """A worker that hears that a task is no longer its own kills the script; here it gets the task once more."""

    async def scenario() -> Task:
        async with bench.working(FIRST_STAYS):
            await bench.submit()
            await bench.until_stamps(1)
            await bench.ledger.take_away("a")
            return await bench.until_state(State.SUCCEEDED)

    task = asyncio.run(scenario())

    assert task.run == 2
    assert bench.stamps == ["once", "once"]
    assert list(bench.folder.glob("results-*")) == []


def test_an_end_that_the_ledger_has_forgotten_is_told_again(bench: Bench) -> None:
    """After a failover without the last write the worker tells it once more; the script does not run again."""

    async def scenario() -> Task:
        bench.ledger.finishes_to_forget = 1
        async with bench.working(ALONE):
            await bench.submit()
            return await bench.until_state(State.SUCCEEDED)

    task = asyncio.run(scenario())

    assert (task.attempt, task.run) == (1, 1)
    assert bench.stamps == ["once"]


def test_a_task_that_never_reached_its_worker_is_given_back(bench: Bench) -> None:
    """A claim whose answer is lost for good leaves a task that nobody runs: the worker hears of it and lets go."""

    async def scenario() -> Task:
        bench.ledger.claims_to_lose = 1
        async with bench.working(ALONE):
            await bench.submit()
            return await bench.until_state(State.SUCCEEDED)

    task = asyncio.run(scenario())

    assert (task.attempt, task.run) == (2, 2)
    assert bench.stamps == ["once"]


@pytest.mark.parametrize("ids", [("a",), ("a", "b")])
def test_a_claim_cut_off_by_a_drain_is_given_back_once(bench: Bench, ids: tuple[str, ...]) -> None:
    """All that the last claim brought is returned uncounted, also when the worker compares itself meanwhile."""

    async def scenario() -> list[Task | None]:
        drain = asyncio.Event()
        bench.ledger.claims_to_hang = 1
        bench.ledger.releases.clear()
        for task_id in ids:
            await bench.ledger.add(Task(id=task_id, owner="ada", arguments={}))
        async with bench.working(ALONE, lease_seconds=2.0, drained=drain):
            await bench.ledger.held_up.wait()
            drain.set()
            before = bench.ledger.hears

            async def has_compared() -> bool:
                return bench.ledger.hears >= before + 3

            await until(has_compared)
            bench.ledger.releases.set()
        return [await bench.ledger.get(task_id) for task_id in ids]

    tasks = asyncio.run(scenario())

    assert [(task.state, task.attempt) for task in tasks if task] == [(State.QUEUED, 0)] * len(ids)
    assert bench.stamps == []


def test_what_the_guardian_killed_has_not_failed(bench: Bench) -> None:
    """A renewal that is answered when the script is dead does not let that pass for the script's own end."""

    async def scenario() -> Task:
        lease, store = LateLease(bench.ledger), LateStore((bench.folder / "store").as_uri())
        async with bench.working("echo said; " + FIRST_STAYS, lease_seconds=2.0, lease=lease, store=store):
            await bench.submit()
            await store.is_asked.wait()  # for the log of the first run, whose script was killed
            lease.answers.set()

            async def is_renewed() -> bool:
                return bench.executor.holds == 2

            await until(is_renewed)
            store.keeps.set()
            return await bench.until_state(State.SUCCEEDED)

    task = asyncio.run(scenario())

    assert (task.attempt, task.run) == (2, 2)
    assert bench.stamps == ["once", "once"]


def test_a_lease_is_for_as_many_as_the_worker_runs(bench: Bench) -> None:
    """The ledger knows the slots of its workers: when they are full, nobody knows how long the next one waits."""

    async def scenario() -> list[float | None]:
        async with bench.working("sleep 600"):
            for name in "abcd":
                await bench.ledger.add(Task(id=name, owner="ada", arguments={}))

            async def two_run() -> bool:
                states = [await bench.ledger.state(name) for name in "abcd"]
                return states.count(State.RUNNING) == 2

            await until(two_run)
            waiting = [await bench.ledger.get(name) for name in "cd"]
            return [task.place.expected_wait for task in waiting if task and task.place]

    assert asyncio.run(scenario()) == [None, None]


def test_a_task_drained_under_fail_ends_with_a_sentence_of_its_own(bench: Bench) -> None:
    """A stop of the worker is not told as its death."""

    async def scenario() -> None:
        async with bench.working(ALONE + "; sleep 600"):
            await bench.ledger.add(replace(Task(id="a", owner="ada", arguments={}), created_at=time.time()))
            await bench.until_stamps(1)

    asyncio.run(scenario())
    task = asyncio.run(bench.ledger.get("a"))

    assert task
    assert task.outcome
    assert (task.state, task.outcome.error) == (
        State.LOST,
        "The worker was stopped while the script ran; on_worker_lost lets it not run again.",
    )
