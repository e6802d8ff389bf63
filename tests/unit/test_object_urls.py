"""The URL and credentials of an object store: what is taken, what is refused, and what a refusal shows."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from script_runner.adapters.objects import Keys, ObjectArtifacts, Place, parse
from script_runner.errors import Code, Error

OWN = Keys("id", "secret")
ACCOUNT_KEY = "c2VjcmV0"


def refused(url: str, keys: Keys = OWN, **environment: str) -> str:
    """The sentence that stops the start."""
    with pytest.raises(Error) as caught:
        ObjectArtifacts(url, keys, environment)
    assert caught.value.code is Code.INVALID_CONFIG
    assert [problem.name for problem in caught.value.problems] == ["SCRIPT_RUNNER_STORE"]
    return caught.value.message


def store(url: str, keys: Keys = OWN, **environment: str) -> Any:
    return ObjectArtifacts(url, keys, environment)._saving


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", Place("s3", "bucket", "")),
        ("s3://bucket/", Place("s3", "bucket", "")),
        ("s3://bucket?", Place("s3", "bucket", "")),
        ("s3://my.bucket-1/a/b_c.d=e/", Place("s3", "my.bucket-1", "a/b_c.d=e")),
        ("s3://bucket?region=eu-central-1", Place("s3", "bucket", "", {"region": "eu-central-1"})),
        (
            "s3://bucket/p?endpoint=http://minio:9000&style=virtual",
            Place("s3", "bucket", "p", {"endpoint": "http://minio:9000", "style": "virtual"}),
        ),
        ("s3://bucket?endpoint=https%3A%2F%2Fm%3A9", Place("s3", "bucket", "", {"endpoint": "https://m:9"})),
        ("az://container/p?account=name1", Place("az", "container", "p", {"account": "name1"})),
        ("gs://my_bucket/p", Place("gs", "my_bucket", "p")),
    ],
)
def test_a_url_names_bucket_prefix_and_options(url: str, place: Place) -> None:
    """Every part of the URL is what it says."""
    assert parse(url) == place


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "must be that of a bucket"),
        ("s3:///prefix", "must be that of a bucket"),
        ("s3:bucket/prefix", "must be that of a bucket"),
        ("s3://Bucket", "a-z"),
        ("s3://my_bucket", "a-z"),
        ("s3://ab", "3 to 63"),
        ("s3://a..b", "a-z"),
        ("s3://-bucket", "a-z"),
        ("s3://bucket:9000/p", "a-z"),
        ("s3://key-id:hush@bucket/p", "a-z"),
        ("s3://bück", "a-z"),
        ("s3://" + "a" * 64, "3 to 63"),
        ("s3://bucket/../other", "prefix"),
        ("s3://bucket/.hidden", "prefix"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/a b", "prefix"),
        ("s3://bucket/%2e%2e/other", "prefix"),
        ("s3://bucket/a%00b", "prefix"),
        ("s3://bucket//", "must be like"),
        ("s3://bucket/p#part", "must be like"),
        ("s3://bucket?regoin=x", "unknown option regoin=: known are endpoint, region, style, ca"),
        ("s3://bucket?access_key=hush", "unknown option access_key="),
        ("s3://bucket?hush%20hush=1", "unknown option ?="),
        ("s3://bucket?region", "cannot be parsed"),
        ("s3://bucket?region=", "region="),
        ("s3://bucket?region=EU WEST", "region="),
        ("s3://bucket?style=other", "path|virtual"),
        ("s3://bucket?region=a&region=b", "twice"),
        ("s3://bucket?endpoint=minio:9000", "must be an address like https://"),
        ("s3://bucket?endpoint=ftp://minio", "must be an address like https://"),
        ("s3://bucket?endpoint=http://user:hush@minio", "must be an address like https://"),
        ("s3://bucket?endpoint=http://minio/a?b", "must be an address like https://"),
        ("s3://bucket?endpoint=http://mi nio", "must be an address like https://"),
        ("s3://bucket?endpoint=http://minio:99999x", "must be an address like https://"),
        ("s3://bucket?endpoint=http://[::1", "."),
        ("s3://bucket?ca=/nonexistent/ca.pem", "cannot be read: No such file"),
        ("s3://bucket?ca=%00", "cannot be read"),
        ("az://Container?account=name1", "a-z"),
        ("az://con--tainer?account=name1", "a-z"),
        ("az://container", "names no storage account"),
        ("az://container?account=No-Name", "account="),
        ("az://container?account=name1&region=x", "unknown option region=: known are account, endpoint, ca"),
        ("gs://bucket?region=x", "unknown option region=: gs:// takes none"),
        ("gs://Bucket", "a-z"),
    ],
)
def test_what_is_no_store_stops_the_start(url: str, said: str) -> None:
    """Each mistake in the URL is told in a sentence that shows nothing of what may be a secret in it."""
    keys = OWN if url.startswith("s3") else Keys(None, ACCOUNT_KEY)
    message = refused(url, keys)

    assert said in message
    assert "hush" not in message


@pytest.mark.parametrize(
    ("url", "keys", "said"),
    [
        ("s3://bucket", Keys("id", None), "must be set together"),
        ("s3://bucket", Keys(None, "hush"), "must be set together"),
        ("az://container?account=name1", Keys("id", ACCOUNT_KEY), "for s3:// only"),
        ("az://container?account=name1", Keys(None, "hush%"), "its key (base64)"),
        ("gs://bucket", Keys(None, "hush"), "expected the JSON of a service account's key"),
        ("gs://bucket", Keys(None, '{"private_key": "hush"}'), "expected the JSON of a service account's key"),
    ],
)
def test_keys_that_cannot_be_keys_stop_the_start(url: str, keys: Keys, said: str) -> None:
    """Half a pair, or what is no key of that cloud, is told without showing it."""
    message = refused(url, keys)

    assert said in message
    assert "hush" not in message


def test_keys_are_not_shown() -> None:
    """A secret does not get into a log with the value that holds it."""
    assert "hush" not in repr(Keys("id", "hush"))


def test_a_certificate_that_is_none_stops_the_start(tmp_path: Path) -> None:
    """A file that holds no certificate is not taken for one."""
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nhush\n-----END CERTIFICATE-----\n")

    assert "cannot be used" in refused(f"s3://bucket?ca={tmp_path}/ca.pem")


# Where requests go: a signature is made here, so its URL shows address, bucket and region


def address(url: str, keys: Keys = OWN, **environment: str) -> str:
    signed = obstore.sign(store(url, keys, **environment), "GET", "task/1/0", timedelta(seconds=60))
    return signed.partition("?")[0]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket?region=eu-west-3", "https://bucket.s3.eu-west-3.amazonaws.com/task/1/0"),
        ("s3://bucket/a/b?region=eu-west-3", "https://bucket.s3.eu-west-3.amazonaws.com/a/b/task/1/0"),
        ("s3://bucket?region=eu-west-3&style=path", "https://s3.eu-west-3.amazonaws.com/bucket/task/1/0"),
        # no certificate covers a name with two dots more
        ("s3://my.bucket?region=eu-west-3", "https://s3.eu-west-3.amazonaws.com/my.bucket/task/1/0"),
        ("s3://bucket/p?endpoint=http://minio:9000", "http://minio:9000/bucket/p/task/1/0"),
        ("s3://bucket/p?endpoint=https://minio:9000/", "https://minio:9000/bucket/p/task/1/0"),
        ("s3://bucket/p?endpoint=https://minio:9000&style=virtual", "https://bucket.minio:9000/p/task/1/0"),
        ("s3://bucket?endpoint=http://[::1]:9000", "http://[::1]:9000/bucket/task/1/0"),
    ],
)
def test_requests_go_where_the_url_says(url: str, expected: str) -> None:
    """Bucket, prefix, region, endpoint and style make the address."""
    assert address(url) == expected


def test_azure_is_asked_at_the_account() -> None:
    """Without an endpoint the account's own address is used; its name may come from the environment."""
    keys = Keys(None, ACCOUNT_KEY)

    expected = "https://name1.blob.core.windows.net/container/p/task/1/0"
    assert address("az://container/p?account=name1", keys) == expected
    assert address("az://container/p", keys, AZURE_STORAGE_ACCOUNT_NAME="name1") == expected


