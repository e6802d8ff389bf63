"""Puts everything together: settings to adapters to service, worker and server. The only file that knows all.

The server's half (uvicorn, Starlette) and the worker's are imported where they are put together, so that neither
process carries the other: 15 MB and 0.2 s each.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import re
import resource
import shutil
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from script_runner import __version__, command, inputs, journal
from script_runner.adapters.ecs import EcsShelter
from script_runner.adapters.listener import Answer, Listener, Page
from script_runner.adapters.redis import RedisChanges, RedisLease, RedisLogs, RedisTasks, check_url
from script_runner.adapters.redis.examination import why
from script_runner.adapters.store import FileArtifacts
from script_runner.adapters.valkey import EmbeddedServer
from script_runner.adapters.watched import WatchedArtifacts
from script_runner.config import Settings, default_data_folder, read_spec, script_environment
from script_runner.errors import Code, Error, Problem
from script_runner.fork import Child
from script_runner.inputs import Request
from script_runner.ports import (
    Artifacts,
    AuthProvider,
    Changes,
    Figures,
    Limits,
    Traces,
    Untraced,
    Unwatched,
    Watch,
)
from script_runner.service import Lookout, Service, tend
from script_runner.spec import Spec
from script_runner.worker import cancelled, first_of

DEFAULT_PORT = 8000
PORTS_TO_TRY = 50
DESCRIPTORS_OF_WORKER = 40
DESCRIPTORS_OF_RUN = 10
SHELLS = ("sh", "bash", "dash", "ksh", "zsh")
INTERPRETER = re.compile(r"(python|ruby|perl)[0-9.]*|Rscript|node|julia|" + "|".join(SHELLS))
SCRIPT_ENDINGS = (".py", ".R", ".r", ".sh", ".pl", ".rb", ".js", ".jl", ".m", ".sas", ".do")
"""What a file that somebody wrote is called, in contrast to an argument that only looks like a file."""

TEND_SECONDS = 1.0
SECONDS_TO_CLOSE = 5
"""How long answers that are being sent may take when the server stops."""

Announce = Callable[[str], None]
_Answer = TypeVar("_Answer")

_log = logging.getLogger("script_runner")


# Checking


def load(settings: Settings) -> Spec:
    """The configuration; Error(INVALID_CONFIG) with all that is wrong."""
    return read_spec(Path(settings.config), rundir=settings.rundir)


def cautions(spec: Spec) -> list[str]:
    """What would make runs fail on this machine, in sentences."""
    program = spec.command[0].templates[0]
    found = []
    if not program.names and shutil.which(program.source) is None:
        found.append(f"command[0]: the program {program.source!r} is not found on this machine")
    if (script := missing_script(spec)) is not None:
        found.append(f"command: the script {script!r} is not in {Path.cwd()}")
    found += [f"command[{number}]: {problem}" for number, problem in _shell_code(spec)]
    if spec.command_rundir_base is not None and not Path(spec.command_rundir_base).is_dir():
        found.append(f"command_rundir_base: the folder {spec.command_rundir_base!r} is not there")
    return found


def missing_script(spec: Spec) -> str | None:
    """The file that an interpreter is to run, if it is not there; None where it is, or cannot be told."""
    if not INTERPRETER.fullmatch(Path(spec.command[0].templates[0].source).name):
        return None
    for part in spec.command[1:]:
        word = part.templates[0].source
        if part.is_group or command.names([part]) or re.fullmatch("-[a-zA-Z]*[cem]", word):
            return None
        if not word.startswith("-"):
            is_missing = Path(word).suffix in SCRIPT_ENDINGS and not Path(word).exists()
            return word if is_missing else None
    return None


def _shell_code(spec: Spec) -> Iterator[tuple[int, str]]:
    """Values that the configuration itself puts into the text of a shell's ``-c``."""
    inputs_by_name = {wanted.env_var_name for wanted in spec.inputs.all}
    words = [part.templates[0] for part in spec.command]
    if Path(words[0].source).name not in SHELLS:
        return
    for number, (option, code) in enumerate(pairwise(words), start=1):
        held = inputs_by_name.intersection(code.names)
        if re.fullmatch("-[a-z]*c", option.source) and held:
            name = min(held)
            problem = f'${name} would become shell code; write "$${name}" to let the shell read the variable'
            yield number, problem


