"""The shapes of the configuration file: templates, parts, patterns, and what each input is by default."""

import gc
import pickle
import re
import weakref
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from script_runner.shape import adapter
from script_runner.spec import BodyInput, Glob, JsonPath, Name, Part, PathInput, PathRegex, Spec, Template
from script_runner.task import State

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


# Templates


def test_name_in_text() -> None:
    """$NAME is a name, the text around it stays text."""
    assert Template.parse("--id=$ID;").parts == ("--id=", Name("ID"), ";")


def test_longest_name() -> None:
    """A name is as long as it can be: $CITY_NAME is not $CITY and some text."""
    assert Template.parse("$CITY_NAME$CITY").parts == (Name("CITY_NAME"), Name("CITY"))


def test_braces() -> None:
    """${NAME} ends where its brace does."""
    assert Template.parse("${CITY}_NAME").parts == (Name("CITY"), "_NAME")


def test_two_dollars() -> None:
    """$$ is a dollar sign, and what follows it is no name."""
    assert "".join(map(str, Template.parse("$$CITY").parts)) == "$CITY"


def test_three_dollars() -> None:
    """Dollar signs pair from the left: $$$CITY is a dollar sign and a name."""
    assert Template.parse("$$$CITY").parts == ("$", Name("CITY"))


@pytest.mark.parametrize("source", ["$", "$ ", "$1", "cost: 5$", "$-", "$é", "$(ls)"])
def test_dollar_that_begins_no_name(source) -> None:
    """A dollar sign before anything that no name begins with stands for itself."""
    assert "".join(map(str, Template.parse(source).parts)) == source


def test_name_is_ascii() -> None:
    """A name ends before a letter that is not ASCII."""
    assert Template.parse("$Aé").parts == (Name("A"), "é")


@pytest.mark.parametrize("source", ["${", "${}", "${A", "${A-B}", "${1}", "${ A}", "${A}${"])
def test_bad_braces(source) -> None:
    """Braces that hold no name, or do not close, are refused."""
    with pytest.raises(ValueError, match="with a name of letters, digits and _"):
        Template.parse(source)


@given(st.lists(TEXTS | NAMES.map(Name), max_size=8))
def test_written_and_parsed(parts) -> None:
    """A template that was written with doubled dollar signs and braces parses to what was meant."""
    source = "".join(f"${{{part.name}}}" if isinstance(part, Name) else part.replace("$", "$$") for part in parts)

    parsed = Template.parse(source).parts

    assert [part for part in parsed if isinstance(part, Name)] == [
        part for part in parts if isinstance(part, Name)
    ]
    assert _merged(parsed) == _merged(parts)


@given(TEXTS)
def test_any_text_is_a_template_or_refused(source) -> None:
    """Any text is a template, which keeps it, unless braces in it are wrong."""
    try:
        template = Template.parse(source)
    except ValueError:
        assert "${" in source
    else:
        assert template.source == source


def _merged(parts: Any) -> list[Any]:
    """The parts with neighbouring texts as one."""
    merged: list[Any] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return merged


# Parts of the command


def test_text_is_one_argument() -> None:
    """A text is one argument and no group."""
    assert not Part.parse("--id $ID").is_group


def test_list_is_a_group() -> None:
    """A list is one group of arguments."""
    part = Part.parse(["--id", "$ID"])

    assert part.is_group
    assert [template.source for template in part.templates] == ["--id", "$ID"]


@pytest.mark.parametrize("source", [[], [1], [["a"]], {}, 3, None, True])
def test_no_part(source) -> None:
    """Anything else, an empty list included, is refused."""
    with pytest.raises(ValueError, match="text, or a list of texts"):
        Part.parse(source)


# Path regexes


def test_regex_matches_from_the_start() -> None:
    """A path_regex is tried at the start of the path only, and need not reach its end."""
    regex = PathRegex.parse("b")

    assert regex.group("ab", 0) is None
    assert regex.group("ba", 0) == "b"


@pytest.mark.parametrize(("regex", "group"), [("a", 0), ("(a)", 1), ("(?:a)", 0), ("((a)b)", 1)])
def test_group_by_default(regex, group) -> None:
    """Without a group number the first group counts, or the whole match where there is none."""
    assert PathInput.read({"env_var_name": "A", "path_regex": regex}).group == group


def test_group_zero_said_outright() -> None:
    """Group 0 said outright is the whole match, though there is a group."""
    wanted = {"env_var_name": "A", "path_regex": "(a)b", "path_regex_match_group": 0}

    assert PathInput.read(wanted).group == 0


def test_group_that_took_no_part() -> None:
    """A group that took no part in the match gives nothing."""
    assert PathRegex.parse("a|(b)").group("a", 1) is None


