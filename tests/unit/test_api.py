"""The application by itself, with tasks that end at once: what it reads of their files, and when it cannot."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from script_runner.adapters.anyone import Anyone
from script_runner.adapters.memory import MemoryLogs, MemoryTasks
from script_runner.adapters.store import FileArtifacts
from script_runner.errors import Code, Error
from script_runner.service import Service
from script_runner.spec import Spec
from script_runner.task import Artifact, Outcome, Results, State, Task
from script_runner.web.api import ONE_PIECE_BYTES, Options, application

pytestmark = pytest.mark.anyio


class Ending(MemoryTasks):
    """Tasks that end in the moment in which they are added."""

    outcome = Outcome(State.SUCCEEDED, 0)

    async def add(self, task: Task) -> Task:
        stands = await super().add(task)
        self.renew("worker", seconds=60)
        (claimed,) = await self.claim("worker", limit=1, wait_seconds=0)
        await self.finish(claimed, self.outcome)
        return stands


class Store(FileArtifacts):
    """A store that can be away, and knows what was read."""

    is_away = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.read_keys: list[str] = []

    async def read(self, key: str, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        self.read_keys.append(key)
        if self.is_away:
            raise Error(Code.UNAVAILABLE, "The artifact store cannot be read: it does not answer.")
        async for piece in super().read(key, start=start, stop=stop):
            yield piece


class Api:
    """The application, its tasks and its store."""

    def __init__(self, folder: Path) -> None:
        self.tasks = Ending()
        self.store = Store(f"file://{folder}")
        spec = Spec.read({"command": ["true"]})
        service = Service(spec, self.tasks, MemoryLogs(self.tasks), self.store, self.tasks.changes)
        app = application(service, Anyone(), Options("1"))
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")

    async def keep(self, name: str, content: bytes) -> Artifact:
        saved = await self.store.save(f"task/1/{name}", [content])
        return Artifact(name, saved.size, "text/plain", saved.sha256, f"task/1/{name}")

    async def ended(self, *, results: Artifact | None = None, files: tuple[Artifact, ...] = ()) -> str:
        """The path of a task that has ended with these."""
        kept = None if results is None else Results(results, columns=("a",))
        self.tasks.outcome = Outcome(State.SUCCEEDED, 0, results=kept, files=files)
        return str((await self.http.post("/task")).headers["location"])


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    api = Api(tmp_path)
    async with api.http:
        yield api


@pytest.mark.parametrize(("path", "status"), [("/task", 202), ("/script", 200)])
async def test_a_submit_that_waits_names_a_task_whose_files_cannot_be_read(
    api: Api, path: str, status: int
) -> None:
    """The task is there and has ended: its id and place are told, so that nobody submits it once more."""
    api.tasks.outcome = Outcome(State.SUCCEEDED, 0, results=Results(await api.keep("results", b"[]")))
    api.store.is_away = True
    answer = await api.http.post(path, headers={"Prefer": "wait=20"})

    assert (answer.status_code, answer.json()["state"]) == (status, "succeeded")
    assert answer.headers["location"] == f"/task/{answer.json()['id']}"


SAME_ID = {"X-Request-ID": "same"}
"""A header of requests whose answers are to be compared."""

LARGE = b'"%b"' % (b"x" * ONE_PIECE_BYTES)
"""JSON that makes a document too large to be sent in one piece."""


@pytest.mark.parametrize("what", ["results", "files"])
async def test_a_large_document_whose_files_cannot_be_read_is_no_half_answer(api: Api, what: str) -> None:
    """Nothing is said before the store gives its first bytes: 503 while it is away, 404 for what is gone."""
    large = await api.keep("large", LARGE)
    task = await (api.ended(results=large) if what == "results" else api.ended(files=(large,)))
    api.store.is_away = True
    away = await api.http.get(task)
    api.store.is_away = False
    await api.store.remove("task")
    gone = await api.http.get(task)

    assert (away.status_code, gone.status_code) == (503, 404)


async def test_a_large_document_is_whole(api: Api) -> None:
    """Its pieces are one JSON document, with each file as it is, also an empty one."""
    contents = {"empty": b"", "large": LARGE, "small": b"x", "none": b""}
    files = [await api.keep(name, content) for name, content in contents.items()]
    task = await api.ended(results=await api.keep("results", LARGE), files=tuple(files))
    document = (await api.http.get(task)).json()

    assert document["results"] == "x" * ONE_PIECE_BYTES
    assert {name: base64.b64decode(text) for name, text in document["attachments"].items()} == contents
    assert [file["name"] for file in document["files"]] == list(contents)


@pytest.mark.parametrize("asked", [{}, {"Range": "bytes=2-4"}, {"Range": "bytes=99-"}])
async def test_head_of_an_attachment_is_of_the_whole_and_reads_nothing(api: Api, asked: dict[str, str]) -> None:
    """A Range is for GET alone (RFC 9110, section 14.2), and the headers are known without the file."""
    task = await api.ended(files=(await api.keep("ten", b"0123456789"),))
    whole = await api.http.get(f"{task}/attachments/ten", headers=SAME_ID)
    api.store.read_keys.clear()
    head = await api.http.head(f"{task}/attachments/ten", headers=SAME_ID | asked)

    assert (head.status_code, head.headers, head.content) == (200, whole.headers, b"")
    assert api.store.read_keys == []


async def test_head_of_an_attachment_one_has_already_is_304(api: Api) -> None:
    """If-None-Match counts for HEAD as for GET."""
    task = await api.ended(files=(await api.keep("ten", b"0123456789"),))
    head = await api.http.head(f"{task}/attachments/ten", headers={"If-None-Match": "*"})

    assert head.status_code == 304


@pytest.mark.parametrize("word", ["json", "csv"])
async def test_head_of_results_reads_nothing(api: Api, word: str) -> None:
    """It has the headers of GET."""
    task = await api.ended(results=await api.keep("results", b'[\n{"a":1}\n]'))
    whole = await api.http.get(f"{task}/results?format={word}", headers=SAME_ID)
    api.store.read_keys.clear()
    head = await api.http.head(f"{task}/results?format={word}", headers=SAME_ID)

    assert (head.status_code, head.headers, head.content) == (200, whole.headers, b"")
    assert api.store.read_keys == []
