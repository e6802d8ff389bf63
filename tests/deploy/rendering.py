"""Renders the chart with Helm itself and checks what came against the schemas of Kubernetes, KEDA and Prometheus.

Runs apart from the tests, with the packages of ``helm.lock``: Helm is a Go library, best alone in a process. In
comes a JSON object a line, ``{"chart": path, "cases": {name: {"values", "release", "namespace"}}}``. Out goes one
too: for each case ``{"refused": sentence}`` or ``{"manifests": […], "notes": text, "problems": […]}``, and under
``""`` what the linter of Helm says.
"""

import functools
import json
import sys
from types import ModuleType
from typing import Any

import helm_python
import kubernetes_validate
import kubernetes_validate.utils
import yaml

VERSIONS = ("1.27", "1.32", "1.37")
"""The oldest Kubernetes that the chart is for, one between, and the newest with a schema at hand."""

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# it would read 3 MB of JSON for each manifest, twice
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


@functools.cache
def custom_models() -> dict[str, ModuleType]:
    """The models of what Kubernetes itself does not know; they take seconds to load."""
    from cloudcoil.models.keda import v1alpha1 as keda  # noqa: PLC0415 - as above
    from cloudcoil.models.prometheus_operator import v1 as monitoring  # noqa: PLC0415 - as above

    return {"keda.sh/v1alpha1": keda, "monitoring.coreos.com/v1": monitoring}


def problems(manifest: dict[str, Any]) -> list[str]:
    """What the schemas have against a manifest; unknown keys count."""
    if not kubernetes_knows(manifest["apiVersion"]):
        models = custom_models()[manifest["apiVersion"]]
        return _custom_problems(getattr(models, manifest["kind"]), manifest)
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except (
            kubernetes_validate.ValidationError,
            kubernetes_validate.SchemaNotFoundError,
        ) as error:
            found.append(f"{version}: {error.message}")
    return found


def kubernetes_knows(version: str) -> bool:
    """Whether a group is one of Kubernetes' own: those have no dot, or end so."""
    group = version.partition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def _custom_problems(model: Any, manifest: dict[str, Any]) -> list[str]:
    try:
        known = model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
    except ValueError as error:
        return [str(error)]
    return [f"{place}: unknown or changed" for place in differences(known, manifest)]


def differences(known: Any, given: Any, place: str = "") -> list[str]:
    """Where the two differ. The models drop keys that they do not know, so those are found too."""
    if isinstance(known, dict) and isinstance(given, dict):
        names = sorted({*known, *given})
        return [
            found for name in names for found in differences(known.get(name), given.get(name), f"{place}.{name}")
        ]
    if isinstance(known, list) and isinstance(given, list) and len(known) == len(given):
        pairs = enumerate(zip(known, given, strict=True))
        return [found for number, (one, other) in pairs for found in differences(one, other, f"{place}[{number}]")]
    return [] if known == given else [place]


def rendered(chart: Any, case: dict[str, Any]) -> dict[str, Any]:
    try:
        files = chart.render(case["values"], name=case["release"], namespace=case["namespace"])
    except helm_python.HelmError as error:
        return {"refused": str(error)}
    manifests = [
        manifest
        for name, text in files.items()
        if not name.endswith("NOTES.txt")
        for manifest in yaml.load_all(text, Loader)
        if manifest
    ]
    found = [
        f"{manifest['kind']} {manifest['metadata']['name']}: {problem}"
        for manifest in manifests
        for problem in problems(manifest)
    ]
    notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
    return {"manifests": manifests, "notes": notes, "problems": found}


def answer(wanted: dict[str, Any]) -> dict[str, Any]:
    report = helm_python.lint(wanted["chart"], strict=True)
    with helm_python.Chart.load(wanted["chart"]) as chart:
        answers = {name: rendered(chart, case) for name, case in wanted["cases"].items()}
    return {**answers, "": [*report["errors"], *_warnings(report)]}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)  # noqa: T201 - the answer


def _warnings(report: dict[str, Any]) -> list[str]:
    return [message["error"] for message in report["messages"] if message["severity"] > 1]


if __name__ == "__main__":
    main()