@pytest.mark.parametrize("regex", ["(a+)+$", "(a|aa)+$", "(.*)*x", "([a-z]+)*=", "(a?){100}a{100}"])
def test_catastrophic_regex(regex) -> None:
    """A pattern that makes a backtracking engine run for ages ends: its engine takes linear time."""
    assert PathRegex.parse(regex).group("a" * 20_000 + "!", 0) in (None, "a" * 20_000, "a" * 200)


# JSONPaths


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("$.address.city", "Bern"),
        ("$['address']['city']", "Bern"),
        ("$.tags[1]", "b"),
        ("$.tags[-1]", "c"),
        ("$.tags[1:]", "b"),
        ("$..zip", 3000),
        ("$.people[?@.age > 40].name", "Eve"),
        ("$.people[?@.name == 'Bob' && @.age < 40].age", 30),
        ("$.people[?length(@.name) == 3].name", "Bob"),
        ("$.people[?count(@.*) == 2].name", "Bob"),
        ("$.people[?@.name == $.boss].age", 50),
        ("$.nowhere", None),
        ("$.tags[9]", None),
    ],
)
def test_jsonpath(path, found) -> None:
    """A JSONPath by RFC 9535, filters included, gives its first match."""
    document = {
        "address": {"city": "Bern", "zip": 3000},
        "tags": ["a", "b", "c"],
        "people": [{"name": "Bob", "age": 30}, {"name": "Eve", "age": 50}],
        "boss": "Eve",
    }

    assert JsonPath.parse(path).first(document) == found


class Document(dict[str, Any]):
    """One that can tell whether it is still held."""


@pytest.mark.parametrize(
    "path",
    ["$.code", "$..name", "$..*", "$.people[?@.age > 40].name", "$.people[?count(@.*) == 2]", "$[?@ == $.code]"],
)
def test_jsonpath_holds_no_document(path) -> None:
    """A document is let go of at once: until cycles are looked for, a body would stay for each."""
    wanted, document = JsonPath.parse(path), Document(code="x", people=[{"name": "Eve", "age": 50}])
    held = weakref.ref(document)
    gc.disable()
    try:
        assert wanted.first(document) is not None
        del document
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "path", ["$..*", "$..[0]", "$.*[1:][0]", "$[?count(@..*) > 1]", "$..[?length(@) == 0]", "$..['a', 'b']"]
)
def test_jsonpath_builds_no_paths(path) -> None:
    """What is found has no text of the way to it: under a long name each would be as long as that."""
    document = {"a": [[], [{"a": 1}], []], "b": {"a": [{"b": [[], []]}]}}
    found = list(JsonPath.parse(path).compiled.finditer(document))

    assert found
    assert {(match.path, match.parts) for match in found} == {("", ())}


@pytest.mark.parametrize("path", ["", "$[1e5-1", "$" + "[" * 2_000, "$[?" + "(" * 3_000 + "@" + ")" * 3_000 + "]"])
def test_jsonpath_that_upsets_the_library(path) -> None:
    """A JSONPath on which the library itself stumbles is refused like any other."""
    with pytest.raises(ValueError, match="a JSONPath by RFC 9535"):
        JsonPath.parse(path)


@given(st.text(st.sampled_from("$.@?*[]()'\"abc019,:=<>&|! é"), max_size=12).map(lambda text: "$" + text))
def test_any_jsonpath(source) -> None:
    """Any text is a JSONPath that can be tried on any document, or is refused."""
    try:
        path = JsonPath.parse(source)
    except ValueError:
        return
    for document in (None, 1, "a", [1, [2]], {"a": {"b": 1}}):
        path.first(document)


# Globs


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.pdf", "a.pdf", True),
        ("*.pdf", "out/a.pdf", False),
        ("out/*.pdf", "out/a.pdf", True),
        ("./a.pdf", "a.pdf", True),
        ("**/*.pdf", "a.pdf", True),
        ("**/*.pdf", "x/y/z/a.pdf", True),
        ("x/**/a.pdf", "x/a.pdf", True),
        ("x/**", "x/y/z", True),
        ("**", "x/y", True),
        ("**.pdf", "x/a.pdf", False),
        ("?.txt", "é.txt", True),
        ("[ab].txt", "b.txt", True),
        ("[!a].txt", "a.txt", False),
        ("*.PDF", "a.pdf", False),
        ("*", ".hidden", False),
        (".*", ".hidden", True),
        ("**/*", ".git/config", False),
        (".git/*", ".git/config", True),
    ],
)
def test_glob(glob, path, matches) -> None:
    """A glob matches part by part, ** any depth, and what is hidden only where it says the dot."""
    assert Glob.parse(glob).matches(path) is matches


def test_glob_of_many_stars() -> None:
    """No number of ** makes a pattern slow."""
    glob = Glob.parse("/".join(["**", "a"] * 30))

    assert glob.matches("/".join(["a"] * 300))
    assert not glob.matches("/".join(["a"] * 300 + ["b"]))


# Inputs


