"""The object stores beyond the contract: what networks, stores and operators do to them, over HTTP."""

import asyncio
import hashlib
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from tests.servers import HOST, Proxy, certificates, free_port
from tests.stores import BUCKET, EMULATORS, Access, Azurite, Emulator

from script_runner.adapters.objects import ASKING, PART_BYTES, READING, SAVING, ObjectArtifacts
from script_runner.config import read_settings
from script_runner.errors import Code, Error
from script_runner.ports import Artifacts, Label
from script_runner.wiring.parts import artifact_store

MIB = 1 << 20
SECRETS = re.compile(r"nanio-key|nanio-secret|Eby8|wrong-secret|127\.0\.0\.1|Authorization|Debug|artifacts/")


@pytest.fixture(params=EMULATORS)
def emulator(request: pytest.FixtureRequest) -> Emulator:
    """Every emulator in turn."""
    found: Emulator = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(emulator: Emulator) -> Iterator[Proxy]:
    with Proxy(emulator.port) as proxy:
        yield proxy


def opened(access: Access) -> Artifacts:
    return artifact_store(read_settings(access.environment))


def new_key() -> str:
    return f"{uuid.uuid4()}/1/0"


async def whole(artifacts: Artifacts, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([piece async for piece in artifacts.read(key, start=start, stop=stop)])


def is_there(artifacts: Artifacts, key: str) -> bool:
    try:
        asyncio.run(whole(artifacts, key))
    except Error as error:
        if error.code is not Code.NOT_FOUND:
            raise
        return False
    return True


def asked_ranges(proxy: Proxy) -> list[str]:
    """The ranges of all GET requests that went through."""
    heads = [head.decode("latin-1") for head in proxy.heads if head.startswith(b"GET ")]
    return [found[1] if (found := re.search(r"(?im)^range: bytes=(\S+)", head)) else "" for head in heads]


# Cut connections


@pytest.mark.parametrize("cuts", [1, 8])
def test_reading_goes_on_where_it_was_cut(emulator: Emulator, proxy: Proxy, cuts: int) -> None:
    """However often a download is cut, it is asked for again from where it was, and is whole."""
    artifacts, key, data = opened(emulator.access(port=proxy.port)), new_key(), os.urandom(12 * MIB)
    asyncio.run(opened(emulator.access()).save(key, [data]))
    proxy.cut_answers(MIB, times=cuts)

    assert asyncio.run(whole(artifacts, key, start=100)) == data[100:]
    assert proxy.cuts_left == 0
    starts = [int(wanted.partition("-")[0]) for wanted in asked_ranges(proxy)]
    assert len(starts) == cuts + 1
    assert starts[0] == 100
    assert all(MIB // 2 < after - before <= MIB for before, after in pairwise(starts))


def test_reading_never_mixes_two_files(emulator: Emulator, proxy: Proxy) -> None:
    """When the object is another one after a cut, the download fails: no byte of the other one comes."""
    direct, artifacts = opened(emulator.access()), opened(emulator.access(port=proxy.port))
    key, first, second = new_key(), b"a" * (12 * MIB), b"b" * (12 * MIB)
    asyncio.run(direct.save(key, [first]))
    proxy.cut_answers(2 * MIB, times=50)

    seen: set[bytes] = set()

    async def read() -> None:
        async for piece in artifacts.read(key):
            if not seen:
                await direct.save(key, [second])
            seen.update((piece[:1], piece[-1:]))

    with pytest.raises(Error, match="was replaced meanwhile"):
        asyncio.run(read())

    assert seen == {b"a"}


def test_reading_ends_when_nothing_comes_any_more(emulator: Emulator, proxy: Proxy) -> None:
    """A download that gets no further is given up, and not tried for ever."""
    artifacts, key = opened(emulator.access(port=proxy.port)), new_key()
    asyncio.run(opened(emulator.access()).save(key, [os.urandom(4 * MIB)]))
    proxy.cut_answers(MIB, times=1)
    proxy.cut_answers(0, times=1_000)

    with pytest.raises(Error, match="cannot be read") as caught:
        asyncio.run(whole(artifacts, key))
    assert caught.value.code is Code.UNAVAILABLE


def test_an_upload_that_is_cut_is_whole(emulator: Emulator, proxy: Proxy) -> None:
    """A part whose connection is cut is sent again."""
    artifacts, key, data = opened(emulator.access(port=proxy.port)), new_key(), os.urandom(20 * MIB)
    proxy.cut_requests(2 * MIB, times=2)
    saved = asyncio.run(artifacts.save(key, [data]))

    assert proxy.cuts_left == 0
    assert saved.sha256 == hashlib.sha256(data).hexdigest()
    assert asyncio.run(whole(opened(emulator.access()), key)) == data


@pytest.mark.parametrize("name", ["moto", "nanio"])
def test_an_upload_whose_last_answer_is_lost_has_succeeded(name: str, request: pytest.FixtureRequest) -> None:
    """The store has completed it and the answer is lost; asked again, it knows no such upload: it is looked up."""
    emulator: Emulator = request.getfixturevalue(name)
    key, data = new_key(), os.urandom(PART_BYTES + 1)
    with Proxy(emulator.port) as proxy:
        artifacts = opened(emulator.access(port=proxy.port))
        proxy.lose_answers(b"<CompleteMultipartUpload", 1)
        asyncio.run(artifacts.save(key, [data]))

        assert proxy.losses_left == 0
    assert asyncio.run(whole(opened(emulator.access()), key)) == data


# Uploads that fail


def failing(size: int) -> Iterator[bytes]:
    for _ in range(size // MIB):
        yield os.urandom(MIB)
    raise Error(Code.BAD_OUTPUT, "line 7 is bad")


def test_an_upload_that_fails_leaves_nothing(emulator: Emulator) -> None:
    """When its bytes end in an error after some parts, nothing is visible and no part stays."""
    artifacts, key = opened(emulator.access()), new_key()
    with pytest.raises(Error, match="line 7 is bad"):
        asyncio.run(artifacts.save(key, failing(3 * PART_BYTES)))

    assert not is_there(artifacts, key)
    assert not emulator.has_begun_uploads(key)


def test_an_upload_that_is_cancelled_leaves_nothing(emulator: Emulator) -> None:
    """A worker that stops does not wait for the rest of a file; nothing is visible and no part stays."""
    artifacts, key = opened(emulator.access()), new_key()

    async def cancel() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def endless() -> Iterator[bytes]:
            for number in range(1_000_000):
                if number == 3 * PART_BYTES // MIB:
                    loop.call_soon_threadsafe(begun.set)
                yield b"x" * MIB

        saving = asyncio.create_task(artifacts.save(key, endless()))
        await begun.wait()
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving

    asyncio.run(cancel())

    assert not is_there(artifacts, key)
    assert not emulator.has_begun_uploads(key)


UPLOAD = """
import asyncio, os, sys, time
from script_runner.config import read_settings
from script_runner.wiring.parts import artifact_store

def chunks():
    for number in range(40):
        if number == 30:
            print("begun", flush=True)
            time.sleep(60)
        yield os.urandom(1 << 20)

asyncio.run(artifact_store(read_settings(os.environ)).save(sys.argv[1], chunks()))
"""


def test_a_killed_upload_is_never_visible(emulator: Emulator) -> None:
    """A kill -9 in the middle of an upload: no part of the file can be seen, and the key can be used again."""
    artifacts, key = opened(emulator.access()), new_key()
    with subprocess.Popen(
        [sys.executable, "-c", UPLOAD, key], env=os.environ | emulator.access().environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGKILL)

    assert emulator.has_begun_uploads(key) is not isinstance(emulator, Azurite)
    assert not is_there(artifacts, key)
    asyncio.run(artifacts.save(key, [b"again"]))
    assert asyncio.run(whole(artifacts, key)) == b"again"


# Removal


def test_remove_takes_a_task_and_not_its_namesake(emulator: Emulator) -> None:
    """``abc`` is not the beginning of ``abcd``."""
    artifacts, name = opened(emulator.access()), uuid.uuid4().hex

    async def keep_and_remove() -> None:
        for key in (f"{name}/1/0", f"{name}d/1/0"):
            await artifacts.save(key, [b"x"])
        await artifacts.remove(name)

    asyncio.run(keep_and_remove())

    assert not is_there(artifacts, f"{name}/1/0")
    assert is_there(artifacts, f"{name}d/1/0")


def test_removing_at_the_same_time(emulator: Emulator) -> None:
    """All servers and workers remove what is past its retention: none fails for what another has removed."""
    artifacts, task = opened(emulator.access()), str(uuid.uuid4())

    async def keep_and_remove() -> list[str]:
        await asyncio.gather(*(artifacts.save(f"{task}/1/{number}", [b"x"]) for number in range(20)))
        await asyncio.gather(*(artifacts.remove(task) for _ in range(4)))
        assert isinstance(artifacts, ObjectArtifacts)
        return await artifacts._first_paths(task)

    assert asyncio.run(keep_and_remove()) == []


def test_remove_takes_more_than_a_page(nanio: Emulator) -> None:
    """A task with more files than a store lists or deletes at once is removed whole."""
    task = uuid.uuid4().hex
    folder = nanio.folder / "data" / BUCKET / task / "1"
    folder.mkdir(parents=True)
    for number in range(1_050):
        (folder / str(number)).write_bytes(b"x")
    asyncio.run(opened(nanio.access()).remove(task))

    assert not [path for path in folder.rglob("*") if path.is_file()]


# What is wrong with a store, said in time


def refusal(artifacts: Artifacts) -> str:
    """What the check says, as quickly as is promised, and without a secret."""
    begun = time.monotonic()
    with pytest.raises(Error) as caught:
        asyncio.run(artifacts.check())
    assert caught.value.code is Code.UNAVAILABLE
    assert not SECRETS.search(caught.value.message)
    assert time.monotonic() - begun < 20  # CHECK_SECONDS, on a machine that does other things too
    return caught.value.message


def test_a_missing_bucket_is_said(emulator: Emulator) -> None:
    """A bucket that is not there is named as the reason, by the check and by saving."""
    artifacts = opened(emulator.access(bucket="missing"))

    assert "does not exist" in refusal(artifacts)
    with pytest.raises(Error, match="does not exist"):
        asyncio.run(artifacts.save(new_key(), [b"x"]))
    with pytest.raises(Error, match="does not exist"):
        asyncio.run(whole(artifacts, new_key()))


@pytest.mark.parametrize("name", ["nanio", "azurite"])
def test_wrong_credentials_are_said(name: str, request: pytest.FixtureRequest) -> None:
    """A store that checks signatures refuses a wrong secret, and the sentence says so without it."""
    access: Access = request.getfixturevalue(name).access()
    wrong = Access(access.url, access.key_id, "d3Jvbmctc2VjcmV0")

    assert refusal(opened(wrong)) == "The artifact store cannot be written: it does not accept the credentials."


def test_an_unknown_key_id_is_said(nanio: Emulator) -> None:
    """So is a key that the store does not know."""
    access = nanio.access()

    assert "does not accept the credentials" in refusal(opened(Access(access.url, "unknown", access.secret)))


def test_a_store_that_is_away_is_said() -> None:
    """Where nobody listens, the check says so at once."""
    access = Access(f"s3://artifacts/?endpoint=http://{HOST}:{free_port()}", "any", "any")

    assert refusal(opened(access)) == "The artifact store cannot be written: it does not answer."


def test_a_store_that_is_silent_is_said_in_time() -> None:
    """A store that takes connections and says nothing is given up within seconds."""
    with EMULATORS["nanio"]() as silent:
        artifacts = opened(silent.access())
        asyncio.run(artifacts.save(new_key(), [b"x"]))
        silent.pause()

        assert "it does not answer" in refusal(artifacts)
        silent.resume()
        asyncio.run(artifacts.check())


def test_a_private_certificate_is_trusted_where_it_is_named(nanio: Emulator, tmp_path: Path) -> None:
    """A store with a certificate of a private authority is used with ``ca=``, and refused without."""
    certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "key.pem")
    with Proxy(nanio.port, tls) as proxy:
        plain = nanio.access(port=proxy.port)
        secure = plain.url.replace("http://", "https://")
        asyncio.run(opened(Access(f"{secure}&ca={tmp_path}/authority.pem", plain.key_id, plain.secret)).check())

        assert "certificate is not trusted" in refusal(opened(Access(secure, plain.key_id, plain.secret)))


def test_patience_has_an_end() -> None:
    """No request is waited for without end, and those that people wait for are given up sooner."""
    assert all(0 < patience.silence_seconds <= 60 for patience in (ASKING, READING, SAVING))
    assert ASKING.seconds < READING.seconds <= 30


# Handing out URLs


def test_a_url_leads_to_the_file_itself(emulator: Emulator) -> None:
    """Whoever has the URL gets the bytes, as a download under the file's own name, and in ranges."""
    artifacts, key, data = opened(emulator.access(prefix="a/b")), new_key(), os.urandom(2 * MIB)
    label = Label('folder/blå 1 "x".html', "text/html")

    async def url() -> str | None:
        await artifacts.save(key, [data], label)
        return await artifacts.url_for(key, seconds=60)

    found = asyncio.run(url())
    assert found
    answer = httpx.get(found)
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["content-disposition"] == label.disposition
    assert label.disposition == "attachment; filename*=UTF-8''bl%C3%A5%201%20%22x%22.html"
    part = httpx.get(found, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])


@pytest.mark.parametrize("name", ["nanio", "azurite"])
def test_a_url_is_good_for_one_file_alone(name: str, request: pytest.FixtureRequest) -> None:
    """The signature holds for this object and for reading it: changed, the store refuses it."""
    artifacts = opened(request.getfixturevalue(name).access())
    key, other = new_key(), new_key()

    async def url() -> str:
        await artifacts.save(key, [b"mine"])
        await artifacts.save(other, [b"not mine"])
        return str(await artifacts.url_for(key, seconds=60))

    found = asyncio.run(url())

    assert httpx.get(found).text == "mine"
    assert httpx.get(found.replace(key, other)).status_code == 403
    assert httpx.delete(found).status_code == 403
    assert is_there(artifacts, key)


# Credentials that are not the runner's own


SAVE = """
import asyncio, os, sys
from script_runner.config import read_settings
from script_runner.wiring.parts import artifact_store
asyncio.run(artifact_store(read_settings(os.environ)).save(sys.argv[1], [b"by the environment"]))
"""


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("nanio", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        ("azurite", ("", "AZURE_STORAGE_ACCOUNT_KEY")),
    ],
)
def test_credentials_of_the_environment(name: str, names: tuple[str, str], request: pytest.FixtureRequest) -> None:
    """Without keys of its own the runner takes those that every tool of that cloud takes."""
    access: Access = request.getfixturevalue(name).access()
    given = dict(zip(names, (access.key_id or "", access.secret), strict=True))
    given.pop("", None)
    key = new_key()
    subprocess.run(
        [sys.executable, "-c", SAVE, key],
        env=os.environ | {"SCRIPT_RUNNER_STORE": access.url} | given,
        check=True,
    )

    assert asyncio.run(whole(opened(access), key)) == b"by the environment"


def test_own_keys_come_before_those_of_the_environment(nanio: Emulator) -> None:
    """Nothing that stands in the environment for scripts is mixed into the runner's own keys."""
    strange = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_SESSION_TOKEN": "z"}
    strange |= {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_BUCKET": "other", "AWS_REGION": "eu-west-1"}
    access, key = nanio.access(), new_key()
    subprocess.run([sys.executable, "-c", SAVE, key], env=os.environ | strange | access.environment, check=True)

    assert asyncio.run(whole(opened(access), key)) == b"by the environment"
