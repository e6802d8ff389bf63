"""The command line: up, serve, worker, check, doctor on this machine; submit, show, status … at a server."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from script_runner import __version__
from script_runner.config import (
    DEFAULT_CONFIG,
    DEFAULT_RUNDIR,
    Settings,
    read_settings,
    read_spec,
    schema,
    without_effect,
)
from script_runner.diagnosis import diagnosis
from script_runner.doctor import worst
from script_runner.errors import Code, Error
from script_runner.fork import INPUT, be_called, fork, told_by_copy
from script_runner.wiring import checking, keeping, serving, watching, working
from script_runner.wiring.parts import auth_provider

if TYPE_CHECKING:
    from script_runner.client import Client, TaskEvent
    from script_runner.spec import Spec

DEFAULT_URL = "http://127.0.0.1:8000"

EXIT_CODES = {
    Code.INVALID_CONFIG: 2,
    Code.INVALID_INPUT: 2,
    Code.UNAVAILABLE: 3,
    Code.QUEUE_FULL: 3,
    Code.TOO_MANY_QUEUED: 3,
    Code.UNAUTHENTICATED: 4,
    Code.NOT_FOUND: 5,
}
"""What is not named here is 1, as is a task that failed."""

DOCTOR_CODES = {"ok": 0, "warning": 1, "wrong": 2}
TASK_FAILED = 1
TIMED_OUT = 6
INTERRUPTED = 130
STDERR = 2
SHOWN_ROWS = 20
SHOWN_FIELDS = (
    "id", "state", "position", "estimated_start_at", "created_at", "started_at", "finished_at",
    "exit_code", "attempt", "error",
)  # fmt: skip
PATIENCE_SECONDS = 10.0

_log = logging.getLogger("script_runner")

EPILOG = """\
exit codes: 0 well, 1 the task failed or something unforeseen, 2 wrong input or configuration,
3 the server or Redis is away or the queue is full, 4 not authenticated, 5 not found,
6 still running after --timeout, 130 Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _hold_standard_streams()
    options = _parser().parse_args(arguments)
    _end(_code_of(lambda: options.run(options)))


