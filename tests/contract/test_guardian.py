"""The guardian: scripts die with their worker, however it dies, and with its right to hold them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from tests.living import CHAIN, living

from script_runner.adapters.process import guardian

WORKER = """
import asyncio, json, os, sys, time
from pathlib import Path
from script_runner.adapters.process import LocalExecutor
from script_runner.ports import Command


async def main():
    executor = LocalExecutor(keep_folders="keep" in sys.argv)
    processes = {}

    async def start(folder, script):
        environment = {"PATH": os.environ["PATH"], "RUNDIR": folder}
        processes[folder] = await executor.start(Command(("/bin/sh", "-c", script), environment, Path(folder)))

    async def end(folder):
        await processes[folder].end()

    async def stop(folder):
        await end(folder)
        processes.pop(folder).close()
        executor.forget(Path(folder))

    async def hold(seconds, times=1):
        for _ in range(times):
            executor.hold_until(time.clock_gettime(time.CLOCK_BOOTTIME) + seconds)

    async def close():
        for process in processes.values():
            process.close()
        await executor.close()

    verbs = {"start": start, "end": end, "stop": stop, "hold": hold, "close": close}
    print(executor._guardian.pid, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, *rest = json.loads(line)
        await verbs[verb](*rest)
        print(executor._guardian.pid, flush=True)
    os._exit(0)


asyncio.run(main())
"""
"""A worker that does what each line says, then answers with the number of its guardian."""

IDLE = 'echo $$ >> "$RUNDIR/pids"; while :; do sleep 0.05; done'

DAEMON = """
import os, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open(os.environ["RUNDIR"] + "/pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""

FAMILY = f"trap '' TERM; sh -c '{IDLE}' & setsid sh -c '{IDLE}' & '{sys.executable}' -I -S -c '{DAEMON}'; {IDLE}"
"""A script with a child, a child in a session of its own and a daemon: four processes, proof against TERM."""

FORKING = f"'{sys.executable}' -I -S -c '{CHAIN}'; {IDLE}"


class Worker:
    """A process with an executor, to be killed and paused."""

    def __init__(self, parent: Path, *, keep_folders: bool = False) -> None:
        self.parent = parent
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *(["keep"] if keep_folders else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.guardian = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for folder in self.parent.iterdir():  # what the guardian has not killed yet, or not found
            for pid in living(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def start(self, script: str, *, processes: int) -> Path:
        """Start a script and return its run folder when so many processes have said their number there."""
        folder = Path(tempfile.mkdtemp(prefix="results-", dir=self.parent))
        self.say("start", str(folder), script)
        until(lambda: said(folder) >= processes)
        return folder

    def say(self, *words: str | float) -> None:
        """Have the worker do something; it is done when this returns."""
        if self._process.stdin:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
        self.guardian = self._answer()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> int:
        line = self._process.stdout.readline() if self._process.stdout else ""
        return int(line)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker(tmp_path) as started:
        yield started


def said(folder: Path) -> int:
    try:
        return (folder / "pids").read_text().count("\n")
    except FileNotFoundError:
        return 0


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)


def until_gone(*folders: Path) -> None:
    until(lambda: not any(living(folder) or folder.exists() for folder in folders))


# The worker dies


def test_what_becomes_another_program_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is between two programs says nothing of itself for a moment (execve(2))."""
    process = subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"], "RUNDIR": str(tmp_path)})
    silences = [b""]
    environment = guardian.environment

    def said_in_the_end(pid: str) -> list[bytes]:
        return [silences.pop()] if pid == str(process.pid) and silences else environment(pid)

    monkeypatch.setattr(guardian, "environment", said_in_the_end)
    guardian.clean({str(tmp_path): 0})

    assert process.wait(10) == -signal.SIGKILL


def test_a_folder_whose_files_are_being_kept_goes_with_the_worker(worker: Worker) -> None:
    """When the worker dies after the script, while it keeps what the script left, the run folder goes too."""
    folder = worker.start(FAMILY, processes=4)
    worker.say("end", str(folder))
    assert folder.exists()
    worker.kill()

    until_gone(folder)


def test_nothing_outlives_a_killed_worker(worker: Worker) -> None:
    """When the worker is killed, so is all that its scripts started, and the run folders go."""
    folders = [worker.start(FAMILY, processes=4) for _ in range(2)]
    worker.kill()

    until_gone(*folders)


def test_a_chain_of_forks_does_not_outlive_the_worker(worker: Worker) -> None:
    """A process that moves on to a child in another session is caught, too."""
    folder = worker.start(FORKING, processes=20)
    worker.kill()

    until_gone(folder)


def test_run_folders_stay_where_that_is_wanted(tmp_path: Path) -> None:
    """An executor that keeps folders keeps them also when its worker is killed."""
    with Worker(tmp_path, keep_folders=True) as worker:
        folder = worker.start(FAMILY, processes=4)
        worker.kill()

        until(lambda: not living(folder) and not is_alive(worker.guardian))
        assert (folder / "pids").exists()


def test_folder_of_an_ended_run_is_left_alone(worker: Worker) -> None:
    """What became of the folder of a run that has ended is no business of the guardian."""
    ended = worker.start(IDLE, processes=1)
    worker.say("stop", str(ended))
    running = worker.start(IDLE, processes=1)
    worker.kill()

    until_gone(running)
    until(lambda: not is_alive(worker.guardian))
    assert ended.exists()


def test_guardian_goes_with_an_idle_worker(worker: Worker) -> None:
    """A worker that ran nothing leaves no guardian behind."""
    worker.kill()

    until(lambda: not is_alive(worker.guardian))


def test_signals_that_end_a_service_do_not_end_the_guardian(worker: Worker) -> None:
    """A TERM, INT or HUP to everything at once, as supervisors send it, leaves the guardian on its post."""
    folder = worker.start(FAMILY, processes=4)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(worker.guardian, number)
    worker.kill()

    until_gone(folder)


# The worker stands still


def test_scripts_are_killed_when_the_right_to_hold_them_ends(worker: Worker) -> None:
    """A worker that stands still past its deadline loses its scripts, and can start others afterwards."""
    folder = worker.start(FAMILY, processes=4)
    worker.say("hold", 0.5)
    worker.pause()
    until(lambda: not living(folder))
    worker.go_on()

    worker.say("stop", str(folder))
    worker.say("hold", 600)
    assert living(worker.start(IDLE, processes=1))


def test_a_chain_of_forks_is_killed_at_the_deadline(worker: Worker) -> None:
    """Also what forks on while it is looked for is dead after the deadline."""
    folder = worker.start(FORKING, processes=20)
    worker.say("hold", 0.3)
    worker.pause()

    until(lambda: not living(folder))
    assert folder.exists()


def test_renewed_right_keeps_scripts_alive(worker: Worker) -> None:
    """Scripts run on past an earlier deadline when a later one was named in time."""
    folder = worker.start(IDLE, processes=1)
    first_deadline = time.monotonic() + 3
    while time.monotonic() < first_deadline + 0.5:
        worker.say("hold", 3)
        time.sleep(0.1)

    assert living(folder)


# The guardian itself


def test_killed_guardian_is_replaced(worker: Worker) -> None:
    """At the next word a new guardian takes over what the old one watched."""
    folder = worker.start(FAMILY, processes=4)
    killed = worker.guardian
    os.kill(killed, signal.SIGKILL)
    until(lambda: not is_alive(killed))
    worker.say("hold", 600)

    assert worker.guardian != killed
    worker.kill()
    until_gone(folder)


def test_new_guardian_knows_the_deadline(worker: Worker) -> None:
    """A guardian that is replaced for another reason than a renewal still ends what is held too long."""
    folder = worker.start(FAMILY, processes=4)
    worker.say("hold", 3)
    os.kill(worker.guardian, signal.SIGKILL)
    until(lambda: not is_alive(worker.guardian))
    other = worker.start(IDLE, processes=1)
    worker.pause()

    until(lambda: not living(folder) and not living(other))


def test_guardian_that_stands_still_does_not_hold_up_the_worker(worker: Worker) -> None:
    """A guardian that no longer reads is replaced before the worker has to wait for it."""
    folder = worker.start(FAMILY, processes=4)
    still = worker.guardian
    os.kill(still, signal.SIGSTOP)
    worker.say("hold", 600, 70_000)  # more than the pipe takes

    assert worker.guardian != still
    assert not is_alive(still)
    worker.kill()
    until_gone(folder)


# Closing


def test_close_leaves_nothing(worker: Worker) -> None:
    """Closing the executor ends its scripts, their folders and the guardian."""
    folder = worker.start(FAMILY, processes=4)
    worker.say("close")

    assert not living(folder)
    assert not folder.exists()
    assert not is_alive(worker.guardian)


def test_close_does_not_wait_for_a_guardian_that_stands_still(worker: Worker) -> None:
    """A guardian that stands still is woken to do its last work."""
    folder = worker.start(FAMILY, processes=4)
    os.kill(worker.guardian, signal.SIGSTOP)
    worker.say("close")

    assert not living(folder)
    assert not is_alive(worker.guardian)
