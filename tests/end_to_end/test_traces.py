"""A trace from the caller through the queue to the script, as a collector sees it."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end.collector import Collector, SpanSeen
from tests.end_to_end.processes import Server, Site, shell_config, until
from tests.servers import RedisServer

from script_runner.ports import Untraced
from script_runner.wiring.watching import traces

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SERVER, CONSUMER = 2, 5
"""Kinds of spans by the protocol."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as it:
        yield it


@pytest.fixture(scope="module")
def server(
    collector: Collector, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server and a worker that tell the collector, soon."""
    told = {
        "SCRIPT_RUNNER_REDIS_URL": redis_server.url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3same",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with Site(tmp_path_factory.mktemp("traces"), shell_config(), **told) as site:
        server = site.serve()
        site.worker()
        server.wait_until_ready()
        yield server


def submitted(server: Server, code: str, flags: str = "01") -> str:
    """The id of a task that a caller with a trace of its own has submitted."""
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-{flags}"}
    answer = server.http.post("/task", json={"code": code}, headers=headers)
    return str(answer.json()["id"])


def spans(collector: Collector, trace: str) -> dict[str, SpanSeen]:
    """The three spans of a submission, once all are there."""
    return until(
        lambda: found if {"POST /task", "queued", "run"} <= (found := collector.of(trace)).keys() else None
    )


def test_trace_from_caller_to_script(server: Server, collector: Collector):
    """Request, wait and run are spans of the caller's trace, in order; the script goes on under the run."""
    task_id = submitted(server, 'echo "$TRACEPARENT"; exit 3')
    server.finished(task_id)
    found = spans(collector, TRACE)
    request, queued, run = found["POST /task"], found["queued"], found["run"]

    assert (request.parent, request.kind, request.role) == (CALLER, SERVER, "server")
    assert (queued.parent, run.parent) == (request.id, request.id)
    assert (run.kind, run.role, run.service) == (CONSUMER, "worker", "script-runner")
    assert request.start <= queued.end <= run.end + 0.001
    assert queued.start <= queued.end
    assert run.is_error
    assert run.attributes["task.id"] == task_id
    assert (run.attributes["task.state"], run.attributes["process.exit.code"]) == ("failed", 3)
    assert request.attributes["http.response.status_code"] == 202
    assert server.log(task_id) == f"00-{TRACE}-{run.id}-01\n"


def test_without_a_caller_a_trace_begins_here(server: Server, collector: Collector):
    """A request without a trace begins one, which the script is told of."""
    task_id = server.submit('echo "$TRACEPARENT"')
    server.finished(task_id)
    told = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01\n", server.log(task_id))
    assert told
    found = spans(collector, told[1])

    assert found["POST /task"].parent == ""
    assert found["run"].id == told[2]
    assert not found["run"].is_error


def test_what_the_caller_does_not_sample_is_not_recorded(server: Server, collector: Collector):
    """A caller's word that its trace is not sampled holds to the end, and reaches the script."""
    before = len(collector.of(TRACE))
    unsampled = submitted(server, 'echo "$TRACEPARENT"', flags="00")
    server.finished(unsampled)
    after = server.submit("exit 0")
    server.finished(after)
    until(lambda: [span for span in collector.spans if span.attributes.get("task.id") == after])

    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00\n", server.log(unsampled))
    assert [span for span in collector.spans if span.attributes.get("task.id") == unsampled] == []
    assert len(collector.of(TRACE)) == before


def test_key_of_the_collector_is_not_for_scripts(server: Server):
    """The headers that open the collector are a secret of the runner."""
    task_id = server.submit('echo "${OTEL_EXPORTER_OTLP_HEADERS-none} ${OTEL_EXPORTER_OTLP_ENDPOINT-none}"')
    server.finished(task_id)

    assert re.fullmatch(r"none http://127.0.0.1:\d+\n", server.log(task_id))


def test_collector_that_is_away_holds_nobody_up(redis_server: RedisServer, tmp_path: Path):
    """With nobody at the other end tasks run, and the end of the processes waits a moment only."""
    told = {"SCRIPT_RUNNER_REDIS_URL": redis_server.url, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with Site(tmp_path, shell_config(), **told) as site:
        server, worker = site.serve(), site.worker()
        server.wait_until_ready()
        document = server.run("exit 0")
        for program in (worker, server):
            program.terminate()
        codes = [program.wait(seconds=20) for program in (worker, server)]

    assert document["state"] == "succeeded"
    assert codes == [0, 0]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SERVICE_NAME": "mine"},
    ],
)
def test_nobody_asked_for_traces(environment: dict[str, str], caplog: pytest.LogCaptureFixture):
    """Without an exporter or an address, and where it is forbidden, nothing is recorded and nothing said."""
    assert isinstance(traces(environment, role="server"), Untraced)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "environment", [{"OTEL_TRACES_EXPORTER": "otlp"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}]
)
def test_extra_that_is_missing_is_named(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Asked for traces without what they take, the process goes on and says how to install it."""
    monkeypatch.setitem(sys.modules, "script_runner.adapters.opentelemetry", None)
    found = traces(environment, role="server")

    assert isinstance(found, Untraced)
    assert "pip install 'script-runner-api[traces]'" in caplog.text


def test_exporter_that_is_not_known_is_named(caplog: pytest.LogCaptureFixture):
    """Another exporter than OTLP is refused with a sentence, and tasks go on."""
    assert isinstance(traces({"OTEL_TRACES_EXPORTER": "zipkin"}, role="server"), Untraced)
    assert "expected otlp or none" in caplog.text
