"""Keeps artifacts as files below one folder: the ``file://`` store."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

from script_runner.errors import Code, Error, Problem
from script_runner.ports import GivenFile, Label, Saved

PIECE_BYTES: Final = 384 * 1024
"""A multiple of three, so that a piece becomes base64 as it is."""


class FileArtifacts:
    """``task/attempt/number`` lies in ``folder/ta/task/attempt/number``; a file appears whole or not at all."""

    def __init__(self, url: str) -> None:
        self._folder = _folder(url)

    async def save(self, key: str, chunks: Iterable[bytes], label: Label | None = None) -> Saved:  # noqa: ARG002 - what it says is in the task's record too
        if isinstance(chunks, GivenFile):  # a descriptor of the thread's own, as the caller may be cancelled
            chunks = GivenFile(os.fdopen(os.dup(chunks.file.fileno()), "rb"))
        return await asyncio.to_thread(self._save, self._path(key), chunks)

    async def read(self, key: str, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(self._path(key).open, "rb")
        except FileNotFoundError:
            raise Error(Code.NOT_FOUND, "The file is no longer kept.") from None
        except OSError as error:
            raise Error(Code.UNAVAILABLE, f"The artifact store cannot be read: {error.strerror}.") from None
        with file:
            file.seek(start)
            left = None if stop is None else stop - start
            while left is None or left > 0:
                piece = await _piece(file, PIECE_BYTES if left is None else min(left, PIECE_BYTES))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    async def url_for(self, key: str, *, seconds: int) -> str | None:  # noqa: ARG002 - a folder hands out nothing
        return None

    async def remove(self, prefix: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._path(prefix), ignore_errors=True)

    async def check(self) -> None:
        try:
            await asyncio.to_thread(self._try)
        except OSError as error:
            message = f"The artifact store cannot be written: {error.strerror}."
            raise Error(Code.UNAVAILABLE, message) from None

    def _try(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
            file.write(b"x")  # a full disk takes a file, but nothing in it

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def _save(self, path: Path, chunks: Iterable[bytes]) -> Saved:
        part = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            saved = _moved(chunks.file, part) if isinstance(chunks, GivenFile) else None
            saved = saved or _copied(chunks, part)
            part.replace(path)
        except OSError as error:
            raise Error(Code.UNAVAILABLE, f"The artifact store cannot take it: {error.strerror}.") from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
            if isinstance(chunks, GivenFile):
                chunks.file.close()
        return saved


def _moved(file: BinaryIO, part: Path) -> Saved | None:
    """Make a file of ours that of the store, if nobody else can change it; None if that is not certain.

    It has no other name, and nobody has it open to write or waits to: else the kernel gives no lease, or says that
    it is to end (fcntl(2), F_SETLEASE, F_GETLEASE).
    """
    try:
        with _lease(file):
            name = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))  # noqa: PTH115 - a text as it is
            found = os.fstat(file.fileno())
            if not _is_ours_alone(found) or not os.path.samestat(name.lstat(), found):
                return None
            name.rename(part)
            status = part.lstat()
            if not os.path.samestat(status, found):  # another one had got the name meanwhile
                part.rename(name)
            elif _is_ours_alone(status):
                part.chmod(0o600)
                with part.open("rb", buffering=0) as moved:
                    saved = Saved(status.st_size, hashlib.file_digest(moved, "sha256").hexdigest())
                if fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
                    return saved
    except OSError:  # another file system, one without leases, or a lease that ended while a writer waited
        pass
    part.unlink(missing_ok=True)
    return None


def _is_ours_alone(status: os.stat_result) -> bool:
    return status.st_nlink == 1 and status.st_uid == os.geteuid()


@contextlib.contextmanager
def _lease(file: BinaryIO) -> Iterator[None]:
    """While nobody writes to a file; who tries waits, and the signal that tells us so is one that is ignored."""
    fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    try:
        yield
    finally:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _copied(chunks: Iterable[bytes], part: Path) -> Saved:
    digest = hashlib.sha256()
    size = 0
    with part.open("xb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            _write_all(file.fileno(), chunk)
    return Saved(size, digest.hexdigest())


async def _piece(file: BinaryIO, size: int) -> bytes:
    return await asyncio.to_thread(file.read, size)


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _folder(url: str) -> Path:
    parts = urlsplit(url)
    folder = unquote(parts.path)
    is_here = parts.scheme == "file" and parts.netloc in ("", "localhost") and not (parts.query or parts.fragment)
    if not is_here or not folder.startswith("/") or "\0" in folder:
        message = (
            "The artifact store must be a URL like file:///var/lib/script-runner: no host, no query, a whole path."
        )
        raise Error(Code.INVALID_CONFIG, message, (Problem("environment", "SCRIPT_RUNNER_STORE", message),))
    return Path(folder)
