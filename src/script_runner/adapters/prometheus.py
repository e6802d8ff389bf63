"""Counts what goes on in this process, and writes it and the figures of the queue as Prometheus reads them."""

import re
from collections.abc import Iterator
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

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

_VERSION: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}")

METHODS: Final = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
"""Other words are counted as one: anybody may send any."""


class PrometheusWatch:
    """The counts of one process in a registry of its own, and its page.

    A server counts requests and knows the figures of the queue; a worker counts runs. Both count tasks that end,
    store errors and what the process itself uses.
    """

    def __init__(self, *, is_server: bool) -> None:
        # a second sample beside each, which tells nobody anything
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._queue = _Queue()
        self._finished = Counter(
            "script_runner_tasks_finished_total",
            "Tasks that ended, as seen by this process; each is counted by one process.",
            ("state", "reason"),
            registry=self._registry,
        )
        self._store_errors = Counter(
            "script_runner_store_errors_total",
            "Calls of Redis and of the artifact store that failed.",
            ("store",),
            registry=self._registry,
        )
        # a count that begins at 1 shows no increase
        for outcome in EVERY_KIND:
            self._finished.labels(outcome.state.value, outcome.reason)
        for store in ("redis", "artifacts"):
            self._store_errors.labels(store)
        if is_server:
            self._count_requests()
        else:
            self._count_runs()

    def _count_requests(self) -> None:
        self._registry.register(self._queue)
        self._requests = Counter(
            "script_runner_requests_total",
            "Requests that were answered; 499 means that the caller had gone.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "script_runner_request_seconds",
            "How long answers took, to their last byte.",
            ("method", "route"),
            buckets=REQUEST_BUCKETS,
            registry=self._registry,
        )

        self._waiting = Gauge(
            "script_runner_waiting_callers",
            "Callers that wait here for what happens to a task: long-polls, submits that wait, event streams.",
            registry=self._registry,
        )

    def _count_runs(self) -> None:
        self._run_seconds = Histogram(
            "script_runner_task_run_seconds",
            "How long runs took here, with their preparation and the keeping of their files.",
            buckets=TASK_BUCKETS,
            registry=self._registry,
        )
        self._wait_seconds = Histogram(
            "script_runner_task_wait_seconds",
            "How long tasks that were started here had waited for their first start.",
            buckets=TASK_BUCKETS,
            registry=self._registry,
        )

    def answered(self, method: str, route: str, status: int, *, seconds: float) -> None:
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(method, route).observe(seconds)

    def started(self, task: Task) -> None:
        if task.run == 1 and task.started_at is not None:
            self._wait_seconds.observe(max(0.0, task.started_at - task.due_at))

    def finished(self, outcome: Outcome, *, seconds: float | None = None) -> None:
        self._finished.labels(outcome.state.value, outcome.reason).inc()
        if seconds is not None:
            self._run_seconds.observe(seconds)

    def store_failed(self, store: str) -> None:
        self._store_errors.labels(store).inc()

    def waiting(self, more: int) -> None:
        self._waiting.inc(more)

    def page(self, accept: str, figures: Figures | None = None) -> tuple[str, bytes]:
        """Media type and text of all counts, and of the figures; without figures Redis is told as away."""
        self._queue.figures = figures
        encode, media_type = choose_encoder(_known(accept))
        return media_type, encode(self._registry)


def _known(accept: str) -> str:
    """Of an Accept header what names no version, or a sane one: the library fails at others, or repeats them."""
    return ",".join(kind for kind in accept.split(",") if all(map(_is_known, kind.split(";"))))


def _is_known(parameter: str) -> bool:
    name, _, value = parameter.strip().partition("=")
    return name != "version" or _VERSION.fullmatch(value) is not None


class _Queue(Collector):
    """The figures of the last page as gauges; none of what is not known."""

    figures: Figures | None = None

    def collect(self) -> Iterator[Metric]:
        up = "1 while Redis answers; without it there are no other figures of the queue."
        yield GaugeMetricFamily("script_runner_redis_up", up, value=float(self.figures is not None))
        if self.figures is not None:
            yield from _gauges(self.figures)

    def describe(self) -> Iterator[Metric]:
        return iter(())


def _gauges(figures: Figures) -> Iterator[Metric]:
    tasks = GaugeMetricFamily(
        "script_runner_tasks", "Tasks that have not ended, in the whole installation.", labels=("state",)
    )
    for state, count in (
        (State.QUEUED.value, figures.queued),
        (State.RUNNING.value, figures.running),
        ("scheduled", figures.scheduled),
    ):
        tasks.add_metric((state,), count)
    yield tasks
    for name, sentence, value in (
        ("backlog", "Tasks that may start now, and those that run: slots that are needed.", figures.backlog),
        ("oldest_queued_seconds", "How long the oldest queued task has waited.", figures.oldest_seconds),
        ("workers", "Workers with a valid lease.", figures.workers),
        ("slots", "How many scripts all workers may run at once.", figures.slots),
    ):
        yield GaugeMetricFamily(f"script_runner_{name}", sentence, value=value)
