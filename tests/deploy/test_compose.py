"""compose.yaml, checked without Docker: against the schema of compose files, and for what it must never do."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.settings import known_settings, unknown_settings

from script_runner.config import Settings, script_environment
from script_runner.spec import Spec

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()

OURS = ("server", "worker")
FILLED_IN = {"REDIS_PASSWORD": "p", "AUTH_PROVIDER": "none", "APP": "./examples/plate-qc"}
"""What .env must say at least."""

VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}")
SECRET = re.compile("PASSWORD|SECRET|AUTH$|KEY")
SECONDS_OF_EXIT = 5
"""How much longer than all that it waits for a container may take before it is killed."""


class MissingError(Exception):
    """A variable that must be set is not."""


def filled_in(text: str, variables: Mapping[str, str]) -> str:
    """A value with its variables put in, as compose does it (compose specification, interpolation)."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        given = variables.get(match["name"], "")
        if not given and match["operator"] == ":?":
            raise MissingError(match["rest"])
        return given or (match["rest"] or "" if match["operator"] == ":-" else "")

    return VARIABLE.sub(value, text)


def tree_filled_in(tree: Any, variables: Mapping[str, str]) -> Any:
    """Every value of a file; compose reads the YAML first and puts the variables in then."""
    if isinstance(tree, dict):
        return {key: tree_filled_in(inner, variables) for key, inner in tree.items()}
    if isinstance(tree, list):
        return [tree_filled_in(inner, variables) for inner in tree]
    return filled_in(tree, variables) if isinstance(tree, str) else tree


def deployment(**variables: str) -> Any:
    return tree_filled_in(yaml.safe_load(TEXT), FILLED_IN | variables)


SERVICES: dict[str, dict[str, Any]] = deployment()["services"]
EVERY_SERVICE = pytest.mark.parametrize("name", sorted(SERVICES))


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return int(found[1])


@pytest.mark.parametrize(
    ("text", "is_well"),
    [
        (TEXT, True),
        (yaml.safe_dump(deployment()), True),
        (TEXT.replace("    stop_grace_period:", "    stop_grace:"), False),
    ],
    ids=["as it is", "with its variables filled in", "with a mistake"],
)
def test_it_is_a_compose_file(tmp_path: Path, text: str, is_well: bool) -> None:  # noqa: FBT001 - the case
    """It holds to the schema of the compose specification; a key that is none would be found."""
    program = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent))
    assert program, "check-jsonschema is a dependency for development; run ./dev setup"
    file = tmp_path / "compose.yaml"
    file.write_text(text)

    done = subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", file], capture_output=True, text=True, check=False
    )

    assert (done.returncode == 0) is is_well, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(FILLED_IN))
def test_it_does_not_start_without(name: str) -> None:
    """A password, who may ask, and a configuration must be given; what is missing is named."""
    with pytest.raises(MissingError, match=f"{name} in .env"):
        deployment(**{name: ""})


@EVERY_SERVICE
def test_every_service_holds_to_a_version(name: str) -> None:
    """An image that changes under its name changes a service that nobody touched."""
    _, _, tag = SERVICES[name]["image"].rpartition(":")

    assert re.match(r"v?\d+\.\d+", tag)


@EVERY_SERVICE
def test_every_service_is_confined(name: str) -> None:
    """Read-only, no capabilities, no new rights, a limit of memory and of processes, bounded logs."""
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@EVERY_SERVICE
def test_every_service_comes_back_and_is_looked_at(name: str) -> None:
    """It is started again when it ends, and has a health check."""
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"]["test"]


@EVERY_SERVICE
def test_every_service_has_an_init(name: str) -> None:
    """Ours by the image, which starts with tini; the others by Docker."""
    starts_with_tini = 'ENTRYPOINT ["tini"' in (ROOT / "docker/Dockerfile").read_text()

    assert SERVICES[name].get("init", starts_with_tini and name in OURS) is True


@pytest.mark.parametrize("name", OURS)
def test_health_check_is_that_of_the_image(name: str) -> None:
    """What is asked is what the image is asked."""
    command = SERVICES[name]["healthcheck"]["test"][1:]

    assert ", ".join(f'"{word}"' for word in command) in (ROOT / "docker/Dockerfile").read_text()


def test_no_secret_stands_in_the_file() -> None:
    """A secret is a variable without a default; its value is in .env, which is not committed."""
    settings = [
        (name, value)
        for name, value in re.findall(r"^ +([A-Z_]+): (?:&\w+ )?(.*)$", TEXT, re.MULTILINE)
        if SECRET.search(name)
    ]

    assert len(settings) > 3
    assert [
        name for name, value in settings if not re.fullmatch(r"\*password|\$\{\w+:(?:-|\?[^}]+)\}", value)
    ] == []
    assert "/.env\n" in (ROOT / ".gitignore").read_text()


