"""What those who watch see of real servers and workers: pages, lines and the ids that join them."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.end_to_end.processes import Program, Server, Site, shell_config, until
from tests.servers import RedisServer, free_port

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
FAILS = "exit 3"


class Bench:
    """A server and a worker that are watched, at a Redis."""

    def __init__(self, site: Site, redis_url: str) -> None:
        self.site = site
        self.redis_url = redis_url
        self.ports = {"server": free_port(), "worker": free_port()}
        told = {"SCRIPT_RUNNER_REDIS_URL": redis_url, "SCRIPT_RUNNER_LOG_FORMAT": "json"}
        debug = {**told, "SCRIPT_RUNNER_LOG_LEVEL": "debug"}
        self.server = site.serve("--metrics", f"127.0.0.1:{self.ports['server']}", **debug)
        self.worker = site.worker("--metrics", f"127.0.0.1:{self.ports['worker']}", "--concurrency", "3", **told)

    def page(self, who: str, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.ports[who]}{path}", timeout=30, trust_env=False)

    def samples(self, who: str) -> dict[str, float]:
        return samples(self.page(who, "/metrics").text)


def samples(text: str) -> dict[str, float]:
    """Every sample of a page under its name and labels as they are written."""
    return {
        sample.name + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lines(program: Program) -> list[dict[str, Any]]:
    """All that a program has said: every line is one object."""
    return [json.loads(line) for line in program.output.splitlines()]


def events(program: Program, name: str) -> list[dict[str, Any]]:
    return [line for line in lines(program) if line.get("event") == name]


@pytest.fixture(scope="module")
def bench(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One for all tests that only look."""
    with Site(tmp_path_factory.mktemp("watching"), shell_config()) as site:
        it = Bench(site, redis_server.url)
        it.server.wait_until_ready()
        yield it


def test_pages_of_server_and_worker(bench: Bench):
    """What was asked, what waits and what ended stands on the pages of those who did it, by route and reason."""
    before = bench.samples("worker")
    bench.server.run("exit 0")
    bench.server.run(FAILS)
    server, worker = bench.samples("server"), bench.samples("worker")

    assert server["script_runner_requests_total,method=POST,route=/task,status=202"] >= 2
    assert server["script_runner_requests_total,method=GET,route=/task/{id},status=200"] >= 2
    assert server["script_runner_workers"] == 1
    assert server["script_runner_slots"] == 3
    assert worker["script_runner_tasks_finished_total,reason=none,state=succeeded"] >= 1
    assert worker["script_runner_tasks_finished_total,reason=exit,state=failed"] >= 1
    assert worker["script_runner_task_run_seconds_count"] == before["script_runner_task_run_seconds_count"] + 2
    assert worker["script_runner_task_wait_seconds_count"] == before["script_runner_task_wait_seconds_count"] + 2
    assert {name for name in (*server, *worker) if bench.site.folder.name in name} == set()


def test_main_port_has_the_same_page(bench: Bench):
    """GET /metrics at the API itself is the page too, for who may ask the API."""
    answer = bench.server.http.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert samples(answer.text).keys() >= {"script_runner_redis_up", "script_runner_backlog"}


def test_unknown_paths_make_no_new_lines(bench: Bench):
    """However many paths are asked for, they are counted as one route; so are all ids of tasks."""
    for number in range(5):
        bench.server.http.get(f"/nowhere/{number}")
        bench.server.http.get(f"/task/unknown-{number}")
    routes = set(re.findall(r'route="([^"]*)"', bench.page("server", "/metrics").text))

    assert "none" in routes
    assert [route for route in routes if "nowhere" in route or "unknown" in route] == []


def test_health_and_readiness_of_a_worker(bench: Bench):
    """A worker that holds its lease is alive and ready; the server's pages say the same as its API."""
    assert bench.page("worker", "/health").status_code == 200
    assert bench.page("worker", "/ready").json() == {"ready": True}
    assert bench.page("server", "/health").status_code == 200
    assert bench.page("server", "/ready").json()["workers"] == 1


def test_ready_tells_how_it_is(bench: Bench):
    """/ready says workers, slots, the queue, ends of the last hour, versions and warnings."""
    bench.server.run(FAILS)
    document = bench.server.http.get("/ready").json()

    assert (document["workers"], document["slots"]) == (1, 3)
    assert document["queue"].keys() == {"queued", "running", "scheduled", "backlog", "oldest_seconds"}
    assert document["ended_in_the_last_hour"]["failed"] >= 1
    assert re.fullmatch(r"Redis \d+\.\d+\.\d+", document["versions"]["store"])
    assert sum(document["versions"]["workers"].values()) == 1
    assert document["warnings"] == []


def test_request_id_goes_through(bench: Bench):
    """The caller's X-Request-ID comes back, and stands in the lines of server and worker about its task."""
    answer = bench.server.http.post("/task", json={"code": "exit 0"}, headers={"X-Request-ID": "order-66.b"})
    task_id = answer.json()["id"]
    bench.server.finished(task_id)
    [submitted] = [line for line in events(bench.server, "submitted") if line["task_id"] == task_id]
    [ended] = until(lambda: [line for line in events(bench.worker, "finished") if line["task_id"] == task_id])

    assert answer.headers["X-Request-ID"] == "order-66.b"
    assert submitted["request_id"] == "order-66.b"
    assert (ended["request_id"], ended["state"], ended["attempt"]) == ("order-66.b", "succeeded", 1)


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, 'a"b', "ü"])
def test_request_id_that_is_not_sane_is_replaced(bench: Bench, given: str):
    """What could break a log or a header is not taken over: the request gets an id of ours."""
    answer = bench.server.http.get("/health", headers=[(b"X-Request-ID", given.encode())])

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_refusals_have_an_id_too(bench: Bench):
    """Also what is refused can be asked about by its id."""
    assert re.fullmatch("[0-9a-f]{32}", bench.server.http.get("/nowhere").headers["X-Request-ID"])


