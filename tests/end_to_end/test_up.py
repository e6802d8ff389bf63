"""``script-runner up``: one command for server, worker and embedded Valkey, and what it survives."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end.processes import Server, Site, shell_config, until
from tests.servers import RedisServer, free_port

WAIT_FOR_GO = "until [ -e go ]; do sleep 0.02; done"
FOR_EVER = "while :; do sleep 0.05; done"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, shell_config()) as site:
        yield site


def started(site: Site, *words: str) -> Server:
    """All in one, ready."""
    server = site.up(*words)
    server.wait_until_ready()
    return server


def pid_of(site: Site, word: str) -> int:
    """The one process of the site with this word in its command line.

    A script has the name of its worker for a moment, between vfork(2) and execve(2).
    """

    def only() -> int | None:
        found = [pid for pid, command in site.processes().items() if word in command]
        return found[0] if len(found) == 1 else None

    return until(only, why=lambda: str(site.processes()))


# Where it listens


def test_the_default_port_taken_it_finds_another_and_says_which(site: Site) -> None:
    """With port 8000 in use, up serves on the next free one, and its first line has the URL."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody else has it: as good
            stack.enter_context(socket.create_server(("127.0.0.1", 8000)))
        program = site.start("up", "--data", "data")
        program.wait_for_output(" at http://127.0.0.1:80")

        assert "http://127.0.0.1:8000 " not in program.output


def test_a_chosen_port_taken_is_an_error(site: Site) -> None:
    """--port of somebody else: exit code 2, a sentence with the port, and nothing left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = site.run("up", "--port", str(port), "--data", "data")

    assert done.returncode == 2
    assert done.stderr.startswith(f"script-runner: Cannot listen on 127.0.0.1 port {port}: ")
    assert site.processes() == {}


def test_a_chosen_port_is_taken_also_from_the_environment(site: Site) -> None:
    """SCRIPT_RUNNER_PORT chooses the port."""
    port = free_port()

    program = site.start("up", "--data", "data", SCRIPT_RUNNER_PORT=str(port))

    program.wait_for_output(f" at http://127.0.0.1:{port} ")


def test_it_may_be_started_without_an_input(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no standard input is open no file of ours takes its place, and is closed with it in the worker."""
    command = site._command
    monkeypatch.setattr(site, "_command", lambda words: ["sh", "-c", 'exec "$@" <&-', "sh", *command(words)])
    server = started(site)

    assert server.run("true")["state"] == "succeeded"
    assert "is started again" not in server.output


def test_no_process_that_stays_holds_what_reads_configurations(site: Site) -> None:
    """Pydantic is loaded by a copy that has ended: it would be a seventh of the memory of server and worker."""
    server = started(site)
    server.run("true")

    maps = {command: Path(f"/proc/{pid}/maps").read_text() for pid, command in site.processes().items()}

    assert sum("msgspec" in libraries for libraries in maps.values()) == 2
    assert [command for command, libraries in maps.items() if "pydantic" in libraries] == []


# Where its data is


def test_a_data_folder_in_use_is_an_error(site: Site) -> None:
    """A second up on one folder: exit code 2, and a sentence that names the process that has it."""
    first = started(site)

    done = site.run("up", "--port", "0", "--data", "data")

    assert done.returncode == 2
    assert f"in use by another script-runner (process {first.pid})" in done.stderr
    assert first.run("true")["state"] == "succeeded"


def test_a_file_in_place_of_the_data_folder_is_an_error(site: Site) -> None:
    """--data of a file: exit code 2, and a sentence with what to do."""
    (site.folder / "data").write_text("")

    done = site.run("up", "--port", "0", "--data", "data")

    assert done.returncode == 2
    assert "cannot be used" in done.stderr
    assert "--data" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("folder", ["/proc/script-runner", "/sys/script-runner"])
