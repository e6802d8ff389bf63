"""How the runner speaks of itself: one event a line, as text or JSON, with the request and task it is about."""

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_subject: ContextVar[Mapping[str, object]] = ContextVar("subject", default=MappingProxyType({}))


def about(**fields: object) -> None:
    """What this asyncio task logs from now on is about these: request_id, task_id, run, attempt, worker."""
    _subject.set({**_subject.get(), **{name: value for name, value in fields.items() if value is not None}})


def event(
    log: logging.Logger, name: str, sentence: str, fields: Mapping[str, object], *, level: int = logging.INFO
) -> None:
    """Log an event by its name: a sentence for people, fields for programs."""
    if not log.isEnabledFor(level):
        return
    known = {name: value for name, value in fields.items() if value is not None}
    log.log(level, sentence, extra={"event": name, "fields": known})


def of_task(task_id: str) -> dict[str, Any]:
    """The ``extra`` of a line about a task, where it is not the subject of the whole asyncio task."""
    return {"fields": {"task_id": task_id}}


class JsonLines(logging.Formatter):
    """Each record as one JSON object on one line: time (RFC 3339, UTC), level, logger, event, message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if name := getattr(record, "event", None):
            document["event"] = name
        document["message"] = record.getMessage()
        document |= {**_subject.get(), **getattr(record, "fields", {})}
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def start(*, level: str, is_json: bool) -> None:
    """Log to standard error from now on, this level and above."""
    # what no line of ours shows need not be found out for each (Logging HOWTO, Optimization)
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    logging._srcfile = None  # noqa: SLF001 - so the HOWTO says
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if is_json else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def is_json() -> bool:
    """Whether the log is JSON lines."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
