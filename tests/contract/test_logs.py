"""The port Logs against every store: tails of running scripts, whatever is repeated, lost or too long."""

import pytest
from msgspec.structs import replace
from tests.conftest import Store

from script_runner.streams import LogChunk
from script_runner.task import Outcome, State, Task

pytestmark = pytest.mark.anyio

KEPT = 64 * 1024
"""How much of a stream is kept at least, and at most."""


async def run(store: Store, task_id: str = "a") -> Task:
    """A task that runs now."""
    await store.tasks.add(Task(id=task_id, owner="ada", arguments={}, max_attempts=2))
    store.lease.renew("w1", seconds=600)
    [task] = await store.tasks.claim("w1", limit=1, wait_seconds=0)
    return task


async def say(
    store: Store, offset: int, data: bytes, *, stream: str = "stdout", task_id: str = "a", run: int = 1
) -> None:
    speaker = Task(id=task_id, owner="ada", arguments={}, worker="w1", run=run)
    await store.logs.append(speaker, stream, LogChunk(offset, data))


async def heard(store: Store, offset: int = 0, *, stream: str = "stdout", task_id: str = "a") -> LogChunk:
    return await store.logs.read(task_id, stream, offset=offset, limit=1 << 20)


async def test_chunks_follow_one_another(store: Store) -> None:
    """What was said in pieces is read as one, byte for byte."""
    await run(store)
    await say(store, 0, b"\x00\xff one\r\n")
    await say(store, 8, "Zürich".encode()[:2])
    await say(store, 10, "Zürich".encode()[2:])

    assert await heard(store) == LogChunk(0, b"\x00\xff one\r\n" + "Zürich".encode())


async def test_streams_and_tasks_are_apart(store: Store) -> None:
    """Neither the streams of a task nor tasks are mixed."""
    await run(store, "a")
    await run(store, "b")
    await say(store, 0, b"out")
    await say(store, 0, b"err", stream="stderr")
    await say(store, 0, b"other", task_id="b")

    assert (await heard(store)).data == b"out"
    assert (await heard(store, stream="stderr")).data == b"err"
    assert (await heard(store, task_id="b")).data == b"other"
    assert (await heard(store, stream="stderr", task_id="b")).data == b""


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [
        (0, 4, LogChunk(0, b"0123")),
        (3, 4, LogChunk(3, b"3456")),
        (8, 4, LogChunk(8, b"89")),
        (10, 4, LogChunk(10, b"")),
        (99, 4, LogChunk(99, b"")),
    ],
)
async def test_reading_from_an_offset(store: Store, offset: int, limit: int, expected: LogChunk) -> None:
    """A reader gets what is there from its offset, up to its limit."""
    await run(store)
    await say(store, 0, b"0123456789")

    assert await store.logs.read("a", "stdout", offset=offset, limit=limit) == expected


async def test_nothing_said(store: Store) -> None:
    """Of a task that is silent or unknown there is nothing, at the very offset that was asked for."""
    await run(store)

    assert await heard(store, 7) == LogChunk(7, b"")
    assert await heard(store, 7, task_id="never") == LogChunk(7, b"")


@pytest.mark.parametrize("again", [(0, b"0123"), (4, b"4567"), (2, b"234"), (0, b"01234567"), (8, b""), (0, b"")])
async def test_repeated_chunk_changes_nothing(store: Store, again: tuple[int, bytes]) -> None:
    """A chunk that was added before, whichever and however cut, changes nothing."""
    await run(store)
    await say(store, 0, b"0123")
    await say(store, 4, b"4567")
    await say(store, *again)

    assert await heard(store) == LogChunk(0, b"01234567")


async def test_overlap_adds_what_is_new(store: Store) -> None:
    """Of a chunk that was partly added before, only the rest is added."""
    await run(store)
    await say(store, 0, b"0123")
    await say(store, 2, b"2345")

    assert await heard(store) == LogChunk(0, b"012345")


async def test_gap_starts_anew(store: Store) -> None:
    """After a chunk that never came, the tail begins behind the gap: no byte is given a wrong offset."""
    await run(store)
    await say(store, 0, b"0123")
    await say(store, 6, b"67")
    await say(store, 8, b"89")

    assert await heard(store) == LogChunk(6, b"6789")
    assert await heard(store, 8) == LogChunk(8, b"89")


async def test_first_chunk_may_be_late(store: Store) -> None:
    """A tail may begin in the middle of a stream."""
    await run(store)
    await say(store, 1000, b"late")

    assert await heard(store) == LogChunk(1000, b"late")


async def test_only_the_last_part_is_kept(store: Store) -> None:
    """A long stream keeps its last part, with the offsets it had."""
    await run(store)
    for offset in range(0, 10 * 16_384, 16_384):
        await say(store, offset, bytes([offset // 16_384]) * 16_384)
    end = 10 * 16_384
    expected = b"".join(bytes([number]) * 16_384 for number in range(6, 10))

    assert await heard(store) == LogChunk(end - KEPT, expected)
    assert await heard(store, end - 1) == LogChunk(end - 1, b"\x09")


async def test_one_chunk_longer_than_the_tail(store: Store) -> None:
    """Of a chunk that is longer than what is kept, the end is kept."""
    await run(store)
    await say(store, 10, b"a" * 100 + b"b" * KEPT)

    assert await heard(store) == LogChunk(110, b"b" * KEPT)


async def test_repeated_chunk_that_is_no_longer_kept(store: Store) -> None:
    """Repeating a chunk from before the kept part changes nothing."""
    await run(store)
    await say(store, 0, b"a" * KEPT)
    await say(store, KEPT, b"b" * KEPT)
    await say(store, 0, b"a" * KEPT)

    assert await heard(store) == LogChunk(KEPT, b"b" * KEPT)


@pytest.mark.parametrize("ending", ["finished", "released", "lost"])
async def test_tail_goes_with_its_run(store: Store, ending: str) -> None:
    """When the run is over nothing is kept of what it said, and its late words are not taken."""
    task = await run(store)
    await say(store, 0, b"said")
    match ending:
        case "finished":
            await store.tasks.finish(task, Outcome(State.SUCCEEDED))
        case "released":
            await store.tasks.release(task, counted=True)
        case "lost":
            await store.tasks.leave("w1")
            await store.tasks.reap()
    await say(store, 4, b"late")

    assert await heard(store) == LogChunk(0, b"")


async def test_next_run_begins_at_nothing(store: Store) -> None:
    """The next attempt of a task says its own words from offset 0."""
    task = await run(store)
    await say(store, 0, b"the first attempt")
    await store.tasks.release(task, counted=True)
    again = await run(store)
    await say(store, 0, b"second", run=2)

    assert again == replace(task, attempt=2, run=2, started_at=again.started_at)
    assert await heard(store) == LogChunk(0, b"second")


async def test_an_earlier_run_speaks_no_more(store: Store) -> None:
    """A run that was given up, but does not know it yet, adds nothing to the words of the next."""
    await store.tasks.release(await run(store), counted=True)
    await run(store)
    await say(store, 0, b"second", run=2)
    await say(store, 100, b"stale")

    assert await heard(store) == LogChunk(0, b"second")


@pytest.mark.parametrize("state", ["unknown", "queued"])
async def test_only_running_scripts_speak(store: Store, state: str) -> None:
    """Nothing is kept for a task that is unknown or does not run."""
    if state == "queued":
        await store.tasks.add(Task(id="a", owner="ada", arguments={}))
    await say(store, 0, b"said")

    assert await heard(store) == LogChunk(0, b"")
