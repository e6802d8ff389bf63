"""Every auth provider against one contract, and auth0 against real keys, real HTTP and hostile tokens."""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.key_server import KeyServer, base64url, public_jwk

from script_runner.adapters import auth0
from script_runner.errors import Code, Error
from script_runner.ports import ANONYMOUS, AuthProvider, Identity

DOMAIN = "tenant.example.org"
AUDIENCE = "https://scripts.example.org"
NOW = 1_800_000_000

CURRENT = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


# Tokens are put together by hand, so that the library under test does not also write what it reads.


def compact(header: Any, payload: Any, sign: Callable[[bytes], bytes]) -> str:
    """A compact JWS (RFC 7515); header and payload are JSON values, or bytes taken as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(base64url(part) for part in parts)
    return f"{signed}.{base64url(sign(signed.encode()))}"


def rs256(key: rsa.RSAPrivateKey = CURRENT) -> Callable[[bytes], bytes]:
    return lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def public_pem() -> bytes:
    return CURRENT.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def header(**members: Any) -> dict[str, Any]:
    """The header of a good token; ``members`` overrule, None leaves one out."""
    members = {"alg": "RS256", "typ": "JWT", "kid": "current", **members}
    return {name: value for name, value in members.items() if value is not None}


def claims(**members: Any) -> dict[str, Any]:
    """The claims of a good token; ``members`` overrule, None leaves one out."""
    members = {
        "iss": f"https://{DOMAIN}/",
        "aud": AUDIENCE,
        "sub": "auth0|ada",
        "iat": NOW - 60,
        "exp": NOW + 3600,
        **members,
    }
    return {name: value for name, value in members.items() if value is not None}


def token(key: rsa.RSAPrivateKey = CURRENT, key_id: str = "current", **members: Any) -> str:
    return compact(header(kid=key_id), claims(**members), rs256(key))


@dataclass
class Clock:
    """A monotonic clock that moves when told to."""

    seconds: float = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Auth0:
    """The provider under test, the server it gets its keys from, and its clock."""

    server: KeyServer
    url: str = ""
    timeout_seconds: float = 10
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        where = self.url or self.server.url
        keys = auth0.KeySet(where, clock=self.clock, timeout_seconds=self.timeout_seconds)
        tenant = auth0.Settings(domain=DOMAIN, audience=AUDIENCE, jwks_url=where)
        self.provider = auth0.Auth0(tenant, keys, now=lambda: NOW)

    async def ask(self, *tokens: str) -> list[Identity | Code]:
        """What each of these bearer tokens comes to, one after the other."""
        return [await outcome(self.provider, [f"Bearer {each}"]) for each in tokens]


async def outcome(provider: AuthProvider, authorization: Sequence[str]) -> Identity | Code:
    try:
        return await provider.identify(authorization)
    except Error as error:
        return error.code


ADA = Identity(owner="auth0|ada")


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with KeyServer(public_jwk(CURRENT, "current")) as server:
        yield server


@pytest.fixture(scope="module")
def steady() -> Iterator[Auth0]:
    """A provider with healthy keys that no test changes."""
    with KeyServer(public_jwk(CURRENT, "current")) as server:
        yield Auth0(server)


# Every provider, found as wiring finds it.


@dataclass
class Case:
    """A provider as its entry point makes it, and headers that it accepts."""

    provider: AuthProvider
    accepted: Sequence[str]


@pytest.fixture(params=["none", "auth0"])
def case(request: pytest.FixtureRequest, server: KeyServer) -> Case:
    (entry_point,) = entry_points(group="script_runner.auth", name=request.param)
    provider = entry_point.load()(
        {"AUTH0_DOMAIN": DOMAIN, "AUTH0_API_AUDIENCE": AUDIENCE, "AUTH0_JWKS_URL": server.url}
    )
    now = int(time.time())
    return Case(provider, [f"Bearer {token(iat=now - 60, exp=now + 3600)}"])


def test_an_accepted_caller_has_a_name(case: Case) -> None:
    """Whoever is let in has an owner's name that is not empty, the same one each time."""

    async def twice() -> list[Identity | Code]:
        return [await outcome(case.provider, case.accepted) for _ in range(2)]

    first, second = asyncio.run(twice())

    assert isinstance(first, Identity)
    assert first.owner
    assert first == second


