"""What only a real Redis can show: lost answers, outages, restarts, its keys, and the ways to reach it."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace
from tests.servers import Proxy, RedisServer, Sentinel, until

from script_runner.adapters import redis as adapter
from script_runner.adapters.memory import MemoryTasks
from script_runner.adapters.redis import RedisLease, RedisLogs, RedisTasks, check_url
from script_runner.errors import Code, Error
from script_runner.ports import Cancelled, Limits
from script_runner.streams import LogChunk
from script_runner.task import Outcome, State, Task

pytestmark = pytest.mark.anyio

LONG = 600.0
SUCCEEDED = Outcome(State.SUCCEEDED, exit_code=0)


def a_task(task_id: str = "a", **changes: Any) -> Task:
    return replace(Task(id=task_id, owner="ada", arguments={}), **changes)


def ids(tasks: Sequence[Task]) -> Sequence[str]:
    return [task.id for task in tasks]


@dataclass(frozen=True, slots=True)
class Adapter:
    """The three ports over one URL."""

    tasks: RedisTasks
    lease: RedisLease
    logs: RedisLogs


@contextlib.asynccontextmanager
async def closing(tasks: RedisTasks) -> AsyncIterator[RedisTasks]:
    try:
        yield tasks
    finally:
        await tasks.close()


@contextlib.asynccontextmanager
async def connected(url: str, namespace: str = "test", limits: Limits | None = None) -> AsyncIterator[Adapter]:
    it = Adapter(RedisTasks(url, namespace, limits), RedisLease(url, namespace), RedisLogs(url, namespace))
    try:
        yield it
    finally:
        await it.tasks.close()
        await it.logs.close()
        it.lease.close()


@pytest.fixture
def own_server(redis_binary_path: str) -> Iterator[RedisServer]:
    """A server for one test alone, which may end it, pause it and look at all its keys."""
    with RedisServer(redis_binary_path) as server:
        yield server


async def a_whole_life(it: Adapter) -> None:
    """A task is added, claimed by a worker that waits for it, speaks, and ends."""
    it.lease.renew("w1", seconds=LONG)
    async with asyncio.timeout(20):
        waiting = asyncio.create_task(it.tasks.claim("w1", limit=1, wait_seconds=LONG))
        await it.tasks.add(a_task())
        [task] = await waiting
    await it.logs.append(task, "stdout", LogChunk(0, b"said"))
    assert (await it.logs.read(task.id, "stdout", offset=0, limit=10)).data == b"said"
    assert await it.tasks.finish(task, SUCCEEDED)
    ended = await it.tasks.get(task.id)
    assert ended is not None
    assert ended.state is State.SUCCEEDED


# Lost answers


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("losses", [1, 2])
async def test_lost_claim_is_asked_again(proxy: Proxy, namespace: str, losses: int) -> None:
    """A claim whose answer was lost gets the same tasks when it is asked again, in the same attempt."""
    async with connected(proxy.url, namespace) as it:
        it.lease.renew("w1", seconds=LONG)
        assert await it.tasks.claim("w1", limit=2, wait_seconds=0) == []
        for task_id in ("a", "b", "c"):
            await it.tasks.add(a_task(task_id))
        proxy.lose_answers(b"EVALSHA", losses)
        with pytest.raises(Error) if losses > 1 else contextlib.nullcontext():
            claimed = await it.tasks.claim("w1", limit=2, wait_seconds=0)
        if losses > 1:
            claimed = await it.tasks.claim("w1", limit=2, wait_seconds=0)

        assert proxy.losses_left == 0
        assert [(task.id, task.attempt) for task in claimed] == [("a", 1), ("b", 1)]
        assert ids(await it.tasks.claim("w1", limit=2, wait_seconds=0)) == ["c"]


async def test_lost_claim_gives_no_task_that_was_settled(proxy: Proxy, namespace: str) -> None:
    """What a lost answer spoke of is not given again once the reaper has settled it."""
    async with connected(proxy.url, namespace) as it:
        it.lease.renew("w1", seconds=LONG)
        assert await it.tasks.claim("w1", limit=1, wait_seconds=0) == []
        await it.tasks.add(a_task("a"))
        await it.tasks.add(a_task("b"))
        proxy.lose_answers(b"EVALSHA", 2)
        with pytest.raises(Error):
            await it.tasks.claim("w1", limit=1, wait_seconds=0)
        await it.tasks.leave("w1")
        assert ids(await it.tasks.reap()) == ["a"]
        it.lease.renew("w1", seconds=LONG)

        assert ids(await it.tasks.claim("w1", limit=1, wait_seconds=0)) == ["b"]


async def test_repeated_claim_gives_what_is_still_held(redis_server: RedisServer, namespace: str) -> None:
    """A claim that is repeated after one of its tasks was finished gives the others only."""
    async with connected(redis_server.url, namespace) as it, connected(redis_server.url, namespace) as again:
        it.lease.renew("w1", seconds=LONG)
        for task_id in ("a", "b", "c"):
            await it.tasks.add(a_task(task_id))
        first, _ = await it.tasks.claim("w1", limit=2, wait_seconds=0)
        await it.tasks.finish(first, SUCCEEDED)

        assert ids(await again.tasks.claim("w1", limit=2, wait_seconds=0)) == ["b"]


async def test_late_claim_gets_none(redis_server: RedisServer, namespace: str) -> None:
    """A claim that arrives after a newer one of the same worker gets nothing."""
    async with connected(redis_server.url, namespace) as it, connected(redis_server.url, namespace) as late:
        it.lease.renew("w1", seconds=LONG)
        for task_id in ("a", "b", "c"):
            await it.tasks.add(a_task(task_id))
        for _ in range(2):
            await it.tasks.claim("w1", limit=1, wait_seconds=0)

        assert await late.tasks.claim("w1", limit=1, wait_seconds=0) == []
        assert ids(await it.tasks.claim("w1", limit=1, wait_seconds=0)) == ["c"]


async def test_lost_add_and_finish_are_asked_again(proxy: Proxy, namespace: str) -> None:
    """An add whose answer was lost queues once, and a finish stands."""
    async with connected(proxy.url, namespace) as it:
        it.lease.renew("w1", seconds=LONG)
        await it.tasks.add(a_task("a"))
        [task] = await it.tasks.claim("w1", limit=1, wait_seconds=0)
        await it.tasks.finish(replace(task, run=9), SUCCEEDED)
        proxy.lose_answers(b"EVALSHA", 1)
        await it.tasks.add(a_task("b"))
        assert proxy.losses_left == 0
        proxy.lose_answers(b"EVALSHA", 1)

        assert await it.tasks.finish(task, SUCCEEDED)
        assert proxy.losses_left == 0
        assert ids(await it.tasks.claim("w1", limit=9, wait_seconds=0)) == ["b"]


# Waiting


async def test_worker_without_lease_takes_no_wake_up(redis_server: RedisServer, namespace: str) -> None:
    """A wake-up that reaches a worker without a lease goes on to one that can run the task."""
    with contextlib.closing(redis_server.client()) as outside:

        def are_waiting(number: int) -> Callable[[], Awaitable[bool]]:
            async def count() -> bool:
                return int(outside.info("clients")["blocked_clients"]) == number

            return count

        async with connected(redis_server.url, namespace) as it, asyncio.timeout(20):
            await until(are_waiting(0))
            it.lease.renew("able", seconds=LONG)
            idle = asyncio.create_task(it.tasks.claim("idle", limit=1, wait_seconds=LONG))
            await until(are_waiting(1))
            able = asyncio.create_task(it.tasks.claim("able", limit=1, wait_seconds=LONG))
            await until(are_waiting(2))
            await it.tasks.add(a_task())

            assert await idle == []
            assert ids(await able) == ["a"]


async def test_waits_that_were_cut_off(redis_server: RedisServer, namespace: str) -> None:
    """Waits that were cut off, however many, leave the adapter able to wait and claim."""
    async with connected(redis_server.url, namespace) as it:
        it.lease.renew("w1", seconds=LONG)
        for _ in range(20):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await it.tasks.claim("w1", limit=1, wait_seconds=LONG)

        await a_whole_life(it)


# Outages


def everything(it: Adapter) -> Sequence[Awaitable[Any]]:
    """Each call that the ports have."""
    task = a_task("b", worker="w1", attempt=1, run=1)
    return (
        it.tasks.add(task),
        it.tasks.get("a"),
        it.tasks.list("ada", states=(), cursor=None, limit=10),
        it.tasks.remove("a"),
        it.tasks.cancel("a"),
        it.tasks.claim("w1", limit=1, wait_seconds=0),
        it.tasks.wait_for_word("w1", seconds=1),
        it.tasks.hear("w1", [task]),
        it.tasks.finish(task, SUCCEEDED),
        it.tasks.release(task, counted=True),
        it.tasks.reap(),
        it.tasks.expired(limit=1),
        it.tasks.workers(),
        it.tasks.figures(),
        it.tasks.leave("w2"),
        it.tasks.check(),
        it.logs.append(task, "stdout", LogChunk(0, b"x")),
        it.logs.read("a", "stdout", offset=0, limit=1),
        asyncio.to_thread(it.lease.renew, "w1", seconds=LONG),
    )


async def is_there(it: Adapter) -> bool:
    try:
        await asyncio.gather(*everything(it))
    except Error:
        return False
    return True


@pytest.mark.parametrize("outage", ["killed", "paused"])
async def test_outage(own_server: RedisServer, outage: str) -> None:
    """Without the server every call says UNAVAILABLE soon; when it is back the same adapter works again."""
    async with connected(own_server.url) as it:
        await asyncio.gather(*everything(it))
        own_server.kill() if outage == "killed" else own_server.pause()
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*everything(it), return_exceptions=True)
        own_server.start() if outage == "killed" else own_server.resume()

        codes = [answer.code for answer in answers if isinstance(answer, Error)]
        assert codes == [Code.UNAVAILABLE] * len(answers)
        await until(lambda: is_there(it))


async def test_waiting_through_an_outage(own_server: RedisServer) -> None:
    """A wait that an outage cuts off says UNAVAILABLE; the next one works."""
    with contextlib.closing(own_server.client()) as outside:

        async def is_waiting() -> bool:
            return int(outside.info("clients")["blocked_clients"]) == 1

        async with connected(own_server.url) as it:
            it.lease.renew("w1", seconds=LONG)
            waiting = asyncio.create_task(it.tasks.claim("w1", limit=1, wait_seconds=LONG))
            await until(is_waiting)
            own_server.kill()
            with pytest.raises(Error) as caught:
                async with asyncio.timeout(5):
                    await waiting

            assert caught.value.code is Code.UNAVAILABLE
            own_server.start()
            await it.tasks.hear("w1", [])
            await a_whole_life(it)


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_nothing_is_lost_by_a_kill(request: pytest.FixtureRequest, kind: str) -> None:
    """What was acknowledged is there after kill -9: tasks in each state, their order, leases and holders."""
    shared: RedisServer = request.getfixturevalue(f"{kind}_server")
    with RedisServer(shared.binary) as server:
        async with connected(server.url) as it:
            it.lease.renew("w1", seconds=LONG)
            for number in range(20):
                await it.tasks.add(a_task(f"task-{number}"))
            finished, running = await it.tasks.claim("w1", limit=2, wait_seconds=0)
            await it.tasks.finish(finished, SUCCEEDED)
            before = await it.tasks.list("ada", states=(), cursor=None, limit=50)
            server.restart()

            async def is_back() -> bool:
                return await is_there_again(it)

            await until(is_back)
            assert await it.tasks.list("ada", states=(), cursor=None, limit=50) == before
            assert await it.tasks.workers() == {"": 1}
            await it.tasks.hear("w1", [running])
            assert await it.tasks.finish(running, SUCCEEDED)
            queued = await it.tasks.claim("w1", limit=50, wait_seconds=0)
            assert ids(queued) == [f"task-{number}" for number in range(2, 20)]


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_a_full_server_takes_no_task_and_keeps_those_that_run(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """While there is no memory left a submit is refused; leases are renewed, ends, cancels and deaths recorded."""
    shared: RedisServer = request.getfixturevalue(f"{kind}_server")
    with RedisServer(shared.binary) as server, contextlib.closing(server.client()) as outside:
        async with connected(server.url) as it:
            for worker in ("w1", "w2"):
                it.lease.renew(worker, seconds=LONG)
            for task_id in ("ended", "stopped", "given back", "left behind"):
                await it.tasks.add(a_task(task_id, max_attempts=3))
            ended, stopped, given_back = await it.tasks.claim("w1", limit=3, wait_seconds=0)
            await it.tasks.claim("w2", limit=1, wait_seconds=0)
            outside.config_set("maxmemory", "1")

            with pytest.raises(Error) as caught:
                await it.tasks.add(a_task("refused"))
            assert caught.value.code is Code.UNAVAILABLE
            assert it.lease.renew("w1", seconds=LONG)
            assert await it.tasks.finish(ended, SUCCEEDED)
            assert await it.tasks.cancel(stopped.id)
            assert (await it.tasks.hear("w1", [stopped, given_back])).cancelled == [stopped.id]
            assert await it.tasks.release(given_back, counted=False)
            await it.tasks.leave("w2")
            assert ids(await it.tasks.reap()) == ["left behind"]


async def test_a_reaping_tells_of_tasks_as_it_left_them(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not ask again: meanwhile another may have run a task, and that end would be counted twice."""
    async with connected(own_server.url) as it:
        it.lease.renew("w1", seconds=LONG)
        for task_id in ("again", "lost"):
            await it.tasks.add(a_task(task_id, max_attempts=2 if task_id == "again" else 1))
        assert len(await it.tasks.claim("w1", limit=2, wait_seconds=0)) == 2
        await it.tasks.leave("w1")
        monkeypatch.setattr(it.tasks, "get", None)

        reaped = {task.id: task.state for task in await it.tasks.reap()}
        assert reaped == {"again": State.QUEUED, "lost": State.LOST}


