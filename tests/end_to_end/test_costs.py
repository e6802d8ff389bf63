"""What a task costs, counted: round trips, commands, bytes, system calls, threads, memory, modules."""

import os
import shutil

import pytest
from benchmarks import costs


@pytest.mark.usefixtures("redis_binary_path")
def test_no_task_costs_more_than_was_kept(capsys: pytest.CaptureFixture[str]):
    """A change that makes a task dearer is seen here, and not by a user.

    Counts do not depend on how busy the machine is; a few chores go by the clock, for which there is a tolerance.
    """
    assert shutil.which("strace") or not os.environ.get("CI"), "continuous integration has strace"

    code = costs.main(is_kept=False)

    assert code == 0, capsys.readouterr().out
