"""Builds the image and its examples and runs them: ``./dev image``, as root on Debian, without Docker.

The base is a bootstrapped Debian under the name of the official image of Python, and for the example with R the
same with Debian's R under the name of rocker's: neither can be fetched everywhere. Builder and runtime are buildah
and podman with runc, in a folder that is removed afterwards. ``--report FILE`` writes the findings down.
"""

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.servers import RedisServer, free_port, redis_binary

ROOT = Path(__file__).parents[2]

BASE = "docker.io/library/python:3.11-slim-bookworm"
ROCKER = "docker.io/rocker/r-ver:4.6.1"
IMAGE = "script-runner-api:1.0.0"
EPOCH = "1580601600"
USER = "10001"

PATIENCE_SECONDS = 60.0
UNAVAILABLE = httpx.codes.SERVICE_UNAVAILABLE

CONTAINERS = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1024:2048"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""

CONFINED = (
    "--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:rw,exec,nosuid,nodev,size=256m,mode=1777",
)  # fmt: skip
"""As compose.yaml runs it."""

WITH_R = f"""\
FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends r-base-core
"""

WAITS = {"command": ["sh", "-c", "until [ -e /data/go ]; do sleep 0.1; done; echo word; echo done"]}
WAITS_CONFIG = {**WAITS, "outputs": {"results": {"kind": "stdout", "format": "csv"}}}


@dataclass(slots=True)
class Findings:
    """What was found to be so, in words."""

    lines: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(text)
        print(f"  {text}", flush=True)  # noqa: T201 - what it is run for