def explain(
    settings: Settings,
    spec: Spec,
    *,
    path: str,
    query: Sequence[tuple[str, str]],
    body: bytes | None,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The exact argv of a request and what its environment has; Error says what is wrong with the request."""
    arguments = inputs.bind(spec, Request(path=path, query=tuple(query), body=body or b""))
    parent = Path(spec.command_rundir or settings.rundir).absolute()
    values = command.values(spec, arguments, run_folder=f"{parent}/results-XXXXXXXX", task_id="TASK-ID")
    inherited = script_environment(environment, spec)
    return {
        "argv": list(command.render(spec.command, values)),
        "environment": command.environment({}, values),
        "inherited": sorted(set(inherited) - set(values)),
        "working_directory": str(Path.cwd()),
    }


# Parts


@dataclass(frozen=True, slots=True)
class Parts:
    """The adapters that a server and a worker share."""

    tasks: RedisTasks
    logs: RedisLogs
    artifacts: Artifacts


@contextlib.asynccontextmanager
async def _parts(settings: Settings, spec: Spec, watch: Watch) -> AsyncIterator[Parts]:
    url = required_redis_url(settings)
    limits = Limits(spec.max_queued, spec.max_queued_per_caller, spec.max_running, spec.max_running_per_caller)
    parts = Parts(
        RedisTasks(url, settings.namespace, limits, replicas=settings.redis_replicas, watch=watch),
        RedisLogs(url, settings.namespace, watch=watch),
        WatchedArtifacts(_artifacts(settings), watch),
    )
    try:
        yield parts
    finally:
        await parts.tasks.close()
        await parts.logs.close()


def required_redis_url(settings: Settings) -> str:
    """The Redis URL, or Error(INVALID_CONFIG) that says what to do."""
    url = settings.redis_address
    if url is None:
        raise Error(
            Code.INVALID_CONFIG,
            "No Redis is configured: give --redis redis://host:6379/0 or set SCRIPT_RUNNER_REDIS_URL; "
            "for all in one on this machine use: script-runner up.",
            (Problem("environment", "SCRIPT_RUNNER_REDIS_URL", "not set"),),
        )
    check_url(url)
    return url


def require_stores(settings: Settings) -> None:
    """Raise Error(INVALID_CONFIG) if Redis or the artifact store are not named, or cannot be what they are."""
    required_redis_url(settings)
    _artifacts(settings)


def wrong_settings(settings: Settings, environment: Mapping[str, str]) -> list[Error]:
    """All that is wrong with what is set in the environment; what is not set may come by option."""
    checks: list[Callable[[], object]] = [lambda: auth_provider(settings, environment)]
    checks += [lambda: required_redis_url(settings)] if settings.redis_url else []
    checks += [lambda: _artifacts(settings)] if settings.store_url else []
    found = []
    for check in checks:
        try:
            check()
        except Error as error:
            found.append(error)
    return found


def _artifacts(settings: Settings) -> Artifacts:
    """The artifact store behind the URL, by its scheme."""
    url = settings.store_url
    match url.partition(":")[0] if url else None:
        case None:
            problem = "No artifact store is configured: give --store or set SCRIPT_RUNNER_STORE"
        case "file":
            return FileArtifacts(str(url))
        case "s3" | "az" | "gs" as scheme:
            return _objects(scheme, str(url), settings)
        case scheme:
            problem = f"There is no artifact store for {scheme!r} URLs; set SCRIPT_RUNNER_STORE"
    raise Error(
        Code.INVALID_CONFIG,
        f"{problem} to a folder that servers and workers share, as file:///srv/script-runner, "
        "or to an object store, as s3://bucket/prefix.",
        (Problem("environment", "SCRIPT_RUNNER_STORE", problem),),
    )


def _objects(scheme: str, url: str, settings: Settings) -> Artifacts:
    """An object store; its library is loaded only where one is used."""
    try:
        from script_runner.adapters.objects import Keys, ObjectArtifacts  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        problem = f"{scheme}:// needs a library that is not installed: pip install 'script-runner-api[objects]'"
        raise Error(
            Code.INVALID_CONFIG, f"{problem}.", (Problem("environment", "SCRIPT_RUNNER_STORE", problem),)
        ) from None
    return ObjectArtifacts(url, Keys(settings.store_key_id, settings.store_secret), os.environ)


def apart(settings: Settings) -> str | None:
    """Why a folder as the store will not do when Redis is on another machine; None if it may do."""
    if not (settings.store_url or "").startswith("file:"):
        return None
    away = [host for host in _redis_hosts(settings.redis_url or "") if not _is_here(host)]
    if not away:
        return None
    return (
        f"the artifact store is a folder of this machine ({settings.store_url}) and Redis is on {away[0]}: "
        "what a worker keeps on one machine cannot be read by a server on another, unless that folder is shared; "
        "share it (a network file system, a volume), or set SCRIPT_RUNNER_STORE to s3://, az:// or gs://"
    )


def _redis_hosts(url: str) -> list[str]:
    """The hosts that the URL of a Redis names; none for a socket of this machine."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return []
    addresses = parts.netloc.rpartition("@")[2].split(",")
    return [host.strip("[]") for address in addresses if (host := re.sub(r":\d*$", "", address))]


def _is_here(host: str) -> bool:
    return is_loopback(host) or host.lower() == socket.gethostname().lower()


async def probe_store(settings: Settings) -> None:
    """Write a file into the artifact store, read it back and remove it; Error says what cannot be done."""
    artifacts = _artifacts(settings)
    task_id, content = str(uuid.uuid4()), os.urandom(32)
    await artifacts.save(f"{task_id}/1/0", [content])
    try:
        kept = b"".join([piece async for piece in artifacts.read(f"{task_id}/1/0")])
    finally:
        await artifacts.remove(task_id)
    if kept != content:
        raise Error(Code.UNAVAILABLE, "The artifact store gave back other bytes than were written.")


def auth_words() -> list[str]:
    """The words that AUTH_PROVIDER takes here."""
    return sorted({point.name for point in entry_points(group="script_runner.auth")})


def auth_provider(settings: Settings, environment: Mapping[str, str]) -> tuple[str, AuthProvider]:
    """The chosen word and its provider. Not set means ``none``, on loopback only."""
    word = settings.auth_provider
    known = ", ".join(auth_words())
    if word is None:
        if not is_loopback(settings.host):
            raise Error(
                Code.INVALID_CONFIG,
                f"To listen on {settings.host}, say who may ask: set AUTH_PROVIDER to one of {known}.",
                (Problem("environment", "AUTH_PROVIDER", "not set"),),
            )
        word = "none"
    for point in entry_points(group="script_runner.auth", name=word):
        return word, _started(point, environment)
    message = f"AUTH_PROVIDER is {word!r}, expected one of {known}."
    raise Error(Code.INVALID_CONFIG, message, (Problem("environment", "AUTH_PROVIDER", message),))


def _started(point: EntryPoint, environment: Mapping[str, str]) -> AuthProvider:
    """The provider of an entry point; whatever it raises ends the start with a sentence."""
    try:
        provider: AuthProvider = point.load()(environment)
    except Error:
        raise
    except Exception as error:
        message = f"AUTH_PROVIDER {point.name!r} cannot be started: {type(error).__name__}: {error}."
        raise Error(Code.INVALID_CONFIG, message, (Problem("environment", "AUTH_PROVIDER", message),)) from error
    return provider


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# The server


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
    from script_runner.adapters.prometheus import PrometheusWatch  # noqa: PLC0415 - 1 MB that a worker may do without
    from script_runner.web.api import Options, application  # noqa: PLC0415 - the server's half

    word, auth = auth_provider(settings, os.environ)
    watch = PrometheusWatch(is_server=True)
    recorded = traces(os.environ, role="server")
    async with _parts(settings, spec, watch) as parts:
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
            asyncio.create_task(_report_dangers(parts.tasks, settings)),
            asyncio.create_task(_report_store(parts.artifacts)),
            asyncio.create_task(_report_figures(service.lookout, settings.report_seconds)),
            asyncio.create_task(_tend(parts, spec, watch, pause_seconds=tend_seconds)),
            asyncio.create_task(_end(server, changes, stop, hurry, linger_seconds=settings.linger_seconds)),
        ]
        if caution := apart(settings):
            _log.warning(caution)
        if word == "none":
            _log.warning("AUTH_PROVIDER is none: whoever reaches this server may use it")
        try:
            async with _watched_at(settings.metrics_address, _server_pages(service, options)):
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


