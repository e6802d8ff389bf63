"""Puts the worker together: how much it runs at once, what shelters it, its pages for those who watch."""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Mapping
from typing import Any

from script_runner import __version__
from script_runner.adapters.ecs import EcsShelter
from script_runner.adapters.listener import Answer, Page
from script_runner.adapters.prometheus import PrometheusWatch
from script_runner.adapters.redis import RedisLease
from script_runner.config import Settings, script_environment
from script_runner.ports import Unwatched, Watch
from script_runner.spec import Spec
from script_runner.wiring.checking import apart, cautions
from script_runner.wiring.parts import open_parts, required_redis_url
from script_runner.wiring.watching import health, json_answer, report_dangers, report_store, traces, watched_at
from script_runner.worker import cancelled

DESCRIPTORS_OF_WORKER = 40
DESCRIPTORS_OF_RUN = 10

_log = logging.getLogger("script_runner")


async def work(settings: Settings, spec: Spec, *, drain: asyncio.Event, hurry: asyncio.Event) -> None:
    """Work until ``drain`` is set and all that runs has ended; ``hurry`` ends it at once."""
    from script_runner.adapters.process import LocalExecutor  # noqa: PLC0415 - the worker's half
    from script_runner.run import Workshop  # noqa: PLC0415 - as above
    from script_runner.worker import Terms, Worker  # noqa: PLC0415 - as above

    for caution in (*cautions(spec), apart(settings)):
        if caution:
            _log.warning(caution)
    watch: Watch = PrometheusWatch(is_server=False) if settings.metrics_address else Unwatched()
    recorded = traces(os.environ, role="worker")
    async with open_parts(settings, spec, watch) as parts:
        lease = RedisLease(required_redis_url(settings), settings.namespace)
        executor = LocalExecutor(keep_folders=bool(spec.debug))
        terms = Terms(
            name=f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}",
            concurrency=_affordable(settings.concurrency or cores()),
            configuration=spec.fingerprint,
            lease_seconds=settings.lease_seconds,
            drain_seconds=settings.drain_timeout,
            version=__version__,
        )
        workshop = Workshop(
            spec,
            script_environment(os.environ, spec),
            executor,
            parts.artifacts,
            parts.logs,
            rundir=settings.rundir,
        )
        _log.info("worker %s runs up to %d script(s) at once", terms.name, terms.concurrency)
        reports = [
            asyncio.create_task(report_dangers(parts.tasks, settings)),
            asyncio.create_task(report_store(parts.artifacts)),
        ]
        shelter = _shelter(settings)
        worker = Worker(
            terms,
            tasks=parts.tasks,
            lease=lease,
            workshop=workshop,
            watch=watch,
            traces=recorded,
            shelter=shelter,
        )
        try:
            async with watched_at(settings.metrics_address, _worker_pages(watch, worker)):
                await worker.work(drain, hurry=hurry)
        finally:
            await cancelled(reports)
            if shelter:
                await asyncio.to_thread(shelter.close)
            await executor.close()
            await recorded.close()
    _log.info("worker %s stopped", terms.name)


def _shelter(settings: Settings) -> EcsShelter | None:
    """What keeps this worker from being scaled in while it works, where there is such a thing."""
    if not settings.ecs_agent or not settings.ecs_protection_minutes:
        return None
    return EcsShelter(settings.ecs_agent, minutes=settings.ecs_protection_minutes)


def _affordable(concurrency: int) -> int:
    """As many scripts at once as there are file descriptors for; the soft limit is raised as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors_of(concurrency)
    if hard == resource.RLIM_INFINITY or soft < needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
        return concurrency
    affordable = max(1, (soft - DESCRIPTORS_OF_WORKER) // DESCRIPTORS_OF_RUN)
    if affordable < concurrency:
        _log.warning("only %d script(s) at once: no more than %d files may be open (ulimit -n)", affordable, soft)
    return min(concurrency, affordable)


def descriptors_of(concurrency: int) -> int:
    """How many files a worker has open that runs so many scripts at once."""
    return DESCRIPTORS_OF_WORKER + concurrency * DESCRIPTORS_OF_RUN


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worker_pages(watch: Any, worker: Any) -> Mapping[str, Page]:
    async def metrics(accept: str) -> Answer:
        return Answer(200, *watch.page(accept))

    async def ready(_accept: str) -> Answer:
        if worker.is_ready:
            return json_answer(200, {"ready": True})
        return json_answer(503, {"ready": False, "detail": "The worker does not hold its lease, or it drains."})

    return {"/metrics": metrics, "/health": health, "/ready": ready}
