"""The Helm chart: rendered by Helm, held to the schemas of Kubernetes and to what the program needs."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from tests.deploy.charts import (
    CASES,
    CHART,
    CONFIG,
    MINIMAL,
    ROOT,
    RULES,
    Rendered,
    component,
    container,
    environment_names,
    need_helm,
    render,
    rendered,
    variables,
    with_values,
)
from tests.deploy.settings import known_settings

import script_runner
from script_runner.adapters import auth0
from script_runner.config import Settings, read_settings
from script_runner.spec import Spec
from script_runner.wiring.serving import SECONDS_TO_CLOSE

NAMES = [*CASES, "long everything", "long valkey"]


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Rendered:
    return rendered()[request.param]


def case_named(name: str) -> Rendered:
    return rendered()[name]


# What Kubernetes says


def test_helm_takes_the_chart():
    """Helm's linter has nothing against it."""
    assert rendered()[""].refused == ""


def test_the_manifests_follow_the_schemas(case: Rendered):
    """Each manifest is what Kubernetes, KEDA and the Prometheus operator take, without an unknown key."""
    assert case.refused == ""
    assert case.problems == []


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (with_values(server={"affinity": {"podAntiAfinity": {}}}), "podAntiAfinity"),
        (with_values(worker={"extraVolumes": [{"name": "x", "configMap": {"nome": "y"}}]}), "nome"),
        (
            with_values(
                monitoring={"prometheusRule": {"enabled": True, "rules": "groups: [{name: x, intervall: 1m}]"}}
            ),
            ".spec.groups[0].intervall: unknown",
        ),
    ],
)
def test_a_manifest_that_does_not_follow_them_is_found(values: dict[str, Any], problem: str):
    """The check above would see a wrong key: free values bring some in."""
    need_helm()

    assert any(problem in found for found in render({"wrong": values})["wrong"].problems)


def test_every_kind_is_rendered_somewhere():
    """Between them the cases show all that the chart can make."""
    kinds = {manifest["kind"] for name in NAMES for manifest in case_named(name).manifests}

    assert kinds == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "PersistentVolumeClaim",
        "Pod", "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "ScaledObject", "Service", "ServiceAccount",
        "StatefulSet", "TriggerAuthentication",
    }  # fmt: skip


def test_names_are_short_enough_and_unlike(case: Rendered):
    """Names and labels have at most 63 characters (a StatefulSet 52), and no two of a kind are the same."""
    names = Counter((each["kind"], each["metadata"]["name"]) for each in case.manifests)
    limits = {"StatefulSet": 52, "ScaledObject": 54}
    labels = [value for each in case.manifests for value in each["metadata"]["labels"].values()]

    assert [name for name, times in names.items() if times > 1] == []
    assert [name for kind, name in names if len(name) > limits.get(kind, 63)] == []
    assert [value for value in labels if len(value) > 63] == []


def test_releases_that_share_a_redis_do_not_mix():
    """The beginning of the keys tells namespaces and releases apart, and is one that the program takes."""
    need_helm()
    queues = {
        name: variables(each.pods["worker"])["SCRIPT_RUNNER_NAMESPACE"]
        for name, each in render(
            {
                f"{namespace}/{release}": {"release": release, "namespace": namespace, "values": MINIMAL}
                for namespace in ("a", "n" * 63)
                for release in ("one", "two", "r" * 53)
            }
        ).items()
        if name
    }

    assert len(set(queues.values())) == 6
    assert {read_settings({"SCRIPT_RUNNER_NAMESPACE": queue}).namespace for queue in queues.values()} == {
        *queues.values()
    }


# Selectors and ports


def selects(selector: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    labels = pod["metadata"]["labels"]
    by_label = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    return by_label and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
    )