def test_callers_trace_reaches_the_script(bench: Bench):
    """A valid traceparent of the caller is in the script's environment, unchanged where nobody records."""
    answer = bench.server.http.post(
        "/task", json={"code": 'echo "$TRACEPARENT"'}, headers={"traceparent": TRACEPARENT}
    )
    task_id = answer.json()["id"]
    bench.server.finished(task_id)

    assert bench.server.log(task_id) == f"{TRACEPARENT}\n"


def test_no_trace_no_variable(bench: Bench):
    """Without a trace the script has no such variable."""
    task_id = bench.server.submit('echo "${TRACEPARENT-none}"')
    bench.server.finished(task_id)

    assert bench.server.log(task_id) == "none\n"


def test_every_line_is_an_object_and_none_has_a_secret(redis_binary_path: str, tmp_path: Path):
    """From the first line to the last each is JSON; the password of Redis is in none, also when it is refused."""
    with (
        RedisServer(redis_binary_path, password="s3same") as redis,
        Site(tmp_path, shell_config(), SCRIPT_RUNNER_REPORT_SECONDS="0.2") as site,
    ):
        bench = Bench(site, redis.url)
        bench.server.wait_until_ready()
        bench.server.run("exit 0")
        reports = until(lambda: events(bench.server, "queue")[-1:])
        wrong = site.worker(
            SCRIPT_RUNNER_REDIS_URL=redis.url.replace("s3same", "0pensesame"), SCRIPT_RUNNER_LOG_FORMAT="json"
        )
        wrong.wait_for_output("password")
        for program in (wrong, bench.worker, bench.server):
            program.terminate()
            assert program.wait() == 0
        said = [line for program in (bench.server, bench.worker, wrong) for line in lines(program)]

        assert reports[0].keys() >= {"queued", "running", "backlog", "oldest_seconds", "workers"}
        assert [line for line in said if not {"time", "level", "logger", "message"} <= line.keys()] == []
        assert [line for line in said if "sesame" in str(line) or "s3same" in str(line)] == []


def test_a_start_that_fails_says_so_in_json(tmp_path: Path):
    """What is wrong with settings is told as a line of the log where that is JSON."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_LOG_FORMAT="json") as site:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            done = site.run("worker", "--metrics", address, "--redis", "redis://127.0.0.1:1", *site._store)
        [*_, line] = [json.loads(text) for text in done.stderr.splitlines()]

    assert done.returncode == 2
    assert (line["level"], line["problems"][0]["name"]) == ("error", "--metrics")


def test_redis_away(redis_binary_path: str, tmp_path: Path):
    """While Redis is away the pages say so: no figures of the queue, errors counted, the worker unready."""
    with RedisServer(redis_binary_path) as redis, Site(tmp_path, shell_config()) as site:
        bench = Bench(site, redis.url)
        bench.server.wait_until_ready()
        assert bench.samples("server")["script_runner_redis_up"] == 1
        redis.kill()

        def is_told() -> bool:
            return bench.samples("server")["script_runner_redis_up"] == 0

        until(is_told)
        found = bench.samples("server")
        until(lambda: bench.page("worker", "/ready").status_code == 503)
        worker = until(
            lambda: (
                seen if (seen := bench.samples("worker"))["script_runner_store_errors_total,store=redis"] else None
            )
        )
        redis.start()
        until(lambda: bench.page("worker", "/ready").status_code == 200)

        assert "script_runner_backlog" not in found
        assert found["script_runner_store_errors_total,store=redis"] >= 1
        assert worker["script_runner_store_errors_total,store=artifacts"] == 0
        assert bench.page("server", "/ready").status_code in (200, 503)


def test_evicting_redis_is_warned_about(redis_binary_path: str, tmp_path: Path):
    """A Redis that evicts, or keeps nothing on disk, is named in /ready, which stays 200."""
    careless = {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
    with RedisServer(redis_binary_path, settings=careless) as redis, Site(tmp_path, shell_config()) as site:
        server = site.serve(SCRIPT_RUNNER_REDIS_URL=redis.url)
        server.wait_until_ready(workers=0)
        answer = server.http.get("/ready")

    assert answer.status_code == 200
    assert re.search(r"allkeys-lru.*append-only", " ".join(answer.json()["warnings"]))


def test_artifacts_that_cannot_be_kept_are_counted(redis_server: RedisServer, tmp_path: Path):
    """A store that takes nothing is counted where it was met."""
    with Site(tmp_path, shell_config()) as site:
        (site.folder / "store").write_text("a file where the folder should be")
        bench = Bench(site, redis_server.url)
        answer = until(lambda: bench.server.http.get("/ready"))
        found = bench.samples("server")

    assert answer.status_code == 503
    assert found["script_runner_store_errors_total,store=artifacts"] >= 1


def test_up_watches_server_and_worker(tmp_path: Path):
    """``up`` serves the pages of its server at the address, and those of its worker at the next port."""
    port = free_port()
    with Site(tmp_path, shell_config()) as site:
        server: Server = site.up("--metrics", f"127.0.0.1:{port}")
        server.wait_until_ready()
        server.run("exit 0")
        pages = [
            httpx.get(f"http://127.0.0.1:{number}/metrics", trust_env=False).text for number in (port, port + 1)
        ]

    assert "script_runner_workers 1.0" in pages[0]
    assert "script_runner_task_run_seconds_count 1.0" in pages[1]
