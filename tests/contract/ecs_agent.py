"""A real HTTP server on loopback that answers as the agent of Amazon ECS does, or is told to answer."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

PROTECTED = {"protection": {"ProtectionEnabled": True, "ExpirationDate": "2030-01-01T00:00:00Z", "TaskArn": "arn"}}


class Agent:
    """Notes each wish; answers ``status`` and ``answer``, while ``gate`` is open."""

    def __init__(self) -> None:
        self.wishes: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.status = 200
        self.answer: Any = PROTECTED
        self.gate = threading.Event()
        self.gate.set()
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                length = int(self.headers["Content-Length"])
                agent.paths.append(self.path)
                agent.wishes.append(json.loads(self.rfile.read(length)))
                agent.gate.wait(60)
                body = agent.answer if isinstance(agent.answer, bytes) else json.dumps(agent.answer).encode()
                self.send_response(agent.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's word
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/api/c0ffee"

    @property
    def enabled(self) -> list[bool]:
        return [wish["ProtectionEnabled"] for wish in self.wishes]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
