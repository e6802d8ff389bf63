"""The script of the shipped example, run for real: its tables, its report and what it says."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plate-qc"
PYTHON = (sys.executable, "analyse.py")
R = ("Rscript", "--vanilla", "analyse.R")


@dataclass(frozen=True, slots=True)
class Analysis:
    """One run of the script and the folder it wrote into."""

    folder: Path
    exit_code: int
    stdout: str
    stderr: str

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @property
    def report(self) -> bytes:
        return (self.folder / f"{self.folder.name}.pdf").read_bytes()


def analyse(parent: Path, run: str, season: str, *, script: Sequence[str] = PYTHON) -> Analysis:
    """Run the script as the worker does: in the example's folder, the run folder with a slash at its end."""
    folder = parent / "results-abcd1234"
    folder.mkdir(parents=True)
    words = ("--rundir", f"{folder}/", "--basespaceID", run, "--season", season, "--pace", "0")
    ran = subprocess.run((*script, *words), cwd=EXAMPLE, capture_output=True, encoding="utf-8", check=False)
    return Analysis(folder, ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyse(tmp_path_factory.mktemp("plate"), "DEMO-001", "winter")


def read_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((EXAMPLE / name).read_text(encoding="utf-8"))
    return config


@pytest.mark.parametrize("name", ["countTable.csv", "LIMS_results.csv"])
def test_every_well_has_one_row(analysis: Analysis, name: str) -> None:
    """Both tables have one row for each of the 16 x 24 wells, row by row."""
    places = [(int(row["row_384"]), int(row["col_384"])) for row in analysis.table(name)]

    assert places == [(row, column) for row in range(1, 17) for column in range(1, 25)]


def test_every_class_occurs(analysis: Analysis) -> None:
    """The plate shows every class there is, and NA for wells without a sample."""
    classes = {row["classification"] for row in analysis.table("LIMS_results.csv")}

    assert classes == {"positive", "negative", "inconclusive", "failed", "NA"}


def test_wells_without_a_sample_are_na_where_lists_skip(analysis: Analysis) -> None:
    """Some wells hold no sample: just these are NA in plate number and well, so that the skip lists drop them."""
    rows = analysis.table("LIMS_results.csv")
    skipped = [row for row in rows if row["Plate_384_Number"] == "NA"]

    assert 0 < len(skipped) < len(rows)
    assert skipped == [row for row in rows if row["Sample_Well"] == "NA"]


@pytest.mark.parametrize("season", ["fall", "spring", "summer", "winter"])
def test_index_pairs_are_unique(tmp_path: Path, season: str) -> None:
    """No two wells share a pair of indices, in any season."""
    rows = analyse(tmp_path, "DEMO-001", season).table("LIMS_results.csv")

    assert len({(row["index"], row["index2"]) for row in rows}) == 384


def test_same_run_gives_same_files(analysis: Analysis, tmp_path: Path) -> None:
    """The same run and season give the same tables and the same report, to the byte."""
    again = analyse(tmp_path, "DEMO-001", "winter")

    for file in analysis.folder.iterdir():
        assert (again.folder / file.name).read_bytes() == file.read_bytes()


def test_another_run_gives_other_counts(analysis: Analysis, tmp_path: Path) -> None:
    """Runs whose ids differ in the last letter only have other counts from the first well on."""
    other = analyse(tmp_path, "DEMO-002", "winter")

    assert other.table("countTable.csv")[0]["spike"] != analysis.table("countTable.csv")[0]["spike"]


def test_season_changes_indices_and_classes_but_not_counts(analysis: Analysis, tmp_path: Path) -> None:
    """Another season reads the same counts with another index set and other cut-offs."""
    pairs = list(
        zip(
            analysis.table("LIMS_results.csv"),
            analyse(tmp_path, "DEMO-001", "summer").table("LIMS_results.csv"),
            strict=True,
        )
    )

    assert all(winter["target"] == summer["target"] for winter, summer in pairs)
    assert all(winter["index"] != summer["index"] for winter, summer in pairs)
    assert any(winter["classification"] != summer["classification"] for winter, summer in pairs)


def test_report_is_a_pdf_whose_objects_are_where_it_says(analysis: Analysis) -> None:
    """The report begins as a PDF, and each offset of its cross-reference table is where that object begins."""
    report = analysis.report
    start = int(re.findall(rb"startxref\n(\d+)\n%%EOF\n$", report)[0])
    table = report[start:]
    size = int(re.findall(rb"^xref\n0 (\d+)\n", table)[0])
    offsets = [int(offset) for offset in re.findall(rb"(\d{10}) 00000 n \n", table)]

    assert report.startswith(b"%PDF-1.")
    assert len(offsets) == size - 1
    for number, offset in enumerate(offsets, start=1):
        assert report[offset:].startswith(b"%d 0 obj\n" % number)


def test_report_states_the_length_of_its_content(analysis: Analysis) -> None:
    """The content stream is as long as it says."""
    length, content = re.findall(rb"/Length (\d+) >>\nstream\n(.*)\nendstream", analysis.report, re.DOTALL)[0]

    assert int(length) == len(content)


def test_report_escapes_what_a_pdf_string_cannot_hold(tmp_path: Path) -> None:
    """Brackets and backslashes of a run's id are escaped; a letter that the font lacks is a question mark."""
    report = analyse(tmp_path, "a(b\\c)号", "winter").report

    assert rb"(Plate quality control: a\(b\\c\)?) Tj" in report


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="pdftoppm (poppler-utils) is not installed")
def test_report_opens_without_complaint(analysis: Analysis) -> None:
    """A real PDF reader opens the report and has nothing to say about it."""
    report = analysis.folder / f"{analysis.folder.name}.pdf"
    ran = subprocess.run(("pdftoppm", "-r", "20", "-png", report), capture_output=True, check=True)

    assert ran.stderr == b""
    assert ran.stdout.startswith(b"\x89PNG")


