"""An issuer of tokens for tests with several callers: settings for a site, and the headers of each user."""

import time
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.jwk import RSAKey
from tests.contract.key_server import KeyServer, public_jwk

DOMAIN = "lab.example.org"
AUDIENCE = "https://script-runner.example.org"
KEY_ID = "current"


class Issuer:
    """Publishes its key on loopback while it is entered, and signs tokens with it."""

    def __init__(self) -> None:
        key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        self._signing = RSAKey.import_key(key)
        self._keys = KeyServer(public_jwk(key, KEY_ID))

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a server that believes it."""
        return {
            "AUTH_PROVIDER": "auth0",
            "AUTH0_DOMAIN": DOMAIN,
            "AUTH0_API_AUDIENCE": AUDIENCE,
            "AUTH0_JWKS_URL": self._keys.url,
        }

    def headers(self, user: str) -> dict[str, str]:
        now = int(time.time())
        claims = {"iss": f"https://{DOMAIN}/", "aud": AUDIENCE, "sub": user, "iat": now - 60, "exp": now + 3600}
        return {"Authorization": f"Bearer {jwt.encode({'alg': 'RS256', 'kid': KEY_ID}, claims, self._signing)}"}

    def __enter__(self) -> Self:
        self._keys.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keys.__exit__(kind, error, trace)
