"""The unit for systemd: checked by systemd's own reader, and its command run as it stands there."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import present
from tests.deploy.settings import unknown_settings
from tests.end_to_end.processes import Site, shell_config

from script_runner.adapters.valkey import SECONDS_TO_STOP
from script_runner.spec import Spec
from script_runner.wiring.serving import SECONDS_TO_CLOSE

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "script-runner.service"
PROGRAM = "/opt/script-runner/bin/script-runner"
STATE = "/var/lib/script-runner"


def section(name: str) -> dict[str, list[str]]:
    """What stands in this section of the unit; a key may come more than once."""
    (body,) = re.findall(rf"^\[{name}\]\n(.*?)(?=^\[|\Z)", UNIT.read_text(), re.DOTALL | re.MULTILINE)
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", body, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def variables() -> dict[str, str]:
    return dict(word.split("=", 1) for word in section("Service")["Environment"])


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """systemd-analyze verify has nothing to say of the unit, but that the program is elsewhere here."""
    analyze = present(shutil.which("systemd-analyze"), "systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, sys.executable))

    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_it_sets_nothing_that_the_program_does_not_read() -> None:
    """Every SCRIPT_RUNNER_ variable of the unit is a setting."""
    assert unknown_settings(UNIT.read_text()) == set()


def test_it_is_given_the_time_that_a_stop_takes() -> None:
    """Systemd kills after the drain, a script's grace, the end of answers and that of Valkey."""
    drain = float(variables()["SCRIPT_RUNNER_DRAIN_TIMEOUT"])
    grace = Spec.grace_seconds

    assert float(section("Service")["TimeoutStopSec"][0]) >= drain + grace + SECONDS_TO_CLOSE + SECONDS_TO_STOP


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folders = section("Service")["StateDirectory"][0].split()
    for name in folders:
        (tmp_path / name).mkdir(parents=True, mode=0o700)
    config = shell_config()
    del config["command_rundir"]
    with Site(tmp_path, config) as site:
        yield site


def test_its_command_runs_tasks_and_ends_by_one_term_to_the_first_process(site: Site) -> None:
    """As systemd starts and stops it: runs are where the unit says, and nothing is left to be killed."""
    state = site.folder / "script-runner"
    line = section("Service")["ExecStart"][0].replace(STATE, str(state)).replace("--port 8000", "--port 0")
    program, command, *words = line.split()
    environment = {name: value.replace(STATE, str(state)) for name, value in variables().items()}
    assert (program, command, section("Service")["KillMode"]) == (PROGRAM, "up", ["mixed"])
    server = site.up(*words, **environment)
    server.wait_until_ready()

    done = server.run("echo $RUNDIR")
    where = server.log(done["id"])
    server.signal(signal.SIGTERM)

    assert done["state"] == "succeeded"
    assert where.startswith(f"{state}/runs/results-")
    assert server.wait() == 0, server.output
    assert site.processes() == {}
