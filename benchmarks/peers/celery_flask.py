"""A peer: Flask takes tasks, Celery runs them, Redis is between. ``gunicorn celery_flask:web``."""

import os
import subprocess
import tempfile
from typing import Any

import job
from celery import Celery
from celery.result import AsyncResult
from flask import Flask

celery = Celery("peer", broker=os.environ["PEER_REDIS"], backend=os.environ["PEER_REDIS"])
web = Flask("peer")


@celery.task(name="run")
def run(seconds: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=job.CONFIG["command_rundir"]) as folder:
        subprocess.run(job.command(folder, seconds), check=True)
        return job.outputs(folder)


@web.get("/health")
def health() -> dict[str, Any]:
    return {"server": True}


@web.post("/task/<seconds>")
def submit(seconds: str) -> dict[str, Any]:
    return {"status": "not-ready", "id": run.delay(seconds).id}


@web.get("/task/<task_id>")
def show(task_id: str) -> Any:
    result = AsyncResult(task_id, app=celery)
    if not result.ready():
        return {"status": "not-ready", "id": task_id}
    if result.failed():
        return {"status": "failed", "id": task_id}
    # "status" first: the load looks for it at the beginning of a large document
    return web.response_class(web.json.dumps({"status": "ready", "id": task_id, **result.get()}, sort_keys=False),
                              mimetype="application/json")  # fmt: skip
