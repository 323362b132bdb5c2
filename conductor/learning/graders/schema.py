"""JSON that must satisfy a JSON Schema (the part of draft 2020-12 that people write).

Enters: an answer and a schema. Leaves: a `Grade`. A keyword that is not known here makes the answer ungradable:
ignoring one could call a wrong answer right. Formats are annotations, as the standard has them by default.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from onebeat.conductor.learning.graders.code import fences_of
from onebeat.conductor.learning.graders.grade import Grade, cannot_grade, right, wrong

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: (isinstance(v, int) and not isinstance(v, bool)) or (isinstance(v, float) and v.is_integer()),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description"}
    | {"default", "examples", "format", "deprecated", "readOnly", "writeOnly"}
)
MAX_DEPTH = 64
MOST_BRACKETS = 500
TIME_LIMIT_S, WALL_LIMIT_S = 2, 60
"""Of a check with patterns: CPU seconds of its own, and seconds with its process's start, however busy the system."""


class _UnknownKeyword(Exception):
    """The schema uses something that is not checked here."""


def grade_schema(answer: str, schema: Mapping[str, Any]) -> Grade:
    """Right when the answer is JSON (bare, in a code fence, or the one value in prose) that `schema` accepts."""
    found, value, why = extract_json(answer)
    if not found:
        return cannot_grade(why) if why else wrong("it holds no JSON")
    if _has_pattern(schema):
        # A pattern may take longer than the world lasts, and Python cannot be told to stop: a process can.
        return _grade_apart(value, schema)
    return _grade_value(value, schema)


def _grade_value(value: Any, schema: Any) -> Grade:
    try:
        problem = first_problem(value, schema)
    except _UnknownKeyword as error:
        return cannot_grade(str(error))
    except (TypeError, ValueError, AttributeError, ArithmeticError, re.error) as error:
        # A keyword whose value is of the wrong kind: {"required": 3}, {"pattern": "("}, {"multipleOf": 0}.
        return cannot_grade(f"the schema itself is wrong ({str(error)[:120]})")
    return right("valid") if problem is None else wrong(problem)


def _has_pattern(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        return any(key in ("pattern", "patternProperties") or _has_pattern(part) for key, part in schema.items())
    return isinstance(schema, list) and any(map(_has_pattern, schema))


def _grade_apart(value: Any, schema: Any) -> Grade:
    """`_grade_value` in a process of its own, which is ended after `TIME_LIMIT_S` seconds of its CPU time."""
    command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
    job = json.dumps({"value": value, "schema": schema})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, input=job, capture_output=True, text=True, env=environment, timeout=WALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        return cannot_grade(f"a pattern of the schema was not decided in {WALL_LIMIT_S} s")
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return cannot_grade(f"a pattern of the schema was not decided in {TIME_LIMIT_S} s")
    if done.returncode:
        return cannot_grade(f"the schema's check failed ({done.stderr.strip()[-120:]})")
    return Grade(**json.loads(done.stdout))


def serve() -> None:
    """The process of `_grade_apart`: a job on standard input, a grade on standard output."""
    import resource

    job = json.load(sys.stdin)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime) + TIME_LIMIT_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    grade = _grade_value(job["value"], job["schema"])
    print(json.dumps({"score": grade.score, "reason": grade.reason}))


def extract_json(answer: str) -> tuple[bool, Any, str]:
    """(whether there is one, the JSON value, why it cannot be told): the whole answer, else its last code fence that is
    JSON's or nobody's, else the one object or array that its prose holds."""
    try:
        return True, _decode(answer), ""
    except (ValueError, RecursionError):
        fences = [body for language, body in fences_of(answer) if language in ("", "json", "jsonc", "json5")]
    if fences:
        try:
            return True, _decode(fences[-1]), ""
        except (ValueError, RecursionError):
            return False, None, ""
    if answer.strip()[:1] in ("{", "["):
        return False, None, ""
    values: list[Any] = []
    broken, tries, place, decoder = False, 0, 0, json.JSONDecoder(parse_constant=_no_constant)
    while found := re.compile(r"[{\[]").search(answer, place):
        try:
            value, place = decoder.raw_decode(answer, found.start())
            values.append(value)
        except (ValueError, RecursionError):
            place, broken, tries = found.end(), broken or found[0] == "{", tries + 1
        if tries > MOST_BRACKETS:
            return False, None, f"its prose holds more than {MOST_BRACKETS} brackets that are no JSON"
    values = [value for value in values if isinstance(value, dict)] or values
    if len(values) > 1 or (values and broken):
        return False, None, "its prose holds several JSON values, or braces that are none"
    return (True, values[0], "") if values else (False, None, "")


