"""Kills the scripts of a worker that died or lost its lease. Runs as a small process of its own.

It needs nothing but the standard library, and two things from the worker: standard input, whose end means that the
worker is gone (a byte means that there is a new deadline), and the descriptor of a notebook, memory that both
share, so that a launch costs no system call::

    HEADER    until when the worker may hold scripts (seconds of the boot-time clock; 0 = not said yet);
              whether run folders stay
    SLOT      one a run: whether it is in use; its process group, 0 if not known yet; the length of the name of its
              run folder, which follows

The signals that end a service are blocked from the start. A process belongs to a run if it is in its group, or if
its environment names the run folder: so are found those that left the group (setsid), and one that was started
but not yet noted.

One stands beside every worker. It would weigh half as much again with contextlib, with signal, of which it needs
one number, and with shutil before the end.
"""

import mmap
import os
import select
import struct
import sys
import time

HEADER = struct.Struct("=d?")
SLOT = struct.Struct("=?iH")
SLOT_BYTES = 4608
SLOTS_AT = 64

SECONDS_TO_CLEAN = 5.0

KILL = 9
"""The one signal that nothing can hold back, by its number (POSIX, kill(1))."""

MEMORY_AT, ENVIRONMENT_AT = 19, 46
"""Where the size of a process, and the start and end of its environment, stand after its state (proc(5), stat)."""


def now() -> float:
    """Seconds of a clock that goes on while the machine sleeps (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def main(descriptor: int) -> None:
    notebook = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    cleaned_for = 0.0
    while True:
        deadline, keeps = HEADER.unpack_from(notebook)
        patience = None if deadline == cleaned_for else max(0.0, deadline - now())
        if select.select([0], [], [], patience)[0]:
            if not os.read(0, 4096):
                break
        elif HEADER.unpack_from(notebook)[0] == deadline:
            clean(runs(notebook))
            cleaned_for = deadline
    left = runs(notebook)
    clean(left)
    if left and not keeps:
        import shutil  # noqa: PLC0415 - 1 MB that only the end needs

        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)


def runs(notebook: mmap.mmap) -> dict[str, int]:
    """The run folders in the notebook, each with its process group, 0 if that is not known yet."""
    found = {}
    for start in range(SLOTS_AT, len(notebook) - SLOT_BYTES + 1, SLOT_BYTES):
        is_used, group, length = SLOT.unpack_from(notebook, start)
        if is_used:
            path = start + SLOT.size
            found[os.fsdecode(notebook[path : path + length])] = group
    return found


def clean(groups: dict[str, int]) -> None:
    """Kill until a look finds nothing, and none was born while it looked: one may start another as it dies."""
    end = now() + SECONDS_TO_CLEAN
    while groups and now() < end:
        before = youngest()
        if not kill(groups) and youngest() == before:
            return
        time.sleep(0.005)


def kill(groups: dict[str, int]) -> int:
    """Send KILL to all that belongs to these runs; return how many were found by their mark, or may bear one."""
    for group in groups.values():
        if group:
            send_kill(-group)
    found, unsure = marked(set(groups))
    for process in found:
        send_kill(process)
    return len(found) + unsure


def send_kill(target: int) -> None:
    """Send KILL to a process, or to a group by its negative number (kill(2)); one that has ended needs none."""
    try:  # noqa: SIM105 - contextlib is not loaded
        os.kill(target, KILL)
    except OSError:
        pass


def youngest() -> bytes:
    """The number of the process that was born last (proc(5), loadavg); none where the system does not say."""
    try:
        with open("/proc/loadavg", "rb") as file:  # noqa: PTH123 - as below
            return file.read().split()[-1]
    except OSError:
        return b""


def marked(folders: set[str]) -> tuple[list[int], int]:
    """The living processes whose environment names one of these run folders, and how many could not yet say so."""
    marks = {b"RUNDIR=" + os.fsencode(folder) for folder in folders}
    found, unsure = [], 0
    for name in processes():
        try:
            if marks.intersection(words := environment(name)):
                found.append(int(name))
            elif words == [b""]:
                unsure += is_in_exec(name)
        except OSError:  # it has ended meanwhile, or is none of ours
            continue
    return found, unsure


def processes() -> list[str]:
    """The numbers of all processes (proc(5)); none where the system does not say."""
    try:
        return [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - pathlib would double this
    except OSError:
        return []


def environment(process: str) -> list[bytes]:
    """The environment a process was started with; an empty word of one that is dead, or between two programs."""
    with open(f"/proc/{process}/environ", "rb") as file:  # noqa: PTH123 - as above
        return file.read().split(b"\0")


def is_in_exec(process: str) -> bool:
    """Whether a process whose environment seemed empty is between two programs, or was a moment ago (execve(2)).

    Then it has none yet, or one that is longer; an empty one ends where it begins (proc(5), stat).
    """
    with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123 - as above
        state, *numbers = file.read().rpartition(b")")[2].split()
    start, end = numbers[ENVIRONMENT_AT], numbers[ENVIRONMENT_AT + 1]
    is_kernels = numbers[MEMORY_AT] == b"0"
    return state not in b"ZX" and not is_kernels and (end == b"0" or start != end)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    sys.exit(0)
