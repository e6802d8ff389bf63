"""docs/adding.md, held to the code: what it says is enough, is enough."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

ASK = """
import asyncio, os
from script_runner.config import read_settings
from script_runner.errors import Error
from script_runner.wiring.parts import auth_provider

word, provider = auth_provider(read_settings(os.environ), os.environ)
print(word, asyncio.run(provider.identify(["Bearer s3same"])).owner)
try:
    asyncio.run(provider.identify([]))
except Error as error:
    print(error.code)
"""


def block(document: str, language: str) -> str:
    """The last code block of this language."""
    return str(re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)[-1])


def test_the_provider_of_the_documentation_plugs_in(tmp_path: Path):
    """The example in docs/auth.md, installed as it says, decides who gets in."""
    document = (ROOT / "docs" / "auth.md").read_text()
    entry_point = re.search(r'lab = "(.*?)"', block(document, "toml"))
    assert entry_point
    information = tmp_path / "lab_auth-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-auth\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[script_runner.auth]\nlab = {entry_point[1]}\n")
    (tmp_path / "lab_auth.py").write_text(block(document, "python"))
    own = {"PYTHONPATH": str(tmp_path), "AUTH_PROVIDER": "lab", "SCRIPT_RUNNER_LAB_TOKEN": "s3same"}

    answer = subprocess.run(
        [sys.executable, "-c", ASK], env={**os.environ, **own}, capture_output=True, text=True, check=True
    )

    assert answer.stdout.split("\n")[:2] == ["lab lab", "unauthenticated"]


def test_every_file_of_the_checklists_is_there():
    """docs/adding.md names no file that does not exist."""
    named = re.findall(r"`((?:tests|docs|src)/[\w/.]+\.\w+)`", (ROOT / "docs" / "adding.md").read_text())

    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []
