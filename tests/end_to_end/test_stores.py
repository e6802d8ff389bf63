"""A server and a worker that share nothing but Redis and an object store, as on two machines."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.end_to_end.issuer import Issuer
from tests.end_to_end.processes import Server, Site, shell_config, until
from tests.servers import HOST, Proxy, RedisServer, free_port
from tests.stores import BUCKET, Access, Emulator, Nanio

LARGE = "cd $RUNDIR; head -c 3000000 /dev/urandom > files/large.html; echo small > files/small.txt"
"""A script that leaves one file that is fetched from the store, and one that is not worth it."""


@pytest.fixture
def site(redis_server: RedisServer, nanio: Emulator, tmp_path: Path) -> Iterator[Site]:
    own = {"SCRIPT_RUNNER_REDIS_URL": redis_server.url, "SCRIPT_RUNNER_REDIRECT_DOWNLOADS": "1"}
    access = nanio.access(prefix=tmp_path.name)
    with Site(tmp_path, shell_config(), **own, **access.environment) as site:
        yield site


@pytest.fixture
def server(site: Site) -> Server:
    """A server that leads large downloads to the store, and a worker."""
    server = site.serve()
    site.worker("--concurrency", "2")
    server.wait_until_ready()
    return server


def kept(nanio: Emulator, task_id: str) -> list[Path]:
    """The objects of a task, as the store has them on its disk."""
    folder = nanio.folder / "data" / BUCKET
    return [path for path in folder.rglob(f"{task_id}/*/*") if path.is_file() and ".nanio-meta" not in path.parts]


def test_the_main_job_over_an_object_store(server: Server, nanio: Emulator) -> None:
    """What the worker keeps the server answers with; when the task is removed, nothing of it stays."""
    document = server.run("echo said; echo text > $RUNDIR/files/one.txt")
    task_id = document["id"]

    assert document["results"] == [{"name": "alpha", "value": "1"}]
    assert document["attachments"] == {"one.txt": "dGV4dAo="}
    assert server.log(task_id) == "said\n"
    assert (
        server.http.get(f"/task/{task_id}/results", params={"format": "csv"}).text == "name,value\r\nalpha,1\r\n"
    )
    part = server.http.get(f"/task/{task_id}/attachments/one.txt", headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.text) == (206, "ex")
    assert len(kept(nanio, task_id)) == 3
    assert server.http.delete(f"/task/{task_id}").status_code == 204
    assert kept(nanio, task_id) == []


def test_scripts_do_not_see_the_keys(server: Server, nanio: Emulator) -> None:
    """Neither the runner's keys nor its store are in the environment of a script."""
    said = server.log(server.run("env")["id"])

    assert "TASK_ID=" in said
    assert "SCRIPT_RUNNER_" not in said
    assert nanio.access().secret not in said


# Downloads from the store itself


def test_a_large_file_is_fetched_from_the_store(server: Server) -> None:
    """GET of a large attachment leads to the store, whose answer is the file, as a download, whole or in part."""
    task_id = server.run(LARGE)["id"]
    listed = server.document(task_id)["files"]
    large = next(file for file in listed if file["name"] == "large.html")
    answer = server.http.get(large["url"])

    assert (answer.status_code, answer.content) == (307, b"")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == "*"
    where = answer.headers["location"]
    assert not where.startswith(server.url)
    file = httpx.get(where)
    assert hashlib.sha256(file.content).hexdigest() == large["sha256"]
    assert file.headers["content-type"] == "text/html"
    assert file.headers["content-disposition"] == "attachment; filename*=UTF-8''large.html"
    part = httpx.get(where, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, file.content[5:10])
    seconds = re.search(r"X-Amz-Expires=(\d+)", where)
    assert seconds
    assert int(seconds[1]) <= 300


def test_what_is_not_led_to_the_store(server: Server) -> None:
    """Small files, HEAD, what one has already, results and inline attachments come from the server."""
    task_id = server.run(LARGE)["id"]
    path = f"/task/{task_id}/attachments"
    large = server.document(task_id)["files"][0]

    assert server.http.get(f"{path}/small.txt").text == "small\n"
    head = server.http.head(f"{path}/large.html")
    assert (head.status_code, head.headers["content-length"]) == (200, "3000000")
    known = server.http.get(f"{path}/large.html", headers={"If-None-Match": f'"{large["sha256"]}"'})
    assert known.status_code == 304
    assert server.http.get(f"/task/{task_id}/results").status_code == 200
    assert len(server.document(task_id)["attachments"]["large.html"]) == 4_000_000
    assert server.http.get(f"/task/{task_id}/attachments/none.html").status_code == 404


def test_only_the_owner_is_led_to_the_store(site: Site, server: Server) -> None:
    """Nobody gets a URL without the right to the file: 401 without a token, 404 for another caller."""
    with Issuer() as issuer:
        guarded = site.serve(**issuer.settings)
        ada, eve = issuer.headers("ada"), issuer.headers("eve")
        task_id = guarded.http.post("/task", json={"code": LARGE}, headers=ada).json()["id"]
        until(lambda: guarded.http.get(f"/task/{task_id}", headers=ada).json()["status"] == "ready")
        path = f"/task/{task_id}/attachments/large.html"
        answers = [guarded.http.get(path, headers=headers) for headers in (ada, eve, {})]

        assert [answer.status_code for answer in answers] == [307, 404, 401]
        assert ["location" in answer.headers for answer in answers] == [True, False, False]
        assert not server.has_ended


def test_without_the_setting_all_files_come_from_the_server(site: Site, server: Server) -> None:
    """Where clients cannot reach the store, nothing leads them there."""
    task_id = server.run(LARGE)["id"]
    plain = site.serve(SCRIPT_RUNNER_REDIRECT_DOWNLOADS="0")
    plain.wait_until_ready()

    answer = plain.http.get(f"/task/{task_id}/attachments/large.html")
    assert (answer.status_code, len(answer.content)) == (200, 3_000_000)


