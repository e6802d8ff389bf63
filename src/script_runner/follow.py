"""Waiting for a task: for its end, or for all that happens to it, one event after the other."""

import asyncio
import codecs
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from script_runner.errors import Code, Error
from script_runner.ports import CLOSED, ENDED, MOVED, Artifacts, Changes, Logs, Tasks
from script_runner.streams import STREAMS, LogChunk
from script_runner.task import State, Task

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 2.0
"""Before a store that is away is asked again."""

PIECE_BYTES = 32 * 1024
"""How much of a log one event carries."""

BEAT_SECONDS = 15.0
"""After how much silence a follower is told that there is nothing new."""

NEW, END = "new", "end"

_CONTINUING = bytes(range(0x80, 0xC0))
"""Bytes that begin no character in UTF-8 (RFC 3629, section 3)."""

_MOST_CONTINUING = 3
"""How many of them a character can have."""

_PLACE = re.compile(r"(\d{1,9})-(new|queued|running|end)-(\d{1,16})-(\d{1,16})", re.ASCII)


class Ear:
    """Collects what is told of a task until somebody asks for it."""

    def __init__(self, words: Collection[str]) -> None:
        self._wanted = frozenset((*words, CLOSED))
        self._told: set[str] = set()
        self._waiting: asyncio.Future[None] | None = None

    def tell(self, words: Collection[str]) -> None:
        self._told |= self._wanted.intersection(words)
        if self._told and self._waiting and not self._waiting.done():
            self._waiting.set_result(None)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will be told."""
        return CLOSED in self._told

    async def told(self, *, seconds: float) -> frozenset[str]:
        """What was told since this was asked last, as soon as there is something; nothing after this time."""
        if not self._told and seconds > 0:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            clock = loop.call_later(seconds, _set, self._waiting)
            try:
                await self._waiting
            finally:
                clock.cancel()
                self._waiting = None
        told = frozenset(self._told)
        self._told &= {CLOSED}
        return told


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def end_of(task: Task, ear: Ear, tasks: Tasks, *, seconds: float) -> Task:
    """The task once it is final; after this time, or when nothing more is told, as it is then.

    A store that is away in between does not matter; at the end it raises Error(UNAVAILABLE). Error(NOT_FOUND) when
    the task is removed.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    failures = 0
    while (left := deadline - loop.time()) > 0 and not ear.is_closed:
        told = await ear.told(seconds=min(left, _pause(failures)))
        if ENDED in told or failures:
            try:
                task = await _read(tasks, task.id)
            except Error as error:
                failures = _counted(failures, error)
            else:
                failures = 0
        if task.state.is_final:
            return task
    return await _read(tasks, task.id)


async def _read(tasks: Tasks, task_id: str) -> Task:
    task = await tasks.get(task_id)
    if task is None:
        raise Error(Code.NOT_FOUND, "There is no such task.")
    return task


def _counted(failures: int, error: Error) -> int:
    """One failure more, if the store may be there again in a moment; else the error."""
    if error.code is not Code.UNAVAILABLE:
        raise error
    return failures + 1


def _pause(failures: int) -> float:
    return min(FIRST_PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS) if failures else math.inf


# All that happens


@dataclass(frozen=True, slots=True)
class Place:
    """How far a follower has come: the state that was told last, and how much of each log of the run."""

    run: int = 0
    state: str = NEW
    offsets: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))

    def __str__(self) -> str:
        return "-".join(map(str, (self.run, self.state, *(self.offsets[stream] for stream in STREAMS))))

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        """The place that was written so, None if it is none."""
        found = _PLACE.fullmatch(text)
        if not found:
            return None
        run, state, *offsets = found.groups()
        return cls(int(run), state, dict(zip(STREAMS, map(int, offsets), strict=True)))

    @property
    def is_end(self) -> bool:
        return self.state == END

    def of_run(self, run: int) -> "Place":
        """The same in this run: another one says its own words, from the beginning."""
        return self if run == self.run else Place(run)

    def after(self, stream: str, offset: int) -> "Place":
        return replace(self, offsets={**self.offsets, stream: offset})


@dataclass(frozen=True, slots=True)
class Moved:
    """The task is in another state than was told before; a final one is told last."""

    task: Task
    place: Place


@dataclass(frozen=True, slots=True)
class Said:
    """What the script has said from ``offset`` on, in bytes, up to the one in ``place``.

    What is no UTF-8 is replaced (U+FFFD).
    """

    stream: str
    offset: int
    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Quiet:
    """There is nothing new, and somebody is there."""


