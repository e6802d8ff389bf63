"""The Terraform module for Azure: well formed, valid for the provider, and keeping what it promises.

There is no Azure account here, and the provider cannot be installed: a real ``terraform`` checks the module
against the provider's schema, which ``azurerm_provider.py`` serves, and runs the module's own tests with a mocked
provider. Where there is no ``terraform``, every resource type and argument is still held against the same schema.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hcl2
import pytest
from redis import Redis
from tests.deploy.azurerm_provider import SCHEMA, reattach
from tests.deploy.settings import unknown_settings
from tests.end_to_end.processes import Program, Site, shell_config, until
from tests.servers import RedisServer

from script_runner.adapters.redis import RedisLease, RedisTasks
from script_runner.task import Outcome, State, Task

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "deploy" / "terraform" / "azure"
GUIDE = ROOT / "docs" / "deploy" / "azure.md"
FILES = sorted(MODULE.rglob("*.tf"))

OLD_VARIABLES = {
    "location", "resource_group_name", "stack_name", "image", "image_tag", "auth_provider", "dns_subdomain",
    "dns_zone_name", "dns_zone_resource_group_name", "redis_subnet_id", "worker_subnet_id", "tags",
    "auth0_domain", "auth0_audience", "auth0_client_id",
}  # fmt: skip
"""What the original's module took."""

META_ARGUMENTS = {"count", "for_each", "depends_on", "provider", "lifecycle"}

Schema = dict[str, Any]


# What a real terraform says


@pytest.fixture(scope="module")
def terraform() -> str:
    found = shutil.which("terraform")
    if found is None:
        pytest.skip("there is no terraform; it comes neither from Debian nor from PyPI as a program")
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables under which Terraform finds our provider, and asks nobody outside."""
    folder = tmp_path_factory.mktemp("azurerm")
    settings, socket = folder / "terraform.rc", folder / "provider.sock"
    settings.touch()
    command = [sys.executable, "-m", "tests.deploy.azurerm_provider", str(socket)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as provider:
        try:
            assert provider.stdout is not None
            assert provider.stdout.readline() == "ready\n"
            yield {
                **os.environ,
                "TF_CLI_CONFIG_FILE": str(settings),
                "TF_REATTACH_PROVIDERS": reattach(socket, provider.pid),
                "TF_IN_AUTOMATION": "1",
                "CHECKPOINT_DISABLE": "1",
            }
        finally:
            provider.terminate()


@pytest.fixture
def module(terraform: str, environment: dict[str, str], tmp_path: Path) -> Path:
    """A copy of the module, with its example, ready to be checked and changed."""
    copy = tmp_path / "azure"
    shutil.copytree(MODULE, copy, ignore=shutil.ignore_patterns(".terraform*"))
    for folder in (copy, copy / "example"):
        assert run(terraform, "init", "-backend=false", folder=folder, environment=environment).returncode == 0
    return copy


def run(
    terraform: str, *words: str, folder: Path, environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [terraform, *words, "-no-color"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file.name} has no {old!r} to change"
    file.write_text(text.replace(old, new))


def test_it_is_formatted(terraform: str, environment: dict[str, str]) -> None:
    """``terraform fmt`` would change nothing."""
    done = run(terraform, "fmt", "-check", "-recursive", "-diff", folder=MODULE, environment=environment)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("part", [".", "example"])
def test_it_is_valid(terraform: str, environment: dict[str, str], module: Path, part: str) -> None:
    """Terraform finds every type, argument, block and reference in the schema of the provider."""
    done = run(terraform, "validate", folder=module / part, environment=environment)

    assert done.returncode == 0, done.stdout


def test_what_the_provider_does_not_know_is_refused(
    terraform: str, environment: dict[str, str], module: Path
) -> None:
    """The schema that is served is really looked at."""
    change(module / "redis.tf", "public_network_access ", "public_network_excess ")
    done = run(terraform, "validate", folder=module, environment=environment)

    assert 'An argument named "public_network_excess" is not expected here' in done.stdout


@pytest.mark.parametrize("part", [".", "example"])
def test_it_keeps_its_promises(terraform: str, environment: dict[str, str], module: Path, part: str) -> None:
    """Every run of the module's own tests passes, and that of the example."""
    files = (module / part / "tests").glob("*.tftest.hcl")
    runs = [found for file in files for found in re.findall(r'^run "', file.read_text(), re.MULTILINE)]
    done = run(terraform, "test", folder=module / part, environment=environment)

    assert f"Success! {len(runs)} passed, 0 failed." in done.stdout, done.stdout


