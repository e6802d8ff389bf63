"""AUTH_PROVIDER=auth0: the caller is the subject of an RS256 token that the tenant issued for this API."""

import asyncio
import ipaddress
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
from joserfc import jws, jwt
from joserfc.errors import ClaimError, ExpiredTokenError, InvalidPayloadError, MissingClaimError
from joserfc.jwk import RSAKey
from joserfc.util import base64_to_int

from script_runner.errors import Code, Error, Problem
from script_runner.ports import AuthProvider, Identity

MAX_TOKEN_CHARACTERS = 16 * 1024
MAX_KEY_SET_BYTES = 256 * 1024
MIN_KEY_BITS = 2048
LEEWAY_SECONDS = 30
END_OF_YEAR_9999 = 253_402_300_799

LABEL = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
HOST_AND_PORT = re.compile(rf"(?P<host>{LABEL}(\.{LABEL})*)(:(?P<port>[0-9]{{1,5}}))?")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says about the tenant. The last three only serve a page that signs people in."""

    domain: str
    audience: str
    jwks_url: str
    client_id: str | None = None
    authorization_url: str | None = None
    token_url: str | None = None

    @property
    def issuer(self) -> str:
        return f"https://{self.domain}/"


class KeySet:
    """The issuer's signing keys by key id: fetched on demand, one fetch at a time, a bounded number of times.

    A key that the issuer withdraws stops working after ``refresh_seconds``. While the issuer cannot be
    reached, the keys it gave last are good for ``keep_seconds``.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        timeout_seconds: float = 3,
        retry_seconds: float = 5,
        refetch_seconds: float = 30,
        refresh_seconds: float = 600,
        keep_seconds: float = 86_400,
    ) -> None:
        self._url = httpx.URL(url)
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._refetch_seconds = refetch_seconds
        self._refresh_seconds = refresh_seconds
        self._keep_seconds = keep_seconds
        self._tls = httpx.create_ssl_context()  # once, at the start: it would hold up the loop for each fetch
        self._keys: Mapping[str, RSAKey] = {}
        self._fetched_at = -math.inf
        self._tried_at = -math.inf
        self._last_try_failed = False
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> RSAKey | None:
        """The key of this id, or None when the issuer publishes no such key.

        Raises Error(UNAVAILABLE) when that cannot be told. Who asks for a known key waits for no fetch but
        the one that was started on their own behalf.
        """
        age = self._clock() - self._fetched_at
        if age >= self._keep_seconds:
            self._keys = {}
        is_known = key_id in self._keys
        if is_known and age < self._refresh_seconds:
            return self._keys[key_id]
        if self._may_fetch():
            self._tried_at = self._clock()
            self._fetch = asyncio.create_task(self._refresh())
            await asyncio.shield(self._fetch)  # shielded: a caller who leaves must not spoil it for the others
        elif self._fetch and not self._fetch.done() and not is_known:
            await asyncio.shield(self._fetch)
        if key_id not in self._keys and (self._last_try_failed or not self._keys):
            raise Error(Code.UNAVAILABLE, "The token cannot be checked now: its issuer's keys cannot be read.")
        return self._keys.get(key_id)

    def _may_fetch(self) -> bool:
        if self._fetch and not self._fetch.done():
            return False
        pause = self._refetch_seconds if self._keys else self._retry_seconds
        return self._clock() - self._tried_at >= pause

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                keys = _signing_keys(json.loads(await self._download()))
        except Exception as error:  # noqa: BLE001 - whatever comes instead of a key set, the old keys stay
            self._last_try_failed = True
            logging.getLogger(__name__).warning("key set not read from %s: %r", self._url, error)
        else:
            self._last_try_failed = False
            self._fetched_at = self._clock()
            self._keys = keys

    async def _download(self) -> bytes:
        body = b""
        # Plain HTTP must stay on this machine, so no proxy is taken from the environment for it. Without an
        # encoding the number of bytes read is the number of bytes held.
        async with (
            httpx.AsyncClient(
                verify=self._tls,
                trust_env=self._url.scheme == "https",
                timeout=self._timeout_seconds,
                follow_redirects=False,
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            ) as client,
            client.stream("GET", self._url) as response,
        ):
            if response.status_code != HTTPStatus.OK:
                raise ValueError(f"status {response.status_code}")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_KEY_SET_BYTES:
                    raise ValueError(f"more than {MAX_KEY_SET_BYTES} bytes")
        return body


