"""What the core needs from outside, in its own words: tasks, leases, logs, artifacts, an executor, an identity."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import quote

from script_runner.streams import LogChunk
from script_runner.task import Outcome, State, Task

if TYPE_CHECKING:
    import asyncio

BAD_CURSOR = "The cursor is not one that was given out."


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. ``owner`` is the name tasks are kept under."""

    owner: str


ANONYMOUS = Identity(owner="anonymous")


@dataclass(frozen=True, slots=True)
class Page:
    """Some tasks, newest first, and where the next page begins (None at the end)."""

    tasks: tuple[Task, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: exact arguments and environment, and the folder that names and marks the run."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    run_folder: Path


@dataclass(frozen=True, slots=True)
class Exit:
    """How the script's own process ended: its exit ``code``, or minus the number of the signal."""

    code: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How many tasks may wait and run at once; None is no limit."""

    max_queued: int | None = None
    max_queued_per_caller: int | None = None
    max_running: int | None = None
    max_running_per_caller: int | None = None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What a task store tells about itself.

    ``sync``: how often it forces its file to disk (None: it does not say). ``bytes_most`` is 0 without a limit.
    ``skew_seconds``: how far its clock is ahead of ours.
    """

    product: str
    version: tuple[int, ...]
    is_append_only: bool
    sync: str | None
    write_failure: str
    eviction: str
    bytes_used: int
    bytes_most: int
    replicas: int
    skew_seconds: float
    latency_seconds: float


LATELY_SECONDS = 3_600
"""How far back tasks that ended are counted in ``Figures``."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How much there is of everything.

    ``queued`` waits for a worker or for a limit, ``scheduled`` for its time. ``backlog``: tasks that may start
    now, and those that run. ``oldest_seconds``: how long the oldest of the queued has waited, 0 without one.
    ``lately``: of the tasks that are kept, how many ended in which state in the last ``LATELY_SECONDS``.
    ``versions``: how many workers run which version of this package, as far as they say so.
    """

    queued: int = 0
    scheduled: int = 0
    running: int = 0
    backlog: int = 0
    oldest_seconds: float = 0.0
    workers: int = 0
    slots: int = 0
    lately: Mapping[State, int] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Word:
    """What a worker hears of the tasks it runs.

    Ids that are to be ``cancelled``; ids ``taken`` from it; and tasks that are ``left``: by the ledger it holds
    them, but it does not run them.
    """

    cancelled: Sequence[str] = ()
    taken: Sequence[str] = ()
    left: Sequence[Task] = ()


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A task that was asked to stop, and whether it has ended by that very call."""

    task: Task
    has_ended: bool


class Tasks(Protocol):
    """The ledger and queue. Every method raises Error(UNAVAILABLE) while the store is away.

    A record that a newer version wrote is left alone: not claimed, not settled, not removed, not told.
    """

    async def add(self, task: Task) -> Task:
        """Queue ``task`` durably, once per id and per idempotency key of its owner; return the one that stands.

        Error(KEY_REUSED) when the key stands for another request; Error(QUEUE_FULL) or Error(TOO_MANY_QUEUED)
        when a limit is reached.
        """
        ...

    async def get(self, task_id: str) -> Task | None:
        """The task, with its place while it waits; Error(UNAVAILABLE) if only a newer version understands it."""
        ...

    async def list(self, owner: str, *, states: Sequence[State], cursor: str | None, limit: int) -> Page:
        """Up to ``limit`` of the owner's tasks, newest first; all states when ``states`` is empty.

        What a listing does not tell is left out of them: arguments, files, place.
        """
        ...

    async def remove(self, task_id: str) -> bool:
        """Forget a task that is not running; False (and nothing done) while it runs."""
        ...

    async def cancel(self, task_id: str) -> Cancelled | None:
        """A queued task becomes cancelled at once; the worker of a running one is told; None if unknown."""
        ...

    async def claim(
        self, worker: str, *, limit: int, wait_seconds: float, on_ask: Callable[[], None] = lambda: None
    ) -> Sequence[Task]:
        """Start up to ``limit`` queued tasks for ``worker``; wait for one if there is none.

        ``on_ask`` is called before each time that the queue is asked, so after the wait.
        """
        ...

    async def wait_for_word(self, worker: str, *, seconds: float) -> None:
        """Return when a running task of ``worker`` was asked to stop, or after this time."""
        ...

    async def hear(self, worker: str, running: Sequence[Task]) -> Word:
        """What ``worker``, which runs these, has to know of them."""
        ...

    async def finish(self, task: Task, outcome: Outcome) -> bool:
        """Record the outcome, once; False when this run (worker, attempt) no longer holds the task."""
        ...

    async def release(self, task: Task, *, counted: bool) -> State | None:
        """Give a held task back: the state it has come into by that; None when this run no longer holds it.

        It is queued again, or final if it may not run again.
        """
        ...

    async def reap(self) -> Sequence[Task]:
        """Settle what dead workers held: each task back in the queue or lost. Returns those it changed, as it left
        them.

        Does also what the clock brings: tasks whose time has come may start, those that waited too long end. Of
        the latter it returns also those that a claim of this process met and ended since the last call.
        """
        ...

    async def expired(self, *, limit: int, counts: Mapping[State, int] | None = None) -> Sequence[str]:
        """Ids of finished tasks past their retention, or beyond the most that are kept of a state; oldest first.

        About ``limit`` of each kind.
        """
        ...

    async def workers(self) -> Mapping[str, int]:
        """How many workers hold a valid lease, by the configuration that they have loaded."""
        ...

    async def figures(self) -> Figures:
        """How much there is of everything; cheap, however many tasks there are."""
        ...

    async def product(self) -> str:
        """Which store it is, and its version."""
        ...

    async def leave(self, worker: str) -> None:
        """End the lease of ``worker`` at once; what it still held is settled by the next ``reap``."""
        ...

    async def check(self) -> Sequence[str]:
        """What about the store endangers tasks, in sentences; Error(INVALID_CONFIG) if it cannot be used."""
        ...

    async def close(self) -> None: ...


class Lease(Protocol):
    """The worker's right to hold tasks. Blocking, for a thread of its own."""

    def renew(
        self, worker: str, *, seconds: float, slots: int = 1, configuration: str = "", version: str = ""
    ) -> bool:
        """Hold the lease for ``seconds`` from now; False when it had been taken away in between.

        ``slots`` says how many tasks the worker runs at once, ``configuration`` what it has loaded, ``version``
        which version of this package it is.
        """
        ...

    def close(self) -> None: ...


class Logs(Protocol):
    """The last part of what running scripts say. A tail goes with its run: then whole logs are artifacts."""

    async def append(self, task: Task, stream: str, chunk: LogChunk) -> None:
        """Add a chunk of a stream; what was added before changes nothing, nor what a run says that is given up."""
        ...

    async def read(self, task_id: str, stream: str, *, offset: int, limit: int) -> LogChunk:
        """What is there from ``offset``; starts later when the beginning is no longer kept."""
        ...

    async def close(self) -> None: ...


MOVED, ENDED, CLOSED = "moved", "ended", "closed"
"""Words of what happens: a task is in another state; and now it is final, or gone; nothing more will be told."""

Tell = Callable[[Collection[str]], None]
"""Takes words: those above, and the names of ``STREAMS`` of which there is more to read."""


class Changes(Protocol):
    """Tells at once of what happens to tasks. It carries no data: who is told reads the truth from its port."""

    def watch(self, task_id: str, tell: Tell, *, logs: bool = False) -> AbstractAsyncContextManager[None]:
        """Call ``tell`` with what happens to this task from the moment it is entered until it is left.

        Streams are told for sure with ``logs`` alone.
        A word may come twice, and late when the store was away or the one who acts tells nobody: by ten seconds
        at most from when it can be known. None is lost. Raises nothing while the store is away.
        """
        ...

    def dismiss(self) -> None:
        """Tell all who watch, now and from now on, that nothing more will be told (CLOSED)."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """What the store knows of bytes it took in."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class GivenFile:
    """The bytes of a file in pieces; a store may take the file itself, since its owner is done with it."""

    file: BinaryIO

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.file.read(1 << 20), b"")


