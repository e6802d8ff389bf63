"""The configuration file and the environment: what loads, what is refused, and with which words."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from script_runner import config, inputs
from script_runner import results as results_module
from script_runner.errors import Code, Error

REPOSITORY = Path(__file__).parents[2]
OWN_SAMPLES = sorted((Path(__file__).parent / "configs").glob("*.json"))
SHARED_SAMPLES = sorted((REPOSITORY.parent / "shared/samples/configs").glob("*.json"))
NAME_OF_SAMPLE = pytest.mark.parametrize("sample", [*OWN_SAMPLES, *SHARED_SAMPLES], ids=lambda path: path.stem)

FINAL_STATES = ("succeeded", "failed", "timed_out", "cancelled", "lost")


def load(folder: Path, content: str | bytes, name: str = "config.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return config.read_spec(path)


def load_raw(folder: Path, **raw: Any):
    return load(folder, json.dumps({"command": ["true"], **raw}))


def refused(folder: Path, content: str | bytes, name: str = "config.json") -> Error:
    with pytest.raises(Error) as caught:
        load(folder, content, name)
    assert caught.value.code is Code.INVALID_CONFIG
    return caught.value


def mistakes(folder: Path, **raw: Any) -> dict[str, str]:
    """Place to sentence of every mistake in a configuration with these keys."""
    error = refused(folder, json.dumps({"command": ["true"], **raw}))
    return {problem.name: problem.problem for problem in error.problems}


def query(name: str, **more: Any) -> dict[str, Any]:
    return {"query_args": [{"env_var_name": name, "query_var_name": name.lower(), **more}]}


def results(**more: Any) -> dict[str, Any]:
    return {"results": {"kind": "stdout", "format": "csv", **more}}


# Loading


@NAME_OF_SAMPLE
def test_original_format_loads(sample) -> None:
    """A configuration in the original format loads unchanged."""
    raw = json.loads(sample.read_text())

    spec = config.read_spec(sample)

    assert [template.source for part in spec.command for template in part.templates] == raw["command"]
    assert [wanted.env_var_name for wanted in spec.inputs.all] == [
        wanted["env_var_name"] for kind in raw["inputs"].values() for wanted in kind
    ]
    assert [glob.source for glob in spec.outputs.attachments] == raw["outputs"]["attachments"]


def test_shared_samples_are_read() -> None:
    """The real configurations are among those tested, where they are at hand."""
    if not SHARED_SAMPLES:
        pytest.skip("no shared samples here")

    assert {path.stem for path in SHARED_SAMPLES} >= {"original-2021-04", "original-2021-05", "readme-all-inputs"}


def test_yaml_means_the_same(tmp_path) -> None:
    """The same configuration in YAML gives the same Spec."""
    raw = json.loads(OWN_SAMPLES[0].read_text())

    assert load(tmp_path, yaml.safe_dump(raw), "config.yaml") == config.read_spec(OWN_SAMPLES[0])


def test_toml_means_the_same(tmp_path) -> None:
    """The same configuration in TOML gives the same Spec."""
    text = 'command = ["a", ["--x", "$X"]]\n[[inputs.query_args]]\nenv_var_name = "X"\nquery_var_name = "x"\n'
    raw = tomllib.loads(text)

    assert load(tmp_path, text, "config.toml") == load(tmp_path, json.dumps(raw))


@pytest.mark.parametrize("name", ["c.yml", "C.YAML", "c.Yml"])
def test_ending_in_any_case(tmp_path, name) -> None:
    """YAML is known by its ending, however that is written."""
    assert load(tmp_path, "command: [a]", name).command[0].templates[0].source == "a"


def test_lists_may_be_left_out(tmp_path) -> None:
    """Everything but the command may be left out, and is empty then."""
    spec = load(tmp_path, '{"command": ["true"]}')

    assert spec.inputs.all == ()
    assert spec.outputs.results is None
    assert spec.outputs.attachments == ()


def test_defaults(tmp_path) -> None:
    """Each key that is left out has the value the reference says."""
    spec = load(tmp_path, '{"command": ["true"]}')

    assert (spec.timeout_seconds, spec.grace_seconds, spec.retention_seconds) == (None, 10, 86_400)
    assert (spec.on_worker_lost, spec.max_attempts, spec.attempts) == ("fail", 3, 1)
    assert spec.environment.inherit == ("*",)
    assert (spec.max_queued, spec.max_queued_per_caller, spec.max_running, spec.max_running_per_caller) == (
        None,
    ) * 4
    assert (spec.max_priority, spec.expires_in_seconds, spec.kept_counts, spec.kept_seconds) == (0, None, {}, {})


def test_retry_uses_max_attempts(tmp_path) -> None:
    """A lost task is started again up to max_attempts only when retry is asked for."""
    assert load_raw(tmp_path, on_worker_lost="retry", max_attempts=5).attempts == 5


def test_nulls_of_the_original(tmp_path) -> None:
    """The keys that the original writes as null may be null."""
    spec = load_raw(tmp_path, command_rundir=None, command_rundir_base=None, debug=None)

    assert (spec.command_rundir, spec.command_rundir_base, spec.debug) == (None, None, None)


def test_byte_order_mark(tmp_path) -> None:
    """A byte order mark is no part of the file."""
    assert load(tmp_path, b'\xef\xbb\xbf{"command": ["true"]}').inputs.all == ()


def test_missing_file(tmp_path) -> None:
    """A missing file is refused with its path and the ways to name another."""
    with pytest.raises(Error, match=r"nowhere\.json cannot be read.*--config or SCRIPT_RUNNER_CONFIG"):
        config.read_spec(tmp_path / "nowhere.json")


def test_folder_in_place_of_a_file(tmp_path) -> None:
    """A folder is refused as what it is."""
    with pytest.raises(Error, match="Is a directory"):
        config.read_spec(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", '{"command": ["a",]}'),
        ("c.json", '{"command": ["a"]} x'),
        ("c.json", ""),
        ("c.json", "[" * 100_000),
        ("c.json", '{"command": ["a"], "max_attempts": ' + "1" * 5_000 + "}"),
        ("c.yaml", "command: [a"),
        ("c.yaml", "a: b: c"),
        ("c.yaml", "[" * 20_000),
        ("c.yaml", "--- {}\n--- {}"),
        ("c.yaml", 'title: !!bool "x"'),
        ("c.yaml", 'title: !!int ""'),
        ("c.yaml", 'title: !!timestamp "x"'),
        ("c.yaml", "title: 2024-99-99"),
        ("c.yaml", "title: !!python/object/apply:os.getcwd []"),
        ("c.toml", "command = "),
        ("c.toml", "a = 1\na = 2"),
    ],
)
def test_malformed(tmp_path, name, content) -> None:
    """A file that cannot be parsed is refused as such, whatever the parser stumbles over."""
    assert refused(tmp_path, content, name).problems[0].problem.startswith("cannot be parsed: ")


def test_malformed_says_where(tmp_path) -> None:
    """The parser's line and column are passed on."""
    assert "line 2 column 1" in refused(tmp_path, '{"command": ["a"]\n"x"}').problems[0].problem


