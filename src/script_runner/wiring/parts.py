"""Makes the adapters that the settings name: task store, artifact store, auth provider."""

import contextlib
import ipaddress
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from script_runner.adapters.redis import RedisLogs, RedisTasks, check_url
from script_runner.adapters.store import FileArtifacts
from script_runner.adapters.watched import WatchedArtifacts
from script_runner.config import Settings
from script_runner.errors import Code, Error, Problem
from script_runner.ports import Artifacts, AuthProvider, Limits, Watch
from script_runner.spec import Spec


@dataclass(frozen=True, slots=True)
class Parts:
    """The adapters that a server and a worker share."""

    tasks: RedisTasks
    logs: RedisLogs
    artifacts: Artifacts


@contextlib.asynccontextmanager
async def open_parts(settings: Settings, spec: Spec, watch: Watch) -> AsyncIterator[Parts]:
    url = required_redis_url(settings)
    limits = Limits(spec.max_queued, spec.max_queued_per_caller, spec.max_running, spec.max_running_per_caller)
    parts = Parts(
        RedisTasks(url, settings.namespace, limits, replicas=settings.redis_replicas, watch=watch),
        RedisLogs(url, settings.namespace, watch=watch),
        WatchedArtifacts(artifact_store(settings), watch),
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


def artifact_store(settings: Settings) -> Artifacts:
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
