"""What the scripts under measure are made of: a program that only sleeps, a large table, a large file."""

import csv
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("Plate_384_Number", "Well", "Sample", "Count", "Call")
SKIPPED = {"Sample": ["NA"], "Call": ["empty", "failed"]}

TRIVIAL = """
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **words) { return count > 1 && *words[1] != '0' ? (int) sleep(atoi(words[1])) : 0; }
"""


@dataclass(frozen=True, slots=True)
class Material:
    """The files that a run of the benchmarks needs, in a folder of its own."""

    folder: Path
    program: str
    spawner: str | None
    table: Path
    file: Path
    trivial: Path
    rows: Path
    attachment: Path

    def rows_of(self, table: Path) -> Path:
        """A configuration whose results are the rows of this table."""
        results = {
            "kind": "file",
            "format": "csv",
            "input_path": table.name,
            "remapped_columns": remapped(COLUMNS),
        }
        return configuration(self.folder, table.stem, ["cp", str(table), "$RUNDIR/"], {"results": results})

    def attachment_of(self, file: Path) -> Path:
        """A configuration whose attachment is this file."""
        outputs = {"attachments": [file.name]}
        return configuration(self.folder, file.stem, ["cp", str(file), "$RUNDIR/"], outputs)


def prepare(folder: Path, *, rows: int, file_bytes: int) -> Material:
    """Make all of it. The scripts copy what is here, so that making it is not measured."""
    program = compiled(folder, "trivial", TRIVIAL) or shutil.which("sleep") or "/bin/sleep"
    material = Material(
        folder=folder,
        program=program,
        spawner=compiled(folder, "spawner", (Path(__file__).parent / "spawner.c").read_text()),
        table=folder / "table.csv",
        file=folder / "file.bin",
        trivial=configuration(folder, "trivial-config", [program, "$SECONDS"], {}),
        rows=folder / "table.json",
        attachment=folder / "file.json",
    )
    write_table(material.table, rows)
    write_file(material.file, file_bytes)
    material.rows_of(material.table)
    material.attachment_of(material.file)
    return material


def remapped(columns: Iterable[str]) -> list[dict[str, Any]]:
    return [{"output_name": name.lower(), "input_name": name, "skip_list": SKIPPED.get(name)} for name in columns]


def compiled(folder: Path, name: str, source: str) -> str | None:
    """The program made of this C source; None where there is no compiler."""
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        return None
    program = folder / name
    subprocess.run([compiler, "-O2", "-x", "c", "-o", str(program), "-"], input=source, text=True, check=True)
    return str(program)


def write_table(path: Path, rows: int) -> None:
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


def write_file(path: Path, size: int) -> None:
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        for start in range(0, size, len(piece)):
            file.write(piece[: size - start])


def use_memory(folder: Path, size: int) -> None:
    """Fill memory with a file that goes again: a virtual machine is slow to give what was never used."""
    write_file(folder / "spare.bin", size)
    (folder / "spare.bin").unlink()


def configuration(folder: Path, name: str, command: list[str], outputs: dict[str, Any]) -> Path:
    """A configuration that the original takes too: what is posted ends with the seconds that a script sleeps."""
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    seconds = {"env_var_name": "SECONDS", "path_regex": "[0-9]+", "path_regex_match_group": 0}
    document = {
        "command": command,
        "command_rundir": str(runs),
        "inputs": {"path_args": [seconds]},
        "outputs": outputs,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path
