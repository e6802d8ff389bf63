"""The architecture, held by reading the imports: what each layer may know of the others (docs/architecture.md)."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "script_runner"

NOUNS = {"errors", "task", "spec", "ports", "journal"}
RULES = {"inputs", "command", "results", "trace", "doctor"}
CASES = {"service", "follow", "run", "worker"}

MAY_IMPORT = {
    **dict.fromkeys(NOUNS, NOUNS),
    **dict.fromkeys(RULES, NOUNS),
    **dict.fromkeys(CASES, NOUNS | RULES | CASES),
    "adapters": NOUNS,
    "web": NOUNS | RULES | {"service", "follow", "web"},
    "client": NOUNS,
    "config": NOUNS,
    "fork": set(),
    "wiring": NOUNS | RULES | CASES | {"adapters", "web", "client", "config", "fork", ""},
    "diagnosis": NOUNS | RULES | {"wiring", "adapters", "config"},
    "cli": {"wiring", "diagnosis", "doctor", "config", "client", "spec", "fork", "errors", ""},
    "__main__": {"cli"},
    "main": set(),
    "analysis": set(),
    "": set(),
}
"""Layer by layer; the empty name is the package itself, which holds the version."""

FORBIDDEN_NAMES = {"utils", "util", "common", "models", "base", "helpers", "misc"}

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


ADAPTER_FILES = [path for path in FILES if "adapters" in path.parts]


def layer(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    name = relative.parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported(path: Path) -> set[str]:
    """The layers that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "script_runner":
            steps = node.module.split(".")[1:]
            found |= {steps[0]} if steps else {_submodule(alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("script_runner.")}
    return found


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
