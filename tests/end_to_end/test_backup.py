"""Backup and restore by the commands of docs/deploy/backup.md, run as they stand there, while tasks run."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import present
from tests.end_to_end.processes import Server, Site, shell_config, until
from tests.servers import RedisServer

PAGE = Path(__file__).parents[2] / "docs" / "deploy" / "backup.md"

UNTIL_GO = "echo ready; until [ -e go ]; do sleep 0.02; done"
DOCKER = r"""#!/bin/bash
# docker compose, as far as the page uses it: what would run in a container runs here, /data a folder of ours
set -euo pipefail
[[ $1 == compose ]] && verb=$2 && shift 2
while [[ ${1:-} == -* ]]; do shift; done
folder_of() { [[ $1 == redis ]] && echo "$REDIS_DATA" || { [[ $1 == server ]] && echo "$STORE"; }; }
case $verb in
  exec | run)
    data=$(folder_of "$1") && shift && mkdir -p "$data"
    words=()
    for word in "$@"; do words+=("${word//\/data/$data}"); done
    [[ ${words[0]} == valkey-cli ]] && words=(redis-cli -u "$REDIS" "${words[@]:1}")
    exec "${words[@]}" ;;
  cp) cp "$(folder_of "${1%%:*}")/${1#*:/data/}" "$2" ;;
  up) ;;
  *) exit 64 ;;
esac
"""

KEEP = "echo $TASK_ID >> ran; echo $TASK_ID > $RUNDIR/files/mine"
"""Shell code that notes its run in a ledger outside, and keeps a file that names its task."""


def commands(heading: str) -> list[str]:
    """The blocks of shell code below this heading of the page, up to the next."""
    section = re.split(r"^##+ ", PAGE.read_text(), flags=re.MULTILINE)
    found = [part for part in section if part.startswith(f"{heading}\n")]
    assert len(found) == 1, heading
    return re.findall(r"^```\n(.*?)^```", found[0], re.DOTALL | re.MULTILINE)


def execute(block: str, folder: Path, **variables: str) -> None:
    """Run a block of the page as it is; every command must succeed."""
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    present(shutil.which("redis-cli"), "redis-cli")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, shell_config()) as site:
        yield site


def ran(folder: Path) -> list[str]:
    """The ids of tasks in the order of their runs."""
    return (folder / "ran").read_text().split()


def status(server: Server, task_id: str) -> int:
    return server.http.get(f"/task/{task_id}").status_code


class Story:
    """Tasks in every state that one can be in when a backup is made, and what happened to them since."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder
        self.done = server.run(f"{KEEP}; echo said")
        self.deleted_since = server.run(KEEP)["id"]
        self.running = server.submit(f"{KEEP}; {UNTIL_GO}")
        self.waiting = [server.submit(KEEP) for _ in range(3)]
        soon = datetime.now(UTC) + timedelta(seconds=4)
        self.due_since = self._submit_with("Task-Not-Before", soon.isoformat())
        self.expired_since = self._submit_with("Task-Expires-In", "8")
        until(lambda: "ready" in server.log(self.running))

    def _submit_with(self, header: str, value: str) -> str:
        answer = self._server.http.post("/task", json={"code": KEEP}, headers={header: value})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def go_on(self) -> None:
        """Let all end, delete one, and submit another."""
        (self._folder / "go").touch()
        for task_id in (self.running, *self.waiting, self.due_since, self.expired_since):
            assert self._server.finished(task_id)["state"] in ("succeeded", "timed_out")
        assert self._server.http.delete(f"/task/{self.deleted_since}").status_code == 204
        self.submitted_since = self._server.run(KEEP)["id"]


