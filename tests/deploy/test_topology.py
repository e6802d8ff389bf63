"""A deployment over several machines: a server, two workers and a Redis with TLS, each in a network of its own."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.deploy.topology import Caller, Host, HostedSite, TlsRedis, hosts, why_not
from tests.end_to_end.processes import FINAL, Program, shell_config, until

LEASE_SECONDS = 2

SAYS_WHERE = 'echo "name,value" > $RUNDIR/rows.csv; echo "$(readlink /proc/self/ns/net),1" >> $RUNDIR/rows.csv'

WAIT_FOR_GO = "until [ -e go ]; do sleep 0.02; done"

NOTES_OVERLAPS = """
    touch ledger-$TASK_ID
    for pid in $(cat ledger-$TASK_ID); do
        if grep -q . /proc/$pid/cmdline; then echo overlap >> overlaps; fi
    done
    echo $$ >> ledger-$TASK_ID;
"""
"""Shell code that notes its pid, and whether an earlier run of the same task still lives."""


@dataclass(frozen=True, slots=True)
class Network:
    """The machines, with Redis at work on one of them."""

    redis: TlsRedis
    server: Host
    workers: tuple[Host, Host]
    client: Host


@pytest.fixture(scope="module")
def network(redis_binary_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if shutil.which("ip") is None and os.environ.get("CI") == "true":
        pytest.fail("iproute2 is missing, and CI must not do without it")
    if reason := why_not():
        pytest.skip(reason)
    with (
        hosts("redis", "server", "first", "second", "client") as (redis, server, first, second, client),
        TlsRedis(redis_binary_path, redis, tmp_path_factory.mktemp("redis")) as store,
    ):
        yield Network(store, server, (first, second), client)


class Deployment:
    """A server and two workers, one script at once each, and somebody who asks."""

    def __init__(self, network: Network, folder: Path, on_worker_lost: str) -> None:
        self.network = network
        self.folder = folder
        self.site = HostedSite(
            folder,
            shell_config(on_worker_lost=on_worker_lost, max_attempts=3),
            SCRIPT_RUNNER_REDIS_URL=network.redis.url,
            SCRIPT_RUNNER_REDIS_PASSWORD=network.redis.password,
            SCRIPT_RUNNER_LEASE_SECONDS=str(LEASE_SECONDS),
            AUTH_PROVIDER="none",
        )
        address = network.server.address
        self.server = self.site.on(network.server).serve("--host", address, "--port", "8000")
        self.workers = [self.site.on(host).worker("--concurrency", "1") for host in network.workers]
        self.caller = Caller(network.client, f"http://{address}:8000")
        self.caller.wait_until_ready(workers=2)

    def running_on_both(self, code: str) -> tuple[str, str]:
        """Two tasks that run now, on both workers since each runs one at once."""
        first, second = (self.caller.submit(code) for _ in range(2))
        for task_id in (first, second):
            self.caller.wait_for_state(task_id, "running")
        return first, second

    def host_of(self, task_id: str) -> Host:
        """On whose worker the script of this task runs."""
        (pid,) = until(lambda: list(self.site.processes(TASK_ID=task_id))[:1])
        own = Path(f"/proc/{pid}/ns/net").readlink()
        return next(host for host in self.network.workers if _namespace(host) == own)

    def close(self) -> None:
        self.caller.close()
        self.site.close()


def _namespace(host: Host) -> Path:
    """What /proc/…/ns/net of a process there is (network_namespaces(7))."""
    return Path(f"net:[{Path('/run/netns', host.namespace).stat().st_ino}]")


@pytest.fixture
def deployment(network: Network, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    found = Deployment(network, tmp_path, getattr(request, "param", "retry"))
    yield found
    for host in network.workers:
        host.join()
    found.close()


def test_both_workers_take_work(deployment: Deployment) -> None:
    """Tasks that were submitted on one machine run at once on two others, and their rows come back."""
    tasks = deployment.running_on_both(f"{SAYS_WHERE}; {WAIT_FOR_GO}")
    (deployment.folder / "go").touch()
    ended = [deployment.caller.wait_for_state(task_id, *FINAL) for task_id in tasks]

    assert [document["state"] for document in ended] == ["succeeded", "succeeded"]
    assert {document["results"][0]["name"] for document in ended} == {
        str(_namespace(host)) for host in deployment.network.workers
    }


def test_a_machine_that_is_cut_off_gives_its_task_up(deployment: Deployment) -> None:
    """Its script is dead before the other worker runs the task again; healed, the machine takes work as before."""
    lost, other = deployment.running_on_both(f"{NOTES_OVERLAPS} {WAIT_FOR_GO}")
    cut = deployment.host_of(lost)
    cut.cut_off()
    deployment.caller.wait_until_ready(workers=1)
    (deployment.folder / "go").touch()
    ended = [deployment.caller.wait_for_state(task_id, *FINAL) for task_id in (lost, other)]

    assert [(document["state"], document["attempt"]) for document in ended] == [("succeeded", 2), ("succeeded", 1)]
    assert not (deployment.folder / "overlaps").exists()
    assert not deployment.site.processes(TASK_ID=lost)

    (deployment.folder / "go").unlink()
    cut.join()
    deployment.caller.wait_until_ready(workers=2)
    again = deployment.running_on_both(WAIT_FOR_GO)
    (deployment.folder / "go").touch()

    assert {deployment.caller.wait_for_state(task_id, *FINAL)["state"] for task_id in again} == {"succeeded"}


@pytest.mark.parametrize("deployment", ["fail"], indirect=True)
def test_a_task_that_may_not_be_repeated_is_lost_with_its_machine(deployment: Deployment) -> None:
    """With on_worker_lost fail, its state says so within the lease and a little, in a sentence."""
    task_id, _ = deployment.running_on_both(WAIT_FOR_GO)
    deployment.host_of(task_id).cut_off()
    ended = deployment.caller.wait_for_state(task_id, *FINAL)

    assert (ended["state"], ended["attempt"]) == ("lost", 1)
    assert "worker" in ended["error"]
    until(lambda: not deployment.site.processes(TASK_ID=task_id))


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong URL or password, made of the right ones, and what is said of it."""

    url: str
    sentence: str
    password: str = "{password}"


MISTAKES = {
    "password": Mistake(
        "{address}?ssl_ca_certs={authority}", "Redis refuses the name or password", password="wrong"
    ),
    "authority": Mistake("{address}", "The certificate of Redis is not trusted: self-signed certificate"),
    "file": Mistake(
        "{address}?ssl_ca_certs=/no.pem", "The file '/no.pem', which the Redis URL names as ssl_ca_certs"
    ),
    "address": Mistake("rediss://192.0.2.99:6379", "The task store (Redis) is away"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_wrong_with_redis_is_said(network: Network, tmp_path: Path, name: str) -> None:
    """Server and worker say in one sentence what it is, and no secret."""
    mistake, redis = MISTAKES[name], network.redis
    right = {"address": redis.address, "authority": redis.authority, "password": redis.password}
    with HostedSite(
        tmp_path,
        shell_config(),
        SCRIPT_RUNNER_REDIS_URL=mistake.url.format(**right),
        SCRIPT_RUNNER_REDIS_PASSWORD=mistake.password.format(**right),
        AUTH_PROVIDER="none",
    ) as site:
        programs: list[Program] = [site.on(network.server).serve(), site.on(network.workers[0]).worker()]
        for program in programs:
            program.wait_for_output(mistake.sentence)

            assert program.output.count(mistake.sentence) == 1
            assert redis.password not in program.output
            assert "Traceback" not in program.output