async def _tend(parts: Parts, spec: Spec, watch: Watch, *, pause_seconds: float) -> None:
    while True:
        try:
            await tend(parts.tasks, parts.artifacts, spec.kept_counts, watch)
        except Error as error:
            _log.debug("cannot tend: %s", error.message)
        except Exception:  # noqa: BLE001 - it is tried again in a moment, and must not stop
            _log.exception("tending failed")
        await asyncio.sleep(pause_seconds)


async def _report_dangers(tasks: RedisTasks, settings: Settings) -> None:
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


async def _report_store(artifacts: Artifacts) -> None:
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
        await asyncio.sleep(TEND_SECONDS)


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


# Being watched


def start_logging(settings: Settings) -> None:
    """Log to standard error, as text or as JSON."""
    journal.start(level=settings.log_level, is_json=settings.log_format == "json")


def say_in_log(sentence: str, problems: Sequence[Problem] | None = None) -> bool:
    """Log what the command line has to say, an error with its ``problems``; False unless the log is JSON."""
    if journal.is_json():
        fields = {"problems": [asdict(problem) for problem in problems]} if problems else {}
        _log.log(logging.INFO if problems is None else logging.ERROR, sentence, extra={"fields": fields})
    return journal.is_json()


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
async def _watched_at(address: tuple[str, int] | None, pages: Mapping[str, Page]) -> AsyncIterator[None]:
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


