"""One run: what the script finds, how it ends, what is kept of it, and that its folder goes."""

import asyncio
import contextlib
import ctypes
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from script_runner.adapters.memory import MemoryLogs, MemoryTasks
from script_runner.adapters.process import PR_SET_CHILD_SUBREAPER, LocalExecutor
from script_runner.adapters.store import FileArtifacts
from script_runner.errors import Code, Error
from script_runner.ports import Logs
from script_runner.run import GivenUp, Halt, Stop, Workshop, run
from script_runner.spec import Spec
from script_runner.streams import LogChunk
from script_runner.task import Artifact, Outcome, State, Task

# results.Document lets go of its reader before the file under it is closed, which is no harm
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file <_io.TextIOWrapper:ResourceWarning")

A_LONG_TIME = 3_600
"""A limit that no test waits for."""

IDLE = "while :; do sleep 0.05; done"
READY = 'echo ready > "$RUNDIR/ready"'
TERM_PROOF = f'trap "" TERM; {READY}; {IDLE}'
ROWS = {"results": {"kind": "file", "format": "csv", "input_path": "rows.csv"}}

Meanwhile = Callable[[Halt], Coroutine[Any, Any, None]]


def from_stream(kind: str, form: str = "csv") -> dict[str, Any]:
    return {"results": {"kind": kind, "format": form}}


class AllHeld(MemoryTasks):
    """A ledger in which every run holds its task."""

    def is_held_by(self, run: Task) -> bool:
        self.tails.setdefault(run.id, {})
        return True


@dataclass(frozen=True, slots=True)
class Bench:
    """Real adapters in a folder of the test, and runs of shell scripts with them."""

    folder: Path
    rundir: str = "."
    inherited: Mapping[str, str] = field(default_factory=lambda: {"PATH": os.environ["PATH"]})
    logs: Logs = field(default_factory=lambda: MemoryLogs(AllHeld()))

    @property
    def runs(self) -> Path:
        """The parent of run folders."""
        return self.folder / "runs"

    @property
    def artifacts(self) -> FileArtifacts:
        return FileArtifacts((self.folder / "store").as_uri())

    def spec(self, script: str, **keys: Any) -> Spec:
        """A configuration whose command is this shell script."""
        command = ["/bin/sh", "-c", script.replace("$", "$$")]
        return Spec.read({"command": command, "command_rundir": str(self.runs), **keys})

    def run(self, script: str, meanwhile: Meanwhile | None = None, **keys: Any) -> Outcome:
        outcome = self.run_spec(self.spec(script, **keys), meanwhile)
        assert outcome is not None
        return outcome

    def run_spec(
        self, spec: Spec, meanwhile: Meanwhile | None = None, arguments: Mapping[str, Any] | None = None
    ) -> Outcome | None:
        async def main() -> Outcome | None:
            async with opened_executor() as executor:
                return await self.run_beside(executor, spec, meanwhile, arguments)

        return asyncio.run(main())

    def run_in_turn(self, *scripts: str) -> list[Outcome]:
        """The outcomes of scripts that run one right after the other on one worker."""

        async def main() -> list[Outcome]:
            async with opened_executor() as executor:
                outcomes = [await self.run_beside(executor, self.spec(script)) for script in scripts]
            return [outcome for outcome in outcomes if outcome]

        return asyncio.run(main())

    async def run_beside(
        self,
        executor: LocalExecutor,
        spec: Spec,
        meanwhile: Meanwhile | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Outcome | None:
        """One run by an executor that others may use, too; beside it goes on what is to happen meanwhile."""
        task = Task(id="task-1", owner="me", arguments=arguments or {}, state=State.RUNNING, attempt=1)
        halt = Halt()
        workshop = Workshop(spec, self.inherited, executor, self.artifacts, self.logs, rundir=self.rundir)
        running = asyncio.create_task(run(task, workshop, halt))
        if meanwhile:
            await meanwhile(halt)
        ended = await running
        return None if isinstance(ended, GivenUp) else ended

    def read(self, artifact: Artifact) -> bytes:
        async def whole() -> bytes:
            return b"".join([piece async for piece in self.artifacts.read(artifact.key)])

        data = asyncio.run(whole())
        assert len(data) == artifact.size
        return data

    def rows(self, outcome: Outcome) -> Any:
        assert outcome.error is None
        assert outcome.results is not None
        return json.loads(self.read(outcome.results.artifact))

    def files(self, outcome: Outcome) -> dict[str, bytes]:
        return {artifact.name: self.read(artifact) for artifact in outcome.files}

    def log(self, outcome: Outcome, stream: str = "stdout") -> bytes:
        return b"".join(self.read(artifact) for artifact in outcome.logs if artifact.name == stream)

    def left(self) -> list[Path]:
        """The run folders that are there."""
        return list(self.runs.iterdir())


@contextlib.asynccontextmanager
async def opened_executor() -> AsyncIterator[LocalExecutor]:
    executor = LocalExecutor()
    try:
        yield executor
    finally:
        await executor.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield Bench(tmp_path)
    # orphans of other tests must not come to this process
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.005)


