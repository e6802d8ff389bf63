"""The queue from the front door: limits and shares, priority and turns, times, places, retention, drain."""

import contextlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from tests.end_to_end.issuer import Issuer
from tests.end_to_end.processes import FINAL, Program, Site, shell_config, until
from tests.servers import RedisServer

NOTE = 'echo "$NAME" >> ledger'
"""Shell code that notes the order of runs."""

WAIT_FOR_GO = "until [ -e go ]; do sleep 0.02; done"
"""Shell code that ends when the test says ``go``."""

FOR_EVER = "while :; do sleep 0.05; done"

COUNTED = """
    add() { flock lock sh -c 'n=$(($(cat "$0" 2>/dev/null || echo 0) + $1)); echo $n > "$0"; echo "$0 $n" >> counts' "$1" "$2"; }
    add all 1; add "of-$NAME" 1
    until [ -e full ]; do
        [ "$(cat all)" = "$MOST" ] && : > full
        sleep 0.02
    done
    add all -1; add "of-$NAME" -1
"""  # noqa: E501 - one function a line
"""Shell code that counts how many run at once, in all and by name; the first wait for each other."""


class Bench:
    """A site with one server on a real Redis and no worker; with an issuer, its server asks for tokens."""

    def __init__(self, site: Site, issuer: Issuer | None = None) -> None:
        self.site = site
        self.server = site.serve(SCRIPT_RUNNER_LOG_LEVEL="debug")
        self._issuer = issuer

    def headers(self, user: str) -> dict[str, str]:
        return self._issuer.headers(user) if self._issuer else {}

    def post(self, code: str = NOTE, name: str = "", *, user: str = "ada", **headers: str) -> httpx.Response:
        """Submit; ``Task_Priority="1"`` is a header."""
        wishes = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.server.http.post(
            "/task", json={"code": code, "name": name}, headers=self.headers(user) | wishes
        )

    def submit(self, code: str = NOTE, name: str = "", *, user: str = "ada", **headers: str) -> str:
        answer = self.post(code, name, user=user, **headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def document(self, task_id: str, *, user: str = "ada") -> dict[str, Any]:
        answer = self.server.http.get(f"/task/{task_id}", headers=self.headers(user))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def is_gone(self, task_id: str) -> bool:
        return self.server.http.get(f"/task/{task_id}").status_code == 404

    def state(self, task_id: str, *states: str, user: str = "ada") -> dict[str, Any]:
        """The document of the task once it is in one of these states."""

        def is_there() -> dict[str, Any] | None:
            document = self.document(task_id, user=user)
            return document if document["state"] in states else None

        return until(is_there, seconds=60, why=lambda: f"{self.document(task_id, user=user)}")

    def finished(self, task_id: str, *, user: str = "ada") -> dict[str, Any]:
        return self.state(task_id, *FINAL, user=user)

    def run_until_ready(self, code: str, *words: str) -> tuple[Program, str]:
        """A worker, and the id of a task whose script runs there and has said ``ready``."""
        worker = self.site.worker(*words)
        task_id = self.submit(code)
        self.state(task_id, "running")
        until(lambda: "ready" in self.server.log(task_id), why=lambda: str(self.document(task_id)))
        return worker, task_id

    def cancel(self, task_id: str) -> None:
        assert self.server.http.post(f"/task/{task_id}/cancel").status_code == 202

    def go(self) -> None:
        (self.site.folder / "go").touch()

    @property
    def ledger(self) -> list[str]:
        ledger = self.site.folder / "ledger"
        return ledger.read_text().split() if ledger.exists() else []

    def counts(self) -> dict[str, list[int]]:
        """What COUNTED has noted, by what was counted."""
        noted: dict[str, list[int]] = {}
        for line in (self.site.folder / "counts").read_text().splitlines():
            what, _, number = line.partition(" ")
            noted.setdefault(what, []).append(int(number))
        return noted


@contextmanager
def bench_with(redis_server: RedisServer, folder: Path, **config: Any) -> Iterator[Bench]:
    with Site(folder, shell_config(**config), SCRIPT_RUNNER_REDIS_URL=redis_server.url) as site:
        yield Bench(site)


@contextmanager
def shared_bench_with(redis_server: RedisServer, folder: Path, **config: Any) -> Iterator[Bench]:
    """A bench whose callers are told apart."""
    with (
        Issuer() as issuer,
        Site(folder, shell_config(**config), SCRIPT_RUNNER_REDIS_URL=redis_server.url, **issuer.settings) as site,
    ):
        yield Bench(site, issuer)


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    with bench_with(redis_server, tmp_path) as bench:
        yield bench


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The problem document of an answer (RFC 9457)."""
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == answer.status_code
    return document


# Back pressure


def test_a_full_queue_refuses_submits_and_nothing_else(redis_server: RedisServer, tmp_path: Path) -> None:
    """At max_queued a submit is 503 queue-full with Retry-After; polls, lists, cancels and health go on."""
    with bench_with(redis_server, tmp_path, max_queued=2) as bench:
        first, _ = bench.submit(), bench.submit()

        refusals = [bench.post(), bench.server.http.post("/script", json={"code": "true"})]

        for refused in refusals:
            assert refused.status_code == 503
            assert problem(refused)["type"] == "urn:problem-type:script-runner:queue-full"
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["access-control-allow-origin"] == "*"
        paths = ("/health", "/ready", "/task", "/task?state=queued", f"/task/{first}", f"/task/{first}/logs")
        assert {path: bench.server.http.get(path).status_code for path in paths} == dict.fromkeys(paths, 200)
        assert len(bench.server.http.get("/task").json()["tasks"]) == 2
        bench.cancel(first)


def test_there_is_room_again_after_a_cancel_a_delete_and_a_run(redis_server: RedisServer, tmp_path: Path) -> None:
    """Whatever takes a task out of a full queue lets one more in."""
    with bench_with(redis_server, tmp_path, max_queued=1) as bench:
        first = bench.submit()
        assert bench.post().status_code == 503
        bench.cancel(first)

        second = bench.submit()
        assert bench.post().status_code == 503
        bench.server.http.delete(f"/task/{second}")

        third = bench.submit()
        assert bench.post().status_code == 503
        bench.site.worker()
        bench.finished(third)

        bench.submit()


def test_scheduled_tasks_take_their_place_in_a_full_queue(redis_server: RedisServer, tmp_path: Path) -> None:
    """A task that waits for its time waits: it counts."""
    with bench_with(redis_server, tmp_path, max_queued=1) as bench:
        bench.submit(Task_Not_Before=rfc_3339(now() + 3600))

        assert bench.post().status_code == 503


def test_a_repeated_request_is_not_refused_by_a_full_queue(redis_server: RedisServer, tmp_path: Path) -> None:
    """What was acknowledged once under its key is told again, however full the queue is by then."""
    with bench_with(redis_server, tmp_path, max_queued=1) as bench:
        task_id = bench.submit(Idempotency_Key="once")

        assert bench.submit(Idempotency_Key="once") == task_id
        assert bench.post(Idempotency_Key="other").status_code == 503


def test_a_callers_share_is_429_for_that_caller_alone(redis_server: RedisServer, tmp_path: Path) -> None:
    """At max_queued_per_caller the caller is told 429 too-many-queued with Retry-After; another is served."""
    with shared_bench_with(redis_server, tmp_path, max_queued_per_caller=2, max_queued=3) as bench:
        bench.submit()
        bench.submit()

        refused, others, full = bench.post(), bench.post(user="bob"), bench.post(user="eve")

        assert refused.status_code == 429
        assert problem(refused)["type"] == "urn:problem-type:script-runner:too-many-queued"
        assert int(refused.headers["retry-after"]) >= 1
        assert others.status_code == 202
        assert full.status_code == 503


def test_the_command_line_waits_for_room(redis_server: RedisServer, tmp_path: Path) -> None:
    """Submit at a full queue asks again when told to; without patience it is exit code 3 and a sentence."""
    with bench_with(redis_server, tmp_path, max_queued=1) as bench:
        worker, _ = bench.run_until_ready(f"echo ready; {WAIT_FOR_GO}", "--concurrency", "1")
        waiting = bench.submit()
        words = ("submit", "--body", json.dumps({"code": "true"}), "--url", bench.server.url, "--patience")

        refused = bench.site.run(*words, "0")
        patient = bench.site.start(*words, "200")
        bench.server.wait_for_output("POST /task 503", times=2)
        bench.go()

        assert (refused.returncode, refused.stdout) == (3, "")
        assert refused.stderr == "script-runner: The queue is full. Try again later.\n"
        assert patient.wait(seconds=120) == 0
        assert bench.finished(patient.output.strip())["state"] == "succeeded"
        assert bench.finished(waiting)["state"] == "succeeded"
        assert not worker.has_ended


# How many at once


def test_max_running_holds_over_all_workers(redis_server: RedisServer, tmp_path: Path) -> None:
    """Two workers with four slots each run three at once, and never four."""
    code = f"MOST=3; {COUNTED}"
    with bench_with(redis_server, tmp_path, max_running=3) as bench:
        for _ in range(2):
            bench.site.worker("--concurrency", "4")

        ids = [bench.submit(code, "any") for _ in range(16)]

        assert [bench.finished(task_id)["state"] for task_id in ids] == ["succeeded"] * 16
        assert len(bench.counts()["all"]) == 32
        assert max(bench.counts()["all"]) == 3


def test_max_running_per_caller_holds_over_all_workers(redis_server: RedisServer, tmp_path: Path) -> None:
    """With two each, two callers fill four of eight slots: both have two, never three, whoever came first."""
    code = f"MOST=4; {COUNTED}"
    with shared_bench_with(redis_server, tmp_path, max_running_per_caller=2) as bench:
        for _ in range(2):
            bench.site.worker("--concurrency", "4")

        ids = [(user, bench.submit(code, user, user=user)) for user in ("ada", "bob") for _ in range(8)]

        assert {bench.finished(task_id, user=user)["state"] for user, task_id in ids} == {"succeeded"}
        counts = bench.counts()
        assert (max(counts["of-ada"]), max(counts["of-bob"]), max(counts["all"])) == (2, 2, 4)


def test_a_caller_at_its_limit_does_not_stop_others(redis_server: RedisServer, tmp_path: Path) -> None:
    """While ada's tasks wait for her first to end, bob's run through on the free slot; then hers all run."""
    with shared_bench_with(redis_server, tmp_path, max_running_per_caller=1) as bench:
        bench.site.worker("--concurrency", "2")
        hers = [bench.submit(WAIT_FOR_GO) for _ in range(4)]
        bench.state(hers[0], "running")

        his = [bench.submit(NOTE, "bob", user="bob") for _ in range(3)]

        assert {bench.finished(task_id, user="bob")["state"] for task_id in his} == {"succeeded"}
        assert [bench.document(task_id)["state"] for task_id in hers] == ["running", "queued", "queued", "queued"]
        bench.go()
        assert [bench.finished(task_id)["state"] for task_id in hers] == ["succeeded"] * 4


def test_a_killed_worker_gives_its_place_back(redis_server: RedisServer, tmp_path: Path) -> None:
    """With max_running 1, the place of a task whose worker was killed goes to the next."""
    with bench_with(redis_server, tmp_path, max_running=1) as bench:
        first, lost = bench.run_until_ready(f"echo ready; {FOR_EVER}")
        bench.site.worker()
        following = bench.submit()

        first.kill()

        assert bench.finished(lost)["state"] == "lost"
        assert bench.finished(following)["state"] == "succeeded"


# The order


def test_higher_priority_starts_first(redis_server: RedisServer, tmp_path: Path) -> None:
    """Tasks start by priority, and those of one priority in the order they came."""
    with bench_with(redis_server, tmp_path, max_priority=5) as bench:
        asked = {"low": "-9", "first": "0", "high": "5", "second": "0", "higher-than-none": "1"}

        ids = [bench.submit(NOTE, name, Task_Priority=priority) for name, priority in asked.items()]
        bench.site.worker("--concurrency", "1")

        for task_id in ids:
            bench.finished(task_id)
        assert bench.ledger == ["high", "higher-than-none", "first", "second", "low"]


@pytest.mark.parametrize(("config", "granted", "refused"), [({}, "0", "1"), ({"max_priority": 3}, "3", "4")])
def test_no_more_priority_than_the_configuration_grants(
    redis_server: RedisServer, tmp_path: Path, config: dict[str, Any], granted: str, refused: str
) -> None:
    """A priority up to max_priority is taken; a higher one is 400 that names header and limit, and no task."""
    with bench_with(redis_server, tmp_path, **config) as bench:
        assert bench.post(Task_Priority=granted).status_code == 202

        answer = bench.post(Task_Priority=refused)

        assert answer.status_code == 400
        (error,) = problem(answer)["errors"]
        assert (error["where"], error["name"]) == ("header", "Task-Priority")
        assert f"to {granted} (max_priority" in error["problem"]
        assert len(bench.server.http.get("/task").json()["tasks"]) == 1


def test_callers_take_turns(redis_server: RedisServer, tmp_path: Path) -> None:
    """One who submits many tasks first delays another's first task by one."""
    with shared_bench_with(redis_server, tmp_path) as bench:
        ids = [("ada", bench.submit(NOTE, f"ada-{number}")) for number in range(4)]
        ids += [("bob", bench.submit(NOTE, f"bob-{number}", user="bob")) for number in range(2)]
        bench.site.worker("--concurrency", "1")

        for user, task_id in ids:
            bench.finished(task_id, user=user)
        assert bench.ledger == ["ada-0", "bob-0", "ada-1", "bob-1", "ada-2", "ada-3"]


# Times


def now() -> float:
    return datetime.now(UTC).timestamp()


def rfc_3339(seconds: float, zone: timezone = UTC) -> str:
    return datetime.fromtimestamp(seconds, zone).isoformat()


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize("hours", [0, 9, -11])
def test_a_task_starts_at_its_time_without_being_asked_for(bench: Bench, hours: int) -> None:
    """Before Task-Not-Before the task is queued, without position, expected then; it starts by itself."""
    bench.site.worker()
    bench.server.wait_until_ready()
    starts_at = math.ceil(now()) + 1

    task_id = bench.submit(NOTE, "x", Task_Not_Before=rfc_3339(starts_at, timezone(timedelta(hours=hours))))
    waiting = bench.document(task_id)

    if waiting["state"] == "queued" and waiting["position"] is None:  # else this machine is slow indeed
        assert moment(waiting["estimated_start_at"]) == starts_at
    until(lambda: bench.ledger == ["x"])  # nobody asks for it meanwhile
    document = bench.finished(task_id)
    assert moment(document["started_at"]) >= starts_at
    assert moment(waiting["created_at"]) < starts_at


def test_a_task_of_a_far_time_waits_while_others_run(bench: Bench) -> None:
    """A task for tomorrow stands in nobody's way, can be cancelled, and then never runs."""
    bench.site.worker("--concurrency", "1")
    tomorrow = math.ceil(now()) + 86_400
    later = bench.submit(NOTE, "later", Task_Not_Before=rfc_3339(tomorrow))

    bench.finished(bench.submit(NOTE, "now"))

    document = bench.document(later)
    assert (document["state"], document["position"]) == ("queued", None)
    assert moment(document["estimated_start_at"]) == tomorrow
    bench.cancel(later)
    assert bench.document(later)["state"] == "cancelled"
    assert bench.ledger == ["now"]


@pytest.mark.parametrize(
    "time",
    [
        "2020-01-01T00:00:00Z",
        "2020-01-01t00:00:00z",
        "2020-01-01 00:00:00+01:00",
        "2020-01-01T00:00:00.123456789-11:30",
        "1969-12-31T23:00:00Z",
        "0001-01-01T00:00:00+23:59",
    ],
)
def test_a_time_that_has_passed_is_now(bench: Bench, time: str) -> None:
    """Any time by RFC 3339 is read; one in the past lets the task wait for a worker only."""
    answer = bench.post(Task_Not_Before=time)

    assert (answer.status_code, answer.json()["position"]) == (202, 1)


def test_a_task_that_waited_too_long_is_not_run(bench: Bench) -> None:
    """After Task-Expires-In without a worker the task is timed_out, was never started, and says so."""
    task_id = bench.submit(NOTE, "late", Task_Expires_In="0.5")

    document = bench.finished(task_id)

    assert (document["status"], document["state"], document["attempt"]) == ("failed", "timed_out", 0)
    assert document["started_at"] is document["exit_code"] is None
    assert document["error"] == "The task waited longer than it was allowed to, and was not run."
    assert moment(document["finished_at"]) >= moment(document["created_at"]) + 0.5
    bench.site.worker()
    bench.finished(bench.submit(NOTE, "fresh"))
    assert bench.ledger == ["fresh"]


def test_the_configuration_says_how_long_a_task_may_wait(redis_server: RedisServer, tmp_path: Path) -> None:
    """expires_in_seconds holds for a request that says nothing; one that does overrules it."""
    with bench_with(redis_server, tmp_path, expires_in_seconds=0.5) as bench:
        patient, silent = bench.submit(Task_Expires_In="3600"), bench.submit()

        assert bench.finished(silent)["state"] == "timed_out"
        assert bench.document(patient)["state"] == "queued"


def test_a_task_that_has_started_does_not_expire(bench: Bench) -> None:
    """Task-Expires-In is about waiting: a script may run longer."""
    bench.site.worker()
    bench.server.wait_until_ready()
    task_id = bench.submit(WAIT_FOR_GO, Task_Expires_In="5")
    bench.state(task_id, "running")

    created = moment(bench.document(task_id)["created_at"])
    until(lambda: now() > created + 6)

    assert bench.document(task_id)["state"] == "running"
    bench.go()
    assert bench.finished(task_id)["state"] == "succeeded"


@pytest.mark.parametrize("config", [{}, {"expires_in_seconds": 60}], ids=str)
def test_a_time_after_the_last_one_is_refused(
    redis_server: RedisServer, tmp_path: Path, config: dict[str, Any]
) -> None:
    """A task that would expire before its time is 400, whoever said how long it may wait."""
    patience = {} if config else {"Task_Expires_In": "60"}
    with bench_with(redis_server, tmp_path, **config) as bench:
        answer = bench.post(Task_Not_Before=rfc_3339(now() + 600), **patience)

        assert answer.status_code == 400
        assert problem(answer)["errors"][0]["name"] == "Task-Not-Before"


YEAR_SECONDS = 366 * 86_400
BAD_HEADERS = {
    "Task-Priority": ["", "high", "1.5", "10", "-10", "--1", "+1", "1 2", "0x1", "\xb2"],
    "Task-Expires-In": [
        "", "0", "0.000", "-1", "soon", "1e3", "inf", "nan", "1.2345", str(YEAR_SECONDS + 1), "1" * 400,
    ],
    "Task-Not-Before": [
        "", "tomorrow", "1700000000", "2020-01-31", "2020-01-31T06:00:00", "2020-13-01T00:00:00Z",
        "2020-02-30T00:00:00Z", "2020-01-01T24:00:01Z", "2020-01-01T00:00:60Z", "2020-01-01T00:00:00+99:00",
        "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "20200131T060000Z",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def idle(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench for requests that are refused."""
    with bench_with(redis_server, tmp_path_factory.mktemp("idle")) as bench:
        yield bench


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD_HEADERS for value in BAD_HEADERS[name]])
def test_a_bad_header_is_named(idle: Bench, name: str, value: str) -> None:
    """400 with the name of the header, and no task."""
    headers = [(name.encode(), value.encode("latin-1"))]

    answer = idle.server.http.post("/task", json={"code": "true"}, headers=headers)

    assert answer.status_code == 400, answer.text
    (error,) = problem(answer)["errors"]
    assert (error["where"], error["name"]) == ("header", name)
    assert idle.server.http.get("/task").json()["tasks"] == []


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_header_that_stands_twice_is_refused(idle: Bench, name: str) -> None:
    """Each header may stand once, as nobody could say which of two counts."""
    answer = idle.server.http.post("/task", json={"code": "true"}, headers=[(name, "1"), (name, "1")])

    assert answer.status_code == 400
    assert problem(answer)["errors"] == [{"where": "header", "name": name, "problem": "must stand once"}]


def test_the_command_line_asks_the_queue_too(redis_server: RedisServer, tmp_path: Path) -> None:
    """Options of submit are the headers: a task of a high priority for a later time that may not wait for ever."""
    with bench_with(redis_server, tmp_path, max_priority=5) as bench:
        starts_at = math.ceil(now()) + 3600
        words = ("submit", "--url", bench.server.url, "--body", json.dumps({"code": "true"}), "--json")

        later = bench.site.run(*words, "--not-before", rfc_3339(starts_at))
        expiring = bench.site.run(*words, "--expires-in", "0.5")
        bench.submit()
        high = bench.site.run(*words, "--priority", "5")
        refused = bench.site.run(*words, "--priority", "6")

        assert moment(json.loads(later.stdout)["estimated_start_at"]) == starts_at
        assert bench.finished(json.loads(expiring.stdout)["id"])["state"] == "timed_out"
        assert json.loads(high.stdout)["position"] == 1
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "Task-Priority must be from -9 to 5" in refused.stderr


# Places


def test_positions_count_down(bench: Bench) -> None:
    """Waiting tasks are told their place, 1 is next; nobody knows when without a worker; it counts down."""
    answers = [bench.post().json() for _ in range(4)]
    ids = [answer["id"] for answer in answers]
    assert [answer["position"] for answer in answers] == [1, 2, 3, 4]
    assert {answer["estimated_start_at"] for answer in answers} == {None}

    bench.cancel(ids[0])
    bench.server.http.delete(f"/task/{ids[2]}")

    assert [bench.document(ids[number])["position"] for number in (1, 3)] == [1, 2]
    assert "position" not in bench.document(ids[0])
    assert all("position" not in task for task in bench.server.http.get("/task").json()["tasks"])


def test_the_estimated_start_comes_from_past_runs(bench: Bench) -> None:
    """With a worker and a past run the document says when the task may start; not while it runs."""
    bench.site.worker("--concurrency", "1")
    bench.finished(bench.submit("sleep 1.1"))
    running = bench.submit(WAIT_FOR_GO)
    bench.state(running, "running")
    ids = [bench.submit() for _ in range(30)]

    first, last = (bench.document(task_id) for task_id in (ids[0], ids[-1]))

    assert (first["position"], last["position"]) == (1, 30)
    assert moment(last["estimated_start_at"]) > moment(first["estimated_start_at"]) >= moment(first["created_at"])
    assert not {"position", "estimated_start_at"} & set(bench.document(running))
    bench.go()


# Retention


def mentions(server: RedisServer, namespace: str, task_id: str) -> set[str]:
    """The keys of a namespace that name a task, in their name or their content; a worker's last claim aside."""
    with contextlib.closing(server.client()) as client:
        return {
            str(key)
            for key in client.scan_iter(match=f"*{namespace}*", count=1000)
            if f"{namespace}}}:1:worker:" not in str(key) and task_id in f"{key} {_content(client, str(key))}"
        }


def _content(client: redis.Redis, key: str) -> str:
    match client.type(key):
        case "string":
            return str(client.get(key))
        case "hash":
            return str(client.hgetall(key))
        case "zset":
            return str(client.zrange(key, 0, -1))
        case "set":
            return str(client.smembers(key))
        case "list":
            return str(client.lrange(key, 0, -1))
        case _:  # gone meanwhile
            return ""


def kept_files(bench: Bench, task_id: str) -> list[Path]:
    return [path for path in (bench.site.folder / "store").rglob("*") if task_id in str(path)]


def test_beyond_their_count_the_oldest_go_with_all_that_is_theirs(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """With a count of 2 the newest two stay whole; of the others no row, file, log, key or folder is left."""
    code = "echo said; echo x > $RUNDIR/files/x"
    with bench_with(redis_server, tmp_path, retention={"succeeded": {"count": 2}}) as bench:
        bench.site.worker("--concurrency", "1")
        ids = []
        for number in range(4):
            ids.append(bench.submit(code, Idempotency_Key=f"key-{number}"))
            until(lambda: bench.is_gone(ids[-1]) or bench.document(ids[-1])["state"] == "succeeded")

        until(lambda: all(bench.is_gone(task_id) for task_id in ids[:2]))

        until(lambda: not any(kept_files(bench, task_id) for task_id in ids[:2]))
        assert [mentions(redis_server, bench.site.namespace, task_id) for task_id in ids[:2]] == [set(), set()]
        for rest in ("", "/results", "/logs", "/attachments/x"):
            assert bench.server.http.get(f"/task/{ids[0]}{rest}").status_code == 404
        assert [task["id"] for task in bench.server.http.get("/task").json()["tasks"]] == [ids[3], ids[2]]
        for task_id in ids[2:]:
            assert list(bench.document(task_id)["attachments"]) == ["x"]
            assert bench.server.log(task_id) == "said\n"
            assert kept_files(bench, task_id)
            assert mentions(redis_server, bench.site.namespace, task_id)
        assert bench.submit(code, Idempotency_Key="key-0") != ids[0]
        assert bench.submit(code, Idempotency_Key="key-3") == ids[3]


def test_each_state_may_have_a_time_of_its_own(redis_server: RedisServer, tmp_path: Path) -> None:
    """A failed task goes after its own time, with its files; one that succeeded is kept by the general rule."""
    with bench_with(redis_server, tmp_path, retention={"failed": {"seconds": 1}}) as bench:
        bench.site.worker()
        failed = bench.submit("echo x > $RUNDIR/files/x; exit 1")
        succeeded = bench.submit("echo x > $RUNDIR/files/x")

        until(lambda: bench.is_gone(failed))

        until(lambda: not kept_files(bench, failed))
        assert mentions(redis_server, bench.site.namespace, failed) == set()
        assert bench.finished(succeeded)["state"] == "succeeded"
        assert kept_files(bench, succeeded)


def test_a_count_of_one_state_leaves_the_others(redis_server: RedisServer, tmp_path: Path) -> None:
    """Cancelled tasks that are not kept at all go at once, while no worker is there; those that wait stay."""
    with bench_with(redis_server, tmp_path, retention={"cancelled": {"count": 0}}) as bench:
        waiting, cancelled = bench.submit(), bench.submit()

        bench.cancel(cancelled)

        until(lambda: bench.is_gone(cancelled))
        assert mentions(redis_server, bench.site.namespace, cancelled) == set()
        assert bench.document(waiting)["position"] == 1


# A worker that is asked to stop

TWICE = """
    echo $$ >> pids
    for pid in $(cat pids); do
        if [ $pid != $$ ] && grep -q . /proc/$pid/cmdline; then echo overlap >> overlaps; fi
    done
    echo ready
"""
"""Shell code that notes its pid, and whether an earlier one still lives."""


def test_a_drained_task_that_may_run_again_does_so_uncounted(redis_server: RedisServer, tmp_path: Path) -> None:
    """After --drain-timeout the script is stopped and its task queued; the next worker runs it as attempt 1."""
    code = f"{TWICE} if [ $(wc -l < pids) = 1 ]; then {FOR_EVER}; fi"
    with bench_with(redis_server, tmp_path, on_worker_lost="retry", max_attempts=2) as bench:
        worker, task_id = bench.run_until_ready(code, "--drain-timeout", "0.2")

        worker.terminate()

        assert worker.wait() == 0
        waiting = bench.document(task_id)
        assert (waiting["state"], waiting["attempt"], waiting["started_at"]) == ("queued", 0, None)
        assert waiting["position"] == 1
        bench.site.worker()
        document = bench.finished(task_id)
        assert (document["state"], document["attempt"]) == ("succeeded", 1)
        assert not (tmp_path / "overlaps").exists()


def has_lines(file: Path, count: int) -> bool:
    return file.exists() and len(file.read_text().split()) == count


def test_draining_often_does_not_use_up_attempts(redis_server: RedisServer, tmp_path: Path) -> None:
    """A task that every worker gives back is never lost for that, however few attempts it has."""
    code = f"{TWICE} if [ $(wc -l < pids) -lt 4 ]; then {FOR_EVER}; fi"
    with bench_with(redis_server, tmp_path, on_worker_lost="retry", max_attempts=2) as bench:
        task_id = bench.submit(code)
        for turn in range(1, 4):
            worker = bench.site.worker("--drain-timeout", "0")
            until(partial(has_lines, tmp_path / "pids", turn))
            worker.terminate()
            assert worker.wait() == 0

        bench.site.worker()

        document = bench.finished(task_id)
        assert (document["state"], document["attempt"]) == ("succeeded", 1)


def test_a_drained_task_that_must_not_run_again_is_lost_and_says_why(bench: Bench) -> None:
    """With on_worker_lost fail it ends as lost, with a sentence, and no later worker runs it."""
    worker, task_id = bench.run_until_ready(f"{TWICE} {FOR_EVER}", "--drain-timeout", "0.2")

    worker.terminate()

    assert worker.wait() == 0
    document = bench.finished(task_id)
    assert (document["status"], document["state"], document["attempt"]) == ("failed", "lost", 1)
    assert document["error"].startswith(
        "The worker was stopped while the script ran; on_worker_lost lets it not run again."
    )
    bench.site.worker()
    assert bench.finished(bench.submit())["state"] == "succeeded"
    assert len((bench.site.folder / "pids").read_text().split()) == 1


def test_a_drain_waits_for_what_runs_and_claims_nothing_more(bench: Bench) -> None:
    """SIGTERM leaves a running script its time, and what waits to the next worker."""
    worker, running = bench.run_until_ready(f"echo ready; {WAIT_FOR_GO}", "--concurrency", "2")
    worker.terminate()
    worker.wait_for_output("waiting up to")
    waiting = bench.submit()

    bench.go()

    assert worker.wait() == 0
    assert bench.document(running)["state"] == "succeeded"
    assert (bench.document(waiting)["state"], bench.document(waiting)["position"]) == ("queued", 1)
