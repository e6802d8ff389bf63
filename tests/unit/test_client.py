"""The client against servers that answer as they were told: older ones, and such as break off."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from tests.servers import free_port

from script_runner import client as module
from script_runner.client import Client, TaskEvent
from script_runner.errors import Code, Error

TASK_ID = "0b6f7c1e-5d0a-4a36-9a4e-2f3c1d0e8b11"
RUNNING = {"id": TASK_ID, "status": "not-ready", "state": "running"}
SUCCEEDED = {"id": TASK_ID, "status": "ready", "state": "succeeded"}

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body; a body of an event stream is sent as it is, and the connection closed."""


class Scripted(ThreadingHTTPServer):
    """Answers by a function of the request's target and headers, and keeps what was asked."""

    def __init__(self, answer: Callable[[str, dict[str, str]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.path, headers))
        status, more, body = self.server.answer(self.path, headers)
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """It says nothing."""


Start = Callable[[Callable[[str, dict[str, str]], Answer]], Scripted]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers, and ends them after the test."""
    servers: list[Scripted] = []

    def begin(answer: Callable[[str, dict[str, str]], Answer]) -> Scripted:
        servers.append(Scripted(answer))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return servers[-1]

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the client, which are not made."""
    made: list[float] = []
    monkeypatch.setattr("script_runner.client.time.sleep", made.append)
    return made


class Clock:
    """The time of the client: it passes in its pauses, and when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def document(content: dict[str, Any]) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def not_found() -> Answer:
    problem = {
        "type": "urn:problem-type:script-runner:not-found",
        "status": 404,
        "detail": "There is nothing here.",
    }
    return 404, {"Content-Type": "application/problem+json"}, json.dumps(problem).encode()


def stream(*events: tuple[str, str, dict[str, Any]], tail: str = "") -> Answer:
    lines = [f"id: {place}\nevent: {name}\ndata: {json.dumps(data)}\n\n" for place, name, data in events]
    return 200, {"Content-Type": "text/event-stream"}, ("retry: 1000\n\n:\n\n" + "".join(lines) + tail).encode()


SAID = {"offset": 0, "next": 4, "text": "one\n"}


# Waiting


def test_the_server_is_asked_to_wait(start: Start, pauses: list[float]) -> None:
    """The first look is at once, each further one lets the server wait; nothing is slept away here."""

    def answer(target: str, _headers: dict[str, str]) -> Answer:
        if "wait=" in target:
            threading.Event().wait(0.05)
        return document(SUCCEEDED if len(server.asked) == 4 else RUNNING)

    server = start(answer)
    with pytest.MonkeyPatch.context() as patch, Client(server.url) as client:
        patch.setattr(module, "WAIT_SECONDS", 0.06)
        assert client.wait(TASK_ID) == SUCCEEDED

    targets = [target for target, _ in server.asked]
    assert "wait=" not in targets[0]
    assert all("wait=0.060" in target for target in targets[1:])
    assert pauses == []


def test_an_older_server_is_not_flooded(start: Start, pauses: list[float]) -> None:
    """One that does not wait, but answers at once, is asked with growing pauses, as before."""
    server = start(lambda _target, _headers: document(SUCCEEDED if len(server.asked) == 9 else RUNNING))
    with Client(server.url) as client:
        assert client.wait(TASK_ID) == SUCCEEDED

    assert len(pauses) == 7
    assert pauses == sorted(pauses)
    assert pauses[0] == module.FIRST_PAUSE_SECONDS


def test_waiting_gives_up_after_its_time(start: Start) -> None:
    """TimeoutError, and no request asks for more than is left."""
    server = start(lambda _target, _headers: document(RUNNING))
    with Client(server.url) as client, pytest.raises(TimeoutError, match="still running"):
        client.wait(TASK_ID, timeout_seconds=0.2)

    waits = [float(target.rpartition("wait=")[2]) for target, _ in server.asked if "wait=" in target]
    assert waits
    assert max(waits) <= 0.2


# Following


def test_a_stream_that_breaks_off_goes_on_where_it_was(start: Start, pauses: list[float]) -> None:
    """Cut in the middle of an event: the next connection names the last whole one, and each comes once."""

    def answer(_target: str, headers: dict[str, str]) -> Answer:
        match headers.get("last-event-id"):
            case None:
                return stream(
                    ("1-running-0-0", "state", RUNNING), ("1-running-4-0", "stdout", SAID), tail="id: 1-ru"
                )
            case "1-running-4-0":
                return stream(("1-end-4-0", "end", SUCCEEDED))
            case other:
                raise AssertionError(other)

    server = start(answer)
    with Client(server.url) as client:
        told = list(client.events(TASK_ID))

    assert told == [TaskEvent("state", RUNNING), TaskEvent("stdout", SAID), TaskEvent("end", SUCCEEDED)]
    assert pauses == [module.RECONNECT_SECONDS]


def test_a_server_that_is_away_for_a_moment_is_asked_again(start: Start, pauses: list[float]) -> None:
    """503 between two connections loses nothing."""
    answers = iter(
        [
            stream(("1-running-0-0", "state", RUNNING)),
            (503, {}, b"away"),
            stream(("1-end-0-0", "end", SUCCEEDED)),
        ]
    )
    server = start(lambda _target, _headers: next(answers))
    with Client(server.url) as client:
        told = list(client.events(TASK_ID))

    assert [event.name for event in told] == ["state", "end"]
    assert [headers.get("last-event-id") for _, headers in server.asked] == [
        None,
        "1-running-0-0",
        "1-running-0-0",
    ]
    assert len(pauses) == 2


def told_by(*answers: httpx.Response) -> list[str]:
    """The names of the events that a client with a patience of 60 s tells by these answers, each given once."""
    coming = iter(answers)
    with Client("http://server", patience_seconds=60) as client:
        client._http = httpx.Client(
            base_url="http://server", transport=httpx.MockTransport(lambda _request: next(coming))
        )
        return [event.name for event in client.events(TASK_ID)]


def last_answer() -> httpx.Response:
    return httpx.Response(200, content=stream(("1-end-0-0", "end", SUCCEEDED))[2])


def test_a_script_that_is_silent_for_long_uses_up_no_patience(clock: Clock) -> None:
    """Comments show that the connection lives: when it is lost in the end, the server is asked again."""

    def silence() -> Iterator[bytes]:
        yield stream(("1-running-0-0", "state", RUNNING))[2]
        for _ in range(3):
            clock.sleep(50)
            yield b":\n\n"
        raise httpx.ReadError("lost")

    told = told_by(httpx.Response(200, content=silence()), httpx.Response(503), last_answer())

    assert told == ["state", "end"]


def test_a_server_that_answers_renews_the_patience(clock: Clock) -> None:
    """So does an answer of which nothing came but its head."""

    def nothing() -> Iterator[bytes]:
        clock.sleep(50)
        yield from ()

    away = [httpx.Response(503) for _ in range(40)]
    told = told_by(*away, httpx.Response(200, content=nothing()), httpx.Response(503), last_answer())

    assert told == ["end"]


def test_a_server_without_events_is_polled(start: Start, pauses: list[float]) -> None:
    """An older server: the same events, from polls and logs."""
    log = b"Z\xc3\xbcrich\n"
    polls = iter([RUNNING, RUNNING, RUNNING, SUCCEEDED])

    def answer(target: str, _headers: dict[str, str]) -> Answer:
        path, _, query = target.partition("?")
        if path.endswith("/events"):
            return not_found()
        if path.endswith("/logs"):
            offset = int(query.rpartition("offset=")[2])
            said = log[offset:] if "stream=stdout" in query else b""
            return 200, {"X-Log-Offset": str(offset), "X-Log-Next-Offset": str(offset + len(said))}, said
        return document(next(polls))

    server = start(answer)
    with Client(server.url) as client:
        told = list(client.events(TASK_ID))

    assert told == [
        TaskEvent("state", RUNNING),
        TaskEvent("stdout", {"offset": 0, "next": 8, "text": "Zürich\n"}),
        TaskEvent("end", SUCCEEDED),
    ]
    assert pauses


def test_an_unknown_task_is_said(start: Start) -> None:
    """404 for the task itself is Error(NOT_FOUND), not a reason to poll."""
    server = start(lambda _target, _headers: not_found())
    with Client(server.url) as client, pytest.raises(Error) as raised:
        list(client.events(TASK_ID))

    assert raised.value.code is Code.NOT_FOUND
    assert len(server.asked) == 2


def test_following_gives_up_after_its_time(start: Start) -> None:
    """TimeoutError, and the server is told how long the stream may last."""
    server = start(lambda _target, _headers: stream(("1-running-0-0", "state", RUNNING)))
    begun = time.monotonic()
    with Client(server.url) as client, pytest.raises(TimeoutError):
        list(client.events(TASK_ID, timeout_seconds=0.3))

    assert time.monotonic() - begun >= 0.3
    assert all(0 < float(target.rpartition("wait=")[2]) <= 0.3 for target, _ in server.asked)


# What cannot be sent


def test_a_token_is_sent_without_the_newline_of_its_file(start: Start) -> None:
    server = start(lambda _target, _headers: document(RUNNING))
    with Client(server.url, token="t0ken\n") as client:
        client.get(TASK_ID)

    assert [headers["authorization"] for _, headers in server.asked] == ["Bearer t0ken"]


@pytest.mark.parametrize("token", ["t0ken\nt0ken", "t0ken t0ken", "t0ken\0", "t0kén"])
def test_a_token_that_cannot_be_sent_is_refused(token: str) -> None:
    """What is wrong is said without a part of it."""
    with pytest.raises(Error) as raised:
        Client("http://server", token=token)

    assert raised.value.code is Code.INVALID_INPUT
    assert raised.value.message.startswith("The token ")
    assert "t0k" not in raised.value.message


def test_a_password_in_the_url_is_not_told() -> None:
    """Who does not answer is said without what only the caller is to know."""
    with Client(f"http://user:pa55@127.0.0.1:{free_port()}") as client, pytest.raises(Error) as raised:
        client.get(TASK_ID)

    assert "http://127.0.0.1:" in raised.value.message
    assert "pa55" not in raised.value.message


def test_a_request_that_cannot_be_sent_is_not_repeated(start: Start, pauses: list[float]) -> None:
    """Neither on the wire, since it would fail again, nor in the sentence, since it may hold a secret."""
    server = start(lambda _target, _headers: document(RUNNING))
    with Client(server.url, patience_seconds=3) as client, pytest.raises(Error) as raised:
        client.submit(idempotency_key="s3cret\n")

    assert (raised.value.code, pauses) == (Code.INVALID_INPUT, [])
    assert "s3cret" not in raised.value.message
