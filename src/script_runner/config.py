"""Reads the configuration file and the environment; refuses all mistakes at once, each with its place."""

import fnmatch
import json
import os
import re
import typing
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote

from script_runner.errors import Code, Error, Problem
from script_runner.shape import Checked, Limits, Shape, adapter
from script_runner.spec import RESERVED_NAMES, Part, PathRegex, Spec, Template

DEFAULT_CONFIG = "config.json"
DEFAULT_RUNDIR = "."
MAX_FILE_BYTES = 1 << 20
MAX_SHOWN_CHARACTERS = 80
LAST_PORT = 65_535
VARIABLES = "variables"
"""Under which name the metadata of a setting has its variables."""

Place = tuple[str | int, ...]


def _address(text: str) -> str:
    """The text, if it is a host and a port."""
    found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})", text)
    if not found or int(found[1]) > LAST_PORT:
        raise ValueError("HOST:PORT, such as 127.0.0.1:9090 or [::1]:9090")
    return text


def _namespace(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_.-]{1,64}", text):
        raise ValueError("1 to 64 letters, digits, _, . and -")
    return text


Address = Annotated[str, Checked(_address)]
Pause = Annotated[float, Limits(ge=0)]


def _set_by(*variables: str, default: Any = None, is_secret: bool = False) -> Any:
    """A setting that the first of these variables gives that is set."""
    return field(default=default, repr=not is_secret, metadata={VARIABLES: variables})


@dataclass(frozen=True, kw_only=True)
class Settings(Shape):
    """What the operator sets by environment; the command line's options come on top."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}  # of text come numbers

    config: str = _set_by("SCRIPT_RUNNER_CONFIG", default=DEFAULT_CONFIG)
    redis_url: str | None = _set_by("SCRIPT_RUNNER_REDIS_URL", "REDIS_URL", "CELERY_BROKER_URL")
    redis_username: str | None = _set_by("SCRIPT_RUNNER_REDIS_USERNAME")
    redis_password: str | None = _set_by("SCRIPT_RUNNER_REDIS_PASSWORD", is_secret=True)
    store_url: str | None = _set_by("SCRIPT_RUNNER_STORE")
    store_key_id: str | None = _set_by("SCRIPT_RUNNER_STORE_KEY_ID")
    store_secret: str | None = _set_by("SCRIPT_RUNNER_STORE_SECRET", is_secret=True)
    namespace: Annotated[str, Checked(_namespace)] = _set_by("SCRIPT_RUNNER_NAMESPACE", default="script-runner")
    auth_provider: str | None = _set_by("AUTH_PROVIDER")
    host: str = _set_by("SCRIPT_RUNNER_HOST", default="127.0.0.1")
    port: Annotated[int, Limits(ge=0, le=LAST_PORT)] | None = _set_by("SCRIPT_RUNNER_PORT", "PORT")
    rundir: str = _set_by("SCRIPT_RUNNER_RUNDIR", default=DEFAULT_RUNDIR)
    concurrency: Annotated[int, Limits(ge=1, le=1_000)] | None = _set_by("SCRIPT_RUNNER_CONCURRENCY")
    lease_seconds: Annotated[float, Limits(ge=1, le=3_600)] = _set_by("SCRIPT_RUNNER_LEASE_SECONDS", default=10.0)
    drain_timeout: Pause = _set_by("SCRIPT_RUNNER_DRAIN_TIMEOUT", default=30.0)
    linger_seconds: Pause = _set_by("SCRIPT_RUNNER_LINGER_SECONDS", default=5.0)
    redis_replicas: Annotated[int, Limits(ge=0, le=100)] = _set_by("SCRIPT_RUNNER_REDIS_REPLICAS", default=0)
    ecs_agent: str | None = _set_by("ECS_AGENT_URI")
    ecs_protection_minutes: Annotated[int, Limits(ge=0, le=2_880)] = _set_by(
        "SCRIPT_RUNNER_ECS_PROTECTION_MINUTES", default=60
    )
    max_body_bytes: Annotated[int, Limits(ge=0)] = _set_by("SCRIPT_RUNNER_MAX_BODY_BYTES", default=1 << 20)
    max_wait_seconds: Annotated[float, Limits(ge=0, le=3_600)] = _set_by(
        "SCRIPT_RUNNER_MAX_WAIT_SECONDS", default=60.0
    )
    redirect_downloads: bool = _set_by("SCRIPT_RUNNER_REDIRECT_DOWNLOADS", default=False)
    cors_origins: str = _set_by("SCRIPT_RUNNER_CORS_ORIGINS", default="*")
    log_level: Literal["debug", "info", "warning", "error"] = _set_by("SCRIPT_RUNNER_LOG_LEVEL", default="info")
    log_format: Literal["text", "json"] = _set_by("SCRIPT_RUNNER_LOG_FORMAT", default="text")
    report_seconds: Pause = _set_by("SCRIPT_RUNNER_REPORT_SECONDS", default=0.0)
    metrics: Address | None = _set_by("SCRIPT_RUNNER_METRICS")
    server_version: str | None = _set_by("SERVER_VERSION")

    @property
    def redis_address(self) -> str | None:
        """The Redis URL, with the name and password that are set apart from it, if it has none of its own."""
        url, mark, rest = (self.redis_url or "").partition("://")
        if not mark or not self.redis_password or "@" in rest.partition("/")[0] or "password=" in rest:
            return self.redis_url
        name, password = (quote(text, safe="") for text in (self.redis_username or "", self.redis_password))
        if url == "unix":
            return f"{self.redis_url}{'&' if '?' in rest else '?'}username={name}&password={password}"
        return f"{url}://{name}:{password}@{rest}"

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port for those who watch."""
        host, _, port = (self.metrics or "").rpartition(":")
        return (host.strip("[]"), int(port)) if host else None

    def with_options(self, **options: Any) -> "Settings":
        """These settings with the command line's options on top; None means not given."""
        given = {name: value for name, value in options.items() if value is not None}
        return _settings({**asdict(self), **given}, {name: f"--{name.replace('_', '-')}" for name in given})


