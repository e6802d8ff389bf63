"""Reads the counts of one 384-well plate, classifies each well, and writes the LIMS table and a PDF report.

The counts are made up, always the same for the same run: a real script would fetch them from the sequencer.
``analyse.R`` does the same in R, to the byte. Needs nothing but Python's standard library.
"""

import argparse
import csv
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROWS = "ABCDEFGHIJKLMNOP"
COLUMNS = range(1, 25)
WELLS_AT_A_TIME = 96
FEWEST_READS = 500
FEWEST_CONTROL_READS = 100

CLASSES = ("positive", "inconclusive", "negative", "failed", "NA")
COUNT_COLUMNS = (
    *("index", "index2", "mergedIndex", "row_384", "col_384"),
    *("Plate_384_Number", "Plate_384_Quadrant", "Plate_ID", "Sample_Well", "Sample_ID"),
    *("spike", "target", "control"),
)
LIMS_COLUMNS = (*COUNT_COLUMNS, "season", "target_vs_spike", "classification", "ctrl_wells")


@dataclass(frozen=True)
class Season:
    """Target reads per spike-in read: a well is negative below the one, positive from the other."""

    negative_below: float
    positive_from: float


SEASONS = {
    "fall": Season(0.025, 0.12),
    "spring": Season(0.02, 0.08),
    "summer": Season(0.015, 0.05),
    "winter": Season(0.02, 0.1),
}


@dataclass(frozen=True)
class Well:
    """The reads of one well. ``role`` is sample, no-template, template (the two controls) or unused."""

    row: int
    column: int
    role: str
    spike: int
    target: int
    control: int

    @property
    def name(self) -> str:
        return f"{ROWS[self.row - 1]}{self.column:02}"

    @property
    def quadrant(self) -> int:
        """Which of the four 96-well plates, 0 to 3, the sample came from."""
        return (self.row - 1) % 2 * 2 + (self.column - 1) % 2

    @property
    def ratio(self) -> float:
        """Target reads per spike-in read, each plus one so that it is never zero."""
        return (self.target + 1) / (self.spike + 1)


class Draws:
    """Whole numbers that look random and follow from a text.

    Lehmer's generator with the multiplier 48271 (Park, Miller and Stockmeyer, CACM 36(7), 1993). All products
    stay below 2^53, so that R's numbers hold them exactly.
    """

    MODULUS = 2_147_483_647
    MULTIPLIER = 48_271

    def __init__(self, text: str) -> None:
        self._state = 1
        for byte in os.fsencode(text) + bytes(4):  # the zeros carry the last letter into the first draw
            self._state = (self._state * self.MULTIPLIER + byte) % (self.MODULUS - 1) + 1

    def below(self, bound: int) -> int:
        """The next number, at least 0 and below ``bound`` (at most 2^20)."""
        self._state = self._state * self.MULTIPLIER % self.MODULUS
        return self._state * bound // self.MODULUS


def main() -> None:
    arguments = parse_arguments()
    season, run_folder = arguments.season, arguments.rundir
    if season not in SEASONS:
        sys.exit(f"There is no season '{season}': choose one of {', '.join(SEASONS)}.")
    if not run_folder.is_dir():
        sys.exit(f"The run folder '{run_folder}' does not exist.")

    say(f"reading plate {arguments.basespaceID}")
    wells = read_plate(arguments.basespaceID)
    counted = count_rows(wells, season)
    write_table(run_folder / "countTable.csv", COUNT_COLUMNS, counted)

    classes: list[str] = []
    for start in range(0, len(wells), WELLS_AT_A_TIME):
        time.sleep(arguments.pace)
        classes += [classify(well, SEASONS[season]) for well in wells[start : start + WELLS_AT_A_TIME]]
        say(f"classified {len(classes)} of {len(wells)} wells")
    verdicts = [judge_control(well, found) for well, found in zip(wells, classes, strict=True)]
    warn_of(wells, classes, verdicts)

    judged = zip(counted, wells, classes, verdicts, strict=True)
    lims = [(*row, season, f"{well.ratio:.6f}", found, verdict) for row, well, found, verdict in judged]
    write_table(run_folder / "LIMS_results.csv", LIMS_COLUMNS, lims)
    say("wrote LIMS_results.csv")

    report = run_folder / f"{run_folder.name}.pdf"
    report.write_bytes(pdf(draw_report(arguments.basespaceID, season, wells, classes, verdicts)))
    say(f"wrote {report.name}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quality control of one 384-well plate (made-up counts).")
    parser.add_argument("--rundir", type=Path, required=True, help="folder to write into")
    parser.add_argument("--basespaceID", required=True, help="the run whose counts to read")
    parser.add_argument("--season", required=True, help=f"index set and cut-offs: {', '.join(SEASONS)}")
    parser.add_argument(
        "--pace", type=float, default=0.2, help="seconds to spend on each 96 wells, in place of real work (0.2)"
    )
    return parser.parse_args()


