"""The HTTP contract against a real server, worker and script: every route, every refusal, every header."""

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.end_to_end.processes import ROWS, Server, Site, shell_config, until

UNKNOWN = "00000000-0000-4000-8000-000000000000"

MIB = 1 << 20

WAIT_FOR_GO = 'until [ -e "go-$TASK_ID" ]; do sleep 0.02; done'
"""Shell code that ends when the test says ``go``."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """All in one; a test submits tasks of its own and leaves none running."""
    with Site(tmp_path_factory.mktemp("http"), shell_config(grace_seconds=3)) as site:
        server = site.up("--concurrency", "4")
        server.wait_until_ready()
        yield server


@pytest.fixture
def http(server: Server) -> httpx.Client:
    return server.http


@pytest.fixture(scope="module")
def done(server: Server) -> dict[str, Any]:
    """A task that succeeded, with one attachment of ten bytes."""
    return server.run("printf 0123456789 > $RUNDIR/files/ten.txt")


def go(server: Server, task_id: str) -> None:
    (server.folder / f"go-{task_id}").touch()


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The problem document of an answer (RFC 9457), which is as every one must be."""
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert (
        {"type", "title", "status", "detail"} <= set(document) <= {"type", "title", "status", "detail", "errors"}
    )
    assert document["status"] == answer.status_code
    assert document["type"].startswith("urn:problem-type:script-runner:")
    return document


# A list of tasks


def test_tasks_are_listed_newest_first_a_page_at_a_time(server: Server, http: httpx.Client) -> None:
    """Following the cursor gives every task once, newest first."""
    ids = [server.submit("true") for _ in range(5)]
    newest: list[str] = []
    cursor: dict[str, str] = {}

    while len(newest) < 5:
        page = http.get("/task", params={"limit": "2", **cursor}).json()
        assert len(page["tasks"]) <= 2
        newest += [task["id"] for task in page["tasks"]]
        cursor = {"cursor": page["next"]}

    assert newest[:5] == ids[::-1]