def test_a_provider_serves_any_event_loop(case: Case) -> None:
    """A provider made before any loop runs works in a uvloop and in a stdlib loop after it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        in_uvloop = runner.run(outcome(case.provider, case.accepted))
    in_stdlib = asyncio.run(outcome(case.provider, case.accepted))

    assert isinstance(in_uvloop, Identity)
    assert in_stdlib == in_uvloop


@pytest.mark.parametrize(
    "authorization", [[], [""], ["Bearer"], ["Basic eDp5"], ["Bearer x", "Bearer y"], ["\x00"]]
)
def test_a_provider_lets_in_or_refuses(case: Case, authorization: list[str]) -> None:
    """Without good headers a provider lets in without a name of its own or refuses, and does nothing else."""
    assert asyncio.run(outcome(case.provider, authorization)) in (ANONYMOUS, Code.UNAUTHENTICATED)


def test_none_takes_everyone_for_one() -> None:
    """AUTH_PROVIDER=none asks for nothing and has one owner for all."""
    (entry_point,) = entry_points(group="script_runner.auth", name="none")

    assert asyncio.run(outcome(entry_point.load()({}), [])) == ANONYMOUS


# Settings


GOOD_SETTINGS = {"AUTH0_DOMAIN": DOMAIN, "AUTH0_API_AUDIENCE": AUDIENCE}


@pytest.mark.parametrize(
    "domain",
    ["a", "tenant.eu.auth0.com", "TENANT.example.org", "127.0.0.1", "localhost:8443", "xn--bcher-kva.example:1"],
)
def test_a_bare_host_is_a_domain(domain: str) -> None:
    """A host name with or without a port is taken, and makes the issuer."""
    made = auth0.provider({**GOOD_SETTINGS, "AUTH0_DOMAIN": domain})

    assert isinstance(made, auth0.Auth0)
    assert made.settings.issuer == f"https://{domain}/"
    assert made.settings.jwks_url == f"https://{domain}/.well-known/jwks.json"


@pytest.mark.parametrize(
    "domain",
    [
        "",
        " ",
        "https://tenant.example.org",
        "tenant.example.org/",
        "tenant.example.org\n",
        " tenant.example.org",
        "a b",
        "user@host",
        "host:",
        "host:0",
        "host:65536",
        "host:\u0661",
        "host:80:80",
        "-a.example",
        "a..b",
        ".a",
        "a?b",
        "a#b",
        "bücher.example",
        "a." * 127 + "aa",
    ],
)
def test_anything_else_is_no_domain(domain: str) -> None:
    """A scheme, a slash, a space, a bad port, nothing at all: refused at load, by the variable's name."""
    with pytest.raises(Error) as caught:
        auth0.provider({**GOOD_SETTINGS, "AUTH0_DOMAIN": domain})

    assert caught.value.code is Code.INVALID_CONFIG
    assert [problem.name for problem in caught.value.problems] == ["AUTH0_DOMAIN"]


def test_all_bad_settings_are_named_at_once() -> None:
    """Every missing and bad variable is in the one error, in its sentence too."""
    with pytest.raises(Error) as caught:
        auth0.provider({"AUTH0_JWKS_URL": "ftp://127.0.0.1/"})

    names = [problem.name for problem in caught.value.problems]
    assert names == ["AUTH0_DOMAIN", "AUTH0_API_AUDIENCE", "AUTH0_JWKS_URL"]
    assert all(name in caught.value.message for name in names)


def test_white_space_around_the_audience_is_refused() -> None:
    """An audience with a line's end would match no token, so the start says so."""
    with pytest.raises(Error, match="AUTH0_API_AUDIENCE"):
        auth0.provider({**GOOD_SETTINGS, "AUTH0_API_AUDIENCE": f"{AUDIENCE}\n"})


@pytest.mark.parametrize(
    "url",
    [
        "https://keys.example.org/jwks",
        "http://127.0.0.1:80/",
        "http://127.9.9.9/jwks",
        "http://[::1]:8080/jwks",
        "http://localhost/jwks",
        "HTTP://LOCALHOST:1/",
    ],
)
def test_keys_come_by_https_or_from_this_machine(url: str) -> None:
    """AUTH0_JWKS_URL may be any https address, and http on loopback; the issuer stays the domain's."""
    made = auth0.provider({**GOOD_SETTINGS, "AUTH0_JWKS_URL": url})

    assert isinstance(made, auth0.Auth0)
    assert made.settings.jwks_url == url
    assert made.settings.issuer == f"https://{DOMAIN}/"


