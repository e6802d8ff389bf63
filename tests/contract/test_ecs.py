"""The shelter of Amazon ECS against a real HTTP server that answers as its agent does."""

import asyncio
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.ecs_agent import PROTECTED, Agent
from tests.servers import free_port, until

from script_runner.adapters.ecs import EcsShelter, Pauses, Standing, due
from script_runner.adapters.memory import MemoryLease, MemoryLogs, MemoryTasks
from script_runner.adapters.process import LocalExecutor
from script_runner.adapters.store import FileArtifacts
from script_runner.config import read_settings, read_spec, script_environment
from script_runner.errors import Code, Error
from script_runner.run import Workshop
from script_runner.spec import Spec
from script_runner.task import State, Task
from script_runner.wiring.working import _shelter
from script_runner.worker import Terms, Worker

QUICK = Pauses(release=0.0, renew=600.0, retry=0.0)
REFUSED = {"failure": {"Arn": "arn", "Reason": "TASK_NOT_VALID", "Detail": None}}
DENIED = {"error": {"Arn": "arn", "Code": "AccessDeniedException", "Message": "may not"}}


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent() as agent:
        yield agent


async def until_wishes(agent: Agent, wanted: list[bool]) -> None:
    async def are_there() -> bool:
        return agent.enabled[: len(wanted)] == wanted

    await until(are_there)


def test_a_worker_is_protected_while_scripts_run_and_only_then(agent: Agent):
    """The agent gets the wish that its documentation describes, at each edge."""

    async def scenario() -> None:
        shelter = EcsShelter(agent.uri, minutes=60, pauses=QUICK)
        shelter.hold()
        await until_wishes(agent, [True])
        shelter.release()
        await until_wishes(agent, [True, False])
        shelter.close()

    asyncio.run(scenario())

    assert agent.wishes == [{"ProtectionEnabled": True, "ExpiresInMinutes": 60}, {"ProtectionEnabled": False}]
    assert set(agent.paths) == {"/api/c0ffee/task-protection/v1/state"}


def test_many_short_scripts_ask_once(agent: Agent):
    """A pause between two scripts that is shorter than the delay costs no call."""

    async def scenario() -> None:
        shelter = EcsShelter(agent.uri, minutes=60, pauses=replace(QUICK, release=600.0))
        for _ in range(1_000):
            shelter.hold()
            shelter.release()
        shelter.hold()
        await until_wishes(agent, [True])
        shelter.close()

    asyncio.run(scenario())

    assert agent.enabled == [True]


def test_a_protection_is_renewed_while_a_script_runs_on(agent: Agent):
    """What ends by itself is asked for again in time."""

    async def scenario() -> None:
        shelter = EcsShelter(agent.uri, minutes=60, pauses=replace(QUICK, renew=0.0))
        shelter.hold()
        await until_wishes(agent, [True, True, True])
        shelter.close()

    asyncio.run(scenario())

    assert {wish["ExpiresInMinutes"] for wish in agent.wishes} == {60}


@pytest.mark.parametrize(
    ("standing", "at"),
    [
        (Standing(), None),
        (Standing(is_wanted=True, since=100.0), 100.0),
        (Standing(is_wanted=True, since=100.0, failed_at=101.0), 131.0),
        (Standing(is_wanted=True, since=100.0, is_held=True, told_at=101.0), 1_901.0),
        (Standing(is_wanted=True, since=100.0, is_held=True, told_at=101.0, failed_at=1_901.0), 1_931.0),
        (Standing(since=200.0, is_held=True, told_at=101.0), 215.0),
        (Standing(since=200.0, is_held=True, told_at=101.0, failed_at=215.0), 245.0),
    ],
)
def test_when_the_agent_is_told(standing: Standing, at: float | None):
    """At once when work begins; later when it ends, when half the time has passed, or after a failure."""
    assert due(standing, Pauses()) == at


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (200, REFUSED, "TASK_NOT_VALID"),
        (400, DENIED, "AccessDeniedException"),
        (500, b"<html>", "HTTP 500"),
        (200, DENIED, "AccessDeniedException"),
        (500, [], "HTTP 500"),
    ],
)
def test_a_refusal_is_said_once_and_asked_again(
    agent: Agent, caplog: pytest.LogCaptureFixture, status: int, answer: Any, said: str
):
    """The log has one line however often it fails, and the wish is told until it is taken."""
    agent.status, agent.answer = status, answer

    async def scenario() -> None:
        shelter = EcsShelter(agent.uri, minutes=60, pauses=QUICK)
        shelter.hold()
        await until_wishes(agent, [True, True, True])
        agent.status, agent.answer = 200, PROTECTED

        async def is_held() -> bool:
            return shelter._standing.is_held

        await until(is_held)
        shelter.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())

    assert [record.message.count(said) for record in caplog.records] == [1]