def test_what_selects_pods_selects_its_own(case: Rendered):
    """Services, budgets, policies and workloads each select the pods of their own component and no others."""
    for manifest in case.of_kind("Deployment", "StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = manifest["spec"]
        selector = (
            {"matchLabels": spec["selector"]}
            if manifest["kind"] == "Service"
            else spec.get("selector") or spec["podSelector"]
        )
        found = [name for name, pod in case.pods.items() if selects(selector, pod)]

        assert found == [component(manifest)], manifest["metadata"]["name"]


def test_the_monitor_reads_servers_and_workers():
    """The PodMonitor selects both, on a port that both have."""
    everything = case_named("everything")
    spec = everything.one("PodMonitor")["spec"]
    selected = [name for name, pod in everything.pods.items() if selects(spec["selector"], pod)]

    assert sorted(selected) == ["server", "worker"]
    assert all(spec["podMetricsEndpoints"][0]["port"] in ports(everything.pods[name]) for name in selected)


def test_the_rules_come_as_they_are_written():
    """Prometheus' own templates in them are not taken for Helm's; those of deploy/monitoring fit too."""
    need_helm()
    texts = [RULES, *(path.read_text() for path in (ROOT / "deploy" / "monitoring").glob("alerts.yaml"))]
    values = [with_values(monitoring={"prometheusRule": {"enabled": True, "rules": text}}) for text in texts]
    shown = render({str(number): each for number, each in enumerate(values)})
    given = [yaml.safe_load(text)["groups"] for text in texts]

    assert [shown[str(number)].one("PrometheusRule")["spec"]["groups"] for number in range(len(texts))] == given
    assert [shown[str(number)].problems for number in range(len(texts))] == [[]] * len(texts)


def test_the_monitor_names_the_job():
    """Alert rules look for the job script-runner, which Prometheus takes from that label of the pods."""
    everything = case_named("everything")
    label = everything.one("PodMonitor")["spec"]["jobLabel"]

    assert [everything.pods[name]["metadata"]["labels"][label] for name in BOTH] == ["script-runner"] * 2


def ports(pod: Mapping[str, Any]) -> dict[str, int]:
    return {each["name"]: each["containerPort"] for each in container(pod).get("ports", ())}


def test_ports_by_name_are_ports_that_the_pods_have(case: Rendered):
    """A Service, a probe or a policy that names a port names one of its pods."""
    for service in case.of_kind("Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= {*ports(case.pods[component(service)])}
    for policy in case.of_kind("NetworkPolicy"):
        named = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert named <= {*ports(case.pods[component(policy)])}
    for pod in case.pods.values():
        probes = [container(pod).get(f"{kind}Probe", {}) for kind in ("startup", "liveness", "readiness")]
        asked = [probe.get("httpGet") or probe.get("tcpSocket") for probe in probes]
        assert {each["port"] for each in asked if each} <= {*ports(pod)}


def test_the_ports_are_those_that_the_program_listens_on(case: Rendered):
    """``http`` and ``metrics`` are the ports in the variables."""
    server, worker = case.pods["server"], case.pods["worker"]

    assert ports(server) == {
        "http": int(variables(server)["SCRIPT_RUNNER_PORT"]),
        "metrics": int(variables(server)["SCRIPT_RUNNER_METRICS"].rpartition(":")[2]),
    }
    assert ports(worker) == {"metrics": int(variables(worker)["SCRIPT_RUNNER_METRICS"].rpartition(":")[2])}


# Safety


def test_no_pod_may_do_more_than_it_must(case: Rendered):
    """Every pod: not root, a file system that cannot be written, no capability, the default seccomp profile."""
    for pod in case.pods.values():
        of_pod, of_container = pod["spec"]["securityContext"], container(pod)["securityContext"]

        assert of_pod["runAsNonRoot"] is True
        assert of_pod["runAsUser"] > 0
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert of_container == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any(pod["spec"].get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))


def test_no_pod_gets_a_token_or_the_addresses_of_services(case: Rendered):
    """A Service called script-runner would set SCRIPT_RUNNER_PORT to a URL."""
    for pod in case.pods.values():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False


def test_what_is_written_has_a_limit(case: Rendered):
    """/tmp, where run folders are, is a volume of a stated size; memory and CPU are asked for, and limited."""
    for name in ("server", "worker"):
        pod = case.pods[name]
        (mount,) = [each for each in container(pod)["volumeMounts"] if each["mountPath"] == "/tmp"]
        (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == mount["name"]]
        assert volume["emptyDir"]["sizeLimit"]
        assert variables(pod)["SCRIPT_RUNNER_RUNDIR"] == "/tmp"
    for pod in case.pods.values():
        assert container(pod)["resources"]["limits"]["memory"]
        assert container(pod)["resources"]["requests"]["cpu"]


def test_mounts_are_of_volumes_that_there_are(case: Rendered):
    """A mount names a volume of its pod."""
    for manifest in case.of_kind("Deployment", "StatefulSet"):
        spec = manifest["spec"]["template"]["spec"]
        volumes = [
            *spec["volumes"],
            *(each["metadata"] for each in manifest["spec"].get("volumeClaimTemplates", ())),
        ]
        names = {volume["name"] for volume in volumes}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} <= names


