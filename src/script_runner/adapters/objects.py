"""Keeps artifacts in an object store: ``s3://``, ``az://`` and ``gs://``, by way of obstore."""

import asyncio
import contextlib
import hashlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from script_runner.errors import Code, Error, Problem
from script_runner.ports import Label, Saved

PIECE_BYTES: Final = 256 * 1024
PART_BYTES: Final = 8 * 1024 * 1024
"""How much of a file goes up at once; S3 takes 10,000 parts, so the largest file has 78 GiB."""

PARTS_AT_ONCE: Final = 2
RESUMES: Final = 3
"""How often a reading that gets no further is taken up again."""

SECONDS_BETWEEN_CHECKS: Final = 30
"""How long a store that took a file is believed to take more."""

CHECK_SECONDS: Final = 5

MARK: Final = "upload"
"""Under which name the metadata of an object say which upload made it."""

_TROUBLE = (BaseError, OSError, ValueError)
"""What obstore raises."""

_log = logging.getLogger("script_runner.objects")

_Store = S3Store | AzureStore | GCSStore


@dataclass(frozen=True, slots=True)
class Place:
    """What the URL of a store says: ``scheme://bucket/prefix?options``."""

    scheme: str
    bucket: str
    prefix: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials that were given to the runner alone; both None: those of the environment or the platform."""

    key_id: str | None = None
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Patience:
    """How long a request may be silent, how often and for how long it is repeated."""

    silence_seconds: int
    retries: int
    seconds: int


SAVING: Final = _Patience(silence_seconds=60, retries=10, seconds=180)
"""What a script made in hours is not given up because the store is away for a minute."""

READING: Final = _Patience(silence_seconds=20, retries=3, seconds=30)
ASKING: Final = _Patience(silence_seconds=4, retries=1, seconds=5)


class ObjectArtifacts:
    """``task/run/number`` is the object ``prefix/task/run/number``; it appears whole or not at all."""

    def __init__(self, url: str, keys: Keys, environment: Mapping[str, str]) -> None:
        place = parse(url)
        check_keys(place.scheme, keys)
        self._bucket = place.bucket
        try:
            self._saving = _opened(place, keys, environment, SAVING)
            self._reading = _opened(place, keys, environment, READING)
            self._asking = _opened(place, keys, environment, ASKING)
        except _TROUBLE as error:  # its text may show a part of a secret
            raise _wrong(_CANNOT_OPEN.get(place.scheme, "")) from error.with_traceback(None)
        self._works_until = 0.0

    async def save(self, key: str, chunks: Iterable[bytes], label: Label | None = None) -> Saved:
        mark = secrets.token_hex(8)
        attributes = {MARK: mark}
        if label:
            attributes |= {"Content-Type": label.media_type, "Content-Disposition": label.disposition}
        writer = obstore.open_writer_async(
            self._saving, key, attributes=attributes, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
        )
        source = _Source(chunks)
        try:
            while chunk := await asyncio.to_thread(source.next):
                with self._said("written"):
                    await writer.write(chunk)
            try:
                await writer.close()
            except _TROUBLE as error:
                if not await self._was_made_by(key, mark):
                    raise self._error(error, "written") from None
        except BaseException as error:
            with contextlib.suppress(*_TROUBLE):  # an upload that stays begun is never visible
                await writer.__aexit__(type(error), error, None)
            raise
        return Saved(source.size, source.digest.hexdigest())

    async def read(self, key: str, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        if stop is not None and stop <= start:
            await self._size(key)
        position, tag, failures = start, None, 0
        while stop is None or position < stop:
            try:
                # obstore takes a body up again by itself, for as long as its patience lasts; this goes beyond that
                answer = await obstore.get_async(self._reading, key, options=_options(position, stop, tag))
                if tag not in (None, answer.meta["e_tag"]):  # not every store knows If-Match
                    raise PreconditionError
                tag = answer.meta["e_tag"]
                async for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                    position, failures = position + len(piece), 0
                    yield bytes(piece)
            except _TROUBLE as error:
                if tag is None and stop != (fitting := await self._fitting(key, start, stop, error)):
                    stop = fitting
                    continue
                failures += 1
                if tag is None or failures > RESUMES or not isinstance(error, GenericError):
                    raise self._error(error, "read") from None
                await asyncio.sleep(0.1 * 2**failures)
            else:
                return

    async def url_for(self, key: str, *, seconds: int) -> str | None:
        try:
            return str(await obstore.sign_async(self._asking, "GET", key, timedelta(seconds=seconds)))
        except _TROUBLE as error:
            _log.warning(
                "no URL for a download, it goes through the server: %s", self._error(error, "read").message
            )
            return None

    async def remove(self, prefix: str) -> None:
        with self._said("emptied"):
            while paths := await self._first_paths(prefix):
                # where another removes the same, its objects are gone in between: look again
                with contextlib.suppress(FileNotFoundError):
                    await obstore.delete_async(self._saving, paths)

    async def check(self) -> None:
        if time.monotonic() < self._works_until:
            return
        path = f"check-{secrets.token_hex(8)}"
        with self._said("used"):
            async with asyncio.timeout(CHECK_SECONDS):
                await self._try(path)
        self._works_until = time.monotonic() + SECONDS_BETWEEN_CHECKS

    async def _try(self, path: str) -> None:
        with self._said("written"):
            await obstore.put_async(self._asking, path, b"x", use_multipart=False)
        with self._said("emptied"):
            await obstore.delete_async(self._asking, path)
        with self._said("listed"):
            await obstore.list(self._asking, prefix=path).collect_async()

    async def _first_paths(self, prefix: str) -> list[str]:
        """The first page of what is below this prefix: ``abc`` is not the prefix of ``abcd/1``."""
        async for page in obstore.list(self._saving, prefix=prefix):
            return [entry["path"] for entry in page]
        return []

    async def _size(self, key: str) -> int:
        with self._said("read"):
            return int((await obstore.head_async(self._reading, key))["size"])

    async def _fitting(self, key: str, start: int, stop: int | None, error: Exception) -> int | None:
        """Where a refused range must stop: some stores refuse one beyond the end, each in other words."""
        if not isinstance(error, GenericError) or (start == 0 and stop is None):
            return stop
        size = await self._size(key)
        return size if stop is None else min(size, stop)

    async def _was_made_by(self, key: str, mark: str) -> bool:
        """Whether an upload succeeded whose last answer was lost: asked again, a store knows nothing of it."""
        try:
            answer = await obstore.get_async(self._reading, key, options={"head": True})
        except _TROUBLE:
            return False
        return answer.attributes.get(MARK) == mark

    @contextlib.contextmanager
    def _said(self, verb: str) -> Iterator[None]:
        try:
            yield
        except _TROUBLE as error:
            raise self._error(error, verb) from None

    def _error(self, error: Exception, verb: str) -> Error:
        """What went wrong, in a sentence without a name, an address or a secret."""
        code, reason = _reason(error, self._bucket, verb)
        if code is Code.NOT_FOUND:
            return Error(code, "The file is no longer kept.")
        return Error(code, f"The artifact store cannot be {verb}: {reason}.")


class _Source:
    """The chunks of a file, counted and hashed, to be read in another thread."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.digest = hashlib.sha256()
        self.size = 0

    def next(self) -> bytes:
        """The next bytes; none at the end."""
        for chunk in self._chunks:
            if chunk:
                self.digest.update(chunk)
                self.size += len(chunk)
                return chunk
        return b""


