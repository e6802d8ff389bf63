"""The routes: HTTP in, a call of the service, a document out."""

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from importlib import resources
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from script_runner.errors import Code, Error, Problem
from script_runner.follow import Place
from script_runner.inputs import Request
from script_runner.ports import ANONYMOUS, AuthProvider, Identity, Label, Traces, Untraced
from script_runner.service import MAX_LOG_OFFSET, MAX_PAGE, Service, Wishes
from script_runner.streams import STREAMS
from script_runner.task import Artifact, State, Task
from script_runner.web import documents, openapi, problems
from script_runner.web.cors import Cors
from script_runner.web.events import HEADERS, MEDIA_TYPE, EventStream
from script_runner.web.request import HttpRequest
from script_runner.web.watched import CALLER_HAS_GONE, ORIGIN, ROUTE, Watched

ONE_PIECE_BYTES = 256 * 1024
"""A document up to this size is sent in one piece, with its length."""

CANCEL_SECONDS = 0.25
REDIRECT_BYTES = 1 << 20
"""From this size on a file may be fetched from the store itself: below, the second request costs more."""

REDIRECT_SECONDS = 300
"""How long a URL of the store is good for; a download that began in time goes on."""

LONGEST_DELAY_SECONDS = 366 * 86_400

RESULTS_MEDIA_TYPES = {"json": "application/json", "csv": "text/csv; charset=utf-8; header=present"}

PAGE_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
FILE_POLICY = "default-src 'none'; sandbox"
"""A file comes from a script: a browser is to run nothing in it (Content Security Policy 3)."""

Found = TypeVar("Found")

NO_QUERY = QueryParams()
"""Most polls have none, and reading nothing takes its time, too."""

REDIRECT_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
"""The URL that a redirect leads to is a secret for as long as it is good."""

Handler = Callable[[HttpRequest, Identity], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose for the HTTP side."""

    version: str
    max_body_bytes: int = 1 << 20
    cors_origins: tuple[str, ...] = ("*",)
    is_authenticated: bool = False
    redirects_downloads: bool = False
    is_stopping: Callable[[], bool] = bool
    max_wait_seconds: float = 60.0
    metrics: Callable[[str], Awaitable[tuple[str, bytes]]] | None = None
    """Media type and text of the page for Prometheus, given the Accept header."""


def application(
    service: Service, auth: AuthProvider, options: Options, *, traces: Traces | None = None
) -> ASGIApp:
    """The ASGI application. Every route but ``/health`` asks ``auth`` first."""
    api = _Api(service, options)

    def route(path: str, method: str, handler: Handler, asks: AuthProvider = auth) -> Route:
        found = Route(path, _Door(path, handler, asks), methods=[method])
        found.path_regex = re.compile(found.path_regex.pattern, re.DOTALL)  # a newline may stand in path and name
        return found

    routes = [  # what is asked most comes first, since each is tried until one fits
        route("/task/{id}", "GET", api.get),
        route("/task", "POST", api.submit),
        route("/task/{id:uuid}/cancel", "POST", api.cancel),
        route("/task/{path:path}", "POST", api.submit),
        route("/task", "GET", api.list),
        route("/task/{id}", "DELETE", api.remove),
        route("/task/{id}/results", "GET", api.results),
        route("/task/{id}/attachments/{name:path}", "GET", api.attachment),
        route("/task/{id}/logs", "GET", api.logs),
        route("/task/{id}/events", "GET", api.events),
        route("/script/{id}", "GET", api.get),
        route("/script", "POST", api.submit_script),
        route("/script/{path:path}", "POST", api.submit_script),
        route("/health", "GET", api.health, _Anyone()),
        route("/ready", "GET", api.ready),
        route("/metrics", "GET", api.metrics),
        route("/", "GET", api.home),
        route("/openapi.json", "GET", api.openapi),
        route("/docs", "GET", api.docs),
        route("/docs/{asset}", "GET", api.asset),
    ]
    return Watched(_Site(routes), Cors(options.cors_origins), service.watch, traces or Untraced())


class _Site:
    """The routes; what Starlette has besides would stand on every request's way, and we need none of it."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # or the router would answer by itself what it refuses
        try:
            await self._router.app(scope, receive, send)
        except HTTPException as error:
            await self._refusal(scope, error)(scope, receive, send)

    def _refusal(self, scope: Scope, error: HTTPException) -> Response:
        """What the router refuses: an unknown path or method."""
        if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
            return problems.response(Error(Code.NOT_FOUND, "There is nothing here."))
        fitting = [route for route in self.routes if route.matches(scope)[0] is not Match.NONE]
        allowed = sorted({method for route in fitting for method in route.methods or ()})
        refusal = Error(Code.METHOD_NOT_ALLOWED, f"{scope['method']} is not allowed here.")
        return problems.response(refusal, {"Allow": ", ".join(allowed)})


class _Door:
    """One route: who comes in is asked for its name, and what goes wrong behind is said as a problem."""

    def __init__(self, path: str, handler: Handler, auth: AuthProvider) -> None:
        self._path = path
        self._handler = handler
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ROUTE] = self._path
        request = HttpRequest(scope, receive, send)
        credentials = request.headers.getlist("authorization")
        try:
            identity = await self._auth.identify(credentials)
            response = await self._handler(request, identity)
        except Error as error:
            response = problems.response(error, _challenge(error, credentials))
        await response(scope, receive, send)


