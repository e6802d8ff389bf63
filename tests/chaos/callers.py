"""The caller: submits without end, repeats what was not answered, changes its mind, and watches every task."""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any

import httpx
from tests.chaos.followers import Followers
from tests.chaos.journal import Journal
from tests.chaos.ledger import now
from tests.chaos.plan import Order
from tests.chaos.world import World
from tests.end_to_end.processes import FINAL

IS_SUBMIT_IDEMPOTENT = True
"""Whether the server knows the header Idempotency-Key; without it a repeat may make a second task."""

SUBMITTERS = 6
WATCH_SECONDS = 0.4
HTTP_SECONDS = 8.0

Summary = dict[str, Any]


class Book:
    """What the caller knows."""

    def __init__(self) -> None:
        self.orders: dict[str, Order] = {}
        """Every acknowledged task by its id."""

        self.ids: dict[str, list[str]] = {}
        """The ids that were answered, by the caller's key."""

        self.pending: dict[str, Order] = {}
        """What was sent and has no answer yet, by key."""

        self.sent: dict[str, Order] = {}
        """All that was ever sent, by key."""

        self.cancelled: set[str] = set()
        self.seen: dict[str, Summary] = {}
        """The last sight of every task, acknowledged or not."""

        self.finals: dict[str, Summary] = {}
        """Every task that was seen in its final state, as it was then."""

        self.lock = threading.Lock()

    def acknowledge(self, order: Order, task_id: str) -> None:
        with self.lock:
            self.orders[task_id] = order
            self.ids.setdefault(order.key, []).append(task_id)

    def forget_untold(self, known: set[str]) -> None:
        """Tasks of which nobody was told may be gone after a failover."""
        with self.lock:
            for task_id in self.seen.keys() - known - self.orders.keys():
                del self.seen[task_id]
                self.finals.pop(task_id, None)

    @property
    def outstanding(self) -> int:
        with self.lock:
            return len(self.pending) + sum(task_id not in self.finals for task_id in self.orders)

    @property
    def running(self) -> int:
        with self.lock:
            return sum(summary["state"] == "running" for summary in self.seen.values())


class Front:
    """The servers as a caller sees them: any that lives, and the next one when an answer does not come."""

    def __init__(self, world: World, journal: Journal, seed: str) -> None:
        self._world = world
        self._journal = journal
        self._random = Random(seed)  # noqa: S311 - not to be secret
        self._http = httpx.Client(timeout=HTTP_SECONDS, trust_env=False)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response | None:
        """The answer of one of the servers; None when there was none that counts."""
        urls = [slot.url for slot in self._world.servers]
        known = [url for url in urls if url]
        if not known:
            return None
        try:
            answer = self._http.request(method, self._random.choice(known) + path, **more)
        except httpx.TransportError:
            return None
        if answer.status_code >= 500 and answer.status_code != 503:
            text = f"{method} {path} was answered {answer.status_code}: {answer.text[:300]}"
            self._journal.violation("other", text, at=now())
        return None if answer.status_code >= 500 else answer

    def insist(self, method: str, path: str, give_up: Callable[[], bool], **more: Any) -> httpx.Response | None:
        """The answer, however often it must be asked for."""
        pause = 0.05
        while (answer := self.ask(method, path, **more)) is None:
            if give_up():
                return None
            time.sleep(pause)
            pause = min(0.5, pause * 2)
        return answer

    def close(self) -> None:
        self._http.close()