def say(line: str) -> None:
    """Say it at once: whoever follows the log is waiting."""
    print(line, flush=True)


def read_plate(run_id: str) -> list[Well]:
    """The 384 wells row by row: controls in column 24, the last wells unused, and what goes wrong in a lab."""
    draws = Draws(run_id)
    percent_positive = 6 + draws.below(14)
    unused = 6 + draws.below(12)
    clogged_row, clogged_column = 2 + draws.below(13), 2 + draws.below(16)

    wells = []
    for row in range(1, len(ROWS) + 1):
        for column in COLUMNS:
            luck = draws.below(100)
            spike = 5000 + draws.below(6000) + draws.below(6000) + draws.below(6000)
            target = draws.below(40)
            control = 1500 + draws.below(1500) + draws.below(1500)
            infected = (200 + draws.below(200)) * 2 ** draws.below(8)

            role = "sample"
            if column == 24:
                role = "no-template" if row <= 8 else "template"
            elif row == 16 and column > 23 - unused:
                role = "unused"

            if row in (1, 16) or column in (1, 24):  # wells at the edge dry out
                spike = spike * 3 // 5
            if row == clogged_row and clogged_column <= column < clogged_column + 6:  # a tip was clogged
                spike //= 100
            if role == "unused":
                spike, target, control = spike // 1000, target // 20, control // 1000
            elif role == "template":
                target = 8000 + infected % 8000
            elif luck < (1 if role == "no-template" else percent_positive):
                target = infected
            elif luck >= 98:
                spike, target, control = spike // 300, target // 10, control // 100
            elif luck >= 96:
                control //= 100
            wells.append(Well(row, column, role, spike, target, control))
    return wells


def index_set(name: str, size: int) -> list[str]:
    """So many ten-letter indices, always the same for the same name."""
    draws = Draws(name)
    return ["".join("ACGT"[draws.below(4)] for _ in range(10)) for _ in range(size)]


def count_rows(wells: list[Well], season: str) -> list[tuple[object, ...]]:
    """The count table; NA where no sample is."""
    of_column, of_row = index_set(season, len(COLUMNS)), index_set("rows", len(ROWS))
    rows: list[tuple[object, ...]] = []
    for well in wells:
        index, index2 = of_column[well.column - 1], of_row[well.row - 1]
        plate = f"Plate{well.quadrant + 1}"
        sample = ("NA", "NA", "NA", "NA", "NA")
        if well.role != "unused":
            sample = ("1", "ABCD"[well.quadrant], plate, well.name, f"{plate}-{well.name}")
        reads = (well.spike, well.target, well.control)
        rows.append((index, index2, index + index2, well.row, well.column, *sample, *reads))
    return rows


def classify(well: Well, season: Season) -> str:
    if well.role == "unused":
        return "NA"
    if well.spike + well.target < FEWEST_READS or well.control < FEWEST_CONTROL_READS:
        return "failed"
    if well.ratio >= season.positive_from:
        return "positive"
    return "negative" if well.ratio < season.negative_below else "inconclusive"


def judge_control(well: Well, found: str) -> str:
    """Pass or fail for a control well, NA for any other."""
    expected = {"no-template": "negative", "template": "positive"}.get(well.role)
    if expected is None:
        return "NA"
    return "pass" if found == expected else "fail"


def warn_of(wells: list[Well], classes: list[str], verdicts: list[str]) -> None:
    for well, found, verdict in zip(wells, classes, verdicts, strict=True):
        if verdict == "fail":
            print(f"warning: {well.role} control {well.name} is {found}", file=sys.stderr)
    print(f"warning: {classes.count('NA')} wells hold no sample", file=sys.stderr)
    print(f"warning: {classes.count('failed')} wells failed", file=sys.stderr)


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


# The report: one landscape A4 page, drawn in points from its lower left corner.

Colour = tuple[int, int, int]

PAGE_WIDTH, PAGE_HEIGHT = 842, 595
CELL = 20
PLATE_LEFT, PLATE_TOP = 60, 480
PLATE_BOTTOM = PLATE_TOP - len(ROWS) * CELL
PANEL_LEFT, PANEL_RIGHT = 590, 800
LOWEST, HIGHEST = -4, 1
"""Decimal logarithms of the ratio at the ends of both scales; what lies beyond is shown at the end."""
BINS_PER_DECADE = 5

