"""The OpenAPI 3.1 description of one script's API, made from its configuration. Pure."""

import base64
import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from script_runner import inputs
from script_runner.errors import Code, Error, Problem
from script_runner.ports import Figures
from script_runner.service import MAX_LOG_OFFSET, MAX_PAGE, Readiness
from script_runner.spec import LEAST_PRIORITY, AnyInput, BodyInput, PathInput, ResultsSpec, Spec
from script_runner.streams import STREAMS
from script_runner.task import State
from script_runner.web import documents, problems

ASSETS: Mapping[str, str] = {
    "start.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""Media type of each file that ``page/docs.html`` loads as ``docs/NAME``."""

JsonObject = dict[str, Any]

_TAGS = {
    "script": "Run the script.",
    "tasks": "What became of a run: state, results, files, logs.",
    "original names": "The same under the names that clients of the original script-runner use.",
    "server": "The server itself.",
}
_REFUSALS: Mapping[Code, str] = {
    Code.INVALID_INPUT: "A value is missing or wrong, such as one that begins with `-`, as an option does;"
    " `errors` says which.",
    Code.UNAUTHENTICATED: "There is no token, or not a valid one.",
    Code.NOT_FOUND: "There is no such thing, or it is not yours.",
    Code.CONFLICT: "The task is not in a state for this.",
    Code.KEY_REUSED: "This `Idempotency-Key` was used for another request.",
    Code.TOO_LARGE: "The body is too large.",
    Code.UNSUPPORTED_MEDIA_TYPE: "The body is not JSON.",
    Code.RANGE_NOT_SATISFIABLE: "The range begins behind the end of the file.",
    Code.TOO_MANY_QUEUED: "You have as many tasks waiting as one caller may.",
    Code.UNAVAILABLE: "Something that the server needs is away for the moment, or the queue is full; try again.",
}
_ANY_VALUE = ("string", "number", "boolean", "object", "array")

_TASK_ID = "0b6f7c1e-5d0a-4a36-9a4e-2f3c1d0e8b11"
_FILE_NAME = "report.pdf"
_FILE = b"%PDF-1.5\n"
_LOG = "reading\nwriting\n"
_CREATED, _STARTED, _FINISHED = "2026-01-31T09:30:00.000Z", "2026-01-31T09:30:00.250Z", "2026-01-31T09:31:12.500Z"

_WAITING = {"position": 1, "estimated_start_at": _CREATED}

_DRAWN_STEPS = 32
_DRAWN_ITEMS = 10
"""A JSONPath of more steps, or into a list beyond these items, is told in words: a schema would only be long."""

_PORTABLE_REGEX = re.compile(
    r"""(?: [^\\\[\](){}]
          | \\ (?: [dDwWsSbBnrtfv] | [$^\\.*+?()\[\]{}|/] | x[0-9A-Fa-f]{2} )
          | \[ \^? (?: [^\\\[\]] | \\ (?: [dDwWsSnrtfv] | [$^\\.*+?()\[\]{}|/-] | x[0-9A-Fa-f]{2} ) )+ \]
          | \( (?: \?: | (?!\?) ) | \)
          | \{ [0-9]+ (?: , [0-9]* )? \} )*""",
    re.VERBOSE,
)
"""What RE2 and ECMA-262, the language of ``pattern`` in JSON Schema, read alike."""


def document(
    spec: Spec,
    *,
    version: str,
    is_authenticated: bool,
    max_body_bytes: int,
    redirects_downloads: bool = False,
) -> JsonObject:
    """The description by OpenAPI 3.1.0, ready for JSON.

    Of the script it tells what callers send and get: nothing of its command, its files or the server's folders.
    """
    writer = _Writer(spec, is_authenticated, max_body_bytes, redirects_downloads)
    info = {"title": spec.title or "script-runner", "version": version}
    components = {"schemas": _schemas(spec), "responses": writer.refusals()}
    described: JsonObject = {
        "openapi": "3.1.0",
        "info": info | ({"description": spec.description} if spec.description else {}),
        "tags": [{"name": name, "description": sentence} for name, sentence in _TAGS.items()],
        "paths": writer.paths(),
        "components": components,
    }
    if is_authenticated:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
        described["security"] = [{"bearer": []}]
    return described


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the operations, one method each."""

    spec: Spec
    is_authenticated: bool
    max_body_bytes: int
    redirects_downloads: bool

    @property
    def id_name(self) -> str:
        """What the id is called in ``/task/{…}``: for OpenAPI ``{id}`` and ``{path}`` there are one path."""
        return "path" if self.spec.inputs.path_args else "id"

    def paths(self) -> JsonObject:
        one_task, one_script = f"/task/{{{self.id_name}}}", f"/script/{{{self.id_name}}}"
        paths: dict[str, JsonObject] = {"/task": {}, one_task: {}, "/script": {}, one_script: {}}
        if self.spec.inputs.path_args:
            paths[one_task]["post"] = self.submit("submitTask", with_path=True)
            paths[one_script]["post"] = self.submit("submitScript", with_path=True)
        if not any(self.spec.is_required(wanted) for wanted in self.spec.inputs.path_args):
            name = "WithoutPath" if self.spec.inputs.path_args else ""
            paths["/task"]["post"] = self.submit(f"submitTask{name}", with_path=False)
            paths["/script"]["post"] = self.submit(f"submitScript{name}", with_path=False)
        paths["/task"]["get"] = self.list()
        paths[one_task] |= {"get": self.get("getTask"), "delete": self.remove()}
        paths[one_script]["get"] = self.get("getScript")
        paths["/task/{id}/cancel"] = {"post": self.cancel()}
        if self.spec.outputs.results:
            paths["/task/{id}/results"] = {"get": self.results(self.spec.outputs.results)}
        paths["/task/{id}/attachments/{name}"] = {"get": self.attachment()}
        paths["/task/{id}/logs"] = {"get": self.logs()}
        paths["/task/{id}/events"] = {"get": self.events()}
        paths["/health"] = {"get": self.health()}
        paths["/ready"] = {"get": self.ready()}
        paths["/metrics"] = {"get": self.metrics()}
        paths["/openapi.json"] = {"get": self.openapi()}
        paths["/docs"] = {"get": self.docs()}
        return {path: operations for path, operations in paths.items() if operations}

    # Tasks

    def submit(self, name: str, *, with_path: bool) -> JsonObject:
        wanted = self.spec.inputs
        is_original = name.startswith("submitScript")
        refusals = [Code.INVALID_INPUT, Code.KEY_REUSED, Code.TOO_LARGE, Code.UNAVAILABLE]
        refusals += [Code.TOO_MANY_QUEUED] if self.spec.max_queued_per_caller else []
        refusals += [Code.UNSUPPORTED_MEDIA_TYPE] if wanted.body_args else []
        parameters = [self.path_parameter()] if with_path else []
        queued: JsonObject = {
            "description": "The task is queued, and will not be lost.",
            "headers": {"Location": _header("Where the task is.", f"/task/{_TASK_ID}")},
            "content": _json(_reference("Task"), _summary_example(self.spec, State.QUEUED) | _WAITING),
            "links": {
                "task": {"operationId": "getTask", "parameters": {self.id_name: "$response.body#/id"}},
                "cancel": {"operationId": "cancelTask", "parameters": {"id": "$response.body#/id"}},
            },
        }
        ended = queued | {
            "description": "With `Prefer: wait`: the task, which has ended in time.",
            "headers": queued["headers"] | {"Preference-Applied": _header("How long it would wait.", "wait=20")},
            "content": self._task_content(State.SUCCEEDED, State.FAILED),
        }
        either = queued | {
            "description": "The task is queued, and will not be lost; with `Prefer: wait` it may have ended.",
            "content": self._task_content(State.QUEUED, State.SUCCEEDED),
        }
        operation = self._operation(
            name,
            "original names" if is_original else "script",
            "Run the script (original name; answers 200)" if is_original else "Run the script",
            {"200": either} if is_original else {"200": ended, "202": queued},
            refusals=refusals,
            parameters=[*parameters, *self.query_parameters(), *_queue_parameters(self.spec), _PREFER],
            description="Queues a task and answers at once, or with `Prefer: wait` when it has ended. Ask for the"
            " task until its `status` is no longer `not-ready`.",
        )
        return operation | ({"requestBody": self.request_body()} if wanted.body_args else {})

    def list(self) -> JsonObject:
        states = {"type": "array", "items": {"type": "string", "enum": list(State)}}
        limit = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 50}
        page = {"tasks": [_summary_example(self.spec, State.SUCCEEDED)], "next": None}
        return self._operation(
            "listTasks",
            "tasks",
            "Your tasks, newest first",
            {"200": _answer("A page of tasks.", _json(_reference("TaskList"), page))},
            refusals=[Code.INVALID_INPUT, Code.UNAVAILABLE],
            parameters=[
                _query("state", "Only tasks in one of these states. Repeat it for several.", states),
                _query("cursor", "The `next` of the page before.", {"type": "string"}),
                _query("limit", "How many at most.", limit),
            ],
        )

    def get(self, name: str) -> JsonObject:
        is_original = name == "getScript"
        ways = {"type": "string", "enum": ["inline", "links", "none"], "default": "inline"}
        content = self._task_content(State.SUCCEEDED, State.FAILED, State.QUEUED)
        return self._operation(
            name,
            "original names" if is_original else "tasks",
            "A task (original name)" if is_original else "A task: its state, results and files",
            {"200": _answer("The task; one that failed, too.", content)},
            refusals=[Code.INVALID_INPUT, Code.NOT_FOUND, Code.UNAVAILABLE],
            parameters=[
                _id_parameter(self.id_name),
                _query("attachments", "Files as base64, as links, or left out.", ways),
                _query("wait", "Answer when the task has ended, after so many seconds at the latest.", _SECONDS),
                _PREFER,
            ],
        )

    def cancel(self) -> JsonObject:
        content = _json(_reference("TaskSummary"), _summary_example(self.spec, State.CANCELLED))
        told = _answer("The task is told to stop; one that is over stays as it is.", content)
        return self._operation(
            "cancelTask",
            "tasks",
            "Stop a task",
            {"202": told},
            refusals=[Code.NOT_FOUND, Code.UNAVAILABLE],
            parameters=[_id_parameter("id")],
        )

    def remove(self) -> JsonObject:
        return self._operation(
            "removeTask",
            "tasks",
            "Remove a task that does not run, with its files",
            {"204": {"description": "It is gone."}},
            refusals=[Code.NOT_FOUND, Code.CONFLICT, Code.UNAVAILABLE],
            parameters=[_id_parameter(self.id_name)],
        )

    def results(self, wanted: ResultsSpec) -> JsonObject:
        rows = _results_example(wanted)
        content = _json(_reference("Results"), rows)
        if isinstance(rows, list):
            content["text/csv"] = {"schema": {"type": "string"}, "example": _csv(rows)}
        return self._operation(
            "getResults",
            "tasks",
            "The results of a task that succeeded",
            {"200": _answer("The results.", content)},
            refusals=[Code.INVALID_INPUT, Code.NOT_FOUND, Code.CONFLICT, Code.UNAVAILABLE],
            parameters=[
                _id_parameter("id"),
                _query(
                    "format",
                    "csv needs results that are a list of objects.",
                    {"type": "string", "enum": ["json", "csv"], "default": "json"},
                ),
            ],
        )

    def attachment(self) -> JsonObject:
        headers = {
            "ETag": _header("Names this content.", f'"{_sha256(_FILE)}"'),
            "Accept-Ranges": _header("The unit of ranges.", "bytes"),
        }
        part = headers | {"Content-Range": _header("Which bytes these are.", f"bytes 0-3/{len(_FILE)}")}
        content: JsonObject = {"*/*": {"schema": {}}}
        name = {
            "name": "name",
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            "example": _FILE_NAME,
        }
        location = _header("Where, for some minutes.", "https://store.example.org/")
        elsewhere = _answer("The file is large: fetch it from the store itself.", {}, {"Location": location})
        return self._operation(
            "getAttachment",
            "tasks",
            "A file that a task has left",
            {
                "200": _answer("The file.", content, headers),
                "206": _answer("The part of the file that `Range` asks for.", content, part),
                "304": {"description": "The file is still what `If-None-Match` names.", "headers": headers},
            }
            | ({"307": elsewhere} if self.redirects_downloads else {}),
            refusals=[Code.NOT_FOUND, Code.RANGE_NOT_SATISFIABLE, Code.UNAVAILABLE],
            parameters=[
                _id_parameter("id"),
                name | {"description": "The file's name. It may hold slashes."},
                _header_parameter("Range", "The bytes wanted: one range, such as `bytes=0-3` (RFC 9110)."),
                _header_parameter("If-Range", "An ETag: the range is wanted of this content only."),
                _header_parameter("If-None-Match", "An ETag: the file is wanted if it is another."),
            ],
        )

    def logs(self) -> JsonObject:
        headers = {
            "X-Log-Offset": _header("Where in the stream this begins, in bytes.", 0),
            "X-Log-Next-Offset": _header("The `offset` to go on from.", len(_LOG)),
        }
        return self._operation(
            "getLogs",
            "tasks",
            "What the script has said so far",
            {
                "200": _answer(
                    "The stream from there on.", {"text/plain": _example({"type": "string"}, _LOG)}, headers
                )
            },
            refusals=[Code.INVALID_INPUT, Code.NOT_FOUND, Code.UNAVAILABLE],
            parameters=[
                _id_parameter("id"),
                _query("stream", "Which one.", {"type": "string", "enum": list(STREAMS), "default": STREAMS[0]}),
                _query(
                    "offset",
                    "From which byte on.",
                    {"type": "integer", "minimum": 0, "maximum": MAX_LOG_OFFSET, "default": 0},
                ),
            ],
            description="To follow a run, ask again with the `X-Log-Next-Offset` of the last answer as `offset`."
            " Of a long stream only the end is kept while the script runs.",
        )

    def events(self) -> JsonObject:
        place = {"type": "string", "pattern": "^[0-9]+-(new|queued|running|end)-[0-9]+-[0-9]+$"}
        kinds = {"type": "string", "enum": ["live", "whole"], "default": "live"}
        content = {"text/event-stream": _example({"type": "string"}, _events_example(self.spec))}
        return self._operation(
            "getEvents",
            "tasks",
            "What happens to a task, as it happens",
            {
                "200": _answer("Server-Sent Events, until the task has ended.", content),
                "204": {"description": "`Last-Event-ID` is the end: there is nothing more."},
            },
            refusals=[Code.INVALID_INPUT, Code.NOT_FOUND, Code.UNAVAILABLE],
            parameters=[
                _id_parameter("id"),
                _header_parameter(
                    "Last-Event-ID", "The `id` of the last event that came: what follows it is told."
                )
                | {"schema": place},
                _query(
                    "logs",
                    "`live` leaves out what is no longer kept while the script runs; `whole` tells it at the end.",
                    kinds,
                ),
                _query("wait", "End the stream after so many seconds.", _SECONDS),
            ],
            description="`state` and, once and last, `end` carry the task in short; `stdout` and `stderr` carry"
            " `text` from byte `offset` to `next`. An EventSource comes again by itself, at any server.",
        )

    # The server itself

    def health(self) -> JsonObject:
        schema = _object({"version": {"type": "string"}, "server": {"const": True}})
        lives = _answer("The process lives.", _json(schema, {"version": "1.0.0", "server": True}))
        operation = self._operation(
            "getHealth", "server", "Whether the server lives", {"200": lives}, is_open=True
        )
        return operation | ({"security": []} if self.is_authenticated else {})

    def ready(self) -> JsonObject:
        count: JsonObject = {"type": "integer", "minimum": 0}
        counts: JsonObject = {"type": "object", "additionalProperties": count}
        waiting = dict.fromkeys(("queued", "running", "scheduled", "backlog"), count)
        ended = {state.value: count for state in State if state.is_final}
        schema = _object(
            {
                "ready": {"const": True},
                "workers": count,
                "slots": count,
                "queue": _object({**waiting, "oldest_seconds": {"type": "number", "minimum": 0}}),
                "ended_in_the_last_hour": _object(ended),
                "configuration": {"type": "string", "description": "What this server has loaded."},
                "configurations": {
                    **counts,
                    "description": "How many of the workers have loaded which configuration.",
                },
                "versions": _object(
                    {"server": {"type": "string"}, "store": {"type": "string"}, "workers": counts}
                ),
                "warnings": {"type": "array", "items": {"type": "string"}},
            }
        )
        lately = {**dict.fromkeys((state for state in State if state.is_final), 0), State.SUCCEEDED: 120}
        figures = Figures(3, 1, 8, 11, 4.2, workers=2, slots=8, lately=lately, versions={"1.0.0": 2})
        found = Readiness(figures, {self.spec.fingerprint: 2}, "Redis 7.0.15", ())
        example = documents.readiness(self.spec, found, version="1.0.0")
        is_ready = _answer("Tasks are taken. `workers` run them.", _json(schema, example))
        return self._operation(
            "getReadiness", "server", "Whether tasks can be taken", {"200": is_ready}, refusals=[Code.UNAVAILABLE]
        )

    def metrics(self) -> JsonObject:
        page = _answer(
            "Counts of this server, and figures of the queue.", {"text/plain": {"schema": {"type": "string"}}}
        )
        return self._operation("getMetrics", "server", "Counts for Prometheus", {"200": page})

    def openapi(self) -> JsonObject:
        described = _answer("This description.", {"application/json": {"schema": {"type": "object"}}})
        return self._operation("getOpenapi", "server", "This description", {"200": described})

    def docs(self) -> JsonObject:
        page = _answer("A page.", {"text/html": {"schema": {"type": "string"}}})
        return self._operation("getDocs", "server", "This description as a page to try it", {"200": page})

    # Parts of operations

    def refusals(self) -> JsonObject:
        """The answers that say no, each with the very document that the server would send."""
        codes = [code for code in _REFUSALS if code is not Code.UNAUTHENTICATED or self.is_authenticated]
        return {code.value: self._refusal(code) for code in codes}

    def path_parameter(self) -> JsonObject:
        wanted = self.spec.inputs.path_args
        lines = [
            f"{self._use(one)} It is group {one.group} of {_code(one.path_regex.source)}, matched from the start."
            for one in wanted
        ]
        text = "The whole rest of the path, decoded. It may hold slashes, as they are or as `%2F`."
        sources = [one.path_regex.source for one in wanted if self.spec.is_required(one)]
        patterns = [{"pattern": f"^(?:{source})"} for source in sources if _PORTABLE_REGEX.fullmatch(source)]
        schema: JsonObject = {"type": "string"}
        schema |= patterns[0] if len(patterns) == 1 else {"allOf": patterns} if patterns else {}
        example = _path_example(wanted)
        return {
            "name": self.id_name,
            "in": "path",
            "required": True,
            "description": "\n\n".join([text, *lines]),
            "schema": schema,
        } | ({} if example is None else {"example": example})

    def query_parameters(self) -> Sequence[JsonObject]:
        """One for each name; inputs may share one."""
        names = dict.fromkeys(wanted.query_var_name for wanted in self.spec.inputs.query_args)
        return [self._query_parameter(name) for name in names]

    def request_body(self) -> JsonObject:
        wanted = self.spec.inputs.body_args
        leaves = [
            _Leaf(one.body_jsonpath.steps or (), one, self.spec.is_required(one), self._use(one)) for one in wanted
        ]
        drawn = [leaf for leaf in leaves if _is_drawn(leaf.wanted)]
        told = [leaf for leaf in leaves if not _is_drawn(leaf.wanted)]
        content: JsonObject = {"schema": _body_schema(drawn)}
        if drawn and not any(leaf.is_required for leaf in told):
            content["example"] = _body_example(drawn)
        lines = [f"{leaf.use} It is what {_code(leaf.wanted.body_jsonpath.source)} finds first." for leaf in told]
        return {
            "description": "\n\n".join([f"At most {self.max_body_bytes:,} bytes.", *lines]),
            "required": any(leaf.is_required for leaf in leaves),
            "content": {"application/json": content},
        }

    def _task_content(self, *states: State) -> JsonObject:
        examples = {state.value: {"value": self.task_example(state)} for state in states}
        return {"application/json": {"schema": _reference("Task"), "examples": examples}}

    def task_example(self, state: State) -> JsonObject:
        task = _summary_example(self.spec, state)
        if not state.is_final:
            return task | _WAITING
        keeps_files = bool(self.spec.outputs.attachments)
        if state is State.SUCCEEDED:
            task["results"] = _results_example(self.spec.outputs.results)
        task["attachments"] = {_FILE_NAME: base64.b64encode(_FILE).decode()} if keeps_files else {}
        task["files"] = [_file_example()] if keeps_files else []
        if state is State.FAILED:
            task["error"] = "The script ended with exit code 1.\nno such sample"
        return task

    def _query_parameter(self, name: str) -> JsonObject:
        wanted = [one for one in self.spec.inputs.query_args if one.query_var_name == name]
        is_many = any(one.many for one in wanted)
        value = {"type": "string"} | _default(wanted[0])
        example = _value_example(wanted[0])
        schema: JsonObject = {"type": "array", "items": {"type": "string"}} if is_many else value
        if is_many and "default" in value:
            schema["default"] = [value["default"]]
        times = "Repeat it for several values." if is_many else ""
        return {
            "name": name,
            "in": "query",
            "required": any(self.spec.is_required(one) for one in wanted),
            "description": "\n\n".join(f"{self._use(one)} {times}".strip() for one in wanted),
            "schema": schema,
            "example": [example] if is_many else example,
        }

    def _use(self, wanted: AnyInput) -> str:
        """What an input is, and the name it has for the script."""
        absent = "" if self.spec.is_required(wanted) or wanted.default is not None else " May be left out."
        said = f"{wanted.description.strip()} " if wanted.description else ""
        return f"{said}Goes to the script as `{wanted.env_var_name}`.{absent}"

    def _operation(
        self,
        name: str,
        tag: str,
        summary: str,
        answers: JsonObject,
        *,
        refusals: Sequence[Code] = (),
        parameters: Sequence[JsonObject] = (),
        description: str = "",
        is_open: bool = False,
    ) -> JsonObject:
        """An operation; one that asks for a token may also be refused for it, or fail to have it checked."""
        checks = (Code.UNAUTHENTICATED, Code.UNAVAILABLE) if self.is_authenticated and not is_open else ()
        codes = {str(problems.STATUS[code].value): code for code in (*refusals, *checks)}
        no = {status: {"$ref": f"#/components/responses/{code}"} for status, code in sorted(codes.items())}
        operation: JsonObject = {"operationId": name, "tags": [tag], "summary": summary}
        operation |= {"description": description} if description else {}
        operation |= {"parameters": list(parameters)} if parameters else {}
        return operation | {"responses": answers | no}

    def _refusal(self, code: Code) -> JsonObject:
        sentence = _REFUSALS[code]
        bad = (self._example_problem(),) if code is Code.INVALID_INPUT else ()
        response = problems.response(Error(code, bad[0].problem if bad else sentence, bad))
        retry = 30 if code is Code.TOO_MANY_QUEUED else None
        wait = problems.retry_after(Error(code, sentence, retry_after=retry))
        headers = {name: _header("By RFC 9110.", value) for name, value in wait.items()}
        if code is Code.UNAUTHENTICATED:
            headers["WWW-Authenticate"] = _header("What is asked for.", "Bearer")
        if code is Code.RANGE_NOT_SATISFIABLE:
            headers["Content-Range"] = _header("How long the file is.", f"bytes */{len(_FILE)}")
        content = _example(_reference("Problem"), msgspec.json.decode(response.body))
        return {"description": sentence, "content": {"application/problem+json": content}} | (
            {"headers": headers} if headers else {}
        )

    def _example_problem(self) -> Problem:
        for wanted in self.spec.inputs.all:
            where, name = inputs.place(wanted)
            return Problem(
                where, name, f"{wanted.env_var_name} holds a NUL character, which no argument can carry"
            )
        return Problem("query", "limit", f"must be a whole number from 1 to {MAX_PAGE}")


# The body


@dataclass(frozen=True, slots=True)
class _Leaf:
    """An input of the body, and the ``steps`` that lead to it from here."""

    steps: tuple[str | int, ...]
    wanted: BodyInput
    is_required: bool
    use: str


def _is_drawn(wanted: BodyInput) -> bool:
    """Whether a schema shows where the value is; else words do."""
    steps = wanted.body_jsonpath.steps
    if steps is None or len(steps) > _DRAWN_STEPS:
        return False
    return all(isinstance(step, str) or 0 <= step < _DRAWN_ITEMS for step in steps)


def _body_schema(leaves: Sequence[_Leaf]) -> JsonObject:
    """What a document has to be like so that each leaf finds its value in it."""
    here = [leaf for leaf in leaves if not leaf.steps]
    members, items = _members(leaves), _items(leaves)
    is_container = not here or any(leaf.is_required for leaf in leaves if leaf.steps)
    containers = [kind for kind, below in (("object", members), ("array", items)) if below]
    optional = [] if any(leaf.is_required for leaf in here) else ["null"]
    types = containers if is_container else [*_ANY_VALUE, *optional]
    schema: JsonObject = {"type": types[0] if len(types) == 1 else types} if types else {}
    for leaf in here:
        said = [schema["description"]] if "description" in schema else []
        schema |= {"description": "\n\n".join([*said, leaf.use])} | ({} if is_container else _default(leaf.wanted))
    if members:
        schema["properties"] = {name: _body_schema(below) for name, below in members.items()}
        if needed := [name for name, below in members.items() if any(leaf.is_required for leaf in below)]:
            schema["required"] = needed
    if items:
        schema["prefixItems"] = [_body_schema(items.get(number, ())) for number in range(max(items) + 1)]
        if least := [number + 1 for number, below in items.items() if any(leaf.is_required for leaf in below)]:
            schema["minItems"] = max(least)
    return schema


def _body_example(leaves: Sequence[_Leaf]) -> Any:
    """A document in which each leaf finds its example, as far as they can all be had in one."""
    if members := _members(leaves):
        return {name: _body_example(below) for name, below in members.items()}
    if items := _items(leaves):
        return [_body_example(items.get(number, ())) for number in range(max(items) + 1)]
    return _value_example(leaves[0].wanted) if leaves else None


def _members(leaves: Sequence[_Leaf]) -> dict[str, list[_Leaf]]:
    """The leaves below each member, as seen from there."""
    below: dict[str, list[_Leaf]] = {}
    for leaf in leaves:
        if leaf.steps and isinstance(step := leaf.steps[0], str):
            below.setdefault(step, []).append(replace(leaf, steps=leaf.steps[1:]))
    return below


def _items(leaves: Sequence[_Leaf]) -> dict[int, list[_Leaf]]:
    """The leaves below each item of a list, as seen from there."""
    below: dict[int, list[_Leaf]] = {}
    for leaf in leaves:
        if leaf.steps and isinstance(step := leaf.steps[0], int):
            below.setdefault(step, []).append(replace(leaf, steps=leaf.steps[1:]))
    return below


# The headers that speak to the queue


def _queue_parameters(spec: Spec) -> Sequence[JsonObject]:
    priority = {"type": "integer", "minimum": LEAST_PRIORITY, "maximum": spec.max_priority, "default": 0}
    return [
        _header_parameter(
            "Idempotency-Key",
            "The same key and request give the same task, however often it is sent; as long as the task is kept.",
        ),
        _header_parameter("Task-Priority", "Tasks of a higher priority start first.") | {"schema": priority},
        _header_parameter("Task-Not-Before", "The task starts at this time (RFC 3339) or later.")
        | {"schema": {"type": "string", "format": "date-time"}},
        _header_parameter("Task-Expires-In", "How many seconds the task may wait for its start.")
        | {"schema": {"type": "number", "exclusiveMinimum": 0}},
    ]


# Schemas of the answers


def _schemas(spec: Spec) -> JsonObject:
    text: JsonObject = {"type": "string"}
    time = {"type": ["string", "null"], "format": "date-time"}
    summary: JsonObject = {
        "id": {"type": "string", "format": "uuid"},
        "status": {
            "enum": list(dict.fromkeys(documents.STATUS.values())),
            "description": "What to wait for: `not-ready` is to be asked for again, the others are final.",
        },
        "state": {"enum": list(State), "description": "What is or was the matter, in more words than `status`."},
        "created_at": {"type": "string", "format": "date-time"},
        "started_at": time,
        "finished_at": time,
        "exit_code": {
            "type": ["integer", "null"],
            "description": "Of the script; minus the signal that ended it.",
        },
        "attempt": {"type": "integer", "minimum": 0, "description": "How often it was started."},
        "configuration": {
            "type": ["string", "null"],
            "description": "The fingerprint of the configuration that the task was accepted under.",
        },
    }
    outcome: JsonObject = {
        "position": {
            "type": ["integer", "null"],
            "minimum": 1,
            "description": "There while the task waits: its place in the queue (1 is next); null before its time.",
        },
        "estimated_start_at": time
        | {"description": "There while the task waits: when it may start, by past runs; null if nobody knows."},
        "results": {"$ref": "#/components/schemas/Results", "description": "There when the task succeeded."},
        "attachments": {
            "type": "object",
            "additionalProperties": text,
            "description": "Files by name: their content in standard base64 (`inline`) or their URL (`links`).",
        },
        "files": {"type": "array", "items": _reference("File"), "description": "The same files, described."},
        "error": {"type": "string", "description": "Why it failed: a sentence, then the last lines of stderr."},
    }
    file = {
        "name": text,
        "size": {"type": "integer", "minimum": 0, "description": "In bytes."},
        "media_type": text,
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "url": {"type": "string", "format": "uri-reference"},
    }
    mistake = {
        "where": {"type": "string", "description": "Such as path, query or body."},
        "name": {"type": "string", "description": "What it is called there."},
        "problem": text,
    }
    problem = {
        "type": {"type": "string", "format": "uri"},
        "title": text,
        "status": {"type": "integer"},
        "detail": text,
    }
    errors = {"errors": {"type": "array", "items": _object(mistake)}}
    page = {
        "tasks": {"type": "array", "items": _reference("TaskSummary")},
        "next": {"type": ["string", "null"], "description": "The `cursor` of the next page; null at the end."},
    }
    return {
        "TaskSummary": _object(summary),
        "Task": _object(summary, outcome),
        "TaskList": _object(page),
        "Results": _results_schema(spec.outputs.results),
        "File": _object(file),
        "Problem": _object(problem, errors) | {"description": "An error by RFC 9457."},
    }


def _object(required: JsonObject, optional: JsonObject | None = None) -> JsonObject:
    return {"type": "object", "properties": required | (optional or {}), "required": list(required)}


def _results_schema(wanted: ResultsSpec | None) -> JsonObject:
    if wanted is None:
        return {"type": "null", "description": "This script has no results."}
    value = {"type": "string"} if wanted.format == "csv" else {}
    if wanted.remapped_columns:
        row = _object({column.output_name: value for column in wanted.remapped_columns})
        return {"type": "array", "items": row | {"additionalProperties": False}}
    if wanted.format == "csv":
        return {"type": "array", "items": {"type": "object", "additionalProperties": value}}
    return {"description": "The JSON document that the script wrote."}


# Examples


def _summary_example(spec: Spec, state: State) -> JsonObject:
    has_run = state not in (State.QUEUED, State.CANCELLED)
    return {
        "id": _TASK_ID,
        "status": documents.STATUS[state],
        "state": state.value,
        "created_at": _CREATED,
        "started_at": _STARTED if has_run else None,
        "finished_at": _FINISHED if state.is_final else None,
        "exit_code": {State.SUCCEEDED: 0, State.FAILED: 1}.get(state),
        "attempt": int(has_run),
        "configuration": spec.fingerprint,
    }


def _events_example(spec: Spec) -> str:
    said = {"offset": 0, "next": len(_LOG), "text": _LOG}
    told = (
        ("1-running-0-0", "state", _summary_example(spec, State.RUNNING)),
        (f"1-running-{len(_LOG)}-0", STREAMS[0], said),
        (f"1-end-{len(_LOG)}-0", "end", _summary_example(spec, State.SUCCEEDED)),
    )
    written = [f"id: {at}\nevent: {name}\ndata: {msgspec.json.encode(data).decode()}\n" for at, name, data in told]
    return "\n".join(["retry: 1000\n", *written, ""])


def _results_example(wanted: ResultsSpec | None) -> Any:
    if wanted is None:
        return None
    names = [column.output_name for column in wanted.remapped_columns or ()] or ["sample", "count"]
    return [{name: f"{_plausible(name)}-{number}" for name in names} for number in (1, 2)]


def _file_example() -> JsonObject:
    return {
        "name": _FILE_NAME,
        "size": len(_FILE),
        "media_type": "application/pdf",
        "sha256": _sha256(_FILE),
        "url": f"/task/{_TASK_ID}/attachments/{_FILE_NAME}",
    }


def _value_example(wanted: AnyInput) -> str:
    if wanted.example is not None:
        return wanted.example
    return wanted.default if wanted.default is not None else _plausible(wanted.env_var_name)


def _plausible(name: str) -> str:
    """A value that shows which name it belongs to: ``SAMPLE_ID`` gives ``sample-id``."""
    return "-".join(re.findall("[a-z0-9]+", name.lower())) or "value"


def _path_example(wanted: Sequence[PathInput]) -> str | None:
    """A path in which every input finds its example, or at least something; None if none was thought of."""
    values = [_value_example(one) for one in wanted]
    filled = [_filled(one.path_regex.source, value) for one, value in zip(wanted, values, strict=True)]
    candidates = ["/".join(values), *filled, "/".join(filled), "1"]
    found = {path: [one.path_regex.group(path, one.group) for one in wanted] for path in candidates}
    exact = (path for path in candidates if found[path] == values)
    some = (path for path in candidates if path and None not in found[path])
    return next(exact, None) or next(some, None)


def _filled(regex: str, value: str) -> str:
    """The regular expression with a value in place of its groups: often a path that it matches."""
    return re.sub(r"\((?:[^()\\]|\\.)*\)", lambda _: value, regex).strip("^$").replace("\\", "")


def _csv(rows: Sequence[JsonObject]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([list(rows[0]), *(row.values() for row in rows)])
    return text.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Small pieces of a description


def _reference(schema: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{schema}"}


def _example(schema: JsonObject, example: Any) -> JsonObject:
    return {"schema": schema, "example": example}


def _json(schema: JsonObject, example: Any) -> JsonObject:
    return {"application/json": _example(schema, example)}


def _answer(description: str, content: JsonObject, headers: JsonObject | None = None) -> JsonObject:
    return {"description": description, "content": content} | ({"headers": headers} if headers else {})


def _header(description: str, example: str | int) -> JsonObject:
    kind = "integer" if isinstance(example, int) else "string"
    return {"description": description, "schema": {"type": kind}, "example": example}


def _header_parameter(name: str, description: str) -> JsonObject:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def _query(name: str, description: str, schema: JsonObject) -> JsonObject:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_SECONDS: JsonObject = {"type": "number", "minimum": 0}
_PREFER = _header_parameter("Prefer", "`wait=20`: answer when the task has ended, after 20 seconds at the latest.")


def _id_parameter(name: str) -> JsonObject:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": "The task's id.",
        "schema": {"type": "string", "format": "uuid"},
        "example": _TASK_ID,
    }


def _default(wanted: AnyInput) -> JsonObject:
    return {} if wanted.default is None else {"default": wanted.default}


def _code(text: str) -> str:
    """Text as code in CommonMark, backticks in it or not."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"
