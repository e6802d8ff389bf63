"""What can be counted: it does not depend on the machine's mood, so a change of it is a change of ours.

``./dev bench --check`` compares it with ``costs.json``; ``--keep`` writes that file anew.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from benchmarks.material import COLUMNS, TRIVIAL, compiled, configuration, remapped, write_file, write_table
from benchmarks.system import HOST, Process, System, redis_server, separate
from benchmarks.wire import Api
from script_runner.config import read_settings

KEPT = Path(__file__).parent / "costs.json"
PREFIX = f"{{{read_settings({}).namespace}}}:1:"
TASKS = 200
TRACED_TASKS = 100
WARMING_TASKS = 20
FEW, MANY = 50_000, 500_000
"""Rows of a table, and forty times as many bytes of a file beside it."""

PATIENCE_SECONDS = 20.0
OUTER = ("evalsha", "eval", "blpop")
"""What comes over the wire; the other commands are made by scripts inside Redis."""

WATCHED = ("server", "worker")
"""The processes that are ours to make cheaper; Redis would be charged with our own looks at it."""

WIRING = "from script_runner.wiring import keeping, serving, working"
"""What the command line imports, whichever process it becomes."""

IMPORTS = {
    "server": f"{WIRING}; import script_runner.web.api, uvicorn",
    "worker": f"{WIRING}; import script_runner.worker, script_runner.adapters.process",
    "client": "import script_runner.client",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How far a count may be from the kept one: a part of it, and so much besides."""

    unit: str
    part: float
    besides: float = 0.0
    is_of_python: bool = False
    """Whether another minor version of Python counts otherwise."""


# chores go by the clock (leases are renewed, the janitor looks): a slower run has more of them a task
COMMANDS = Kind("commands a task", part=0.04, besides=0.1)
BYTES = Kind("bytes a task", part=0.03, besides=20)
CALLS = Kind("calls a task", part=0.05, besides=2, is_of_python=True)
# a pool makes a thread whenever a job meets another, up to six on two cores; processes come once
THREADS = Kind("threads", part=0, besides=3)
PROCESSES = Kind("processes", part=0)
# what the allocator keeps differs by some pages and arenas from run to run
MEGABYTES = Kind("MB", part=0.1, besides=4, is_of_python=True)
MODULES = Kind("modules", part=0.02, is_of_python=True)


@dataclass(frozen=True, slots=True)
class Cost:
    """One counted cost."""

    name: str
    kind: Kind
    value: float

    def verdict(self, kept: float | None) -> str:
        """``as kept``, ``less than`` or ``MORE than`` was kept; ``new`` where nothing is."""
        if kept is None:
            return "new"
        allowed = abs(kept) * self.kind.part + self.kind.besides
        if abs(self.value - kept) <= allowed:
            return f"as kept: {kept:,g}"
        return f"{'MORE' if self.value > kept else 'less'} than kept: {kept:,g}"


def main(*, is_kept: bool) -> int:
    """Count, and keep or print and compare; 1 if anything costs more than what was kept, or is not kept yet."""
    if not redis_server():
        print("the costs are counted with a redis-server, and there is none on PATH")
        return 1
    found = list(counted())
    if is_kept:
        values = {cost.name: round(cost.value, 1) for cost in found}
        KEPT.write_text(json.dumps({"python": _python(), "costs": values}, indent=1) + "\n")
        return 0
    verdicts = compare(found, json.loads(KEPT.read_text()))
    for cost, verdict in zip(found, verdicts, strict=True):
        print(f"{cost.name:38} {cost.value:9,.1f} {cost.kind.unit:16} {verdict}")
    if is_dear := any(verdict.startswith(("MORE", "new")) for verdict in verdicts):
        print("A change made this dearer. Mend it, or say why in the commit and keep it: ./dev bench --keep")
    return int(is_dear)


def kept() -> dict[str, float]:
    """The costs of ``costs.json``, by name."""
    found: dict[str, float] = json.loads(KEPT.read_text())["costs"]
    return found


def compare(found: Sequence[Cost], document: Mapping[str, Any]) -> list[str]:
    """A verdict for each cost, with the kept value."""
    is_same_python = document["python"] == _python()
    return [
        cost.verdict(document["costs"].get(cost.name))
        if is_same_python or not cost.kind.is_of_python
        else f"not compared: kept with Python {document['python']}"
        for cost in found
    ]


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def counted() -> Iterator[Cost]:
    """All counted costs; those that need strace only where there is one."""
    with TemporaryDirectory(prefix="script-runner-costs-") as name:
        folder = Path(name)
        program = compiled(folder, "trivial", TRIVIAL) or shutil.which("sleep") or "/bin/sleep"
        with _started(folder / "small", configuration(folder, "small", [program, "$SECONDS"], {})) as site:
            yield from site.of_one_task()
            yield from site.system_calls(program)
            yield from site.processes()
        with _started(folder / "large", _large(folder)) as site:
            yield from site.growth()
    for name, code in IMPORTS.items():
        said = subprocess.run(
            [sys.executable, "-c", f"{code}, sys; print(len(sys.modules))"], capture_output=True, check=True
        )
        yield Cost(f"modules of the {name}", MODULES, int(said.stdout))