def test_our_client_follows_and_keeps_its_token(site: Site, nanio: Emulator, tmp_path: Path) -> None:
    """``show --save`` fetches the file from the store, and tells the store nothing of its token."""
    with Proxy(nanio.port) as proxy:
        access = nanio.access(prefix=tmp_path.name, port=proxy.port)
        server = site.serve(**access.environment)
        site.worker()
        server.wait_until_ready()
        document = server.run(LARGE)
        proxy.heads.clear()
        saved = site.run("show", document["id"], "--save", "here", "--url", server.url, "--token", "t0ken-of-mine")

        assert saved.returncode == 0, saved.stderr
        assert (site.folder / "here" / "large.html").stat().st_size == 3_000_000
        asked = [head for head in proxy.heads if b"X-Amz-Signature=" in head]
        assert asked
        assert not any(b"t0ken-of-mine" in head for head in proxy.heads)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_follows(server: Server, tmp_path: Path) -> None:
    """So does ``curl -L``, with the headers that callers of an API send."""
    task_id = server.run(LARGE)["id"]
    target = tmp_path / "got"
    url = f"{server.url}/task/{task_id}/attachments/large.html"
    command = ["curl", "-sSfL", "-H", "Authorization: Bearer t0ken", "-o", str(target), url]
    subprocess.run(command, check=True, env={**os.environ, "NO_PROXY": "*"})

    assert target.stat().st_size == 3_000_000


def test_a_folder_has_no_urls(redis_server: RedisServer, tmp_path: Path) -> None:
    """With a folder as the store the setting changes nothing."""
    own = {"SCRIPT_RUNNER_REDIS_URL": redis_server.url, "SCRIPT_RUNNER_REDIRECT_DOWNLOADS": "1"}
    with Site(tmp_path, shell_config(), **own) as site:
        server = site.serve()
        site.worker()
        server.wait_until_ready()
        document = server.run(LARGE)

        answer = server.http.get(f"/task/{document['id']}/attachments/large.html")
        assert (answer.status_code, len(answer.content)) == (200, 3_000_000)


# What is wrong, said at the start


@pytest.mark.parametrize(
    ("bucket", "secret", "said"),
    [
        ("missing", None, "its bucket or container does not exist"),
        (BUCKET, "wr0ng-secret", "it does not accept the credentials"),
    ],
)
def test_a_store_that_cannot_be_used_is_said(  # noqa: PLR0917 - pytest passes by name
    redis_server: RedisServer, nanio: Emulator, tmp_path: Path, bucket: str, secret: str | None, said: str
) -> None:
    """Server and worker say at the start why nothing can be kept, and /ready is 503 with the same sentence."""
    access = nanio.access(bucket=bucket)
    wrong = Access(access.url, access.key_id, secret or access.secret)
    own = {"SCRIPT_RUNNER_REDIS_URL": redis_server.url, **wrong.environment}
    with Site(tmp_path, shell_config(), **own) as site:
        server, worker = site.serve(), site.worker()
        sentence = f"The artifact store cannot be written: {said}."
        server.wait_for_output(sentence)
        worker.wait_for_output(sentence)
        answer = server.http.get("/ready")

        assert (answer.status_code, answer.json()["detail"]) == (503, sentence)
        assert "wr0ng-secret" not in server.output + worker.output


def test_a_store_that_comes_later_is_used(redis_server: RedisServer, tmp_path: Path) -> None:
    """The order in which things start does not matter."""
    late = Nanio()
    own = {"SCRIPT_RUNNER_REDIS_URL": redis_server.url, **late.access().environment}
    with Site(tmp_path, shell_config(), **own) as site:
        server, worker = site.serve(), site.worker()
        worker.wait_for_output("The artifact store cannot be written: it does not answer.")
        with late:
            server.wait_until_ready()

            assert server.run("true")["state"] == "succeeded"


def test_a_store_that_is_away_when_a_script_ends(redis_server: RedisServer, tmp_path: Path) -> None:
    """A short absence costs nothing: what the script made is kept when the store is back."""
    with Nanio() as store:
        own = {"SCRIPT_RUNNER_REDIS_URL": redis_server.url, **store.access().environment}
        with Site(tmp_path, shell_config(), **own) as site:
            server = site.serve()
            site.worker()
            server.wait_until_ready()
            task_id = server.submit(f"touch {tmp_path}/begun; while [ ! -e {tmp_path}/end ]; do sleep 0.05; done")
            until((tmp_path / "begun").exists)
            store.stop()
            (tmp_path / "end").touch()
            until(lambda: not site.processes(TASK_ID=task_id))
            store.start()

            assert server.finished(task_id, seconds=60)["state"] == "succeeded"
            assert server.document(task_id)["results"] == [{"name": "alpha", "value": "1"}]


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_folder_and_a_redis_elsewhere_is_said(tmp_path: Path, command: str) -> None:
    """A folder of this machine with a Redis on another: what will not work is said at the start."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=f"redis://redis.invalid:{free_port()}") as site:
        program = site.serve() if command == "serve" else site.worker()

        program.wait_for_output("Redis is on redis.invalid: what a worker keeps on one machine")


def test_a_folder_and_a_redis_here_is_not_said(redis_server: RedisServer, tmp_path: Path) -> None:
    """On one machine there is nothing to say."""
    with Site(tmp_path, shell_config(), SCRIPT_RUNNER_REDIS_URL=redis_server.url) as site:
        server, worker = site.serve(), site.worker()
        server.wait_until_ready()

        assert HOST in redis_server.url
        assert "what a worker keeps" not in server.output + worker.output
