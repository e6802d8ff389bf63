"""A short sample of the kill matrix (``python -m tests.chaos``), always the same."""

from dataclasses import replace
from pathlib import Path

from tests.chaos.episode import suffer
from tests.chaos.journal import Figures
from tests.chaos.plan import plan

SEED = 20_240_626
KINDS = ("kill-server", "kill-worker", "kill-script", "kill-redis", "pause-machine", "blackhole-worker")


def test_no_task_is_lost_or_doubled_and_nothing_is_left(redis_binary_path: str, tmp_path: Path) -> None:
    """Whatever is killed, paused or cut off: each task ends once, runs once at a time, and leaves nothing.

    Whoever follows one is told exactly one end.
    """
    assert redis_binary_path
    (whole,) = plan(SEED, len(KINDS), KINDS)
    episode = replace(whole, outstanding=9)
    figures = Figures()

    violations = suffer(episode, tmp_path / "world", figures)

    assert [violation.text for violation in violations] == []
    assert figures.tasks > len(KINDS)
    assert set(figures.followed) == {"StreamFollower", "PollFollower"}
    assert figures.starts >= figures.states["succeeded"] > 0
