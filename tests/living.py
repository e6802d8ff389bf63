"""What tests of executor and guardian look at: the living processes of a run, and one that will not hold still."""

import contextlib
import os
from pathlib import Path

CHAIN = """
import os, time
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
    with open(os.environ["RUNDIR"] + "/pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.002)
"""
"""A process that has moved on to a child in another session whenever somebody looks at it."""


def living(folder: Path) -> set[int]:
    """The processes of a run that are not dead: a dead one has no environment any more (proc(5))."""
    mark = b"RUNDIR=" + os.fsencode(folder)
    found: set[int] = set()
    before = None
    while not found and before != (before := youngest()):  # a process may be born while we look
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


def youngest() -> str:
    """The number of the process that was born last (proc(5), loadavg)."""
    return Path("/proc/loadavg").read_text().split()[-1]
