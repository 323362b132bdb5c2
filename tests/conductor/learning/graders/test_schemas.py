"""JSON against a schema: what fits, what does not, and what cannot be told."""

from __future__ import annotations

import json

import pytest

from onebeat.conductor.learning.graders.schema import grade_schema

RIGHT, WRONG, UNKNOWN = 1.0, 0.0, None

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "maxItems": 3},
        "next": {"$ref": "#"},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"name": "Ada", "age": 36, "tags": ["a", "b"]}', RIGHT),
        ('Here it is:\n```json\n{"name": "Ada", "next": {"name": "Bob"}}\n```\nDone.', RIGHT),
        ('{"name": "ada"}', WRONG),
        ('{"name": "Ada", "age": 36.5}', WRONG),
        ('{"name": "Ada", "age": 36.0}', RIGHT),
        ('{"name": "Ada", "age": true}', WRONG),
        ('{"name": "Ada", "age": 150}', WRONG),
        ('{"name": "Ada", "tags": ["a", "a"]}', WRONG),
        ('{"name": "Ada", "tags": ["c"]}', WRONG),
        ('{"name": "Ada", "next": {}}', WRONG),
        ('{"name": "Ada", "other": 1}', WRONG),
        ('{"age": 3}', WRONG),
        ("{'name': 'Ada'}", WRONG),
        ('{"name": "Ada", "age": NaN}', WRONG),
        ("no JSON at all", WRONG),
        ('Here it is: {"name": "Ada"}', RIGHT),
        ('Here it is: {"name": "Ada"}. Done [1].', RIGHT),
        ('Here it is: {"name": "ada"}', WRONG),
        ('Here it is: {"name": "Ada"', WRONG),
        ('Use {"name": "Ada"} or {"name": "Bob"}', UNKNOWN),
        ('The set {1, 2} gives {"name": "Ada"}', UNKNOWN),
        ('{"name": "Ada", "next": {"name": "Bob"},}', WRONG),
        ('```json\n{"name": "Ada"}\n```\nBetter:\n```json\n{"name": "Ada",}\n```', WRONG),
        ('```json\n{"age": 3}\n```\nBetter:\n  ```JSON\n  {"name": "Ada"}\n  ```', RIGHT),
        ('```json\n{"name": "Ada"}\n```\nRead it by\n```python\njson.load(file)\n```', RIGHT),
    ],
)
def test_schemas(answer: str, score: float | None) -> None:
    assert grade_schema(answer, SCHEMA).score == score, grade_schema(answer, SCHEMA).reason


def test_a_pattern_without_end_cannot_be_graded() -> None:
    for schema in ({"pattern": "^(a+)+$"}, {"items": {"patternProperties": {"^(a+)+$": True}}}):
        text = json.dumps("a" * 60 + "!" if "pattern" in schema else [{"a" * 60 + "!": 1}])
        grade = grade_schema(text, schema)
        assert grade.score is None
        assert "a pattern of the schema was not decided in" in grade.reason


def test_what_a_schema_asks_and_is_not_checked_cannot_be_graded() -> None:
    assert grade_schema("{}", {"unevaluatedProperties": False}).score is None
    assert grade_schema("{}", {"$ref": "https://elsewhere.example/schema"}).score is None
    assert grade_schema("{}", {"$ref": "#/$defs/missing"}).score is None
    assert grade_schema("1", {"$ref": "#"}).score is None
    assert grade_schema("1", {"type": "whole"}).score is None


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"anyOf": [{"type": "null"}, {"minimum": 5}]}, "7", "3"),
        ({"oneOf": [{"minimum": 5}, {"multipleOf": 2}]}, "4", "6"),
        ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, "2", "4"),
        ({"not": {"const": 1}}, "true", "1"),
        ({"prefixItems": [{"type": "string"}], "items": False}, '["a"]', '["a", 1]'),
        ({"patternProperties": {"^x": {"type": "number"}}}, '{"x": 1}', '{"x": "1"}'),
        ({"minProperties": 1}, '{"a": 1}', "{}"),
        ({"multipleOf": 0.1}, "0.3", "0.35"),
        (False, "", "1"),
    ],
)
def test_combinations(schema: object, good: str, bad: str) -> None:
    if good:
        assert grade_schema(good, schema).score == RIGHT
    assert grade_schema(bad, schema).score == WRONG
