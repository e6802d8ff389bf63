"""The API from Python: the same verbs as the service, over HTTP."""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from script_runner.errors import Code, Error, Problem
from script_runner.streams import STREAMS, LogChunk

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 10
LAST_PORT = 65_535

WAIT_SECONDS = 20.0
"""How long the server is asked to wait in one request: less than what proxies take for a dead connection."""

SILENCE_SECONDS = 45.0
"""After how long without a word, three of its comments, a stream of events is taken for dead."""

RECONNECT_SECONDS = 1.0

GATEWAY_TROUBLE = (502, 503, 504)
PASSING = (Code.UNAVAILABLE, Code.QUEUE_FULL, Code.TOO_MANY_QUEUED)
"""What may be otherwise in a moment."""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """What has happened to a task: ``state``, ``stdout``, ``stderr`` or, last, ``end``; with its data."""

    name: str
    data: Document


class Client:
    """A server by its URL. Every method raises Error with the server's own sentence.

    ``patience_seconds`` is how long ``submit`` and ``watch`` go on while the server is away or its queue is full.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_seconds: float = 30.0, patience_seconds: float = 60.0
    ) -> None:
        self._patience_seconds = patience_seconds
        self._timeout_seconds = timeout_seconds
        token = (token or "").strip()  # one from a file ends with a newline
        if not re.fullmatch("[!-~]*", token):
            raise Error(Code.INVALID_INPUT, "The token cannot be sent: expected visible ASCII without spaces.")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_seconds)
            where = self._http.base_url
        except (httpx.InvalidURL, ValueError) as error:
            raise Error(Code.INVALID_INPUT, f"{url!r} is not a URL: {error}.") from None
        if where.scheme not in ("http", "https") or not where.host or (where.port or 0) > LAST_PORT:
            self._http.close()
            raise Error(Code.INVALID_INPUT, f"{url!r} is not the URL of a server, such as http://127.0.0.1:8000.")
        self._where = where.copy_with(userinfo=b"")  # which can be a password

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(
        self,
        path: str = "",
        *,
        query: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        priority: int | None = None,
        not_before: str | None = None,
        expires_in_seconds: float | None = None,
        idempotency_key: str | None = None,
    ) -> Document:
        """Queue a task; its first document.

        It is asked for again while the server is away or its queue is full, always under one key, so that there is
        one task however often that was. ``not_before`` is a time by RFC 3339.
        """
        wishes = {
            "Content-Type": None if body is None else "application/json",
            "Idempotency-Key": f'"{idempotency_key or uuid.uuid4()}"',
            "Task-Priority": priority,
            "Task-Not-Before": not_before,
            "Task-Expires-In": expires_in_seconds,
        }
        headers = {name: str(value) for name, value in wishes.items() if value is not None}
        url = "/task" + (f"/{quote(path)}" if path else "")
        return self._patiently(
            lambda: self._document("POST", url, params=list(query), content=body, headers=headers), end=None
        )

    def get(self, task_id: str, *, attachments: str = "none", wait_seconds: float = 0.0) -> Document:
        """The task document; ``attachments`` is none, links or inline.

        It comes when the task has ended, or after ``wait_seconds`` as it is then.
        """
        wait = {"wait": f"{wait_seconds:.3f}"} if wait_seconds > 0 else {}
        return self._document("GET", _path(task_id), params={"attachments": attachments, **wait})

    def list(self, *, states: Sequence[str] = (), cursor: str | None = None, limit: int = 50) -> Document:
        """A page of tasks, newest first: ``tasks`` and the cursor of the ``next`` page."""
        params: list[tuple[str, str]] = [("limit", str(limit)), *(("state", state) for state in states)]
        return self._document("GET", "/task", params=[*params, *([("cursor", cursor)] if cursor else [])])

    def ready(self) -> Document:
        """How the installation is; Error(UNAVAILABLE) with what is missing."""
        return self._document("GET", "/ready")

    def cancel(self, task_id: str) -> Document:
        """Ask a task to stop; its document now."""
        return self._document("POST", f"{_path(task_id)}/cancel")

    def remove(self, task_id: str) -> None:
        """Forget a task that does not run, and its files."""
        self._answer("DELETE", _path(task_id))

    def log(self, task_id: str, stream: str = "stdout", *, offset: int = 0) -> LogChunk:
        """What the script said from ``offset`` on."""
        answer = self._answer("GET", f"{_path(task_id)}/logs", params={"stream": stream, "offset": str(offset)})
        return LogChunk(int(answer.headers["X-Log-Offset"]), answer.content)

    def watch(self, task_id: str, *, timeout_seconds: float | None = None) -> Iterator[Document]:
        """The document as it is, and again whenever the server has something to say, until the task has ended.

        Raises TimeoutError after ``timeout_seconds``. A server that is away for a moment is asked again.
        """
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        longest = min(WAIT_SECONDS, self._timeout_seconds / 2)
        wait, pause = 0.0, FIRST_PAUSE_SECONDS
        while True:
            asked_at = time.monotonic()
            document = self._patiently(partial(self.get, task_id, wait_seconds=wait), end)
            yield document
            if document["status"] != "not-ready":
                return
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"task {task_id} is still {document['state']}")
            if wait and time.monotonic() - asked_at < wait / 2:  # an older server does not wait
                time.sleep(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
                pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
            wait = longest if end is None else min(longest, max(0.001, end - time.monotonic()))

    def events(self, task_id: str, *, timeout_seconds: float | None = None) -> Iterator[TaskEvent]:
        """What happens to the task, as it happens, up to its end. A lost stream goes on where it was.

        Raises TimeoutError after ``timeout_seconds``. An older server, which has no events, is polled.
        """
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        last = ""
        patience = time.monotonic() + self._patience_seconds
        while end is None or time.monotonic() < end:
            try:
                for heard in self._stream(task_id, last, end):
                    if heard is not None:
                        last, event = heard
                        yield event
                        if event.name == "end":
                            return
                    patience = time.monotonic() + self._patience_seconds
            except Error as error:
                if error.code is Code.NOT_FOUND and not last:
                    self.get(task_id)  # if there is no such task, it says so
                    yield from self._polled_events(task_id, end)
                    return
                if error.code not in PASSING or time.monotonic() > patience:
                    raise
            time.sleep(
                RECONNECT_SECONDS if end is None else max(0.0, min(RECONNECT_SECONDS, end - time.monotonic()))
            )
        raise TimeoutError(f"task {task_id} has not ended")

    def _stream(self, task_id: str, last: str, end: float | None) -> Iterator[tuple[str, TaskEvent] | None]:
        """The events of one connection, each with its id; None for whatever else shows that it lives."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        params = {} if end is None else {"wait": f"{max(0.001, end - time.monotonic()):.3f}"}
        timeout = httpx.Timeout(self._timeout_seconds, read=SILENCE_SECONDS)
        url = f"{_path(task_id)}/events"
        try:
            with self._http.stream("GET", url, params=params, headers=headers, timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _error(answer)
                yield None
                yield from _events(answer.iter_bytes())
        except httpx.HTTPError as error:
            raise self._away(error) from None

    def _polled_events(self, task_id: str, end: float | None) -> Iterator[TaskEvent]:
        """The same from a server without events: as far as polls can see them."""
        offsets = dict.fromkeys(STREAMS, 0)
        state = ""
        for document in self.watch(task_id, timeout_seconds=None if end is None else end - time.monotonic()):
            is_over = document["status"] != "not-ready"
            if document["state"] != state and not is_over:
                state = document["state"]
                yield TaskEvent("state", document)
            for stream in STREAMS if state != "queued" or is_over else ():
                while (chunk := self.log(task_id, stream, offset=offsets[stream])).data:
                    offsets[stream] = chunk.offset + len(chunk.data)
                    text = chunk.data.decode("utf-8", "replace")
                    yield TaskEvent(stream, {"offset": chunk.offset, "next": offsets[stream], "text": text})
            if is_over:
                yield TaskEvent("end", document)

    def wait(self, task_id: str, *, timeout_seconds: float | None = None) -> Document:
        """The document of the task once it has ended."""
        *_, last = self.watch(task_id, timeout_seconds=timeout_seconds)
        return last

    def save_attachment(self, task_id: str, name: str, folder: Path) -> Path:
        """Download one file into ``folder``, in pieces; where it is. It appears there whole or not at all.

        A name with folders in it keeps them, and never leads out of ``folder``.
        """
        target = folder.joinpath(*(part for part in name.split("/") if part not in ("", ".", "..")))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        url = f"{_path(task_id)}/attachments/{quote(name)}"
        try:
            # a server may lead to the store itself; httpx sends the token to no other origin
            with self._http.stream("GET", url, follow_redirects=True) as answer, part.open("wb") as file:
                if answer.is_error:
                    answer.read()
                    raise _error(answer)
                for piece in answer.iter_bytes():
                    file.write(piece)
            part.replace(target)
        except httpx.HTTPError as error:
            raise self._away(error) from None
        finally:
            part.unlink(missing_ok=True)
        return target

    def _patiently(self, ask: Callable[[], Document], end: float | None) -> Document:
        """Ask until there is an answer, or it is no use: a server that is away for a moment is asked again."""
        patience = time.monotonic() + self._patience_seconds
        while True:
            try:
                return ask()
            except Error as error:
                wait = min(error.retry_after or 1, LONGEST_RETRY_SECONDS)
                next_time = time.monotonic() + wait
                if error.code not in PASSING or next_time > patience or (end is not None and next_time > end):
                    raise
            time.sleep(wait)

    def _document(self, method: str, path: str, **options: Any) -> Document:
        answer = self._answer(method, path, **options)
        try:
            document = answer.json()
        except ValueError:
            raise Error(Code.INTERNAL, f"{self._where} does not answer as script-runner does.") from None
        return dict(document)

    def _answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Error(Code.INVALID_INPUT, f"The URL cannot be used: {error}.") from None
        except httpx.HTTPError as error:
            raise self._away(error) from None
        if not answer.is_success:
            raise _error(answer)
        return answer

    def _away(self, error: httpx.HTTPError) -> Error:
        if isinstance(error, httpx.LocalProtocolError):  # its text may repeat a secret
            return Error(Code.INVALID_INPUT, "The request cannot be sent: a header holds what HTTP forbids.")
        return Error(Code.UNAVAILABLE, f"{self._where} does not answer: {error}.")


def _events(pieces: Iterator[bytes]) -> Iterator[tuple[str, TaskEvent] | None]:
    """Events and their ids (HTML Living Standard, section 9.2.6), as far as this API writes them.

    None for each piece that came, whatever is in it.
    """
    fields: dict[str, str] = {}
    rest = b""
    for piece in pieces:
        yield None
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            name, _, value = line.decode().rstrip("\r").partition(":")
            if line.strip():
                fields[name] = value.removeprefix(" ")
                continue
            if "event" in fields:
                yield fields["id"], TaskEvent(fields["event"], json.loads(fields["data"]))
            fields = {}


def _path(task_id: str) -> str:
    """The path of a task; what is no id is not sent, since ``/task/ANYTHING/cancel`` could be a submission."""
    try:
        return f"/task/{uuid.UUID(task_id)}"
    except ValueError:
        raise Error(Code.NOT_FOUND, f"{task_id!r} is not the id of a task.") from None


def _error(answer: httpx.Response) -> Error:
    """The problem document of an answer as an Error again (RFC 9457)."""
    try:
        document: Mapping[str, Any] = answer.json()
        code = Code(str(document["type"]).rpartition(":")[2])
        problems = tuple(Problem(**problem) for problem in document.get("errors", ()))
        wait = answer.headers.get("Retry-After", "")
        return Error(code, str(document["detail"]), problems, retry_after=int(wait) if wait.isdigit() else None)
    except (ValueError, KeyError, TypeError):
        code = Code.UNAVAILABLE if answer.status_code in GATEWAY_TROUBLE else Code.INTERNAL
        return Error(code, f"The server answered {answer.status_code} {answer.reason_phrase}.")
