"""Redis killed, paused and brought back under a server and a worker that go on."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.end_to_end.processes import Server, Site, shell_config, until
from tests.servers import RedisServer

TWO_SECONDS = 2.0
"""How soon a caller hears that Redis is away."""

LEASE_SECONDS = 2
"""That of the workers of a site."""

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def redis(redis_binary_path: str) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with RedisServer(redis_binary_path) as server:
        yield server


@pytest.fixture
def site(redis: RedisServer, tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis.url) as site:
        yield site


@pytest.fixture
def server(site: Site) -> Server:
    """A server and a worker, both ready."""
    server = site.serve()
    site.worker("--concurrency", "4")
    server.wait_until_ready()
    return server


def answer_in_two_seconds(server: Server, method: str, path: str) -> httpx.Response | None:
    """The answer to a caller who waits two seconds and no longer."""
    try:
        return server.http.request(method, path, json={"code": "true"}, timeout=TWO_SECONDS)
    except httpx.TimeoutException:
        return None


KILLED_OR_PAUSED = pytest.mark.parametrize(
    ("take_away", "bring_back"),
    [(RedisServer.kill, RedisServer.start), (RedisServer.pause, RedisServer.resume)],
    ids=["killed", "paused"],
)

Act = Callable[[RedisServer], None]


@KILLED_OR_PAUSED
def test_without_redis_every_question_is_answered_503_in_time(
    server: Server, redis: RedisServer, take_away: Act, bring_back: Act
) -> None:
    """Killed or standing still: POST and the rest answer 503 problem+json with Retry-After within two seconds."""
    take_away(redis)

    for method, path in (
        ("POST", "/task"),
        ("GET", f"/task/{UNKNOWN}"),
        ("GET", "/ready"),
    ):
        # a machine that is busy with something else may be late once, but not again and again
        answer = until(lambda method=method, path=path: answer_in_two_seconds(server, method, path))  # type: ignore[misc]
        assert answer is not None
        assert answer.status_code == 503, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["type"].endswith(":unavailable")
    assert server.http.get("/health").status_code == 200
    bring_back(redis)


@KILLED_OR_PAUSED
def test_the_same_server_and_worker_work_again_when_redis_is_back(
    server: Server, redis: RedisServer, take_away: Act, bring_back: Act
) -> None:
    """Nothing has to be restarted: a task that is taken after the outage is run."""
    take_away(redis)
    until(lambda: server.http.post("/task", json={"code": "true"}).status_code == 503)

    bring_back(redis)

    def submitted() -> str | None:
        answer = server.http.post("/task", json={"code": "echo back"})
        return str(answer.json()["id"]) if answer.status_code == 202 else None

    assert server.finished(until(submitted))["state"] == "succeeded"


def test_tasks_acknowledged_before_redis_was_killed_all_finish(redis: RedisServer, tmp_path: Path) -> None:
    """After kill -9 of Redis under a full queue every acknowledged task ends once, and none is forgotten."""
    with Site(
        tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis.url, SCRIPT_RUNNER_LEASE_SECONDS="10"
    ) as site:
        server = site.serve()
        site.worker("--concurrency", "4")
        server.wait_until_ready()
        ids = [server.submit('echo "$TASK_ID" >> ledger; sleep 0.05') for _ in range(30)]
        until((tmp_path / "ledger").exists)

        redis.restart()

        assert {server.finished(task_id)["state"] for task_id in ids} == {"succeeded"}
        ran = (tmp_path / "ledger").read_text().split()
        assert sorted(ran) == sorted(ids)


def test_a_running_script_survives_a_restart_of_redis(redis: RedisServer, tmp_path: Path) -> None:
    """A Redis that is away for less than the lease costs no running script."""
    with Site(
        tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis.url, SCRIPT_RUNNER_LEASE_SECONDS="10"
    ) as site:
        server = site.serve()
        site.worker()
        task_id = server.submit("echo $$ >> ledger; until [ -e go ]; do sleep 0.02; done")
        until((tmp_path / "ledger").exists)
        redis.kill()
        until(lambda: server.http.get(f"/task/{task_id}").status_code == 503)

        redis.start()

        (tmp_path / "go").touch()
        document = server.finished(task_id)
        assert (document["state"], document["attempt"]) == ("succeeded", 1)


def test_a_script_that_ended_while_redis_was_away_is_reported_afterwards(
    redis: RedisServer, tmp_path: Path
) -> None:
    """A worker that cannot report keeps the outcome, and reports it when Redis is back."""
    with Site(
        tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis.url, SCRIPT_RUNNER_LEASE_SECONDS="10"
    ) as site:
        server = site.serve()
        worker = site.worker()
        task_id = server.submit("echo $$ > ledger; until [ -e go ]; do sleep 0.02; done; echo x > $RUNDIR/files/x")
        until((tmp_path / "ledger").exists)
        redis.kill()
        (tmp_path / "go").touch()
        worker.wait_for_output("cannot report task")

        redis.start()

        document = server.finished(task_id)
        assert (document["state"], list(document["attachments"])) == ("succeeded", ["x"])


def test_a_script_is_killed_before_its_lease_could_pass_on(site: Site, server: Server, redis: RedisServer) -> None:
    """While Redis is away for longer than the lease the script is killed, and its task is lost when it is back."""
    task_id = server.submit("echo $$ > ledger; while :; do sleep 0.05; done")
    until((server.folder / "ledger").exists)

    redis.kill()

    until(lambda: not site.processes(TASK_ID=task_id))
    redis.start()
    until(lambda: server.http.get(f"/task/{task_id}").status_code == 200)
    assert server.finished(task_id)["state"] == "lost"
    assert server.run("true")["state"] == "succeeded"


def test_a_server_and_a_worker_start_before_redis_does(redis: RedisServer, tmp_path: Path) -> None:
    """Started while Redis is away, both wait for it, and work when it comes."""
    redis.kill()
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis.url) as site:
        server = site.serve()
        site.worker().wait_for_output("Redis) is away")
        server.wait_for_output("Redis) is away")
        assert server.http.get("/ready").status_code == 503

        redis.start()

        server.wait_until_ready()
        assert server.run("true")["state"] == "succeeded"


def test_a_wrong_password_is_said_by_server_and_worker(redis_binary_path: str, tmp_path: Path) -> None:
    """Neither works in silence when Redis refuses it."""
    with (
        RedisServer(redis_binary_path, password="right") as redis,
        Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=f"redis://:wrong@127.0.0.1:{redis.port}") as site,
    ):
        for program in (site.serve(), site.worker()):
            program.wait_for_output("Redis refuses the name or password")
            assert "wrong" not in program.output


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis://127.0.0.1:1", "Nothing listens at the address of Redis"),
        ("redis://redis.invalid", "The host name of Redis is not known here"),
        ("unix:///no/socket", "The socket of Redis is not there"),
    ],
)
def test_a_wrong_address_is_explained_by_server_and_worker(tmp_path: Path, url: str, sentence: str) -> None:
    """Who starts them reads in the log what is wrong with the address, not only that nobody answers."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=url) as site:
        for program in (site.serve(), site.worker()):
            program.wait_for_output(f"The task store (Redis) is away. {sentence}")


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_password_may_stand_apart_from_the_url(redis_binary_path: str, tmp_path: Path, kind: str) -> None:
    """Server and worker take the password from its own variable, and the script is not given it."""
    password = "p@ss:w/rd"
    with RedisServer(redis_binary_path, password=password) as redis:
        urls = {"tcp": f"redis://127.0.0.1:{redis.port}", "unix": f"unix://{redis.folder}/socket"}
        settings = {"SCRIPT_RUNNER_REDIS_URL": urls[kind], "SCRIPT_RUNNER_REDIS_PASSWORD": password}
        with Site(tmp_path, shell_config(), **settings) as site:
            server = site.serve()
            site.worker()
            server.wait_until_ready()

            document = server.run("env | cut -d= -f1 | grep -c ^SCRIPT_RUNNER || true")

            assert server.log(document["id"]) == "0\n"


