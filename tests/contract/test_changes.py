"""The port Changes against every store: who watches a task is told of all that happens to it, at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator

import pytest
from msgspec.structs import replace
from tests.conftest import Store
from tests.servers import RedisServer, until

from script_runner.adapters.redis import RedisChanges, RedisLease, RedisLogs, RedisTasks
from script_runner.ports import CLOSED, ENDED, MOVED, Changes
from script_runner.streams import LogChunk
from script_runner.task import Outcome, State, Task

pytestmark = pytest.mark.anyio

LONG = 600.0
SUCCEEDED = Outcome(State.SUCCEEDED, exit_code=0)


class Ear:
    """What was told of one task."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def __call__(self, words: Collection[str]) -> None:
        self.words += words

    async def hears(self, *words: str) -> None:
        """Return when all these were told."""

        async def has_heard() -> bool:
            return set(words) <= set(self.words)

        await until(has_heard)


@contextlib.asynccontextmanager
async def listening(changes: Changes, task_id: str = "a", *, logs: bool = False) -> AsyncIterator[Ear]:
    ear = Ear()
    async with changes.watch(task_id, ear, logs=logs):
        yield ear


async def add(store: Store, task_id: str = "a", **changes: object) -> None:
    await store.tasks.add(replace(Task(id=task_id, owner="ada", arguments={}), **changes))


async def claim(store: Store, worker: str = "w1") -> Task:
    store.lease.renew(worker, seconds=LONG)
    [task] = await store.tasks.claim(worker, limit=1, wait_seconds=0)
    return task


async def test_a_task_that_is_queued_moves_nowhere(store: Store) -> None:
    """Who watches an id before its task is added hears of the start, and not of the end before it has come."""
    async with listening(store.changes) as ear:
        await add(store)
        task = await claim(store)
        await ear.hears(MOVED)
        assert ENDED not in ear.words
        await store.tasks.finish(task, SUCCEEDED)
        await ear.hears(ENDED)

    assert set(ear.words) == {MOVED, ENDED}


@pytest.mark.parametrize("ending", ["finished", "cancelled", "removed", "lost", "expired"])
async def test_every_way_to_the_end_is_told(store: Store, ending: str) -> None:
    """However a task ends, or is removed, it is told as an end."""
    await add(store, expires_in_seconds=0.05 if ending == "expired" else None)
    task = await claim(store) if ending in ("finished", "lost") else None
    async with listening(store.changes) as ear:
        match ending:
            case "finished":
                assert task
                await store.tasks.finish(task, SUCCEEDED)
            case "cancelled":
                await store.tasks.cancel("a")
            case "removed":
                await store.tasks.remove("a")
            case "lost":
                await store.tasks.leave("w1")
                await store.tasks.reap()
            case "expired":
                await store.let_pass(0.1)
                await store.tasks.reap()
        await ear.hears(MOVED, ENDED)


async def test_a_task_that_is_given_back_moves(store: Store) -> None:
    """Back in the queue is another state, and no end."""
    await add(store, max_attempts=2)
    task = await claim(store)
    async with listening(store.changes) as ear:
        await store.tasks.release(task, counted=True)
        await ear.hears(MOVED)

    assert ENDED not in ear.words


async def test_words_of_a_script_are_told_by_stream(store: Store) -> None:
    """A chunk of a log is told by the name of its stream to those who want to know of logs."""
    await add(store)
    task = await claim(store)
    async with listening(store.changes, logs=True) as ear:
        await store.logs.append(task, "stderr", LogChunk(0, b"said"))
        await ear.hears("stderr")

    assert set(ear.words) == {"stderr"}


async def test_each_hears_of_its_own_task(store: Store) -> None:
    """All who watch a task are told, and nobody else."""
    await add(store, "a")
    await add(store, "b")
    async with (
        listening(store.changes, "a") as first,
        listening(store.changes, "a") as second,
        listening(store.changes, "b") as other,
    ):
        await store.tasks.cancel("a")
        await first.hears(ENDED)
        await second.hears(ENDED)
        await store.tasks.cancel("b")
        await other.hears(ENDED)

    assert other.words == [MOVED, ENDED]


