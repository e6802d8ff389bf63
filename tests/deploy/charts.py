"""The chart, rendered with several sets of values, as Kubernetes would get it."""

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "deploy" / "helm" / "script-runner"
TOOLS = ROOT / ".tools" / "helm"
"""Where ``./dev test`` puts Helm and the schemas."""

MINIMAL: dict[str, Any] = {
    "redis": {"url": "rediss://redis.example.org:6380/1", "existingSecret": "redis-password"},
    "store": {"url": "s3://bucket/prefix"},
    "auth": {"provider": "none"},
}
CONFIG = {
    "command": [
        "sh",
        "-c",
        'until [ -e "$$RUNDIR/../$$CITY" ]; do sleep 0.02; done; printf \'city\\n%s\\n\' "$$CITY"',
    ],
    "inputs": {"query_args": [{"env_var_name": "CITY", "query_var_name": "city", "required": True}]},
    "outputs": {"results": {"kind": "stdout", "format": "csv"}},
    "grace_seconds": 20.5,
}
"""A script that waits for a file beside its run folder, named as the city that it is given, and tells the city."""

RULES = """
groups:
  - name: script-runner
    rules:
      - alert: Waiting
        expr: max(script_runner_backlog) > 100
        annotations: {summary: "{{ $value }} wait"}
"""


def with_values(**more: Any) -> dict[str, Any]:
    """The least that the chart asks for, and more on top, object by object."""
    return _merged(MINIMAL, more)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    return {
        key: _merged(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
        for key, value in both.items()
    }


PEER = {"podSelector": {"matchLabels": {"app": "gateway"}}}

CASES: dict[str, dict[str, Any]] = {
    "minimal": MINIMAL,
    "config": with_values(config=CONFIG),
    "other config": with_values(config={**CONFIG, "grace_seconds": 3}),
    "everything": with_values(
        config=CONFIG,
        image={"repository": "registry.example.org/lab/script", "tag": "7", "pullSecrets": ["pull"]},
        redis={"username": "runner", "caSecret": "redis-ca", "replicas": 1, "namespace": "lab"},
        store={
            "environment": {"AWS_REGION": "eu-central-1"},
            "existingSecret": "store-keys",
            "redirectDownloads": True,
        },
        auth={
            "provider": "auth0",
            "auth0": {
                "domain": "example.eu.auth0.com",
                "audience": "https://scripts.example.org",
                "clientId": "abc",
                "jwksUrl": "https://example.eu.auth0.com/keys",
            },
            "existingSecret": "plug-in",
        },
        environment={"OTEL_SERVICE_NAME": "script", "NUMBER": 5},
        environmentSecrets=["more"],
        logging={"level": "debug", "format": "text", "reportSeconds": 0},
        server={
            "environment": {"HTTPS_PROXY": "http://proxy:3128"},
            "podAnnotations": {"a": "b"},
            "podLabels": {"c": "d"},
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "high",
            "service": {"type": "LoadBalancer", "annotations": {"e": "f"}},
            "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/server"}},
        },
        worker={
            "concurrency": 3,
            "drainTimeoutSeconds": 3600,
            "keda": {"enabled": True},
            "runtimeClassName": "gvisor",
            "extraVolumes": [{"name": "reference", "persistentVolumeClaim": {"claimName": "genomes"}}],
            "extraVolumeMounts": [{"name": "reference", "mountPath": "/reference", "readOnly": True}],
            "podLabels": {"azure.workload.identity/use": "true"},
            "serviceAccount": {"name": "hands"},
        },
        ingress={
            "enabled": True,
            "className": "nginx",
            "annotations": {"g": "h"},
            "hosts": ["scripts.example.org"],
            "tlsSecret": "tls",
        },
        networkPolicy={
            "serverFrom": [PEER],
            "redisTo": [PEER],
            "storeTo": [PEER],
            "storePorts": [443, 9000],
            "identityTo": [PEER],
            "serverEgress": [{"ports": [{"port": 3128}]}],
            "workerEgress": [{"to": [PEER]}],
        },
        monitoring={
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "rules": RULES},
        },
    ),
    "nothing optional": with_values(
        redis={"existingSecret": ""},
        server={
            "autoscaling": {"enabled": False},
            "podDisruptionBudget": {"enabled": False},
            "serviceAccount": {"create": False},
            "topologySpread": [],
        },
        worker={
            "podDisruptionBudget": {"enabled": False},
            "serviceAccount": {"create": False, "name": "own"},
            "topologySpread": [],
        },
        networkPolicy={"enabled": False},
    ),
    "folder": with_values(
        store={
            "url": "file:///srv/artifacts",
            "persistence": {"size": "10Gi", "storageClass": "nfs"},
        },
        existingConfigMap={"name": "ours", "key": "qc.json"},
    ),
    "claimed folder": with_values(
        store={"url": "file:///srv/artifacts", "persistence": {"existingClaim": "share"}}
    ),
    "valkey": with_values(
        config=CONFIG,
        redis={"url": ""},
        valkey={"enabled": True, "persistence": {"storageClass": "fast"}},
        worker={"keda": {"enabled": True, "trigger": "redis"}},
    ),
    "redis trigger": with_values(
        redis={"url": "redis://redis.example.org", "existingSecret": "", "username": "runner"},
        worker={"concurrency": 4, "keda": {"enabled": True, "trigger": "redis", "minReplicas": 2}},
    ),
    "secure redis trigger": with_values(worker={"keda": {"enabled": True, "trigger": "redis"}}),
    "sentinel": with_values(redis={"url": "redis+sentinel://a:26379,b:26379/main/0"}),
    "monitoring from nowhere": with_values(networkPolicy={"metricsFrom": [], "dnsTo": []}),
    "digest": with_values(image={"digest": "sha256:" + "0" * 64}),
}