def test_secrets_come_by_reference(case: Rendered):
    """The chart makes no Secret, and the password of Redis is a reference wherever it is needed."""
    wanted = ("PASSWORD", "REDISCLI_AUTH", "VALKEYCLI_AUTH")

    assert case.of_kind("Secret") == []
    for pod in case.pods.values():
        for each in container(pod).get("env", ()):
            if each["name"].endswith(wanted):
                assert "value" not in each
                assert each["valueFrom"]["secretKeyRef"]["name"] == "redis-password"


def test_the_worker_gets_no_secret_of_the_sign_in():
    """Secrets of the store go to both, those of a provider to the server alone: scripts run in the worker."""
    everything = case_named("everything")
    secrets = {
        name: [each["secretRef"]["name"] for each in container(everything.pods[name])["envFrom"]]
        for name in ("server", "worker")
    }

    assert secrets == {"server": ["store-keys", "plug-in", "more"], "worker": ["store-keys", "more"]}
    assert not any(name.startswith("AUTH") for name in environment_names(everything.pods["worker"]))


def test_every_account_that_is_used_is_there():
    """Servers and workers have an account each, made here or named."""
    accounts = {
        name: [case_named(name).pods[each]["spec"]["serviceAccountName"] for each in ("server", "worker")]
        for name in ("everything", "nothing optional")
    }
    made = [each["metadata"]["name"] for each in case_named("everything").of_kind("ServiceAccount")]

    assert accounts["everything"] == made == ["demo-script-runner-server", "hands"]
    assert accounts["nothing optional"] == ["default", "own"]
    assert case_named("nothing optional").of_kind("ServiceAccount") == []


# The network


def rules(policy: Mapping[str, Any], direction: str) -> dict[tuple[Any, ...], Any]:
    """The ports of each rule -> its peers; None is everyone."""
    peers = "from" if direction == "ingress" else "to"
    return {
        tuple(port["port"] for port in rule.get("ports", ())): rule.get(peers)
        for rule in policy["spec"][direction]
    }


