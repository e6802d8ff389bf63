"""The load, as a process of its own: requests over raw sockets, since a client library would be what is measured.

Run as ``python -m benchmarks.wire``; prints one JSON object.
"""

import argparse
import http.client
import json
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from statistics import quantiles
from typing import Any

PAUSE_SECONDS = 0.01
"""Between two tasks of the latency measure, so that each meets an idle system."""

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_ID = re.compile(rb'"id":"([^"]+)"')


def closed_loop(
    connections: list[socket.socket], requests: Iterable[bytes], *, is_whole: Callable[[bytes], bool]
) -> tuple[list[float], list[bytes]]:
    """Keep one request in flight on each connection until all are answered; their milliseconds and answers."""
    waiting = iter(requests)
    sent_at: dict[socket.socket, float] = {}
    held = dict.fromkeys(connections, b"")
    milliseconds, answers = [], []
    with selectors.DefaultSelector() as selector:

        def send_next(connection: socket.socket) -> None:
            request = next(waiting, None)
            if request is None:
                selector.unregister(connection)
                return
            sent_at[connection] = time.perf_counter()
            connection.sendall(request)

        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
            send_next(connection)
        while selector.get_map():
            for key, _ in selector.select():
                ready: socket.socket = key.fileobj  # type: ignore[assignment] # registered above as sockets
                held[ready] += _received(ready)
                if is_whole(held[ready]):
                    milliseconds.append((time.perf_counter() - sent_at[ready]) * 1000)
                    answers.append(held[ready])
                    held[ready] = b""
                    send_next(ready)
    return milliseconds, answers


def is_http_answer(data: bytes) -> bool:
    """Whether this is a whole HTTP/1.1 answer that says its length."""
    head, end, body = data.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """p50 and p99."""
    cuts = quantiles(milliseconds, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}


class Api:
    """A script-runner server on the loopback address, over one keep-alive connection and a few more for load."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._own = self._connected()

    def submit(self, *, tasks: int, connections: int) -> tuple[dict[str, float], list[str]]:
        """Submit all as fast as the server takes them; also the ids."""
        many = [self._connected() for _ in range(connections)]
        started = time.perf_counter()
        milliseconds, answers = closed_loop(
            many, [self._request("POST", "/task")] * tasks, is_whole=is_http_answer
        )
        seconds = time.perf_counter() - started
        return {"submits_per_second": tasks / seconds, **percentiles(milliseconds)}, [_id(one) for one in answers]

    def burst(self, *, tasks: int, connections: int) -> dict[str, float]:
        """Submit all at once, wait for the last; each must have succeeded."""
        started_at = time.time()
        submitted, ids = self.submit(tasks=tasks, connections=connections)
        ended_at = max(_moment(self._final(task_id, pause_seconds=0.02)) for task_id in reversed(ids))
        return {**submitted, "tasks_per_second": tasks / (ended_at - started_at)}

    def latency(self, *, tasks: int) -> dict[str, float]:
        """From before the POST until a poll sees the end, one task after the other."""
        milliseconds = []
        for _ in range(tasks):
            time.sleep(PAUSE_SECONDS)
            started = time.perf_counter()
            task_id = _id(self._ask("POST", "/task"))
            self._final(task_id, pause_seconds=0)
            milliseconds.append((time.perf_counter() - started) * 1000)
        return percentiles(milliseconds)

    def fetch(self) -> dict[str, float]:
        """From before the POST until the last byte of the whole document is here."""
        connection = http.client.HTTPConnection(*self._address)
        started = time.perf_counter()
        connection.request("POST", "/task")
        task_id = json.loads(connection.getresponse().read())["id"]
        while True:
            connection.request("GET", f"/task/{task_id}")
            answer = connection.getresponse()
            beginning = answer.read(300)
            if b'"status":"not-ready"' not in beginning:
                break
            answer.read()
            time.sleep(0.005)
        if b'"status":"ready"' not in beginning:
            raise SystemExit(f"the task failed: {beginning + answer.read(1000)!r}")
        first_byte = time.perf_counter() - started
        size, piece = len(beginning), bytearray(1 << 18)
        while count := answer.readinto(piece):
            size += count
        connection.close()
        return {"seconds": time.perf_counter() - started, "first_byte": first_byte, "bytes": size}

    def _final(self, task_id: str, *, pause_seconds: float) -> dict[str, Any]:
        while b'"status":"not-ready"' in (answer := self._ask("GET", f"/task/{task_id}")):
            time.sleep(pause_seconds)
        document: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        if document["state"] != "succeeded":
            raise SystemExit(f"a task did not succeed: {document}")
        return document

    def _ask(self, method: str, path: str) -> bytes:
        self._own.sendall(self._request(method, path))
        answer = _received(self._own)
        while not is_http_answer(answer):
            answer += _received(self._own)
        return answer

    def _request(self, method: str, path: str) -> bytes:
        length = "Content-Length: 0\r\n" if method == "POST" else ""
        return f"{method} {path} HTTP/1.1\r\nHost: {self._address[0]}:{self._address[1]}\r\n{length}\r\n".encode()

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise SystemExit("the server closed a connection")
    return data


def _id(answer: bytes) -> str:
    found = _ID.search(answer)
    if found is None:
        raise SystemExit(f"no task was made: {answer[:1000]!r}")
    return found[1].decode()


def _moment(document: dict[str, Any]) -> float:
    return datetime.fromisoformat(document["finished_at"]).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=("submit", "burst", "latency", "fetch"))
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tasks", type=int, default=0)
    parser.add_argument("--connections", type=int, default=1)
    options = parser.parse_args()
    api = Api(options.host, options.port)
    match options.measure:
        case "submit":
            found, _ = api.submit(tasks=options.tasks, connections=options.connections)
        case "burst":
            found = api.burst(tasks=options.tasks, connections=options.connections)
        case "latency":
            found = api.latency(tasks=options.tasks)
        case _:
            found = api.fetch()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
