"""What the facts about an installation mean: findings, each with a verdict and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from script_runner.ports import StoreFacts

OLDEST_VERSION: Final = (6, 2)
MOST_SKEW_SECONDS: Final = 2.0
MOST_LATENCY_SECONDS: Final = 0.02
FULL_PART: Final = 0.9
LEAST_BYTES: Final = 64 << 20
SCARCE_BYTES: Final = 1 << 30
LEAST_FILES: Final = 1_000
SCARCE_FILES: Final = 20_000
LEAST_PROCESSES: Final = 64


class Verdict(StrEnum):
    """How it is with one thing."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing, and what to do."""

    check: str
    verdict: Verdict
    sentence: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Space:
    """What is left on the file system of a folder; ``files`` are inodes, None where there is no such number."""

    folder: str
    bytes_free: int
    files_free: int | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may have, None for no limit, and how many scripts a worker is to run at once."""

    open_files: int | None
    processes: int | None
    files_needed: int
    scripts: int


def ok(check: str, sentence: str) -> Finding:
    return Finding(check, Verdict.OK, sentence)


def warning(check: str, sentence: str, advice: str) -> Finding:
    return Finding(check, Verdict.WARNING, sentence, advice)


def wrong(check: str, sentence: str, advice: str) -> Finding:
    return Finding(check, Verdict.WRONG, sentence, advice)


def worst(findings: list[Finding]) -> Verdict:
    """The gravest of the verdicts."""
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in (Verdict.WRONG, Verdict.WARNING) if verdict in verdicts), Verdict.OK)


def of_redis(facts: StoreFacts, *, replicas_wanted: int) -> Iterator[Finding]:
    """What the facts about a Redis that answers mean."""
    yield ok("redis", f"{facts.product} answers, and lets us do what we need")
    yield _version(facts)
    yield _persistence(facts)
    yield _eviction(facts)
    yield _memory(facts)
    if replicas_wanted or facts.replicas:
        yield _replicas(facts, replicas_wanted)
    yield _clock(facts)
    yield _latency(facts)


def _version(facts: StoreFacts) -> Finding:
    if facts.version < OLDEST_VERSION:
        return wrong("redis version", f"{facts.product} is too old", "use Redis or Valkey 6.2 or newer")
    return ok("redis version", f"{facts.product} is new enough")


def _persistence(facts: StoreFacts) -> Finding:
    check = "redis persistence"
    if facts.write_failure:
        return wrong(check, f"Redis cannot write its data: {facts.write_failure}", "look at its disk and its log")
    if not facts.is_append_only:
        sentence = "Redis keeps no append-only file: tasks may be lost when it restarts"
        return warning(check, sentence, "set appendonly yes, or take a service that replicates and restores")
    if facts.sync == "no":
        sentence = "an append-only file is kept, and never forced to disk: a loss of power may lose many seconds"
        return warning(check, sentence, "set appendfsync everysec, or always")
    return ok(check, f"an append-only file is kept{f', synced {facts.sync}' if facts.sync else ''}")


def _eviction(facts: StoreFacts) -> Finding:
    if facts.eviction != "noeviction":
        sentence = f"Redis may evict tasks when it is full (maxmemory-policy {facts.eviction})"
        return warning("redis eviction", sentence, "set maxmemory-policy noeviction")
    return ok("redis eviction", "nothing is evicted")


def _memory(facts: StoreFacts) -> Finding:
    if not facts.bytes_most:
        return ok("redis memory", f"{_size(facts.bytes_used)} used, no limit is set")
    sentence = f"{_size(facts.bytes_used)} of {_size(facts.bytes_most)} used"
    if facts.bytes_used > FULL_PART * facts.bytes_most:
        return warning("redis memory", sentence, "raise maxmemory, or keep fewer finished tasks (retention)")
    return ok("redis memory", sentence)


def _replicas(facts: StoreFacts, wanted: int) -> Finding:
    sentence = f"{facts.replicas} replica(s) follow, {wanted} must (SCRIPT_RUNNER_REDIS_REPLICAS)"
    if facts.replicas < wanted:
        return wrong(
            "redis replicas", sentence, "bring replicas back, or lower the number; until then nothing is taken"
        )
    return ok("redis replicas", sentence)


def _clock(facts: StoreFacts) -> Finding:
    side = "ahead of" if facts.skew_seconds > 0 else "behind"
    sentence = f"the clock of Redis is {abs(facts.skew_seconds):.1f} s {side} ours"
    if abs(facts.skew_seconds) > MOST_SKEW_SECONDS:
        return warning(
            "redis clock", sentence, "let both machines keep time by NTP: times in documents are those of Redis"
        )
    return ok("redis clock", sentence)


def _latency(facts: StoreFacts) -> Finding:
    sentence = f"an answer takes {facts.latency_seconds * 1000:.1f} ms"
    if facts.latency_seconds > MOST_LATENCY_SECONDS:
        return warning("redis latency", sentence, "put Redis nearer: each task takes several answers")
    return ok("redis latency", sentence)


def of_space(check: str, space: Space) -> Finding:
    """Whether a folder has room for files of runs and tasks."""
    sentence = f"{_size(space.bytes_free)} free in {space.folder}"
    if space.files_free is not None:
        sentence += f", room for {space.files_free:,} files"
    files = SCARCE_FILES if space.files_free is None else space.files_free
    advice = "free some, or use a larger file system"
    if space.bytes_free < LEAST_BYTES or files < LEAST_FILES:
        return wrong(check, sentence, advice)
    if space.bytes_free < SCARCE_BYTES or files < SCARCE_FILES:
        return warning(check, sentence, advice)
    return ok(check, sentence)


def of_limits(limits: Limits) -> Iterator[Finding]:
    """Whether a process may have what so many scripts take."""
    needed = f"{limits.files_needed:,} are needed for {limits.scripts} script(s) at once"
    sentence = f"{_number(limits.open_files)} open files, {needed}"
    if limits.open_files is not None and limits.open_files < limits.files_needed:
        yield warning("open files", sentence, "raise ulimit -n, or lower --concurrency: fewer scripts run at once")
    else:
        yield ok("open files", sentence)
    sentence = f"{_number(limits.processes)} processes"
    if limits.processes is not None and limits.processes < LEAST_PROCESSES + limits.scripts:
        yield warning("processes", sentence, "raise ulimit -u: scripts may not be able to start")
    else:
        yield ok("processes", sentence)


def _number(limit: int | None) -> str:
    return "any number of" if limit is None else f"up to {limit:,}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:  # noqa: PLR2004 - the next unit
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
