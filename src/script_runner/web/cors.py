"""Cross-origin headers for every answer, errors included (Fetch standard, section 3.2)."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import Response

METHODS = "GET, POST, DELETE, OPTIONS"
EXPOSED = (
    "Location, ETag, Content-Range, Retry-After, Preference-Applied, X-Log-Offset, X-Log-Next-Offset, X-Request-ID"
)
EXPOSED_FIELD = (b"access-control-expose-headers", EXPOSED.encode())
MAX_AGE_SECONDS = 86_400

Lines = list[tuple[bytes, bytes]]


class Cors:
    """Allows the given origins (``*`` = any) to read every answer."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def fields(self, asked: Headers) -> Lines:
        """The header fields that an answer to this request gets."""
        return [EXPOSED_FIELD, *self._allowed(asked)]

    def preflight(self, method: str, asked: Headers) -> Response | None:
        """The answer to a question whether a request may be sent; None to any other request."""
        if method != "OPTIONS" or "access-control-request-method" not in asked:
            return None
        wanted = asked.get("access-control-request-headers", "Authorization, Content-Type")
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": wanted,
                "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
            },
        )

    def _allowed(self, asked: Headers) -> Lines:
        if "*" in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        origin, vary = asked.get("origin"), (b"vary", b"Origin")
        is_allowed = origin and origin in self._origins
        return (
            [(b"access-control-allow-origin", origin.encode("latin-1")), vary] if origin and is_allowed else [vary]
        )