@dataclass(frozen=True, slots=True)
class Label:
    """What a download says of a file: the ``name`` that a script gave it, and its media type."""

    name: str
    media_type: str

    @property
    def disposition(self) -> str:
        """Always a download, never shown in place, under its own name (RFC 6266)."""
        return f"attachment; filename*=UTF-8''{quote(self.name.rpartition('/')[2], safe='')}"


class Artifacts(Protocol):
    """Files by key. A key is ``task/run/number``: it never holds a name from outside."""

    async def save(self, key: str, chunks: Iterable[bytes], label: Label | None = None) -> Saved:
        """Keep the bytes under ``key``, whole or not at all. ``chunks`` is read in another thread.

        A ``GivenFile`` may be gone from where it was. A store that hands out files itself (``url_for``) keeps
        ``label`` with them.
        """
        ...

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from ``start`` up to ``stop``, in pieces; Error(NOT_FOUND) if there is no such key."""
        ...

    async def url_for(self, key: str, *, seconds: int) -> str | None:
        """Where anybody can fetch the file for so long without asking us; None if this store cannot say."""
        ...

    async def remove(self, prefix: str) -> None:
        """Remove all that was kept for a task id. Nothing there is no error."""
        ...

    async def check(self) -> None:
        """Raise Error(UNAVAILABLE) when nothing could be saved now."""
        ...


class Process(Protocol):
    """A started script and everything it started."""

    exit: "asyncio.Future[Exit]"
    """The end of the script's own process, to be waited for and not to be cancelled."""

    @property
    def stdout(self) -> BinaryIO:
        """What it has said so far; another file may take its place while it runs."""
        ...

    @property
    def stderr(self) -> BinaryIO: ...

    async def wait(self) -> Exit:
        """Wait until the script's own process ends."""
        ...

    async def stop(self, *, grace_seconds: float) -> Exit:
        """TERM to the whole group, the grace, then KILL."""
        ...

    def kill(self) -> None:
        """KILL to the whole group, now."""
        ...

    async def end(self) -> None:
        """Kill what the script left running, and let go of it. Its streams stay readable."""
        ...

    def close(self) -> None:
        """Close the streams."""
        ...


