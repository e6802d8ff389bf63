"""Real object stores for tests: emulators as child processes on loopback, to be paused, killed and looked into."""

import base64
import contextlib
import hashlib
import hmac
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import httpx
from tests.servers import HOST, free_port

BUCKET = "artifacts"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that every azurite has; its key is no secret."""

NANIO_KEYS = ("nanio-key", "nanio-secret-for-tests-0123456789")
AZURITE = Path(__file__).parent.parent / ".tools" / "node_modules" / ".bin" / "azurite-blob"


@dataclass(frozen=True, slots=True)
class Access:
    """What a runner needs to use a store: its URL and credentials."""

    url: str
    key_id: str | None
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        given = {
            "SCRIPT_RUNNER_STORE": self.url,
            "SCRIPT_RUNNER_STORE_KEY_ID": self.key_id,
            "SCRIPT_RUNNER_STORE_SECRET": self.secret,
        }
        return {name: value for name, value in given.items() if value}


class Emulator:
    """One emulator in a folder of its own, with one empty bucket."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="store-")
        self.folder = Path(self._temporary.name)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    environment: ClassVar[Mapping[str, str]] = {}

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def make_bucket(self) -> None:
        raise NotImplementedError

    def access(self, *, prefix: str = "", port: int | None = None, bucket: str = BUCKET) -> Access:
        """How to use it, by ``port`` if a proxy stands before it."""
        raise NotImplementedError

    def has_begun_uploads(self, key: str) -> bool:  # noqa: ARG002 - for those that know
        """Whether parts of an upload to this key are kept that was neither completed nor aborted."""
        return False  # Azure knows no abort: it lets go of blocks that were never committed after a week

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environment}, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"The emulator does not answer:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def pause(self) -> None:
        """Stop it in its tracks: connections are taken and nothing is answered."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        os.killpg(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        self.make_bucket()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._temporary.cleanup()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://{HOST}:{self.port}/", timeout=5)
            return True
        return False


class Moto(Emulator):
    """S3 as moto has it: it knows conditions, and believes every signature."""

    def command(self) -> Sequence[str | Path]:
        return [Path(sys.executable).with_name("moto_server"), "-H", HOST, "-p", str(self.port)]

    def make_bucket(self) -> None:
        _ask("PUT", f"http://{HOST}:{self.port}/{BUCKET}")

    def access(self, *, prefix: str = "", port: int | None = None, bucket: str = BUCKET) -> Access:
        return _s3_access(bucket, prefix, port or self.port, ("any", "any"))

    def has_begun_uploads(self, key: str) -> bool:
        return key in _ask("GET", f"http://{HOST}:{self.port}/{BUCKET}?uploads")


class Nanio(Emulator):
    """S3 as nanio has it: it checks every signature."""

    environment: ClassVar[Mapping[str, str]] = {
        "NANIO_ACCESS_KEY": NANIO_KEYS[0],
        "NANIO_SECRET_KEY": NANIO_KEYS[1],
    }

    def command(self) -> Sequence[str | Path]:
        nanio = Path(sys.executable).with_name("nanio")
        return [nanio, "serve", "--data-dir", self.folder / "data", "--host", HOST, "--port", str(self.port)]

    def make_bucket(self) -> None:
        (self.folder / "data" / BUCKET).mkdir(parents=True)

    def access(self, *, prefix: str = "", port: int | None = None, bucket: str = BUCKET) -> Access:
        return _s3_access(bucket, prefix, port or self.port, NANIO_KEYS)

    def has_begun_uploads(self, key: str) -> bool:
        begun = (self.folder / "data" / ".nanio" / "multipart").rglob("*")
        return any(key.encode() in path.read_bytes() for path in begun if path.suffix == ".json")


class Azurite(Emulator):
    """Azure's blobs as Microsoft's own emulator has them: it checks every signature."""

    def command(self) -> Sequence[str | Path]:
        return [
            *(AZURITE, "--blobHost", HOST, "--blobPort", str(self.port), "--location", self.folder),
            *("--disableTelemetry", "--skipApiVersionCheck", "--silent"),
        ]

    def make_bucket(self) -> None:
        date, version = formatdate(usegmt=True), "2021-08-06"
        # https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
        text = (
            f"PUT{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{version}\n"
            f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
        )
        signature = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
        _ask(
            "PUT",
            f"http://{HOST}:{self.port}/{AZURE_ACCOUNT}/{BUCKET}?restype=container",
            {
                "x-ms-date": date,
                "x-ms-version": version,
                "Authorization": f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(signature).decode()}",
                "Content-Length": "0",
            },
        )

    def access(self, *, prefix: str = "", port: int | None = None, bucket: str = BUCKET) -> Access:
        endpoint = f"http://{HOST}:{port or self.port}/{AZURE_ACCOUNT}"
        return Access(f"az://{bucket}/{prefix}?account={AZURE_ACCOUNT}&endpoint={endpoint}", None, AZURE_KEY)


EMULATORS: Mapping[str, type[Emulator]] = {"moto": Moto, "nanio": Nanio, "azurite": Azurite}


def missing(name: str) -> str | None:
    """Why this emulator cannot be started here, if it cannot."""
    if name == "azurite" and not (AZURITE.exists() and shutil.which("node")):
        return "azurite is not installed: ./dev test installs it"
    return None


def _s3_access(bucket: str, prefix: str, port: int, keys: tuple[str, str]) -> Access:
    return Access(f"s3://{bucket}/{prefix}?endpoint=http://{HOST}:{port}&region=us-east-1", *keys)


def _ask(method: str, url: str, headers: Mapping[str, str] | None = None) -> str:
    return httpx.request(method, url, headers=headers).raise_for_status().text
