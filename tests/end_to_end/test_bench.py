"""The benchmarks at their smallest: each measure runs beside the floors that need nothing installed."""

import json
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import redis
from benchmarks import capacity, filling, grown, ledger, system
from benchmarks.cases import MEASURES, QUICK, Bench
from benchmarks.material import prepare
from benchmarks.wire import Api

SIZES = replace(QUICK, rounds=1)


@pytest.mark.usefixtures("redis_binary_path")
@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_measures_something(measure: str, tmp_path: Path):
    """A measure that broke is seen here, and not by who wants to know the figures of the day."""
    material = prepare(tmp_path, rows=SIZES.rows, file_bytes=SIZES.file_bytes)
    ours: dict[str, system.OwnStart] = {"up": partial(system.embedded, python=sys.executable)}

    figures = list(getattr(Bench(material, SIZES, ours, {}, say=print), measure)())

    assert {figure.system for figure in figures} <= {"up", "import"}
    assert any(median(figure.ours) > 0 for figure in figures)


@pytest.mark.usefixtures("redis_binary_path")
@pytest.mark.parametrize("name", system.STARTS)
def test_a_system_with_a_full_store_starts_with_all_of_it(name: str, tmp_path: Path):
    """What is measured with a full store has its tasks, each time it is started, and runs new ones."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"command": ["true"], "command_rundir": str(tmp_path)}))

    with grown.grown(name, system.STARTS[name], finished=1_000, queued=100, say=print) as start:
        for turn in ("first", "second"):
            folder = tmp_path / turn
            folder.mkdir()
            with start(config, folder) as one, closing(Api(system.HOST, one.port)) as api:
                api.end_of_one()
                address, _, path = one.store.partition("unix:")
                outside = redis.Redis.from_url(f"unix://{path}" if path else f"redis://{address}")
                with closing(outside):
                    counts = [outside.zcard(f"{filling.PREFIX}{word}") for word in ("finished", "queued")]
            assert counts == [1_001, 100]


@pytest.mark.usefixtures("redis_binary_path")
def test_the_ledger_measures_each_call_at_both():
    """Each call is made at a ledger of few tasks and at one of many."""
    figures = list(ledger.figures(tasks=1_000, queued=100, rounds=1, say=print))

    assert all(median(figure.ours) > 0 < median(figure.floor) for figure in figures if figure.floor)
    assert len([figure for figure in figures if figure.floor]) >= 10


@pytest.mark.usefixtures("redis_binary_path")
def test_the_capacity_is_measured_of_each_process():
    """What a task takes is told by process."""
    figures = list(capacity.figures(tasks=50, say=print))

    assert any("worker" in figure.name and median(figure.ours) > 0 for figure in figures)
