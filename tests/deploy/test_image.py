"""The image, without building it: its files linted, its small programs run (``./dev image`` builds it)."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import healthcheck, original_commands
from tests.deploy.settings import unknown_settings

from script_runner import __version__

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile*"))


def text(name: str) -> str:
    return (ROOT / name).read_text()


# The Dockerfiles


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_is_what_hadolint_asks_for(dockerfile: Path) -> None:
    """The linter has nothing to say, also of the shell code in RUN."""
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("hadolint is not installed")
    assert program, "hadolint is missing, and CI must not do without it"

    done = subprocess.run([program, "--no-color", dockerfile], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_sets_only_settings_that_exist(dockerfile: Path) -> None:
    """A SCRIPT_RUNNER_… variable that nothing reads would be a mistake that nobody notices."""
    assert unknown_settings(dockerfile.read_text()) == set()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_ends_as_a_user_without_rights(dockerfile: Path) -> None:
    """Whatever runs in the image runs as the user 10001, which the last USER, here or in the base, says."""
    users = re.findall(r"^USER +(\S+)", dockerfile.read_text(), re.MULTILINE)

    assert users[-1:] == ["10001:10001"] or (dockerfile.name == "Dockerfile.example" and not users)


def test_label_says_the_version_of_the_package() -> None:
    """The image is labelled with the version that is in it, unless the builder says otherwise."""
    assert f"ARG VERSION={__version__}\n" in text("docker/Dockerfile")


def test_only_what_is_named_reaches_the_builder() -> None:
    """Neither .env nor .git nor tests are in the build's context: what is not named is left out."""
    lines = [line for line in text(".dockerignore").splitlines() if line and not line.startswith("#")]

    assert lines[0] == "*"
    assert not [line for line in lines if line.startswith("!") and not list(ROOT.glob(line[1:]))]


def test_all_that_is_copied_reaches_the_builder() -> None:
    """Every source of a COPY is let through by .dockerignore."""
    allowed = {
        path for line in text(".dockerignore").splitlines() if line[:1] == "!" for path in ROOT.glob(line[1:])
    }
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text("docker/Dockerfile"), re.MULTILINE)
    sources = {ROOT / source for words in copied for source in words.split()}

    assert sources
    assert sources <= allowed


# Its dependencies


def locked(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text(name), re.MULTILINE))


def normal(requirement: str) -> str:
    """The name in a requirement, as lock files write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


@pytest.mark.parametrize("name", ["docker/requirements.lock", "docker/build.lock"])
def test_image_has_the_versions_that_the_tests_ran_with(name: str) -> None:
    """What the image is locked to is what development is locked to."""
    assert locked(name).items() <= locked("requirements.lock").items()


def test_image_has_all_that_the_program_can_use() -> None:
    """Dependencies and every extra but those for development are in the image's lock file."""
    project = tomllib.loads(text("pyproject.toml"))["project"]
    extras = {
        name: wanted for name, wanted in project["optional-dependencies"].items() if name not in ("dev", "build")
    }
    wanted = {normal(item) for group in (project["dependencies"], *extras.values()) for item in group}

    assert wanted - {project["name"]} <= locked("docker/requirements.lock").keys()


@pytest.mark.parametrize("name", ["docker/requirements.lock", "docker/build.lock"])
def test_lock_files_of_the_image_pin_by_hash_and_name_no_host(name: str) -> None:
    """Each package has a hash, and nothing says where packages come from."""
    blocks = re.split(r"\n(?=[a-z])", text(name).strip())

    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert re.search(r"https?://|--index-url|--find-links", text(name)) is None


