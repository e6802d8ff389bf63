"""What the counts of a process are, as Prometheus reads them."""

import re

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from script_runner.adapters.prometheus import PrometheusWatch
from script_runner.ports import Figures
from script_runner.task import Outcome, State, Task

TASK = Task(id="a", owner="ada", arguments={}, created_at=100.0, started_at=103.5, run=1)


FINISHED = "script_runner_tasks_finished_total"


def samples(watch: PrometheusWatch, figures: Figures | None = None) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample of the page: its name and the values of its labels, in the order of their names."""
    _, text = watch.page("", figures)
    return {
        (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_route():
    """A request counts once, by method, route and status, and its time by method and route."""
    watch = PrometheusWatch(is_server=True)
    watch.answered("GET", "/task/{id}", 200, seconds=0.02)
    watch.answered("GET", "/task/{id}", 404, seconds=0.03)
    found = samples(watch)

    assert found["script_runner_requests_total", ("GET", "/task/{id}", "200")] == 1
    assert found["script_runner_requests_total", ("GET", "/task/{id}", "404")] == 1
    assert found["script_runner_request_seconds_count", ("GET", "/task/{id}")] == 2
    assert found["script_runner_request_seconds_sum", ("GET", "/task/{id}")] == pytest.approx(0.05)


def test_methods_that_anybody_makes_up_are_one():
    """However many words callers send as a method, they make one line."""
    watch = PrometheusWatch(is_server=True)
    for number in range(100):
        watch.answered(f"X{number}", "none", 405, seconds=0.001)

    assert samples(watch)["script_runner_requests_total", ("other", "none", "405")] == 100


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(State.SUCCEEDED, exit_code=0), "none"),
        (Outcome(State.FAILED, exit_code=3), "exit"),
        (Outcome(State.FAILED, exit_code=-9), "signal"),
        (Outcome(State.FAILED, exit_code=0), "output"),
        (Outcome(State.FAILED), "start"),
        (Outcome(State.TIMED_OUT, exit_code=-15), "run"),
        (Outcome(State.TIMED_OUT), "queue"),
        (Outcome(State.CANCELLED), "caller"),
        (Outcome(State.LOST), "worker"),
    ],
)
def test_ends_are_counted_by_state_and_reason(outcome: Outcome, reason: str):
    """Each end counts once, by its state and by one of a few words on why."""
    watch = PrometheusWatch(is_server=False)
    watch.finished(outcome, seconds=2.5)
    found = samples(watch)

    assert found["script_runner_tasks_finished_total", (reason, outcome.state.value)] == 1
    assert found["script_runner_task_run_seconds_sum", ()] == 2.5


def test_end_that_no_worker_reports_has_no_run_time():
    """A task that was lost, or was cancelled while it waited, counts as ended, and not as a run."""
    watch = PrometheusWatch(is_server=True)
    watch.finished(Outcome(State.LOST))

    assert samples(watch)["script_runner_tasks_finished_total", ("worker", "lost")] == 1


@pytest.mark.parametrize(
    ("task", "seconds"),
    [
        (TASK, 3.5),
        (replace(TASK, not_before=103.0), 0.5),
        (replace(TASK, created_at=104.0), 0.0),
    ],
)
def test_wait_counts_from_when_it_could_start(task: Task, seconds: float):
    """The wait of a task begins when it comes, or at its start time; a clock that went back makes none."""
    watch = PrometheusWatch(is_server=False)
    watch.started(task)

    assert samples(watch)["script_runner_task_wait_seconds_sum", ()] == seconds


def test_later_starts_are_no_first_waits():
    """A task that is run again waits anew, which nobody measures."""
    watch = PrometheusWatch(is_server=False)
    watch.started(replace(TASK, run=2))

    assert samples(watch)["script_runner_task_wait_seconds_count", ()] == 0


def test_figures_are_gauges():
    """What there is in the whole installation stands on the page of a server, as it was last told."""
    figures = Figures(queued=4, scheduled=1, running=2, backlog=6, oldest_seconds=7.5, workers=3, slots=8)
    found = samples(PrometheusWatch(is_server=True), figures)

    gauges = {name: value for name, value in found.items() if not name[0].startswith(("process_", FINISHED))}
    assert gauges == {
        ("script_runner_redis_up", ()): 1,
        ("script_runner_tasks", ("queued",)): 4,
        ("script_runner_tasks", ("running",)): 2,
        ("script_runner_tasks", ("scheduled",)): 1,
        ("script_runner_backlog", ()): 6,
        ("script_runner_oldest_queued_seconds", ()): 7.5,
        ("script_runner_workers", ()): 3,
        ("script_runner_slots", ()): 8,
        ("script_runner_store_errors_total", ("redis",)): 0,
        ("script_runner_store_errors_total", ("artifacts",)): 0,
        ("script_runner_waiting_callers", ()): 0,
    }


def test_unknown_figures_are_left_out():
    """While Redis does not tell, the page says so, and says no figure that may be wrong."""
    watch = PrometheusWatch(is_server=True)
    watch.page("", Figures(queued=4))
    watch.store_failed("redis")
    found = samples(watch)

    assert found["script_runner_redis_up", ()] == 0
    assert found["script_runner_store_errors_total", ("redis",)] == 1
    assert [name for name, _ in found if name == "script_runner_tasks"] == []


def test_openmetrics_for_who_asks():
    """The form is negotiated: OpenMetrics for who accepts it, else Prometheus' own text."""
    watch = PrometheusWatch(is_server=False)

    assert watch.page("application/openmetrics-text; version=1.0.0")[1].endswith(b"# EOF\n")
    assert watch.page("*/*")[0].startswith("text/plain")


@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
@pytest.mark.parametrize("version", ["x", "1.x", "\u00b2", "", " ", "2.x\nSet-Cookie: a=b", "9" * 5000])
def test_a_version_that_is_none_is_not_asked_for(kind: str, version: str):
    """Whatever a caller says of versions, there is a page, and its type repeats none of that."""
    media_type, text = PrometheusWatch(is_server=False).page(f"{kind}; version={version}; escaping=\n")

    assert b"script_runner_store_errors_total" in text
    assert re.fullmatch(r"[a-z/-]+; version=[01]\.0\.[04]; charset=utf-8", media_type)


def test_those_who_wait_are_counted():
    """Callers that come and go are told as how many there are now."""
    watch = PrometheusWatch(is_server=True)
    for more in (1, 1, -1):
        watch.waiting(more)

    assert samples(watch, None)[("script_runner_waiting_callers", ())] == 1