def _options(start: int, stop: int | None, tag: str | None) -> Any:
    wanted: dict[str, Any] = {"if_match": tag} if tag else {}
    if stop is not None:
        wanted["range"] = (start, stop)
    elif start:
        wanted["range"] = {"offset": start}
    return wanted


# What went wrong


_NO_CREDENTIALS = (
    "there are no credentials for it; set SCRIPT_RUNNER_STORE_SECRET (and SCRIPT_RUNNER_STORE_KEY_ID), "
    "the variables of its cloud, or give this machine a role"
)
_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("NoSuchBucket", "ContainerNotFound"), "its bucket or container does not exist"),
    **dict.fromkeys(
        (
            "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AuthorizationFailure",
            "AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation",
        ),
        "it does not accept the credentials",
    ),
    **dict.fromkeys(
        ("AccessDenied", "AuthorizationPermissionMismatch", "InsufficientAccountPermissions"),
        "the credentials do not allow it",
    ),
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "incorrectly configured region"),
        "its bucket is in another region; set AWS_REGION, or region=… in the URL",
    ),
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "InvalidCertificate": "its certificate is not trusted; name the authority's file with ca=… in the URL",
}  # fmt: skip
"""What the words of the stores, and of the library, mean."""


def _reason(error: Exception, bucket: str, verb: str) -> tuple[Code, str]:
    text = str(error)
    asked = re.search(r"Error performing [A-Z]+ (\S+)", text)
    is_store = asked is None or f"/{bucket}/" in f"{asked[1]}/".replace("?", "/") or f"//{bucket}." in asked[1]
    if not is_store or "token re" in text:  # … request, … response
        return Code.UNAVAILABLE, _NO_CREDENTIALS
    for word, reason in _REASONS.items():
        if word in text:
            return Code.UNAVAILABLE, reason
    match error:
        case FileNotFoundError() if verb == "read":
            return Code.NOT_FOUND, ""
        case PermissionDeniedError():
            return Code.UNAVAILABLE, "the credentials do not allow it"
        case UnauthenticatedError():
            return Code.UNAVAILABLE, "it does not accept the credentials"
        case PreconditionError():
            return Code.UNAVAILABLE, "the file was replaced meanwhile"
    status = re.search(r"non-2xx status code: (\d{3})", text)
    return Code.UNAVAILABLE, f"it answers with status {status[1]}" if status else "it does not answer"


