"""What one task takes of an installation, for those who size one: time of each process, memory of Redis, disk."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import redis

from benchmarks.figures import Figure
from benchmarks.filling import PREFIX, Say
from benchmarks.system import HOST, System, joined, server_alone
from benchmarks.wire import closed_loop, is_http_answer

TASKS: Final = 5_000
CONCURRENCY: Final = (2, 8)
CONNECTIONS: Final = 32
ROWS: Final = 100
FILE_BYTES: Final = 10_000
LOOK_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 1_800.0

SILENT: Final[Mapping[str, Any]] = {"command": ["true"]}
TALKING: Final[Mapping[str, Any]] = {
    "command": ["cp", "rows.csv", "page.pdf", "$RUNDIR"],
    "outputs": {
        "results": {"kind": "file", "format": "csv", "input_path": "rows.csv"},
        "attachments": ["*.pdf"],
    },
}
INPUTS: Final[Mapping[str, Any]] = {
    "path_args": [{"env_var_name": "PLATE", "path_regex": "([^/]+)"}],
    "query_args": [{"env_var_name": "SEASON", "query_var_name": "season"}],
}


def figures(*, tasks: int, say: Say) -> list[Figure]:
    """Let tasks wait at a server, then start a worker that runs them; once for each kind of script and worker."""
    kinds = {"nothing kept": SILENT, f"{ROWS} rows and {FILE_BYTES // 1000} kB kept": TALKING}
    found: list[Figure] = []
    for kind, script in kinds.items():
        for at_once in CONCURRENCY:
            say(f"{tasks:,} tasks, {kind}, {at_once} at once")
            with TemporaryDirectory(prefix="script-runner-capacity-") as folder:
                values = _measured(Path(folder), script, tasks=tasks, concurrency=at_once)
            name = f"{kind}, {at_once} at once"
            found += [Figure(name, measure, unit, (value,)) for (measure, unit), value in values.items()]
    return found


def _measured(
    folder: Path, script: Mapping[str, Any], *, tasks: int, concurrency: int
) -> dict[tuple[str, str], float]:
    config = folder / "config.json"
    config.write_text(json.dumps({**script, "inputs": INPUTS, "command_rundir": str(folder)}))
    (folder / "rows.csv").write_text("well,value\n" + "".join(f"A{row:02},{row * 1.5}\n" for row in range(ROWS)))
    (folder / "page.pdf").write_bytes(os.urandom(FILE_BYTES))
    with server_alone(config, folder) as server, _look(server, folder) as look:
        idle = {("PSS idle, server", "MB"): _of(server, "server"), ("PSS idle, Redis", "MB"): _of(server, "Redis")}
        before = look.taken()
        _submit(server, tasks)
        queued = look.taken()
        with joined(server, config, folder, concurrency=concurrency) as joint:
            both = _without_scripts(joint)
            idle[("PSS idle, worker and guardian", "MB")] = _of(both, "worker") + _of(both, "guardian")
            began, started, already = time.monotonic(), _cpu(both), look.ended()
            look.until_ended(tasks)
            seconds, ran = time.monotonic() - began, tasks - already
            used = {name: (value - started[name]) * 1000 / ran for name, value in _cpu(both).items()}
        ended = look.taken()
        files, held, on_disk = _store(folder / "artifacts")
        rewritten = look.log_bytes_when_rewritten()
    return {
        **idle,
        ("submits/s, 32 connections", "/s"): tasks / (queued.at - before.at),
        ("CPU a submit, server", "ms"): (queued.cpu["server"] - before.cpu["server"]) * 1000 / tasks,
        ("CPU a submit, Redis", "ms"): (queued.cpu["Redis"] - before.cpu["Redis"]) * 1000 / tasks,
        ("tasks/s", "/s"): ran / seconds,
        ("CPU a run, worker", "ms"): used["worker"],
        ("CPU a run, its script", "ms"): used["scripts"],
        ("CPU a run, Redis", "ms"): used["Redis"],
        ("memory of Redis, a queued task", "B"): (queued.memory - before.memory) / tasks,
        ("memory of Redis, an ended task", "B"): (ended.memory - before.memory) / tasks,
        ("append-only file, a task", "B"): (ended.log - before.log) / tasks,
        ("append-only file, an ended task, rewritten", "B"): rewritten / tasks,
        ("files in the store, a task", ""): files / tasks,
        ("bytes in the store, a task", "B"): held / tasks,
        ("bytes on its disk, a task", "B"): on_disk / tasks,
    }


def _submit(server: System, tasks: int) -> None:
    lines = (
        f"POST /task/PLATE-{number:06}?season=winter HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n"
        for number in range(tasks)
    )
    with ExitStack() as stack:
        place = (HOST, server.port)
        connections = [stack.enter_context(socket.create_connection(place)) for _ in range(CONNECTIONS)]
        _, answers = closed_loop(connections, map(str.encode, lines), is_whole=is_http_answer)
    refused = [answer for answer in answers if not answer.startswith(b"HTTP/1.1 202")]
    if refused:
        raise SystemExit(f"not taken: {refused[0].decode()}")


def _without_scripts(system: System) -> System:
    """The worker runs scripts already: of its family only itself, which comes first, and its guardian stay."""
    first = {process.name: process for process in reversed(system.processes) if process.name != "server"}
    servers = [process for process in system.processes if process.name == "server"]
    return replace(system, processes=(servers[0], *first.values()))


def _of(system: System, name: str) -> float:
    return sum(process.pss_mb for process in system.processes if process.name == name)


def _cpu(system: System) -> dict[str, float]:
    """Seconds by process; those of scripts apart from those of their worker."""
    found = {process.name: process.own_cpu_seconds for process in system.processes}
    workers = [process for process in system.processes if process.name == "worker"]
    return {**found, "scripts": sum(worker.cpu_seconds - worker.own_cpu_seconds for worker in workers)}


def _store(folder: Path) -> tuple[int, int, int]:
    """Files below a folder, their bytes, and what they and their folders take of the disk."""
    found = [path.stat() for path in folder.rglob("*")]
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(files), sum(status.st_blocks * 512 for status in found)


@dataclass(frozen=True, slots=True)
class Taken:
    """What is taken at a moment (seconds of a clock of its own): bytes of Redis and of its log, seconds of CPU."""

    at: float
    memory: int
    log: int
    cpu: Mapping[str, float]


class Look:
    """Looks at a Redis, and at the processes of its system."""

    def __init__(self, system: System, client: "redis.Redis", log: Path) -> None:
        self._system, self._client, self._log = system, client, log

    def taken(self) -> Taken:
        memory = int(self._client.info("memory")["used_memory"])
        return Taken(time.monotonic(), memory, self._log_bytes(), _cpu(self._system))

    def ended(self) -> int:
        return int(self._client.zcard(f"{PREFIX}succeeded"))

    def until_ended(self, tasks: int) -> None:
        self._until(lambda: self.ended() >= tasks)

    def log_bytes_when_rewritten(self) -> int:
        """The size of the append-only file, once it has been written anew."""
        self._client.bgrewriteaof()
        self._until(lambda: not self._is_rewriting())
        return self._log_bytes()

    def _is_rewriting(self) -> bool:
        found = self._client.info("persistence")
        return bool(found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])

    def _log_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._log.iterdir())

    def _until(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            if time.monotonic() > end:
                raise SystemExit("the tasks do not end")
            time.sleep(LOOK_SECONDS)


@contextmanager
def _look(system: System, folder: Path) -> Iterator[Look]:
    host, _, port = system.store.partition(":")
    with closing(redis.Redis(host=host, port=int(port), socket_timeout=60, protocol=2)) as client:
        yield Look(system, client, folder / "appendonlydir")