async def is_there_again(it: Adapter) -> bool:
    """As ``is_there``, changing nothing."""
    try:
        await it.tasks.figures()
    except Error:
        return False
    return True


# Keys


async def test_keys_are_the_documented_ones(own_server: RedisServer) -> None:
    """Every key is under the namespace, in the one slot, and of a kind and type that the module documents."""
    row = re.compile(r"^    ([A-Za-z]+)(?::[A-Z]+)?(?::[A-Z]+)? +(hash|zset|set|list|number|text) ", re.MULTILINE)
    documented = dict(row.findall(adapter.__doc__ or ""))
    states = documented.pop("STATE")
    named = "name space"
    async with (
        connected(own_server.url, named, Limits(max_running_per_caller=2)) as it,
        closing(RedisTasks(own_server.url, named, newest=2)) as newer,
        closing(RedisTasks(own_server.url, named, replicas=1)) as careful,
    ):
        it.lease.renew("w1", seconds=LONG, version="1.0")
        await newer.add(a_task("newer", owner="bob"))
        for task_id in ("a", "b", "c", "d"):
            await it.tasks.add(a_task(task_id, idempotency_key=task_id, expires_in_seconds=LONG))
        await it.tasks.add(a_task("later", not_before=1e10))
        [finished, _] = await it.tasks.claim("w1", limit=9, wait_seconds=0)
        await it.tasks.finish(finished, SUCCEEDED)
        [running] = await it.tasks.claim("w1", limit=9, wait_seconds=0)
        await it.tasks.add(a_task("waiting", owner="eve"))
        await it.logs.append(running, "stdout", LogChunk(0, b"said"))
        await it.tasks.cancel("b")
        await it.tasks.reap()
        with pytest.raises(Error):
            await careful.cancel("waiting")
        await it.tasks.add(a_task("waiting too", owner="eve"))
        kinds = all_kinds(own_server, named)
        own_server.restart()
        await it.tasks.figures()
        kinds |= all_kinds(own_server, named)

    assert {kind: kinds.pop(kind) for kind in ("queued", "running", "succeeded", "cancelled")} == dict.fromkeys(
        ("queued", "running", "succeeded", "cancelled"), states
    )
    assert kinds == {kind: "string" if word in ("number", "text") else word for kind, word in documented.items()}


