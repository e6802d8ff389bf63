"""The ports Tasks and Lease against every store, and the life of tasks against a model of it."""

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from msgspec.structs import replace
from tests.conftest import Clock, Store
from tests.servers import until

from script_runner.adapters.memory import MemoryTasks
from script_runner.errors import Code, Error
from script_runner.ports import Cancelled, Tasks
from script_runner.task import Artifact, Outcome, Place, Results, State, Task

pytestmark = pytest.mark.anyio

LONG = 600.0
"""A lease, or a wait, that no test sees the end of."""

SUCCEEDED = Outcome(State.SUCCEEDED, exit_code=0)
FAILED = Outcome(State.FAILED, exit_code=1, error="It went wrong.")


def a_task(task_id: str = "a", **changes: Any) -> Task:
    return replace(Task(id=task_id, owner="ada", arguments={"CITY": "Oslo"}), **changes)


async def add(store: Store, *ids: str, **changes: Any) -> None:
    for task_id in ids:
        await store.tasks.add(a_task(task_id, **changes))


async def claim(store: Store, worker: str = "w1", limit: int = 10) -> Sequence[Task]:
    """What the worker gets under a long lease."""
    store.lease.renew(worker, seconds=LONG)
    return await store.tasks.claim(worker, limit=limit, wait_seconds=0)


async def claim_one(store: Store, worker: str = "w1") -> Task:
    [task] = await claim(store, worker, limit=1)
    return task


async def cancellations(tasks: Tasks, worker: str, *, wait_seconds: float) -> Sequence[str]:
    """Which of the tasks that the worker holds are to be cancelled, when it has waited for word of it."""
    if wait_seconds:
        await tasks.wait_for_word(worker, seconds=wait_seconds)
    held = (await tasks.hear(worker, [])).left
    return (await tasks.hear(worker, held)).cancelled


async def state_of(store: Store, task_id: str) -> State | None:
    task = await store.tasks.get(task_id)
    return task.state if task else None


def die(store: Store, worker: str) -> None:
    """The worker renews no more, and what was left of its lease is short."""
    store.lease.renew(worker, seconds=0.05)


async def settled(store: Store) -> Sequence[Task]:
    """What the reaper changes, once it changes something."""
    found: list[Task] = []

    async def has_found() -> bool:
        found.extend(await store.tasks.reap())
        await store.let_pass(0.01)
        return bool(found)

    await until(has_found)
    return found


def ids(tasks: Sequence[Task]) -> Sequence[str]:
    return [task.id for task in tasks]


# Adding and reading


async def test_added_task_is_queued(store: Store) -> None:
    """A task that was added is there as it was given, queued, with the time it was created."""
    added = await store.tasks.add(a_task(configuration="one", max_attempts=3, retention_seconds=12.5))

    wanted = a_task(configuration="one", max_attempts=3, retention_seconds=12.5, created_at=added.created_at)
    assert added == replace(wanted, place=Place(1))
    assert added.created_at > 0
    assert await store.tasks.get("a") == added


async def test_adding_again_changes_nothing(store: Store) -> None:
    """An id is queued once, however often and however concurrently it is added."""
    added = await asyncio.gather(*(store.tasks.add(a_task()) for _ in range(50)))

    assert len({task.created_at for task in added}) == 1
    assert ids(await claim(store)) == ["a"]
    assert len((await store.tasks.list("ada", states=(), cursor=None, limit=10)).tasks) == 1


async def test_adding_again_later_keeps_the_first(store: Store) -> None:
    """Adding the id of a task that is over neither queues it again nor changes its record."""
    first = await store.tasks.add(a_task())
    await store.tasks.finish(await claim_one(store), SUCCEEDED)
    await store.let_pass(0.01)
    again = await store.tasks.add(a_task(arguments={"CITY": "Rome"}))

    assert again.created_at == first.created_at
    assert await claim(store) == []
    kept = await store.tasks.get("a")
    assert kept is not None
    assert (kept.state, kept.arguments) == (State.SUCCEEDED, {"CITY": "Oslo"})


async def test_unknown_task(store: Store) -> None:
    """What was never added is not there."""
    assert await store.tasks.get("never") is None


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"EMPTY": ""},
        {"MANY": ("one", "two words", "")},
        {"NONE": ()},
        {"TEXT": "Zürich 北京 \U0001f9ec", "LINES": "one\ntwo\r\n\tthree", "QUOTES": "'\"\\;$x`"},
        {"CONTROL": "\x01\x7f\u2028", "NUMBER": "007", "JSON": '{"a": [1]}'},
    ],
)
async def test_arguments_come_back_exactly(store: Store, arguments: dict[str, str | tuple[str, ...]]) -> None:
    """Arguments reach the worker exactly as they were added."""
    await add(store, "a", arguments=arguments)

    assert (await claim_one(store)).arguments == arguments


