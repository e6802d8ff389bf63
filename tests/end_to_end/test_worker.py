"""The worker under a hard life: limits, kills, pauses and stops, with real scripts and a real Redis."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.processes import Program, Server, Site, shell_config, until
from tests.servers import RedisServer

WAIT_FOR_GO = "until [ -e go ]; do sleep 0.02; done"
"""Shell code that ends when the test makes the file ``go``."""

FOR_EVER = "while :; do sleep 0.05; done"

TERM_PROOF_TREE = f"""
    trap "" TERM INT HUP
    (trap "" TERM; {FOR_EVER}) &
    setsid sh -c 'trap "" TERM; {FOR_EVER}' &
    (setsid setsid nohup sh -c 'trap "" TERM; {FOR_EVER}' >/dev/null 2>&1 &)
    echo ready
    {FOR_EVER}
"""
"""A script whose children ignore TERM, leave its group, or leave both group and parent."""

LEDGER = """
    for pid in $(cat ledger); do
        if grep -q . /proc/$pid/cmdline; then echo overlap >> overlaps; fi
    done
    echo $$ >> ledger
"""
"""Shell code that notes its pid, and whether an earlier one in the ledger still lives (a zombie does not)."""


class Bench:
    """A site with its server on a real Redis; workers come and go."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.folder = site.folder
        self.server = site.serve()
        (self.folder / "ledger").touch()

    def run_on_a_new_worker(self, code: str, *words: str) -> tuple[Program, str]:
        """A worker, and the id of a task whose script runs there and has said ``ready``."""
        worker = self.site.worker(*words)
        return worker, self.run_until_ready(code)

    def run_until_ready(self, code: str) -> str:
        task_id = self.server.submit(code)
        self.server.wait_for_state(task_id, "running")
        until(lambda: "ready" in self.server.log(task_id), why=lambda: str(self.server.document(task_id)))
        return task_id

    def scripts(self, task_id: str) -> dict[int, str]:
        return self.site.processes(TASK_ID=task_id)

    @property
    def ledger(self) -> list[str]:
        return (self.folder / "ledger").read_text().split()

    @property
    def has_overlapped(self) -> bool:
        return (self.folder / "overlaps").exists()


@contextmanager
def bench_with(redis: RedisServer, folder: Path, **config: Any) -> Iterator[Bench]:
    with Site(folder, shell_config(**config), SCRIPT_RUNNER_REDIS_URL=redis.url) as site:
        yield Bench(site)


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    """A script that must not run again: on_worker_lost is fail, the default."""
    with bench_with(redis_server, tmp_path) as bench:
        yield bench


@pytest.fixture
def retry_bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    """A script that may run again."""
    with bench_with(redis_server, tmp_path, on_worker_lost="retry", max_attempts=3) as bench:
        yield bench


# Limits


def test_a_script_over_its_time_is_stopped_with_all_it_started(redis_server: RedisServer, tmp_path: Path) -> None:
    """timeout_seconds ends the whole tree: TERM, the grace, KILL; the task is timed_out and says the limit."""
    with bench_with(redis_server, tmp_path, timeout_seconds=2.5) as bench:
        bench.site.worker()
        task_id = bench.server.submit(TERM_PROOF_TREE)

        document = bench.server.finished(task_id)

        assert (document["status"], document["state"], document["exit_code"]) == ("failed", "timed_out", -9)
        assert "longer than 2.5 seconds" in document["error"]
        assert bench.scripts(task_id) == {}


