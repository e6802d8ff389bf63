"""A worker process as Amazon ECS starts it, with a real Redis and an agent that is a server of ours."""

import os
from pathlib import Path

from tests.contract.ecs_agent import Agent
from tests.end_to_end.processes import Site, shell_config, until
from tests.servers import RedisServer

WAIT_FOR_GO = "until [ -e go ]; do sleep 0.02; done"


def test_a_worker_on_ecs_is_protected_while_its_script_runs(redis_server: RedisServer, tmp_path: Path):
    """The variable that ECS sets is enough: the agent is asked when a script starts, which does not see it."""
    with Agent() as agent:
        settings = {"SCRIPT_RUNNER_REDIS_URL": redis_server.url, "ECS_AGENT_URI": agent.uri}
        with Site(tmp_path, shell_config(), **settings) as site:
            server = site.serve()
            site.worker()
            before = list(agent.wishes)
            task_id = server.submit(f'echo "agent: $ECS_AGENT_URI."; {WAIT_FOR_GO}')
            until(lambda: bool(agent.wishes), why=lambda: str(server.document(task_id)))
            state = server.document(task_id)["state"]
            (tmp_path / "go").touch()
            server.wait_for_state(task_id, "succeeded")
            said = server.log(task_id)

    assert before == []
    assert state == "running"
    assert agent.wishes[0] == {"ProtectionEnabled": True, "ExpiresInMinutes": 60}
    assert said == f"agent: .{os.linesep}"
