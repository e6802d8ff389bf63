"""What waits, against every store: repeated requests, limits, turns, times, places and how long an end is kept."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from tests.conftest import Store
from tests.servers import until

from script_runner.errors import Code, Error
from script_runner.ports import Cancelled, Limits
from script_runner.task import Outcome, Place, State, Task

pytestmark = pytest.mark.anyio

LONG = 600.0
"""A lease, or a wait, that no test sees the end of."""

SUCCEEDED = Outcome(State.SUCCEEDED, exit_code=0)
FAILED = Outcome(State.FAILED, exit_code=1)


def a_task(task_id: str = "a", **changes: Any) -> Task:
    return structs.replace(Task(id=task_id, owner="ada", arguments={}), **changes)


def limited(store: Store, **limits: int | None) -> Store:
    """The same store for processes with these limits."""
    return replace(store, tasks=store.with_limits(Limits(**limits)))


async def add(store: Store, *ids: str, **changes: Any) -> None:
    for task_id in ids:
        await store.tasks.add(a_task(task_id, **changes))


async def claim(store: Store, worker: str = "w1", limit: int = 10) -> Sequence[Task]:
    """What the worker, which has room for 10, gets under a long lease."""
    store.lease.renew(worker, seconds=LONG, slots=10)
    return await store.tasks.claim(worker, limit=limit, wait_seconds=0)


async def finish(store: Store, *tasks: Task) -> None:
    for task in tasks:
        assert await store.tasks.finish(task, SUCCEEDED)


async def drained(store: Store, worker: str = "w1") -> Sequence[str]:
    """The ids of all that waits, in the order of their starts: one after another, each ends before the next."""
    order: list[str] = []
    while batch := await claim(store, worker, limit=1):
        order += ids(batch)
        await finish(store, *batch)
    return order


async def get(store: Store, task_id: str) -> Task:
    task = await store.tasks.get(task_id)
    assert task is not None
    return task


async def state_of(store: Store, task_id: str) -> State:
    return (await get(store, task_id)).state


async def place(store: Store, task_id: str) -> Place | None:
    return (await get(store, task_id)).place


async def refusal(store: Store, task: Task) -> Error:
    with pytest.raises(Error) as caught:
        await store.tasks.add(task)
    return caught.value


def ids(tasks: Sequence[Task]) -> Sequence[str]:
    return [task.id for task in tasks]


# Repeated requests


def keyed(task_id: str, fingerprint: str = "body", **changes: Any) -> Task:
    return a_task(task_id, idempotency_key="key", fingerprint=fingerprint, **changes)


async def test_one_key_is_one_task(store: Store) -> None:
    """However many servers are asked at once under one key of an owner, one task is queued and all tell of it."""
    servers = [store.with_limits(Limits()) for _ in range(5)]
    added = await asyncio.gather(*(servers[number % 5].add(keyed(f"task-{number}")) for number in range(50)))

    [winner] = {task.id for task in added}
    assert ids((await store.tasks.list("ada", states=(), cursor=None, limit=10)).tasks) == [winner]
    assert ids(await claim(store)) == [winner]


async def test_key_tells_of_the_task_as_it_is_now(store: Store) -> None:
    """A request that is repeated after the task has ended is answered with its end."""
    await store.tasks.add(keyed("a"))
    await finish(store, *await claim(store))

    assert await store.tasks.add(keyed("b")) == await get(store, "a")
    assert await store.tasks.get("b") is None


async def test_key_for_another_request_is_refused(store: Store) -> None:
    """A key that stands for a request is refused for another, which leaves nothing behind."""
    await store.tasks.add(keyed("a"))

    assert (await refusal(store, keyed("b", "another body"))).code is Code.KEY_REUSED
    assert await store.tasks.get("b") is None
    assert ids(await claim(store)) == ["a"]


async def test_keys_belong_to_their_owner(store: Store) -> None:
    """The same key of another owner is another key, whatever the names look like."""
    for task_id, owner, key in (
        ("a", "ada", "key"),
        ("b", "bob", "key"),
        ("c", "ada:", "key"),
        ("d", "ada", ":key"),
    ):
        await store.tasks.add(a_task(task_id, owner=owner, idempotency_key=key, fingerprint=task_id))

    assert sorted(ids(await claim(store))) == ["a", "b", "c", "d"]


async def test_key_is_free_after_removal(store: Store) -> None:
    """When the task was removed its key can stand for another request, and only for that."""
    await store.tasks.add(keyed("a"))
    await store.tasks.remove("a")

    assert (await store.tasks.add(keyed("b", "another body"))).id == "b"
    assert (await refusal(store, keyed("c"))).code is Code.KEY_REUSED
    assert await drained(store) == ["b"]


# How many may wait


async def test_full_queue(store: Store) -> None:
    """When as many wait as may, another is refused with a time to wait; when one has started there is room."""
    store = limited(store, max_queued=2)
    await add(store, "a", "b")
    error = await refusal(store, a_task("c", owner="bob"))

    assert error.code is Code.QUEUE_FULL
    assert error.retry_after is not None
    assert 1 <= error.retry_after <= 60
    assert await store.tasks.get("c") is None
    await claim(store, limit=1)
    await add(store, "c")
    assert (await refusal(store, a_task("d"))).code is Code.QUEUE_FULL


async def test_share_of_the_queue(store: Store) -> None:
    """An owner with as many waiting as one may is refused; others are not."""
    store = limited(store, max_queued=10, max_queued_per_caller=2)
    await add(store, "a", "b")
    error = await refusal(store, a_task("c"))

    assert error.code is Code.TOO_MANY_QUEUED
    assert error.retry_after is not None
    await add(store, "d", owner="bob")
    await store.tasks.cancel("a")
    await add(store, "c")
    assert (await refusal(store, a_task("e"))).code is Code.TOO_MANY_QUEUED


async def test_limits_are_exact_under_haste(store: Store) -> None:
    """Of many at once exactly as many are queued as may wait."""
    store = limited(store, max_queued=5)
    tasks = [a_task(f"task-{number}", owner=f"owner-{number}") for number in range(30)]
    answers = await asyncio.gather(*(store.tasks.add(task) for task in tasks), return_exceptions=True)

    assert [isinstance(answer, Task) for answer in answers].count(True) == 5
    assert {answer.code for answer in answers if isinstance(answer, Error)} == {Code.QUEUE_FULL}
    assert len(await claim(store, limit=30)) == 5


async def test_repeated_request_is_answered_when_the_queue_is_full(store: Store) -> None:
    """What was queued before is told of, by its id and by its key, though no other would be taken."""
    store = limited(store, max_queued=1, max_queued_per_caller=1)
    first = await store.tasks.add(keyed("a"))

    assert (await store.tasks.add(keyed("a"))).id == first.id
    assert (await store.tasks.add(keyed("b"))).id == first.id
    assert (await refusal(store, keyed("b", "another body"))).code is Code.KEY_REUSED


async def test_what_waits_for_its_time_counts(store: Store) -> None:
    """Tasks that wait for a time, and those whose owner is at its limit, wait as well."""
    store = limited(store, max_queued=2, max_running_per_caller=1)
    await add(store, "running")
    assert ids(await claim(store)) == ["running"]
    await add(store, "later", not_before=store.time() + LONG)
    await add(store, "held back")
    assert await claim(store) == []

    assert (await refusal(store, a_task("c", owner="bob"))).code is Code.QUEUE_FULL


# How many may run


async def test_no_more_run_than_may(store: Store) -> None:
    """Whoever claims, in all no more run than the limit says; each that ends makes room for one."""
    store = limited(store, max_running=3)
    await add(store, *(f"task-{number}" for number in range(6)))
    running = [*await claim(store, "w1", limit=2), *await claim(store, "w2"), *await claim(store, "w3")]
    assert ids(running) == ["task-0", "task-1", "task-2"]

    await store.tasks.finish(running[0], FAILED)
    assert ids(await claim(store, "w3")) == ["task-3"]
    assert await claim(store, "w1") == []
    await store.tasks.release(running[1], counted=False)
    assert ids(await claim(store, "w2")) == ["task-1"]
    await store.tasks.release(running[2], counted=True)
    assert await state_of(store, "task-2") is State.LOST
    assert ids(await claim(store, "w1")) == ["task-4"]


async def test_owner_at_its_limit_does_not_block_others(store: Store) -> None:
    """An owner runs as many as one may, others run beside it, and its next starts as one of its own ends."""
    store = limited(store, max_running_per_caller=2)
    await add(store, *(f"ada-{number}" for number in range(150)))
    await add(store, "bob-0", "bob-1", "bob-2", owner="bob")
    running = list(await claim(store, limit=3))
    while more := await claim(store, limit=3):
        running += more
    assert sorted(ids(running)) == ["ada-0", "ada-1", "bob-0", "bob-1"]

    await finish(store, *(task for task in running if task.id == "ada-1"))
    assert ids(await claim(store)) == ["ada-2"]
    await finish(store, *(task for task in running if task.id == "bob-0"))
    assert ids(await claim(store)) == ["bob-2"]


@pytest.mark.parametrize("change", ["raised", "dropped"])
async def test_changed_limit_counts_from_the_next_claim(store: Store, change: str) -> None:
    """When processes come with another limit, what an old one held back starts."""
    old = limited(store, max_running_per_caller=1)
    await add(old, *(f"task-{number}" for number in range(4)))
    assert ids(await claim(old, "old")) == ["task-0"]
    assert await claim(old, "old") == []

    new = limited(store, max_running_per_caller=3 if change == "raised" else None)
    found: list[str] = []

    async def have_started() -> bool:
        found.extend(ids(await claim(new, "new")))
        await new.tasks.reap()
        return len(found) == (2 if change == "raised" else 3)

    await until(have_started)
    assert found == ["task-1", "task-2", "task-3"][: len(found)]


async def test_lowered_limit(store: Store) -> None:
    """Under a lower limit nothing starts until so many have ended that there is room again."""
    await add(store, "a", "b", "c", "d")
    running = await claim(store, "old", limit=3)
    store = limited(store, max_running=2)

    assert await claim(store, "new") == []
    await finish(store, running[0])
    assert await claim(store, "new") == []
    await finish(store, running[1])
    assert ids(await claim(store, "new")) == ["d"]


@pytest.mark.parametrize("limit", ["max_running", "max_running_per_caller"])
@pytest.mark.parametrize("end", ["finished", "given back", "lost"])
async def test_worker_waits_for_room(store: Store, limit: str, end: str) -> None:
    """A worker that waits stays asleep while as many run as may, and is woken when one has ended."""
    store = limited(store, **{limit: 1})
    await add(store, "a", "b")
    [running] = await claim(store)
    store.lease.renew("w2", seconds=LONG)
    async with asyncio.timeout(20):
        assert await store.tasks.claim("w2", limit=1, wait_seconds=0) == []
        waiting = asyncio.create_task(store.tasks.claim("w2", limit=1, wait_seconds=LONG))
        await until(store.has_waiter)
        for _ in range(3):
            await store.tasks.reap()
            await store.let_pass(0.01)
        assert not waiting.done()
        match end:
            case "finished":
                await finish(store, running)
            case "given back":
                await store.tasks.release(running, counted=False)
            case "lost":
                await store.tasks.leave("w1")
                await store.tasks.reap()

        assert ids(await waiting) == ["a" if end == "given back" else "b"]


async def test_removal_makes_room_for_the_next(store: Store) -> None:
    """When the task whose turn it was is removed or cancelled, the owner's next starts in its place."""
    store = limited(store, max_running_per_caller=1)
    await add(store, "a", "b", "c", "d")
    running = await claim(store)
    await claim(store)
    await finish(store, *running)
    await store.tasks.remove("b")
    await store.tasks.cancel("c")
    await store.tasks.reap()

    assert await drained(store) == ["d"]