def _end(code: int) -> NoReturn:
    """End the process; at once where the library of the object stores is loaded.

    Its threads may abort a Python that is taken down under them (PyO3/pyo3-async-runtimes, issue 40).
    """
    if "obstore" in sys.modules:
        logging.shutdown()
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _hold_standard_streams() -> None:
    """Let none of our own files become the input or output of a child, where we were started without."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)


def _code_of(run: Callable[[], int]) -> int:
    """The exit code of what is run, or that of its error, which is said."""
    try:
        return run()
    except Error as error:
        _say_error(error)
        return EXIT_CODES.get(error.code, 1)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as with | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# The words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="script-runner",
        description="Turns any script into an HTTP API. One config.json names a command; see the README.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"script-runner {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    up = _command(commands, "up", _up, "start server, worker and an embedded Redis in one command")
    _config_option(up)
    _listen_options(up)
    _worker_options(up)
    _watch_option(up)
    _store_options(up)
    up.add_argument("--data", metavar="DIR", help="folder for tasks and files (default: below ~/.local/state)")

    serve = _command(commands, "serve", _serve, "start the HTTP server")
    _config_option(serve)
    _listen_options(serve)
    _watch_option(serve)
    _store_options(serve)

    worker = _command(commands, "worker", _worker, "start a worker")
    _config_option(worker)
    _worker_options(worker)
    _watch_option(worker)
    _store_options(worker)
    worker.add_argument("--until-input-ends", action="store_true", help=argparse.SUPPRESS)

    check = _command(commands, "check", _check, "say all that is wrong with a configuration; start nothing")
    _config_option(check)
    check.add_argument("--explain", action="store_true", help="print argv and environment of a request")
    check.add_argument("--schema", action="store_true", help="print the JSON Schema of the configuration file")
    check.add_argument("--json", action="store_true", help="print JSON")
    _request_options(check, path_option=True)

    doctor = _command(commands, "doctor", _doctor, "look for what is wrong with this machine, Redis and the store")
    _config_option(doctor)
    _listen_options(doctor)
    _worker_options(doctor)
    _store_options(doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON")

    submit = _command(commands, "submit", _submit, "submit a task to a running server")
    submit.add_argument("path", nargs="?", default="", metavar="PATH", help="what follows /task/")
    _request_options(submit, path_option=False)
    _queue_options(submit)
    submit.add_argument("--wait", action="store_true", help="wait for the task to end, and show it")
    _wait_options(submit)
    _server_options(submit)

    show = _command(commands, "show", _show, "show a task: its state, rows and files; without ID, the last tasks")
    show.add_argument("id", nargs="?", metavar="ID")
    show.add_argument("--save", metavar="DIR", help="download the attachments into this folder")
    _rows_option(show)
    _server_options(show)

    status = _command(commands, "status", _status, "say how a server, its workers and its queue are")
    _server_options(status)

    wait = _command(commands, "wait", _wait, "wait for a task to end, and show it")
    wait.add_argument("id", metavar="ID")
    _wait_options(wait)
    _server_options(wait)

    logs = _command(commands, "logs", _logs, "print what the script of a task says")
    logs.add_argument("id", metavar="ID")
    logs.add_argument("--stderr", action="store_true", help="its standard error instead of its standard output")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the task has ended")
    _server_options(logs)

    cancel = _command(commands, "cancel", _cancel, "ask a task to stop")
    cancel.add_argument("id", metavar="ID")
    _server_options(cancel)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], sentence: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=sentence, description=sentence[0].upper() + sentence[1:] + ".", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="default: SCRIPT_RUNNER_CONFIG or config.json")
    parser.add_argument("--config", dest="config_option", metavar="CONFIG", help="the same as an option")


def _listen_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", help="port, 0 for any (default: 8000, or the next free one)")


def _watch_option(parser: argparse.ArgumentParser) -> None:
    sentence = "serve /metrics, /health and /ready there, to anybody: an address of the inside network"
    parser.add_argument("--metrics", metavar="HOST:PORT", help=sentence)


def _worker_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", metavar="N", help="scripts at once (default: cores)")
    parser.add_argument(
        "--drain-timeout", metavar="SECONDS", help="how long a stop waits for scripts (default: 30)"
    )


def _store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redis", metavar="URL", help="redis://, rediss://, unix:// or redis+sentinel://")
    parser.add_argument(
        "--store", metavar="URL", help="where results and files are kept, as file:///folder or s3://bucket/prefix"
    )


def _request_options(parser: argparse.ArgumentParser, *, path_option: bool) -> None:
    if path_option:
        parser.add_argument("--path", default="", help="what follows /task/, for --explain")
    parser.add_argument("--query", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    parser.add_argument("--body", metavar="JSON", help="the body; @FILE reads a file, @- standard input")


def _queue_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--priority", type=int, metavar="N", help="-9 to 9, higher first (default: 0)")
    parser.add_argument("--not-before", metavar="TIME", help="start no earlier, as 2030-01-31T06:00:00+01:00")
    parser.add_argument("--expires-in", type=float, metavar="SECONDS", help="how long it may wait for its start")
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="the same key and request give the same task (default: a new key)"
    )


def _rows_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=_count, default=SHOWN_ROWS, metavar="N", help=f"rows shown ({SHOWN_ROWS})")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def _wait_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait (default: no limit)")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    _rows_option(parser)


def _server_options(parser: argparse.ArgumentParser) -> None:
    url = os.environ.get("SCRIPT_RUNNER_URL", DEFAULT_URL)
    parser.add_argument("--url", default=url, help=f"the server (default: SCRIPT_RUNNER_URL or {DEFAULT_URL})")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help=f"how long a server that is away or full is asked again (default: {PATIENCE_SECONDS:g})",
    )
    parser.add_argument("--token", help="access token (default: SCRIPT_RUNNER_TOKEN)")
    parser.add_argument("--json", action="store_true", help="print the document as JSON")


# This machine


def _config_path(options: argparse.Namespace) -> str | None:
    """The configuration on the command line, by word or by option."""
    word: str | None = options.config
    option: str | None = options.config_option
    if word and option and word != option:
        raise Error(
            Code.INVALID_INPUT, f"Two configurations are named, {word!r} and --config {option!r}; give one."
        )
    return word or option


def _settings(options: argparse.Namespace) -> Settings:
    given = vars(options)
    return read_settings(os.environ).with_options(
        config=_config_path(options),
        host=given.get("host"),
        port=given.get("port"),
        redis_url=given.get("redis"),
        store_url=given.get("store"),
        metrics=given.get("metrics"),
        concurrency=given.get("concurrency"),
        drain_timeout=given.get("drain_timeout"),
    )


def _loaded(options: argparse.Namespace, *, is_first: bool = True) -> tuple[Settings, "Spec"]:
    """Settings and configuration; the log begins between them. The first process says what has no effect."""
    settings, spec = told_by_copy(lambda: _read(options))
    watching.start_logging(settings)
    if is_first:
        _report_without_effect()
    if isinstance(spec, Error):
        raise spec
    return settings, spec


def _read(options: argparse.Namespace) -> "tuple[Settings, Spec | Error]":
    settings = _settings(options)
    try:
        return settings, checking.load(settings)
    except Error as error:
        return settings, error


def _say(sentence: str) -> None:
    """Tell the operator: on standard error, or where that is a log of JSON lines as one of them."""
    if not watching.say_in_log(sentence):
        print(sentence, file=sys.stderr, flush=True)


def _say_error(error: Error) -> None:
    """One sentence, and the mistakes in a file one a line."""
    if watching.say_in_log(error.message, error.problems):
        return
    _say(f"script-runner: {error.message}")
    for problem in error.problems:
        if problem.where in ("config", "file"):
            _say(f"  {problem.name}: {problem.problem}")


def _report_without_effect() -> None:
    """Say which settings of the original are set in vain: their names, since their values may be secret."""
    if names := without_effect(os.environ):
        _log.info("set, and without effect here: %s", ", ".join(names))


def _up(options: argparse.Namespace) -> int:
    settings, spec = _loaded(options)
    auth_provider(settings, os.environ)
    settings, embedded = keeping.prepare_data(settings, options.data)
    checking.require_stores(settings)
    listener = serving.listen(settings)

    def worker() -> int:
        listener.close()
        if embedded:
            embedded.leave()
        own = keeping.settings_of_worker(settings)
        return _code_of(lambda: _work(own, spec, until_input_ends=True))

    async def all_in_one(stop: asyncio.Event, hurry: asyncio.Event) -> None:
        helpers = [asyncio.create_task(keeping.keep_worker(settings, first, stop=stop, hurry=hurry))]
        if embedded:
            helpers.append(asyncio.create_task(keeping.keep_embedded(embedded, stop=stop)))
        try:
            alone = replace(settings, linger_seconds=0.0)  # no load balancer is in front of it
            await serving.serve(alone, spec, listener, stop=stop, hurry=hurry, announce=_say)
        finally:
            stop.set()
            await asyncio.gather(*helpers)

    with contextlib.ExitStack() as at_the_end:
        if embedded:
            at_the_end.callback(embedded.stop)
            embedded.start()
        url = serving.url_of(listener)
        _say(f"script-runner {__version__} serves {settings.config} at {url} (documentation: {url}/docs)")
        _say("Ctrl-C stops it; once more stops running scripts too.")
        first = fork(worker)
        at_the_end.callback(first.see_off)
        _run(all_in_one, fast=True)
    return 0


def _serve(options: argparse.Namespace) -> int:
    be_called("runner-server")
    settings, spec = _loaded(options)
    auth_provider(settings, os.environ)
    checking.require_stores(settings)
    listener = serving.listen(settings)

    async def server(stop: asyncio.Event, hurry: asyncio.Event) -> None:
        _say(f"script-runner {__version__} serves {settings.config} at {serving.url_of(listener)}")
        await serving.serve(settings, spec, listener, stop=stop, hurry=hurry, announce=_say)

    _run(server, fast=True)
    return 0


def _worker(options: argparse.Namespace) -> int:
    settings, spec = _loaded(options, is_first=not options.until_input_ends)
    return _work(settings, spec, until_input_ends=options.until_input_ends)


def _work(settings: Settings, spec: "Spec", *, until_input_ends: bool) -> int:
    be_called("runner-worker")
    checking.require_stores(settings)

    async def worker(drain: asyncio.Event, hurry: asyncio.Event) -> None:
        if until_input_ends:
            asyncio.get_running_loop().add_reader(INPUT, lambda: _end_of_input(drain))
        await working.work(settings, spec, drain=drain, hurry=hurry)

    # uvloop would fork for every script; the plain loop lets them be spawned cheaply
    _run(worker, fast=False)
    return 0


def _end_of_input(drain: asyncio.Event) -> None:
    if not os.read(INPUT, 4096):
        asyncio.get_running_loop().remove_reader(INPUT)
        drain.set()


def _run(job: Callable[[asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]], *, fast: bool) -> None:
    """Run a job with two events: the first INT or TERM sets one, the second sets the other."""

    async def with_signals() -> None:
        stop, hurry = asyncio.Event(), asyncio.Event()

        def asked_to_stop() -> None:
            (hurry if stop.is_set() else stop).set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, asked_to_stop)
        await job(stop, hurry)

    if fast:
        import uvloop  # noqa: PLC0415 - the worker does without

        uvloop.run(with_signals())
    else:
        asyncio.run(with_signals())


def _check(options: argparse.Namespace) -> int:
    if options.schema:
        print(json.dumps(schema(), indent=2))
        return 0
    if options.explain:
        return _explain(options)
    config = _config_path(options) or os.environ.get("SCRIPT_RUNNER_CONFIG") or DEFAULT_CONFIG
    errors: list[Error] = []
    with _collected(errors):
        errors += checking.wrong_settings(_settings(options), os.environ)
    cautions: list[str] = []
    with _collected(errors):
        rundir = os.environ.get("SCRIPT_RUNNER_RUNDIR") or DEFAULT_RUNDIR
        cautions = checking.cautions(read_spec(Path(config), rundir=rundir))
    if options.json:
        problems = [asdict(problem) for error in errors for problem in error.problems]
        ok = not errors and not cautions
        print(json.dumps({"config": config, "ok": ok, "problems": problems, "cautions": cautions}))
    else:
        for error in errors:
            _say_error(error)
        for caution in cautions:
            _say(f"{config}: {caution}")
        if not errors and not cautions:
            print(f"{config} is well.")
    return EXIT_CODES[Code.INVALID_CONFIG] if errors or cautions else 0


@contextlib.contextmanager
def _collected(errors: list[Error]) -> Iterator[None]:
    try:
        yield
    except Error as error:
        errors.append(error)


def _doctor(options: argparse.Namespace) -> int:
    """The findings one a line, the advice below; 0 all well, 1 warnings, 2 something is wrong."""
    findings = diagnosis(_settings(options), os.environ)
    verdict = worst(findings)
    if options.json:
        print(json.dumps({"verdict": verdict, "findings": [asdict(finding) for finding in findings]}))
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            print(f"{finding.verdict:8} {finding.check:{width}}  {_visible(finding.sentence)}")
            if finding.advice:
                print(f"{'':8} {'':{width}}  → {_visible(finding.advice)}")
    return DOCTOR_CODES[verdict.value]


def _explain(options: argparse.Namespace) -> int:
    settings = _settings(options)
    spec = checking.load(settings)
    query, body = _query(options), _body(options)
    explanation = checking.explain(
        settings, spec, path=options.path, query=query, body=body, environment=os.environ
    )
    print(json.dumps(explanation, indent=2, ensure_ascii=False) if options.json else _explained(explanation))
    for caution in checking.cautions(spec):
        _say(f"{settings.config}: {caution}")
    return 0


def _explained(explanation: dict[str, Any]) -> str:
    lines = ["argv:"]
    lines += [f"  [{number}] {argument!r}" for number, argument in enumerate(explanation["argv"])]
    lines += ["environment:"]
    lines += [f"  {name}={value!r}" for name, value in sorted(explanation["environment"].items())]
    lines += [f"  and inherited: {', '.join(explanation['inherited']) or 'nothing'}"]
    lines += [f"working directory: {explanation['working_directory']}"]
    return "\n".join(lines)


def _query(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The parameters as they were typed: nothing in them is decoded."""
    parts = [text.partition("=") for text in options.query]
    if wrong := next((name for name, equals, _ in parts if not equals), None):
        raise Error(Code.INVALID_INPUT, f"--query expects NAME=VALUE, got {wrong!r}.")
    return [(name, value) for name, _, value in parts]


