"""The benchmarks' words and table; what they measure is measured by running them."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from threading import Thread
from typing import Any

import pytest
from benchmarks.__main__ import PUBLISHED, options
from benchmarks.cases import MEASURES, QUICK, Bench, Sizes
from benchmarks.costs import COMMANDS, KEPT, MODULES, Cost, compare, kept
from benchmarks.figures import BEGIN, END, Aim, Figure, bars, document, published, table
from benchmarks.filling import Pipelined, fill, plans
from benchmarks.grown import beside_empty
from benchmarks.ledger import PAGE, RARE_OF_FEW
from benchmarks.wire import Api, Dialect, is_http_answer
from tests.servers import RedisServer

from script_runner.adapters.redis import RedisLease, RedisTasks
from script_runner.ports import ANONYMOUS
from script_runner.task import State, Task

OURS = (400.0, 100.0, 500.0)
FLOOR = (1000.0, 200.0, 2000.0)
TASKS = Figure("up", "tasks/s", "/s", OURS, "spawn", FLOOR)


def cells(figure: Figure) -> list[str]:
    return [cell.strip() for cell in table([figure]).splitlines()[-1].strip("|").split("|")]


def test_without_options_everything_is_measured():
    """Without options all measures run at full size, beside all peers."""
    found = options([])

    assert (found.only, found.system, found.sizes) == (MEASURES, "up", Sizes())
    assert found.peers == ("original", "celery+flask", "fastapi", "webhook", "bare queue")


def test_peers_can_be_left_out():
    """--peers names those that are measured; none without a name."""
    assert options(["--peers"]).peers == []
    assert options(["--peers", "original"]).peers == ["original"]


def test_quick_takes_the_small_sizes():
    """--quick chooses the sizes of a smoke run."""
    assert options(["--quick"]).sizes == QUICK


def test_the_ledger_is_measured_only_by_its_own_word():
    """Without the word nothing is filled; with it, a million tasks or as many as are asked for."""
    assert options([]).case is None
    assert (options(["ledger"]).case, options(["ledger"]).tasks) == ("ledger", 1_000_000)
    assert options(["ledger", "--tasks", "20000"]).tasks == 20_000


def test_capacity_is_measured_only_by_its_own_word():
    """With the word capacity, what a task takes is measured with as many tasks as are asked for."""
    assert (options(["capacity"]).case, options(["capacity"]).tasks) == ("capacity", 5_000)
    assert options(["capacity", "--tasks", "100"]).tasks == 100


def test_rounds_count_for_all_measures():
    """--rounds sets the rounds of small and large measures."""
    sizes = options(["--quick", "--rounds", "7"]).sizes

    assert (sizes.rounds, sizes.large_rounds, sizes.tasks) == (7, 7, QUICK.tasks)


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "0"],
        ["--rounds", "x"],
        ["--only", "speed"],
        ["--only", "ledger"],
        ["--system", "celery"],
        ["--peers", "celery"],
        ["--fast"],
        ["ledger", "--tasks", "0"],
        ["ledger", "--system", "up"],
        ["--grown", "--system", "both"],
        ["--grown", "--publish"],
    ],
)
def test_unknown_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    """A word that is not known ends the command with its usage and code 2."""
    with pytest.raises(SystemExit) as refused:
        options(words)

    assert refused.value.code == 2
    assert "usage: python -m benchmarks" in capsys.readouterr().err


def test_a_full_store_is_measured_beside_an_empty_one():
    """Each figure of the full one is held against the same of the empty one, whatever else it was held against."""
    figures = [
        Figure("full", "polls/s", "/s", (80.0,), "original", (30.0,), Aim("at least", 3, of="ratio")),
        Figure("full", "polls/s", "/s", (80.0,), "ASGI hello", (900.0,)),
        Figure("up", "polls/s", "/s", (100.0,), "original", (30.0,)),
        Figure("import", "import, cli", "s", (0.1,)),
        Figure("full", "only here", "s", (1.0,)),
    ]

    [line] = [cells(figure) for figure in beside_empty(figures, full="full", empty="up", system="up, full")]
    said = ["100 empty store", "", "0.80", "at least 0.9 x empty store: MISSED"]
    assert line == ["up, full", "polls/s", "/s", "80.0", "", *said]


@pytest.mark.parametrize("name", MEASURES)
def test_each_word_of_only_is_a_measure(name: str):
    """Each word that --only takes names a method that measures."""
    assert callable(getattr(Bench, name))


def test_the_table_shows_median_noise_floor_and_ratio():
    """A line has the medians, the noise beside them, and the ratio of the rounds."""
    assert cells(TASKS) == ["up", "tasks/s", "/s", "400", "100..500", "1,000 spawn", "200..2,000", "0.40", ""]


def test_the_ratio_pairs_the_values_of_each_round():
    """A slow machine slows a round's floor and ours alike, so the ratio is the median over rounds."""
    figure = Figure("up", "tasks/s", "/s", (10.0, 1.0, 9.0), "spawn", (20.0, 2.0, 9.0))

    assert figure.ratio == 0.5


