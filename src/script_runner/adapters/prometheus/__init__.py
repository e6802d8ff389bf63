"""Counts what goes on in this process, and writes it and the figures of the queue as Prometheus reads them."""

from collections.abc import Iterator
from typing import Final

from script_runner.adapters.prometheus.counts import Count, Times
from script_runner.ports import Figures
from script_runner.task import Outcome, State, Task

REQUEST_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TASK_BUCKETS: Final = (
    0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 14_400, 28_800, 86_400,
)  # fmt: skip
"""From 10 ms to a day."""

EVERY_KIND: Final = (
    *(Outcome(state) for state in State if state.is_final),
    *(Outcome(State.FAILED, exit_code=code) for code in (0, 1, -9)),
    Outcome(State.TIMED_OUT, exit_code=-15),
)
"""One outcome of each state and reason."""

METHODS: Final = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
"""Other words are counted as one: anybody may send any."""


class PrometheusWatch:
    """The counts of one process, and its page.

    A server counts requests and knows the figures of the queue; a worker counts runs. Both count tasks that end,
    store errors and what the process itself uses.
    """

    def __init__(self, *, is_server: bool) -> None:
        self._is_server = is_server
        self._finished = Count(
            "script_runner_tasks_finished_total",
            "Tasks that ended, as seen by this process; each is counted by one process.",
            ("state", "reason"),
        )
        self._store_errors = Count(
            "script_runner_store_errors_total",
            "Calls of Redis and of the artifact store that failed.",
            ("store",),
        )
        self._requests = Count(
            "script_runner_requests_total",
            "Requests that were answered; 499 means that the caller had gone.",
            ("method", "route", "status"),
        )
        self._request_seconds = Times(
            "script_runner_request_seconds",
            "How long answers took, to their last byte.",
            REQUEST_BUCKETS,
            ("method", "route"),
        )
        self._waiting = Count(
            "script_runner_waiting_callers",
            "Callers that wait here for what happens to a task: long-polls, submits that wait, event streams.",
            falls=True,
        )
        self._run_seconds = Times(
            "script_runner_task_run_seconds",
            "How long runs took here, with their preparation and the keeping of their files.",
            TASK_BUCKETS,
        )
        self._wait_seconds = Times(
            "script_runner_task_wait_seconds",
            "How long tasks that were started here had waited for their first start.",
            TASK_BUCKETS,
        )
        # a count that begins at 1 shows no increase
        for outcome in EVERY_KIND:
            self._finished.add(outcome.state.value, outcome.reason, more=0)
        for store in ("redis", "artifacts"):
            self._store_errors.add(store, more=0)
        self._waiting.add(more=0)

    def answered(self, method: str, route: str, status: int, *, seconds: float) -> None:
        method = method if method in METHODS else "other"
        self._requests.add(method, route, str(status))
        self._request_seconds.add(method, route, seconds=seconds)

    def started(self, task: Task) -> None:
        if task.run == 1 and task.started_at is not None:
            self._wait_seconds.add(seconds=max(0.0, task.started_at - task.due_at))

    def finished(self, outcome: Outcome, *, seconds: float | None = None) -> None:
        self._finished.add(outcome.state.value, outcome.reason)
        if seconds is not None:
            self._run_seconds.add(seconds=seconds)

    def store_failed(self, store: str) -> None:
        self._store_errors.add(store)

    def waiting(self, more: int) -> None:
        self._waiting.add(more=more)

    def page(self, accept: str, figures: Figures | None = None) -> tuple[str, bytes]:
        """Media type and text of all counts, and of the figures; without figures Redis is told as away."""
        from script_runner.adapters.prometheus.page import written  # noqa: PLC0415 - 2 MB, if anybody asks for them

        counts: list[Count | Times] = [self._finished, self._store_errors]
        if self._is_server:
            counts += [*_gauges(figures), self._requests, self._request_seconds, self._waiting]
        else:
            counts += [self._run_seconds, self._wait_seconds]
        return written(accept, counts)


def _gauges(figures: Figures | None) -> Iterator[Count]:
    """The figures of the queue; none of what is not known."""
    up = "1 while Redis answers; without it there are no other figures of the queue."
    yield _gauge("redis_up", up, figures is not None)
    if figures is None:
        return
    tasks = Count(
        "script_runner_tasks", "Tasks that have not ended, in the whole installation.", ("state",), falls=True
    )
    tasks.add("queued", more=figures.queued)
    tasks.add("running", more=figures.running)
    tasks.add("scheduled", more=figures.scheduled)
    yield tasks
    yield _gauge(
        "backlog", "Tasks that may start now, and those that run: slots that are needed.", figures.backlog
    )
    yield _gauge("oldest_queued_seconds", "How long the oldest queued task has waited.", figures.oldest_seconds)
    yield _gauge("workers", "Workers with a valid lease.", figures.workers)
    yield _gauge("slots", "How many scripts all workers may run at once.", figures.slots)


def _gauge(name: str, sentence: str, value: float) -> Count:
    return Count(f"script_runner_{name}", sentence, falls=True, values={(): float(value)})
