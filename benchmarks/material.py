"""What the scripts under measure are made of: a program that does nothing, a large table, a large file."""

import csv
import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("Plate_384_Number", "Well", "Sample", "Count", "Call")
SKIPPED = {"Sample": ["NA"], "Call": ["empty", "failed"]}


@dataclass(frozen=True, slots=True)
class Material:
    """The files that a run of the benchmarks needs, in a folder of its own."""

    program: str
    table: Path
    file: Path
    trivial: Path
    rows: Path
    attachment: Path


def prepare(folder: Path, *, rows: int, file_bytes: int) -> Material:
    """Make all of it. The scripts copy what is here, so that making it is not measured."""
    program = _program(folder)
    table, file = folder / "table.csv", folder / "file.bin"
    _write_table(table, rows)
    _write_file(file, file_bytes)
    runs = str(folder / "runs")
    columns = [
        {"output_name": name.lower(), "input_name": name, "skip_list": SKIPPED.get(name)} for name in COLUMNS
    ]
    results = {"kind": "file", "format": "csv", "input_path": "table.csv", "remapped_columns": columns}
    return Material(
        program=program,
        table=table,
        file=file,
        trivial=_config(folder, "trivial", [program], runs, {}),
        rows=_config(folder, "rows", ["cp", str(table), "$RUNDIR/"], runs, {"results": results}),
        attachment=_config(
            folder, "attachment", ["cp", str(file), "$RUNDIR/"], runs, {"attachments": ["file.bin"]}
        ),
    )


def _program(folder: Path) -> str:
    """A C program that ends at once; true(1) where there is no compiler."""
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        return shutil.which("true") or "/bin/true"
    source, program = folder / "trivial.c", folder / "trivial"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return str(program)


def _write_table(path: Path, rows: int) -> None:
    """A plate table with the same rows each time; about a tenth of them are to be skipped."""
    chance = random.Random(384)  # noqa: S311 - the same table each time
    samples = [f"S{number:05}" for number in range(5_000)] + ["NA"] * 250
    calls = ["positive", "negative", "negative", "inconclusive"] * 5 + ["empty"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number in range(rows):
            well = f"{'ABCDEFGHIJKLMNOP'[number // 24 % 16]}{number % 24 + 1:02}"
            count = chance.randrange(100_000)
            writer.writerow((number // 384, well, chance.choice(samples), count, chance.choice(calls)))


def _write_file(path: Path, size: int) -> None:
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        for start in range(0, size, len(piece)):
            file.write(piece[: size - start])


def _config(folder: Path, name: str, command: list[str], runs: str, outputs: dict[str, Any]) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"command": command, "command_rundir": runs, "outputs": outputs}))
    return path
