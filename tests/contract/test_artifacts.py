"""The port Artifacts: bytes come back as they were kept, whole or not at all."""

import asyncio
import contextlib
import fcntl
import hashlib
import mmap
import os
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.servers import until
from tests.stores import EMULATORS, Emulator

from script_runner.adapters.store import PIECE_BYTES, FileArtifacts
from script_runner.config import read_settings
from script_runner.errors import Code, Error
from script_runner.ports import Artifacts, GivenFile, Saved
from script_runner.wiring.parts import artifact_store


def file_store(folder: Path) -> Artifacts:
    return FileArtifacts((folder / "store").as_uri())


STORES = ("file", *EMULATORS)


@dataclass(frozen=True, slots=True)
class Bench:
    """One store, and its verbs for tests that do one thing after the other."""

    artifacts: Artifacts

    def save(self, key: str, chunks: Iterable[bytes]) -> Saved:
        return asyncio.run(self.artifacts.save(key, chunks))

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        async def whole() -> bytes:
            return b"".join([piece async for piece in self.artifacts.read(key, start=start, stop=stop)])

        return asyncio.run(whole())

    def remove(self, prefix: str) -> None:
        asyncio.run(self.artifacts.remove(prefix))

    def check(self) -> None:
        asyncio.run(self.artifacts.check())

    def has(self, key: str) -> bool:
        try:
            self.read(key)
        except Error as error:
            return error.code is not Code.NOT_FOUND
        return True