# Whose turn it is


async def test_owners_take_turns(store: Store) -> None:
    """Owners who have tasks waiting start one each in turn, each its own in the order it queued them."""
    await add(store, *(f"ada-{number}" for number in range(4)))
    await add(store, *(f"bob-{number}" for number in range(2)), owner="bob")
    await add(store, "eve-0", owner="eve")

    assert await drained(store) == ["ada-0", "bob-0", "eve-0", "ada-1", "bob-1", "ada-2", "ada-3"]


async def test_long_queue_of_one_does_not_delay_another(store: Store) -> None:
    """Whoever comes after an owner with 500 tasks waiting has its first task started next."""
    await asyncio.gather(*(store.tasks.add(a_task(f"ada-{number}")) for number in range(500)))
    for _ in range(20):
        await finish(store, *await claim(store, limit=1))
    await add(store, "bob-0", "bob-1", owner="bob")
    order = [*ids(await claim(store, limit=1)), *ids(await claim(store, limit=3))]

    assert "bob-0" in order[:2]
    assert "bob-1" in order


async def test_urgent_task_does_not_cost_others_their_turn(store: Store) -> None:
    """That the last of many tasks was urgent gives the others no right to go before those of other owners."""
    await add(store, *(f"ada-{number}" for number in range(30)))
    await add(store, "urgent", priority=9)
    assert ids(await claim(store, limit=1)) == ["urgent"]
    await add(store, "bob-0", owner="bob")

    assert "bob-0" in ids(await claim(store, limit=2))


