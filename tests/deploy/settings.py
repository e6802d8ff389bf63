"""Which of the runner's variables a file of a deployment sets that nothing reads."""

import re

from pydantic import AliasChoices

from script_runner.config import Settings


def known_settings() -> set[str]:
    """Every environment variable that the program reads by its settings."""
    aliases = [field.validation_alias for field in Settings.model_fields.values()]
    return {
        str(name) for alias in aliases for name in (alias.choices if isinstance(alias, AliasChoices) else [alias])
    }


def unknown_settings(text: str) -> set[str]:
    """The ``SCRIPT_RUNNER_…`` variables in a text that are no settings."""
    return set(re.findall(r"\bSCRIPT_RUNNER_[A-Z_]+\b", text)) - known_settings()
