"""The tails of what running scripts say."""

from typing import Final

from script_runner.adapters.redis.connection import FORMAT, answering, close, connect, prefix_of, source_of
from script_runner.adapters.redis.records import holder
from script_runner.ports import Unwatched, Watch
from script_runner.streams import LogChunk
from script_runner.task import Task

TAIL_BYTES: Final = 64 * 1024
"""How much of each stream of a running script is kept here."""


class RedisLogs:
    """The tails of running scripts in Redis."""

    def __init__(self, url: str, namespace: str, *, watch: Watch | None = None) -> None:
        self._watch = watch or Unwatched()
        self._prefix = prefix_of(namespace)
        self._client = connect(url, self._prefix, is_waiting=False)
        self._append = self._client.register_script(source_of("append"))

    async def append(self, task: Task, stream: str, chunk: LogChunk) -> None:
        arguments = [FORMAT, *holder(task), stream, chunk.offset, chunk.data, TAIL_BYTES]
        async with answering(self._watch):
            await self._append(keys=[self._prefix], args=arguments)

    async def read(self, task_id: str, stream: str, *, offset: int, limit: int) -> LogChunk:
        async with answering(self._watch):
            tail, start = await self._client.hmget(f"{self._prefix}log:{task_id}", [stream, f"{stream}:start"])
        if tail is None:
            return LogChunk(offset, b"")
        first = max(offset, int(start))
        return LogChunk(first, tail[first - int(start) :][:limit])

    async def close(self) -> None:
        await close(self._client)
