"""Waiting for a task: its end, or all that happens to it, from any place on, over whatever goes away meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.servers import until

from script_runner import follow
from script_runner.adapters.memory import MemoryLogs, MemoryTasks
from script_runner.adapters.store import FileArtifacts
from script_runner.errors import Code, Error
from script_runner.follow import Ear, Event, Follower, Moved, Place, Quiet, Said, end_of
from script_runner.ports import CLOSED, ENDED
from script_runner.streams import LogChunk
from script_runner.task import Artifact, Outcome, State, Task

pytestmark = pytest.mark.anyio

SUCCEEDED = Outcome(State.SUCCEEDED, exit_code=0)
KEPT = 64


class FlakyTasks(MemoryTasks):
    """Tasks that can be away."""

    is_away = False
    reads = 0

    async def get(self, task_id: str) -> Task | None:
        self.reads += 1
        if self.is_away:
            raise Error(Code.UNAVAILABLE, "The task store is away.")
        return await super().get(task_id)


class Bench:
    """One task, and all that a worker does to it."""

    def __init__(self, folder: Path) -> None:
        self.tasks = FlakyTasks()
        self.logs = MemoryLogs(self.tasks, keep_bytes=KEPT)
        self.artifacts = FileArtifacts(folder.as_uri())
        self.follower = Follower(self.tasks, self.logs, self.artifacts, self.tasks.changes)
        self.said = {"stdout": b"", "stderr": b""}

    async def queue(self) -> Task:
        return await self.tasks.add(Task(id="a", owner="ada", arguments={}, max_attempts=3))

    async def start(self) -> Task:
        self.tasks.renew("w1", seconds=600)
        [task] = await self.tasks.claim("w1", limit=1, wait_seconds=0)
        self.said = {"stdout": b"", "stderr": b""}
        return task

    async def say(self, data: bytes, stream: str = "stdout") -> None:
        if task := await self.tasks.get("a"):
            await self.logs.append(task, stream, LogChunk(len(self.said[stream]), data))
        self.said[stream] += data

    async def finish(self, task: Task) -> None:
        logs = []
        for stream, data in self.said.items():
            saved = await self.artifacts.save(f"a/{task.run}/{stream}", [data])
            logs.append(Artifact(stream, saved.size, "text/plain", saved.sha256, f"a/{task.run}/{stream}"))
        await self.tasks.finish(task, Outcome(State.SUCCEEDED, exit_code=0, logs=tuple(logs)))

    async def events(self, place: Place | None = None, **options: Any) -> AsyncIterator[Event]:
        task = await MemoryTasks.get(self.tasks, "a")
        assert task
        async for event in self.follower.events(task, place or Place(), **options):
            yield event


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class Reader:
    """Reads events beside the test."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self.events: list[Event] = []
        self.reading = asyncio.create_task(self._read(events))

    async def _read(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self.events.append(event)

    async def has(self, is_there: Callable[["Reader"], bool]) -> None:
        async def is_so() -> bool:
            return is_there(self)

        await until(is_so)

    def text(self, stream: str = "stdout") -> str:
        return "".join(event.text for event in self.events if isinstance(event, Said) and event.stream == stream)

    @property
    def states(self) -> list[str]:
        return [event.task.state.value for event in self.events if isinstance(event, Moved)]


# Places


@given(
    st.builds(
        Place,
        st.integers(0, 999_999_999),
        st.sampled_from(["new", "queued", "running", "end"]),
        st.fixed_dictionaries({stream: st.integers(0, 10**16 - 1) for stream in ("stdout", "stderr")}),
    )
)
def test_a_place_is_read_as_it_was_written(place: Place) -> None:
    """The id of an event leads back to its place."""
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize("text", ["x", "1-running-0", "1-walking-0-0", "-1-new-0-0", "1-new-0-0 ", "1-new-²-0"])
def test_what_was_not_given_out_is_no_place(text: str) -> None:
    """Anything else is no place."""
    assert Place.parse(text) is None


# All that happens


async def test_a_whole_life_is_told_in_order(bench: Bench) -> None:
    """Queued, running, what was said, and one end, after everything."""
    await bench.queue()
    reader = Reader(bench.events())
    await reader.has(lambda it: it.states == ["queued"])
    task = await bench.start()
    await reader.has(lambda it: it.states == ["queued", "running"])
    await bench.say(b"one\n")
    await reader.has(lambda it: it.text() == "one\n")
    await bench.say(b"two\n", "stderr")
    await reader.has(lambda it: it.text("stderr") == "two\n")
    await bench.finish(task)
    await reader.reading

    assert reader.states == ["queued", "running", "succeeded"]
    assert [type(event) for event in reader.events[-1:]] == [Moved]


async def test_from_every_place_there_follows_exactly_the_rest(bench: Bench) -> None:
    """Whoever comes again with the id of any event gets what followed it: nothing is lost or told twice."""
    await bench.queue()
    reader = Reader(bench.events())
    await reader.has(lambda it: it.states == ["queued"])
    task = await bench.start()
    await reader.has(lambda it: it.states == ["queued", "running"])
    for number in range(5):
        await bench.say(f"Zürich {number}\n".encode(), "stdout" if number % 2 else "stderr")
        await reader.has(lambda it, number=number: f"{number}" in it.text() + it.text("stderr"))  # type: ignore[misc]
    await bench.finish(task)
    await reader.reading
    told = reader.events

    for number, event in enumerate(told[:-1]):
        assert not isinstance(event, Quiet)
        again = Reader(bench.events(Place.parse(str(event.place))))
        await again.reading
        rest = Reader(_listed(told[number + 1 :]))
        await rest.reading
        assert [again.text(stream) for stream in bench.said] == [rest.text(stream) for stream in bench.said]
        assert again.states == ["succeeded"]


async def _listed(events: list[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


@pytest.mark.parametrize("cut", range(1, len("aé北🧬z".encode())))
async def test_no_character_is_cut(bench: Bench, cut: int) -> None:
    """Wherever a log happens to be cut, each event holds whole characters, and nothing is lost."""
    await bench.queue()
    task = await bench.start()
    whole = "aé北🧬z".encode()
    reader = Reader(bench.events())
    await bench.say(whole[:cut])
    await reader.has(lambda it: it.states == ["running"])
    await bench.say(whole[cut:])
    await reader.has(lambda it: it.text() == whole.decode())
    await bench.finish(task)
    await reader.reading

    assert reader.text() == whole.decode()


async def test_what_is_no_utf_8_is_replaced_and_counted(bench: Bench) -> None:
    """Bytes that are no text become U+FFFD; offsets go on counting bytes, also at a broken end."""
    await bench.queue()
    task = await bench.start()
    await bench.say(b"\xffa\xe5")
    await bench.finish(task)
    reader = Reader(bench.events())
    await reader.reading
    *_, said, end = reader.events

    assert reader.text() == "\ufffda\ufffd"
    assert isinstance(said, Said)
    assert isinstance(end, Moved)
    assert said.place.offsets["stdout"] == end.place.offsets["stdout"] == 3


async def test_a_follower_that_is_late_sees_the_gap(bench: Bench) -> None:
    """What is no longer kept is left out while the script runs, by whole characters; the offset shows it."""
    await bench.queue()
    await bench.start()
    text = "é" * KEPT + "x"  # the kept part begins in the middle of a character
    await bench.say(text.encode())
    reader = Reader(bench.events())
    await reader.has(lambda it: bool(it.text()))
    said = next(event for event in reader.events if isinstance(event, Said))
    reader.reading.cancel()

    assert said.text == text[-len(said.text) :]
    assert said.offset == len(text.encode()) - len(said.text.encode()) > KEPT


async def test_a_gap_before_what_is_no_text_is_passed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes that could only continue a character, at most three are left out; no read is in vain for ever."""
    monkeypatch.setattr(follow, "PIECE_BYTES", 16)
    await bench.queue()
    await bench.start()
    await bench.say(b"\x80" * (2 * KEPT))
    read = bench.tasks.get

    async def read_some_times(task_id: str) -> Task | None:
        assert bench.tasks.reads < KEPT
        return await read(task_id)

    monkeypatch.setattr(bench.tasks, "get", read_some_times)
    reader = Reader(bench.events(seconds=0.05))
    await reader.reading

    assert reader.text() == "\ufffd" * (KEPT - 3)


async def test_a_log_that_is_shorter_than_was_noted_ends_nevertheless(bench: Bench) -> None:
    """What was cut off in the store is left out, and the end is told."""
    await bench.queue()
    task = await bench.start()
    await bench.artifacts.save("a/1/stdout", [b"half"])
    log = Artifact("stdout", 8, "text/plain", "", "a/1/stdout")
    await bench.tasks.finish(task, Outcome(State.SUCCEEDED, exit_code=0, logs=(log,)))
    reader = Reader(bench.events())
    async with asyncio.timeout(5):
        await reader.reading

    assert (reader.text(), reader.states) == ("half", ["succeeded"])


async def test_one_who_wants_all_waits_for_the_end(bench: Bench) -> None:
    """With is_whole nothing is left out, and the other stream does not wait."""
    await bench.queue()
    task = await bench.start()
    await bench.say(b"a" * 1000)
    reader = Reader(bench.events(is_whole=True))
    await reader.has(lambda it: it.states == ["running"])
    await bench.say(b"b" * 10, "stderr")
    await reader.has(lambda it: it.text("stderr") == "b" * 10)
    assert reader.text() == ""
    await bench.say(b"c")
    await bench.finish(task)
    await reader.reading

    assert reader.text() == "a" * 1000 + "c"


async def test_a_long_log_comes_in_pieces(bench: Bench) -> None:
    """No event carries more than a piece, whatever there is to tell."""
    await bench.queue()
    task = await bench.start()
    bench.said["stdout"] = "北京".encode() * 50_000
    await bench.finish(task)
    reader = Reader(bench.events())
    await reader.reading
    sizes = [len(event.text.encode()) for event in reader.events if isinstance(event, Said)]

    assert reader.text().encode() == bench.said["stdout"]
    assert max(sizes) <= follow.PIECE_BYTES


async def test_the_next_attempt_speaks_from_the_beginning(bench: Bench) -> None:
    """A task that runs again is told as queued and running again, and its words from offset 0."""
    await bench.queue()
    first = await bench.start()
    reader = Reader(bench.events())
    await bench.say(b"first")
    await reader.has(lambda it: it.text() == "first")
    await bench.tasks.release(first, counted=True)
    await reader.has(lambda it: it.states == ["running", "queued"])
    second = await bench.start()
    await bench.say(b"second words")
    await reader.has(lambda it: it.text() == "firstsecond words")
    await bench.finish(second)
    await reader.reading

    assert reader.states == ["running", "queued", "running", "succeeded"]
    assert [event.offset for event in reader.events if isinstance(event, Said)] == [0, 0]


async def test_an_attempt_that_was_missed_is_told_whole(bench: Bench) -> None:
    """Who comes again with a place in an earlier run gets all words of the last one."""
    await bench.queue()
    first = await bench.start()
    await bench.say(b"0123456789")
    await bench.tasks.release(first, counted=True)
    second = await bench.start()
    await bench.say(b"anew")
    await bench.finish(second)
    reader = Reader(bench.events(Place(1, "running", {"stdout": 7, "stderr": 0})))
    await reader.reading

    assert (reader.text(), reader.states) == ("anew", ["succeeded"])


async def test_a_store_that_is_away_is_borne(bench: Bench) -> None:
    """While the store is away the follower waits, shows that it is there, and then goes on."""
    await bench.queue()
    task = await bench.start()
    reader = Reader(bench.events())
    await reader.has(lambda it: it.states == ["running"])
    bench.tasks.is_away = True
    await bench.finish(task)
    await reader.has(lambda it: any(isinstance(event, Quiet) for event in it.events))
    bench.tasks.is_away = False
    await reader.reading

    assert reader.states == ["running", "succeeded"]


async def test_a_removed_task_has_no_end(bench: Bench) -> None:
    """The stream of a task that is removed stops."""
    await bench.queue()
    reader = Reader(bench.events())
    await reader.has(lambda it: it.states == ["queued"])
    await bench.tasks.remove("a")
    await reader.reading

    assert reader.states == ["queued"]


@pytest.mark.parametrize("why", ["time", "dismissed"])
async def test_it_stops_when_its_time_is_over(bench: Bench, why: str) -> None:
    """After its seconds, or when the server sends its waiters away, the stream stops without an end."""
    await bench.queue()
    reader = Reader(bench.events(seconds=0.01 if why == "time" else 600.0))
    await reader.has(lambda it: it.states == ["queued"])
    if why == "dismissed":
        bench.tasks.changes.dismiss()
    await reader.reading

    assert reader.states == ["queued"]


async def test_while_nothing_happens_nothing_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is told again and again, without a question to the store."""
    monkeypatch.setattr(follow, "BEAT_SECONDS", 0.005)
    await bench.queue()
    reader = Reader(bench.events())
    await reader.has(lambda it: it.states == ["queued"])
    reads = bench.tasks.reads
    await reader.has(lambda it: sum(isinstance(event, Quiet) for event in it.events) > 5)
    reader.reading.cancel()

    assert bench.tasks.reads == reads


async def test_a_follower_that_goes_away_is_forgotten(bench: Bench) -> None:
    """Nobody is told any more when the reader was cancelled."""
    await bench.queue()
    reader = Reader(bench.events())
    await reader.has(lambda it: it.states == ["queued"])
    reader.reading.cancel()
    await asyncio.gather(reader.reading, return_exceptions=True)
    await asyncio.sleep(0)  # lets the loop close the generator

    assert dict(bench.tasks.changes._watching) == {}


# The end alone


Act = Callable[[Bench, Task], Awaitable[None]]


async def awaited(bench: Bench, task: Task, act: Act, *, seconds: float) -> tuple[Task, int]:
    """What waiting gives while this is done, and how often the store was read for it."""
    ear = Ear([ENDED])
    async with bench.tasks.changes.watch("a", ear.tell):
        waiting = asyncio.create_task(end_of(task, ear, bench.tasks, seconds=seconds))
        await asyncio.sleep(0)
        await act(bench, task)
        return await waiting, bench.tasks.reads


async def test_an_end_is_told_with_one_read(bench: Bench) -> None:
    """States on the way wake nobody; the end costs one question to the store."""
    task = await bench.queue()

    async def run_it(bench: Bench, _task: Task) -> None:
        await bench.finish(await bench.start())

    ended, reads = await awaited(bench, task, run_it, seconds=600)

    assert (ended.state, reads) == (State.SUCCEEDED, 1)


async def test_after_its_time_the_task_is_told_as_it_is(bench: Bench) -> None:
    """When the time is over, the answer is the task as it is then."""
    task = await bench.queue()

    async def start_it(bench: Bench, _task: Task) -> None:
        await bench.start()

    now, _ = await awaited(bench, task, start_it, seconds=0.05)

    assert now.state is State.RUNNING


async def test_a_store_that_is_away_in_passing_fails_no_waiting(bench: Bench) -> None:
    """An end that cannot be read at once is asked for again."""
    task = await bench.queue()

    async def fail_for_a_moment(bench: Bench, _task: Task) -> None:
        started = await bench.start()
        bench.tasks.is_away = True
        await bench.finish(started)
        reads = bench.tasks.reads

        async def was_asked() -> bool:
            return bench.tasks.reads > reads

        await until(was_asked)
        bench.tasks.is_away = False

    ended, _ = await awaited(bench, task, fail_for_a_moment, seconds=600)

    assert ended.state is State.SUCCEEDED


async def test_a_store_that_stays_away_is_said_at_the_end(bench: Bench) -> None:
    """As a poll would: Error(UNAVAILABLE)."""
    task = await bench.queue()

    async def take_away(bench: Bench, _task: Task) -> None:
        bench.tasks.is_away = True

    with pytest.raises(Error) as raised:
        await awaited(bench, task, take_away, seconds=0.05)
    assert raised.value.code is Code.UNAVAILABLE


async def test_those_who_wait_are_sent_away_with_what_there_is(bench: Bench) -> None:
    """When the server stops, the answer comes at once: the task as it is."""
    task = await bench.queue()

    async def dismiss(bench: Bench, _task: Task) -> None:
        bench.tasks.changes.dismiss()

    now, _ = await awaited(bench, task, dismiss, seconds=600)

    assert now.state is State.QUEUED


async def test_an_ear_keeps_what_it_was_told_until_it_is_asked() -> None:
    """Words told before anybody asks are not lost, and those not wanted are not kept."""
    ear = Ear([ENDED])
    ear.tell(["moved", ENDED])

    assert await ear.told(seconds=600) == {ENDED}
    assert await ear.told(seconds=0) == frozenset()
    ear.tell([CLOSED])
    assert await ear.told(seconds=600) == {CLOSED}
    assert ear.is_closed
