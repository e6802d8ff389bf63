"""What was measured, as values; the table for people and the JSON for machines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure is to be: the value, or its ratio to what it is held against. Printed, never asserted."""

    word: Literal["under", "at most", "at least"]
    limit: float
    of: Literal["value", "ratio"] = "value"

    def is_met(self, value: float) -> bool:
        match self.word:
            case "under":
                return value < self.limit
            case "at most":
                return value <= self.limit
            case "at least":
                return value >= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure of one system: a value a round, and that of a peer or a floor in the same round."""

    system: str
    name: str
    unit: str
    ours: tuple[float, ...]
    floor_name: str = ""
    floor: tuple[float, ...] = ()
    aim: Aim | None = None

    @property
    def ratio(self) -> float | None:
        """Ours divided by the other: the median of the rounds, since a slow round slows both."""
        pairs = zip(self.ours, self.floor, strict=bool(self.floor))
        ratios = [ours / floor for ours, floor in pairs if floor]
        return median(ratios) if ratios else None

    @property
    def is_aim_met(self) -> bool | None:
        aimed = self.ratio if self.aim and self.aim.of == "ratio" else median(self.ours)
        return self.aim.is_met(aimed) if self.aim and aimed is not None else None


HEADINGS = ("system", "measure", "unit", "ours", "min..max", "beside", "min..max", "ratio", "bar")
SAID_ONCE = 5
"""The columns that are empty where the line before says the same."""


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table with aligned columns: medians, and the noise beside them."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    before = ("", "")
    for figure in figures:
        cells = _cells(figure)
        is_same = before == (before := (figure.system, figure.name))
        rows.append(("",) * SAID_ONCE + cells[SAID_ONCE:] if is_same else cells)
    return _aligned(rows)


def bars(figures: Iterable[Figure]) -> str:
    """What is to be reached, and whether it is, as a table of its own; empty if nothing is."""
    rows = [
        (figure.system, figure.name, _value(figure), _aim(figure))
        for figure in sorted(figures, key=lambda figure: figure.system)
        if figure.aim
    ]
    return _aligned([("system", "figure", "value", "bar"), *rows]) if rows else ""


BEGIN, END = "<!-- written by ./dev bench --publish -->", "<!-- until here -->"


def published(
    text: str, figures: Sequence[Figure], *, machine: Mapping[str, Any], costs: Mapping[str, float]
) -> str:
    """A document with these figures and counted costs in place of those that stood in it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no place for figures: {BEGIN} … {END}")
    said = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    counted = _aligned([("cost", "kept"), *((name, f"{value:,g}") for name, value in costs.items())])
    parts = (
        begin, said, "## The bars", bars(figures), "## What is counted", counted, "## All figures", table(figures),
        end,
    )  # fmt: skip
    return before + "\n\n".join(parts) + after


def _value(figure: Figure) -> str:
    """What the bar is held against, with the noise of the rounds."""
    if figure.aim and figure.aim.of == "ratio":
        return f"{figure.ratio or 0:.2f} x {figure.floor_name}"
    return f"{_number(median(figure.ours))} {figure.unit}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _cells(figure: Figure) -> tuple[str, ...]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    floor = f"{_number(median(figure.floor))} {figure.floor_name}" if figure.floor else ""
    return (
        figure.system, figure.name, figure.unit,
        _number(median(figure.ours)), _noise(figure.ours), floor, _noise(figure.floor), ratio, _aim(figure),
    )  # fmt: skip


def _aim(figure: Figure) -> str:
    if figure.aim is None:
        return ""
    of = f" x {figure.floor_name}" if figure.aim.of == "ratio" else ""
    return f"{figure.aim.word} {figure.aim.limit:g}{of}: {'met' if figure.is_aim_met else 'MISSED'}"


def _noise(values: Sequence[float]) -> str:
    return f"{_number(min(values))}..{_number(max(values))}" if len(values) > 1 else ""


def _number(value: float) -> str:
    """Three digits that count, or more before the point."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"


def document(figures: Iterable[Figure], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The figures as JSON, every round of them."""
    return {
        "machine": dict(machine),
        "figures": [
            {
                "system": figure.system,
                "name": figure.name,
                "unit": figure.unit,
                "ours": figure.ours,
                "floor_name": figure.floor_name or None,
                "floor": figure.floor,
                "ratio": figure.ratio,
                "aim": _aim(figure) or None,
                "is_aim_met": figure.is_aim_met,
            }
            for figure in figures
        ],
    }