def _server_pages(service: Service, options: Any) -> Mapping[str, Page]:
    from script_runner.web import documents  # noqa: PLC0415 - the server's half

    async def metrics(accept: str) -> Answer:
        return Answer(200, *await options.metrics(accept))

    async def ready(_accept: str) -> Answer:
        if options.is_stopping():
            return _json_answer(503, {"ready": False, "detail": "The server is stopping."})
        try:
            found = await service.readiness()
        except Error as error:
            return _json_answer(503, {"ready": False, "detail": error.message})
        return _json_answer(200, documents.readiness(service.spec, found, version=options.version))

    return {"/metrics": metrics, "/health": _health, "/ready": ready}


def _worker_pages(watch: Any, worker: Any) -> Mapping[str, Page]:
    async def metrics(accept: str) -> Answer:
        return Answer(200, *watch.page(accept))

    async def ready(_accept: str) -> Answer:
        if worker.is_ready:
            return _json_answer(200, {"ready": True})
        return _json_answer(503, {"ready": False, "detail": "The worker does not hold its lease, or it drains."})

    return {"/metrics": metrics, "/health": _health, "/ready": ready}


async def _health(_accept: str) -> Answer:
    return _json_answer(200, {"version": __version__})


def _json_answer(status: int, document: Mapping[str, Any]) -> Answer:
    return Answer(status, "application/json", json.dumps(document).encode())


# The worker


async def work(settings: Settings, spec: Spec, *, drain: asyncio.Event, hurry: asyncio.Event) -> None:
    """Work until ``drain`` is set and all that runs has ended; ``hurry`` ends it at once."""
    from script_runner.adapters.process import LocalExecutor  # noqa: PLC0415 - the worker's half
    from script_runner.run import Workshop  # noqa: PLC0415 - as above
    from script_runner.worker import Terms, Worker  # noqa: PLC0415 - as above

    for caution in (*cautions(spec), apart(settings)):
        if caution:
            _log.warning(caution)
    watch: Watch = Unwatched()
    if settings.metrics_address:
        from script_runner.adapters.prometheus import PrometheusWatch  # noqa: PLC0415 - 1 MB that not all need

        watch = PrometheusWatch(is_server=False)
    recorded = traces(os.environ, role="worker")
    async with _parts(settings, spec, watch) as parts:
        lease = RedisLease(required_redis_url(settings), settings.namespace)
        executor = LocalExecutor(keep_folders=bool(spec.debug))
        terms = Terms(
            name=f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}",
            concurrency=_affordable(settings.concurrency or cores()),
            configuration=spec.fingerprint,
            lease_seconds=settings.lease_seconds,
            drain_seconds=settings.drain_timeout,
            version=__version__,
        )
        workshop = Workshop(
            spec,
            script_environment(os.environ, spec),
            executor,
            parts.artifacts,
            parts.logs,
            rundir=settings.rundir,
        )
        _log.info("worker %s runs up to %d script(s) at once", terms.name, terms.concurrency)
        reports = [
            asyncio.create_task(_report_dangers(parts.tasks, settings)),
            asyncio.create_task(_report_store(parts.artifacts)),
        ]
        shelter = _shelter(settings)
        worker = Worker(
            terms,
            tasks=parts.tasks,
            lease=lease,
            workshop=workshop,
            watch=watch,
            traces=recorded,
            shelter=shelter,
        )
        try:
            async with _watched_at(settings.metrics_address, _worker_pages(watch, worker)):
                await worker.work(drain, hurry=hurry)
        finally:
            await cancelled(reports)
            if shelter:
                await asyncio.to_thread(shelter.close)
            await executor.close()
            await recorded.close()
    _log.info("worker %s stopped", terms.name)