def test_a_worker_is_asked_for_its_metrics_only():
    """Into a worker leads one port, for monitoring and the chart's test; a server has the API for all."""
    minimal = case_named("minimal")
    worker, server = (rules(minimal.one("NetworkPolicy", name), "ingress") for name in ("worker", "server"))

    assert list(worker) == [("metrics",)]
    assert list(server) == [("http",), ("metrics",)]
    assert server["http",] is None
    assert worker["metrics",] == server["metrics",]
    assert [peer.get("namespaceSelector") for peer in worker["metrics",]] == [
        None,
        {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
        {"matchLabels": {"kubernetes.io/metadata.name": "keda"}},
    ]


def test_out_of_a_pod_lead_dns_redis_and_the_store():
    """The ports are those of the URL; a folder needs none, a provider's keys are read by servers only."""
    out = {
        name: list(rules(case_named(name).one("NetworkPolicy", "worker"), "egress"))
        for name in ("minimal", "folder", "sentinel", "redis trigger")
    }
    server = rules(case_named("everything").one("NetworkPolicy", "server"), "egress")

    assert out == {
        "minimal": [(53, 53), (6380,), (443,)],
        "folder": [(53, 53), (6380,)],
        "sentinel": [(53, 53), (26379, 6379), (443,)],
        "redis trigger": [(53, 53), (6379,), (443,)],
    }
    assert list(server) == [(53, 53), (6380,), (443, 9000), (443,), (3128,)]


def test_an_empty_list_of_who_may_read_metrics_is_nobody_else():
    """Kubernetes takes an empty ``from`` for everyone; the chart never writes one."""
    policy = case_named("monitoring from nowhere").one("NetworkPolicy", "worker")

    assert [[*peer] for peer in rules(policy, "ingress")["metrics",]] == [["podSelector"]]


def test_no_rule_is_open_by_accident(case: Rendered):
    """A list of peers, where there is one, is not empty."""
    for policy in case.of_kind("NetworkPolicy"):
        for direction in ("ingress", "egress"):
            assert [] not in rules(policy, direction).values()


def test_the_valkey_of_the_chart_is_for_its_own_pods():
    """Servers, workers, and KEDA when it asks for the list; it calls nobody."""
    policy = case_named("valkey").one("NetworkPolicy", "valkey")

    assert len(rules(policy, "ingress")["valkey",]) == 3
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == []


# What the program is told


def test_every_variable_is_a_setting(case: Rendered):
    """What the chart sets of the runner's own is read by it; none stands twice."""
    own = {*known_settings(), "AUTH0_DOMAIN", "AUTH0_API_AUDIENCE", "AUTH0_CLIENT_ID", "AUTH0_JWKS_URL"}
    for name in ("server", "worker"):
        names = list(environment_names(case.pods[name]))

        assert {each for each in names if each.startswith(("SCRIPT_RUNNER_", "AUTH"))} <= own
        assert len(names) == len(set(names))


def test_the_program_understands_the_values(case: Rendered):
    """Read by the program itself, the variables are the settings that were meant."""
    for name in ("server", "worker"):
        assert isinstance(read_settings(variables(case.pods[name])), Settings)


def test_the_values_arrive():
    """What is said in the values is what the server and the worker hear."""
    everything = case_named("everything")
    server, worker = (read_settings(variables(everything.pods[name])) for name in ("server", "worker"))

    assert server.redis_url == (
        "rediss://redis.example.org:6380/1?ssl_ca_certs=/etc/script-runner/redis-ca/ca.crt"
    )
    assert (server.redis_username, server.redis_replicas, server.namespace) == ("runner", 1, "lab")
    assert (server.host, server.port, server.auth_provider) == ("0.0.0.0", 8000, "auth0")  # noqa: S104 - inside a pod
    assert (worker.concurrency, worker.drain_timeout, worker.store_url) == (3, 3600.0, "s3://bucket/prefix")
    assert worker.auth_provider is None
    assert variables(everything.pods["worker"])["NUMBER"] == "5"
    assert auth0.provider(variables(everything.pods["server"]))


def test_names_that_look_like_something_else_stay_text():
    """YAML takes ``on`` for true and ``123`` for a number; the chart quotes."""
    need_helm()
    values = with_values(
        fullnameOverride="on",
        nameOverride="yes",
        image={"pullSecrets": ["123"]},
        redis={"existingSecret": "123", "passwordKey": "1", "caSecret": "456", "caKey": "2"},
        store={"existingSecret": "0x1"},
        existingConfigMap={"name": "789", "key": "3"},
        environment={"ON": "off", "NUMBER": "1e3"},
        worker={
            "keda": {"enabled": True},
            "priorityClassName": "1",
            "serviceAccount": {"create": False, "name": "2"},
        },
        ingress={"enabled": True, "hosts": ["1.2"], "tlsSecret": "1"},
        monitoring={"podMonitor": {"enabled": True}},
    )
    odd = render({"odd": {"release": "123", "namespace": "lab", "values": values}})["odd"]

    assert (odd.refused, odd.problems) == ("", [])
    assert [variables(odd.pods["worker"])[name] for name in ("ON", "NUMBER")] == ["off", "1e3"]


def test_large_numbers_stay_whole():
    """Helm reads numbers as floats; none is written as 5e+06."""
    need_helm()
    values = with_values(
        runAsUser=1_000_650_000,
        environment={"LARGE": 5_000_000, "HALF": 0.5, "YES": True},
        server={"maxBodyBytes": 1 << 30},
        worker={"drainTimeoutSeconds": 2_000_000},
        config={"command": ["x"], "retention_seconds": 31_536_000},
    )
    large = render({"large": values})["large"]
    worker, server = large.pods["worker"], large.pods["server"]

    assert [variables(worker)[name] for name in ("LARGE", "HALF", "YES")] == ["5000000", "0.5", "true"]
    assert variables(server)["SCRIPT_RUNNER_MAX_BODY_BYTES"] == "1073741824"
    assert variables(worker)["SCRIPT_RUNNER_DRAIN_TIMEOUT"] == "2000000"
    assert worker["spec"]["terminationGracePeriodSeconds"] > 2_000_000
    assert worker["spec"]["securityContext"]["fsGroup"] == 1_000_650_000
    assert '"retention_seconds": 31536000' in large.one("ConfigMap")["data"]["config.json"]
    assert large.problems == []


def test_the_configuration_arrives():
    """config.json holds what the values have, where SCRIPT_RUNNER_CONFIG says; else the image's own counts."""
    config = case_named("config")
    (volume,) = [each for each in config.pods["worker"]["spec"]["volumes"] if each["name"] == "config"]
    (mount,) = [each for each in container(config.pods["worker"])["volumeMounts"] if each["name"] == "config"]
    path = variables(config.pods["worker"])["SCRIPT_RUNNER_CONFIG"]

    assert json.loads(config.one("ConfigMap")["data"]["config.json"]) == CONFIG
    assert volume["configMap"]["name"] == config.one("ConfigMap")["metadata"]["name"]
    assert path == f"{mount['mountPath']}/{volume['configMap']['items'][0]['path']}"
    assert "SCRIPT_RUNNER_CONFIG" not in variables(case_named("minimal").pods["worker"])


def test_a_configuration_of_ones_own_is_mounted():
    """The key of a ConfigMap that is there already becomes config.json, and none is made."""
    folder = case_named("folder")
    (volume,) = [each for each in folder.pods["server"]["spec"]["volumes"] if each["name"] == "config"]

    assert volume["configMap"] == {"name": "ours", "items": [{"key": "qc.json", "path": "config.json"}]}
    assert folder.of_kind("ConfigMap") == []


def test_a_change_of_the_configuration_rolls_the_pods():
    """The pods of both carry its digest: another one for another configuration, the same one for the same."""
    digests = {
        name: {case_named(name).pods[each]["metadata"]["annotations"]["script-runner/config"] for each in BOTH}
        for name in ("config", "other config", "everything", "minimal")
    }

    assert [len(found) for found in digests.values()] == [1, 1, 1, 1]
    assert digests["config"] == digests["everything"]
    assert len({*digests["config"], *digests["other config"], *digests["minimal"]}) == 3


BOTH = ("server", "worker")


@pytest.mark.parametrize(("name", "drain", "grace"), [("minimal", 600, 10), ("everything", 3600, 20.5)])
def test_kubernetes_waits_until_scripts_have_ended(name: str, drain: float, grace: float):
    """A worker has its drain, the scripts' grace and some seconds; grace_seconds of the configuration counts."""
    worker = case_named(name).pods["worker"]

    assert float(variables(worker)["SCRIPT_RUNNER_DRAIN_TIMEOUT"]) == drain
    assert drain + grace + 10 <= worker["spec"]["terminationGracePeriodSeconds"] <= drain + grace + 30


def test_kubernetes_waits_until_answers_have_ended(case: Rendered):
    """A server lingers and then closes; KILL comes later than that."""
    server = case.pods["server"]
    needed = float(variables(server)["SCRIPT_RUNNER_LINGER_SECONDS"]) + SECONDS_TO_CLOSE

    assert server["spec"]["terminationGracePeriodSeconds"] >= needed + 10


def test_probes_ask_where_no_token_is_needed(case: Rendered):
    """On the main port only /health is open; /ready is asked on the metrics listener."""
    server = container(case.pods["server"])

    assert server["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert server["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "metrics"}


def test_a_folder_is_the_same_for_all():
    """file:// is mounted where its URL says, from a claim that many pods can write."""
    made, claimed = case_named("folder"), case_named("claimed folder")
    claims = {
        name: [
            volume["persistentVolumeClaim"]["claimName"]
            for pod in (each.pods["server"], each.pods["worker"])
            for volume in pod["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        for name, each in (("made", made), ("claimed", claimed))
    }
    mounts = [mount["mountPath"] for mount in container(made.pods["worker"])["volumeMounts"]]

    assert made.one("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claims == {"made": ["demo-script-runner-artifacts"] * 2, "claimed": ["share"] * 2}
    assert "/srv/artifacts" in mounts
    assert claimed.of_kind("PersistentVolumeClaim") == []


def test_the_image_is_the_one_named():
    """A digest goes before a tag; without either it is the chart's version, which is the package's."""
    images = {
        name: container(case_named(name).pods["worker"])["image"] for name in ("minimal", "everything", "digest")
    }

    assert images == {
        "minimal": f"script-runner-api:{script_runner.__version__}",
        "everything": "registry.example.org/lab/script:7",
        "digest": "script-runner-api@sha256:" + "0" * 64,
    }


# Scaling


def test_what_scales_decides_how_many(case: Rendered):
    """A Deployment that something scales says no number itself, else an upgrade would set it back."""
    scaled = {
        each["spec"]["scaleTargetRef"]["name"] for each in case.of_kind("HorizontalPodAutoscaler", "ScaledObject")
    }

    for deployment in case.of_kind("Deployment"):
        assert ("replicas" in deployment["spec"]) != (deployment["metadata"]["name"] in scaled)


def test_workers_scale_by_the_backlog():
    """KEDA asks the servers' metrics listener, and wants one worker for as many tasks as it runs at once."""
    everything = case_named("everything")
    spec = everything.one("ScaledObject")["spec"]
    service = everything.one("Service", "-metrics")
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]

    assert spec["minReplicaCount"] == 0
    assert spec["triggers"] == [
        {
            "type": "metrics-api",
            "metadata": {
                "url": f"http://{name}.lab.svc:{port}/metrics",
                "format": "prometheus",
                "valueLocation": "script_runner_backlog",
                "targetValue": "3",
            },
        }
    ]


@pytest.mark.parametrize(
    ("name", "address", "index", "is_tls"),
    [
        ("redis trigger", "redis.example.org:6379", "0", "false"),
        ("secure redis trigger", "redis.example.org:6380", "1", "true"),
        ("valkey", "demo-script-runner-valkey:6379", "0", "false"),
    ],
)
def test_workers_scale_by_the_wake_ups(name: str, address: str, index: str, is_tls: str):
    """Or KEDA looks at the list of wake-ups in the database of the URL."""
    trigger = case_named(name).one("ScaledObject")["spec"]["triggers"][0]
    queue = variables(case_named(name).pods["worker"])["SCRIPT_RUNNER_NAMESPACE"]
    told = trigger["metadata"]

    assert trigger["type"] == "redis"
    assert (told["address"], told["databaseIndex"], told["enableTLS"]) == (address, index, is_tls)
    assert told["listName"] == f"{{{queue}}}:1:wake"


def test_keda_signs_in_as_the_workers_do():
    """With the same key of the same Secret and the user of the worker's variable; without a password with none."""
    signed, plain = case_named("secure redis trigger"), case_named("redis trigger")
    trigger = plain.one("ScaledObject")["spec"]["triggers"][0]

    assert signed.one("TriggerAuthentication")["spec"]["secretTargetRef"] == [
        {"parameter": "password", "name": "redis-password", "key": "password"}
    ]
    assert trigger["metadata"]["usernameFromEnv"] in environment_names(plain.pods["worker"])
    assert "authenticationRef" not in trigger
    assert plain.of_kind("TriggerAuthentication") == []


# Values that are refused


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"bogus": 1}, "bogus"),
    ({"server": {"replica": 2}}, "replica"),
    ({"worker": {"keda": {"minReplica": 0}}}, "minReplica"),
    ({"worker": {"concurrency": 0}}, "/worker/concurrency"),
    ({"worker": {"concurrency": "4"}}, "/worker/concurrency"),
    ({"worker": {"keda": {"trigger": "streams"}}}, "/worker/keda/trigger"),
    ({"worker": {"environment": {"SCRIPT_RUNNER_STORE": "s3://x"}}}, "'SCRIPT_RUNNER_STORE'"),
    ({"server": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "'app.kubernetes.io/component'"),
    ({"redis": {"url": "redis://:secret@host"}}, "/redis/url"),
    ({"redis": {"url": "redis://host?password=secret"}}, "/redis/url"),
    ({"redis": {"url": "unix:///socket"}}, "/redis/url"),
    ({"redis": {"existingSecret": "Not A Name"}}, "/redis/existingSecret"),
    ({"redis": {"password": "secret"}}, "password"),
    ({"store": {"url": "http://bucket"}}, "/store/url"),
    ({"store": {"url": "file:///"}}, "/store/url"),
    ({"store": {"environment": {"AWS_SECRET_ACCESS_KEY": "x"}}}, "'AWS_SECRET_ACCESS_KEY'"),
    ({"environment": {"AZURE_CLIENT_SECRET": "x"}}, "'AZURE_CLIENT_SECRET'"),
    ({"environment": {"GITHUB_TOKEN": "x"}}, "'GITHUB_TOKEN'"),
    ({"environment": {"HTTPS_PROXY": "http://user:secret@proxy"}}, "/environment/HTTPS_PROXY"),
    ({"environment": {"OTEL_EXPORTER_OTLP_HEADERS": "x"}}, "'OTEL_EXPORTER_OTLP_HEADERS'"),
    ({"environment": {"not a name": "x"}}, "'not a name'"),
    ({"auth": {"auth0": {"domain": "https://example.auth0.com/"}}}, "/auth/auth0/domain"),
    ({"runAsUser": 0}, "/runAsUser"),
    ({"leaseSeconds": 0.5}, "/leaseSeconds"),
    ({"image": {"digest": "sha256:123"}}, "/image/digest"),
    ({"worker": {"temporarySize": "10 GB"}}, "/worker/temporarySize"),
    ({"ingress": {"hosts": ["https://x.org"]}}, "/ingress/hosts"),
    ({"networkPolicy": {"storePorts": []}}, "/networkPolicy/storePorts"),
    ({"server": {"podDisruptionBudget": {"maxUnavailable": "half"}}}, "/server/podDisruptionBudget"),
    ({"fullnameOverride": "x" * 46}, "/fullnameOverride"),
]

CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"redis": {"url": ""}}, "redis.url is not set"),
    ({"valkey": {"enabled": True}}, "redis.url and valkey.enabled are both set"),
    ({"redis": {"url": "", "existingSecret": ""}, "valkey": {"enabled": True}}, "valkey.enabled needs a password"),
    ({"redis": {"url": "", "username": "x"}, "valkey": {"enabled": True}}, "redis.username"),
    ({"redis": {"url": "redis://host", "caSecret": "ca"}}, "redis.caSecret is for a URL"),
    ({"store": {"url": ""}}, "store.url is not set"),
    ({"store": {"url": "file:///srv"}}, "store.url is a folder"),
    ({"store": {"persistence": {"size": "1Gi"}}}, "store.persistence is for"),
    (
        {"store": {"url": "file:///srv", "redirectDownloads": True, "persistence": {"size": "1Gi"}}},
        "store.redirectDownloads",
    ),
    ({"auth": {"provider": ""}}, "auth.provider is not set"),
    ({"auth": {"provider": "auth0"}}, "auth.provider auth0 needs"),
    ({"config": CONFIG, "existingConfigMap": {"name": "x"}}, "config and existingConfigMap.name"),
    ({"ingress": {"enabled": True}}, "ingress.enabled needs ingress.hosts"),
    ({"server": {"autoscaling": {"minReplicas": 9}}}, "server.autoscaling"),
    ({"worker": {"keda": {"minReplicas": 11}}}, "worker.keda: minReplicas"),
    ({"monitoring": {"prometheusRule": {"enabled": True}}}, "monitoring.prometheusRule.enabled needs rules"),
    (
        {"monitoring": {"prometheusRule": {"enabled": True, "rules": "not: [yaml"}}},
        "monitoring.prometheusRule.enabled needs rules",
    ),
    (
        {"redis": {"url": "redis+sentinel://h/s"}, "worker": {"keda": {"enabled": True, "trigger": "redis"}}},
        "cannot ask a Sentinel",
    ),
    (
        {"redis": {"caSecret": "ca"}, "worker": {"keda": {"enabled": True, "trigger": "redis"}}},
        "cannot use redis.caSecret",
    ),
]