INGRESS = """
  ingress {
    target_port = 9090
    traffic_weight {
      percentage = 100
    }
  }
"""

BREACHES = {
    "Redis can be reached from outside": ("redis.tf", '= "Disabled"', '= "Enabled"'),
    "The storage account can be reached from outside": ("storage.tf", '= "Disabled"', '= "Enabled"'),
    "Files may be made public": ("storage.tf", '= "private"', '= "blob"'),
    "The Key Vault can be reached from outside": ("secrets.tf", '= "Deny"', '= "Allow"'),
    "Workers can be reached": (
        "apps.tf",
        'resource "azurerm_container_app" "worker" {\n',
        f'resource "azurerm_container_app" "worker" {{\n{INGRESS}',
    ),
    "Redis speaks plain text": ("redis.tf", '"Encrypted"', '"Plaintext"'),
    "The servers do not use TLS towards Redis": ("apps.tf", '"rediss://', '"redis://'),
    "The storage account takes old TLS or none": ("storage.tf", '"TLS1_2"', '"TLS1_0"'),
    "The scaler does not use TLS": ("apps.tf", '= "true"', '= "false"'),
    "The servers take plain HTTP": (
        "apps.tf",
        "allow_insecure_connections = false",
        "allow_insecure_connections = true",
    ),
    "Front Door does not insist on HTTPS": ("front_door.tf", '"HttpsOnly"', '"MatchRequest"'),
    "Redis evicts": ("redis.tf", '"NoEviction"', '"AllKeysLRU"'),
    "The storage account takes keys": (
        "storage.tf",
        "shared_access_key_enabled        = false",
        "shared_access_key_enabled = true",
    ),
    "Rights on more than the one container": (
        "main.tf",
        "azurerm_storage_container.artifacts.id",
        "azurerm_storage_account.this.id",
    ),
    "The scaler looks at other keys than the queue has": ("apps.tf", ":1:", ":2:"),
    "A worker is killed before it has drained": (
        "apps.tf",
        "var.worker_drain_timeout_seconds + var.script_grace_seconds + 10",
        "30",
    ),
    "The certificate is not managed, or old TLS is taken": ("front_door.tf", '"TLS12"', '"TLS11"'),
    "The given subnet is not used": ("apps.tf", "= local.worker_subnet_id", "= local.endpoint_subnet_id"),
    "Something carries no tags": (
        "storage.tf",
        "  tags                             = var.tags\n",
        "",
    ),
    "An alert tells nobody": ("monitoring.tf", "action_groups = local.action_group_ids", "action_groups = []"),
}
"""What a test of the module says, and the change of a file after which it must say so."""


def test_a_broken_promise_is_noticed(terraform: str, environment: dict[str, str], module: Path) -> None:
    """The module's own tests fail, each for its reason, once the module does what they forbid."""
    for file, old, new in BREACHES.values():
        change(module / file, old, new)
    done = run(terraform, "test", "-filter=tests/module.tftest.hcl", folder=module, environment=environment)

    said = " ".join(done.stdout.split())
    assert [sentence for sentence in BREACHES if sentence not in said] == [], done.stdout


# What can be said without one


def parsed(file: Path) -> dict[str, Any]:
    return hcl2.loads(file.read_text())


def plain(name: str) -> str:
    return name.strip('"')


