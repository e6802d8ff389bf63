"""Whether finished tasks slow anything: each call at a full ledger and, in turn, at one that is almost empty."""

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import redis
from msgspec.structs import replace

from benchmarks.figures import Aim, Figure
from benchmarks.filling import (
    LEASE_SECONDS,
    NAMESPACE,
    PATIENCE_SECONDS,
    PREFIX,
    RARE_OF_MANY,
    Pipelined,
    Say,
    fill,
    outcome,
    plans,
    queue,
    require,
    until_the_log_is_written,
)
from benchmarks.system import HOST, System, server_alone
from benchmarks.wire import closed_loop, is_http_answer
from script_runner.adapters.redis import RedisLease, RedisTasks
from script_runner.adapters.store import FileArtifacts
from script_runner.service import let_go, settle_lost
from script_runner.spec import LEAST_PRIORITY
from script_runner.task import State

TASKS = 1_000_000
ROUNDS = 5
CALLS_A_ROUND = 60
"""How often each call is made in a round, at each of the two ledgers."""

ALMOST_EMPTY = 1_000
"""The finished tasks that both ledgers have."""

WAITING = 100
"""The tasks that wait in both."""

QUEUED = 100_000
"""Those that wait besides in the full one."""

PAGE = 50
DUE = 100
AIM = Aim("under", 1.5, of="ratio")
AIM_OF_POLLS = Aim("at most", 1.1, of="ratio")

RARE_OF_FEW = 2
"""One task in so many did not succeed: where there are few, those that failed fill a page all the same."""

BEYOND_ALL = dict.fromkeys((state for state in State if state.is_final), 1_000_000_000)
"""A retention by count that lets nothing go."""

WORKER = "worker"


def figures(*, tasks: int, queued: int, rounds: int, say: Say) -> list[Figure]:
    """Start two servers, each with a Redis of its own, fill the ledger of one, and measure both in turn."""
    with TemporaryDirectory(prefix="script-runner-ledger-") as folder, ExitStack() as stack:
        few, many = (stack.enter_context(_started(Path(folder) / name)) for name in ("few", "many"))
        return asyncio.run(_measured(few, many, tasks=tasks, queued=queued, rounds=rounds, say=say))


@contextmanager
def _started(folder: Path) -> Iterator["Site"]:
    folder.mkdir()
    config = folder / "config.json"
    config.write_text(json.dumps({"command": ["true"], "command_rundir": str(folder)}))
    with server_alone(config, folder) as system:
        yield Site(system, folder)


async def _measured(few: "Site", many: "Site", *, tasks: int, queued: int, rounds: int, say: Say) -> list[Figure]:
    async with AsyncExitStack() as stack:
        small, full = [await stack.enter_async_context(_opened(site)) for site in (few, many)]
        say(f"filling both ledgers with {ALMOST_EMPTY:,} finished tasks")
        base_bytes, _ = [await ledger.grow(ALMOST_EMPTY, rare=RARE_OF_FEW, say=say) for ledger in (small, full)]
        say(f"filling one of them with {tasks:,} more")
        full_bytes = await full.grow(tasks, rare=RARE_OF_MANY, say=say)
        say(f"letting {queued:,} more wait in it")
        await full.let_wait(queued)
        for ledger in (small, full):
            await ledger.prepare()
        found = await _rounds(small, full, rounds=rounds, say=say)
        megabytes = [ledger.used_memory() / 1e6 for ledger in (small, full)]
    system, base = f"{tasks:,} finished, {queued:,} queued", f"at {ALMOST_EMPTY:,}"
    return [
        *_call_figures(system, base, found),
        Figure(system, "memory of Redis, a task", "B", (full_bytes,), base, (base_bytes,)),
        Figure(system, "memory of Redis, all", "MB", (megabytes[1],), base, (megabytes[0],)),
    ]


# Two ledgers in turn


_Found = dict[str, dict[str, tuple[list[float], list[float]]]]
"""By call and by percentile: the rounds of the almost empty ledger, and those of the full one."""


async def _rounds(small: "Ledger", full: "Ledger", *, rounds: int, say: Say) -> _Found:
    found: _Found = defaultdict(lambda: {"p50": ([], []), "p95": ([], [])})
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        for name, both in (await _round(small, full)).items():
            for side, milliseconds in enumerate(both):
                found[name]["p50"][side].append(median(milliseconds))
                found[name]["p95"][side].append(quantiles(milliseconds, n=20, method="inclusive")[-1])
    return found


