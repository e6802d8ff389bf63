"""Real processes for end-to-end tests: a site with a configuration, the programs started in it, their HTTP."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

PATIENCE_SECONDS = 30.0
"""How long a condition may take; long for any machine, and only waited for in full when a test fails."""

FINAL = ("succeeded", "failed", "timed_out", "cancelled", "lost")

PRIVATE = re.compile(r"(SCRIPT_RUNNER|CELERY|AUTH0?|E2E)_.*|REDIS_URL|PORT|SERVER_.*|XDG_STATE_HOME")
"""What of the environment of the test run must not reach the programs under test."""

ROWS = "name,value\nalpha,1\n"
"""The results of a script that does nothing about them."""


def shell_config(**more: Any) -> dict[str, Any]:
    """A configuration whose script is the shell code in the body; ``more`` overrules its keys.

    A run folder begins with ``rows.csv`` (ROWS), the results, and an empty ``files``, the attachments.
    """
    return {
        "command": ["sh", "-c", 'eval "$$CODE"'],
        "command_rundir": "runs",
        "command_rundir_base": "base",
        "inputs": {
            "body_args": [
                {"env_var_name": "CODE", "body_jsonpath": "$.code", "required": True},
                {"env_var_name": "NAME", "body_jsonpath": "$.name"},
            ]
        },
        "outputs": {
            "results": {"kind": "file", "format": "csv", "input_path": "rows.csv"},
            "attachments": ["files/**"],
        },
        "grace_seconds": 0.5,
        **more,
    }


Found = TypeVar("Found")


def until(
    look: Callable[[], Found | None], *, seconds: float = PATIENCE_SECONDS, why: Callable[[], str] = str
) -> Found:
    """The first true thing that ``look`` finds; a failed test, with the words of ``why``, when none comes."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"what was waited for did not happen. {why()}"
        time.sleep(0.02)
    return found