class _Anyone:
    """Asks for no name."""

    async def identify(self, _credentials: Sequence[str]) -> Identity:
        return ANONYMOUS


class _Api:
    """One method a route."""

    def __init__(self, service: Service, options: Options) -> None:
        self._service = service
        self._options = options
        description = openapi.document(
            service.spec,
            version=options.version,
            is_authenticated=options.is_authenticated,
            max_body_bytes=options.max_body_bytes,
            redirects_downloads=options.redirects_downloads,
        )
        self._openapi = msgspec.json.encode(description)

    # The server itself

    async def health(self, _request: HttpRequest, _identity: Identity) -> Response:
        return _json({"version": self._options.version, "server": True})

    async def home(self, _request: HttpRequest, _identity: Identity) -> Response:
        return RedirectResponse("docs")

    async def ready(self, _request: HttpRequest, _identity: Identity) -> Response:
        if self._options.is_stopping():
            raise Error(Code.UNAVAILABLE, "The server is stopping.")
        found = await self._service.readiness()
        return _json(documents.readiness(self._service.spec, found, version=self._options.version))

    async def metrics(self, request: HttpRequest, _identity: Identity) -> Response:
        if self._options.metrics is None:
            raise Error(Code.NOT_FOUND, "There is nothing here.")
        media_type, text = await self._options.metrics(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

    async def openapi(self, _request: HttpRequest, _identity: Identity) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def docs(self, _request: HttpRequest, _identity: Identity) -> Response:
        return _page("docs.html", "text/html")

    async def asset(self, request: HttpRequest, _identity: Identity) -> Response:
        name = request.path_params["asset"]
        if name not in openapi.ASSETS:
            raise Error(Code.NOT_FOUND, "There is nothing here.")
        return _page(name, openapi.ASSETS[name])

    # Tasks

    async def submit(self, request: HttpRequest, identity: Identity) -> Response:
        return await self._submit(request, identity, status_code=202)

    async def submit_script(self, request: HttpRequest, identity: Identity) -> Response:
        return await self._submit(request, identity, status_code=200)

    async def _submit(self, request: HttpRequest, identity: Identity, *, status_code: int) -> Response:
        _refuse_what_is_no_text(request)
        asked = Request(
            path=request.path_params.get("path", ""),
            query=tuple(_query(request).multi_items()),
            body=await self._body(request),
            content_type=request.headers.get("content-type"),
        )
        headers, wishes, origin = {}, _wishes(request), request.scope[ORIGIN]
        if wait := self._preferred_wait(request):
            headers["Preference-Applied"] = f"wait={wait}"
            async with self._service.submit_awaited(identity, asked, wishes, origin) as awaited:
                task = await _while_there(request, awaited.end(seconds=wait)) or awaited.task
        else:
            task = await self._service.submit(identity, asked, wishes, origin)
        headers["Location"] = f"/task/{task.id}"
        if wait and task.state.is_final:
            with contextlib.suppress(Error):  # who is not told of the task would submit it once more
                return await self._document(task, "inline", headers)
        document = documents.summary(task) | documents.waiting(task)
        return _json(document, status_code=status_code, headers=headers)

    async def get(self, request: HttpRequest, identity: Identity) -> Response:
        attachments = _choice(request, "attachments", ("inline", "links", "none"))
        task_id = request.path_params["id"]
        headers = {}
        wait = _seconds(request, "wait")
        if wait is None and (preferred := self._preferred_wait(request)):
            wait = float(preferred)
            headers["Preference-Applied"] = f"wait={preferred}"
        if not wait:
            return await self._document(await self._service.get(identity, task_id), attachments)
        seconds = min(wait, self._options.max_wait_seconds)
        task = await _while_there(request, self._service.get(identity, task_id, wait_seconds=seconds))
        if task is None:
            return Response(status_code=CALLER_HAS_GONE)
        return await self._document(task, attachments, headers)

    async def list(self, request: HttpRequest, identity: Identity) -> Response:
        page = await self._service.list(
            identity,
            states=_states(request),
            cursor=_query(request).get("cursor"),
            limit=_number(request, "limit", default=50, least=1, most=MAX_PAGE),
        )
        return _json({"tasks": [documents.summary(task) for task in page.tasks], "next": page.cursor})

    async def cancel(self, request: HttpRequest, identity: Identity) -> Response:
        task = await self._service.cancel(identity, str(request.path_params["id"]))
        return _json(documents.summary(task), status_code=202)

    async def remove(self, request: HttpRequest, identity: Identity) -> Response:
        await self._service.remove(identity, request.path_params["id"])
        return Response(status_code=204)

    async def results(self, request: HttpRequest, identity: Identity) -> Response:
        wanted = _choice(request, "format", ("json", "csv"))
        results = await self._service.results(identity, request.path_params["id"])
        if wanted == "csv" and results.columns is None:
            raise _wrong("format", "csv needs rows, and these results are another JSON document")
        media_type = RESULTS_MEDIA_TYPES[wanted]
        if request.method == "HEAD":
            return StreamingResponse((), media_type=media_type)
        is_json = wanted == "json"
        pieces = self._service.read(results.artifact) if is_json else documents.results_csv(self._service, results)
        return StreamingResponse(await _begun(pieces), media_type=media_type)

    async def attachment(self, request: HttpRequest, identity: Identity) -> Response:
        name = request.path_params["name"]
        artifact = await self._service.attachment(identity, request.path_params["id"], name)
        return await self._file(request, artifact)

    async def logs(self, request: HttpRequest, identity: Identity) -> Response:
        stream = _choice(request, "stream", STREAMS)
        offset = _number(request, "offset", default=0, least=0, most=MAX_LOG_OFFSET)
        chunk = await self._service.log(identity, request.path_params["id"], stream, offset=offset)
        ends = chunk.offset + len(chunk.data)
        headers = {"X-Log-Offset": str(chunk.offset), "X-Log-Next-Offset": str(ends), "Cache-Control": "no-store"}
        return Response(chunk.data, media_type="text/plain; charset=utf-8", headers=headers)

    async def events(self, request: HttpRequest, identity: Identity) -> Response:
        place = _place(request)
        is_whole = _choice(request, "logs", ("live", "whole")) == "whole"
        seconds = _seconds(request, "wait")
        task = await self._service.get(identity, request.path_params["id"])
        if place.is_end and task.state.is_final:
            return Response(status_code=204)  # which tells an EventSource to come no more
        if request.method == "HEAD":
            return Response(headers=HEADERS, media_type=MEDIA_TYPE)
        place = Place() if place.is_end else place
        limit = math.inf if seconds is None else seconds
        return EventStream(self._service.events(task, place, is_whole=is_whole, seconds=limit))

    # Ways to answer

    def _preferred_wait(self, request: HttpRequest) -> int:
        """The whole seconds to wait by the header Prefer, as far as they are granted; 0 for none."""
        return min(_preferred_wait(request.headers.getlist("prefer")), int(self._options.max_wait_seconds))

    async def _body(self, request: HttpRequest) -> bytes:
        """The whole body, or Error(TOO_LARGE) before more than the limit is read."""
        limit = self._options.max_body_bytes
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise _too_large(limit)
        return bytes(body)

    async def _document(self, task: Task, attachments: str, headers: dict[str, str] | None = None) -> Response:
        pieces = documents.whole(self._service, task, attachments=attachments)
        if documents.size(task, attachments=attachments) > ONE_PIECE_BYTES:
            return StreamingResponse(await _begun(pieces), headers=headers, media_type="application/json")
        content = b"".join([piece async for piece in pieces])
        return Response(content, headers=headers, media_type="application/json")

    async def _file(self, request: HttpRequest, artifact: Artifact) -> Response:
        """A file, or the one range of it that was asked for (RFC 9110, section 14)."""
        tag = f'"{artifact.sha256}"'
        headers = {
            "ETag": tag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Content-Disposition": Label(artifact.name, artifact.media_type).disposition,
            "Content-Security-Policy": FILE_POLICY,
        }
        known = request.headers.get("if-none-match", "")
        if tag in known or known.strip() == "*":
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":  # a range, and a URL of the store, are for GET alone
            headers["Content-Length"] = str(artifact.size)
            return Response(headers=headers, media_type=artifact.media_type)
        if elsewhere := await self._elsewhere(artifact):
            return Response(status_code=307, headers={"Location": elsewhere, **REDIRECT_HEADERS})
        wanted = request.headers.get("range") if request.headers.get("if-range", tag) == tag else None
        start, stop = _range(wanted, artifact.size)
        status = 200
        if start is None:
            refusal = Error(Code.RANGE_NOT_SATISFIABLE, f"The file has {artifact.size} bytes.")
            return problems.response(refusal, {"Content-Range": f"bytes */{artifact.size}"})
        if (start, stop) != (0, artifact.size):
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.size}"
        headers["Content-Length"] = str(stop - start)
        pieces = await _begun(self._service.read(artifact, start=start, stop=stop))
        return StreamingResponse(pieces, status, headers, media_type=artifact.media_type)

    async def _elsewhere(self, artifact: Artifact) -> str | None:
        """The URL of a large file in the store itself, if that is wanted and the store has one."""
        if not self._options.redirects_downloads or artifact.size < REDIRECT_BYTES:
            return None
        return await self._service.url_for(artifact, seconds=REDIRECT_SECONDS)


