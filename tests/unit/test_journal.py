"""The runner's own log: one JSON object a line, with what it is about."""

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from script_runner import journal
from script_runner.journal import JsonLines

LOG = logging.getLogger("script_runner.test")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """What has been logged under LOG, read line by line."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    monkeypatch.setattr(LOG, "handlers", [handler])
    monkeypatch.setattr(LOG, "level", logging.DEBUG)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_has_time_level_logger_and_message(lines: Any):
    """A line says when (RFC 3339, UTC), how grave, who and what."""
    LOG.warning("task %s\nis odd", "a")
    [line] = lines()

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "warning", "logger": "script_runner.test", "message": "task a\nis odd"}


def test_event_has_a_name_and_fields(lines: Any):
    """An event says its name and its fields beside its sentence; what is not known is left out."""
    journal.event(LOG, "queue", "queue: 3 wait", {"queued": 3, "oldest": None})
    [line] = lines()

    assert (line["event"], line["queued"], line["message"]) == ("queue", 3, "queue: 3 wait")
    assert "oldest" not in line


def test_lines_say_what_they_are_about(lines: Any):
    """What is logged in an asyncio task is about its request and task, and not about another's."""

    async def about(name: str) -> None:
        journal.about(request_id=name, task_id=None)
        await asyncio.sleep(0)
        LOG.info("hello from %s", name)

    async def both() -> None:
        await asyncio.gather(about("one"), about("two"))

    asyncio.run(both())

    assert {line["message"]: line.get("request_id") for line in lines()} == {
        "hello from one": "one",
        "hello from two": "two",
    }
    assert [line for line in lines() if "task_id" in line] == []


def test_exception_is_in_its_line(lines: Any):
    """A traceback stands in the line of its event, not in lines of its own."""
    try:
        int("no number \udcff")
    except ValueError:
        LOG.exception("it failed")
    [line] = lines()

    assert line["exception"].startswith("Traceback")
    assert "ValueError" in line["exception"]


def test_start_replaces_what_was_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """After the start, whatever any library logs is a line of JSON on standard error."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        journal.start(level="info", is_json=True)
        logging.getLogger("uvicorn.error").error("from elsewhere")
        logging.getLogger("uvicorn.error").debug("not asked for")
    finally:
        root.setLevel(level)
    sys.stderr.flush()

    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["from elsewhere"]
