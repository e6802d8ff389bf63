"""The Terraform module for AWS: read as text everywhere, and by Terraform itself where it is with its provider.

Terraform and the AWS provider come from no registry that ``./dev`` may count on, so what needs them is skipped
without them. The module's own tests (``tests/*.tftest.hcl``) run with a mocked provider: no account is touched.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.deploy.settings import known_settings

from script_runner.spec import Spec
from script_runner.task import State

ROOT = Path(__file__).parent.parent.parent
MODULE = ROOT / "deploy" / "terraform" / "aws"
GUIDE = (ROOT / "docs" / "deploy" / "aws.md").read_text()
FILES = {path.name: path.read_text() for path in sorted(MODULE.glob("*.tf"))}

ORIGINAL_VARIABLES = (
    "aws_region", "ecs_task_execution_role_arn", "ecs_task_execution_role_name", "ecs_cluster_id",
    "vpc_id", "vpc_cidr", "vpc_public_subnet_ids", "vpc_database_subnet_ids", "dns_subdomain", "dns_zone_id",
    "auth_provider", "auth0_domain", "auth0_audience", "auth0_client_id",
    "stack_name", "worker_count", "server_count", "image", "image_tag",
)  # fmt: skip

OF_PROVIDERS = {"AUTH0_DOMAIN", "AUTH0_API_AUDIENCE", "AUTH0_CLIENT_ID", "AWS_REGION"}
"""Variables that are read by an auth provider or by the store, and so are no fields of Settings."""

FARGATE_STOP_SECONDS = 120
"""The most that Fargate waits between TERM and KILL (Amazon ECS, ContainerDefinition, stopTimeout)."""


def blocks(kind: str, text: str) -> dict[str, str]:
    """The top-level blocks ``kind "name" { … }`` of formatted HCL, by name."""
    found = re.findall(rf'^{kind} "(\w+)"(?: "\w+")? \{{\n(.*?)^\}}', text, re.MULTILINE | re.DOTALL)
    return dict(found)


VARIABLES = blocks("variable", FILES["variables.tf"])
OUTPUTS = blocks("output", FILES["outputs.tf"])


def settings_of(text: str) -> set[str]:
    """The names of environment variables that are set in HCL: ``NAME = …`` within a map."""
    return set(re.findall(r"^\s+([A-Z][A-Z0-9_]+) +=", text, re.MULTILINE)) - {"BACKLOG"}


def number(pattern: str, text: str) -> float:
    """The one number in the text that the pattern finds."""
    [found] = re.findall(pattern, text)
    return float(found)


@pytest.mark.parametrize("name", ORIGINAL_VARIABLES)
def test_a_variable_of_the_original_is_still_one(name: str):
    """Whoever had the original's module keeps the words."""
    assert name in VARIABLES


def test_containers_are_told_in_words_that_the_runner_reads():
    """Every environment variable that the module sets is one that something here reads."""
    used = settings_of(FILES["main.tf"] + FILES["server.tf"] + FILES["worker.tf"])

    assert {"SCRIPT_RUNNER_REDIS_URL", "SCRIPT_RUNNER_STORE", "AUTH_PROVIDER"} <= used
    assert used - known_settings() - OF_PROVIDERS == set()


def test_what_the_module_sets_cannot_be_set_twice():
    """A variable that the module sets is refused in environment_variables."""
    used = settings_of(FILES["main.tf"] + FILES["server.tf"] + FILES["worker.tf"])
    refused = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', VARIABLES["environment_variables"]))

    assert used <= refused


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_every_variable_is_described_and_documented(name: str):
    """Each variable says what it is; the guide names it."""
    assert re.search(r'^  description = ".{3,}"$', VARIABLES[name], re.MULTILINE)
    assert f"`{name}`" in GUIDE


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_every_output_is_described_and_documented(name: str):
    """Each output says what it is; the guide names it."""
    assert re.search(r'^  description = ".{3,}"$', OUTPUTS[name], re.MULTILINE)
    assert f"`{name}`" in GUIDE


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_says_its_job_first(name: str):
    """Each file opens with a sentence."""
    assert re.match(r"# .+\.", FILES[name])


def test_no_address_range_reaches_redis():
    """The file that makes Redis names security groups and no addresses."""
    assert "cidr" not in FILES["redis.tf"]


def test_an_idle_connection_is_given_up_by_the_load_balancer_first():
    """Else a request meets a connection that the server has just closed; but no call that waits is cut off."""
    server_seconds = number(
        r"timeout_keep_alive=(\d+)", (ROOT / "src/script_runner/wiring/serving.py").read_text()
    )
    wait_seconds = number(
        r"max_wait_seconds: float = ([\d.]+)", (ROOT / "src/script_runner/web/api.py").read_text()
    )

    assert wait_seconds < number(r"idle_timeout +=\s*(\d+)", FILES["load_balancer.tf"]) < server_seconds


