"""A rolling restart under load: callers that never retry, two servers and two workers replaced one by one.

``python -m tests.end_to_end.rolling --requests 5000`` goes on until so many were made, and prints the figures.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.end_to_end.balancer import Balancer
from tests.end_to_end.processes import FINAL, PATIENCE_SECONDS, Program, Server, Site, shell_config, until
from tests.servers import RedisServer, redis_binary

CALLERS = 4
LINGER_SECONDS = "1.5"
POLL_SECONDS = 0.02
HELD_UP_SECONDS = 1.0


@dataclass(slots=True)
class Figures:
    """What came of it. ``failures`` are answers other than 2xx and requests without an answer, in words."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    journal: list[str] = field(default_factory=list)
    asking: dict[int, float] = field(default_factory=dict)
    """The callers that wait for an answer, and since when."""

    def note(self, text: str) -> None:
        self.journal.append(f"{time.monotonic():.3f} {text}")

    def __str__(self) -> str:
        lost = sum(state != "succeeded" for state in self.states.values())
        return (
            f"{self.requests} requests, {len(self.failures)} failed; {self.restarts} restarts;"
            f" {len(self.states)} tasks, {lost} not succeeded"
        )


class Caller(threading.Thread):
    """Submits a task, polls it to its end, and again, on one keep-alive connection and without any retry."""

    def __init__(self, url: str, figures: Figures, lock: threading.Lock) -> None:
        super().__init__(name="caller", daemon=True)
        self._url = url
        self._figures = figures
        self._lock = lock
        self._stopped = threading.Event()

    def run(self) -> None:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=60)
        with httpx.Client(base_url=self._url, timeout=PATIENCE_SECONDS, trust_env=False, limits=limits) as http:
            while not self._stopped.is_set():
                task_id = self._submit(http)
                if task_id:
                    self._poll(http, task_id)

    def stop(self) -> None:
        """Stop once the task under way has ended."""
        self._stopped.set()
        self.join(PATIENCE_SECONDS * 2)
        assert not self.is_alive(), "a caller does not end"

    def _submit(self, http: httpx.Client) -> str | None:
        document = self._ask(http, "POST", "/task", json={"code": "echo x > $RUNDIR/files/x"})
        if document is None:
            return None
        with self._lock:
            self._figures.states[document["id"]] = document["state"]
        return document["id"]

    def _poll(self, http: httpx.Client, task_id: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        state = None
        while state not in FINAL and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            document = self._ask(http, "GET", f"/task/{task_id}")
            state = document["state"] if document else None
        with self._lock:
            self._figures.states[task_id] = state or "no answer"
            if state != "succeeded":
                self._figures.note(f"not succeeded: {document}")

    def _ask(self, http: httpx.Client, method: str, path: str, json: object = None) -> dict[str, str] | None:
        """The document of a 2xx answer; everything else is a failure."""
        sent_at = self._figures.asking[id(self)] = time.monotonic()
        try:
            answer = http.request(method, path, json=json)
            said = None if answer.is_success else f"{answer.status_code} {answer.text}"
        except httpx.HTTPError as error:
            said = repr(error)
        self._figures.asking.pop(id(self))
        with self._lock:
            self._figures.requests += 1
            if said:
                self._figures.failures.append(f"{time.monotonic():.3f} {method} sent at {sent_at:.3f}: {said}")
        return None if said else answer.json()


class Deployment:
    """Two servers behind the balancer, and two workers, each of which can be replaced."""

    def __init__(self, site: Site, balancer: Balancer, figures: Figures) -> None:
        self._site = site
        self._balancer = balancer
        self._figures = figures
        self._servers = [self._new_server() for _ in range(2)]
        self._workers = [self._new_worker(count) for count in (1, 2)]

    def replace_all(self) -> None:
        """Each server and each worker in turn: TERM, its end, a new one in its place."""
        for number in range(2):
            self._replace_server(number)
            self._replace_worker(number)

    def cut_a_server_off(self) -> None:
        """End a server in mid-answer, which a rolling restart must never look like, and start it anew."""
        old = self._servers[0]
        old.signal(signal.SIGSTOP)
        until(self._is_somebody_held_up)
        old.kill()
        self._balancer.remove(old.url)
        old.close()
        self._servers[0] = self._new_server()

    def _is_somebody_held_up(self) -> bool:
        return any(time.monotonic() - since > HELD_UP_SECONDS for since in list(self._figures.asking.values()))

    def _replace_server(self, number: int) -> None:
        old = self._servers[number]
        self._end(old, "server")
        self._balancer.remove(old.url)
        old.close()
        self._servers[number] = self._new_server()

    def _replace_worker(self, number: int) -> None:
        self._end(self._workers[number], "worker")
        self._workers[number] = self._new_worker(2)

    def _end(self, program: Program, kind: str) -> None:
        self._figures.note(f"TERM to {kind} {program.pid}")
        program.terminate()
        assert program.wait() == 0, program.output
        self._figures.note(f"{kind} {program.pid} has ended")
        self._figures.restarts += 1

    def _new_server(self) -> Server:
        server = self._site.serve(SCRIPT_RUNNER_LINGER_SECONDS=LINGER_SECONDS)
        self._balancer.add(server.url)
        self._figures.note(f"server {server.pid} is ready")
        return server

    def _new_worker(self, count: int) -> Program:
        worker = self._site.worker("--concurrency", "2")
        self._servers[0].wait_until_ready(workers=count)
        self._figures.note(f"worker {worker.pid} is ready")
        return worker


@contextlib.contextmanager
def load(url: str, figures: Figures) -> Iterator[None]:
    """Callers at work; at the end each of their tasks has ended."""
    lock = threading.Lock()
    callers = [Caller(url, figures, lock) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        for caller in callers:
            caller.stop()


def roll(redis_url: str, folder: Path, *, rounds: int, requests: int = 0) -> tuple[Figures, dict[str, int]]:
    """Replace everything so often, and until so many requests were made.

    Returns the figures, and how many connections each server got.
    """
    figures = Figures()
    with Balancer() as balancer, Site(folder, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis_url) as site:
        deployment = Deployment(site, balancer, figures)
        with load(balancer.url, figures):
            while rounds > 0 or figures.requests < requests:
                deployment.replace_all()
                rounds -= 1
        for log in sorted(folder.glob("program-*.log")):
            figures.journal += [f"{log.name}: {line}" for line in log.read_text().splitlines() if " task " in line]
        return figures, balancer.carried


def main() -> int:
    """Run it for so many requests; 0 if none failed and every task succeeded."""
    parser = argparse.ArgumentParser(description="A rolling restart under load.")
    parser.add_argument("--requests", type=int, default=5000)
    wanted = parser.parse_args().requests
    binary = redis_binary()
    if binary is None:
        sys.exit("redis-server is not installed")
    with RedisServer(binary) as redis, tempfile.TemporaryDirectory(prefix="rolling-") as folder:
        figures, _ = roll(redis.url, Path(folder), rounds=1, requests=wanted)
    print(figures)  # noqa: T201 - what it is run for
    for failure in figures.failures:
        print(failure)  # noqa: T201 - as above
    is_well = not figures.failures and set(figures.states.values()) == {"succeeded"}
    if not is_well:
        print(*figures.journal, sep="\n")  # noqa: T201 - as above
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
