"""Puts the server together: its socket, the service behind HTTP, its chores, its pages for those who watch."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from script_runner import __version__, journal
from script_runner.adapters.listener import Answer, Page
from script_runner.adapters.prometheus import PrometheusWatch
from script_runner.adapters.redis import RedisChanges
from script_runner.config import Settings
from script_runner.errors import Code, Error, Problem
from script_runner.ports import Changes, Figures
from script_runner.service import Lookout, Service, let_go, settle_lost
from script_runner.spec import Spec
from script_runner.wiring.checking import apart
from script_runner.wiring.parts import auth_provider, open_parts, required_redis_url
from script_runner.wiring.watching import health, json_answer, report_dangers, report_store, traces, watched_at
from script_runner.worker import again, cancelled, first_of

DEFAULT_PORT = 8000
PORTS_TO_TRY = 50
TEND_SECONDS = 1.0
SECONDS_TO_CLOSE = 5
"""How long answers that are being sent may take when the server stops."""

Announce = Callable[[str], None]

_log = logging.getLogger("script_runner")


def listen(settings: Settings) -> socket.socket:
    """A listening socket. Without a chosen port, the first free one from the default on."""
    wanted = [settings.port] if settings.port is not None else range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TO_TRY)
    for port in wanted:
        try:
            family = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((settings.host, port), family=family, backlog=2048)
        except OSError as error:
            reason = error.strerror or str(error)
    message = f"Cannot listen on {settings.host} port {wanted[0]}: {reason}. Choose another with --port."
    raise Error(Code.INVALID_CONFIG, message, (Problem("option", "--port", reason),))


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    settings: Settings,
    spec: Spec,
    listener: socket.socket,
    *,
    stop: asyncio.Event,
    hurry: asyncio.Event,
    announce: Announce,
) -> None:
    """Serve the API until ``stop`` is set, and then until callers have gone elsewhere; ``hurry`` ends that."""
    from script_runner.web.api import Options, application  # noqa: PLC0415 - the server's half

    word, auth = auth_provider(settings, os.environ)
    watch = PrometheusWatch(is_server=True)
    recorded = traces(os.environ, role="server")
    async with open_parts(settings, spec, watch) as parts:
        changes = RedisChanges(required_redis_url(settings), settings.namespace, watch=watch)
        service = Service(spec, parts.tasks, parts.logs, parts.artifacts, changes, watch)

        async def metrics(accept: str) -> tuple[str, bytes]:
            return watch.page(accept, await _known_figures(service.lookout))

        options = Options(
            version=settings.server_version or __version__,
            max_body_bytes=settings.max_body_bytes,
            cors_origins=tuple(settings.cors_origins.split()),
            is_authenticated=word != "none",
            redirects_downloads=settings.redirect_downloads,
            is_stopping=stop.is_set,
            max_wait_seconds=settings.max_wait_seconds,
            metrics=metrics,
        )
        server = _server(application(service, auth, options, traces=recorded))
        tend_seconds = min(TEND_SECONDS, settings.lease_seconds / 5)
        chores = [
            asyncio.create_task(report_dangers(parts.tasks, settings)),
            asyncio.create_task(report_store(parts.artifacts)),
            asyncio.create_task(_report_figures(service.lookout, settings.report_seconds)),
            asyncio.create_task(again(lambda: settle_lost(parts.tasks, watch), pause_seconds=tend_seconds)),
            asyncio.create_task(
                again(lambda: let_go(parts.tasks, parts.artifacts, spec.kept_counts), pause_seconds=tend_seconds)
            ),
            asyncio.create_task(_end(server, changes, stop, hurry, linger_seconds=settings.linger_seconds)),
        ]
        if caution := apart(settings):
            _log.warning(caution)
        if word == "none":
            _log.warning("AUTH_PROVIDER is none: whoever reaches this server may use it")
        try:
            async with watched_at(settings.metrics_address, _server_pages(service, options)):
                await server.serve([listener])
        finally:
            await cancelled(chores)
            await changes.close()
            await recorded.close()
    announce("Server stopped.")


def _server(app: Any) -> Any:
    """A uvicorn server without its own signal handling: ours is in one place."""
    import uvicorn  # noqa: PLC0415 - the server's half

    from script_runner.web.bounds import BoundedHttp  # noqa: PLC0415 - as above

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        loop="none",
        http=BoundedHttp,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,  # our own line knows the request's id and route
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=SECONDS_TO_CLOSE,
    )
    return Server(config)


async def _end(
    server: Any, changes: Changes, stop: asyncio.Event, hurry: asyncio.Event, *, linger_seconds: float
) -> None:
    """End the server a while after ``stop``; until then each answer ends its connection, and /ready says no.

    A load balancer needs that time to look elsewhere; and a connection that is closed while a request is on its
    way would fail that request (RFC 9112, section 9.6). Then those who wait here are sent away to wait elsewhere.
    """
    await stop.wait()
    close = (b"connection", b"close")
    server.config.encoded_headers.append(close)
    server.server_state.default_headers = [*server.server_state.default_headers, close]
    await first_of(hurry.wait(), asyncio.sleep(linger_seconds))
    changes.dismiss()
    server.should_exit = True


async def _report_figures(lookout: Lookout, pause_seconds: float) -> None:
    """Log the figures of the queue every so often; for platforms that scale by what a log says."""
    while pause_seconds:
        if figures := await _known_figures(lookout):
            fields = {
                "queued": figures.queued,
                "running": figures.running,
                "scheduled": figures.scheduled,
                "backlog": figures.backlog,
                "oldest_seconds": round(figures.oldest_seconds, 3),
                "workers": figures.workers,
                "slots": figures.slots,
            }
            sentence = "queue: " + ", ".join(f"{name} {value}" for name, value in fields.items())
            journal.event(_log, "queue", sentence, fields)
        await asyncio.sleep(pause_seconds)


async def _known_figures(lookout: Lookout) -> Figures | None:
    """The figures of the queue; None while the store does not tell."""
    try:
        return await lookout.figures()
    except Error as error:
        _log.debug("no figures: %s", error.message)
        return None


def _server_pages(service: Service, options: Any) -> Mapping[str, Page]:
    from script_runner.web import documents  # noqa: PLC0415 - the server's half

    async def metrics(accept: str) -> Answer:
        return Answer(200, *await options.metrics(accept))

    async def ready(_accept: str) -> Answer:
        if options.is_stopping():
            return json_answer(503, {"ready": False, "detail": "The server is stopping."})
        try:
            found = await service.readiness()
        except Error as error:
            return json_answer(503, {"ready": False, "detail": error.message})
        return json_answer(200, documents.readiness(service.spec, found, version=options.version))

    return {"/metrics": metrics, "/health": health, "/ready": ready}