@pytest.mark.parametrize(
    "url",
    [
        "http://keys.example.org/",
        "http://127.0.0.1.example.org/",
        "http://localhost.example.org/",
        "http://127.1/",
        "http://10.0.0.1/",
        "http://[::2]/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://127.0.0.1@example.org/",
        "http://127.0.0.1\\@example.org/",
        "http://example.org#@127.0.0.1/",
        "https://name:word@example.org/",
        "file:///etc/passwd",
        "//127.0.0.1/",
        "127.0.0.1",
        "https://",
        "http://",
        "http://[::1",
        " ",
    ],
)
def test_no_other_address_gives_keys(url: str) -> None:
    """Plain http that could leave the machine, and what is no plain address, is refused at load."""
    with pytest.raises(Error) as caught:
        auth0.provider({**GOOD_SETTINGS, "AUTH0_JWKS_URL": url})

    assert [problem.name for problem in caught.value.problems] == ["AUTH0_JWKS_URL"]
    assert "word" not in caught.value.message


def test_the_settings_of_a_sign_in_page_are_kept() -> None:
    """The three names that only a page needs are optional and kept as they are."""
    page = {
        "AUTH0_CLIENT_ID": "client",
        "AUTH0_AUTHORIZATION_URL": "https://tenant.example.org/authorize",
        "AUTH0_TOKEN_URL": "",
    }
    made = auth0.provider({**GOOD_SETTINGS, **page})

    assert isinstance(made, auth0.Auth0)
    assert made.settings.client_id == "client"
    assert made.settings.authorization_url == "https://tenant.example.org/authorize"
    assert made.settings.token_url is None


# Good tokens


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(f"Bearer {token()}", id="plain"),
        pytest.param(f"bearer {token()}", id="the scheme's case does not matter"),
        pytest.param(f" Bearer   {token()} ", id="spaces around"),
        pytest.param(f"Bearer {token(aud=['https://elsewhere.example', AUDIENCE])}", id="one of two audiences"),
        pytest.param(f"Bearer {token(nbf=NOW + 30, iat=NOW + 30)}", id="a clock 30 s ahead"),
        pytest.param(f"Bearer {token(iat=None)}", id="no issue time"),
        pytest.param(f"Bearer {token(exp=NOW + 0.5)}", id="good for another half second"),
        pytest.param(f"Bearer {token(permissions=['x' * 8_000])}", id="long"),
        pytest.param(
            f"Bearer {compact(header(typ='at+jwt', other=[1]), claims(), rs256())}", id="other header words"
        ),
        pytest.param(f"Bearer {compact(header(x5t='x' * 2_000), claims(), rs256())}", id="long header"),
    ],
)
def test_a_good_token_is_its_subject(steady: Auth0, authorization: str) -> None:
    """A token of the tenant for this API is accepted, and its subject is who asks."""
    assert asyncio.run(outcome(steady.provider, [authorization])) == ADA


# Hostile tokens

DEEP = b"[" * 5_000