def test_up_is_restored_to_the_time_of_the_backup(site: Site) -> None:
    """What had ended is there with its files, what waited runs again, what ran is lost, what came since is not."""
    _, backup, restore = commands("One machine, `up`")
    variables = {"DATA": str(site.folder / "data"), "BACKUP": str(site.folder / "backup")}
    (site.folder / "backup").mkdir()
    server = site.up("--concurrency", "1")
    server.wait_until_ready()
    story = Story(server, site.folder)

    execute(backup, site.folder, **variables)
    story.go_on()
    site.kill_everything()
    shutil.rmtree(site.folder / "data")
    execute(restore, site.folder, **variables)
    before = ran(site.folder)
    again = site.up("--concurrency", "1")

    again.wait_until_ready()
    assert again.document(story.done["id"]) == story.done
    assert again.log(story.done["id"]) == "said\n"
    assert again.finished(story.running)["state"] == "lost"
    assert {again.finished(task_id)["state"] for task_id in story.waiting} == {"succeeded"}
    assert again.finished(story.due_since)["state"] == "succeeded"
    assert again.document(story.deleted_since)["state"] == "succeeded"
    assert status(again, story.submitted_since) == 404
    ran_again = set(ran(site.folder)[len(before) :]) - {story.expired_since}  # it may not have been for so long
    assert ran_again == {*story.waiting, story.due_since}


def test_a_copy_of_the_whole_folder_made_while_up_is_stopped_is_as_good(site: Site) -> None:
    """Tasks, files and what waits are there again after the folder was lost and copied back."""
    server = site.up("--concurrency", "1")
    server.wait_until_ready()
    done = server.run(KEEP)
    later = server.http.post(
        "/task",
        json={"code": KEEP},
        headers={"Task-Not-Before": (datetime.now(UTC) + timedelta(hours=1)).isoformat()},
    ).json()["id"]
    server.terminate()
    assert server.wait() == 0, server.output

    execute('cp -a "$DATA" "$BACKUP"', site.folder, DATA="data", BACKUP="copy")
    shutil.rmtree(site.folder / "data")
    execute('cp -a "$BACKUP" "$DATA"', site.folder, DATA="data", BACKUP="copy")
    again = site.up("--concurrency", "1")

    again.wait_until_ready()
    assert again.document(done["id"]) == done
    assert again.document(later)["state"] == "queued"


class Own:
    """A server on a Redis and a store of its own, and the variables that the page speaks of."""

    def __init__(self, site: Site, redis: RedisServer) -> None:
        self.site, self.redis = site, redis
        self.variables = {
            "REDIS": f"redis://127.0.0.1:{redis.port}",
            "REDISCLI_AUTH": "secret",
            "REDIS_DATA": str(redis.folder),
            "STORE": str(site.folder / "store"),
            "BACKUP": str(site.folder / "backup"),
        }
        (site.folder / "backup").mkdir()

    def lose_everything(self) -> None:
        self.site.kill_everything()
        self.redis.kill()
        shutil.rmtree(self.redis.folder / "appendonlydir")
        shutil.rmtree(self.site.folder / "store")


@pytest.fixture
def own(request: pytest.FixtureRequest, tmp_path: Path, redis_binary_path: str) -> Iterator[Own]:
    # without the delay in which Redis waits for more who want a copy
    settings = {"repl-diskless-sync-delay": "0"}
    config: dict[str, Any] = getattr(request, "param", {})
    with (
        RedisServer(redis_binary_path, password="secret", settings=settings) as redis,
        Site(tmp_path, shell_config(**config), SCRIPT_RUNNER_REDIS_URL=redis.url) as site,
    ):
        yield Own(site, redis)


