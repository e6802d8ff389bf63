"""Idempotency-Key: the same key and request are one task, however often, and at whichever server."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tests.end_to_end.issuer import Issuer
from tests.end_to_end.processes import Server, Site, shell_config
from tests.servers import Proxy, RedisServer

from script_runner.client import Client

NOTE = 'echo "$TASK_ID" >> ledger-$NAME'
"""Shell code that notes each of its runs."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Two servers that ask for tokens, and a worker."""

    site: Site
    servers: tuple[Server, Server]
    issuer: Issuer

    @property
    def server(self) -> Server:
        return self.servers[0]

    def post(
        self, name: str, key: str | None, *, path: str = "/task", user: str = "ada", **headers: str
    ) -> httpx.Response:
        """Submit a task that notes its runs under ``name``."""
        keys = {} if key is None else {"Idempotency-Key": key}
        return self.server.http.post(
            path, json={"code": NOTE, "name": name}, headers=self.issuer.headers(user) | keys | headers
        )

    def document(self, task_id: str) -> dict[str, Any]:
        return dict(self.server.http.get(f"/task/{task_id}", headers=self.issuer.headers("ada")).json())

    def tasks(self) -> set[str]:
        """The ids of all tasks of ada."""
        answer = self.server.http.get("/task?limit=200", headers=self.issuer.headers("ada"))
        return {task["id"] for task in answer.json()["tasks"]}

    def wait_for_end(self, task_id: str) -> dict[str, Any]:
        client = Client(self.server.url, token=self.issuer.headers("ada")["Authorization"].split()[1])
        with client:
            return client.wait(task_id, timeout_seconds=30)

    def runs(self, name: str) -> list[str]:
        return (self.site.folder / f"ledger-{name}").read_text().split()


