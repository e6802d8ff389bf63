"""The real processes under measure: started, looked at from outside, and ended with all they started."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.floors import status_mb
from benchmarks.wire import Dialect

HOST = "127.0.0.1"
OURS = Dialect()
SECONDS_TO_START = 30
SECONDS_TO_STOP = 15
_Found = TypeVar("_Found")

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
FOREIGN_SETTINGS = (
    "SCRIPT_RUNNER_", "AUTH", "REDIS_URL", "CELERY_", "PORT", "SERVER_VERSION", "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a system, seen through proc(5). Memory is in MB of 1,000,000 bytes."""

    name: str
    pid: int

    @property
    def pss_mb(self) -> float:
        """Proportional set size: what it shares counts in part, so that a sum counts everything once."""
        return _rollup_mb(self.pid, "Pss")

    @property
    def resident_mb(self) -> float:
        return status_mb(self.pid, "VmRSS")

    @property
    def peak_mb(self) -> float:
        return status_mb(self.pid, "VmHWM")

    @property
    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    @property
    def cpu_seconds(self) -> float:
        """Its own and that of its children that have ended, in the ticks of the system (10 ms)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / CLOCK_TICKS

    @property
    def own_cpu_seconds(self) -> float:
        """Without that of its children."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / CLOCK_TICKS

    def forget_peak(self) -> None:
        """Begin the peak anew (proc(5), clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@dataclass(frozen=True, slots=True)
class System:
    """A server that answers, how it is asked, and where its store does; the moment of its first answer."""

    name: str
    port: int
    store: str
    processes: tuple[Process, ...]
    dialect: Dialect = OURS
    answered_at: float = 0.0

    @property
    def idle_mb(self) -> float:
        """PSS of all. What they share with this process counts as theirs: in service it is not there."""
        own = os.getpid()
        borrowed = _rollup_mb(own, "Pss") - _rollup_mb(own, "Private_Clean") - _rollup_mb(own, "Private_Dirty")
        return sum(process.pss_mb for process in self.processes) + borrowed

    @property
    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds for process in self.processes)


Start = Callable[[Path, Path], AbstractContextManager[System]]
"""Starts a system with a configuration, in a folder of its own."""


class OwnStart(Protocol):
    """Starts one of ours so, with a worker that runs so many scripts at once (None: one a core)."""

    def __call__(
        self, config: Path, folder: Path, /, *, concurrency: int | None = None
    ) -> AbstractContextManager[System]: ...


@contextmanager
def embedded(
    config: Path, folder: Path, *, concurrency: int | None = None, python: str = sys.executable
) -> Iterator[System]:
    """``script-runner up``: server, worker and the embedded Valkey."""
    data, log = folder / "data", folder / "up.log"
    with running(
        _command(python, "up", str(config), "--port", "0", "--data", str(data), *_at_once(concurrency)),
        folder,
        "up",
    ) as up:
        port, answered_at = _answering_port(up, log)
        until(lambda: _ready_workers(port), up, log)
        store = f"unix:{data / 'valkey.sock'}"
        yield System("up", port, store, family_of(up.pid), answered_at=answered_at)


@contextmanager
def separate(
    config: Path, folder: Path, *, concurrency: int | None = None, python: str = sys.executable
) -> Iterator[System]:
    """``serve`` and ``worker`` with the redis-server of this machine."""
    with (
        server_alone(config, folder, python=python) as system,
        joined(system, config, folder, concurrency=concurrency, python=python) as both,
    ):
        yield both


STARTS = {"up": embedded, "serve+worker": separate}


@contextmanager
def joined(
    system: System, config: Path, folder: Path, *, concurrency: int | None = None, python: str = sys.executable
) -> Iterator[System]:
    """A server alone, and from now on a worker with it."""
    words = ("worker", str(config), *_shared_options(system.store, folder), *_at_once(concurrency))
    with running(_command(python, *words), folder, "worker") as worker:
        until(lambda: _ready_workers(system.port), worker, folder / "worker.log")
        yield replace(system, name="serve+worker", processes=system.processes + family_of(worker.pid))


@contextmanager
def server_alone(config: Path, folder: Path, *, python: str = sys.executable) -> Iterator[System]:
    """``serve`` with the redis-server of this machine, and nobody who runs what is submitted."""
    with own_redis(folder) as (store, redis):
        shared = _shared_options(store, folder)
        with running(_command(python, "serve", str(config), "--port", "0", *shared), folder, "serve") as serve:
            port, answered_at = _answering_port(serve, folder / "serve.log")
            processes = family_of(serve.pid) + family_of(redis)
            yield System("serve alone", port, store, processes, answered_at=answered_at)


@contextmanager
def own_redis(folder: Path) -> Iterator[tuple[str, int]]:
    """The address and the pid of a redis-server that keeps an append-only file in this folder."""
    store = f"{HOST}:{free_port()}"
    with running(redis_command(store, folder), folder, "redis") as redis:
        until(lambda: accepts(store), redis, folder / "redis.log")
        yield store, redis.pid


def redis_server() -> str | None:
    """The Redis of this machine, if there is one."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


