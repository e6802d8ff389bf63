"""The child that is a copy: its end is noticed and explained, it can be stopped, and it notices ours."""

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import asyncio, os, signal, sys, uvloop
from script_runner.errors import Code, Error, Problem
from script_runner.fork import fork, told_by_copy
"""


def printed(code: str) -> str:
    """What a process of its own, which has but one thread, prints."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("life", "end"),
    [
        ("lambda: 3", "3"),
        ("lambda: os.kill(os.getpid(), signal.SIGKILL)", "-9"),
        ("lambda: 1 / 0", "1"),
        ("lambda: sys.exit(5)", "1"),
    ],
)
def test_how_it_ended_is_told(loop: str, life: str, end: str) -> None:
    """An exit code, a signal as a negative number; what it raises does not come back into the parent's life."""
    assert printed(f"print({loop}.run(fork({life}).wait()))") == f"{end}\n"


def test_it_is_waited_for_again_and_by_many() -> None:
    """Each who waits is told, also when an earlier wait was given up."""
    code = """
async def waits(child):
    first = asyncio.create_task(child.wait())
    await asyncio.sleep(0)
    first.cancel()
    child.terminate()
    return await asyncio.gather(child.wait(), child.wait()), await child.wait()
print(asyncio.run(waits(fork(signal.pause))))
"""
    assert printed(code) == "([-15, -15], -15)\n"


def test_its_input_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed is noticed by its child, which goes on in a session of its own."""
    printed(
        f"""
def life():
    assert os.read(0, 1) == b"" and os.getsid(0) == os.getpid()
    open({str(tmp_path / "noticed")!r}, "w").close()
    print("noticed")  # and only now our output has an end
    return 0
fork(life)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert (tmp_path / "noticed").exists()


def test_a_parent_without_input_or_output_has_a_child_all_the_same(tmp_path: Path) -> None:
    """Some who start programs leave them no standard streams."""
    code = f"""
def life():
    assert os.read(0, 1) == b""
    open({str(tmp_path / "noticed")!r}, "w").close()
    return 7
child = fork(life)
child._line.shutdown(1)
assert asyncio.run(child.wait()) == 7
"""
    program = tmp_path / "program.py"
    program.write_text(BEGIN + code)
    subprocess.run(["sh", "-c", 'exec "$0" "$1" <&- >&- 2>&-', sys.executable, program], timeout=60, check=True)

    assert (tmp_path / "noticed").exists()


def test_what_waits_to_be_written_is_written_once() -> None:
    """Output that stands in a buffer at the fork does not come from both."""
    assert printed('print("once"); asyncio.run(fork(lambda: 0).wait())') == "once\n"


def test_what_a_copy_finds_is_told() -> None:
    """The value is here, and what was loaded to find it is not."""
    code = """
def find():
    import sqlite3
    return os.getpid(), "sqlite3" in sys.modules
found, has_loaded = told_by_copy(find)
print(found != os.getpid(), has_loaded, "sqlite3" in sys.modules)
"""
    assert printed(code) == "True True False\n"


def test_what_a_copy_raises_is_raised() -> None:
    """An error comes with all that it says."""
    code = """
def find():
    raise Error(Code.INVALID_CONFIG, "no", (Problem("file", "a", "b"),), retry_after=3)
try:
    told_by_copy(find)
except Error as error:
    print(error.code, error.message, error.problems == (Problem("file", "a", "b"),), error.retry_after)
"""
    assert printed(code) == "invalid-config no True 3\n"


def test_a_copy_that_is_killed_is_told_from_one_that_finds_nothing() -> None:
    """Nothing is a finding, too."""
    code = """
print(told_by_copy(lambda: None))
try:
    told_by_copy(lambda: os.kill(os.getpid(), signal.SIGKILL))
except ChildProcessError as error:
    print(error)
"""
    assert printed(code) == "None\nthe copy of this process ended without a word\n"


def test_a_copy_ends_when_nobody_waits_for_it() -> None:
    """More than a pipe holds, told to a parent that was killed: our output ends, so that both have."""
    assert printed("told_by_copy(lambda: os.kill(os.getppid(), signal.SIGKILL) or bytes(1_000_000))") == ""
