"""Keeps Amazon ECS from choosing this task when it scales in or deploys, while scripts run in it.

The agent's endpoint beside every container takes the wish (Amazon ECS Developer Guide, "Task scale-in protection
endpoint"). A protection ends by itself after some minutes, so it is renewed; it is given up a little after the end
of the last script, so that a worker with one short script after another asks twice and not twice a script.
"""

import http.client
import json
import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from script_runner.errors import Code, Error, Problem

PATH = "/task-protection/v1/state"
VARIABLE = "ECS_AGENT_URI"
MAX_ANSWER_BYTES = 64 * 1024
TIMEOUT_SECONDS = 5.0

RENEWED_PART = 0.5
"""A protection is renewed when this part of its time has passed."""

_log = logging.getLogger("script_runner.ecs")


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds to wait before a protection is given up, renewed, or asked for again after a failure."""

    release: float = 15.0
    renew: float = 1_800.0
    retry: float = 30.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is wanted since when, what was told last and when, and when that last failed (monotonic seconds)."""

    is_wanted: bool = False
    since: float = 0.0
    is_held: bool = False
    told_at: float = 0.0
    failed_at: float | None = None


def due(now: Standing, pauses: Pauses) -> float | None:
    """When the agent is to be told what is wanted; None if it need not be."""
    if now.is_wanted:
        at = now.told_at + pauses.renew if now.is_held else now.since
    elif now.is_held:
        at = now.since + pauses.release
    else:
        return None
    return at if now.failed_at is None else max(at, now.failed_at + pauses.retry)


class EcsShelter:
    """The protection of the task that this process runs in; it asks from a thread of its own."""

    def __init__(self, agent: str, *, minutes: int, pauses: Pauses | None = None) -> None:
        self._host, self._port, self._path = _parsed(agent)
        self._minutes = minutes
        self._pauses = pauses or Pauses(renew=minutes * 60 * RENEWED_PART)
        self._standing = Standing()
        self._trouble = ""
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._tell_for_ever, name="ecs", daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """As Shelter.hold."""
        self._want(is_wanted=True)

    def release(self) -> None:
        """As Shelter.release."""
        self._want(is_wanted=False)

    def close(self) -> None:
        """Tell the agent nothing more. What it was told ends with the task, or in its time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(TIMEOUT_SECONDS)

    def _want(self, *, is_wanted: bool) -> None:
        with self._changed:
            if self._standing.is_wanted is not is_wanted:
                self._stand(is_wanted=is_wanted, since=time.monotonic())
                self._changed.notify()

    def _stand(self, **changes: Any) -> None:
        self._standing = replace(self._standing, **changes)

    def _tell_for_ever(self) -> None:
        while (is_wanted := self._next_wish()) is not None:
            problem = self._problem_of_telling(is_wanted=is_wanted)
            if problem and problem != self._trouble:
                _log.warning("no scale-in protection from ECS, a script may be cut off: %s", problem)
            self._trouble = problem
            with self._changed:
                now = time.monotonic()
                if problem:
                    self._stand(failed_at=now)
                else:
                    self._stand(is_held=is_wanted, told_at=now, failed_at=None)

    def _next_wish(self) -> bool | None:
        """What to tell, when it is time for it; None when nothing is to be told any more."""
        with self._changed:
            while not self._is_closed:
                at = due(self._standing, self._pauses)
                pause = None if at is None else at - time.monotonic()
                if pause is not None and pause <= 0:
                    return self._standing.is_wanted
                self._changed.wait(pause)
            return None

    def _problem_of_telling(self, *, is_wanted: bool) -> str:
        """Tell the agent; empty, or what it or the way to it has against that."""
        wish: dict[str, Any] = {"ProtectionEnabled": is_wanted}
        if is_wanted:
            wish["ExpiresInMinutes"] = self._minutes
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("PUT", self._path, json.dumps(wish), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return _refusal(answer.status, answer.read(MAX_ANSWER_BYTES))
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()


def _parsed(agent: str) -> tuple[str, int, str]:
    """Host, port and path of the endpoint; Error(INVALID_CONFIG) where the address is none."""
    try:
        parts = urlsplit(agent)
        host, port = parts.hostname, parts.port or http.client.HTTP_PORT
    except ValueError:
        host = None
    if not host or parts.scheme != "http":
        problem = f"got {agent!r}, expected an address as ECS sets it, http://…"
        message = f"{VARIABLE}: {problem}. SCRIPT_RUNNER_ECS_PROTECTION_MINUTES=0 does without."
        raise Error(Code.INVALID_CONFIG, message, (Problem("environment", VARIABLE, problem),))
    return host, port, parts.path.rstrip("/") + PATH


def _refusal(status: int, body: bytes) -> str:
    """What the agent's answer refuses; a refusal by ECS behind it comes in the body (``failure``, ``error``)."""
    try:
        said = json.loads(body)
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    for key in ("failure", "error"):
        if said.get(key):
            return f"HTTP {status}, {json.dumps(said[key])[:300]}"
    return "" if status == http.HTTPStatus.OK else f"HTTP {status}"
