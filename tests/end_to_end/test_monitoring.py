"""Dashboard and alert rules, held to the pages of a real server and worker, and to promtool."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import present
from tests.end_to_end.processes import Site, shell_config
from tests.servers import RedisServer, free_port

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
LABELS_OF_PROMETHEUS = {"job", "instance", "le"}


@pytest.fixture(scope="module")
def promtool() -> str:
    return present(shutil.which("promtool"), "promtool")


@pytest.fixture(scope="module")
def pages(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The pages of a server and a worker that have seen a task succeed."""
    ports = free_port(), free_port()
    environment = {"SCRIPT_RUNNER_REDIS_URL": redis_server.url}
    with Site(tmp_path_factory.mktemp("monitoring"), shell_config(), **environment) as site:
        server = site.serve("--metrics", f"127.0.0.1:{ports[0]}")
        site.worker("--metrics", f"127.0.0.1:{ports[1]}")
        server.wait_until_ready()
        server.run("exit 0")
        yield [httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text for port in ports]


def told(pages: list[str]) -> dict[str, set[str]]:
    """The names of all samples, with the labels they have."""
    found: dict[str, set[str]] = defaultdict(set)
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found[sample.name] |= sample.labels.keys()
    return found


def expressions() -> list[str]:
    """All that the dashboard and the rules ask Prometheus."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    rules = (FOLDER / "alerts.yaml").read_text()
    return [*asked, *re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)\n +(?:for|labels):", rules)]


def selectors(expression: str) -> dict[str, set[str]]:
    """The metrics in an expression, with the labels it selects by."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, matchers in re.findall(r"\b((?:script_runner|process)_\w+)(?:\{([^}]*)\})?", expression):
        found[name] |= set(re.findall(r"(\w+)\s*[=!]", matchers))
    return found


def test_every_metric_that_is_asked_for_exists(pages: list[str]):
    """Each metric in dashboard and rules is on a page, with each label that is selected or grouped by."""
    known = told(pages)
    asked = expressions()
    unknown = {
        f"{name}: {sorted(labels - known.get(name, set()) - LABELS_OF_PROMETHEUS) or 'missing'}"
        for expression in asked
        for name, labels in selectors(expression).items()
        if name not in known or labels - known[name] - LABELS_OF_PROMETHEUS
    }
    grouped = {word for by in re.findall(r"by \(([^)]*)\)", " ".join(asked)) for word in re.split(r",\s*", by)}

    assert len(asked) > 25
    assert unknown == set()
    assert grouped - LABELS_OF_PROMETHEUS - set().union(*known.values()) == set()


def test_every_metric_of_ours_is_looked_at(pages: list[str]):
    """No metric of ours is told for nobody: dashboard or rules ask for each."""
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in told(pages) if name.startswith("script_runner_")}
    asked = " ".join(expressions())

    assert {name for name in ours if name not in asked} == set()


def test_ends_are_there_before_the_first(pages: list[str]):
    """Each kind of end is on the page from the start: an increase from nothing would be no increase."""
    reasons = re.findall(r'finished_total\{reason="(\w+)",state="(\w+)"\}', pages[1])

    assert {("worker", "lost"), ("exit", "failed"), ("none", "succeeded")} <= set(reasons)


def test_dashboard_is_whole():
    """Each panel has an id and a place of its own, and each says what it shows."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]

    assert len({panel["id"] for panel in panels}) == len(set(places)) == len(panels)
    assert [panel["title"] for panel in panels if not panel["description"].endswith(".")] == []
    assert [panel for panel in panels if panel["gridPos"]["x"] + panel["gridPos"]["w"] > 24] == []


def test_every_alert_is_documented():
    """README.md beside the rules says of each when it comes and what to do."""
    names = re.findall(r"alert: (\w+)", (FOLDER / "alerts.yaml").read_text())
    document = (FOLDER / "README.md").read_text()

    assert len(names) == 9
    assert [name for name in names if f"`{name}`" not in document] == []


@pytest.mark.parametrize(
    "words", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts-test.yaml")], ids=lambda words: words[0]
)
def test_rules(promtool: str, words: tuple[str, ...]):
    """Promtool takes the rules, and each alert comes and stays away as its tests say."""
    done = subprocess.run([promtool, *words], cwd=FOLDER, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_pages_are_well_formed(promtool: str, pages: list[str]):
    """Promtool finds nothing to mend in what a server and a worker tell."""
    for page in pages:
        done: Any = subprocess.run(
            [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
        )

        assert (done.returncode, done.stdout + done.stderr) == (0, "")
