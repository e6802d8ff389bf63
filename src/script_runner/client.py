"""The API from Python: the same verbs as the service, over HTTP."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from script_runner.errors import Code, Error, Problem
from script_runner.ports import LogChunk

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 10
LAST_PORT = 65_535

GATEWAY_TROUBLE = (502, 503, 504)
PASSING = (Code.UNAVAILABLE, Code.QUEUE_FULL, Code.TOO_MANY_QUEUED)
"""What may be otherwise in a moment."""

Document = dict[str, Any]


class Client:
    """A server by its URL. Every method raises Error with the server's own sentence.

    ``patience_seconds`` is how long ``submit`` and ``watch`` go on while the server is away or its queue is full.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_seconds: float = 30.0, patience_seconds: float = 60.0
    ) -> None:
        self._patience_seconds = patience_seconds
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_seconds)
            where = self._http.base_url
        except (httpx.InvalidURL, ValueError) as error:
            raise Error(Code.INVALID_INPUT, f"{url!r} is not a URL: {error}.") from None
        if where.scheme not in ("http", "https") or not where.host or (where.port or 0) > LAST_PORT:
            self._http.close()
            raise Error(Code.INVALID_INPUT, f"{url!r} is not the URL of a server, such as http://127.0.0.1:8000.")

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

    def get(self, task_id: str, *, attachments: str = "none") -> Document:
        """The task document; ``attachments`` is none, links or inline."""
        return self._document("GET", _path(task_id), params={"attachments": attachments})

    def list(self, *, states: Sequence[str] = (), cursor: str | None = None, limit: int = 50) -> Document:
        """A page of tasks, newest first: ``tasks`` and the cursor of the ``next`` page."""
        params: list[tuple[str, str]] = [("limit", str(limit)), *(("state", state) for state in states)]
        return self._document("GET", "/task", params=[*params, *([("cursor", cursor)] if cursor else [])])

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
        """The document again and again, with growing pauses, until the task has ended.

        Raises TimeoutError after ``timeout_seconds``. A server that is away for a moment is asked again.
        """
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            document = self._patiently(lambda: self.get(task_id), end)
            yield document
            if document["status"] != "not-ready":
                return
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"task {task_id} is still {document['state']}")
            time.sleep(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)

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
            with self._http.stream("GET", url) as answer, part.open("wb") as file:
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
            raise Error(Code.INTERNAL, f"{self._http.base_url} does not answer as script-runner does.") from None
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
        return Error(Code.UNAVAILABLE, f"{self._http.base_url} does not answer: {error}.")


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