def test_not_utf8(tmp_path) -> None:
    """A file in another encoding than UTF-8 is refused."""
    assert "expected UTF-8" in refused(tmp_path, b'{"command": ["\xe9"]}').problems[0].problem


def test_huge(tmp_path) -> None:
    """A file of more than a mebibyte is refused unread."""
    error = refused(tmp_path, b" " * (config.MAX_FILE_BYTES + 1))

    assert error.problems[0].problem == "expected at most 1,048,576 bytes, got more"


@pytest.mark.parametrize(("content", "came"), [("[1]", "[1]"), ('"x"', '"x"'), ("null", "null"), ("3", "3")])
def test_not_an_object(tmp_path, content, came) -> None:
    """A file that holds anything but an object is refused with what it holds."""
    assert refused(tmp_path, content).problems[0].problem == f"expected an object, got {came}"


def test_empty_yaml(tmp_path) -> None:
    """An empty YAML file holds no object."""
    assert refused(tmp_path, "", "c.yaml").problems[0].problem == "expected an object, got null"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", '{"command": ["a"], "command": ["b"]}'),
        ("c.yaml", "command: [a]\ncommand: [b]"),
        ("c.yaml", 'command: [a]\n"command": [b]'),
        ("c.json", '{"inputs": {"command": [], "command": []}}'),
    ],
)
def test_duplicate_key(tmp_path, name, content) -> None:
    """A key that stands twice in one object is refused: one of the two would be lost."""
    assert 'the key "command" stands twice' in refused(tmp_path, content, name).problems[0].problem


