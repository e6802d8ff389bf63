"""The judgement at the end of an episode: was every promise kept, and is nothing left behind?"""

import contextlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.chaos.callers import IS_SUBMIT_IDEMPOTENT, Book, Callers, Front
from tests.chaos.journal import Journal
from tests.chaos.ledger import Stamp, files_of, rows_of
from tests.chaos.plan import Order
from tests.chaos.world import MAX_ATTEMPTS, PATIENCE_SECONDS, World
from tests.end_to_end.processes import FINAL

SINGLETONS = {"sequence", "turn", "turns", "limits", "pace", "reaper", "server", "mark"}
"""Keys of the whole installation that may stay when nothing is queued, runs, waits or is kept."""

SHORT_LIVED = {"once"}
"""Families of keys that may stay for their time, and must have one."""

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

NO_SPACE = "No space left on device"
TIDY_SECONDS = 20.0


class Judge:
    """Looks at one world that has come to rest."""

    def __init__(self, world: World, callers: Callers, journal: Journal) -> None:
        self._world = world
        self._callers = callers
        self._journal = journal
        self._front = Front(world, journal, "judge")
        self._documents: dict[str, dict[str, Any]] = {}

    def judge(self) -> None:
        """The whole judgement, in the order in which an operator would take the system down."""
        with contextlib.closing(self._front):
            self._callers.stop()  # first: two that look at once may see things in the wrong order
            self._wait_for_ends()
            self._read_documents()
            self._judge_tasks()
            self._judge_followers()
            self._judge_leftovers()
            self._stop_workers()
            self._judge_that_ends_stand()
            self._remove_everything()
            self._judge_store_and_keys()
        self._stop_servers()

    @property
    def _book(self) -> Book:
        return self._callers.book

    # Every task has one end

    def _wait_for_ends(self) -> None:
        def is_over() -> bool:
            return (
                self._callers.look(self._front)
                and all(summary["state"] in FINAL for summary in self._book.seen.values())
                and all(task_id in self._book.finals for task_id in self._book.orders)
            )

        if not _comes_true(is_over, PATIENCE_SECONDS, pause=0.3):
            for task_id in self._book.orders:
                seen = self._book.seen.get(task_id)
                if seen is None or seen["state"] not in FINAL:
                    self._lost(f"acknowledged task {task_id} has no final state: {seen}")
            for task_id, seen in self._book.seen.items():
                if task_id not in self._book.orders and seen["state"] not in FINAL:
                    self._lost(f"task {task_id}, of which nobody was told, has no final state: {seen}")

    def _read_documents(self) -> None:
        for task_id in self._book.seen | self._book.orders:
            if document := self._document(task_id):
                self._documents[task_id] = document
            else:
                self._lost(f"task {task_id} can no longer be read")
        self._journal.figures.tasks += len(self._documents)
        told = self._book.orders
        self._journal.figures.unacknowledged += sum(task_id not in told for task_id in self._documents)
        for document in self._documents.values():
            self._journal.figures.states[document["state"]] += 1

    def _document(self, task_id: str) -> dict[str, Any] | None:
        answer = self._front.insist("GET", f"/task/{task_id}", _after(PATIENCE_SECONDS))
        return answer.json() if answer is not None and answer.status_code == 200 else None

    def _judge_that_ends_stand(self) -> None:
        """The whole documents, rows and files included, are still the same after the workers have gone."""
        for task_id, document in self._documents.items():
            if document["state"] in FINAL and (again := self._document(task_id)) != document:
                self._doubled(f"task {task_id} was final and changed: {_short(document)} then {_short(again)}")

    # What the ledger says of each task

    def _judge_tasks(self) -> None:
        stamps = self._world.ledger.stamps()
        self._journal.figures.starts += sum(stamp.word == "start" for stamp in stamps)
        by_task: dict[str, list[Stamp]] = defaultdict(list)
        keys: dict[str, set[str]] = defaultdict(set)
        for stamp in stamps:
            by_task[stamp.task].append(stamp)
            keys[stamp.key].add(stamp.task)
            if stamp.word == "doubled":
                self._judge_doubled(stamp)
        for task_id in by_task.keys() - self._documents.keys():
            self._lost(f"task {task_id} ran, and is not known")
        for task_id, document in self._documents.items():
            _TaskJudge(self._journal, document, by_task[task_id], self._order(task_id, by_task[task_id])).judge(
                max_attempts=MAX_ATTEMPTS if self._world.episode.is_retried else 1,
                is_cancelled=task_id in self._book.cancelled,
                has_full_disks=self._world.has_disks,
            )
        if IS_SUBMIT_IDEMPOTENT:
            for key, ids in self._book.ids.items():
                keys[key].update(ids)
            for key, tasks in keys.items():
                if len(tasks) > 1:
                    self._doubled(f"the submit {key} has made {len(tasks)} tasks: {sorted(tasks)}")

    def _order(self, task_id: str, stamps: Sequence[Stamp]) -> Order | None:
        """What was asked, also where the answer was lost: the ledger knows the caller's key."""
        if order := self._book.orders.get(task_id):
            return order
        keys = {stamp.key for stamp in stamps}
        return next((self._book.sent[key] for key in keys if key in self._book.sent), None)

    def _judge_doubled(self, stamp: Stamp) -> None:
        pids = [stamp.pid, *(int(pid) for pid in [stamp.holder] if pid.isdigit())]
        if any(self._journal.was_frozen(pid, stamp.at) for pid in pids):
            self._journal.note(f"task {stamp.task} was begun by a script that had just been thawed: {stamp}")
            return
        self._journal.violation("doubled", f"two copies of task {stamp.task} at once: {stamp}", at=stamp.at)

    # What those were told who followed

    def _judge_followers(self) -> None:
        """Each was told exactly one end, and it is the one that stands."""
        for follower in self._callers.followers.finished(PATIENCE_SECONDS):
            kind = type(follower).__name__
            self._journal.figures.followed[kind] += 1
            self._journal.figures.connections[kind] += follower.connections
            document = self._documents.get(follower.task_id, {})
            told = [_short(end) | {"error": document.get("error")} for end in follower.ends]
            if not told:
                self._lost(f"a {kind} of task {follower.task_id} was not told its end: {_short(document)}")
            elif told != [_short(document)]:
                self._doubled(f"a {kind} of task {follower.task_id} was told {told}, and it is {_short(document)}")

    # What is left behind

    def _judge_leftovers(self) -> None:
        world = self._world
        if not _comes_true(lambda: not world.scripts(), TIDY_SECONDS):
            self._journal.violation("orphans", f"processes of scripts are left: {world.scripts()}")
        if not _comes_true(lambda: not self._run_folders(), TIDY_SECONDS):
            self._left_over(f"run folders are left: {self._run_folders()}")
        unknown = self._stored() - self._documents.keys()
        if unknown:
            self._left_over(f"the store has files of tasks that nobody knows: {sorted(unknown)}")

    def _run_folders(self) -> list[str]:
        folders = self._world.site.run_folders()
        return [str(folder) for folder in folders if folder not in self._world.lost_folders]

    def _stored(self) -> set[str]:
        """The tasks that have files in the store."""
        paths = [path for path in self._world.store.rglob("*") if path.is_file() and path.name != ".filler"]
        return {path.relative_to(self._world.store).parts[1] for path in paths}

    def _stop_workers(self) -> None:
        for slot in self._world.workers:
            slot.end()
        servers = {slot.program.pid for slot in self._world.servers}

        def others() -> dict[int, str]:
            return {pid: command for pid, command in self._world.site.processes().items() if pid not in servers}

        if not _comes_true(lambda: not others(), TIDY_SECONDS):
            self._journal.violation("orphans", f"processes are left after the workers have stopped: {others()}")

    def _remove_everything(self) -> None:
        for task_id in self._documents:
            answer = self._front.insist("DELETE", f"/task/{task_id}", _after(PATIENCE_SECONDS))
            if answer is None or answer.status_code not in (204, 404):
                said = answer.text if answer is not None else "nothing"
                self._journal.violation("other", f"DELETE of {task_id} was answered {said}")

    def _judge_store_and_keys(self) -> None:
        if not _comes_true(lambda: not self._stored(), TIDY_SECONDS):
            files = [str(path) for path in self._world.store.rglob("*") if path.is_file()]
            self._left_over(f"the store has files after all tasks were removed: {files}")
        if not _comes_true(lambda: not self._keys_left(), TIDY_SECONDS):
            self._left_over(f"keys are left in Redis: {self._keys_left()}")

    def _keys_left(self) -> dict[str, str]:
        """The keys that should not be there, and what is in them."""
        prefix = self._world.key("")
        with self._world.redis_client() as client:
            names = list(client.scan_iter(match="*", count=1000))
            return {
                name: _dump(client, name)[:300]
                for name in names
                if not _may_stay(client, name, name.removeprefix(prefix))
            }

    def _stop_servers(self) -> None:
        for slot in self._world.servers:
            slot.end()
        if not _comes_true(lambda: not self._world.site.processes(), TIDY_SECONDS):
            text = f"processes are left after all was stopped: {self._world.site.processes()}"
            self._journal.violation("orphans", text)

    # Words

    def _lost(self, text: str) -> None:
        self._journal.violation("lost", text)

    def _doubled(self, text: str) -> None:
        self._journal.violation("doubled", text)

    def _left_over(self, text: str) -> None:
        self._journal.violation("left over", text)