async def test_being_away_saves_no_turns(store: Store) -> None:
    """Who has waited with nothing in the queue has no more turns than the others for it."""
    await add(store, *(f"ada-{number}" for number in range(20)))
    for _ in range(10):
        await finish(store, *await claim(store, limit=1))
    await add(store, *(f"bob-{number}" for number in range(10)), owner="bob")
    order = (await drained(store))[:6]

    assert sum(name.startswith("bob") for name in order) in (3, 4)
    assert [name for name in order if name.startswith("bob")] == ["bob-0", "bob-1", "bob-2", "bob-3"][
        : sum(name.startswith("bob") for name in order)
    ]


@pytest.mark.parametrize("way", ["cancelled", "removed", "expired"])
async def test_turns_that_were_not_used_are_not_held_against_their_owner(store: Store, way: str) -> None:
    """Of whom nothing waits any more, the next task has its turn as if that had never been queued."""
    await add(store, *(f"bob-{number}" for number in range(3)), owner="bob")
    mistaken = [f"ada-{number}" for number in range(10)]
    await add(store, *mistaken, expires_in_seconds=0.1 if way == "expired" else None)
    if way == "expired":
        await store.let_pass(0.15)
        await store.tasks.reap()
    for task_id in mistaken:
        await (store.tasks.remove(task_id) if way == "removed" else store.tasks.cancel(task_id))
    await add(store, "meant")

    assert "meant" in (await drained(store))[:2]


