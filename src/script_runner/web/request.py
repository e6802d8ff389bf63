"""A request whose header fields are decoded once, since a dozen of them are looked for in each."""

from typing import Any, cast

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

FIELDS = "script_runner.fields"
"""Under which name the scope of a request has its ``Fields``."""


class Fields(Headers):
    """The header fields of a request by their names, which are in lower case there (ASGI)."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope=scope)
        self._values: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))

    def getlist(self, key: str) -> list[str]:
        """Every value of a field, in the order in which they came."""
        return list(self._values.get(key.lower(), ()))

    def get(self, key: str, default: Any = None) -> Any:
        """The first value of a field."""
        values = self._values.get(key.lower())
        return values[0] if values else default


class HttpRequest(Request):
    """As Starlette's, with the fields that are in its scope."""

    @property
    def headers(self) -> Fields:
        return cast("Fields", self.scope[FIELDS])