# Reading a request


def _refuse_what_is_no_text(request: HttpRequest) -> None:
    """Bytes that are not UTF-8 would reach the script as replacement characters."""
    parts = {"path": request.scope["raw_path"], "query": request.scope["query_string"]}
    for where, raw in parts.items():
        try:
            unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            raise _wrong(where, "is not UTF-8 text", where=where) from None


def _wishes(request: HttpRequest) -> Wishes:
    """What the headers ask of the queue; a header that is not there asks for nothing."""
    priority = _header(request, "Task-Priority", r"-?\d", "a whole number from -9 to 9")
    patience = _header(request, "Task-Expires-In", r"\d{1,9}(\.\d{1,3})?", "a number of seconds")
    seconds = float(patience) if patience else None
    if seconds is not None and not 0 < seconds <= LONGEST_DELAY_SECONDS:
        raise _wrong("Task-Expires-In", "must be more than 0 and at most a year", where="header")
    return Wishes(
        idempotency_key=_idempotency_key(request),
        priority=int(priority or 0),
        not_before=_moment(request, "Task-Not-Before"),
        expires_in_seconds=seconds,
    )


def _preferred_wait(values: Sequence[str]) -> int:
    """The seconds of the preference ``wait`` (RFC 7240, section 4.3); 0 for none, or one that is no number."""
    if not values:
        return 0
    pattern = r'\s*wait\s*=\s*(?:(\d{1,9})|"(\d{1,9})")\s*(?:;.*)?'
    preferences = ",".join(values).split(",")
    found = (re.fullmatch(pattern, preference, re.ASCII | re.IGNORECASE) for preference in preferences)
    return next((int(match[1] or match[2]) for match in found if match), 0)