class Program:
    """One started process: ``python -m script_runner …``, what it has said, and how it is stopped."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def folder(self) -> Path:
        """Its working directory."""
        return self._log.parent

    @property
    def output_bytes(self) -> bytes:
        return self._log.read_bytes()

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_for_output(self, text: str, *, times: int = 1) -> None:
        """Return when it has said this so often; fail at once when it ends without."""
        until(lambda: self.output.count(text) >= times or self.has_ended, why=lambda: self.output)
        assert self.output.count(text) >= times, f"it ended without a word of {text!r}:\n{self.output}"

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def wait(self, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit code, once it has ended."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.output}") from None

    def kill(self) -> None:
        """As kill -9 does: it, and nothing else."""
        self._process.kill()
        self._process.wait()


class Server(Program):
    """A program that serves HTTP: ``up`` or ``serve``."""

    _http: httpx.Client | None = None

    @property
    def url(self) -> str:
        """Where it says that it serves."""
        self.wait_for_output(" at http://")
        found = re.search(r" at (http://[0-9.]+:\d+)", self.output)
        assert found, self.output
        return found[1]

    @property
    def http(self) -> httpx.Client:
        if self._http is None:
            self._http = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False)
        return self._http

    def wait_until_ready(self, *, workers: int = 1) -> None:
        """Return when it is ready and so many workers are alive."""

        def is_ready() -> bool:
            try:
                answer = self.http.get("/ready")
            except httpx.TransportError:
                assert not self.has_ended, self.output
                return False
            return answer.status_code == 200 and answer.json()["workers"] >= workers

        until(is_ready, why=lambda: self.output)

    def submit(self, code: str, **body: Any) -> str:
        """The id of a new task of ``shell_config`` that runs this shell code."""
        answer = self.http.post("/task", json={"code": code, **body})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def document(self, task_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/task/{task_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_for_state(self, task_id: str, *states: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The document of the task once it is in one of these states."""

        def is_there() -> dict[str, Any] | None:
            document = self.document(task_id)
            return document if document["state"] in states else None

        return until(is_there, seconds=seconds, why=lambda: f"{self.document(task_id)}\n{self.output}")

    def finished(self, task_id: str, *, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The document of the task in its final state."""
        return self.wait_for_state(task_id, *FINAL, seconds=seconds)

    def log(self, task_id: str, stream: str = "stdout", *, offset: int = 0) -> str:
        answer = self.http.get(f"/task/{task_id}/logs", params={"stream": stream, "offset": offset})
        assert answer.status_code == 200, answer.text
        return answer.text

    def run(self, code: str, **body: Any) -> dict[str, Any]:
        """Submit and wait: the document of the task in its final state."""
        return self.finished(self.submit(code, **body))

    def close(self) -> None:
        if self._http is not None:
            self._http.close()


class Site:
    """A folder with a configuration, and all processes that are started in it.

    Everything a test starts here carries a mark in its environment, which scripts inherit, or works in a
    folder of the site, as Valkey does, which writes over its environment. So all of it is found again, and
    nothing of it outlives the test.
    """

    python = sys.executable

    def __init__(self, folder: Path, config: Mapping[str, Any], **environment: str) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(config))
        (folder / "base" / "files").mkdir(parents=True)
        (folder / "base" / "rows.csv").write_text(ROWS)
        self._mark = uuid.uuid4().hex
        self._programs: list[Program] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not PRIVATE.fullmatch(name)},
            "E2E_MARK": self._mark,
            "XDG_STATE_HOME": str(folder / "state"),
            "SCRIPT_RUNNER_LEASE_SECONDS": "2",
            "SCRIPT_RUNNER_LINGER_SECONDS": "0.2",
            "SCRIPT_RUNNER_NAMESPACE": self._mark,
            **environment,
        }

    @property
    def namespace(self) -> str:
        """Under which its keys stand in Redis."""
        return self._mark

    def up(self, *words: str, **environment: str) -> Server:
        """All in one on a free port, its data in the site; not yet ready."""
        server = Server(*self._spawn("up", "--port", "0", "--data", "data", *words, **environment))
        self._programs.append(server)
        return server

    def serve(self, *words: str, **environment: str) -> Server:
        """A server alone on a free port, its store in the site; not yet ready."""
        server = Server(*self._spawn("serve", "--port", "0", *self._store, *words, **environment))
        self._programs.append(server)
        return server

    def worker(self, *words: str, **environment: str) -> Program:
        """A worker alone, its store in the site."""
        return self.start("worker", *self._store, *words, **environment)

    def start(self, *words: str, **environment: str) -> Program:
        """Any command of the command line, in the background."""
        program = Program(*self._spawn(*words, **environment))
        self._programs.append(program)
        return program

    def run(
        self,
        *words: str,
        stdin: bytes = b"",
        **environment: str,
    ) -> "subprocess.CompletedProcess[str]":
        """Any command of the command line, to its end."""
        done = subprocess.run(
            self._command(words),
            cwd=self.folder,
            env={**self._environment, **environment},
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_SECONDS * 2,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def processes(self, **marks: str) -> dict[int, str]:
        """The living processes of this site, their names and command lines by pid; those only whose environment
        has all of ``marks``, such as ``TASK_ID``.
        """
        own = f"E2E_MARK={self._mark}".encode()
        wanted = {f"{name}={value}".encode() for name, value in marks.items()}
        return {
            found.pid: found.command
            for found in _processes()
            if (own in found.environment or found.folder.is_relative_to(self.folder))
            and wanted <= found.environment
        }

    def run_folders(self) -> list[Path]:
        return list((self.folder / "runs").glob("results-*"))

    def kill_everything(self) -> None:
        """As a power cut would, but for what the kernel holds."""
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for program in self._programs:
                _ = program.has_ended  # takes the dead off the list of processes
            time.sleep(0.005)

    def close(self) -> None:
        self.kill_everything()
        for program in self._programs:
            program.wait()
            if isinstance(program, Server):
                program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _store(self) -> tuple[str, ...]:
        if "SCRIPT_RUNNER_STORE" in self._environment:
            return ()
        return "--store", (self.folder / "store").as_uri()

    def _command(self, words: tuple[str, ...]) -> list[str]:
        return [self.python, "-m", "script_runner", *words]

    def _spawn(self, *words: str, **environment: str) -> tuple["subprocess.Popen[bytes]", Path]:
        log = self.folder / f"program-{len(self._programs)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(words),
                cwd=self.folder,
                env={**self._environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return process, log


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    command: str
    folder: Path
    environment: set[bytes]


def _processes() -> Iterator[_Process]:
    """Every process that lives (proc(5)); the dead have no working directory."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                environment = set((folder / "environ").read_bytes().split(b"\0"))
                name, words = (folder / "comm").read_bytes(), (folder / "cmdline").read_bytes()
                command = (name.strip() + b" " + words.replace(b"\0", b" ")).decode(errors="replace")
                yield _Process(int(folder.name), command, (folder / "cwd").readlink(), environment)
