"""The ASGI floors, on the server that we use: an answer, an answer after one XADD, and a static file.

``uvicorn benchmarks.hello:app``; HELLO_REDIS is the store, HELLO_FILE the file.
"""

import os
from typing import Any

import redis.asyncio
from starlette.responses import FileResponse

STORE = redis.asyncio.Redis.from_url(os.environ["HELLO_REDIS"], protocol=2, max_connections=1_000)
FILE = os.environ["HELLO_FILE"]
ANSWER = b'{"status":"ready","id":"0"}'
TASK: dict[Any, Any] = {"task": "x" * 200}
HEAD = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/file":
        await FileResponse(FILE)(scope, receive, send)
        return
    if scope["path"].startswith("/xadd"):
        await STORE.xadd("benchmark", TASK)
    await send({"type": "http.response.start", "status": 200, "headers": HEAD})
    await send({"type": "http.response.body", "body": ANSWER})
