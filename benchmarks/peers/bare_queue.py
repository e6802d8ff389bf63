"""A floor as a peer: the least that has our parts. ``uvicorn bare_queue:web``, a ``python bare_queue.py`` a core.

A server that answers after one XADD, Redis, and processes that take by XREADGROUP, spawn, wait, and SET. Nothing
is leased, checked, captured, kept or cleared away, and what a process held when it died is lost.
"""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

STORE = os.environ["PEER_REDIS"]
COMMAND: list[str] = json.loads(Path(os.environ["PEER_CONFIG"]).read_text())["command"]
TASKS, GROUP = "tasks", "workers"

tasks = redis.asyncio.Redis.from_url(STORE, protocol=2, max_connections=1_000)


async def web(scope: Any, _receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    word = scope["path"].rpartition("/")[2]
    if scope["method"] == "POST":
        task_id, status = str(uuid.uuid4()), "not-ready"
        await tasks.xadd(TASKS, {"id": task_id, "seconds": word})
    else:
        task_id, status = word, "ready" if await tasks.exists(f"ended:{word}") else "not-ready"
    body = json.dumps({"status": status, "id": task_id}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def work() -> None:
    with redis.Redis.from_url(STORE, protocol=2) as store:
        with contextlib.suppress(redis.ResponseError):  # another one was faster
            store.xgroup_create(TASKS, GROUP, id="0", mkstream=True)
        while True:
            taken = store.xreadgroup(GROUP, str(os.getpid()), {TASKS: ">"}, count=1, block=1_000)
            for _, entries in taken or ():
                for entry, task in entries:
                    argv = [word.replace("$SECONDS", task[b"seconds"].decode()) for word in COMMAND]
                    os.waitpid(os.posix_spawn(argv[0], argv, os.environ), 0)
                    with store.pipeline(transaction=False) as ended:
                        ended.set(f"ended:{task[b'id'].decode()}", 1).xack(TASKS, GROUP, entry).execute()


if __name__ == "__main__":
    work()
