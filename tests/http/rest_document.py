"""The REST catalog's specification as data: its operations, and a check of values against its schemas.

`rest_document.json` is Iceberg's OpenAPI document without its prose. Shares no code with the product.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parent / "rest_document.json").read_text(encoding="utf-8"))
_METHODS = ("get", "head", "post", "delete")
_TYPES: dict[str, tuple[type, ...]] = {"object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "integer": (int,)}


@dataclass(frozen=True)
class Operation:
    """One method of one path. `responses` by status, as text: `200`, `5XX`."""

    method: str
    path: str
    responses: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def operations() -> list[Operation]:
    return [
        Operation(method.upper(), path, item[method].get("responses", {}))
        for path, item in DOCUMENT["paths"].items()
        for method in _METHODS
        if method in item
    ]


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        _, _, kind, name = node["$ref"].split("/")
        node = DOCUMENT["components"][kind][name]
    return node


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name]
    return found


def body_schema(response: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a response's body; None for one without."""
    content = resolved(response).get("content")
    return content["application/json"]["schema"] if content else None


def breaches(value: Any, node: dict[str, Any], where: str = "") -> Iterator[str]:
    """One sentence for each way in which a value is not what a schema says."""
    node = resolved(node)
    for part in node.get("allOf", ()):
        yield from breaches(value, part, where)
    for choice in ("anyOf", "oneOf"):
        if choice in node and not any(not list(breaches(value, one, where)) for one in node[choice]):
            yield f"{where}: none of {choice} fits {value!r}"
    if value is None and node.get("nullable"):
        return
    kind = node.get("type")
    if kind in _TYPES and (not isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, bool))):
        yield f"{where}: not of type {kind}: {value!r}"
        return
    if "enum" in node and value not in node["enum"]:
        yield f"{where}: {value!r} is none of {node['enum']}"
    if isinstance(value, list) and "items" in node:
        for place, item in enumerate(value):
            yield from breaches(item, node["items"], f"{where}[{place}]")
    if isinstance(value, dict):
        yield from _of_object(value, node, where)


def _of_object(value: dict[str, Any], node: dict[str, Any], where: str) -> Iterator[str]:
    for name in node.get("required", ()):
        if name not in value:
            yield f"{where}: {name} is missing"
    known, others = node.get("properties", {}), node.get("additionalProperties")
    for name, item in value.items():
        if name in known:
            yield from breaches(item, known[name], f"{where}.{name}")
        elif others is False:
            yield f"{where}: {name} is not known"
        elif isinstance(others, dict):
            yield from breaches(item, others, f"{where}.{name}")
