"""Credentials from the platform: each cloud's metadata server at its real address, in a network of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLOUD = re.compile("AWS_|AZURE_|GOOGLE_|IDENTITY_|SCRIPT_RUNNER_")


def on(platform: str) -> dict[str, Any]:
    """What a worker on this platform says, and what it asked of it."""
    apart = ["unshare", "--net", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("no network of its own can be made here")
    ran = subprocess.run(
        [*apart, sys.executable, "-m", "tests.contract.cloud", platform],
        cwd=Path(__file__).parent.parent.parent,
        env={name: value for name, value in os.environ.items() if not CLOUD.match(name)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize(
    ("platform", "asked"),
    [
        ("ecs", [["GET 169.254.170.2/v2/credentials/task", "", ""]]),
        ("pod-identity", [["GET 169.254.170.23/v1/credentials", "", "web-token"]]),
    ],
)
def test_amazon_gives_containers_their_role(platform: str, asked: list[list[str]]) -> None:
    """The task role of ECS and the pod identity of EKS: a store that checks signatures takes their keys."""
    assert on(platform) == {"said": "kept", "asked": asked}


def test_amazon_gives_a_machine_its_role() -> None:
    """The role of an EC2 instance, asked for by the second version of its protocol alone."""
    found = on("ec2")

    assert found["said"] == "kept"
    assert [asked[0] for asked in found["asked"]] == [
        "PUT 169.254.169.254/latest/api/token",
        "GET 169.254.169.254/latest/meta-data/iam/security-credentials/",
        "GET 169.254.169.254/latest/meta-data/iam/security-credentials/worker",
    ]


def test_amazon_takes_a_web_identity() -> None:
    """A service account of EKS: its token is exchanged for keys of the role."""
    found = on("web-identity")

    assert found["said"] == "kept"
    ((_, query, _),) = found["asked"]
    assert "Action=AssumeRoleWithWebIdentity" in query
    assert "WebIdentityToken=web-token" in query


@pytest.mark.parametrize(
    ("platform", "asked"),
    [
        ("container-apps", ["GET 127.0.0.1/msi/token", "client_id=client", "identity-header"]),
        ("azure-vm", ["GET 169.254.169.254/metadata/identity/oauth2/token", "", ""]),
        ("workload-identity", ["POST 127.0.0.1/tenant/oauth2/v2.0/token", "", ""]),
    ],
)
def test_azure_gives_an_identity(platform: str, asked: list[str]) -> None:
    """A managed identity (Container Apps, virtual machine) and a workload identity: the store gets their token."""
    found = on(platform)
    (first, *more) = found["asked"]

    assert found["said"] == "kept"
    assert first[0] == asked[0]
    assert asked[1] in first[1]
    assert first[2] == asked[2]
    assert more
    assert {(one[0].partition("/")[0], one[2]) for one in more} == {("PUT 127.0.0.1", "Bearer t0ken")}


def test_no_platform_is_said() -> None:
    """Where no credentials are to be had, the sentence says where they could come from, within seconds."""
    found = on("nothing")

    assert found["said"].startswith("The artifact store cannot be written: there are no credentials for it; set ")
    assert "SCRIPT_RUNNER_STORE_SECRET" in found["said"]