def _query(request: HttpRequest) -> QueryParams:
    return request.query_params if request.scope["query_string"] else NO_QUERY


def _seconds(request: HttpRequest, name: str) -> float | None:
    """A query parameter in seconds; None if it is not there."""
    text = _query(request).get(name)
    if text is not None and not re.fullmatch(r"\d{1,9}(\.\d{1,3})?", text, re.ASCII):
        raise _wrong(name, "must be a number of seconds")
    return None if text is None else float(text)


def _place(request: HttpRequest) -> Place:
    """Where a follower goes on (HTML Living Standard, section 9.2.4); the beginning without a word on it."""
    text = request.headers.get("last-event-id")
    place = Place.parse(text) if text else Place()
    if place is None:
        raise _wrong("Last-Event-ID", "must be the id of an event of this stream", where="header")
    return place


def _header(request: HttpRequest, name: str, pattern: str, expected: str) -> str | None:
    """The value of a header that may stand once."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise _wrong(name, "must stand once", where="header")
    if values and not re.fullmatch(pattern, values[0], re.ASCII):
        raise _wrong(name, f"must be {expected}", where="header")
    return values[0] if values else None


def _idempotency_key(request: HttpRequest) -> str | None:
    """The key of draft-ietf-httpapi-idempotency-key-header: a quoted string; the quotes may be left out."""
    expected = "1 to 255 characters of printable ASCII"
    value = _header(request, "Idempotency-Key", r'"[ !#-~]{1,255}"|[!#-~]{1,255}', expected)
    return value.strip('"') if value else None


def _moment(request: HttpRequest, name: str) -> float | None:
    """A time by RFC 3339 in epoch seconds, to the millisecond, at most a year from now."""
    expected = "a time with its offset, such as 2030-01-31T06:00:00Z"
    value = _header(request, name, r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", expected)
    if value is None:
        return None
    try:
        seconds = datetime.fromisoformat(value.upper()).timestamp()
    except (ValueError, OverflowError):
        raise _wrong(name, f"must be {expected}", where="header") from None
    if seconds > time.time() + LONGEST_DELAY_SECONDS:
        raise _wrong(name, "must be at most a year from now", where="header")
    return max(0.0, round(seconds, 3))


def _choice(request: HttpRequest, name: str, words: tuple[str, ...]) -> str:
    """A query parameter that takes one of these words, the first by default."""
    word = _query(request).get(name, words[0])
    if word not in words:
        raise _wrong(name, f"must be one of {', '.join(words)}")
    return word


def _number(request: HttpRequest, name: str, *, default: int, least: int, most: int) -> int:
    text = _query(request).get(name, str(default))
    if not re.fullmatch("[0-9]{1,16}", text) or not least <= int(text) <= most:
        raise _wrong(name, f"must be a whole number from {least} to {most}")
    return int(text)


def _states(request: HttpRequest) -> tuple[State, ...]:
    words = [word for value in _query(request).getlist("state") for word in value.split(",") if word]
    try:
        return tuple(State(word) for word in words)
    except ValueError:
        raise _wrong("state", f"must be one of {', '.join(State)}") from None


def _wrong(name: str, problem: str, *, where: str = "query") -> Error:
    return Error(Code.INVALID_INPUT, f"{name} {problem}.", (Problem(where, name, problem),))


def _too_large(limit: int) -> Error:
    return Error(Code.TOO_LARGE, f"The body is larger than {limit:,} bytes.")


def _range(header: str | None, size: int) -> tuple[int | None, int]:
    """Start and stop of the range asked for; the whole for none, several or unknown; None if beyond the end."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header or "")
    if not match or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:
        length = int(last)
        return (max(0, size - length), size) if length and size else (None, 0)
    start = int(first)
    if last and int(last) < start:
        return 0, size
    return (start, min(size, int(last) + 1 if last else size)) if start < size else (None, 0)


async def _while_there(request: HttpRequest, work: Coroutine[Any, Any, Found]) -> Found | None:
    """What comes of the work; None, and no more is done of it, when the client goes away before."""

    async def is_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(is_gone())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        while left := [task for task in (working, gone) if not task.done()]:
            for task in left:
                task.cancel()  # once may not be enough: the Redis client can swallow it (bpo-37658)
            await asyncio.wait(left, timeout=CANCEL_SECONDS)


# Writing an answer


def _challenge(error: Error, credentials: Sequence[str]) -> dict[str, str]:
    """What a refused caller is told (RFC 6750, section 3): a token is needed, or the one that came is no good."""
    if error.code is not Code.UNAUTHENTICATED:
        return {}
    return {"WWW-Authenticate": 'Bearer error="invalid_token"' if credentials else "Bearer"}


def _json(document: Any, *, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status_code, headers, media_type="application/json")


def _page(name: str, media_type: str) -> Response:
    content = (resources.files("script_runner.web") / "page" / name).read_bytes()
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return Response(content, media_type=media_type, headers=headers)


async def _begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, the first of them already made, so that what fails at once can still be said by status."""
    first = await anext(pieces, b"")

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_of_them()