def test_a_worker_is_not_killed_before_it_has_drained():
    """Waiting for scripts, their grace, and a few seconds to report fit into what Fargate grants."""
    drain_seconds = number(r"default +=\s*(\d+)", VARIABLES["worker_drain_seconds"])
    grace_seconds = Spec.grace_seconds

    assert number(r"stopTimeout +=\s*(\d+)", FILES["worker.tf"]) == FARGATE_STOP_SECONDS
    assert drain_seconds + grace_seconds + 5 <= FARGATE_STOP_SECONDS


def test_a_worker_s_health_is_asked_for_where_it_is_told():
    """The port of the health check is the one of SCRIPT_RUNNER_METRICS."""
    port = number(r"metrics_port += (\d+)", FILES["main.tf"])

    assert number(r"127\.0\.0\.1:(\d+)/health", VARIABLES["worker_health_check"]) == port
    assert 'SCRIPT_RUNNER_METRICS                = "127.0.0.1:${local.metrics_port}"' in FILES["worker.tf"]


def test_metrics_are_made_of_what_servers_log():
    """Each field of the event ``queue`` that a metric is made of is one that the server writes."""
    [fields] = re.findall(r"queue_metrics = \{\n(.*?)\n  \}", FILES["watch.tf"], re.DOTALL)
    serving = (ROOT / "src/script_runner/wiring/serving.py").read_text()
    [written] = re.findall(
        r"fields = \{\n([^}]*)\}\s+sentence = [^\n]*\n\s+journal\.event\(_log, \"queue\"", serving
    )

    assert set(re.findall(r'= "(\w+)"', fields)) <= set(re.findall(r'"(\w+)":', written))


def test_failures_are_counted_by_the_states_that_there_are():
    """The filter of the alarm on failures names final states of a task that are no success and no wish."""
    [pattern] = re.findall(r'pattern += "(\{ \$\.event = \\"finished.*)"', FILES["watch.tf"])

    assert set(re.findall(r'\$\.state = \\"(\w+)', pattern)) == {State.FAILED, State.TIMED_OUT, State.LOST}


# With Terraform


def provider_mirror() -> Path | None:
    """A folder with the AWS provider, for ``terraform init -plugin-dir``: TF_PLUGIN_DIR, or a usual place."""
    given = os.environ.get("TF_PLUGIN_DIR")
    usual = [
        Path("/usr/share/terraform/plugins"),
        Path("/usr/local/share/terraform/plugins"),
        *Path("/opt").glob("*"),
    ]
    places = [Path(given)] if given else [*usual, Path.home() / ".terraform.d" / "plugins"]
    return next((place for place in places if [*place.glob("*/hashicorp/aws/*")]), None)


def terraform(folder: Path, *words: str) -> str:
    """What Terraform says, without colours; it must succeed."""
    environment = {
        **os.environ,
        "TF_CLI_CONFIG_FILE": os.devnull,
        "TF_IN_AUTOMATION": "1",
        "CHECKPOINT_DISABLE": "1",
    }
    answer = subprocess.run(
        ["terraform", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the module, initialised."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    mirror = provider_mirror()
    if mirror is None:
        pytest.skip("no mirror of the AWS provider; TF_PLUGIN_DIR names one")
    copy = tmp_path_factory.mktemp("terraform") / "aws"
    shutil.copytree(MODULE, copy, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
    for folder in (copy, copy / "example"):
        terraform(folder, "init", "-no-color", f"-plugin-dir={mirror}")
    return copy


def test_terraform_finds_it_formatted():
    """``terraform fmt`` has nothing to change."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")

    assert terraform(MODULE, "fmt", "-check", "-recursive", "-no-color") == ""


@pytest.mark.parametrize("folder", [".", "example"])
def test_terraform_finds_it_valid(module: Path, folder: str):
    """``terraform validate`` knows every resource, argument and reference."""
    assert "The configuration is valid." in terraform(module / folder, "validate", "-no-color")


@pytest.mark.parametrize("name", [path.name for path in sorted(MODULE.glob("tests/*.tftest.hcl"))])
def test_the_module_s_own_tests_pass(module: Path, name: str):
    """``terraform test`` with a mocked provider: what is made of which variables, and what is refused."""
    answer = terraform(module, "test", "-no-color", f"-filter=tests/{name}")

    assert re.search(r"Success! [1-9]\d* passed, 0 failed", answer)
