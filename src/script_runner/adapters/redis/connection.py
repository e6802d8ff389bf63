"""Connections to a Redis by its URL, the scripts it is to know, and what is said when it is away."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.exceptions
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from script_runner.errors import Code, Error, Problem
from script_runner.ports import Watch

ANSWER_SECONDS: Final = 1.5
"""How long one call may take before the store counts as away."""

FORMAT: Final = 1
"""The form of the records that this version writes, and the newest that it understands."""

CERTIFICATE_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

_Sentinel = tuple[list[tuple[str, int]], str, dict[str, Any]]

_log = logging.getLogger("script_runner.redis")


def _introduction() -> dict[str, Any]:
    """The version that redis-py tells servers; without it every client reads the metadata of its package anew."""
    try:
        from redis.driver_info import DriverInfo  # noqa: PLC0415 - not in older versions
    except ImportError:
        return {"lib_version": redis.__version__}
    return {"driver_info": DriverInfo(lib_version=redis.__version__)}


OPTIONS: Final[dict[str, Any]] = {"protocol": 2, **_introduction()}
"""What all connections have in common."""


# Connections


def connect(url: str, prefix: str, *, is_waiting: bool) -> Any:
    """A client; a waiting one has no time limit on its answers, for commands that block."""

    async def introduce(connection: Any) -> None:
        """Before anything else is said on a new connection: which server is this?"""
        await connection.on_connect()
        try:
            await connection.send_command("INFO", "server")
            run_id = _run_id(await connection.read_response())
            await connection.send_command("EVAL", source_of("meet"), 1, prefix, FORMAT, run_id)
            await connection.read_response()
        except redis.exceptions.ResponseError as error:  # it may not be asked, or takes no writes now
            _log.debug("the server did not say which it is: %s", error)

    options: dict[str, Any] = {
        "socket_timeout": None if is_waiting else ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS / 2,
        "retry": AsyncRetry(ConstantBackoff(0.05), 1),
        "redis_connect_func": introduce,
        **OPTIONS,
    }
    if sentinel := _sentinel(url):
        return _master(redis.asyncio.sentinel.Sentinel, sentinel, options)
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url, max_connections=8 if is_waiting else 32, timeout=ANSWER_SECONDS, **options
    )
    return redis.asyncio.Redis.from_pool(pool)


def connect_blocking(url: str) -> Any:
    options: dict[str, Any] = {
        "socket_timeout": 1.0,
        "socket_connect_timeout": 1.0,
        "retry": Retry(ConstantBackoff(0), 0),
        **OPTIONS,
    }
    if sentinel := _sentinel(url):
        return _master(redis.sentinel.Sentinel, sentinel, options)
    return redis.Redis.from_url(url, **options)


def _master(kind: Any, sentinel: _Sentinel, options: dict[str, Any]) -> Any:
    """A client that follows the master of a service."""
    hosts, service, own = sentinel
    asking = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "retry": options["retry"], **OPTIONS}
    return kind(hosts, sentinel_kwargs=asking).master_for(service, **options, **own)


def sentinels(client: Any) -> Sequence[Any]:
    """The clients through which a client finds its master; they are not closed with it."""
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    return manager.sentinels if manager else ()


async def close(client: Any) -> None:
    await client.aclose()
    for sentinel in sentinels(client):
        await sentinel.aclose()


def _sentinel(url: str) -> _Sentinel | None:
    """Hosts, service name and options of ``redis+sentinel://user:password@host:port,host:port/service/db``."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis+sentinel", "rediss+sentinel"):
        return None
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    options |= {"username": unquote(user) or None, "password": unquote(password) or None}
    options |= {"db": int(database or 0), "ssl": parts.scheme == "rediss+sentinel"}
    addresses = [(host, int(port or 26379)) for host, _, port in (h.partition(":") for h in hosts.split(","))]
    if not service or not all(host for host, _ in addresses):
        raise ValueError("a Sentinel URL names hosts and a service: redis+sentinel://host:port/service")
    return addresses, service, options


def check_url(url: str) -> None:
    """Raise Error(INVALID_CONFIG) if this is no URL of a Redis, without asking it."""
    try:
        connect_blocking(url).connection_pool.make_connection()
    except (TypeError, ValueError):  # for an unknown option or a bad value; the library's words may hold secrets
        message = (
            "The Redis URL cannot be used: expected redis://, rediss://, unix:// or redis+sentinel://, "
            "a number as port, known options, and / # ? @ written as %2F %23 %3F %40 in the password."
        )
        raise Error(Code.INVALID_CONFIG, message, (Problem("environment", "REDIS_URL", message),)) from None
    for name, path in parse_qsl(urlsplit(url).query):
        if name in CERTIFICATE_FILES:
            _check_readable(name, path)


def _check_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123 - a text of the URL
            return
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "no such file"
        message = f"The file {path!r}, which the Redis URL names as {name}, cannot be read: {reason}."
        raise Error(Code.INVALID_CONFIG, message, (Problem("environment", "REDIS_URL", message),)) from None


def _run_id(info: bytes) -> str:
    """The run id in an answer to INFO: another one after each start of a server."""
    lines = (line.partition(b":") for line in info.splitlines())
    return next((value.decode() for name, _, value in lines if name == b"run_id"), "")


# While it is away


@contextlib.asynccontextmanager
async def answering(watch: Watch) -> AsyncIterator[None]:
    """Raise Error(UNAVAILABLE) when the store does not answer in time, and tell those who watch."""
    with Explained(watch):
        async with asyncio.timeout(ANSWER_SECONDS):
            yield


class Explained:
    """What goes wrong with the store raises Error(UNAVAILABLE), and is told those who watch."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        """Nothing is needed before."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        # RuntimeError is uvloop's word for a closed connection
        is_of_redis = isinstance(error, redis.exceptions.RedisError | OSError | RuntimeError)
        if is_of_redis or (isinstance(error, Error) and error.code is Code.UNAVAILABLE):
            self._watch.store_failed("redis")
        if is_of_redis:
            raise away() from error


def away() -> Error:
    return Error(Code.UNAVAILABLE, "The task store (Redis) is away. Try again in a moment.")


# Keys and scripts


def prefix_of(namespace: str) -> str:
    return f"{{{namespace}}}:1:"


def source_of(name: str) -> str:
    folder = resources.files("script_runner.adapters") / "lua"
    return (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