def all_kinds(server: RedisServer, namespace: str) -> dict[str, str]:
    """The kinds of all keys there are, and their types."""
    prefix = f"{{{namespace}}}:1:"
    with contextlib.closing(server.client()) as outside:
        keys = list(outside.scan_iter())
        assert all(key.startswith(prefix) for key in keys)
        return {key.removeprefix(prefix).partition(":")[0]: str(outside.type(key)) for key in keys}


SINGLETONS = frozenset({"sequence", "turn", "limits", "pace", "reaper", "server"})
"""What stays for ever: one small key each, however many tasks and owners there were."""


def what_is_left(server: RedisServer, namespace: str = "test") -> set[str]:
    """All keys but those that stay for ever."""
    with contextlib.closing(server.client()) as outside:
        return {key.removeprefix(f"{{{namespace}}}:1:") for key in outside.scan_iter()} - SINGLETONS


async def test_nothing_is_left_behind(own_server: RedisServer) -> None:
    """When all tasks are removed and all workers gone, a few single keys are all that is left."""
    limits = Limits(max_running=6, max_running_per_caller=2)
    async with connected(own_server.url, limits=limits) as it:
        it.lease.renew("w1", seconds=LONG)
        it.lease.renew("w2", seconds=LONG)
        for number in range(12):
            changes: dict[str, Any] = {
                "max_attempts": 2,
                "owner": f"owner-{number % 3}",
                "idempotency_key": "k" * number,
            }
            await it.tasks.add(a_task(f"task-{number}", expires_in_seconds=LONG, priority=number % 3, **changes))
        await it.tasks.add(a_task("later", not_before=1e10))
        finished, released, cancelled, _lost, *_ = await it.tasks.claim("w1", limit=12, wait_seconds=0)
        for task in (finished, released, cancelled):
            await it.logs.append(task, "stdout", LogChunk(0, b"said"))
            await it.tasks.cancel(task.id)
        await it.tasks.finish(finished, SUCCEEDED)
        await it.tasks.release(released, counted=True)
        await it.tasks.finish(cancelled, Outcome(State.CANCELLED))
        await it.logs.append(finished, "stderr", LogChunk(0, b"late"))
        await it.tasks.cancel("task-11")
        await it.tasks.hear("w1", [finished])
        for worker in ("w1", "w2"):
            await it.tasks.leave(worker)
        await it.tasks.reap()
        for task_id in ("later", *(f"task-{number}" for number in range(12))):
            assert await it.tasks.remove(task_id)
        await it.tasks.reap()

        assert what_is_left(own_server) == set()


