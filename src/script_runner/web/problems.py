"""Errors as HTTP says them: ``application/problem+json`` (RFC 9457)."""

from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from script_runner.errors import Code, Error

STATUS: Mapping[Code, HTTPStatus] = {
    Code.INVALID_INPUT: HTTPStatus.BAD_REQUEST,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    Code.CONFLICT: HTTPStatus.CONFLICT,
    Code.KEY_REUSED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.HEAD_TOO_LARGE: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    Code.TOO_SLOW: HTTPStatus.REQUEST_TIMEOUT,
    Code.UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.RANGE_NOT_SATISFIABLE: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    Code.TOO_MANY_QUEUED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.QUEUE_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The status of each code; any other is 500, whose details stay on the server."""

RETRY_SECONDS = 1
"""When to ask again while something is away."""


def response(error: Error, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that says this error."""
    status = STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    is_ours = status is HTTPStatus.INTERNAL_SERVER_ERROR
    document = {
        "type": f"urn:problem-type:script-runner:{Code.INTERNAL if is_ours else error.code}",
        "title": status.phrase,
        "status": status.value,
        "detail": "The server failed at this request; its log says why." if is_ours else error.message,
    }
    problems = [] if is_ours else [asdict(problem) for problem in error.problems]
    return Response(
        msgspec.json.encode({**document, "errors": problems} if problems else document),
        status_code=status.value,
        media_type="application/problem+json",
        headers={**retry_after(error), **(headers or {})},
    )


def retry_after(error: Error) -> dict[str, str]:
    """When to ask again (RFC 9110, section 10.2.3)."""
    seconds = error.retry_after or (RETRY_SECONDS if error.code is Code.UNAVAILABLE else None)
    return {} if seconds is None else {"Retry-After": str(seconds)}