def test_bad_values_are_refused_with_their_place():
    """The schema of the values refuses unknown keys, wrong kinds, and secrets written down."""
    need_helm()
    answers = render({str(number): with_values(**bad) for number, (bad, _) in enumerate(BAD_VALUES)})
    wrong = [
        (bad, answers[str(number)].refused)
        for number, (bad, place) in enumerate(BAD_VALUES)
        if place not in answers[str(number)].refused
    ]

    assert wrong == []


def test_values_that_contradict_one_another_are_refused_in_words():
    """What the schema cannot say is said by the chart."""
    need_helm()
    answers = render({str(number): with_values(**bad) for number, (bad, _) in enumerate(CONTRADICTIONS)})
    wrong = [
        (bad, answers[str(number)].refused)
        for number, (bad, sentence) in enumerate(CONTRADICTIONS)
        if sentence not in answers[str(number)].refused
    ]

    assert wrong == []


def test_all_that_is_missing_is_said_at_once():
    """Without values the chart names the three that it needs."""
    need_helm()
    refused = render({"none": {}})["none"].refused

    assert [word for word in ("redis.url", "store.url", "auth.provider") if word not in refused] == []


def test_no_variable_can_be_set_in_two_ways():
    """What the chart sets itself is refused in the maps of variables."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    refused = schema["definitions"]["environment"]["propertyNames"]["allOf"][0]["not"]["enum"]
    given = {
        name
        for case in NAMES
        for pod in BOTH
        for name in environment_names(case_named(case).pods[pod])
        if name.startswith(("SCRIPT_RUNNER_", "AUTH"))
    }

    assert set(refused) == given


# The chart as a whole


def leaves(values: Any, place: str = "") -> list[str]:
    if not isinstance(values, dict) or not values:
        return [place.removeprefix(".")]
    return [leaf for key, value in values.items() for leaf in leaves(value, f"{place}.{key}")]


def test_every_value_has_a_default_that_the_schema_takes():
    """values.yaml shows every key of the schema, and no other."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    shown = {leaf for leaf in leaves(values) if not leaf.startswith("networkPolicy.")}

    assert schema_leaves(schema, schema) - {"global"} >= {
        leaf for leaf in shown if leaf.split(".")[-2:-1] not in (["requests"], ["limits"])
    }
    assert {
        leaf
        for leaf in schema_leaves(schema, schema) - {"global"}
        if not has(values, leaf.split(".")) and ".resources." not in leaf
    } == set()


