"""Deploys: a rolling restart under load without a failed request or lost task, and how a server ends."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.end_to_end.balancer import Balancer
from tests.end_to_end.processes import Server, Site, shell_config, until
from tests.end_to_end.rolling import Deployment, Figures, load, roll
from tests.servers import RedisServer

LONG = "600"
"""A linger that no test waits for."""

BODY = b'{"code": "true"}'
HEAD = b"POST /task HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
    BODY
)


def test_a_rolling_restart_fails_no_request_and_loses_no_task(redis_server: RedisServer, tmp_path: Path) -> None:
    """Two servers behind a load balancer and two workers, all replaced twice while callers that never retry go on:
    every request is answered with 2xx, every task succeeds.
    """
    figures, connections = roll(redis_server.url, tmp_path, rounds=2)

    print(figures, *figures.journal, sep="\n")  # noqa: T201 - what is published, and what explains a failure
    assert figures.failures == []
    assert set(figures.states.values()) == {"succeeded"}
    assert figures.restarts == 8
    assert len(connections) == 6
    assert sum(count > 0 for count in connections.values()) >= 4, "the load did not move from server to server"


def test_the_callers_notice_a_server_that_is_cut_off(redis_server: RedisServer, tmp_path: Path) -> None:
    """The test above can fail: when a server is killed in place of stopped, callers see their requests fail."""
    figures = Figures()
    with Balancer() as balancer, Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis_server.url) as site:
        deployment = Deployment(site, balancer, figures)
        with load(balancer.url, figures):
            until(lambda: figures.requests > 50)

            def has_failed() -> bool:
                deployment.cut_a_server_off()
                return bool(figures.failures)

            until(has_failed)


@contextmanager
def lingering(redis: RedisServer, folder: Path, linger_seconds: str) -> Iterator[Server]:
    """A server alone, and how long it goes on serving after TERM."""
    site = Site(
        folder, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis.url, SCRIPT_RUNNER_LINGER_SECONDS=linger_seconds
    )
    with site:
        server = site.serve()
        server.wait_until_ready(workers=0)
        yield server


@pytest.fixture
def server(redis_server: RedisServer, tmp_path: Path) -> Iterator[Server]:
    with lingering(redis_server, tmp_path, LONG) as server:
        yield server


def ask(server: Server, path: str) -> httpx.Response:
    """An answer on a new connection."""
    return httpx.get(server.url + path, trust_env=False)


def terminate(server: Server) -> None:
    """TERM, heard."""
    server.terminate()
    until(lambda: ask(server, "/ready").status_code == 503)


def test_after_term_a_server_is_not_ready_and_goes_on_serving(server: Server) -> None:
    """/ready says 503 and why, and everything else is answered as before, each answer with Connection: close."""
    task_id = server.submit("true")

    terminate(server)

    ready = ask(server, "/ready")
    assert (ready.status_code, ready.json()["detail"]) == (503, "The server is stopping.")
    submitted = httpx.post(f"{server.url}/task", json={"code": "true"}, trust_env=False)
    answers = [
        submitted,
        *(ask(server, path) for path in ("/health", f"/task/{task_id}", "/task", "/task/nothing")),
    ]
    assert [answer.status_code for answer in answers] == [202, 200, 200, 200, 404]
    assert {answer.headers["connection"] for answer in [ready, *answers]} == {"close"}


def test_before_term_connections_are_kept(server: Server) -> None:
    """A server that is not stopping closes no connection after an answer."""
    answers = [server.http.get("/health") for _ in range(2)]

    assert ["connection" in answer.headers for answer in answers] == [False, False]


def test_a_kept_connection_serves_once_more_after_term(server: Server) -> None:
    """A connection that was open before TERM is not cut: its next request is answered, and that answer ends it."""
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as connection:
        connection.settimeout(30)
        request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(request)
        first = b""
        while not first.endswith(b"}"):  # head and body come in pieces
            first += connection.recv(1 << 16)

        terminate(server)
        connection.sendall(request)
        second = b"".join(iter(lambda: connection.recv(1 << 16), b""))

    assert first.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in first.lower()
    assert second.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in second.lower()


def test_a_second_signal_ends_the_linger(server: Server) -> None:
    """A second TERM, or Ctrl-C after TERM, ends the server at once, with exit code 0."""
    terminate(server)

    server.signal(signal.SIGINT)

    assert server.wait() == 0
    assert "Server stopped." in server.output


def test_a_server_ends_by_itself_after_its_linger(redis_server: RedisServer, tmp_path: Path) -> None:
    """Without a second signal the server ends when its linger has passed, with exit code 0."""
    with lingering(redis_server, tmp_path, "0.1") as server:
        server.terminate()

        assert server.wait() == 0


def test_a_request_that_is_still_arriving_is_answered(redis_server: RedisServer, tmp_path: Path) -> None:
    """A request whose body comes slowly is taken and answered even when the linger has passed meanwhile."""
    with lingering(redis_server, tmp_path, "0.1") as server:
        address = ("127.0.0.1", httpx.URL(server.url).port)
        with socket.create_connection(address) as connection:
            connection.settimeout(30)
            connection.sendall(HEAD + BODY[:5])

            server.terminate()
            until(lambda: _refuses(address))
            connection.sendall(BODY[5:])
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))

        assert answer.startswith(b"HTTP/1.1 202")
        assert server.wait() == 0


def test_up_does_not_linger(tmp_path: Path) -> None:
    """All in one ends at the first TERM: no load balancer is in front of it."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_LINGER_SECONDS=LONG) as site:
        server = site.up()
        server.wait_until_ready()

        server.terminate()

        assert server.wait() == 0


def _refuses(address: tuple[str, int | None]) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False
