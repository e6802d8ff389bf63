"""A failover to a replica: what was answered is there, what runs is not started again, what is missing is said."""

import contextlib
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass

import pytest
from tests.servers import HOST, Proxy, RedisServer, until

from script_runner.adapters.redis import RedisLease, RedisTasks
from script_runner.errors import Code, Error
from script_runner.task import Outcome, State, Task

pytestmark = pytest.mark.anyio

LONG = 600.0
LEASE = 2.0
SUCCEEDED = Outcome(State.SUCCEEDED, exit_code=0)


def a_task(task_id: str) -> Task:
    return Task(id=task_id, owner="ada", arguments={}, max_attempts=2)


@dataclass(frozen=True, slots=True)
class Pair:
    """A server and the replica that follows it."""

    master: RedisServer
    replica: RedisServer

    def promote(self) -> None:
        """The replica follows nobody any more."""
        with contextlib.closing(self.replica.client()) as client:
            client.replicaof("NO", "ONE")

    async def has_synced(self) -> bool:
        with contextlib.closing(self.replica.client()) as client:
            return str(client.info("replication").get("master_link_status")) == "up"

    async def has_followed(self) -> bool:
        """Whether the replica has all that the master has."""
        with contextlib.closing(self.replica.client()) as ours, contextlib.closing(self.master.client()) as theirs:
            told = [client.info("replication")["master_repl_offset"] for client in (ours, theirs)]
        return bool(told[0] == told[1])


