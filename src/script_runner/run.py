"""One run of a script: folder, argv, process, artifacts, results, outcome."""

import asyncio
import base64
import errno
import fcntl
import functools
import logging
import mimetypes
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Final

from msgspec.structs import replace

from script_runner import command, journal, results
from script_runner.errors import Code, Error
from script_runner.ports import Artifacts, Command, Executor, GivenFile, Label, Logs, Process
from script_runner.spec import Spec
from script_runner.streams import STREAMS, LogChunk
from script_runner.task import Artifact, Outcome, Results, State, Task

FOLLOW_SECONDS: Final = 0.25
"""How often a script that runs is looked at: its output's size, and what is new in it."""

FOLLOW_BYTES: Final = 64 * 1024
ERROR_BYTES: Final = 4_000
ERROR_LINES: Final = 20
MAX_FILES: Final = 1_000

_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2): share the blocks of a file where the file system can."""

_log = logging.getLogger("script_runner.run")


class Stop(Enum):
    """Why a run is ended from outside."""

    CANCELLED = "cancelled"
    DRAINED = "drained"
    LAPSED = "lapsed"


class Halt:
    """Asks a run to end, for the first reason that is given; that the lease has lapsed overrules any other."""

    def __init__(self) -> None:
        self.asked: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        self._has_lapsed = False

    @property
    def reason(self) -> Stop | None:
        """Why it is to end; None while it is not."""
        if self._has_lapsed:
            return Stop.LAPSED
        return self.asked.result() if self.asked.done() else None

    def ask(self, reason: Stop) -> None:
        self._has_lapsed = self._has_lapsed or reason is Stop.LAPSED
        if not self.asked.done():
            self.asked.set_result(reason)


class GivenUp(Enum):
    """How far a run came that has no outcome."""

    UNSTARTED = "unstarted"
    STARTED = "started"


class End(Enum):
    """Why a run ended by itself, or by a limit of the configuration."""

    EXITED = "exited"
    TIMED_OUT = "timed out"
    FLOODED = "flooded"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every run needs: the script, the environment it inherits, and the adapters.

    ``rundir`` is the parent of run folders where the configuration names none.
    """

    spec: Spec
    inherited: Mapping[str, str]
    executor: Executor
    artifacts: Artifacts
    logs: Logs
    rundir: str = "."


async def run(task: Task, workshop: Workshop, halt: Halt) -> Outcome | GivenUp:
    """Run the script of ``task`` to its outcome, if it is not given up.

    That is so when it is drained, when the lease lapses, and when it is to end before its script was started.
    Error(UNAVAILABLE) means that the script was not started, because the machine is short of something now.
    """
    try:
        async with _run_folder(workshop) as folder:
            return await _run_in(folder, task, workshop, halt)
    except Error as error:
        if error.code is Code.UNAVAILABLE:
            raise
        return Outcome(State.FAILED, error=error.message)
    except OSError as error:
        _log.warning("run of task %s: %s", task.id, error, extra=journal.of_task(task.id))
        return Outcome(State.FAILED, error=f"The worker could not prepare the run: {error.strerror}.")


