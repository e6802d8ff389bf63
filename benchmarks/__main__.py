"""The command: choose what to measure, measure it, print the table."""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from benchmarks import capacity, costs, ledger, peers, system
from benchmarks.cases import MEASURES, QUICK, ROOT, Bench, Sizes
from benchmarks.figures import Figure, bars, document, published, table
from benchmarks.grown import beside_empty, grown
from benchmarks.material import prepare

INTERRUPTED = 130
PUBLISHED = ROOT / "docs" / "performance.md"
PEERS = tuple(peers.STARTS)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for; ``sizes`` are those of all its options together."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Starts the real processes, measures them in turn with peers and floors, and prints tables.",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures little")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds of each measure")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, help="these measures")
    parser.add_argument(
        "--system", choices=("up", "separate", "both"), default="up",
        help="up with the embedded Valkey (default), serve and worker with redis-server, or both",
    )  # fmt: skip
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=PEERS, help="measure beside these; none if none is named"
    )
    parser.add_argument(
        "--grown", action="store_true",
        help="beside ours alone: all again with a full store, 1,000,000 finished tasks and 100,000 that wait",
    )  # fmt: skip
    parser.add_argument("--publish", action="store_true", help="write the tables into docs/performance.md as well")
    parser.add_argument("--check", action="store_true", help="only compare the counted costs with the kept ones")
    parser.add_argument("--keep", action="store_true", help="only count the costs, and keep them for --check")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every round to this file")
    cases = parser.add_subparsers(dest="case", title="a case of its own")
    filled = cases.add_parser(
        "ledger",
        help="whether finished tasks slow anything",
        description="Fills a ledger with finished tasks and measures whether they slow anything; takes minutes.",
    )
    filled.add_argument(
        "--tasks", type=_positive, default=ledger.TASKS, metavar="N", help="how many finished tasks"
    )
    filled.add_argument(
        "--queued", type=_positive, default=ledger.QUEUED, metavar="N", help="how many wait besides"
    )
    filled.add_argument(
        "--rounds", type=_positive, default=ledger.ROUNDS, metavar="N", help="rounds of each measure"
    )
    filled.add_argument("--json", metavar="FILE", type=Path, help="write every round to this file")
    filled.set_defaults(publish=False)
    sized = cases.add_parser(
        "capacity",
        help="what a task takes of an installation",
        description="Lets tasks wait, runs them, and measures what each took: CPU, memory of Redis, disk.",
    )
    sized.add_argument(
        "--tasks", type=_positive, default=capacity.TASKS, metavar="N", help="how many tasks a round"
    )
    sized.add_argument("--json", metavar="FILE", type=Path, help="write the figures to this file")
    sized.set_defaults(publish=False)
    found = parser.parse_args(arguments)
    if not found.case and found.grown and (found.publish or found.system == "both"):
        parser.error("--grown measures one system, up or separate, and is not published")
    found.sizes = QUICK if found.quick else Sizes()
    if found.rounds:
        found.sizes = replace(found.sizes, rounds=found.rounds, large_rounds=found.rounds)
    return found


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def main() -> None:
    """Run what was asked for; Ctrl-C and TERM end it with nothing left behind."""
    asked = options()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if asked.check or asked.keep:
        sys.exit(costs.main(is_kept=asked.keep))
    figures: list[Figure] = []
    machine = _machine() | _code()
    if not asked.case:
        machine["rounds"] = f"{asked.sizes.rounds}, and {asked.sizes.large_rounds} of what is large"
    try:
        figures.extend(_measured(asked))
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(INTERRUPTED)
    finally:  # what was measured before something failed was measured all the same
        print(" · ".join(f"{name} {value}" for name, value in machine.items()))
        print(f"{table(figures)}\n\n{bars(figures)}".rstrip())
        if asked.json:
            asked.json.write_text(json.dumps(document(figures, machine), indent=1) + "\n")
    if asked.publish:
        PUBLISHED.write_text(published(PUBLISHED.read_text(), figures, machine=machine, costs=costs.kept()))


def _interrupt(_number: int, _frame: object) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the clearing up short
    raise KeyboardInterrupt


def _measured(asked: argparse.Namespace) -> Iterator[Figure]:
    if asked.case and not system.redis_server():
        raise SystemExit(f"{asked.case} needs a redis-server on PATH")
    if asked.case == "capacity":
        yield from capacity.figures(tasks=asked.tasks, say=_say)
        return
    if asked.case == "ledger":
        yield from ledger.figures(tasks=asked.tasks, queued=asked.queued, rounds=asked.rounds, say=_say)
        return
    own_python = peers.own_python(_say)
    ours = _ours(asked.system, own_python)
    if asked.grown:
        yield from _grown(asked, ours, own_python)
    else:
        with _bench(asked.sizes, ours, peers.installed(_say, asked.peers), own_python) as bench:
            for measure in _measures(asked):
                yield from getattr(bench, measure)()


def _grown(asked: argparse.Namespace, ours: Mapping[str, system.OwnStart], own_python: str) -> Iterator[Figure]:
    """One of ours with a full store, beside itself."""
    if not ours:
        raise SystemExit("--grown --system separate needs a redis-server on PATH")
    sizes: Sizes = asked.sizes
    [(name, start)] = ours.items()
    full = f"{name}, full"
    title = f"{name}, {sizes.finished:,} finished, {sizes.queued:,} queued"
    with (
        grown(name, start, finished=sizes.finished, queued=sizes.queued, say=_say) as full_start,
        _bench(sizes, {full: full_start, name: start}, {}, own_python) as bench,
    ):
        for measure in _measures(asked):
            yield from beside_empty(getattr(bench, measure)(), full=full, empty=name, system=title)


@contextmanager
def _bench(
    sizes: Sizes, ours: Mapping[str, system.OwnStart], others: Mapping[str, system.Start], own_python: str
) -> Iterator[Bench]:
    with TemporaryDirectory(prefix="script-runner-material-") as folder:
        _say("preparing the table, the file and the script")
        material = prepare(Path(folder), rows=sizes.rows, file_bytes=sizes.file_bytes)
        yield Bench(material, sizes, ours, others, _say, peers.python_of("floors", _say), own_python)


def _measures(asked: argparse.Namespace) -> list[str]:
    return [name for name in MEASURES if name in asked.only]


def _ours(asked: str, python: str) -> dict[str, system.OwnStart]:
    found: dict[str, system.OwnStart] = {
        name: partial(start, python=python) for name, start in system.STARTS.items()
    }
    if asked == "up":
        found.pop("serve+worker")
    elif asked == "separate":
        found.pop("up")
    if "serve+worker" in found and not system.redis_server():
        _say("there is no redis-server: serve and worker are left out")
        found.pop("serve+worker")
    return found


def _machine() -> dict[str, Any]:
    """Where and when this was measured; names no host."""
    redis = system.redis_server()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": system.cores(),
        "CPU": system.processor(),
        "Linux": platform.release(),
        "Python": platform.python_version(),
        "separate Redis": system.version(redis) if redis else "none",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _code() -> dict[str, str]:
    """Which code was measured, as far as git knows."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": said.strip()}


def _say(sentence: str) -> None:
    print(f"benchmarks: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
