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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from benchmarks.floors import peak_mb

HOST = "127.0.0.1"
SECONDS_TO_START = 30
SECONDS_TO_STOP = 15
_Found = TypeVar("_Found")

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
FOREIGN_SETTINGS = ("SCRIPT_RUNNER_", "AUTH", "REDIS_URL", "CELERY_", "PORT", "SERVER_VERSION")


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
    def peak_mb(self) -> float:
        return peak_mb(self.pid)

    @property
    def cpu_seconds(self) -> float:
        """Its own and that of its children that have ended, in the ticks of the system (10 ms)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / CLOCK_TICKS

    def forget_peak(self) -> None:
        """Begin the peak anew (proc(5), clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@dataclass(frozen=True, slots=True)
class System:
    """A script-runner that answers, and where its store does."""

    name: str
    port: int
    store: str
    processes: tuple[Process, ...]

    @property
    def idle_mb(self) -> float:
        """PSS of all. What they share with this process counts as theirs: in service it is not there."""
        own = os.getpid()
        borrowed = _rollup_mb(own, "Pss") - _rollup_mb(own, "Private_Clean") - _rollup_mb(own, "Private_Dirty")
        return sum(process.pss_mb for process in self.processes) + borrowed

    @property
    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds for process in self.processes)


@contextmanager
def embedded(config: Path, folder: Path) -> Iterator[System]:
    """``script-runner up``: server, worker and the embedded Valkey."""
    data = folder / "data"
    with _running(_command("up", str(config), "--port", "0", "--data", str(data)), folder, "up") as up:
        port = _port(up, folder / "up.log")
        _until(lambda: _ready_workers(port), up, folder / "up.log")
        yield System("up", port, f"unix:{data / 'valkey.sock'}", _processes(up.pid))


@contextmanager
def separate(config: Path, folder: Path) -> Iterator[System]:
    """``serve`` and ``worker`` with the redis-server of this machine."""
    with server_alone(config, folder) as system:
        shared = _shared_options(system.store, folder)
        with _running(_command("worker", str(config), *shared), folder, "worker") as worker:
            _until(lambda: _ready_workers(system.port), worker, folder / "worker.log")
            processes = system.processes + _processes(worker.pid)
            yield replace(system, name="serve+worker", processes=processes)


@contextmanager
def server_alone(config: Path, folder: Path) -> Iterator[System]:
    """``serve`` with the redis-server of this machine, and nobody who runs what is submitted."""
    store = f"{HOST}:{_free_port()}"
    with _running(_redis_command(store, folder), folder, "redis") as redis:
        _until(lambda: _accepts(store), redis, folder / "redis.log")
        shared = _shared_options(store, folder)
        with _running(_command("serve", str(config), "--port", "0", *shared), folder, "serve") as serve:
            port = _port(serve, folder / "serve.log")
            yield System("serve alone", port, store, _processes(serve.pid) + _processes(redis.pid))


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


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "script_runner", *words]


def _shared_options(store: str, folder: Path) -> tuple[str, ...]:
    return ("--redis", f"redis://{store}", "--store", (folder / "artifacts").as_uri())


def _redis_command(store: str, folder: Path) -> list[str]:
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
    """Ours, without settings that would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_SETTINGS)}


@contextmanager
def _running(command: list[str], folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that Ctrl-C reaches us alone; at the end nothing of it is left."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(),
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


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port that the server says it listens on."""
    found = _until(lambda: re.search(r"at http://[\d.]+:(\d+)", log.read_text()), process, log)
    return int(found[1])


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


def _until(look: Callable[[], _Found | None], process: subprocess.Popen[bytes], log: Path) -> _Found:
    """What ``look`` finds; SystemExit with the log if the process ends or takes too long."""
    deadline = time.monotonic() + SECONDS_TO_START
    while not (found := look()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the system did not start:\n{log.read_text()}")
        time.sleep(0.01)
    return found


def _accepts(store: str) -> bool:
    host, _, port = store.partition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


# Looking at processes


def _processes(root: int) -> tuple[Process, ...]:
    return tuple(Process(_name(pid), pid) for pid in _family(root))


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


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if b"-server" in words[0]:
        return "Redis"
    if any(word.endswith(b"guardian.py") for word in words):
        return "guardian"
    return "worker" if b"worker" in words else "server"


def _rollup_mb(pid: int, field: str) -> float:
    """A sum over all mappings of a process (proc(5), smaps_rollup)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0
