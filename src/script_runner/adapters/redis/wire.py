"""One connection to Redis for many callers: calls go out as they come, answers are given out in their order.

redis-py makes the connection (TLS, password, Sentinel, which server it is) and then leaves its stream to us: a
call costs no pool, no lock and no task, and so a third of what it costs there (docs/decisions/queue.md).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
import redis.exceptions

Words = tuple[str | bytes | float, ...]


class Wire:
    """Calls over one connection of a pool, which is made when it is first needed, and again when it was lost."""

    def __init__(self, pool: Any, *, patience_seconds: float) -> None:
        self._pool = pool
        self._patience = patience_seconds
        self._line: _Line | None = None
        self._opening = asyncio.Lock()
        self._is_closed = False

    async def call(self, *words: str | bytes | float, more_seconds: float = 0.0) -> Any:
        """The answer. A call whose connection is lost is made once more, so it must bear being made twice.

        Raises what redis-py raises, and TimeoutError when there is no answer in time; a command that blocks is
        given ``more_seconds``.
        """
        deadline = asyncio.get_running_loop().time() + self._patience + more_seconds
        if self._line is not None and self._line.is_open:
            try:
                return await self._line.call(words, deadline)
            except redis.exceptions.ConnectionError:
                pass
        async with asyncio.timeout_at(deadline):
            line = await self._opened()
            return await line.call(words, deadline)

    async def run(self, script: Any, key: str, *arguments: str | bytes | float) -> Any:
        """What a script of redis-py answers, as ``call``; its text is sent only to a server that lacks it."""
        try:
            return await self.call("EVALSHA", script.sha, 1, key, *arguments)
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return await self.call("EVAL", script.script, 1, key, *arguments)

    def drop(self) -> None:
        """Give up what is under way; the next call is made by a new connection."""
        if self._line is not None:
            self._line.drop()

    async def close(self) -> None:
        """End the connection; calls that wait for an answer fail."""
        self._is_closed = True
        if self._line is not None:
            await self._line.close()

    async def _opened(self) -> "_Line":
        async with self._opening:  # one caller makes it, the others wait
            if self._is_closed:
                raise redis.exceptions.ConnectionError("the connection was closed")
            if self._line is None or not self._line.is_open:
                if self._line is not None:
                    await self._line.close()
                connection = self._pool.make_connection()
                await connection.connect()
                line = _Line(connection)
                if self._is_closed:  # meanwhile
                    await line.close()
                    raise redis.exceptions.ConnectionError("the connection was closed")
                self._line = line
            return self._line


class _Stream(asyncio.Protocol):
    """The stream of one connection, taken over from redis-py."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transport: asyncio.Transport = connection._writer.transport  # noqa: SLF001 - it has no other name
        self._streams = self._transport.get_protocol()
        self._answers = hiredis.Reader(replyError=redis.exceptions.ResponseError)
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def drop(self) -> None:
        self._transport.abort()

    async def close(self) -> None:
        self.drop()
        await self._connection.disconnect(nowait=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.connection_lost(exc)


class Listening(_Stream):
    """A connection on which Redis speaks by itself (Pub/Sub in RESP2).

    ``hear`` is called with all that it says, an error as an exception; with None when the connection is lost.
    """

    def __init__(self, connection: Any, hear: Callable[[Any], None]) -> None:
        super().__init__(connection)
        self._hear = hear

    def say(self, *words: str | bytes | float) -> None:
        """Send a command; whatever answer it has is heard."""
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._answers.feed(data)
        while (said := self._answers.gets()) is not False:
            self._hear(said)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hear(None)
        super().connection_lost(exc)


class _Line(_Stream):
    """A connection whose calls are answered in their order."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._clock = asyncio.get_running_loop()
        self._watch: asyncio.TimerHandle | None = None
        self._unsent: list[bytes] = []

    def call(self, words: Words, deadline: float) -> "asyncio.Future[Any]":
        """The answer to come. What is called in one turn of the loop while one is awaited is sent together."""
        command = hiredis.pack_command(words)  # type: ignore[arg-type]
        if not self._waiting:
            self._transport.write(command)
        else:
            if not self._unsent:
                self._clock.call_soon(self._send)
            self._unsent.append(command)
        answer: asyncio.Future[Any] = self._clock.create_future()
        self._waiting.append((answer, deadline))
        if self._watch is None:
            self._watch = self._clock.call_at(deadline, self._look)
        return answer

    def _send(self) -> None:
        commands, self._unsent = self._unsent, []
        if self.is_open:
            self._transport.write(b"".join(commands))

    def _look(self) -> None:
        """End a connection that owes an answer; otherwise look again when the next is due."""
        self._watch = None
        if self._waiting:
            due = self._waiting[0][1]
            if due <= self._clock.time():
                self._transport.abort()
            else:
                self._watch = self._clock.call_at(due, self._look)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._answers.feed(data)
        while (answer := self._answers.gets()) is not False:
            if not self._waiting:  # what nobody asked for would be the next caller's answer
                self._transport.abort()
                return
            is_error = isinstance(answer, redis.exceptions.ResponseError)
            if is_error and _is_of_replica(str(answer)):  # a master no longer: there is another
                self._transport.abort()
                return
            waiting, _ = self._waiting.popleft()
            if waiting.done():  # its caller has gone
                continue
            if is_error:
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for waiting, _ in self._waiting:
            if not waiting.done():
                waiting.set_exception(redis.exceptions.ConnectionError("the connection was lost"))
        self._waiting.clear()
        super().connection_lost(exc)


def _is_of_replica(refusal: str) -> bool:
    """Whether a server takes no writes any more; Redis 6.2 wraps in words of its own what a script was told."""
    return refusal.startswith("READONLY") or ": -READONLY " in refusal