def test_a_script_that_heeds_term_at_its_time_ends_within_the_grace(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """At its time a script may tidy up, and what it leaves is kept; the task is timed_out all the same."""
    with bench_with(redis_server, tmp_path, timeout_seconds=2.5, grace_seconds=30) as bench:
        bench.site.worker()

        document = bench.server.run(f'trap "echo x > $RUNDIR/files/last; exit 0" TERM; {FOR_EVER}')

        assert (document["state"], document["exit_code"]) == ("timed_out", 0)
        assert list(document["attachments"]) == ["last"]


# Cancel


def test_cancel_ends_a_tree_that_ignores_term(bench: Bench) -> None:
    """No process of a cancelled script is left, whatever it ignores and wherever it went."""
    _, task_id = bench.run_on_a_new_worker(TERM_PROOF_TREE)
    assert len(bench.scripts(task_id)) >= 4

    bench.server.http.post(f"/task/{task_id}/cancel")

    document = bench.server.finished(task_id)
    assert (document["state"], document["exit_code"]) == ("cancelled", -9)
    assert bench.scripts(task_id) == {}
    until(lambda: not bench.site.run_folders())


def test_a_queued_task_is_cancelled_at_once_and_never_runs(bench: Bench) -> None:
    """Without any worker a queued task is cancelled; a worker that comes later does not run it."""
    task_id = bench.server.submit("echo x >> ledger")
    assert bench.server.document(task_id)["state"] == "queued"

    cancelled = bench.server.http.post(f"/task/{task_id}/cancel")

    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    bench.site.worker()
    assert bench.server.run("true")["state"] == "succeeded"
    assert (bench.server.document(task_id)["state"], bench.ledger) == ("cancelled", [])


def test_a_queued_task_can_be_deleted_and_never_runs(bench: Bench) -> None:
    """DELETE takes a queued task out of the queue."""
    task_id = bench.server.submit("echo x >> ledger")

    assert bench.server.http.delete(f"/task/{task_id}").status_code == 204
    bench.site.worker()
    assert bench.server.run("true")["state"] == "succeeded"
    assert bench.ledger == []


# A worker that dies


def test_a_killed_workers_task_is_lost_and_nothing_of_it_is_left(bench: Bench) -> None:
    """After kill -9 of the worker script, children and run folder go at once; the task is lost, and says so."""
    worker, task_id = bench.run_on_a_new_worker(TERM_PROOF_TREE)

    worker.kill()

    until(lambda: not bench.scripts(task_id), why=lambda: str(bench.scripts(task_id)))
    until(lambda: not bench.site.run_folders())
    document = bench.server.finished(task_id)
    assert (document["status"], document["state"], document["attempt"]) == ("failed", "lost", 1)
    assert "worker was lost" in document["error"]
    until(lambda: list(bench.site.processes()) == [bench.server.pid])  # its guardian goes last


def test_a_killed_workers_task_runs_again_where_it_may(retry_bench: Bench) -> None:
    """With on_worker_lost retry another worker runs it, attempt 2, and never beside the first."""
    bench = retry_bench
    code = f"{LEDGER} echo ready; if [ $(wc -l < ledger) = 1 ]; then {FOR_EVER}; fi; echo again"
    worker, task_id = bench.run_on_a_new_worker(code)
    bench.site.worker()

    worker.kill()

    document = bench.server.finished(task_id)
    assert (document["state"], document["attempt"]) == ("succeeded", 2)
    assert bench.server.log(task_id) == "ready\nagain\n"
    assert len(bench.ledger) == 2
    assert not bench.has_overlapped


def test_a_script_that_kills_its_worker_is_lost_after_its_attempts(retry_bench: Bench) -> None:
    """A task under which every worker dies is given up after max_attempts, and does not go round for ever."""
    bench = retry_bench
    workers = [bench.site.worker() for _ in range(3)]
    task_id = bench.server.submit("echo $$ >> ledger; kill -9 $PPID; " + FOR_EVER)

    document = bench.server.finished(task_id)

    assert (document["state"], document["attempt"], len(bench.ledger)) == ("lost", 3, 3)
    assert [worker.wait() for worker in workers] == [-9] * 3


def test_a_stopped_worker_loses_its_task_and_does_no_harm_when_it_goes_on(retry_bench: Bench) -> None:
    """A worker that stands still past its lease: its script is killed, another worker runs the task to its end,
    and the first, once it goes on, changes nothing of that and works again.
    """
    bench = retry_bench
    code = (
        f"{LEDGER} echo ready; if [ $(wc -l < ledger) = 1 ]; then {FOR_EVER}; fi;"
        f" echo second > $RUNDIR/files/who; {WAIT_FOR_GO}"
    )
    first, task_id = bench.run_on_a_new_worker(code)
    second = bench.site.worker()
    bench.server.wait_until_ready(workers=2)

    first.signal(signal.SIGSTOP)

    until(lambda: len(bench.ledger) == 2)
    first.signal(signal.SIGCONT)
    first.wait_for_output("the lease lapsed")
    (bench.folder / "go").touch()
    document = bench.server.finished(task_id)
    assert (document["state"], document["attempt"]) == ("succeeded", 2)
    assert list(document["attachments"]) == ["who"]
    assert not bench.has_overlapped

    second.kill()
    assert bench.server.run("true")["state"] == "succeeded"
    assert bench.server.document(task_id) == document


def test_the_guardian_killed_is_replaced(bench: Bench) -> None:
    """Without its guardian the worker goes on, and a later kill -9 of it still leaves no orphan."""
    worker, first = bench.run_on_a_new_worker(f"echo ready; {WAIT_FOR_GO}")
    guardian = next(pid for pid, command in bench.site.processes().items() if "guardian.py" in command)

    os.kill(guardian, signal.SIGKILL)
    (bench.folder / "go").touch()
    assert bench.server.finished(first)["state"] == "succeeded"
    second = bench.run_until_ready(TERM_PROOF_TREE)
    worker.kill()

    until(lambda: not bench.scripts(second))
    assert bench.server.finished(second)["state"] == "lost"


# A worker that is asked to stop


def test_term_lets_running_scripts_end_and_takes_no_more(bench: Bench) -> None:
    """SIGTERM drains: what runs is finished and reported, what waits stays queued, the exit code is 0."""
    worker, task_id = bench.run_on_a_new_worker(f"echo ready; {WAIT_FOR_GO}", "--concurrency", "2")

    worker.terminate()
    worker.wait_for_output("waiting up to")
    waiting = bench.server.submit("true")
    (bench.folder / "go").touch()

    assert worker.wait() == 0
    assert bench.server.document(task_id)["state"] == "succeeded"
    assert bench.server.document(waiting)["state"] == "queued"
    assert list(bench.site.processes()) == [bench.server.pid]


def test_a_stopped_worker_is_no_longer_counted(bench: Bench) -> None:
    """A worker that was stopped in order leaves at once; /ready does not wait for its lease."""
    worker = bench.site.worker(SCRIPT_RUNNER_LEASE_SECONDS="600")
    bench.server.wait_until_ready()

    worker.terminate()
    worker.wait()

    assert bench.server.http.get("/ready").json()["workers"] == 0


def test_workers_with_another_configuration_are_said(bench: Bench) -> None:
    """/ready tells which configurations there are, a task its own; the worker says when another comes to it."""
    other = bench.folder / "other.json"
    other.write_text(json.dumps(shell_config(timeout_seconds=60)))
    worker = bench.site.worker("--config", str(other))
    bench.server.wait_until_ready()
    ready = bench.server.http.get("/ready").json()
    (theirs,) = ready["configurations"]

    assert theirs != ready["configuration"]
    assert ready["warnings"] == ["1 of the workers have loaded another configuration than this server."]
    assert bench.server.run("true")["configuration"] == ready["configuration"]
    worker.wait_for_output(f"configuration {ready['configuration']}; they run under ours, {theirs}")


def test_workers_with_the_same_configuration_are_no_matter(bench: Bench) -> None:
    """A file that only looks different is the same configuration."""
    same = bench.folder / "same.json"
    same.write_text(json.dumps({**shell_config(), "timeout_seconds": None}, indent=4))
    bench.site.worker("--config", str(same))
    bench.server.wait_until_ready()
    ready = bench.server.http.get("/ready").json()

    assert ready["configurations"] == {ready["configuration"]: 1}
    assert ready["warnings"] == []


def test_a_second_term_stops_scripts_and_says_so_honestly(bench: Bench) -> None:
    """A second SIGTERM ends the scripts; a task that must not run again is lost."""
    worker, task_id = bench.run_on_a_new_worker(f"echo ready; {FOR_EVER}")

    worker.terminate()
    worker.wait_for_output("waiting up to")
    worker.terminate()

    assert worker.wait() == 0
    assert bench.server.finished(task_id)["state"] == "lost"
    assert bench.scripts(task_id) == {}


def test_a_second_term_returns_what_may_run_again_without_counting_it(retry_bench: Bench) -> None:
    """A drained task that may run again goes back to the queue, and its next run is attempt 1 again."""
    bench = retry_bench
    code = f"{LEDGER} echo ready; if [ $(wc -l < ledger) = 1 ]; then {FOR_EVER}; fi"
    worker, task_id = bench.run_on_a_new_worker(code)

    worker.terminate()
    worker.wait_for_output("waiting up to")
    worker.terminate()
    assert worker.wait() == 0

    waiting = bench.server.document(task_id)
    assert (waiting["state"], waiting["attempt"], waiting["started_at"]) == ("queued", 0, None)
    bench.site.worker()
    document = bench.server.finished(task_id)
    assert (document["state"], document["attempt"]) == ("succeeded", 1)
    assert not bench.has_overlapped


def test_a_drain_that_takes_too_long_stops_the_scripts(bench: Bench) -> None:
    """After --drain-timeout what still runs is stopped, with TERM first."""
    code = f'trap "exit 0" TERM; echo ready; {FOR_EVER}'
    worker, task_id = bench.run_on_a_new_worker(code, "--drain-timeout", "0.2")

    worker.terminate()

    assert worker.wait() == 0
    assert bench.server.finished(task_id)["state"] == "lost"


# Many at once


def test_thirty_tasks_four_at_once(bench: Bench) -> None:
    """With --concurrency 4 thirty tasks all succeed, four run side by side, and never five."""
    (bench.folder / "now").mkdir()
    bench.site.worker("--concurrency", "4")
    code = (
        'look() { ls now | wc -l | tee -a looks; }; : > "now/$TASK_ID"; look >> counts;'
        ' [ -e four ] || until [ "$(look)" = 4 ]; do [ -e four ] && break; sleep 0.02; done;'
        ' : > four; rm "now/$TASK_ID"'
    )

    ids = [bench.server.submit(code) for _ in range(30)]

    assert [bench.server.finished(task_id, seconds=60)["state"] for task_id in ids] == ["succeeded"] * 30
    assert len((bench.folder / "counts").read_text().split()) == 30
    assert max(int(count) for count in (bench.folder / "looks").read_text().split()) == 4


def test_tasks_start_in_the_order_they_came(bench: Bench) -> None:
    """One at a time, tasks run first come, first served."""
    ids = [bench.server.submit('echo "$TASK_ID" >> ledger') for _ in range(6)]

    bench.site.worker("--concurrency", "1")
    bench.server.finished(ids[-1])

    assert bench.ledger == ids


def test_a_finished_task_is_forgotten_after_its_retention(redis_server: RedisServer, tmp_path: Path) -> None:
    """retention_seconds after its end, a task and its files are gone."""
    with bench_with(redis_server, tmp_path, retention_seconds=3) as bench:
        bench.site.worker()
        task_id = bench.server.submit("echo x > $RUNDIR/files/x")
        store = bench.folder / "store"
        until(lambda: list(store.glob("*/*/*/*")))

        until(lambda: bench.server.http.get(f"/task/{task_id}").status_code == 404)
        until(lambda: not list(store.glob("*/*")))


def test_two_servers_on_one_redis_know_the_same_tasks(bench: Bench) -> None:
    """A task that one server took is shown by another."""
    other: Server = bench.site.serve()

    task_id = bench.server.submit("true")

    assert other.document(task_id)["state"] == "queued"
