"""What a connection may bring, in which pieces and in what time: requests whole, in their order, and no others."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

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
LATER = b"POST /later HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nwhole"
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

    ``/stream`` is answered at once, and to its end after a while; ``/never`` is not.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.port = 0
        self.turns: asyncio.Queue[None] = asyncio.Queue()
        self.starts: asyncio.Queue[None] = asyncio.Queue()
        self.packets: asyncio.Queue[None] = asyncio.Queue()
        self.is_begun = asyncio.Event()
        self.is_left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_begun.set()
        if scope["path"] == "/stream":
            await StreamingResponse(self.slowly())(scope, receive, send)
            return
        if scope["path"] == "/never":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.is_left.set()
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
        """All that is answered to these packets until the connection is ended; ``behind`` is asked first."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        whole = asyncio.ensure_future(reader.read())
        try:
            if behind:
                await self.bring(writer, behind, whole)
                await self.is_begun.wait()
            for piece in pieces:
                await self.bring(writer, piece, whole)
            return await asyncio.wait_for(whole, 20)
        finally:
            writer.close()

    def let_answer_come(self) -> None:
        """Do not wait with a late answer until the server's patience has ended so often."""
        for _ in range(LONG_TURNS):
            self.turns.put_nowait(None)

    async def bring(self, writer: asyncio.StreamWriter, piece: bytes, end: "asyncio.Future[bytes]") -> None:
        """Send a packet, and return when it has been taken, or the connection was ended."""
        writer.write(piece)
        taken = asyncio.ensure_future(self.packets.get())
        await asyncio.wait((taken, end), return_when=asyncio.FIRST_COMPLETED)
        taken.cancel()


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A site whose patience is short, and which knows how often it began and ended."""
    site = Site()
    start, give_up, take = BoundedHttp._start_clock, BoundedHttp._give_up, BoundedHttp.data_received

    def counted_start(self: BoundedHttp) -> None:
        site.starts.put_nowait(None)
        start(self)

    def counted_end(self: BoundedHttp) -> None:
        site.turns.put_nowait(None)
        give_up(self)

    def counted_packet(self: BoundedHttp, data: bytes) -> None:
        take(self, data)
        site.packets.put_nowait(None)

    monkeypatch.setattr(BoundedHttp, "data_received", counted_packet)
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
    config.timeout_keep_alive = 1
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
    answer = await site.answers(half, behind=LATER)
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
        site.let_answer_come()
        assert await asyncio.wait_for(reader.readline(), 20) == b"HTTP/1.1 200 OK\r\n"
        await site.has_begun("the time of the other, when the first is answered")
        assert site.starts.empty()
    finally:
        writer.close()


# What comes behind another request

CLOSE = b"Connection: close\r\n"
WHOLE = HEAD + b"Content-Length: 3\r\n\r\n123"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\n45\r\n0\r\nX-Trailer: 1\r\n\r\n"
LAST = b"GET /read HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"


def statuses(answers: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)


async def test_requests_are_the_same_however_they_are_cut(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests one behind the other, in two packets cut at each byte: three answers, in order."""
    monkeypatch.setattr(bounds, "SECONDS_TO_ASK", 60)
    requests = WHOLE + CHUNKED + LAST
    for cut in range(1, len(requests)):
        answers = await site.answers(requests[:cut], requests[cut:])

        assert (cut, statuses(answers)) == (cut, [b"200"] * 3)
        assert [answers.index(body) > 0 for body in (b"\r\n\r\n123", b"\r\n\r\n45")] == [True] * 2