async def test_what_is_left_waiting_keeps_its_turns(store: Store) -> None:
    """Who takes back one of many tasks gains no turn for the next."""
    await add(store, *(f"bob-{number}" for number in range(3)), owner="bob")
    await add(store, *(f"ada-{number}" for number in range(3)))
    await store.tasks.cancel("ada-1")
    await add(store, "ada-3")

    assert (await drained(store))[-1] == "ada-3"


async def test_priority_beats_turn_and_age(store: Store) -> None:
    """A higher priority goes first, whoever's turn it is; among equals the owners take turns."""
    await add(store, "idle", priority=-9, owner="cyd")
    await add(store, "plain-0", "plain-1")
    await add(store, "bob", owner="bob")
    await add(store, "high-0", "high-1", priority=1)
    await add(store, "urgent", priority=9, owner="eve")

    assert await drained(store) == ["urgent", "high-0", "high-1", "plain-0", "bob", "plain-1", "idle"]


async def test_priority_among_those_held_back(store: Store) -> None:
    """What an owner's limit holds back starts by its priority, also when it came later."""
    store = limited(store, max_running_per_caller=1)
    await add(store, "first", "plain-0", "plain-1")
    running = await claim(store)
    assert await claim(store) == []
    await add(store, "urgent", priority=5)
    assert await claim(store) == []
    await finish(store, *running)

    assert await drained(store) == ["urgent", "plain-0", "plain-1"]


# Times


async def test_scheduled_task_waits(store: Store) -> None:
    """A task does not start before its time, and is in nobody's way."""
    await add(store, "later", not_before=store.time() + LONG)
    await add(store, "now")
    await store.tasks.reap()

    assert await place(store, "later") is None
    assert ids(await claim(store)) == ["now"]


async def test_scheduled_task_starts_at_its_time(store: Store) -> None:
    """A worker that waits gets a task when its time has come and the reaper has looked, and no earlier."""
    await add(store, "later", not_before=store.time() + 0.3)
    store.lease.renew("w1", seconds=LONG)
    async with asyncio.timeout(20):
        waiting = asyncio.create_task(store.tasks.claim("w1", limit=1, wait_seconds=LONG))

        async def is_woken() -> bool:
            await store.let_pass(0.05)
            await store.tasks.reap()
            await asyncio.sleep(0)
            return waiting.done()

        await until(is_woken)
        [task] = await waiting

    assert task.id == "later"
    assert task.not_before is not None
    assert (task.started_at or 0) >= round(task.not_before, 3)


