"""The shape of the configuration file: frozen models that parse every pattern once and refuse unknown keys."""

import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from script_runner.shape import Checked, Limits, Prepared, Said, Shape, adapter
from script_runner.task import State

if TYPE_CHECKING:
    import jsonpath
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

LEAST_PRIORITY, MOST_PRIORITY = -9, 9

RESERVED_NAMES = ("RUNDIR", "TASK_ID")
"""Names the runner itself gives a value: the run folder (absolute) and the task's id."""

_DANGEROUS_NAMES = ("PATH", "IFS", "ENV", "BASH_ENV", "LD_*", "DYLD_*", "SCRIPT_RUNNER_*")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PLACEHOLDER = re.compile(rf"\$(?:(?P<dollar>\$)|(?P<plain>{_NAME})|\{{(?P<braced>[^}}]*)(?P<end>\}}?))", re.ASCII)


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("text without a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("text without half a surrogate pair, which is no character")
    return text


class _Parsed:
    """Something written as text in the file and parsed once at load; keeps the text as ``source``."""

    source: str

    @classmethod
    def parse(cls, source: str) -> Self:
        """The parsed form; ValueError with what was expected when it cannot be read."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[[str], Self], tuple[str]]:
        """As the text, since what was made of it may know no other process."""
        return type(self).parse, (self.source,)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - script_runner.shape says why

        return core_schema.no_info_after_validator_function(
            cls.parse,
            core_schema.no_info_after_validator_function(_plain, core_schema.str_schema(strict=True)),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.source),
        )


@dataclass(frozen=True, slots=True)
class Name:
    """A ``$NAME`` inside a template."""

    name: str


@dataclass(frozen=True, slots=True)
class Template(_Parsed):
    """Text with ``$NAME`` or ``${NAME}`` in it; ``$$`` is a dollar sign, any other ``$`` stands for itself."""

    source: str
    parts: tuple[str | Name, ...]

    @classmethod
    def parse(cls, source: str) -> "Template":
        return cls(source, tuple(_template_parts(_plain(source))))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts if isinstance(part, Name))

    @property
    def is_one_name(self) -> bool:
        return len(self.parts) == 1 and isinstance(self.parts[0], Name)


def _template_parts(source: str) -> Iterator[str | Name]:
    end = 0
    for match in _PLACEHOLDER.finditer(source):
        if literal := source[end : match.start()]:
            yield literal
        end = match.end()
        if match["dollar"]:
            yield "$"
        elif match["plain"]:
            yield Name(match["plain"])
        elif match["end"] and re.fullmatch(_NAME, match["braced"], re.ASCII):
            yield Name(match["braced"])
        else:
            raise ValueError(f"${{NAME}} with a name of letters, digits and _ in place of {match[0]!r}")
    if literal := source[end:]:
        yield literal


@dataclass(frozen=True, slots=True)
class Part:
    """One item of ``command``: one argument, or a group that is left out whole when a value in it is absent."""

    templates: tuple[Template, ...]
    is_group: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for template in self.templates for name in template.names)

    @classmethod
    def parse(cls, source: Any) -> "Part":
        if isinstance(source, str):
            return cls((Template.parse(source),), is_group=False)
        if isinstance(source, list) and source and all(isinstance(item, str) for item in source):
            return cls(tuple(Template.parse(item) for item in source), is_group=True)
        raise ValueError('text, or a list of texts such as ["--season", "$SEASON"]')

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - script_runner.shape says why

        text = core_schema.str_schema()
        return core_schema.no_info_plain_validator_function(
            cls.parse,
            json_schema_input_schema=core_schema.union_schema([text, core_schema.list_schema(text, min_length=1)]),
        )


@dataclass(frozen=True, slots=True)
class PathRegex(_Parsed):
    """A regular expression of the linear-time RE2 kind (no look-around, no back-references)."""

    source: str
    compiled: Any

    @classmethod
    def parse(cls, source: str) -> "PathRegex":
        import re2  # noqa: PLC0415 - 1 MB that only these inputs need

        options = re2.Options()
        options.log_errors = False
        try:
            return cls(source, re2.compile(source, options=options))
        except re2.error as error:
            reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
            raise ValueError(f"a regular expression in RE2 syntax ({reason})") from None

    @property
    def groups(self) -> int:
        return int(self.compiled.groups)

    def group(self, text: str, number: int) -> str | None:
        """What group ``number`` matched, trying from the start of ``text``; None if it took no part."""
        match = self.compiled.match(text.encode())  # of a text the library would count the characters besides
        found = match[number] if match else None
        return None if found is None else found.decode(errors="surrogateescape")  # \C takes a part of a character


@dataclass(frozen=True, slots=True)
class JsonPath(_Parsed):
    """A JSONPath (RFC 9535) without the two functions that need a backtracking regex engine."""

    source: str
    compiled: "jsonpath.JSONPath"

    @classmethod
    def parse(cls, source: str) -> "JsonPath":
        import jsonpath  # noqa: PLC0415 - 4 MB and 0.1 s that only these inputs need
        from jsonpath.exceptions import JSONPathError  # noqa: PLC0415 - as above

        # else each match knows its parent and its parent it: cycles that would hold every document for a while
        jsonpath.JSONPathMatch.add_child = _forgotten  # type: ignore[assignment,method-assign]
        # else each match copies the names on the way to it, of which the caller chooses the length
        jsonpath.JSONPathMatch.new_child = _child  # type: ignore[assignment,method-assign]
        environment = jsonpath.JSONPathEnvironment(strict=True)
        for unsafe in ("match", "search"):
            del environment.function_extensions[unsafe]
        try:
            compiled = environment.compile(source)
        except (JSONPathError, ValueError, RecursionError) as error:
            reason = error.args[0]  # str() of the library's errors fails for an empty path
            raise ValueError(f"a JSONPath by RFC 9535, such as $.address.city ({reason})") from None
        if not isinstance(compiled, jsonpath.JSONPath):
            raise ValueError("one JSONPath by RFC 9535, such as $.address.city")  # noqa: TRY004 - pydantic's way
        return cls(source, compiled)

    @property
    def steps(self) -> tuple[str | int, ...] | None:
        """The member names and indexes on the way, if the path can match one place only; else None."""
        if not self.compiled.singular_query():
            return None
        selectors = (selector for segment in self.compiled.segments for selector in segment.selectors)
        return tuple(getattr(selector, "name", getattr(selector, "index", 0)) for selector in selectors)

    def first(self, document: Any) -> Any:
        """The value of the first match, None if there is none."""
        if isinstance(document, str):  # the library would parse a text once more
            return document if not self.compiled.segments else None
        match = self.compiled.match(document)
        return None if match is None else match.obj


def _forgotten(*_matches: object) -> None:
    """Nobody asks a match for its children."""


def _child(match: "jsonpath.JSONPathMatch", found: object, _key: int | str) -> "jsonpath.JSONPathMatch":
    """A match below another one; nobody asks for its path."""
    return type(match)(
        filter_context=match.filter_context(), obj=found, parent=match, path="", parts=(), root=match.root
    )


@dataclass(frozen=True, slots=True)
class Glob(_Parsed):
    """A file pattern relative to the run folder: ``*``, ``?``, ``[…]``, and ``**`` for any depth."""

    source: str
    components: tuple[str, ...]

    @classmethod
    def parse(cls, source: str) -> "Glob":
        components = tuple(part for part in source.split("/") if part != ".")
        if not components or ".." in components or "" in components:
            raise ValueError("a file pattern inside the run folder, such as *.pdf or plots/**/*.png")
        return cls(source, components)

    def matches(self, relative: str) -> bool:
        """Whether the pattern matches this path, relative to the run folder, with ``/`` between its parts."""
        return _components_match(tuple(relative.split("/")), self.components)


def _components_match(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Goes all ways through the patterns at once: no depth and no number of ``**`` is too much."""
    reached = _past_stars({0}, patterns)
    for part in parts:
        taken = [number for number in reached if number < len(patterns) and _one_matches(part, patterns[number])]
        after = {number if patterns[number] == "**" else number + 1 for number in taken}
        reached = _past_stars(after, patterns)
    return len(patterns) in reached


def _past_stars(reached: set[int], patterns: tuple[str, ...]) -> set[int]:
    """The places reached, and those behind each ``**`` there, which may stand for nothing."""
    for number, pattern in enumerate(patterns):
        if pattern == "**" and number in reached:
            reached.add(number + 1)
    return reached


def _one_matches(part: str, pattern: str) -> bool:
    if part.startswith(".") and not pattern.startswith("."):
        return False
    return fnmatch.fnmatchcase(part, pattern)


def _variable_name(name: str) -> str:
    if not re.fullmatch(_NAME, name, re.ASCII):
        raise ValueError("a name of letters, digits and _ that does not begin with a digit")
    if name in RESERVED_NAMES:
        raise ValueError(f"another name: {name} is reserved")
    return name


def _input_name(name: str) -> str:
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _DANGEROUS_NAMES):
        raise ValueError(f"another name: {name} would change how programs are found or loaded")
    return name