def parts(file: Path, kind: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Type, name and body of every ``resource`` or ``data`` block."""
    for block in parsed(file).get(kind, []):
        for type_name, named in block.items():
            if type_name.startswith("__"):
                continue
            for name, body in named.items():
                if not name.startswith("__"):
                    yield plain(type_name), plain(name), body


def mistakes(body: Mapping[str, Any], schema: Schema, place: str, *, is_top: bool = True) -> Iterator[str]:
    """What is written there that the schema does not allow, and what it requires that is not written."""
    attributes, blocks = schema["attributes"], schema["blocks"]
    written = {name: value for name, value in body.items() if not name.startswith("__") and name != "dynamic"}
    nested = [(name, each) for name, value in written.items() if is_block(value) for each in value]
    for one in body.get("dynamic", []):
        for label, inner in one.items():
            if not label.startswith("__"):
                nested += [(plain(label), each) for each in inner["content"]]
    for name, value in written.items():
        known = attributes.get(name)
        if is_block(value) or (is_top and name in META_ARGUMENTS):
            continue
        if known is None:
            yield f"{place}: there is no argument {name}"
        elif not (known.get("required") or known.get("optional")):
            yield f"{place}: {name} is decided by the provider"
    for name, each in nested:
        if is_top and name in META_ARGUMENTS:
            continue
        if name not in blocks:
            yield f"{place}: there is no block {name}"
        else:
            yield from mistakes(each, blocks[name]["block"], f"{place}.{name}", is_top=False)
    for name, attribute in attributes.items():
        if attribute.get("required") and name not in written:
            yield f"{place}: {name} is required"
    for name, block in blocks.items():
        count = sum(name == other for other, _ in nested)
        if count < block["min"]:
            yield f"{place}: a block {name} is required"
        is_dynamic = any(name == plain(label) for one in body.get("dynamic", []) for label in one)
        if block["max"] and count > block["max"] and not is_dynamic:
            yield f"{place}: at most {block['max']} block {name}"


def is_block(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) and "__is_block__" in each for each in value)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(SCHEMA.read_text())
    return document


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(MODULE)))
def test_every_argument_is_the_providers(file: Path, schema: dict[str, Any]) -> None:
    """Each resource and data source, with its arguments and nested blocks, is as the provider's schema says."""
    found = [
        mistake
        for kind, types in (("resource", "resources"), ("data", "data_sources"))
        for type_name, name, body in parts(file, kind)
        for mistake in mistakes(body, schema[types][type_name], f"{type_name}.{name}")
    ]

    assert found == []


def test_the_example_configures_the_provider_rightly(schema: dict[str, Any]) -> None:
    """The example's ``provider`` block is as the schema says."""
    (provider,) = parsed(MODULE / "example" / "main.tf")["provider"]

    assert list(mistakes(provider['"azurerm"'], schema["provider"], "provider")) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("sku_name ", "sku ", "azurerm_managed_redis.this: sku_name is required"),
        ("sku_name ", "size ", "azurerm_managed_redis.this: there is no argument size"),
        ("sku_name ", "hostname ", "azurerm_managed_redis.this: hostname is decided by the provider"),
        ("default_database", "database", "azurerm_managed_redis.this: there is no block database"),
        (
            "client_protocol",
            "protocol",
            "azurerm_managed_redis.this.default_database: there is no argument protocol",
        ),
    ],
)
def test_a_wrong_argument_is_noticed(
    schema: dict[str, Any], tmp_path: Path, old: str, new: str, expected: str
) -> None:
    """The check above names what is wrong."""
    copy = tmp_path / "redis.tf"
    shutil.copy(MODULE / "redis.tf", copy)
    change(copy, old, new)
    ((type_name, name, body),) = parts(copy, "resource")

    assert expected in list(mistakes(body, schema["resources"][type_name], f"{type_name}.{name}"))


def test_the_schema_is_of_a_version_that_is_asked_for(schema: dict[str, Any]) -> None:
    """What the module is checked against is what its users get: major version 5, from 5.10 on."""
    asked = {
        plain(provider["azurerm"]["version"])
        for file in FILES
        for terraform in parsed(file).get("terraform", [])
        for provider in terraform["required_providers"]
    }
    major, minor, _ = schema["version"].split(".")

    assert asked == {f"~> {major}.{minor}"}