@contextmanager
def _machine_permitting() -> Iterator[None]:
    """What is said only by a machine that is short of something at the moment is no fault of the task."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
            raise Error(Code.UNAVAILABLE, f"The worker cannot start a script now: {error.strerror}.") from error
        raise


async def _run_in(folder: Path, task: Task, workshop: Workshop, halt: Halt) -> Outcome | GivenUp:
    if halt.reason:  # while the folder was made, which a large base folder makes long
        return GivenUp.UNSTARTED
    with _machine_permitting():
        process = await workshop.executor.start(_command(folder, task, workshop))
    try:
        end = await _until_end(process, task, workshop, halt)
        await process.end()
        if end in (Stop.DRAINED, Stop.LAPSED):
            return GivenUp.STARTED
        return await _collect(folder, process, end, task, workshop)
    finally:
        process.kill()
        try:
            await process.end()
        finally:
            process.close()


def _command(folder: Path, task: Task, workshop: Workshop) -> Command:
    spec = workshop.spec
    values = command.values(spec, task.arguments, run_folder=str(folder), task_id=task.id)
    if unknown := command.unknown(spec, values):
        names = ", ".join(f"${name}" for name in unknown)
        message = (
            f"The task was accepted under another configuration, without a value for {names}. Submit it again."
        )
        raise Error(Code.BAD_OUTPUT, message)
    inherited = workshop.inherited
    if task.traceparent:  # for scripts that trace themselves (OpenTelemetry, environment variables as carriers)
        inherited = {**inherited, "TRACEPARENT": task.traceparent}
    return Command(
        argv=command.render(spec.command, values),
        environment=command.environment(inherited, values),
        run_folder=folder,
    )


# The run folder


@asynccontextmanager
async def _run_folder(workshop: Workshop) -> AsyncIterator[Path]:
    spec, executor = workshop.spec, workshop.executor
    folder = _new_folder(spec.command_rundir or workshop.rundir)
    executor.watch(folder)
    try:
        with _machine_permitting():
            _make_folder(folder)
        if spec.command_rundir_base is not None:
            await asyncio.to_thread(_copy_base, Path(spec.command_rundir_base), folder)
        _make_out(folder)
        yield folder
    finally:
        if not spec.debug and _is_unused(folder):
            executor.discard(folder)
        else:
            if not spec.debug:
                await asyncio.to_thread(_remove_folder, folder)
            executor.forget(folder)


def _new_folder(rundir: str) -> Path:
    """A name that is not taken; the folder itself is made once the executor knows of it."""
    parent = os.path.join(os.getcwd(), rundir)  # noqa: PTH109, PTH118 - on every run's way, as below
    while os.path.lexists(folder := f"{parent}/results-{_new_name()}"):
        pass
    return Path(folder)


def _new_name() -> str:
    """Eight characters, as tempfile makes them."""
    return base64.b32encode(os.urandom(5)).decode().lower()


def _make_folder(folder: Path) -> None:
    try:
        os.mkdir(folder, mode=0o700)  # noqa: PTH102
    except FileNotFoundError:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)


def _make_out(folder: Path) -> None:
    """The folder that RUNDIR's users write to; the base folder may have brought it."""
    if not os.path.isdir(out := f"{folder}/out"):  # noqa: PTH112
        os.mkdir(out)  # noqa: PTH102


def _is_unused(folder: Path) -> bool:
    """Whether a script has left nothing in its folder."""
    try:
        return os.listdir(folder) == ["out"] and not os.listdir(f"{folder}/out")  # noqa: PTH208 - on every run's way
    except OSError:
        return False


def _copy_base(base: Path, folder: Path) -> None:
    if not base.is_dir():
        raise Error(Code.BAD_OUTPUT, "The base folder of the run (command_rundir_base) is not there.")
    try:
        shutil.copytree(base, folder, symlinks=True, copy_function=_clone, dirs_exist_ok=True)
    except shutil.Error as error:
        _log.warning("base folder: %s", error)
        raise Error(Code.BAD_OUTPUT, "The base folder of the run could not be copied whole.") from None
    folder.chmod(0o700)


def _clone(source: str, target: str) -> None:
    if not Path(source).is_file():  # a FIFO would hold us up for ever, a device might never end
        raise shutil.SpecialFileError(f"{source} is not a regular file")
    try:
        with open(source, "rb") as old, open(target, "wb") as new:  # noqa: PTH123 - copytree hands texts
            try:
                fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            except OSError:
                shutil.copyfileobj(old, new, 1 << 20)
        shutil.copystat(source, target)
    except OSError as error:
        message = f"The base folder of the run could not be copied whole: {error.strerror}."
        raise Error(Code.BAD_OUTPUT, message) from error


def _remove_folder(folder: Path) -> None:
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            _open_up(folder)
            shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.warning("run folder %s could not be removed", folder)


def _open_up(folder: Path) -> None:
    """Give back the right to remove what is inside, which a script may have taken from its own folders."""
    with suppress(OSError):
        folder.chmod(0o700)
    for parent, names, _ in os.walk(folder):
        for inner in (Path(parent, name) for name in names):
            with suppress(OSError):
                if not inner.is_symlink():
                    inner.chmod(0o700)


# While it runs