@pytest.mark.parametrize("key", ["1", "on", "2024-01-01", "~", "[a]"])
def test_yaml_key_that_is_no_text(tmp_path, key) -> None:
    """A YAML key that is not text is refused, where JSON could not have it."""
    error = refused(tmp_path, f"command: [a]\nenvironment: {{set: {{? {key} : x}}}}", "c.yaml")

    assert "a key is text; put it in quotes" in error.problems[0].problem


def test_yaml_merge_keys(tmp_path) -> None:
    """YAML's anchors and merge keys work, also where the merged key is given anew."""
    text = (
        "command: [a]\ninputs:\n  query_args:\n    - &season {env_var_name: A, query_var_name: a, many: true}\n"
        "    - {<<: *season, env_var_name: B}\n"
    )

    first, second = load(tmp_path, text, "c.yaml").inputs.query_args

    assert (first.env_var_name, second.env_var_name, second.many) == ("A", "B", True)


def test_yaml_that_holds_itself(tmp_path) -> None:
    """A YAML list that holds itself is refused in a short sentence."""
    error = refused(tmp_path, "command: &a [*a]", "c.yaml")

    assert len(error.problems[0].problem) < 200


def test_yaml_that_unfolds_without_end(tmp_path) -> None:
    """Aliases of aliases, which would unfold to more than any memory, are refused in a short sentence."""
    levels = "".join(f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 40))

    error = refused(tmp_path, f"command: [a]\nenvironment:\n  set:\n    a0: &a0 [x]\n{levels}", "c.yaml")

    assert len(error.problems) == 40
    assert all(len(problem.problem) < 200 for problem in error.problems)


# Mistakes


def test_all_mistakes_at_once(tmp_path) -> None:
    """All mistakes come together, each with its full path."""
    found = mistakes(
        tmp_path,
        command=["run", "$NOWHERE"],
        timeout_seconds="5",
        inputs={
            "path_args": [{"env_var_name": "A", "path_regex": "("}],
            "query_args": [{"env_var_name": "A", "query_var_nam": "a"}],
            "body_args": [{"env_var_name": "RUNDIR", "body_jsonpath": "address"}],
        },
        outputs={"results": {"kind": "file", "format": "xml"}, "attachments": ["/etc/*"]},
    )

    assert set(found) == {
        "command[1]",
        "timeout_seconds",
        "inputs.path_args[0].path_regex",
        "inputs.query_args[0].query_var_name",
        "inputs.query_args[0].query_var_nam",
        "inputs.query_args[0].env_var_name",
        "inputs.body_args[0].env_var_name",
        "inputs.body_args[0].body_jsonpath",
        "outputs.results.format",
        "outputs.results.input_path",
        "outputs.attachments[0]",
    }


def test_number_of_mistakes(tmp_path) -> None:
    """The error's sentence names the file and counts the mistakes."""
    assert refused(tmp_path, "{}").message == f"{tmp_path / 'config.json'} has 1 mistake."