def test_a_data_folder_that_cannot_be_made_is_an_error(site: Site, folder: str) -> None:
    """--data on a file system that takes nothing: exit code 2, and a sentence with the folder."""
    done = site.run("up", "--port", "0", "--data", folder)

    assert done.returncode == 2
    assert f"{folder} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_default_data_folder_is_below_the_state_directory(site: Site) -> None:
    """Without --data the data is in XDG_STATE_HOME/script-runner, in a folder of this configuration."""
    program = site.start("up", "--port", "0")
    program.wait_for_output(" at http://")

    until(lambda: list((site.folder / "state" / "script-runner").glob("*/appendonlydir")))


def test_a_data_folder_with_a_long_path_works(site: Site) -> None:
    """The socket's path is limited to 108 bytes, the data folder's is not."""
    server = site.up("--data", "d" * 120)
    server.wait_until_ready()

    assert server.run("true")["state"] == "succeeded"


def test_the_data_is_nobody_elses_to_read(site: Site) -> None:
    """The data folder and the artifacts are for their owner alone."""
    server = started(site)
    server.run("echo x > $RUNDIR/files/x")

    for folder in (site.folder / "data", site.folder / "data" / "artifacts"):
        assert folder.stat().st_mode & 0o077 == 0, folder


# How it stops


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_everything_with_exit_code_0(site: Site, number: signal.Signals) -> None:
    """Ctrl-C or TERM: server, worker, guardian and Valkey are gone, and the exit code is 0."""
    server = started(site)
    assert len(site.processes()) >= 4

    server.signal(number)

    assert server.wait() == 0, server.output
    assert site.processes() == {}
    assert "Traceback" not in server.output


def test_a_stop_lets_a_running_script_end_and_keeps_its_outcome(site: Site) -> None:
    """The first Ctrl-C waits for the script, and its results are there after the next start."""
    server = started(site)
    task_id = server.submit(f"{WAIT_FOR_GO}; echo x > $RUNDIR/files/x")
    server.wait_for_state(task_id, "running")

    server.signal(signal.SIGINT)
    server.wait_for_output("waiting up to")
    (site.folder / "go").touch()

    assert server.wait() == 0, server.output
    document = site.up().document(task_id)
    assert (document["state"], list(document["attachments"])) == ("succeeded", ["x"])


def test_a_second_ctrl_c_stops_the_script_too(site: Site) -> None:
    """Twice Ctrl-C: the script is stopped, everything is gone, and the task is honest about it."""
    server = started(site)
    task_id = server.submit(f'trap "" TERM; {FOR_EVER}')
    server.wait_for_state(task_id, "running")

    server.signal(signal.SIGINT)
    server.wait_for_output("waiting up to")
    server.signal(signal.SIGINT)

    assert server.wait() == 0, server.output
    assert site.processes() == {}
    assert site.up().finished(task_id)["state"] == "lost"


def test_queued_tasks_outlive_a_stop(site: Site) -> None:
    """What waits when up is stopped is run after the next start."""
    server = started(site, "--concurrency", "1")
    running = server.submit(WAIT_FOR_GO)
    waiting = [server.submit("true") for _ in range(5)]
    server.wait_for_state(running, "running")
    server.signal(signal.SIGINT)
    server.wait_for_output("waiting up to")
    (site.folder / "go").touch()
    assert server.wait() == 0

    again = site.up()

    assert {again.finished(task_id)["state"] for task_id in [running, *waiting]} == {"succeeded"}


# What it survives


def test_everything_killed_and_started_again_keeps_every_acknowledged_task(site: Site) -> None:
    """After kill -9 of up, worker, guardian, Valkey and scripts: done tasks have their files, waiting ones are
    run, the running one is lost and says so.
    """
    server = started(site, "--concurrency", "1")
    done = server.run("echo kept > $RUNDIR/files/x")
    running = server.submit(FOR_EVER)
    server.wait_for_state(running, "running")
    waiting = [server.submit("true") for _ in range(20)]

    site.kill_everything()

    again = site.up()
    assert [again.finished(task_id)["state"] for task_id in waiting] == ["succeeded"] * 20
    assert again.document(done["id"]) == done
    lost = again.finished(running)
    assert (lost["state"], lost["attempt"]) == ("lost", 1)