def when_ready(bench: Bench, reason: Stop) -> Meanwhile:
    """Ask the run to stop as soon as its script says that it is ready."""

    async def meanwhile(halt: Halt) -> None:
        await until(lambda: any(bench.runs.glob("*/ready")))
        halt.ask(reason)

    return meanwhile


# What the script finds


def test_script_finds_its_values(bench: Bench) -> None:
    """Inputs, RUNDIR and TASK_ID are in the environment beside what the worker hands on, and in the arguments."""
    script = 'echo "$$0|$$CITY|$$TAGS|$$TASK_ID|$$KEPT|$$SET"; echo "$$RUNDIR"'
    spec = Spec.read(
        {
            "command": ["/bin/sh", "-c", script, "${CITY} $TASK_ID"],
            "command_rundir": str(bench.runs),
            "environment": {"set": {"SET": "by the file"}},
        }
    )
    bench = Bench(bench.folder, inherited={**bench.inherited, "KEPT": "from the worker"})
    outcome = bench.run_spec(spec, arguments={"CITY": "Zürich; rm", "TAGS": ("a", "b")})

    assert outcome is not None
    first, tags, folder = bench.log(outcome).decode().splitlines()
    assert first == "Zürich; rm task-1|Zürich; rm|a"
    assert tags == "b|task-1|from the worker|by the file"
    assert Path(folder).parent == bench.runs


def test_task_of_another_configuration(bench: Bench) -> None:
    """A task that was accepted before the command asked for a value fails and says which; nothing is run."""
    spec = Spec.read({"command": ["/bin/echo", "$CITY", ["--to", "$END"]], "command_rundir": str(bench.runs)})

    outcome = bench.run_spec(spec, arguments={"TOWN": "Rome"})

    assert outcome is not None
    assert_failed(bench, outcome, "another configuration, without a value for [$]CITY")


def test_run_folder(bench: Bench) -> None:
    """The run folder is absolute, a child of command_rundir, for its owner alone, and holds an empty out."""
    outcome = bench.run('stat -c "%a %n" "$RUNDIR"; ls -A "$RUNDIR"; ls -A "$RUNDIR/out"')
    described, *content = bench.log(outcome).decode().splitlines()
    mode, _, name = described.partition(" ")

    assert mode == "700"
    assert Path(name).parent == bench.runs
    assert Path(name).name.startswith("results-")
    assert len(Path(name).name) == len("results-XXXXXXXX")
    assert content == ["out"]


@pytest.mark.parametrize("parent", ["runs", "./runs", None])
def test_relative_parent_means_the_working_directory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, parent: str | None
) -> None:
    """A relative or missing command_rundir is seen from where the worker runs; RUNDIR is absolute all the same."""
    monkeypatch.chdir(bench.folder)
    outcome = bench.run('echo "$RUNDIR"', command_rundir=parent)

    expected = bench.runs if parent else bench.folder
    assert Path(bench.log(outcome).decode().strip()).parent == expected


@pytest.mark.parametrize(("parent", "expected"), [(None, "elsewhere"), ("runs", "runs")])
def test_parent_that_the_operator_names(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, parent: str | None, expected: str
) -> None:
    """Where command_rundir is not set, run folders are made where the operator says, and there alone."""
    monkeypatch.chdir(bench.folder)
    elsewhere = replace(bench, rundir=str(bench.folder / "elsewhere"))

    outcome = elsewhere.run('echo "$RUNDIR"', command_rundir=parent)

    assert Path(elsewhere.log(outcome).decode().strip()).parent == bench.folder / expected


def test_run_folder_goes(bench: Bench) -> None:
    """Nothing is left of a run, whatever the script put into its folder."""
    bench.run(
        'cd "$RUNDIR"; mkdir -p a/b out/c; touch a/b/x "name\nwith line"; mkfifo pipe; ln -s / root; chmod 0 a/b'
    )

    assert bench.left() == []


@pytest.mark.parametrize("keys", [{"timeout_seconds": 0.1}, {"max_output_bytes": 1}, {}])
def test_run_folder_goes_after_a_failure(bench: Bench, keys: dict[str, Any]) -> None:
    """Also a run that fails leaves no folder."""
    outcome = bench.run("echo some words; sleep 0.3; exit 1", **keys)

    assert outcome.state is not State.SUCCEEDED
    assert bench.left() == []


def test_run_folder_stays_for_debugging(bench: Bench) -> None:
    """With debug the folder is kept as the script left it."""
    bench.run('echo hello > "$RUNDIR/out/x"', debug=True)
    (folder,) = bench.left()

    assert (folder / "out" / "x").read_text() == "hello\n"


def until_there(path: str) -> str:
    """Shell that waits for a file."""
    return f"until [ -e {path} ]; do sleep 0.01; done"