@pytest.fixture(scope="module", params=STORES)
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Settings of every kind of store in turn."""
    if request.param == "file":
        return {"SCRIPT_RUNNER_STORE": (tmp_path_factory.mktemp("artifacts") / "store").as_uri()}
    emulator: Emulator = request.getfixturevalue(request.param)
    return emulator.access(prefix="some/prefix").environment


@pytest.fixture(scope="module")
def bench(environment: Mapping[str, str]) -> Bench:
    return Bench(artifact_store(read_settings(environment)))


def new_key() -> str:
    """A key as runs make them: task, attempt, number."""
    return f"{uuid.uuid4()}/1/0"


def text(error: Error) -> str:
    return "\n".join([error.message, *(problem.problem for problem in error.problems)])


# Every store


@settings(deadline=None, max_examples=60)
@given(chunks=st.lists(st.binary(max_size=300), max_size=8), data=st.data())
def test_ranges_come_back_as_kept(bench: Bench, chunks: list[bytes], data: st.DataObject) -> None:
    """Any range of any bytes, in whatever pieces they came, is what Python would slice."""
    whole = b"".join(chunks)
    start = data.draw(st.integers(0, len(whole) + 3))
    stop = data.draw(st.none() | st.integers(start, len(whole) + 3))
    key = new_key()
    saved = bench.save(key, iter(chunks))

    assert saved == Saved(len(whole), hashlib.sha256(whole).hexdigest())
    assert bench.read(key) == whole
    assert bench.read(key, start=start, stop=stop) == whole[start:stop]


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_sizes_about_a_piece(bench: Bench, size: int) -> None:
    """Nothing is lost or doubled where one piece ends and the next begins."""
    key, whole = new_key(), os.urandom(size)
    bench.save(key, [whole])

    assert bench.read(key) == whole
    assert bench.read(key, start=PIECE_BYTES - 2, stop=PIECE_BYTES + 1) == whole[PIECE_BYTES - 2 : PIECE_BYTES + 1]


@pytest.mark.parametrize("chunks", [[], [b""], [b"", b""]])
def test_empty_file(bench: Bench, chunks: list[bytes]) -> None:
    """A file without a byte is a file."""
    key = new_key()

    assert bench.save(key, chunks) == Saved(0, hashlib.sha256(b"").hexdigest())
    assert bench.read(key) == b""


def test_empty_range(bench: Bench) -> None:
    """A range that ends where it begins holds nothing."""
    key = new_key()
    bench.save(key, [b"abc"])

    assert bench.read(key, start=2, stop=2) == b""


def test_saving_again_replaces(bench: Bench) -> None:
    """The bytes under a key are those that were saved last, whole."""
    key = new_key()
    bench.save(key, [b"a longer first text"])
    bench.save(key, [b"second"])

    assert bench.read(key) == b"second"


def test_unknown_key(bench: Bench) -> None:
    """What is not there is NOT_FOUND, in a sentence that shows nothing of the store."""
    with pytest.raises(Error) as caught:
        bench.read(new_key())

    assert caught.value.code is Code.NOT_FOUND
    assert "/" not in text(caught.value)


def test_nothing_is_visible_while_saving(bench: Bench) -> None:
    """A key is not there until all of its bytes are."""
    key = new_key()
    seen = []

    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            seen.append(bench.has(key))  # the chunks are read in a thread of their own, which may run a loop
            yield b"x" * PIECE_BYTES

    bench.save(key, chunks())

    assert seen == [False] * 3
    assert bench.has(key)


def test_nothing_is_kept_of_what_could_not_be_produced(bench: Bench) -> None:
    """When the bytes end in an error, it goes to the caller, and the key stays as it was."""
    kept, new = new_key(), new_key()
    bench.save(kept, [b"as it was"])

    def chunks() -> Iterator[bytes]:
        yield b"begun"
        raise Error(Code.BAD_OUTPUT, "line 7 is bad")

    for key in (kept, new):
        with pytest.raises(Error, match="line 7 is bad"):
            bench.save(key, chunks())

    assert bench.read(kept) == b"as it was"
    assert not bench.has(new)


def test_many_at_once(bench: Bench) -> None:
    """Files that are saved at the same time do not touch one another."""
    keys = [f"{uuid.uuid4()}/1/{number}" for number in range(20)]

    async def save_all() -> None:
        await asyncio.gather(*(bench.artifacts.save(key, [key.encode()] * 100) for key in keys))

    asyncio.run(save_all())

    assert [bench.read(key) for key in keys] == [key.encode() * 100 for key in keys]


def test_file_that_is_given_away(bench: Bench, tmp_path: Path) -> None:
    """Whether a store copies it or takes it, its bytes are kept as they were."""
    key, whole = new_key(), os.urandom(3 * PIECE_BYTES + 1)
    (given := tmp_path / "given").write_bytes(whole)
    with given.open("rb") as file:
        saved = bench.save(key, GivenFile(file))

    assert saved == Saved(len(whole), hashlib.sha256(whole).hexdigest())
    assert bench.read(key) == whole


def test_file_that_is_not_given_away(bench: Bench, tmp_path: Path) -> None:
    """Its bytes alone leave it where it was."""
    (mine := tmp_path / "mine").write_bytes(b"bytes")
    with mine.open("rb") as file:
        bench.save(new_key(), iter(GivenFile(file)))

    assert mine.read_bytes() == b"bytes"


def test_remove_takes_the_task_and_no_other(bench: Bench) -> None:
    """All attempts and files of a task go, and only those."""
    task, other = str(uuid.uuid4()), str(uuid.uuid4())
    keys = [f"{task}/1/0", f"{task}/1/1", f"{task}/2/0"]
    for key in [*keys, f"{other}/1/0"]:
        bench.save(key, [b"x"])
    bench.remove(task)

    assert not any(bench.has(key) for key in keys)
    assert bench.has(f"{other}/1/0")


def test_remove_takes_one_attempt(bench: Bench) -> None:
    """A task and attempt as the prefix leaves the other attempts."""
    task = str(uuid.uuid4())
    for attempt in (1, 2, 21):
        bench.save(f"{task}/{attempt}/0", [b"x"])
    bench.remove(f"{task}/2")

    assert [bench.has(f"{task}/{attempt}/0") for attempt in (1, 2, 21)] == [True, False, True]


def test_remove_of_nothing(bench: Bench) -> None:
    """Removing what is not there is no error, and can be repeated."""
    task = str(uuid.uuid4())
    bench.remove(task)
    bench.save(f"{task}/1/0", [b"x"])
    bench.remove(task)
    bench.remove(task)

    assert not bench.has(f"{task}/1/0")


def test_reading_goes_on_after_removal(bench: Bench) -> None:
    """A download that has begun ends with the last byte, also when the task is removed meanwhile."""
    task, whole = str(uuid.uuid4()), os.urandom(3 * PIECE_BYTES)
    bench.save(f"{task}/1/0", [whole])

    async def read() -> bytes:
        pieces = bench.artifacts.read(f"{task}/1/0")
        first = await anext(pieces)
        await bench.artifacts.remove(task)
        return first + b"".join([piece async for piece in pieces])

    assert asyncio.run(read()) == whole


def test_reading_that_is_given_up_leaves_nothing_open(bench: Bench) -> None:
    """A download that ends early holds no file."""
    key = new_key()
    bench.save(key, [os.urandom(3 * PIECE_BYTES)])

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count

    async def read() -> None:
        await bench.artifacts.check()  # threads and what they need are there
        before = count()
        for _ in range(5):
            async with contextlib.aclosing(bench.artifacts.read(key)) as pieces:  # type: ignore[type-var]
                await anext(pieces)

        async def is_as_before() -> bool:
            return count() <= before

        await until(is_as_before)  # a connection is closed by another thread

    asyncio.run(read())


def test_check_of_a_working_store(bench: Bench) -> None:
    """A store that can take files says nothing, and keeps nothing of the trial."""
    bench.check()

    bench.check()


LARGE = """
import asyncio, os, sys
from pathlib import Path
from script_runner.config import read_settings
from script_runner.wiring.parts import artifact_store

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])