@pytest.mark.parametrize(
    ("raw", "place", "sentence"),
    [
        ({"timeout_seconds": "5"}, "timeout_seconds", 'got "5", expected a number'),
        ({"timeout_seconds": True}, "timeout_seconds", "got true, expected a number"),
        ({"timeout_seconds": 0}, "timeout_seconds", "got 0, expected more than 0"),
        ({"max_attempts": 1.5}, "max_attempts", "got 1.5, expected a whole number"),
        ({"debug": "yes"}, "debug", 'got "yes", expected true or false'),
        ({"title": 3}, "title", "got 3, expected text"),
        ({"inputs": []}, "inputs", "got [], expected an object"),
        ({"inputs": {"path_args": {}}}, "inputs.path_args", "got {}, expected a list"),
        ({"command": "ls -l"}, "command", 'got "ls -l", expected a list'),
        ({"command": []}, "command", "got [], expected at least one item"),
        ({"command": [""]}, "command[0]", 'got "", expected a program'),
        ({"on_worker_lost": "give up"}, "on_worker_lost", "got \"give up\", expected 'fail' or 'retry'"),
        ({"environment": {"inherit": [1]}}, "environment.inherit[0]", "got 1, expected text"),
        (
            {"environment": {"inherit": False}},
            "environment.inherit",
            "got false, expected true, or a list of patterns of names",
        ),
        ({"environment": {"set": {"A": 1}}}, "environment.set.A", "got 1, expected text"),
        ({"max_queued": 0}, "max_queued", "got 0, expected at least 1"),
        ({"max_queued_per_caller": "5"}, "max_queued_per_caller", 'got "5", expected a whole number'),
        ({"max_running": 1.5}, "max_running", "got 1.5, expected a whole number"),
        ({"max_running_per_caller": True}, "max_running_per_caller", "got true, expected a whole number"),
        ({"max_priority": 10}, "max_priority", "got 10, expected at most 9"),
        ({"expires_in_seconds": 0}, "expires_in_seconds", "got 0, expected more than 0"),
        ({"retention": {"lost": {"seconds": 0}}}, "retention.lost.seconds", "got 0, expected more than 0"),
        ({"retention": {"lost": {"count": -1}}}, "retention.lost.count", "got -1, expected at least 0"),
        ({"retention": {"queued": {}}}, "retention.queued", f"unknown key; known are {', '.join(FINAL_STATES)}"),
    ],
)
def test_what_came_and_what_was_expected(tmp_path, raw, place, sentence) -> None:
    """A value of the wrong kind is refused with what came and what was expected."""
    assert mistakes(tmp_path, **raw) == {place: sentence}


@pytest.mark.parametrize(
    ("raw", "place", "nearest"),
    [
        ({"comand_rundir": "x"}, "comand_rundir", "command_rundir"),
        ({"inputs": {"query_arg": []}}, "inputs.query_arg", "query_args"),
        (
            {"inputs": query("A", alow_leading_dash=True)},
            "inputs.query_args[0].alow_leading_dash",
            "allow_leading_dash",
        ),
        ({"outputs": {"result": None}}, "outputs.result", "results"),
        ({"outputs": results(inputpath="x")}, "outputs.results.inputpath", "input_path"),
        ({"environment": {"inherits": True}}, "environment.inherits", "inherit"),
        ({"retention": {"failed": {"secnds": 1}}}, "retention.failed.secnds", "seconds"),
        ({"retention": {"suceeded": {}}}, "retention.suceeded", "succeeded"),
    ],
)
def test_unknown_key(tmp_path, raw, place, nearest) -> None:
    """An unknown key is refused anywhere, with the nearest known one."""
    assert mistakes(tmp_path, **raw) == {place: f"unknown key; did you mean {nearest}?"}


def test_unknown_key_like_no_other(tmp_path) -> None:
    """An unknown key that is like none is answered with all that are known there."""
    assert mistakes(tmp_path, inputs={"zzz": []}) == {
        "inputs.zzz": "unknown key; known are path_args, query_args, body_args"
    }


def test_missing_key(tmp_path) -> None:
    """A key that must be there is named when it is not."""
    assert mistakes(tmp_path, inputs={"path_args": [{"env_var_name": "A"}]}) == {
        "inputs.path_args[0].path_regex": "required, but it is not there"
    }


def test_long_value_is_shown_shortened(tmp_path) -> None:
    """Of a long value only the beginning is shown."""
    found = mistakes(tmp_path, timeout_seconds="x" * 1_000)

    assert found["timeout_seconds"] == f'got "{"x" * 78}…, expected a number'


@pytest.mark.parametrize("regex", ["(", "a**", "(?=a)", "(?<!a)b", r"(a)\1", "a{5000}"])
def test_bad_regex(tmp_path, regex) -> None:
    """A path_regex that is malformed, or that no linear-time engine can take, is refused at load."""
    found = mistakes(tmp_path, inputs={"path_args": [{"env_var_name": "A", "path_regex": regex}]})

    assert "expected a regular expression in RE2 syntax" in found["inputs.path_args[0].path_regex"]


@pytest.mark.parametrize(
    "path",
    ["address", "$.", "$[", "", "$.a | $.b", "$[?match(@.a, 'x')]", "$[?search(@.a, 'x')]", "$[?typeof(@) == 1]"],
)
def test_bad_jsonpath(tmp_path, path) -> None:
    """A JSONPath that is malformed, beyond RFC 9535, or uses match() or search() is refused at load."""
    found = mistakes(tmp_path, inputs={"body_args": [{"env_var_name": "A", "body_jsonpath": path}]})

    assert "JSONPath by RFC 9535" in found["inputs.body_args[0].body_jsonpath"]