def test_a_measure_without_floor_or_noise_leaves_those_cells_empty():
    """One round without a floor shows its value alone."""
    figure = Figure("up", "idle PSS, all", "MB", (98.25,))

    assert cells(figure) == ["up", "idle PSS, all", "MB", "98.2", "", "", "", "", ""]


@pytest.mark.parametrize(
    ("aim", "says"),
    [
        (Aim("under", 401), "under 401: met"),
        (Aim("under", 400), "under 400: MISSED"),
        (Aim("at least", 400), "at least 400: met"),
        (Aim("at most", 400), "at most 400: met"),
        (Aim("at least", 0.5, of="ratio"), "at least 0.5 x spawn: MISSED"),
        (Aim("at least", 0.4, of="ratio"), "at least 0.4 x spawn: met"),
    ],
)
def test_an_aim_is_printed_as_met_or_missed(aim: Aim, says: str):
    """An aim is held against the median, or against the ratio to the floor."""
    figure = Figure("up", "tasks/s", "/s", OURS, "spawn", FLOOR, aim)

    assert cells(figure)[-1] == says


def test_what_the_line_before_says_is_not_repeated():
    """A figure that is held against several others says its own value once."""
    besides = Figure("up", "tasks/s", "/s", OURS, "original", FLOOR)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table([TASKS, besides]).splitlines()
    ]

    assert lines[-1] == ["", "", "", "", "", "1,000 original", "200..2,000", "0.40", ""]


def test_the_bars_have_a_table_of_their_own():
    """Only what is to be reached is in it, with the ratio of the rounds or the median."""
    ratio = Figure("up", "tasks/s", "/s", OURS, "spawn", FLOOR, Aim("at least", 0.7, of="ratio"))
    value = Figure("up", "start", "s", (1.0,), aim=Aim("under", 1.2))

    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in bars([TASKS, ratio, value]).splitlines()
    ]
    assert lines[2:] == [
        ["up", "tasks/s", "0.40 x spawn", "at least 0.7 x spawn: MISSED"],
        ["up", "start", "1.00 s", "under 1.2: met"],
    ]


@pytest.mark.parametrize(
    ("value", "verdict"), [(100.0, "as kept"), (104.0, "as kept"), (104.2, "MORE"), (95.0, "less")]
)
def test_a_cost_that_rises_is_told(value: float, verdict: str):
    """A counted cost is held against the kept one, with the tolerance of its kind."""
    document = {"python": "any", "costs": {"commands": 100.0}}

    assert compare([Cost("commands", COMMANDS, value)], document)[0].startswith(verdict)


def test_a_cost_that_is_not_kept_is_new():
    """A cost without a kept value does not pass for one that is as it was."""
    assert compare([Cost("commands", COMMANDS, 1)], {"python": "any", "costs": {}}) == ["new"]


def test_what_depends_on_python_is_not_held_against_another():
    """Modules and system calls of one Python say nothing of those of another."""
    [verdict] = compare([Cost("modules", MODULES, 999)], {"python": "2.7", "costs": {"modules": 1}})

    assert verdict == "not compared: kept with Python 2.7"


def test_the_kept_costs_are_of_the_oldest_python_that_is_supported():
    """Continuous integration runs that one, so the costs are really compared there."""
    assert json.loads(KEPT.read_text())["python"] == "3.11"


def test_all_lines_of_the_table_are_equally_long():
    """The columns are aligned, whatever stands in them."""
    lines = table([TASKS, Figure("serve+worker", "x", "ms", (1.0,))]).splitlines()

    assert len({len(line) for line in lines}) == 1