def test_what_a_run_left_behind_writes_into_no_other_folder(bench: Bench) -> None:
    """Not even a process that nobody can find, with its working directory where the next run may have its own."""
    is_there, may_write, has_written = (
        f"{bench.folder}/{name}" for name in ("is-there", "may-write", "has-written")
    )
    late = f"touch {is_there}; {until_there(may_write)}; echo late > late; touch {has_written}"
    leave = f'cd "$RUNDIR/out"; env -i setsid sh -c "{late}" > {bench.folder}/said 2>&1 & {until_there(is_there)}'
    wait = f'touch {may_write}; {until_there(has_written)}; ls -A "$RUNDIR/out"'

    *_, last = bench.run_in_turn(leave, wait)

    assert last.state is State.SUCCEEDED
    assert bench.log(last) == b""


def test_script_that_removes_its_folder(bench: Bench) -> None:
    """A script may tidy up by itself; the parent of run folders stays as it is."""
    bench.runs.mkdir(mode=0o755)
    outcome = bench.run('rm -rf "$RUNDIR"')

    assert outcome.state is State.SUCCEEDED
    assert stat.S_IMODE(bench.runs.stat().st_mode) == 0o755
    assert bench.left() == []


def test_deep_folders(bench: Bench) -> None:
    """Folders nested deeper than Python can follow do not fail a script that succeeded."""
    deep = "os.mkdir('d'); os.chdir('d')"
    program = f"import os; os.chdir(os.environ['RUNDIR'])\nfor _ in range(1500): {deep}"
    outcome = bench.run(f"'{sys.executable}' -I -S -c \"{program}\"")
    subprocess.run(["rm", "-rf", bench.runs], check=True)  # pytest could not

    assert outcome.state is State.SUCCEEDED


WITHOUT_RIGHTS = """
import os, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_run import Bench
bench = Bench(Path({folder!r}))
outcome = bench.run('''
    cd "$RUNDIR"; mkdir -p a/b/c; touch a/x a/b/y a/b/c/z; ln -s "{outside}" a/link; ln -s "{outside}" a/b/link
    chmod 0500 a/b/c; chmod 0 a/b; chmod 0500 a; chmod 0500 .
''')
print(outcome.state, len(bench.left()))
"""


def test_read_only_folders_go_too(tmp_path: Path) -> None:
    """A folder that a script made read-only goes as well, and what its links lead to is not touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o755)
    program = WITHOUT_RIGHTS.format(here=str(Path(__file__).parent), folder=str(tmp_path), outside=str(outside))
    ran = subprocess.run(
        [*as_mere_owner(), sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (ran.stdout, ran.stderr) == ("succeeded 0\n", "")
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


def as_mere_owner() -> list[str]:
    """What to put before a command so that modes bind it (capabilities(7))."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root is not bound by modes, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


# The base folder


def test_base_folder_is_copied(bench: Bench) -> None:
    """A run folder begins with the content of the base folder, which stays as it is."""
    base = bench.folder / "base"
    (base / "sub").mkdir(parents=True)
    (base / "sub" / "tool.sh").write_text("#!/bin/sh\necho works\n")
    (base / "sub" / "tool.sh").chmod(0o755)
    (base / "data.txt").write_text("data\n")
    (base / "link").symlink_to("data.txt")
    base.chmod(0o755)
    script = 'cd "$RUNDIR"; sub/tool.sh; cat link; readlink link; echo changed > data.txt; ls -d out; stat -c %a .'
    outcome = bench.run(script, command_rundir_base=str(base))

    assert bench.log(outcome).decode().split() == ["works", "data", "data.txt", "out", "700"]
    assert (base / "data.txt").read_text() == "data\n"
    assert bench.left() == []


def test_missing_base_folder(bench: Bench) -> None:
    """A base folder that is not there fails the run, says which key it is, and shows no path."""
    outcome = bench.run("exit 0", command_rundir_base=str(bench.folder / "nowhere"))

    assert_failed(bench, outcome, "command_rundir_base")
    assert bench.left() == []


def test_base_folder_with_a_fifo(bench: Bench) -> None:
    """What cannot be copied fails the run at once: a FIFO does not hold it up."""
    base = bench.folder / "base"
    (base / "sub").mkdir(parents=True)
    os.mkfifo(base / "sub" / "fifo")
    outcome = bench.run("exit 0", command_rundir_base=str(base))

    assert_failed(bench, outcome, "base folder .* could not be copied")
    assert bench.left() == []


def test_base_folder_with_links_that_lead_nowhere(bench: Bench) -> None:
    """A link is copied as a link, wherever it leads."""
    base = bench.folder / "base"
    base.mkdir()
    (base / "nowhere").symlink_to("/no/such/place")
    (base / "endless").symlink_to("/dev/zero")
    outcome = bench.run('readlink "$RUNDIR/nowhere" "$RUNDIR/endless"', command_rundir_base=str(base))

    assert bench.log(outcome).decode().split() == ["/no/such/place", "/dev/zero"]


