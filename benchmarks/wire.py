"""The load, as a process of its own: requests over raw sockets, since a client library would be what is measured.

Run as ``python -m benchmarks.wire``; prints one JSON object.
"""

import argparse
import json
import os
import re
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

PAUSE_SECONDS = 0.01
"""Between two tasks of the latency measure, so that each meets an idle system."""

LOOK_SECONDS = 0.02
"""Between two looks at the last task of a burst."""

HEALTH_PAUSE_SECONDS = 0.01
HOLD_SECONDS = 2.0
"""For how long a request that is to wait must not be answered."""

BEGIN_SECONDS = 30.0
"""By when all of very many streams have begun."""

PIECE_BYTES = 1 << 18
LOOKED_AT = 1_000
"""Of how many tasks of a burst the end is looked at, evenly chosen, and always of the last ones."""

LAST_ONES = 256

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CLOSE = re.compile(rb"(?i)\r\nconnection: *close")
_ID = re.compile(rb'"id": *"([^"]+)"')
_STATUS = re.compile(rb'"status": *"([a-z-]+)"')


def closed_loop(
    connections: list[socket.socket],
    requests: Iterable[bytes],
    *,
    is_whole: Callable[[bytes], bool],
    reopen: Callable[[], socket.socket] | None = None,
) -> tuple[list[float], list[bytes]]:
    """Keep one request in flight on each connection until all are answered; their milliseconds and answers.

    A connection that the server closes with its answer is opened anew, which counts as part of the next request.
    """
    waiting = iter(requests)
    sent_at: dict[socket.socket, float] = {}
    held = dict.fromkeys(connections, b"")
    milliseconds, answers = [], []
    with selectors.DefaultSelector() as selector:

        def send_next(connection: socket.socket, *, is_closed: bool) -> None:
            if is_closed:
                selector.unregister(connection)
                connection.close()
            request = next(waiting, None)
            if request is None:
                if not is_closed:
                    selector.unregister(connection)
                return
            started = time.perf_counter()
            if is_closed:
                assert reopen, "only servers of others close their connections"
                connection = reopen()
                held[connection] = b""
                selector.register(connection, selectors.EVENT_READ)
            sent_at[connection] = started
            connection.sendall(request)

        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
            send_next(connection, is_closed=False)
        while selector.get_map():
            for key, _ in selector.select():
                ready: socket.socket = key.fileobj  # type: ignore[assignment] # registered above as sockets
                held[ready] += _received(ready)
                if is_whole(held[ready]):
                    milliseconds.append((time.perf_counter() - sent_at[ready]) * 1000)
                    answers.append(held[ready])
                    is_closed = bool(reopen and _is_last(held.pop(ready)))
                    held[ready] = b""
                    send_next(ready, is_closed=is_closed)
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


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server is asked: where tasks are posted, and where their documents are.

    Without a place for documents the answer to the POST is the end of the task. What is posted may end with a
    number: the seconds that the script sleeps.
    """

    submit: str = "/task/"
    document: str = "/task/"


class Api:
    """A server on the loopback address, over one connection and a few more for load."""

    def __init__(self, host: str, port: int, dialect: Dialect = Dialect()) -> None:
        self._address = (host, port)
        self._dialect = dialect
        self._own = self._connected()

    def submit(self, *, tasks: int, connections: int) -> tuple[dict[str, float], list[str]]:
        """Submit all as fast as the server takes them; also the ids."""
        started = time.perf_counter()
        milliseconds, answers = self._many([self._posting()] * tasks, connections)
        seconds = time.perf_counter() - started
        ids = [_id(one) for one in answers] if self._dialect.document else []
        return {"submits_per_second": tasks / seconds, **percentiles(milliseconds)}, ids

    def burst(self, *, tasks: int, connections: int) -> dict[str, float]:
        """Submit all at once, wait for the last; those that are looked at must have succeeded."""
        started = ended = time.perf_counter()
        submitted, ids = self.submit(tasks=tasks, connections=connections)
        ended = time.perf_counter()
        for task_id in _looked_at(ids):
            if self._end(task_id, pause_seconds=LOOK_SECONDS):
                ended = time.perf_counter()
        return {**submitted, "tasks_per_second": tasks / (ended - started)}

    def latency(self, *, tasks: int, mode: str) -> dict[str, float]:
        """From before the POST until the end is known, one task after the other.

        By polls without a pause, by a POST that waits, or by a GET that does; nothing where the server knows no
        such wait.
        """
        milliseconds = []
        for number in range(tasks):
            time.sleep(PAUSE_SECONDS)
            started = time.perf_counter()
            answer = self._ask(self._posting(prefer="Prefer: wait=10\r\n" if mode == "wait" else ""))
            if mode == "long-poll":
                task_id = _id(answer)
                answer = self._ask(self._getting(f"{task_id}?wait=10"))
            if mode == "poll" and self._dialect.document:
                self._end(_id(answer), pause_seconds=0)
            elif mode != "poll" and _status(answer) != b"ready":
                if number == 0 and _status(answer) == b"not-ready":
                    self._end(_id(answer), pause_seconds=LOOK_SECONDS)
                    return {}
                raise SystemExit(f"the answer to a request that waits: {answer!r}")
            milliseconds.append((time.perf_counter() - started) * 1000)
        return percentiles(milliseconds)

    def poll(self, *, seconds: int, connections: int) -> dict[str, float]:
        """Ask for one task over and over: while it runs, and then when it has ended."""
        found: dict[str, float] = {}
        task_id = _id(self._ask(self._posting(seconds + 2)))
        for when in ("running", "finished"):
            if when == "finished":
                self._end(task_id, pause_seconds=LOOK_SECONDS)
            started = time.perf_counter()
            milliseconds, answers = self._many(_before(started + seconds, self._getting(task_id)), connections)
            took = time.perf_counter() - started
            wanted = b"not-ready" if when == "running" else b"ready"
            if any(_status(answer) != wanted for answer in (answers[0], answers[-1])):
                raise SystemExit(f"a poll of a task that is {when}: {answers[-1]!r}")
            found |= {f"{when} per_second": len(answers) / took}
            found |= {f"{when} {name}": value for name, value in percentiles(milliseconds).items()}
        return found

    def fetch(self, number: int = 0) -> dict[str, float]:
        """From before the POST until the last byte of the whole document is here; then the document once more."""
        started = time.perf_counter()
        task_id = _id(self._ask(self._posting(number)))
        while _status(beginning := self._begun(task_id)) == b"not-ready":
            self._own.close()
            time.sleep(0.005)
            self._own = self._connected()
        if _status(beginning) != b"ready":
            raise SystemExit(f"the task failed: {beginning[:1000]!r}")
        first_byte = time.perf_counter() - started
        self._drain(beginning)
        found = {"seconds": time.perf_counter() - started, "first_byte": first_byte}
        self._own = self._connected()
        started = time.perf_counter()
        beginning = self._begun(task_id)
        found["later_first_byte_ms"] = (time.perf_counter() - started) * 1000
        self._drain(beginning)
        self._own = self._connected()
        return found

    def download(self, *, name: str) -> dict[str, float]:
        """One kept file of a task that was made for it, or of a static server, as it is."""
        path = f"/{name}"
        if self._dialect.document:
            task_id = _id(self._ask(self._posting()))
            self._own.close()
            self._own = self._connected()
            while _status(self._begun(f"{task_id}?attachments=none")) == b"not-ready":
                self._own.close()
                time.sleep(0.05)
                self._own = self._connected()
            path = f"{self._dialect.document}{task_id}/attachments/{name}"
        self._own.close()
        self._own = self._connected()
        started = time.perf_counter()
        self._own.sendall(self._request("GET", path))
        beginning = self._own.recv(PIECE_BYTES)
        if b" 200 " not in beginning[:20]:
            raise SystemExit(f"no file: {beginning[:300]!r}")
        self._drain(beginning)
        return {"seconds": time.perf_counter() - started}

    def read(self, *, clients: int) -> dict[str, float]:
        """How long /health takes while so many clients read a large document, from first byte to last."""
        task_id = _id(self._ask(self._posting()))
        while _status(self._begun(task_id)) == b"not-ready":
            self._own.close()
            time.sleep(0.05)
            self._own = self._connected()
        self._own.close()
        self._own = self._connected()
        self._ask(self._request("GET", "/health"))
        reader = os.fork()
        if not reader:
            self._drain_many(task_id, clients)
            os._exit(0)
        milliseconds = []
        while not os.waitpid(reader, os.WNOHANG)[0]:
            started = time.perf_counter()
            self._ask(self._request("GET", "/health"))
            milliseconds.append((time.perf_counter() - started) * 1000)
            time.sleep(HEALTH_PAUSE_SECONDS)
        return {"most": max(milliseconds)}

    def hold(self, *, count: int, what: str) -> None:
        """Keep so many connections open until the standard input ends; says when all of them stand."""
        task_id = _id(self._ask(self._posting(120))) if what != "silent" else ""
        request = self._request("GET", {
            "long-poll": f"{self._dialect.document}{task_id}?wait=100",
            "stream": f"{self._dialect.document}{task_id}/events",
            "silent": "",
        }[what])  # fmt: skip
        held = []
        for _ in range(count):
            held.append(self._connected())
            if what != "silent":
                held[-1].sendall(request)
        refused = _refused(held, what) if what != "silent" else 0
        if 0 < refused < count:
            raise SystemExit(f"{refused:,} of {count:,} connections were not held")
        print(json.dumps({"is_known": not refused}), flush=True)
        sys.stdin.read()
        if task_id:
            self._ask(self._request("POST", f"{self._dialect.document}{task_id}/cancel"))

    def close(self) -> None:
        self._own.close()

    def made(self) -> str:
        """The id of a new task."""
        return _id(self._ask(self._posting()))

    def document(self, task_id: str) -> bytes:
        return self._ask(self._getting(task_id))

    def end_of_one(self) -> None:
        """Make one task, and wait until it has ended well."""
        answer = self._ask(self._posting())
        if self._dialect.document:
            self._end(_id(answer), pause_seconds=0.002)

    # What the server says

    def _end(self, task_id: str, *, pause_seconds: float) -> bool:
        """Wait until a task has ended well; whether it had not yet at the first look."""
        has_waited = False
        while (status := _status(answer := self._ask(self._getting(task_id)))) == b"not-ready":
            has_waited = True
            time.sleep(pause_seconds)
        if status != b"ready":
            raise SystemExit(f"a task did not succeed: {answer!r}")
        return has_waited

    def _begun(self, path: str) -> bytes:
        """The head and the beginning of a document; its rest stays in the connection."""
        self._own.sendall(self._getting(path))
        beginning = b""
        while not _STATUS.search(beginning) and (piece := self._own.recv(1 << 16)):
            beginning += piece
        return beginning

    def _drain(self, beginning: bytes) -> None:
        """Read the rest of an answer and close."""
        head, _, body = beginning.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size, piece = len(body), bytearray(PIECE_BYTES)
        is_chunked = length is None
        tail = body[-16:]
        while (is_chunked or size < int(length[1])) and (count := self._own.recv_into(piece)):  # type: ignore[index]
            size += count
            tail = (tail + piece[max(0, count - 16) : count])[-16:]
            if is_chunked and tail.endswith(b"0\r\n\r\n"):
                break
        self._own.close()

    def _drain_many(self, task_id: str, clients: int) -> None:
        with selectors.DefaultSelector() as selector:
            for _ in range(clients):
                connection = self._connected()
                close = self._getting(task_id).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                connection.sendall(close)
                selector.register(connection, selectors.EVENT_READ)
            piece = bytearray(PIECE_BYTES)
            while selector.get_map():
                for key, _ in selector.select():
                    if not key.fileobj.recv_into(piece):  # type: ignore[union-attr] # registered above as sockets
                        selector.unregister(key.fileobj)

    def _many(self, requests: Iterable[bytes], connections: int) -> tuple[list[float], list[bytes]]:
        """Milliseconds and answers of many requests, none of which may be refused."""
        many = [self._connected() for _ in range(connections)]
        milliseconds, answers = closed_loop(many, requests, is_whole=is_http_answer, reopen=self._connected)
        for connection in many:
            connection.close()
        if refusal := next((answer for answer in answers if not _is_good(answer)), None):
            raise SystemExit(f"a request under load was refused: {refusal[:1000]!r}")
        return milliseconds, answers

    def _ask(self, request: bytes) -> bytes:
        if _is_closed(self._own):  # while it was idle, as a server may (RFC 9112, section 9.5)
            self._own.close()
            self._own = self._connected()
        self._own.sendall(request)
        answer = _received(self._own)
        while not is_http_answer(answer):
            answer += _received(self._own)
        if _is_last(answer):
            self._own.close()
            self._own = self._connected()
        return answer

    def _posting(self, number: int = 0, *, prefer: str = "") -> bytes:
        return self._request("POST", f"{self._dialect.submit}{number}", prefer)

    def _getting(self, path: str) -> bytes:
        return self._request("GET", f"{self._dialect.document}{path}")

    def _request(self, method: str, path: str, headers: str = "") -> bytes:
        length = "Content-Length: 0\r\n" if method == "POST" else ""
        host, port = self._address
        return f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}{length}\r\n".encode()

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise SystemExit("the server closed a connection")
    return data


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _is_last(answer: bytes) -> bool:
    """Whether the server closes the connection with this answer (RFC 9112, section 9.6)."""
    return bool(_CLOSE.search(answer.partition(b"\r\n\r\n")[0]))


def _refused(connections: list[socket.socket], what: str) -> int:
    """How many were told what they should not be: anything, or of streams anything but their beginning."""
    refused, end = 0, time.monotonic() + (BEGIN_SECONDS if what == "stream" else HOLD_SECONDS)
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                told: socket.socket = key.fileobj  # type: ignore[assignment] # registered above as sockets
                selector.unregister(told)
                refused += not (what == "stream" and b"text/event-stream" in told.recv(1 << 16))
        return refused + (len(selector.get_map()) if what == "stream" else 0)


def _is_good(answer: bytes) -> bool:
    """Whether its status is one of 2xx."""
    return answer[len("HTTP/1.1 ") :].startswith(b"2")


def _id(answer: bytes) -> str:
    found = _ID.search(answer)
    if found is None:
        raise SystemExit(f"no task was made: {answer[:1000]!r}")
    return found[1].decode()


def _status(answer: bytes) -> bytes | None:
    found = _STATUS.search(answer)
    return found[1] if found else None


def _looked_at(ids: list[str]) -> Iterator[str]:
    """The last tasks, newest first, and then some of all others."""
    yield from reversed(ids[-LAST_ONES:])
    yield from ids[: -LAST_ONES : max(1, len(ids) // LOOKED_AT)]


def _before(end: float, request: bytes) -> Iterator[bytes]:
    while time.perf_counter() < end:
        yield request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "load", choices=("submit", "burst", "latency", "poll", "fetch", "download", "read", "hold")
    )
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--submit", default="/task/")
    parser.add_argument("--document", default="/task/")
    for name in ("tasks", "connections", "seconds", "clients", "count"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--mode", default="poll")
    parser.add_argument("--what", default="silent")
    parser.add_argument("--name", default="")
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    api = Api(asked.host, asked.port, Dialect(asked.submit, asked.document))
    found: dict[str, Any] = {}
    match asked.load:
        case "submit":
            found, _ = api.submit(tasks=asked.tasks, connections=asked.connections)
        case "burst":
            found = api.burst(tasks=asked.tasks, connections=asked.connections)
        case "latency":
            found = api.latency(tasks=asked.tasks, mode=asked.mode)
        case "poll":
            found = api.poll(seconds=asked.seconds, connections=asked.connections)
        case "fetch":
            found = api.fetch()
        case "download":
            found = api.download(name=asked.name)
        case "read":
            found = api.read(clients=asked.clients)
        case _:
            api.hold(count=asked.count, what=asked.what)
            return
    print(json.dumps(found))


if __name__ == "__main__":
    main()
