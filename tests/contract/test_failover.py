"""A failover to a replica: what was answered is there, what runs is not started again, what is missing is said."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.servers import RedisServer, until

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
    with RedisServer(binary) as master:
        following = {"replicaof": f"127.0.0.1 {master.port}", "repl-diskless-sync-delay": "0"}
        with RedisServer(binary, settings=following) as replica:
            yield Pair(master, replica)


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
