"""Asks a Redis about itself; when there is no answer, each way in which that fails has its own sentence."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis.exceptions
import redis.sentinel

from script_runner.adapters.redis.connection import FORMAT, connect_blocking, prefix_of, sentinels, source_of
from script_runner.adapters.redis.tasks import product_of, version_of
from script_runner.errors import Code, Error
from script_runner.ports import StoreFacts


def examine(url: str, namespace: str) -> StoreFacts:
    """What the server behind a URL tells about itself; Error with a sentence on why it tells nothing."""
    client = connect_blocking(url)
    try:
        with _told_why(url):
            client.ping()
            seconds = sorted(_timed(client.ping) for _ in range(5))[2]
            before, now, after = time.time(), client.time(), time.time()
            client.eval(source_of("figures"), 1, prefix_of(namespace), FORMAT, 0)
            info = client.info()
            sync = _setting(client, "appendfsync")
    finally:
        client.close()
        for sentinel in sentinels(client):
            sentinel.close()
    failures = {"aof_last_write_status": "the append-only file", "rdb_last_bgsave_status": "its snapshot"}
    return StoreFacts(
        product=product_of(info),
        version=version_of(info),
        is_append_only=bool(info.get("aof_enabled")),
        sync=sync,
        write_failure=next((what for name, what in failures.items() if info.get(name, "ok") != "ok"), ""),
        eviction=str(info.get("maxmemory_policy", "noeviction")),
        bytes_used=int(info.get("used_memory", 0)),
        bytes_most=int(info.get("maxmemory", 0)),
        replicas=int(info.get("connected_slaves", 0)),
        skew_seconds=now[0] + now[1] / 1_000_000 - (before + after) / 2,
        latency_seconds=seconds,
    )


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _setting(client: Any, name: str) -> str | None:
    """A setting of the server; None where it may not be asked, as in many managed services."""
    try:
        found = client.config_get(name)
    except redis.exceptions.ResponseError:
        return None
    return next((str(_plain(value)) for value in found.values()), None)


def _plain(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextlib.contextmanager
def _told_why(url: str) -> Iterator[None]:
    """Raise Error with a sentence of its own for each way in which a server is not to be had."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        unforeseen = f"Redis cannot be asked ({type(error).__name__}); look at its log and at the URL."
        raise Error(Code.UNAVAILABLE, why(error, url) or unforeseen) from None


def why(error: BaseException, url: str) -> str | None:
    """Why a server is not to be had and what to do, by an error or what caused it; None if that is not known."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    return next((told for cause in causes[::-1] if (told := _why(cause, url))), None)


def _why(error: BaseException, url: str) -> str | None:
    """Why a server is not to be had and what to do, without a word of the URL, which may hold secrets."""
    is_tls = url.startswith("rediss")
    match error:
        case redis.exceptions.AuthenticationError() if "required" in str(error).lower():
            return "Redis asks for a password, and there is none: set SCRIPT_RUNNER_REDIS_PASSWORD."
        case redis.exceptions.AuthenticationError():
            return "Redis refuses the name or the password: they are wrong, or the user is disabled."
        case redis.exceptions.NoPermissionError():
            return (
                "Redis takes the password, but its user lacks permissions: let it do all on keys of the namespace."
            )
        case redis.sentinel.MasterNotFoundError():
            return "No Sentinel knows a master of this service: look at their addresses and the service's name."
        case redis.exceptions.InvalidResponse():
            return "Something answers there that is no Redis: look at the port."
        case redis.exceptions.ResponseError() if "DB index" in str(error):
            return "Redis has no database of this number: look at the end of the URL."
        case ssl.SSLCertVerificationError() if "mismatch" in error.verify_message:
            return "The certificate of Redis is for another host name: use the name that stands in it."
        case ssl.SSLCertVerificationError():
            return (
                f"The certificate of Redis is not trusted ({error.verify_message}): name the file of its "
                "authority in the URL, ?ssl_ca_certs=FILE."
            )
        case ssl.SSLError():
            return (
                "Redis does not speak TLS at this port, or another version of it: look at rediss:// and the port."
            )
        case FileNotFoundError() if is_tls:
            return (
                "A file of certificates that the URL names is not there: ssl_ca_certs, ssl_certfile, ssl_keyfile."
            )
        case FileNotFoundError():
            return "The socket of Redis is not there: look at the path, and whether Redis runs."
        case PermissionError():
            return "This user may not open the socket of Redis: look at its owner and rights."
        case socket.gaierror():
            return "The host name of Redis is not known here: look at the URL, and at DNS."
        case ConnectionRefusedError():
            return "Nothing listens at the address of Redis: look at host and port, and whether Redis runs."
        case TimeoutError() if is_tls:
            return "Redis does not answer in time: a firewall is between, or it speaks no TLS at this port."
        case TimeoutError():
            return "Redis does not answer in time: a firewall is between, or it hangs."
        case ConnectionResetError() if not is_tls:
            return "Redis ends the connection without a word: it may speak only TLS at this port (rediss://)."
    return None
