"""Bounds what a client may send, and for how long, before a request is whole: the parser itself knows no end."""

import asyncio
import re
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
_UPGRADE = re.compile(rb"\n[Uu][Pp][Gg][Rr][Aa][Dd][Ee][ \t]*:[^\n]*")


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
    for the next request.
    """

    _head = b""
    _is_in_head = True
    _idle_bytes = 0
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Joined(transport, self.loop))
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None and not self._head:
            self._stop_clock()  # of the silence before the first request
        if self._is_in_head:
            self._feed_head(data)
        else:
            self._feed_body(data)
        is_between_requests = self.cycle is not None and self._is_in_head and not self._head
        if self._clock is None and not is_between_requests:
            self._start_clock()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._idle_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = -1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_head = True
        self._stop_clock()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._clock is not None:
            self._start_clock()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Error(Code.INVALID_INPUT, msg))

    def _feed_head(self, data: bytes) -> None:
        """Feed the parser once the head is whole."""
        self._head += data
        end = _HEAD_END.search(self._head)
        if (end.end() if end else len(self._head)) > MAX_HEAD_BYTES:
            self._refuse(Error(Code.HEAD_TOO_LARGE, "The request line and header fields are too large."))
        elif end:
            head, rest = self._head[: end.end()], self._head[end.end() :]
            self._head = b""
            super().data_received(_UPGRADE.sub(b"", head) + rest)

    def _feed_body(self, data: bytes) -> None:
        """Feed the parser; what brings the body no further (chunk extensions, trailers) has a limit, too."""
        idle_before = max(0, self._idle_bytes)
        self._idle_bytes = idle_before + len(data)
        super().data_received(data)
        if self._idle_bytes > MAX_HEAD_BYTES and not self._is_in_head:
            self._refuse(Error(Code.HEAD_TOO_LARGE, "The trailer fields are too large."))

    def _unsupported_upgrade_warning(self) -> None:
        self.transport.close()  # only a pipelined request comes so far with its Upgrade

    def _refuse(self, error: Error) -> None:
        """Answer with this error, and end the connection."""
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
        elif (is_asked or self._head) and not self.transport.is_closing():
            self._refuse(Error(Code.TOO_SLOW, f"The request was not whole within {SECONDS_TO_ASK:g} seconds."))
        else:
            self.transport.close()