def _relative_file(path: str) -> str:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError("the path of a file inside the run folder")
    return path


def _json_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, bool | int | float) else value


def _from_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _all_or_list(value: Any) -> Any:
    if value is not True and not isinstance(value, list | tuple):
        raise ValueError("true, or a list of patterns of names")
    return ("*",) if value is True else tuple(value)


PlainText = Annotated[str, Checked(_plain)]
VariableName = Annotated[str, Checked(_variable_name)]
InputName = Annotated[VariableName, Checked(_input_name)]
DefaultText = Annotated[PlainText, Prepared(_json_text, takes=str | int | float | bool)]
Seconds = Annotated[float, Limits(gt=0)]
Count = Annotated[int, Limits(ge=1)]
AsTuple = Prepared(_from_list)


@dataclass(frozen=True, kw_only=True)
class _Input(Shape):
    """What every input says, wherever its value comes from."""

    env_var_name: InputName
    default: DefaultText | None = None
    required: Annotated[bool | None, Said("default: true if the command uses it outside a group")] = None
    allow_leading_dash: bool = False
    description: PlainText | None = None
    example: DefaultText | None = None


@dataclass(frozen=True, kw_only=True)
class PathInput(_Input):
    """A value from the path after ``/task/``."""

    path_regex: PathRegex
    path_regex_match_group: Annotated[int, Limits(ge=0)] | None = None

    @property
    def group(self) -> int:
        if self.path_regex_match_group is not None:
            return self.path_regex_match_group
        return 1 if self.path_regex.groups else 0


