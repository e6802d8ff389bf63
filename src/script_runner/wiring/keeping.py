"""Keeps alive what ``up`` has beside its server: the embedded server in its data folder, and the worker."""

import asyncio
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from script_runner.adapters.valkey import EmbeddedServer
from script_runner.config import Settings, default_data_folder
from script_runner.errors import Error
from script_runner.fork import Child
from script_runner.worker import first_of

SECONDS_TO_LOOK_AGAIN = 1.0

_log = logging.getLogger("script_runner")


def prepare_data(settings: Settings, data: str | None) -> tuple[Settings, EmbeddedServer | None]:
    """Settings for one machine: the data folder for what is not configured, and the server in it, not started."""
    folder = Path(data).absolute() if data else default_data_folder(Path(settings.config), os.environ)
    settings = replace(settings, store_url=settings.store_url or (folder / "artifacts").as_uri())
    if settings.redis_url:
        return settings, None
    server = EmbeddedServer(folder)
    return replace(settings, redis_url=server.url, redis_username="", redis_password=""), server


async def keep_embedded(server: EmbeddedServer, *, stop: asyncio.Event) -> None:
    """Start the embedded server again whenever it is gone, until ``stop``."""
    while not stop.is_set():
        await first_of(stop.wait(), asyncio.sleep(SECONDS_TO_LOOK_AGAIN))
        try:
            if stop.is_set() or await asyncio.to_thread(lambda: server.is_alive):
                continue
            _log.error("the embedded server is gone and is started again")
            await asyncio.to_thread(server.start)
        except Error as error:
            _log.error(error.message)
        except OSError as error:  # the machine's trouble, which may pass
            _log.error("the embedded server cannot be started: %s", error)


async def keep_worker(settings: Settings, first: Child, *, stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Keep a worker process alive until ``stop``, then let it drain; ``hurry`` ends that at once.

    Only the first may be a copy of this process, which since then has threads (fork(2)).
    """
    worker: Child | asyncio.subprocess.Process | None = first
    while worker or not stop.is_set():
        try:
            worker = worker or await _start_worker(settings)
        except OSError as error:  # the machine's trouble, which may pass
            _log.error("the worker cannot be started: %s", error)
            await first_of(stop.wait(), asyncio.sleep(SECONDS_TO_LOOK_AGAIN))
            continue
        await first_of(worker.wait(), stop.wait())
        for signal_again in (hurry.wait, worker.wait):
            if worker.returncode is None:
                worker.terminate()
                await first_of(worker.wait(), signal_again())
        if not stop.is_set():
            _log.error("the worker ended with status %s and is started again", worker.returncode)
            await first_of(stop.wait(), asyncio.sleep(SECONDS_TO_LOOK_AGAIN))
        worker = None


def settings_of_worker(settings: Settings) -> Settings:
    """Those of the worker of ``up``: it is watched one port further than the server."""
    if not settings.metrics or not settings.metrics_address:
        return settings
    host, port = settings.metrics.rpartition(":")[0], settings.metrics_address[1]
    return replace(settings, metrics=f"{host}:{port + 1 if port else 0}")


async def _start_worker(settings: Settings) -> asyncio.subprocess.Process:
    """A worker that drains by itself when this process is gone: its standard input ends then."""
    own = {
        "SCRIPT_RUNNER_CONFIG": settings.config,
        "SCRIPT_RUNNER_REDIS_URL": settings.redis_url or "",
        "SCRIPT_RUNNER_REDIS_PASSWORD": settings.redis_password or "",
        "SCRIPT_RUNNER_STORE": settings.store_url or "",
        "SCRIPT_RUNNER_RUNDIR": settings.rundir,
        "SCRIPT_RUNNER_CONCURRENCY": str(settings.concurrency or ""),
        "SCRIPT_RUNNER_LEASE_SECONDS": str(settings.lease_seconds),
        "SCRIPT_RUNNER_DRAIN_TIMEOUT": str(settings.drain_timeout),
        "SCRIPT_RUNNER_REDIS_REPLICAS": str(settings.redis_replicas),
        "SCRIPT_RUNNER_LOG_LEVEL": settings.log_level,
        "SCRIPT_RUNNER_LOG_FORMAT": settings.log_format,
        "SCRIPT_RUNNER_METRICS": settings_of_worker(settings).metrics or "",
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "script_runner", "worker", "--until-input-ends"),
        env={**os.environ, **own},
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal reaches us alone, and we stop it in order
    )
