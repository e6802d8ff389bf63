"""Applies the Terraform module for AWS to a moto server in place of AWS: ``python -m tests.deploy.moto_apply``.

Apply, a second plan that must find nothing to change but what moto forgets, a look at what is there, destroy. It
needs Terraform, the AWS provider (TF_PLUGIN_DIR) and ``pip install 'moto[server]'``. moto knows no replication
groups of ElastiCache, so Redis is said to be there already. It takes minutes, most of them waits of the provider.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.deploy.test_terraform_aws import MODULE, provider_mirror

REGION = "eu-central-1"
SERVICES = (
    "acm", "applicationautoscaling", "cloudwatch", "logs", "ec2", "ecs", "elbv2", "iam", "route53", "s3",
    "secretsmanager", "sts",
)  # fmt: skip
UNKNOWN_TO_MOTO: dict[str, Any] = {"AnyScaleFrontendService.ListTagsForResource": {"Tags": {}}}

FORGOTTEN_BY_MOTO = {
    "aws_appautoscaling_target.worker",  # tags
    "aws_ecs_service.server",  # health_check_grace_period_seconds
    "aws_ecs_service.worker",  # capacity_provider_strategy
    "aws_vpc_security_group_egress_rule.load_balancer_to_server",  # description
    "aws_vpc_security_group_ingress_rule.server_from_load_balancer",  # description
}
"""What a second plan finds to change because moto does not keep what it was told."""

ROOT = """
provider "aws" {
  region                      = "%(region)s"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  s3_use_path_style           = true

  endpoints {
%(endpoints)s
  }
}

module "script_runner" {
  source                    = "../aws"
  image                     = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/my/script"
  image_tag                 = "1"
  auth_provider             = "none"
  dns_zone_id               = "%(zone)s"
  dns_subdomain             = "scripts"
  deletion_protection       = false
  create_redis              = false
  redis_url                 = "rediss://redis.internal:6379/0"
  redis_password_secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-abcdef"
}

output "all" {
  value = module.script_runner
}
"""

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def with_answers(application: Application) -> Application:
    """The application, with an answer where it has none."""

    def answering(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = UNKNOWN_TO_MOTO.get(environment.get("HTTP_X_AMZ_TARGET", ""))
        if answer is None:
            return application(environment, start_response)
        start_response("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
        return [json.dumps(answer).encode()]

    return answering


def main() -> None:
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "MOTO_ACM_VALIDATION_WAIT": "1",
        "TF_CLI_CONFIG_FILE": os.devnull,
        "CHECKPOINT_DISABLE": "1",
    }
    moto, serving = importlib.import_module("moto.server"), importlib.import_module("werkzeug.serving")
    application = with_answers(moto.DomainDispatcherApplication(moto.create_backend_app))
    server = serving.make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    boto3 = importlib.import_module("boto3")

    def client(service: str) -> Any:
        return boto3.client(service, endpoint_url=url, region_name=REGION)

    zone = client("route53").create_hosted_zone(Name="example.org", CallerReference="1")["HostedZone"]["Id"]
    with tempfile.TemporaryDirectory(prefix="moto-apply-") as name:
        folder = Path(name)
        shutil.copytree(MODULE, folder / "aws", ignore=shutil.ignore_patterns(".terraform*"))
        (folder / "root").mkdir()
        endpoints = "\n".join(f'    {service} = "{url}"' for service in SERVICES)
        text = ROOT % {"region": REGION, "endpoints": endpoints, "zone": zone.rsplit("/", 1)[-1]}
        (folder / "root" / "main.tf").write_text(text)
        terraform(folder / "root", "init", f"-plugin-dir={provider_mirror()}")
        terraform(folder / "root", "apply", "-auto-approve", "-parallelism=20")
        terraform(folder / "root", "plan", "-out=again")
        assert changed(folder / "root", "again") <= FORGOTTEN_BY_MOTO
        look(client)
        terraform(folder / "root", "destroy", "-auto-approve", "-parallelism=20")
    server.shutdown()


def terraform(folder: Path, *words: str) -> None:
    """Run Terraform; whatever it has to say against it ends the program."""
    say(f"terraform {' '.join(words)}")
    subprocess.run(["terraform", *words, "-no-color"], cwd=folder, check=True)


def changed(folder: Path, plan: str) -> set[str]:
    """The resources of the module that a plan would change."""
    words = ["terraform", "show", "-json", plan]
    document = json.loads(subprocess.run(words, cwd=folder, check=True, capture_output=True).stdout)
    return {
        change["address"].removeprefix("module.script_runner.")
        for change in document["resource_changes"]
        if change["change"]["actions"] not in (["no-op"], ["read"])
    }


def say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def look(client: Callable[[str], Any]) -> None:
    """What is there now, by the words of AWS itself."""
    services = client("ecs").describe_services(
        cluster="script-runner", services=["script-runner-server", "script-runner-worker"]
    )["services"]
    assert [service["desiredCount"] for service in services] == [2, 0]
    scaling = client("application-autoscaling")
    policies = scaling.describe_scaling_policies(ServiceNamespace="ecs")["ScalingPolicies"]
    assert {policy["PolicyName"] for policy in policies} == {"script-runner-more", "script-runner-fewer"}
    alarms = client("cloudwatch").describe_alarms()["MetricAlarms"]
    actions = {alarm["AlarmName"]: alarm["AlarmActions"] for alarm in alarms}
    for policy in policies:
        assert actions[f"{policy['PolicyName']}-workers"] == [policy["PolicyARN"]]
    filters = client("logs").describe_metric_filters(logGroupName="/script-runner/script-runner/server")
    assert "Backlog" in {found["metricTransformations"][0]["metricName"] for found in filters["metricFilters"]}
    [bucket] = client("s3").list_buckets()["Buckets"]
    block = client("s3").get_public_access_block(Bucket=bucket["Name"])["PublicAccessBlockConfiguration"]
    assert all(block.values())
    groups = client("ec2").describe_security_groups()["SecurityGroups"]
    open_to_all = {
        group["Description"]
        for group in groups
        for rule in group["IpPermissions"]
        for place in rule["IpRanges"]
        if place["CidrIp"] == "0.0.0.0/0"
    }
    assert open_to_all == {"The load balancer of script-runner"}, open_to_all
    say(f"found {len(services)} services, {len(policies)} policies, {len(alarms)} alarms, bucket {bucket['Name']}")


if __name__ == "__main__":
    main()