@pytest.mark.parametrize("glob", ["", "/etc/*", "../*", "a/../b", "a//b", "a/", ".", "a\0b"])
def test_bad_glob(tmp_path, glob) -> None:
    """An attachment pattern that is empty or could lead out of the run folder is refused at load."""
    assert set(mistakes(tmp_path, outputs={"attachments": [glob]})) == {"outputs.attachments[0]"}


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_bad_input_path(tmp_path, path) -> None:
    """An input_path that is empty or leads out of the run folder is refused at load."""
    found = mistakes(tmp_path, outputs=results(kind="file", input_path=path))

    assert set(found) == {"outputs.results.input_path"}


def test_results_of_a_file_need_a_path(tmp_path) -> None:
    """Results of kind file without an input_path are refused."""
    assert mistakes(tmp_path, outputs=results(kind="file")) == {
        "outputs.results.input_path": 'required when kind is "file"'
    }


@pytest.mark.parametrize(("regex", "groups", "group"), [("a", 0, 1), ("(a)", 1, 2)])
def test_group_number(tmp_path, regex, groups, group) -> None:
    """A group number that the regex does not have is refused."""
    wanted = {"env_var_name": "A", "path_regex": regex, "path_regex_match_group": group}

    assert mistakes(tmp_path, inputs={"path_args": [wanted]}) == {
        "inputs.path_args[0].path_regex_match_group": (
            f"got {group}, expected at most {groups}: path_regex has {groups} group(s)"
        )
    }


def test_negative_group_number(tmp_path) -> None:
    """A negative group number is refused."""
    wanted = {"env_var_name": "A", "path_regex": "a", "path_regex_match_group": -1}

    assert set(mistakes(tmp_path, inputs={"path_args": [wanted]})) == {
        "inputs.path_args[0].path_regex_match_group"
    }


def test_duplicate_output_name(tmp_path) -> None:
    """Two columns of one output name are refused."""
    columns = [{"output_name": "a", "input_name": "x"}, {"output_name": "a", "input_name": "y"}]

    assert mistakes(tmp_path, outputs=results(remapped_columns=columns)) == {
        "outputs.results.remapped_columns[1].output_name": '"a" is already the name of column 0'
    }


def test_two_inputs_of_one_name(tmp_path) -> None:
    """Two inputs of one name are refused, also of different kinds."""
    inputs = {**query("A"), "body_args": [{"env_var_name": "A", "body_jsonpath": "$.a"}]}

    assert mistakes(tmp_path, inputs=inputs) == {
        "inputs.body_args[0].env_var_name": '"A" is already the name of inputs.query_args[0]'
    }


@pytest.mark.parametrize("name", ["1A", "A-B", "A B", "", "É", "A\n", "RUNDIR", "TASK_ID", "PATH", "LD_PRELOAD"])
def test_bad_input_name(tmp_path, name) -> None:
    """An input's name must be a variable's name, not reserved, and none by which programs are found or loaded."""
    assert set(mistakes(tmp_path, inputs=query(name))) == {"inputs.query_args[0].env_var_name"}


@pytest.mark.parametrize("raw", [{"title": "\ud800"}, {"command": ["a", "\ud800"]}, {"command": ["a", "b\0"]}])
def test_text_that_no_program_can_be_given(tmp_path, raw) -> None:
    """Half a surrogate pair or a NUL character is refused, and the refusal can be printed."""
    [(place, sentence)] = mistakes(tmp_path, **raw).items()

    assert "expected text without" in sentence
    assert sentence.encode()
    assert place in ("title", "command[1]")


# Names in the command


def test_undefined_name(tmp_path) -> None:
    """A name that nothing defines is refused with the nearest one that is defined."""
    assert mistakes(tmp_path, command=["run", "$SEASONS"], inputs=query("SEASON")) == {
        "command[1]": "nothing defines $SEASONS; did you mean $SEASON?"
    }