Event = Moved | Said | Quiet


@dataclass(frozen=True, slots=True)
class Follower:
    """Tells what happens to a task, from any place on.

    It keeps a place and no more: what is to be told is read when it is asked for, however late that is.
    """

    tasks: Tasks
    logs: Logs
    artifacts: Artifacts
    changes: Changes

    async def events(
        self, task: Task, place: Place, *, is_whole: bool = False, seconds: float = math.inf
    ) -> AsyncGenerator[Event, None]:
        """Each state from now on, and the words of each stream in order; the end comes last, when all was said.

        Of states that came and went unseen only the last is told. While the script runs only the last part of what
        it says is kept: what a follower comes too late for is left out, as the offsets show; or, if ``is_whole``,
        that stream waits for the end, when there is all of it. It stops without the end when the task is removed,
        after ``seconds``, and when nothing more is told; a store that is away for a moment is borne.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        ear = Ear((MOVED, *STREAMS))
        told: Collection[str] = (MOVED, *STREAMS)
        place = place.of_run(task.run)
        failures = 0
        async with self.changes.watch(task.id, ear.tell, logs=True):
            while True:
                try:
                    async for event in self._news(task.id, place, told, is_whole=is_whole):
                        place = event.place
                        yield event
                    failures = 0
                except Error as error:
                    if error.code is not Code.UNAVAILABLE:
                        return
                    failures += 1
                told = ()
                while not told:
                    left = deadline - loop.time()
                    if place.is_end or ear.is_closed or left <= 0:
                        return
                    told = await ear.told(seconds=min(BEAT_SECONDS, left, _pause(failures)))
                    if not told:
                        yield Quiet()
                    if failures:
                        told = (MOVED, *STREAMS)

    async def _news(
        self, task_id: str, place: Place, told: Collection[str], *, is_whole: bool
    ) -> AsyncIterator[Moved | Said]:
        """What is beyond a place, now that this was told."""
        streams = [stream for stream in STREAMS if stream in told]
        while True:
            # read before the task is: if this is still its run then, they are of this run
            chunks = {
                stream: await self.logs.read(task_id, stream, offset=place.offsets[stream], limit=PIECE_BYTES)
                for stream in streams
            }
            task = await _read(self.tasks, task_id)
            if task.run != place.run:
                place, chunks, streams = place.of_run(task.run), {}, list(STREAMS)
            if task.state.is_final:
                async for said in self._rest(task, place):
                    place = said.place
                    yield said
                yield Moved(task, replace(place, state=END))
                return
            if task.state.value != place.state:
                place = replace(place, state=task.state.value)
                yield Moved(task, place)
            if task.state is not State.RUNNING:
                return
            more = [] if chunks else streams
            for stream, chunk in chunks.items():
                if is_whole and chunk.offset > place.offsets[stream]:
                    continue  # until the end, when there is all of it
                for said in _said(place, stream, chunk):
                    place = said.place
                    yield said
                if len(chunk.data) == PIECE_BYTES:
                    more.append(stream)
            if not more:
                return
            streams = more

    async def _rest(self, task: Task, place: Place) -> AsyncIterator[Said]:
        """What the script has said beyond a place, now that all is kept."""
        for log in task.outcome.logs if task.outcome else ():
            while (offset := place.offsets[log.name]) < log.size:
                stop = min(offset + PIECE_BYTES, log.size)
                try:
                    pieces = [piece async for piece in self.artifacts.read(log.key, start=offset, stop=stop)]
                except Error as error:
                    if error.code is Code.NOT_FOUND:
                        break
                    raise
                for said in _said(place, log.name, LogChunk(offset, b"".join(pieces)), is_last=stop == log.size):
                    place = said.place
                    yield said
                if place.offsets[log.name] == offset:  # the store has less than was noted
                    break


def _said(place: Place, stream: str, chunk: LogChunk, *, is_last: bool = False) -> Iterator[Said]:
    """A chunk as text, up to the last whole character; nothing if there is none."""
    offset, data = chunk.offset, chunk.data
    if offset > place.offsets[stream]:  # something is missing: begin with a whole character
        rest = data[:_MOST_CONTINUING].lstrip(_CONTINUING) + data[_MOST_CONTINUING:]
        offset, data = offset + len(data) - len(rest), rest
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=is_last)
    end = offset + len(data) - len(decoder.getstate()[0])
    if end > offset:
        yield Said(stream, offset, text, place.after(stream, end))
