"""How much there is of everything, against every store."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from tests.conftest import Clock, Store
from tests.servers import RedisServer

from script_runner.adapters.memory import MemoryTasks
from script_runner.adapters.redis import RedisTasks
from script_runner.ports import LATELY_SECONDS, Figures, Limits
from script_runner.task import Outcome, State, Task

pytestmark = pytest.mark.anyio

LONG = 600.0
"""A lease, or a wait, that no test sees the end of."""

SUCCEEDED = Outcome(State.SUCCEEDED, exit_code=0)
NOTHING = dict.fromkeys((state for state in State if state.is_final), 0)


async def add(store: Store, *ids: str, **changes: Any) -> None:
    for task_id in ids:
        await store.tasks.add(structs.replace(Task(id=task_id, owner="ada", arguments={}), **changes))


async def figures(store: Store) -> Figures:
    """What there is, the age of the oldest left out: it is another at every look."""
    return replace(await store.tasks.figures(), oldest_seconds=0.0)


async def test_nothing_is_there(store: Store) -> None:
    """Of an empty store all figures are 0."""
    assert await store.tasks.figures() == Figures(lately=NOTHING)


async def test_what_waits_runs_and_has_ended(store: Store) -> None:
    """Tasks count by their state, those that wait for their time apart, and slots with their workers."""
    await add(store, "a", "b", "c", "d")
    await add(store, "e", not_before=store.time() + LONG)
    store.lease.renew("w1", seconds=LONG, slots=3)
    store.lease.renew("w2", seconds=LONG, slots=2)
    first, _ = await store.tasks.claim("w1", limit=2, wait_seconds=0)
    await store.tasks.finish(first, SUCCEEDED)
    await store.tasks.cancel("c")

    assert await figures(store) == Figures(
        queued=1,
        scheduled=1,
        running=1,
        backlog=2,
        workers=2,
        slots=5,
        lately={**NOTHING, State.SUCCEEDED: 1, State.CANCELLED: 1},
    )


async def test_the_oldest_that_waits(store: Store) -> None:
    """The age of the oldest is counted from its coming, and ends with its start."""
    await add(store, "a")
    await store.let_pass(0.3)
    between = store.time()
    await add(store, "b")
    with_both = (await store.tasks.figures()).oldest_seconds
    store.lease.renew("w1", seconds=LONG)
    await store.tasks.claim("w1", limit=1, wait_seconds=0)
    with_the_younger = (await store.tasks.figures()).oldest_seconds

    assert with_both > 0.25
    assert with_the_younger <= store.time() - between + 0.001


async def test_waiting_for_its_time_is_no_waiting(store: Store) -> None:
    """A task with a start time is not old before it, and from then on ages from it; others before it count on."""
    start = store.time() + 0.3
    await add(store, "a", not_before=start)
    before = (await store.tasks.figures()).oldest_seconds
    await store.let_pass(0.4)
    after = (await store.tasks.figures()).oldest_seconds

    assert before == 0.0
    assert 0.0 < after <= store.time() - start + 0.001


async def test_many_that_were_scheduled_before_hide_no_age(store: Store) -> None:
    """Behind a hundred tasks that wait for their time the oldest of the others is found."""
    await add(store, *(f"later-{number}" for number in range(101)), not_before=store.time() + LONG)
    await add(store, "a")
    await store.let_pass(0.2)

    assert (await store.tasks.figures()).oldest_seconds > 0.1


async def test_released_task_waits_anew(store: Store) -> None:
    """A task that was given back is as old as its return."""
    await add(store, "a")
    await store.let_pass(0.3)
    store.lease.renew("w1", seconds=LONG)
    [task] = await store.tasks.claim("w1", limit=1, wait_seconds=0)
    returned_at = store.time()
    await store.tasks.release(task, counted=False)

    assert (await store.tasks.figures()).oldest_seconds <= store.time() - returned_at + 0.001


async def test_backlog_is_what_workers_are_needed_for(store: Store) -> None:
    """More workers cannot help against a limit: what it holds back is queued, and not in the backlog."""
    limited = replace(store, tasks=store.with_limits(Limits(max_running=3)))
    await add(limited, *"abcdef")
    limited.lease.renew("w1", seconds=LONG, slots=2)
    await limited.tasks.claim("w1", limit=2, wait_seconds=0)
    now = await limited.tasks.figures()

    assert (now.queued, now.running, now.backlog) == (4, 2, 3)


async def test_backlog_leaves_out_what_a_caller_may_not_start(store: Store) -> None:
    """Tasks of a caller at its limit are queued, and once a worker has met them not in the backlog."""
    limited = replace(store, tasks=store.with_limits(Limits(max_running_per_caller=1)))
    await add(limited, *"abc")
    await add(limited, "d", owner="bob")
    limited.lease.renew("w1", seconds=LONG, slots=4)
    await limited.tasks.claim("w1", limit=4, wait_seconds=0)
    now = await limited.tasks.figures()

    assert (now.queued, now.running, now.backlog) == (2, 2, 2)


async def test_what_ended_long_ago_is_not_lately(store: Store) -> None:
    """An end counts as long as it is kept, and for an hour at most."""
    await add(store, "a")
    await store.tasks.cancel("a")
    assert (await store.tasks.figures()).lately[State.CANCELLED] == 1
    await store.tasks.remove("a")

    assert (await store.tasks.figures()).lately[State.CANCELLED] == 0


async def test_an_hour_later_it_is_forgotten() -> None:
    """After ``LATELY_SECONDS`` an end counts no more, though the task is kept."""
    clock = Clock()
    tasks = MemoryTasks(clock)
    await tasks.add(Task(id="a", owner="ada", arguments={}))
    await tasks.cancel("a")
    clock.now += LATELY_SECONDS + 1

    assert (await tasks.figures()).lately[State.CANCELLED] == 0


async def test_an_hour_later_it_is_forgotten_in_redis(redis_server: RedisServer, namespace: str) -> None:
    """The same in Redis, whose clock is nobody's to move: its note of the end is made older."""
    tasks = RedisTasks(redis_server.url, namespace)
    await tasks.add(Task(id="a", owner="ada", arguments={}))
    await tasks.cancel("a")
    with contextlib.closing(redis_server.client()) as outside:
        outside.zincrby(f"{{{namespace}}}:1:cancelled", -1000 * (LATELY_SECONDS + 1), "a")
        figures = await tasks.figures()
    await tasks.close()

    assert figures.lately[State.CANCELLED] == 0
