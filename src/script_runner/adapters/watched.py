"""An artifact store whose failures are told to those who watch, whichever store it is."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from script_runner.errors import Code, Error
from script_runner.ports import Artifacts, Label, Saved, Watch


class WatchedArtifacts:
    """The artifacts of another store."""

    def __init__(self, artifacts: Artifacts, watch: Watch) -> None:
        self._artifacts = artifacts
        self._watch = watch

    async def save(self, key: str, chunks: Iterable[bytes], label: Label | None = None) -> Saved:
        with self._watching():
            return await self._artifacts.save(key, chunks, label)

    async def read(self, key: str, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        pieces = self._artifacts.read(key, start=start, stop=stop)
        try:
            with self._watching():
                async for piece in pieces:
                    yield piece
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def url_for(self, key: str, *, seconds: int) -> str | None:
        with self._watching():
            return await self._artifacts.url_for(key, seconds=seconds)

    async def remove(self, prefix: str) -> None:
        with self._watching():
            await self._artifacts.remove(prefix)

    async def check(self) -> None:
        with self._watching():
            await self._artifacts.check()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except Error as error:
            if error.code is Code.UNAVAILABLE:
                self._watch.store_failed("artifacts")
            raise