def spec(command: list[Any], **wanted: Any) -> Spec:
    body = {"env_var_name": "A", "body_jsonpath": "$.a", **wanted}
    return Spec.read({"command": command, "inputs": {"body_args": [body]}})


@pytest.mark.parametrize(
    ("command", "wanted", "is_required"),
    [
        (["x", "$A"], {}, True),
        (["x", "--a=${A}"], {}, True),
        (["x", ["--a", "$A"]], {}, False),
        (["x", ["--a", "$A"], "$A"], {}, True),
        (["x"], {}, False),
        (["x"], {"required": True}, True),
        (["x", ["--a", "$A"]], {"required": True}, True),
        (["x", "$A"], {"default": "1"}, False),
        (["x", "$A"], {"default": "1", "required": True}, False),
        (["x", "$$A"], {}, False),
    ],
)
def test_required(command, wanted, is_required) -> None:
    """An input is required by its word, or else when the command uses it outside a group; never with a default."""
    wanted_spec = spec(command, **wanted)

    assert wanted_spec.is_required(wanted_spec.inputs.all[0]) is is_required


@pytest.mark.parametrize(
    ("default", "text"), [("x", "x"), ("", ""), (5, "5"), (1.5, "1.5"), (True, "true"), (False, "false")]
)
def test_default_as_text(default, text) -> None:
    """A default is text; a number or a boolean is taken as JSON writes it."""
    assert spec(["x"], default=default).inputs.all[0].default == text


@pytest.mark.parametrize("default", [[], {}, "a\0"])
def test_bad_default(default) -> None:
    """A default that is no text, number or boolean, or holds NUL, is refused."""
    with pytest.raises(ValidationError):
        spec(["x"], default=default)


def test_spec_is_frozen() -> None:
    """A Spec cannot be changed once it is read."""
    with pytest.raises(FrozenInstanceError):
        spec(["x"]).title = "new"  # type: ignore[misc] # as is seen


def test_retention_of_some_states() -> None:
    """Time and count of a state stand apart; a state without one of them is not named there."""
    kept = {"failed": {"seconds": 60}, "lost": {"count": 0}, "succeeded": {"seconds": 5, "count": 3}}

    wanted = Spec.read({"command": ["x"], "retention": kept})

    assert wanted.kept_seconds == {State.FAILED: 60, State.SUCCEEDED: 5}
    assert wanted.kept_counts == {State.LOST: 0, State.SUCCEEDED: 3}


@pytest.mark.parametrize("priority", [-10, 10, 1.5, "1"])
def test_bad_max_priority(priority) -> None:
    """The highest priority is a whole number from -9 to 9."""
    with pytest.raises(ValidationError):
        Spec.read({"command": ["x"], "max_priority": priority})


def test_order_of_inputs() -> None:
    """Inputs come in the order path, query, body."""
    wanted = {
        "body_args": [{"env_var_name": "C", "body_jsonpath": "$"}],
        "query_args": [{"env_var_name": "B", "query_var_name": "b"}],
        "path_args": [{"env_var_name": "A", "path_regex": "a"}],
    }

    names = [found.env_var_name for found in Spec.read({"command": ["x"], "inputs": wanted}).inputs.all]

    assert names == ["A", "B", "C"]


def test_patterns_are_written_as_they_came() -> None:
    """What was parsed is written again as the text it was."""
    body = BodyInput.read({"env_var_name": "A", "body_jsonpath": "$.a"})

    assert adapter(BodyInput).dump_python(body, mode="json")["body_jsonpath"] == "$.a"


def test_another_process_reads_the_same() -> None:
    """What was read in one process means the same in another: patterns go as text."""
    wanted = {
        "body_args": [{"env_var_name": "C", "body_jsonpath": "$.c"}],
        "path_args": [{"env_var_name": "A", "path_regex": "a(b)", "path_regex_match_group": 1}],
    }
    first = Spec.read({"command": ["x", ["--c", "$C"]], "inputs": wanted, "outputs": {"attachments": ["*.pdf"]}})
    fingerprint = first.fingerprint

    second = pickle.loads(pickle.dumps(first))  # noqa: S301 - our own

    assert (second.command, second.outputs, second.fingerprint) == (first.command, first.outputs, fingerprint)
    assert second.inputs.path_args[0].path_regex.group("ab", 1) == "b"
    assert second.inputs.body_args[0].body_jsonpath.first({"c": 3}) == 3


def test_fingerprint() -> None:
    """Two configurations have one fingerprint if and only if they mean the same, however they are written."""
    same = Spec.read({"debug": None, "command": ["true"], "grace_seconds": 10.0})
    other = Spec.read({"command": ["true", "x"]})
    group = Spec.read({"command": ["true", ["x"]]})
    fingerprints = [spec.fingerprint for spec in (Spec.read({"command": ["true"]}), same, other, group)]

    assert re.fullmatch("[0-9a-f]{12}", fingerprints[0])
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3
