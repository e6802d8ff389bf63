"""How the apps of the Azure module reach their files: by the identity that Container Apps lends them."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from script_runner.adapters.objects import Keys, ObjectArtifacts, Place, parse

APPS = Path(__file__).resolve().parents[2] / "deploy" / "terraform" / "azure" / "apps.tf"

CLIENT_ID = "11111111-2222-3333-4444-555555555555"


class Platform(ThreadingHTTPServer):
    """Container Apps' address for tokens (managed-identity REST, 2019-08-01), and a storage account, in one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked_for_token: list[tuple[dict[str, list[str]], str | None]] = []
        self.asked_for_file: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Platform

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        if place.path == "/msi/token":
            self.server.asked_for_token.append((parse_qs(place.query), self.headers["X-IDENTITY-HEADER"]))
            token = {"access_token": "lent", "expires_on": "9999999999", "resource": "", "token_type": "Bearer"}
            self._answer(json.dumps(token).encode(), {"Content-Type": "application/json"})
        else:
            self.server.asked_for_file.append((place.path, self.headers["Authorization"]))
            self._answer(b"rows", {"ETag": '"1"', "Last-Modified": "Tue, 24 Nov 2026 12:00:00 GMT"})

    def _answer(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        """Nothing: the test looks at what was asked."""


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """A machine of Container Apps, as far as a process sees it."""
    with Platform() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{server.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "known to this machine only")
        monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT_ID)
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.anyio
async def test_files_are_reached_by_the_lent_identity(platform: Platform) -> None:
    """The token is asked for the identity that AZURE_CLIENT_ID names, and is what the storage account is shown."""
    url = f"az://artifacts/plates?account=example&endpoint={platform.url}"
    artifacts = ObjectArtifacts(url, Keys(), {})
    content = b"".join([piece async for piece in artifacts.read("task/1/0")])

    ((asked, header),) = platform.asked_for_token
    assert (asked["client_id"], asked["resource"], header) == (
        [CLIENT_ID],
        ["https://storage.azure.com"],
        "known to this machine only",
    )
    assert (content, platform.asked_for_file) == (b"rows", [("/artifacts/plates/task/1/0", "Bearer lent")])


def test_the_url_of_the_store_is_understood() -> None:
    """The module's SCRIPT_RUNNER_STORE names the container, a prefix and the account."""
    (written,) = re.findall(r'SCRIPT_RUNNER_STORE += "(.+)"', APPS.read_text())
    values = {
        "azurerm_storage_container.artifacts.name": "artifacts",
        "local.name": "plates",
        "azurerm_storage_account.this.name": "plates01234567",
    }
    url = re.sub(r"\$\{([^}]+)\}", lambda found: values[found[1]], written)

    assert parse(url) == Place("az", "artifacts", "plates", {"account": "plates01234567"})
