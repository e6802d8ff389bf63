"""A task, its states and what came of it: frozen values, and the named changes from one to the next.

::

    queued ──started──► running ──finished──► succeeded | failed | timed_out | cancelled | lost
       ▲                   │
       └─────released──────┘   (worker lost with attempts left, or drained)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class State(StrEnum):
    """Where a task is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def is_final(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, slots=True)
class Artifact:
    """One kept file: its public ``name``, ``size`` in bytes, and the ``key`` it is stored under."""

    name: str
    size: int
    media_type: str
    sha256: str
    key: str


@dataclass(frozen=True, slots=True)
class Results:
    """The kept results: a JSON document, one row a line if it is a list of objects.

    ``rows`` and ``columns`` are None when the document is not a list of objects.
    """

    artifact: Artifact
    rows: int | None = None
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended and what it left behind."""

    state: State
    exit_code: int | None = None
    error: str | None = None
    results: Results | None = None
    files: tuple[Artifact, ...] = ()
    logs: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One request to run the script. Times are seconds since the epoch, by the store's clock."""

    id: str
    owner: str
    arguments: Mapping[str, str | tuple[str, ...]]
    max_attempts: int = 1
    retention_seconds: float = 86_400
    state: State = State.QUEUED
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    attempt: int = 0
    is_cancelling: bool = False
    outcome: Outcome | None = None

    def started(self, *, worker: str, at: float) -> "Task":
        """The task as ``worker`` has just claimed it, one attempt further."""
        return replace(self, state=State.RUNNING, worker=worker, attempt=self.attempt + 1, started_at=at)

    def finished(self, outcome: Outcome, *, at: float) -> "Task":
        """The task in its final state."""
        return replace(self, state=outcome.state, outcome=outcome, finished_at=at)

    def released(self) -> "Task":
        """The task back in the queue."""
        return replace(self, state=State.QUEUED, worker=None, started_at=None)

    def is_held_by(self, other: "Task") -> bool:
        """Whether ``other`` names the run that holds this task now: same worker, same attempt (the fence)."""
        return self.state is State.RUNNING and self.worker == other.worker and self.attempt == other.attempt