def assert_failed(bench: Bench, outcome: Outcome, sentence: str) -> None:
    """The run failed before the script, with a sentence that shows nothing of the server."""
    assert outcome.state is State.FAILED
    assert outcome.exit_code is None
    assert outcome.error is not None
    assert re.search(sentence, outcome.error)
    assert str(bench.folder) not in outcome.error
    assert "Errno" not in outcome.error


# Where no run folder can be made


def test_file_in_place_of_the_parent(bench: Bench) -> None:
    """A command_rundir that cannot be a folder fails the run with a sentence."""
    bench.runs.write_text("in the way")

    assert_failed(bench, bench.run("exit 0"), "could not prepare the run: (File exists|Not a directory)")


def test_disk_without_room_for_a_folder(bench: Bench, small_disk: Path) -> None:
    """A full disk fails the run with a sentence."""
    subprocess.run(["mount", "-o", "remount,nr_inodes=1", small_disk], check=False)
    with contextlib.suppress(OSError):
        for number in range(1_000_000):
            (small_disk / str(number)).mkdir()

    outcome = bench.run("exit 0", command_rundir=str(small_disk))
    assert_failed(bench, outcome, "could not prepare the run: No space left on device")


def test_disk_without_room_for_the_base(bench: Bench, small_disk: Path) -> None:
    """A base folder larger than the disk fails the run and leaves the disk as it was."""
    base = bench.folder / "base"
    base.mkdir()
    (base / "large").write_bytes(b"x" * 2_000_000)
    outcome = bench.run("exit 0", command_rundir=str(small_disk), command_rundir_base=str(base))

    assert_failed(bench, outcome, "could not be copied whole")
    assert list(small_disk.iterdir()) == []


def test_script_that_fills_the_disk(bench: Bench, small_disk: Path) -> None:
    """A script that meets a full disk fails as it does in a terminal, and its error text arrives."""
    outcome = bench.run('exec cat /dev/zero > "$RUNDIR/zero"', command_rundir=str(small_disk))

    assert (outcome.state, outcome.exit_code) == (State.FAILED, 1)
    assert outcome.error is not None
    assert outcome.error.startswith("The script ended with exit code 1.")
    assert list(small_disk.iterdir()) == []


# A script that succeeds


def test_nothing_is_wanted(bench: Bench) -> None:
    """A script without outputs succeeds with exit code 0 and nothing else."""
    assert bench.run("exit 0") == Outcome(State.SUCCEEDED, exit_code=0)


@pytest.mark.parametrize("kind", ["file", "stdout", "stderr"])
def test_csv_rows(bench: Bench, kind: str) -> None:
    """CSV becomes a list of rows of texts, from wherever it was written."""
    target = {"file": '> "$RUNDIR/rows.csv"', "stdout": "", "stderr": ">&2"}[kind]
    wanted = ROWS if kind == "file" else from_stream(kind)
    outcome = bench.run(f"printf 'id,name\\n007,Ann\\n008,Zoë\\n' {target}", outputs=wanted)

    assert bench.rows(outcome) == [{"id": "007", "name": "Ann"}, {"id": "008", "name": "Zoë"}]
    assert outcome.results is not None
    assert (outcome.results.rows, outcome.results.columns) == (2, ("id", "name"))


@pytest.mark.parametrize("kind", ["file", "stdout", "stderr"])
def test_json_document(bench: Bench, kind: str) -> None:
    """JSON stays the document it is, from wherever it was written."""
    target = {"file": '> "$RUNDIR/rows.json"', "stdout": "", "stderr": ">&2"}[kind]
    wanted: dict[str, Any] = {"kind": kind, "format": "json"} | (
        {"input_path": "rows.json"} if kind == "file" else {}
    )
    outcome = bench.run(f"""printf '{{"a": [1, 2.5, null]}}' {target}""", outputs={"results": wanted})

    assert bench.rows(outcome) == {"a": [1, 2.5, None]}
    assert outcome.results is not None
    assert (outcome.results.rows, outcome.results.columns) == (None, None)


def test_background_children_do_not_hold_up_a_run(bench: Bench) -> None:
    """A run is over when the script's own process ends; what it left running is killed, its output is kept."""
    outcome = bench.run(f"(echo child; {IDLE}) & sleep 0.2; echo script")

    assert outcome.state is State.SUCCEEDED
    assert sorted(bench.log(outcome).split()) == [b"child", b"script"]


def test_logs_are_kept_whole(bench: Bench) -> None:
    """Both streams are kept, apart and byte by byte; an empty one is left out."""
    outcome = bench.run("printf 'a\\377b'; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")

    expected = b"a\xffb" + b"".join(b"line %d\n" % number for number in range(20_000))
    assert bench.log(outcome) == expected
    assert [(log.name, log.media_type) for log in outcome.logs] == [("stdout", "text/plain; charset=utf-8")]


