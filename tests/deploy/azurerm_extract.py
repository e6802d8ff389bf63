"""Writes ``azurerm_schema.json``: the part of the azurerm provider's schema that our Terraform uses.

The provider itself is not on PyPI; the package ``cdktn-provider-azurerm`` is, and its generated JavaScript says of
each argument its name, its type, whether it is required, and whether it is a block. Run it when the Terraform uses
a new resource type, or for a newer provider::

    pip download --no-deps -d /tmp/azurerm cdktn-provider-azurerm==18.9.0
    python -m tests.deploy.azurerm_extract /tmp/azurerm/cdktn_provider_azurerm-*.whl
"""

import io
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "terraform" / "azure"
SCHEMA = Path(__file__).with_name("azurerm_schema.json")

Block = dict[str, Any]

_CLASS = re.compile(r"^class (\w+) extends cdktn\.\w+ \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_TERRAFORM_TYPE = re.compile(r'static tfResourceType = "(\w+)"')
_FIELD = re.compile(
    r"^    // (\w+) - computed: (true|false), optional: (true|false), required: (true|false)\n"
    r"(.*?)(?=^    // \w+ - |\Z)",
    re.MULTILINE | re.DOTALL,
)
_NESTED = re.compile(r'new (\w+?)(List|OutputReference)\(this, "\w+"(?:, (true|false))?\)')
_MAP = re.compile(r"new cdktn\.(\w+)Map\(this")
_PLAIN = re.compile(r"this\.get(\w+?)Attribute\(")
_TO_HCL = re.compile(r"^function (\w+)ToHclTerraform\(struct\) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(
    r"^ +(\w+): \{\n +value: ([^\n]*)\n"
    r" +isBlock: (true|false),\n +type: \"(\w+)\",\n +storageClassType: \"(\w+)\"",
    re.MULTILINE,
)
_HCL_NAME = re.compile(r"(\w+)ToHclTerraform")
_STORED = {"string": "string", "boolean": "bool", "number": "number", "stringList": ["list", "string"]}
_WORDS = {"String": "string", "Number": "number", "Boolean": "bool"}


def main() -> None:
    """Read the wheel that is named on the command line."""
    wheel = zipfile.ZipFile(sys.argv[1])
    names = wheel.namelist()
    metadata = wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    archive = wheel.read(next(name for name in names if name.endswith(".jsii.tgz")))
    sources = _sources(archive)
    version = re.search(r"provider version (\d+\.\d+\.\d+)", metadata)
    package = re.search(r"^Version: (\S+)", metadata, re.MULTILINE)
    if version is None or package is None:
        raise SystemExit("The package does not say which provider it was made from.")
    resources, data = _used()
    document = {
        "about": f"made by tests/deploy/azurerm_extract.py from cdktn-provider-azurerm {package[1]}",
        "version": version[1],
        "provider": _provider(sources["provider"]),
        "resources": {name: _of_type(sources[_folder(name)], name) for name in resources},
        "data_sources": {name: _of_type(sources[f"data-{_folder(name, 'azurerm-')}"], name) for name in data},
    }
    SCHEMA.write_text(_one_type_a_line(document))


def _one_type_a_line(document: dict[str, Any]) -> str:
    lines = []
    for key, value in document.items():
        if key in ("resources", "data_sources"):
            types = ",\n".join(
                f"  {json.dumps(name)}: {json.dumps(block)}" for name, block in sorted(value.items())
            )
            lines.append(f" {json.dumps(key)}: {{\n{types}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _used() -> tuple[list[str], list[str]]:
    """The types of resources and of data sources that the module and its example have."""
    text = "\n".join(path.read_text() for path in sorted(FOLDER.rglob("*.tf")))
    found = set(re.findall(r'^(resource|data) "(azurerm_\w+)"', text, re.MULTILINE))
    return sorted(name for kind, name in found if kind == "resource"), sorted(
        name for kind, name in found if kind == "data"
    )


def _folder(name: str, prefix: str = "") -> str:
    return prefix + name.removeprefix("azurerm_").replace("_", "-")


def _sources(archive: bytes) -> dict[str, str]:
    wanted = {"provider"}
    resources, data = _used()
    wanted |= {_folder(name) for name in resources} | {f"data-azurerm-{_folder(name)}" for name in data}
    sources = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            match = re.fullmatch(r"package/lib/([\w-]+)/index\.js", member.name)
            if match and match[1] in wanted:
                file = files.extractfile(member)
                if file is not None:
                    sources[match[1]] = file.read().decode()
    return sources


def _of_type(source: str, name: str) -> Block:
    for class_name, body in _CLASS.findall(source):
        found = _TERRAFORM_TYPE.search(body)
        if found and found[1] == name:
            return _schema(source, class_name)
    raise SystemExit(f"The package has no {name}.")


def _schema(source: str, class_name: str) -> Block:
    classes = dict(_CLASS.findall(source))
    blocks = {name: dict(_blocks(body)) for name, body in _TO_HCL.findall(source)}
    return _block(class_name, classes, blocks, top=class_name)


def _blocks(text: str) -> list[tuple[str, str]]:
    return [(name, kind) for name, _, is_block, kind, _ in _ENTRY.findall(text) if is_block == "true"]


def _provider(source: str) -> Block:
    """The provider's own arguments; the package knows their blocks by the functions that write them only."""
    functions = dict(_TO_HCL.findall(source))

    def block(text: str) -> Block:
        attributes: dict[str, Any] = {}
        inner_blocks: dict[str, Any] = {}
        for name, value, is_block, kind, stored in _ENTRY.findall(text):
            if is_block == "true":
                function = _HCL_NAME.findall(value.replace("listMapperHcl", ""))[0]
                inner_blocks[name] = {
                    "nesting": _nesting(kind),
                    "min": 0,
                    "max": 1,
                    "block": block(functions[function]),
                }
            else:
                attributes[name] = {"type": _STORED[stored], "optional": True}
        return {"attributes": attributes, "blocks": inner_blocks}

    found = block(dict(_CLASS.findall(source))["AzurermProvider"])
    del found["attributes"]["alias"]  # Terraform's own
    return found


def _block(class_name: str, classes: dict[str, str], blocks: dict[str, dict[str, str]], *, top: str) -> Block:
    """What the class says of its attributes and nested blocks."""
    body = classes[class_name]
    plain_name = class_name.removesuffix("OutputReference")
    nested_blocks = (
        dict(_blocks(body)) if class_name == top else blocks.get(plain_name[0].lower() + plain_name[1:], {})
    )
    attributes: dict[str, Any] = {}
    inner_blocks: dict[str, Any] = {}
    for name, computed, optional, required, text in _FIELD.findall(body):
        flags = {
            word: True
            for word, value in (("computed", computed), ("optional", optional), ("required", required))
            if value == "true"
        }
        nested = _NESTED.search(text)
        if nested is None:
            attributes[name] = {"type": _type(text), **flags}
            continue
        inner = _block(nested[1] + "OutputReference", classes, blocks, top=top)
        if name not in nested_blocks:
            attributes[name] = {"type": _object(inner, nested[2], nested[3]), **flags}
            continue
        nesting, least = _nesting(nested_blocks[name]), int(required == "true")
        # a single block is there or not: Terraform wants its bounds equal
        most = least if nesting == "single" else int(nested[2] == "OutputReference")
        inner_blocks[name] = {"nesting": nesting, "min": least, "max": most, "block": inner}
    return {"attributes": attributes, "blocks": inner_blocks}


def _nesting(kind: str) -> str:
    return {"struct": "single"}.get(kind, kind)


def _type(text: str) -> Any:
    in_map = _MAP.search(text)
    if in_map:
        return ["map", _WORDS[in_map[1]]]
    plain = _PLAIN.search(text)
    if plain is None:
        return "string" if "return this._" in text else "dynamic"
    word = plain[1]
    if word.endswith("Map"):
        return ["map", _WORDS[word.removesuffix("Map")]]
    if word == "List":
        return ["set" if "Fn.tolist(" in text else "list", "string"]
    if word.endswith("List"):
        return ["set" if "Fn.tolist(" in text else "list", _WORDS[word.removesuffix("List")]]
    return _WORDS[word]


def _object(inner: Block, holder: str, is_set: str) -> Any:
    fields = {name: attribute["type"] for name, attribute in inner["attributes"].items()}
    one = ["object", fields]
    if holder == "OutputReference":
        return ["list", one]
    return ["set" if is_set == "true" else "list", one]


if __name__ == "__main__":
    main()