# Opening


_CANNOT_OPEN = {
    "s3": "The credentials or options of the S3 store cannot be used",
    "az": "The account, its key (base64) or the options of the Azure store cannot be used",
    "gs": "The credentials of the Google store cannot be used: expected the JSON of a service account's key, once",
}


def _opened(place: Place, keys: Keys, environment: Mapping[str, str], patience: _Patience) -> _Store:
    common: dict[str, Any] = {
        "prefix": place.prefix or None,
        "retry_config": {"max_retries": patience.retries, "retry_timeout": timedelta(seconds=patience.seconds)},
        "client_options": {
            "connect_timeout": "4s",
            "read_timeout": f"{patience.silence_seconds}s",
            "timeout": "1day",  # of a whole download, as long as bytes come
            "user_agent": "script-runner",
        },
    }
    if "ca" in place.options:
        common["client_options"]["root_certificate"] = _certificate(place.options["ca"])
    match place.scheme:
        case "s3":
            return _s3(place, keys, environment, common)
        case "az":
            return _azure(place, keys, environment, common)
        case _:
            config: dict[str, Any] = {"service_account_key": keys.secret} if keys.secret else {}
            return GCSStore(place.bucket, config=config, **common)  # type: ignore[arg-type]


def _s3(place: Place, keys: Keys, environment: Mapping[str, str], common: dict[str, Any]) -> S3Store:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = _endpoint(place, environment, names, common)
    is_virtual = place.options.get("style", "path" if endpoint or "." in place.bucket else "virtual") == "virtual"
    config: dict[str, Any] = {"virtual_hosted_style_request": is_virtual}
    if endpoint:
        address = f"{endpoint.scheme}://{f'{place.bucket}.' if is_virtual else ''}{endpoint.netloc}"
        config |= {"endpoint": address, "aws_endpoint_url_s3": address}
    if "region" in place.options:
        config["region"] = place.options["region"]
    if keys.key_id:
        own = {"access_key_id": keys.key_id, "secret_access_key": keys.secret, "token": None, "expires_at": None}
        # by this way, and not as configuration: a session token in the environment would be added to that
        common["credential_provider"] = lambda: own
    return S3Store(place.bucket, config=config, **common)  # type: ignore[arg-type]