class Workbench:
    """Builder and runtime with a storage of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers.conf").write_text(CONTAINERS)
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n'
        )
        self._environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }
        self._containers: list[str] = []

    def run(self, *words: str | Path, stdin: bytes = b"") -> str:
        """What a program that does well says on its standard output."""
        done = self.tried(*words, stdin=stdin)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def tried(self, *words: str | Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(words, env=self._environment, input=stdin, capture_output=True, check=False)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def bootstrap(self, image: str, root: Path) -> None:
        """A Debian with Python in this folder, made if it is not there, imported under this name."""
        if not root.exists():
            packages = "--include=python3,python3-venv,ca-certificates"
            self.run("debootstrap", "--variant=minbase", packages, "bookworm", root)
            for name in ("python", "python3"):
                (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3")
            for package in (root / "var/cache/apt/archives").glob("*.deb"):
                package.unlink()
        archive = self.folder / "root.tar"
        self.run("tar", "-C", root, "-cf", archive, ".")
        self.run("podman", "import", archive, image)
        archive.unlink()

    def build(self, image: str, dockerfile: Path, context: Path, *options: str) -> None:
        self.run(*self.build_command(image, dockerfile, context, *options))

    def build_command(self, image: str, dockerfile: Path, context: Path, *options: str) -> list[str | Path]:
        """Build, with the certificates and the pip settings of this machine."""
        host = [
            f"--volume={path}:{path}:ro" for path in ("/etc/ssl/certs", "/etc/pip.conf") if Path(path).exists()
        ]
        return [
            "buildah", "build", "--pull-never", "--network=host", "--format=docker", f"--timestamp={EPOCH}",
            *host, *options, "-f", dockerfile, "-t", image, context,
        ]  # fmt: skip

    def start(self, image: str, *words: str, options: Sequence[str] = ()) -> "Container":
        name = f"image-test-{secrets.token_hex(4)}"
        self._containers.append(name)
        self.run("podman", "run", "--detach", f"--name={name}", *CONFINED, *options, image, *words)
        return Container(self, name)

    def remove_containers(self) -> None:
        for name in self._containers:
            self.tried("podman", "rm", "--force", "--time=0", name)

    def digest(self, image: str, folder: str) -> str:
        """A hash of all names, modes and contents below a folder of an image."""
        container = self.run("buildah", "from", "--pull-never", image).strip()
        try:
            top = Path(self.run("buildah", "mount", container).strip()) / folder
            found = hashlib.sha256()
            for path in sorted(top.rglob("*")):
                content = str(path.readlink()).encode() if path.is_symlink() else b""
                content = path.read_bytes() if path.is_file() and not path.is_symlink() else content
                entry = f"{path.relative_to(top)} {path.lstat().st_mode:o} {hashlib.sha256(content).hexdigest()}\n"
                found.update(entry.encode())
            return found.hexdigest()
        finally:
            self.run("buildah", "rm", container)


class Container:
    """One that was started."""

    def __init__(self, bench: Workbench, name: str) -> None:
        self._bench = bench
        self.name = name

    @property
    def output(self) -> str:
        done = self._bench.tried("podman", "logs", self.name)
        return done.stdout + done.stderr

    def shell(self, code: str) -> "subprocess.CompletedProcess[str]":
        return self._bench.tried("podman", "exec", self.name, "sh", "-c", code)

    def is_healthy(self) -> bool:
        """What HEALTHCHECK says now. There is no systemd here that would ask every 15 seconds."""
        return self._bench.tried("podman", "healthcheck", "run", self.name).returncode == 0

    def signal(self, name: str) -> None:
        self._bench.run("podman", "kill", f"--signal={name}", self.name)

    def exit_code(self) -> int:
        return int(self._bench.run("podman", "wait", self.name))


def until(is_so: Callable[[], bool], why: Callable[[], str]) -> float:
    """How many seconds it took until this was so."""
    begun = time.monotonic()
    while not is_so():
        if time.monotonic() > begun + PATIENCE_SECONDS:
            sys.exit(f"what was waited for did not happen:\n{why()}")
        time.sleep(0.1)
    return time.monotonic() - begun


@dataclass(frozen=True, slots=True)
class Site:
    """A server and a worker of an image, with a Redis and a volume between them."""

    server: Container
    worker: Container
    http: httpx.Client
    worker_http: httpx.Client
    """What the worker tells of itself, at its port of metrics."""

    def submitted(self, path: str) -> str:
        answer = self.http.post(f"/task{path}")
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        return str(answer.json()["id"])

    def document(self, task_id: str) -> dict[str, object]:
        return dict(self.http.get(f"/task/{task_id}", params={"attachments": "none"}).json())

    def wait_for_state(self, task_id: str, state: str) -> float:
        return until(
            lambda: self.document(task_id)["state"] == state,
            lambda: f"{self.document(task_id)}\n{self.server.output}\n{self.worker.output}",
        )


@contextlib.contextmanager
def site(
    bench: Workbench,
    image: str,
    redis: RedisServer,
    password: str,
    *,
    serve: str,
    work: str,
    options: Sequence[str] = (),
) -> Iterator[Site]:
    """Both commands of an image at work, once /ready says so."""
    port, volume = free_port(), f"image-test-{secrets.token_hex(4)}"
    bench.run("podman", "volume", "create", volume)
    settings = {
        "SCRIPT_RUNNER_REDIS_URL": f"redis://127.0.0.1:{redis.port}",
        "SCRIPT_RUNNER_REDIS_PASSWORD": password,
        "SCRIPT_RUNNER_STORE": "file:///data",
        "SCRIPT_RUNNER_NAMESPACE": volume,
        "AUTH_PROVIDER": "none",
        "PORT": str(port),
    }
    given = [f"--volume={volume}:/data", *options, *(f"--env={name}={value}" for name, value in settings.items())]
    words = [text.format(port=port).split() for text in (serve, work)]
    ports = [free_port() for _ in words]
    metrics = [f"--env=SCRIPT_RUNNER_METRICS=127.0.0.1:{number}" for number in ports]
    server, worker = (
        bench.start(image, *command, options=[*given, own]) for command, own in zip(words, metrics, strict=True)
    )

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = http.get("/ready")
            return answer.status_code == httpx.codes.OK and answer.json()["workers"] == 1
        return False

    try:
        with _client(port) as http, _client(ports[1]) as worker_http:
            until(is_ready, lambda: f"{server.output}\n{worker.output}")
            yield Site(server, worker, http, worker_http)
    finally:
        bench.remove_containers()
        bench.run("podman", "volume", "rm", volume)


def _client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)


def examine(bench: Workbench, findings: Findings, redis: RedisServer, password: str) -> None:
    """Everything that the documentation says of the image."""
    empty = bench.tried("podman", "run", "--rm", *CONFINED, IMAGE)
    assert (empty.returncode, "config.json cannot be read" in empty.stderr) == (2, True), empty.stderr
    findings.note("without a configuration in it: exit code 2, and how to name one")
    app = bench.folder / "waits"
    app.mkdir()
    (app / "config.json").write_text(json.dumps(WAITS_CONFIG))
    refused = bench.tried("podman", "run", "--rm", *CONFINED, f"--volume={app}:/app:ro", IMAGE)
    assert (refused.returncode, "set AUTH_PROVIDER" in refused.stderr) == (2, True), refused.stderr
    findings.note("without AUTH_PROVIDER: exit code 2, and which words there are")

    commands = {"serve": "script-runner serve", "work": "script-runner worker --concurrency 1"}
    with site(bench, IMAGE, redis, password, **commands, options=[f"--volume={app}:/app:ro"]) as running:
        for container in (running.server, running.worker):
            assert container.shell("cat /proc/1/comm").stdout.strip() == "tini"
            assert container.shell("id -u").stdout.strip() == USER
            assert "Read-only file system" in container.shell("touch /app/x /opt/x /etc/x").stderr
            assert {line.split()[1].strip("0") for line in _capabilities(container)} == {""}
        findings.note("server and worker: user 10001, tini is process 1, no capabilities, read-only file system")
        until(running.server.is_healthy, lambda: running.server.output)
        # W until(running.worker.is_healthy, lambda: running.worker.output)
        running.server.shell("kill -STOP $(cat /proc/1/task/1/children)")
        until(lambda: not running.server.is_healthy(), lambda: running.server.output)
        running.server.shell("kill -CONT $(cat /proc/1/task/1/children)")
        until(running.server.is_healthy, lambda: running.server.output)
        findings.note("HEALTHCHECK: well for both; not for a server that is stopped; well again once it goes on")

        task_id = running.submitted("")
        running.wait_for_state(task_id, "running")
        waiting = running.submitted("")
        running.worker.signal("TERM")
        until(lambda: running.worker_http.get("/ready").status_code == UNAVAILABLE, lambda: running.worker.output)
        assert running.document(task_id)["state"] == "running"
        running.server.shell("touch /data/go")
        assert running.worker.exit_code() == 0
        assert running.document(task_id)["state"] == "succeeded", running.document(task_id)
        assert running.document(waiting)["state"] == "queued"
        running.server.signal("TERM")
        assert running.server.exit_code() == 0
        findings.note(
            "TERM: the worker claims nothing more and waits for its script, which succeeds; both end with 0"
        )


def _capabilities(container: Container) -> list[str]:
    """What its processes may do, now and ever (proc(5), CapEff and CapBnd)."""
    return container.shell("grep -E 'Cap(Eff|Bnd)' /proc/1/status").stdout.splitlines()


def examine_example(
    bench: Workbench, findings: Findings, redis: RedisServer, password: str, image: str, *, serve: str, work: str
) -> None:
    """The example of the repository, with the commands of the original."""
    with site(bench, image, redis, password, serve=serve, work=work) as running:
        task_id = running.submitted("/RUN-7?season=winter")
        running.wait_for_state(task_id, "succeeded")
        rows = running.document(task_id)["results"]
        assert isinstance(rows, list)
        assert rows
        findings.note(f"{image}: {serve!r} and {work!r}: the example succeeds with {len(rows)} rows")


def main() -> int:
    """Build, run, say what was found; the first thing that is not so ends it with code 1."""
    parser = argparse.ArgumentParser(description="Builds the image and its examples and runs them.")
    parser.add_argument("--report", type=Path, metavar="FILE")
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="a bootstrapped Debian, kept and used again")
    options = parser.parse_args()
    binary = redis_binary()
    if os.geteuid() != 0 or binary is None:
        sys.exit("this needs root and redis-server; ./dev image installs what it needs")
    findings = Findings()
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="image-") as folder, RedisServer(binary, password=password) as redis:
        bench = Workbench(Path(folder))
        try:
            _build_all(bench, findings, options.root or bench.folder / "root")
            examine(bench, findings, redis, password)
            original = {
                "serve": "gunicorn --bind 0.0.0.0:{port} script_runner.main:app",
                "work": "celery -A script_runner.analysis worker --concurrency=1",
            }
            examine_example(bench, findings, redis, password, "my-script:1", **original)
            today = {"serve": "script-runner serve", "work": "script-runner worker"}
            examine_example(bench, findings, redis, password, "my-r-script:1", **today)
        finally:
            bench.remove_containers()
    if options.report:
        options.report.write_text("".join(f"- {line}\n" for line in findings.lines))
    return 0


def _build_all(bench: Workbench, findings: Findings, root: Path) -> None:
    bench.bootstrap(BASE, root)
    source = bench.folder / "source"  # what is built twice must not change in between
    for name in ("docker", "src", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, source)
    docker, example = source / "docker", source / "examples" / "plate-qc"

    begun = time.monotonic()
    bench.build(IMAGE, docker / "Dockerfile", source)
    findings.note(f"docker/Dockerfile builds in {time.monotonic() - begun:.0f} s")
    sizes = {image: _size(bench, image) for image in (BASE, IMAGE)}
    findings.note(f"{sizes[IMAGE] - sizes[BASE]:.0f} MB on top of the base (which is {sizes[BASE]:.0f} MB here)")
    bench.build("again", docker / "Dockerfile", source, "--no-cache")
    assert bench.digest(IMAGE, "opt") == bench.digest("again", "opt")
    findings.note("built again without cache: /opt/script-runner is the same, byte for byte")

    bench.build("my-script:1", docker / "Dockerfile.example", example)
    wheels = bench.folder / "wheels"
    wheel = ("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels))
    bench.run(sys.executable, "-m", *wheel, source)
    package = f"/wheels/{next(wheels.iterdir()).name}[objects]"
    bench.build(ROCKER, _write(bench, WITH_R), source)
    given = (f"--volume={wheels}:/wheels:ro", f"--build-arg=PACKAGE={package}")
    bench.build("my-r-script:1", docker / "Dockerfile.rocker", example, *given)
    findings.note("docker/Dockerfile.example and docker/Dockerfile.rocker build, and check their configuration")
    (example / "analyse.py").unlink()
    without = bench.tried(*bench.build_command("none", docker / "Dockerfile.example", example))
    assert without.returncode
    findings.note("docker/Dockerfile.example does not build where the script is missing")


def _write(bench: Workbench, dockerfile: str) -> Path:
    file = bench.folder / "Dockerfile"
    file.write_text(dockerfile)
    return file


def _size(bench: Workbench, image: str) -> float:
    """Megabytes of the image, unpacked."""
    return float(json.loads(bench.run("podman", "image", "inspect", image))[0]["Size"]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