# Claiming


async def test_first_in_first_out(store: Store) -> None:
    """Tasks are claimed in the order they were added, no more than asked for."""
    await add(store, "c", "a", "b")

    assert ids(await claim(store, limit=2)) == ["c", "a"]
    assert ids(await claim(store, limit=2)) == ["b"]
    assert ids(await claim(store, limit=2)) == []


async def test_claim_of_none(store: Store) -> None:
    """A claim of no tasks leaves the queue as it is."""
    await add(store, "a")

    assert await claim(store, limit=0) == []
    assert await state_of(store, "a") is State.QUEUED


async def test_claimed_task_is_running(store: Store) -> None:
    """A claimed task names its worker, its attempt and when it started."""
    await add(store, "a")
    task = await claim_one(store)

    assert (task.state, task.worker, task.attempt) == (State.RUNNING, "w1", 1)
    assert task.started_at is not None
    assert task.started_at >= task.created_at
    assert await store.tasks.get("a") == task


@pytest.mark.parametrize("ending", ["never renewed", "left", "lapsed"])
async def test_no_claim_without_a_lease(store: Store, ending: str) -> None:
    """A worker without a valid lease gets nothing, and what waits stays for others."""
    await add(store, "a")
    if ending == "left":
        store.lease.renew("w1", seconds=LONG)
        await store.tasks.leave("w1")
    if ending == "lapsed":
        store.lease.renew("w1", seconds=0.01)
        await store.let_pass(0.02)

    assert await store.tasks.claim("w1", limit=1, wait_seconds=0) == []
    assert ids(await claim(store, "w2")) == ["a"]


async def test_waiting_claim_is_woken(store: Store) -> None:
    """A claim that waits gets a task as soon as one is added."""
    store.lease.renew("w1", seconds=LONG)
    async with asyncio.timeout(20):
        waiting = asyncio.create_task(store.tasks.claim("w1", limit=1, wait_seconds=LONG))
        await until(store.has_waiter)
        assert not waiting.done()
        await add(store, "a")

        assert ids(await waiting) == ["a"]


async def test_waiting_claim_is_woken_by_a_release(store: Store) -> None:
    """A claim that waits gets a task that another worker gives back."""
    await add(store, "a")
    task = await claim_one(store)
    store.lease.renew("w2", seconds=LONG)
    async with asyncio.timeout(20):
        waiting = asyncio.create_task(store.tasks.claim("w2", limit=1, wait_seconds=LONG))
        await until(store.has_waiter)
        await store.tasks.release(task, counted=False)

        assert ids(await waiting) == ["a"]


async def test_waiting_claim_gives_up(store: Store) -> None:
    """A claim for which nothing comes ends with nothing after its wait."""
    store.lease.renew("w1", seconds=LONG)

    assert await store.tasks.claim("w1", limit=1, wait_seconds=0.02) == []


async def test_every_task_is_claimed_once(store: Store) -> None:
    """Of many tasks and many workers at once, every task goes to exactly one worker."""
    names = [f"task-{number}" for number in range(40)]
    await add(store, *names)

    async def work(worker: str) -> Sequence[str]:
        claimed: list[str] = []
        while batch := await claim(store, worker, limit=3):
            claimed += ids(batch)
        return claimed

    claimed = await asyncio.gather(*(work(f"w{number}") for number in range(5)))

    assert sorted(chain.from_iterable(claimed)) == sorted(names)


# Finishing


async def test_finish_stands(store: Store) -> None:
    """The outcome of the run that holds the task is its end."""
    await add(store, "a")
    running = await claim_one(store)

    assert await store.tasks.finish(running, FAILED)
    ended = await store.tasks.get("a")
    assert ended is not None
    assert ended == replace(running, state=State.FAILED, outcome=FAILED, finished_at=ended.finished_at)
    assert ended.finished_at is not None
    assert ended.finished_at >= (running.started_at or 0)


async def test_finish_again_is_told_the_same(store: Store) -> None:
    """A finish whose answer was lost can be asked again: it stands, and nothing changes."""
    await add(store, "a")
    running = await claim_one(store)
    await store.tasks.finish(running, SUCCEEDED)
    ended = await store.tasks.get("a")
    await store.let_pass(0.01)

    assert await store.tasks.finish(running, SUCCEEDED)
    assert await store.tasks.get("a") == ended


