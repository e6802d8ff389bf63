"""What the peers of our own writing do with one task: the job of the original, in the usual few lines."""

import base64
import csv
import json
import os
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = json.loads(Path(os.environ["PEER_CONFIG"]).read_text())


def command(run_folder: str, seconds: str) -> list[str]:
    return [word.replace("$RUNDIR", run_folder).replace("$SECONDS", seconds) for word in CONFIG["command"]]


def outputs(run_folder: str) -> dict[str, Any]:
    """Rows and attachments of a run, all in memory."""
    wanted = CONFIG["outputs"]
    found: dict[str, Any] = {}
    if "results" in wanted:
        found["results"] = rows(Path(run_folder) / wanted["results"]["input_path"], wanted["results"])
    files = [path for pattern in wanted.get("attachments", []) for path in Path(run_folder).glob(pattern)]
    return {**found, "attachments": {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}}


def rows(path: Path, wanted: dict[str, Any]) -> list[dict[str, str]]:
    columns = {column["output_name"]: column["input_name"] for column in wanted["remapped_columns"]}
    skipped = {column["output_name"]: set(column["skip_list"] or ()) for column in wanted["remapped_columns"]}
    with path.open(encoding="utf-8-sig", newline="") as file:
        remapped = ({new: row[old] for new, old in columns.items()} for row in csv.DictReader(file))
        return [row for row in remapped if not any(row[name] in skipped[name] for name in row)]