async def main():
    artifacts = artifact_store(read_settings(os.environ))
    await artifacts.save("task/1/0", [b"x"])
    before = peak()
    saved = await artifacts.save("task/1/1", (bytes([number]) * 1_000_000 for number in range(int(sys.argv[1]))))
    size = 0
    async for piece in artifacts.read("task/1/1"):
        size += len(piece)
    print(saved.size, size, peak() - before)

asyncio.run(main())
sys.stdout.flush()
os._exit(0)  # as the command line does (cli._end)
"""


def test_large_file_takes_little_memory(environment: Mapping[str, str]) -> None:
    """A file that comes in pieces is kept and read in pieces: most of it is never in memory."""
    is_file = environment["SCRIPT_RUNNER_STORE"].startswith("file:")
    megabytes = 200 if is_file else 100
    ran = subprocess.run(
        [sys.executable, "-c", LARGE, str(megabytes)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    saved, read, grown_kilobytes = map(int, ran.stdout.split())

    assert (saved, read) == (megabytes * 1_000_000, megabytes * 1_000_000)
    assert grown_kilobytes < (20_000 if is_file else 45_000)  # a store takes parts of 8 MiB, some at once


# The file store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=1m")
    yield folder
    subprocess.run(["umount", folder], check=True)


def mount(folder: Path, *options: str) -> None:
    made = subprocess.run(["mount", *options, "tmpfs", folder], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")


def fill(disk: Path) -> None:
    """Write until not one byte more fits."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_is_unavailable(error: Error, folder: Path) -> None:
    assert error.code is Code.UNAVAILABLE
    assert str(folder) not in text(error)
    assert "Errno" not in text(error)


def test_full_disk_keeps_nothing_of_a_file(small_disk: Path) -> None:
    """What does not fit is refused in a sentence and leaves no rest: a smaller file fits afterwards."""
    bench = Bench(file_store(small_disk))
    key = new_key()
    with pytest.raises(Error, match="No space left") as caught:
        bench.save(key, (b"x" * 100_000 for _ in range(20)))

    assert_is_unavailable(caught.value, small_disk)
    assert not bench.has(key)
    assert files(small_disk) == []
    assert bench.save(key, (b"x" * 100_000 for _ in range(5))).size == 500_000


def test_full_disk_is_noticed_by_check(small_disk: Path) -> None:
    """A store without room for one more byte cannot be used."""
    bench = Bench(file_store(small_disk))
    bench.check()
    fill(small_disk)

    with pytest.raises(Error) as caught:
        bench.check()
    assert_is_unavailable(caught.value, small_disk)


def test_read_only_folder_is_noticed_by_check(small_disk: Path) -> None:
    """A store that cannot be written is reported before a task needs it; what it holds can still be read."""
    bench = Bench(file_store(small_disk))
    key = new_key()
    bench.save(key, [b"kept"])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    with pytest.raises(Error, match="Read-only") as caught:
        bench.check()
    assert_is_unavailable(caught.value, small_disk)
    with pytest.raises(Error) as refused:
        bench.save(new_key(), [b"x"])
    assert_is_unavailable(refused.value, small_disk)
    assert bench.read(key) == b"kept"


def test_missing_folder_is_made(tmp_path: Path) -> None:
    """A store needs no preparation: its folder is made, for its owner alone."""
    Bench(FileArtifacts((tmp_path / "a" / "b").as_uri())).check()

    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    """A folder that cannot be one is UNAVAILABLE for every verb, never a traceback."""
    (tmp_path / "store").write_text("in the way")
    bench = Bench(file_store(tmp_path))
    for verb in (bench.check, lambda: bench.save(new_key(), [b"x"]), lambda: bench.read(new_key())):
        with pytest.raises(Error) as caught:
            verb()
        assert_is_unavailable(caught.value, tmp_path)


BYTES = b"a file that is given away"


@pytest.fixture
def gift(tmp_path: Path) -> Path:
    """A file beside the store."""
    (gift := tmp_path / "gift").write_bytes(BYTES)
    return gift