HOSTILE_TOKENS = {
    "empty": "",
    "a word": "x",
    "one part": base64url(b"{}"),
    "two parts": token().rsplit(".", 1)[0],
    "four parts": f"{token()}.AAAA",
    "five parts (JWE)": ".".join(["e30"] * 5),
    "empty parts": "..",
    "two tokens": f"{token()} {token()}",
    "a list of tokens": f"{token()},{token()}",
    "a line's end": f"{token()}\n",
    "NUL": f"{token()}\x00",
    "not ASCII": f"{token()}é",
    "a lone surrogate": "a.b.\udc80",
    "bad base64": "a.b.c",
    "base64, not base64url": token().replace("-", "+").replace("_", "/") + "==",
    "header is not UTF-8": compact(b"\xff\xfe\xfd{", claims(), rs256()),
    "header is not JSON": compact(b"{", claims(), rs256()),
    "header is a list": compact(["alg", "kid"], claims(), rs256()),
    "header is a text": compact("alg", claims(), rs256()),
    "header is null": compact(None, claims(), rs256()),
    "header is deep": compact(DEEP, claims(), rs256()),
    "header has a deep member": compact(
        b'{"alg":"RS256","kid":"current","x":' + DEEP + b"]" * 5_000 + b"}", claims(), rs256()
    ),
    "payload is not UTF-8": compact(header(), b"\xff\xfe\xfd{", rs256()),
    "payload is not JSON": compact(header(), b"{", rs256()),
    "payload is a list": compact(header(), [claims()], rs256()),
    "payload is null": compact(header(), None, rs256()),
    "payload is deep": compact(header(), DEEP, rs256()),
    "payload has a number of 5,000 digits": compact(header(), b'{"exp":' + b"9" * 5_000 + b"}", rs256()),
    "too long": token(permissions=["x" * 13_000]),
    "no algorithm": compact(header(alg=None), claims(), rs256()),
    "alg none, no signature": compact(header(alg="none"), claims(), lambda _: b""),
    "alg none, good signature": compact(header(alg="none"), claims(), rs256()),
    "alg NONE": compact(header(alg="NONE"), claims(), lambda _: b""),
    "alg in small letters": compact(header(alg="rs256"), claims(), rs256()),
    "alg is a list": compact(header(alg=["RS256"]), claims(), rs256()),
    "HS256 with the public key as secret": compact(
        header(alg="HS256"), claims(), lambda data: hmac.digest(public_pem(), data, hashlib.sha256)
    ),
    "RS384": compact(
        header(alg="RS384"), claims(), lambda data: CURRENT.sign(data, padding.PKCS1v15(), hashes.SHA384())
    ),
    "PS256": compact(
        header(alg="PS256"),
        claims(),
        lambda data: CURRENT.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()),
    ),
    "RS256 over SHA-1": compact(
        header(),
        claims(),
        lambda data: CURRENT.sign(data, padding.PKCS1v15(), hashes.SHA1()),  # noqa: S303 - hostile
    ),
    "no signature": token().rsplit(".", 1)[0] + ".",
    "signature of another token": f"{token(sub='eve').rsplit('.', 1)[0]}.{token().rsplit('.', 1)[1]}",
    "signature of another key": token(OTHER),
    "signature of nulls": compact(header(), claims(), lambda _: bytes(256)),
    "signature too long": compact(header(), claims(), lambda _: bytes(2_000)),
    "unknown key": token(OTHER, "other"),
    "no key id": compact(header(kid=None), claims(), rs256()),
    "empty key id": compact(header(kid=""), claims(), rs256()),
    "key id is a number": compact(header(kid=1), claims(), rs256()),
    "key id is an object": compact(header(kid={"current": 1}), claims(), rs256()),
    "key in the header": compact(header(jwk=public_jwk(OTHER, "current")), claims(), rs256(OTHER)),
    "crit": compact(header(crit=["exp"], exp=NOW + 60), claims(), rs256()),
    "crit is empty": compact(header(crit=[]), claims(), rs256()),
    "crit b64 (RFC 7797)": compact(header(crit=["b64"], b64=False), claims(), rs256()),
    "crit is no list": compact(header(crit=7), claims(), rs256()),
    "other issuer": token(iss="https://evil.example/"),
    "issuer without its slash": token(iss=f"https://{DOMAIN}"),
    "issuer by http": token(iss=f"http://{DOMAIN}/"),
    "issuer in a list": token(iss=[f"https://{DOMAIN}/"]),
    "no issuer": token(iss=None),
    "other audience": token(aud="https://elsewhere.example"),
    "audience is longer": token(aud=f"{AUDIENCE}/"),
    "audience is shorter": token(aud=AUDIENCE[:-1]),
    "none of the audiences": token(aud=["https://elsewhere.example", "x"]),
    "audiences are none": token(aud=[]),
    "audience in a list of a list": token(aud=[[AUDIENCE]]),
    "audience beside a number": token(aud=[AUDIENCE, 1]),
    "audience is an object": token(aud={AUDIENCE: 1}),
    "no audience": token(aud=None),
    "no expiry": token(exp=None),
    "expired just now": token(exp=NOW),
    "expired long ago": token(exp=1),
    "expiry is negative": token(exp=-(10**12)),
    "expiry is a text": token(exp=str(NOW + 3600)),
    "expiry is true": token(exp=True),
    "expiry is huge": token(exp=10**400),
    "expiry is in milliseconds": token(exp=(NOW + 3600) * 1000),
    "expiry is infinite": token(exp=float("inf")),
    "expiry is not a number": token(exp=float("nan")),
    "expiry is a list": token(exp=[NOW + 3600]),
    "not valid yet": token(nbf=NOW + 31),
    "valid from a text": token(nbf="0"),
    "valid from true": token(nbf=True),
    "issued in the future": token(iat=NOW + 31),
    "issued at a text": token(iat=str(NOW)),
    "no subject": token(sub=None),
    "empty subject": token(sub=""),
    "blank subject": token(sub="  "),
    "subject is a number": token(sub=1),
    "subject is a list": token(sub=["auth0|ada"]),
    "subject with a line's end": token(sub="auth0|ada\n"),
    "subject is a lone surrogate": token(sub="\ud800"),
}