# Attachments


def test_attachments(bench: Bench) -> None:
    """Files that match are kept under their base names with their type; folders and links out are not."""
    script = """
        cd "$RUNDIR"; mkdir -p plots/deep folder.pdf
        echo report > a.pdf; echo p1 > plots/p1.png; echo p2 > plots/deep/p2.png; echo no > other.txt
        ln -s /etc/passwd out.pdf; ln -s a.pdf inside.pdf; mkfifo pipe.pdf; printf '' > empty.pdf
    """
    outcome = bench.run(script, outputs={"attachments": ["*.pdf", "**/*.png"]})

    assert outcome.state is State.SUCCEEDED
    assert bench.files(outcome) == {
        "a.pdf": b"report\n",
        "empty.pdf": b"",
        "inside.pdf": b"report\n",
        "p1.png": b"p1\n",
        "p2.png": b"p2\n",
    }
    assert {file.name: file.media_type for file in outcome.files}["p1.png"] == "image/png"


def test_attachments_of_one_name(bench: Bench) -> None:
    """Where base names collide the keys are the paths inside the run folder."""
    script = 'cd "$RUNDIR"; mkdir a b; echo a > a/x.txt; echo b > b/x.txt; echo y > b/y.txt'
    outcome = bench.run(script, outputs={"attachments": ["**/*.txt"]})

    assert bench.files(outcome) == {"a/x.txt": b"a\n", "b/x.txt": b"b\n", "y.txt": b"y\n"}


def test_attachment_under_two_names(bench: Bench) -> None:
    """A link to a file is a file: both are kept, whichever comes first."""
    script = 'cd "$RUNDIR"; echo same > b.txt; ln -s b.txt a.txt; ln -s b.txt c.txt; ln b.txt d.txt'
    outcome = bench.run(script, outputs={"attachments": ["*.txt"]})

    assert bench.files(outcome) == dict.fromkeys(["a.txt", "b.txt", "c.txt", "d.txt"], b"same\n")


def test_attachments_stay_for_debugging(bench: Bench) -> None:
    """What is kept of a run is also still in a folder that stays."""
    outcome = bench.run('echo kept > "$RUNDIR/a.txt"', outputs={"attachments": ["*.txt"]}, debug=True)
    (folder,) = bench.left()

    assert bench.files(outcome) == {"a.txt": b"kept\n"}
    assert (folder / "a.txt").read_text() == "kept\n"


def test_attachments_of_a_failure(bench: Bench) -> None:
    """A script that fails keeps its attachments, but has no results."""
    script = 'echo id > "$RUNDIR/rows.csv"; echo why > "$RUNDIR/report.txt"; exit 2'
    outcome = bench.run(script, outputs={**ROWS, "attachments": ["*.txt", "rows.csv"]})

    assert (outcome.state, outcome.exit_code, outcome.results) == (State.FAILED, 2, None)
    assert bench.files(outcome) == {"report.txt": b"why\n", "rows.csv": b"id\n"}


# A script that fails


def test_exit_code_and_last_words(bench: Bench) -> None:
    """The error is a sentence with the exit code, then the last lines of stderr."""
    outcome = bench.run("echo for stdout; echo first >&2; echo 'no such plate' >&2; exit 3")

    assert (outcome.state, outcome.exit_code) == (State.FAILED, 3)
    assert outcome.error == "The script ended with exit code 3.\nfirst\nno such plate"


def test_error_has_the_last_twenty_lines(bench: Bench) -> None:
    """Of a long stderr the last twenty lines are in the error, all of them whole."""
    script = "i=0; while [ $i -lt 3000 ]; do echo line number $i >&2; i=$((i+1)); done; exit 1"
    outcome = bench.run(script)

    assert outcome.error is not None
    assert outcome.error.splitlines()[1:] == [f"line number {number}" for number in range(2980, 3000)]
    assert len(bench.log(outcome, "stderr").splitlines()) == 3000


def test_error_of_one_endless_line(bench: Bench) -> None:
    """Of a line without end, the end is in the error."""
    outcome = bench.run("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1")

    assert outcome.error == "The script ended with exit code 1.\n" + "x" * 4000


def test_error_that_is_not_unicode(bench: Bench) -> None:
    """Bytes that are not UTF-8 do not break the error text."""
    outcome = bench.run("printf 'caf\\351 closed\\n' >&2; exit 1")

    assert outcome.error == "The script ended with exit code 1.\ncaf\ufffd closed"
    assert bench.log(outcome, "stderr") == b"caf\xe9 closed\n"


@pytest.mark.parametrize(
    ("number", "words"), [(9, "SIGKILL (signal 9)"), (11, "SIGSEGV (signal 11)"), (40, "signal 40")]
)
def test_killed_by_a_signal(bench: Bench, number: int, words: str) -> None:
    """A script that was killed says by which signal."""
    outcome = bench.run(f"kill -{number} $$")

    assert (outcome.state, outcome.exit_code) == (State.FAILED, -number)
    assert outcome.error == f"The script was killed by {words}."


