"""Who may ask, and who sees what: a server with auth0 and real keys, and servers that refuse to start."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.jwk import RSAKey
from tests.contract.key_server import KeyServer, public_jwk
from tests.end_to_end.processes import Server, Site, shell_config
from tests.servers import RedisServer

DOMAIN = "lab.example.org"
AUDIENCE = "https://script-runner.example.org"
UNKNOWN = "00000000-0000-4000-8000-000000000000"

Headers = dict[str, str]
HeadersOf = Callable[[str], Headers]


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=2048)


@pytest.fixture(scope="module")
def headers_of(key: rsa.RSAPrivateKey) -> HeadersOf:
    """The headers of a user with a good token."""
    signing = RSAKey.import_key(key)

    def headers(user: str) -> Headers:
        now = int(time.time())
        claims = {"iss": f"https://{DOMAIN}/", "aud": AUDIENCE, "sub": user, "iat": now - 60, "exp": now + 3600}
        return {"Authorization": f"Bearer {jwt.encode({'alg': 'RS256', 'kid': 'current'}, claims, signing)}"}

    return headers


@pytest.fixture(scope="module")
def server(
    key: rsa.RSAPrivateKey, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that takes the tokens of one issuer, and a worker."""
    with (
        KeyServer(public_jwk(key, "current")) as keys,
        Site(
            tmp_path_factory.mktemp("callers"),
            shell_config(),
            SCRIPT_RUNNER_REDIS_URL=redis_server.url,
            AUTH_PROVIDER="auth0",
            AUTH0_DOMAIN=DOMAIN,
            AUTH0_API_AUDIENCE=AUDIENCE,
            AUTH0_JWKS_URL=keys.url,
        ) as site,
    ):
        server = site.serve()
        site.worker()
        yield server


@pytest.fixture(scope="module")
def adas_task(server: Server, headers_of: HeadersOf) -> str:
    """A task of the user ada, with an attachment and a log."""
    answer = server.http.post("/task", json={"code": "echo x | tee $RUNDIR/files/x"}, headers=headers_of("ada"))
    task_id = str(answer.json()["id"])
    while server.http.get(f"/task/{task_id}", headers=headers_of("ada")).json()["status"] == "not-ready":
        time.sleep(0.02)
    return task_id


def routes(task_id: str) -> list[tuple[str, str]]:
    """Every route of one task."""
    return [
        ("GET", f"/task/{task_id}"),
        ("GET", f"/script/{task_id}"),
        ("GET", f"/task/{task_id}/results"),
        ("GET", f"/task/{task_id}/attachments/x"),
        ("HEAD", f"/task/{task_id}/attachments/x"),
        ("GET", f"/task/{task_id}?wait=1"),
        ("GET", f"/task/{task_id}/logs"),
        ("GET", f"/task/{task_id}/events"),
        ("POST", f"/task/{task_id}/cancel"),
        ("DELETE", f"/task/{task_id}"),
    ]


@pytest.mark.parametrize("number", range(len(routes(UNKNOWN))))
def test_a_task_of_somebody_else_is_like_one_that_is_not_there(
    server: Server, headers_of: HeadersOf, adas_task: str, number: int
) -> None:
    """Whatever bob asks about ada's task is answered exactly as for an id that nobody has."""
    method, path = routes(adas_task)[number]
    _, unknown_path = routes(UNKNOWN)[number]

    hers = server.http.request(method, path, headers=headers_of("bob"))
    unknown = server.http.request(method, unknown_path, headers=headers_of("bob"))

    assert hers.status_code == unknown.status_code == 404
    assert hers.content == unknown.content


def test_a_list_holds_the_callers_own_tasks_alone(server: Server, headers_of: HeadersOf, adas_task: str) -> None:
    """Ada's list has her task, bob's has not."""
    hers, his = (server.http.get("/task", headers=headers_of(user)).json()["tasks"] for user in ("ada", "bob"))

    assert adas_task in [task["id"] for task in hers]
    assert adas_task not in [task["id"] for task in his]


def test_the_owner_sees_her_task_whole(server: Server, headers_of: HeadersOf, adas_task: str) -> None:
    """The token of the caller who submitted a task opens its document, rows and file."""
    answers = [
        server.http.get(f"/task/{adas_task}{rest}", headers=headers_of("ada"))
        for rest in ("", "/results", "/attachments/x", "/logs")
    ]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answers[2].text, answers[3].text] == ["x\n", "x\n"]


CLOSED = [
    *routes(UNKNOWN),
    ("GET", "/"),
    ("GET", "/ready"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/docs/docs.js"),
    ("GET", "/task"),
    ("POST", "/task"),
    ("POST", "/task/RUN-7"),
    ("POST", "/script"),
    ("POST", "/script/RUN-7"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize("token", [None, "Bearer garbage", "Basic YWRhOmxvdmVsYWNl"])
def test_every_route_but_health_asks_for_a_token(
    server: Server, method: str, path: str, token: str | None
) -> None:
    """Without a token, or with a bad one: 401, WWW-Authenticate, CORS headers and a problem document."""
    answer = server.http.request(method, path, headers={"Authorization": token} if token else {})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-type"] == "application/problem+json"


def test_health_is_open_to_all(server: Server) -> None:
    """/health asks nobody for a token."""
    assert server.http.get("/health").json()["server"] is True


def test_two_tokens_at_once_are_refused(server: Server, headers_of: HeadersOf) -> None:
    """Two Authorization headers are 401, even if both are good."""
    both = [("Authorization", headers_of(user)["Authorization"]) for user in ("ada", "bob")]

    assert server.http.get("/task", headers=httpx.Headers(both)).status_code == 401


# The start


@pytest.mark.parametrize("command", ["up", "serve"])
def test_an_unknown_word_stops_the_start(tmp_path: Path, command: str) -> None:
    """AUTH_PROVIDER with a word that is not known: exit code 2, and the known words."""
    with Site(tmp_path, shell_config(), AUTH_PROVIDER="auth1", SCRIPT_RUNNER_REDIS_URL="unix:///nothing") as site:
        done = site.run(command, "--port", "0")

    assert done.returncode == 2
    assert all(word in done.stderr for word in ("AUTH_PROVIDER", "'auth1'", "auth0", "none"))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - asked for, and refused
def test_without_a_word_on_auth_a_server_listens_on_loopback_only(tmp_path: Path, host: str) -> None:
    """Asked to listen elsewhere without AUTH_PROVIDER it refuses to start and says which words there are."""
    with Site(tmp_path, shell_config()) as site:
        done = site.run("up", "--port", "0", "--host", host)

    assert done.returncode == 2
    assert all(word in done.stderr for word in ("AUTH_PROVIDER", "auth0", "none"))


def test_auth0_without_its_settings_stops_the_start(tmp_path: Path) -> None:
    """AUTH_PROVIDER=auth0 alone: exit code 2, and the settings that are missing."""
    with Site(tmp_path, shell_config(), AUTH_PROVIDER="auth0") as site:
        done = site.run("up", "--port", "0")

    assert done.returncode == 2
    assert all(word in done.stderr for word in ("AUTH0_DOMAIN", "AUTH0_API_AUDIENCE"))


def test_none_said_outright_is_taken_and_reported(tmp_path: Path) -> None:
    """AUTH_PROVIDER=none starts, and the log warns of it."""
    with Site(tmp_path, shell_config(), AUTH_PROVIDER="none") as site:
        server = site.up()

        server.wait_for_output("AUTH_PROVIDER is none")
