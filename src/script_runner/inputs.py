"""Turns a request into the script's arguments, or says which of its parts is wrong. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, assert_never

import msgspec

from script_runner.errors import Code, Error, Problem
from script_runner.spec import RESERVED_NAMES, AnyInput, BodyInput, PathInput, QueryInput, Spec, Template

Arguments = Mapping[str, str | tuple[str, ...]]

MAX_VALUE_BYTES = 120_000
"""One input, and all inputs in one argument. Linux takes 131,072 bytes in an argument or a variable
(MAX_ARG_STRLEN, execve(2)); the rest is for the text around."""

MAX_VALUES_BYTES = 1_000_000
"""All inputs, each counted as often as the script gets it. Linux takes 2 MiB of arguments and environment."""

BYTES_AROUND_A_VALUE = 9
"""What Linux counts for each besides its text: a pointer and the NUL at its end."""


class Request(msgspec.Struct, frozen=True):
    """What a caller sent, decoded: the path after ``/task/``, the query in order, the body."""

    path: str = ""
    query: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    content_type: str | None = None


def bind(spec: Spec, request: Request) -> Arguments:
    """The value of each input by its name, absent ones left out.

    Raises Error(INVALID_INPUT) with one problem for each wrong input, or Error(UNSUPPORTED_MEDIA_TYPE).
    """
    if not _is_unicode(request.path):
        raise Error(
            Code.INVALID_INPUT, "The path is not Unicode text.", (Problem("path", "", "is not Unicode text"),)
        )
    document = _document(request) if spec.inputs.body_args else None
    arguments: dict[str, str | tuple[str, ...]] = {}
    problems: list[Problem] = []
    for wanted in spec.inputs.all:
        value = _value(wanted, request, document)
        if value is None and wanted.default is not None:
            value = (wanted.default,) if _is_many(wanted) else wanted.default
        if value is not None:
            arguments[wanted.env_var_name] = value
        if problem := _problem(value, is_required=spec.is_required(wanted)):
            problems.append(_at(wanted, problem))
    problems += _disguised_options(spec, arguments)
    if problems:
        raise Error(Code.INVALID_INPUT, "; ".join(_sentence(problem) for problem in problems), tuple(problems))
    _refuse_too_much(spec, arguments)
    return arguments


def place(wanted: AnyInput) -> tuple[str, str]:
    """Where an input is looked for and what it is called there."""
    match wanted:
        case PathInput():
            return "path", wanted.path_regex.source
        case QueryInput():
            return "query", wanted.query_var_name
        case BodyInput():
            return "body", wanted.body_jsonpath.source
        case _:
            assert_never(wanted)


def _document(request: Request) -> Any:
    """The parsed JSON body; None without one."""
    if not request.body:
        return None
    media_type = (request.content_type or "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Error(
            Code.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be JSON (Content-Type: application/json); it came as {media_type[:100]}.",
        )
    try:
        return msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        message = f"The body is not JSON: {reason}."
        raise Error(Code.INVALID_INPUT, message, (Problem("body", "$", reason),)) from None


def _value(wanted: AnyInput, request: Request, document: Any) -> str | tuple[str, ...] | None:
    match wanted:
        case PathInput():
            return wanted.path_regex.group(request.path, wanted.group)
        case QueryInput():
            values = tuple(value for name, value in request.query if name == wanted.query_var_name)
            return (values or None) if wanted.many else next(iter(values), None)
        case BodyInput():
            try:
                return _text(wanted.body_jsonpath.first(document))
            except RecursionError:
                problem = Problem("body", "$", "it is nested too deeply")
                raise Error(Code.INVALID_INPUT, "The body is nested too deeply.", (problem,)) from None
        case _:
            assert_never(wanted)


def _text(value: Any) -> str | None:
    """Text as it is, null as absent, all else as compact JSON."""
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _is_many(wanted: AnyInput) -> bool:
    return isinstance(wanted, QueryInput) and wanted.many


def _problem(value: str | tuple[str, ...] | None, *, is_required: bool) -> str | None:
    if value is None:
        return "is required and was not given" if is_required else None
    text = "\n".join(_texts(value))
    if "\0" in text:
        return "holds a NUL character, which no argument can carry"
    if not _is_unicode(text):
        return "holds half of a surrogate pair, which is not a character"
    if len(text.encode()) > MAX_VALUE_BYTES:
        return f"is longer than {MAX_VALUE_BYTES:,} bytes"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _disguised_options(spec: Spec, arguments: Arguments) -> Iterator[Problem]:
    """A value that would begin an argument with ``-``, and so could be read as an option."""
    if not any(text.startswith("-") for value in arguments.values() for text in _texts(value)):
        return
    values = {**spec.environment.set, **arguments}
    leading = {name for part in spec.command for template in part.templates for name in _leading(template, values)}
    for wanted in spec.inputs.all:
        texts = _texts(arguments.get(wanted.env_var_name, ()))
        # what the configuration itself gives as default is no disguise
        is_dashed = any(text.startswith("-") and text != wanted.default for text in texts)
        if is_dashed and wanted.env_var_name in leading and not wanted.allow_leading_dash:
            yield _at(wanted, "begins with - and could be taken for an option")


def _leading(template: Template, values: Arguments) -> Iterator[str]:
    """The names whose value may begin the argument: those before the first text that is not empty."""
    for part in template.parts:
        if isinstance(part, str) or part.name in RESERVED_NAMES:
            return
        yield part.name
        if any(_texts(values.get(part.name, ()))):
            return


def _texts(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _refuse_too_much(spec: Spec, arguments: Arguments) -> None:
    lengths = {name: sum(len(text.encode()) for text in _texts(value)) for name, value in arguments.items()}
    if any(sum(lengths.get(name, 0) for name in names) > MAX_VALUE_BYTES for names in spec.arguments):
        raise _too_long(f"The values that make one argument are longer than {MAX_VALUE_BYTES:,} bytes together.")
    uses = [*lengths, *(name for names in spec.arguments for name in names if name in lengths)]
    if (
        sum(lengths[name] + BYTES_AROUND_A_VALUE * len(_texts(arguments[name])) for name in uses)
        > MAX_VALUES_BYTES
    ):
        raise _too_long(f"The values are longer than {MAX_VALUES_BYTES:,} bytes together.")


def _too_long(message: str) -> Error:
    return Error(Code.INVALID_INPUT, message, (Problem("request", "values", message),))


def _at(wanted: AnyInput, problem: str) -> Problem:
    where, name = place(wanted)
    return Problem(where, name, f"{wanted.env_var_name} {problem}")


def _sentence(problem: Problem) -> str:
    return f"{problem.problem} ({problem.where}: {problem.name})"