async def test_removed_task_leaves_its_wake_up_behind_for_nobody(own_server: RedisServer) -> None:
    """When what waited was removed, there is no wake-up left for a worker to take in vain."""
    async with connected(own_server.url) as it:
        for task_id in ("a", "b"):
            await it.tasks.add(a_task(task_id))
        await it.tasks.remove("a")
        assert "wake" in what_is_left(own_server)
        await it.tasks.cancel("b")

        assert "wake" not in what_is_left(own_server)


async def test_nobody_is_woken_in_vain(own_server: RedisServer) -> None:
    """While as many run as may, there is no wake-up; when one ends there is, as long as some wait."""
    async with connected(own_server.url, limits=Limits(max_running=2)) as it:
        it.lease.renew("w1", seconds=LONG)
        for number in range(4):
            await it.tasks.add(a_task(f"task-{number}"))
        running = [*await it.tasks.claim("w1", limit=9, wait_seconds=0)]
        assert len(running) == 2
        for _ in range(3):
            assert await it.tasks.claim("w1", limit=9, wait_seconds=0) == []
            await it.tasks.reap()
            assert "wake" not in what_is_left(own_server)
        await it.tasks.finish(running.pop(), SUCCEEDED)
        assert "wake" in what_is_left(own_server)
        running += await it.tasks.claim("w1", limit=9, wait_seconds=0)

        assert len(running) == 2
        assert "wake" not in what_is_left(own_server)