def test_the_last_page_has_no_cursor(http: httpx.Client, done: dict[str, Any]) -> None:
    """The list ends: its last page says next: null, and holds the oldest task."""
    ids: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = http.get("/task", params={"limit": "200", **cursor}).json()
        ids += [task["id"] for task in page["tasks"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}

    assert done["id"] in ids
    assert len(set(ids)) == len(ids)


def test_tasks_are_listed_by_state(server: Server, http: httpx.Client, done: dict[str, Any]) -> None:
    """?state= takes one or more words, and only such tasks are listed."""
    failed = server.run("exit 1")

    only_failed = http.get("/task", params={"state": "failed", "limit": "200"}).json()["tasks"]
    both = http.get("/task?state=failed&state=succeeded&limit=200").json()["tasks"]

    assert {task["state"] for task in only_failed} == {"failed"}
    assert failed["id"] in [task["id"] for task in only_failed]
    assert {failed["id"], done["id"]} <= {task["id"] for task in both}


# Cancel and delete


def test_a_running_task_is_cancelled_with_term(server: Server, http: httpx.Client) -> None:
    """Cancel answers 202; the script hears TERM and may tidy up within the grace."""
    task_id = server.submit(
        'trap "echo tidied > $RUNDIR/files/last; exit 0" TERM; echo ready; while :; do sleep 0.02; done'
    )
    until(lambda: "ready" in server.log(task_id))

    answer = http.post(f"/task/{task_id}/cancel")

    assert answer.status_code == 202
    assert answer.json()["id"] == task_id
    document = server.finished(task_id)
    assert (document["status"], document["state"]) == ("failed", "cancelled")
    assert base64.b64decode(document["attachments"]["last"]) == b"tidied\n"


def test_a_running_task_that_ignores_term_is_killed_after_the_grace(server: Server, http: httpx.Client) -> None:
    """A script that does not heed TERM is killed, and the task is cancelled."""
    task_id = server.submit('trap "" TERM; echo ready; while :; do sleep 0.02; done')
    until(lambda: "ready" in server.log(task_id))

    http.post(f"/task/{task_id}/cancel")

    document = server.finished(task_id)
    assert (document["state"], document["exit_code"]) == ("cancelled", -9)


def test_a_task_that_has_ended_is_left_as_it_is_by_cancel(http: httpx.Client, done: dict[str, Any]) -> None:
    """Cancel of a final task answers 202 and changes nothing."""
    answer = http.post(f"/task/{done['id']}/cancel")

    assert (answer.status_code, answer.json()["state"]) == (202, "succeeded")


def test_a_deleted_task_is_gone_with_its_files(server: Server, http: httpx.Client) -> None:
    """DELETE answers 204 without a body; afterwards the task and its files are 404, also to DELETE."""
    document = server.run("echo 1 > $RUNDIR/files/x")

    answer = http.delete(f"/task/{document['id']}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert http.get(f"/task/{document['id']}").status_code == 404
    assert http.get(document["files"][0]["url"]).status_code == 404
    assert http.delete(f"/task/{document['id']}").status_code == 404
    assert not list((server.folder / "data" / "artifacts").glob(f"*/{document['id']}"))


def test_a_running_task_cannot_be_deleted(server: Server, http: httpx.Client) -> None:
    """DELETE of a running task is 409, and the task goes on."""
    task_id = server.submit(WAIT_FOR_GO)
    server.wait_for_state(task_id, "running")

    answer = http.delete(f"/task/{task_id}")

    assert (answer.status_code, problem(answer)["type"].rpartition(":")[2]) == (409, "conflict")
    go(server, task_id)
    assert server.finished(task_id)["state"] == "succeeded"


# Results


def test_results_alone_as_json(http: httpx.Client, done: dict[str, Any]) -> None:
    """?format=json, the default, is the results of the document."""
    answer = http.get(f"/task/{done['id']}/results")

    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == done["results"] == [{"name": "alpha", "value": "1"}]


def test_results_alone_as_csv(server: Server, http: httpx.Client) -> None:
    """?format=csv is RFC 4180: quoted where it must be, with CRLF and a line of names."""
    document = server.run("""printf 'name,value\\n"a ""b"", c",007\\n"two\\nlines",größe\\n' > $RUNDIR/rows.csv""")

    answer = http.get(f"/task/{document['id']}/results", params={"format": "csv"})

    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.content.decode() == 'name,value\r\n"a ""b"", c",007\r\n"two\nlines",größe\r\n'


def test_a_task_without_results_yet_is_a_conflict(server: Server, http: httpx.Client) -> None:
    """/results of a task that failed is 409."""
    document = server.run("exit 1")

    assert problem(http.get(f"/task/{document['id']}/results"))["status"] == 409


# Attachments


@pytest.fixture(scope="module")
def ten(done: dict[str, Any]) -> str:
    """The URL of a file of ten bytes."""
    return str(done["files"][0]["url"])


def test_an_attachment_is_a_download_that_a_browser_does_not_run(http: httpx.Client, ten: str) -> None:
    """The file has its length, its ETag, a name to save it under, and a policy that runs nothing."""
    answer = http.get(ten)

    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-length"] == "10"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("asked", "content", "range_of_it"),
    [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=-99", b"0123456789", None),
    ],
)
def test_one_range_of_an_attachment(
    http: httpx.Client, ten: str, asked: str, content: bytes, range_of_it: str | None
) -> None:
    """A range is 206 with Content-Range; one that is the whole may come as the whole."""
    answer = http.get(ten, headers={"Range": asked})

    assert answer.content == content
    assert answer.headers.get("content-range") in (range_of_it, "bytes 0-9/10")
    assert answer.status_code == (206 if "content-range" in answer.headers else 200)


@pytest.mark.parametrize("asked", ["bytes=5-2", "lines=1-2", "bytes=a-b", "bytes=0-1,3-4"])
def test_a_range_that_makes_no_sense_is_ignored(http: httpx.Client, ten: str, asked: str) -> None:
    """A malformed or foreign Range, or several, gives the whole file (RFC 9110, section 14.2)."""
    answer = http.get(ten, headers={"Range": asked})

    assert (answer.status_code, answer.content) == (200, b"0123456789")


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_a_range_beyond_the_end_is_416(http: httpx.Client, ten: str, asked: str) -> None:
    """The answer says how long the file is."""
    answer = http.get(ten, headers={"Range": asked})

    assert problem(answer)["status"] == 416
    assert answer.headers["content-range"] == "bytes */10"


def test_an_attachment_one_has_already_is_304(http: httpx.Client, ten: str) -> None:
    """If-None-Match with its ETag, in a list or as *, is answered without the file."""
    tag = http.get(ten).headers["etag"]

    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        answer = http.get(ten, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert http.get(ten, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_range_of_another_version_is_the_whole(http: httpx.Client, ten: str) -> None:
    """If-Range with another ETag gives the whole file, with the same ETag the range."""
    tag = http.get(ten).headers["etag"]

    assert http.get(ten, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200
    assert http.get(ten, headers={"Range": "bytes=0-1", "If-Range": tag}).content == b"01"


def test_head_of_an_attachment_has_the_headers_alone(http: httpx.Client, ten: str) -> None:
    """HEAD has the length and ETag of GET and no content."""
    whole, head = http.get(ten), http.head(ten)

    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-type"):
        assert head.headers[name] == whole.headers[name]


def test_an_empty_attachment(server: Server, http: httpx.Client) -> None:
    """A file of no bytes is an attachment like any other."""
    document = server.run(": > $RUNDIR/files/nothing")

    assert document["attachments"] == {"nothing": ""}
    answer = http.get(document["files"][0]["url"])
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    "name",
    [
        "with space.txt",
        "\"double\" and 'single'.txt",
        "größe-数据-🧪.txt",
        "two\nlines\r.txt",
        "100%25 #1?x=y&z;.txt",
        "back\\slash.txt",
        "<img src=x>.txt",
    ],
)
def test_an_attachment_keeps_its_name_whatever_is_in_it(server: Server, http: httpx.Client, name: str) -> None:
    """The name is a key in the document, and its URL leads to the file; no header is broken by it."""
    document = server.run('printf "%s" "$NAME" > "$RUNDIR/files/$NAME"', name=name)

    assert [file["name"] for file in document["files"]] == [name] == list(document["attachments"])
    answer = http.get(document["files"][0]["url"])
    assert (answer.status_code, answer.text) == (200, name)
    assert answer.headers["content-disposition"].isascii()


# Logs


def test_logs_of_a_running_script_from_any_offset(server: Server) -> None:
    """What a running script has said is there while it runs, stdout and stderr apart."""
    task_id = server.submit(f"echo one; echo oops >&2; {WAIT_FOR_GO}; echo two")

    until(lambda: server.log(task_id) == "one\n")
    until(lambda: server.log(task_id, "stderr") == "oops\n")

    assert server.document(task_id)["state"] == "running"
    assert server.log(task_id, offset=2) == "e\n"
    go(server, task_id)
    server.finished(task_id)


def test_logs_of_a_finished_script_from_any_offset(server: Server, http: httpx.Client) -> None:
    """The whole log stays, and says where the next part begins."""
    document = server.run("echo one; echo two; echo oops >&2")

    answer = http.get(f"/task/{document['id']}/logs", params={"stream": "stdout", "offset": "4"})

    assert answer.text == "two\n"
    assert (answer.headers["x-log-offset"], answer.headers["x-log-next-offset"]) == ("4", "8")
    assert server.log(document["id"], offset=8) == server.log(document["id"], offset=999) == ""
    assert server.log(document["id"], "stderr") == "oops\n"


def test_a_long_log_is_read_part_by_part(server: Server, http: httpx.Client) -> None:
    """Following X-Log-Next-Offset gives the whole of a log that is larger than one answer."""
    document = server.run("seq 300000")
    parts: list[bytes] = []
    offset = "0"

    while part := (answer := http.get(f"/task/{document['id']}/logs", params={"offset": offset})).content:
        parts.append(part)
        offset = answer.headers["x-log-next-offset"]

    assert len(parts) > 1
    assert b"".join(parts) == b"".join(b"%d\n" % number for number in range(1, 300_001))


# The server itself


def test_health_answers_any_host_while_a_long_script_runs(server: Server, http: httpx.Client) -> None:
    """/health is 200 with version and server, whatever the Host, whatever runs."""
    task_id = server.submit(WAIT_FOR_GO)
    server.wait_for_state(task_id, "running")

    answer = http.get("/health", headers={"Host": "anything.example:1"})

    assert answer.status_code == 200
    document = answer.json()
    assert document["server"] is True
    assert isinstance(document["version"], str)
    go(server, task_id)
    server.finished(task_id)


def test_ready_says_how_many_workers_are_alive(http: httpx.Client) -> None:
    """/ready is 200 with the number of workers."""
    answer = http.get("/ready")

    assert (answer.status_code, answer.json()["workers"]) == (200, 1)


def test_openapi_describes_this_server(http: httpx.Client) -> None:
    """/openapi.json is OpenAPI 3.1, and names the routes and the inputs of this very script."""
    document = http.get("/openapi.json").json()

    assert document["openapi"].startswith("3.1.")
    assert {"/task", "/task/{id}", "/task/{id}/cancel", "/health", "/ready"} <= set(document["paths"])
    assert "$.code" in str(document) or "code" in str(document["components"])


def test_docs_come_from_this_server_alone(http: httpx.Client) -> None:
    """/docs is a page whose every script and style is served here, and / leads to it."""
    home = http.get("/", follow_redirects=True)
    assert (home.status_code, home.url.path) == (200, "/docs")
    assert home.headers["content-type"].startswith("text/html")
    links = _links(home.text)

    assert links
    assert not [link for link in links if "//" in link]
    for link in links:
        answer = http.get(home.url.join(link))
        assert answer.status_code == 200, link
        assert len(answer.content) > 0


def _links(page: str) -> list[str]:
    """What a page loads by ``src`` and ``href``, but for places in itself and pictures in the text."""
    found = [part.partition('"')[0] for word in (' src="', ' href="') for part in page.split(word)[1:]]
    return [link for link in found if not link.startswith(("#", "data:"))]


# Refusals

LARGE = b"x" * (MIB + 1)


def pieces() -> Iterator[bytes]:
    """A body that does not say how long it is, and is too long."""
    for _ in range(20):
        yield b" " * 100_000


REFUSALS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "required input missing": (400, "POST", "/task", {"json": {"name": "x"}}),
    "no body at all": (400, "POST", "/task", {}),
    "not JSON": (400, "POST", "/task", {"content": b'{"code": ', "headers": {"Content-Type": "application/json"}}),
    "nested too deeply": (400, "POST", "/task", {"content": b"[" * 100_000 + b"]" * 100_000}),
    "a NUL": (400, "POST", "/task", {"json": {"code": "a\0b"}}),
    "half a character": (400, "POST", "/task", {"content": b'{"code": "\\ud800"}'}),
    "not UTF-8": (400, "POST", "/task", {"content": b'{"code": "\xff"}'}),
    "a value too long": (400, "POST", "/task", {"json": {"code": "x" * 200_000}}),
    "unknown state": (400, "GET", "/task?state=asleep", {}),
    "bad limit": (400, "GET", "/task?limit=0", {}),
    "bad cursor": (400, "GET", "/task?cursor=garbage", {}),
    "bad word for attachments": (400, "GET", "/task/{id}?attachments=some", {}),
    "bad format": (400, "GET", "/task/{id}/results?format=xml", {}),
    "bad stream": (400, "GET", "/task/{id}/logs?stream=stdin", {}),
    "bad offset": (400, "GET", "/task/{id}/logs?offset=-1", {}),
    "unknown path": (404, "GET", "/nothing", {}),
    "unknown asset": (404, "GET", "/docs/nothing.js", {}),
    "asset outside": (404, "GET", "/docs/..%2f..%2fapi.py", {}),
    "unknown id": (404, "GET", f"/task/{UNKNOWN}", {}),
    "no id": (404, "GET", "/task/nothing", {}),
    "odd id": (404, "GET", "/task/%00%ff..", {}),
    "cancel of an unknown id": (404, "POST", f"/task/{UNKNOWN}/cancel", {}),
    "delete of an unknown id": (404, "DELETE", f"/task/{UNKNOWN}", {}),
    "results of an unknown id": (404, "GET", f"/task/{UNKNOWN}/results", {}),
    "logs of an unknown id": (404, "GET", f"/task/{UNKNOWN}/logs", {}),
    "unknown attachment": (404, "GET", "/task/{id}/attachments/nothing", {}),
    "attachment outside": (404, "GET", "/task/{id}/attachments/..%2f..%2flock", {}),
    "wrong method": (405, "PUT", "/task", {}),
    "wrong method on health": (405, "POST", "/health", {}),
    "body too large": (413, "POST", "/task", {"content": LARGE, "headers": {"Content-Type": "application/json"}}),
    "body far too large": (413, "POST", "/task", {"content": LARGE * 20}),
    "body too large, in pieces": (413, "POST", "/task", {"content": pieces}),
    "not JSON by its type": (415, "POST", "/task", {"content": b"a=b", "headers": {"Content-Type": "text/plain"}}),
    "a form": (415, "POST", "/task", {"data": {"code": "true"}}),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_every_refusal_is_a_problem_document_that_tells_nothing_of_the_server(
    http: httpx.Client, server: Server, done: dict[str, Any], case: str
) -> None:
    """The status fits, the document is RFC 9457, CORS headers are there, no path and no traceback is."""
    status, method, path, options = REFUSALS[case]
    if callable(options.get("content")):
        options = {"content": options["content"]()}

    answer = http.request(method, path.replace("{id}", done["id"]), **options)

    assert answer.status_code == status, answer.text
    assert problem(answer)["detail"]
    assert answer.headers["access-control-allow-origin"] == "*"
    for secret in (str(server.folder), "Traceback", "site-packages", ".py", "eval"):
        assert secret not in answer.text


def test_bad_input_is_named(http: httpx.Client) -> None:
    """A 400 says of each wrong input where it was looked for, its name there, and what is wrong."""
    errors = problem(http.post("/task", json={"code": "a\0b", "name": "c\0d"}))["errors"]

    assert [(error["where"], error["name"]) for error in errors] == [("body", "$.code"), ("body", "$.name")]
    assert all("NUL" in error["problem"] for error in errors)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/task", {"GET", "POST"}),
        ("PUT", f"/task/{UNKNOWN}", {"GET", "POST", "DELETE"}),
        ("DELETE", "/health", {"GET"}),
        ("DELETE", f"/task/{UNKNOWN}/results", {"GET"}),
    ],
)
def test_a_wrong_method_says_which_are_right(
    http: httpx.Client, method: str, path: str, allowed: set[str]
) -> None:
    """405 carries Allow with all methods of the path (RFC 9110, section 15.5.6)."""
    answer = http.request(method, path)

    assert answer.status_code == 405
    assert allowed <= {word.strip() for word in answer.headers["allow"].split(",")}


def test_a_refused_body_leaves_the_server_well(server: Server, http: httpx.Client) -> None:
    """After bodies that are too large, the next request on any connection is answered as ever."""
    for _ in range(3):
        assert http.post("/task", content=pieces()).status_code == 413

    assert server.run("true")["state"] == "succeeded"


def test_head_and_body_may_come_at_once(server: Server) -> None:
    """A request whose body comes in the same moment as its head is like any other."""
    body = json.dumps({"code": "true", "name": "x" * 110_000}).encode()
    head = b"POST /task HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    assert first_line(server, head % len(body) + body) == b"HTTP/1.1 202 Accepted"


@pytest.mark.parametrize("beginning", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"])
def test_a_head_without_end_is_refused(server: Server, beginning: bytes) -> None:
    """A request line, a field or fields that never end are answered 431 and fill no memory."""
    endless = b"X-Field: value\r\n" if beginning.endswith(b"\n") else b"x" * 16

    assert first_line(server, beginning, endless) == b"HTTP/1.1 431 Request Header Fields Too Large"


def test_an_answer_to_what_is_no_request_has_what_every_answer_has(tmp_path: Path) -> None:
    """An id, and the cross-origin headers that were configured, also where no request could be read."""
    with (
        Site(tmp_path, shell_config(), SCRIPT_RUNNER_CORS_ORIGINS="https://lab.example") as site,
        socket.create_connection(("127.0.0.1", site.up().http.base_url.port), timeout=30) as connection,
    ):
        connection.sendall(b"no request\r\n\r\n")
        head = connection.makefile("rb").read().decode().partition("\r\n\r\n")[0].lower()

    assert head.startswith("http/1.1 400 ")
    assert "\r\nx-request-id: " in head
    assert "\r\nvary: origin" in head
    assert "access-control-allow-origin" not in head


def first_line(server: Server, data: bytes, endless: bytes = b"") -> bytes:
    """What the server answers to these bytes, and then more and more of the same."""
    with socket.create_connection(("127.0.0.1", server.http.base_url.port), timeout=30) as connection:
        connection.sendall(data)
        with contextlib.suppress(ConnectionError):  # it has hung up
            for _ in range(1000 if endless else 0):
                connection.sendall(endless * 256)
        return connection.makefile("rb").readline().rstrip()


def test_a_preflight_is_answered_with_a_max_age(http: httpx.Client) -> None:
    """OPTIONS of another origin names methods and headers, and may be kept for a while."""
    answer = http.options(
        "/task/RUN-7",
        headers={
            "Origin": "https://lab.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        },
    )

    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] == "*"
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert int(answer.headers["access-control-max-age"]) > 0


@pytest.mark.parametrize("path", ["/health", "/task", "/ready", "/openapi.json", f"/task/{UNKNOWN}", "/nothing"])
def test_every_answer_carries_cors_headers(http: httpx.Client, path: str) -> None:
    """A page of any origin may read every answer, and the headers that matter."""
    answer = http.get(path, headers={"Origin": "https://lab.example"})

    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Location" in answer.headers["access-control-expose-headers"]


def test_many_callers_at_once_all_get_their_own_task(server: Server) -> None:
    """Thirty-two submits at the same moment are thirty-two tasks, each with the words of its own caller."""
    found: dict[str, str] = {}

    def submit(number: int) -> None:
        found[str(number)] = server.submit(f"echo caller {number}")

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(found.values())) == 32
    for number, task_id in found.items():
        assert server.finished(task_id)["state"] == "succeeded"
        assert server.log(task_id) == f"caller {number}\n"


def test_the_rows_are_those_of_the_base_folder_when_a_script_leaves_them(done: dict[str, Any]) -> None:
    """A run folder begins with the content of command_rundir_base."""
    assert [list(row.values()) for row in done["results"]] == [line.split(",") for line in ROWS.splitlines()[1:]]


def test_cors_may_be_kept_to_some_origins(tmp_path: Path) -> None:
    """With SCRIPT_RUNNER_CORS_ORIGINS only a named origin is allowed to read."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_CORS_ORIGINS="https://lab.example") as site:
        http = site.up().http
        known = http.get("/nothing", headers={"Origin": "https://lab.example"})
        foreign = http.get("/nothing", headers={"Origin": "https://evil.example"})

    assert known.headers["access-control-allow-origin"] == "https://lab.example"
    assert "access-control-allow-origin" not in foreign.headers
    assert known.headers["vary"] == foreign.headers["vary"] == "Origin"