class Callers:
    """Threads that submit, cancel, watch and follow."""

    def __init__(self, world: World, journal: Journal) -> None:
        self.book = Book()
        self.followers = Followers(world, journal)
        self._world = world
        self._journal = journal
        self._stop_submitting = threading.Event()
        self._stop_watching = threading.Event()
        self._pool = ThreadPoolExecutor(SUBMITTERS, thread_name_prefix="submit")
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("dispatch", self._dispatch), ("watch", self._watch))
        ]
        self._timers: list[threading.Timer] = []

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop_submitting(self) -> None:
        self._stop_submitting.set()
        self._threads[0].join()
        self._pool.shutdown(wait=True)
        for timer in self._timers:
            timer.join()

    def stop(self) -> None:
        self._stop_submitting.set()
        self._stop_watching.set()
        for thread in self._threads:
            thread.join()
        self._pool.shutdown(wait=True)

    # Submitting

    def _dispatch(self) -> None:
        jobs: list[Future[None]] = []
        for order in self._world.episode.orders():
            self._stop_submitting.wait(order.pause_before)
            while self.book.outstanding >= self._world.episode.outstanding and not self._stop_submitting.is_set():
                self._stop_submitting.wait(0.05)
            if self._stop_submitting.is_set():
                break
            with self.book.lock:
                self.book.pending[order.key] = self.book.sent[order.key] = order
            jobs.append(self._pool.submit(self._submit, order))
        for job in jobs:
            job.result()

    def _submit(self, order: Order) -> None:
        with contextlib.closing(Front(self._world, self._journal, order.key)) as front:
            answer = front.insist(
                "POST",
                "/task",
                self._stop_submitting.is_set,
                json={"kind": order.kind, "seconds": order.seconds, "key": order.key},
                headers={"Idempotency-Key": f'"{order.key}"'},
            )
            if answer is None:
                self._journal.note(f"gave up submitting {order.key}")
            elif answer.status_code == 202:
                task_id = str(answer.json()["id"])
                self._journal.note(f"acknowledged {task_id} {order.kind} {order.seconds:.2f} key {order.key}")
                self.book.acknowledge(order, task_id)
                self.followers.follow(order, task_id)
                if order.cancel_after is not None:
                    self._cancel_later(front, task_id, order.cancel_after)
            else:
                text = f"a submit was answered {answer.status_code}: {answer.text[:300]}"
                self._journal.violation("other", text, at=now())
        with self.book.lock:
            self.book.pending.pop(order.key)

    def _cancel_later(self, front: Front, task_id: str, seconds: float) -> None:
        self._stop_submitting.wait(seconds)
        with self.book.lock:
            self.book.cancelled.add(task_id)
        answer = front.ask("POST", f"/task/{task_id}/cancel")
        self._journal.note(f"cancel of {task_id} answered {answer.status_code if answer else None}")

    # Watching

    def _watch(self) -> None:
        with contextlib.closing(Front(self._world, self._journal, "watch")) as front:
            while not self._stop_watching.wait(WATCH_SECONDS):
                self.look(front)

    def look(self, front: Front) -> bool:
        """Look at every task once; False when not all could be seen."""
        cursor: str | None = None
        known: set[str] = set()
        while True:
            path = "/task?limit=200" + (f"&cursor={cursor}" if cursor else "")
            answer = front.ask("GET", path)
            if answer is None or answer.status_code != 200:
                return False
            page = answer.json()
            for summary in page["tasks"]:
                self._see(summary)
                known.add(summary["id"])
            if (cursor := page["next"]) is None:
                if self._world.has_replica:
                    self.book.forget_untold(known)
                return True

    def _see(self, summary: Summary) -> None:
        task_id = summary["id"]
        before = self.book.finals.get(task_id)
        if before and before != summary:
            text = f"task {task_id} was final and changed: {before} then {summary}"
            self._journal.violation("doubled", text, at=now())
            del self.book.finals[task_id]
            before = None
        with self.book.lock:
            old = self.book.seen.get(task_id)
            self.book.seen[task_id] = summary
            if before is None and summary["state"] in FINAL:
                self.book.finals[task_id] = summary
        if old is None or (old["state"], old["attempt"]) != (summary["state"], summary["attempt"]):
            self._journal.note(f"task {task_id} {summary['state']} attempt {summary['attempt']}")
