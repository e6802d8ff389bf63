"""A small TCP load balancer: new connections go to backends whose /ready says 200; it retries nothing."""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.end_to_end.processes import until

HOST = "127.0.0.1"
LOOK_SECONDS = 0.05
"""How often each backend is asked whether it is ready."""

ANSWER_SECONDS = 5.0
PIECE_BYTES = 1 << 16


class Balancer:
    """Listens on loopback from a thread of its own; backends come and go."""

    def __init__(self) -> None:
        self.carried: dict[str, int] = {}
        """How many connections each backend ever got, by its URL."""
        self._ready: dict[str, bool] = {}
        self._port = 0
        self._turn = 0
        self._listens = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="balancer", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    def add(self, backend: str) -> None:
        """Take a backend in, and return when it is ready."""
        self._loop.call_soon_threadsafe(self._take_in, backend)
        until(lambda: self._ready.get(backend))

    def remove(self, backend: str) -> None:
        self._loop.call_soon_threadsafe(self._ready.pop, backend)

    def is_ready(self, backend: str) -> bool:
        """Whether it gets new connections now."""
        return self._ready.get(backend, False)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listens.wait(ANSWER_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, HOST, 0, backlog=256))
        self._port = server.sockets[0].getsockname()[1]
        self._listens.set()
        self._loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # closed transports take leave
        self._loop.close()

    def _take_in(self, backend: str) -> None:
        self._ready[backend] = False
        self.carried[backend] = 0
        self._watcher = self._loop.create_task(self._watch(backend))

    async def _watch(self, backend: str) -> None:
        while backend in self._ready:
            is_ready = await _is_ready(backend)
            if backend in self._ready:
                self._ready[backend] = is_ready
            await asyncio.sleep(LOOK_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, carried both ways until one side ends it; without a ready backend it is hung up."""
        with contextlib.closing(writer):
            backend = self._next()
            if backend is None:
                return
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(*_address(backend))
                with contextlib.closing(far_writer):
                    asking = asyncio.create_task(_carry(reader, far_writer))
                    await _carry(far_reader, writer)
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)

    def _next(self) -> str | None:
        ready = [backend for backend, is_ready in self._ready.items() if is_ready]
        if not ready:
            return None
        self._turn += 1
        chosen = ready[self._turn % len(ready)]
        self.carried[chosen] += 1
        return chosen


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way to their end; a connection that breaks is an end too."""
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _is_ready(backend: str) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(*_address(backend))
            with contextlib.closing(writer):
                writer.write(b"GET /ready HTTP/1.1\r\nHost: balancer\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False


def _address(backend: str) -> tuple[str, int]:
    url = urlsplit(backend)
    assert url.hostname
    assert url.port
    return url.hostname, url.port