async def _round(small: "Ledger", full: "Ledger") -> dict[str, tuple[list[float], list[float]]]:
    """The milliseconds of all calls, made one after the other, now at this ledger first and now at that."""
    sides = list(enumerate((small, full)))
    for _, ledger in sides:
        await ledger.connect()
    found: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for calls in (WITH_THE_SERVER, WITHOUT_THE_SERVER):
        for number in range(CALLS_A_ROUND):
            for name, call in calls.items():
                for side, ledger in sides if number % 2 else sides[::-1]:
                    found[name][side].append(await call(ledger))
    return found


def _call_figures(system: str, base: str, found: _Found) -> Iterator[Figure]:
    for name, percentiles in found.items():
        for word, (small, full) in percentiles.items():
            aim = AIM_OF_POLLS if name.startswith("GET /task/{id}") else AIM
            bar = aim if word == "p50" else None
            yield Figure(system, f"{name}, {word}", "ms", tuple(full), base, tuple(small), bar)


# One ledger


@dataclass(frozen=True, slots=True)
class Site:
    """Where a ledger is."""

    system: System
    folder: Path

    @property
    def url(self) -> str:
        return f"redis://{self.system.store}"

    @property
    def artifacts(self) -> FileArtifacts:
        return FileArtifacts((self.folder / "artifacts").as_uri())


