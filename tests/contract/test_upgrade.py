"""Older and newer processes on one Redis: a record of the newer ones is left alone by the older."""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import pytest
from tests.servers import RedisServer

from script_runner.adapters.redis import RedisLease, RedisTasks
from script_runner.errors import Code, Error
from script_runner.ports import Unwatched
from script_runner.task import Outcome, State, Task

pytestmark = pytest.mark.anyio

LONG = 600.0


def a_task(task_id: str, **changes: Any) -> Task:
    return Task(id=task_id, owner="ada", arguments={}, **changes)


@pytest.fixture
async def older(redis_server: RedisServer, namespace: str) -> AsyncIterator[RedisTasks]:
    tasks = RedisTasks(redis_server.url, namespace)
    yield tasks
    await tasks.close()


@pytest.fixture
async def newer(redis_server: RedisServer, namespace: str) -> AsyncIterator[RedisTasks]:
    """A process of the next version, with the leases of the workers old and new."""
    tasks = RedisTasks(redis_server.url, namespace, newest=2)
    with contextlib.closing(RedisLease(redis_server.url, namespace)) as lease:
        lease.renew("old", seconds=LONG)
        lease.renew("new", seconds=LONG)
    yield tasks
    await tasks.close()


async def test_newer_task_is_put_aside(
    older: RedisTasks, newer: RedisTasks, caplog: pytest.LogCaptureFixture
) -> None:
    """An older worker passes over what it does not understand, says so once, and the newer one gets it."""
    await newer.add(a_task("newer"))
    await older.add(a_task("older"))
    with caplog.at_level(logging.WARNING):
        assert [task.id for task in await older.claim("old", limit=9, wait_seconds=0)] == ["older"]
        await older.claim("old", limit=9, wait_seconds=0)

    assert [record.getMessage().split()[1] for record in caplog.records] == ["newer"]
    assert [task.id for task in await newer.claim("new", limit=9, wait_seconds=0)] == ["newer"]


async def test_newer_task_is_not_told(older: RedisTasks, newer: RedisTasks) -> None:
    """An older process says that it cannot tell of a newer task, and leaves it out of a listing."""
    await newer.add(a_task("newer"))
    await older.add(a_task("older"))
    with pytest.raises(Error) as caught:
        await older.get("newer")

    assert caught.value.code is Code.UNAVAILABLE
    page = await older.list("ada", states=(), cursor=None, limit=10)
    assert [task.id for task in page.tasks] == ["older"]


async def test_newer_task_is_no_failure_of_redis(
    redis_server: RedisServer, namespace: str, newer: RedisTasks
) -> None:
    """When an older process cannot tell of a newer task, Redis is not counted as having failed."""
    await newer.add(a_task("newer"))
    watch = Mock(Unwatched())
    older = RedisTasks(redis_server.url, namespace, watch=watch)
    with pytest.raises(Error):
        await older.get("newer")
    await older.close()

    watch.store_failed.assert_not_called()


async def test_newer_task_is_not_settled(older: RedisTasks, newer: RedisTasks) -> None:
    """What a dead newer worker held is settled by a newer process only."""
    await newer.add(a_task("newer"))
    await newer.claim("new", limit=1, wait_seconds=0)
    await newer.leave("new")

    assert await older.reap() == []
    assert [(task.id, task.state) for task in await newer.reap()] == [("newer", State.LOST)]


async def test_newer_end_is_not_expired(older: RedisTasks, newer: RedisTasks) -> None:
    """What has ended is named for removal by a newer process only, by age and by count."""
    await newer.add(a_task("newer", retention_seconds=0))
    [running] = await newer.claim("new", limit=1, wait_seconds=0)
    await newer.finish(running, Outcome(State.SUCCEEDED))
    counts = {State.SUCCEEDED: 0}

    assert await older.expired(limit=10, counts=counts) == []
    assert set(await newer.expired(limit=10, counts=counts)) == {"newer"}


async def test_newer_process_understands_older_tasks(older: RedisTasks, newer: RedisTasks) -> None:
    """What an older process queued is run and told by a newer one."""
    await older.add(a_task("older"))
    [running] = await newer.claim("new", limit=1, wait_seconds=0)

    assert running.id == "older"
    assert await newer.finish(running, Outcome(State.SUCCEEDED))
    ended = await older.get("older")
    assert ended is not None
    assert ended.state is State.SUCCEEDED


@pytest.mark.parametrize("change", ["cancel", "remove"])
async def test_newer_task_is_not_changed(older: RedisTasks, newer: RedisTasks, change: str) -> None:
    """An older process neither cancels nor removes a newer task."""
    await newer.add(a_task("newer"))
    with contextlib.suppress(Error):
        await (older.cancel("newer") if change == "cancel" else older.remove("newer"))

    task = await newer.get("newer")
    assert task is not None
    assert task.state is State.QUEUED