# Ways to reach it


async def test_over_a_unix_socket(own_server: RedisServer) -> None:
    """A server is reached by its unix socket."""
    check_url(own_server.socket_url)
    async with connected(own_server.socket_url) as it:
        await a_whole_life(it)


async def test_with_a_password(redis_binary_path: str) -> None:
    """The password in the URL is used; without the right one the check says that the store cannot be used."""
    with RedisServer(redis_binary_path, password="p@ss:w/rd") as server:
        async with connected(server.url) as it:
            await a_whole_life(it)
        for url in (server.url.replace("p%40ss", "wrong"), f"redis://127.0.0.1:{server.port}"):
            async with connected(url) as it:
                with pytest.raises(Error) as caught:
                    await it.tasks.check()

                assert caught.value.code is Code.INVALID_CONFIG
                assert "wrong" not in caught.value.message


async def test_over_tls(redis_binary_path: str) -> None:
    """A server is reached over TLS with its authority's certificate, and not trusted without."""
    with RedisServer(redis_binary_path, is_tls=True) as server:
        check_url(server.tls_url)
        async with connected(server.tls_url) as it:
            await a_whole_life(it)
        async with connected(server.tls_url.partition("?")[0]) as it:
            with pytest.raises(Error) as caught:
                await it.tasks.figures()

            assert caught.value.code is Code.UNAVAILABLE


async def test_authority_that_is_not_trusted(redis_binary_path: str) -> None:
    """The check says that it is the certificate, and how to name its authority."""
    with RedisServer(redis_binary_path, is_tls=True) as server:
        async with connected(server.tls_url.partition("?")[0]) as it:
            with pytest.raises(Error) as caught:
                await it.tasks.check()

    assert caught.value.code is Code.INVALID_CONFIG
    assert caught.value.message.startswith("The certificate of Redis is not trusted: self-signed certificate")
    assert "ssl_ca_certs" in caught.value.message


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_certificate_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    """A file in the URL that cannot be read is said before anything is asked."""
    path = tmp_path / "no.pem"

    with pytest.raises(
        Error, match=f"'{path}', which the Redis URL names as {name}, cannot be read: No such file"
    ):
        check_url(f"rediss://127.0.0.1:1?{name}={path}")


async def test_over_sentinel(own_server: RedisServer, redis_binary_path: str) -> None:
    """The master of a service is found by asking Sentinel."""
    with Sentinel(redis_binary_path, own_server) as sentinel:
        check_url(sentinel.url)
        async with connected(sentinel.url) as it:
            await a_whole_life(it)


