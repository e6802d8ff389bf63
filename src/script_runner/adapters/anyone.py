"""AUTH_PROVIDER=none: whoever can reach the server may use it, and all of them are one caller."""

from collections.abc import Mapping, Sequence

from script_runner.ports import ANONYMOUS, AuthProvider, Identity


class Anyone:
    """Lets every request in and keeps all tasks under one name."""

    async def identify(self, authorization: Sequence[str]) -> Identity:  # noqa: ARG002 - the port's signature
        return ANONYMOUS


def provider(environment: Mapping[str, str]) -> AuthProvider:  # noqa: ARG001 - the entry point's signature
    """The provider; it has no settings."""
    return Anyone()