async def test_nothing_is_told_after_leaving(store: Store) -> None:
    """Who has left hears nothing more, also when another goes on watching."""
    await add(store)
    async with listening(store.changes) as stays:
        async with listening(store.changes) as leaves:
            pass
        await store.tasks.cancel("a")
        await stays.hears(ENDED)

    assert leaves.words == []


async def test_one_who_comes_back_is_told_again(store: Store) -> None:
    """Watching a task once more, at once, misses nothing."""
    await add(store)
    for _ in range(3):
        async with listening(store.changes):
            pass
    async with listening(store.changes) as ear:
        await store.tasks.cancel("a")
        await ear.hears(ENDED)


async def test_what_happens_as_one_begins_to_watch_is_not_lost(store: Store) -> None:
    """Of many tasks that end at any moment around the beginning of watching, each end is either read or told."""

    async def sees_the_end(task_id: str) -> None:
        async with listening(store.changes, task_id) as ear:
            task = await store.tasks.get(task_id)
            if task and not task.state.is_final:
                await ear.hears(ENDED)

    ids = [f"t{number}" for number in range(60)]
    for task_id in ids:
        await add(store, task_id)

    await asyncio.gather(*(asyncio.gather(sees_the_end(task_id), store.tasks.cancel(task_id)) for task_id in ids))


async def test_those_who_are_dismissed_hear_so(store: Store) -> None:
    """Who watches, and who comes later, is told that nothing more will be told."""
    async with listening(store.changes) as early:
        store.changes.dismiss()
        async with listening(store.changes) as late:
            pass

    assert early.words == late.words == [CLOSED]


async def test_a_cancelled_watcher_leaves_nothing(store: Store) -> None:
    """Who is cancelled while it begins to watch, or watches, is forgotten."""

    async def watch(task_id: str) -> None:
        async with listening(store.changes, task_id):
            await asyncio.sleep(LONG)

    watchers = [asyncio.create_task(watch(f"t{number % 7}")) for number in range(50)]
    for watcher in watchers[::2]:
        await asyncio.sleep(0)
        watcher.cancel()

    async def are_watched() -> bool:
        return len(store.changes._watching) == 7  # type: ignore[attr-defined]

    await until(are_watched)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)

    assert store.changes._watching == {}  # type: ignore[attr-defined]


# What is Redis' own


@pytest.fixture
def own_redis(redis_binary_path: str) -> Iterator[RedisServer]:
    with RedisServer(redis_binary_path) as server:
        yield server


@contextlib.asynccontextmanager
async def redis_parts(url: str, namespace: str = "n") -> AsyncIterator[tuple[RedisTasks, RedisLogs, RedisChanges]]:
    parts = RedisTasks(url, namespace), RedisLogs(url, namespace), RedisChanges(url, namespace)
    try:
        yield parts
    finally:
        for part in parts:
            await part.close()


async def test_an_end_while_nobody_could_be_told_is_told_afterwards(own_redis: RedisServer) -> None:
    """A connection that breaks, and an end before there is a new one: it is told all the same."""
    async with redis_parts(own_redis.url) as (tasks, _, changes):
        await tasks.add(Task(id="a", owner="ada", arguments={}))
        async with listening(changes) as ear:
            with contextlib.closing(own_redis.client()) as outside:
                outside.client_kill_filter(_type="pubsub")
                await tasks.cancel("a")
            await ear.hears(ENDED)


async def test_redis_killed_and_restarted_loses_no_end(own_redis: RedisServer) -> None:
    """Who watches through a restart of Redis is told of what comes after it."""
    async with redis_parts(own_redis.url) as (tasks, _, changes):
        for task_id in ("a", "b"):
            await tasks.add(Task(id=task_id, owner="ada", arguments={}))
        async with listening(changes, "a") as early:
            own_redis.kill()
            async with listening(changes, "b") as late:  # comes while there is no Redis
                own_redis.start()
                for task_id in ("a", "b"):
                    await tasks.cancel(task_id)
                await early.hears(ENDED)
                await late.hears(ENDED)


