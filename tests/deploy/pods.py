"""The pods of the rendered chart as processes on this machine: their commands, variables, files and probes.

What a cluster gives is stood in for: names of Services are loopback ports, Secrets a dictionary, volumes folders.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from tests.deploy.charts import Rendered, container
from tests.end_to_end.processes import PATIENCE_SECONDS, Program
from tests.servers import HOST, free_port, redis_binary, valkey_binary

Secrets = Mapping[str, Mapping[str, str]]


class Pod(Program):
    """One container, running."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, *, ports: Mapping[str, int]) -> None:
        super().__init__(process, log)
        self.ports = ports


class Machine:
    """Where pods run, as if it were a cluster; all of them end with it."""

    def __init__(self, folder: Path, chart: Rendered, secrets: Secrets) -> None:
        self.folder = folder
        self._chart = chart
        self._secrets = secrets
        self._pods: dict[str, Pod] = {}
        self._bin = folder / "bin"
        self._bin.mkdir()
        (self._bin / "valkey-server").symlink_to(valkey_binary() or "")
        (self._bin / "valkey-cli").symlink_to(str(redis_binary()).replace("redis-server", "redis-cli"))
        self._stand_ins = {
            name: {port["name"]: free_port() for port in container(pod).get("ports", ())}
            for name, pod in chart.pods.items()
        }

    def start(self, name: str) -> Pod:
        """Start the pod of a component, as its manifest says."""
        home = self.folder / name
        home.mkdir()
        process, log = self._spawn(name, home)
        self._pods[name] = Pod(process, log, ports=self._stand_ins[name])
        return self._pods[name]

    def probe(self, name: str, kind: str) -> int | bool:
        """What a probe of a running pod finds: the answer's status (0: none), or whether its command succeeds."""
        probe = container(self._chart.pods[name])[f"{kind}Probe"]
        if "exec" in probe:
            command = [self._local(word, name) for word in probe["exec"]["command"]]
            environment = self._environment(name)
            return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
        asked = probe["httpGet"]
        try:
            return httpx.get(f"http://{HOST}:{self._stand_ins[name][asked['port']]}{asked['path']}").status_code
        except httpx.TransportError:
            return 0

    def run(self, name: str) -> "subprocess.CompletedProcess[str]":
        """Run a pod to its end."""
        home = self.folder / name
        home.mkdir()
        return subprocess.run(
            self._command(name, home),
            env=self._environment(name),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def secret(self, reference: Mapping[str, str]) -> str:
        """What a reference of a manifest refers to."""
        return self._secrets[reference["name"]][reference["key"]]

    def address(self, service: str, port: int) -> tuple[str, int]:
        """Where the Service of that name and port is on this machine."""
        found = self._chart.one("Service", service)["spec"]
        (target,) = [each["targetPort"] for each in found["ports"] if each["port"] == port]
        return HOST, self._stand_ins[found["selector"]["app.kubernetes.io/component"]][target]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pod in self._pods.values():
            with contextlib.suppress(ProcessLookupError):
                pod.kill()

    def _spawn(self, name: str, home: Path) -> tuple["subprocess.Popen[bytes]", Path]:
        log = home / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(name, home),
                cwd=home,
                env=self._environment(name),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return process, log

    def _command(self, name: str, home: Path) -> list[str]:
        for volume in self._chart.pods[name]["spec"].get("volumes", ()):
            if "configMap" in volume:
                content = self._chart.one("ConfigMap", volume["configMap"]["name"])["data"]
                for item in volume["configMap"]["items"]:
                    (home / item["path"]).write_text(content[item["key"]])
        said = container(self._chart.pods[name])
        return [self._local(word, name) for word in (*said.get("command", ()), *said.get("args", ()))]

    def _environment(self, name: str) -> dict[str, str]:
        found = {"PATH": f"{self._bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for each in container(self._chart.pods[name]).get("env", ()):
            if "value" in each:
                found[each["name"]] = self._local(each["value"], name)
            else:
                found[each["name"]] = self.secret(each["valueFrom"]["secretKeyRef"])
        if "SCRIPT_RUNNER_PORT" in found:
            found |= {"SCRIPT_RUNNER_PORT": str(self._stand_ins[name]["http"]), "SCRIPT_RUNNER_HOST": HOST}
        return found

    def _local(self, text: str, name: str) -> str:
        """A text of a manifest with this machine's ports and folders in the place of the cluster's."""
        home, own = self.folder / name, self._stand_ins[name]
        for service in self._chart.of_kind("Service"):
            title = service["metadata"]["name"]
            for port in service["spec"]["ports"]:
                host, number = self.address(title, port["port"])
                text = text.replace(f"//{title}:{port['port']}", f"//{host}:{number}")
        exact: dict[str, Any] = {"/tmp": home, "0.0.0.0:9090": f"{HOST}:{own.get('metrics')}"}
        inner = {
            "/etc/script-runner/config": str(home),
            "/srv/artifacts": str(self.folder / "artifacts"),
            "port 6379": f"port {own.get('valkey')}",
            "bind * -::*": f"bind {HOST}",
            "dir /data": f"dir {home}",
            "valkey-cli ": f"valkey-cli -p {own.get('valkey')} ",
        }
        for there, here in inner.items():
            text = text.replace(there, here)
        return str(exact.get(text, text))