async def test_time_in_the_past_is_now(store: Store) -> None:
    """A task whose time has passed starts at once."""
    await add(store, "a", not_before=1.0)

    assert await place(store, "a") == Place(1)
    assert ids(await claim(store)) == ["a"]


async def test_scheduled_task_is_cancelled_and_removed(store: Store) -> None:
    """A task that waits for its time can be cancelled or removed, and does not start when it comes."""
    await add(store, "a", "b", not_before=store.time() + 0.2)
    cancelled = await store.tasks.cancel("a")
    await store.tasks.remove("b")
    await store.let_pass(0.3)
    await store.tasks.reap()

    assert await claim(store) == []
    assert cancelled == Cancelled(await get(store, "a"), has_ended=True)


async def test_waited_too_long(store: Store) -> None:
    """A task that waited longer than it may ends as timed out, never started, also when no worker lives."""
    await add(store, "impatient", expires_in_seconds=0.1)
    await add(store, "patient", expires_in_seconds=LONG)
    await store.let_pass(0.15)
    await store.tasks.reap()
    task = await get(store, "impatient")

    assert (task.state, task.attempt, task.started_at) == (State.TIMED_OUT, 0, None)
    assert task.outcome == Outcome(
        State.TIMED_OUT, error="The task waited longer than it was allowed to, and was not run."
    )
    assert ids(await claim(store)) == ["patient"]


@pytest.mark.parametrize("counted", [True, False])
async def test_the_time_of_a_run_is_no_waiting(store: Store, counted: bool) -> None:  # noqa: FBT001 - a parameter of pytest
    """A task that was given back after a long run may wait as long as it had left; then it ends, and says so."""
    await add(store, "a", expires_in_seconds=1.0, max_attempts=3)
    [task] = await claim(store)
    await store.let_pass(1.2)
    await store.tasks.release(task, counted=counted)
    await store.tasks.reap()
    assert await state_of(store, "a") is State.QUEUED
    await store.let_pass(1.2)
    await store.tasks.reap()

    error = "The task waited longer than it was allowed to before it was run again."
    assert (await get(store, "a")).outcome == Outcome(State.TIMED_OUT, error=error)


async def test_waited_too_long_is_not_claimed(store: Store) -> None:
    """A worker does not get what waited too long, though nobody has looked; nor does it stand in the way."""
    await add(store, *(f"late-{number}" for number in range(5)), expires_in_seconds=0.1)
    await add(store, "patient")
    await store.let_pass(0.15)

    assert ids(await claim(store, limit=1)) == ["patient"]
    assert {await state_of(store, f"late-{number}") for number in range(5)} == {State.TIMED_OUT}


async def test_patience_ends_while_held_back_or_scheduled(store: Store) -> None:
    """The time to wait runs on while the owner's limit or a time holds a task back."""
    store = limited(store, max_running_per_caller=1)
    await add(store, "running")
    await claim(store)
    await add(store, "held back", expires_in_seconds=0.1)
    await add(store, "scheduled", expires_in_seconds=0.1, not_before=store.time() + LONG)
    await claim(store)
    await store.let_pass(0.15)
    await store.tasks.reap()

    assert await state_of(store, "held back") is State.TIMED_OUT
    assert await state_of(store, "scheduled") is State.TIMED_OUT


async def test_started_task_has_been_patient_enough(store: Store) -> None:
    """What has started in time runs on."""
    found: list[Task] = []

    async def has_started_in_time() -> bool:
        await add(store, f"try-{store.time()}", expires_in_seconds=0.3)
        found.extend(await claim(store))
        return bool(found)

    await until(has_started_in_time)
    await store.let_pass(0.4)
    await store.tasks.reap()

    assert await get(store, found[0].id) == found[0]
    assert await store.tasks.finish(found[0], SUCCEEDED)


# Places


async def test_place_counts_down(store: Store) -> None:
    """Each start ahead of a task brings it one nearer; a task that does not wait has no place."""
    await add(store, "a", "b", "c")
    found: list[Place | None] = [await place(store, "c")]
    for _ in range(3):
        await claim(store, limit=1)
        found.append(await place(store, "c"))

    assert [here and here.position for here in found] == [3, 2, 1, None]