async def _until_end(process: Process, task: Task, workshop: Workshop, halt: Halt) -> End | Stop:
    """Wait for the end of the script, whatever brings it about; it is over when this returns."""
    spec = workshop.spec
    clock = asyncio.get_running_loop().time
    timeout_at = None if spec.timeout_seconds is None else clock() + spec.timeout_seconds
    telling: asyncio.Task[None] | None = None
    try:
        while True:
            patience = FOLLOW_SECONDS
            if timeout_at is not None:
                patience = min(patience, max(0.0, timeout_at - clock()))
            await asyncio.wait((process.exit, halt.asked), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if process.exit.done() and halt.reason is not Stop.LAPSED:
                return End.FLOODED if _is_flooded(process, spec) else End.EXITED
            end = halt.reason or _limit_reached(process, timeout_at, clock(), spec)
            if end is not None:
                await _stopped(process, halt, spec)
                return Stop.LAPSED if halt.reason is Stop.LAPSED else end
            if telling is None:
                # beside, and not in between: a log store that does not answer must not delay the end
                telling = asyncio.create_task(_tell(process, task, workshop.logs))
    finally:
        if telling:
            telling.cancel()


async def _stopped(process: Process, halt: Halt, spec: Spec) -> None:
    """Stop the script with the grace; without it when another may get the task, or the disk fills up."""
    stopping = asyncio.create_task(process.stop(grace_seconds=spec.grace_seconds))
    try:
        while not stopping.done():
            if halt.reason is Stop.LAPSED or _is_flooded(process, spec):
                process.kill()
            await asyncio.wait((stopping,), timeout=FOLLOW_SECONDS)
        await stopping
    finally:
        stopping.cancel()


def _limit_reached(process: Process, timeout_at: float | None, now: float, spec: Spec) -> End | None:
    if timeout_at is not None and now >= timeout_at:
        return End.TIMED_OUT
    return End.FLOODED if _is_flooded(process, spec) else None


def _is_flooded(process: Process, spec: Spec) -> bool:
    return max(_size(process.stdout), _size(process.stderr)) > spec.max_output_bytes


async def _tell(process: Process, task: Task, logs: Logs) -> None:
    """Hand on what a running script says, the last part of it when it says a lot."""
    told = dict.fromkeys(STREAMS, 0)
    while True:
        for name in STREAMS:
            stream: BinaryIO = getattr(process, name)
            if stream.closed:  # a cancel can be swallowed on the way to the log store
                return
            size = _size(stream)
            start = max(told[name], size - FOLLOW_BYTES)
            if start < size:
                data = os.pread(stream.fileno(), size - start, start)
                with suppress(Error):  # a tail is a courtesy: the whole log is kept at the end
                    await logs.append(task, name, LogChunk(start, data))
                    told[name] = start + len(data)
        await asyncio.sleep(FOLLOW_SECONDS)


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


# What is left of it


async def _collect(folder: Path, process: Process, end: End | Stop, task: Task, workshop: Workshop) -> Outcome:
    keeper = _Keeper(task, workshop.artifacts)
    _cut(process, workshop.spec.max_output_bytes)
    exit_code = (await process.wait()).code
    outcome = Outcome(_state(end, exit_code), exit_code=exit_code)
    try:
        if outcome.state is State.SUCCEEDED:
            outcome = replace(outcome, results=await _keep_results(folder, process, workshop.spec, keeper))
    except Error as error:
        outcome = replace(outcome, state=State.FAILED, error=error.message)
    try:
        outcome = replace(outcome, files=await _keep_attachments(folder, workshop.spec, keeper))
    except Error as error:
        outcome = replace(outcome, state=_worse(outcome.state), error=outcome.error or error.message)
    try:
        outcome = replace(outcome, logs=await _keep_logs(process, keeper))
    except Error as error:
        outcome = replace(outcome, state=_worse(outcome.state), error=outcome.error or error.message)
    if outcome.state is State.SUCCEEDED:
        return outcome
    sentence = outcome.error or _sentence(end, exit_code, workshop.spec)
    return replace(outcome, results=None, error="\n".join([sentence, *_last_lines(process.stderr)]))


def _cut(process: Process, max_bytes: int) -> None:
    """Let go of what was written past the limit before the script could be stopped."""
    for stream in (process.stdout, process.stderr):
        if _size(stream) > max_bytes:
            os.ftruncate(stream.fileno(), max_bytes)


def _state(end: End | Stop, exit_code: int) -> State:
    match end:
        case End.EXITED:
            return State.SUCCEEDED if exit_code == 0 else State.FAILED
        case End.TIMED_OUT:
            return State.TIMED_OUT
        case Stop.CANCELLED:
            return State.CANCELLED
        case _:
            return State.FAILED


def _worse(state: State) -> State:
    return State.FAILED if state is State.SUCCEEDED else state


def _sentence(end: End | Stop, exit_code: int, spec: Spec) -> str:
    match end:
        case End.TIMED_OUT:
            return f"The script ran longer than {spec.timeout_seconds:g} seconds and was stopped."
        case End.FLOODED:
            return (
                f"The script wrote more than {spec.max_output_bytes:,} bytes to stdout or stderr and was stopped; "
                "raise max_output_bytes, or write to a file in the run folder."
            )
        case Stop.CANCELLED:
            return "The task was cancelled."
    if exit_code >= 0:
        return f"The script ended with exit code {exit_code}."
    with suppress(ValueError):
        return f"The script was killed by {signal.Signals(-exit_code).name} (signal {-exit_code})."
    return f"The script was killed by signal {-exit_code}."


def _last_lines(stream: BinaryIO) -> list[str]:
    size = _size(stream)
    start = max(0, size - ERROR_BYTES)
    text = os.pread(stream.fileno(), ERROR_BYTES, start).decode("utf-8", "replace")
    lines = text.splitlines()
    if start and len(lines) > 1:
        del lines[0]  # only its end was read
    return lines[-ERROR_LINES:]


class _Keeper:
    """Saves what a run leaves under the run's own keys."""

    def __init__(self, task: Task, artifacts: Artifacts) -> None:
        self._prefix = f"{task.id}/{task.run}"
        self._artifacts = artifacts
        self._count = 0

    async def keep(self, name: str, chunks: Iterable[bytes], media_type: str) -> Artifact:
        key = f"{self._prefix}/{self._count}"
        self._count += 1
        saved = await self._artifacts.save(key, chunks, Label(name, media_type))
        return Artifact(name, saved.size, media_type, saved.sha256, key)


async def _keep_results(folder: Path, process: Process, spec: Spec, keeper: _Keeper) -> Results | None:
    wanted = spec.outputs.results
    if wanted is None:
        return None
    with _results_source(folder, process, wanted.kind, wanted.input_path or "") as source:
        document = results.Document(wanted, source)
        kept = await keeper.keep("results.json", document, "application/json")
        return Results(kept, document.rows, document.columns)


def _results_source(folder: Path, process: Process, kind: str, path: str) -> BinaryIO:
    if kind == "file":
        return results.open_inside(folder, path)
    return _from_start(process.stdout if kind == "stdout" else process.stderr)


async def _keep_attachments(folder: Path, spec: Spec, keeper: _Keeper) -> tuple[Artifact, ...]:
    if not spec.outputs.attachments:
        return ()
    found, may_give = await asyncio.to_thread(_attachments, folder, spec)
    if len(found) > MAX_FILES:
        raise Error(Code.BAD_OUTPUT, f"The attachments are {len(found):,} files; at most {MAX_FILES:,} are kept.")
    kept = []
    for name, path in found.items():
        with results.open_inside(folder, path) as source:
            given = GivenFile(source)
            kept.append(await keeper.keep(name, given if may_give else iter(given), _media_type(name)))
    return tuple(kept)


def _attachments(folder: Path, spec: Spec) -> tuple[dict[str, str], bool]:
    """Them, and whether they may be given away: not from a folder that stays, nor if a file may have two names."""
    found = results.attachments(folder, spec.outputs.attachments)
    return found, not spec.debug and not any((folder / path).is_symlink() for path in found.values())


async def _keep_logs(process: Process, keeper: _Keeper) -> tuple[Artifact, ...]:
    kept = []
    for name, stream in zip(STREAMS, (process.stdout, process.stderr), strict=True):
        if _size(stream):
            with _from_start(stream) as source:
                kept.append(await keeper.keep(name, iter(GivenFile(source)), "text/plain; charset=utf-8"))
    return tuple(kept)


def _media_type(name: str) -> str:
    """By the ending alone: a whole name would be read as a URL, which may name any type."""
    media_type, encoding = _media_types().guess_type(f"file{Path(name).suffix}")
    return "application/octet-stream" if media_type is None or encoding else media_type


@functools.cache
def _media_types() -> mimetypes.MimeTypes:
    """The types that Python itself knows, made for the first file that is kept: 0.4 MB."""
    return mimetypes.MimeTypes()


def _from_start(stream: BinaryIO) -> BinaryIO:
    """A reader of its own over a captured stream."""
    source = os.fdopen(os.dup(stream.fileno()), "rb")
    source.seek(0)
    return source