async def test_a_body_that_looks_like_a_head_is_a_body(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its head may come with it, in a packet behind that of the request before."""
    monkeypatch.setattr(bounds, "SECONDS_TO_ASK", 60)
    body = b"0123\nUpgrade: y\r\n\r\n4567"
    head = HEAD + CLOSE + b"Content-Length: %d\r\n" % len(body)

    answers = await site.answers(WHOLE + head, b"\r\n" + body)

    assert statuses(answers) == [b"200"] * 2
    assert answers.endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize("pieces", [(WHOLE + b"POST /re",), (WHOLE, b"\r\n\r\nPOST /re"), (WHOLE + HEAD,)])
async def test_half_a_head_behind_another_request_is_refused(site: Site, pieces: tuple[bytes, ...]) -> None:
    """It has as much time as any, and then is told."""
    assert statuses(await site.answers(*pieces)) == [b"200", b"408"]


@pytest.mark.parametrize(
    "pieces",
    [
        (WHOLE,),
        (WHOLE, b"\r\n\r\n"),
        (b"GET /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", b"12345"),
    ],
)
async def test_a_silence_behind_an_answer_ends_the_connection(site: Site, pieces: tuple[bytes, ...]) -> None:
    """Neither empty lines nor a body that nobody waited for hold it open."""
    assert statuses(await site.answers(*pieces)) == [b"200"]


async def test_empty_lines_hold_no_connection_open(site: Site) -> None:
    """They may stand before a request (RFC 9112, section 2.2), and are none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    end = asyncio.ensure_future(reader.read())
    try:
        while not end.done():
            await site.bring(writer, b"\r\n\r\n", end)
        with suppress(ConnectionResetError):  # what came last was not read any more
            assert end.result() == b""
    finally:
        writer.close()


@pytest.mark.parametrize("wrong", [b"BAD\0\r\n\r\n", HEAD + b"X: " + b"x" * bounds.MAX_HEAD_BYTES + b"\r\n\r\n"])
@pytest.mark.parametrize("first", [LATER, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_refusal_waits_for_its_turn(site: Site, first: bytes, wrong: bytes) -> None:
    """What was asked before has its answer, whole, and then the refusal comes."""
    site.let_answer_come()

    answers = await site.answers(first, wrong)

    assert statuses(answers) in ([b"200", b"400"], [b"200", b"431"])
    assert b"whole" in answers or b"\r\nend\r\n0\r\n\r\nHTTP/1.1 4" in answers


async def test_a_queued_request_that_is_refused_is_not_answered_besides(site: Site) -> None:
    """Its body breaks off behind a request that still waits for its answer."""
    site.let_answer_come()

    answers = await site.answers(LATER + HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")

    assert statuses(answers) == [b"200", b"400"]


@pytest.mark.parametrize("path", [b"/at-once", b"/stream"])
async def test_no_request_has_two_answers(site: Site, path: bytes) -> None:
    """One whose body turns out to be wrong after its answer has begun is told no more; the connection ends."""
    site.let_answer_come()
    head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    answers = await site.answers(head, b"zz\r\n")

    assert statuses(answers) == [b"200"]


async def test_a_caller_who_leaves_is_missed_by_the_request_under_way(site: Site) -> None:
    """Also when another one waits behind it."""
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n" + LAST)
    await site.packets.get()
    writer.close()

    await asyncio.wait_for(site.is_left.wait(), 20)


# Heads


async def test_a_head_is_looked_at_once_however_it_comes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is looked for in what is new: byte by byte, a head of 64 kB would else take half a minute."""
    head_end = bounds._HEAD_END

    class Pattern:
        looked_at = 0

        def search(self, data: bytes, start: int = 0) -> re.Match[bytes] | None:
            self.looked_at += len(data) - start
            return head_end.search(data, start)

    pattern = Pattern()
    monkeypatch.setattr(bounds, "_HEAD_END", pattern)
    monkeypatch.setattr(bounds, "SECONDS_TO_ASK", 60)

    answer = await site.answers(*(LAST[place : place + 1] for place in range(len(LAST))))

    assert statuses(answer) == [b"200"]
    assert pattern.looked_at <= 10 * len(LAST)


async def test_a_wish_to_upgrade_behind_empty_lines_is_ignored(site: Site) -> None:
    """The body of the request is not taken for what comes after an upgrade."""
    wish = b"Upgrade: h2c\r\nConnection: upgrade, close\r\nContent-Length: 5\r\n\r\nhello"

    answer = await site.answers(b"\r\n\r\n" + HEAD + wish)

    assert (statuses(answer), answer[-9:]) == ([b"200"], b"\r\n\r\nhello")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (WHOLE + HEAD + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\n1", [b"200", b"400"]),
        (b"CONNECT /read HTTP/1.1\r\nHost: x\r\n\r\n", [b"400"]),
        (HEAD + b"Upgrade: a\0b\r\n\r\n", [b"400"]),
        (HEAD + b"Upgrade: a\rContent-Length: 5\r\n\r\nhello", [b"400"]),
        (HEAD + b"Upgrade : x\r\n\r\n", [b"400"]),
    ],
)
async def test_what_the_parser_would_refuse_is_refused(site: Site, wrong: bytes, expected: list[bytes]) -> None:
    """A wish to upgrade hides nothing, and what cannot be read to its end is not begun."""
    assert statuses(await site.answers(wrong)) == expected


async def test_a_trailer_field_is_no_header_field(site: Site) -> None:
    """Whichever packet it comes in (RFC 9110, section 6.5.1)."""
    head = HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"

    answer = await site.answers(head + b"1\r\n1\r\n0\r\nX-Request-ID: from-trailer\r\n\r\n")

    assert statuses(answer) == [b"200"]
    assert b"from-trailer" not in answer