def _shelter(settings: Settings) -> EcsShelter | None:
    """What keeps this worker from being scaled in while it works, where there is such a thing."""
    if not settings.ecs_agent or not settings.ecs_protection_minutes:
        return None
    return EcsShelter(settings.ecs_agent, minutes=settings.ecs_protection_minutes)


def _affordable(concurrency: int) -> int:
    """As many scripts at once as there are file descriptors for; the soft limit is raised as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors_of(concurrency)
    if hard == resource.RLIM_INFINITY or soft < needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
        return concurrency
    affordable = max(1, (soft - DESCRIPTORS_OF_WORKER) // DESCRIPTORS_OF_RUN)
    if affordable < concurrency:
        _log.warning("only %d script(s) at once: no more than %d files may be open (ulimit -n)", affordable, soft)
    return min(concurrency, affordable)


def descriptors_of(concurrency: int) -> int:
    """How many files a worker has open that runs so many scripts at once."""
    return DESCRIPTORS_OF_WORKER + concurrency * DESCRIPTORS_OF_RUN


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# All in one


def prepare_data(settings: Settings, data: str | None) -> tuple[Settings, EmbeddedServer | None]:
    """Settings for one machine: the data folder for what is not configured, and the server in it, not started."""
    folder = Path(data).absolute() if data else default_data_folder(Path(settings.config), os.environ)
    settings = settings.with_options(store_url=settings.store_url or (folder / "artifacts").as_uri())
    if settings.redis_url:
        return settings, None
    server = EmbeddedServer(folder)
    return settings.with_options(redis_url=server.url, redis_username="", redis_password=""), server


async def keep_embedded(server: EmbeddedServer, *, stop: asyncio.Event) -> None:
    """Start the embedded server again whenever it is gone, until ``stop``."""
    while not stop.is_set():
        await first_of(stop.wait(), asyncio.sleep(TEND_SECONDS))
        if stop.is_set() or await asyncio.to_thread(lambda: server.is_alive):
            continue
        _log.error("the embedded server is gone and is started again")
        try:
            await asyncio.to_thread(server.start)
        except Error as error:
            _log.error(error.message)


async def keep_worker(settings: Settings, first: Child, *, stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Keep a worker process alive until ``stop``, then let it drain; ``hurry`` ends that at once.

    Only the first may be a copy of this process, which since then has threads (fork(2)).
    """
    worker: Child | asyncio.subprocess.Process | None = first
    while worker or not stop.is_set():
        worker = worker or await _start_worker(settings)
        await first_of(worker.wait(), stop.wait())
        for signal_again in (hurry.wait, worker.wait):
            if worker.returncode is None:
                worker.terminate()
                await first_of(worker.wait(), signal_again())
        if not stop.is_set():
            _log.error("the worker ended with status %s and is started again", worker.returncode)
            await first_of(stop.wait(), asyncio.sleep(1.0))
        worker = None


def settings_of_worker(settings: Settings) -> Settings:
    """Those of the worker of ``up``: it is watched one port further than the server."""
    if not settings.metrics or not settings.metrics_address:
        return settings
    host, port = settings.metrics.rpartition(":")[0], settings.metrics_address[1]
    return settings.with_options(metrics=f"{host}:{port + 1 if port else 0}")


async def _start_worker(settings: Settings) -> asyncio.subprocess.Process:
    """A worker that drains by itself when this process is gone: its standard input ends then."""
    own = {
        "SCRIPT_RUNNER_CONFIG": settings.config,
        "SCRIPT_RUNNER_REDIS_URL": settings.redis_url or "",
        "SCRIPT_RUNNER_REDIS_PASSWORD": settings.redis_password or "",
        "SCRIPT_RUNNER_STORE": settings.store_url or "",
        "SCRIPT_RUNNER_RUNDIR": settings.rundir,
        "SCRIPT_RUNNER_CONCURRENCY": str(settings.concurrency or ""),
        "SCRIPT_RUNNER_LEASE_SECONDS": str(settings.lease_seconds),
        "SCRIPT_RUNNER_DRAIN_TIMEOUT": str(settings.drain_timeout),
        "SCRIPT_RUNNER_REDIS_REPLICAS": str(settings.redis_replicas),
        "SCRIPT_RUNNER_LOG_LEVEL": settings.log_level,
        "SCRIPT_RUNNER_LOG_FORMAT": settings.log_format,
        "SCRIPT_RUNNER_METRICS": settings_of_worker(settings).metrics or "",
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "script_runner", "worker", "--until-input-ends"),
        env={**os.environ, **own},
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal reaches us alone, and we stop it in order
    )