async def test_only_one_outcome_stands(store: Store) -> None:
    """A second, different outcome of the same run is refused."""
    await add(store, "a")
    running = await claim_one(store)
    await store.tasks.finish(running, SUCCEEDED)

    assert not await store.tasks.finish(running, FAILED)
    assert await state_of(store, "a") is State.SUCCEEDED


@pytest.mark.parametrize("wrong", [{"worker": "w2"}, {"run": 2}, {"run": 0}, {"id": "never"}])
async def test_only_the_holder_writes(store: Store, wrong: dict[str, Any]) -> None:
    """Neither another worker nor another run can finish or release a task."""
    await add(store, "a", max_attempts=3)
    running = await claim_one(store)
    other = replace(running, **wrong)

    assert not await store.tasks.finish(other, SUCCEEDED)
    assert not await store.tasks.release(other, counted=True)
    assert await store.tasks.get("a") == running


async def test_run_names_the_holder(store: Store) -> None:
    """The run that holds a task is told by its number, whatever attempt it says."""
    await add(store, "a")
    running = await claim_one(store)

    assert await store.tasks.finish(replace(running, attempt=7), SUCCEEDED)
    ended = await store.tasks.get("a")
    assert ended is not None
    assert (ended.attempt, ended.run) == (1, 1)


async def test_queued_task_is_nobodys(store: Store) -> None:
    """A task that waits can neither be finished nor released."""
    await add(store, "a")
    queued = await store.tasks.get("a")
    assert queued is not None

    assert not await store.tasks.finish(queued, SUCCEEDED)
    assert not await store.tasks.release(queued, counted=True)
    assert await store.tasks.get("a") == queued


ARTIFACT = Artifact("plate 1 Zürich.pdf", 2**40, "application/pdf", "ab" * 32, "a/1/0")


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(State.TIMED_OUT),
        Outcome(State.FAILED, exit_code=-9, error='Killed.\nlast line: 北京 \x00 "quoted"'),
        Outcome(State.SUCCEEDED, exit_code=0, results=Results(ARTIFACT)),
        Outcome(
            State.SUCCEEDED,
            exit_code=0,
            results=Results(ARTIFACT, rows=0, columns=()),
            files=(ARTIFACT, replace(ARTIFACT, name="b", size=0)),
            logs=(replace(ARTIFACT, name="stdout"), replace(ARTIFACT, name="stderr")),
        ),
        Outcome(State.SUCCEEDED, results=Results(ARTIFACT, rows=1536, columns=("plateIndex", "ß"))),
    ],
)
async def test_outcome_comes_back_exactly(store: Store, outcome: Outcome) -> None:
    """Whatever an outcome holds, or leaves out, is read as it was written."""
    await add(store, "a")
    await store.tasks.finish(await claim_one(store), outcome)
    ended = await store.tasks.get("a")

    assert ended is not None
    assert ended.outcome == outcome


# Releasing


async def test_uncounted_release(store: Store) -> None:
    """An uncounted release is as if the task had not been claimed, even at its last attempt, but for its run."""
    await add(store, "a")
    queued = await store.tasks.get("a")
    task = await claim_one(store)

    assert await store.tasks.release(task, counted=False)
    assert queued is not None
    released = await store.tasks.get("a")
    assert released is not None
    assert released == replace(queued, run=1, place=released.place)
    again = await claim_one(store, "w2")
    assert (again.attempt, again.run) == (1, 2)


async def test_counted_release(store: Store) -> None:
    """After a counted release the next run is the next attempt."""
    await add(store, "a", max_attempts=2)

    assert await store.tasks.release(await claim_one(store), counted=True)
    assert (await claim_one(store)).attempt == 2


async def test_last_counted_release_is_the_end(store: Store) -> None:
    """A counted release of the last attempt leaves the task lost."""
    await add(store, "a", max_attempts=1)

    assert await store.tasks.release(await claim_one(store), counted=True)
    assert await state_of(store, "a") is State.LOST
    assert await claim(store) == []


async def test_release_keeps_the_place(store: Store) -> None:
    """A task that was given back is the next one again."""
    await add(store, "a", "b")
    task = await claim_one(store)
    await add(store, "c")
    await store.tasks.release(task, counted=False)

    assert ids(await claim(store)) == ["a", "b", "c"]


