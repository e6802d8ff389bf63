"""Plays a cloud in a network namespace of its own: metadata servers at their real addresses, and a store behind.

``unshare --net --mount python -m tests.contract.cloud KIND`` saves one file as a worker on that platform would,
with nothing set but what the platform sets, and prints what was asked of it and whether the file was kept.
"""

import asyncio
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tests.servers import HOST, certificates
from tests.stores import NANIO_KEYS, Nanio

from script_runner.config import read_settings
from script_runner.errors import Error
from script_runner.wiring.parts import artifact_store

ECS, POD_IDENTITY, METADATA = "169.254.170.2", "169.254.170.23", "169.254.169.254"
TOKEN_SERVICE = "sts.us-east-1.amazonaws.com"
FAR = "2099-01-01T00:00:00Z"
KEYS = {"AccessKeyId": NANIO_KEYS[0], "SecretAccessKey": NANIO_KEYS[1], "Token": "session", "Expiration": FAR}
TOKEN = {"access_token": "t0ken", "expires_in": "3600", "expires_on": "4070908800", "token_type": "Bearer"}
STS = f"""<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<SessionToken>session</SessionToken><SecretAccessKey>{NANIO_KEYS[1]}</SecretAccessKey><Expiration>{FAR}</Expiration>
<AccessKeyId>{NANIO_KEYS[0]}</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


class Platform(BaseHTTPRequestHandler):
    """Every metadata server in one, and the stand-in for an Azure store: azurite takes tokens by TLS alone."""

    asked: ClassVar[list[list[str]]] = []

    def answer(self) -> None:
        address = urlsplit(self.path)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        host = self.headers["host"].partition(":")[0]
        secret = self.headers.get("x-identity-header") or self.headers.get("authorization") or ""
        self.asked.append([f"{self.command} {host}{address.path}", address.query, secret])
        status, body = self.body_of(address.path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"1"', "Last-Modified": self.date()}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = answer  # noqa: N815 - the names that http.server looks for

    def body_of(self, path: str) -> tuple[int, bytes]:
        match path:
            case "/v2/credentials/task" | "/v1/credentials" | "/latest/meta-data/iam/security-credentials/worker":
                return 200, json.dumps({"Code": "Success", **KEYS}).encode()
            case "/latest/api/token" | "/latest/meta-data/iam/security-credentials/":
                return 200, b"worker"
            case "/msi/token" | "/metadata/identity/oauth2/token":
                return 200, json.dumps(TOKEN).encode()
            case "/tenant/oauth2/v2.0/token":
                return 200, json.dumps({**TOKEN, "expires_in": 3600}).encode()
            case "/":
                return 200, STS.encode()
            case _ if path.startswith("/name1/"):
                return 201, b""
        return 404, b""

    def date(self) -> str:
        return self.date_time_string()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        pass


def environment(kind: str, folder: Path, port: int) -> Mapping[str, str]:
    """What the platform itself sets."""
    (folder / "token").write_text("web-token")
    token = str(folder / "token")
    azure = {
        "SCRIPT_RUNNER_STORE": f"az://container/p?account=name1&endpoint=http://{HOST}:{port}/name1",
    }
    return {
        "ecs": {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/task"},
        "pod-identity": {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{POD_IDENTITY}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": token,
        },
        "web-identity": {
            "AWS_WEB_IDENTITY_TOKEN_FILE": token,
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/worker",
            "AWS_ROLE_SESSION_NAME": "worker",
            "SSL_CERT_FILE": f"{folder}/authority.pem",
        },
        "ec2": {},
        "container-apps": {
            **azure,
            "IDENTITY_ENDPOINT": f"http://{HOST}:{port}/msi/token",
            "IDENTITY_HEADER": "identity-header",
            "AZURE_CLIENT_ID": "client",
        },
        "azure-vm": azure,
        "workload-identity": {
            **azure,
            "AZURE_FEDERATED_TOKEN_FILE": token,
            "AZURE_AUTHORITY_HOST": f"http://{HOST}:{port}",
            "AZURE_CLIENT_ID": "client",
            "AZURE_TENANT_ID": "tenant",
        },
        "nothing": {},
    }[kind]


def main(kind: str) -> None:
    addresses = (["addr", "add", f"{one}/32", "dev", "lo"] for one in ADDRESSES)
    for command in (["link", "set", "lo", "up"], *addresses):
        subprocess.run(["ip", *command], check=True)
    with Nanio() as nanio, tempfile.TemporaryDirectory() as folder:
        for address in ADDRESSES if kind != "nothing" else ():
            serve(address, 80)
        port = serve(HOST, 0)
        serve(HOST, 443, as_token_service(Path(folder)))
        os.environ["SCRIPT_RUNNER_STORE"] = nanio.access().url
        os.environ.update(environment(kind, Path(folder), port))
        artifacts = artifact_store(read_settings(os.environ))
        try:
            asyncio.run(artifacts.save("task/1/0", [b"x"]) if kind != "nothing" else artifacts.check())
            said = "kept"
        except Error as error:
            said = error.message
    json.dump({"said": said, "asked": Platform.asked}, sys.stdout)


def serve(address: str, port: int, tls: ssl.SSLContext | None = None) -> int:
    """The port that the platform now answers on at this address."""
    server = ThreadingHTTPServer((address, port), Platform)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def as_token_service(folder: Path) -> ssl.SSLContext:
    """Makes this machine the token service of Amazon, for this process and its children, by name and certificate.

    The authority's own certificate is ``authority.pem``.
    """
    (folder / "hosts").write_text(f"{HOST} localhost {TOKEN_SERVICE}\n")
    subprocess.run(["mount", "--bind", folder / "hosts", "/etc/hosts"], check=True)
    certificates(folder, HOST, TOKEN_SERVICE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "key.pem")
    return context


ADDRESSES = (ECS, POD_IDENTITY, METADATA)

if __name__ == "__main__":
    main(sys.argv[1])