def test_no_secret_stands_in_the_example() -> None:
    """Whoever copies it must choose a password."""
    secrets = re.findall(r"^#?(\w*(?:PASSWORD|SECRET|KEY)\w*)=(.*)$", EXAMPLE, re.MULTILINE)

    assert secrets
    assert {value for _, value in secrets} == {""}


def test_only_the_server_is_published_and_to_this_machine_alone() -> None:
    """By default nobody outside reaches anything; Valkey has no way in or out at all."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {"server": ["127.0.0.1:8000:8000"]}
    assert SERVICES["redis"]["networks"] == ["inside"]
    assert deployment()["networks"]["inside"] == {"internal": True}


def test_every_setting_is_one() -> None:
    """A SCRIPT_RUNNER_… variable that nothing reads would be a mistake that nobody notices."""
    own = {name for service in OURS for name in SERVICES[service]["environment"]}

    assert unknown_settings(TEXT) == set()
    assert {name for name in own if not name.startswith(("SCRIPT_RUNNER_", "AUTH0_"))} <= known_settings()


@pytest.mark.parametrize("name", OURS)
def test_scripts_see_none_of_it(name: str) -> None:
    """Whatever compose puts into the environment of ours is kept from the script."""
    environment = {key: str(value) for key, value in SERVICES[name]["environment"].items()}

    assert script_environment(environment, Spec.read({"command": ["true"]})) == {}


def test_variables_are_those_of_the_example() -> None:
    """Every variable of compose.yaml is explained in .env.example, and nothing else is."""
    in_compose = {match["name"] for match in VARIABLE.finditer(TEXT) if match["name"]}
    in_example = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", EXAMPLE, re.MULTILINE))

    assert in_example - {"COMPOSE_PROFILES"} == in_compose - {"S3_MEMORY"}


def test_defaults_of_the_example_are_those_of_the_file() -> None:
    """What the example shows as a default is the default."""
    in_compose = {match["name"]: match["rest"] for match in VARIABLE.finditer(TEXT) if match["operator"] == ":-"}
    shown = dict(re.findall(r"^#([A-Z][A-Z0-9_]*)=(.+)$", EXAMPLE, re.MULTILINE))
    told = {name: value for name, value in shown.items() if in_compose.get(name, "0") not in ("", "0")}

    assert {name: in_compose[name] for name in told if name not in ("REDIS_URL", "STORE")} == {
        name: value for name, value in told.items() if name not in ("REDIS_URL", "STORE")
    }


def test_worker_is_given_the_time_it_takes_to_stop() -> None:
    """It is killed only after the drain, the grace of a script, and some time to say so."""
    worker = SERVICES["worker"]
    grace_seconds = Spec.read({"command": ["true"]}).grace_seconds
    needed = int(worker["environment"]["SCRIPT_RUNNER_DRAIN_TIMEOUT"]) + grace_seconds

    assert seconds(worker["stop_grace_period"]) >= needed + SECONDS_OF_EXIT


def test_server_is_given_the_time_it_takes_to_stop() -> None:
    """It is killed only after it has lingered and closed."""
    assert seconds(SERVICES["server"]["stop_grace_period"]) >= Settings().linger_seconds + 5 + SECONDS_OF_EXIT


def test_worker_can_be_scaled() -> None:
    """Nothing of it can be there only once: neither a name nor a port."""
    assert "container_name" not in SERVICES["worker"]
    assert "ports" not in SERVICES["worker"]
    assert deployment(WORKERS="3")["services"]["worker"]["scale"] == "3"


def test_what_must_last_is_in_a_volume() -> None:
    """Tasks and artifacts outlive their containers; servers and workers share the artifacts."""
    data = {
        name: [mount for mount in service["volumes"] if "/data" in mount] for name, service in SERVICES.items()
    }

    assert data["server"] == data["worker"] == ["artifacts:/data"]
    assert data["redis"] == ["redis:/data"]
    assert SERVICES["server"]["environment"]["SCRIPT_RUNNER_STORE"] == "file:///data"
    assert deployment()["volumes"].keys() == {"artifacts", "redis", "s3"}


def test_valkey_keeps_what_it_is_told() -> None:
    """A password, an append-only file, and no eviction: what the runner asks of it."""
    command = SERVICES["redis"]["command"]

    assert command[:2] == ["sh", "-c"]
    for option in ('--requirepass "$VALKEYCLI_AUTH"', "--appendonly yes", "--maxmemory-policy noeviction"):
        assert option in command[2]


def test_object_store_is_there_only_when_asked_for() -> None:
    """The profile s3 has it, and the store of the example is its bucket."""
    assert SERVICES["s3"]["profiles"] == ["s3"]
    assert SERVICES["s3"]["volumes"] == ["s3:/buckets/script-runner"]
    assert "STORE=s3://script-runner/artifacts?endpoint=http://s3:7070" in EXAMPLE