def _decode(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def first_problem(value: Any, schema: Mapping[str, Any] | bool) -> str | None:
    """What is wrong with `value`, with its place, or None. Raises where the schema asks what is not known here."""
    return _check(value, schema, schema, "$", 0)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check(value: Any, schema: Any, root: Any, place: str, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        raise _UnknownKeyword(f"the schema refers to itself deeper than {MAX_DEPTH} levels at {place}")
    if isinstance(schema, bool):
        return None if schema else f"{place} may not be there"
    for keyword, wanted in schema.items():
        if keyword in ANNOTATIONS:
            continue
        if keyword not in _KEYWORDS:
            raise _UnknownKeyword(f"the schema uses {keyword!r}, which is not checked here")
        problem = _KEYWORDS[keyword](value, wanted, schema, root, place, depth)
        if problem is not None:
            return problem
    return None


def _type(value: Any, wanted: Any, schema: Any, root: Any, place: str, depth: int) -> str | None:
    names = [wanted] if isinstance(wanted, str) else wanted
    if any(name not in TYPES for name in names):
        raise _UnknownKeyword(f"the schema names the unknown type {wanted!r}")
    return None if any(TYPES[name](value) for name in names) else f"{place} is not of type {' or '.join(names)}"


def _same(left: Any, right_: Any) -> bool:
    if isinstance(left, bool) or isinstance(right_, bool):
        return left is right_
    if isinstance(left, list) and isinstance(right_, list):
        return len(left) == len(right_) and all(map(_same, left, right_))
    if isinstance(left, dict) and isinstance(right_, dict):
        return left.keys() == right_.keys() and all(_same(left[name], right_[name]) for name in left)
    return bool(left == right_)


def _properties(value: Any, wanted: Any, schema: Any, root: Any, place: str, depth: int) -> str | None:
    """`properties`, `patternProperties` and `additionalProperties` speak of the same names, and are read together."""
    if not isinstance(value, dict):
        return None
    named = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    for name, held in value.items():
        parts = [named[name]] if name in named else []
        parts += [part for pattern, part in patterns.items() if re.search(pattern, name)]
        if not parts and "additionalProperties" in schema:
            parts = [schema["additionalProperties"]]
        for part in parts:
            problem = _check(held, part, root, f"{place}.{name}", depth + 1)
            if problem is not None:
                return problem
    return None


def _items(value: Any, wanted: Any, schema: Any, root: Any, place: str, depth: int) -> str | None:
    if not isinstance(value, list):
        return None
    first = schema.get("prefixItems", [])
    for index, held in enumerate(value):
        part = first[index] if index < len(first) else schema.get("items", True)
        problem = _check(held, part, root, f"{place}[{index}]", depth + 1)
        if problem is not None:
            return problem
    return None


def _reference(value: Any, wanted: Any, schema: Any, root: Any, place: str, depth: int) -> str | None:
    if not isinstance(wanted, str) or not wanted.startswith("#"):
        raise _UnknownKeyword(f"the schema refers to {wanted!r}, outside itself")
    target = root
    for step in wanted.lstrip("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, Mapping) or step not in target:
            raise _UnknownKeyword(f"the schema refers to {wanted!r}, which it does not define")
        target = target[step]
    return _check(value, target, root, place, depth + 1)


def _alternatives(value: Any, wanted: Any, schema: Any, root: Any, place: str, depth: int) -> str | None:
    held = [name for name in ("anyOf", "oneOf", "allOf", "not") if name in schema]
    for name in held:
        parts = schema[name] if isinstance(schema[name], list) else [schema[name]]
        fits = sum(_check(value, part, root, place, depth + 1) is None for part in parts)
        fine = {"anyOf": fits > 0, "oneOf": fits == 1, "allOf": fits == len(parts), "not": fits == 0}[name]
        if not fine:
            return f"{place} satisfies {fits} of the {len(parts)} alternatives of {name}"
    return None


def _bound(allowed: Callable[[Any, Any], bool], kind: type, what: str) -> Callable[..., str | None]:
    def check(value: Any, wanted: Any, schema: Any, root: Any, place: str, depth: int) -> str | None:
        fits = isinstance(value, kind) or (kind is float and TYPES["number"](value))
        return (
            f"{place} {what} {wanted}" if fits and not isinstance(value, bool) and not allowed(value, wanted) else None
        )

    return check


_KEYWORDS: dict[str, Callable[..., str | None]] = {
    "type": _type,
    "enum": lambda v, w, s, r, p, d: None if any(_same(v, one) for one in w) else f"{p} is not one of {w}",
    "const": lambda v, w, s, r, p, d: None if _same(v, w) else f"{p} is not {w!r}",
    "required": lambda v, w, s, r, p, d: next(
        (f"{p} lacks {name!r}" for name in w if isinstance(v, dict) and name not in v), None
    ),
    "properties": _properties,
    "patternProperties": _properties,
    "additionalProperties": _properties,
    "items": _items,
    "prefixItems": _items,
    "$ref": _reference,
    "anyOf": _alternatives,
    "oneOf": _alternatives,
    "allOf": _alternatives,
    "not": _alternatives,
    "minimum": _bound(lambda v, w: v >= w, float, "is below"),
    "maximum": _bound(lambda v, w: v <= w, float, "is above"),
    "exclusiveMinimum": _bound(lambda v, w: v > w, float, "is not above"),
    "exclusiveMaximum": _bound(lambda v, w: v < w, float, "is not below"),
    "multipleOf": _bound(lambda v, w: math.isclose(v / w, round(v / w), abs_tol=1e-9), float, "is no multiple of"),
    "minLength": _bound(lambda v, w: len(v) >= w, str, "is shorter than"),
    "maxLength": _bound(lambda v, w: len(v) <= w, str, "is longer than"),
    "pattern": _bound(lambda v, w: re.search(w, v) is not None, str, "does not match"),
    "minItems": _bound(lambda v, w: len(v) >= w, list, "has fewer items than"),
    "maxItems": _bound(lambda v, w: len(v) <= w, list, "has more items than"),
    "minProperties": _bound(lambda v, w: len(v) >= w, dict, "has fewer properties than"),
    "maxProperties": _bound(lambda v, w: len(v) <= w, dict, "has more properties than"),
    "uniqueItems": _bound(
        lambda v, w: not w or not any(_same(a, b) for i, a in enumerate(v) for b in v[:i]), list, "repeats an item:"
    ),
}
