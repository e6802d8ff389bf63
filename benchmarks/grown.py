"""All measures again with a store that is full: ours with very many tasks in it, in turn with ours with none."""

import asyncio
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec.structs
import redis

from benchmarks.figures import Aim, Figure
from benchmarks.filling import (
    NAMESPACE,
    PATIENCE_SECONDS,
    RARE_OF_MANY,
    Pipelined,
    Say,
    fill,
    plans,
    queue,
    until_the_log_is_written,
)
from benchmarks.system import OwnStart, System, own_redis
from script_runner.adapters.redis import RedisLease
from script_runner.adapters.valkey import EmbeddedServer

EMPTY = "empty store"
LOG = "appendonlydir"
DATA = {"up": "data", "serve+worker": ""}
"""Where in the folder of a system its store keeps its data."""

LATER_SECONDS = 7 * 86_400.0
"""How long those that wait have to: a worker that ran them would not be idle."""

POLLS = "polls/s"
AIM_OF_POLLS = Aim("at least", 0.9, of="ratio")


@contextmanager
def grown(name: str, start: OwnStart, *, finished: int, queued: int, say: Say) -> Iterator[OwnStart]:
    """The same start, but with so many tasks in store that have ended, and so many that wait for a later day."""
    with TemporaryDirectory(prefix="script-runner-grown-") as folder:
        data = Path(folder) / DATA[name]
        with _store(name, data) as url:
            asyncio.run(_filled(url, finished=finished, queued=queued, say=say))
        yield partial(_started_with, data / LOG, Path(DATA[name]) / LOG, start)


def beside_empty(figures: Iterable[Figure], *, full: str, empty: str, system: str) -> Iterator[Figure]:
    """Each figure of the full system once, beside that of the empty one, as ``system``."""
    found: dict[str, dict[str, Figure]] = {full: {}, empty: {}}
    for figure in figures:
        found.get(figure.system, {}).setdefault(figure.name, figure)
    for name, figure in found[full].items():
        if other := found[empty].get(name):
            aim = AIM_OF_POLLS if name.startswith(POLLS) else None
            yield replace(figure, system=system, floor_name=EMPTY, floor=other.ours, aim=aim)


@contextmanager
def _store(name: str, data: Path) -> Iterator[str]:
    """The URL of a store of the kind that the system has, with its data there."""
    if name == "up":
        server = EmbeddedServer(data)
        try:
            server.start()
            yield server.url
        finally:
            server.stop()
    else:
        with own_redis(data) as (address, _):
            yield f"redis://{address}"


async def _filled(url: str, *, finished: int, queued: int, say: Say) -> None:
    """Fill the store and let it write all that in one piece, as it does itself when the log has grown."""
    tasks, lease = Pipelined(url, NAMESPACE), RedisLease(url, NAMESPACE)
    outside: Any = redis.Redis.from_url(url, socket_timeout=PATIENCE_SECONDS)
    with closing(outside), closing(lease):
        say(f"filling a store with {finished:,} finished tasks")
        await fill(tasks, lease, plans(finished, rare=RARE_OF_MANY), say=say)
        say(f"letting {queued:,} more wait in it")
        later = time.time() + LATER_SECONDS
        waiting = plans(queued, rare=queued + 1)
        await queue(tasks, (msgspec.structs.replace(task, not_before=later) for task in waiting))
        await until_the_log_is_written(outside)
        outside.bgrewriteaof()
        await until_the_log_is_written(outside)
        await tasks.close()


@contextmanager
def _started_with(
    log: Path, place: Path, start: OwnStart, config: Path, folder: Path, /, *, concurrency: int | None = None
) -> Iterator[System]:
    shutil.copytree(log, folder / place, copy_function=_copy)
    with start(config, folder, concurrency=concurrency) as system:
        yield system


def _copy(source: str, target: str) -> None:
    """Link what a store never changes again, which is most of it; copy the rest."""
    if source.endswith(".base.rdb"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)
