"""Which JSON schemas Anthropic's structured outputs take.

Enters: a schema's JSON. Leaves: yes or no. What is not taken as it stands is not rewritten (a changed schema would be
another question): it goes into the system prompt instead. Source: the schema transformation of the `anthropic` package.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

_KEYWORDS = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "allOf"}
    | {"$ref", "$defs", "$schema", "description", "title", "format", "minItems"}
)
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"},
)


def is_taken(schema: Raw) -> bool:
    """Every object closed, and only keywords that the API knows."""
    try:
        return _is_taken(msgspec.json.decode(schema))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _is_taken(node: Any) -> bool:
    if not isinstance(node, dict) or not _KEYWORDS.issuperset(node):
        return False
    if node.get("type") == "object" or "properties" in node:
        properties = node.get("properties")
        if node.get("additionalProperties") is not False or not isinstance(properties, dict) or not properties:
            return False
    if node.get("format", "uri") not in _FORMATS or node.get("minItems", 0) not in (0, 1):
        return False
    inner = [*_values(node.get("properties")), *_values(node.get("$defs"))]
    inner += [each for name in ("anyOf", "allOf") for each in _items(node.get(name))]
    if "items" in node:
        inner.append(node["items"])
    return all(_is_taken(each) for each in inner)


def _values(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else []


def _items(node: Any) -> list[Any]:
    return node if isinstance(node, list) else []
