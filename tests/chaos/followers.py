"""Those who follow tasks: by event streams that resume wherever a server lives, and by long-polls."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import httpx
from tests.chaos.journal import Journal
from tests.chaos.ledger import now
from tests.chaos.plan import Order
from tests.chaos.world import World
from tests.end_to_end.processes import FINAL

STREAM_SECONDS = (0.5, 6.0)
"""How long one connection of a stream may last; then it is resumed, at any server."""

POLL_SECONDS = 4
SILENCE_SECONDS = 9.0
PAUSE_SECONDS = 0.1

Summary = dict[str, Any]


class Follower(threading.Thread):
    """Follows one task to its end."""

    def __init__(self, world: World, journal: Journal, order: Order, task_id: str) -> None:
        super().__init__(name=f"follow {task_id}", daemon=True)
        self.task_id = task_id
        self.ends: list[Summary] = []
        """Every end that it was told."""

        self.connections = 0
        self.stopped = threading.Event()
        self._world = world
        self._journal = journal
        self._random = Random(f"follow {order.key}")  # noqa: S311 - not to be secret
        self._http = httpx.Client(timeout=SILENCE_SECONDS, trust_env=False)

    def run(self) -> None:
        with contextlib.closing(self._http):
            while not self.ends and not self.stopped.is_set():
                url = self._server()
                if url:
                    with contextlib.suppress(httpx.TransportError):
                        self.connections += 1
                        self.connect(url)
                self.stopped.wait(PAUSE_SECONDS)

    def connect(self, url: str) -> None:
        """Hear what one server has to say."""
        raise NotImplementedError

    def _server(self) -> str | None:
        known = [slot.url for slot in self._world.servers if slot.url]
        return self._random.choice(known) if known else None

    def _is_answered(self, answer: httpx.Response) -> bool:
        """Whether it was answered 200; while Redis is away it may be 503, and nothing else."""
        if answer.status_code not in (200, 503):
            self._wrong("other", f"was answered {answer.status_code}")
        return answer.status_code == 200

    def _wrong(self, column: str, text: str) -> None:
        self._journal.violation(column, f"a follower of task {self.task_id} {text}", at=now())


class StreamFollower(Follower):
    """Follows the events, and resumes with the id of the last one; nothing may come twice."""

    _last = ""

    def connect(self, url: str) -> None:
        headers = {"Last-Event-ID": self._last} if self._last else {}
        params = {"wait": f"{self._random.uniform(*STREAM_SECONDS):.3f}"}
        path = f"{url}/task/{self.task_id}/events"
        with self._http.stream("GET", path, params=params, headers=headers) as answer:
            if self._is_answered(answer):
                for place, name, data in _events(answer):
                    self._take(place, name, data)
        if self.ends:
            again = self._http.get(path, headers={"Last-Event-ID": self._last})
            if again.status_code not in (204, 503):
                self._wrong("doubled", f"came again after the end and was answered {again.status_code}")

    def _take(self, place: str, name: str, data: Summary) -> None:
        run, state, *offsets = place.split("-")
        old_run, old_state, *old_offsets = self._last.split("-") if self._last else ("", "", "0", "0")
        if name == "end":
            self.ends.append(data)
            self._journal.note(f"stream of {self.task_id} ended: {data['state']}")
        elif name == "state" and (run, state) == (old_run, old_state):
            self._wrong("doubled", f"was told twice of {place}")
        elif name in ("stdout", "stderr"):
            number = ("stdout", "stderr").index(name)
            told = int(old_offsets[number]) if run == old_run else 0
            if data["offset"] < told or data["next"] != int(offsets[number]):
                self._wrong("doubled", f"was told again of {name} from {data['offset']}, after {self._last}")
        self._last = place


class PollFollower(Follower):
    """Asks the server to wait, again and again."""

    def connect(self, url: str) -> None:
        params = {"wait": str(POLL_SECONDS), "attachments": "none"}
        answer = self._http.get(f"{url}/task/{self.task_id}", params=params)
        if self._is_answered(answer) and (document := answer.json())["state"] in FINAL:
            self.ends.append(document)
            self._journal.note(f"long-poll of {self.task_id} ended: {document['state']}")


class Followers:
    """All who follow: one in four tasks by a stream, one in four by long-polls."""

    def __init__(self, world: World, journal: Journal) -> None:
        self._world = world
        self._journal = journal
        self._all: list[Follower] = []
        self._lock = threading.Lock()

    def follow(self, order: Order, task_id: str) -> None:
        kinds = {0: StreamFollower, 1: PollFollower}
        if kind := kinds.get(int(order.key[0], 16) % 4):
            follower = kind(self._world, self._journal, order, task_id)
            with self._lock:
                self._all.append(follower)
            follower.start()

    def finished(self, seconds: float) -> list[Follower]:
        """All of them, when they have come to their ends, or this time is over."""
        deadline = time.monotonic() + seconds
        for follower in self._all:
            follower.join(max(0.0, deadline - time.monotonic()))
        return self._all

    def stop(self) -> None:
        for follower in self._all:
            follower.stopped.set()
        for follower in self._all:
            follower.join()


def _events(answer: httpx.Response) -> Iterator[tuple[str, str, Any]]:
    """Id, name and data of each event; one that was cut off is none."""
    fields: dict[str, str] = {}
    rest = b""
    for piece in answer.iter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            name, _, value = line.decode().partition(": ")
            if line:
                fields[name] = value
                continue
            if "event" in fields:
                yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}
