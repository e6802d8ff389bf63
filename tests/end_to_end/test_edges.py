"""What a careful operator and a careless caller run into at the edges: heads, ids, words and settings."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.end_to_end.processes import Server, Site, shell_config

WHOLE = {"command": ["true"], "inputs": {"query_args": [{"env_var_name": "Q", "query_var_name": "q"}]}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("edges"), shell_config()) as site:
        yield site


@pytest.fixture(scope="module")
def server(site: Site) -> Server:
    server = site.up()
    server.wait_until_ready()
    return server


def status_of(server: Server, request: bytes) -> int:
    """The status that these very bytes, sent in one piece, are answered with."""
    where = urlsplit(server.url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as connection:
        connection.sendall(request)
        return int(connection.recv(65_536).split()[1])


def ids(server: Server) -> list[str]:
    return [task["id"] for task in server.http.get("/task").json()["tasks"]]


def checked(site: Site, config: dict[str, Any], *words: str, **environment: str) -> tuple[int, str, str]:
    path = site.folder / "checked.json"
    path.write_text(json.dumps(config))
    answer = site.run("check", str(path), *words, stdin=b"", **environment)
    return answer.returncode, answer.stdout, answer.stderr


@pytest.mark.parametrize("size", [60_000, 70_000, 500_000, 1 << 20])
def test_a_body_that_comes_with_its_head_is_no_part_of_it(server: Server, size: int) -> None:
    """A large body in the same packet as the request line is taken up to its own limit."""
    body = b'{"code":"true","x":"' + b"x" * (size - 22) + b'"}'
    head = (
        f"POST /task HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    assert status_of(server, head.encode() + body) == 202


def test_a_head_without_end_is_refused(server: Server) -> None:
    """Header fields of more than 64 KiB are answered 431, before they are all read."""
    head = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000

    assert status_of(server, head) == 431


def test_pipelined_requests_have_each_a_head_of_their_own(server: Server) -> None:
    """Many small requests in a row on one connection are not one large head."""
    one = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Some: " + b"x" * 4_000 + b"\r\n\r\n"

    assert status_of(server, one * 20) == 200


@pytest.mark.parametrize("path", ["/task/a%ff", "/task?code=%ff", "/script/%c3%28"])
def test_bytes_that_are_not_utf8_are_refused(server: Server, path: str) -> None:
    """A path or query that is not UTF-8 is a 400, and never reaches a script as something else."""
    answer = server.http.post(path)

    assert (answer.status_code, answer.json()["errors"][0]["problem"]) == (400, "is not UTF-8 text")


@pytest.mark.parametrize("verb", ["cancel", "show", "wait", "logs"])
@pytest.mark.parametrize("word", ["nope", "00000000-0000-4000-8000-00000000000"])
def test_what_is_no_id_is_never_sent(site: Site, server: Server, verb: str, word: str) -> None:
    """A mistyped id is an unknown task (exit code 5), and starts none."""
    before = ids(server)
    answer = site.run(verb, word, SCRIPT_RUNNER_URL=server.url)

    assert (answer.returncode, answer.stdout) == (5, "")
    assert ids(server) == before


@pytest.mark.parametrize("value", ["R+D & co", "100%41", "a=b=c", ""])
def test_a_query_is_what_was_typed(site: Site, value: str) -> None:
    """``--query NAME=VALUE`` decodes nothing."""
    _, said, _ = checked(site, WHOLE, "--explain", "--json", "--query", f"q={value}")

    assert json.loads(said)["environment"]["Q"] == value


def test_a_query_without_a_value_is_refused(site: Site) -> None:
    """``--query NAME`` is a mistake, said in a sentence."""
    code, _, said = checked(site, WHOLE, "--explain", "--query", "q")

    assert (code, said) == (2, "script-runner: --query expects NAME=VALUE, got 'q'.\n")


def test_serve_says_nothing_before_it_can_serve(site: Site) -> None:
    """A server without a store ends with that sentence alone."""
    answer = site.run("serve", "--redis", "redis://127.0.0.1:1", "--port", "0")

    assert answer.returncode == 2
    assert answer.stderr.startswith("script-runner: No artifact store is configured")


def test_check_says_what_is_wrong_with_settings_and_file_together(site: Site) -> None:
    """Mistakes in the environment and in the file come in one answer."""
    own = {"AUTH_PROVIDER": "foo", "SCRIPT_RUNNER_REDIS_URL": "foo://x", "SCRIPT_RUNNER_STORE": "ftp://x"}
    code, _, said = checked(site, {"comand": ["true"]}, **own)

    assert code == 2
    assert [word for word in ("'foo'", "Redis URL", "'ftp'", "did you mean command?") if word not in said] == []


def test_check_in_json_holds_the_mistakes(site: Site) -> None:
    """``check --json`` is JSON also when the file is wrong."""
    code, said, _ = checked(site, {"command": ["true"], "timeout_seconds": 0}, "--json")
    document = json.loads(said)

    assert (code, document["ok"]) == (2, False)
    assert document["problems"] == [
        {"where": "config", "name": "timeout_seconds", "problem": "got 0, expected more than 0"}
    ]


@pytest.mark.parametrize("base", [".", "..", ""])
def test_a_base_folder_never_holds_the_run_folders(site: Site, base: str) -> None:
    """A base that contains the run folders would copy other runs into each; it is refused."""
    code, _, said = checked(site, {"command": ["true"], "command_rundir_base": base})

    assert code == 2
    assert "command_rundir_base" in said


def test_a_provider_that_cannot_start_is_a_sentence(tmp_path: Path, site: Site) -> None:
    """A plug-in that raises at the start ends it with its name and no traceback."""
    information = tmp_path / "broken_auth-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-auth\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[script_runner.auth]\nbroken = broken_auth:provider\n")
    (tmp_path / "broken_auth.py").write_text(
        "def provider(environment):\n    return environment['MISSING_WORD']\n"
    )
    answer = site.run("up", "--port", "0", AUTH_PROVIDER="broken", PYTHONPATH=str(tmp_path))

    assert answer.returncode == 2
    assert answer.stderr == "script-runner: AUTH_PROVIDER 'broken' cannot be started: KeyError: 'MISSING_WORD'.\n"


# What an attack found


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


def post(body: bytes, *fields: bytes) -> bytes:
    head = b"POST /task HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + b"".join(fields)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def answers_to(server: Server, *pieces: bytes) -> bytes:
    """All that is answered to these pieces, sent one after the other; the last asks to close the connection."""
    where = urlsplit(server.url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = b""
        for piece in pieces:
            connection.sendall(piece)
        while more := connection.recv(65_536):
            said += more
        return said


def test_a_wish_to_upgrade_is_ignored_and_the_body_read(server: Server) -> None:
    """A client that offers HTTP/2 by Upgrade gets its body to the script all the same."""
    answer = answers_to(server, post(b'{"code":"echo it came"}', UPGRADE, b"Connection: close\r\n"))
    task = json.loads(answer.partition(b"\r\n\r\n")[2])

    assert answer.startswith(b"HTTP/1.1 202 ")
    assert server.finished(task["id"])["state"] == "succeeded"
    assert server.log(task["id"]) == "it came\n"


def test_a_body_is_never_taken_for_another_request(server: Server) -> None:
    """The body of a request with Upgrade, sent a moment later, is not answered as a request of its own."""
    smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    head, _, body = post(smuggled, UPGRADE).partition(b"\r\n\r\n")
    last = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = answers_to(server, head + b"\r\n\r\n", body, last)

    assert (answer.count(b"HTTP/1.1 "), answer.count(b'"ready":true')) == (2, 1)
    assert b'"server":true' not in answer


def test_trailers_without_end_are_refused(server: Server) -> None:
    """What follows the last chunk is bounded as the head is."""
    head = b"POST /task HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-T: "
    where = urlsplit(server.url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=20) as connection:
        connection.sendall(head)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"a" * 100_000_000)


@pytest.mark.parametrize("what", ["/results", "/results?format=csv", "/attachments/rows.csv"])
def test_a_file_that_is_gone_is_not_half_an_answer(tmp_path: Path, what: str) -> None:
    """When a kept file is no longer there, the answer is 404 from its first byte."""
    outputs = {"results": {"kind": "file", "format": "csv", "input_path": "rows.csv"}, "attachments": ["rows.csv"]}
    with Site(tmp_path, shell_config(outputs=outputs)) as site:
        server = site.up()
        server.wait_until_ready()
        task = server.run('printf "a\\n1\\n" > "$RUNDIR/rows.csv"')
        for path in (site.folder / "data" / "artifacts").rglob("*"):
            if path.is_file():
                path.unlink()

        assert server.http.get(f"/task/{task['id']}{what}").status_code == 404


def test_a_worker_that_is_short_of_descriptors_loses_and_fails_nothing(tmp_path: Path) -> None:
    """More scripts at once than there are descriptors for: tasks wait, and all of them run in the end."""
    with Site(tmp_path, shell_config()) as site:
        limited = tmp_path / "limited"
        limited.write_text(f'#!/bin/sh\nulimit -n 64\nexec {site.python} "$@"\n')
        limited.chmod(0o755)
        site.python = str(limited)
        server = site.up("--concurrency", "24")
        server.wait_until_ready()
        tasks = [server.submit("sleep 0.2") for _ in range(60)]

        assert {server.finished(task)["state"] for task in tasks} == {"succeeded"}


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel"])
def test_no_part_of_a_password_is_said(site: Site, scheme: str) -> None:
    """A Redis URL that cannot be read is refused without repeating any of it."""
    answer = site.run("check", SCRIPT_RUNNER_REDIS_URL=f"{scheme}://:Se/cret@h:6379/0")

    assert answer.returncode == 2
    assert "Se" not in answer.stderr.replace("Sentinel", "").replace("SCRIPT", "")
    assert "Redis URL" in answer.stderr
