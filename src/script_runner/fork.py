"""Children that are copies of this process, fork(2): they share all that is loaded by then."""

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

Found = TypeVar("Found")

SECONDS_TO_END = 0.002

INPUT = 0
"""The standard input, by its number: there may be none (POSIX, STDIN_FILENO)."""


class Child:
    """A forked child, to be waited for and stopped as one of asyncio."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._line = line
        self._end: asyncio.Future[None] | None = None

    async def wait(self) -> int | None:
        """Return when it has ended: its exit code, or less than 0, the signal that killed it."""
        if self._end is None:
            loop = asyncio.get_running_loop()
            self._end = loop.create_future()
            loop.add_reader(self._line, self._bury, loop, self._end)
        await asyncio.shield(self._end)
        return self.returncode

    def terminate(self) -> None:
        """Ask it to stop (TERM)."""
        os.kill(self.pid, signal.SIGTERM)

    def see_off(self) -> None:
        """Ask it to stop and return when it has ended; for when no event loop did."""
        if self.returncode is None:
            self.terminate()
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _bury(self, loop: asyncio.AbstractEventLoop, end: "asyncio.Future[None]") -> None:
        loop.remove_reader(self._line)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:  # it has let go of the line a moment before it ends
            loop.call_later(SECONDS_TO_END, self._bury, loop, end)
            return
        self._line.close()
        self.returncode = os.waitstatus_to_exitcode(status)
        end.set_result(None)


def fork(run: Callable[[], int]) -> Child:
    """A child in a session of its own that runs this and exits with its code; its input ends when we are gone.

    For a process of one thread, since the copy has only one.
    """
    ours, childs = socket.socketpair()
    _flush()  # or both would write what waits
    gc.freeze()  # what is there stays: no sweep is to touch, and so to copy, what is shared
    pid = os.fork()
    if pid == 0:
        _live(lambda: _as_child(run, ours, childs))
    childs.close()
    return Child(pid, ours)


def told_by_copy(find: Callable[[], Found]) -> Found:
    """What ``find`` returns or raises in a copy that ends with it: what it loads to find it is never loaded here.

    For a process of one thread. What is found must bear to be pickled.
    """
    ours, its = os.pipe()
    _flush()  # or both would write what waits
    pid = os.fork()
    if pid == 0:
        _live(lambda: _tell(find, ours, its))
    os.close(its)
    with os.fdopen(ours, "rb") as line:
        said = line.read()
    if os.waitpid(pid, 0)[1]:
        raise ChildProcessError("the copy of this process ended without a word")
    found, error = pickle.loads(said)  # noqa: S301 - our own words
    if error is not None:
        raise error
    return found  # type: ignore[no-any-return]


def be_called(name: str) -> None:
    """Let this process be listed under a name, of which the kernel keeps 15 bytes (proc(5), comm); Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _live(life: Callable[[], int]) -> NoReturn:
    """Do this and nothing else: whatever it raises must not end up in what the parent was about."""
    code = 1
    try:
        code = life()
    except BaseException:  # noqa: BLE001 - as above
        sys.excepthook(*sys.exc_info())
    finally:
        _flush()
        os._exit(code)


def _as_child(run: Callable[[], int], parents: socket.socket, own: socket.socket) -> int:
    parents.close()
    if own.fileno() != INPUT:  # as it is where the parent was started without an input
        os.dup2(own.fileno(), INPUT)
        own.close()
    os.setsid()  # Ctrl-C in a terminal reaches the parent alone, which stops its child in order
    return run()


def _tell(find: Callable[[], object], parents: int, own: int) -> int:
    os.close(parents)  # or what is told to nobody would wait for ourselves to read it
    try:
        with os.fdopen(own, "wb") as line:
            pickle.dump(_came_of(find), line)
    except (KeyboardInterrupt, BrokenPipeError):  # the one that waits was interrupted as well, or has ended
        return 1
    return 0


def _came_of(find: Callable[[], object]) -> tuple[object, Exception | None]:
    """What was found, and what was raised instead."""
    try:
        return find(), None
    except Exception as error:  # noqa: BLE001 - it is raised where it is told
        return None, error


def _flush() -> None:
    """Write what waits to be written; where there is no output, nothing does."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
