"""The floors: what the same machine does at the same moment without us. Each is a process of its own.

Run as ``python -m benchmarks.floors``; prints one JSON object.
"""

import argparse
import binascii
import csv
import json
import os
import re
import resource
import socket
import time
from pathlib import Path

from benchmarks.wire import closed_loop, percentiles

PIECE_BYTES = 3 << 18
"""A multiple of three, so that the pieces of base64 fit together."""


def spawn(program: str, *, count: int, at_once: int) -> dict[str, float]:
    """Start a program over and over with posix_spawn(3), so many at once, and wait for each."""
    arguments = [program]
    spawned_at: dict[int, float] = {}
    milliseconds = []
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    for number in range(count + at_once):
        if number >= at_once:
            pid, status = os.waitpid(-1, 0)
            if status:
                raise SystemExit(f"{program} ended with status {status}")
            milliseconds.append((time.perf_counter() - spawned_at.pop(pid)) * 1000)
        if number < count:
            before = time.perf_counter()
            spawned_at[os.posix_spawn(program, arguments, os.environ)] = before
    seconds = time.perf_counter() - started
    cpu_ms = (_cpu_seconds() - cpu_started) * 1000 / count
    return {"per_second": count / seconds, "cpu_ms": cpu_ms, **percentiles(milliseconds)}


def xadd(address: str, *, count: int, connections: int) -> dict[str, float]:
    """Add entries of about the size of a task to a stream, and forget it."""
    key = b"benchmark:%d" % os.getpid()
    many = [_connected(address) for _ in range(connections)]
    request = _command(b"XADD", key, b"*", b"task", b"x" * 200)
    started = time.perf_counter()
    _, answers = closed_loop(many, [request] * count, is_whole=lambda data: data.count(b"\r\n") >= 2)
    seconds = time.perf_counter() - started
    closed_loop(many[:1], [_command(b"DEL", key)], is_whole=lambda data: data.endswith(b"\r\n"))
    if not all(answer.startswith(b"$") for answer in answers):
        raise SystemExit("the store refused an entry")
    return {"per_second": count / seconds}


def read_csv(path: str) -> dict[str, float]:
    """Read all rows of a file and keep none."""
    started = time.perf_counter()
    with open(path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123 - as short as a reader can be
        rows = sum(1 for _ in csv.reader(file, strict=True))
    return {"seconds": time.perf_counter() - started, "rows": rows, "peak_mb": peak_mb()}


def base64(path: str) -> dict[str, float]:
    """Encode a file in pieces and keep none."""
    started = time.perf_counter()
    with open(path, "rb") as file:  # noqa: PTH123 - as above
        while piece := file.read(PIECE_BYTES):
            binascii.b2a_base64(piece, newline=False)
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb()}


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _connected(address: str) -> socket.socket:
    """A connection to ``unix:PATH`` or ``HOST:PORT``."""
    kind, _, place = address.partition(":")
    if kind != "unix":
        return socket.create_connection((kind, int(place)))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(place)
    return connection


def _command(*words: bytes) -> bytes:
    """A command in the Redis serialization protocol (RESP2)."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def peak_mb(pid: int | str = "self") -> float:
    """The most memory a process had resident since its start, or since the mark was set back (proc(5), VmHWM)."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("floor", choices=("spawn", "xadd", "csv", "base64"))
    parser.add_argument("subject", help="a program, the address of a store, or a file")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1)
    options = parser.parse_args()
    match options.floor:
        case "spawn":
            found = spawn(options.subject, count=options.count, at_once=options.at_once)
        case "xadd":
            found = xadd(options.subject, count=options.count, connections=options.at_once)
        case "csv":
            found = read_csv(options.subject)
        case _:
            found = base64(options.subject)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
