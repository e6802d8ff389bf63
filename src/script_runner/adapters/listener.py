"""A small HTTP listener for those who watch: a few pages, GET only, one answer a connection.

A worker has no other HTTP, and a server's own would be 15 MB there. What comes from outside is bounded: how many
connections at once, how long a head, and how long a connection may take in all, silent or not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

MAX_HEAD_BYTES: Final = 8 * 1024
MAX_CONNECTIONS: Final = 32
SECONDS_IN_ALL: Final = 10.0
"""How long a connection may live, whatever it does or waits for."""

_log = logging.getLogger("script_runner.listener")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page answers."""

    status: int
    media_type: str
    body: bytes


Page = Callable[[str], Awaitable[Answer]]
"""Makes the answer, given the Accept header."""


class Listener:
    """Serves ``pages`` by their path on a host and port until it is closed."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._open: dict[asyncio.StreamWriter, None] = {}
        self._server: asyncio.Server

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which was chosen if 0 was asked for. OSError if that cannot be."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:  # the oldest goes: who asks at once is answered, whoever is silent
            self._open.pop(oldest := next(iter(self._open)))
            oldest.transport.abort()
        self._open[writer] = None
        try:
            async with asyncio.timeout(SECONDS_IN_ALL):
                writer.write(await self._response(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # who says nothing is told nothing
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _written(_plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):  # noqa: PLR2004 - method, target, version
            return _written(_plain(HTTPStatus.BAD_REQUEST))
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _written(_plain(HTTPStatus.METHOD_NOT_ALLOWED), fields="Allow: GET, HEAD\r\n")
        page = self._pages.get(target.partition("?")[0])
        answer = await self._answer(page, _accept(lines[1:])) if page else _plain(HTTPStatus.NOT_FOUND)
        return _written(answer, is_head=method == "HEAD")

    async def _answer(self, page: Page, accept: str) -> Answer:
        try:
            return await page(accept)
        except Exception:  # noqa: BLE001 - who watches is to hear of it, and we go on
            _log.exception("a page for those who watch could not be made")
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)


def _accept(lines: list[str]) -> str:
    fields = (line.partition(":") for line in lines)
    return ",".join(value.strip() for name, _, value in fields if name.lower() == "accept")


def _plain(status: HTTPStatus) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode())


def _written(answer: Answer, *, fields: str = "", is_head: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        f"Content-Type: {answer.media_type}\r\nContent-Length: {len(answer.body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{fields}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if is_head else answer.body)
