"""Bounds what a client may send, and for how long, before a request is whole: the parser itself knows no end."""

import asyncio
import re
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from script_runner.errors import Code, Error
from script_runner.web import problems
from script_runner.web.watched import Watched

MAX_HEAD_BYTES: Final = 64 * 1024
"""Request line and header fields together; also what may come between the parts of a chunked body."""

SECONDS_TO_ASK: Final = 60.0
"""How long a request may take to arrive, and a connection may stand open before its first.

What is not read because an earlier answer is still to come takes no time.
"""

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_UPGRADE = re.compile(rb"\n[Uu][Pp][Gg][Rr][Aa][Dd][Ee]:[\t -~\x80-\xff]*\r(?=\n)")
_LONGEST_BREAK = len(b"\r\n\r\n")


class _Joined:
    """A transport that sends the head of an answer together with the first piece of its body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            pieces, self._head = [self._head, data], b""
            self._transport.writelines(pieces)
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)  # a body that does not come at once is not waited for
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol behind a gate: a head goes in when it is whole, and without a wish to upgrade.

    A server may ignore Upgrade (RFC 9110, section 7.8), but the parser would stop before the body, and take that
    for the next request. What comes in one packet with the end of an earlier request passes the gate with it
    (pipelining); there a wish to upgrade is refused.
    """

    _head = b""
    _is_in_head = True
    _is_begun = False
    """Whether the parser has the beginning of a head, behind an earlier request, so that the gate has not."""

    _idle_bytes = 0
    _clock: asyncio.TimerHandle | None = None
    _under_way: RequestResponseCycle | None = None
    _refusal: Error | None = None
    """What is said when all that was asked before has its answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Joined(transport, self.loop))
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        under_way = self._under_way
        if under_way is not None and not under_way.response_complete:  # uvicorn tells only the last request
            under_way.disconnected = True
            under_way.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_between_requests:
            data = data.lstrip(b"\r\n")  # empty lines may stand before a request (RFC 9112, section 2.2)
        if not data or self._refusal or self.transport.is_closing():
            return
        if self.cycle is None and not self._head:
            self._stop_clock()  # of the silence before the first request
        self._unset_keepalive_if_required()
        if self._is_in_head and not self._is_begun:
            self._feed_head(data)
        else:
            self._feed_body(data)
        if not self._refusal and not self.transport.is_closing():
            self._wait_for_more()

    @property
    def _is_between_requests(self) -> bool:
        return self._is_in_head and not self._is_begun and not self._head

    def _wait_for_more(self) -> None:
        """Count the time of a request that is not whole; behind one that is, and answered, that of a silence."""
        if not self._is_between_requests:
            if self._clock is None:
                self._start_clock()
        elif self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        self._is_begun = True
        self._idle_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # a trailer field is no header field (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            raise ValueError("CONNECT, or a wish to upgrade behind another request: its body would be lost")
        super().on_headers_complete()  # which raises at a target that it cannot read
        self._is_in_head = self._is_begun = False
        self._idle_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = -1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_head = True
        self._stop_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if self._refusal and is_last:
            self._say(self._refusal)
        elif self._clock is not None:
            self._start_clock()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._under_way = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        self._refuse(Error(Code.INVALID_INPUT, msg))

    def _feed_head(self, data: bytes) -> None:
        """Feed the parser once the head is whole."""
        looked_at = max(0, len(self._head) - _LONGEST_BREAK)
        self._head += data
        end = _HEAD_END.search(self._head, looked_at)
        if (end.end() if end else len(self._head)) > MAX_HEAD_BYTES:
            self._refuse(Error(Code.HEAD_TOO_LARGE, "The request line and header fields are too large."))
        elif end:
            head, rest = self._head[: end.end()], self._head[end.end() :]
            self._head = b""
            super().data_received(_UPGRADE.sub(b"", head) + rest)

    def _feed_body(self, data: bytes) -> None:
        """Feed the parser; what brings no body (a head, chunk extensions, trailers) has a limit, too."""
        idle_before = max(0, self._idle_bytes)
        self._idle_bytes = idle_before + len(data)
        super().data_received(data)
        if self._idle_bytes > MAX_HEAD_BYTES and not self._is_between_requests and not self._refusal:
            self._refuse(Error(Code.HEAD_TOO_LARGE, "The header or trailer fields are too large."))

    def _refuse(self, error: Error) -> None:
        """Answer the request that comes now with this error, in its turn; it is the last of its connection."""
        self._stop_clock()
        is_in_body = not self._is_in_head
        if is_in_body and self.pipeline:
            self.pipeline.popleft()  # it waits there itself
            self._refusal = error
        elif is_in_body and self.cycle.response_complete:
            self.transport.close()  # it has had its answer
        elif is_in_body and self.cycle.response_started:
            self._refusal = error
            self.cycle.keep_alive = False  # it has half of its answer, and with that the connection ends
        elif not is_in_body and self.cycle is not None and not self.cycle.response_complete:
            self._refusal = error
        else:
            self._say(error)

    def _say(self, error: Error) -> None:
        """Answer with this error, and end the connection."""
        if self.transport.is_closing():
            return
        answer = problems.response(error)
        status = f"HTTP/1.1 {answer.status_code} {problems.STATUS[error.code].phrase}\r\n".encode()
        application = cast("Watched", self.app)
        fields = [*answer.raw_headers, *application.refusal_fields(), (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
        self.transport.write(status + lines + b"\r\n" + bytes(answer.body))
        self.transport.close()

    def _start_clock(self) -> None:
        self._stop_clock()
        self._clock = self.loop.call_later(SECONDS_TO_ASK, self._give_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        """End a request that is still not whole; an answer that is on its way is waited for."""
        cycle = self.cycle
        is_asked = cycle is not None and not cycle.response_complete
        if self.pipeline or (is_asked and (self._is_in_head or cycle.response_started)):
            self._start_clock()
        elif (is_asked or not self._is_between_requests) and not self.transport.is_closing():
            self._refuse(Error(Code.TOO_SLOW, f"The request was not whole within {SECONDS_TO_ASK:g} seconds."))
        else:
            self.transport.close()
