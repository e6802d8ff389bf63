"""One connection for many callers: each gets its own answer, and what is lost is asked again or said in time."""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio
import redis.exceptions
from tests.servers import Proxy, RedisServer, until

from script_runner.adapters.redis.wire import Wire

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 1.0


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Workers run in asyncio, servers in uvloop."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def own_server(redis_binary_path: str) -> Iterator[RedisServer]:
    with RedisServer(redis_binary_path) as server:
        yield server


@contextlib.asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    wire = Wire(client.connection_pool, patience_seconds=PATIENCE_SECONDS)
    try:
        yield wire
    finally:
        await wire.close()
        await client.aclose()


async def connections(server: RedisServer) -> int:
    with contextlib.closing(server.client()) as client:
        return len(client.client_list()) - 1


async def test_each_caller_gets_its_own_answer(own_server: RedisServer) -> None:
    """Many calls at once, small and large, share one connection and keep their answers."""
    texts = [str(number).encode() * (1 + number * number) for number in range(300)]
    async with wire_to(own_server.url) as wire:
        answers = await asyncio.gather(*(wire.call("ECHO", text) for text in texts))

        assert answers == texts
        assert await connections(own_server) == 1


async def test_calls_that_are_made_together_are_sent_together() -> None:
    """While an answer is awaited the calls of one turn of the loop are one piece on the way, in their order."""
    heard, segments = b"", []
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        serving.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while said := await reader.read(1 << 16):
                heard += said
                segments.append(data_segments(writer))
                writer.write(b"+OK\r\n" * said.count(b"*"))
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, wire_to(f"redis://127.0.0.1:{port}") as wire:
        await wire.call("PING")
        before = segments[-1]
        await asyncio.gather(*(wire.call("ECHO", f"<{number}>") for number in range(50)))

    await asyncio.gather(*filter(None, serving))
    assert segments[-1] - before == 2  # what is called first does not wait for others
    assert re.findall(rb"<(\d+)>", heard) == [str(number).encode() for number in range(50)]


def data_segments(writer: asyncio.StreamWriter) -> int:
    """How many segments with data have come over a connection (tcp(7), TCP_INFO; tcpi_data_segs_in)."""
    info = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("I", info, 152)[0])


async def test_an_error_is_its_callers_alone(own_server: RedisServer) -> None:
    """What the server refuses is raised where it was asked; the others are answered."""
    async with wire_to(own_server.url) as wire:
        calls = [wire.call("NONSENSE"), wire.call("ECHO", "x")]
        answers = await asyncio.gather(*calls, return_exceptions=True)

        assert isinstance(answers[0], redis.exceptions.ResponseError)
        assert answers[1] == b"x"


async def test_a_caller_that_goes_takes_no_answer_with_it(own_server: RedisServer) -> None:
    """An answer whose caller has gone is dropped, and those behind it find their callers."""
    async with wire_to(own_server.url) as wire:
        await wire.call("PING")
        gone = asyncio.ensure_future(wire.call("ECHO", "gone"))
        stays = asyncio.ensure_future(wire.call("ECHO", "stays"))
        await asyncio.sleep(0)  # both are on their way
        gone.cancel()

        assert await stays == b"stays"
        assert gone.cancelled()


async def test_a_lost_answer_is_asked_for_again(own_server: RedisServer) -> None:
    """A call whose connection is lost is made once more, by a new connection."""
    with Proxy(own_server.port) as proxy:
        async with wire_to(proxy.url) as wire:
            await wire.call("PING")
            proxy.lose_answers(b"INCR", 1)

            assert await wire.call("INCR", "calls") == 2
            assert proxy.losses_left == 0


async def test_what_is_lost_twice_is_said(own_server: RedisServer) -> None:
    """A call is not made a third time."""
    with Proxy(own_server.port) as proxy:
        async with wire_to(proxy.url) as wire:
            await wire.call("PING")
            proxy.lose_answers(b"INCR", 3)
            with pytest.raises(redis.exceptions.ConnectionError):
                await wire.call("INCR", "calls")

            assert proxy.losses_left == 1


async def test_a_server_that_stands_still_is_given_up_in_time(own_server: RedisServer) -> None:
    """All who wait are told, and the wire works again with the server."""
    async with wire_to(own_server.url) as wire:
        await wire.call("PING")
        own_server.pause()
        answers = await asyncio.gather(*(wire.call("ECHO", "x") for _ in range(9)), return_exceptions=True)
        own_server.resume()

        assert {type(answer) for answer in answers} == {TimeoutError}
        assert await wire.call("ECHO", "y") == b"y"