def test_the_url_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint in the environment is used where the URL has none, and must be one."""
    strange = {"AWS_ENDPOINT_URL": "http://strange:1", "AWS_ENDPOINT_URL_S3": "http://stranger:1"}
    for name, value in {**strange, "AWS_BUCKET": "strange", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"}.items():
        monkeypatch.setenv(name, value)

    assert address("s3://bucket?endpoint=http://minio:9000", OWN, **strange) == "http://minio:9000/bucket/task/1/0"
    assert address("s3://bucket", OWN, **strange) == "http://stranger:1/bucket/task/1/0"
    assert "AWS_ENDPOINT_URL_S3 must be an address" in refused("s3://bucket", AWS_ENDPOINT_URL_S3="no address")


def test_the_region_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that says where it is need not be told."""
    monkeypatch.setenv("AWS_REGION", "ap-south-1")

    assert address("s3://bucket") == "https://bucket.s3.ap-south-1.amazonaws.com/task/1/0"


# Google: no emulator works with the library, so what can be tested without one is


@pytest.fixture(scope="module")
def service_account() -> str:
    """The key file of a service account, as Google writes them; nobody's."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "private_key": pem.decode(),
            "private_key_id": "1",
            "client_email": "runner@project.iam.gserviceaccount.com",
            "client_id": "1",
        }
    )


def test_google_takes_a_service_account(service_account: str) -> None:
    """The runner's own secret is the JSON of a key, and it signs URLs of the bucket."""
    found = address("gs://my_bucket/p", Keys(None, service_account))

    assert found == "https://storage.googleapis.com/my_bucket/p/task/1/0"


def test_google_takes_the_variables_of_its_cloud(
    service_account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GOOGLE_SERVICE_ACCOUNT names the file of a key."""
    (tmp_path / "key.json").write_text(service_account)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))

    assert address("gs://my_bucket", Keys()) == "https://storage.googleapis.com/my_bucket/task/1/0"


# Without the library


def test_the_extra_is_asked_for_where_it_is_missing() -> None:
    """A URL that needs a library which is not installed stops the start with the command that installs it."""
    program = "import sys; sys.modules['obstore'] = None; from script_runner.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, "worker", "--redis", "redis://127.0.0.1:1", "--store", "s3://bucket"],
        cwd=Path(__file__).parent / "configs",
        env=os.environ | {"SCRIPT_RUNNER_CONFIG": "path-only.json"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 2, ran
    assert "pip install 'script-runner-api[objects]'" in ran.stderr
    assert "Traceback" not in ran.stderr
