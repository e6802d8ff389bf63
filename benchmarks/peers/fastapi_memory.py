"""A peer: FastAPI and asyncio subprocesses in one process, tasks in its memory. ``uvicorn fastapi_memory:web``."""

import asyncio
import os
import tempfile
import uuid
from typing import Any

import job
from fastapi import FastAPI

web = FastAPI()
tasks: dict[str, dict[str, Any]] = {}
running: set[asyncio.Task[None]] = set()
slots = asyncio.Semaphore(len(os.sched_getaffinity(0)))


@web.get("/health")
async def health() -> dict[str, Any]:
    return {"server": True}


@web.post("/task/{seconds}")
async def submit(seconds: str) -> dict[str, Any]:
    task_id = str(uuid.uuid4())
    tasks[task_id] = {"status": "not-ready", "id": task_id}
    runner = asyncio.create_task(run(task_id, seconds))
    running.add(runner)
    runner.add_done_callback(running.discard)
    return tasks[task_id]


@web.get("/task/{task_id}")
async def show(task_id: str) -> dict[str, Any]:
    return tasks[task_id]


async def run(task_id: str, seconds: str) -> None:
    async with slots:
        with tempfile.TemporaryDirectory(dir=job.CONFIG["command_rundir"]) as folder:
            process = await asyncio.create_subprocess_exec(*job.command(folder, seconds))
            if await process.wait():
                tasks[task_id] = {"status": "failed", "id": task_id}
                return
            found = await asyncio.to_thread(job.outputs, folder)
            tasks[task_id] = {"status": "ready", "id": task_id, **found}
