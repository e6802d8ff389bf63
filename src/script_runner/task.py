"""A task, its states and what came of it: frozen values, and the named changes from one to the next.

::

    queued ──started──► running ──finished──► succeeded | failed | timed_out | cancelled | lost
       ▲                   │
       └─────released──────┘   (worker lost with attempts left, or drained)
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct, field
from msgspec.structs import replace


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


class Artifact(Struct, frozen=True):
    """One kept file: its public ``name``, ``size`` in bytes, and the ``key`` it is stored under."""

    name: str
    size: int
    media_type: str
    sha256: str
    key: str


class Results(Struct, frozen=True):
    """The kept results: a JSON document, one row a line if it is a list of objects.

    ``rows`` and ``columns`` are None when the document is not a list of objects, or one of too many names.
    """

    artifact: Artifact
    rows: int | None = None
    columns: tuple[str, ...] | None = None


class Outcome(Struct, frozen=True):
    """How a run ended and what it left behind."""

    state: State
    exit_code: int | None = None
    error: str | None = None
    results: Results | None = None
    files: tuple[Artifact, ...] = ()
    logs: tuple[Artifact, ...] = ()

    @property
    def reason(self) -> str:
        """Why it ended so, in one of a few words (docs/operating.md)."""
        match self.state:
            case State.TIMED_OUT:
                return "run" if self.exit_code is not None else "queue"
            case State.CANCELLED:
                return "caller"
            case State.LOST:
                return "worker"
            case State.FAILED if self.exit_code is None:
                return "start"
            case State.FAILED if self.exit_code:
                return "exit" if self.exit_code > 0 else "signal"
            case State.FAILED:
                return "output"
            case _:
                return "none"


class Place(Struct, frozen=True):
    """Where a task stands among those that wait: 1 is next; the seconds until its start, None if nobody knows."""

    position: int
    expected_wait: float | None = None


class Task(Struct, frozen=True):
    """One request to run the script. Times are seconds since the epoch, by the store's clock.

    ``configuration`` is the fingerprint of the one it was accepted under. ``retention`` overrules
    ``retention_seconds`` for some final states. ``idempotency_key`` and ``fingerprint`` tell a repeated request
    from another. ``request_id`` and ``traceparent`` (W3C Trace Context) say with which request it came.
    ``attempt`` counts the starts that count, ``run`` every one: worker and run name the holder.
    """

    id: str
    owner: str
    arguments: Mapping[str, str | tuple[str, ...]]
    configuration: str = ""
    max_attempts: int = 1
    retention_seconds: float = 86_400
    retention: Mapping[State, float] = field(default_factory=dict)
    priority: int = 0
    not_before: float | None = None
    expires_in_seconds: float | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""
    request_id: str | None = None
    traceparent: str | None = None
    state: State = State.QUEUED
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    attempt: int = 0
    run: int = 0
    is_cancelling: bool = False
    outcome: Outcome | None = None
    place: Place | None = None

    def started(self, *, worker: str, at: float) -> "Task":
        """The task as ``worker`` has just claimed it, one attempt further."""
        attempt, run = self.attempt + 1, self.run + 1
        return replace(self, state=State.RUNNING, worker=worker, attempt=attempt, run=run, started_at=at)

    def finished(self, outcome: Outcome, *, at: float) -> "Task":
        """The task in its final state."""
        return replace(self, state=outcome.state, outcome=outcome, finished_at=at)

    def released(self) -> "Task":
        """The task back in the queue."""
        return replace(self, state=State.QUEUED, worker=None, started_at=None)

    def listed(self) -> "Task":
        """The task as a listing tells of it: without what can be large."""
        outcome = Outcome(self.outcome.state, self.outcome.exit_code) if self.outcome else None
        return replace(self, arguments={}, outcome=outcome)

    def is_held_by(self, other: "Task") -> bool:
        """Whether ``other`` names the run that holds this task now: same worker, same run (the fence)."""
        return self.state is State.RUNNING and self.worker == other.worker and self.run == other.run

    @property
    def due_at(self) -> float:
        """From when on it could have been started the first time."""
        return max(self.created_at, self.not_before or 0.0)

    def keep_seconds(self, state: State) -> float:
        """How long the task is kept once it has ended in ``state``."""
        return self.retention.get(state, self.retention_seconds)