async def test_an_end_that_nobody_published_is_found(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of an older version publishes nothing: its outcome is found by looking."""
    monkeypatch.setattr("script_runner.adapters.redis.changes.LOOK_SECONDS", (0.2, 0.3))
    async with redis_parts(own_redis.url) as (tasks, _, changes):
        await tasks.add(Task(id="a", owner="ada", arguments={}))
        async with listening(changes) as ear:
            with contextlib.closing(own_redis.client()) as outside:
                outside.hset("{n}:1:task:a", "state", "succeeded")
            await ear.hears(ENDED)


async def test_a_user_who_may_use_no_channel_works_all_the_same(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With rules (ACL) that allow keys and no channel: tasks live as ever, ends are found, and it is said once."""
    with contextlib.closing(own_redis.client()) as outside:
        outside.acl_setuser(
            "lab",
            enabled=True,
            passwords=["+word"],
            keys=["*"],
            categories=["+@all"],
            channels=["elsewhere"],
            reset=True,
        )
    url = own_redis.url.replace("redis://", "redis://lab:word@")
    async with redis_parts(url) as (tasks, _, changes):
        await tasks.add(Task(id="a", owner="ada", arguments={}))
        async with listening(changes) as ear:
            await tasks.cancel("a")
            await ear.hears(ENDED)

    assert [record.message.count("NOPERM") for record in caplog.records] == [1]


async def test_words_are_told_after_a_lost_connection(own_redis: RedisServer) -> None:
    """What a script says while there is no connection is told with the next one."""
    async with redis_parts(own_redis.url) as (tasks, logs, changes):
        await tasks.add(Task(id="a", owner="ada", arguments={}))
        with contextlib.closing(RedisLease(own_redis.url, "n")) as lease:
            lease.renew("w1", seconds=LONG)
        [task] = await tasks.claim("w1", limit=1, wait_seconds=0)
        async with listening(changes, logs=True) as ear:
            with contextlib.closing(own_redis.client()) as outside:
                outside.client_kill_filter(_type="pubsub")
            await logs.append(task, "stdout", LogChunk(0, b"said"))
            await ear.hears("stdout")


async def test_a_connection_is_there_while_somebody_watches(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with the first watcher and goes some time after the last; one channel, and one a log."""
    monkeypatch.setattr("script_runner.adapters.redis.changes.TICK_SECONDS", 0.05)
    monkeypatch.setattr("script_runner.adapters.redis.changes.IDLE_SECONDS", 0.2)
    with contextlib.closing(own_redis.client()) as outside:

        def is_listened_to() -> set[str]:
            return {str(channel) for channel in outside.pubsub_channels()}

        async with redis_parts(own_redis.url) as (_, _, changes):
            assert outside.info("clients")["connected_clients"] == 1
            for _ in range(2):
                async with listening(changes), listening(changes, "b"), listening(changes, "c", logs=True):
                    assert is_listened_to() == {"{n}:1:changes", "{n}:1:changes:c"}

                async def is_no_log_followed() -> bool:
                    return is_listened_to() <= {"{n}:1:changes"}

                async def is_quiet() -> bool:
                    return not is_listened_to() and not outside.client_list(_type="pubsub")

                await until(is_no_log_followed)
                await until(is_quiet)


async def test_a_connection_that_stands_still_is_given_up(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that says nothing, not even to a PING, is asked anew, and what happened meanwhile is told."""
    monkeypatch.setattr("script_runner.adapters.redis.changes.TICK_SECONDS", 0.05)
    monkeypatch.setattr("script_runner.adapters.redis.changes.PING_SECONDS", 0.2)
    async with redis_parts(own_redis.url) as (tasks, _, changes):
        await tasks.add(Task(id="a", owner="ada", arguments={}))
        async with listening(changes) as ear:
            own_redis.pause()

            async def is_away() -> bool:
                return changes._is_away

            await until(is_away)
            own_redis.resume()
            await tasks.cancel("a")
            await ear.hears(ENDED)
