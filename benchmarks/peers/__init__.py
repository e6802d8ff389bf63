"""Others that turn a script into an HTTP API: installed into a cache folder, and started as we are.

A peer that cannot be installed here is left out with a message.
"""

import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.system import (
    HOST,
    Start,
    System,
    answer_moment,
    cores,
    family_of,
    free_port,
    own_redis,
    running,
    until,
)
from benchmarks.wire import Dialect

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache" / "benchmarks"
OLD_TOOLS = ("setuptools==57.5.0", "wheel==0.37.1")
WEBHOOK = "webhook"

Say = Callable[[str], None]


def installed(say: Say, names: Collection[str]) -> dict[str, Start]:
    """Those of these peers that can be started here, by name."""
    found: dict[str, Start] = {}
    for name in names:
        program_of, start = STARTS[name]
        if program_of(say) is not None:
            found[name] = start
    return found


# Installing


def python_of(name: str, say: Say) -> str | None:
    """The Python of the environment with the packages of ``name.txt``; None if they cannot be installed."""
    folder, wanted = CACHE / name, (HERE / f"{name}.txt").read_text()
    stamp, python = folder / ".installed", folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    say(f"installing {name} into {folder.relative_to(CACHE.parent.parent)} (once)")
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    steps = [[*pip, "--no-deps", "-r", str(HERE / f"{name}.txt")]]
    if name == "original":
        steps = [[*pip, *OLD_TOOLS], [*steps[0], "--no-build-isolation"]]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["pip says nothing"]
            say(f"{name} is left out, since it cannot be installed: {said[-1]}")
            return None
    stamp.write_text(wanted)
    return str(python)


