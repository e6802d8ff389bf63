"""One episode: a world, a caller, one hurt after the other, rest, judgement."""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.chaos.callers import Callers
from tests.chaos.hurts import DEEDS
from tests.chaos.journal import Figures, Journal, Violation
from tests.chaos.ledger import now
from tests.chaos.plan import Episode, Hurt
from tests.chaos.verdict import Judge
from tests.chaos.world import PATIENCE_SECONDS, World
from tests.end_to_end.processes import until

AT_ONCE = 2
"""How many hurts may last at the same time."""

Tell = Callable[[str], object]


def suffer(episode: Episode, folder: Path, figures: Figures, tell: Tell = str) -> list[Violation]:
    """Build the world, hurt it, judge it; return what was violated."""
    folder.mkdir(parents=True)
    journal = Journal(folder / "journal", episode.number, figures)
    journal.note(f"{episode}")
    with contextlib.closing(journal), World(folder, episode, journal) as world:
        for slot in world.servers:
            slot.program.wait_for_output(" at http://")
        callers = Callers(world, journal)
        callers.start()
        try:
            _wait_for_work(world, callers)
            _hurt_all(world, callers, journal, tell)
            callers.stop_submitting()
            world.heal()
            journal.note("healed")
            Judge(world, callers, journal).judge()
        finally:
            callers.stop()
            callers.followers.stop()
    return journal.violations


def _wait_for_work(world: World, callers: Callers) -> None:
    """Return when every worker has begun something."""

    def is_at_work() -> bool:
        at_work = {stamp.life for stamp in world.ledger.stamps()}
        return len(at_work) == len(world.workers) and callers.book.running > 1

    until(is_at_work, seconds=PATIENCE_SECONDS)


def _hurt_all(world: World, callers: Callers, journal: Journal, tell: Tell) -> None:
    free = threading.Semaphore(AT_ONCE)
    threads = []
    try:
        for hurt in world.episode.hurts:
            time.sleep(hurt.pause_before)
            free.acquire()
            tell(hurt.kind)
            thread = threading.Thread(target=_do, args=(world, callers, journal, hurt, free), daemon=True)
            thread.start()
            threads.append(thread)
    finally:
        for thread in threads:
            thread.join()


def _do(world: World, callers: Callers, journal: Journal, hurt: Hurt, free: threading.Semaphore) -> None:
    journal.note(f"hurt {hurt}, running {callers.book.running}")
    journal.hurt(hurt.kind, callers.book.running)
    try:
        DEEDS[hurt.kind](world, hurt)
    except Exception:  # noqa: BLE001 - a hurt that could not be done must be seen, and must not end the run
        journal.violation("other", f"{hurt.kind} could not be done: {traceback.format_exc()}", at=now())
    finally:
        journal.note(f"over {hurt.kind}")
        free.release()
