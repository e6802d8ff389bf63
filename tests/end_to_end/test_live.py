"""Waiting and following over HTTP: real servers, workers and Redis, some of them killed while others wait."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.end_to_end.processes import PATIENCE_SECONDS, Server, Site, shell_config, until
from tests.servers import RedisServer

WAIT_FOR_GO = 'until [ -e "go-$NAME" ]; do sleep 0.02; done'
UNKNOWN = "00000000-0000-4000-8000-000000000000"
Headers = dict[str, str]


@pytest.fixture(scope="module")
def site(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("live"), shell_config(), SCRIPT_RUNNER_REDIS_URL=redis_server.url) as site:
        yield site


@pytest.fixture(scope="module")
def server(site: Site) -> Server:
    """A server and a worker; a test submits tasks of its own and leaves none running."""
    server = site.serve()
    site.worker("--concurrency", "4")
    server.wait_until_ready()
    return server


@pytest.fixture(scope="module")
def other(site: Site) -> Server:
    """A second server of the same installation."""
    other = site.serve()
    other.wait_until_ready(workers=0)
    return other


def waiting(server: Server) -> int:
    """How many callers wait at this server, as it tells those who watch it."""
    found = re.search(r"^script_runner_waiting_callers ([0-9.]+)$", server.http.get("/metrics").text, re.MULTILINE)
    assert found
    return int(float(found[1]))


def go(server: Server, name: str) -> None:
    (server.folder / f"go-{name}").touch()


def submit(
    server: Server, code: str, *, wait: str | None = None, path: str = "/task", **body: Any
) -> httpx.Response:
    headers = {} if wait is None else {"Prefer": wait}
    return server.http.post(path, json={"code": code, **body}, headers=headers)


class Beside(threading.Thread):
    """Something that is done beside the test, and what came of it."""

    def __init__(self, job: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._job = job
        self._found: list[Any] = []
        self.start()

    def run(self) -> None:
        try:
            self._found.append(self._job())
        except BaseException as error:  # noqa: BLE001 - it is raised in the test
            self._found.append(error)

    @property
    def is_over(self) -> bool:
        return bool(self._found)

    def result(self) -> Any:
        self.join(PATIENCE_SECONDS)
        assert self._found, "it does not come to an end"
        if isinstance(self._found[0], BaseException):
            raise self._found[0]
        return self._found[0]


class Stream:
    """One event stream: what has come, in order."""

    def __init__(self, url: str, task_id: str, *, last: str | None = None, query: str = "") -> None:
        self.events: list[tuple[str, str, Any]] = []
        """Id, name and data of each."""
        self.comments = 0
        self.answer: httpx.Response | None = None
        self._url = f"{url}/task/{task_id}/events{query}"
        self._headers = {"Last-Event-ID": last} if last else {}
        self.reading = Beside(self._read)

    def _read(self) -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream(
                "GET", self._url, headers=self._headers, timeout=PATIENCE_SECONDS, trust_env=False
            ) as answer,
        ):
            self.answer = answer
            fields: dict[str, str] = {}
            for line in _lines(answer):
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                else:
                    if "event" in fields:
                        self.events.append((fields["id"], fields["event"], json.loads(fields["data"])))
                    fields = {}

    def wait_for(self, is_there: Callable[[], object]) -> None:
        until(lambda: bool(is_there()), why=lambda: str(self.events)[-2000:])

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.events]

    @property
    def last(self) -> str:
        return self.events[-1][0]

    def text(self, stream: str = "stdout") -> str:
        return "".join(data["text"] for _, name, data in self.events if name == stream)


def _lines(answer: httpx.Response) -> Iterator[str]:
    """By line feed alone: httpx takes other characters for ends of lines too."""
    rest = b""
    for piece in answer.iter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode() for line in lines)


# Submit and wait


def test_a_submit_that_waits_is_answered_with_the_result(server: Server) -> None:
    """Prefer: wait: 200, the whole document, Location and Preference-Applied, and no further request."""
    answer = submit(server, "printf ten > $RUNDIR/files/x", wait="wait=20")

    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=20")
    document = answer.json()
    assert answer.headers["location"] == f"/task/{document['id']}"
    assert (document["state"], document["results"]) == ("succeeded", [{"name": "alpha", "value": "1"}])
    assert document == server.document(document["id"])


def test_a_failed_script_is_an_answer_too(server: Server) -> None:
    """A submit that waits answers 200 for a task that failed, as a poll does."""
    answer = submit(server, "echo why >&2; exit 3", wait="wait=20")

    assert (answer.status_code, answer.json()["state"]) == (200, "failed")


def test_a_submit_whose_time_passes_is_answered_202(server: Server) -> None:
    """A task that takes longer than the caller would wait: 202 and the task, which goes on."""
    answer = submit(server, WAIT_FOR_GO, name="late", wait="wait=1")

    assert (answer.status_code, answer.json()["status"]) == (202, "not-ready")
    assert answer.headers["location"] == f"/task/{answer.json()['id']}"
    go(server, "late")
    assert server.finished(answer.json()["id"])["state"] == "succeeded"


def test_the_original_route_answers_200_both_times(server: Server) -> None:
    """POST /script waits too, and answers 200 whether or not the task has ended."""
    ended = submit(server, "true", path="/script", wait="wait=20")
    waiting = submit(server, WAIT_FOR_GO, path="/script", name="script", wait="wait=1")

    assert [ended.status_code, waiting.status_code] == [200, 200]
    assert [ended.json()["status"], waiting.json()["status"]] == ["ready", "not-ready"]
    go(server, "script")


@pytest.mark.parametrize(
    "prefer",
    ["respond-async", "wait", "wait=", "wait=x", "wait=-1", "wait=1.5", "waiting=9", "wait=0", 'wait="9', ","],
)
def test_a_preference_that_is_none_is_passed_over(server: Server, prefer: str) -> None:
    """What is not understood is no error (RFC 7240, section 2): the submit is answered at once."""
    answer = submit(server, "true", wait=prefer)

    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("respond-async, wait=20", "wait=20"),
        ('WAIT = "20" ; foo=bar, wait=3', "wait=20"),
        ("wait=999999999", "wait=60"),
    ],
)
def test_a_preference_is_read_as_its_standard_says(server: Server, prefer: str, applied: str) -> None:
    """Among others, quoted, with parameters, more than is granted: it is applied, and said how."""
    answer = submit(server, "true", wait=prefer)

    assert (answer.status_code, answer.headers["preference-applied"]) == (200, applied)


def test_a_repeated_submit_waits_for_the_first_task(server: Server) -> None:
    """Under one Idempotency-Key all who wait get the same task, also when it has ended already."""

    def ask() -> httpx.Response:
        headers = {"Prefer": "wait=20", "Idempotency-Key": "live-1"}
        return httpx.post(
            f"{server.url}/task", json={"code": "sleep 0.3"}, headers=headers, timeout=PATIENCE_SECONDS
        )

    answers = [asked.result() for asked in [Beside(ask) for _ in range(4)]] + [ask()]

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert {answer.json()["state"] for answer in answers} == {"succeeded"}


def test_a_caller_who_goes_away_leaves_the_task(server: Server) -> None:
    """A connection that is closed while the submit waits: the task was queued, and runs."""
    body = json.dumps({"code": 'echo "$NAME" > gone', "name": "gone"}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    (server.folder / "go-block").unlink(missing_ok=True)
    blockers = [server.submit(WAIT_FOR_GO, name="block") for _ in range(4)]  # all slots of the worker
    for blocker in blockers:
        server.wait_for_state(blocker, "running")
    known = server.http.get("/task").json()["tasks"][0]["id"]
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(
            b"POST /task HTTP/1.1\r\nHost: x\r\nPrefer: wait=50\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        task_id = until(lambda: _newest(server, known))
    go(server, "block")

    assert server.finished(task_id)["state"] == "succeeded"
    assert (server.folder / "gone").read_text() == "gone\n"


def _newest(server: Server, known: str) -> str | None:
    newest = str(server.http.get("/task").json()["tasks"][0]["id"])
    return None if newest == known else newest


# Long-polls


def test_a_long_poll_is_answered_when_the_task_ends(server: Server, other: Server) -> None:
    """At any server: it waits, and answers the final document in the moment of the end."""
    task_id = server.submit(WAIT_FOR_GO, name="poll")
    asked = [Beside(lambda at=at: at.http.get(f"/task/{task_id}?wait=30")) for at in (server, other)]  # type: ignore[misc]
    server.wait_for_state(task_id, "running")
    assert not any(ask.is_over for ask in asked)
    go(server, "poll")

    assert [ask.result().json()["state"] for ask in asked] == ["succeeded"] * 2


def test_a_long_poll_of_an_ended_task_is_answered_at_once(server: Server) -> None:
    """Nobody waits for what is there."""
    task_id = server.run("true")["id"]

    with httpx.Client(base_url=server.url, timeout=5.0) as impatient:
        assert impatient.get(f"/task/{task_id}?wait=60").json()["state"] == "succeeded"


def test_a_long_poll_takes_the_preference_too(server: Server) -> None:
    """Prefer: wait=1 on a task that goes on: the document as it is after a second, and what was applied."""
    task_id = server.submit(WAIT_FOR_GO, name="prefer")
    begun = time.monotonic()
    answer = server.http.get(f"/task/{task_id}?attachments=none", headers={"Prefer": "wait=1"})

    assert time.monotonic() - begun >= 1
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("not-ready", "wait=1")
    go(server, "prefer")


@pytest.mark.parametrize("wait", ["x", "-1", "1e3", "", "1.2345", "9999999999"])
def test_a_wait_that_is_no_number_is_refused(server: Server, wait: str) -> None:
    """?wait= is a number of seconds, or 400 that names it."""
    answer = server.http.get(f"/task/{UNKNOWN}", params={"wait": wait})

    assert answer.status_code == 400
    assert answer.json()["errors"][0]["name"] == "wait"


@pytest.mark.parametrize("way", ["cancel", "delete"])
def test_a_queued_task_that_is_stopped_ends_the_wait(server: Server, way: str) -> None:
    """Cancel of a queued task answers its long-poll with the end, its removal with 404."""
    task_id = server.http.post(
        "/task", json={"code": "true"}, headers={"Task-Not-Before": "2027-06-01T00:00:00Z"}
    ).json()["id"]
    asked = Beside(lambda: httpx.get(f"{server.url}/task/{task_id}?wait=30", timeout=PATIENCE_SECONDS))
    until(lambda: waiting(server) == 1)
    if way == "cancel":
        server.http.post(f"/task/{task_id}/cancel")
    else:
        server.http.delete(f"/task/{task_id}")

    answer = asked.result()
    assert (answer.status_code, answer.json().get("state")) == (
        (200, "cancelled") if way == "cancel" else (404, None)
    )


def test_waiters_that_went_away_are_forgotten(server: Server) -> None:
    """Many callers who hang up in the middle of a long-poll or a stream are forgotten."""
    task_id = server.submit(WAIT_FOR_GO, name="leak")
    host, port = server.url.removeprefix("http://").split(":")
    callers = [socket.create_connection((host, int(port))) for _ in range(40)]
    for number, caller in enumerate(callers):
        path = f"/task/{task_id}/events" if number % 2 else f"/task/{task_id}?wait=50"
        caller.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    until(lambda: waiting(server) == 40)
    for caller in callers:
        caller.close()

    until(lambda: waiting(server) == 0)
    gone = re.compile(
        r'^script_runner_requests_total\{method="GET",route="/task/\{id\}",status="499"\} [2-9]\d', re.MULTILINE
    )
    until(lambda: gone.search(server.http.get("/metrics").text) is not None)
    go(server, "leak")


# Event streams


def test_a_stream_tells_the_whole_life(server: Server) -> None:
    """The headers, the states, what is said on both streams, one end, and then the stream is over."""
    task_id = server.submit(f"echo reading; {WAIT_FOR_GO}; echo oh >&2; echo größe", name="life")
    stream = Stream(server.url, task_id)
    stream.wait_for(lambda: stream.text() == "reading\n")
    go(server, "life")
    stream.reading.result()

    assert stream.answer
    assert stream.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.answer.headers["cache-control"] == "no-store"
    assert stream.answer.headers["x-accel-buffering"] == "no"
    assert stream.answer.headers["access-control-allow-origin"] == "*"
    assert (stream.text(), stream.text("stderr")) == ("reading\ngröße\n", "oh\n")
    assert stream.names[0] == "state"
    assert stream.names.count("end") == 1
    assert stream.names[-1] == "end"
    assert stream.events[-1][2] == {**stream.events[-1][2], "status": "ready", "state": "succeeded", "id": task_id}


def test_after_the_end_there_is_nothing(server: Server) -> None:
    """Who comes again with the id of the end gets 204, at which an EventSource comes no more."""
    task_id = server.run("echo x")["id"]
    stream = Stream(server.url, task_id)
    stream.reading.result()

    assert stream.names == ["stdout", "end"]
    answer = server.http.get(f"/task/{task_id}/events", headers={"Last-Event-ID": stream.last})
    assert (answer.status_code, answer.content) == (204, b"")


def test_head_of_a_stream_does_not_wait(server: Server) -> None:
    """HEAD is answered at once, with the headers."""
    task_id = server.submit(WAIT_FOR_GO, name="head")
    answer = server.http.head(f"/task/{task_id}/events", timeout=5.0)

    assert answer.headers["content-type"].startswith("text/event-stream")
    go(server, "head")


@pytest.mark.parametrize("last", ["x", "1-running-0", "1-walking-0-0"])
def test_an_id_that_was_not_given_out_is_refused(server: Server, last: str) -> None:
    """Last-Event-ID of something else is 400."""
    task_id = server.run("true")["id"]
    answer = server.http.get(f"/task/{task_id}/events", headers={"Last-Event-ID": last})

    assert answer.status_code == 400
    assert answer.json()["errors"][0]["name"] == "Last-Event-ID"


def test_a_stream_can_be_limited_in_time(server: Server) -> None:
    """?wait= ends it, without an end of the task."""
    task_id = server.submit(WAIT_FOR_GO, name="limit")
    stream = Stream(server.url, task_id, query="?wait=0.3")
    stream.reading.result()

    assert "end" not in stream.names
    go(server, "limit")


def test_two_streams_are_each_told_all(server: Server, other: Server) -> None:
    """Two who follow one task, at two servers, see the same events."""
    task_id = server.submit(f"{WAIT_FOR_GO}; for i in 1 2 3; do echo $i; sleep 0.1; done", name="two")
    streams = [Stream(at.url, task_id) for at in (server, other)]
    for stream in streams:
        stream.wait_for(lambda stream=stream: stream.events)  # type: ignore[misc]
    go(server, "two")
    for stream in streams:
        stream.reading.result()

    assert [stream.text() for stream in streams] == ["1\n2\n3\n"] * 2
    assert [stream.names.count("end") for stream in streams] == [1, 1]


FIVE_MEGABYTES = """
import sys
line = "Zürich 北京 \\U0001f9ec größe {:06d}\\n"
for number in range(5 * (1 << 20) // len(line.format(0).encode()) + 1):
    sys.stdout.write(line.format(number))
"""


def test_a_long_log_is_told_byte_for_byte(server: Server) -> None:
    """5 MB of characters of one to four bytes, while they are written: in order and whole, as the log is kept."""
    (server.folder / "five.py").write_text(FIVE_MEGABYTES)
    task_id = server.submit(f"{WAIT_FOR_GO}; '{Site.python}' five.py", name="five")
    stream = Stream(server.url, task_id, query="?logs=whole")
    stream.wait_for(lambda: "state" in stream.names)
    go(server, "five")
    stream.reading.result()

    whole = b""
    while piece := server.http.get(f"/task/{task_id}/logs", params={"offset": len(whole)}).content:
        whole += piece
    assert len(whole) > 5 * (1 << 20)
    assert stream.text().encode() == whole
    chunks = [data for _, name, data in stream.events if name == "stdout"]
    assert [data["offset"] for data in chunks] == [0, *(data["next"] for data in chunks[:-1])]


def test_a_stream_resumes_at_another_server(site: Site, server: Server) -> None:
    """A server killed in the middle of a stream: at another one it goes on, without loss or repetition."""
    doomed = site.serve()
    doomed.wait_until_ready()
    task_id = server.submit(f"echo one; {WAIT_FOR_GO}; echo two", name="resume")
    first = Stream(doomed.url, task_id)
    first.wait_for(lambda: first.text() == "one\n")
    doomed.kill()
    first.reading.result()
    second = Stream(server.url, task_id, last=first.last)
    go(server, "resume")
    second.reading.result()

    assert second.text() == "two\n"
    assert (first.names + second.names).count("end") == 1
    assert (first.names + second.names).count("state") == len(
        {event[0] for event in first.events if event[1] == "state"}
    )


def test_a_server_that_stops_sends_its_waiters_on(site: Site, server: Server) -> None:
    """TERM: streams end and waits are answered at once, so the server stops in time; nothing is lost elsewhere."""
    stopping = site.serve()
    stopping.wait_until_ready()
    task_id = server.submit(WAIT_FOR_GO, name="stop")
    stream = Stream(stopping.url, task_id)
    poll = Beside(lambda: httpx.get(f"{stopping.url}/task/{task_id}?wait=50", timeout=PATIENCE_SECONDS))
    submitted = Beside(
        lambda: httpx.post(
            f"{stopping.url}/task",
            json={"code": WAIT_FOR_GO, "name": "stop"},
            headers={"Prefer": "wait=50"},
            timeout=PATIENCE_SECONDS,
        )
    )
    stream.wait_for(lambda: stream.events)
    until(lambda: waiting(stopping) == 3)
    stopping.terminate()

    assert stopping.wait(seconds=4) == 0  # less than the 5 s after which a server cuts its connections
    stream.reading.result()
    assert "end" not in stream.names
    assert (poll.result().status_code, poll.result().json()["status"]) == (200, "not-ready")
    assert submitted.result().status_code == 202
    go(server, "stop")
    again = Stream(server.url, task_id, last=stream.last)
    again.reading.result()
    assert again.names[-1] == "end"
    assert server.finished(submitted.result().json()["id"])["state"] == "succeeded"


# Redis goes away


@pytest.fixture
def own_redis(redis_binary_path: str) -> Iterator[RedisServer]:
    with RedisServer(redis_binary_path) as redis:
        yield redis


def test_redis_killed_under_waiters_fails_none(own_redis: RedisServer, tmp_path: Path) -> None:
    """Streams, long-polls and submits that wait while Redis is killed and restarted: each gets its end, once."""
    with Site(
        tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=own_redis.url, SCRIPT_RUNNER_LEASE_SECONDS="20"
    ) as site:
        server = site.serve()
        worker = site.worker("--concurrency", "4")
        server.wait_until_ready()
        task_id = server.submit(f"echo before; {WAIT_FOR_GO}; echo after", name="redis")
        submitted = Beside(
            lambda: httpx.post(
                f"{server.url}/task",
                json={"code": WAIT_FOR_GO, "name": "redis"},
                headers={"Prefer": "wait=50"},
                timeout=PATIENCE_SECONDS * 2,
            )
        )
        poll = Beside(lambda: httpx.get(f"{server.url}/task/{task_id}?wait=50", timeout=PATIENCE_SECONDS * 2))
        stream = Stream(server.url, task_id)
        stream.wait_for(lambda: stream.text() == "before\n")
        own_redis.kill()
        go(server, "redis")  # the scripts end while nobody can be told
        worker.wait_for_output("cannot report task", times=2)
        assert not any(asked.is_over for asked in (submitted, poll, stream.reading))

        own_redis.start()

        assert (submitted.result().status_code, submitted.result().json()["state"]) == (200, "succeeded")
        assert (poll.result().status_code, poll.result().json()["state"]) == (200, "succeeded")
        stream.reading.result()
        assert stream.text() == "before\nafter\n"
        assert stream.names.count("end") == 1


def test_a_wait_that_ends_without_redis_is_answered_as_it_can_be(own_redis: RedisServer, tmp_path: Path) -> None:
    """Redis stays away: the acknowledged submit is 202, the long-poll what a poll is then: 503, Retry-After."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=own_redis.url) as site:
        server = site.serve()
        server.wait_until_ready(workers=0)
        task_id = server.submit("true")
        submitted = Beside(
            lambda: httpx.post(
                f"{server.url}/task", json={"code": "true"}, headers={"Prefer": "wait=2"}, timeout=PATIENCE_SECONDS
            )
        )
        poll = Beside(lambda: httpx.get(f"{server.url}/task/{task_id}?wait=2", timeout=PATIENCE_SECONDS))
        until(lambda: waiting(server) == 2)
        until(lambda: len(server.http.get("/task").json()["tasks"]) == 2)  # one listens before it submits
        own_redis.kill()

        assert (submitted.result().status_code, submitted.result().json()["status"]) == (202, "not-ready")
        assert poll.result().status_code == 503
        assert int(poll.result().headers["retry-after"]) > 0