@pytest.mark.parametrize("own", [{"on_worker_lost": "retry"}], indirect=True)
def test_redis_and_store_are_restored_and_what_waits_can_be_looked_at_before_it_runs(own: Own) -> None:
    """A server without a worker shows what waits and cancels it; then what ran is tried again."""
    backup, restore = commands("A Redis and a store of your own")
    site = own.site
    server = site.serve()
    site.worker("--concurrency", "1")
    server.wait_until_ready()
    story = Story(server, site.folder)

    execute(backup, site.folder, **own.variables)
    story.go_on()
    own.lose_everything()
    execute(restore, site.folder, **own.variables)
    own.redis.start()
    before = ran(site.folder)
    again = site.serve()
    again.wait_until_ready(workers=0)
    assert again.finished(story.expired_since)["state"] == "timed_out"
    again.wait_for_state(story.running, "queued")
    listed = again.http.get("/task", params={"state": "queued"}).json()
    assert again.http.post(f"/task/{story.waiting[0]}/cancel").status_code == 202
    site.worker("--concurrency", "1")

    assert {task["id"] for task in listed["tasks"]} == {story.running, *story.waiting, story.due_since}
    assert again.document(story.done["id"]) == story.done
    retried = again.finished(story.running)
    assert (retried["state"], retried["attempt"]) == ("succeeded", 2)
    ends = [again.finished(task_id)["state"] for task_id in story.waiting]
    assert ends == ["cancelled", "succeeded", "succeeded"]
    assert again.finished(story.due_since)["state"] == "succeeded"
    assert status(again, story.submitted_since) == 404
    assert sorted(ran(site.folder)[len(before) :]) == sorted([story.running, *story.waiting[1:], story.due_since])


def test_a_backup_made_while_tasks_end_has_every_file_that_its_records_name(own: Own) -> None:
    """Redis first, then the store: no task of the backup has a record without its file."""
    redis_first, store_then = commands("A Redis and a store of your own")[0].splitlines()
    restore = commands("A Redis and a store of your own")[1]
    site = own.site
    server = site.serve()
    worker = site.worker("--concurrency", "2")
    server.wait_until_ready()
    ended = [server.run(KEEP)["id"] for _ in range(5)]
    waiting = [server.submit(f"{KEEP}; sleep 0.05") for _ in range(30)]

    execute(redis_first, site.folder, **own.variables)
    ended_since = [server.run(KEEP)["id"] for _ in range(5)]
    for task_id in waiting:
        server.finished(task_id)
    execute(store_then, site.folder, **own.variables)
    worker.kill()
    own.lose_everything()
    execute(restore, site.folder, **own.variables)
    own.redis.start()
    again = site.serve()
    again.wait_until_ready(workers=0)
    kept = [again.document(task_id) for task_id in (*ended, *waiting)]

    assert all(document["attachments"] for document in kept if document["state"] == "succeeded")
    assert {document["state"] for document in kept[: len(ended)]} == {"succeeded"}
    assert {status(again, task_id) for task_id in ended_since} == {404}


def test_the_commands_of_compose_do_the_same_within_its_containers(own: Own) -> None:
    """With a stand-in for docker that runs their inner commands here: what had ended is there with its files."""
    backup, restore = commands("Compose")
    site = own.site
    (site.folder / "docker").write_text(DOCKER)
    (site.folder / "docker").chmod(0o700)
    variables = {**own.variables, "PATH": f"{site.folder}:{os.environ['PATH']}"}
    server = site.serve()
    site.worker("--concurrency", "1")
    server.wait_until_ready()
    done = server.run(f"{KEEP}; echo said")

    execute(backup, site.folder, **variables)
    own.lose_everything()
    (own.redis.folder / "tasks.rdb").unlink()
    execute(restore, site.folder, **variables)
    own.redis.start()
    again = site.serve()

    again.wait_until_ready(workers=0)
    assert again.document(done["id"]) == done
    assert again.log(done["id"]) == "said\n"


def test_files_of_tasks_that_nobody_knows_are_found_by_their_age(tmp_path: Path) -> None:
    """The command of the page removes the folders of old tasks, and no other."""
    old, new = tmp_path / "ab" / "ab-old", tmp_path / "ab" / "ab-new"
    for folder in (old, new):
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "0").write_text("x")
    os.utime(old, (1_600_000_000, 1_600_000_000))
    os.utime(tmp_path / "ab", (1_600_000_000, 1_600_000_000))

    (block,) = commands("What becomes of which task")
    execute(block, tmp_path, STORE=str(tmp_path))

    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["ab-new"]
