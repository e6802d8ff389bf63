"""Hosts that are network namespaces, joined by a switch whose ports can be pulled: several machines on one.

Each host has a network stack, an address and a loopback of its own, and reaches the others through the switch
alone; nothing outside can be reached. The disk is that of this machine: it stands for the volume that machines
share. Needs root and iproute2.
"""

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from tests.end_to_end.processes import Site, until
from tests.servers import SETTINGS, certificates

NETWORK = "192.0.2"
"""Addresses for documentation (RFC 5737), which nobody has."""

ASK = """
import json, sys, httpx
with httpx.Client(timeout=30, trust_env=False) as http:
    for line in sys.stdin:
        try:
            answer = http.request(**json.loads(line))
            said = [answer.status_code, answer.text]
        except httpx.TransportError as error:
            said = [0, repr(error)]
        print(json.dumps(said), flush=True)
"""


def why_not() -> str | None:
    """Why there can be no such hosts here, if so."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    probe = f"t{secrets.token_hex(3)}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no network namespace can be made: {done.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace, its address, and its port at the switch."""

    namespace: str
    address: str
    switch: str
    port: str

    @property
    def prefix(self) -> list[str]:
        """What makes a command run there."""
        return ["ip", "netns", "exec", self.namespace]

    def cut_off(self) -> None:
        """Pull its cable: what is sent from then on, either way, is gone without a word."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def join(self) -> None:
        _ip("-n", self.switch, "link", "set", self.port, "up")


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Hosts at one switch, which are gone afterwards with all that was set in them."""
    mark = secrets.token_hex(2)
    switch = f"{mark}-switch"
    made: list[str] = []

    def make(namespace: str) -> None:
        _ip("netns", "add", namespace)
        made.append(namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")

    try:
        make(switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        found = []
        for number, name in enumerate(names, start=10):
            host = Host(f"{mark}-{name}", f"{NETWORK}.{number}", switch, f"p{number}")
            make(host.namespace)
            _ip(
                "-n",
                switch,
                "link",
                "add",
                host.port,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host.namespace,
            )
            _ip("-n", switch, "link", "set", host.port, "master", "bridge", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            found.append(host)
        yield found
    finally:
        for namespace in reversed(made):
            _ip("netns", "del", namespace)


class Caller:
    """Asks by HTTP from a host."""

    def __init__(self, host: Host, url: str) -> None:
        self._url = url
        self._process = subprocess.Popen(
            [*host.prefix, sys.executable, "-c", ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Status and document of the answer; status 0 and words where none came."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"method": method, "url": self._url + path, **more}) + "\n")
        self._process.stdin.flush()
        status, text = json.loads(self._process.stdout.readline())
        return status, json.loads(text) if status else text

    def submit(self, code: str) -> str:
        status, document = self.ask("POST", "/task", json={"code": code})
        assert status == 202, document
        return str(document["id"])

    def document(self, task_id: str) -> dict[str, Any]:
        status, document = self.ask("GET", f"/task/{task_id}")
        assert status == 200, document
        return dict(document)

    def wait_for_state(self, task_id: str, *states: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            document = self.document(task_id)
            return document if document["state"] in states else None

        return until(found, why=lambda: str(self.document(task_id)))

    def wait_until_ready(self, *, workers: int) -> None:
        """Return when the server is ready and so many workers are alive, no more and no fewer."""

        def is_so() -> bool:
            status, document = self.ask("GET", "/ready")
            return status == 200 and document["workers"] == workers

        until(is_so, why=lambda: str(self.ask("GET", "/ready")))

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class TlsRedis:
    """A Redis on a host, by TLS and with a password only. What it is asked from here goes by a unix socket."""

    def __init__(self, binary: str, host: Host, folder: Path) -> None:
        self.authority = folder / "authority.pem"
        self.password = secrets.token_hex(8)
        self.address = f"rediss://{host.address}:6379"
        socket = folder / "socket"
        settings = {
            **SETTINGS,
            **certificates(folder, host.address),
            "bind": host.address,
            "port": "0",
            "tls-port": "6379",
            "tls-auth-clients": "no",
            "unixsocket": str(socket),
            "dir": str(folder),
            "requirepass": self.password,
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        self._client = redis.Redis(unix_socket_path=str(socket), password=self.password, protocol=2)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([*host.prefix, binary, *flags], stdout=log, stderr=log)
        until(self._answers, why=(folder / "log").read_text)

    @property
    def url(self) -> str:
        """Where it is, and whom to trust; the password stands apart."""
        return f"{self.address}?ssl_ca_certs={self.authority}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(redis.exceptions.ConnectionError):
            return bool(self._client.ping())
        return False


class HostedSite(Site):
    """A site whose programs run on the host that was named last."""

    host: Host | None = None

    def on(self, host: Host) -> Self:
        self.host = host
        return self

    def _command(self, words: tuple[str, ...]) -> list[str]:
        assert self.host, "say where: site.on(host).worker()"
        return [*self.host.prefix, *super()._command(words)]
