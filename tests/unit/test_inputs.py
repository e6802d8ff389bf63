"""Binding: the value of each input in a request, and what is refused with which words."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from script_runner import inputs
from script_runner.errors import Code, Error
from script_runner.inputs import MAX_VALUE_BYTES, Request, bind
from script_runner.spec import Spec


def spec(command: list[Any] | None = None, **kinds: list[dict[str, Any]]) -> Spec:
    return Spec.read({"command": command or ["x"], "inputs": kinds})


def path_spec(regex: str, **more: Any) -> Spec:
    return spec(path_args=[{"env_var_name": "A", "path_regex": regex, **more}])


def query_spec(command: list[Any] | None = None, **more: Any) -> Spec:
    return spec(command, query_args=[{"env_var_name": "A", "query_var_name": "a", **more}])


def body_spec(path: str, **more: Any) -> Spec:
    return spec(body_args=[{"env_var_name": "A", "body_jsonpath": path, **more}])


def query(*values: str) -> Request:
    return Request(query=tuple(("a", value) for value in values))


def body(document: Any, content_type: str | None = "application/json") -> Request:
    content = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
    return Request(body=content, content_type=content_type)


def refused(wanted: Spec, request: Request, code: Code = Code.INVALID_INPUT) -> Error:
    with pytest.raises(Error) as caught:
        bind(wanted, request)
    assert caught.value.code is code
    return caught.value


# Path


def test_path_by_group() -> None:
    """A path input is what its group matched."""
    assert bind(path_spec("([^/]+)/([^/]+)", path_regex_match_group=2), Request(path="a/b/c")) == {"A": "b"}


def test_path_group_by_default() -> None:
    """Without a group number the first group counts."""
    assert bind(path_spec("id-([0-9]+)"), Request(path="id-076/x")) == {"A": "076"}


def test_path_whole_match_by_default() -> None:
    """Without a group the whole match counts."""
    assert bind(path_spec("id-[0-9]+"), Request(path="id-076/x")) == {"A": "id-076"}


def test_path_regex_that_cuts_a_character() -> None:
    """What takes a single byte of a character, as RE2 can, is no text, and is said to be none."""
    assert bind(path_spec(r"(\C*)", path_regex_match_group=1), Request(path="é")) == {"A": "é"}
    assert "is not a character" in refused(path_spec(r"(\C)", path_regex_match_group=1), Request(path="é")).message


def test_path_from_its_start() -> None:
    """A path_regex that matches only later in the path does not match."""
    assert bind(path_spec("[0-9]+"), Request(path="id-076")) == {}


def test_path_is_decoded() -> None:
    """The path is matched as text, not as it was encoded."""
    assert bind(path_spec("([^/]+)"), Request(path="Zürich 😀")) == {"A": "Zürich 😀"}


def test_path_that_is_no_text() -> None:
    """A path with half a surrogate pair is refused."""
    assert refused(path_spec(".*"), Request(path="a\udc80")).problems[0].where == "path"


def test_required_path_names_its_regex() -> None:
    """A required path input that does not match is refused with its name and regex."""
    [problem] = refused(path_spec("[0-9]+", required=True), Request(path="x")).problems

    assert (problem.where, problem.name, problem.problem) == ("path", "[0-9]+", "A is required and was not given")


# Query


def test_first_of_repeated_keys() -> None:
    """Of repeated keys the first counts."""
    assert bind(query_spec(), query("1", "2")) == {"A": "1"}


def test_other_keys_do_not_count() -> None:
    """A key is compared exactly; others are passed over."""
    assert bind(query_spec(), Request(query=(("A", "1"), ("aa", "2"), ("a", "3")))) == {"A": "3"}


def test_many() -> None:
    """With many, all values count, in their order, empty ones too."""
    assert bind(query_spec(many=True), query("2", "", "1")) == {"A": ("2", "", "1")}


def test_many_and_none() -> None:
    """With many and no value, the input is absent."""
    assert bind(query_spec(many=True), Request()) == {}


def test_default_of_many() -> None:
    """The default of an input of many values is one value."""
    assert bind(query_spec(many=True, default="x"), Request()) == {"A": ("x",)}


def test_empty_query_value() -> None:
    """An empty value is a value."""
    assert bind(query_spec(["x", "$A"]), query("")) == {"A": ""}


# Body


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Bern", "Bern"),
        ("", ""),
        ("é 漢 😀", "é 漢 😀"),
        ("5", "5"),
        (5, "5"),
        (-1.5, "-1.5"),
        (1.0, "1.0"),
        (2**53 + 1, "9007199254740993"),
        (2**64, "18446744073709551616"),
        (-(10**300), "-1" + "0" * 300),
        (True, "true"),
        (False, "false"),
        ({"a": [1, "é", None]}, '{"a":[1,"é",null]}'),
        ([1, 2], "[1,2]"),
        ([], "[]"),
    ],
)
def test_body_value(value, text) -> None:
    """Text comes as it is, numbers exactly and booleans as JSON writes them, the rest as compact JSON."""
    assert bind(body_spec("$.a"), body({"a": value})) == {"A": text}


def test_null_is_absent() -> None:
    """A null is no value."""
    assert bind(body_spec("$.a"), body({"a": None})) == {}


def test_first_match() -> None:
    """Of several matches the first counts."""
    assert bind(body_spec("$.a[*]"), body({"a": [3, 4]})) == {"A": "3"}


def test_filter() -> None:
    """A JSONPath may filter."""
    document = [{"name": "a", "on": False}, {"name": "b", "on": True}]

    assert bind(body_spec("$[?@.on == true].name"), body(document)) == {"A": "b"}


@pytest.mark.parametrize("text", ["x", "5", '{"a": 1}', "null", ""])
def test_body_that_is_one_text(text) -> None:
    """A body that is one text is that text, and is not parsed once more."""
    assert bind(body_spec("$"), body(text)) == {"A": text}


def test_nothing_inside_a_text() -> None:
    """There is nothing inside a body that is one text, whatever it looks like."""
    assert bind(body_spec("$.a"), body('{"a": 1}')) == {}


@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain", "image/png", "nonsense"])
def test_empty_body(content_type) -> None:
    """An empty body is no body, whatever its content type."""
    assert bind(body_spec("$"), Request(content_type=content_type)) == {}


@pytest.mark.parametrize(
    "content",
    [b"{", b"{'a': 1}", b'{"a": 1} x', b'{"a": NaN}', b'{"a": "\xff"}', b'"\\ud800"', b" ", b"\0", b"1e999"],
)
def test_malformed_body(content) -> None:
    """A body that is not JSON is refused as bad input."""
    error = refused(body_spec("$.a"), body(content))

    assert error.message.startswith("The body is not JSON: ")
    assert error.problems[0].where == "body"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "json"]
)
def test_other_content_type(content_type) -> None:
    """A body of another content type than JSON is refused as such, even if it happens to be JSON."""
    assert content_type in refused(body_spec("$.a"), body({}, content_type), Code.UNSUPPORTED_MEDIA_TYPE).message


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "APPLICATION/JSON; charset=utf-8",
        "application/vnd.x+json",
        "application/ld+json ;x=y",
    ],
)
def test_json_content_type(content_type) -> None:
    """JSON may come as application/json, with parameters, as any +json, or without a word."""
    assert bind(body_spec("$.a"), body({"a": "b"}, content_type)) == {"A": "b"}


def test_body_that_nobody_asks_for() -> None:
    """Without body inputs the body is not looked at."""
    assert bind(query_spec(), Request(body=b"\xff", content_type="image/png")) == {}


@pytest.mark.parametrize("path", ["$", "$..z", "$.a", "$[?@..z]"])
@pytest.mark.parametrize("depth", [*range(940, 1_000, 4), 100_000])
def test_deep_body(path, depth) -> None:
    """A body nested as deep as one likes is taken or refused; near what the parser takes there is no gap."""
    content = b'{"a":' * depth + b"1" + b"}" * depth
    try:
        assert bind(body_spec(path), body(content)).keys() <= {"A"}
    except Error as error:
        message = error.message
    else:
        message = "taken"

    assert message == "taken" or "nested too deeply" in message
    assert depth < 100_000 or message != "taken"


# Absent values


def test_default() -> None:
    """An absent input has its default."""
    assert bind(query_spec(["x", "$A"], default="d"), Request()) == {"A": "d"}


def test_default_of_a_null() -> None:
    """A null in the body counts as absent for the default, too."""
    assert bind(body_spec("$.a", default=5), body({"a": None})) == {"A": "5"}


def test_given_value_before_default() -> None:
    """A value that was given, even an empty one, goes before the default."""
    assert bind(query_spec(default="d"), query("")) == {"A": ""}


def test_absent_and_not_required() -> None:
    """An absent input that is not required is left out."""
    assert bind(query_spec(["x", ["--a", "$A"]]), Request()) == {}


def test_absent_but_required() -> None:
    """An absent input that the command uses outside a group is refused: its name, and where it was looked for."""
    error = refused(query_spec(["x", "$A"]), Request())

    assert error.message == "A is required and was not given (query: a)"


def test_all_problems_at_once() -> None:
    """All wrong inputs of a request come together."""
    wanted = spec(
        ["x", "$A", "$B", "$C", "$D"],
        path_args=[{"env_var_name": "A", "path_regex": "[0-9]+"}],
        query_args=[{"env_var_name": "B", "query_var_name": "b"}, {"env_var_name": "D", "query_var_name": "d"}],
        body_args=[{"env_var_name": "C", "body_jsonpath": "$.c"}],
    )

    problems = refused(wanted, Request(path="x", query=(("d", "-1"),))).problems

    assert [(problem.where, problem.name) for problem in problems] == [
        ("path", "[0-9]+"),
        ("query", "b"),
        ("body", "$.c"),
        ("query", "d"),
    ]


# What no argument can carry


@pytest.mark.parametrize("value", ["\0", "a\0", "a\0b"])
def test_nul(value) -> None:
    """A value with a NUL character is refused."""
    assert "NUL" in refused(query_spec(), query(value)).message


def test_nul_in_one_of_many() -> None:
    """A NUL character in any of many values is refused."""
    assert "NUL" in refused(query_spec(many=True), query("a", "b\0")).message


def test_nul_inside_json() -> None:
    """NUL inside an object stays escaped in its JSON, and is no NUL character."""
    assert bind(body_spec("$.a"), body({"a": ["\0"]})) == {"A": '["\\u0000"]'}


def test_half_a_surrogate_pair() -> None:
    """A value that cannot be written in UTF-8 is refused."""
    assert "surrogate" in refused(query_spec(), query("\ud800")).message


def test_longest_value() -> None:
    """A value may be as long as the limit, counted in bytes."""
    assert bind(query_spec(), query("é" * (MAX_VALUE_BYTES // 2))).keys() == {"A"}


def test_too_long_value() -> None:
    """A longer value is refused with the limit."""
    assert "longer than 120,000 bytes" in refused(query_spec(), query("é" * (MAX_VALUE_BYTES // 2) + "x")).message


def test_many_values_are_one_variable() -> None:
    """Many values are one variable of the environment, so the limit is for all of them."""
    assert "longer than" in refused(query_spec(many=True), query("x" * 70_000, "x" * 70_000)).message


def test_values_in_one_argument() -> None:
    """Values that stand in one argument must fit into it together."""
    wanted = query_spec(["x", "$A,$A"])

    assert "one argument" in refused(wanted, query("x" * 70_000)).message


def test_values_together() -> None:
    """All values together, as often as they are used, must leave room for the rest of the environment."""
    wanted = query_spec(["x", *["$A"] * 20])

    assert "together" in refused(wanted, query("x" * 100_000)).message


def test_many_empty_values_together() -> None:
    """Values count even if they are empty: each costs a pointer and an end."""
    wanted = query_spec(["x", *["$A"] * 10], many=True)

    assert "together" in refused(wanted, query(*[""] * 100_000)).message


# Values that look like options


@pytest.mark.parametrize("command", [["x", "$A"], ["x", "${A}.txt"], ["x", ["--a", "$A"]], ["x", "--a=$A", "$A"]])
def test_leading_dash(command) -> None:
    """A value that begins with - and would begin an argument is refused."""
    assert "begins with -" in refused(query_spec(command), query("-rf")).message


@pytest.mark.parametrize(
    "command", [["x", "--a=$A"], ["x", "./$A"], ["x", "$RUNDIR$A"], ["x", "$TASK_ID$A"], ["x"], ["x", " $A"]]
)
def test_dash_inside_an_argument(command) -> None:
    """A value that begins with - inside an argument, or in the environment only, is taken."""
    assert bind(query_spec(command), query("-rf")) == {"A": "-rf"}


def test_allowed_leading_dash() -> None:
    """allow_leading_dash takes it."""
    assert bind(query_spec(["x", "$A"], allow_leading_dash=True), query("-5")) == {"A": "-5"}


def test_dash_in_a_default() -> None:
    """A default that begins with - is the configuration's own word and is taken."""
    assert bind(query_spec(["x", "$A"], default="-1"), Request()) == {"A": "-1"}


