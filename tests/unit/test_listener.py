"""The listener for those who watch: what it answers, and that nobody can hold it up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from script_runner.adapters import listener
from script_runner.adapters.listener import Answer, Listener

pytestmark = pytest.mark.anyio


async def page(accept: str) -> Answer:
    return Answer(200, "text/plain", f"accepts {accept}".encode())


async def broken(_accept: str) -> Answer:
    raise RuntimeError("secret")


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """The port of a listener with two pages."""
    it = Listener({"/page": page, "/broken": broken})
    port = await it.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await it.close()


async def said(port: int, request: bytes) -> bytes:
    """All that is answered to these bytes, until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"GET /page?x=1 HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /page HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"GET /page SPDY\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", b"400 Bad Request"),
        (b"GET /page HTTP/1.1\r\nX: " + b"y" * 9000 + b"\r\n\r\n", b"431 Request Header Fields Too Large"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500 Internal Server Error"),
    ],
)
async def test_answers(request_bytes: bytes, status: bytes) -> None:
    """Each request is answered by its status, and the connection ends."""
    async with listening() as port:
        answer = await said(port, request_bytes)

    assert answer.split(b"\r\n")[0] == b"HTTP/1.1 " + status
    assert b"secret" not in answer


async def test_head_has_no_body() -> None:
    """HEAD is answered as GET, without the body."""
    async with listening() as port:
        answer = await said(port, b"HEAD /page HTTP/1.1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


async def test_accept_reaches_the_page() -> None:
    """The page is told what the caller accepts, in how many lines it may stand."""
    async with listening() as port:
        answer = await said(port, b"GET /page HTTP/1.1\r\naccept: a/b\r\nAccept: c/d;q=0.5\r\n\r\n")

    assert answer.endswith(b"accepts a/b,c/d;q=0.5")


async def test_silent_connections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that say nothing end by themselves."""
    monkeypatch.setattr(listener, "SECONDS_IN_ALL", 0.1)
    async with listening() as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        ends = [await _rest(reader) for reader, _ in silent]
        for _, writer in silent:
            writer.close()

    assert ends == [b"", b"", b""]


async def test_silent_connections_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number the oldest connection goes: who asks at once is answered, however many are silent."""
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 3)
    async with listening() as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        answer = await said(port, b"GET /page HTTP/1.1\r\n\r\n")
        gone = [await _rest(reader) for reader, _ in silent[:3]]
        still_open = [not reader.at_eof() for reader, _ in silent[3:]]
        for _, writer in silent:
            writer.close()

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert (gone, still_open) == ([b"", b"", b""], [True, True])


async def test_close_ends_what_is_open() -> None:
    """Closing waits for nobody."""
    async with listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /pa")
        await writer.drain()

    assert await _rest(reader) == b""
    writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes; a connection that was cut counts as ended."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