PRIVATE_VARIABLES = (
    "SCRIPT_RUNNER_*", "REDIS_URL", "CELERY_*", "AUTH_PROVIDER", "AUTH0_*", "PORT",
    "SERVER_NAME", "SERVER_VERSION", "OTEL_EXPORTER_OTLP_*HEADERS", "ECS_AGENT_URI",
)  # fmt: skip
"""What a script does not inherit: the runner's own settings and secrets."""

WITHOUT_EFFECT = ("SERVER_NAME", "CELERY_*")
"""Settings of the original that have no meaning here; of CELERY_BROKER_URL comes the Redis URL."""


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings in the environment, empty ones taken as not set; Error(INVALID_CONFIG) with all mistakes."""
    variables = {setting.name: setting.metadata[VARIABLES] for setting in fields(Settings)}
    set_by = {name: next(filter(environment.get, known), None) for name, known in variables.items()}
    sources = {name: variable for name, variable in set_by.items() if variable is not None}
    return _settings({name: environment[variable] for name, variable in sources.items()}, sources)


def without_effect(environment: Mapping[str, str]) -> list[str]:
    """The names of the original's settings that are set and change nothing here, in order."""
    return sorted(
        name
        for name, value in environment.items()
        if value and name != "CELERY_BROKER_URL" and _matches(name, WITHOUT_EFFECT)
    )


def script_environment(environment: Mapping[str, str], spec: Spec) -> dict[str, str]:
    """What of the worker's environment the script inherits."""
    return {
        name: value
        for name, value in environment.items()
        if _matches(name, spec.environment.inherit) and not _matches(name, PRIVATE_VARIABLES)
    }