def test_undefined_name_like_no_other(tmp_path) -> None:
    """A name that is like no other is answered with all that are defined."""
    assert mistakes(tmp_path, command=["run", ["--x", "$QQQ"]]) == {
        "command[1]": "nothing defines $QQQ; defined are RUNDIR, TASK_ID"
    }


def test_name_of_environment_set(tmp_path) -> None:
    """The command may use what environment.set defines."""
    spec = load_raw(tmp_path, command=["run", "$MODE"], environment={"set": {"MODE": "fast"}})

    assert spec.command[1].templates[0].names == ("MODE",)


def test_request_cannot_choose_the_program(tmp_path) -> None:
    """An input may not be part of the program's own name."""
    assert mistakes(tmp_path, command=["scripts/$TOOL"], inputs=query("TOOL")) == {
        "command[0]": "$TOOL comes from the request and cannot choose the program"
    }


def test_optional_input_outside_a_group(tmp_path) -> None:
    """An input that may be absent is refused as an argument outside a group."""
    assert (
        "$A may be absent"
        in mistakes(tmp_path, command=["x", "$A"], inputs=query("A", required=False))["command[1]"]
    )


def test_many_values_inside_text(tmp_path) -> None:
    """An input of many values must stand alone in its argument."""
    assert (
        "must stand alone"
        in mistakes(tmp_path, command=["x", "--a=$A"], inputs=query("A", many=True))["command[1]"]
    )


# The schema


def test_schema_is_the_published_one() -> None:
    """The published JSON Schema is the one that the models give."""
    published = json.loads((REPOSITORY / "docs/config.schema.json").read_text())

    assert published == config.schema()


def test_schema_names_its_dialect() -> None:
    """The schema says which JSON Schema it is written in and what it describes."""
    schema = config.schema()

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "The configuration file of script-runner"


def test_schema_takes_what_the_loader_takes() -> None:
    """A default may be a number or a boolean, and a part of the command a list, in the schema as in the loader."""
    schema = config.schema()

    default = schema["$defs"]["QueryInput"]["properties"]["default"]["anyOf"]
    part = schema["properties"]["command"]["items"]["anyOf"]
    inherit = schema["$defs"]["EnvironmentSpec"]["properties"]["inherit"]["anyOf"]
    assert {kind["type"] for kind in default} == {"string", "integer", "number", "boolean", "null"}
    assert {kind["type"] for kind in part} == {"string", "array"}
    assert inherit[0]["const"] is True


# The environment


def test_settings_without_environment() -> None:
    """Without any variable the settings have their defaults."""
    settings = config.read_settings({})

    assert (settings.config, settings.host, settings.port, settings.redis_url) == (
        "config.json",
        "127.0.0.1",
        None,
        None,
    )
    assert (settings.lease_seconds, settings.drain_timeout, settings.max_body_bytes) == (10, 30, 1 << 20)
    assert (settings.linger_seconds, settings.redis_replicas) == (5, 0)


def test_configuration_by_environment() -> None:
    """SCRIPT_RUNNER_CONFIG names the configuration file."""
    assert config.read_settings({"SCRIPT_RUNNER_CONFIG": "other.yaml"}).config == "other.yaml"


def test_option_before_environment() -> None:
    """An option of the command line goes before the environment; one that was not given changes nothing."""
    settings = config.read_settings({"SCRIPT_RUNNER_CONFIG": "a.json", "SCRIPT_RUNNER_HOST": "::1"})

    changed = settings.with_options(config="b.json", host=None)

    assert (changed.config, changed.host) == ("b.json", "::1")


def test_wrong_option() -> None:
    """A wrong option of the command line is refused like a wrong variable."""
    with pytest.raises(Error, match="port"):
        config.read_settings({}).with_options(port=70_000)


def test_empty_variable_is_not_set() -> None:
    """An empty variable is as good as none, and the next name is tried."""
    assert config.read_settings({"SCRIPT_RUNNER_PORT": "", "PORT": "81"}).port == 81


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (("SCRIPT_RUNNER_REDIS_URL", "REDIS_URL", "CELERY_BROKER_URL"), "redis_url"),
        (("SCRIPT_RUNNER_PORT", "PORT"), "port"),
    ],
)
def test_fallback_names(names, field) -> None:
    """A setting's own name goes before the names that others use."""
    environment = {name: str(number) for number, name in enumerate(names)}

    for number, name in enumerate(names):
        assert str(getattr(config.read_settings(environment), field)) == str(number)
        del environment[name]


