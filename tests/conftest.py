"""What several suites share: real servers, a namespace for each test, and every store behind one contract."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import hypothesis
import pytest
import redis
from tests.servers import RedisServer, redis_binary, until, valkey_binary
from tests.stores import EMULATORS, Emulator, missing

from script_runner.adapters.memory import MemoryLease, MemoryLogs, MemoryTasks
from script_runner.adapters.redis import RedisChanges, RedisLease, RedisLogs, RedisTasks
from script_runner.ports import Changes, Lease, Limits, Logs, Tasks

STORES = ("memory", "redis", "valkey")

# no property is one of time: an example may take long on a machine that is busy with something else
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")


@dataclass(frozen=True, slots=True)
class Store:
    """One adapter of the ports Tasks, Lease, Logs and Changes, and how a test lets its time go by."""

    tasks: Tasks
    lease: Lease
    logs: Logs
    changes: Changes
    let_pass: Callable[[float], Awaitable[None]]
    """Return when its clock shows so many seconds more."""

    has_waiter: Callable[[], Awaitable[bool]]
    """Whether a call waits there for something to happen."""

    time: Callable[[], float]
    """What its clock shows, in seconds since the epoch."""

    with_limits: Callable[[Limits], Tasks]
    """The same tasks under these limits, as for a process that was started anew, with workers of its own."""


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """Programs that tests start hear SIGINT, also when the test run was started to ignore it (``pytest &``)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests (marked ``anyio``) run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def redis_binary_path() -> str:
    return present(redis_binary(), "redis-server")


@pytest.fixture(scope="session")
def redis_server(redis_binary_path: str) -> Iterator[RedisServer]:
    """A real Redis for the whole run: tests leave it as it is and keep to their namespace."""
    with RedisServer(redis_binary_path) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    """A real Valkey for the whole run, under the same rule."""
    with RedisServer(present(valkey_binary(), "valkey-server")) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[Emulator]:
    """A real object store over HTTP for the whole run: tests keep to prefixes of their own."""
    yield from _emulator("moto")


@pytest.fixture(scope="session")
def nanio() -> Iterator[Emulator]:
    yield from _emulator("nanio")


@pytest.fixture(scope="session")
def azurite() -> Iterator[Emulator]:
    yield from _emulator("azurite")


def _emulator(name: str) -> Iterator[Emulator]:
    if reason := missing(name):
        _do_without(reason)
    with EMULATORS[name]() as emulator:
        yield emulator


@pytest.fixture
def namespace() -> str:
    """A name that no other test uses."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Store]:
    """Every store in turn."""
    if request.param == "memory":
        yield _memory_store()
        return
    server: RedisServer = request.getfixturevalue(f"{request.param}_server")
    outside = server.client()

    async def let_pass(seconds: float) -> None:
        end = _time(outside) + seconds

        async def has_passed() -> bool:
            return _time(outside) >= end

        await until(has_passed)

    async def has_waiter() -> bool:
        return int(outside.info("clients")["blocked_clients"]) > 0

    opened: list[RedisTasks] = []

    def with_limits(limits: Limits) -> RedisTasks:
        opened.append(RedisTasks(server.url, namespace, limits))
        return opened[-1]

    store = Store(
        tasks=with_limits(Limits()),
        lease=RedisLease(server.url, namespace),
        logs=RedisLogs(server.url, namespace),
        changes=RedisChanges(server.url, namespace),
        let_pass=let_pass,
        has_waiter=has_waiter,
        time=lambda: _time(outside),
        with_limits=with_limits,
    )
    yield store
    for tasks in opened:
        await tasks.close()
    await store.logs.close()
    await store.changes.close()
    store.lease.close()
    outside.close()


def _time(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1_000_000


def _memory_store() -> Store:
    clock = Clock()
    tasks = MemoryTasks(clock)

    async def let_pass(seconds: float) -> None:
        clock.now += seconds

    async def has_waiter() -> bool:
        await asyncio.sleep(0)  # whatever could run until it waits has done so
        return True

    def with_limits(limits: Limits) -> MemoryTasks:
        tasks._limits = limits
        return tasks

    return Store(
        tasks, MemoryLease(tasks), MemoryLogs(tasks), tasks.changes, let_pass, has_waiter, clock, with_limits
    )


def present(binary: str | None, name: str) -> str:
    return binary or _do_without(f"{name} is not installed")


def _do_without(reason: str) -> NoReturn:
    """Skip what needs something that is missing, but fail where CI promises that it is there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI must not do without it")
    pytest.skip(reason)
