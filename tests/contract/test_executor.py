"""The port Executor: what a script is given, how it is stopped, and that nothing of it stays."""

import asyncio
import contextlib
import ctypes
import errno
import os
import re
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pytest
from tests.living import CHAIN, living

from script_runner.adapters.process import (
    CLOSED,
    MAX_DISCARDED,
    PR_SET_CHILD_SUBREAPER,
    SWEEP_SECONDS,
    LocalExecutor,
    _Capture,
    guardian,
)
from script_runner.errors import Code, Error
from script_runner.ports import Command, Executor, Exit, Process

T = TypeVar("T")

EXECUTORS: Mapping[str, Callable[[], Executor]] = {"local": LocalExecutor}

MOST_CONCURRENT = 1_000
"""The largest SCRIPT_RUNNER_CONCURRENCY."""

A_LONG_TIME = 600.0
"""A grace that no test waits for."""

IDLE = 'echo $$ >> "$RUNDIR/pids"; while :; do sleep 0.05; done'
"""Shell that says its pid and goes on for ever."""

TERM_PROOF = f'trap "" TERM; {IDLE}'

DAEMON = """
import os, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.chdir("/")
for descriptor in (0, 1, 2):
    os.close(descriptor)
with open(os.environ["RUNDIR"] + "/pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a script that ended by itself."""

    code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Bench:
    """One kind of executor, and a folder for run folders."""

    make: Callable[[], Executor]
    parent: Path

    def command(self, *argv: str, **environment: str) -> Command:
        """A command with a run folder of its own."""
        folder = Path(tempfile.mkdtemp(prefix="results-", dir=self.parent))
        return Command(argv, {"PATH": os.environ["PATH"], "RUNDIR": str(folder), **environment}, folder)

    def shell(self, script: str) -> Command:
        return self.command("/bin/sh", "-c", script)

    def python(self, program: str, *arguments: str) -> Command:
        return self.command(sys.executable, "-I", "-S", "-c", program, *arguments)

    def ran(self, command: Command) -> Ran:
        return self.use(lambda executor: ran(executor, command))

    def use(self, scenario: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        """What the scenario returns, with an executor that lives as long as it."""

        async def main() -> T:
            async with opened(self.make) as executor:
                return await scenario(executor)

        return asyncio.run(main())


@pytest.fixture(params=EXECUTORS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    before = children("Z")
    yield Bench(EXECUTORS[request.param], tmp_path)
    still_there = children("Z") - before
    for folder in tmp_path.glob("results-*"):  # something lives there only when the test has failed
        for pid in living(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    # orphans of other tests must not come to this process
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert not still_there, "dead children were not reaped"


@contextlib.asynccontextmanager
async def opened(make: Callable[[], Executor]) -> AsyncIterator[Executor]:
    executor = make()
    try:
        yield executor
    finally:
        await executor.close()


async def ran(executor: Executor, command: Command) -> Ran:
    process = await executor.start(command)
    try:
        code = (await process.wait()).code
        await process.end()
        return Ran(code, written(process.stdout), written(process.stderr))
    finally:
        process.close()
        executor.forget(command.run_folder)


def written(stream: BinaryIO) -> bytes:
    return os.pread(stream.fileno(), os.fstat(stream.fileno()).st_size, 0)


def pids(command: Command) -> list[int]:
    """The processes that said their number in the run folder, whole lines only."""
    with contextlib.suppress(FileNotFoundError):
        text = (command.run_folder / "pids").read_text()
        return [int(line) for line in text[: text.rfind("\n") + 1].split()]
    return []


def children(state: str) -> set[int]:
    """Our children in this state: ``Z`` is dead and not reaped (proc(5))."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_in, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if is_in == state and int(parent) == os.getpid():
                found.add(int(entry.name))
    return found


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.005)


# What a script is given


def test_arguments_arrive_unchanged(bench: Bench) -> None:
    """One argument is one argument, whatever is in it."""
    arguments = (
        "a b",
        "",
        "it's",
        '"',
        "; rm -rf /",
        "$HOME `id`",
        "line\nbreak",
        "*",
        "-x",
        "ü 漢 🧬",
        "\\",
        "\x01",
    )
    program = "import os, sys; os.write(1, b'\\0'.join(os.fsencode(one) for one in sys.argv[1:]))"

    assert bench.ran(bench.python(program, *arguments)).stdout.decode().split("\0") == list(arguments)


def test_environment_is_exact(bench: Bench) -> None:
    """The script sees the environment of the command and nothing of the worker's."""
    command = bench.command("env", "-0", EMPTY="", LINES="a\nb", CITY="Zürich")
    seen = bench.ran(command).stdout.decode().rstrip("\0").split("\0")

    assert dict(item.split("=", 1) for item in seen) == command.environment


def test_working_directory_is_the_workers(bench: Bench) -> None:
    """Relative paths mean to the script what they mean to the worker."""
    assert bench.ran(bench.shell("pwd -P")).stdout.decode() == f"{Path.cwd().resolve()}\n"


def test_standard_input_is_empty(bench: Bench) -> None:
    """A script that reads its standard input meets the end at once."""
    assert bench.ran(bench.shell("readlink /proc/self/fd/0; wc -c")).stdout.split() == [b"/dev/null", b"0"]


def test_no_descriptor_leaks_into_a_script(bench: Bench) -> None:
    """A script has three open files, also while another one runs."""

    async def scenario(executor: Executor) -> Ran:
        other = await executor.start(bench.shell(IDLE))
        try:
            return await ran(executor, bench.python("import os; print(sorted(os.listdir('/proc/self/fd')))"))
        finally:
            await other.end()
            other.close()

    the_listing_itself = "3"
    assert bench.use(scenario).stdout.decode() == f"{['0', '1', '2', the_listing_itself]}\n"


def test_signals_are_as_after_a_login(bench: Bench) -> None:
    """No signal is ignored or blocked in the script, whatever the worker does with it."""
    ignored = (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in ignored[:-1]]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        seen = bench.ran(bench.command("grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status")).stdout
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before:
            signal.signal(number, handler)

    of_the_c_library = 1 << 31 | 1 << 32  # 32 and 33, which no program may set (nptl(7))
    assert {int(line.split()[1], 16) & ~of_the_c_library for line in seen.splitlines()} == {0}


def test_broken_pipe_ends_the_writer(bench: Bench) -> None:
    """A pipeline in a script ends as it does in a terminal, without a complaint about the pipe."""
    assert bench.ran(bench.shell("yes | head -n 1")) == Ran(0, b"y\n", b"")


def test_program_is_looked_for_in_the_scripts_path(bench: Bench, tmp_path: Path) -> None:
    """A bare program name is found by the PATH of the command."""
    program = executable(tmp_path / "bin" / "measure", "#!/bin/sh\necho found\n")

    assert bench.ran(bench.command("measure", PATH=f"{program.parent}:/bin")).stdout == b"found\n"


def test_program_that_comes_is_found_at_once(bench: Bench, tmp_path: Path) -> None:
    """A run that did not find its program costs none that comes after the program."""
    path = f"{tmp_path / 'bin'}:/bin"
    with pytest.raises(Error, match="not found"):
        bench.ran(bench.command("measure", PATH=path))
    executable(tmp_path / "bin" / "measure", "#!/bin/sh\necho found\n")

    assert bench.ran(bench.command("measure", PATH=path)).stdout == b"found\n"


def test_program_is_not_looked_for_in_the_working_directory(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare program name does not mean a file that happens to lie where the worker was started."""
    monkeypatch.chdir(tmp_path)
    executable(tmp_path / "measure", "#!/bin/sh\n")

    with pytest.raises(Error, match="not found"):
        bench.ran(bench.command("measure"))


def test_relative_program_means_the_working_directory(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program with a slash in it is a path as the worker sees it."""
    monkeypatch.chdir(tmp_path)
    executable(tmp_path / "bin" / "measure", "#!/bin/sh\necho $0\n")

    assert bench.ran(bench.command("bin/measure")).stdout == b"bin/measure\n"


# How it ends


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_code(bench: Bench, code: int) -> None:
    """The exit code is the script's own."""
    assert bench.ran(bench.shell(f"exit {code}")).code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE, signal.SIGINT])
def test_signal_is_a_negative_code(bench: Bench, number: signal.Signals) -> None:
    """A script that a signal killed ends with minus its number."""
    assert bench.ran(bench.shell(f"kill -{number:d} $$")).code == -number


def test_wait_can_be_repeated(bench: Bench) -> None:
    """Whoever waits, at once or later, learns the same end."""

    async def scenario(executor: Executor) -> list[Exit]:
        process = await executor.start(bench.shell("exit 3"))
        exits = [*await asyncio.gather(process.wait(), process.wait()), await process.wait()]
        await process.end()
        process.close()
        return [*exits, await process.wait()]

    assert bench.use(scenario) == [Exit(3)] * 4


def test_giving_up_a_wait_does_not_touch_the_script(bench: Bench) -> None:
    """A wait that is cancelled leaves the script and later waits alone."""

    async def scenario(executor: Executor) -> Exit:
        command = bench.shell('while [ ! -e "$RUNDIR/go" ]; do sleep 0.01; done; exit 3')
        process = await executor.start(command)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.01)
        (command.run_folder / "go").touch()
        code = await process.wait()
        await process.end()
        process.close()
        return code

    assert bench.use(scenario) == Exit(3)


# Scripts that cannot be started


def executable(path: Path, text: str, mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


UNSTARTABLE: Mapping[str, Callable[[Path], tuple[str, ...]]] = {
    "missing": lambda folder: (f"{folder}/missing",),
    "missing in PATH": lambda _: ("no-such-program-anywhere",),
    "no name": lambda _: ("",),
    "no argument at all": lambda _: (),
    "a folder": lambda folder: (str(folder),),
    "not executable": lambda folder: (str(executable(folder / "plain", "#!/bin/sh\n", 0o644)),),
    "no shebang": lambda folder: (str(executable(folder / "bare", "echo hello\n")),),
    "missing interpreter": lambda folder: (str(executable(folder / "odd", "#!/no/such/interpreter\n")),),
    "argument too long": lambda _: ("echo", "x" * 200_000),
    "arguments too long together": lambda _: ("echo", *["x" * 100_000] * 100),
    "NUL": lambda _: ("echo", "a\0b"),
    "half a surrogate pair": lambda _: ("echo", "\ud800"),
}


@pytest.mark.parametrize("kind", UNSTARTABLE)
def test_what_cannot_start_is_explained(bench: Bench, tmp_path: Path, kind: str) -> None:
    """A script that cannot start is an Error with one sentence that shows nothing of the server."""
    with pytest.raises(Error) as caught:
        bench.ran(bench.command(*UNSTARTABLE[kind](tmp_path)))

    assert caught.value.code is Code.BAD_OUTPUT
    assert re.fullmatch(r"The script could not be started: [^/\n]+\.", caught.value.message)
    assert "Errno" not in caught.value.message


def test_failed_start_leaves_the_executor_usable(bench: Bench) -> None:
    """What could not start holds no file open, and the next script runs."""

    async def scenario(executor: Executor) -> tuple[int, Ran]:
        before = open_descriptors()
        for _ in range(5):
            with pytest.raises(Error):
                await executor.start(bench.command("no-such-program-anywhere"))
        return open_descriptors() - before, await ran(executor, bench.shell("echo still here"))

    assert bench.use(scenario) == (0, Ran(0, b"still here\n", b""))


# The streams


def test_streams_are_apart_and_in_order(bench: Bench) -> None:
    """What a script and its children write is appended to the stream they wrote it to."""
    script = "echo one; echo bad >&2; sh -c 'echo two; echo worse >&2'; (echo three) | cat; echo four"

    assert bench.ran(bench.shell(script)) == Ran(0, b"one\ntwo\nthree\nfour\n", b"bad\nworse\n")


def test_streams_keep_bytes(bench: Bench) -> None:
    """Output is bytes: nothing is decoded, translated or lost, however much it is."""
    data = bytes(range(256)) * 20_000
    program = "import os; os.writev(1, [bytes(range(256)) * 20_000])"

    assert bench.ran(bench.python(program)).stdout == data


def test_streams_are_readable_while_the_script_runs(bench: Bench) -> None:
    """What was written can be read before the script ends."""

    async def scenario(executor: Executor) -> bool:
        process = await executor.start(bench.shell(f"echo first; {IDLE}"))
        await until(lambda: written(process.stdout) == b"first\n")
        await process.end()
        process.close()
        return process.stdout.closed and process.stderr.closed

    assert bench.use(scenario)


def test_script_may_close_its_streams(bench: Bench) -> None:
    """A script without streams runs on to its end."""
    assert bench.ran(bench.shell("exec <&- >&- 2>&-; sleep 0.05; exit 4")).code == 4


def test_what_is_said_while_the_rest_is_taken_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    """A process that got away, and says more whenever something is taken, holds up nobody."""
    read = os.read
    more = iter([b"more", b"and more"])

    async def scenario() -> bytes:
        capture = _Capture(tmp_path, CLOSED)
        escaped = os.dup(capture.writer)

        def read_and_say_more(descriptor: int, count: int) -> bytes:
            piece = read(descriptor, count)
            os.write(escaped, next(more, b""))
            return piece

        capture.follow()
        os.write(escaped, b"said")
        with monkeypatch.context() as patch:
            patch.setattr(os, "read", read_and_say_more)
            capture.drain()
        said = written(capture.file)
        capture.close()
        os.close(escaped)
        return said

    assert asyncio.run(scenario()) == b"said"


def test_what_is_said_after_the_end_is_nobodys(bench: Bench) -> None:
    """The streams of a run that has ended stay as they are, also when a process got away with one of them."""

    async def scenario(executor: Executor) -> None:
        command = bench.shell(IDLE)
        process = await executor.start(command)
        await until(lambda: len(pids(command)) == 1)
        escaped = os.open(f"/proc/{pids(command)[0]}/fd/1", os.O_WRONLY)
        try:
            await process.end()
            with pytest.raises(BrokenPipeError):
                os.write(escaped, b"more")
        finally:
            os.close(escaped)
            process.close()

    bench.use(scenario)


# Stopping


def test_no_script_starts_after_the_deadline(bench: Bench) -> None:
    """When the deadline has passed nothing is started, as nobody would end it; with the next one it is."""

    async def scenario(executor: Executor) -> Ran:
        command = bench.shell("echo started")
        executor.hold_until(guardian.now() - 1)
        with pytest.raises(Error) as refused:
            await executor.start(command)
        assert refused.value.code is Code.UNAVAILABLE
        executor.hold_until(guardian.now() + A_LONG_TIME)
        return await ran(executor, command)

    assert bench.use(scenario).stdout == b"started\n"


def test_stop_lets_the_whole_group_end_itself(bench: Bench) -> None:
    """TERM reaches the script and its children, and a script that takes it ends with its own code."""
    child = f"trap 'echo child; exit' TERM; {IDLE}"
    script = f"trap 'wait; echo script; exit 7' TERM; ({child}) & {IDLE}"

    async def scenario(executor: Executor) -> tuple[int, list[bytes]]:
        command = bench.shell(script)
        process = await executor.start(command)
        await until(lambda: len(pids(command)) == 2)
        code = (await process.stop(grace_seconds=A_LONG_TIME)).code
        await process.end()
        said = written(process.stdout).split()
        process.close()
        return code, said

    assert bench.use(scenario) == (7, [b"child", b"script"])


def test_stop_gives_the_grace_to_children_too(bench: Bench) -> None:
    """A child that tidies up at TERM may do so when its parent has gone at once."""
    child = f"trap 'sleep 0.3; echo tidy; exit' TERM; {IDLE}"

    async def scenario(executor: Executor) -> tuple[int, bytes]:
        command = bench.shell(f"({child}) & {IDLE}")
        process = await executor.start(command)
        await until(lambda: len(pids(command)) == 2)
        code = (await process.stop(grace_seconds=A_LONG_TIME)).code
        await process.end()
        said = written(process.stdout)
        process.close()
        return code, said

    assert bench.use(scenario) == (-signal.SIGTERM, b"tidy\n")


def test_stop_kills_what_is_proof_against_term(bench: Bench) -> None:
    """After the grace the script and its children are killed."""

    async def scenario(executor: Executor) -> tuple[int, set[int]]:
        command = bench.shell(f"({TERM_PROOF}) & {TERM_PROOF}")
        process = await executor.start(command)
        await until(lambda: len(pids(command)) == 2)
        code = (await process.stop(grace_seconds=0.1)).code
        await process.end()
        process.close()
        return code, living(command.run_folder)

    assert bench.use(scenario) == (-signal.SIGKILL, set())


def test_stop_reaches_a_script_that_stands_still(bench: Bench) -> None:
    """A script that was stopped with SIGSTOP is woken to take its TERM."""

    async def scenario(executor: Executor) -> Exit:
        command = bench.shell(f"trap 'exit 5' TERM; {IDLE}")
        process = await executor.start(command)
        await until(lambda: bool(pids(command)))
        os.kill(pids(command)[0], signal.SIGSTOP)
        code = await process.stop(grace_seconds=A_LONG_TIME)
        await process.end()
        process.close()
        return code

    assert bench.use(scenario) == Exit(5)


def test_stop_after_the_end_says_how_it_ended(bench: Bench) -> None:
    """Stopping a script that has already ended changes nothing."""

    async def scenario(executor: Executor) -> Exit:
        process = await executor.start(bench.shell("exit 6"))
        await process.wait()
        code = await process.stop(grace_seconds=A_LONG_TIME)
        await process.end()
        process.close()
        return code

    assert bench.use(scenario) == Exit(6)


def test_kill_ends_the_group_at_once(bench: Bench) -> None:
    """KILL takes the script and its children, whatever they do with TERM."""

    async def scenario(executor: Executor) -> Exit:
        command = bench.shell(f"({TERM_PROOF}) & {TERM_PROOF}")
        process = await executor.start(command)
        await until(lambda: len(pids(command)) == 2)
        process.kill()
        await until(lambda: not living(command.run_folder))
        code = await process.wait()
        await process.end()
        process.close()
        return code

    assert bench.use(scenario) == Exit(-signal.SIGKILL)


# Nothing stays

LEFT_BEHIND: Mapping[str, tuple[str, int]] = {
    "background child": (f"({TERM_PROOF}) &", 1),
    "child in its own session": (f"setsid sh -c '{IDLE}' &", 1),
    "daemon": (f"'{sys.executable}' -I -S -c '{DAEMON}'", 1),
    "many": (f"for i in 1 2 3 4 5; do ({TERM_PROOF}) & setsid sh -c '{IDLE}' & done", 10),
    "a chain that forks on": (f"'{sys.executable}' -I -S -c '{CHAIN}'", 5),
}


@pytest.mark.parametrize("kind", LEFT_BEHIND)
def test_end_kills_what_was_left_running(bench: Bench, kind: str) -> None:
    """After the end nothing of the run lives, however it tried to get away."""
    script, count = LEFT_BEHIND[kind]

    async def scenario(executor: Executor) -> set[int]:
        command = bench.shell(script)
        process = await executor.start(command)
        await process.wait()
        await until(lambda: len(pids(command)) >= count)
        await process.end()
        process.close()
        return living(command.run_folder)

    assert bench.use(scenario) == set()


def test_end_finds_the_children_of_what_takes_long_to_die(bench: Bench) -> None:
    """A large process needs time to die, and only then can be seen what it had started."""
    large = """
import os, time
held = bytearray(800_000_000)
for page in range(0, len(held), 4096):
    held[page] = 1
if os.fork() == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "600"])
with open(os.environ["RUNDIR"] + "/pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""

    async def scenario(executor: Executor) -> set[int]:
        command = bench.shell(f"setsid '{sys.executable}' -I -S -c '{large}' &")
        process = await executor.start(command)
        await until(lambda: len(pids(command)) == 1 and len(living(command.run_folder)) == 2)
        await process.wait()
        await process.end()
        process.close()
        return living(command.run_folder)

    assert bench.use(scenario) == set()


def test_end_of_a_running_script_kills_it(bench: Bench) -> None:
    """Ending needs no stop before it."""

    async def scenario(executor: Executor) -> tuple[Exit, set[int]]:
        command = bench.shell(TERM_PROOF)
        process = await executor.start(command)
        await process.end()
        process.close()
        return await process.wait(), living(command.run_folder)

    assert bench.use(scenario) == (Exit(-signal.SIGKILL), set())


def test_end_of_one_run_touches_no_other(bench: Bench) -> None:
    """Another run goes on with all its processes, also those that left its session."""
    script = f"setsid sh -c '{IDLE}' & '{sys.executable}' -I -S -c '{DAEMON}'; {IDLE}"

    async def scenario(executor: Executor) -> tuple[set[int], set[int]]:
        ending, other = bench.shell(script), bench.shell(script)
        first, second = await executor.start(ending), await executor.start(other)
        await until(lambda: len(pids(ending)) == len(pids(other)) == 3)
        await first.end()
        after = living(ending.run_folder), set(pids(other)) - living(other.run_folder)
        await second.end()
        first.close()
        second.close()
        return after

    assert bench.use(scenario) == (set(), set())


def test_an_ended_run_never_touches_a_later_process(bench: Bench) -> None:
    """When another process gets the number of an ended script, nothing said to the old run reaches it."""

    async def scenario(executor: Executor) -> Exit:
        ended = bench.shell("echo $$ > $RUNDIR/pids")
        old = await executor.start(ended)
        await old.wait()
        await old.end()
        command = bench.shell(f"trap 'exit 9' USR1; {IDLE}")
        new = await started_as(executor, command, pids(ended)[0])
        await until(lambda: bool(pids(command)))
        old.kill()
        await old.stop(grace_seconds=0)
        await old.end()
        os.kill(pids(command)[0], signal.SIGUSR1)
        code = await new.wait()
        await new.end()
        old.close()
        new.close()
        return code

    assert bench.use(scenario) == Exit(9)


async def started_as(executor: Executor, command: Command, pid: int) -> Process:
    """A process started with this number, where the system lets us choose."""
    for _ in range(20):
        choose_next_pid(pid)
        process = await executor.start(command)
        await until(lambda: bool(pids(command)))
        if pids(command) == [pid]:
            return process
        await process.end()
        process.close()
        (command.run_folder / "pids").unlink()
    pytest.skip("the number was always taken by others")


def choose_next_pid(pid: int) -> None:
    """Make the next process get this number (pid_namespaces(7))."""
    try:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    except OSError:
        pytest.skip("process numbers cannot be chosen here")


def test_fifty_at_once(bench: Bench) -> None:
    """Fifty scripts at once each have their own output and code, and leave no open file."""

    async def scenario(executor: Executor) -> tuple[list[Ran], int]:
        before = open_descriptors()
        commands = [bench.shell(f"sleep 0.1; echo {number}; exit {number}") for number in range(50)]
        return await asyncio.gather(*(ran(executor, one) for one in commands)), open_descriptors() - before

    expected = [Ran(number, f"{number}\n".encode(), b"") for number in range(50)]
    assert bench.use(scenario) == (expected, 0)


def test_nothing_is_written_into_the_run_folder(bench: Bench) -> None:
    """The run folder is the script's: the executor puts nothing in it, nor beside it."""
    bench.ran(command := bench.shell('echo a; echo b >&2; ls -A "$RUNDIR/.." > /dev/null'))

    assert list(bench.parent.rglob("*")) == [command.run_folder]
    assert stat.S_IMODE(command.run_folder.stat().st_mode) == 0o700


def test_streams_that_are_opened_anew_are_not_cut_short(bench: Bench) -> None:
    """A script may open /dev/stdout and /dev/stderr by name: what it had said before stays."""
    script = "echo one; echo two > /dev/stdout; echo three; echo four >&2; echo five > /dev/stderr; echo six >&2"
    ran = bench.ran(bench.shell(script))

    assert (ran.stdout, ran.stderr) == (b"one\ntwo\nthree\n", b"four\nfive\nsix\n")


def test_a_folder_that_is_watched_goes_with_its_worker(bench: Bench) -> None:
    """A run folder is known before it is made, so none stays when the worker dies while it prepares one."""
    watched, forgotten = bench.parent / "results-watched", bench.parent / "results-forgotten"

    async def scenario(executor: Executor) -> None:
        for folder in (watched, forgotten):
            executor.watch(folder)
            folder.mkdir()
        executor.forget(forgotten)

    bench.use(scenario)

    assert not watched.exists()
    assert forgotten.exists()


def test_discarded_folders_go(bench: Bench) -> None:
    """Folders that are no longer needed are gone when the executor is closed, also more than it can note."""
    folders = [bench.parent / f"results-{number}" for number in range(3_000)]

    async def scenario(executor: Executor) -> None:
        for folder in folders:
            executor.watch(folder)
            (folder / "out").mkdir(parents=True)
            executor.discard(folder)

    bench.use(scenario)

    assert not [folder for folder in folders if folder.exists()]


def test_after_the_close_nothing_is_swept(bench: Bench) -> None:
    """The removal that was due after the close, which has done it, fails nobody."""
    failures: list[object] = []
    folder = bench.parent / "results-1"

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        due = asyncio.Event()
        async with opened(bench.make) as executor:
            executor.watch(folder)
            (folder / "out").mkdir(parents=True)
            executor.discard(folder)
            loop.call_later(2 * SWEEP_SECONDS, due.set)
        await due.wait()

    asyncio.run(scenario())

    assert (failures, folder.exists()) == ([], False)


def test_a_full_worker_has_room_for_folders_that_still_go(tmp_path: Path) -> None:
    """As many scripts as a worker may run can start while earlier folders wait for a removal that is slow."""
    running = [tmp_path / f"running-{number}" for number in range(MOST_CONCURRENT)]
    gone = [tmp_path / f"results-{number}" for number in range(4 * MAX_DISCARDED)]
    is_fast_again = threading.Event()

    async def scenario() -> None:
        executor = LocalExecutor()
        executor._sweeper.submit(is_fast_again.wait)
        try:
            for folder in running[1:]:
                executor.watch(folder)
            for folder in gone:
                executor.watch(folder)
                (folder / "out").mkdir(parents=True)
                executor.discard(folder)
            executor.watch(running[0])
        finally:
            is_fast_again.set()
            await executor.close()

    asyncio.run(scenario())

    assert not [folder for folder in gone if folder.exists()]


def test_end_kills_what_becomes_another_program_all_the_time(bench: Bench) -> None:
    """A process that is between two programs says nothing of itself for a moment, and is found all the same."""
    (bench.parent / "again").write_text('exec sh "$0"')

    async def scenario(executor: Executor) -> list[set[int]]:
        left = []
        for _ in range(30):
            command = bench.shell(f"setsid sh '{bench.parent}/again' &")
            process = await executor.start(command)
            await process.wait()
            await process.end()
            process.close()
            left.append(living(command.run_folder))
        return left

    assert bench.use(scenario) == [set()] * 30


@pytest.mark.parametrize("step", ["posix_spawn", "pidfd_open"])
def test_a_start_that_the_machine_refuses_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """When the machine is short of something in mid-start, that is said, and no descriptor or process stays."""

    async def scenario(executor: Executor) -> bool:
        command = bench.shell(IDLE)
        before = open_descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(os, step, refuse)
            with pytest.raises(BlockingIOError):
                await executor.start(command)
        await until(lambda: not living(command.run_folder))  # what was killed takes a moment to go
        return open_descriptors() == before

    def refuse(*_: object, **__: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    assert bench.use(scenario)