async def test_release_happens_once(store: Store) -> None:
    """What was given back is no longer held: neither release nor finish is taken."""
    await add(store, "a", max_attempts=3)
    task = await claim_one(store)
    await store.tasks.release(task, counted=True)

    assert not await store.tasks.release(task, counted=True)
    assert not await store.tasks.finish(task, SUCCEEDED)


# Cancelling


async def test_cancel_queued(store: Store) -> None:
    """A queued task is cancelled at once and never claimed."""
    await add(store, "a", "b")
    cancelled = await store.tasks.cancel("a")

    assert cancelled is not None
    assert cancelled.has_ended
    task = cancelled.task
    assert (task.state, task.outcome and task.outcome.state) == (State.CANCELLED, State.CANCELLED)
    assert task.finished_at is not None
    assert await store.tasks.get("a") == task
    assert ids(await claim(store)) == ["b"]


async def test_of_two_cancels_one_ends_the_task(store: Store) -> None:
    """Who asks at the same time as another is told that it was not its own call that ended the task."""
    await add(store, "a")
    both = await asyncio.gather(store.tasks.cancel("a"), store.tasks.cancel("a"))

    assert sorted(cancelled.has_ended for cancelled in both if cancelled) == [False, True]


async def test_cancel_running(store: Store) -> None:
    """A running task is marked, and its worker alone is told of it, again and again while it runs."""
    await add(store, "a", "b")
    running = await claim_one(store, "w1")
    await claim_one(store, "w2")

    assert await store.tasks.cancel("a") == Cancelled(replace(running, is_cancelling=True), has_ended=False)
    assert await cancellations(store.tasks, "w2", wait_seconds=0) == []
    assert await cancellations(store.tasks, "w1", wait_seconds=0.02) == ["a"]
    assert await cancellations(store.tasks, "w1", wait_seconds=0) == ["a"]
    await store.tasks.finish(running, Outcome(State.CANCELLED))
    assert await cancellations(store.tasks, "w1", wait_seconds=0) == []


async def test_cancel_wakes_the_worker(store: Store) -> None:
    """A worker that waits for cancellations is told at once, and then waits for the next."""
    await add(store, "a", "b")
    await claim(store)
    async with asyncio.timeout(20):
        for task_id in ("a", "b"):
            waiting = asyncio.create_task(cancellations(store.tasks, "w1", wait_seconds=LONG))
            await until(store.has_waiter)
            assert not waiting.done()
            await store.tasks.cancel(task_id)

            assert task_id in await waiting


async def test_cancelling_often_tells_once(store: Store) -> None:
    """However often a running task is cancelled, the worker is woken for it once."""
    await add(store, "a")
    await claim(store)
    for _ in range(3):
        await store.tasks.cancel("a")
    assert await cancellations(store.tasks, "w1", wait_seconds=LONG) == ["a"]
    waiting = asyncio.create_task(cancellations(store.tasks, "w1", wait_seconds=LONG))
    await until(store.has_waiter)

    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_cancelled_run_may_succeed(store: Store) -> None:
    """A run that ended before it heard of its cancellation keeps its outcome."""
    await add(store, "a")
    running = await claim_one(store)
    await store.tasks.cancel("a")

    assert await store.tasks.finish(running, SUCCEEDED)
    assert await state_of(store, "a") is State.SUCCEEDED


async def test_cancel_final(store: Store) -> None:
    """A task that is over stays as it is."""
    await add(store, "a")
    await store.tasks.finish(await claim_one(store), SUCCEEDED)
    ended = await store.tasks.get("a")

    assert ended
    assert await store.tasks.cancel("a") == Cancelled(ended, has_ended=False)
    assert await store.tasks.get("a") == ended


async def test_cancel_unknown(store: Store) -> None:
    """There is nothing to cancel under an unknown id."""
    assert await store.tasks.cancel("never") is None


