"""Letting go of what is past its retention."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

from script_runner.ports import Artifacts, Tasks
from script_runner.service import EXPIRY_AT_ONCE, let_go
from script_runner.task import State


class OldTasks:
    """A ledger in which all tasks are past their retention."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = list(ids)

    async def expired(self, *, limit: int, counts: Mapping[State, int]) -> Sequence[str]:
        assert counts == {}
        return self.ids[:limit]

    async def remove(self, task_id: str) -> bool:
        self.ids.remove(task_id)
        return True


class SlowStore:
    """A store that lets go of nothing before it is asked for so much at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_asked_for_enough = asyncio.Event()

    async def remove(self, prefix: str) -> None:
        self.asked.append(prefix)
        if len(self.asked) == EXPIRY_AT_ONCE:
            self.is_asked_for_enough.set()
        await self.is_asked_for_enough.wait()


def test_files_of_several_tasks_go_at_once() -> None:
    """A slow store is asked for several tasks; each is forgotten only when its files are gone."""
    tasks, store = OldTasks([str(number) for number in range(25)]), SlowStore()

    async def run() -> None:
        chore = asyncio.create_task(let_go(cast("Tasks", tasks), cast("Artifacts", store), {}))
        await asyncio.wait_for(store.is_asked_for_enough.wait(), 20)
        assert len(tasks.ids) == 25
        await chore

    asyncio.run(run())

    assert tasks.ids == []
    assert sorted(store.asked, key=int) == [str(number) for number in range(25)]