def test_program_that_is_not_there(bench: Bench) -> None:
    """A command that cannot start fails the run with a sentence."""
    spec = Spec.read({"command": ["no-such-program-anywhere"], "command_rundir": str(bench.runs)})
    outcome = bench.run_spec(spec)

    assert outcome is not None
    assert_failed(bench, outcome, "was not found on the worker")
    assert bench.left() == []


# Results that cannot be read

BAD_FILES: Mapping[str, tuple[str, str]] = {
    "missing": ("true", '"rows.csv" was not written.'),
    "a folder": ("mkdir rows.csv", '"rows.csv" is not a regular file.'),
    "a FIFO": ("mkfifo rows.csv", '"rows.csv" is not a regular file.'),
    "a link out": ("ln -s /etc/passwd rows.csv", '"rows.csv" leads outside the run folder.'),
    "a link to nothing": ("ln -s nowhere rows.csv", '"rows.csv" was not written.'),
    "a link to itself": ("ln -s rows.csv rows.csv", '"rows.csv"'),
    "a device": ("ln -s /dev/zero rows.csv", '"rows.csv" leads outside the run folder.'),
    "empty": ("touch rows.csv", "The results are empty"),
    "a long row": ("printf 'a,b\\n1,2\\n1,2,3\\n' > rows.csv", "3 values in line 3, for 2 columns."),
    "not UTF-8": ("printf 'a\\n1\\ncaf\\351\\n' > rows.csv", "not UTF-8"),
    "an open quote": ("printf 'a\\n\"1\\n' > rows.csv", "not CSV"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_results_fail_the_run(bench: Bench, kind: str) -> None:
    """Results that cannot be read fail a script that succeeded, with a sentence and then its last words."""
    script, sentence = BAD_FILES[kind]
    outcome = bench.run(f'cd "$RUNDIR"; {script}; echo last words >&2', outputs=ROWS)

    assert (outcome.state, outcome.exit_code, outcome.results) == (State.FAILED, 0, None)
    assert outcome.error is not None
    first, *rest = outcome.error.splitlines()
    assert sentence in first
    assert rest == ["last words"]
    assert str(bench.folder) not in outcome.error


def test_named_column_that_is_not_there(bench: Bench) -> None:
    """A column of the configuration that is not in the file fails the run and says which columns are."""
    columns = [{"output_name": "plate", "input_name": "Plate"}]
    wanted = {"results": {**from_stream("stdout")["results"], "remapped_columns": columns}}
    outcome = bench.run("echo id,name", outputs=wanted)

    assert outcome.state is State.FAILED
    assert outcome.error == 'The results have no column "Plate"; they have "id", "name".'


def test_bad_json_fails_the_run(bench: Bench) -> None:
    """JSON that ends too early fails the run."""
    outcome = bench.run("printf '[1, 2'", outputs=from_stream("stdout", "json"))

    assert (outcome.state, outcome.exit_code) == (State.FAILED, 0)
    assert outcome.error is not None
    assert outcome.error.startswith("The results are not JSON")


def test_attachments_are_kept_with_bad_results(bench: Bench) -> None:
    """Results that cannot be read leave the attachments and logs."""
    outcome = bench.run('echo x > "$RUNDIR/x.txt"; echo said', outputs={**ROWS, "attachments": ["*.txt"]})

    assert outcome.state is State.FAILED
    assert bench.files(outcome) == {"x.txt": b"x\n"}
    assert bench.log(outcome) == b"said\n"


def test_store_that_is_full(bench: Bench, small_disk: Path) -> None:
    """A script whose files cannot be kept has failed, in a sentence, and its folder goes."""
    (bench.folder / "store").symlink_to(small_disk)
    outcome = bench.run('head -c 3000000 /dev/zero > "$RUNDIR/x.bin"', outputs={"attachments": ["*.bin"]})

    assert (outcome.state, outcome.exit_code, outcome.files) == (State.FAILED, 0, ())
    assert outcome.error == "The artifact store cannot take it: No space left on device."
    assert bench.left() == []


# Ended from outside, or by a limit


def test_time_is_up(bench: Bench) -> None:
    """A script over its time is stopped, whatever it does with TERM, and says what it had said."""
    script = f'trap "" TERM; echo slow >&2; echo x > "$RUNDIR/x.txt"; {IDLE}'
    outcome = bench.run(script, timeout_seconds=2, grace_seconds=0.1, outputs={**ROWS, "attachments": ["*.txt"]})

    assert (outcome.state, outcome.exit_code, outcome.results) == (State.TIMED_OUT, -9, None)
    assert outcome.error == "The script ran longer than 2 seconds and was stopped.\nslow"
    assert bench.files(outcome) == {"x.txt": b"x\n"}


def test_time_is_up_for_a_polite_script(bench: Bench) -> None:
    """A script may end itself in the grace; it is over its time all the same."""
    outcome = bench.run(f"trap 'echo bye; exit 0' TERM; {IDLE}", timeout_seconds=2, grace_seconds=A_LONG_TIME)

    assert (outcome.state, outcome.exit_code) == (State.TIMED_OUT, 0)
    assert bench.log(outcome) == b"bye\n"


def test_script_within_its_time(bench: Bench) -> None:
    """A limit that is not reached changes nothing."""
    assert bench.run("exit 0", timeout_seconds=A_LONG_TIME).state is State.SUCCEEDED


def test_cancel(bench: Bench) -> None:
    """A cancelled script is stopped with the grace, and what it had made is kept."""
    outcome = bench.run(
        f"trap 'echo bye; exit 5' TERM; {READY}; {IDLE}",
        when_ready(bench, Stop.CANCELLED),
        grace_seconds=A_LONG_TIME,
        outputs={"attachments": ["ready"]},
    )

    assert (outcome.state, outcome.exit_code) == (State.CANCELLED, 5)
    assert outcome.error is not None
    assert outcome.error.splitlines()[0] == "The task was cancelled."
    assert bench.log(outcome) == b"bye\n"
    assert bench.files(outcome) == {"ready": b"ready\n"}


def test_cancel_of_a_script_that_does_not_listen(bench: Bench) -> None:
    """After the grace a cancelled script is killed."""
    outcome = bench.run(TERM_PROOF, when_ready(bench, Stop.CANCELLED), grace_seconds=0.1)

    assert (outcome.state, outcome.exit_code) == (State.CANCELLED, -9)
    assert bench.left() == []


def test_drained_run_is_given_up(bench: Bench) -> None:
    """A run that the worker gives back is stopped with the grace, and has no outcome."""
    said = bench.folder / "said"
    script = f"trap 'echo bye > {said}; exit 0' TERM; {READY}; {IDLE}"
    spec = bench.spec(script, grace_seconds=A_LONG_TIME)

    assert bench.run_spec(spec, when_ready(bench, Stop.DRAINED)) is None
    assert said.read_text() == "bye\n"
    assert bench.left() == []


def test_lapsed_run_is_killed_at_once(bench: Bench) -> None:
    """A run that may have become another worker's has no grace and no outcome, and keeps nothing."""
    spec = bench.spec(TERM_PROOF, grace_seconds=A_LONG_TIME, outputs={"attachments": ["ready"]})

    assert bench.run_spec(spec, when_ready(bench, Stop.LAPSED)) is None
    assert bench.left() == []
    assert not (bench.folder / "store").exists()


def test_run_that_lapses_in_its_grace_is_killed_at_once(bench: Bench) -> None:
    """A cancelled script that does not end has no more grace when its task may have become another's."""
    spec = bench.spec(f"trap 'echo > \"$RUNDIR/told\"' TERM; {READY}; {IDLE}", grace_seconds=A_LONG_TIME)

    async def meanwhile(halt: Halt) -> None:
        await when_ready(bench, Stop.CANCELLED)(halt)
        await until(lambda: any(bench.runs.glob("*/told")))
        halt.ask(Stop.LAPSED)

    assert bench.run_spec(spec, meanwhile) is None
    assert bench.left() == []


@pytest.mark.parametrize("reason", Stop)
def test_run_that_is_to_end_before_its_script_starts_is_not_begun(bench: Bench, reason: Stop) -> None:
    """What is asked while the folder is made is heeded before the script is started, whose grace it would have."""
    begun = bench.folder / "begun"

    async def at_once(halt: Halt) -> None:
        halt.ask(reason)

    assert bench.run_spec(bench.spec(f"touch {begun}"), at_once) is None
    assert not begun.exists()
    assert bench.left() == []


def test_flood_in_the_grace(bench: Bench) -> None:
    """A script that answers TERM with 10 GB is killed long before they are written."""
    script = f"trap 'exec head -c 10G /dev/zero' TERM; {IDLE}"
    outcome = bench.run(script, timeout_seconds=0.5, max_output_bytes=1_000_000, grace_seconds=A_LONG_TIME)

    assert (outcome.state, outcome.exit_code) == (State.TIMED_OUT, -9)
    assert [log.size for log in outcome.logs if log.name == "stdout"] == [1_000_000]


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_flood(bench: Bench, stream: str) -> None:
    """A script that would write 10 GB is killed long before, and no more is kept of it than the limit."""
    outcome = bench.run(
        f'trap "" TERM; head -c 10G /dev/zero {stream}', max_output_bytes=1_000_000, grace_seconds=A_LONG_TIME
    )

    assert (outcome.state, outcome.exit_code) == (State.FAILED, -9)
    assert outcome.error is not None
    assert outcome.error.startswith(
        "The script wrote more than 1,000,000 bytes to stdout or stderr and was stopped; raise max_output_bytes"
    )
    assert [log.size for log in outcome.logs] == [1_000_000]


def test_flood_of_a_script_that_has_ended(bench: Bench) -> None:
    """A script that wrote too much and ended before anybody looked has failed just so."""
    outcome = bench.run("head -c 3000 /dev/zero", max_output_bytes=2_000, outputs=from_stream("stdout"))

    assert (outcome.state, outcome.exit_code, outcome.results) == (State.FAILED, 0, None)
    assert [log.size for log in outcome.logs] == [2_000]


def test_output_up_to_the_limit(bench: Bench) -> None:
    """A script may write as much as the limit says."""
    outcome = bench.run("head -c 2000 /dev/zero", max_output_bytes=2_000)

    assert (outcome.state, [log.size for log in outcome.logs]) == (State.SUCCEEDED, [2_000])


# What is seen while it runs


def test_output_is_seen_while_the_script_runs(bench: Bench) -> None:
    """What a script says can be read before it ends; of a lot, the last part, at its place in the whole."""
    seen: list[LogChunk] = []
    script = """
        head -c 200000 /dev/zero | tr '\\0' x; echo the end; echo an error >&2
        while [ ! -e "$RUNDIR/go" ]; do sleep 0.02; done
    """

    async def meanwhile(_: Halt) -> None:
        for stream, end in (("stdout", b"the end\n"), ("stderr", b"an error\n")):
            tail = LogChunk(0, b"")
            while not tail.data.endswith(end):
                await asyncio.sleep(0.01)
                tail = await bench.logs.read("task-1", stream, offset=0, limit=1_000_000)
            seen.append(tail)
        (folder,) = bench.left()
        (folder / "go").touch()

    outcome = bench.run(script, meanwhile)

    assert outcome.state is State.SUCCEEDED
    out, error = seen
    assert out.offset + len(out.data) == 200_000 + len(b"the end\n")
    assert 1_000 < len(out.data) < 200_000
    assert error == LogChunk(0, b"an error\n")


class SilentLogs(MemoryLogs):
    """Logs behind a connection that takes everything and answers nothing."""

    async def append(self, task: Task, stream: str, chunk: LogChunk) -> None:  # noqa: ARG002 - the port's names
        await asyncio.Event().wait()


class BrokenLogs(MemoryLogs):
    """Logs that are away."""

    async def append(self, task: Task, stream: str, chunk: LogChunk) -> None:  # noqa: ARG002 - the port's names
        raise Error(Code.UNAVAILABLE, "The store is away.")


def test_silent_log_store_does_not_delay_a_limit(bench: Bench) -> None:
    """A time limit holds also when the store of the tails does not answer."""
    bench = Bench(bench.folder, logs=SilentLogs(AllHeld()))

    assert bench.run(f"echo hello; {IDLE}", timeout_seconds=0.8).state is State.TIMED_OUT


def test_run_does_not_need_the_tails(bench: Bench) -> None:
    """A run succeeds with its whole log when the store of the tails is away."""
    bench = Bench(bench.folder, logs=BrokenLogs(AllHeld()))
    outcome = bench.run("echo one; sleep 0.6; echo two")

    assert outcome.state is State.SUCCEEDED
    assert bench.log(outcome) == b"one\ntwo\n"


# Much


def test_runs_leave_no_file_open(bench: Bench) -> None:
    """However a run ends, it holds no file afterwards."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count

    def some_runs() -> None:
        bench.run("echo a,b; echo 1,2", outputs=from_stream("stdout"))
        bench.run("echo oops >&2; exit 1", outputs={**ROWS, "attachments": ["*"]})
        bench.run(IDLE, timeout_seconds=0.1)
        bench.run("true", outputs=ROWS)

    some_runs()
    before = open_files()
    some_runs()

    assert open_files() == before


MILLION = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_run import Bench, ROWS
WRITE = '''
with open(__import__("os").environ["RUNDIR"] + "/rows.csv", "w") as file:
    file.write("plate,well,sample,count,note\\\\n")
    for n in range(1_000_000):
        file.write(f"P{{n // 384:05}},W{{n % 384:03}},sample-{{n}},{{n * 7}},as seen\\\\n")
'''
bench = Bench(Path({folder!r}))
outcome = bench.run(f"'{{sys.executable}}' -I -S -c '{{WRITE}}'", outputs=ROWS)
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(outcome.state, outcome.results.rows, outcome.results.artifact.size, int(line.split()[1]))
"""


def test_million_rows_take_little_memory(tmp_path: Path) -> None:
    """A million rows go from the file to the store in a worker that stays small."""
    program = MILLION.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    state, rows, size, peak_kilobytes = ran.stdout.split()
    print(f"peak of the worker: {int(peak_kilobytes) / 1024:.0f} MiB for {int(size) / 1e6:.0f} MB of rows")  # noqa: T201 - a figure

    assert (state, int(rows)) == ("succeeded", 1_000_000)
    assert int(peak_kilobytes) < 150 * 1024