def variables() -> dict[str, dict[str, Any]]:
    return {
        plain(name): body
        for block in parsed(MODULE / "variables.tf")["variable"]
        for name, body in block.items()
        if not name.startswith("__")
    }


def test_the_originals_variables_are_taken() -> None:
    """A call of the original's module is a call of this one."""
    assert set(variables()) >= OLD_VARIABLES


def test_nothing_new_must_be_said() -> None:
    """A variable that the original did not have has a default."""
    required = {name for name, body in variables().items() if "default" not in body}

    assert required <= OLD_VARIABLES


def test_the_guide_tells_of_every_variable_and_output() -> None:
    """docs/deploy/azure.md has them all."""
    text = (MODULE / "variables.tf").read_text() + (MODULE / "outputs.tf").read_text()
    names = set(re.findall(r'^(?:variable|output) "(\w+)"', text, re.MULTILINE))
    guide = GUIDE.read_text()

    assert sorted(name for name in names if f"`{name}`" not in guide) == []


# What the runner says to it


def test_every_setting_is_one_of_the_runner() -> None:
    """No app is told by a name that the runner does not read."""
    text = "\n".join(file.read_text() for file in FILES)

    assert unknown_settings(text) == set()


def scaled_by() -> list[str]:
    """The keys, without their prefix, by whose lengths the workers are scaled."""
    (written,) = re.findall(r"worker_scale_keys += \{(.+)\}", (MODULE / "apps.tf").read_text())
    return re.findall(r'"(\w+)"', written)


def length(redis: Redis, key: str) -> Any:
    """What KEDA's scaler ``redis`` makes of a key: the number of its members, by the command of its type."""
    match str(redis.type(key)):
        case "zset":
            return redis.zcard(key)
        case "set":
            return redis.scard(key)
        case "hash":
            return redis.hlen(key)
        case _:
            return redis.llen(key)


@pytest.mark.anyio
async def test_the_scaler_counts_what_waits_and_what_runs(redis_server: RedisServer, namespace: str) -> None:
    """The keys that KEDA is told to count say how many tasks wait and run, and nothing when nothing is to do."""
    tasks, lease = RedisTasks(redis_server.url, namespace), RedisLease(redis_server.url, namespace)
    with redis_server.client() as redis:

        def counted() -> list[int]:
            return [length(redis, f"{{{namespace}}}:1:{name}") for name in scaled_by()]

        seen = [counted()]
        for number in range(3):
            await tasks.add(Task(id=f"task-{number}", owner="ada", arguments={}))
        seen.append(counted())
        lease.renew("worker", seconds=600, slots=3)
        for task in await tasks.claim("worker", limit=3, wait_seconds=0):
            seen.append(counted())
            await tasks.finish(task, Outcome(State.SUCCEEDED, exit_code=0))
        seen.append(counted())
    await tasks.close()
    lease.close()

    assert seen == [[0, 0], [3, 0], [0, 3], [0, 2], [0, 1], [0, 0]]


def events(program: Program, name: str) -> list[dict[str, Any]]:
    """The lines of its log that tell of this event."""
    told = [json.loads(line) for line in program.output.splitlines()]
    return [line for line in told if line.get("event") == name]


def test_the_alerts_ask_for_what_is_said(redis_server: RedisServer, tmp_path: Path) -> None:
    """The lines of a real server and worker have the event and every field that the alerts look at."""
    asked = set(re.findall(r"\bline\.(\w+)", (MODULE / "monitoring.tf").read_text()))
    settings = {
        "SCRIPT_RUNNER_REDIS_URL": redis_server.url,
        "SCRIPT_RUNNER_LOG_FORMAT": "json",
        "SCRIPT_RUNNER_REPORT_SECONDS": "0.2",
    }
    with Site(tmp_path, shell_config()) as site:
        server, worker = site.serve(**settings), site.worker(**settings)
        server.wait_until_ready()
        server.run("exit 3")
        report = until(lambda: events(server, "queue"))[-1]
        end = until(lambda: events(worker, "finished"))[-1]

    assert {"oldest_seconds", "queued", "workers"} <= asked - {"state"} <= report.keys()
    assert end["state"] == "failed"
