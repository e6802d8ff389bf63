"""The ledger: what truly ran, written by the scripts themselves, past the system that is judged."""

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SCRIPT = r'''
import fcntl, os, signal, sys, time

ledger, task, life = os.environ["LEDGER"], os.environ["TASK_ID"], os.environ["CHAOS_LIFE"]
kind, seconds, key = os.environ["KIND"], float(os.environ["SECONDS"]), os.environ["KEY"]
folder = os.environ["RUNDIR"]
run = os.path.basename(folder)


def stamp(word, other="-"):
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    line = f"{word} {task} {run} {life} {key} {os.getpid()} {now:.6f} {other}\n"
    file = os.open(ledger + "/stamps", os.O_WRONLY | os.O_APPEND)
    os.write(file, line.encode())
    os.close(file)


def era():
    """How often a holder of this task's lock was made to stand still together with its whole machine."""
    try:
        return len(open(f"{ledger}/eras/{task}").read().split())
    except FileNotFoundError:
        return 0


def take_the_lock():
    lock = os.open(f"{ledger}/locks/{task}.{era()}", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stamp("doubled", os.read(lock, 100).decode() or "unknown")
        find = f"grep -lzs TASK_ID={task} /proc/[0-9]*/environ | cut -d/ -f3"
        os.system(f"{find} | xargs ps -o pid,ppid,stat,etimes,args -p >{ledger}/doubled-{run} 2>&1")
        sys.exit(99)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def live_on():
    while True:
        time.sleep(60)


def fork():
    """A child in the group, one in a session of its own, and one whose parent has gone."""
    if not os.fork():
        live_on()
    if not os.fork():
        os.setsid()
        live_on()
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        live_on()


def flood():
    piece = b"0123456789abcdef" * 4096
    for _ in range(24):
        view = memoryview(piece)
        while view:
            view = view[os.write(1, view):]


def leave(name, content):
    with open(f"{folder}/{name}", "wb") as file:
        file.write(content)


take_the_lock()
stamp("start")
if kind == "term-proof":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
if kind == "forking":
    fork()
if kind == "flooding":
    flood()
end = time.monotonic() + seconds
while (left := end - time.monotonic()) > 0:
    time.sleep(left)
rows = f"name,value\ntask,{task}\nrun,{run}\n"
if kind == "files":
    rows += "".join(f"row {number},{number}\n" for number in range(300))
    for number in range(3):
        leave(f"files/part-{number}.bin", f"{task} {run} {number}\n".encode() * 1500)
leave("files/proof.txt", f"{task} {run}".encode())
leave("rows.csv", rows.encode())
print("done", task, run)
sys.stdout.flush()
stamp("end")
'''
"""What every task runs: lock, start stamp, its work, rows and files, end stamp.

The lock is inherited by all that it starts, so it is free only when nothing of the run lives.
"""

EXTRA_ROWS = 300
PARTS = 3


@dataclass(frozen=True, slots=True)
class Stamp:
    """One line of the ledger."""

    word: str
    """``start``, ``end`` or ``doubled``."""

    task: str
    run: str
    """The name of the run folder, which no other run has."""

    life: str
    """Which start of which worker ran it."""

    key: str
    """The caller's name of the task."""

    pid: int
    at: float
    """Seconds of the boot clock."""

    holder: str
    """The pid that held the lock, where the word is ``doubled``."""


class Ledger:
    """A folder outside everything that the system knows of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("locks", "eras"):
            (folder / name).mkdir(parents=True)
        (folder / "stamps").touch()
        self.script = folder / "script.py"
        self.script.write_text(SCRIPT)

    def stamps(self) -> list[Stamp]:
        lines = (self.folder / "stamps").read_text().splitlines()
        return [_stamp(line) for line in lines if line.count(" ") == len(Stamp.__slots__) - 1]

    def begin_era(self, task_id: str) -> None:
        """The holder of the lock stands still with its machine: another may run beside what does not move."""
        with (self.folder / "eras" / task_id).open("a") as file:
            file.write("frozen\n")


def rows_of(stamp: Stamp, kind: str) -> list[dict[str, str]]:
    """The rows that this run has left."""
    rows = [{"name": "task", "value": stamp.task}, {"name": "run", "value": stamp.run}]
    extra = EXTRA_ROWS if kind == "files" else 0
    return rows + [{"name": f"row {number}", "value": str(number)} for number in range(extra)]


def files_of(stamp: Stamp, kind: str) -> dict[str, str]:
    """The names and SHA-256 of the files that this run has left."""
    files = {"proof.txt": f"{stamp.task} {stamp.run}".encode()}
    if kind == "files":
        for number in range(PARTS):
            files[f"part-{number}.bin"] = f"{stamp.task} {stamp.run} {number}\n".encode() * 1500
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def now() -> float:
    """Seconds of the clock that the stamps carry."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# Processes, held by a descriptor so that a number that is used again hits nobody else


@dataclass(frozen=True, slots=True)
class Held:
    """A process that is about to be hurt."""

    pid: int
    descriptor: int
    task: str | None
    run: str | None

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    @property
    def is_alive(self) -> bool:
        """Whether it can still do anything: a zombie has no environment any more."""
        return any(True for _ in _marks(self.pid))

    @property
    def is_stopped(self) -> bool:
        return _state(self.pid) in "TZX"

    def close(self) -> None:
        os.close(self.descriptor)


def held(pids: Iterable[int]) -> list[Held]:
    """Those of these processes that live."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
            marks = dict(_marks(pid))
            folder = marks.get("RUNDIR")
            found.append(Held(pid, descriptor, marks.get("TASK_ID"), Path(folder).name if folder else None))
    return found


def _marks(pid: int) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, equals, value = line.decode(errors="replace").partition("=")
            if equals:
                yield name, value


def _state(pid: int) -> str:
    """The letter of its state (proc(5)); X once it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _stamp(line: str) -> Stamp:
    word, task, run, life, key, pid, at, holder = line.split(" ")
    return Stamp(word, task, run, life, key, int(pid), float(at), holder)
