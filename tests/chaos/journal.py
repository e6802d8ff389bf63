"""What happened in an episode, in order, and what should not have."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.ledger import now

COLUMNS = ("lost", "doubled", "orphans", "left over", "other")
"""The ways to break the promise."""

AT_THE_END = "(end of an episode)"


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that was not kept."""

    column: str
    text: str
    hurt: str
    """The kind of the hurt that had begun last."""

    episode: int


@dataclass(slots=True)
class Tally:
    """What is counted about one kind of hurt."""

    times: int = 0
    running: int = 0
    """How many tasks were running as it began, summed up."""


@dataclass(slots=True)
class Figures:
    """What is measured over all episodes."""

    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    violations: list[Violation] = field(default_factory=list)
    tasks: int = 0
    states: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    starts: int = 0
    noticed: list[float] = field(default_factory=list)
    """Seconds from the kill of a worker until its task no longer runs under it."""

    thawed: list[float] = field(default_factory=list)
    """Seconds that scripts lived on after a pause of their whole machine beyond the lease."""

    followed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How many followed a task to its end, by their kind."""

    connections: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How often those had to ask."""

    unacknowledged: int = 0
    """Tasks that nobody was told of."""


class Journal:
    """The events of one episode, in a file and in figures."""

    def __init__(self, file: Path, episode: int, figures: Figures) -> None:
        self._file = file.open("a", buffering=1)
        self._episode = episode
        self._lock = threading.Lock()
        self._hurts: list[tuple[float, str]] = []
        self._drained: set[str] = set()
        self._killed_scripts: set[str] = set()
        self._frozen: dict[int, float] = {}
        self.figures = figures
        self.violations: list[Violation] = []

    def note(self, text: str) -> None:
        with self._lock:
            self._file.write(f"{now():.3f} {time.strftime('%H:%M:%S')} {text}\n")

    def hurt(self, kind: str, running: int) -> None:
        """A hurt begins."""
        with self._lock:
            self._hurts.append((now(), kind))
            tally = self.figures.tallies[kind]
            tally.times += 1
            tally.running += running

    def violation(self, column: str, text: str, *, at: float | None = None) -> None:
        """A promise was broken, at this time of the boot clock if it is known."""
        self.note(f"VIOLATION {column}: {text}")
        with self._lock:
            kinds = [kind for begun, kind in self._hurts if at is not None and begun <= at]
            violation = Violation(column, text, kinds[-1] if kinds else AT_THE_END, self._episode)
            self.violations.append(violation)
            self.figures.violations.append(violation)

    def noticed(self, seconds: float) -> None:
        with self._lock:
            self.figures.noticed.append(seconds)

    def thawed(self, seconds: float) -> None:
        with self._lock:
            self.figures.thawed.append(seconds)

    def drained(self, life: str) -> None:
        """A life of a worker was asked to stop: what it gives back is not counted."""
        with self._lock:
            self._drained.add(life)

    def was_drained(self, life: str) -> bool:
        return life in self._drained

    def script_killed(self, task_id: str) -> None:
        with self._lock:
            self._killed_scripts.add(task_id)

    def was_script_killed(self, task_id: str) -> bool:
        return task_id in self._killed_scripts

    def froze(self, pid: int, until: float) -> None:
        """A process stood still with its machine, and may not have died before this time."""
        with self._lock:
            self._frozen[pid] = until

    def was_frozen(self, pid: int, at: float) -> bool:
        return at <= self._frozen.get(pid, 0.0)

    def close(self) -> None:
        self._file.close()