INK: Colour = (38, 42, 51)
GREY: Colour = (122, 128, 138)
PALE: Colour = (222, 224, 228)
WHITE: Colour = (255, 255, 255)
HEAT: tuple[Colour, ...] = ((250, 246, 236), (253, 222, 160), (245, 150, 84), (200, 50, 70), (92, 14, 66))
CLASS_COLOURS: dict[str, Colour] = {
    "positive": (200, 50, 70),
    "inconclusive": (240, 170, 70),
    "negative": (70, 130, 160),
    "failed": GREY,
    "NA": PALE,
}


class Page:
    """The drawing operators of one page (PDF 1.7, ISO 32000-1, sections 8 and 9)."""

    def __init__(self) -> None:
        self._operators: list[str] = []

    def rectangle(self, x: float, y: float, width: float, height: float, fill: Colour) -> None:
        self._operators.append(f"{_rgb(fill)} rg {x:.2f} {y:.2f} {width:.2f} {height:.2f} re f")

    def frame(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        self._operators.append(f"1 w {_rgb(colour)} RG {x:.2f} {y:.2f} {width:.2f} {height:.2f} re S")

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: Colour) -> None:
        self._operators.append(f"1 w {_rgb(colour)} RG {x:.2f} {y:.2f} m {to_x:.2f} {to_y:.2f} l S")

    def text(
        self, x: float, y: float, words: str, size: float = 9, colour: Colour = INK, *, font: str = "F1"
    ) -> None:
        escaped = words.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        self._operators.append(f"BT {_rgb(colour)} rg /{font} {size} Tf {x:.2f} {y:.2f} Td ({escaped}) Tj ET")

    def number(self, x: float, y: float, digits: str, size: float = 9, align: float = 0.5) -> None:
        """Digits centred on ``x``, or to the left of it with ``align`` 1; each is 0.556 of the size wide."""
        self.text(x - align * 0.556 * size * len(digits), y, digits, size, GREY)

    def content(self) -> bytes:
        """The content stream; a letter that Helvetica does not have becomes a question mark."""
        return "\n".join(self._operators).encode("cp1252", "replace")


def _rgb(colour: Colour) -> str:
    return " ".join(f"{part / 255:.3f}" for part in colour)


def pdf(page: Page) -> bytes:
    """The page as a PDF file (ISO 32000-1, section 7.5: header, objects, cross-reference table, trailer)."""
    content = page.content()
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /%b /Encoding /WinAnsiEncoding >>"
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 4 0 R" % (PAGE_WIDTH, PAGE_HEIGHT)
        + b" /Resources << /Font << /F1 5 0 R /F2 6 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content),
        font % b"Helvetica",
        font % b"Helvetica-Bold",
    )
    file = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")  # high bytes tell transfer programs that it is binary
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    file += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    file += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(file)


def draw_report(run_id: str, season: str, wells: list[Well], classes: list[str], verdicts: list[str]) -> Page:
    page = Page()
    cutoffs = SEASONS[season]
    page.text(PLATE_LEFT, 540, f"Plate quality control: {run_id}", 20, font="F2")
    rule = f"negative below {cutoffs.negative_below:g}, positive from {cutoffs.positive_from:g}"
    page.text(PLATE_LEFT, 520, f"Season {season}. Target reads per spike-in read: {rule}.", 10, GREY)
    draw_plate(page, wells, classes)
    draw_legend(page)
    draw_classes(page, classes)
    draw_histogram(page, wells, classes, cutoffs)
    passed, controls = verdicts.count("pass"), len(verdicts) - verdicts.count("NA")
    page.text(PANEL_LEFT, 96, f"Controls: {passed} of {controls} passed", 10, font="F2")
    page.text(PANEL_LEFT, 82, "Column 24: A to H without template, I to P with.", 8, GREY)
    page.text(PLATE_LEFT, 40, "Made-up counts, the same for the same run: an example of script-runner.", 8, GREY)
    return page


def draw_plate(page: Page, wells: list[Well], classes: list[str]) -> None:
    for column in COLUMNS:
        page.number(PLATE_LEFT + (column - 0.5) * CELL, PLATE_TOP + 6, str(column), 8)
    for row, letter in enumerate(ROWS, start=1):
        page.text(PLATE_LEFT - 14, PLATE_TOP - row * CELL + 7, letter, 8, GREY)
    for well, found in zip(wells, classes, strict=True):
        x, y = PLATE_LEFT + (well.column - 1) * CELL, PLATE_TOP - well.row * CELL
        draw_well(page, x, y, found, heat(math.log10(well.ratio)))
    page.frame(PLATE_LEFT + 23 * CELL, PLATE_BOTTOM, CELL, PLATE_TOP - PLATE_BOTTOM, INK)