class _TaskJudge:
    """Compares the document of one task with what the ledger says of it."""

    def __init__(
        self, journal: Journal, document: Mapping[str, Any], stamps: Sequence[Stamp], order: Order | None
    ) -> None:
        self._journal = journal
        self._document = document
        self._starts = [stamp for stamp in stamps if stamp.word == "start"]
        self._ends = [stamp for stamp in stamps if stamp.word == "end"]
        self._order = order

    def judge(self, *, max_attempts: int, is_cancelled: bool, has_full_disks: bool) -> None:
        counted = [stamp for stamp in self._starts if not self._journal.was_drained(stamp.life)]
        if len(counted) > self._document["attempt"] or self._document["attempt"] > max_attempts:
            self._wrong("doubled", f"ran {len(counted)} times that count, at most {max_attempts} are allowed")
        runs = Counter(stamp.run for stamp in self._starts)
        if any(count > 1 for count in runs.values()):
            self._wrong("doubled", "one run has started twice")
        match self._document["state"]:
            case "succeeded":
                self._judge_success()
            case "failed":
                self._judge_failure(has_full_disks=has_full_disks)
            case "cancelled" if not is_cancelled:
                self._wrong("other", "is cancelled, and nobody asked for it")
            case "lost" if self._document["attempt"] < max_attempts:
                self._wrong("lost", f"was given up before its {max_attempts} attempts")
            case "timed_out":
                self._wrong("other", "ran out of a time that it was not given")

    def _judge_success(self) -> None:
        if not self._starts:
            return self._wrong("other", "succeeded, and never ran")
        last = self._starts[-1]
        if last.run not in {stamp.run for stamp in self._ends}:
            return self._wrong("doubled", f"succeeded, and its last run {last.run} has not come to its end")
        kind = self._order.kind if self._order else "instant"
        if self._document["results"] != rows_of(last, kind):
            self._wrong("other", f"succeeded with rows that are not those of its last run {last.run}")
        files = {file["name"]: file["sha256"] for file in self._document["files"]}
        if files != files_of(last, kind) or set(self._document["attachments"]) != set(files):
            self._wrong("other", f"succeeded with files that are not those of its last run {last.run}")
        return None

    def _judge_failure(self, *, has_full_disks: bool) -> None:
        error = self._document.get("error", "")
        is_full = has_full_disks and NO_SPACE in error
        is_killed = self._journal.was_script_killed(self._document["id"]) and self._document["exit_code"] == -9
        if not is_full and not is_killed:
            self._wrong("other", "failed, and nothing was done to it")

    def _wrong(self, column: str, text: str) -> None:
        at = self._starts[-1].at if self._starts else None
        runs = [(stamp.run, stamp.life, f"{stamp.at:.2f}") for stamp in self._starts]
        ends = [(stamp.run, f"{stamp.at:.2f}") for stamp in self._ends]
        said = f"task {self._document['id']} {text}: {_short(self._document)}, started {runs}, ended {ends}"
        self._journal.violation(column, said, at=at)


def _may_stay(client: Any, name: str, short_name: str) -> bool:
    """Whether a key is one of the whole installation and speaks of no task, or will go by itself."""
    family, _, rest = short_name.partition(":")
    if rest:
        return family in SHORT_LIVED and client.pttl(name) > 0
    if family == "turns" and client.zcard(name) > 1:  # that of the owner who came last
        return False
    return family in SINGLETONS and not UUID.search(_dump(client, name))


def _dump(client: Any, name: str) -> str:
    match client.type(name):
        case "string":
            return str(client.get(name))
        case "hash":
            return str(client.hgetall(name))
        case "zset":
            return str(client.zrange(name, 0, 50, withscores=True))
        case "set":
            return str(client.smembers(name))
        case "list":
            return str(client.lrange(name, 0, 50))
        case other:
            return str(other)


def _short(document: Mapping[str, Any] | None) -> dict[str, Any]:
    wanted = ("state", "attempt", "exit_code", "started_at", "finished_at", "error")
    return {name: document.get(name) for name in wanted} if document else {}


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _comes_true(look: Callable[[], bool], seconds: float, *, pause: float = 0.05) -> bool:
    is_late = _after(seconds)
    while not look():
        if is_late():
            return False
        time.sleep(pause)
    return True