async def test_unknown_service(own_server: RedisServer, redis_binary_path: str) -> None:
    """A service that Sentinel does not know is a store that is away."""
    with Sentinel(redis_binary_path, own_server) as sentinel:
        async with connected(sentinel.url.replace("mymaster", "other")) as it:
            with pytest.raises(Error) as caught:
                await it.tasks.figures()

            assert caught.value.code is Code.UNAVAILABLE


async def test_sentinel_away(redis_binary_path: str, own_server: RedisServer) -> None:
    """When nobody says where the master is, every call says UNAVAILABLE soon, a renewal too."""
    with Sentinel(redis_binary_path, own_server) as sentinel:
        host = f"127.0.0.1:{sentinel.port}"
    async with connected(f"redis+sentinel://{host},{host},{host}/mymaster") as it, asyncio.timeout(5):
        answers = await asyncio.gather(*everything(it), return_exceptions=True)
    codes = [answer.code for answer in answers if isinstance(answer, Error)]

    assert codes == [Code.UNAVAILABLE] * len(answers)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://127.0.0.1:6379/3",
        "redis://user:p%40ss@[::1]:6379?socket_keepalive=true",
        "rediss://cache.example.org:6380/0",
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://one,two:26380/mymaster",
        "rediss+sentinel://user:word@one:26379/mymaster/2",
        "rediss+sentinel://one/mymaster?ssl_cert_reqs=none",
    ],
)
def test_good_url(url: str) -> None:
    """A URL of a Redis is taken without asking the Redis."""
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:6379",
        "http://127.0.0.1",
        "redis://127.0.0.1:port",
        "redis://127.0.0.1:99999",
        "redis://127.0.0.1?no_such_option=1",
        "redis+sentinel://one:26379",
        "redis+sentinel:///mymaster",
        "redis+sentinel://one,,two/mymaster",
        "redis+sentinel://one:port/mymaster",
        "redis+sentinel://one/mymaster/zero",
        "redis+sentinel://one/mymaster?no_such_option=1",
        "redis+sentinel://one/mymaster?socket_timeout=5",
    ],
)
def test_bad_url(url: str) -> None:
    """What is no URL of a Redis is refused, by the name of its setting."""
    with pytest.raises(Error) as caught:
        check_url(url)

    assert caught.value.code is Code.INVALID_CONFIG
    assert [(problem.where, problem.name) for problem in caught.value.problems] == [("environment", "REDIS_URL")]


async def test_nothing_endangers(own_server: RedisServer) -> None:
    """Of a server with an append-only file that evicts nothing there is nothing to say."""
    async with connected(own_server.url) as it:
        assert await it.tasks.check() == []