def _body(options: argparse.Namespace) -> bytes | None:
    text: str | None = options.body
    if text is None:
        return None
    if not text.startswith("@"):
        return text.encode()
    if text == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise Error(Code.INVALID_INPUT, f"The body {text[1:]} cannot be read: {error.strerror}.") from None


# A server


def _client(options: argparse.Namespace) -> "Client":
    from script_runner.client import Client  # noqa: PLC0415 - servers and workers do without an HTTP client

    token = options.token or os.environ.get("SCRIPT_RUNNER_TOKEN")
    return Client(options.url, token=token, patience_seconds=options.patience)


def _submit(options: argparse.Namespace) -> int:
    with _client(options) as client:
        document = client.submit(
            options.path,
            query=_query(options),
            body=_body(options),
            priority=options.priority,
            not_before=options.not_before,
            expires_in_seconds=options.expires_in,
            idempotency_key=options.idempotency_key,
        )
        if not options.wait:
            print(json.dumps(document) if options.json else document["id"])
            return 0
        return _wait_for(client, document["id"], options)


def _wait(options: argparse.Namespace) -> int:
    with _client(options) as client:
        return _wait_for(client, options.id, options)


def _wait_for(client: "Client", task_id: str, options: argparse.Namespace) -> int:
    """Show progress on standard error until the task has ended, then the task on standard output."""
    progress = _Progress()
    try:
        if options.quiet:
            document = client.wait(task_id, timeout_seconds=options.timeout)
        else:
            for event in client.events(task_id, timeout_seconds=options.timeout):
                progress.show(event)
            document = client.wait(task_id)
    except TimeoutError as error:
        _say(f"script-runner: {error}.")
        return TIMED_OUT
    except KeyboardInterrupt:
        _say(f"\nThe task goes on: script-runner wait {task_id}")
        raise
    _print(document, options)
    return 0 if document["status"] == "ready" else TASK_FAILED