@pytest.fixture(scope="module")
def bench(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("idempotency")
    with (
        Issuer() as issuer,
        Site(
            folder,
            shell_config(max_priority=5),
            SCRIPT_RUNNER_REDIS_URL=redis_server.url,
            **issuer.settings,
        ) as site,
    ):
        servers = site.serve(), site.serve()
        site.worker()
        yield Bench(site, servers, issuer)


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The problem document of an answer (RFC 9457)."""
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == answer.status_code
    return document


# The same request


def test_the_same_key_and_request_are_the_same_task(bench: Bench) -> None:
    """A repeated submit answers as the first did, with the same id and place, and the script runs once."""
    first = bench.post("same", "same")
    second = bench.post("same", "same")

    assert [first.status_code, second.status_code] == [202, 202]
    assert first.json()["id"] == second.json()["id"]
    assert first.headers["location"] == second.headers["location"]
    bench.wait_for_end(first.json()["id"])
    assert bench.runs("same") == [first.json()["id"]]


def test_many_at_once_at_two_servers_are_one_task(bench: Bench) -> None:
    """Twenty callers send the same key and request at the same moment to two servers: one id, one run."""
    barrier = threading.Barrier(20)
    headers = bench.issuer.headers("ada") | {"Idempotency-Key": "crowd"}

    def submit(number: int) -> httpx.Response:
        with httpx.Client(base_url=bench.servers[number % 2].url, timeout=30, trust_env=False) as http:
            http.get("/health")  # the connection stands before all begin
            barrier.wait(30)
            return http.post("/task", json={"code": NOTE, "name": "crowd"}, headers=headers)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(submit, range(20)))

    assert {answer.status_code for answer in answers} == {202}
    (task_id,) = {answer.json()["id"] for answer in answers}
    bench.wait_for_end(task_id)
    assert bench.runs("crowd") == [task_id]


def test_without_a_key_each_submit_is_a_task(bench: Bench) -> None:
    """Two equal requests without a key are two tasks."""
    ids = {bench.post("twice", None).json()["id"] for _ in range(2)}

    assert len(ids) == 2


def test_the_key_stands_after_the_end(bench: Bench) -> None:
    """Asked again after its end, the task is told as it is by then, and does not run again."""
    task_id = bench.post("late", "late").json()["id"]
    bench.wait_for_end(task_id)

    again = bench.post("late", "late")

    assert again.status_code == 202
    assert (again.json()["id"], again.json()["status"], again.json()["state"]) == (task_id, "ready", "succeeded")
    assert "position" not in again.json()
    assert bench.runs("late") == [task_id]


def test_quoted_and_bare_are_the_same_key(bench: Bench) -> None:
    """A key may stand in quotes, as the draft has it, or without."""
    first, second = bench.post("quoted", "quoted"), bench.post("quoted", '"quoted"')

    assert second.status_code == 202
    assert first.json()["id"] == second.json()["id"]


@pytest.mark.parametrize(
    "key", ["a", "k" * 255, '"with a space"', "8e03978e-40d5-43dd-bc93-6894a57f9324", "\\/:~!"]
)
def test_what_is_a_key(bench: Bench, key: str) -> None:
    """A key is 1 to 255 characters of printable ASCII; with a space only in quotes."""
    first, second = bench.post("what", key), bench.post("what", key)

    assert (first.status_code, first.json()["id"]) == (202, second.json()["id"])


def test_the_original_route_takes_keys_too(bench: Bench) -> None:
    """POST /script is the same submit by another name: the same key, the same task."""
    first, second = bench.post("script", "script"), bench.post("script", "script", path="/script")

    assert [first.status_code, second.status_code] == [202, 200]
    assert first.json()["id"] == second.json()["id"]


# Another request


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"path": "/task/other"},
        {"path": "/task?other=1"},
        {"Task-Priority": "1"},
        {"Task-Expires-In": "60"},
        {"Task-Not-Before": "2020-01-01T00:00:00Z"},
    ],
    ids=str,
)
def test_another_request_under_the_key_is_refused(bench: Bench, change: dict[str, str]) -> None:
    """The same key with another body, path, query or wish is 422 key-reused, and no task."""
    key = f"reused-{'-'.join(change.values())}".replace(" ", "")
    bench.post("one", key)
    before = bench.tasks()

    refused = bench.post(change.pop("name", "one"), key, **change)

    assert refused.status_code == 422
    assert problem(refused)["type"] == "urn:problem-type:script-runner:key-reused"
    assert "Idempotency-Key" in problem(refused)["detail"]
    assert bench.tasks() == before


def test_a_key_is_each_callers_own(bench: Bench) -> None:
    """Another caller may use the same key, for the same request or another, and gets a task of their own."""
    hers = bench.post("own", "own")
    his, other = bench.post("own", "own", user="bob"), bench.post("other", "own", user="eve")

    assert [answer.status_code for answer in (hers, his, other)] == [202] * 3
    assert len({answer.json()["id"] for answer in (hers, his, other)}) == 3


def test_a_deleted_task_leaves_its_key_free(bench: Bench) -> None:
    """After DELETE the key is as new: for the same request, and for another."""
    first = bench.post("first", "freed").json()["id"]
    bench.wait_for_end(first)
    deleted = bench.server.http.delete(f"/task/{first}", headers=bench.issuer.headers("ada"))

    second = bench.post("second", "freed")

    assert (deleted.status_code, second.status_code) == (204, 202)
    assert second.json()["id"] != first
    assert bench.post("first", "freed").status_code == 422


def test_a_refused_request_does_not_use_its_key_up(bench: Bench) -> None:
    """A request that was refused leaves the key free for the mended one."""
    headers = bench.issuer.headers("ada") | {"Idempotency-Key": "mended"}

    refused = bench.server.http.post("/task", json={"cod": "true"}, headers=headers)

    assert refused.status_code == 400
    assert bench.post("mended", "mended").status_code == 202


@pytest.mark.parametrize(
    "key", ["", '""', "a b", '"a', 'a"', 'a"b', "k" * 256, '"' + "k" * 256 + '"', "\xfc", "a\tb"]
)
def test_what_is_no_key(bench: Bench, key: str) -> None:
    """Empty, too long, half quoted, with a bare space or not ASCII: 400 that names the header, and no task."""
    before = bench.tasks()

    refused = bench.server.http.post(
        "/task",
        json={"code": NOTE, "name": "bad"},
        headers=httpx.Headers({**bench.issuer.headers("ada"), "Idempotency-Key": key}, encoding="latin-1"),
    )

    assert refused.status_code == 400, refused.text
    (error,) = problem(refused)["errors"]
    assert (error["where"], error["name"]) == ("header", "Idempotency-Key")
    assert bench.tasks() == before


def test_two_keys_are_refused(bench: Bench) -> None:
    """The header may stand once."""
    headers = [*bench.issuer.headers("ada").items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]

    refused = bench.server.http.post("/task", json={"code": NOTE, "name": "bad"}, headers=headers)

    assert refused.status_code == 400
    assert problem(refused)["errors"][0]["problem"] == "must stand once"


# Answers that are lost on the way


@pytest.fixture
def proxy(bench: Bench) -> Iterator[Proxy]:
    """A proxy before the first server that can lose answers."""
    with Proxy(httpx.URL(bench.server.url).port or 0) as proxy:
        yield proxy


def url_of(proxy: Proxy) -> str:
    return proxy.url.replace("redis://", "http://")


def test_the_client_asks_again_for_a_lost_answer_and_there_is_one_task(bench: Bench, proxy: Proxy) -> None:
    """The server has queued the task and the answer is lost, twice: the client gets the id of that task."""
    before = bench.tasks()
    proxy.lose_answers(b"POST /task", 2)
    token = bench.issuer.headers("ada")["Authorization"].split()[1]

    with Client(url_of(proxy), token=token, patience_seconds=30) as client:
        document = client.submit(body=json.dumps({"code": NOTE, "name": "client"}).encode())

    assert proxy.losses_left == 0
    assert bench.tasks() - before == {document["id"]}
    bench.wait_for_end(document["id"])
    assert bench.runs("client") == [document["id"]]


def test_the_command_line_asks_again_for_a_lost_answer_and_there_is_one_task(bench: Bench, proxy: Proxy) -> None:
    """Submit prints the id of the one task, as if nothing had been lost."""
    before = bench.tasks()
    proxy.lose_answers(b"POST /task", 2)
    body = json.dumps({"code": NOTE, "name": "cli"})

    done = bench.site.run(
        *("submit", "--body", body, "--url", url_of(proxy), "--patience", "30"),
        SCRIPT_RUNNER_TOKEN=bench.issuer.headers("ada")["Authorization"].split()[1],
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.losses_left == 0
    assert bench.tasks() - before == {done.stdout.strip()}


def test_a_job_that_submits_may_be_started_again(bench: Bench) -> None:
    """Submit with a key of one's own: the second time it prints the same id, for another request it is refused."""
    token = bench.issuer.headers("ada")["Authorization"].split()[1]

    def submit(name: str) -> tuple[int, str, str]:
        body = json.dumps({"code": NOTE, "name": name})
        words = ("submit", "--body", body, "--url", bench.server.url, "--idempotency-key", "nightly 2026-01-31")
        done = bench.site.run(*words, SCRIPT_RUNNER_TOKEN=token)
        return done.returncode, done.stdout, done.stderr

    first, second, other = submit("job"), submit("job"), submit("other job")

    assert first[0] == 0
    assert second == first
    assert other[:2] == (1, "")
    assert "Idempotency-Key was used for another request" in other[2]
