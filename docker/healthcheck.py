#!/opt/script-runner/bin/python
"""Says whether the server or worker of this container is well, by its exit code: the HEALTHCHECK of the image."""

import os
import socket
import sys
from collections.abc import Mapping

SECONDS = 4.0
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is looked up, not bound

Address = tuple[str, int]


def addresses(environment: Mapping[str, str]) -> list[Address]:
    """Where this container may answer: the port of the API, and the one of metrics, which workers have too."""
    port = environment.get("SCRIPT_RUNNER_PORT") or environment.get("PORT") or "8000"
    metrics = environment.get("SCRIPT_RUNNER_METRICS")
    listeners = [(environment.get("SCRIPT_RUNNER_HOST") or "", port)]
    if metrics:
        host, _, metrics_port = metrics.rpartition(":")
        listeners.append((host.strip("[]"), metrics_port))
    return [(ANY_ADDRESS.get(host, host), int(port)) for host, port in listeners]


def status(address: Address) -> int | None:
    """The status of GET /health there (RFC 9112); None if nobody listens, 0 if what came is no answer in time."""
    try:
        connection = socket.create_connection(address, timeout=SECONDS)
    except ConnectionRefusedError:
        return None
    except OSError:
        return 0
    try:
        with connection:
            connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            words = connection.recv(64).split(b" ", 2)
            return int(words[1]) if words[0].startswith(b"HTTP/1.") else 0
    except (OSError, ValueError, IndexError):
        return 0


def is_well(statuses: list[int | None]) -> bool:
    """Whether somebody answers, and everybody who listens answers well."""
    answers = [found for found in statuses if found is not None]
    return bool(answers) and all(found == 200 for found in answers)  # noqa: PLR2004 - OK


if __name__ == "__main__":
    sys.exit(0 if is_well([status(address) for address in addresses(os.environ)]) else 1)
