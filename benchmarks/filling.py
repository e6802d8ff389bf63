"""Filling a store: tasks that live and end through the adapter itself, several times as fast as by HTTP."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import redis.exceptions

from script_runner.adapters.redis import RedisLease, RedisTasks
from script_runner.config import read_settings
from script_runner.errors import Error
from script_runner.ports import ANONYMOUS
from script_runner.task import Artifact, Outcome, State, Task

NAMESPACE = read_settings({}).namespace
PREFIX = f"{{{NAMESPACE}}}:1:"

OWNERS = 20
"""Others than the caller; one task in five is theirs."""

RARE = (State.FAILED, State.FAILED, State.TIMED_OUT, State.CANCELLED, State.LOST)
RARE_OF_MANY = 500
"""One task in so many did not succeed."""

FILLERS = ("filler-1", "filler-2")
BATCH = 500
ATTEMPTS = 30
TELL_EVERY = 50_000
LEASE_SECONDS = 60.0
PATIENCE_SECONDS = 60.0

Say = Callable[[str], None]

_Asked = tuple[str, Sequence[Any], "asyncio.Future[Any]"]
"""A script, its arguments, and where its answer goes."""


class Pipelined(RedisTasks):
    """The adapter itself, but that calls made at once travel together: several times as many in a second."""

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__(url, namespace)
        self._calls: list[_Asked] = []
        self._senders: set[asyncio.Task[None]] = set()

    async def _run(self, script: str, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        if not self._calls:
            loop.call_soon(self._send_soon)
        answer = loop.create_future()
        self._calls.append((script, arguments, answer))
        return await answer

    def _send_soon(self) -> None:
        calls, self._calls = self._calls, []
        sender = asyncio.create_task(self._send(calls))
        self._senders.add(sender)
        sender.add_done_callback(self._senders.discard)

    async def _send(self, calls: Sequence[_Asked]) -> None:
        try:
            found = await self._sent(calls)
        except Exception as error:  # noqa: BLE001 - each caller is to have it
            found = [error] * len(calls)
        for (_, _, answer), value in zip(calls, found, strict=True):
            if answer.done():
                continue
            if isinstance(value, Exception):
                answer.set_exception(value)
            else:
                answer.set_result(value)

    async def _sent(self, calls: Sequence[_Asked]) -> list[Any]:
        """The answers. All these scripts may be asked again when an answer was late or lost."""
        for attempt in range(1, ATTEMPTS + 1):
            async with self._client.pipeline(transaction=False) as pipeline:
                for script, arguments, _ in calls:
                    await self._scripts[script](
                        keys=[self._prefix], args=[self._format, *arguments], client=pipeline
                    )
                try:
                    return list(await pipeline.execute())
                except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                    if attempt == ATTEMPTS:
                        raise
            await asyncio.sleep(1)
        raise AssertionError


def plans(count: int, *, rare: int) -> Iterator[Task]:
    """New tasks of several owners that say how they will end; one in ``rare`` will not succeed."""
    for number in range(count):
        owner = f"owner-{number // 5 % OWNERS}" if number % 5 == 4 else ANONYMOUS.owner
        state = State.SUCCEEDED if number % rare else RARE[number // rare % len(RARE)]
        arguments = {"SAMPLE": f"S{number:07}", "ENDS": state.value}
        yield Task(id=str(uuid.uuid4()), owner=owner, arguments=arguments)


def outcome(state: State) -> Outcome:
    """How a run ended that said a line."""
    log = Artifact("stdout", 12, "text/plain; charset=utf-8", uuid.uuid4().hex * 2, f"{uuid.uuid4()}/1/stdout")
    if state is State.SUCCEEDED:
        return Outcome(state, exit_code=0, logs=(log,))
    return Outcome(state, exit_code=1, error="The script ended with exit code 1.", logs=(log,))


async def fill(tasks: RedisTasks, lease: RedisLease, new: Iterator[Task], *, say: Say) -> list[str]:
    """Add, claim and finish all these tasks; the ids of those of the caller that succeeded."""
    ids: list[str] = []
    started, told, done = time.monotonic(), 0, 0

    async def filler(worker: str) -> None:
        nonlocal told, done
        while batch := list(islice(new, BATCH)):
            await _renewed(lease, worker)
            ended = await _lived(tasks, worker, batch)
            ids.extend(
                task.id for task in ended if task.owner == ANONYMOUS.owner and _ending(task) is State.SUCCEEDED
            )
            done += len(batch)
            if done - told >= TELL_EVERY:
                told = done
                say(f"{done:,} tasks, {done / (time.monotonic() - started):,.0f}/s")

    await asyncio.gather(*(filler(worker) for worker in FILLERS))
    for worker in FILLERS:  # a store that starts anew waits for those that may still run something
        await tasks.leave(worker)
    return ids


async def _lived(tasks: RedisTasks, worker: str, batch: Sequence[Task]) -> list[Task]:
    """As many tasks as these, from being added to their end; among fillers any may end what one has added."""
    await asyncio.gather(*(tasks.add(task) for task in batch))
    claimed: list[Task] = []
    while len(claimed) < len(batch):
        claimed += await tasks.claim(worker, limit=len(batch) - len(claimed), wait_seconds=1)
    are_taken = await asyncio.gather(*(tasks.finish(task, outcome(_ending(task))) for task in claimed))
    require(all(are_taken), "the ledger refused an outcome")
    return claimed


def _ending(task: Task) -> State:
    return State(str(task.arguments["ENDS"]))


async def _renewed(lease: RedisLease, worker: str) -> None:
    """A busy Redis may be late."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            lease.renew(worker, seconds=LEASE_SECONDS)
        except Error:
            if attempt == ATTEMPTS:
                raise
            await asyncio.sleep(1)
        else:
            return


async def queue(tasks: RedisTasks, new: Iterator[Task]) -> None:
    """Add all these tasks."""
    while batch := list(islice(new, BATCH)):
        await asyncio.gather(*(tasks.add(task) for task in batch))


async def until_the_log_is_written(outside: Any) -> None:
    """Redis writes its append-only file anew as it grows; what is measured is not to meet that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        info = outside.info("persistence")
        if not (info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]):
            return
        require(time.monotonic() < deadline, "Redis does not come to rest")
        await asyncio.sleep(0.2)


def require(is_so: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as an assertion
    """SystemExit with a sentence if something is not as a benchmark needs it."""
    if not is_so:
        raise SystemExit(f"the benchmark went wrong: {otherwise}")