def own_python(say: Say) -> str:
    """The Python of an environment with this package as its users install it, without extras; or else our own."""
    folder, root = CACHE / "own", CACHE.parent.parent
    stamp, python = folder / ".installed", folder / "bin" / "python"
    lock = (root / "requirements.lock").read_text()
    wanted = (root / "pyproject.toml").read_text() + lock
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    say(f"installing this package without extras into {folder.relative_to(root)} (once)")
    venv.create(folder, clear=True, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(re.findall(r"^[\w.-]+==[^\s;]+", lock, re.MULTILINE)))
    words = ("install", "-q", "--disable-pip-version-check", "-c", str(constraints), "-e", str(root))
    done = subprocess.run([str(python), "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip says nothing"]
        say(f"this package is measured in our own environment, extras and all: {said[-1]}")
        return sys.executable
    stamp.write_text(wanted)
    return str(python)


def _webhook_program(say: Say) -> str | None:
    """The program of Debian's package, unpacked but not installed; None if there is none."""
    if found := shutil.which(WEBHOOK):
        return found
    folder = CACHE / WEBHOOK
    program = folder / "usr" / "bin" / WEBHOOK
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.check_output(["apt-get", "download", WEBHOOK], cwd=folder, stderr=subprocess.STDOUT)
            [package] = folder.glob("*.deb")
            subprocess.check_output(["dpkg-deb", "-x", str(package), "."], cwd=folder)
        except (OSError, subprocess.SubprocessError, ValueError):
            say(f"{WEBHOOK} is left out: apt-get did not bring it")
            return None
    return str(program)


# Starting


@contextmanager
def _original(config: Path, folder: Path) -> Iterator[System]:
    """As its own image starts it: gunicorn with four processes, Celery with two, a redis-server."""
    document = json.loads(config.read_text())
    (folder / "nothing.json").write_text("[]")  # it wants results of every script
    nothing = {"kind": "file", "format": "json", "input_path": str(folder / "nothing.json")}
    document["inputs"] |= {"query_args": [], "body_args": []}
    document["outputs"] = {"results": nothing, "attachments": []} | document["outputs"]
    (folder / "config.json").write_text(json.dumps(document))
    with own_redis(folder) as (store, redis):
        environment = {"AUTH_PROVIDER": "none"}
        environment |= dict.fromkeys(("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"), f"redis://{store}/0")
        with _web_and_celery(
            "original", "script_runner.main:app", "script_runner.analysis", folder, environment, threads=1
        ) as (port, answered_at, pids):
            processes = tuple(process for pid in (*pids, redis) for process in family_of(pid))
            yield System("original", port, store, processes, Dialect("/script/", "/script/"), answered_at)


@contextmanager
def _celery_flask(config: Path, folder: Path) -> Iterator[System]:
    with own_redis(folder) as (store, redis):
        environment = {"PEER_CONFIG": str(config), "PEER_REDIS": f"redis://{store}/0", "PYTHONPATH": str(HERE)}
        with _web_and_celery(
            "celery_flask", "celery_flask:web", "celery_flask", folder, environment, threads=64
        ) as (port, answered_at, pids):
            processes = tuple(process for pid in (*pids, redis) for process in family_of(pid))
            yield System("celery+flask", port, store, processes, Dialect(), answered_at)


@contextmanager
def _web_and_celery(
    name: str, web: str, celery: str, folder: Path, environment: Mapping[str, str], *, threads: int
) -> Iterator[tuple[int, float, tuple[int, int]]]:
    """Gunicorn and a Celery worker, started at once: port, moment of the first answer, and the pids of both."""
    python, port = str(CACHE / name / "bin" / "python"), free_port()
    serve = ["-m", "gunicorn", "--workers", "4", "--threads", str(threads), "--bind", f"{HOST}:{port}", web]
    work = ["-m", "celery", "-A", celery, "worker", "--concurrency", str(cores()), "--loglevel", "warning"]
    environment = {**environment, "C_FORCE_ROOT": "1"}
    with (
        running([python, *serve], folder, "gunicorn", environment) as server,
        running([python, *work], folder, "celery", environment) as worker,
    ):
        answered_at = until(lambda: answer_moment(port), server, folder / "gunicorn.log")
        until(lambda: len(family_of(worker.pid)) > cores(), worker, folder / "celery.log")
        yield port, answered_at, (server.pid, worker.pid)


@contextmanager
def _fastapi(config: Path, folder: Path) -> Iterator[System]:
    port = free_port()
    python = str(CACHE / "fastapi_memory" / "bin" / "python")
    # the loop of the standard library: uvloop forks the whole process for each script
    words = ["-m", "uvicorn", "fastapi_memory:web", "--port", str(port), "--loop", "asyncio", "--no-access-log"]
    environment = {"PEER_CONFIG": str(config), "PYTHONPATH": str(HERE)}
    with running([python, *words], folder, "uvicorn", environment) as server:
        answered_at = until(lambda: answer_moment(port), server, folder / "uvicorn.log")
        yield System("fastapi", port, "", family_of(server.pid), Dialect(), answered_at)


@contextmanager
def _webhook(config: Path, folder: Path) -> Iterator[System]:
    """It runs the command and answers then: no queue, no task, no document."""
    program = _webhook_program(lambda _: None)
    assert program, "it is started only where it was found"
    command = json.loads(config.read_text())["command"][0]
    hooks = folder / "hooks.json"
    hooks.write_text(json.dumps([
        {"id": "run", "execute-command": command, "include-command-output-in-response": True},
    ]))  # fmt: skip
    port = free_port()
    words = [program, "-hooks", str(hooks), "-ip", HOST, "-port", str(port)]
    with running(words, folder, "webhook") as server:
        answered_at = until(lambda: answer_moment(port), server, folder / "webhook.log")
        yield System(WEBHOOK, port, "", family_of(server.pid), Dialect("/hooks/run?seconds=", ""), answered_at)


@contextmanager
def _bare_queue(config: Path, folder: Path) -> Iterator[System]:
    port, python = free_port(), own_python(lambda _: None)
    serve = ["-m", "uvicorn", "bare_queue:web", "--port", str(port), "--no-access-log"]
    serve += ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning"]
    with own_redis(folder) as (store, redis), ExitStack() as stack:
        environment = {"PEER_CONFIG": str(config), "PEER_REDIS": f"redis://{store}/0", "PYTHONPATH": str(HERE)}
        work = [python, str(HERE / "bare_queue.py")]
        workers = [
            stack.enter_context(running(work, folder, f"worker-{number}", environment))
            for number in range(cores())
        ]
        server = stack.enter_context(running([python, *serve], folder, "uvicorn", environment))
        answered_at = until(lambda: answer_moment(port), server, folder / "uvicorn.log")
        pids = (server.pid, redis, *(worker.pid for worker in workers))
        processes = tuple(process for pid in pids for process in family_of(pid))
        yield System("bare queue", port, store, processes, Dialect(), answered_at)


STARTS: dict[str, tuple[Callable[[Say], str | None], Start]] = {
    "original": (partial(python_of, "original"), _original),
    "celery+flask": (partial(python_of, "celery_flask"), _celery_flask),
    "fastapi": (partial(python_of, "fastapi_memory"), _fastapi),
    WEBHOOK: (_webhook_program, _webhook),
    "bare queue": (own_python, _bare_queue),
}
"""By name: what finds the program that a peer needs, and how it is started."""