@pytest.mark.parametrize(
    ("url", "name", "address"),
    [
        ("redis://r:6379/0", "", "redis://:p%40%2F%3A@r:6379/0"),
        ("rediss://r:6379/0?ssl_ca_certs=/ca", "ada", "rediss://ada:p%40%2F%3A@r:6379/0?ssl_ca_certs=/ca"),
        ("redis+sentinel://a:1,b:2/main", "", "redis+sentinel://:p%40%2F%3A@a:1,b:2/main"),
        ("unix:///run/r.sock", "", "unix:///run/r.sock?username=&password=p%40%2F%3A"),
        ("unix:///run/r.sock?db=1", "ada", "unix:///run/r.sock?db=1&username=ada&password=p%40%2F%3A"),
        ("redis://:own@r:6379", "ada", "redis://:own@r:6379"),
        ("unix:///run/r.sock?password=own", "ada", "unix:///run/r.sock?password=own"),
        ("nonsense", "ada", "nonsense"),
    ],
)
def test_password_apart_from_the_url(url, name, address) -> None:
    """A password of its own, whatever is in it, goes to a server whose URL holds none."""
    variables = {
        "SCRIPT_RUNNER_REDIS_URL": url,
        "SCRIPT_RUNNER_REDIS_USERNAME": name,
        "SCRIPT_RUNNER_REDIS_PASSWORD": "p@/:",
    }

    assert config.read_settings(variables).redis_address == address


def test_password_is_not_shown() -> None:
    """A password does not get into a log with the settings."""
    assert "secret" not in repr(config.read_settings({"SCRIPT_RUNNER_REDIS_PASSWORD": "secret"}))


def test_settings_of_the_original_without_effect() -> None:
    """Those that are set are named, in order; the broker's URL has an effect, and an empty one is not set."""
    environment = {
        "SERVER_NAME": "api.example.org",
        "CELERY_RESULT_BACKEND": "redis://r",
        "CELERY_BROKER_URL": "redis://r",
        "CELERY_TIMEZONE": "",
        "SERVER_VERSION": "1",
        "HOME": "/",
    }

    assert config.without_effect(environment) == ["CELERY_RESULT_BACKEND", "SERVER_NAME"]


def test_base_folder_around_the_run_folders(tmp_path) -> None:
    """A base folder may not hold the parent of run folders, whoever names it."""
    (tmp_path / "config.json").write_text(json.dumps({"command": ["true"], "command_rundir_base": "/base"}))

    with pytest.raises(Error) as caught:
        config.read_spec(tmp_path / "config.json", rundir="/base/runs")

    assert config.read_spec(tmp_path / "config.json", rundir="/runs").command_rundir_base == "/base"
    assert [problem.name for problem in caught.value.problems] == ["command_rundir_base"]


def test_variable_that_is_no_setting() -> None:
    """A variable that only happens to be called like a field, such as host, is no setting."""
    assert config.read_settings({"host": "0.0.0.0", "port": "x"}).host == "127.0.0.1"  # noqa: S104 - it is not used


def test_all_wrong_settings_at_once() -> None:
    """All wrong settings come together, each by the name it was given under."""
    with pytest.raises(Error) as caught:
        config.read_settings({"PORT": "x", "SCRIPT_RUNNER_CONCURRENCY": "0", "SCRIPT_RUNNER_LOG_LEVEL": "loud"})

    assert caught.value.code is Code.INVALID_CONFIG
    assert {problem.name for problem in caught.value.problems} == {
        "PORT",
        "SCRIPT_RUNNER_CONCURRENCY",
        "SCRIPT_RUNNER_LOG_LEVEL",
    }


@pytest.mark.parametrize("address", ["127.0.0.1:9090", "[::1]:0", "inside.example:65535"])
def test_address_for_those_who_watch(address: str) -> None:
    """An address is a host and a port; brackets belong to the notation only (RFC 3986, section 3.2.2)."""
    found = config.read_settings({"SCRIPT_RUNNER_METRICS": address}).metrics_address

    host, _, port = address.rpartition(":")
    assert found == (host.strip("[]"), int(port))