@pytest.mark.parametrize("counted", [True, False])
async def test_released_while_cancelling(store: Store, counted: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A task that was to be cancelled is not queued again when it is given back."""
    await add(store, "a", max_attempts=3)
    running = await claim_one(store)
    await store.tasks.cancel("a")

    assert await store.tasks.release(running, counted=counted)
    assert await state_of(store, "a") is State.CANCELLED
    assert await claim(store) == []


# Leases and lost workers


async def test_first_renewal_is_new(store: Store) -> None:
    """A lease that was not there is new; one that was there is kept, even past its end."""
    assert not store.lease.renew("w1", seconds=0.01)
    assert store.lease.renew("w1", seconds=0.01)
    await store.let_pass(0.02)
    assert store.lease.renew("w1", seconds=LONG)


async def test_workers(store: Store) -> None:
    """Workers count from their first renewal until they leave or their lease ends."""
    assert await store.tasks.workers() == {}
    for worker in ("w1", "w2", "w3"):
        store.lease.renew(worker, seconds=LONG, configuration="one")
    assert await store.tasks.workers() == {"one": 3}
    await store.tasks.leave("w1")
    assert await store.tasks.workers() == {"one": 2}
    store.lease.renew("w2", seconds=0.01)
    await store.let_pass(0.02)
    assert await store.tasks.workers() == {"one": 1}


async def test_workers_by_configuration(store: Store) -> None:
    """Each living worker counts for the configuration that it had loaded at its last renewal."""
    store.lease.renew("w1", seconds=LONG, configuration="old")
    store.lease.renew("w2", seconds=LONG, configuration="old")
    store.lease.renew("w2", seconds=LONG, configuration="new")

    assert await store.tasks.workers() == {"old": 1, "new": 1}


async def test_dead_worker_is_noticed_and_the_living_left_alone(store: Store) -> None:
    """The reaper settles what a dead worker held, and nothing of a living one."""
    await add(store, "a", "b")
    await claim_one(store, "dead")
    living = await claim_one(store, "living")
    die(store, "dead")

    assert ids(await settled(store)) == ["a"]
    assert await store.tasks.get("b") == living
    assert await store.tasks.finish(living, SUCCEEDED)


async def test_lost_at_its_only_attempt(store: Store) -> None:
    """A task that may run once is lost with its worker, and says so."""
    await add(store, "a", max_attempts=1)
    await claim(store)
    die(store, "w1")
    [task] = await settled(store)

    assert task.state is State.LOST
    assert task.outcome is not None
    assert task.outcome.error == "The worker was lost while the script ran (attempt 1 of 1)."
    assert task.finished_at is not None
    assert await store.tasks.get("a") == task
    assert await claim(store, "w2") == []


async def test_queued_again_while_attempts_are_left(store: Store) -> None:
    """A task with attempts left goes back to its place in the queue; at the last one it is lost."""
    await add(store, "a", max_attempts=2)
    await claim(store, "w1")
    await add(store, "b")
    die(store, "w1")
    [queued] = await settled(store)
    assert (queued.id, queued.state, queued.worker, queued.started_at) == ("a", State.QUEUED, None, None)

    again = await claim_one(store, "w2")
    assert (again.id, again.attempt) == ("a", 2)
    die(store, "w2")
    [lost] = await settled(store)
    assert (lost.id, lost.state) == ("a", State.LOST)


async def test_lost_while_cancelling(store: Store) -> None:
    """A task that was to be cancelled is cancelled when its worker is lost."""
    await add(store, "a", max_attempts=3)
    await claim(store)
    await store.tasks.cancel("a")
    die(store, "w1")
    [task] = await settled(store)

    assert (task.state, task.outcome and task.outcome.error) == (State.CANCELLED, "The task was cancelled.")


async def test_reaper_waits_when_nobody_looked(store: Store) -> None:
    """After a time in which nobody looked, workers can renew first and keep what they hold."""
    await store.tasks.reap()
    await add(store, "a")
    running = await claim_one(store)
    die(store, "w1")
    await store.let_pass(0.6)

    assert await store.tasks.workers() == {}
    assert await store.tasks.reap() == []
    assert store.lease.renew("w1", seconds=LONG)
    assert await store.tasks.finish(running, SUCCEEDED)


async def test_reaper_waits_one_lease_only(store: Store) -> None:
    """After that time, workers that did not renew are settled."""
    await store.tasks.reap()
    await add(store, "a")
    await claim(store)
    die(store, "w1")
    await store.let_pass(0.6)

    assert await store.tasks.reap() == []
    assert ids(await settled(store)) == ["a"]


async def test_worker_that_leaves_is_not_waited_for(store: Store) -> None:
    """What a worker left behind is settled by the very next look, though nobody looked for long."""
    await add(store, "a", "b")
    await claim_one(store, "w1")
    living = await claim_one(store, "w2")
    await store.tasks.leave("w1")

    assert ids(await store.tasks.reap()) == ["a"]
    assert await store.tasks.get("b") == living


async def test_leaving_unknown(store: Store) -> None:
    """A worker that never came can leave, and does not count."""
    await store.tasks.leave("never")

    assert await store.tasks.workers() == {}
    assert not store.lease.renew("never", seconds=LONG)


async def test_reaped_worker_holds_nothing(store: Store) -> None:
    """A worker whose lease was given away learns so when it renews, and its runs are fenced off."""
    await add(store, "a", max_attempts=2)
    stale = await claim_one(store)
    die(store, "w1")
    await settled(store)

    assert not store.lease.renew("w1", seconds=LONG)
    assert not await store.tasks.finish(stale, SUCCEEDED)
    assert not await store.tasks.release(stale, counted=False)
    assert await state_of(store, "a") is State.QUEUED


async def test_own_earlier_run_is_fenced(store: Store) -> None:
    """A worker that claims a task again cannot finish it by its earlier run, though the attempt is the same."""
    await add(store, "a", max_attempts=2)
    stale = await claim_one(store)
    await store.tasks.release(stale, counted=False)
    running = await claim_one(store)
    assert running.attempt == stale.attempt

    assert not await store.tasks.finish(stale, SUCCEEDED)
    assert not await store.tasks.release(stale, counted=True)
    assert await store.tasks.get("a") == running
    assert await store.tasks.finish(running, FAILED)


# Listing


async def test_list_is_newest_first_and_own(store: Store) -> None:
    """A listing has the owner's tasks only, newest first."""
    await add(store, "c", "a", "b")
    await add(store, "other", owner="bob")
    page = await store.tasks.list("ada", states=(), cursor=None, limit=10)

    assert ids(page.tasks) == ["b", "a", "c"]
    assert page.cursor is None
    assert ids((await store.tasks.list("bob", states=(), cursor=None, limit=10)).tasks) == ["other"]
    assert (await store.tasks.list("eve", states=(), cursor=None, limit=10)).tasks == ()


async def test_list_by_state(store: Store) -> None:
    """A listing can be of some states only."""
    await add(store, "a", "b", "c")
    await store.tasks.finish(await claim_one(store), SUCCEEDED)
    await claim_one(store)

    async def listed(*states: State) -> Sequence[str]:
        return ids((await store.tasks.list("ada", states=states, cursor=None, limit=10)).tasks)

    assert await listed(State.RUNNING) == ["b"]
    assert await listed(State.QUEUED, State.SUCCEEDED) == ["c", "a"]
    assert await listed(State.LOST) == []


async def walk(store: Store, *states: State, limit: int, between: str = "") -> Sequence[str]:
    """The ids of all pages; before each next page another task is added when it has a name."""
    found: list[str] = []
    cursor = None
    for number in range(100):
        page = await store.tasks.list("ada", states=states, cursor=cursor, limit=limit)
        assert len(page.tasks) <= limit
        found += ids(page.tasks)
        if page.cursor is None:
            return found
        cursor = page.cursor
        if between:
            await add(store, f"{between}-{number}")
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize("limit", [1, 3, 7, 8])
async def test_pages_have_no_gaps_and_no_repeats(store: Store, limit: int) -> None:
    """Page after page shows each task once, also while tasks are added."""
    names = [f"task-{number}" for number in range(7)]
    await add(store, *names)

    assert await walk(store, limit=limit, between="later") == names[::-1]


async def test_rare_states_are_found(store: Store) -> None:
    """A filter that few tasks match finds them all, however many lie between."""
    await add(store, *(f"task-{number}" for number in range(50)))
    for task_id in ("task-0", "task-25", "task-49"):
        await store.tasks.cancel(task_id)

    assert await walk(store, State.CANCELLED, limit=1) == ["task-49", "task-25", "task-0"]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "²", "+inf", "(1", "9" * 40])
