"""Reads the configuration; says before a start what is wrong with it, settings and stores; explains a request."""

import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from script_runner import command, inputs
from script_runner.config import Settings, read_spec, script_environment
from script_runner.errors import Code, Error
from script_runner.inputs import Request
from script_runner.spec import Spec
from script_runner.wiring.parts import artifact_store, auth_provider, is_loopback, required_redis_url

SHELLS = ("sh", "bash", "dash", "ksh", "zsh")
INTERPRETER = re.compile(r"(python|ruby|perl)[0-9.]*|Rscript|node|julia|" + "|".join(SHELLS))
SCRIPT_ENDINGS = (".py", ".R", ".r", ".sh", ".pl", ".rb", ".js", ".jl", ".m", ".sas", ".do")
"""What a file that somebody wrote is called, in contrast to an argument that only looks like a file."""


def load(settings: Settings) -> Spec:
    """The configuration; Error(INVALID_CONFIG) with all that is wrong."""
    spec = read_spec(Path(settings.config), rundir=settings.rundir)
    spec.fingerprint  # noqa: B018 - found and kept while what writes it is loaded
    return spec


def cautions(spec: Spec) -> list[str]:
    """What would make runs fail on this machine, in sentences."""
    program = spec.command[0].templates[0]
    found = []
    if not program.names and shutil.which(program.source) is None:
        found.append(f"command[0]: the program {program.source!r} is not found on this machine")
    if (script := missing_script(spec)) is not None:
        found.append(f"command: the script {script!r} is not in {Path.cwd()}")
    found += [f"command[{number}]: {problem}" for number, problem in _shell_code(spec)]
    if spec.command_rundir_base is not None and not Path(spec.command_rundir_base).is_dir():
        found.append(f"command_rundir_base: the folder {spec.command_rundir_base!r} is not there")
    return found


def missing_script(spec: Spec) -> str | None:
    """The file that an interpreter is to run, if it is not there; None where it is, or cannot be told."""
    if not INTERPRETER.fullmatch(Path(spec.command[0].templates[0].source).name):
        return None
    for part in spec.command[1:]:
        word = part.templates[0].source
        if part.is_group or command.names([part]) or re.fullmatch("-[a-zA-Z]*[cem]", word):
            return None
        if not word.startswith("-"):
            is_missing = Path(word).suffix in SCRIPT_ENDINGS and not Path(word).exists()
            return word if is_missing else None
    return None


def _shell_code(spec: Spec) -> Iterator[tuple[int, str]]:
    """Values that the configuration itself puts into the text of a shell's ``-c``."""
    inputs_by_name = {wanted.env_var_name for wanted in spec.inputs.all}
    words = [part.templates[0] for part in spec.command]
    if Path(words[0].source).name not in SHELLS:
        return
    for number, (option, code) in enumerate(pairwise(words), start=1):
        held = inputs_by_name.intersection(code.names)
        if re.fullmatch("-[a-z]*c", option.source) and held:
            name = min(held)
            problem = f'${name} would become shell code; write "$${name}" to let the shell read the variable'
            yield number, problem


def explain(
    settings: Settings,
    spec: Spec,
    *,
    path: str,
    query: Sequence[tuple[str, str]],
    body: bytes | None,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The exact argv of a request and what its environment has; Error says what is wrong with the request."""
    arguments = inputs.bind(spec, Request(path=path, query=tuple(query), body=body or b""))
    parent = Path(spec.command_rundir or settings.rundir).absolute()
    values = command.values(spec, arguments, run_folder=f"{parent}/results-XXXXXXXX", task_id="TASK-ID")
    inherited = script_environment(environment, spec)
    return {
        "argv": list(command.render(spec.command, values)),
        "environment": command.environment({}, values),
        "inherited": sorted(set(inherited) - set(values)),
        "working_directory": str(Path.cwd()),
    }


def require_stores(settings: Settings) -> None:
    """Raise Error(INVALID_CONFIG) if Redis or the artifact store are not named, or cannot be what they are."""
    required_redis_url(settings)
    artifact_store(settings)


def wrong_settings(settings: Settings, environment: Mapping[str, str]) -> list[Error]:
    """All that is wrong with what is set in the environment; what is not set may come by option."""
    checks: list[Callable[[], object]] = [lambda: auth_provider(settings, environment)]
    checks += [lambda: required_redis_url(settings)] if settings.redis_url else []
    checks += [lambda: artifact_store(settings)] if settings.store_url else []
    found = []
    for check in checks:
        try:
            check()
        except Error as error:
            found.append(error)
    return found


def apart(settings: Settings) -> str | None:
    """Why a folder as the store will not do when Redis is on another machine; None if it may do."""
    if not (settings.store_url or "").startswith("file:"):
        return None
    away = [host for host in _redis_hosts(settings.redis_url or "") if not _is_here(host)]
    if not away:
        return None
    return (
        f"the artifact store is a folder of this machine ({settings.store_url}) and Redis is on {away[0]}: "
        "what a worker keeps on one machine cannot be read by a server on another, unless that folder is shared; "
        "share it (a network file system, a volume), or set SCRIPT_RUNNER_STORE to s3://, az:// or gs://"
    )


def _redis_hosts(url: str) -> list[str]:
    """The hosts that the URL of a Redis names; none for a socket of this machine."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return []
    addresses = parts.netloc.rpartition("@")[2].split(",")
    return [host.strip("[]") for address in addresses if (host := re.sub(r":\d*$", "", address))]


def _is_here(host: str) -> bool:
    return is_loopback(host) or host.lower() == socket.gethostname().lower()


async def probe_store(settings: Settings) -> None:
    """Write a file into the artifact store, read it back and remove it; Error says what cannot be done."""
    artifacts = artifact_store(settings)
    task_id, content = str(uuid.uuid4()), os.urandom(32)
    await artifacts.save(f"{task_id}/1/0", [content])
    try:
        kept = b"".join([piece async for piece in artifacts.read(f"{task_id}/1/0")])
    finally:
        await artifacts.remove(task_id)
    if kept != content:
        raise Error(Code.UNAVAILABLE, "The artifact store gave back other bytes than were written.")