@dataclass(slots=True)
class Ledger:
    """A real server and its Redis, asked as callers ask them, as a worker does, and as the janitor."""

    site: Site
    tasks: RedisTasks
    pipelined: "Pipelined"
    lease: RedisLease
    outside: Any
    finished: deque[str] = field(default_factory=deque)
    waiting: deque[str] = field(default_factory=deque)
    half_way: str = ""
    connection: socket.socket = field(default_factory=socket.socket)

    async def grow(self, count: int, *, rare: int, say: Say) -> float:
        """Let so many tasks live and end; the bytes of memory that Redis took for each."""
        before = self.used_memory()
        ids = await fill(self.pipelined, self.lease, plans(count, rare=rare), say=say)
        await until_the_log_is_written(self.outside)
        ids += self.finished
        self.finished = deque(random.sample(ids, min(len(ids), 2 * ALMOST_EMPTY)))
        return (self.used_memory() - before) / count

    async def let_wait(self, count: int) -> None:
        """Queue so many tasks behind all others."""
        new = (replace(task, priority=LEAST_PRIORITY) for task in plans(count, rare=count + 1))
        await queue(self.pipelined, new)

    async def prepare(self) -> None:
        """Let some tasks wait, and find the page in the middle."""
        await self.connect()
        for _ in range(WAITING):
            await self.submit()
        _, first = self._ask("GET", f"/task?limit={PAGE}")
        self.half_way = str(int(json.loads(first)["next"]) // 2)  # a cursor is a place in the sequence of tasks

    async def connect(self) -> None:
        """A new connection to the server, which has idle ones closed after a while."""
        self.connection.close()
        self.connection = socket.create_connection((HOST, self.site.system.port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ask("GET", "/health")

    def used_memory(self) -> int:
        return int(self.outside.info("memory")["used_memory"])

    # What is measured: each returns its milliseconds

    async def submit(self) -> float:
        milliseconds, body = self._ask("POST", "/task", status=202)
        self.waiting.append(json.loads(body)["id"])
        return milliseconds

    async def poll_finished(self) -> float:
        """Always another one, so that none is known to a cache from the call before."""
        self.finished.rotate(-1)
        return self._ask("GET", f"/task/{self.finished[-1]}")[0]

    async def poll_queued(self) -> float:
        return self._ask("GET", f"/task/{self.waiting[-1]}")[0]

    async def first_page(self) -> float:
        return self._page("")

    async def page_half_way(self) -> float:
        return self._page(f"&cursor={self.half_way}")

    async def page_of_failed(self) -> float:
        return self._page("&state=failed")

    async def page_of_queued(self) -> float:
        return self._page("&state=queued")

    async def delete(self) -> float:
        return self._ask("DELETE", f"/task/{self.finished.popleft()}", status=204)[0]

    async def claim_and_finish(self) -> float:
        self.lease.renew(WORKER, seconds=LEASE_SECONDS)
        started = time.perf_counter()
        [task] = await self.tasks.claim(WORKER, limit=1, wait_seconds=0)
        is_taken = await self.tasks.finish(task, outcome(State.SUCCEEDED))
        milliseconds = _since(started)
        require(is_taken, "the ledger refused an outcome")
        self.waiting.remove(task.id)
        self.finished.append(task.id)
        return milliseconds

    async def tend_nothing(self) -> float:
        started = time.perf_counter()
        await self._tend()
        return _since(started)

    async def look_for_those_beyond_a_count(self) -> float:
        """As the janitor looks, without letting them go: they are the oldest, and others are measured by them."""
        count = self.outside.zcard(f"{PREFIX}succeeded")
        started = time.perf_counter()
        ids = await self.tasks.expired(limit=DUE, counts={State.SUCCEEDED: count - DUE})
        milliseconds = _since(started)
        require(len(ids) == DUE, "the tasks beyond a count were not found")
        return milliseconds

    async def tend_due(self) -> float:
        """With tasks past their retention, which the janitor of the server must not find before us."""
        with self._server_stopped():
            self.lease.renew(WORKER, seconds=LEASE_SECONDS)
            await self._let_some_be_due()
            count = self.outside.zcard(f"{PREFIX}finished")
            started = time.perf_counter()
            await self._tend()
            milliseconds = _since(started)
            gone = count - self.outside.zcard(f"{PREFIX}finished")
        require(gone == DUE, f"{gone} tasks went where {DUE} were due")
        return milliseconds

    async def _tend(self) -> None:
        await settle_lost(self.tasks)
        await let_go(self.tasks, self.site.artifacts, BEYOND_ALL)

    async def _let_some_be_due(self) -> None:
        """Ahead of those that wait, so that these are claimed."""
        due = (replace(task, retention_seconds=0, priority=9) for task in plans(DUE, rare=DUE + 1))
        await fill(self.pipelined, self.lease, due, say=_mute)

    def _page(self, query: str) -> float:
        milliseconds, body = self._ask("GET", f"/task?limit={PAGE}{query}")
        require(body.count(b'"id":') == PAGE, f"a page with {query!r} was not full")
        return milliseconds

    def _ask(self, method: str, path: str, *, status: int = 200) -> tuple[float, bytes]:
        length = "Content-Length: 0\r\n" if method == "POST" else ""
        request = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{length}\r\n".encode()
        [milliseconds], [answer] = closed_loop([self.connection], [request], is_whole=is_http_answer)
        require(answer.startswith(b"HTTP/1.1 %d " % status), f"{method} {path}: {answer[:300]!r}")
        return milliseconds, answer.partition(b"\r\n\r\n")[2]

    @contextmanager
    def _server_stopped(self) -> Iterator[None]:
        [server] = [process.pid for process in self.site.system.processes if process.name == "server"]
        os.kill(server, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(server, signal.SIGCONT)


Call = Callable[[Ledger], Awaitable[float]]

WITH_THE_SERVER: dict[str, Call] = {
    "POST /task": Ledger.submit,
    "GET /task/{id}, finished": Ledger.poll_finished,
    "GET /task/{id}, queued": Ledger.poll_queued,
    f"GET /task?limit={PAGE}": Ledger.first_page,
    f"GET /task?limit={PAGE}&cursor=, half way": Ledger.page_half_way,
    f"GET /task?limit={PAGE}&state=failed": Ledger.page_of_failed,
    f"GET /task?limit={PAGE}&state=queued": Ledger.page_of_queued,
    "DELETE /task/{id}, finished": Ledger.delete,
    "claim and finish": Ledger.claim_and_finish,
    "janitor, nothing due": Ledger.tend_nothing,
    f"look-up of {DUE} beyond a count": Ledger.look_for_those_beyond_a_count,
}
WITHOUT_THE_SERVER: dict[str, Call] = {f"janitor, {DUE} due": Ledger.tend_due}
"""The server stands still, so these have a turn of their own."""


@asynccontextmanager
async def _opened(site: Site) -> AsyncIterator[Ledger]:
    tasks, pipelined = RedisTasks(site.url, NAMESPACE), Pipelined(site.url, NAMESPACE)
    lease = RedisLease(site.url, NAMESPACE)
    ledger = Ledger(site, tasks, pipelined, lease, redis.Redis.from_url(site.url, socket_timeout=PATIENCE_SECONDS))
    try:
        yield ledger
    finally:
        ledger.connection.close()
        ledger.outside.close()
        lease.close()
        await pipelined.close()
        await tasks.close()


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def _mute(_sentence: str) -> None:
    """Say nothing."""
