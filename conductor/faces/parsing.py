"""What the two faces share in reading a request: JSON errors as sentences, onebeat's own options, data URLs.

Enters: a body's bytes, headers. Leaves: decoded fields, `RoutingOptions`; `RequestError` for what cannot be read, with
the field's path as `param`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from onebeat.conductor.records import Media, MediaKind, Priority, RequestError, RoutingOptions, present

T = TypeVar("T")
Names = Annotated[str, Meta(min_length=1, max_length=256)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[int, Meta(ge=1, le=2**31)]
Share = Annotated[float, Meta(ge=0, le=1)]

TOOL_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}\Z")
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_WHERE = re.compile(r"^(.*?)(?: - at `\$\.?(.*)`)?$", re.S)
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w=.+-]+)*?);base64,", re.I)


class _Options(Struct, frozen=True, forbid_unknown_fields=True):
    tradeoff: Share | None = None
    min_quality: Share | None = None
    max_cost_usd: Annotated[float, Meta(ge=0)] | None = None
    deadline_ms: Annotated[float, Meta(gt=0, le=86_400_000)] | None = None
    priority: Priority | None = None
    region: Names | None = None
    fallbacks: tuple[Names, ...] | None = None


_OPTIONS = msgspec.json.Decoder(_Options)
_HEADERS = {f"x-onebeat-{name.replace('_', '-')}": name for name in _Options.__struct_fields__}


def fields_of(body: bytes) -> dict[str, Raw]:
    """The top-level fields, each still JSON."""
    if not body:
        raise RequestError("the request has no body; send a JSON object with `model` and `messages`.")
    try:
        if not body.isascii():
            # Fields that are only passed on are not looked into: bytes that are no UTF-8 would go on to the provider.
            body.decode()
        return _FIELDS.decode(body)
    except RecursionError as error:
        raise RequestError("the body is nested too deeply; flatten it.") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise RequestError(f"the body is no JSON object: {error}.") from error


def decoded(decoder: msgspec.json.Decoder[T], data: bytes | Raw, where: str = "") -> T:
    """`where`: the path of `data` in the body, for the message."""
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise RequestError(f"{where or 'the body'} is nested too deeply; flatten it.", param=where or None) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise bad_field(error, where) from error


def bad_field(error: Exception, where: str) -> RequestError:
    """`Expected `str`, got `int` - at `$.model`` as a sentence about `model`."""
    what, path = _WHERE.match(str(error)).groups()  # type: ignore[union-attr]
    path = f"{where}.{path}".strip(".").replace(".[", "[") if path else where
    if not path:
        return RequestError(f"{what[:1].lower()}{what[1:]}.")
    return RequestError(f"{path}: {what[:1].lower()}{what[1:]}.", param=path)


def options_of(field: Raw | None, headers: Mapping[str, str]) -> RoutingOptions:
    """The body's `onebeat` object over the `x-onebeat-*` headers."""
    named = {name: headers[header] for header, name in _HEADERS.items() if header in headers}
    if field is None and not named:
        return _NO_OPTIONS
    values: dict[str, object] = {}
    for name, text in named.items():
        values[name] = [part.strip() for part in text.split(",") if part.strip()] if name == "fallbacks" else text
    try:
        merged = msgspec.convert(values, _Options, strict=False) if values else _Options()
    except msgspec.ValidationError as error:
        raise bad_field(error, "x-onebeat headers") from error
    if field is None or bytes(field) == b"null":
        return RoutingOptions(**msgspec.structs.asdict(merged))
    given = decoded(_FIELDS, field, "onebeat")
    for key in given:
        if key not in _Options.__struct_fields__:
            raise RequestError(
                f"onebeat.{key} is no option{nearest(key, _Options.__struct_fields__)}.", param=f"onebeat.{key}"
            )
    asked = decoded(_OPTIONS, field, "onebeat")
    return RoutingOptions(
        **{name: getattr(asked if name in given else merged, name) for name in _Options.__struct_fields__}
    )


_NO_OPTIONS = RoutingOptions()


def schema_of(raw: Raw, where: str) -> Raw | None:
    """A JSON schema as it came, None where it is absent. Raises `RequestError` for what is no object: vendors refuse
    it, some of them with a 500 that would be taken for their own fault."""
    found = present(raw)
    if found is not None and not bytes(found).lstrip().startswith(b"{"):
        raise RequestError(f"{where} is no JSON schema; give an object, such as {{}}.", param=where)
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean x` where something is near, else `; known are a, b, c`."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`" if close else f"; known are {', '.join(known)}"


def media_of(url: str, kind: MediaKind, where: str, detail: str | None = None, name: str | None = None) -> Media:
    """A data URL or an http(s) one."""
    if url.startswith(("https://", "http://")):
        return Media(kind, url=url, detail=detail, name=name)
    if not (head := _DATA_URL.match(url[:200])):
        raise RequestError(f"{where} is {url[:40]!r}; give an http(s) URL or `data:image/png;base64,...`.", param=where)
    return Media(kind, media_type=head.group(1), data=url[head.end() :], detail=detail, name=name)
