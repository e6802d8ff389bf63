"""The API's description: true to the configuration, whole in itself, and silent about the server's inside."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from script_runner import inputs
from script_runner.follow import Place
from script_runner.inputs import Request
from script_runner.spec import Spec
from script_runner.web import openapi

COLUMN = {"output_name": "plateIndex", "input_name": "Plate", "skip_list": ["NA"]}
SCRIPT = {
    "title": "Plates",
    "description": "Counts plates.",
    "command": ["count", "$RUN", ["--season", "$SEASON"], "$CITY", ["$TAG"]],
    "inputs": {
        "path_args": [{"env_var_name": "RUN", "path_regex": "([^/]+)"}],
        "query_args": [
            {"env_var_name": "SEASON", "query_var_name": "season", "description": "When it grew."},
            {"env_var_name": "TAG", "query_var_name": "tag", "many": True, "default": "new"},
        ],
        "body_args": [{"env_var_name": "CITY", "body_jsonpath": "$.address.city", "example": "Ghent"}],
    },
    "outputs": {
        "results": {
            "kind": "file",
            "format": "csv",
            "input_path": "rows.csv",
            "remapped_columns": [COLUMN, {"output_name": "cell", "input_name": "Well"}],
        },
        "attachments": ["*.pdf"],
    },
}


def described(configuration: dict[str, Any], *, is_authenticated: bool = False) -> dict[str, Any]:
    spec = Spec.read(configuration)
    return openapi.document(spec, version="1.2.3", is_authenticated=is_authenticated, max_body_bytes=1_000_000)


def submission(document: dict[str, Any]) -> dict[str, Any]:
    (found,) = (one for one in operations(document) if one["operationId"] == "submitTask")
    return found


def parameter(operation: dict[str, Any], name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [one for one in operation["parameters"] if one["name"] == name]
    (only,) = found
    return only


def body(operation: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = operation["requestBody"]["content"]["application/json"]
    return found


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in document["paths"].values():
        yield from item.values()


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON document."""
    if isinstance(value, dict):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(below)