def test_progress_is_on_stdout(analysis: Analysis) -> None:
    """Standard output says, line by line, how far the script is."""
    assert analysis.stdout.splitlines() == [
        "reading plate DEMO-001",
        "classified 96 of 384 wells",
        "classified 192 of 384 wells",
        "classified 288 of 384 wells",
        "classified 384 of 384 wells",
        "wrote LIMS_results.csv",
        "wrote results-abcd1234.pdf",
    ]


def test_warnings_are_on_stderr(analysis: Analysis) -> None:
    """Standard error has the warnings, and only these."""
    lines = analysis.stderr.splitlines()

    assert lines
    assert all(line.startswith("warning: ") for line in lines)


def test_unknown_season_is_one_sentence(tmp_path: Path) -> None:
    """A season that does not exist ends the script with one sentence that says which there are."""
    wrong = analyse(tmp_path, "DEMO-001", "monsoon")

    assert wrong.exit_code == 1
    assert wrong.stderr == "There is no season 'monsoon': choose one of fall, spring, summer, winter.\n"


def test_help_names_every_option() -> None:
    """``--help`` tells the options that the configuration uses."""
    shown = subprocess.run((*PYTHON, "--help"), cwd=EXAMPLE, capture_output=True, text=True, check=True).stdout

    for word in read_config("config.json")["command"]:
        assert not word.startswith("--") or word in shown


def test_configuration_names_columns_that_exist(analysis: Analysis) -> None:
    """Each column that the configuration wants is in the table that the script writes."""
    wanted = read_config("config.json")["outputs"]["results"]["remapped_columns"]

    assert {column["input_name"] for column in wanted} <= set(analysis.table("LIMS_results.csv")[0])


def test_configurations_differ_in_the_script_only() -> None:
    """The R configuration runs the R script with the same arguments, and is otherwise the Python one."""
    python, r = read_config("config.json"), read_config("config-r.json")
    python_command, r_command = python.pop("command"), r.pop("command")

    assert r == python
    assert r_command == [*R, *python_command[2:]]


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="Rscript (r-base-core) is not installed")
@pytest.mark.parametrize(
    ("run", "season"), [("DEMO-001", "winter"), ("42", "summer"), ("a run; é号", "fall"), ("x" * 200, "spring")]
)
def test_r_and_python_agree(tmp_path: Path, run: str, season: str) -> None:
    """The R script writes the same tables as the Python script, to the byte, and says the same."""
    python = analyse(tmp_path / "python", run, season)
    r = analyse(tmp_path / "r", run, season, script=R)

    for name in ("countTable.csv", "LIMS_results.csv"):
        assert (r.folder / name).read_bytes() == (python.folder / name).read_bytes()
    assert (r.stdout, r.stderr) == (python.stdout, python.stderr)
    assert r.report.startswith(b"%PDF-1.")