async def test_bad_cursor(store: Store, cursor: str) -> None:
    """A cursor that was not given out is refused."""
    with pytest.raises(Error) as caught:
        await store.tasks.list("ada", states=(), cursor=cursor, limit=10)

    assert caught.value.code is Code.INVALID_INPUT


# Removing and expiring


@pytest.mark.parametrize("state", ["queued", "finished"])
async def test_removed_task_is_gone(store: Store, state: str) -> None:
    """A removed task is in no record, no listing, no queue and not among the expired."""
    await add(store, "a", retention_seconds=0)
    if state == "finished":
        await store.tasks.finish(await claim_one(store), SUCCEEDED)

    assert await store.tasks.remove("a")
    assert await store.tasks.get("a") is None
    assert (await store.tasks.list("ada", states=(), cursor=None, limit=10)).tasks == ()
    assert await claim(store) == []
    assert await store.tasks.expired(limit=10) == []


async def test_running_task_is_not_removed(store: Store) -> None:
    """A task cannot be removed while it runs."""
    await add(store, "a")
    running = await claim_one(store)

    assert not await store.tasks.remove("a")
    assert await store.tasks.get("a") == running


async def test_removing_unknown(store: Store) -> None:
    """Removing what is not there is done already."""
    assert await store.tasks.remove("never")


