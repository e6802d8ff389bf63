"""What every request has: an id, a place in its trace, cross-origin headers, a line in the counts."""

import logging
import random
import re
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from script_runner import journal
from script_runner.errors import Code, Error
from script_runner.ports import Span, Traces, Watch
from script_runner.service import Origin
from script_runner.trace import traceparent
from script_runner.web import problems
from script_runner.web.cors import Cors, Lines
from script_runner.web.request import FIELDS, Fields

ROUTE = "script_runner.route"
ORIGIN = "script_runner.origin"
"""Under which names the scope of a request has its route's template, and its Origin."""

NO_ROUTE = "none"
CALLER_HAS_GONE = 499
"""What is counted in place of a status when there was nobody left to answer."""

UNTRACED_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by machines: of no interest in a trace."""

NO_SNIFFING = (b"x-content-type-options", b"nosniff")

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")

_log = logging.getLogger("script_runner.web")


class Watched:
    """Watches over all requests of ``app``; each answer says its id in ``X-Request-ID``.

    It adds to answers in the one place through which all go, as each layer between costs every request.
    """

    def __init__(self, app: ASGIApp, cors: Cors, watch: Watch, traces: Traces) -> None:
        self._app = app
        self._cors = cors
        self._watch = watch
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        asked = scope[FIELDS] = Fields(scope)
        request_id = _request_id(asked)
        journal.about(request_id=request_id)  # for the rest of this request's own asyncio task
        span = self._span(scope, asked)
        scope[ORIGIN] = Origin(request_id, span.traceparent if span else None)
        fields = self._fields(asked, request_id)
        status = CALLER_HAS_GONE

        async def send_with_fields(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += fields
            await send(message)

        try:
            await (self._cors.preflight(scope["method"], asked) or self._app)(scope, receive, send_with_fields)
        except ClientDisconnect:  # in the middle of its body, or because that came too slowly: nobody waits
            pass
        except Exception:
            if status == CALLER_HAS_GONE:  # whatever it is, it is told and logged
                await problems.response(Error(Code.INTERNAL, ""))(scope, receive, send_with_fields)
            raise
        finally:
            self._tell(scope, span, status, time.perf_counter() - began)

    def refusal_fields(self) -> Lines:
        """What an answer gets besides that is given to no request, since none could be read."""
        return self._fields(Headers(raw=[]), _new_id())

    def _fields(self, asked: Headers, request_id: str) -> Lines:
        return [NO_SNIFFING, *self._cors.fields(asked), (b"x-request-id", request_id.encode())]

    def _span(self, scope: Scope, asked: Headers) -> Span | None:
        if scope["path"] in UNTRACED_PATHS:
            return None
        parent = traceparent(asked.getlist("traceparent"))
        return self._traces.begin("request", parent=parent, kind="server")

    def _tell(self, scope: Scope, span: Span | None, status: int, seconds: float) -> None:
        method, route = scope["method"], scope.get(ROUTE, NO_ROUTE)
        self._watch.answered(method, route, status, seconds=seconds)
        if span:
            attributes = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            span.end(attributes, is_error=status >= 500)  # noqa: PLR2004 - RFC 9110, section 15.6
        if _log.isEnabledFor(logging.DEBUG):
            fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
            sentence = f"{method} {route} {status} ({seconds * 1000:.1f} ms)"
            journal.event(_log, "request", sentence, fields, level=logging.DEBUG)


def _request_id(asked: Headers) -> str:
    """The id that the caller gave, if it is a sane one, else a new one."""
    given = asked.getlist("x-request-id")
    return given[0] if len(given) == 1 and _SANE.fullmatch(given[0]) else _new_id()


def _new_id() -> str:
    return f"{random.getrandbits(128):032x}"  # no secret, and a system call less