def draw_well(page: Page, x: float, y: float, found: str, colour: Colour) -> None:
    """A square with its lower left corner at (x, y), in the colour of its ratio if it has one that counts."""
    if found == "NA":
        page.frame(x + 1.5, y + 1.5, CELL - 3, CELL - 3, PALE)
        return
    page.rectangle(x + 1, y + 1, CELL - 2, CELL - 2, GREY if found == "failed" else colour)
    if found == "failed":
        page.line(x + 6, y + 6, x + CELL - 6, y + CELL - 6, WHITE)
        page.line(x + 6, y + CELL - 6, x + CELL - 6, y + 6, WHITE)
    elif found == "inconclusive":
        page.rectangle(x + CELL / 2 - 2, y + CELL / 2 - 2, 4, 4, INK)


def heat(logarithm: float) -> Colour:
    """The colour of a ratio's decimal logarithm, between the anchors of HEAT."""
    part = min(max((logarithm - LOWEST) / (HIGHEST - LOWEST), 0), 1) * (len(HEAT) - 1)
    low = min(int(part), len(HEAT) - 2)
    red, green, blue = (round(a + (b - a) * (part - low)) for a, b in zip(HEAT[low], HEAT[low + 1], strict=True))
    return red, green, blue


def draw_legend(page: Page) -> None:
    """The colour scale, and what the marks in wells mean."""
    width, bottom = 200, PLATE_BOTTOM - 40
    for step in range(100):
        logarithm = LOWEST + (step + 0.5) / 100 * (HIGHEST - LOWEST)
        page.rectangle(PLATE_LEFT + step * width / 100, bottom, width / 100 + 0.3, 12, heat(logarithm))
    draw_scale(page, PLATE_LEFT, width, bottom - 10)
    page.text(PLATE_LEFT, bottom - 23, "target reads per spike-in read", 8, GREY)
    x = PLATE_LEFT + width + 36
    for found, words, space in (
        ("inconclusive", "inconclusive", 88),
        ("failed", "failed", 62),
        ("NA", "no sample", 0),
    ):
        draw_well(page, x, bottom - 4, found, heat(-1.3))
        page.text(x + CELL + 4, bottom + 3, words)
        x += space


def draw_scale(page: Page, left: float, width: float, y: float) -> None:
    """The powers of ten under a scale."""
    for power in range(LOWEST, HIGHEST + 1):
        x = left + (power - LOWEST) / (HIGHEST - LOWEST) * width
        page.number(x, y, f"{10.0**power:g}", 7)


def draw_classes(page: Page, classes: list[str]) -> None:
    """How many wells are in each class, as bars."""
    page.text(PANEL_LEFT, PLATE_TOP + 6, "Wells by class", 11, font="F2")
    counts = Counter(classes)
    for number, name in enumerate(CLASSES):
        y = PLATE_TOP - 20 - number * 22
        page.text(PANEL_LEFT, y + 4, "no sample" if name == "NA" else name)
        page.rectangle(PANEL_LEFT + 64, y, counts[name] * 110 / max(counts.values()), 14, CLASS_COLOURS[name])
        page.number(PANEL_RIGHT, y + 4, str(counts[name]), align=1)


def draw_histogram(page: Page, wells: list[Well], classes: list[str], cutoffs: Season) -> None:
    """Wells by the logarithm of their ratio, stacked by class, with the two cut-offs."""
    bottom, height, width = PLATE_BOTTOM, 140, PANEL_RIGHT - PANEL_LEFT
    page.text(PANEL_LEFT, bottom + height + 20, "Target reads per spike-in read", 11, font="F2")
    shown = ("negative", "inconclusive", "positive")
    count = (HIGHEST - LOWEST) * BINS_PER_DECADE
    places = (math.floor((math.log10(well.ratio) - LOWEST) * BINS_PER_DECADE) for well in wells)
    bins = Counter((min(max(place, 0), count - 1), found) for place, found in zip(places, classes, strict=True))
    tallest = max(1, *(sum(bins[number, name] for name in shown) for number in range(count)))
    for number in range(count):
        y = float(bottom)
        for name in shown:
            bar = bins[number, name] * height / tallest
            page.rectangle(PANEL_LEFT + number * width / count, y, width / count - 1, bar, CLASS_COLOURS[name])
            y += bar
    page.line(PANEL_LEFT, bottom, PANEL_RIGHT, bottom, GREY)
    draw_scale(page, PANEL_LEFT, width, bottom - 11)
    for cutoff in (cutoffs.negative_below, cutoffs.positive_from):
        x = PANEL_LEFT + (math.log10(cutoff) - LOWEST) / (HIGHEST - LOWEST) * width
        page.line(x, bottom, x, bottom + height + 6, INK)


if __name__ == "__main__":
    main()