async def test_a_server_that_comes_back(own_server: RedisServer) -> None:
    """While it is away calls fail; when it is back the same wire works."""
    async with wire_to(own_server.url) as wire:
        await wire.call("SET", "key", "value")
        own_server.kill()
        with pytest.raises(redis.exceptions.ConnectionError):
            await wire.call("GET", "key")
        own_server.start()

        assert await wire.call("GET", "key") == b"value"


async def test_a_master_no_longer(own_server: RedisServer) -> None:
    """A server that takes no more writes is not spoken to on the same connection."""
    async with wire_to(own_server.url) as wire:
        number = await wire.call("CLIENT", "ID")
        with contextlib.closing(own_server.client()) as client:
            client.replicaof("127.0.0.1", "1")
        with pytest.raises(redis.exceptions.ConnectionError):
            await wire.call("SET", "key", "value")

        assert await wire.call("CLIENT", "ID") > number


async def test_a_master_no_longer_as_older_servers_say_it() -> None:
    """Redis 6.2 wraps what a script meets there; that too ends the connection, and the call is made by another."""
    refusal = b"-ERR Error running script (call to f_1): @user_script:4: @user_script: 4: -READONLY You can't.\r\n"
    called: list[asyncio.StreamWriter] = []
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while said := await reader.read(4096):
                if b"EVALSHA" in said:
                    called.append(writer)
                writer.write(refusal if [writer] == called else b"+OK\r\n")
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, wire_to(f"redis://127.0.0.1:{port}") as wire:
        await wire.call("PING")

        assert await wire.call("EVALSHA", "1", 0) == b"OK"

    await asyncio.gather(*filter(None, serving))
    assert len(set(called)) == len(called) == 2


async def test_a_script_that_the_server_does_not_know(own_server: RedisServer) -> None:
    """A script runs whether or not the server has its text."""
    client = redis.asyncio.Redis.from_url(own_server.url, protocol=2)
    script = client.register_script("return {KEYS[1], ARGV[1]}")
    async with wire_to(own_server.url) as wire:
        first = await wire.run(script, "key", 1)
        await client.script_flush()

        assert first == await wire.run(script, "key", 1) == [b"key", b"1"]
    await client.aclose()


async def test_what_nobody_asked_for_is_nobodys_answer() -> None:
    """A connection on which more is said than was asked is given up: the next caller would get that."""
    is_said = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while said := await reader.read(4096):
                is_first_get = b"GET" in said and not is_said.is_set()
                writer.write(b"+mine\r\n" if b"GET" in said else b"+OK\r\n")
                if is_first_get:
                    await asked_for.wait()
                    writer.write(b"+another's\r\n")
                    is_said.set()
        writer.transport.abort()
        ended.set()

    asked_for, ended = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, wire_to(f"redis://127.0.0.1:{port}") as wire:
        assert await wire.call("GET", "1") == b"mine"
        asked_for.set()
        await is_said.wait()
        async with asyncio.timeout(5):
            await ended.wait()
        ended.clear()

        assert await wire.call("GET", "2") == b"mine"
    await ended.wait()


async def test_a_connection_that_comes_after_the_close_is_ended(own_server: RedisServer) -> None:
    """A wire that is closed while it opens a connection does not keep it."""
    async with wire_to(own_server.url) as wire:
        own_server.pause()
        opening = asyncio.ensure_future(wire.call("PING"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(opening), PATIENCE_SECONDS / 10)
        await wire.close()
        own_server.resume()
        with pytest.raises(redis.exceptions.ConnectionError):
            await opening

        assert await connections(own_server) == 0


async def test_no_connection_stays(own_server: RedisServer) -> None:
    """A closed wire leaves nothing open, and tells who still waits."""
    async with wire_to(own_server.url) as wire:
        await wire.call("PING")
        waiting = asyncio.ensure_future(wire.call("BLPOP", "nothing", 0))
        await asyncio.sleep(0)
        await wire.close()
        with pytest.raises(redis.exceptions.ConnectionError):
            await waiting

    async def is_alone() -> bool:
        return await connections(own_server) == 0

    await until(is_alone)
