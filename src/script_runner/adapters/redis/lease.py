"""A worker's lease, which must not wait for its event loop."""

from script_runner.adapters.redis.connection import (
    FORMAT,
    Explained,
    connect_blocking,
    prefix_of,
    sentinels,
    source_of,
)
from script_runner.adapters.redis.records import milliseconds
from script_runner.ports import Unwatched


class RedisLease:
    """A worker's lease in Redis, over a blocking connection of its own."""

    def __init__(self, url: str, namespace: str) -> None:
        self._client = connect_blocking(url)
        self._prefix = prefix_of(namespace)
        self._renew = self._client.register_script(source_of("renew"))

    def renew(
        self, worker: str, *, seconds: float, slots: int = 1, configuration: str = "", version: str = ""
    ) -> bool:
        arguments = [FORMAT, worker, milliseconds(seconds), slots, configuration, version]
        with Explained(Unwatched()):
            return bool(self._renew(keys=[self._prefix], args=arguments))

    def close(self) -> None:
        self._client.close()
        for sentinel in sentinels(self._client):
            sentinel.close()
