"""The architecture, held by reading the imports: what each layer may know of the others (docs/architecture.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "script_runner"

NOUNS = {"errors", "task", "streams", "shape", "spec", "ports", "journal"}
RULES = {"inputs", "command", "results", "trace", "doctor"}
CASES = {"service", "follow", "run", "worker"}

MAY_IMPORT = {
    **dict.fromkeys(NOUNS, NOUNS),
    **dict.fromkeys(RULES, NOUNS),
    **dict.fromkeys(CASES, NOUNS | RULES | CASES),
    "adapters": NOUNS,
    "web": NOUNS | RULES | {"service", "follow", "web"},
    "client": {"errors", "streams"},
    "config": NOUNS,
    "fork": set(),
    "wiring": NOUNS | RULES | CASES | {"adapters", "web", "client", "config", "fork", "wiring", ""},
    "diagnosis": NOUNS | RULES | {"wiring", "adapters", "config"},
    "cli": {"wiring", "diagnosis", "doctor", "config", "client", "spec", "fork", "errors", ""},
    "__main__": {"cli"},
    "main": set(),
    "analysis": set(),
    "": set(),
}
"""Layer by layer; the empty name is the package itself, which holds the version."""

WIRING = {
    "__init__": set(),
    "parts": set(),
    "keeping": set(),
    "checking": {"parts"},
    "watching": {"parts"},
    "serving": {"parts", "checking", "watching"},
    "working": {"parts", "checking", "watching"},
}
"""Which files of its own folder each file of wiring may import: server and worker share what is below both."""

FORBIDDEN_NAMES = {"utils", "util", "common", "models", "base", "helpers", "misc"}

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


ADAPTER_FILES = [path for path in FILES if "adapters" in path.parts]


def layer(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    name = relative.parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported(path: Path) -> set[str]:
    """The layers that a file imports."""
    return {_submodule(steps[0]) for steps in own_names(path)}


def own_names(path: Path) -> Iterator[list[str]]:
    """The steps to each name of this package that a file imports, wherever in it the import stands."""
    folder = ["script_runner", *path.parent.relative_to(PACKAGE).parts]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level] if node.level else []
            module = node.module.split(".") if node.module else []
            names = [[*start, *module, alias.name] for alias in node.names]
        yield from (steps for top, *steps in names if top == "script_runner" and steps)


def _submodule(name: str) -> str:
    return name if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir() else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_layer_imports_only_what_it_may(path: Path):
    """Each file imports from the layers below it and from no other."""
    own = {"adapters"} if path.parent.parent.name == "adapters" else set()  # held by the next test
    not_allowed = imported(path) - MAY_IMPORT[layer(path)] - own

    assert not_allowed == set()


def test_an_adapter_never_imports_another():
    """Each adapter stands alone: one outside thing, one file, or one folder whose files know only one another."""
    known = {path: re.findall(r"script_runner\.adapters(?:\.(\w+))?", path.read_text()) for path in ADAPTER_FILES}
    own = {path: path.relative_to(PACKAGE / "adapters").parts[0].removesuffix(".py") for path in ADAPTER_FILES}

    assert {path: names for path, names in known.items() if set(names) - {own[path], ""}} == {}


def test_the_files_of_wiring_stand_on_one_another_without_a_cycle():
    """The server and the worker share what is below both, and neither knows the other."""
    files = [path for path in FILES if path.parent.name == "wiring"]
    known = {
        path.stem: {".".join(steps[1:2]) for steps in own_names(path) if steps[0] == "wiring"} for path in files
    }

    assert set(known) == set(WIRING)
    assert {name: others - WIRING[name] for name, others in known.items() if others - WIRING[name]} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_says_its_job_first(path: Path):
    """Each file opens with one sentence that says what it is for."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""

    assert docstring.split("\n")[0].rstrip().endswith((".", ":")), path


def test_no_file_has_a_name_that_says_nothing():
    """A folder or file is a layer or a job, never a drawer."""
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}

    assert names & FORBIDDEN_NAMES == set()


def test_only_one_adapter_knows_redis():
    """The word redis, as something to import, stands in one folder."""
    knowing = {path.parent.name for path in FILES if "import redis" in path.read_text()}

    assert knowing == {"redis"}
