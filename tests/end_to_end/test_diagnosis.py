"""doctor and status at real servers, each with one thing wrong."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.processes import Site, shell_config
from tests.servers import RedisServer, free_port

from script_runner.config import read_settings
from script_runner.diagnosis import STORE_ACCESS, STORE_SETTINGS, diagnosis
from script_runner.doctor import Finding, Verdict


@pytest.fixture(scope="module")
def locked(redis_binary_path: str) -> Iterator[RedisServer]:
    """A Redis with a password and TLS."""
    with RedisServer(redis_binary_path, password="s3same", is_tls=True) as server:
        yield server


def config(folder: Path, **more: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({"command": ["sh", "-c", "true"], "command_rundir": str(folder), **more}))
    return path


def findings(folder: Path, configuration: Path | None = None, /, **environment: str) -> dict[str, Finding]:
    """What the doctor finds under these settings, by check; the gravest where a check has several."""
    environment = {
        "SCRIPT_RUNNER_CONFIG": str(configuration or config(folder)),
        "SCRIPT_RUNNER_STORE": (folder / "store").as_uri(),
        "PATH": os.environ["PATH"],
        **environment,
    }
    found = diagnosis(read_settings(environment), environment)
    return {finding.check: finding for finding in sorted(found, key=lambda finding: finding.verdict)}


def test_all_is_well(redis_server: RedisServer, tmp_path: Path):
    """At a Redis and a store as they should be, nothing is wrong, and nothing is left behind."""
    found = findings(tmp_path, SCRIPT_RUNNER_REDIS_URL=redis_server.url)

    # the server of tests does not sync its file
    assert {check for check, finding in found.items() if finding.verdict is not Verdict.OK} == {
        "redis persistence"
    }
    assert found.keys() >= {"configuration", "program", "auth", "redis", "store", "data folder", "run folder"}
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_each_way_not_to_reach_redis_has_its_sentence(locked: RedisServer, tmp_path: Path):
    """Host, port, password, database, certificate and protocol: each mistake is told from the others."""
    plain, tls = f"127.0.0.1:{locked.port}", locked.tls_url
    other_authority = tmp_path / "other.pem"
    other_authority.write_bytes((locked.folder / "server.pem").read_bytes())
    urls = {
        "asks for a password": f"redis://{plain}",
        "refuses the name or the password": f"redis://:0pensesame@{plain}",
        "no database of this number": f"{locked.url}/99",
        "is not trusted": tls.partition("?")[0],
        "not trusted (": tls.replace(str(locked.folder / "authority.pem"), str(other_authority)),
        "another host name": tls.replace("127.0.0.1", "localhost"),
        "names as ssl_ca_certs, cannot be read": tls.replace("authority", "nobody"),
        "may speak only TLS": locked.url.replace(str(locked.port), tls.rpartition(":")[2].partition("?")[0]),
        "speaks no TLS at this port": locked.url.replace("redis://", "rediss://"),
        "Nothing listens": f"redis://127.0.0.1:{free_port()}",
        "host name of Redis is not known": "redis://no-such-host.invalid:6379",
        "socket of Redis is not there": f"unix://{tmp_path}/none",
        "knows a master": f"redis+sentinel://127.0.0.1:{free_port()}/main",
        "URL cannot be used": "redis://host:port",
    }
    found = {sentence: findings(tmp_path, SCRIPT_RUNNER_REDIS_URL=url)["redis"] for sentence, url in urls.items()}

    told = {sentence: f"{finding.sentence}: {finding.advice}" for sentence, finding in found.items()}
    assert {sentence: text for sentence, text in told.items() if sentence not in text} == {}
    assert {finding.verdict for finding in found.values()} == {Verdict.WRONG}
    assert [text for text in told.values() if "sesame" in text or "s3same" in text] == []


def test_silent_redis(tmp_path: Path):
    """Where something listens and says nothing, the doctor does not wait long, and says so."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        found = findings(tmp_path, SCRIPT_RUNNER_REDIS_URL=url)["redis"]

    assert "does not answer in time" in found.sentence


def test_right_password_and_certificate(locked: RedisServer, tmp_path: Path):
    """With the authority named and the password set apart, TLS is well."""
    url = locked.tls_url.replace(":s3same@", "")
    found = findings(tmp_path, SCRIPT_RUNNER_REDIS_URL=url, SCRIPT_RUNNER_REDIS_PASSWORD="s3same")

    assert found["redis"].verdict is Verdict.OK


def test_user_without_rights(locked: RedisServer, tmp_path: Path):
    """A user who may not touch our keys is told from one with a wrong password."""
    with locked.client() as outside:
        outside.acl_setuser("reader", enabled=True, passwords=["+pw"], keys=["other:*"], categories=["+@all"])
    url = f"redis://reader:pw@127.0.0.1:{locked.port}"
    found = findings(tmp_path, SCRIPT_RUNNER_REDIS_URL=url)["redis"]

    assert (found.verdict, "lacks permissions" in found.sentence) == (Verdict.WRONG, True)