@dataclass(frozen=True, kw_only=True)
class QueryInput(_Input):
    """A value from the query string."""

    query_var_name: PlainText
    many: bool = False


@dataclass(frozen=True, kw_only=True)
class BodyInput(_Input):
    """A value from the JSON body."""

    body_jsonpath: JsonPath


AnyInput = PathInput | QueryInput | BodyInput


@dataclass(frozen=True, kw_only=True)
class Inputs(Shape):
    """All values a request may carry."""

    path_args: Annotated[tuple[PathInput, ...], AsTuple] = ()
    query_args: Annotated[tuple[QueryInput, ...], AsTuple] = ()
    body_args: Annotated[tuple[BodyInput, ...], AsTuple] = ()

    @property
    def all(self) -> tuple[AnyInput, ...]:
        return (*self.path_args, *self.query_args, *self.body_args)


@dataclass(frozen=True, kw_only=True)
class Column(Shape):
    """One column of the answer and where it comes from."""

    output_name: PlainText
    input_name: PlainText
    skip_list: Annotated[
        Annotated[tuple[PlainText, ...], AsTuple] | None,
        Said("a row is left out when its value is exactly one of these"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ResultsSpec(Shape):
    """Where the rows come from and how they are read."""

    kind: Literal["file", "stdout", "stderr"]
    format: Literal["csv", "json"]
    input_path: Annotated[PlainText, Checked(_relative_file)] | None = None
    remapped_columns: Annotated[tuple[Column, ...], AsTuple] | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs(Shape):
    """What is kept of a run."""

    results: ResultsSpec | None = None
    attachments: Annotated[tuple[Glob, ...], AsTuple] = ()


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec(Shape):
    """What the script's environment holds besides its inputs."""

    set: dict[VariableName, PlainText] = field(default_factory=dict)
    inherit: Annotated[tuple[PlainText, ...], Prepared(_all_or_list, takes=Literal[True] | tuple[str, ...])] = (
        "*",
    )


@dataclass(frozen=True, kw_only=True)
class Kept(Shape):
    """How long, and how many at most, finished tasks of one state are kept."""

    seconds: Seconds | None = None
    count: Annotated[int, Limits(ge=0)] | None = None


@dataclass(frozen=True, kw_only=True)
class Retention(Shape):
    """What is kept of tasks that ended in each of the final states."""

    succeeded: Kept = Kept()
    failed: Kept = Kept()
    timed_out: Kept = Kept()
    cancelled: Kept = Kept()
    lost: Kept = Kept()

    @property
    def all(self) -> dict[State, Kept]:
        return {State(kept.name): getattr(self, kept.name) for kept in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Spec(Shape):
    """One script behind the API."""

    title: PlainText | None = None
    description: PlainText | None = None
    command: Annotated[tuple[Part, ...], Limits(min_length=1), AsTuple]
    command_rundir: PlainText | None = None
    command_rundir_base: PlainText | None = None
    debug: bool | None = None
    inputs: Inputs = Inputs()
    outputs: Outputs = Outputs()
    timeout_seconds: Seconds | None = None
    grace_seconds: Annotated[float, Limits(ge=0)] = 10.0
    on_worker_lost: Literal["fail", "retry"] = "fail"
    max_attempts: Count = 3
    retention_seconds: Seconds = 86_400.0
    retention: Retention = Retention()
    max_queued: Count | None = None
    max_queued_per_caller: Count | None = None
    max_running: Count | None = None
    max_running_per_caller: Count | None = None
    max_priority: Annotated[int, Limits(ge=LEAST_PRIORITY, le=MOST_PRIORITY)] = 0
    expires_in_seconds: Seconds | None = None
    max_output_bytes: Count = 1 << 30
    environment: EnvironmentSpec = EnvironmentSpec()

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells this configuration from another one: 12 hex digits of a SHA-256; defaults do not count."""
        told = adapter(Spec).dump_python(self, mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def attempts(self) -> int:
        """How often a task of this script may be started."""
        return self.max_attempts if self.on_worker_lost == "retry" else 1

    @functools.cached_property
    def kept_counts(self) -> dict[State, int]:
        """How many finished tasks are kept at most, of the states that have a limit."""
        return {state: kept.count for state, kept in self.retention.all.items() if kept.count is not None}

    @functools.cached_property
    def kept_seconds(self) -> dict[State, float]:
        """How long finished tasks are kept, of the states that have a time of their own."""
        return {state: kept.seconds for state, kept in self.retention.all.items() if kept.seconds is not None}

    @functools.cached_property
    def arguments(self) -> tuple[tuple[str, ...], ...]:
        """The names in each argument of the command."""
        return tuple(template.names for part in self.command for template in part.templates)

    @functools.cached_property
    def needed(self) -> frozenset[str]:
        """The names without which there is no command."""
        return frozenset(name for part in self.command if not part.is_group for name in part.names)

    def is_required(self, wanted: AnyInput) -> bool:
        """Whether a request without this value is refused."""
        if wanted.default is not None:
            return False
        return wanted.env_var_name in self.needed if wanted.required is None else wanted.required