@pytest.mark.parametrize("hostile", HOSTILE_TOKENS.values(), ids=HOSTILE_TOKENS.keys())
def test_a_hostile_token_is_refused(steady: Auth0, hostile: str) -> None:
    """Whatever is wrong with a token, the answer is UNAUTHENTICATED in one sentence that repeats none of it."""
    with pytest.raises(Error) as caught:
        asyncio.run(steady.provider.identify([f"Bearer {hostile}"]))

    assert caught.value.code is Code.UNAUTHENTICATED
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message
    assert not [part for part in hostile.split(".") if len(part) > 8 and part in caught.value.message]


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param([], id="none"),
        pytest.param([f"Bearer {token()}"] * 2, id="twice the same"),
        pytest.param(["Basic eDp5", f"Bearer {token()}"], id="another scheme beside it"),
        pytest.param([token()], id="no scheme"),
        pytest.param([f"Basic {token()}"], id="Basic"),
        pytest.param([f"DPoP {token()}"], id="DPoP"),
        pytest.param([f"Bearer{token()}"], id="no space"),
        pytest.param([f"Bearer\t{token()}"], id="a tab"),
        pytest.param([f"Bearer: {token()}"], id="a colon"),
        pytest.param([""], id="empty"),
        pytest.param(["Bearer"], id="no token"),
        pytest.param(["Bearer "], id="a space for a token"),
    ],
)
def test_headers_that_are_not_one_bearer_token_are_refused(steady: Auth0, authorization: list[str]) -> None:
    """No header, two headers, another scheme or no token: UNAUTHENTICATED, even beside a good token."""
    assert asyncio.run(outcome(steady.provider, authorization)) is Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (token(exp=1), "expired"),
        (token(aud="x"), "audience"),
        (token(aud=None, sub=None), "aud,sub"),
        (token(iss="x"), "issuer"),
        (token(nbf=NOW + 31), "not valid yet"),
        (token(OTHER), "signature"),
        (token(OTHER, "other"), "does not publish"),
        (compact(header(alg="HS256"), claims(), rs256()), "RS256"),
        (compact(header(kid=None), claims(), rs256()), "kid"),
        (compact(header(kid=""), claims(), rs256()), "kid"),
        (compact(header(), DEEP, rs256()), "JSON object"),
        (compact(header(kid="of 8,192 bits"), claims(), lambda _: bytes(1024)), "does not publish"),
        (compact(header(crit=["exp"]), claims(), rs256()), "crit"),
        (token(permissions=["x" * 13_000]), "longer than"),
    ],
)
def test_the_sentence_says_what_is_wrong(steady: Auth0, bad: str, word: str) -> None:
    """Whoever holds a bad token learns which kind of mistake it is."""
    with pytest.raises(Error, match=word):
        asyncio.run(steady.provider.identify([f"Bearer {bad}"]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
words_of_tokens = st.sampled_from(
    ["alg", "kid", "crit", "b64", "typ", "jwk", "iss", "aud", "exp", "sub", "nbf", "iat"]
)
values_of_tokens = json_values | st.sampled_from(
    ["RS256", "current", "none", AUDIENCE, f"https://{DOMAIN}/", NOW + 60]
)
objects = st.dictionaries(words_of_tokens, values_of_tokens)


@settings(deadline=None)
@given(authorization=st.lists(st.text() | st.text().map("Bearer {}".format), max_size=3))
def test_no_text_is_let_in(steady: Auth0, authorization: list[str]) -> None:
    """Arbitrary texts as Authorization headers never give anything but UNAUTHENTICATED."""
    assert asyncio.run(outcome(steady.provider, authorization)) is Code.UNAUTHENTICATED


@settings(deadline=None)
@given(header=objects, payload=objects | json_values, signature=st.binary(max_size=300))
def test_no_forged_token_is_let_in(steady: Auth0, header: Any, payload: Any, signature: bytes) -> None:
    """A token of arbitrary header, claims and signature never gives anything but UNAUTHENTICATED."""
    forged = compact(header, payload, lambda _: signature)

    assert asyncio.run(steady.ask(forged)) == [Code.UNAUTHENTICATED]


@settings(deadline=None)
@given(payload=objects.filter(lambda members: members.get("iss") != f"https://{DOMAIN}/") | json_values)
def test_no_signed_nonsense_is_let_in(steady: Auth0, payload: Any) -> None:
    """Even a signed token of arbitrary claims gives UNAUTHENTICATED and never another failure."""
    assert asyncio.run(steady.ask(compact(header(), payload, rs256()))) == [Code.UNAUTHENTICATED]


# Keys


def test_keys_are_fetched_once(server: KeyServer) -> None:
    """Known keys serve any number of requests with one fetch."""
    tested = Auth0(server)

    assert asyncio.run(tested.ask(*[token()] * 20)) == [ADA] * 20
    assert server.requests == 1


def test_no_keys_are_fetched_for_what_is_no_token(server: KeyServer) -> None:
    """Garbage and wrong algorithms are refused without a word to the key server."""
    tested = Auth0(server)
    asyncio.run(tested.ask("x", "a.b.c", compact(header(alg="none"), claims(), rs256())))

    assert server.requests == 0


def test_addresses_in_a_token_are_not_visited(server: KeyServer) -> None:
    """A token that says where its keys are (jku, x5u) is not believed."""
    with KeyServer(public_jwk(OTHER, "other")) as evil:
        forged = compact(header(kid="other", jku=evil.url, x5u=evil.url), claims(), rs256(OTHER))

        assert asyncio.run(Auth0(server).ask(forged)) == [Code.UNAUTHENTICATED]
        assert evil.requests == 0


def test_a_new_key_is_found(server: KeyServer) -> None:
    """A key that appears while the service runs works once half a minute has passed since the last fetch."""
    tested = Auth0(server)
    rotated = token(OTHER, "next")

    async def rotate() -> list[Identity | Code]:
        before = await tested.ask(token(), rotated)
        server.publish([public_jwk(CURRENT, "current"), public_jwk(OTHER, "next")])
        tested.clock.seconds += 29
        early = await tested.ask(rotated)
        tested.clock.seconds += 1
        return before + early + await tested.ask(rotated, token())

    refused = Code.UNAUTHENTICATED
    assert asyncio.run(rotate()) == [ADA, refused, refused, ADA, ADA]
    assert server.requests == 2


def test_a_withdrawn_key_stops_working(server: KeyServer) -> None:
    """A key that the issuer no longer publishes is refused ten minutes after the last fetch."""
    tested = Auth0(server)

    async def withdraw() -> list[Identity | Code]:
        before = await tested.ask(token())
        server.publish([public_jwk(OTHER, "next")])
        tested.clock.seconds += 599
        early = await tested.ask(token())
        tested.clock.seconds += 1
        return before + early + await tested.ask(token(), token(OTHER, "next"))

    assert asyncio.run(withdraw()) == [ADA, ADA, Code.UNAUTHENTICATED, ADA]


def test_unknown_keys_cannot_drive_the_key_server(server: KeyServer) -> None:
    """However many unknown keys are named, the key server is asked once in thirty seconds."""
    tested = Auth0(server)

    async def flood() -> None:
        for second in range(300):
            tested.clock.seconds = 1_000.0 + second
            await tested.ask(*[token(OTHER, f"unknown-{second}")] * 2)

    asyncio.run(flood())

    assert server.requests == 10


def test_many_callers_share_one_fetch(server: KeyServer) -> None:
    """Fifty callers who arrive before the first key does cause one fetch, and all are let in."""
    tested = Auth0(server)
    server.gate.clear()

    async def crowd() -> list[list[Identity | Code]]:
        asked = asyncio.gather(*(tested.ask(token()) for _ in range(50)))
        assert await asyncio.to_thread(server.arrived.wait, 10)
        server.gate.set()
        return await asked

    assert asyncio.run(crowd()) == [[ADA]] * 50
    assert server.requests == 1


def test_a_known_key_does_not_wait_for_a_fetch(server: KeyServer) -> None:
    """While an unknown key or a routine refresh is being fetched, known keys are answered at once."""
    tested = Auth0(server)

    async def during_a_fetch(who_waits: str) -> list[Identity | Code]:
        server.arrived.clear()
        server.gate.clear()
        waiting = asyncio.create_task(tested.ask(who_waits))
        assert await asyncio.to_thread(server.arrived.wait, 10)
        answers = await tested.ask(token())
        assert not waiting.done()
        server.gate.set()
        return answers + await waiting

    async def story() -> list[list[Identity | Code]]:
        await tested.ask(token())
        tested.clock.seconds += 30
        for_an_unknown_key = await during_a_fetch(token(OTHER, "unknown"))
        tested.clock.seconds += 600
        return [for_an_unknown_key, await during_a_fetch(token())]

    assert asyncio.run(story()) == [[ADA, Code.UNAUTHENTICATED], [ADA, ADA]]
    assert server.requests == 3


def test_one_fetch_at_a_time(server: KeyServer) -> None:
    """However long a fetch takes, no second one begins beside it."""
    tested = Auth0(server)
    server.gate.clear()

    async def patience() -> list[list[Identity | Code]]:
        first = asyncio.create_task(tested.ask(token()))
        assert await asyncio.to_thread(server.arrived.wait, 10)
        tested.clock.seconds += 3_600
        second = asyncio.create_task(tested.ask(token()))
        await asyncio.sleep(0)
        server.gate.set()
        return [await first, await second]

    assert asyncio.run(patience()) == [[ADA], [ADA]]
    assert server.requests == 1


def test_a_caller_who_leaves_does_not_end_the_fetch(server: KeyServer) -> None:
    """When the caller who started a fetch goes away, the others still get its keys."""
    tested = Auth0(server)
    server.gate.clear()

    async def leave() -> list[Identity | Code]:
        first = asyncio.create_task(tested.ask(token()))
        assert await asyncio.to_thread(server.arrived.wait, 10)
        second = asyncio.create_task(tested.ask(token()))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        server.gate.set()
        return await second

    assert asyncio.run(leave()) == [ADA]
    assert server.requests == 1


def test_keys_that_come_late_are_still_found() -> None:
    """A service whose key server is away at the start answers UNAVAILABLE, and works soon after it is up."""
    with KeyServer() as gone:
        port = gone.port
    tested = Auth0(gone)

    async def story() -> list[Identity | Code]:
        answers = await tested.ask(token(), token())
        with KeyServer(public_jwk(CURRENT, "current"), port=port):
            tested.clock.seconds += 4
            answers += await tested.ask(token())
            tested.clock.seconds += 1
            return answers + await tested.ask(token())

    unavailable = Code.UNAVAILABLE
    assert asyncio.run(story()) == [unavailable, unavailable, unavailable, ADA]


def test_a_silent_key_server_is_given_up(server: KeyServer) -> None:
    """A key server that takes a request and never answers it ends in UNAVAILABLE."""
    tested = Auth0(server, timeout_seconds=0.1)
    server.gate.clear()

    assert asyncio.run(tested.ask(token())) == [Code.UNAVAILABLE]


def test_a_key_server_that_drips_is_given_up(server: KeyServer) -> None:
    """A key server that sends a byte now and then cannot hold its callers longer than the time limit."""
    server.spaces = 250

    assert asyncio.run(Auth0(server, timeout_seconds=0.3).ask(token())) == [Code.UNAVAILABLE]


BROKEN_ANSWERS = {
    "an error page": (500, b"<html>oops</html>", {}),
    "keys with an error": (503, json.dumps({"keys": [public_jwk(CURRENT, "current")]}).encode(), {}),
    "a page": (200, b"<!doctype html><title>Sign in</title>", {}),
    "nothing": (200, b"", {}),
    "garbage": (200, bytes(range(256)), {}),
    "a list": (200, b"[]", {}),
    "no keys": (200, b"{}", {}),
    "keys in a text": (200, b'{"keys": "current"}', {}),
    "deep JSON": (200, b"[" * 100_000, {}),
    "too much": (
        200,
        json.dumps({"keys": [public_jwk(CURRENT, "current")], "more": "x" * 256 * 1024}).encode(),
        {},
    ),
    "said to be compressed": (200, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("answer", BROKEN_ANSWERS.values(), ids=BROKEN_ANSWERS.keys())
def test_a_broken_key_server_lets_nobody_in(
    server: KeyServer, answer: tuple[int, bytes, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that is no key set is UNAVAILABLE, with one line in the log for whoever keeps the service."""
    status, body, headers = answer
    server.answer(status, body, **headers)

    with caplog.at_level(logging.WARNING, logger="script_runner"):
        answers = asyncio.run(Auth0(server).ask(token()))

    assert answers == [Code.UNAVAILABLE]
    assert [record.getMessage()[:16] for record in caplog.records] == ["key set not read"]


def test_a_redirect_is_not_followed(server: KeyServer) -> None:
    """Keys are taken from the configured address and no other."""
    with KeyServer(public_jwk(CURRENT, "current")) as elsewhere:
        server.answer(302, b"", Location=elsewhere.url)

        assert asyncio.run(Auth0(server).ask(token())) == [Code.UNAVAILABLE]
        assert elsewhere.requests == 0


def test_no_proxy_is_used_on_loopback(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain HTTP stays on this machine, whatever proxy the environment names."""
    with KeyServer(public_jwk(OTHER, "current")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)

        assert asyncio.run(Auth0(server).ask(token())) == [ADA]
        assert proxy.requests == 0


def test_known_keys_outlive_the_key_server_for_a_day(server: KeyServer) -> None:
    """With the key server broken, the last keys are good for a day; then nobody is let in."""
    tested = Auth0(server)

    async def outage() -> list[Identity | Code]:
        answers = await tested.ask(token())
        server.answer(500, b"")
        tested.clock.seconds += 86_399
        answers += await tested.ask(token(), token(OTHER, "unknown"))
        tested.clock.seconds += 1
        answers += await tested.ask(token())
        server.publish([public_jwk(CURRENT, "current")])
        tested.clock.seconds += 30
        return answers + await tested.ask(token())

    assert asyncio.run(outage()) == [ADA, ADA, Code.UNAVAILABLE, Code.UNAVAILABLE, ADA]


def test_a_broken_key_server_is_not_asked_at_every_request(server: KeyServer) -> None:
    """Old keys and a broken key server: one try in thirty seconds, not one a request."""
    tested = Auth0(server)

    async def outage() -> None:
        await tested.ask(token())
        server.answer(500, b"")
        for second in range(600, 900):
            tested.clock.seconds = 1_000.0 + second
            await tested.ask(token())

    asyncio.run(outage())

    assert server.requests == 11


SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - must be refused

UNUSABLE_KEYS = {
    "for encryption": public_jwk(CURRENT, "current", use="enc"),
    "for RS512": public_jwk(CURRENT, "current", alg="RS512"),
    "for RSA-OAEP": public_jwk(CURRENT, "current", alg="RSA-OAEP"),
    "of another type": public_jwk(CURRENT, "current", kty="EC"),
    "without a type": public_jwk(CURRENT, "current", kty=None),
    "symmetric": {"kty": "oct", "kid": "current", "k": base64url(public_pem())},
    "without an id": public_jwk(CURRENT, "current", kid=None),
    "id is a number": public_jwk(CURRENT, "current", kid=1),
    "without a modulus": public_jwk(CURRENT, "current", n=None),
    "modulus is a number": public_jwk(CURRENT, "current", n=7),
    "modulus is bad base64": public_jwk(CURRENT, "current", n="="),
    "modulus is empty": public_jwk(CURRENT, "current", n=""),
    "exponent is 1": public_jwk(CURRENT, "current", e="AQ"),
    "null": None,
    "a list": [1],
    "a text": "current",
}


@pytest.mark.parametrize("jwk", UNUSABLE_KEYS.values(), ids=UNUSABLE_KEYS.keys())
def test_an_unusable_key_is_ignored(server: KeyServer, jwk: Any) -> None:
    """A key that is not for RS256 signatures is as good as none, and the good ones beside it still work."""
    server.publish([jwk, public_jwk(OTHER, "other")])

    answers = asyncio.run(Auth0(server).ask(token(), token(OTHER, "other")))

    assert answers == [Code.UNAUTHENTICATED, ADA]


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_a_small_key_is_ignored(server: KeyServer) -> None:
    """A key under 2,048 bits cannot sign anybody in."""
    server.publish([public_jwk(SMALL, "small"), public_jwk(CURRENT, "current")])

    answers = asyncio.run(Auth0(server).ask(token(SMALL, "small"), token()))

    assert answers == [Code.UNAUTHENTICATED, ADA]


def test_optional_members_of_a_key_may_be_left_out(server: KeyServer) -> None:
    """An issuer that publishes neither use nor alg (RFC 7517 has both optional) is understood."""
    server.publish([public_jwk(CURRENT, "current", use=None, alg=None)])

    assert asyncio.run(Auth0(server).ask(token())) == [ADA]


def test_no_usable_key_at_all_is_not_the_callers_fault(server: KeyServer) -> None:
    """A key set that withdraws every key lets nobody in, and says UNAVAILABLE."""
    tested = Auth0(server)

    async def withdraw() -> list[Identity | Code]:
        answers = await tested.ask(token())
        server.publish([])
        tested.clock.seconds += 600
        return answers + await tested.ask(token())

    assert asyncio.run(withdraw()) == [ADA, Code.UNAVAILABLE]