def test_careless_redis(redis_binary_path: str, tmp_path: Path):
    """An evicting policy, no append-only file and a missing replica are found, each with its advice."""
    careless = {"appendonly": "no", "maxmemory-policy": "allkeys-lru", "maxmemory": "1mb"}
    with RedisServer(redis_binary_path, settings=careless) as server:
        found = findings(tmp_path, SCRIPT_RUNNER_REDIS_URL=server.url, SCRIPT_RUNNER_REDIS_REPLICAS="1")
        done = Site(tmp_path, shell_config()).run("doctor", "--json", SCRIPT_RUNNER_REDIS_URL=server.url)

    assert "allkeys-lru" in found["redis eviction"].sentence
    assert "appendonly yes" in found["redis persistence"].advice
    assert found["redis memory"].verdict is Verdict.WARNING
    assert found["redis replicas"].verdict is Verdict.WRONG
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (1, "warning")


def test_store_without_rights(tmp_path: Path):
    """A store that takes nothing is wrong; its error says why."""
    (tmp_path / "store").write_text("a file where the folder should be")

    found = findings(tmp_path)["store"]

    assert (found.verdict, found.advice) == (Verdict.WRONG, STORE_ACCESS)
    assert "artifact store cannot" in found.sentence


@pytest.mark.parametrize("url", ["ftp://somewhere", "s3://Not_A_Bucket", "s3://bucket?no-such-option=1"])
def test_store_that_cannot_be(tmp_path: Path, url: str):
    """A URL or setting with which nothing starts is not taken for a lack of rights."""
    found = findings(tmp_path, SCRIPT_RUNNER_STORE=url)["store"]

    assert (found.verdict, found.advice) == (Verdict.WRONG, STORE_SETTINGS)


@pytest.mark.parametrize(
    ("more", "check", "verdict"),
    [
        ({"command": ["no-such-program"]}, "program", Verdict.WRONG),
        ({"command": ["sh", "analyse.sh"]}, "program", Verdict.WRONG),
        ({"command": ["env", "sh", "analyse.R"]}, "program", Verdict.WARNING),
        ({"command_rundir_base": "/no/such/folder"}, "program", Verdict.WRONG),
        ({"tmeout_seconds": 5}, "configuration", Verdict.WRONG),
    ],
)
def test_configuration_that_cannot_run_here(tmp_path: Path, more: dict[str, Any], check: str, verdict: Verdict):
    """A program, a script or a folder that is not there, and a mistake in the file, are found."""
    found = findings(tmp_path, config(tmp_path, **more))

    assert found[check].verdict is verdict


@pytest.mark.parametrize(
    ("environment", "verdict"),
    [
        ({}, Verdict.OK),
        ({"AUTH_PROVIDER": "none", "SCRIPT_RUNNER_HOST": "192.0.2.1"}, Verdict.WARNING),
        ({"SCRIPT_RUNNER_HOST": "192.0.2.1"}, Verdict.WRONG),
        ({"AUTH_PROVIDER": "auth0"}, Verdict.WRONG),
        ({"AUTH_PROVIDER": "nobody"}, Verdict.WRONG),
    ],
)
def test_auth(tmp_path: Path, environment: dict[str, str], verdict: Verdict):
    """An open door is warned of where others reach it; a provider that cannot start is wrong."""
    assert findings(tmp_path, **environment)["auth"].verdict is verdict


def test_doctor_on_the_command_line(tmp_path: Path):
    """The findings come one a line with the advice below; the exit code is that of the worst."""
    with Site(tmp_path, shell_config()) as site:
        well = site.run("doctor")
        bad = site.run("doctor", "--redis", f"redis://127.0.0.1:{free_port()}")

    assert well.returncode == 0
    assert [line for line in well.stdout.splitlines() if not line.startswith("ok ")] == []
    assert bad.returncode == 2
    assert "wrong    redis" in bad.stdout
    assert "→ look at host and port" in bad.stdout


def test_status(redis_server: RedisServer, tmp_path: Path):
    """Status tells workers, slots, queue, ends and versions, for people or as the document of /ready."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis_server.url) as site:
        server = site.serve()
        site.worker("--concurrency", "3")
        server.wait_until_ready()
        server.run("exit 3")
        told = site.run("status", "--url", server.url)
        document = json.loads(site.run("status", "--url", server.url, "--json").stdout)
        away = site.run("status", "--url", f"http://127.0.0.1:{free_port()}", "--patience", "0")
    lines = dict(line.split(maxsplit=1) for line in told.stdout.splitlines())

    assert told.returncode == 0
    assert lines["slots"] == "3"
    assert lines["workers"].startswith("1 (1 of ")
    assert lines["last"] == "hour  1 failed"
    assert lines["store"].startswith("Redis ")
    assert (document["slots"], document["queue"]["queued"]) == (3, 0)
    assert away.returncode == 3