class Auth0:
    """Takes bearer tokens (RFC 6750) that are JSON Web Tokens (RFC 7519), checked as RFC 8725 advises."""

    def __init__(self, settings: Settings, keys: KeySet, *, now: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._keys = keys
        self._now = now
        self._rules = _TokenRules(algorithms=["RS256"], strict_check_header=False)

    async def identify(self, authorization: Sequence[str]) -> Identity:
        """The token's subject, or Error(UNAUTHENTICATED); Error(UNAVAILABLE) when no key can be had."""
        token = _bearer_token(authorization)
        key = await self._keys.find(self._key_id(token))
        if key is None:
            raise _refused("The token is signed with a key that its issuer does not publish.")
        return Identity(owner=self._subject(self._verified_claims(token, key)))

    def _key_id(self, token: str) -> str:
        try:
            header: object = jws.extract_compact(token.encode(), registry=self._rules).headers()
        except Exception:  # noqa: BLE001 - a hostile token may break the parser in any way
            raise _refused("The token is not a JSON Web Token of three base64url parts.") from None
        match header:
            case {"crit": _}:
                raise _refused("The token demands extensions (crit) that are not supported.")
            case {"alg": "RS256", "kid": str(key_id)} if key_id:
                return key_id
            case {"alg": "RS256"}:
                raise _refused("The token does not name the key (kid) it is signed with.")
            case _:
                raise _refused("The token is not signed with RS256.")

    def _verified_claims(self, token: str, key: RSAKey) -> dict[str, Any]:
        try:
            return jwt.decode(token, key, registry=self._rules).claims
        except (InvalidPayloadError, RecursionError):
            raise _refused("The token's claims are not a JSON object.") from None
        except Exception:  # noqa: BLE001 - as above
            raise _refused("The token's signature is not valid.") from None

    def _subject(self, claims: dict[str, Any]) -> str:
        now = int(self._now())
        registry = jwt.JWTClaimsRegistry(
            now=now,
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self.settings.issuer},
            aud={"essential": True, "value": self.settings.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        try:
            registry.validate(claims)
        except ClaimError as error:
            raise _refused(_sentence(error)) from None
        # The library's leeway would let an expired token live on. The upper bound catches milliseconds.
        if not now < claims["exp"] <= END_OF_YEAR_9999:
            raise _refused("The token has expired, or its expiry (exp) is not in seconds.")
        subject: str = claims["sub"]
        if not subject.strip() or not subject.isprintable():
            raise _refused("The token's subject (sub) is not a name that can be kept.")
        return subject


class _TokenRules(jws.JWSRegistry):
    """The library's own limits are too small for long headers and large keys; the whole token has its limit."""

    max_header_length = MAX_TOKEN_CHARACTERS
    max_payload_length = MAX_TOKEN_CHARACTERS
    max_signature_length = MAX_TOKEN_CHARACTERS


def _refused(sentence: str) -> Error:
    return Error(Code.UNAUTHENTICATED, sentence)


def _bearer_token(authorization: Sequence[str]) -> str:
    if not authorization:
        raise _refused("The request has no Authorization header with a bearer token.")
    if len(authorization) > 1:
        raise _refused("The request has more than one Authorization header.")
    scheme, _, token = authorization[0].strip(" ").partition(" ")
    if scheme.lower() != "bearer":
        raise _refused("The Authorization header is not of the scheme Bearer.")
    token = token.lstrip(" ")
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise _refused(f"The token is longer than {MAX_TOKEN_CHARACTERS} characters.")
    return token


def _sentence(error: ClaimError) -> str:
    match error:
        case ExpiredTokenError():
            return "The token has expired."
        case MissingClaimError():
            return f"The token lacks what must be in it: {error.claim}."
        case ClaimError(claim="iss"):
            return "The token comes from another issuer (iss)."
        case ClaimError(claim="aud"):
            return "The token is meant for another audience (aud)."
        case ClaimError(claim="nbf" | "iat"):
            return f"The token is not valid yet ({error.claim})."
        case _:
            return f"The token's claim {error.claim} is not of the right kind."


def _signing_keys(document: Any) -> dict[str, RSAKey]:
    if not isinstance(document["keys"], list):
        raise TypeError("'keys' is not a list")
    return {str(key.kid): key for key in map(_signing_key, document["keys"]) if key}


def _signing_key(jwk: Any) -> RSAKey | None:
    """The key if it can check RS256 (RFC 7517; RFC 7518 section 3.3 for its size), else None."""
    match jwk:
        case {"kty": "RSA", "kid": str(key_id), "n": str(modulus), "e": str(exponent)} if key_id:
            is_for_signatures = jwk.get("use", "sig") == "sig" and jwk.get("alg", "RS256") == "RS256"
        case _:
            return None
    try:
        if not is_for_signatures or base64_to_int(modulus).bit_length() < MIN_KEY_BITS:
            return None
        return RSAKey.import_key({"kty": "RSA", "kid": key_id, "n": modulus, "e": exponent})
    except Exception:  # noqa: BLE001 - one broken key must not take the others away
        return None


def provider(environment: Mapping[str, str]) -> AuthProvider:
    """The provider for AUTH0_DOMAIN and AUTH0_API_AUDIENCE, or Error(INVALID_CONFIG) with every bad setting."""
    domain = environment.get("AUTH0_DOMAIN", "")
    audience = environment.get("AUTH0_API_AUDIENCE", "")
    jwks_url = environment.get("AUTH0_JWKS_URL") or f"https://{domain}/.well-known/jwks.json"
    found = {
        "AUTH0_DOMAIN": _problem_of_domain(domain),
        "AUTH0_API_AUDIENCE": _problem_of_audience(audience),
        "AUTH0_JWKS_URL": _problem_of_url(environment.get("AUTH0_JWKS_URL", "")),
    }
    problems = tuple(Problem("environment", name, problem) for name, problem in found.items() if problem)
    if problems:
        listed = "; ".join(f"{problem.name} {problem.problem}" for problem in problems)
        raise Error(Code.INVALID_CONFIG, f"AUTH_PROVIDER=auth0 cannot start: {listed}.", problems)
    settings = Settings(
        domain=domain,
        audience=audience,
        jwks_url=jwks_url,
        client_id=environment.get("AUTH0_CLIENT_ID") or None,
        authorization_url=environment.get("AUTH0_AUTHORIZATION_URL") or None,
        token_url=environment.get("AUTH0_TOKEN_URL") or None,
    )
    return Auth0(settings, KeySet(jwks_url))


def _problem_of_domain(domain: str) -> str | None:
    if not domain:
        return "is missing: the tenant's host name, such as example.eu.auth0.com"
    parts = HOST_AND_PORT.fullmatch(domain)
    if parts and len(parts["host"]) < 254 and 0 < int(parts["port"] or 443) < 2**16:  # noqa: PLR2004 - RFC 1035
        return None
    return f"is {domain!r}: expected a bare host name such as example.eu.auth0.com, without scheme or slash"


def _problem_of_audience(audience: str) -> str | None:
    if not audience:
        return "is missing: the identifier of this API at Auth0, such as https://scripts.example.org"
    if audience != audience.strip():
        return f"is {audience!r}: expected no white space around it"
    return None


def _problem_of_url(text: str) -> str | None:
    if not text:
        return None
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return "is not a URL"
    if url.userinfo or url.fragment or not url.host:
        return "is not a URL of a host and a path alone"
    if url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.host)):
        return None
    return f"is {text!r}: expected https://, or http:// on this machine's loopback address"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
