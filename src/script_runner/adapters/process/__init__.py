"""Runs scripts as local processes that cannot outlive this worker."""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import math
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

from script_runner.adapters.process import guardian
from script_runner.errors import Code, Error
from script_runner.ports import Command, Exit, Process

PR_SET_CHILD_SUBREAPER: Final = 36
"""prctl(2): what a script leaves behind becomes a child of this process, where it can be found and reaped."""

PIPE_BYTES: Final = 64 * 1024
"""What a pipe holds (pipe(7))."""

INT_BYTES: Final = ctypes.sizeof(ctypes.c_int)

SECONDS_TO_END: Final = 5.0
STDERR: Final = 2

SWEEP_SECONDS: Final = 0.05
MAX_DISCARDED: Final = 64
"""How many folders wait for removal at most, and how many may be on their way before it holds up the worker."""

CLOSED: Final[BinaryIO] = open(os.devnull, "rb", buffering=0)  # noqa: PTH123, SIM115 - as the next line has it
CLOSED.close()
"""What the stream of a run is that was closed."""

MAX_RUNS: Final = 1_000 + 4 * MAX_DISCARDED
"""How many runs one executor can note: the scripts of a worker at most, and folders that still wait to go."""


class LocalExecutor:
    """Starts scripts with posix_spawn(3), each in a session of its own, under the eyes of a guardian process."""

    def __init__(self, *, keep_folders: bool = False) -> None:
        self._guardian = _Guardian(keep_folders=keep_folders)
        self._running: dict[int, LocalProcess] = {}
        self._signals = _ignored_signals()
        self._deadline = math.inf
        self._nothing: BinaryIO = open(os.devnull, "rb", buffering=0)  # noqa: PTH123, SIM115 - closed with this
        self._sweeper = ThreadPoolExecutor(1, "sweeper")
        self._discarded: list[Path] = []
        self._sweeping: set[Path] = set()
        _adopt_orphans()
        _keep_descriptors()

    def watch(self, run_folder: Path) -> None:
        self._guardian.watch(run_folder)

    def forget(self, run_folder: Path) -> None:
        self._guardian.forget(run_folder)

    def discard(self, run_folder: Path) -> None:
        """Many at a time: a hand-over to the thread costs a tenth of a millisecond, a removal up to a whole."""
        if not self._discarded:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        self._discarded.append(run_folder)
        if len(self._discarded) >= MAX_DISCARDED:
            self._sweep()

    def _sweep(self) -> None:
        if not self._discarded:  # they went before it was time, as all do when this is closed
            return
        folders, self._discarded = self._discarded, []
        if len(self._sweeping) < MAX_DISCARDED:
            self._sweeping.update(folders)
            self._sweeper.submit(self._remove, folders)
        else:  # they come faster than they go
            self._remove(folders)

    def _remove(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            try:
                os.rmdir(f"{folder}/out")  # noqa: PTH106 - on every run's way
                os.rmdir(folder)  # noqa: PTH106 - as above
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
            self._guardian.forget(folder)
            self._sweeping.discard(folder)

    async def start(self, command: Command) -> Process:
        folder = command.run_folder
        async with contextlib.AsyncExitStack() as undo:  # whatever fails on the way, nothing of the run stays
            stdout, stderr = (
                undo.enter_context(contextlib.closing(_Capture(folder.parent, self._nothing))) for _ in range(2)
            )
            self._guardian.watch(folder)
            if guardian.now() > self._deadline:
                raise Error(
                    Code.UNAVAILABLE, "The worker starts no script now: its lease was not renewed in time."
                )
            pid = _spawn(command, stdout.writer, stderr.writer, self._signals)
            undo.push_async_callback(_until_nothing_is_left, lambda: self._kill_unnoted(pid, folder))
            self._guardian.group(folder, pid)
            process = LocalProcess(self, pid, folder, stdout, stderr)
            undo.pop_all()
        self._running[pid] = process
        return process

    def hold_until(self, deadline: float) -> None:
        self._deadline = deadline
        self._guardian.lease(deadline)

    async def close(self) -> None:
        self._sweep()
        await asyncio.to_thread(self._sweeper.shutdown)
        await asyncio.to_thread(self._guardian.close)
        self._nothing.close()

    def ended(self, process: "LocalProcess") -> None:
        """Nothing of a run is left but its folder; its number may soon be another's."""
        self._running.pop(process.pid, None)
        self._guardian.group(process.run_folder, 0)

    def kill_left_behind(self, run_folder: Path) -> bool:
        """Kill what a run left to us; False when nothing was found, and so nothing can be left.

        One that is dying or dead is a find: it no longer says whose it was, and what it started is ours only then.
        So is one between two programs, which does not say it yet: it is asked again.
        """
        mark = b"RUNDIR=" + os.fsencode(run_folder)
        is_found = False
        for pid in self._orphans():
            if _is_reaped(pid):
                is_found = True
            elif mark in (words := _environment(pid)):
                is_found = True
                os.kill(pid, signal.SIGKILL)
            elif _is_dying(pid) or (words == [b""] and _is_in_exec(pid)):
                is_found = True
        return is_found

    def reap_orphans(self) -> None:
        """Let go of dead processes that scripts of any run left to us."""
        for pid in self._orphans():
            _is_reaped(pid)

    def _kill_unnoted(self, pid: int, run_folder: Path) -> bool:
        """Kill a script whose start was not finished; False when nothing of it was found."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        is_left = not _is_reaped(pid)
        is_left = self.kill_left_behind(run_folder) or is_left
        if not is_left:
            self._guardian.group(run_folder, 0)
        return is_left

    def _orphans(self) -> list[int]:
        return [pid for pid in _children() if pid not in self._running and pid != self._guardian.pid]


class LocalProcess:
    """A script and everything it started."""

    def __init__(
        self, executor: LocalExecutor, pid: int, run_folder: Path, stdout: "_Capture", stderr: "_Capture"
    ) -> None:
        self.pid = pid
        self.run_folder = run_folder
        self.exit = _exit_of(pid)
        self._captures = (stdout, stderr)
        for capture in self._captures:
            capture.follow()
        self._executor = executor
        self._is_over = False

    @property
    def stdout(self) -> BinaryIO:
        return self._captures[0].file

    @property
    def stderr(self) -> BinaryIO:
        return self._captures[1].file

    async def wait(self) -> Exit:
        return await asyncio.shield(self.exit)

    async def stop(self, *, grace_seconds: float) -> Exit:
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a stopped process takes no TERM
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._group_end(), grace_seconds)
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def end(self) -> None:
        if self._is_over:
            return
        await _until_nothing_is_left(self._kill_all)
        await self.wait()
        self._is_over = True
        self._executor.ended(self)
        for capture in self._captures:
            capture.drain()

    def close(self) -> None:
        for capture in self._captures:
            capture.close()

    async def _group_end(self) -> None:
        """Wait until the script and its children have ended."""
        await self.wait()
        pause = 0.001
        while self._signal(0):
            self._executor.reap_orphans()  # a dead child is in its group until it is reaped
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _signal(self, number: int) -> bool:
        """Signal the group; False when nothing of it is left."""
        if self._is_over:  # its number may be another's by now
            return False
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # macOS says so of a group of zombies
            return False
        return True

    def _kill_all(self) -> bool:
        """Kill the group and what has left it; False when there was nothing."""
        is_group_left = self._signal(signal.SIGKILL)
        return self._executor.kill_left_behind(self.run_folder) or is_group_left


class _Capture:
    """What a script says on one stream: a pipe, which the event loop empties into a file without a name.

    A pipe, since scripts open ``/dev/stderr`` anew, and that would cut a file short. The file is made when the
    first byte comes; until then ``file`` is ``nothing``, an empty one of all runs, since most say nothing.
    """

    def __init__(self, folder: Path, nothing: BinaryIO) -> None:
        self.file = self._nothing = nothing
        self._folder = folder
        self._size = 0
        self._failure: OSError | None = None
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)

    def follow(self) -> None:
        """Begin to read; from now on only the script holds the other end."""
        os.close(self.writer)
        self.writer = -1
        asyncio.get_running_loop().add_reader(self._reader, self._take)

    def drain(self) -> None:
        """Take what is in the pipe by now, and no more; Error(BAD_OUTPUT) if not all that was said could be kept.

        What comes later is of a process that got away: it may say something for ever.
        """
        left = self._waiting()
        while left > 0 and (taken := self._take()):
            left -= taken
        self._stop_reading()
        if self._failure:
            message = f"What the script said could not be kept: {self._failure.strerror}."
            raise Error(Code.BAD_OUTPUT, message) from self._failure

    def close(self) -> None:
        self._let_go()
        self.file = CLOSED
        if self.writer >= 0:
            os.close(self.writer)
        self._stop_reading()

    def _waiting(self) -> int:
        """How many bytes are in the pipe (ioctl_tty(2), FIONREAD)."""
        if self._reader < 0:
            return 0
        return int.from_bytes(fcntl.ioctl(self._reader, termios.FIONREAD, bytes(INT_BYTES)), sys.byteorder)

    def _take(self) -> int:
        """Move one piece and return its size; 0 when there is none now, or never again."""
        if self._reader < 0:
            return 0
        try:
            piece = os.read(self._reader, PIPE_BYTES)
        except BlockingIOError:
            return 0
        if piece:
            self._keep(piece)
        else:
            self._stop_reading()
        return len(piece)

    def _keep(self, piece: bytes) -> None:
        """Write a piece. A disk that is full is left for the system's folder of temporary files.

        After a failure there nothing more is kept, so that the rest does not look whole.
        """
        if self._failure:
            return
        try:
            if not self._size:
                self._continue_in(self._folder)
            self._write(piece)
        except OSError:
            try:
                self._continue_in(None)
                self._write(piece)
            except OSError as error:
                self._failure = error

    def _continue_in(self, folder: Path | None) -> None:
        """Let ``file`` be a file without a name in this folder, with all that was kept so far."""
        file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - it stays open
        try:
            for start in range(0, self._size, PIPE_BYTES):
                file.write(os.pread(self.file.fileno(), min(PIPE_BYTES, self._size - start), start))
        except OSError:
            file.close()
            raise
        self._let_go()
        self.file = file

    def _let_go(self) -> None:
        if self.file is not self._nothing:
            self.file.close()

    def _write(self, piece: bytes) -> None:
        end = self._size
        while piece:
            count = os.pwrite(self.file.fileno(), piece, end)
            piece = piece[count:]
            end += count
        self._size = end

    def _stop_reading(self) -> None:
        if self._reader >= 0:
            asyncio.get_running_loop().remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1


class _Guardian:
    """The guardian process and the notebook it shares with us; one that died is replaced and reads on."""

    def __init__(self, *, keep_folders: bool) -> None:
        self._file = _shared_memory(guardian.SLOTS_AT + MAX_RUNS * guardian.SLOT_BYTES)
        self._notebook = mmap.mmap(self._file, 0)
        guardian.HEADER.pack_into(self._notebook, 0, 0.0, keep_folders)
        self._keeps = keep_folders
        self._slots: dict[Path, int] = {}
        self._free = [guardian.SLOTS_AT + number * guardian.SLOT_BYTES for number in reversed(range(MAX_RUNS))]
        self._lock = threading.Lock()
        self._process = self._started()

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, folder: Path) -> None:
        """Note a run that is about to start; once is enough."""
        if folder in self._slots:
            return
        self._see_that_it_lives()
        start = self._slots[folder] = self._free.pop()
        name = os.fsencode(folder)
        self._notebook[start + guardian.SLOT.size : start + guardian.SLOT.size + len(name)] = name
        guardian.SLOT.pack_into(self._notebook, start, True, 0, len(name))

    def group(self, folder: Path, pid: int) -> None:
        """Note the process group of a run that has started."""
        guardian.SLOT.pack_into(self._notebook, self._slots[folder], True, pid, len(os.fsencode(folder)))

    def forget(self, folder: Path) -> None:
        """Strike out a run, unless something of it may still live."""
        start = self._slots.get(folder)
        if start is None or guardian.SLOT.unpack_from(self._notebook, start)[1]:
            return
        del self._slots[folder]
        guardian.SLOT.pack_into(self._notebook, start, False, 0, 0)
        self._free.append(start)

    def lease(self, deadline: float) -> None:
        """Note the new deadline, and say that there is one; a guardian that long no longer reads is replaced."""
        guardian.HEADER.pack_into(self._notebook, 0, deadline, self._keeps)
        self._see_that_it_lives()
        with self._lock:
            if not self._is_told():
                self._process.kill()
                self._process.wait()
        self._see_that_it_lives()

    def _is_told(self) -> bool:
        try:
            return self._process.stdin is not None and self._process.stdin.write(b".") == 1
        except OSError:
            return False

    def close(self) -> None:
        """End the guardian, which kills what is still noted."""
        with self._lock:
            self._process.send_signal(signal.SIGCONT)  # one that stands still would not see the end
            if self._process.stdin:
                self._process.stdin.close()
            self._process.wait()
            self._notebook.close()
            os.close(self._file)

    def _see_that_it_lives(self) -> None:
        with self._lock:
            if self._process.poll() is not None:
                if self._process.stdin:
                    self._process.stdin.close()
                self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        # blocked here and so in the child, which could not ignore them before its first line
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program, fixed arguments
                [sys.executable, "-I", "-S", guardian.__file__, str(self._file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[self._file],
                bufsize=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if process.stdin:
            os.set_blocking(process.stdin.fileno(), False)
        return process


def _shared_memory(size: int) -> int:
    """A file without a name to be mapped by two processes; pages that nobody writes take no memory."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("script-runner", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _ignored_signals() -> frozenset[int]:
    """The signals that this process ignores, and so would its scripts: Python ignores two, nohup(1) one more."""
    return frozenset(number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN)


def _spawn(command: Command, stdout: int, stderr: int, ignored: frozenset[int]) -> int:
    """Start the command and return its pid, which is also its session and process group."""
    try:
        return os.posix_spawn(
            _program(command),
            command.argv,
            command.environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, stdout, 1),
                (os.POSIX_SPAWN_DUP2, stderr, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=ignored,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM):
            raise  # the machine's trouble, not the script's
        raise Error(Code.BAD_OUTPUT, f"The script could not be started: {_reason(error)}.") from error


def _program(command: Command) -> str:
    """The path of the program: a bare name is looked for in the PATH of the script, as execvp(3) does."""
    name = command.argv[0] if command.argv else ""
    if "/" in name:
        return name
    program = shutil.which(name, path=command.environment.get("PATH", os.defpath))
    if program is None:
        raise FileNotFoundError(name)
    return program


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "its program, or the interpreter it names, was not found on the worker"
    if isinstance(error, PermissionError):
        return "its program may not be executed on the worker"
    return (error.strerror if isinstance(error, OSError) else None) or "its arguments cannot be passed on"


def _exit_of(pid: int) -> "asyncio.Future[Exit]":
    """The end of a child, without a thread where there is pidfd_open(2); OSError if no descriptor is left."""
    if not hasattr(os, "pidfd_open"):
        return asyncio.ensure_future(asyncio.to_thread(_reaped, pid))
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[Exit] = loop.create_future()
    descriptor = os.pidfd_open(pid)

    def it_has_ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        if not exited.cancelled():
            exited.set_result(_reaped(pid))

    loop.add_reader(descriptor, it_has_ended)
    return exited


def _reaped(pid: int) -> Exit:
    _, status = os.waitpid(pid, 0)
    return Exit(os.waitstatus_to_exitcode(status))


async def _until_nothing_is_left(kill: Callable[[], bool]) -> None:
    """Kill again until nothing is found: what was killed takes a moment to go."""
    pause = 0.001
    clock = asyncio.get_running_loop().time
    end = clock() + SECONDS_TO_END
    while kill() and clock() < end:
        await asyncio.sleep(pause)
        pause *= 2


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _keep_descriptors() -> None:
    """Files that this process was started with are not for scripts."""
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names that are numbers, not paths
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if int(name) > STDERR:
                os.set_inheritable(int(name), False)


def _children() -> list[int]:
    """The children of this process (proc(5)); none where the system does not say."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:  # noqa: PTH123 - on every run's way
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _environment(pid: int) -> list[bytes]:
    """The environment a process was started with; nothing of one that is dying or dead (proc(5))."""
    try:
        return guardian.environment(str(pid))
    except OSError:
        return []


def _is_in_exec(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return guardian.is_in_exec(str(pid))
    return True  # it has died meanwhile, and is there to be reaped


def _is_dying(pid: int) -> bool:
    """Whether it has let go of its memory, and with it of its program."""
    try:
        os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - on every run's way
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False