def test_a_redis_without_a_file_is_warned_of(redis_binary_path: str, tmp_path: Path) -> None:
    """A Redis that keeps no append-only file, or may evict, is named as a danger in the log."""
    settings = {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
    with (
        RedisServer(redis_binary_path, settings=settings) as redis,
        Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis.url) as site,
    ):
        server = site.serve()

        server.wait_for_output("append-only")
        server.wait_for_output("evict")


def test_a_worker_asked_to_stop_while_redis_is_away_stops(site: Site, redis: RedisServer) -> None:
    """SIGTERM ends an idle worker also when it cannot say goodbye."""
    server = site.serve()
    worker = site.worker()
    server.wait_until_ready()
    redis.kill()
    worker.wait_for_output("cannot claim")

    worker.terminate()

    assert worker.wait() == 0


def test_a_server_asked_to_stop_while_redis_stands_still_stops(server: Server, redis: RedisServer) -> None:
    """SIGTERM ends the server also when Redis does not answer."""
    redis.pause()

    server.terminate()

    assert server.wait() == 0


def test_a_redis_that_is_full_costs_no_script_that_runs(server: Server, site: Site, redis: RedisServer) -> None:
    """Without memory left submits answer 503; a script runs on past a lease, and its end is recorded."""
    running = server.submit(
        "echo begun; until [ -e go ]; do sleep 0.02; done; echo ended; echo x > $RUNDIR/files/x"
    )
    until(lambda: "begun" in server.log(running))
    with contextlib.closing(redis.client()) as outside:
        outside.config_set("maxmemory", "1")
        filled_at = outside.time()[0]
        assert server.http.post("/task", json={"code": "true"}).status_code == 503
        until(lambda: outside.time()[0] > filled_at + 2 * LEASE_SECONDS)
        assert server.document(running)["state"] == "running"
        (site.folder / "go").touch()
        assert server.finished(running)["state"] == "succeeded"
        outside.config_set("maxmemory", "0")

    assert server.log(running) == "begun\nended\n"
    assert server.run("true")["state"] == "succeeded"
