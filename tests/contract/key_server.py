"""A real HTTP server on loopback that publishes signing keys, and can be slow, wrong or away."""

import base64
import gzip
import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import rsa

PATH = "/.well-known/jwks.json"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def public_jwk(private_key: rsa.RSAPrivateKey, key_id: str, **members: Any) -> dict[str, Any]:
    """The public half as an issuer publishes it (RFC 7517); ``members`` overrule, None leaves one out."""
    numbers = private_key.public_key().public_numbers()
    jwk = {
        "kty": "RSA",
        "use": "sig",
        "alg": "RS256",
        "kid": key_id,
        "n": base64url(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)),
        "e": base64url(numbers.e.to_bytes(3)),
        **members,
    }
    return {name: value for name, value in jwk.items() if value is not None}


class KeyServer:
    """Answers every GET with ``status``, ``headers`` and ``body``, and counts the requests.

    As real ones do, it compresses for whoever accepts that. ``gate`` is open; while it is closed, a request
    waits, and ``arrived`` tells that one does. ``spaces`` are sent before the body, one by one over seconds.
    """

    def __init__(self, *jwks: Any, port: int = 0) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b""
        self.publish(jwks)
        self.requests = 0
        self.spaces = 0
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Event()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._request_handler())
        self._server.daemon_threads = False  # closing waits for the last answer
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    def publish(self, jwks: Iterable[Any]) -> None:
        """Publish exactly these keys from now on, as a healthy server does."""
        self.answer(200, json.dumps({"keys": list(jwks)}).encode())

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Answer exactly this from now on."""
        self.status, self.body, self.headers = status, body, headers

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _request_handler(self) -> type[BaseHTTPRequestHandler]:
        key_server = self
        counting = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with counting:
                    key_server.requests += 1
                key_server.arrived.set()
                key_server.gate.wait(timeout=30)
                body, is_compressed = key_server.body, "gzip" in self.headers.get("Accept-Encoding", "")
                if is_compressed:
                    body = gzip.compress(body)
                try:
                    self.send_response(key_server.status)
                    if is_compressed:
                        self.send_header("Content-Encoding", "gzip")
                    for name, value in key_server.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(key_server.spaces + len(body)))
                    self.end_headers()
                    for _ in range(key_server.spaces):
                        self.wfile.write(b" ")
                        key_server.closing.wait(0.02)
                    self.wfile.write(body)
                except ConnectionError:
                    self.close_connection = True  # the client had enough, which some tests are about

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's word
                """Say nothing."""

        return Handler