def test_an_agent_that_is_away_hurts_nobody(caplog: pytest.LogCaptureFixture):
    """Nothing listens there: hold and release return, and the log says so."""

    async def scenario() -> None:
        shelter = EcsShelter(f"http://127.0.0.1:{free_port()}/api", minutes=60, pauses=QUICK)
        shelter.hold()

        async def has_said_so() -> bool:
            return "ConnectionRefusedError" in caplog.text

        await until(has_said_so)
        shelter.release()
        shelter.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())

    assert len(caplog.records) == 1


def test_a_slow_agent_delays_no_script(agent: Agent, tmp_path: Path):
    """A task runs to its end while the agent has not answered at all."""
    agent.gate.clear()

    state = asyncio.run(_one_task(agent, tmp_path))

    assert state is State.SUCCEEDED
    assert agent.enabled == [True]


def test_a_worker_holds_and_releases_by_itself(agent: Agent, tmp_path: Path):
    """A worker that got a task is protected, and is no longer when the task has ended."""
    asyncio.run(_one_task(agent, tmp_path, wishes=[True, False]))

    assert agent.enabled == [True, False]


async def _one_task(agent: Agent, folder: Path, wishes: list[bool] | None = None) -> State | None:
    """The end of a task that a real worker with this agent ran; it stops when the wishes were told."""
    tasks = MemoryTasks()
    (folder / "store").mkdir()
    wait_for_go = f"until [ -e {folder}/go ]; do sleep 0.01; done"
    spec = Spec.read({"command": ["sh", "-c", wait_for_go], "command_rundir": str(folder)})
    executor = LocalExecutor()
    store = FileArtifacts((folder / "store").as_uri())
    workshop = Workshop(spec, {"PATH": os.environ["PATH"]}, executor, store, MemoryLogs(tasks))
    shelter = EcsShelter(agent.uri, minutes=60, pauses=QUICK)
    terms = Terms("w1", concurrency=2, lease_seconds=60.0, drain_seconds=0.0)
    worker = Worker(terms, tasks=tasks, lease=MemoryLease(tasks), workshop=workshop, shelter=shelter)
    drain = asyncio.Event()
    work = asyncio.create_task(worker.work(drain, hurry=asyncio.Event()))
    await tasks.add(Task(id="a", owner="ada", arguments={}))

    async def is_over() -> bool:
        task = await tasks.get("a")
        return bool(task and task.state.is_final)

    await until_wishes(agent, [True])  # a script that is over sooner than this needs no shelter
    (folder / "go").touch()
    await until(is_over)
    await until_wishes(agent, wishes or [True])
    drain.set()
    await work
    agent.gate.set()
    shelter.close()
    await executor.close()
    task = await tasks.get("a")
    return task.state if task else None


@pytest.mark.parametrize(
    "address", ["https://169.254.170.2/api", "169.254.170.2", "http://", "http://a:x/", "http://[a"]
)
def test_an_address_that_is_none_stops_the_start(address: str):
    """The sentence names the variable and how to do without."""
    with pytest.raises(Error, match=r"ECS_AGENT_URI: .*SCRIPT_RUNNER_ECS_PROTECTION_MINUTES=0") as caught:
        EcsShelter(address, minutes=60)

    assert caught.value.code is Code.INVALID_CONFIG


@pytest.mark.parametrize(
    "environment", [{}, {"ECS_AGENT_URI": "http://127.0.0.1:9/api", "SCRIPT_RUNNER_ECS_PROTECTION_MINUTES": "0"}]
)
def test_without_ecs_or_without_the_wish_there_is_none(environment: dict[str, str]):
    """Outside ECS, and where it was switched off, nothing is asked."""
    assert _shelter(read_settings(environment)) is None


def test_on_ecs_it_is_on_by_itself():
    """The variable that ECS sets is enough."""
    shelter = _shelter(read_settings({"ECS_AGENT_URI": "http://127.0.0.1:9/api"}))

    assert shelter
    shelter.close()


def test_a_script_does_not_hear_of_the_agent(tmp_path: Path):
    """A script cannot end the protection of the others by an inherited address."""
    (tmp_path / "config.json").write_text('{"command": ["true"]}')
    inherited = script_environment({"ECS_AGENT_URI": "http://x", "LANG": "C"}, read_spec(tmp_path / "config.json"))

    assert inherited == {"LANG": "C"}