def test_up_killed_alone_leaves_a_valkey_that_the_next_start_adopts(site: Site) -> None:
    """After kill -9 of up alone its worker ends, and the next up takes over the Valkey and all tasks."""
    server = started(site, "--concurrency", "1")
    running = server.submit(WAIT_FOR_GO)
    server.wait_for_state(running, "running")
    waiting = server.submit("true")
    valkey = pid_of(site, "valkey-server")

    server.kill()
    with socket.create_server(("127.0.0.1", server.http.base_url.port or 0)):
        """Its worker, which still runs, does not hold its port."""
    again = site.up()
    (site.folder / "go").touch()

    assert {again.finished(task_id)["state"] for task_id in (running, waiting)} == {"succeeded"}
    assert pid_of(site, "valkey-server") == valkey
    again.signal(signal.SIGINT)
    assert again.wait() == 0
    until(lambda: not site.processes(), why=lambda: str(site.processes()))


def test_a_killed_worker_is_started_again(site: Site) -> None:
    """Without its worker up starts another, which runs what waits; the task of the dead one is lost."""
    server = started(site, "--concurrency", "1")
    running = server.submit(FOR_EVER)
    server.wait_for_state(running, "running")
    waiting = server.submit("true")

    os.kill(pid_of(site, "runner-worker"), signal.SIGKILL)

    assert server.finished(waiting)["state"] == "succeeded"
    assert server.finished(running)["state"] == "lost"
    assert site.processes(TASK_ID=running) == {}


def test_a_killed_valkey_is_started_again(site: Site) -> None:
    """Without its Valkey up starts another on the same data, and every acknowledged task is done."""
    server = started(site)
    ids = [server.submit("sleep 0.05") for _ in range(10)]

    os.kill(pid_of(site, "valkey-server"), signal.SIGKILL)

    until(lambda: server.http.get("/ready").status_code == 200, why=lambda: server.output)
    assert {server.finished(task_id)["state"] for task_id in ids} <= {"succeeded", "lost"}
    assert server.run("true")["state"] == "succeeded"


def test_a_worker_that_cannot_start_does_not_stop_the_server(site: Site) -> None:
    """Even when its worker dies again and again, up goes on to answer and Ctrl-C ends it."""
    server = started(site)
    site.config.write_text("{")
    os.kill(pid_of(site, "runner-worker"), signal.SIGKILL)
    server.wait_for_output("is started again", times=2)

    assert server.http.get("/health").status_code == 200
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert site.processes() == {}


def test_up_with_a_redis_of_its_own_starts_no_valkey(site: Site, redis_server: RedisServer) -> None:
    """--redis takes the place of the embedded server."""
    server = site.up("--redis", redis_server.url)
    server.wait_until_ready()

    assert server.run("true")["state"] == "succeeded"
    assert not [command for command in site.processes().values() if "valkey-server" in command]


# What stops it before it starts


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--store", "ftp://bucket/x"), "artifact store"),
        (("--store", "nonsense"), "artifact store"),
        (("--redis", "http://127.0.0.1"), "Redis URL"),
        (("--redis", "nonsense"), "Redis URL"),
        (("--concurrency", "0"), "concurrency"),
        (("--concurrency", "many"), "concurrency"),
        (("--port", "70000"), "port"),
        (("--drain-timeout", "-1"), "drain"),
        (("--host", "no.such.host.invalid"), "AUTH_PROVIDER"),
        (("nothing.json",), "nothing.json cannot be read"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_code_2(site: Site, words: tuple[str, ...], said: str) -> None:
    """What cannot work is refused before anything is started, without a traceback."""
    done = site.run("up", "--port", "0", "--data", "data", *words)

    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert site.processes() == {}
