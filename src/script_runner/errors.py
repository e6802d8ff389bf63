"""The one exception that crosses layers: a code, a sentence, and what was wrong where."""

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """Every kind of failure a caller can meet; docs/http.md says what each means and which status it has."""

    INVALID_CONFIG = "invalid-config"
    INVALID_INPUT = "invalid-input"
    UNAUTHENTICATED = "unauthenticated"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    CONFLICT = "conflict"
    KEY_REUSED = "key-reused"
    TOO_LARGE = "too-large"
    HEAD_TOO_LARGE = "head-too-large"
    TOO_SLOW = "too-slow"
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type"
    RANGE_NOT_SATISFIABLE = "range-not-satisfiable"
    TOO_MANY_QUEUED = "too-many-queued"
    QUEUE_FULL = "queue-full"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"
    BAD_OUTPUT = "bad-output"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: ``where`` it was looked for (path, query, body, file …), its ``name``, and the sentence."""

    where: str
    name: str
    problem: str


class Error(Exception):
    """What stops a caller: ``code`` for programs, ``message`` for people, ``problems`` for each bad part.

    ``retry_after`` says in how many seconds it may be otherwise, if anybody can tell.
    """

    def __init__(
        self, code: Code, message: str, problems: tuple[Problem, ...] = (), *, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.code = code
        self.message = message
        self.problems = problems

    def __reduce__(self) -> tuple[object, ...]:
        """With all of it, for another process."""
        return type(self), (self.code, self.message, self.problems), {"retry_after": self.retry_after}
