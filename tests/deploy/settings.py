"""Which of the runner's variables a file of a deployment sets that nothing reads."""

import re
from dataclasses import fields

from script_runner.config import VARIABLES, Settings


def known_settings() -> set[str]:
    """Every environment variable that the program reads by its settings."""
    return {name for setting in fields(Settings) for name in setting.metadata[VARIABLES]}


def unknown_settings(text: str) -> set[str]:
    """The ``SCRIPT_RUNNER_…`` variables in a text that are no settings."""
    return set(re.findall(r"\bSCRIPT_RUNNER_[A-Z_]+\b", text)) - known_settings()
