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
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from benchmarks.material import COLUMNS, SKIPPED
from benchmarks.wire import closed_loop, percentiles

PIECE_BYTES = 3 << 18
"""A multiple of three, so that the pieces of base64 fit together."""

BATCH = 2_000


def spawn(program: str, *, count: int, at_once: int, pause_seconds: float = 0.0) -> dict[str, float]:
    """Start a program over and over with posix_spawn(3), so many at once, and wait for each.

    A pause before each lets it meet an idle machine, whose caches others have used meanwhile.
    """
    arguments = [program, "0"]  # seconds that it sleeps
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
            if pause_seconds:
                time.sleep(pause_seconds)
            before = time.perf_counter()
            spawned_at[os.posix_spawn(program, arguments, os.environ)] = before
    seconds = time.perf_counter() - started
    cpu_ms = (_cpu_seconds() - cpu_started) * 1000 / count
    return {"per_second": count / seconds, "cpu_ms": cpu_ms, **percentiles(milliseconds)}


def xadd(address: str, *, count: int, connections: int) -> dict[str, float]:
    """Add entries of about the size of a task to a stream; then take each by a group; then forget all."""
    key = b"benchmark:%d" % os.getpid()
    many = [_connected(address) for _ in range(connections)]

    def rate(request: bytes, *, is_whole: Callable[[bytes], bool], start: bytes) -> float:
        started = time.perf_counter()
        _, answers = closed_loop(many, [request] * count, is_whole=is_whole)
        if not all(answer.startswith(start) for answer in answers):
            raise SystemExit("the store refused an entry")
        return count / (time.perf_counter() - started)

    added = rate(
        _command(b"XADD", key, b"*", b"task", b"x" * 200),
        is_whole=lambda data: data.count(b"\r\n") >= 2,
        start=b"$",
    )
    closed_loop(
        many[:1],
        [_command(b"XGROUP", b"CREATE", key, b"group", b"0")],
        is_whole=lambda data: data.endswith(b"\r\n"),
    )
    read = _command(b"XREADGROUP", b"GROUP", b"group", b"one", b"COUNT", b"1", b"STREAMS", key, b">")
    taken = rate(read, is_whole=lambda data: data.endswith(b"x\r\n"), start=b"*")
    closed_loop(many[:1], [_command(b"DEL", key)], is_whole=lambda data: data.endswith(b"\r\n"))
    return {"added": added, "taken": taken}


def read_csv(path: str) -> dict[str, float]:
    """Read all rows of a file and keep none."""
    started = time.perf_counter()
    with open(path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123 - as short as a reader can be
        for _ in csv.reader(file, strict=True):
            pass
    return {"seconds": time.perf_counter() - started}


def convert(path: str) -> dict[str, float]:
    """The rows of a table as JSON in a file, as the task wants them, and that file once over loopback."""
    import msgspec  # noqa: PLC0415 - only here

    row = msgspec.defstruct("Row", [name.lower() for name in COLUMNS], gc=False)
    started = time.perf_counter()
    with TemporaryFile() as made, open(path, encoding="utf-8-sig", newline="") as file:  # noqa: PTH123 - as above
        reader = csv.reader(file, strict=True)
        skips = [(index, set(SKIPPED.get(name, ()))) for index, name in enumerate(next(reader)) if name in SKIPPED]
        kept = (row(*values) for values in reader if not any(values[index] in skip for index, skip in skips))
        while batch := list(islice(kept, BATCH)):
            made.write(msgspec.json.encode(batch)[1:-1] + b",")
        made.flush()
        _transfer(made.fileno())
    return {"seconds": time.perf_counter() - started}


def columnar(path: str) -> dict[str, float]:
    """The same by polars, which streams."""
    import polars as pl  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415 - has its own environment

    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        made = Path(folder) / "rows"
        table = pl.scan_csv(path, infer_schema=False)
        for name, skipped in SKIPPED.items():
            table = table.filter(~pl.col(name).is_in(skipped))
        table.rename({name: name.lower() for name in COLUMNS}).sink_ndjson(made)
        with made.open("rb") as file:
            _transfer(file.fileno())
    return {"seconds": time.perf_counter() - started}


def base64(path: str, *, library: str) -> dict[str, float]:
    """Encode a file in pieces and keep none."""
    encode: Callable[[bytes], object] = partial(binascii.b2a_base64, newline=False)
    if library == "pybase64":
        from pybase64 import b64encode as encode  # type: ignore[no-redef,import-not-found,unused-ignore] # noqa: PLC0415 - as above
    started = time.perf_counter()
    with open(path, "rb") as file:  # noqa: PTH123 - as above
        while piece := file.read(PIECE_BYTES):
            encode(piece)
    return {"seconds": time.perf_counter() - started}


def _transfer(descriptor: int) -> None:
    """A file from one process to another through the loopback device."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = os.fork()
        if not sender:
            with socket.create_connection(listener.getsockname()) as connection:
                size, start = os.fstat(descriptor).st_size, 0
                while start < size:
                    start += os.sendfile(connection.fileno(), descriptor, start, size - start)
            os._exit(0)
        piece = bytearray(1 << 18)
        with listener.accept()[0] as connection:
            while connection.recv_into(piece):
                pass
        os.waitpid(sender, 0)


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


def status_mb(pid: int | str, field: str) -> float:
    """What proc(5) says of a process: VmRSS is resident now, VmHWM the most since its start or reset."""
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("floor", choices=("spawn", "xadd", "csv", "convert", "columnar", "binascii", "pybase64"))
    parser.add_argument("subject", help="a program, the address of a store, or a file")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--pause-ms", type=int, default=0)
    options = parser.parse_args()
    match options.floor:
        case "spawn":
            pause_seconds = options.pause_ms / 1000
            found = spawn(
                options.subject, count=options.count, at_once=options.at_once, pause_seconds=pause_seconds
            )
        case "xadd":
            found = xadd(options.subject, count=options.count, connections=options.at_once)
        case "csv":
            found = read_csv(options.subject)
        case "convert":
            found = convert(options.subject)
        case "columnar":
            found = columnar(options.subject)
        case library:
            found = base64(options.subject, library=library)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