def test_dash_in_one_of_many() -> None:
    """Each of many values is an argument, so none may begin with -."""
    assert "begins with -" in refused(query_spec(["x", "$A"], many=True), query("a", "-b")).message


def two(command: list[Any], **environment: str) -> Spec:
    names = [{"env_var_name": name, "query_var_name": name, "required": False, "default": ""} for name in "AB"]
    return Spec.read({"command": command, "inputs": {"query_args": names}, "environment": {"set": environment}})


def test_dash_after_an_empty_value() -> None:
    """A dash that comes to the front because the value before it is empty is refused."""
    assert "B begins with -" in refused(two(["x", "$A$B"]), Request(query=(("B", "-x"),))).message


def test_dash_after_a_value() -> None:
    """A dash behind a value that is not empty is inside the argument."""
    assert bind(two(["x", "$A$B"]), Request(query=(("A", "a"), ("B", "-x")))) == {"A": "a", "B": "-x"}


def test_dash_after_a_fixed_value() -> None:
    """A dash behind what environment.set defines is inside the argument."""
    assert bind(two(["x", "$P$B"], P="p"), Request(query=(("B", "-x"),)))["B"] == "-x"


# Everything at once


def test_place() -> None:
    """Each kind of input says where it is looked for."""
    wanted = spec(
        path_args=[{"env_var_name": "A", "path_regex": "a"}],
        query_args=[{"env_var_name": "B", "query_var_name": "b"}],
        body_args=[{"env_var_name": "C", "body_jsonpath": "$.c"}],
    )

    assert [inputs.place(found) for found in wanted.inputs.all] == [("path", "a"), ("query", "b"), ("body", "$.c")]