# The commands of the original


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("gunicorn script_runner.main:app", "script-runner serve"),
        ("gunicorn --bind 0.0.0.0:5000 script_runner.main:app", "script-runner serve --host 0.0.0.0 --port 5000"),
        ("gunicorn -w 4 -b :5000 script_runner.main:app", "script-runner serve --port 5000"),
        (
            "gunicorn --bind=[::]:5000 --timeout 60 script_runner.main:app",
            "script-runner serve --host :: --port 5000",
        ),
        ("gunicorn -b127.0.0.1:80 script_runner.main:app", "script-runner serve --host 127.0.0.1 --port 80"),
        ("celery -A script_runner.analysis worker --concurrency=1", "script-runner worker --concurrency 1"),
        ("celery -A script_runner.analysis worker -c 3 --loglevel=info", "script-runner worker --concurrency 3"),
        ("celery --app=script_runner.analysis worker -c3", "script-runner worker --concurrency 3"),
        ("celery -A script_runner.analysis worker", "script-runner worker"),
        ("flask run", "script-runner serve"),
        (
            "flask --app script_runner.main run --host=0.0.0.0 -p 81",
            "script-runner serve --host 0.0.0.0 --port 81",
        ),
        ("celery -A script_runner.analysis beat", None),
        ("flask shell", None),
    ],
)
def test_command_of_the_original_becomes_todays(typed: str, command: str | None) -> None:
    """The port and the number of scripts at once are kept; a command without an equal is none."""
    name, *words = typed.split()

    assert original_commands.translated(name, words) == (command.split() if command else None)


def as_the_original(folder: Path, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Type one of the original's commands where the image would have ours; ``script-runner`` repeats its words."""
    ours = folder / "script-runner"
    ours.write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
    ours.chmod(0o755)
    link = folder / name
    link.symlink_to(DOCKER / "original_commands.py")
    return subprocess.run(
        [sys.executable, link, *words],
        env={"PATH": f"{folder}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_command_of_the_original_runs_todays_and_says_so(tmp_path: Path) -> None:
    """The process becomes today's command, in one sentence said before; no shell reads what was typed."""
    done = as_the_original(tmp_path, "celery", "-A", "script_runner.analysis", "worker", "-c", "$(id) 2")

    assert (done.returncode, done.stdout) == (0, "[worker][--concurrency][$(id) 2]")
    assert done.stderr.count("\n") == 1
    assert "in its place runs: script-runner worker" in done.stderr


def test_command_without_an_equal_says_what_there_is(tmp_path: Path) -> None:
    """It ends with exit code 2 and the commands of today."""
    done = as_the_original(tmp_path, "flask", "shell")

    assert (done.returncode, done.stdout) == (2, "")
    assert "Use: script-runner serve, script-runner worker" in done.stderr


# The health check


@pytest.mark.parametrize(
    ("environment", "addresses"),
    [
        ({}, [("127.0.0.1", 8000)]),
        ({"PORT": "81", "SCRIPT_RUNNER_HOST": "0.0.0.0"}, [("127.0.0.1", 81)]),  # noqa: S104 - nothing listens
        ({"PORT": "81", "SCRIPT_RUNNER_PORT": "82", "SCRIPT_RUNNER_HOST": "10.0.0.1"}, [("10.0.0.1", 82)]),
        ({"SCRIPT_RUNNER_METRICS": "0.0.0.0:9090"}, [("127.0.0.1", 8000), ("127.0.0.1", 9090)]),
        ({"SCRIPT_RUNNER_METRICS": "[::]:91"}, [("127.0.0.1", 8000), ("::1", 91)]),
    ],
)
def test_health_is_asked_where_the_settings_say(
    environment: dict[str, str], addresses: list[tuple[str, int]]
) -> None:
    """The port of the API, and that of metrics if there is one; by loopback where all addresses are meant."""
    assert healthcheck.addresses(environment) == addresses


@pytest.mark.parametrize(
    ("statuses", "is_well"),
    [
        ([200], True),
        ([200, 200], True),
        ([None, 200], True),
        ([None], False),
        ([None, None], False),
        ([200, 503], False),
        ([200, 0], False),
    ],
)
def test_well_means_that_all_who_listen_answer(statuses: list[int | None], is_well: bool) -> None:  # noqa: FBT001 - the case
    """A worker has no port of the API; whoever listens must answer 200, and somebody must."""
    assert healthcheck.is_well(statuses) is is_well


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, int]]:
    """The address of a server that gives one caller this answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", 200),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 503),
        (b"+PONG\r\n", 0),
        (b"", 0),
    ],
)
def test_status_of_who_answers(answer: bytes, status: int) -> None:
    """The status of the answer, and 0 for what is none."""
    with answering(answer) as address:
        assert healthcheck.status(address) == status


def test_status_of_who_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is taken and left alone is no answer."""
    monkeypatch.setattr(healthcheck, "SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert healthcheck.status(listener.getsockname()) == 0


def test_status_where_nobody_listens() -> None:
    """None: that port is not in use here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

    assert healthcheck.status(address) is None
