"""Shows an operator a server or a worker: its log, reports on its stores, traces, pages at an address."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from script_runner import __version__, journal
from script_runner.adapters.listener import Answer, Listener, Page
from script_runner.adapters.redis import RedisTasks
from script_runner.adapters.redis.examination import why
from script_runner.config import Settings
from script_runner.errors import Code, Error, Problem
from script_runner.ports import Artifacts, Traces, Untraced
from script_runner.wiring.parts import required_redis_url

SECONDS_TO_ASK_AGAIN = 1.0

_Answer = TypeVar("_Answer")

_log = logging.getLogger("script_runner")


def start_logging(settings: Settings) -> None:
    """Log to standard error, as text or as JSON."""
    journal.start(level=settings.log_level, is_json=settings.log_format == "json")


def say_in_log(sentence: str, problems: Sequence[Problem] | None = None) -> bool:
    """Log what the command line has to say, an error with its ``problems``; False unless the log is JSON."""
    if journal.is_json():
        fields = {"problems": [asdict(problem) for problem in problems]} if problems else {}
        _log.log(logging.INFO if problems is None else logging.ERROR, sentence, extra={"fields": fields})
    return journal.is_json()


async def report_dangers(tasks: RedisTasks, settings: Settings) -> None:
    """Say once what about the store endangers tasks; before that, why it cannot be asked."""
    url = required_redis_url(settings)

    async def check() -> Sequence[str]:
        try:
            return await tasks.check()
        except Error as error:
            if error.code is Code.UNAVAILABLE and (reason := why(error, url)):
                raise Error(error.code, f"The task store (Redis) is away. {reason}") from error
            raise

    for danger in await _asked(check):
        _log.warning(danger)


async def report_store(artifacts: Artifacts) -> None:
    """Say why nothing can be kept, until something can."""
    await _asked(artifacts.check)


async def _asked(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The answer, however often it has to be asked for; each new reason why there is none is said once."""
    said = ""
    while True:
        try:
            return await ask()
        except Error as error:
            if error.message != said:
                _log.error(error.message)
                said = error.message
        await asyncio.sleep(SECONDS_TO_ASK_AGAIN)


def traces(environment: Mapping[str, str], *, role: str) -> Traces:
    """Where traces are sent to, if the environment says so (OpenTelemetry) and what it takes is installed."""
    if not _is_tracing_asked_for(environment):
        return Untraced()
    try:
        from script_runner.adapters.opentelemetry import OpenTelemetryTraces  # noqa: PLC0415 - an extra
    except ImportError:
        _log.warning(
            "OTEL_… asks for traces, and OpenTelemetry is not installed: pip install 'script-runner-api[traces]'"
        )
        return Untraced()
    try:
        return OpenTelemetryTraces(service="script-runner", version=__version__, role=role)
    except Exception as error:  # noqa: BLE001 - whatever it does not like in its settings, tasks come first
        _log.warning("no traces are sent: %s: %s", type(error).__name__, error)
        return Untraced()


def _is_tracing_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether an exporter or its address is named, and nothing forbids it (specification of OpenTelemetry)."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter and exporter != "otlp":
        if exporter != "none":
            _log.warning("no traces are sent: OTEL_TRACES_EXPORTER is %r, expected otlp or none", exporter)
        return False
    addresses = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return bool(exporter) or any(environment.get(name) for name in addresses)


@contextlib.asynccontextmanager
async def watched_at(address: tuple[str, int] | None, pages: Mapping[str, Page]) -> AsyncIterator[None]:
    """Serve pages for those who watch at this address, if there is one."""
    if address is None:
        yield
        return
    listener = Listener(pages)
    try:
        port = await listener.start(*address)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"Cannot listen on {address[0]} port {address[1]}: {reason}. Choose another with --metrics."
        raise Error(Code.INVALID_CONFIG, message, (Problem("option", "--metrics", reason),)) from None
    _log.info("for those who watch: http://%s:%d/metrics", address[0], port)
    try:
        yield
    finally:
        await listener.close()


async def health(_accept: str) -> Answer:
    return json_answer(200, {"version": __version__})


def json_answer(status: int, document: Mapping[str, Any]) -> Answer:
    return Answer(status, "application/json", json.dumps(document).encode())
