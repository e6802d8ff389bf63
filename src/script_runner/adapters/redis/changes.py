"""Word of what happens to tasks."""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

from script_runner.adapters.redis.connection import (
    ANSWER_SECONDS,
    FORMAT,
    Explained,
    away,
    close,
    connect,
    prefix_of,
    source_of,
)
from script_runner.adapters.redis.wire import Listening, Wire
from script_runner.errors import Error
from script_runner.ports import CLOSED, ENDED, MOVED, Tell, Unwatched, Watch
from script_runner.streams import STREAMS
from script_runner.task import State

LOOK_SECONDS: Final = (5.0, 10.0)
"""How often one looks for what was not told; at random in between, so that servers do not do so together."""

LOOK_UNTOLD_SECONDS: Final = 1.0
"""The same while one cannot be told."""

PING_SECONDS: Final = 5.0
"""After how much silence a connection on which one is told has to show that it lives."""

TICK_SECONDS: Final = 1.0
RECONNECT_SECONDS: Final = 0.25
IDLE_SECONDS: Final = 10.0
"""How long a connection on which one is told is kept while nobody wants to be."""

REFUSED_SECONDS: Final = 30.0
"""When to ask again for a right that was refused."""

IDS_AT_ONCE: Final = 500

_ENDS = frozenset({"removed", *(state.value for state in State if state.is_final)})

_log = logging.getLogger("script_runner.redis")


