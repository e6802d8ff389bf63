"""The docs, held to the code: every key, setting, command, error code, route and Redis key stands in them."""

import argparse
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from script_runner import cli
from script_runner.config import VARIABLES, Settings
from script_runner.errors import Code
from script_runner.shape import Shape
from script_runner.spec import Spec
from script_runner.task import State
from script_runner.wiring.parts import auth_words

ROOT = Path(__file__).parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text()


def shapes(kind: Any) -> set[type[Shape]]:
    """The shapes that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, Shape):
        return {kind}.union(*(shapes(inner) for inner in get_type_hints(kind).values()))
    return set().union(*(shapes(inner) for inner in get_args(kind)))


KEYS = sorted({key.name for shape in shapes(Spec) for key in fields(shape)})  # type: ignore[arg-type] # all are dataclasses


@pytest.mark.parametrize("key", KEYS)
def test_every_configuration_key_is_documented(key: str):
    """docs/configuration.md names each key of the configuration file."""
    assert f"`{key}`" in text("docs/configuration.md")


def variables() -> list[str]:
    return [name for setting in fields(Settings) for name in setting.metadata[VARIABLES]]


@pytest.mark.parametrize("name", variables())
def test_every_setting_is_documented(name: str):
    """docs/configuration.md names each environment variable."""
    assert f"`{name}`" in text("docs/configuration.md")


def commands() -> dict[str, argparse.ArgumentParser]:
    subparsers = next(
        action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return dict(subparsers.choices)


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_is_documented(name: str):
    """docs/command-line.md has a heading for each command and names each of its options."""
    document = text("docs/command-line.md")
    options = {
        option
        for action in commands()[name]._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }

    assert f"## {name}" in document
    assert {option for option in options if f"`{option}" not in document} == set()


@pytest.mark.parametrize("code", list(Code))
def test_every_error_code_is_documented(code: Code):
    """docs/http.md names each error code."""
    assert f"`{code}`" in text("docs/http.md")


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_documented(state: State):
    """docs/http.md names each state of a task."""
    assert f"`{state}`" in text("docs/http.md")


def test_every_route_is_documented():
    """docs/http.md names each path of the generated description."""
    source = text("src/script_runner/web/api.py")
    paths = set(re.findall(r'(?:guarded|Route)\("(/[^"]*)"', source))
    plain = {re.sub(r":\w+", "", path) for path in paths} - {"/"}

    assert {path for path in plain if f"{path}`" not in text("docs/http.md")} == set()


def test_every_auth_word_is_documented():
    """docs/auth.md names each word that AUTH_PROVIDER takes."""
    assert [word for word in auth_words() if f"`{word}`" not in text("docs/auth.md")] == []


DOCUMENTS = sorted(
    {
        *ROOT.glob("*.md"),
        *(path for name in ("docs", "examples", "deploy", "benchmarks") for path in (ROOT / name).glob("**/*.md")),
    }
)


def links(document: Path) -> list[tuple[str, str]]:
    """The relative links of a document: file and anchor, either of which may be empty."""
    found = re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", document.read_text())
    return [(target.partition("#")[0], target.partition("#")[2]) for target in found]


def anchors(document: Path) -> set[str]:
    """The names under which its headings are reached, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.*)$", prose, re.MULTILINE)
    words = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in words}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path):
    """A relative link in a document names a file that exists, and a heading in it."""
    broken = []
    for name, anchor in links(document):
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{name}#{anchor}")

    assert broken == []


def test_every_page_is_reached_from_the_readme():
    """From README.md one comes to each page below docs by links."""
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        reached.add(document)
        found = {(document.parent / name).resolve() for name, _ in links(document) if name.endswith(".md")}
        waiting += found - reached

    assert [str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/**/*.md")) if page not in reached] == []


def test_the_changelog_names_this_version():
    """CHANGELOG.md has an entry for the version in the package, or one for what is not released yet."""
    from script_runner import __version__  # noqa: PLC0415 - only here

    assert re.search(rf"^## \[(Unreleased|{re.escape(__version__)})\]", text("CHANGELOG.md"), re.MULTILINE)


def test_the_lock_file_names_no_host():
    """requirements.lock pins by hash and says nothing of where packages come from."""
    lock = text("requirements.lock")

    assert "--hash=sha256:" in lock
    assert re.search(r"https?://|--index-url|--find-links", lock) is None