def _azure(place: Place, keys: Keys, environment: Mapping[str, str], common: dict[str, Any]) -> AzureStore:
    account = place.options.get("account") or environment.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise _wrong("The URL names no storage account: add ?account=NAME, or set AZURE_STORAGE_ACCOUNT_NAME")
    config: dict[str, Any] = {"account_name": account}
    endpoint = _endpoint(place, environment, ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"), common)
    if endpoint:
        config["endpoint"] = endpoint.geturl()
    if keys.secret:
        config |= {"account_key": keys.secret, "credential_type": "access_key"}
    return AzureStore(place.bucket, config=config, **common)  # type: ignore[arg-type]


def _endpoint(
    place: Place, environment: Mapping[str, str], names: Iterable[str], common: dict[str, Any]
) -> SplitResult | None:
    """The address of a store that is not at its cloud's own; ``http`` is allowed where it says so."""
    candidates = {"endpoint=… in the URL": place.options.get("endpoint")}
    candidates |= {name: environment.get(name) for name in names}
    for name, address in candidates.items():
        if address:
            found = urlsplit(address.rstrip("/"))
            if not re.fullmatch(
                r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?(/[\w.-]+)*", found.geturl()
            ):
                raise _wrong(f"{name} must be an address like https://minio.internal:9000")
            common["client_options"]["allow_http"] = found.scheme == "http"
            return found
    return None


def _certificate(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        raise _wrong(f"The certificate that ca=… names cannot be read: {reason}") from None


# The URL


_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "s3": ("endpoint", "region", "style", "ca"),
    "az": ("account", "endpoint", "ca"),
    "gs": (),
}
_BUCKET = {
    "s3": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "3 to 63 of a-z, 0-9, hyphen and dot"),
    "az": (r"[a-z0-9](-?[a-z0-9]){2,62}", "3 to 63 of a-z, 0-9 and single hyphens"),
    "gs": (r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", "3 to 222 of a-z, 0-9, hyphen, underscore and dot"),
}
"""How each cloud names its buckets or containers."""


def parse(url: str) -> Place:
    """The parts of a store's URL; Error(INVALID_CONFIG) says what is wrong without showing it."""
    try:
        parts = urlsplit(url)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _wrong("The URL cannot be parsed") from None
    scheme = parts.scheme
    pattern, expected = _BUCKET[scheme]
    if not re.fullmatch(pattern, parts.netloc) or ".." in parts.netloc:
        raise _wrong(f"The name after {scheme}:// must be that of a bucket or container: {expected}")
    prefix = unquote(parts.path).strip("/")
    if prefix and not re.fullmatch(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]*(/[A-Za-z0-9_=-][A-Za-z0-9_.=-]*)*", prefix):
        raise _wrong("The prefix after the bucket must be words of A-Z, a-z, 0-9, _ . = - between single slashes")
    if parts.fragment or (not prefix and parts.path not in ("", "/")):
        raise _wrong("The URL must be like s3://bucket/prefix?region=eu-central-1")
    for name, value in options:
        _check_option(scheme, name, value)
    if len(dict(options)) < len(options):
        raise _wrong("An option stands twice in the URL")
    return Place(scheme, parts.netloc, prefix, dict(options))


def _check_option(scheme: str, name: str, value: str) -> None:
    known = _OPTIONS[scheme]
    if name not in known:
        said = f"known are {', '.join(known)}" if known else f"{scheme}:// takes none"
        shown = name if re.fullmatch(r"[A-Za-z_-]{1,32}", name) else "?"
        raise _wrong(f"The URL has an unknown option {shown}=: {said}")
    expected = {"style": "path|virtual", "region": "[a-z0-9-]{1,40}", "account": "[a-z0-9]{3,24}"}.get(name, ".+")
    if not re.fullmatch(expected, value, re.DOTALL):
        raise _wrong(f"The option {name}= of the URL must match {expected}")


def check_keys(scheme: str, keys: Keys) -> None:
    """Raise Error(INVALID_CONFIG) unless the runner's own credentials are those that this kind of store takes."""
    if scheme == "s3" and bool(keys.key_id) != bool(keys.secret):
        raise _wrong("SCRIPT_RUNNER_STORE_KEY_ID and SCRIPT_RUNNER_STORE_SECRET must be set together")
    if scheme != "s3" and keys.key_id:
        raise _wrong("SCRIPT_RUNNER_STORE_KEY_ID is for s3:// only; here SCRIPT_RUNNER_STORE_SECRET is enough")


def _wrong(problem: str) -> Error:
    return Error(Code.INVALID_CONFIG, f"{problem}.", (Problem("environment", "SCRIPT_RUNNER_STORE", problem),))