async def test_place_is_told_when_it_is_added(store: Store) -> None:
    """A task is told its place as it is queued: behind its owner's, beside the others', by priority."""
    await add(store, "a", "b")
    bob = await store.tasks.add(a_task("bob", owner="bob"))
    urgent = await store.tasks.add(a_task("urgent", priority=3))

    assert [task.place and task.place.position for task in (bob, urgent)] == [2, 1]
    assert (await place(store, "b") or Place(0)).position == 4


async def test_nobody_knows_how_long(store: Store) -> None:
    """While no worker is alive, nobody knows when a task will start; nor before a first run has ended."""
    await add(store, "a", "b")
    assert await place(store, "a") == Place(1, None)
    store.lease.renew("w1", seconds=LONG, slots=1)

    assert await place(store, "a") == Place(1, 0)
    assert await place(store, "b") == Place(2, None)
    await store.tasks.leave("w1")
    assert await place(store, "a") == Place(1, None)


async def test_expected_wait_follows_the_runs_before(store: Store) -> None:
    """With all slots taken the wait is what runs took, shared by the slots; a limit counts as fewer slots."""
    await add(store, *(f"task-{number}" for number in range(8)))
    store.lease.renew("w1", seconds=LONG, slots=2)
    first, _ = await store.tasks.claim("w1", limit=2, wait_seconds=0)
    await store.let_pass(0.2)
    await finish(store, first)
    took = round(((await get(store, "task-0")).finished_at or 0) - (first.started_at or 0), 3)

    assert await place(store, "task-2") == Place(1, 0)
    waits = [(await place(store, f"task-{number}") or Place(0)).expected_wait for number in (3, 4, 7)]
    assert waits == pytest.approx([took / 2, took, took * 2.5], abs=0.002)
    store = limited(store, max_running=1)
    await claim(store, "w1", limit=0)
    store.lease.renew("w1", seconds=LONG, slots=2)
    assert (await place(store, "task-3") or Place(0)).expected_wait == pytest.approx(took * 2, abs=0.002)


# How long an end is kept


async def test_retention_of_each_state(store: Store) -> None:
    """How long a task is kept can hang on how it ended; what is not named follows the rule for all."""
    await add(store, "succeeded", "failed", retention_seconds=0, retention={State.FAILED: LONG})
    await add(store, "kept", retention_seconds=LONG, retention={State.CANCELLED: 0.0})
    for task in await claim(store):
        await store.tasks.finish(task, FAILED if task.id == "failed" else Outcome(State.SUCCEEDED))
        if task.id == "succeeded":
            await store.let_pass(0.005)
    await add(store, "cancelled", retention_seconds=LONG, retention={State.CANCELLED: 0.0})
    await store.tasks.cancel("cancelled")

    assert await store.tasks.expired(limit=10) == ["succeeded", "cancelled"]


async def test_only_the_newest_are_kept(store: Store) -> None:
    """Beyond the most that are kept of a state, the oldest ends go, however young; other states stay."""
    await add(store, *(f"task-{number}" for number in range(6)), retention_seconds=LONG)
    await store.tasks.cancel("task-5")
    order = [4, 0, 3, 1, 2]
    running = {task.id: task for task in await claim(store)}
    for number in order:
        await store.let_pass(0.005)
        await finish(store, running[f"task-{number}"])

    counts = {State.SUCCEEDED: 2, State.CANCELLED: 1, State.FAILED: 0}
    assert await store.tasks.expired(limit=10) == []
    assert await store.tasks.expired(limit=10, counts=counts) == ["task-4", "task-0", "task-3"]
    assert await store.tasks.expired(limit=2, counts=counts) == ["task-4", "task-0"]
    for task_id in ("task-4", "task-0", "task-3"):
        await store.tasks.remove(task_id)
    assert await store.tasks.expired(limit=10, counts=counts) == []


async def test_what_waited_too_long_is_told_once(store: Store) -> None:
    """The next reaping tells of those that ended for waiting too long, also of those that a claim met; once."""
    await add(store, "met by a claim", expires_in_seconds=0.1)
    await store.let_pass(0.15)
    await claim(store)
    await add(store, "met by the reaper", expires_in_seconds=0.1)
    await store.let_pass(0.15)
    told = await store.tasks.reap()

    assert {task.id: task.state for task in told} == {
        "met by a claim": State.TIMED_OUT,
        "met by the reaper": State.TIMED_OUT,
    }
    assert await store.tasks.reap() == []
