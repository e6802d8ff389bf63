"""Examines the configuration, this machine, Redis and the store: gathers the facts, of which doctor judges."""

import asyncio
import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from script_runner import doctor
from script_runner.adapters.redis.examination import examine
from script_runner.command import names
from script_runner.config import Settings, default_data_folder, script_environment
from script_runner.doctor import Finding, Space, Verdict
from script_runner.errors import Code, Error
from script_runner.spec import Spec
from script_runner.wiring import checking, working
from script_runner.wiring.parts import auth_provider, is_loopback, required_redis_url

STORE_SETTINGS = "look at SCRIPT_RUNNER_STORE and its credentials; script-runner does not start with these"
STORE_ACCESS = "let servers and workers reach it, and write, read and remove there"


def diagnosis(settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    """What is well and what is not, of the configuration, this machine, Redis and the store."""
    spec, findings = _examined_config(settings, environment)
    findings += _examined_auth(settings, environment)
    findings += _examined_redis(settings)
    findings += _examined_store(settings)
    findings.append(doctor.of_space("run folder", _space(Path((spec and spec.command_rundir) or settings.rundir))))
    concurrency = settings.concurrency or working.cores()
    limits = doctor.Limits(
        open_files=_hard_limit(resource.RLIMIT_NOFILE),
        processes=_hard_limit(resource.RLIMIT_NPROC),
        files_needed=working.descriptors_of(concurrency),
        scripts=concurrency,
    )
    return [*findings, *doctor.of_limits(limits)]


def _examined_config(settings: Settings, environment: Mapping[str, str]) -> tuple[Spec | None, list[Finding]]:
    path = settings.config
    try:
        spec = checking.load(settings)
    except Error as error:
        mistakes = "; ".join(f"{problem.name}: {problem.problem}" for problem in error.problems)
        advice = "mend the file; script-runner check says all that is wrong, line by line"
        return None, [doctor.wrong("configuration", f"{error.message} {mistakes}".strip(), advice)]
    findings = [doctor.ok("configuration", f"{path} can be read, its fingerprint is {spec.fingerprint}")]
    program = spec.command[0].templates[0].source
    found = shutil.which(program, path=script_environment(environment, spec).get("PATH", os.defpath))
    if found:
        findings.append(doctor.ok("program", f"{program} is {found}"))
    for caution in checking.cautions(spec):
        advice = "where workers run, the image or machine must have it"
        findings.append(doctor.wrong("program", caution, advice))
    for name in _missing_files(spec):
        sentence = f"the file {name!r} of the command is not in {Path.cwd()}"
        findings.append(doctor.warning("program", sentence, "start where it lies, or name its whole path"))
    return spec, findings


def _missing_files(spec: Spec) -> list[str]:
    """Further fixed arguments that look like a script of its own, and name no file."""
    words = [part.templates[0].source for part in spec.command[1:] if not part.is_group and not names([part])]
    known = checking.missing_script(spec)
    endings = checking.SCRIPT_ENDINGS
    return [word for word in words if word != known and Path(word).suffix in endings and not Path(word).exists()]


def _examined_auth(settings: Settings, environment: Mapping[str, str]) -> list[Finding]:
    try:
        word, _ = auth_provider(settings, environment)
    except Error as error:
        return [
            doctor.wrong(
                "auth", error.message, "set AUTH_PROVIDER and the variables of its provider (docs/auth.md)"
            )
        ]
    if word == "none" and not is_loopback(settings.host):
        sentence = f"whoever reaches {settings.host} may use this server (AUTH_PROVIDER=none)"
        return [doctor.warning("auth", sentence, "set another AUTH_PROVIDER, or let only those reach it who may")]
    return [doctor.ok("auth", f"AUTH_PROVIDER is {word}")]


def _examined_redis(settings: Settings) -> list[Finding]:
    if settings.redis_address is None:
        return [
            doctor.ok("redis", "none is configured: script-runner up starts its own; serve and worker need one")
        ]
    try:
        facts = examine(required_redis_url(settings), settings.namespace)
    except Error as error:
        sentence, _, advice = error.message.rstrip(".").partition(": ")
        return [doctor.wrong("redis", sentence, advice)]
    return list(doctor.of_redis(facts, replicas_wanted=settings.redis_replicas))


def _examined_store(settings: Settings) -> list[Finding]:
    folder = None
    findings = []
    if settings.store_url is None:
        sentence = "none is configured: script-runner up keeps files in its data folder; serve and worker need one"
        findings.append(doctor.ok("store", sentence))
        folder = default_data_folder(Path(settings.config), os.environ)
    else:
        findings.append(_probed(settings))
        if settings.store_url.startswith("file:") and findings[0].verdict is Verdict.OK:
            folder = Path(unquote(urlsplit(settings.store_url).path))
    return findings if folder is None else [*findings, doctor.of_space("data folder", _space(folder))]


def _probed(settings: Settings) -> Finding:
    try:
        asyncio.run(checking.probe_store(settings))
    except Error as error:
        advice = STORE_SETTINGS if error.code is Code.INVALID_CONFIG else STORE_ACCESS
        return doctor.wrong("store", error.message, advice)
    return doctor.ok("store", "a file was written, read back and removed")


def _space(folder: Path) -> Space:
    """What is left where a folder is, or will be."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    found = os.statvfs(there)
    return Space(str(folder), found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def _hard_limit(kind: int) -> int | None:
    limit = resource.getrlimit(kind)[1]
    return None if limit == resource.RLIM_INFINITY else limit
