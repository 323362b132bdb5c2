"""JSON files that people write by hand: read whole, checked strictly, refused in one sentence.

Enters: a path, or a decoded JSON object and the frozen dataclass that it should be. Leaves: the value, or a
`FormatError` that names the file, the place, what stands there and what should. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from onebeat.engine.errors import FormatError

Record = TypeVar("Record")

LONGEST_JSON_BYTES = 256 * 1024 * 1024
"""No tokenizer, index or router description comes near this; a larger file is not what it says it is."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises `FormatError` when it is missing, too large, not JSON, or not an object."""
    try:
        if path.stat().st_size > LONGEST_JSON_BYTES:
            raise FormatError(f"{path} has {path.stat().st_size} bytes and at most {LONGEST_JSON_BYTES} are read.")
        text = path.read_bytes()
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist; a checkpoint folder needs a {path.name}.") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON ({error}); write it again.") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds {shown(value)} where a JSON object is expected.")
    return value


def record(value: dict[str, Any], kind: type[Record], place: str) -> Record:
    """`value` as the dataclass `kind`. Unknown or missing keys and wrong types raise `FormatError` naming `place`."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    refuse_unknown(value, known, place)
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise FormatError(f"{place} has no {name!r}; it has {', '.join(map(repr, sorted(value))) or 'no keys'}.")
    for name, hint in get_type_hints(kind).items():
        choices = [
            choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)
        ]
        if choices and name in value and value[name] is not None and value[name] not in choices:
            raise FormatError(f"{place}: {name} is {shown(value[name])}; it must be {' or '.join(map(str, choices))}.")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at ")
        path = path.strip("`").removeprefix("$").removeprefix(".")
        where = f"{path} is {shown(_at(value, path))}" if path else f"found {shown(value)}"
        raise FormatError(f"{place}: {where}: {problem[0].lower()}{problem[1:]}.") from None


def refuse_unknown(found: Iterable[str], known: Iterable[str], place: str) -> None:
    """Raises `FormatError` for the first key that is not `known`, with the nearest that is."""
    known = sorted(known)
    for key in found:
        if key not in known:
            raise FormatError(f"{place} has an unknown key {shown(key)}; {nearest(key, known)}.")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` in words, or the list of what is known when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name)[:100], known, n=1)
    return f"the nearest known one is {close[0]!r}" if close else f"known are {', '.join(known)}"


def shown(value: object) -> str:
    """`value` as JSON on one line, short enough for a sentence."""
    try:
        text = repr(value) if isinstance(value, bytes) else msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError):
        text = repr(value)
    text = text.replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _at(value: Any, path: str) -> Any:
    """The part of `value` that msgspec's `path` (`taps[0].layer`) points to, as far as it can be followed."""
    for step in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(step)] if step.isdigit() else value[step]
        except (KeyError, IndexError, TypeError):
            return value
    return value
