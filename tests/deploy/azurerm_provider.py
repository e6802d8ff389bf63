"""Serves the schema of ``azurerm_schema.json`` to a real ``terraform``, in the place of the provider.

It answers what ``terraform validate`` and ``terraform test`` with a mocked provider ask: what resource types there
are and what arguments they take. It checks no values and makes nothing. The words are those of Terraform's plugin
protocol, version 6 (``docs/plugin-protocol/tfplugin6.proto`` in Terraform's repository); the few messages that are
needed are written by hand, as Protocol Buffers lays them down. Start: ``python -m tests.deploy.azurerm_provider
SOCKET``.
"""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

SCHEMA = Path(__file__).with_name("azurerm_schema.json")
ADDRESS = "hashicorp/azurerm"

_NESTING = {"single": 1, "list": 2, "set": 3}
_EMPTY = b""


def reattach(socket: Path, process_id: int) -> str:
    """The value of TF_REATTACH_PROVIDERS with which Terraform talks to the process behind this socket."""
    place = {"Network": "unix", "String": str(socket)}
    return json.dumps(
        {ADDRESS: {"Protocol": "grpc", "ProtocolVersion": 6, "Pid": process_id, "Test": True, "Addr": place}}
    )


def serve(socket: Path) -> None:
    """Answer until the process is ended; prints ``ready`` first."""
    document = json.loads(SCHEMA.read_text())
    answers = {
        "GetProviderSchema": _provider_schema(document),
        # "UpgradeResourceState" and all that makes something is left out: a mocked provider is not asked
        "ValidateProviderConfig": _EMPTY,
        "ValidateResourceConfig": _EMPTY,
        "ValidateDataResourceConfig": _EMPTY,
        "ConfigureProvider": _EMPTY,
        "StopProvider": _EMPTY,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(_answer(answer), lambda request: request, lambda answer: answer)
        for name, answer in answers.items()
    }
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tfplugin6.Provider", handlers),))
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    print("ready", flush=True)  # noqa: T201 - the test waits for it
    server.wait_for_termination()


def _answer(answer: bytes) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    return lambda _request, _context: answer


# The messages, in the numbers of tfplugin6.proto


def _provider_schema(document: dict[str, Any]) -> bytes:
    return (
        _message(1, _schema(document["provider"]))
        + b"".join(_entry(2, name, _schema(block)) for name, block in document["resources"].items())
        + b"".join(_entry(3, name, _schema(block)) for name, block in document["data_sources"].items())
    )


def _schema(block: dict[str, Any]) -> bytes:
    return _message(2, _block(block))


def _block(block: dict[str, Any]) -> bytes:
    attributes = b"".join(_message(2, _attribute(name, it)) for name, it in block["attributes"].items())
    return attributes + b"".join(_message(3, _nested(name, it)) for name, it in block["blocks"].items())


def _attribute(name: str, it: dict[str, Any]) -> bytes:
    flags = ((4, "required"), (5, "optional"), (6, "computed"))
    return (
        _message(1, name.encode())
        + _message(2, json.dumps(it["type"]).encode())
        + b"".join(_number(number, 1) for number, flag in flags if it.get(flag))
    )


def _nested(name: str, it: dict[str, Any]) -> bytes:
    return (
        _message(1, name.encode())
        + _message(2, _block(it["block"]))
        + _number(3, _NESTING[it["nesting"]])
        + _number(4, it["min"])
        + _number(5, it["max"])
    )


# Protocol Buffers (https://protobuf.dev/programming-guides/encoding)


def _entry(number: int, name: str, value: bytes) -> bytes:
    return _message(number, _message(1, name.encode()) + _message(2, value))


def _message(number: int, content: bytes) -> bytes:
    return bytes((*_varint(number << 3 | 2), *_varint(len(content)))) + content


def _number(number: int, value: int) -> bytes:
    return bytes((*_varint(number << 3), *_varint(value)))


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