LONG = {"release": "r" * 53, "namespace": "n" * 63}


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one set of values came to."""

    refused: str
    manifests: Sequence[dict[str, Any]] = ()
    notes: str = ""
    problems: Sequence[str] = ()

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def one(self, kind: str, ending: str = "") -> dict[str, Any]:
        """The one manifest of this kind whose name ends so."""
        (found,) = [each for each in self.of_kind(kind) if each["metadata"]["name"].endswith(ending)]
        return found

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """Component -> the pod (metadata and spec) that is made for it."""
        templates = [each["spec"]["template"] for each in self.of_kind("Deployment", "StatefulSet")]
        return {component(pod): pod for pod in [*templates, *self.of_kind("Pod")]}


def component(manifest: Mapping[str, Any]) -> str:
    return str(manifest["metadata"]["labels"]["app.kubernetes.io/component"])


def container(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The only container of a pod."""
    (found,) = pod["spec"]["containers"]
    return dict(found)


def variables(pod: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a pod that have their value in the manifest."""
    return {each["name"]: each["value"] for each in container(pod)["env"] if "value" in each}


def environment_names(pod: Mapping[str, Any]) -> Iterator[str]:
    """Names of all variables of a pod, as often as they stand there."""
    return (each["name"] for each in container(pod)["env"])


def need_helm() -> None:
    """Skip the test where Helm is not installed; in CI fail."""
    if not (TOOLS / "helm_python").is_dir():
        sentence = "Helm is not there; ./dev test installs it"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)


@functools.cache
def _renderer() -> "subprocess.Popen[str]":
    """The process that renders; it ends with this one."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "rendering.py")],
        env={"PYTHONPATH": str(TOOLS), "PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def render(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Rendered]:
    """All cases (values, if need be with release and namespace); what the linter says is under ``""``."""
    wanted = {
        name: {"release": "demo", "namespace": "lab", **(case if "values" in case else {"values": case})}
        for name, case in cases.items()
    }
    process = _renderer()
    assert process.stdin
    assert process.stdout
    print(json.dumps({"chart": str(CHART), "cases": wanted}), file=process.stdin, flush=True)
    answers = json.loads(process.stdout.readline())
    lint = Rendered("; ".join(answers.pop("")))
    return {
        "": lint,
        **{name: Rendered(**{"refused": "", **answer}) for name, answer in answers.items()},
    }


@functools.cache
def rendered() -> Mapping[str, Rendered]:
    """Every case of ``CASES``, and the fullest one under long names."""
    need_helm()
    long = {f"long {name}": {**LONG, "values": CASES[name]} for name in ("everything", "valkey")}
    return render({**CASES, **long})