def has(values: Any, steps: list[str]) -> bool:
    return not steps or (isinstance(values, dict) and steps[0] in values and has(values[steps[0]], steps[1:]))


def schema_leaves(schema: Any, whole: Any, place: str = "") -> set[str]:
    """The places of all values that the schema names; objects with free keys are one."""
    if "$ref" in schema:
        schema = whole["definitions"][schema["$ref"].rpartition("/")[2]]
    if not schema.get("properties"):
        return {place.removeprefix(".")}
    return set().union(
        *(schema_leaves(inner, whole, f"{place}.{key}") for key, inner in schema["properties"].items())
    )


def test_every_value_is_used():
    """A value that no template reads would be a promise that is not kept."""
    text = "".join(path.read_text() for path in CHART.glob("templates/**/*.*"))
    shared = {"serverEgress", "workerEgress"}
    keys = {leaf.rpartition(".")[2] for leaf in leaves(yaml.safe_load((CHART / "values.yaml").read_text()))}

    assert {key for key in keys - shared if f".{key}" not in text and key not in ("cpu", "memory")} == set()


def test_the_chart_is_of_this_version():
    """AppVersion is the package's version."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == script_runner.__version__


def test_the_notes_say_how_to_try_it():
    """What Helm prints names the services that there are, and warns where everyone may ask."""
    minimal, everything = case_named("minimal"), case_named("everything")

    assert f"service/{minimal.one('Service', 'runner')['metadata']['name']} 8000:80" in minimal.notes
    assert "everyone who can reach the server" in minimal.notes
    assert "URL=https://scripts.example.org" in everything.notes
    assert "everyone who can reach the server" not in everything.notes


def test_the_guide_names_values_that_there_are():
    """Each dotted name in docs/deploy/kubernetes.md that looks like a value is one."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = re.findall(
        r"`([a-zA-Z]+(?:\.[a-zA-Z]+)+)(?::[^`]*)?`", (ROOT / "docs/deploy/kubernetes.md").read_text()
    )
    known = [name for name in named if name.split(".")[0] in values]

    assert len(known) > 30
    assert [name for name in known if not has(values, name.split("."))] == []


def test_the_values_of_the_guide_render():
    """The example of docs/deploy/kubernetes.md is taken, and its configuration is one that the program takes."""
    need_helm()
    guide = (ROOT / "docs/deploy/kubernetes.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    shown = render({"guide": yaml.safe_load(example)})["guide"]

    assert (shown.refused, shown.problems) == ("", [])
    assert Spec.read(json.loads(shown.one("ConfigMap")["data"]["config.json"]))


def test_the_guide_counts_right():
    """The numbers of cases in the guide are those of the tests."""
    guide = " ".join((ROOT / "docs/deploy/kubernetes.md").read_text().split())

    assert f"on {len(NAMES)} sets of values" in guide
    assert f"{len(BAD_VALUES) + len(CONTRADICTIONS)} sets of bad values" in guide