def give(tmp_path: Path, gift: Path) -> Path:
    """Give it to the store; the file that is kept."""
    bench, key = Bench(file_store(tmp_path)), new_key()
    with gift.open("rb") as file:
        saved = bench.save(key, GivenFile(file))
    (kept,) = files(tmp_path / "store")

    assert saved == Saved(len(BYTES), hashlib.sha256(BYTES).hexdigest())
    assert kept.read_bytes() == bench.read(key) == BYTES
    return kept


def test_given_file_is_moved(tmp_path: Path, gift: Path) -> None:
    """A file that is ours alone is not copied: the store has the same file, whatever rights the script gave it."""
    gift.chmod(0o666)
    before = gift.stat()
    kept = give(tmp_path, gift).stat()

    assert os.path.samestat(kept, before)
    assert stat.S_IMODE(kept.st_mode) == 0o600
    assert not gift.exists()


def assert_is_copied(tmp_path: Path, gift: Path) -> None:
    kept = give(tmp_path, gift)

    assert not os.path.samestat(kept.stat(), gift.stat())
    assert gift.read_bytes() == BYTES


def test_given_file_with_two_names_is_copied(tmp_path: Path, gift: Path) -> None:
    """Who has the other name can change the file at any time."""
    (tmp_path / "other").hardlink_to(gift)

    assert_is_copied(tmp_path, gift)


def test_given_file_that_is_open_to_write_is_copied(tmp_path: Path, gift: Path) -> None:
    """A process that the script left behind, or asked another to begin, can change what it has opened."""
    with gift.open("ab"):
        assert_is_copied(tmp_path, gift)


def test_given_file_that_is_mapped_to_write_is_copied(tmp_path: Path, gift: Path) -> None:
    """The memory of a process may be the file, also once that is closed."""
    with gift.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    with mapped:
        assert_is_copied(tmp_path, gift)


def test_given_file_of_another_owner_is_copied(tmp_path: Path, gift: Path) -> None:
    """Its owner could change it later."""
    try:
        os.chown(gift, 12345, -1)
    except PermissionError:
        pytest.skip("only root can give away files")

    assert_is_copied(tmp_path, gift)


def test_given_file_on_another_disk_is_copied(tmp_path: Path, small_disk: Path) -> None:
    """A file cannot be moved from one file system to another."""
    (gift := small_disk / "gift").write_bytes(BYTES)

    assert_is_copied(tmp_path, gift)


def test_given_file_without_a_name_is_copied(tmp_path: Path, gift: Path) -> None:
    """What a script says is captured in files that no folder has."""
    bench, key = Bench(file_store(tmp_path)), new_key()
    with gift.open("rb") as file:
        gift.unlink()
        bench.save(key, GivenFile(file))

    assert bench.read(key) == BYTES