def test_figures_are_published_in_place_of_the_old_ones():
    """What stands around them stays as it is, and so does what is published twice."""
    once = published(f"before\n{BEGIN}\nold\n{END}\nafter\n", [TASKS], machine={"cores": 2}, costs={})

    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert table([TASKS]) in once
    assert published(once, [TASKS], machine={"cores": 2}, costs={}) == once


def test_the_figures_of_the_day_have_their_place():
    """The document that is published into can take them."""
    text = published(PUBLISHED.read_text(), [TASKS], machine={}, costs=kept())

    assert text.count(table([TASKS])) == 1
    assert "Redis, round trips" in text


def test_the_document_keeps_every_round():
    """The JSON has all values of ours and the floor, and the machine they were measured on."""
    found = json.loads(json.dumps(document([TASKS], {"cores": 2})))

    assert found["machine"] == {"cores": 2}
    assert found["figures"][0]["ours"] == [400.0, 100.0, 500.0]
    assert found["figures"][0]["floor"] == [1000.0, 200.0, 2000.0]


@pytest.mark.parametrize(
    ("data", "is_whole"),
    [
        (b"", False),
        (b"HTTP/1.1 204 No Content\r\n", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd", True),
    ],
)
def test_the_load_knows_when_an_answer_is_whole(data: bytes, *, is_whole: bool):
    """An HTTP answer is whole when as many bytes are there as it announced."""
    assert is_http_answer(data) is is_whole


class _Overloaded(BaseHTTPRequestHandler):
    """Answers one request of two."""

    protocol_version = "HTTP/1.1"
    answers = cycle([200, 500])

    def do_POST(self) -> None:
        self.send_response(next(self.answers))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, *_status_and_size: object) -> None:
        """Nobody reads it."""


def test_a_load_of_which_some_is_refused_measures_nothing():
    """A server that refuses a part of a load is not compared with those that take all of it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Overloaded) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            load = Api("127.0.0.1", server.server_port, Dialect(document=""))
            with contextlib.closing(load), pytest.raises(SystemExit, match="500 Internal Server Error"):
                load.submit(tasks=8, connections=2)
        finally:
            server.shutdown()
            serving.join()


def test_few_tasks_fill_a_page_of_those_that_failed():
    """Both ledgers answer the same page, so that their times can be compared."""
    ends = Counter(
        task.arguments["ENDS"] for task in plans(1_000, rare=RARE_OF_FEW) if task.owner == ANONYMOUS.owner
    )

    assert ends["failed"] >= PAGE


def test_the_ledger_is_filled_with_what_the_adapter_writes(redis_server: RedisServer, namespace: str):
    """Calls that travel together leave the same keys and fields as those that the adapter makes one by one."""
    new = list(plans(20, rare=2))
    one_by_one, together = f"{namespace}-1", f"{namespace}-2"
    asyncio.run(filled(RedisTasks(redis_server.url, one_by_one), redis_server.url, one_by_one, new))
    asyncio.run(filled(Pipelined(redis_server.url, together), redis_server.url, together, new))

    kept = kept_in(redis_server, together)
    assert kept == kept_in(redis_server, one_by_one)
    assert Counter(record["state"] for record in kept.values() if isinstance(record, dict)) == {
        "succeeded": 10,
        "failed": 4,
        "timed_out": 2,
        "cancelled": 2,
        "lost": 2,
    }


async def filled(tasks: RedisTasks, url: str, namespace: str, new: list[Task]) -> None:
    lease = RedisLease(url, namespace)
    ids = await fill(tasks, lease, iter(new), say=lambda _: None)
    await tasks.close()
    lease.close()
    assert set(ids) == {task.id for task in new if ends_well(task) and task.owner == ANONYMOUS.owner}


def ends_well(task: Task) -> bool:
    return task.arguments["ENDS"] == State.SUCCEEDED


def kept_in(server: RedisServer, namespace: str) -> dict[str, Any]:
    """What is kept of the tasks, without what differs from one run to the next: times, turns, files."""
    client = server.client()
    kept = dict(_kept(client, f"{{{namespace}}}:1:"))
    client.close()
    return kept


def _kept(client: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    differing = {"created", "started", "finished", "outcome", "rank", "sequence"}
    for key in client.scan_iter(f"{prefix}*"):
        kind = key.removeprefix(prefix)
        if kind.startswith("task:"):
            record = client.hgetall(key)
            yield kind, {name: None if name in differing else value for name, value in record.items()}
        elif client.type(key) == "zset" and not kind.startswith(("workers", "turns")):
            yield kind, set(client.zrange(key, 0, -1))