async def test_dangers(redis_binary_path: str) -> None:
    """No append-only file and an evicting policy are named."""
    careless = {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
    with RedisServer(redis_binary_path, settings=careless) as server:
        async with connected(server.url) as it:
            found = "\n".join(await it.tasks.check())

    assert "allkeys-lru" in found
    assert "appendonly yes" in found


# The plain statement and the real thing, side by side

WORKERS = st.sampled_from(["w1", "w2"])
OWNERS = st.sampled_from(["ada", "bob"])
MORE = 4
"""More tasks of one owner than any limit here lets start."""


class Twins(RuleBasedStateMachine):
    """Whatever is asked of the store in memory and of Redis, both answer alike, and as must always hold."""

    known = Bundle("known")
    runs = Bundle("runs")

    def __init__(self, server: RedisServer, limits: Limits) -> None:
        super().__init__()
        self.server = server
        self.limits = limits
        self.runner = asyncio.Runner()
        self.memory = MemoryTasks(limits=limits)
        with contextlib.closing(server.client()) as outside:
            outside.flushdb()
        self.redis = RedisTasks(server.url, "twins", limits)
        self.lease = RedisLease(server.url, "twins")
        self.added: list[str] = []
        self.claimed: set[tuple[str, int]] = set()
        self.ends: Sequence[dict[str, Task | None]] = ({}, {})

    def teardown(self) -> None:
        """However it went: when all has ended and was removed, nothing is left, and no slot is taken."""
        with self.runner, contextlib.closing(self.lease):
            try:
                self.end_all()
                for owners in (["ada"], ["bob"], ["ada", "bob"]):
                    self.slots_are_free(owners)
                self.end_all()
                assert what_is_left(self.server, "twins") == set()
            finally:
                self.runner.run(self.redis.close())

    def end_all(self) -> None:
        """The workers leave; every task ends and is removed."""
        for worker in ("w1", "w2"):
            self.leave(worker)
        self.reap()
        for task_id in self.added:
            self.cancel(task_id)
            self.remove(task_id)
        self.reap()

    def slots_are_free(self, owners: Sequence[str]) -> None:
        """Of more tasks than may wait or start, exactly as many wait and start as may."""
        limits = self.limits
        name = "-and-".join(owners)
        tasks = [a_task(f"{owner}-{number}-of-{name}", owner=owner) for number in range(MORE) for owner in owners]
        waiting = [task for task in tasks if isinstance(self.put(task), Task)]
        assert len(waiting) == _least(limits.max_queued, len(owners) * _least(limits.max_queued_per_caller, MORE))
        self.workers_come()
        started = [
            task for worker, limit in (("w1", 1), ("w2", 99), ("w1", 99)) for task in self.take(worker, limit)
        ]
        per_caller = _least(limits.max_running_per_caller, MORE)
        assert len(started) == _least(limits.max_running, len(owners) * per_caller)
        for task in started:
            assert self.succeed(task)
        for task in waiting:
            self.cancel(task.id)
            self.remove(task.id)

    def put(self, task: Task) -> Any:
        return self.both(lambda store: store.add(task))

    def succeed(self, task: Task) -> Any:
        return self.both(lambda store: store.finish(task, SUCCEEDED))

    @initialize()
    def workers_come(self) -> None:
        self.renew("w1")
        self.renew("w2")

    @rule(
        target=known,
        max_attempts=st.integers(1, 2),
        owner=OWNERS,
        priority=st.sampled_from([0, 0, 0, 1, -9, 9]),
        not_before=st.sampled_from([None, None, 1.0, 1e10]),
        key=st.sampled_from([None, None, "one", "two"]),
        fingerprint=st.sampled_from(["this", "that"]),
    )
    def add(self, **changes: Any) -> Any:
        key = changes.pop("key")
        task = a_task(f"task-{len(self.added)}", idempotency_key=key, retention_seconds=0, **changes)
        added = self.both(lambda tasks: tasks.add(task))
        if isinstance(added, Code):
            return multiple()
        if added.id == task.id:
            self.added.append(task.id)
        return added.id

    @rule(worker=WORKERS)
    def renew(self, worker: str) -> None:
        assert self.memory.renew(worker, seconds=LONG) == self.lease.renew(worker, seconds=LONG)

    @rule(target=runs, worker=WORKERS, limit=st.integers(0, 3))
    def claim(self, worker: str, limit: int) -> Any:
        return multiple(*self.take(worker, limit))

    def take(self, worker: str, limit: int) -> Sequence[Task]:
        """What the worker gets: no more than it asked for, and no run that was given out before."""
        started: Sequence[Task] = self.both(lambda tasks: tasks.claim(worker, limit=limit, wait_seconds=0))
        runs = {(task.id, task.run) for task in started}
        assert len(runs) == len(started) <= limit
        assert not runs & self.claimed
        self.claimed |= runs
        return started

    @rule(run=runs, state=st.sampled_from([State.SUCCEEDED, State.CANCELLED, State.LOST]))
    def finish(self, run: Task, state: State) -> None:
        self.both(lambda tasks: tasks.finish(run, Outcome(state)))

    @rule(run=runs, counted=st.booleans())
    def release(self, run: Task, counted: bool) -> None:  # noqa: FBT001 - hypothesis draws it
        self.both(lambda tasks: tasks.release(run, counted=counted))

    @rule(task_id=known)
    def cancel(self, task_id: str) -> None:
        self.both(lambda tasks: tasks.cancel(task_id))

    @rule(worker=WORKERS, running=st.lists(runs, max_size=3))
    def hear(self, worker: str, running: Sequence[Task]) -> None:
        async def told(tasks: Any) -> Sequence[Any]:
            word = await tasks.hear(worker, running)
            return [sorted(word.cancelled), sorted(word.taken), sorted(word.left, key=lambda task: str(task.id))]

        self.both(told)

    @rule(task_id=known)
    def remove(self, task_id: str) -> None:
        self.both(lambda tasks: tasks.remove(task_id))

    @rule(worker=WORKERS)
    def leave(self, worker: str) -> None:
        self.both(lambda tasks: tasks.leave(worker))

    @rule()
    def reap(self) -> None:
        async def settled(tasks: Any) -> Sequence[Task]:
            return sorted(await tasks.reap(), key=lambda task: str(task.id))

        self.both(settled)

    @rule(states=st.lists(st.sampled_from(State), max_size=2), limit=st.integers(1, 3), owner=OWNERS)
    def list(self, states: Sequence[State], limit: int, owner: str) -> None:
        async def pages(tasks: Any) -> Sequence[Task]:
            page = await tasks.list(owner, states=states, cursor=None, limit=limit)
            found = [*page.tasks]
            while page.cursor:
                page = await tasks.list(owner, states=states, cursor=page.cursor, limit=limit)
                found += page.tasks
            return found

        self.both(pages)

    @invariant()
    def records_are_alike(self) -> None:
        async def counts(tasks: Any) -> Sequence[int]:
            all_of_it = await tasks.figures()
            waiting = all_of_it.queued + all_of_it.scheduled
            lately = [all_of_it.lately[state] for state in State if state.is_final]
            expired = len(await tasks.expired(limit=100))
            return [waiting, all_of_it.running, all_of_it.workers, all_of_it.slots, *lately, expired]

        async def records(tasks: Any) -> Sequence[Task | None]:
            return [await tasks.get(task_id) for task_id in self.added]

        async def held(tasks: Any) -> Sequence[Task]:
            return [task for worker in ("w1", "w2") for task in (await tasks.hear(worker, [])).left]

        self.both(counts)
        in_memory, in_redis = found = self.ask(records)
        assert _timeless(in_memory) == _timeless(in_redis)
        for ends, tasks, taken in zip(self.ends, found, self.ask(held), strict=True):
            self.ends_stand(ends, tasks)
            self.limits_hold([task for task in tasks if task], taken)

    def ends_stand(self, ends: dict[str, Task | None], tasks: Sequence[Task | None]) -> None:
        """What is final keeps its first final record, times and all; what was removed does not come back."""
        for task_id, task in zip(self.added, tasks, strict=True):
            if task and not task.state.is_final:
                assert task_id not in ends
            else:
                assert task is None or task == ends.get(task_id, task)
                ends[task_id] = task

    def limits_hold(self, tasks: Sequence[Task], held: Sequence[Task]) -> None:
        """No more runs than may, of all and of each owner, no more often than it may, and by one holder each."""
        running = [task for task in tasks if task.state is State.RUNNING]
        owners = Counter(task.owner for task in running)
        assert sorted(ids(held)) == sorted(ids(running))
        assert len(running) <= _least(self.limits.max_running, len(running))
        assert all(count <= _least(self.limits.max_running_per_caller, count) for count in owners.values())
        assert all(task.attempt <= task.max_attempts for task in tasks)

    def both(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """Ask both, and return what both answered, times aside."""
        in_memory, in_redis = (_timeless(answer) for answer in self.ask(ask))
        assert in_memory == in_redis
        return in_memory

    def ask(self, ask: Callable[[Any], Awaitable[Any]]) -> Sequence[Any]:
        """What each of the two answers."""

        async def answers() -> Sequence[Any]:
            return [await _or_code(ask(tasks)) for tasks in (self.memory, self.redis)]

        return self.runner.run(answers())


def _least(limit: int | None, number: int) -> int:
    """The number, as far as the limit lets it."""
    return number if limit is None else min(limit, number)


async def _or_code(asked: Awaitable[Any]) -> Any:
    """What was answered, or why it was not."""
    try:
        return await asked
    except Error as error:
        return error.code


def _timeless(answer: Any) -> Any:
    """The answer with only what does not hang on the clock: which times there are, not what they say; no place."""
    match answer:
        case Cancelled():
            return Cancelled(_timeless(answer.task), has_ended=answer.has_ended)
        case Task():
            started, finished = answer.started_at and 1.0, answer.finished_at and 1.0
            return replace(
                answer,
                created_at=1.0,
                started_at=started,
                finished_at=finished,
                idempotency_key=None,
                fingerprint="",
                place=None,
            )
        case list() | tuple():
            return [_timeless(part) for part in answer]
    return answer


@pytest.mark.parametrize("kind", ["redis", "valkey"])
@pytest.mark.parametrize("limits", [Limits(), Limits(max_running=2, max_running_per_caller=1), Limits(4, 3, 3, 2)])
def test_twins(request: pytest.FixtureRequest, kind: str, limits: Limits) -> None:
    """Whatever is asked of the store in memory and of a real server, both answer alike."""
    shared: RedisServer = request.getfixturevalue(f"{kind}_server")
    with RedisServer(shared.binary) as server:

        class TwinsOfOneServer(Twins):
            def __init__(self) -> None:
                super().__init__(server, limits)

        run_state_machine_as_test(
            TwinsOfOneServer, settings=settings(max_examples=20, stateful_step_count=25, deadline=None)
        )