class Executor(Protocol):
    """Starts scripts that cannot outlive this worker."""

    def watch(self, run_folder: Path) -> None:
        """Note a run folder before it is made: should this worker die, it goes, and what runs in it."""
        ...

    def forget(self, run_folder: Path) -> None:
        """Strike out a run folder that is gone; one whose script could not be ended stays noted."""
        ...

    def discard(self, run_folder: Path) -> None:
        """Remove a run folder in which nothing was left, in another thread, and then strike it out."""
        ...

    async def start(self, command: Command) -> Process:
        """Start the command. Error(BAD_OUTPUT) says what is wrong with it, OSError that the machine cannot now.

        Error(UNAVAILABLE) after the deadline of ``hold_until``: nobody would end the script.
        """
        ...

    def hold_until(self, deadline: float) -> None:
        """Kill everything if not called again before ``deadline`` (seconds of the boot-time clock)."""
        ...

    async def close(self) -> None: ...


class Shelter(Protocol):
    """Keeps a worker from being chosen when a platform has more of them than it needs.

    Both return at once and never raise: a platform that cannot be told costs a script nothing but its shelter.
    """

    def hold(self) -> None:
        """From now on scripts run here. To say it again changes nothing."""
        ...

    def release(self) -> None:
        """Nothing runs here any more, for now."""
        ...


class AuthProvider(Protocol):
    """Decides who asks. Found by entry point ``script_runner.auth``; built from the environment."""

    async def identify(self, authorization: Sequence[str]) -> Identity:
        """The identity behind the request's Authorization headers, or Error(UNAUTHENTICATED)."""
        ...


class Watch(Protocol):
    """Sees what goes on here, and counts it. It never fails and never waits."""

    def answered(self, method: str, route: str, status: int, *, seconds: float) -> None:
        """A request was answered; ``route`` is its template, never the path that was asked for."""
        ...

    def started(self, task: Task) -> None:
        """A task was started here."""
        ...

    def finished(self, outcome: Outcome, *, seconds: float | None = None) -> None:
        """A task has ended, once; ``seconds`` is how long its script ran, if it ran here."""
        ...

    def store_failed(self, store: str) -> None:
        """The ``redis`` or the ``artifacts`` could not do what was asked."""
        ...

    def waiting(self, more: int) -> None:
        """So many more callers wait here for what happens to a task; fewer when it is negative."""
        ...


class Unwatched:
    """Watch of what nobody watches."""

    def answered(self, method: str, route: str, status: int, *, seconds: float) -> None:
        """Nothing is counted."""

    def started(self, task: Task) -> None:
        """Nothing is counted."""

    def finished(self, outcome: Outcome, *, seconds: float | None = None) -> None:
        """Nothing is counted."""

    def store_failed(self, store: str) -> None:
        """Nothing is counted."""

    def waiting(self, more: int) -> None:
        """Nothing is counted."""


Attributes = Mapping[str, str | float]
NO_ATTRIBUTES: Attributes = MappingProxyType({})


class Span(Protocol):
    """A part of a trace that has begun."""

    @property
    def traceparent(self) -> str | None:
        """Under which its own parts are to begin (W3C Trace Context); None outside of any trace."""
        ...

    def end(
        self, attributes: Attributes = NO_ATTRIBUTES, *, is_error: bool = False, at: float | None = None
    ) -> None:
        """It is over: now, or ``at`` (epoch seconds)."""
        ...


class Traces(Protocol):
    """Tells where time went, across processes. It never fails and never waits."""

    def begin(self, name: str, *, parent: str | None, kind: str = "internal", at: float | None = None) -> Span:
        """A span under ``parent``, or a trace of its own; ``kind`` is server, consumer or internal."""
        ...

    async def close(self) -> None:
        """Send what is not yet sent; give up soon."""
        ...


@dataclass(frozen=True, slots=True)
class PassedOn:
    """A span that is not recorded: what comes after it belongs where it belongs itself."""

    traceparent: str | None

    def end(
        self, attributes: Attributes = NO_ATTRIBUTES, *, is_error: bool = False, at: float | None = None
    ) -> None:
        """Nothing is recorded."""


class Untraced:
    """Traces that nobody records; what callers say of theirs is passed on."""

    def begin(self, name: str, *, parent: str | None, kind: str = "internal", at: float | None = None) -> Span:  # noqa: ARG002 - as the port has it
        return PassedOn(parent)

    async def close(self) -> None:
        """Nothing is to be sent."""