def read_spec(path: Path, *, rundir: str = DEFAULT_RUNDIR) -> Spec:
    """The configuration in ``path`` (JSON, YAML, TOML by its ending); Error(INVALID_CONFIG) with all mistakes.

    ``rundir`` is where run folders are made when it does not say so itself.
    """
    raw = _parse(path, _read(path))
    if not isinstance(raw, dict):
        raise _refused(path, [Problem("file", str(path), f"expected an object, got {_shown(raw)}")])
    problems = [*_shape_problems(raw), *_cross_problems(raw, rundir)]
    if problems:
        raise _refused(path, problems)
    return Spec.read(raw)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the configuration file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **adapter(Spec).json_schema(),
        "title": "The configuration file of script-runner",
    }


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _settings(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    """Settings of these values; a mistake is told by the variable or the option that the value comes from."""
    from pydantic import ValidationError  # noqa: PLC0415 - script_runner.shape says why

    try:
        return Settings.read(values)
    except ValidationError as error:
        problems = tuple(
            Problem(
                "environment",
                sources[str(detail["loc"][0])],
                f"got {_shown(detail['input'])}, {_expected(detail)}",
            )
            for detail in error.errors()
        )
        message = "; ".join(f"{problem.name}: {problem.problem}" for problem in problems)
        raise Error(Code.INVALID_CONFIG, f"A setting is wrong. {message}", problems) from None


def _refused(path: Path, problems: list[Problem]) -> Error:
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    return Error(Code.INVALID_CONFIG, f"{path} has {count}.", tuple(problems))


# Reading


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"The configuration {path} cannot be read: {error.strerror}."
        if isinstance(error, FileNotFoundError):
            message += " Name one with --config or SCRIPT_RUNNER_CONFIG, or write ./config.json."
        raise Error(Code.INVALID_CONFIG, message) from None
    if len(content) > MAX_FILE_BYTES:
        raise _refused(path, [Problem("file", str(path), f"expected at most {MAX_FILE_BYTES:,} bytes, got more")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(path, [Problem("file", str(path), f"expected UTF-8, got {error}")]) from None


def _parse(path: Path, text: str) -> Any:
    try:
        match path.suffix.lower():
            case ".yaml" | ".yml":
                return _from_yaml(text)
            case ".toml":
                return _from_toml(text)
            case _:
                return json.loads(text, object_pairs_hook=_object_without_doubles)
    # PyYAML lets some errors of its own through: !!bool "x" is a KeyError, !!timestamp "x" an AttributeError
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise _refused(path, [Problem("file", str(path), f"cannot be parsed: {reason}")]) from None


def _from_yaml(text: str) -> Any:
    """YAML with objects as JSON has them: every key is text."""
    import yaml  # noqa: PLC0415 - 1 MB that other files do without

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node: yaml.MappingNode = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                    raise yaml.MarkedYAMLError(
                        problem="a key is text; put it in quotes", problem_mark=key.start_mark
                    )
                if key.value in seen:
                    problem = f"the key {_shown(key.value)} stands twice in one object"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
            return node

    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(error) from None


def _from_toml(text: str) -> Any:
    import tomllib  # noqa: PLC0415 - 0.6 MB that other files do without

    return tomllib.loads(text)


def _object_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    doubled = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if doubled:
        raise ValueError(f"the key {_shown(doubled[0])} stands twice in one object")
    return dict(pairs)


# Mistakes in the shape of the file


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "too_short": "at least one item",
    "bool_parsing": "1 or 0",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
}


def _expected(detail: Any) -> str:
    """What was expected in place of what came, in our words where pydantic's would be strange to a reader."""
    if detail["type"] == "value_error":
        return f"expected {detail['ctx']['error']}"
    words = _EXPECTED.get(detail["type"])
    said = words.format(**detail.get("ctx", {})) if words else detail["msg"].removeprefix("Input should be ")
    return f"expected {said}"


def _shape_problems(raw: dict[str, Any]) -> Iterator[Problem]:
    from pydantic import ValidationError  # noqa: PLC0415 - script_runner.shape says why

    try:
        Spec.read(raw)
    except ValidationError as error:
        for detail in error.errors():
            place = tuple(step for step in detail["loc"] if not _is_internal(step))
            yield Problem("config", _path(place), _shape_sentence(place, detail))
    except RecursionError:
        yield Problem("config", "$", "nested too deeply")


def _is_internal(step: str | int) -> bool:
    """Whether pydantic put this step into a place: it stands for a type or for "the key itself"."""
    return isinstance(step, str) and step.startswith(("function-", "[key]"))


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known name that is most like this one, if one is like it at all."""
    import difflib  # noqa: PLC0415 - 1 MB that only a mistake needs

    return difflib.get_close_matches(name, known, n=1)


def _shape_sentence(place: Place, detail: Any) -> str:
    kind, came = detail["type"], _shown(detail["input"])
    if kind == "missing":
        return "required, but it is not there"
    if kind == "unexpected_keyword_argument":
        known = _known_keys(place[:-1])
        near = _nearest(str(place[-1]), known)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(known)}"
    if kind == "value_error":
        return f"got {came}, expected {detail['ctx']['error']}"
    if kind == "literal_error":
        return f"got {came}, expected {detail['ctx']['expected']}"
    return f"got {came}, {_expected(detail)}"


def _known_keys(place: Place) -> list[str]:
    """The keys of the object that stands at this place of the file."""
    shape: Any = Spec
    for step in place:
        if isinstance(step, str):
            shape = _shape_in(typing.get_type_hints(shape)[step])
    return [known.name for known in fields(shape)]


def _shape_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Shape):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := _shape_in(inner))), None)


def _path(place: Place) -> str:
    """A place as one writes it: ``inputs.path_args[0].path_regex``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")


def _shown(value: Any) -> str:
    """The beginning of a value, as JSON. No more of it is looked at: YAML's aliases can make it endless."""
    pieces = json.JSONEncoder(ensure_ascii=False, default=str, check_circular=False).iterencode(value)
    text = ""
    while len(text) <= MAX_SHOWN_CHARACTERS and (piece := next(pieces, None)):
        text += piece
    printable = text.encode("utf-8", "backslashreplace").decode()
    return printable if len(printable) <= MAX_SHOWN_CHARACTERS else printable[: MAX_SHOWN_CHARACTERS - 1] + "…"


# Mistakes between parts of the file; they are looked for in the raw form, whatever else is wrong


def _cross_problems(raw: dict[str, Any], rundir: str) -> Iterator[Problem]:
    inputs = list(_inputs(raw))
    yield from _doubled_inputs(inputs)
    yield from _command_problems(raw, {name: wanted for _, name, wanted in inputs})
    yield from _group_problems(raw)
    yield from _base_problems(raw.get("command_rundir_base"), raw.get("command_rundir") or rundir)
    yield from _results_problems(_at(raw, "outputs", "results"))


def _inputs(raw: dict[str, Any]) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """Place, name and content of every input that has a name."""
    for kind in ("path_args", "query_args", "body_args"):
        for number, wanted in enumerate(_list_at(raw, "inputs", kind)):
            name = wanted.get("env_var_name") if isinstance(wanted, dict) else None
            if isinstance(name, str):
                yield ("inputs", kind, number), name, wanted


def _doubled_inputs(inputs: list[tuple[Place, str, dict[str, Any]]]) -> Iterator[Problem]:
    first: dict[str, Place] = {}
    for place, name, _ in inputs:
        if name in first:
            problem = f'"{name}" is already the name of {_path(first[name])}'
            yield Problem("config", _path((*place, "env_var_name")), problem)
        first.setdefault(name, place)


def _command_problems(raw: dict[str, Any], inputs: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    fixed = {*RESERVED_NAMES, *_dict_at(raw, "environment", "set")}
    known = [*fixed, *inputs]
    for number, item in enumerate(_list_at(raw, "command")):
        try:
            part = Part.parse(item)
        except ValueError:
            continue
        here = _path(("command", number))
        if number == 0 and not part.templates[0].source:
            yield Problem("config", here, 'got "", expected a program')
        for template in part.templates:
            for name in template.names:
                if name not in known:
                    near = _nearest(name, known)
                    hint = f"; did you mean ${near[0]}?" if near else f"; defined are {', '.join(sorted(known))}"
                    yield Problem("config", here, f"nothing defines ${name}{hint}")
                elif name in inputs:
                    yield from _use_problems(number, part, template, name, inputs[name])


def _use_problems(
    number: int, part: Part, template: Template, name: str, wanted: dict[str, Any]
) -> Iterator[Problem]:
    here = _path(("command", number))
    if number == 0:
        yield Problem("config", here, f"${name} comes from the request and cannot choose the program")
    if not part.is_group and wanted.get("required") is False and wanted.get("default") is None:
        problem = (
            f'${name} may be absent ("required": false); put it in a list, with its option, or give a default'
        )
        yield Problem("config", here, problem)
    if wanted.get("many") is True and not template.is_one_name:
        yield Problem("config", here, f'${name} has many values ("many": true) and must stand alone, as "${name}"')


def _group_problems(raw: dict[str, Any]) -> Iterator[Problem]:
    for number, wanted in enumerate(_list_at(raw, "inputs", "path_args")):
        if not isinstance(wanted, dict) or not isinstance(wanted.get("path_regex"), str):
            continue
        try:
            groups = PathRegex.parse(wanted["path_regex"]).groups
        except ValueError:
            continue
        group = wanted.get("path_regex_match_group")
        if isinstance(group, int) and not isinstance(group, bool) and group > groups:
            place = _path(("inputs", "path_args", number, "path_regex_match_group"))
            yield Problem(
                "config", place, f"got {group}, expected at most {groups}: path_regex has {groups} group(s)"
            )


def _base_problems(base: Any, parent: Any) -> Iterator[Problem]:
    if not isinstance(base, str) or not isinstance(parent, str) or "\0" in base + parent:
        return
    if Path(parent).resolve().is_relative_to(Path(base).resolve()):
        problem = f"got {_shown(base)}, which holds the run folders themselves; name a folder apart from them"
        yield Problem("config", "command_rundir_base", problem)


def _results_problems(results: Any) -> Iterator[Problem]:
    if not isinstance(results, dict):
        return
    if results.get("kind") == "file" and results.get("input_path") is None:
        yield Problem("config", "outputs.results.input_path", 'required when kind is "file"')
    first: dict[str, int] = {}
    for number, column in enumerate(_list_at(results, "remapped_columns")):
        name = column.get("output_name") if isinstance(column, dict) else None
        if isinstance(name, str):
            if name in first:
                place = _path(("outputs", "results", "remapped_columns", number, "output_name"))
                yield Problem("config", place, f'"{name}" is already the name of column {first[name]}')
            first.setdefault(name, number)


def _at(raw: Any, *steps: str) -> Any:
    for step in steps:
        raw = raw.get(step) if isinstance(raw, dict) else None
    return raw


def _list_at(raw: Any, *steps: str) -> list[Any]:
    found = _at(raw, *steps)
    return found if isinstance(found, list) else []


def _dict_at(raw: Any, *steps: str) -> dict[str, Any]:
    found = _at(raw, *steps)
    return found if isinstance(found, dict) else {}


def default_data_folder(config: Path, environment: Mapping[str, str]) -> Path:
    """Where ``up`` keeps its data: below the user's state directory (XDG Base Directory), one a configuration."""
    state = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    absolute = config.resolve()
    label = f"{absolute.parent.name}-{zlib.crc32(os.fsencode(absolute)):08x}"
    return Path(state) / "script-runner" / label