class _Progress:
    """State, time and the script's own words on standard error."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def show(self, event: "TaskEvent") -> None:
        if event.name in ("state", "end"):
            position = f", {event.data['position']} in the queue" if event.data.get("position") else ""
            _say(f"[{time.monotonic() - self._began:6.1f} s] {event.data['state']}{position}")
        elif event.name == "stdout":
            sys.stderr.write(event.data["text"])
            sys.stderr.flush()


def _show(options: argparse.Namespace) -> int:
    with _client(options) as client:
        if options.id is None:
            page = client.list(limit=SHOWN_ROWS)
            columns = ("id", "state", "created_at", "finished_at", "attempt")
            print(json.dumps(page) if options.json else _table(page["tasks"], columns))
            return 0
        document = client.get(options.id)
        _print(document, options)
        if options.save is not None:
            folder = Path(options.save)
            folder.mkdir(parents=True, exist_ok=True)
            for file in document.get("files", ()):
                _say(f"saved {client.save_attachment(options.id, file['name'], folder)}")
        return 0


def _status(options: argparse.Namespace) -> int:
    with _client(options) as client:
        document = client.ready()
        print(json.dumps(document) if options.json else _told_status(document, options.url))
        return 0


def _told_status(document: dict[str, Any], url: str) -> str:
    """How a server says it is, for people; what an older one does not say is left out."""
    queue, versions = document.get("queue", {}), document.get("versions", {})
    workers = [f"{count} of {version}" for version, count in versions.get("workers", {}).items()]
    counts = {name: queue[name] for name in ("queued", "running", "scheduled") if name in queue}
    ended = {state: count for state, count in document.get("ended_in_the_last_hour", {}).items() if count}
    rows = {
        "server": f"{versions.get('server', '')} at {url}",
        "store": versions.get("store", ""),
        "workers": f"{document['workers']}" + (f" ({', '.join(workers)})" if workers else ""),
        "slots": str(document.get("slots", "")),
        "queue": ", ".join(f"{count} {name}" for name, count in counts.items()),
        "oldest": f"{queue['oldest_seconds']:g} s" if queue.get("queued") else "",
        "last hour": ", ".join(f"{count} {state}" for state, count in ended.items()) or "nothing has ended",
    }
    lines = [f"{name:10} {_visible(text)}" for name, text in rows.items() if text]
    return "\n".join([*lines, *(f"{'warning':10} {_visible(text)}" for text in document.get("warnings", ()))])


def _logs(options: argparse.Namespace) -> int:
    stream = "stderr" if options.stderr else "stdout"
    offset = 0
    with _client(options) as client:
        for event in client.events(options.id) if options.follow else ():
            if event.name == stream and event.data["offset"] == offset and "\ufffd" not in event.data["text"]:
                sys.stdout.buffer.write(event.data["text"].encode())
                sys.stdout.buffer.flush()
                offset = event.data["next"]
            elif event.name == stream:  # not text, or some of it is missing
                offset = _print_log(client, options.id, stream, offset=offset)
        _print_log(client, options.id, stream, offset=offset)
    return 0


def _print_log(client: "Client", task_id: str, stream: str, *, offset: int) -> int:
    """Print what the script has said, byte for byte; the offset to go on from."""
    while (chunk := client.log(task_id, stream, offset=offset)).data:
        offset = chunk.offset + len(chunk.data)
        sys.stdout.buffer.write(chunk.data)
        sys.stdout.buffer.flush()
    return offset


def _cancel(options: argparse.Namespace) -> int:
    with _client(options) as client:
        document = client.cancel(options.id)
        print(json.dumps(document) if options.json else f"{document['id']} {document['state']}")
        return 0


def _print(document: dict[str, Any], options: argparse.Namespace) -> None:
    """A task as JSON, or for people: the fields, the first rows, the files."""
    if options.json:
        print(json.dumps(document, ensure_ascii=False))
        return
    for name in SHOWN_FIELDS:
        if document.get(name) is not None:
            lines = (_visible(line) for line in str(document[name]).split("\n"))
            print(f"{name:12} " + "\n".join(lines))
    results = document.get("results")
    if isinstance(results, list) and results and isinstance(results[0], dict):
        print(f"\n{_table(results[: options.rows], tuple(results[0]))}\n({len(results)} rows)")
    elif results is not None:
        print(f"\nresults      {json.dumps(results, ensure_ascii=False)[:4000]}")
    if document.get("files"):
        print(f"\n{_table(document['files'], ('name', 'size', 'media_type'))}")


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows with aligned columns, for people."""
    cells = [[_cell(name) for name in columns], *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    clean = _visible(text)
    return clean if len(clean) <= 60 else clean[:59] + "…"  # noqa: PLR2004 - a line is to stay readable


def _visible(text: str) -> str:
    """The text without what would move the cursor or talk to the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