@pytest.fixture(params=["redis", "valkey"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    binary: str = request.getfixturevalue(f"{request.param}_server").binary
    with RedisServer(binary) as master, RedisServer(binary, settings=following(master)) as replica:
        yield Pair(master, replica)


def following(server: RedisServer) -> Mapping[str, str]:
    """The settings of a replica."""
    return {"replicaof": f"{HOST} {server.port}", "repl-diskless-sync-delay": "0"}


def renew(server: RedisServer, worker: str = "w1", seconds: float = LONG) -> None:
    lease = RedisLease(server.url, "test")
    lease.renew(worker, seconds=seconds)
    lease.close()


async def moved(tasks: RedisTasks, pair: Pair) -> RedisTasks:
    """The adapter of the same process, which reaches the replica from now on."""
    after = RedisTasks(pair.replica.url, "test")
    after._claims = tasks._claims
    await tasks.close()
    return after


async def test_what_was_answered_is_there(pair: Pair) -> None:
    """What add, claim and finish returned is known to the replica that takes over."""
    await until(pair.has_synced)
    tasks = RedisTasks(pair.master.url, "test", replicas=1)
    renew(pair.master)
    for task_id in ("finished", "running", "queued"):
        await tasks.add(a_task(task_id))
    finished, running = await tasks.claim("w1", limit=2, wait_seconds=0)
    await tasks.finish(finished, SUCCEEDED)
    pair.master.kill()
    pair.promote()
    tasks = await moved(tasks, pair)

    found = [await tasks.get(task_id) for task_id in ("finished", "running", "queued")]
    assert [task and task.state for task in found] == [State.SUCCEEDED, State.RUNNING, State.QUEUED]
    assert await tasks.finish(running, SUCCEEDED)
    await tasks.close()


async def test_a_full_server_takes_ends_that_replicas_follow(pair: Pair) -> None:
    """While there is no memory left, ends and cancels are recorded, acknowledged and told all the same."""
    await until(pair.has_synced)
    tasks = RedisTasks(pair.master.url, "test", replicas=1)
    renew(pair.master)
    for task_id in ("ended", "stopped"):
        await tasks.add(a_task(task_id))
    ended, stopped = await tasks.claim("w1", limit=2, wait_seconds=0)
    with contextlib.closing(pair.master.client()) as outside:
        outside.config_set("maxmemory", "1")

    assert await tasks.finish(ended, SUCCEEDED)
    assert await tasks.cancel(stopped.id)
    other = RedisTasks(pair.master.url, "test", replicas=1)  # which has not seen the end itself
    found = await other.get("ended")
    assert found
    assert found.state is State.SUCCEEDED
    await other.close()
    await tasks.close()


async def test_nothing_is_acknowledged_alone(pair: Pair) -> None:
    """While no replica follows, nothing is acknowledged; when it follows again, what is repeated is."""
    await until(pair.has_synced)
    tasks = RedisTasks(pair.master.url, "test", replicas=1)
    pair.replica.pause()
    with pytest.raises(Error) as caught:
        await tasks.add(a_task("a"))
    pair.replica.resume()

    assert caught.value.code is Code.UNAVAILABLE

    async def is_acknowledged() -> bool:
        with contextlib.suppress(Error):
            return (await tasks.add(a_task("a"))).id == "a"
        return False

    await until(is_acknowledged)
    await tasks.close()


@pytest.mark.parametrize("is_followed", [True, False], ids=["followed", "alone"])
async def test_failover_between_writing_and_waiting(pair: Pair, is_followed: bool) -> None:  # noqa: FBT001 - of the test
    """What was written on the old server is not acknowledged by replicas of the new one unless it is there too."""
    await until(pair.has_synced)
    with Proxy(pair.master.port) as proxy, contextlib.ExitStack() as servers:
        tasks = RedisTasks(proxy.url, "test", replicas=1)
        await tasks.figures()  # the connection to the old server, which the next call uses
        pair.promote()
        if is_followed:
            servers.enter_context(RedisServer(pair.master.binary, settings=following(pair.replica)))
        await until(lambda: takes_a_task(pair.replica, replicas=int(is_followed)))
        proxy._target = (HOST, pair.replica.port)
        proxy.lose_answers(b"WAIT", 1)
        answer = await id_or_code(tasks.add(a_task("a")))
        await tasks.close()

        assert proxy.losses_left == 0
        assert await knows(pair.master, "a")
        assert answer is Code.UNAVAILABLE or (is_followed and await knows(pair.replica, "a"))


async def id_or_code(adding: Awaitable[Task]) -> str:
    """The id of the task that was acknowledged, or why none was."""
    try:
        return (await adding).id
    except Error as error:
        return error.code


async def takes_a_task(server: RedisServer, *, replicas: int) -> bool:
    """Whether a task is acknowledged here; from then on the server has the script of it."""
    tasks = RedisTasks(server.url, "test", replicas=replicas)
    answer = await id_or_code(tasks.add(a_task("another")))
    await tasks.close()
    return answer == "another"


async def knows(server: RedisServer, task_id: str) -> bool:
    tasks = RedisTasks(server.url, "test")
    task = await tasks.get(task_id)
    await tasks.close()
    return task is not None


async def test_missing_claim_is_heard_before_anything_starts(pair: Pair) -> None:
    """A task whose claim the replica missed does not start again while its worker has not stopped running it."""
    await until(pair.has_synced)
    tasks = RedisTasks(pair.master.url, "test")
    renew(pair.master, "w1")
    await tasks.add(a_task("a"))
    await until(pair.has_followed)
    pair.promote()
    [running] = await tasks.claim("w1", limit=1, wait_seconds=0)
    pair.master.kill()
    tasks = await moved(tasks, pair)
    renew(pair.replica, "w2")
    await tasks.hear("w2", [])

    assert await tasks.claim("w2", limit=1, wait_seconds=0) == []
    assert (await tasks.hear("w1", [running])).taken == ["a"]
    assert await tasks.claim("w2", limit=1, wait_seconds=0) == []
    assert (await tasks.hear("w1", [])).taken == []
    assert [task.id for task in await tasks.claim("w2", limit=1, wait_seconds=0)] == ["a"]
    await tasks.close()


async def test_missing_finish_is_heard_as_left(pair: Pair) -> None:
    """A task whose end the replica missed is told to its worker as one that it holds and does not run."""
    await until(pair.has_synced)
    tasks = RedisTasks(pair.master.url, "test")
    renew(pair.master)
    await tasks.add(a_task("a"))
    [running] = await tasks.claim("w1", limit=1, wait_seconds=0)
    await until(pair.has_followed)
    pair.promote()
    await tasks.finish(running, SUCCEEDED)
    pair.master.kill()
    tasks = await moved(tasks, pair)

    assert list((await tasks.hear("w1", [])).left) == [running]
    assert await tasks.finish(running, SUCCEEDED)
    await tasks.close()


async def test_lease_whose_renewal_is_missing_is_not_over(pair: Pair) -> None:
    """A worker whose last renewal the replica missed counts as alive for a whole lease after the failover."""
    await until(pair.has_synced)
    tasks = RedisTasks(pair.master.url, "test")
    renew(pair.master, seconds=LEASE)
    await tasks.add(a_task("a"))
    await tasks.claim("w1", limit=1, wait_seconds=0)
    renewed_at = seconds(pair.master)
    while seconds(pair.master) < renewed_at + LEASE * 0.7:
        await tasks.reap()  # somebody looks all the time, so that there is no silence to wait after
    await until(pair.has_followed)
    pair.promote()
    renew(pair.master, seconds=LEASE)
    pair.master.kill()
    promoted_at = seconds(pair.replica)
    tasks = await moved(tasks, pair)

    async def is_given_up() -> bool:
        return bool(await tasks.reap())

    await until(is_given_up)
    assert seconds(pair.replica) >= promoted_at + LEASE
    await tasks.close()


def seconds(server: RedisServer) -> float:
    """The time by the clock of this server."""
    with contextlib.closing(server.client()) as client:
        whole, micros = client.time()
    return whole + micros / 1_000_000
