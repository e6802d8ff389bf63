"""The benchmarks' words and table; what they measure is measured by running them."""

import json

import pytest
from benchmarks.__main__ import options
from benchmarks.cases import MEASURES, QUICK, Bench, Sizes
from benchmarks.figures import Aim, Figure, document, table
from benchmarks.wire import is_http_answer

OURS = (400.0, 100.0, 500.0)
FLOOR = (1000.0, 200.0, 2000.0)
TASKS = Figure("up", "tasks/s", "/s", OURS, "spawn", FLOOR)


def cells(figure: Figure) -> list[str]:
    return [cell.strip() for cell in table([figure]).splitlines()[-1].strip("|").split("|")]


def test_without_options_everything_is_measured():
    """Without options all measures run on both systems at full size."""
    found = options([])

    assert (found.only, found.system, found.sizes) == (MEASURES, "both", Sizes())


def test_quick_takes_the_small_sizes():
    """--quick chooses the sizes of a smoke run."""
    assert options(["--quick"]).sizes == QUICK


def test_rounds_count_for_all_measures():
    """--rounds sets the rounds of small and large measures."""
    sizes = options(["--quick", "--rounds", "7"]).sizes

    assert (sizes.rounds, sizes.large_rounds, sizes.tasks) == (7, 7, QUICK.tasks)


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--rounds", "x"], ["--only", "speed"], ["--system", "celery"], ["--fast"]]
)
def test_unknown_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    """A word that is not known ends the command with its usage and code 2."""
    with pytest.raises(SystemExit) as refused:
        options(words)

    assert refused.value.code == 2
    assert "usage: python -m benchmarks" in capsys.readouterr().err


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
        (Aim("at least", 0.5, of="ratio"), "at least 0.5 of the floor: MISSED"),
        (Aim("at least", 0.4, of="ratio"), "at least 0.4 of the floor: met"),
    ],
)
def test_an_aim_is_printed_as_met_or_missed(aim: Aim, says: str):
    """An aim is held against the median, or against the ratio to the floor."""
    figure = Figure("up", "tasks/s", "/s", OURS, "spawn", FLOOR, aim)

    assert cells(figure)[-1] == says


def test_all_lines_of_the_table_are_equally_long():
    """The columns are aligned, whatever stands in them."""
    lines = table([TASKS, Figure("serve+worker", "x", "ms", (1.0,))]).splitlines()

    assert len({len(line) for line in lines}) == 1


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