@pytest.mark.parametrize(
    "address", ["9090", ":9090", "::1:9090", "host:", "host:65536", "host:x", "a b:1", "http://a:1"]
)
def test_what_is_no_address(address: str) -> None:
    """What is no host and port is refused, with an example of one."""
    with pytest.raises(Error, match="HOST:PORT, such as"):
        config.read_settings({"SCRIPT_RUNNER_METRICS": address})


@pytest.mark.parametrize(
    "name", ["SCRIPT_RUNNER_LEASE_SECONDS", "SCRIPT_RUNNER_DRAIN_TIMEOUT", "SCRIPT_RUNNER_LINGER_SECONDS"]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon"])
def test_time_that_is_none(name, value) -> None:
    """A time must be a finite number of seconds."""
    with pytest.raises(Error, match=name):
        config.read_settings({name: value})


# What the script inherits


OUTSIDE = {
    "HOME": "/home/me",
    "LANG": "C",
    "LC_ALL": "C",
    "SCRIPT_RUNNER_REDIS_URL": "secret",
    "REDIS_URL": "secret",
    "CELERY_BROKER_URL": "secret",
    "AUTH_PROVIDER": "auth0",
    "AUTH0_DOMAIN": "secret",
    "SERVER_NAME": "api.example.org",
}


def test_own_settings_are_not_inherited(tmp_path) -> None:
    """The script inherits everything but the runner's own settings and secrets."""
    spec = load_raw(tmp_path)

    assert config.script_environment(OUTSIDE, spec) == {"HOME": "/home/me", "LANG": "C", "LC_ALL": "C"}


def test_inherit_list(tmp_path) -> None:
    """With a list, only the variables that one of its patterns matches are inherited."""
    spec = load_raw(tmp_path, environment={"inherit": ["LANG", "LC_*"]})

    assert config.script_environment(OUTSIDE, spec) == {"LANG": "C", "LC_ALL": "C"}


def test_secrets_cannot_be_inherited_by_name(tmp_path) -> None:
    """Not even by name is a secret of the runner inherited."""
    spec = load_raw(tmp_path, environment={"inherit": ["REDIS_URL", "AUTH0_*"]})

    assert config.script_environment(OUTSIDE, spec) == {}


def test_inherit_nothing(tmp_path) -> None:
    """An empty list inherits nothing."""
    assert config.script_environment(OUTSIDE, load_raw(tmp_path, environment={"inherit": []})) == {}


def test_operator_may_set_path(tmp_path) -> None:
    """Unlike an input, environment.set may say where programs and libraries are found."""
    spec = load_raw(tmp_path, environment={"set": {"PATH": "/opt/R/bin", "LD_LIBRARY_PATH": "/opt/lib"}})

    assert spec.environment.set["PATH"] == "/opt/R/bin"


@pytest.mark.parametrize("name", ["RUNDIR", "TASK_ID", "A-B", ""])
def test_bad_name_in_set(tmp_path, name) -> None:
    """environment.set takes names of variables, and not the reserved ones."""
    assert len(mistakes(tmp_path, environment={"set": {name: "x"}})) == 1


# The data folder


def test_data_folder_is_one_a_configuration(tmp_path) -> None:
    """Two configurations have two data folders, the same one always the same."""
    environment = {"XDG_STATE_HOME": str(tmp_path)}

    first, again, second = (
        config.default_data_folder(tmp_path / name, environment) for name in ("a.json", "a.json", "b.json")
    )

    assert first == again != second
    assert first.is_relative_to(tmp_path / "script-runner")


# The reference


REFERENCE = (REPOSITORY / "docs/configuration.md").read_text()


def test_example_of_the_reference_loads(tmp_path) -> None:
    """The whole file that the reference shows is a good one."""
    [example] = [block for block in re.findall(r"```json\n(.*?)```", REFERENCE, re.DOTALL) if '"command"' in block]

    assert load(tmp_path, example).title == "Plate quality control"


@pytest.mark.parametrize(
    "limit",
    [
        inputs.MAX_VALUE_BYTES,
        inputs.MAX_VALUES_BYTES,
        results_module.MAX_LINE_CHARACTERS,
        results_module.MAX_JSON_CHARACTERS,
        results_module.MAX_COLUMNS,
    ],
)
def test_limits_of_the_reference(limit) -> None:
    """The limits that the reference names are those of the code."""
    assert f"{limit:,}" in REFERENCE