def _large(folder: Path) -> Path:
    """A configuration whose run copies the folder that it is told: a table for the results, a file beside it."""
    for rows in (FEW, MANY):
        (folder / str(rows)).mkdir()
        write_table(folder / str(rows) / "table.csv", rows)
        write_file(folder / str(rows) / "file.bin", rows * 40)
    results = {
        "kind": "file",
        "format": "csv",
        "input_path": "out/table.csv",
        "remapped_columns": remapped(COLUMNS),
    }
    outputs = {"results": results, "attachments": ["out/file.bin"]}
    return configuration(folder, "large", ["cp", "-rT", f"{folder}/$SECONDS", "$RUNDIR/out"], outputs)


@contextmanager
def _started(folder: Path, config: Path) -> Iterator["Site"]:
    folder.mkdir()
    with ExitStack() as stack:
        system = stack.enter_context(separate(config, folder, concurrency=2))
        store = stack.enter_context(redis.Redis.from_url(f"redis://{system.store}"))
        api = stack.enter_context(closing(Api(HOST, system.port)))
        yield Site(system, api, store)


@dataclass(frozen=True, slots=True)
class Site:
    """A server, a worker and a Redis, and what looks at them."""

    system: System
    api: Api
    store: Any

    def of_one_task(self) -> Iterator[Cost]:
        """What a trivial task costs Redis: one at a time, without a poll, and its document once."""
        self._run(WARMING_TASKS)
        before, size = self._commands(), self._log_bytes()
        self._run(TASKS)
        used = {name: (count - before.get(name, 0)) / TASKS for name, count in self._commands().items()}
        used.pop(LOOK)
        yield Cost("Redis, round trips", COMMANDS, sum(used.get(name, 0) for name in OUTER))
        yield Cost("Redis, commands, also inside scripts", COMMANDS, sum(used.values()))
        yield Cost("Redis, append-only file", BYTES, (self._log_bytes() - size) / TASKS)

    def system_calls(self, program: str) -> Iterator[Cost]:
        """System calls of server and worker a task, without those of the script itself."""
        if shutil.which("strace") is None:
            print("system calls are not counted: there is no strace on PATH")
            return
        own = {"worker": _traced([program, "0"]) * TRACED_TASKS}
        for process in self.system.processes:
            if process.name in WATCHED:
                calls = _traced(process, lambda: self._run(TRACED_TASKS)) - own.get(process.name, 0)
                yield Cost(f"system calls, {process.name}", CALLS, calls / TRACED_TASKS)

    def processes(self) -> Iterator[Cost]:
        yield Cost("processes", PROCESSES, len(self.system.processes))
        for process in self.system.processes:
            if process.name in WATCHED:
                yield Cost(f"threads, {process.name}", THREADS, process.threads)

    def growth(self) -> Iterator[Cost]:
        """How much higher memory rises for ten times the rows and a file ten times as large."""
        self.api.fetch(FEW)
        peaks: list[dict[str, float]] = []
        for rows in (FEW, MANY):
            for process in self.system.processes:
                process.forget_peak()
            self.api.fetch(rows)
            peaks.append({process.name: process.peak_mb for process in self.system.processes})
        for name in WATCHED:
            yield Cost(f"peak, {name}", MEGABYTES, peaks[1][name])
            yield Cost(f"peak growth, {name}", MEGABYTES, peaks[1][name] - peaks[0][name])

    def _run(self, count: int) -> None:
        """One task after the other; each is looked for in Redis, since polls would be counted."""
        for _ in range(count):
            task_id = self.api.made()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while self.store.execute_command(LOOK, f"{PREFIX}succeeded", task_id)[0] is None:
                if time.monotonic() > deadline:
                    raise SystemExit("a task did not succeed in time")
                time.sleep(0.002)
            self.api.document(task_id)

    def _commands(self) -> Mapping[str, int]:
        stats = self.store.info("commandstats")
        return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}

    def _log_bytes(self) -> int:
        return int(self.store.info("persistence")["aof_current_size"])


LOOK = "zmscore"
"""The command that looks for the end of a task: one that the project does not use, so that it can be left out."""


def _traced(subject: Process | list[str], work: Callable[[], None] = lambda: None) -> int:
    """How many system calls a process and its children make while ``work`` is done (strace(1))."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "calls"
        command = ["strace", "-f", "-c", "-o", str(report)]
        if isinstance(subject, list):
            subprocess.run([*command, *subject], check=True)
        else:
            with subprocess.Popen([*command, "-p", str(subject.pid)], stderr=subprocess.PIPE, text=True) as tracer:
                assert tracer.stderr
                if "attached" not in (line := tracer.stderr.readline()):
                    raise SystemExit(f"strace cannot look at a process: {line}")
                work()
                tracer.send_signal(signal.SIGINT)
        found = re.search(r"^100\.00 +\S+ +\S+ +(\d+).* total$", report.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("strace counted nothing")
    return int(found[1])
