#!/opt/script-runner/bin/python
"""Runs today's command in place of one that deployments of the original have: gunicorn, celery or flask run."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import PurePath

USAGE = 2


def translated(name: str, words: Sequence[str]) -> list[str] | None:
    """The command of today with the same port or concurrency; None if it is none that the original had."""
    match name:
        case "gunicorn":
            host, _, port = (_option(words, "--bind", "-b") or "").rpartition(":")
            return _serve(host.strip("[]"), port)
        case "flask" if "run" in words:
            return _serve(_option(words, "--host", "-h"), _option(words, "--port", "-p"))
        case "celery" if "worker" in words:
            return ["script-runner", "worker", *_given("--concurrency", _option(words, "--concurrency", "-c"))]
        case _:
            return None


def _serve(host: str | None, port: str | None) -> list[str]:
    return ["script-runner", "serve", *_given("--host", host), *_given("--port", port)]


def _option(words: Sequence[str], long: str, short: str) -> str | None:
    """The value of an option as these programs take it: ``--name=X``, ``--name X``, ``-nX``, ``-n X``."""
    for number, word in enumerate(words):
        if word in (long, short):
            return words[number + 1] if number + 1 < len(words) else None
        if word.startswith(f"{long}="):
            return word.partition("=")[2]
        if re.match(f"{short}[^-]", word) and not word.startswith("--"):
            return word[len(short) :].removeprefix("=")
    return None


def _given(option: str, value: str | None) -> list[str]:
    return [option, value] if value else []


def main() -> None:
    """Become today's command; exit with a sentence where there is none."""
    name, words = PurePath(sys.argv[0]).name, sys.argv[1:]
    command = translated(name, words)
    if command is None:
        sys.stderr.write(
            f"{name} is not in this image; it only stands for the commands of the original. "
            "Use: script-runner serve, script-runner worker\n"
        )
        sys.exit(USAGE)
    sys.stderr.write(f"{name} is not in this image; in its place runs: {' '.join(command)}\n")
    os.execvp(command[0], command)  # noqa: S606 - nothing of it passes a shell


if __name__ == "__main__":
    main()