ANY_TEXT = st.text(st.characters(categories=None), max_size=12) | st.sampled_from(["", "-", "\0", "\ud800", "-x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.binary(max_size=30) | JSON.map(lambda document: json.dumps(document).encode())
CONTENT_TYPES = st.none() | st.sampled_from(["application/json", "text/plain"]) | st.text(max_size=10)
REQUESTS = st.builds(
    Request,
    path=ANY_TEXT,
    query=st.lists(st.tuples(st.sampled_from(["b", "many"]) | ANY_TEXT, ANY_TEXT), max_size=4).map(tuple),
    body=BODIES,
    content_type=CONTENT_TYPES,
)
EVERY_KIND = spec(
    ["x", "$A", "$A$B", ["--many", "$M"], ["$C"]],
    path_args=[{"env_var_name": "A", "path_regex": "([^/]*)/?(.*)", "path_regex_match_group": 2}],
    query_args=[
        {"env_var_name": "B", "query_var_name": "b", "default": "d"},
        {"env_var_name": "M", "query_var_name": "many", "many": True},
    ],
    body_args=[
        {"env_var_name": "C", "body_jsonpath": "$..a"},
        {"env_var_name": "D", "body_jsonpath": "$[?@.b > 1 || length(@.c) == 1]"},
        {"env_var_name": "E", "body_jsonpath": "$"},
    ],
)


@settings(max_examples=300)
@given(REQUESTS)
def test_any_request_is_taken_or_refused(request) -> None:
    """Whatever is sent, the values are such as a program can be given, or the refusal is an Error."""
    refusal = None
    try:
        arguments = bind(EVERY_KIND, request)
    except Error as error:
        refusal = error.code
    else:
        texts = [text for value in arguments.values() for text in ([value] if isinstance(value, str) else value)]
        assert all("\0" not in text and text.encode() is not None for text in texts)

    assert refusal in (None, Code.INVALID_INPUT, Code.UNSUPPORTED_MEDIA_TYPE)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_text_comes_as_it_is(text) -> None:
    """A text in the body, the query or the path comes as it is."""
    wanted = spec(
        path_args=[{"env_var_name": "P", "path_regex": "(?s).*"}],
        query_args=[{"env_var_name": "Q", "query_var_name": "q"}],
        body_args=[{"env_var_name": "B", "body_jsonpath": "$.b"}],
    )
    request = Request(path=text, query=(("q", text),), body=json.dumps({"b": text}).encode())

    assert bind(wanted, request) == {"P": text, "Q": text, "B": text}
