"""The pods of the chart, run as processes: what the manifests say is what the programs need."""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from tests.deploy.charts import CONFIG, Rendered, need_helm, render, with_values
from tests.deploy.pods import Machine
from tests.end_to_end.processes import until
from tests.servers import redis_binary, valkey_binary

PASSWORD = 'it\'s "one" $word \\ #5'
"""No shell and no configuration file takes this as it is by accident."""

VALUES = with_values(
    config=CONFIG,
    redis={"url": ""},
    valkey={"enabled": True},
    store={"url": "file:///srv/artifacts", "persistence": {"existingClaim": "share"}},
    worker={"drainTimeoutSeconds": 25, "keda": {"enabled": True, "trigger": "redis"}},
    leaseSeconds=2,
)


def trigger(chart: Rendered) -> dict[str, Any]:
    return dict(chart.one("ScaledObject")["spec"]["triggers"][0])


@pytest.mark.skipif(not (redis_binary() and valkey_binary()) and not os.environ.get("CI"), reason="no Redis here")
def test_the_pods_do_their_work(tmp_path: Path):
    """From the first probe to the last signal: Valkey, server and worker as the manifests start them.

    The password reaches all three; a task runs and its rows are read; what KEDA would look at, in both ways, tells
    of the task; the chart's own test passes; a worker that is told to stop ends its script first.
    """
    need_helm()
    metrics = with_values(**{**VALUES, "worker": {"keda": {"enabled": True, "trigger": "metrics"}}})
    charts = render({"redis": VALUES, "metrics": metrics})
    chart = charts["redis"]
    (tmp_path / "artifacts").mkdir()

    with Machine(tmp_path, chart, {"redis-password": {"password": PASSWORD}}) as machine:
        valkey = machine.start("valkey")
        until(lambda: machine.probe("valkey", "startup"), why=lambda: valkey.output)
        assert PASSWORD not in Path(f"/proc/{valkey.pid}/cmdline").read_text()

        server = machine.start("server")
        until(lambda: machine.probe("server", "readiness") == 200, why=lambda: server.output)
        assert machine.probe("server", "liveness") == 200
        with httpx.Client(base_url=f"http://127.0.0.1:{server.ports['http']}", trust_env=False) as http:
            first = http.post("/task", params={"city": "Bern"}).json()["id"]

            # what wakes the first worker, by each trigger
            told = trigger(chart)["metadata"]
            host, port = machine.address(*split(told["address"]))
            signed = chart.one("TriggerAuthentication")["spec"]["secretTargetRef"][0]
            with contextlib.closing(
                redis.Redis(host, port, int(told["databaseIndex"]), machine.secret(signed), protocol=2)
            ) as client:
                assert client.llen(told["listName"]) == 1
            told = trigger(charts["metrics"])["metadata"]
            assert re.fullmatch(r"http://demo-script-runner-metrics\.lab\.svc:9090/metrics", told["url"])

            def backlog() -> float:
                page = httpx.get(f"http://127.0.0.1:{server.ports['metrics']}/metrics").text
                return float(re.findall(rf"^{told['valueLocation']} (\S+)$", page, re.MULTILINE)[0])

            until(lambda: backlog() == 1)

            worker = machine.start("worker")
            until(lambda: machine.probe("worker", "readiness") == 200, why=lambda: worker.output)
            go = worker.folder  # the parent of run folders
            (go / "Bern").touch()
            done = until(lambda: ended(http, first), why=lambda: worker.output)
            assert (done["state"], done["results"]) == ("succeeded", [{"city": "Bern"}])

            asked = machine.run("test")
            assert asked.returncode == 0, asked.stderr
            assert "/ready 200" in asked.stdout

            second = http.post("/task", params={"city": "Chur"}).json()["id"]
            until(lambda: http.get(f"/task/{second}").json()["state"] == "running")
            worker.terminate()
            until(lambda: machine.probe("worker", "readiness") == 503, why=lambda: worker.output)
            assert machine.probe("worker", "liveness") == 200
            (go / "Chur").touch()
            assert worker.wait() == 0
            assert http.get(f"/task/{second}").json()["state"] == "succeeded"

        began = time.monotonic()
        server.terminate()
        assert server.wait() == 0
        assert time.monotonic() - began < chart.pods["server"]["spec"]["terminationGracePeriodSeconds"]
        assert PASSWORD not in server.output + worker.output + valkey.output


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def ended(http: httpx.Client, task_id: str) -> dict[str, Any] | None:
    document = http.get(f"/task/{task_id}").json()
    return document if document["status"] != "not-ready" else None