class RedisChanges:
    """Word of what happens to tasks, told by Redis on one connection for all who wait here.

    It is opened with the first of them. What was told while there was no connection is made up for by looking, all
    tasks in one go: after every new connection, and every few seconds besides.
    """

    def __init__(self, url: str, namespace: str, *, watch: Watch | None = None) -> None:
        self._watch = watch or Unwatched()
        self._prefix = prefix_of(namespace)
        self._states = f"{self._prefix}changes"
        self._states_bytes = self._states.encode()
        self._client = connect(url, self._prefix, is_waiting=False)
        self._wire = Wire(self._client.connection_pool, patience_seconds=ANSWER_SECONDS)
        self._versions_of = self._client.register_script(source_of("versions"))
        self._watching: dict[str, list[Tell]] = {}
        self._versions: dict[str, Sequence[bytes]] = {}
        """What the last look at each task saw."""
        self._readers = Counter[str]()
        """How many want to know of which task's log."""
        self._asked: set[str] = set()
        self._heard: set[str] = set()
        """The channels that were asked for, and those that are told, on the connection of now."""
        self._trusted: set[str] = set()
        """The channels of which somebody believes to be told all."""
        self._acknowledged: dict[str, asyncio.Event] = {}
        self._wanted = asyncio.Event()
        self._news = asyncio.Event()
        self._doubts = asyncio.Event()
        self._chores: list[asyncio.Task[None]] = []
        self._refusal: Exception | None = None
        self._heard_at = 0.0
        self._is_away = False
        self._is_dismissed = False
        self._has_complained = False

    @contextlib.asynccontextmanager
    async def watch(self, task_id: str, tell: Tell, *, logs: bool = False) -> AsyncIterator[None]:
        self._watching.setdefault(task_id, []).append(tell)
        if logs:
            self._readers[task_id] += 1
        self._watch.waiting(1)
        try:
            await self._begin(self._log(task_id) if logs else self._states)
            if self._is_dismissed:
                tell([CLOSED])
            yield
        finally:
            self._watch.waiting(-1)
            self._leave(task_id, tell, logs=logs)

    def dismiss(self) -> None:
        self._is_dismissed = True
        for task_id in self._watching:
            self._tell(task_id, (CLOSED,))

    async def close(self) -> None:
        while pending := [chore for chore in self._chores if not chore.done()]:
            for chore in pending:
                chore.cancel()
            await asyncio.wait(pending, timeout=1)  # a cancel may be swallowed (bpo-37658)
        await self._wire.close()
        await close(self._client)

    async def _begin(self, channel: str) -> None:
        """Return when one is told what comes on a channel, or when that cannot be for the moment."""
        if not self._chores:
            self._chores = [asyncio.create_task(self._listen()), asyncio.create_task(self._look_for_ever())]
        self._wanted.set()
        if channel not in self._heard and not self._is_away and not self._is_dismissed:
            self._news.set()
            acknowledged = self._acknowledged.setdefault(channel, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await acknowledged.wait()
        self._trusted |= {self._states, channel}

    def _leave(self, task_id: str, tell: Tell, *, logs: bool) -> None:
        self._watching[task_id].remove(tell)
        if logs:
            self._readers[task_id] -= 1
            if not self._readers[task_id]:
                del self._readers[task_id]
                self._trusted.discard(self._log(task_id))
        if not self._watching[task_id]:
            del self._watching[task_id]
            self._versions.pop(task_id, None)

    def _log(self, task_id: str) -> str:
        return f"{self._states}:{task_id}"

    def _tell(self, task_id: str, words: Sequence[str]) -> None:
        for tell in self._watching.get(task_id, ()):
            tell(words)

    # Being told

    @property
    def _channels(self) -> set[str]:
        """What has to be listened to: the states of all tasks, and the logs that are followed."""
        return {self._states, *map(self._log, self._readers)}

    async def _listen(self) -> None:
        """Keep one connection on which Redis tells us, while anybody watches."""
        while True:
            await self._wanted.wait()
            try:
                with Explained(self._watch):
                    await self._converse()
            except Error:
                self._is_away = True
                if self._refusal:
                    self._complain()
                    self._doubts.set()
                await asyncio.sleep(REFUSED_SECONDS if self._refusal else RECONNECT_SECONDS)

    def _complain(self) -> None:
        if not self._has_complained:
            sentence = (
                "Redis lets its user not subscribe to the channels %s* (%s): ends are told up to a second late"
            )
            _log.warning(sentence, self._states, self._refusal)
        self._has_complained = True

    async def _converse(self) -> None:
        """One connection from its beginning to its end, which is when nobody watches any more."""
        self._refusal = None
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            connection = self._client.connection_pool.make_connection()
            await connection.connect()
        listening = Listening(connection, self._hear)
        self._is_away, self._heard_at = False, _clock()
        try:
            await self._ask(listening)
        finally:
            self._asked.clear()
            self._heard.clear()
            for acknowledged in self._acknowledged.values():
                acknowledged.set()
            self._acknowledged.clear()
            await listening.close()

    async def _ask(self, listening: Listening) -> None:
        """Ask for the channels that are new at once, and no more for others later. Return when nobody watches."""
        tick_at = _clock() + TICK_SECONDS
        idle_at = _clock() + IDLE_SECONDS
        while self._watching or _clock() < idle_at:
            self._news.clear()
            new = self._channels - self._asked
            self._asked |= new
            _say(listening, "SUBSCRIBE", new)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, tick_at - _clock())):
                    await self._news.wait()
            if self._refusal or not listening.is_open:
                raise self._refusal or away()
            if _clock() < tick_at:
                continue
            tick_at = _clock() + TICK_SECONDS
            idle_at = _clock() + IDLE_SECONDS if self._watching else idle_at
            stale = self._heard - self._channels
            self._asked -= stale
            self._heard -= stale
            _say(listening, "UNSUBSCRIBE", stale)
            silence = _clock() - self._heard_at
            if silence > PING_SECONDS + ANSWER_SECONDS:
                raise away()
            if silence > PING_SECONDS:
                listening.say("PING")
        self._wanted.clear()

    def _hear(self, said: Any) -> None:
        self._heard_at = _clock()
        match said:
            case [b"message", channel, word] if channel == self._states_bytes:
                task_id, _, state = word.decode().rpartition(" ")
                self._tell(task_id, _meaning(state))
            case [b"message", channel, word]:
                self._tell(channel.decode().removeprefix(f"{self._states}:"), (word.decode(),))
            case [b"subscribe", channel, _]:
                self._is_told(channel.decode())
            case Exception():
                self._refusal = said
                self._news.set()
            case None:
                self._news.set()

    def _is_told(self, channel: str) -> None:
        self._heard.add(channel)
        if acknowledged := self._acknowledged.pop(channel, None):
            acknowledged.set()
        if channel in self._trusted:  # something may have happened while nobody told
            self._doubts.set()

    # Looking for oneself

    async def _look_for_ever(self) -> None:
        while True:
            await self._wanted.wait()
            is_told = not self._is_away and self._channels <= self._heard
            pause = random.uniform(*LOOK_SECONDS) if is_told else LOOK_UNTOLD_SECONDS  # noqa: S311 - no secret
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._doubts.wait()
            self._doubts.clear()
            with contextlib.suppress(Error):
                await self._look()

    async def _look(self) -> None:
        """Tell what has changed since the last look; at the first look at a task, all that could have."""
        watched = list(self._watching)
        for start in range(0, len(watched), IDS_AT_ONCE):
            ids = watched[start : start + IDS_AT_ONCE]
            with Explained(self._watch):
                versions = await self._wire.run(self._versions_of, self._prefix, FORMAT, *ids)
            for task_id, version in zip(ids, versions, strict=True):
                before = self._versions.get(task_id)
                if task_id in self._watching and version != before:
                    self._versions[task_id] = version
                    self._tell(task_id, _difference(before, version))


def _say(listening: Listening, command: str, channels: Iterable[str]) -> None:
    names = sorted(channels)  # that of the states first
    for start in range(0, len(names), IDS_AT_ONCE):
        listening.say(command, *names[start : start + IDS_AT_ONCE])


def _meaning(word: str) -> Sequence[str]:
    """What a word on a task's channel says."""
    if word in STREAMS:
        return (word,)
    return (MOVED, ENDED) if word in _ENDS else (MOVED,)


def _difference(before: Sequence[bytes] | None, now: Sequence[bytes]) -> Sequence[str]:
    """The words for what has changed between two looks at a task."""
    state, run, *ends = before or (None, None, None, None)
    moved = _meaning(now[0].decode()) if [state, run] != now[:2] else ()
    return (*moved, *(name for name, old, new in zip(STREAMS, ends, now[2:], strict=True) if old != new))


def _clock() -> float:
    return asyncio.get_running_loop().time()
