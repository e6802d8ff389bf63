"""How long a request may take to arrive: what is not whole in time is ended, and what is, is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from script_runner.ports import Untraced, Unwatched
from script_runner.web import bounds
from script_runner.web.bounds import BoundedHttp
from script_runner.web.cors import Cors
from script_runner.web.watched import CALLER_HAS_GONE, Watched

pytestmark = pytest.mark.anyio

HEAD = b"POST /read HTTP/1.1\r\nHost: x\r\n"
LONG_TURNS = 3
"""How many times the patience of the server has ended before the answer of ``/later`` comes."""


class Counts(Unwatched):
    """The statuses that were answered."""

    def __init__(self) -> None:
        self.statuses: asyncio.Queue[int] = asyncio.Queue()

    def answered(self, _method: str, _route: str, status: int, *, seconds: float) -> None:
        del seconds
        self.statuses.put_nowait(status)


class Site:
    """Answers ``/read`` with the body it was sent, ``/at-once`` without a look at it, ``/later`` after a while.

    ``/stream`` is answered at once, and to its end after a while.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.port = 0
        self.turns: asyncio.Queue[None] = asyncio.Queue()
        self.starts: asyncio.Queue[None] = asyncio.Queue()
        self.is_begun = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_begun.set()
        if scope["path"] == "/stream":
            await StreamingResponse(self.slowly())(scope, receive, send)
            return
        body = b"" if scope["path"] == "/at-once" else await Request(scope, receive).body()
        if scope["path"] == "/later":
            await self.a_while()
        await PlainTextResponse(body)(scope, receive, send)

    async def slowly(self) -> AsyncIterator[bytes]:
        yield b"begin"
        await self.a_while()
        yield b"end"

    async def a_while(self) -> None:
        for _ in range(LONG_TURNS):
            await self.turns.get()

    async def has_begun(self, what: str) -> None:
        """Wait until the server has begun to count the time of this."""
        try:
            await asyncio.wait_for(self.starts.get(), 20)
        except TimeoutError:
            pytest.fail(f"no time was counted for {what}")

    async def answers(self, *pieces: bytes, behind: bytes = b"") -> bytes:
        """All that is answered to these pieces until the server ends the connection; ``behind`` is asked first."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            if behind:
                writer.write(behind)
                await self.is_begun.wait()
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)  # a packet of its own, most times: the outcome is the same if not
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A site whose patience is short, and which knows how often it began and ended."""
    site = Site()
    start, give_up = BoundedHttp._start_clock, BoundedHttp._give_up

    def counted_start(self: BoundedHttp) -> None:
        site.starts.put_nowait(None)
        start(self)

    def counted_end(self: BoundedHttp) -> None:
        site.turns.put_nowait(None)
        give_up(self)

    monkeypatch.setattr(bounds, "SECONDS_TO_ASK", 0.1)
    monkeypatch.setattr(BoundedHttp, "_start_clock", counted_start)
    monkeypatch.setattr(BoundedHttp, "_give_up", counted_end)
    async with served(site):
        yield site


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[None]:
    watched = Watched(site, Cors(("*",)), site.counts, Untraced())
    config = uvicorn.Config(
        watched, http=BoundedHttp, ws="none", lifespan="off", proxy_headers=False, log_config=None
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: BoundedHttp(config, state, {}), "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        await asyncio.gather(*state.tasks)


async def test_who_says_nothing_is_told_nothing(site: Site) -> None:
    """A connection without a request is closed, also if it brings empty lines, which may stand before one."""
    assert await site.answers() == b""
    assert await site.answers(b"\r\n\r\n") == b""


@pytest.mark.parametrize(
    "pieces",
    [
        (b"POST /read HT",),
        (HEAD + b"X-Some", b": th"),
        (HEAD + b"Content-Length: 100\r\n\r\n",),
        (HEAD + b"Content-Length: 100\r\n\r\n", b"12345"),
        (HEAD + b"Content-Length: 3\r\n\r\n123" + HEAD + b"Content-Length: 3\r\n\r\n12",),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\n12345\r\n", b"5"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0\r\n", b"X-Trailer: 1\r\n"),
    ],
)
async def test_half_a_request_is_refused(site: Site, pieces: tuple[bytes, ...]) -> None:
    """A head or a body that does not come whole is answered 408 (RFC 9110, section 15.5.9)."""
    answer = await site.answers(*pieces)

    assert answer.count(b"HTTP/1.1 408 Request Timeout\r\n") == 1
    assert b"connection: close\r\n" in answer
    assert b'"type":"urn:problem-type:script-runner:too-slow"' in answer


async def test_a_caller_who_did_not_finish_is_counted_as_gone(site: Site) -> None:
    """It is no fault of the server: 499, and nothing is raised."""
    await site.answers(HEAD + b"Content-Length: 100\r\n\r\n", b"12345")

    assert await asyncio.wait_for(site.counts.statuses.get(), 20) == CALLER_HAS_GONE


async def test_a_body_that_nobody_waits_for_ends_the_connection(site: Site) -> None:
    """What was answered before its body came is not answered again."""
    answer = await site.answers(b"GET /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")

    assert (answer.count(b"HTTP/1.1 "), answer.count(b"HTTP/1.1 200 OK")) == (1, 1)


@pytest.mark.parametrize("half", [b"POST /re", HEAD + b"Content-Length: 100\r\n\r\n12345"])
async def test_an_answer_that_takes_longer_is_not_cut(site: Site, half: bytes) -> None:
    """Half a request behind a whole one is refused when the whole one has had its answer."""
    later = b"POST /later HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nwhole"
    answer = await site.answers(half, behind=later)
    first, _, second = answer.partition(b"HTTP/1.1 408 ")

    assert first.startswith(b"HTTP/1.1 200 OK")
    assert first.endswith(b"whole")
    assert second


async def test_a_stream_is_not_cut(site: Site) -> None:
    """An answer that has begun comes to its end, though the body of its request never does."""
    answer = await site.answers(b"GET /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")

    assert answer.endswith(b"\r\nend\r\n0\r\n\r\n")


async def test_each_request_has_all_the_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the silence before a request nor the answer to an earlier one is counted."""
    monkeypatch.setattr(bounds, "SECONDS_TO_ASK", 60)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        await site.has_begun("a connection")
        writer.write(b"POST /la")
        await site.has_begun("a head")
        writer.write(b"ter HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await site.is_begun.wait()
        writer.write(HEAD + b"Content-Length: 5\r\n\r\n12")
        await site.has_begun("another, when the first request has come whole")
        for _ in range(LONG_TURNS):
            site.turns.put_nowait(None)
        assert await asyncio.wait_for(reader.readline(), 20) == b"HTTP/1.1 200 OK\r\n"
        await site.has_begun("the time of the other, when the first is answered")
        assert site.starts.empty()
    finally:
        writer.close()
