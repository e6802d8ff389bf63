"""What ``up`` keeps alive beside its server, when the machine has no process or descriptor to give."""

import asyncio
import errno
from collections.abc import Iterator
from typing import Any

import pytest

from script_runner.config import Settings
from script_runner.wiring import keeping

pytestmark = pytest.mark.anyio

NO_ROOM = OSError(errno.EMFILE, "no room")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "SECONDS_TO_LOOK_AGAIN", 0.0)


class Worker:
    """A worker that has ended."""

    returncode = 1

    async def wait(self) -> int:
        return self.returncode


class Server:
    """An embedded server that is gone, and what comes of each look at it and of each start."""

    def __init__(
        self, looks: Iterator[bool | OSError], starts: Iterator[OSError | None], stop: asyncio.Event
    ) -> None:
        self._looks = looks
        self._starts = starts
        self._stop = stop

    @property
    def is_alive(self) -> bool:
        look = next(self._looks)
        if isinstance(look, OSError):
            raise look
        return look

    def start(self) -> None:
        if trouble := next(self._starts):
            raise trouble
        self._stop.set()


@pytest.mark.parametrize("reason", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
async def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch, reason: int) -> None:
    """A worker for which the machine has no room is started as soon as it has."""
    stop = asyncio.Event()
    tries = 0

    async def start(*_: object, **__: object) -> Worker:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(reason, "no room")
        stop.set()
        return Worker()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    first: Any = Worker()

    await keeping.keep_worker(Settings(), first, stop=stop, hurry=asyncio.Event())

    assert tries == 2


@pytest.mark.parametrize(
    ("looks", "starts"),
    [([NO_ROOM, False], [None]), ([False, False], [NO_ROOM, None])],
    ids=["look", "start"],
)
async def test_an_embedded_server_that_cannot_be_started_is_tried_again(looks, starts) -> None:
    """An embedded server for which the machine has no room is started as soon as it has."""
    stop = asyncio.Event()
    server: Any = Server(iter(looks), iter(starts), stop)

    await keeping.keep_embedded(server, stop=stop)

    assert stop.is_set()
