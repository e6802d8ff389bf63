"""What facts about an installation mean."""

from dataclasses import replace
from typing import Any

import pytest

from script_runner import doctor
from script_runner.doctor import Finding, Limits, Space, Verdict
from script_runner.ports import StoreFacts

WELL = StoreFacts(
    product="Redis 7.0.15",
    version=(7, 0),
    is_append_only=True,
    sync="everysec",
    write_failure="",
    eviction="noeviction",
    bytes_used=1_000_000,
    bytes_most=0,
    replicas=0,
    skew_seconds=0.01,
    latency_seconds=0.0005,
)
GIB = 1 << 30


def of_redis(wanted: int = 0, **changes: Any) -> dict[str, Finding]:
    return {found.check: found for found in doctor.of_redis(replace(WELL, **changes), replicas_wanted=wanted)}


def test_all_is_well():
    """Of a Redis as it should be there is nothing to warn of and nothing to do."""
    findings = of_redis()

    assert {found.verdict for found in findings.values()} == {Verdict.OK}
    assert {found.advice for found in findings.values()} == {""}


@pytest.mark.parametrize(
    ("changes", "check", "verdict"),
    [
        ({"version": (6, 0)}, "redis version", Verdict.WRONG),
        ({"version": (6, 2)}, "redis version", Verdict.OK),
        ({"is_append_only": False}, "redis persistence", Verdict.WARNING),
        ({"sync": "no"}, "redis persistence", Verdict.WARNING),
        ({"sync": None}, "redis persistence", Verdict.OK),
        ({"write_failure": "its snapshot"}, "redis persistence", Verdict.WRONG),
        ({"eviction": "allkeys-lru"}, "redis eviction", Verdict.WARNING),
        ({"bytes_used": 95, "bytes_most": 100}, "redis memory", Verdict.WARNING),
        ({"bytes_used": 50, "bytes_most": 100}, "redis memory", Verdict.OK),
        ({"wanted": 1, "replicas": 0}, "redis replicas", Verdict.WRONG),
        ({"wanted": 1, "replicas": 2}, "redis replicas", Verdict.OK),
        ({"skew_seconds": 3.0}, "redis clock", Verdict.WARNING),
        ({"skew_seconds": -3.0}, "redis clock", Verdict.WARNING),
        ({"latency_seconds": 0.1}, "redis latency", Verdict.WARNING),
    ],
)
def test_verdicts_on_redis(changes: dict[str, Any], check: str, verdict: Verdict):
    """Each fact has its verdict, and what is not well has an advice."""
    finding = of_redis(**changes)[check]

    assert finding.verdict is verdict
    assert bool(finding.advice) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("space", "verdict"),
    [
        (Space("/runs", 10 * GIB, 1_000_000), Verdict.OK),
        (Space("/runs", 10 * GIB, None), Verdict.OK),
        (Space("/runs", GIB // 2, 1_000_000), Verdict.WARNING),
        (Space("/runs", 10 * GIB, 5_000), Verdict.WARNING),
        (Space("/runs", 1_000_000, 1_000_000), Verdict.WRONG),
        (Space("/runs", 10 * GIB, 10), Verdict.WRONG),
    ],
)
def test_verdicts_on_space(space: Space, verdict: Verdict):
    """Few bytes or few inodes are warned of, almost none is wrong."""
    finding = doctor.of_space("run folder", space)

    assert (finding.verdict, "/runs" in finding.sentence) == (verdict, True)


@pytest.mark.parametrize(
    ("limits", "verdicts"),
    [
        (Limits(None, None, 60, 2), [Verdict.OK, Verdict.OK]),
        (Limits(1_024, 4_096, 60, 2), [Verdict.OK, Verdict.OK]),
        (Limits(50, 4_096, 60, 2), [Verdict.WARNING, Verdict.OK]),
        (Limits(1_024, 50, 60, 2), [Verdict.OK, Verdict.WARNING]),
    ],
)
def test_verdicts_on_limits(limits: Limits, verdicts: list[Verdict]):
    """A worker that may open or start less than its scripts take is warned of."""
    assert [finding.verdict for finding in doctor.of_limits(limits)] == verdicts


def test_the_worst_counts():
    """One thing that is wrong makes the whole wrong; without any, all is well."""
    well, warned, bad = doctor.ok("a", ""), doctor.warning("b", "", ""), doctor.wrong("c", "", "")

    assert doctor.worst([well, warned, bad]) is Verdict.WRONG
    assert doctor.worst([warned, well]) is Verdict.WARNING
    assert doctor.worst([]) is Verdict.OK
