"""Cross-origin headers on every answer, errors included (Fetch standard, section 3.2)."""

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = "GET, POST, DELETE, OPTIONS"
EXPOSED = (
    "Location, ETag, Content-Range, Retry-After, Preference-Applied, X-Log-Offset, X-Log-Next-Offset, X-Request-ID"
)
MAX_AGE_SECONDS = 86_400


class Cors:
    """Allows the given origins (``*`` = any) to read every answer of ``app``; answers preflights itself."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        allowed = self._allowed(asked.get("origin"))
        if scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
            await _preflight(asked, allowed)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers.update(allowed)
                headers["Access-Control-Expose-Headers"] = EXPOSED
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _allowed(self, origin: str | None) -> dict[str, str]:
        if "*" in self._origins:
            return {"Access-Control-Allow-Origin": "*"}
        vary = {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, **vary} if origin in self._origins and origin else vary


def _preflight(asked: Headers, allowed: dict[str, str]) -> Response:
    wanted = asked.get("access-control-request-headers", "Authorization, Content-Type")
    return Response(
        status_code=204,
        headers={
            **allowed,
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": wanted,
            "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
        },
    )
