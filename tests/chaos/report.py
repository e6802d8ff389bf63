"""The table and the figures of a run, as Markdown."""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime

from tests.chaos.journal import AT_THE_END, COLUMNS, Figures
from tests.servers import redis_binary, valkey_binary


def report(figures: Figures, *, seed: int, command: str, left_out: Sequence[str], seconds: float) -> str:
    """What is published: the matrix, then what it was measured on."""
    parts = [_table(figures, left_out), _figures(figures), _machine(seed, command, seconds)]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _table(figures: Figures, left_out: Sequence[str]) -> list[str]:
    lines = [
        f"| kind of hurt | times | tasks that ran during it | {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * (2 + len(COLUMNS))}",
    ]
    for kind, tally in sorted(figures.tallies.items()):
        lines.append(_row(kind, str(tally.times), str(tally.running), _counts(figures, kind)))
    lines += [_row(kind, "left out", "", [""] * len(COLUMNS)) for kind in left_out]
    at_end = _counts(figures, AT_THE_END)
    if any(count != "0" for count in at_end):
        lines.append(_row(AT_THE_END, "", "", at_end))
    tallies = figures.tallies.values()
    times, running = sum(tally.times for tally in tallies), sum(tally.running for tally in tallies)
    counts = [str(_count(figures, column)) for column in COLUMNS]
    lines.append(_row("**all**", str(times), str(running), counts))
    return lines


def _row(kind: str, times: str, running: str, counts: Sequence[str]) -> str:
    return f"| {kind} | {times} | {running} | {' | '.join(counts)} |"


def _counts(figures: Figures, hurt: str) -> list[str]:
    return [str(_count(figures, column, hurt)) for column in COLUMNS]


def _count(figures: Figures, column: str, hurt: str | None = None) -> int:
    found = (violation for violation in figures.violations if violation.column == column)
    return sum(hurt is None or violation.hurt == hurt for violation in found)


def _figures(figures: Figures) -> list[str]:
    states = ", ".join(f"{count} {state}" for state, count in sorted(figures.states.items()))
    starts = f"{figures.starts} starts of scripts"
    untold = f"{figures.unacknowledged} tasks whose acknowledgement was lost on its way"
    followers = ", ".join(
        f"{count} by {kind} over {figures.connections[kind]} requests"
        for kind, count in sorted(figures.followed.items())
    )
    return [
        f"Followed to one end each, unless it is counted above: {followers or 'none'}.",
        f"Tasks: {figures.tasks} ({states}); {starts}; {untold}.",
        f"From the kill of a worker until its task no longer ran under it: {_spread(figures.noticed)}.",
        f"From the end of a pause of a machine until its stale scripts were dead: {_spread(figures.thawed)}.",
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "not measured"
    return f"median {statistics.median(values):.2f} s, worst {max(values):.2f} s of {len(values)}"


def _machine(seed: int, command: str, seconds: float) -> list[str]:
    versions = ", ".join(_version(binary) for binary in (redis_binary(), valkey_binary()) if binary)
    system = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    python = f"Python {platform.python_version()}"
    how = f"`{command}` (seed {seed}), {datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes"
    return [f"{how}; {system}, {python}, {versions}."]


def _version(binary: str) -> str:
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout.split()
    number = next((word.removeprefix("v=") for word in words if word.startswith("v=")), "")
    return f"{words[0] if words else binary} {number}".strip()