def version(program: str) -> str:
    """What a Redis or Valkey says of its version."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", said)
    return f"{Path(program).name} {found[1] if found else '?'}"


def cores() -> int:
    """How many cores this process may use, which is how many scripts a worker runs at once."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The model of the processor (proc(5), cpuinfo)."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "?"


# Starting and ending


def _command(python: str, *words: str) -> list[str]:
    return [python, "-m", "script_runner", *words]


def _at_once(concurrency: int | None) -> tuple[str, ...]:
    return ("--concurrency", str(concurrency)) if concurrency else ()


def _shared_options(store: str, folder: Path) -> tuple[str, ...]:
    return ("--redis", f"redis://{store}", "--store", (folder / "artifacts").as_uri())


def redis_command(store: str, folder: Path) -> list[str]:
    """As durable as the embedded one."""
    host, _, port = store.partition(":")
    program = redis_server()
    assert program, "asked for only where there is one"
    settings = {
        "bind": host,
        "port": port,
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
    }
    return [program, *(word for name, value in settings.items() for word in (f"--{name}", value))]


def _environment() -> dict[str, str]:
    """Ours, without settings that would change what is measured; nobody has to be waited for at the end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_SETTINGS)}
    return {**kept, "SCRIPT_RUNNER_LINGER_SECONDS": "0"}


@contextmanager
def running(
    command: list[str], folder: Path, name: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that Ctrl-C reaches us alone; at the end nothing of it is left."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        family = {pid: _started(pid) for pid in _family(process.pid)}
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid, started in family.items():
            if started and _started(pid) == started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _answering_port(process: subprocess.Popen[bytes], log: Path) -> tuple[int, float]:
    """The port that the server says it listens on, and when it first answered there."""
    found = until(lambda: re.search(r"at http://[\d.]+:(\d+)", log.read_text()), process, log)
    return int(found[1]), until(lambda: answer_moment(int(found[1])), process, log)


def answer_moment(port: int) -> float | None:
    """Now, if a server answers here whatever it answers (time.perf_counter); None if none does yet."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    with suppress(OSError, http.client.HTTPException), closing(connection):
        connection.request("GET", "/health")
        connection.getresponse().read()
        return time.perf_counter()
    return None


def _ready_workers(port: int) -> int:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/ready")
        document = json.loads(connection.getresponse().read())
    except OSError:
        return 0
    finally:
        connection.close()
    return int(document.get("workers", 0))


def until(look: Callable[[], _Found | None], process: subprocess.Popen[bytes], log: Path) -> _Found:
    """What ``look`` finds; SystemExit with the log if the process ends or takes too long."""
    deadline = time.monotonic() + SECONDS_TO_START
    while not (found := look()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the system did not start:\n{log.read_text()}")
        time.sleep(0.005)
    return found


def accepts(store: str) -> bool:
    host, _, port = store.partition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


# Looking at processes


def family_of(root: int) -> tuple[Process, ...]:
    """A process and all that descend from it; one that ends while it is looked at is none of them."""
    names = {pid: _name(pid) for pid in _family(root)}
    return tuple(Process(name, pid) for pid, name in names.items() if name)


def _family(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def _parent(path: Path) -> int | None:
    with suppress(OSError):
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    return None


def _started(pid: int) -> str | None:
    """When a process was started, which tells it from a later one of the same number; None if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _name(pid: int) -> str | None:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"-server" in words[0]:
            return "Redis"
        if any(word.endswith(b"guardian.py") for word in words):
            return "guardian"
        return "worker" if Path(f"/proc/{pid}/comm").read_text() == "runner-worker\n" else "server"
    return None


def _rollup_mb(pid: int, field: str) -> float:
    """A sum over all mappings of a process (proc(5), smaps_rollup)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0