def resolved(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def examples(document: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Every example with the schema beside it."""
    for one in objects([document["paths"], document["components"]["responses"]]):
        if "schema" in one and "example" in one:
            yield one["schema"], one["example"]
        if "schema" in one and "examples" in one:
            yield from ((one["schema"], example["value"]) for example in one["examples"].values())


TYPES: dict[str, Any] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}
REMARKS = {"description", "default", "format"}


def mismatches(document: dict[str, Any], schema: dict[str, Any], value: Any) -> Iterator[str]:
    """How a value breaks a schema: the part of JSON Schema that the description uses, and no more."""
    for keyword, wanted in schema.items():
        match keyword:
            case "$ref":
                yield from mismatches(document, resolved(document, wanted), value)
            case "type":
                kinds = [wanted] if isinstance(wanted, str) else wanted
                if not any(isinstance(value, TYPES[kind]) for kind in kinds):
                    yield f"{value!r} is no {wanted}"
            case "enum" | "const":
                if value not in (wanted if keyword == "enum" else [wanted]):
                    yield f"{value!r} is not {wanted}"
            case "pattern":
                if not re.search(wanted, value):
                    yield f"{value!r} does not match {wanted}"
            case "minimum" | "maximum" if isinstance(value, int):
                if value < wanted if keyword == "minimum" else value > wanted:
                    yield f"{value} is beyond {wanted}"
            case "allOf":
                for one in wanted:
                    yield from mismatches(document, one, value)
            case "properties" | "required" if isinstance(value, dict):
                for name in wanted:
                    if keyword == "required" and name not in value:
                        yield f"{name} is missing"
                    elif keyword == "properties" and name in value:
                        yield from mismatches(document, wanted[name], value[name])
            case "additionalProperties" if isinstance(value, dict):
                for name in value.keys() - schema.get("properties", {}).keys():
                    if wanted is False:
                        yield f"{name} is too much"
                    else:
                        yield from mismatches(document, wanted, value[name])
            case "items" if isinstance(value, list):
                for item in value:
                    yield from mismatches(document, wanted, item)
            case "prefixItems" if isinstance(value, list):
                for one, item in zip(wanted, value, strict=False):
                    yield from mismatches(document, one, item)
            case "minItems" if isinstance(value, list):
                if len(value) < wanted:
                    yield f"{value} has fewer than {wanted} items"
            case _:
                is_for_another_type = keyword in {
                    "properties",
                    "required",
                    "additionalProperties",
                    "items",
                    "prefixItems",
                    "minItems",
                    "minimum",
                    "maximum",
                }
                assert is_for_another_type or keyword in REMARKS, f"the checker does not know {keyword}"


# What it says of a script


def test_the_path_is_the_scripts():
    """A script with a path input is run at ``/task/{path}``, whose parameter shows regex, group and slashes."""
    document = described(SCRIPT)

    path = parameter(document["paths"]["/task/{path}"]["post"], "path")

    assert path["schema"] == {"type": "string", "pattern": "^(?:([^/]+))"}
    assert path["example"] == "run"
    assert "`RUN`" in path["description"]
    assert "group 1 of `([^/]+)`" in path["description"]
    assert "slashes" in path["description"]
    assert "post" not in document["paths"]["/task"]


def test_without_path_inputs_there_is_no_path_to_fill_in():
    """A script without path inputs is run at ``/task``."""
    document = described({"command": ["count"]})

    assert set(document["paths"]["/task"]) == {"get", "post"}
    assert set(document["paths"]["/task/{id}"]) == {"get", "delete"}
    assert {one["in"] for one in document["paths"]["/task"]["post"]["parameters"]} == {"header"}
    assert "requestBody" not in document["paths"]["/task"]["post"]


def test_an_optional_path_may_be_left_out():
    """A script whose path inputs can all be absent is run with a path and without."""
    document = described(SCRIPT | {"command": ["count", ["$RUN"]]})

    assert document["paths"]["/task/{path}"]["post"]["operationId"] == "submitTask"
    assert document["paths"]["/task"]["post"]["operationId"] == "submitTaskWithoutPath"


@pytest.mark.parametrize("regex", ["(?i)abc", r"\Aabc", r"[[:alpha:]]+", r"(?P<name>abc)", r"\pL", r"a\Q.\E"])
def test_a_regex_that_schemas_read_otherwise_stands_in_words_only(regex: str):
    """What RE2 knows and ECMA-262 does not is no ``pattern``, which would break callers' tools."""
    configuration = {
        "command": ["a", "$RUN"],
        "inputs": {"path_args": [{"env_var_name": "RUN", "path_regex": regex}]},
    }

    path = parameter(submission(described(configuration)), "path")

    assert path["schema"] == {"type": "string"}
    assert f"`{regex}`" in path["description"]


@pytest.mark.parametrize(
    ("regex", "group", "path"),
    [
        ("([^/]+)", 1, "17"),
        ("^projects/([^/]+)/samples", 1, "projects/17/samples"),
        (r"^v1\.0/([0-9]+)$", 1, "v1.0/17"),
        ("[0-9]+", 0, "17"),
    ],
)
def test_the_example_path_holds_the_example(regex: str, group: int, path: str):
    """The example of a path is a whole path, in which the regex finds the input's own example."""
    wanted = {"env_var_name": "RUN", "path_regex": regex, "path_regex_match_group": group, "example": "17"}

    document = described({"command": ["a", "$RUN"], "inputs": {"path_args": [wanted]}})

    assert parameter(submission(document), "path")["example"] == path


def test_query_parameters_are_the_scripts():
    """Each query input is a parameter: required as the command needs it, a list if it takes many, with default."""
    operation = submission(described(SCRIPT))

    season, tag = parameter(operation, "season"), parameter(operation, "tag")

    assert season["schema"] == {"type": "string"}
    assert season["required"] is False
    assert season["description"].startswith("When it grew.")
    assert season["example"] == "season"
    assert tag["schema"] == {"type": "array", "items": {"type": "string"}, "default": ["new"]}
    assert tag["example"] == ["new"]


def test_a_query_input_that_the_command_needs_is_required():
    """A parameter is required when a request without it would be refused."""
    query = [{"env_var_name": "SEASON", "query_var_name": "season"}]

    document = described({"command": ["count", "$SEASON"], "inputs": {"query_args": query}})

    assert parameter(submission(document), "season")["required"] is True


def test_two_inputs_of_one_query_name_are_one_parameter():
    """A parameter is listed once, whoever reads it, for OpenAPI takes a name once."""
    query = [{"env_var_name": name, "query_var_name": "season"} for name in ("A", "B")]

    operation = submission(described({"command": ["count", ["$A"], "$B"], "inputs": {"query_args": query}}))

    assert parameter(operation, "season")["required"] is True
    assert "`A`" in parameter(operation, "season")["description"]
    assert "`B`" in parameter(operation, "season")["description"]


def test_the_body_is_the_scripts():
    """Body inputs are nested objects by their JSONPath, required all the way down."""
    operation = submission(described(SCRIPT))

    schema = body(operation)["schema"]

    assert operation["requestBody"]["required"] is True
    assert schema["type"] == "object"
    assert schema["required"] == ["address"]
    assert schema["properties"]["address"]["required"] == ["city"]
    assert "`CITY`" in schema["properties"]["address"]["properties"]["city"]["description"]
    assert body(operation)["example"] == {"address": {"city": "Ghent"}}


def test_a_step_into_a_list_is_an_array():
    """An index in a JSONPath is an array that is long enough, with the value in its place."""
    wanted = [{"env_var_name": "NAME", "body_jsonpath": "$.samples[1].name"}]

    content = body(submission(described({"command": ["a", "$NAME"], "inputs": {"body_args": wanted}})))

    samples = content["schema"]["properties"]["samples"]
    assert samples["type"] == "array"
    assert samples["minItems"] == 2
    assert samples["prefixItems"][1]["required"] == ["name"]
    assert content["example"] == {"samples": [None, {"name": "name"}]}


@pytest.mark.parametrize("path", ["$..city", "$.list[*].city", "$.list[-1]", "$.list[1000000000]"])
def test_a_jsonpath_that_no_schema_shows_is_told_in_words(path: str):
    """A path to many places, or to a far one, is in the text, and there is no example that would be refused."""
    wanted = [{"env_var_name": "CITY", "body_jsonpath": path}]

    operation = submission(described({"command": ["a", "$CITY"], "inputs": {"body_args": wanted}}))

    assert body(operation) == {"schema": {}}
    assert f"`{path}`" in operation["requestBody"]["description"]
    assert operation["requestBody"]["required"] is True


def test_the_rows_have_the_columns_of_the_configuration():
    """Remapped CSV rows are objects with just these columns, in order, all text."""
    schema = described(SCRIPT)["components"]["schemas"]["Results"]

    assert list(schema["items"]["properties"]) == ["plateIndex", "cell"]
    assert schema["items"]["properties"]["cell"] == {"type": "string"}
    assert schema["items"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("results", "schema"),
    [
        (
            {"kind": "stdout", "format": "csv"},
            {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}},
        ),
        ({"kind": "stdout", "format": "json"}, {}),
        (None, {"type": "null"}),
    ],
)
def test_results_are_as_free_as_the_script_leaves_them(results: Any, schema: dict[str, Any]):
    """Without remapping, CSV rows have any columns of text, JSON is anything, and no results are null."""
    document = described({"command": ["a"], "outputs": {"results": results}})

    described_results = dict(document["components"]["schemas"]["Results"])
    described_results.pop("description", None)
    assert described_results == schema
    assert ("/task/{id}/results" in document["paths"]) is (results is not None)


def test_title_and_description_are_the_scripts():
    """The description carries the configuration's title and text, and a name where there is none."""
    assert described(SCRIPT)["info"] == {"title": "Plates", "version": "1.2.3", "description": "Counts plates."}
    assert described({"command": ["a"]})["info"] == {"title": "script-runner", "version": "1.2.3"}


def test_nothing_of_the_inside_is_told():
    """Command, folders, environment, and the files and columns behind the results stay on the server."""
    secret = "do-not-tell"
    results = {"kind": "file", "format": "csv", "input_path": secret, "remapped_columns": []}
    column = {"output_name": "shown", "input_name": secret, "skip_list": [secret]}
    configuration = {
        "command": [secret, [secret]],
        "command_rundir": f"/{secret}",
        "command_rundir_base": f"/{secret}",
        "environment": {"set": {"KEY": secret}, "inherit": [secret]},
        "outputs": {"results": results | {"remapped_columns": [column]}, "attachments": [secret]},
    }

    assert secret not in json.dumps(described(configuration, is_authenticated=True))


# What it says of the API

QUEUE_HEADERS = {"Idempotency-Key", "Task-Priority", "Task-Not-Before", "Task-Expires-In"}

STATUSES = {
    "submitTask": {"200", "202", "400", "413", "415", "422", "503"},
    "submitScript": {"200", "400", "413", "415", "422", "503"},
    "listTasks": {"200", "400", "503"},
    "getTask": {"200", "400", "404", "503"},
    "getScript": {"200", "400", "404", "503"},
    "cancelTask": {"202", "404", "503"},
    "removeTask": {"204", "404", "409", "503"},
    "getResults": {"200", "400", "404", "409", "503"},
    "getAttachment": {"200", "206", "304", "404", "416", "503"},
    "getLogs": {"200", "400", "404", "503"},
    "getEvents": {"200", "204", "400", "404", "503"},
    "getHealth": {"200"},
    "getReadiness": {"200", "503"},
    "getMetrics": {"200"},
    "getOpenapi": {"200"},
    "getDocs": {"200"},
}


def test_each_operation_says_what_it_can_answer():
    """Every operation is there, with the statuses that can occur and no other."""
    found = {one["operationId"]: set(one["responses"]) for one in operations(described(SCRIPT))}

    assert found == STATUSES


def test_downloads_that_go_elsewhere_are_told():
    """A server that leads to its store says so: 307."""
    spec = Spec.read(SCRIPT)
    document = openapi.document(
        spec, version="1", is_authenticated=False, max_body_bytes=1, redirects_downloads=True
    )
    (found,) = (one for one in operations(document) if one["operationId"] == "getAttachment")

    assert set(found["responses"]) == STATUSES["getAttachment"] | {"307"}


def test_a_body_that_nobody_reads_is_not_refused():
    """Without body inputs there is no 415."""
    operation = submission(described({"command": ["a"]}))

    assert set(operation["responses"]) == {"200", "202", "400", "413", "422", "503"}


def test_a_share_of_the_queue_is_429():
    """With ``max_queued_per_caller`` a submit may be refused with 429, which says when to come back."""
    document = described(SCRIPT | {"max_queued_per_caller": 5})

    assert set(submission(document)["responses"]) == STATUSES["submitTask"] | {"429"}
    assert "Retry-After" in document["components"]["responses"]["too-many-queued"]["headers"]


def test_the_headers_to_the_queue_are_parameters():
    """Every submission takes these headers, none of them required, and says the highest priority."""
    document = described(SCRIPT | {"max_priority": 3})

    for operation in operations(document):
        headers = {one["name"]: one for one in operation.get("parameters", []) if one["in"] == "header"}
        if operation["operationId"].startswith("submit"):
            assert set(headers) == QUEUE_HEADERS | {"Prefer"}
            assert not any(one.get("required") for one in headers.values())
            assert headers["Task-Priority"]["schema"]["minimum"] == -9
            assert headers["Task-Priority"]["schema"]["maximum"] == 3
        else:
            assert not set(headers) & QUEUE_HEADERS


def test_an_accepted_task_is_described_with_its_place():
    """The answer of a submission shows position and estimated start, and its schema knows both."""
    document = described(SCRIPT)

    content = submission(document)["responses"]["202"]["content"]["application/json"]
    assert {"position", "estimated_start_at"} <= set(content["example"])
    schema = resolved(document, content["schema"]["$ref"])
    assert {"position", "estimated_start_at"} <= set(schema["properties"])
    assert not {"position", "estimated_start_at"} & set(schema["required"])


def test_waiting_is_described_where_it_can_be_done():
    """``Prefer: wait`` stands at submissions and polls, ``?wait=`` where the query is ours."""
    names = {
        one["operationId"]: {(parameter["in"], parameter["name"]) for parameter in one.get("parameters", [])}
        for one in operations(described(SCRIPT))
    }

    prefer, query = ("header", "Prefer"), ("query", "wait")
    assert {name for name, found in names.items() if prefer in found} == {
        "submitTask", "submitScript", "getTask", "getScript",
    }  # fmt: skip
    assert {name for name, found in names.items() if query in found} == {"getTask", "getScript", "getEvents"}


def test_the_events_shown_are_events():
    """The example of a stream has an id, a name and JSON for each event, and ends once."""
    (operation,) = (one for one in operations(described(SCRIPT)) if one["operationId"] == "getEvents")
    example = operation["responses"]["200"]["content"]["text/event-stream"]["example"]
    retry, *events = example.removesuffix("\n\n").split("\n\n")
    fields = [dict(line.split(": ", 1) for line in event.split("\n")) for event in events]

    assert retry == "retry: 1000"
    assert [event["event"] for event in fields] == ["state", "stdout", "end"]
    assert all(Place.parse(event["id"]) and json.loads(event["data"]) for event in fields)


def test_tokens_are_asked_for_everywhere_but_at_health():
    """With authentication every operation but ``/health`` needs a bearer token, and may answer 401."""
    document = described(SCRIPT, is_authenticated=True)

    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["security"] == [{"bearer": []}]
    without = [one["operationId"] for one in operations(document) if "401" not in one["responses"]]
    assert without == ["getHealth"]
    assert [one["operationId"] for one in operations(document) if one.get("security") == []] == ["getHealth"]


def test_without_authentication_there_is_no_word_of_it():
    """A server that asks for no token describes none."""
    document = described(SCRIPT)

    assert "bearer" not in json.dumps(document).lower()
    assert not any("401" in one["responses"] for one in operations(document))


def test_an_error_is_described_as_it_is_sent():
    """Every refusal is a problem document by RFC 9457 with its own status; 503 says when to come back."""
    responses = described(SCRIPT, is_authenticated=True)["components"]["responses"]

    problem = responses["invalid-input"]["content"]["application/problem+json"]["example"]
    assert problem["status"] == 400
    assert problem["errors"][0]["where"] == "path"
    assert "Retry-After" in responses["unavailable"]["headers"]
    assert all(list(one["content"]) == ["application/problem+json"] for one in responses.values())


def test_the_checker_sees_a_wrong_example():
    """The checker of these tests tells a good example from a bad one."""
    document = described(SCRIPT)
    task = {"$ref": "#/components/schemas/TaskSummary"}

    assert list(mismatches(document, task, {"id": 5}))
    assert list(mismatches(document, {"$ref": "#/components/schemas/Results"}, [{"other": "x"}]))


# Any configuration

REGEXES = ["([^/]+)", "^run/([0-9]+)$", "(?i)(abc)", "[^/]+/(x{2})?", r"(?P<n>\w+)-\d+", "^a`b$", ""]
PLACES = [
    "$",
    "$.a",
    "$.a.b",
    "$['x y'][0]",
    "$['x y'][2].q",
    "$.list[3]",
    "$..z",
    "$.a[*]",
    "$.a[-1]",
    "$['é~/']",
]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
WORDS = st.sampled_from(["winter", "7", "Gänt 1", "a/b"])
SAID = st.fixed_dictionaries(
    {},
    optional={
        "default": WORDS,
        "required": st.booleans(),
        "example": WORDS,
        "description": TEXT,
    },
)
COLUMNS = st.lists(TEXT, unique=True, max_size=3).map(
    lambda names: [{"output_name": name, "input_name": name} for name in names] or None
)
RESULTS = st.fixed_dictionaries(
    {"kind": st.just("stdout"), "format": st.sampled_from(["csv", "json"]), "remapped_columns": COLUMNS}
)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    def some(kind: str, sources: list[str], key: str, extra: dict[str, Any]) -> list[dict[str, Any]]:
        chosen = draw(st.lists(st.sampled_from(sources), max_size=3))
        return [
            draw(SAID) | {"env_var_name": f"{kind}_{number}", key: source} | extra
            for number, source in enumerate(chosen)
        ]

    wanted = {
        "path_args": some("PATH", REGEXES, "path_regex", {}),
        "query_args": some("QUERY", ["season", "", "a b", "é"], "query_var_name", {"many": draw(st.booleans())}),
        "body_args": some("BODY", PLACES, "body_jsonpath", {}),
    }
    names = [f"${one['env_var_name']}" for kind in wanted.values() for one in kind]
    command = [[name] if draw(st.booleans()) else name for name in names]
    return {
        "command": ["script", *command],
        "inputs": wanted,
        "outputs": {"results": draw(st.none() | RESULTS), "attachments": draw(st.sampled_from([[], ["*"]]))},
    }


@given(configuration=configurations(), is_authenticated=st.booleans())
def test_any_description_is_whole_in_itself(configuration: dict[str, Any], is_authenticated: bool):  # noqa: FBT001 - hypothesis passes by name
    """Whatever the script: it is JSON, every reference leads somewhere, nothing is there twice or undeclared."""
    document = json.loads(json.dumps(described(configuration, is_authenticated=is_authenticated)))

    for one in objects(document):
        if isinstance(reference := one.get("$ref"), str):
            assert resolved(document, reference)
    assert max(Counter(one["operationId"] for one in operations(document)).values()) == 1
    assert max(Counter(re.sub(r"\{\w+\}", "{}", path) for path in document["paths"]).values()) == 1
    for path, item in document["paths"].items():
        for operation in item.values():
            parameters = [(one["in"], one["name"]) for one in operation.get("parameters", [])]
            assert len(parameters) == len(set(parameters))
            assert {name for place, name in parameters if place == "path"} == set(re.findall(r"\{(\w+)\}", path))
            assert operation["responses"]
            assert operation["summary"]
            assert set(operation["tags"]) <= {tag["name"] for tag in document["tags"]}


@given(configuration=configurations())
def test_every_example_is_what_its_schema_says(configuration: dict[str, Any]):
    """Whatever the script, no example contradicts the schema beside it."""
    document = described(configuration, is_authenticated=True)

    wrong = [
        mistake for schema, example in examples(document) for mistake in mismatches(document, schema, example)
    ]

    assert wrong == []


@given(configuration=configurations())
def test_the_example_request_is_one_that_is_taken(configuration: dict[str, Any]):
    """Who sends the examples as they stand is not refused."""
    spec = Spec.read(configuration)
    operation = submission(described(configuration))
    parameters = [one for one in operation["parameters"] if one["in"] != "header"]
    assume(all("example" in one for one in parameters))
    assume("requestBody" not in operation or "example" in body(operation))
    sent = [one["example"] for one in parameters if one["in"] == "path"]
    query = [(one["name"], one["example"]) for one in parameters if one["in"] == "query"]
    pairs = [(name, value) for name, each in query for value in (each if isinstance(each, list) else [each])]
    document = json.dumps(body(operation)["example"]).encode() if "requestBody" in operation else b""

    arguments = inputs.bind(spec, Request(path="".join(sent), query=tuple(pairs), body=document))

    assert {one.env_var_name for one in spec.inputs.all if spec.is_required(one)} <= set(arguments)


# The page


def page(name: str) -> str:
    return (resources.files("script_runner.web") / "page" / name).read_text()


def test_the_page_loads_only_what_is_served_beside_it():
    """The page asks for assets of the list, by relative address, and holds no script of its own."""
    html = page("docs.html")

    loaded = re.findall(r'(?:src|href)="docs/([^"]+)"', html)
    assert sorted(loaded) == sorted(openapi.ASSETS)
    assert "//" not in html
    assert re.findall(r"<script[^>]*>(.*?)</script>", html) == ["", ""]
    assert re.search(r"\son\w+=", html) is None


@pytest.mark.parametrize("name", ["swagger-ui-bundle.js", "swagger-ui.css"])
def test_what_is_not_ours_is_unchanged(name: str):
    """A vendored file is the one whose version, licence and sum the notice gives."""
    (total,) = re.findall(rf"([0-9a-f]{{64}})  {re.escape(name)}\n", page("NOTICE.txt"))

    assert hashlib.sha256(page(name).encode()).hexdigest() == total
    assert "Apache License" in page("swagger-ui.LICENSE.txt")
