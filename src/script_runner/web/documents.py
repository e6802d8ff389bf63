"""The JSON documents of the API, in pieces, so that no result or file is ever whole in memory."""

import csv
import io
import math
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import msgspec
import pybase64

from script_runner.service import Readiness, Service
from script_runner.spec import Spec
from script_runner.task import Artifact, Results, State, Task

_encode = msgspec.json.Encoder(enc_hook=str).encode

STATUS = {
    State.QUEUED: "not-ready",
    State.RUNNING: "not-ready",
    State.SUCCEEDED: "ready",
    State.FAILED: "failed",
    State.TIMED_OUT: "failed",
    State.CANCELLED: "failed",
    State.LOST: "failed",
}


def summary(task: Task) -> dict[str, Any]:
    """What a listing says of a task, and the beginning of its whole document."""
    return {
        "id": task.id,
        "status": STATUS[task.state],
        "state": task.state.value,
        "created_at": _time(task.created_at),
        "started_at": _time(task.started_at),
        "finished_at": _time(task.finished_at),
        "exit_code": task.outcome.exit_code if task.outcome else None,
        "attempt": task.attempt,
        "configuration": task.configuration or None,
    }


def waiting(task: Task) -> dict[str, Any]:
    """What is said of a task that waits: its position (1 is next), and when it may start; null if nobody knows."""
    if task.state is not State.QUEUED:
        return {}
    starts_at = task.not_before
    if task.place:
        wait = task.place.expected_wait
        starts_at = None if wait is None else time.time() + wait
    return {
        "position": task.place.position if task.place else None,
        "estimated_start_at": _time(None if starts_at is None else math.ceil(starts_at)),
    }


def readiness(spec: Spec, found: Readiness, *, version: str) -> dict[str, Any]:
    """What a server that is ready says: what there is, and whether workers run what it describes."""
    figures = found.figures
    others = sum(count for loaded, count in found.configurations.items() if loaded != spec.fingerprint)
    warning = f"{others} of the workers have loaded another configuration than this server."
    return {
        "ready": True,
        "workers": figures.workers,
        "slots": figures.slots,
        "queue": {
            "queued": figures.queued,
            "running": figures.running,
            "scheduled": figures.scheduled,
            "backlog": figures.backlog,
            "oldest_seconds": round(figures.oldest_seconds, 3),
        },
        "ended_in_the_last_hour": {state.value: count for state, count in figures.lately.items()},
        "configuration": spec.fingerprint,
        "configurations": found.configurations,
        "versions": {"server": version, "store": found.store, "workers": figures.versions},
        "warnings": [*([warning] if others else []), *found.warnings],
    }


async def whole(service: Service, task: Task, *, attachments: str) -> AsyncIterator[bytes]:
    """The task document; ``attachments`` is inline (base64), links or none.

    No piece comes before the store gave one: when it cannot be read, nothing was said.
    """
    text = _encode(summary(task) | waiting(task))[:-1]
    outcome = task.outcome
    if outcome is not None:
        if task.state is State.SUCCEEDED:
            text += b',"results":'
            if outcome.results is None:
                text += b"null"
            else:
                async for piece in service.read(outcome.results.artifact):
                    yield text + piece
                    text = b""
        text += b',"attachments":'
        if attachments == "inline" and outcome.files:
            async for piece in _inline(service, outcome.files):
                yield text + piece
                text = b""
        else:
            named = {file.name: url(task, file) for file in outcome.files} if attachments == "links" else {}
            text += _encode(named)
        text += b',"files":' + _encode([_file(task, file) for file in outcome.files])
        if outcome.error is not None:
            text += b',"error":' + _encode(outcome.error)
    yield text + b"}"


def size(task: Task, *, attachments: str) -> int:
    """About how many bytes the document of a task has."""
    outcome = task.outcome
    if outcome is None:
        return 0
    rows = outcome.results.artifact.size if outcome.results else 0
    files = sum(file.size * 4 // 3 for file in outcome.files) if attachments == "inline" else 0
    return rows + files


def url(task: Task, file: Artifact) -> str:
    return f"/task/{task.id}/attachments/{quote(file.name)}"


async def results_csv(service: Service, results: Results) -> AsyncIterator[bytes]:
    """The rows as CSV by RFC 4180, with a line of column names first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, results.columns or (), restval="", lineterminator="\r\n")
    writer.writeheader()
    rest = b""
    async for piece in service.read(results.artifact):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                row = msgspec.json.decode(line.removesuffix(b","))
                writer.writerow({name: _cell(value) for name, value in row.items()})
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _encode(value).decode()


def _file(task: Task, file: Artifact) -> dict[str, Any]:
    return {
        "name": file.name,
        "size": file.size,
        "media_type": file.media_type,
        "sha256": file.sha256,
        "url": url(task, file),
    }


async def _inline(service: Service, files: tuple[Artifact, ...]) -> AsyncIterator[bytes]:
    text = b"{"
    for number, file in enumerate(files):
        text += (b"," if number else b"") + _encode(file.name) + b':"'
        async for piece in _base64(service.read(file)):
            yield text + piece
            text = b""
        text += b'"'
    yield text + b"}"


async def _base64(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Standard base64 (RFC 4648, section 4) of all pieces together."""
    rest = b""
    async for piece in pieces:
        joined = rest + piece if rest else piece
        even = len(joined) - len(joined) % 3
        rest = joined[even:]
        yield pybase64.b64encode(memoryview(joined)[:even])
    if rest:
        yield pybase64.b64encode(rest)


def _time(seconds: float | None) -> str | None:
    """A moment by RFC 3339, in UTC, to the millisecond."""
    if seconds is None:
        return None
    second, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{_second(second)}.{thousandths:03}Z"


@lru_cache(maxsize=1024)  # the moments of a task that is asked for again and again are the same
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[: len("2030-01-31T06:00:00")]
