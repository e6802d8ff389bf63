"""The command: ``python -m tests.chaos``."""

import argparse
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.chaos.episode import suffer
from tests.chaos.journal import Figures
from tests.chaos.plan import (
    DISK_KINDS,
    FAILOVER_KINDS,
    HURTS_PER_EPISODE,
    IS_FAILOVER_IN_DEFAULT_PLAN,
    WEIGHTS,
    plan,
)
from tests.chaos.report import report
from tests.chaos.world import may_mount

INTERRUPTED = 130


def main(words: Sequence[str]) -> int:
    """Run the matrix; 0 when every promise was kept."""
    options = _options(words)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    _say(f"seed {seed}")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where INT is ignored, as in the background of a script
        signal.signal(number, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    kinds, left_out = _kinds(options.only, folder)
    if not kinds:
        _say("nothing is left to be done")
        return 2
    figures = Figures()
    begun = time.monotonic()
    code = 0
    try:
        _run(options, seed, kinds, folder, figures)
    except KeyboardInterrupt:
        _say("interrupted: the episode under way was not judged; what was done so far:")
        code = INTERRUPTED
    command = shlex.join(["python", "-m", "tests.chaos", *words])
    text = report(figures, seed=seed, command=command, left_out=left_out, seconds=time.monotonic() - begun)
    sys.stdout.write(text)
    if options.report:
        options.report.write_text(text)
    _say_violations(figures, folder)
    if not figures.violations and not code:
        _say("every promise was kept")
    if not figures.violations and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _say(f"kept: {folder}")
    return code or int(bool(figures.violations))


def _run(options: argparse.Namespace, seed: int, kinds: Sequence[str], folder: Path, figures: Figures) -> None:
    done = 0
    for episode in plan(seed, options.kills, kinds, per_episode=options.episode):
        begun = time.monotonic()
        place = folder / f"episode-{episode.number}"
        policy = "retry" if episode.is_retried else "fail"
        _say(f"episode {episode.number}: {len(episode.hurts)} hurts on {episode.server}, on_worker_lost {policy}")
        violations = suffer(episode, place, figures, lambda kind: _say(f"  {kind}"))
        done += len(episode.hurts)
        for violation in violations:
            _say(f"  VIOLATION {violation.column}: {violation.text[:200]}")
        if not violations and not options.keep:
            shutil.rmtree(place, ignore_errors=True)
        _say(
            f"episode {episode.number} took {time.monotonic() - begun:.0f} s: {done} of {options.kills} hurts, "
            f"{figures.tasks} tasks, {len(figures.violations)} violations"
        )


def _kinds(only: str | None, folder: Path) -> tuple[list[str], list[str]]:
    """The kinds to be done, and those that cannot be."""
    default = [kind for kind in WEIGHTS if IS_FAILOVER_IN_DEFAULT_PLAN or kind not in FAILOVER_KINDS]
    wanted = only.split(",") if only else default
    if unknown := set(wanted) - set(WEIGHTS):
        raise SystemExit(f"unknown kinds: {', '.join(sorted(unknown))}; there are: {', '.join(WEIGHTS)}")
    left_out = []
    if set(wanted) & set(DISK_KINDS) and not may_mount(folder / "disk"):
        left_out = [kind for kind in wanted if kind in DISK_KINDS]
        _say(f"left out, since no disk may be mounted here: {', '.join(left_out)}")
    return [kind for kind in wanted if kind not in left_out], left_out


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=60, metavar="N", help="how many hurts (default: 60)")
    parser.add_argument("--seed", type=int, metavar="S", help="repeat the plan of an earlier run")
    parser.add_argument("--only", metavar="KIND,…", help=f"some of: {', '.join(WEIGHTS)}")
    parser.add_argument(
        "--keep", action="store_true", help="keep the folders of all episodes, not only of bad ones"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument(
        "--episode", type=int, default=HURTS_PER_EPISODE, metavar="N",
        help=f"hurts in one world, before all is judged and built anew (default: {HURTS_PER_EPISODE})",
    )  # fmt: skip
    return parser.parse_args(words)


def _say_violations(figures: Figures, folder: Path) -> None:
    for violation in figures.violations:
        place = f"{folder}/episode-{violation.episode}"
        _say(f"VIOLATION ({violation.column}, {place}, {violation.hurt}): {violation.text[:700]}")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
