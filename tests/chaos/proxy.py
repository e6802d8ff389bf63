"""A wire to Redis that can be cut, stopped in one direction or both, slowed down and half closed."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
PIECE_BYTES = 1 << 16


class Exchange:
    """The thread that carries the bytes of all wires."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="wires", daemon=True)
        self._wires: list[Wire] = []

    def wire(self, port: int) -> "Wire":
        """A new wire to this port."""
        wire = Wire(self, port)
        self.wait(wire.open())
        self._wires.append(wire)
        return wire

    def wait(self, job: Coroutine[Any, Any, None]) -> None:
        """Do this in the thread of the wires, and return when it is done."""
        future: Future[None] = asyncio.run_coroutine_threadsafe(job, self.loop)
        future.result(30)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for wire in self._wires:
            self.wait(wire.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Wire:
    """One program's way to Redis. Bytes that are held are delivered late, as TCP does after a partition."""

    def __init__(self, exchange: Exchange, port: int) -> None:
        self.port = 0
        self._exchange = exchange
        self._target = port
        self._is_refusing = False
        self._delay = 0.0
        self._requests, self._answers = asyncio.Event(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._carriers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def cut(self) -> None:
        """Break all connections."""
        self._do(self._break)

    def refuse(self) -> None:
        """Break all connections, and each new one at once."""
        self._do(self._refuse)

    def hold(self, *, requests: bool, answers: bool) -> None:
        """Let nothing through in these directions until it is healed."""
        self._do(lambda: self._hold(requests=requests, answers=answers))

    def delay(self, seconds: float) -> None:
        """Let every piece wait so long, each way."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def half_close(self, *, to_redis: bool) -> None:
        """Say to one side of every connection that the other has nothing more to say."""
        self._do(lambda: self._half_close(to_redis=to_redis))

    def aim(self, port: int) -> None:
        """Lead to another server from now on."""
        self._target = port
        self.cut()

    def heal(self) -> None:
        """Let everything through again; what was held is delivered."""
        self._do(self._heal)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._heal()

    async def close(self) -> None:
        self._server.close()
        self._heal()
        self._break()
        for carrier in tuple(self._carriers):
            carrier.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)

    def _do(self, deed: Callable[[], object]) -> None:
        async def now() -> None:
            deed()

        self._exchange.wait(now())

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _refuse(self) -> None:
        self._is_refusing = True
        self._break()

    def _hold(self, *, requests: bool, answers: bool) -> None:
        if requests:
            self._requests.clear()
        if answers:
            self._answers.clear()

    def _half_close(self, *, to_redis: bool) -> None:
        for writer in self._writers:
            if getattr(writer, "leads_to_redis", False) == to_redis:
                _end(writer)

    def _heal(self) -> None:
        self._is_refusing = False
        self._delay = 0.0
        self._requests.set()
        self._answers.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carrier = asyncio.current_task()
        assert carrier
        self._carriers.add(carrier)
        self._writers.add(writer)
        try:
            if self._is_refusing:
                return
            with contextlib.suppress(OSError):
                await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass  # the wire is closed
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._carriers.discard(carrier)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection(HOST, self._target)
        redis_writer.leads_to_redis = True  # type: ignore[attr-defined]
        self._writers.add(redis_writer)
        try:
            await asyncio.gather(
                self._carry(reader, redis_writer, self._requests), self._carry(redis_reader, writer, self._answers)
            )
        finally:
            redis_writer.transport.abort()
            self._writers.discard(redis_writer)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        while piece := await reader.read(PIECE_BYTES):
            if self._delay:
                await asyncio.sleep(self._delay)
            await gate.wait()
            if not _has_ended(writer):
                writer.write(piece)
                await writer.drain()
        await gate.wait()
        _end(writer)


def _end(writer: asyncio.StreamWriter) -> None:
    if not _has_ended(writer):
        writer.ended = True  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            writer.write_eof()


def _has_ended(writer: asyncio.StreamWriter) -> bool:
    return getattr(writer, "ended", False) or writer.is_closing()
