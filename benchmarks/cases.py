"""The measures: the floor and ours in turn, round by round, so that both meet the same machine."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Aim, Figure
from benchmarks.material import Material
from benchmarks.system import HOST, System, cores

ROOT = Path(__file__).parent.parent
WARMING_TASKS = 20

Start = Callable[[Path, Path], AbstractContextManager[System]]
Rounds = dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    rounds: int = 5
    large_rounds: int = 3
    tasks: int = 1_000
    idle_tasks: int = 200
    entries: int = 10_000
    rows: int = 1_000_000
    file_bytes: int = 100_000_000
    connections: int = 32


QUICK = Sizes(rounds=2, large_rounds=1, tasks=100, idle_tasks=20, entries=1_000, rows=20_000, file_bytes=2_000_000)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measures need."""

    material: Material
    sizes: Sizes
    say: Callable[[str], None]

    # Each of these is a word of --only

    def memory(self, start: Start) -> Iterator[Figure]:
        """What an idle system holds that has run a few tasks."""
        with self._started(start, self.material.trivial) as system:
            self._load(system, "latency", tasks=WARMING_TASKS)
            self.say(f"{system.name}: idle memory")
            for process in system.processes:
                yield Figure(system.name, f"idle PSS, {process.name}", "MB", (process.pss_mb,))
            yield Figure(system.name, "idle PSS, all", "MB", (system.idle_mb,), aim=Aim("under", 110))

    def latency(self, start: Start) -> Iterator[Figure]:
        """From POST to the result, one trivial task at a time on an idle system."""
        with self._started(start, self.material.trivial) as system:
            self._load(system, "latency", tasks=WARMING_TASKS)
            found = self._rounds(
                system,
                "POST to result",
                floor=lambda: self._spawned(at_once=1),
                ours=lambda: self._load(system, "latency", tasks=self.sizes.idle_tasks),
            )
        for name, aim in (("p50", Aim("under", 6)), ("p99", None)):
            ours, floor = found[f"ours {name}"], found[f"floor {name}"]
            yield Figure(system.name, f"POST to result, {name}", "ms", ours, "spawn", floor, aim)

    def burst(self, start: Start) -> Iterator[Figure]:
        """Many trivial tasks at once: taken, run, and seen as done."""
        with self._started(start, self.material.trivial) as system:
            self._load(system, "burst", tasks=WARMING_TASKS, connections=2)
            found = self._rounds(
                system,
                f"{self.sizes.tasks:,} tasks at once",
                floor=lambda: {**self._spawned(at_once=cores()), "entries": self._entries_added(system)},
                ours=lambda: self._burst_and_cpu(system),
            )
        name = system.name
        ratio = Aim("at least", 0.5, of="ratio")
        yield Figure(
            name, "tasks/s", "/s", found["ours tasks_per_second"], "spawn", found["floor per_second"], ratio
        )
        yield Figure(name, "CPU a task, all", "ms", found["ours cpu_ms"], "spawn", found["floor cpu_ms"])
        for process in system.processes:
            yield Figure(name, f"CPU a task, {process.name}", "ms", found[f"ours cpu_ms {process.name}"])
        yield from self._submit_figures(name, "while tasks run", found)

    def submit(self, start: Start) -> Iterator[Figure]:
        """Many submissions at once to a server without a worker."""
        with self._started(start, self.material.trivial) as system:
            self._load(system, "submit", tasks=WARMING_TASKS, connections=2)
            found = self._rounds(
                system,
                f"{self.sizes.tasks:,} submissions",
                floor=lambda: {"entries": self._entries_added(system)},
                ours=lambda: self._load(
                    system, "submit", tasks=self.sizes.tasks, connections=self.sizes.connections
                ),
            )
        yield from self._submit_figures(system.name, "without a worker", found)

    def rows(self, start: Start) -> Iterator[Figure]:
        """A large table, from POST until all its rows are here."""
        with self._started(start, self.material.rows) as system:
            found = self._rounds(
                system,
                f"{self.sizes.rows:,} rows",
                floor=lambda: self._floor("csv", self.material.table),
                ours=lambda: self._fetch_and_peaks(system),
                count=self.sizes.large_rounds,
            )
        yield from self._large_figures(system, f"{self.sizes.rows:,} rows", "csv.reader", found)

    def attachment(self, start: Start) -> Iterator[Figure]:
        """A large file, from POST until all its base64 is here."""
        with self._started(start, self.material.attachment) as system:
            found = self._rounds(
                system,
                "attachment",
                floor=lambda: self._floor("base64", self.material.file),
                ours=lambda: self._fetch_and_peaks(system),
                count=self.sizes.large_rounds,
            )
        yield from self._large_figures(system, f"{self.sizes.file_bytes / 1e6:g} MB file", "base64", found)

    # One round

    def _rounds(
        self,
        system: System,
        title: str,
        *,
        floor: Callable[[], dict[str, float]],
        ours: Callable[[], dict[str, float]],
        count: int | None = None,
    ) -> Rounds:
        """The values of all rounds, under the name of each with ``floor`` or ``ours`` before it."""
        values: defaultdict[str, list[float]] = defaultdict(list)
        total = count or self.sizes.rounds
        for number in range(1, total + 1):
            self.say(f"{system.name}: {title}, round {number} of {total}")
            for side, measure in (("floor", floor), ("ours", ours)):
                for name, value in measure().items():
                    values[f"{side} {name}"].append(value)
        return {name: tuple(found) for name, found in values.items()}

    def _spawned(self, *, at_once: int) -> dict[str, float]:
        count = self.sizes.idle_tasks if at_once == 1 else self.sizes.tasks
        return self._floor("spawn", self.material.program, count=count, at_once=at_once)

    def _entries_added(self, system: System) -> float:
        sizes = self.sizes
        return self._floor("xadd", system.store, count=sizes.entries, at_once=sizes.connections)["per_second"]

    def _burst_and_cpu(self, system: System) -> dict[str, float]:
        before = [process.cpu_seconds for process in system.processes]
        found = self._load(system, "burst", tasks=self.sizes.tasks, connections=self.sizes.connections)
        total = 0.0
        for process, earlier in zip(system.processes, before, strict=True):
            milliseconds = (process.cpu_seconds - earlier) * 1000 / self.sizes.tasks
            found[f"cpu_ms {process.name}"] = milliseconds
            total += milliseconds
        return {**found, "cpu_ms": total}

    def _fetch_and_peaks(self, system: System) -> dict[str, float]:
        for process in system.processes:
            process.forget_peak()
        found = self._load(system, "fetch")
        return {**found, **{f"peak {process.name}": process.peak_mb for process in system.processes}}

    # The processes that load and the floors

    def _load(self, system: System, measure: str, **options: int) -> dict[str, float]:
        return _said("wire", measure, host=HOST, port=system.port, **options)

    def _floor(self, floor: str, subject: str | Path, **options: int) -> dict[str, float]:
        return _said("floors", floor, str(subject), **options)

    @contextmanager
    def _started(self, start: Start, config: Path) -> Iterator[System]:
        with (
            TemporaryDirectory(prefix="script-runner-benchmark-") as folder,
            start(config, Path(folder)) as system,
        ):
            yield system

    # Figures that two measures share

    def _submit_figures(self, system: str, when: str, found: Rounds) -> Iterator[Figure]:
        many = f"at {self.sizes.connections}, {when}"
        rates = found["ours submits_per_second"]
        yield Figure(system, f"submits/s {many}", "/s", rates, "XADD", found["floor entries"])
        for name in ("p50", "p99"):
            yield Figure(system, f"submit {name} {many}", "ms", found[f"ours {name}"])

    def _large_figures(self, system: System, what: str, floor_name: str, found: Rounds) -> Iterator[Figure]:
        seconds, name = found["floor seconds"], system.name
        yield Figure(name, f"{what}, POST to downloaded", "s", found["ours seconds"], floor_name, seconds)
        yield Figure(name, f"{what}, POST to first byte", "s", found["ours first_byte"])
        for process in system.processes:
            if process.name == "guardian":
                continue
            peaks = found[f"ours peak {process.name}"]
            if process.name == "worker":
                floor = found["floor peak_mb"]
                yield Figure(name, f"{what}, peak of worker", "MB", peaks, floor_name, floor, Aim("under", 150))
            else:
                yield Figure(name, f"{what}, peak of {process.name}", "MB", peaks)


MEASURES = ("memory", "latency", "burst", "submit", "rows", "attachment")


def _said(module: str, *words: str, **options: int | str) -> dict[str, float]:
    """What one of our own processes prints; SystemExit if it failed. It does not outlive this call."""
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *words, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is to reach us alone
    )
    with process:
        try:
            said = process.communicate()[0]
        finally:
            process.kill()
    if process.returncode:
        raise SystemExit(f"benchmarks.{module} {' '.join(words)} failed")
    found: dict[str, float] = json.loads(said)
    return found