async def test_removed_id_starts_anew(store: Store) -> None:
    """An id that was removed is a new task when it is added again, behind those that wait."""
    await add(store, "a", "b")
    await store.tasks.remove("a")
    await add(store, "a", "c")

    assert await walk(store, limit=1) == ["c", "a", "b"]
    assert ids(await claim(store)) == ["b", "a", "c"]


async def test_expired(store: Store) -> None:
    """Finished tasks past their retention are named, the longest over first; others are not."""
    await add(store, "z", "a", "cancelled", retention_seconds=0)
    await add(store, "kept", retention_seconds=3600)
    for task in await claim(store, limit=4):
        if task.id == "cancelled":
            await store.tasks.cancel(task.id)
        await store.tasks.finish(task, SUCCEEDED)
        await store.let_pass(0.005)
    await add(store, "queued", "running", retention_seconds=0)

    assert await store.tasks.expired(limit=10) == ["z", "a", "cancelled"]
    assert await store.tasks.expired(limit=2) == ["z", "a"]


# The whole life, against a model of what must always hold

WORKERS = st.sampled_from(["w1", "w2", "w3"])
OWNERS = st.sampled_from(["ada", "bob", "eve"])
FINAL = st.sampled_from([state for state in State if state.is_final])


class LifeOfTasks(RuleBasedStateMachine):
    """Any order of events: nothing is held twice, runs too often, or ends twice."""

    known = Bundle("known")
    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.store = MemoryTasks(self.clock)
        self.added: dict[str, Task] = {}
        self.leases: dict[str, float] = {}
        self.holders: dict[str, Task] = {}
        self.ends: dict[str, Task] = {}
        self.was_cancelled: set[str] = set()

    def teardown(self) -> None:
        """Whatever happened: once its workers are gone, no task is left running."""
        with self.runner:
            for worker in self.leases:
                self.leave(worker)
            self.reap()
            self.everything_is_as_it_must_be()
            assert not self.holders

    @initialize(target=known)
    def first(self) -> Any:
        return self.add(max_attempts=1, owner="ada")

    @rule(target=known, max_attempts=st.integers(1, 3), owner=OWNERS)
    def add(self, max_attempts: int, owner: str) -> str:
        task = a_task(f"task-{len(self.added)}", max_attempts=max_attempts, owner=owner)
        self.added[task.id] = self.runner.run(self.store.add(task))
        return task.id

    @rule(task_id=known)
    def add_again(self, task_id: str) -> None:
        again = self.runner.run(self.store.add(self.added[task_id]))
        assert again.created_at == self.added[task_id].created_at

    @rule(worker=WORKERS, seconds=st.sampled_from([1.0, 10.0]))
    def renew(self, worker: str, seconds: float) -> None:
        was_there = self.store.renew(worker, seconds=seconds)
        assert was_there == (worker in self.leases)
        self.leases[worker] = self.clock.now + seconds

    @rule(seconds=st.sampled_from([0.1, 0.9, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        """It renews no more, while the others do and somebody looks: it is given up in the end, they are not."""
        living = [other for other, end in self.leases.items() if other != worker and end > self.clock.now]
        kept = [task for task in self.holders.values() if task.worker in living]
        for _ in range(60):  # more than its lease and the longest quiet
            for other in living:
                self.renew(other, seconds=10.0)
            self.clock.now += 0.4
            self.reap()
        assert not self.is_known(worker)
        assert list(self.holders.values()) == kept

    @rule(target=runs, worker=WORKERS, limit=st.integers(1, 3))
    def claim(self, worker: str, limit: int) -> Any:
        queue = [task for task in self.added.values() if task.id not in self.holders and task.id not in self.ends]
        claimed = self.runner.run(self.store.claim(worker, limit=limit, wait_seconds=0))
        may_claim = self.leases.get(worker, 0) > self.clock.now
        assert len(claimed) == (min(limit, len(queue)) if may_claim else 0)
        for owner in {task.owner for task in claimed}:  # each owner's own first come first
            theirs = ids([task for task in claimed if task.owner == owner])
            assert theirs == ids([task for task in queue if task.owner == owner])[: len(theirs)]
        self.holders |= {task.id: task for task in claimed}
        return multiple(*claimed)

    @rule(run=runs, state=FINAL)
    def finish(self, run: Task, state: State) -> None:
        is_held = self.is_held(run)
        stands = self.runner.run(self.store.finish(run, Outcome(state)))
        if is_held:
            assert stands
            del self.holders[run.id]
            self.ends[run.id] = self.get(run.id)
            assert self.ends[run.id].state is state
        elif stands:
            end = self.ends[run.id]
            assert (end.state, end.worker, end.run) == (state, run.worker, run.run)

    @rule(run=runs, counted=st.booleans())
    def release(self, run: Task, counted: bool) -> None:  # noqa: FBT001 - hypothesis draws it
        is_held = self.is_held(run)
        state = self.runner.run(self.store.release(run, counted=counted))
        assert bool(state) == is_held
        if is_held:
            self.give_up(run.id, counted=counted)
            assert self.get(run.id).state is state

    @rule(worker=WORKERS, running=st.lists(runs, max_size=4))
    def hear(self, worker: str, running: Sequence[Task]) -> None:
        """It is told what it is to cancel, what it holds no more, and what it holds and does not run."""
        held = {task_id for task_id, task in self.holders.items() if task.worker == worker}
        ours = {run.id for run in running if run.worker == worker and self.is_held(run)}
        others = {run.id for run in running if run.worker != worker or not self.is_held(run)}
        word = self.runner.run(self.store.hear(worker, running))
        assert set(word.cancelled) == ours & self.was_cancelled
        assert set(word.taken) == others
        assert set(ids(word.left)) == held - ours - others
        assert all(self.is_held(task) for task in word.left)

    @rule(worker=WORKERS)
    def drain(self, worker: str) -> None:
        """It gives back all that it runs as if it had not been claimed, and leaves with nothing."""
        running = [task for task in self.holders.values() if task.worker == worker]
        self.hear(worker, running)
        for run in running:
            self.release(run, counted=False)
        self.hear(worker, running)
        self.leave(worker)
        assert not self.runner.run(self.store.hear(worker, [])).left

    @rule(task_id=known)
    def cancel(self, task_id: str) -> None:
        was_queued = self.get(task_id).state is State.QUEUED
        cancelled = self.runner.run(self.store.cancel(task_id))
        assert cancelled is not None
        assert cancelled.has_ended is was_queued
        task = cancelled.task
        if was_queued:
            assert task.state is State.CANCELLED
            self.ends[task_id] = task
        elif task_id in self.holders:
            assert task_id in self.runner.run(cancellations(self.store, task.worker or "", wait_seconds=0))
            self.was_cancelled.add(task_id)

    @rule()
    def reap(self) -> None:
        changed = self.runner.run(self.store.reap())
        for task in changed:
            assert self.leases[self.holders[task.id].worker or ""] <= self.clock.now
            self.give_up(task.id, counted=True)
        dead = [worker for worker in self.leases if not self.is_known(worker)]
        for worker in dead:
            assert self.leases.pop(worker) <= self.clock.now
            assert worker not in {task.worker for task in self.holders.values()}

    @rule(worker=WORKERS)
    def leave(self, worker: str) -> None:
        self.runner.run(self.store.leave(worker))
        if worker in self.leases:
            self.leases[worker] = 0

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        """Running if and only if held, by that run; ended as it ended; never more attempts than allowed."""
        for task_id in self.added:
            task = self.get(task_id)
            assert task.attempt <= task.max_attempts
            assert (task.state is State.RUNNING) == (task_id in self.holders)
            assert task.state.is_final == (task_id in self.ends)
            if held := self.holders.get(task_id):
                assert task.is_held_by(held)
            if end := self.ends.get(task_id):
                assert task == end

    def get(self, task_id: str) -> Task:
        task = self.runner.run(self.store.get(task_id))
        assert task is not None
        return task

    def is_held(self, run: Task) -> bool:
        holder = self.holders.get(run.id)
        return holder is not None and holder.is_held_by(run)

    def is_known(self, worker: str) -> bool:
        return worker in self.store._deadlines

    def give_up(self, task_id: str, *, counted: bool) -> None:
        """The run is over without an outcome of its own."""
        attempt = self.holders.pop(task_id).attempt - (not counted)
        task = self.get(task_id)
        assert task.attempt == attempt
        if task_id in self.was_cancelled:
            assert task.state is State.CANCELLED
        else:
            assert task.state is (State.QUEUED if attempt < task.max_attempts else State.LOST)
        if task.state.is_final:
            self.ends[task_id] = task


TestLifeOfTasks = LifeOfTasks.TestCase
TestLifeOfTasks.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