def test_given_file_whose_name_another_has_by_now_is_copied(
    tmp_path: Path, gift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is kept, and not what is found under its name a moment later."""
    (other := tmp_path / "other").write_bytes(b"another file")
    monkeypatch.setattr(os, "readlink", lambda _: str(other))

    assert_is_copied(tmp_path, gift)
    assert other.read_bytes() == b"another file"


def test_given_file_that_gets_a_second_name_meanwhile_is_copied(
    tmp_path: Path, gift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found out before the move is looked at again after it."""
    moved, readlink = gift.stat(), os.readlink

    def readlink_beside_a_link(path: str) -> str:
        (tmp_path / "second").hardlink_to(gift)
        return readlink(path)

    monkeypatch.setattr(os, "readlink", readlink_beside_a_link)
    kept = give(tmp_path, gift)

    assert not os.path.samestat(kept.stat(), moved)


def test_given_file_that_is_written_before_the_lease_is_whole(
    tmp_path: Path, gift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and digest are those of the file under the lease."""
    gift.write_bytes(BYTES[:5])
    control = fcntl.fcntl

    def control_after_a_writer(file: Any, command: int, *argument: Any) -> Any:
        if command == fcntl.F_SETSIG:
            gift.write_bytes(BYTES)
        return control(file, command, *argument)

    monkeypatch.setattr(fcntl, "fcntl", control_after_a_writer)
    give(tmp_path, gift)


def test_given_file_that_somebody_waits_to_write_is_copied(
    tmp_path: Path, gift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has found the file before it was moved writes to it as soon as the lease ends: not into the store."""
    moved, readlink = gift.stat(), os.readlink
    writers = []

    def readlink_beside_a_writer(path: str) -> str:
        writer = subprocess.Popen(["/bin/sh", "-c", 'echo more >> "$0"', gift])
        writers.append(writer)
        while not is_lease_to_end(path):
            os.sched_yield()
        return readlink(path)

    monkeypatch.setattr(os, "readlink", readlink_beside_a_writer)
    with gift.open("rb") as file:
        saved = Bench(file_store(tmp_path)).save(new_key(), GivenFile(file))
    assert writers[0].wait() == 0
    (kept,) = files(tmp_path / "store")
    whole = kept.read_bytes()

    assert not os.path.samestat(kept.stat(), moved)
    assert saved == Saved(len(whole), hashlib.sha256(whole).hexdigest())
    assert whole in (BYTES, BYTES + b"more\n")  # before the copy, or after it


def is_lease_to_end(descriptor: str) -> bool:
    """Of the descriptor with this path in /proc."""
    return bool(fcntl.fcntl(int(Path(descriptor).name), fcntl.F_GETLEASE) != fcntl.F_RDLCK)


def test_a_caller_that_is_cancelled_closes_nothing_of_a_file_that_is_moved(
    tmp_path: Path, gift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a descriptor that was closed is soon another file's, which must not be moved."""
    (other := tmp_path / "other").write_bytes(b"another file")
    readlink, begun, goes_on = os.readlink, threading.Event(), threading.Event()

    def readlink_later(path: str) -> str:
        begun.set()
        assert goes_on.wait(60)
        return readlink(path)

    async def cancelled() -> None:
        with gift.open("rb") as file:
            saving = asyncio.ensure_future(file_store(tmp_path).save(new_key(), GivenFile(file)))
            await asyncio.to_thread(begun.wait)
            saving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await saving
        with other.open("rb"):
            goes_on.set()
            await asyncio.get_running_loop().shutdown_default_executor()

    monkeypatch.setattr(os, "readlink", readlink_later)
    asyncio.run(cancelled())

    assert other.read_bytes() == b"another file"
    assert [kept.read_bytes() for kept in files(tmp_path / "store")] == [BYTES]


def test_nobody_writes_while_a_given_file_is_moved(
    tmp_path: Path, gift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opens it to write in that moment has to wait; that does no harm to us, who are sent a signal."""
    refused = []
    digest = hashlib.file_digest

    def digest_beside_a_writer(file: Any, name: str) -> Any:
        try:
            os.close(os.open(file.name, os.O_WRONLY | os.O_NONBLOCK))
        except BlockingIOError as error:
            refused.append(error)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", digest_beside_a_writer)
    give(tmp_path, gift)

    assert len(refused) == 1


def test_given_file_whose_lease_ends_early_is_copied(
    tmp_path: Path, gift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that has waited long is let in by the kernel: what was moved by then is kept as a copy."""
    moved = gift.stat()
    digest = hashlib.file_digest

    def digest_until_the_lease_ends(file: Any, name: str) -> Any:
        for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers
            with contextlib.suppress(OSError):  # one of them has it
                if os.path.samestat(os.fstat(int(number)), moved):
                    fcntl.fcntl(int(number), fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", digest_until_the_lease_ends)
    kept = give(tmp_path, gift)

    assert not os.path.samestat(kept.stat(), moved)


def test_interrupted_save_leaves_no_part(tmp_path: Path) -> None:
    """An error that has nothing to do with the store leaves no part of the file either."""

    def chunks() -> Iterator[bytes]:
        yield b"begun"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Bench(file_store(tmp_path)).save(new_key(), chunks())

    assert files(tmp_path) == []


def test_kept_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Nobody else on the machine can reach what was kept."""
    Bench(file_store(tmp_path)).save(new_key(), [b"x"])
    (kept,) = files(tmp_path)

    assert any(
        folder.stat().st_mode & 0o077 == 0 for folder in kept.parents if folder.is_relative_to(tmp_path / "store")
    )


@pytest.mark.parametrize("name", ["with space", "ümlaut 漢", "100%25", "a#b", "a?b"])
def test_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """The path of the URL is decoded: a folder of any name can be the store."""
    Bench(FileArtifacts((tmp_path / name).as_uri())).save(new_key(), [b"x"])

    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib/artifacts",
        "artifacts",
        "file:artifacts",
        "file://artifacts/folder",
        "file://other.example/folder",
        "s3://bucket/folder",
        "http://127.0.0.1/folder",
        "file:///folder?option=1",
        "file:///folder#1",
        "file:///with%00nul",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """A URL that names no local folder stops the start and says what one looks like."""
    with pytest.raises(Error, match="file:///") as caught:
        FileArtifacts(url)

    assert caught.value.code is Code.INVALID_CONFIG


def test_localhost_is_here(tmp_path: Path) -> None:
    """file://localhost/ is this machine (RFC 8089)."""
    Bench(FileArtifacts(f"file://localhost{tmp_path}/store")).check()

    assert (tmp_path / "store").is_dir()
