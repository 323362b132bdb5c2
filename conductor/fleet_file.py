"""Reads `fleet.toml`: the whole of it is checked before anything starts, and every error has its line and a way out.

Enters: a path. Leaves: a `Fleet`, or one `ConfigError` that lists everything that is wrong. Knows no network and reads
the environment only to see whether the variables that providers name are set (`missing_variables`).
"""

from __future__ import annotations

import datetime
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from onebeat.conductor.config import Fleet, Key, Model, Provider
from onebeat.engine.errors import ConfigError, InputError
from onebeat.engine.targets import parse_target

NAMED_TABLES: dict[str, type[msgspec.Struct]] = {"providers": Provider, "models": Model, "keys": Key}
LOOPBACK = ("127.0.0.1", "::1", "localhost")
RETIREMENT_NOTICE_DAYS = 30

_SHARES = (
    ("router", "exploration_share"),
    ("router", "drift_share"),
    ("policy", "tradeoff"),
    ("policy", "cheap_tradeoff"),
    ("policy", "best_tradeoff"),
    ("policy", "nearly_as_good"),
    ("policy", "low_headroom"),
    ("resilience", "retry_share"),
    ("resilience", "hedge_percentile"),
    ("resilience", "hedge_share"),
)
_MAY_BE_ZERO = {"watch.hold_tokens", "watch.hold_ms", "router.machine_usd_per_hour", "server.port"}


def load_fleet(path: str | Path) -> Fleet:
    """The fleet that the file at `path` describes. Raises `ConfigError` naming every mistake with file and line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; copy fleet.example.toml and edit it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    return parse_fleet(text, str(path))


def parse_fleet(text: str, source: str = "fleet.toml") -> Fleet:
    """As `load_fleet`, from text; `source` names it in messages."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: not TOML: {error}.") from error
    reader = _Reader(source, lines_of_keys(text))
    fleet = reader.fleet(raw)
    if fleet is not None:
        reader.check(fleet)
    if reader.problems or fleet is None:
        raise ConfigError("\n".join(message for _, message in sorted(reader.problems)))
    return fleet


def missing_variables(fleet: Fleet, environ: Mapping[str, str]) -> dict[str, str]:
    """Who names it -> environment variable, for those that are not set or empty: providers by their name, and
    `server.admin_token_env`, without whose token /metrics would be open to the whole machine."""
    named = {name: provider.api_key_env for name, provider in fleet.providers.items()}
    named["server.admin_token_env"] = fleet.server.admin_token_env
    return {name: variable for name, variable in named.items() if variable and not environ.get(variable)}


def retirements(fleet: Fleet, today: datetime.date) -> list[str]:
    """A sentence for every model that is past its shutdown date or within a month of it, soonest first."""
    soon = today + datetime.timedelta(days=RETIREMENT_NOTICE_DAYS)
    dated = [(m.shutdown_date, name, m.successor) for name, m in fleet.models.items() if m.shutdown_date]
    sentences = []
    for date, name, successor in sorted(d for d in dated if d[0] <= soon):
        then = f"{successor} takes its place" if successor else "no successor is named: give it one"
        when = f"shut down on {date}" if date <= today else f"shuts down on {date}, in {(date - today).days} days"
        sentences.append(f"{name} {when}; {then}.")
    return sentences


def unscored(fleet: Fleet, columns: Iterable[str]) -> list[str]:
    """A sentence for every model that `auto` may choose but that no column scores and no prior describes."""
    known = list(columns)
    sentences = []
    for name, model in fleet.models.items():
        column = model.scored_as or name
        if model.auto and column not in known and model.prior_quality is None:
            near = _nearest(column, known)
            sentences.append(
                f"{name} has no column {column!r} in the router{near}; set scored_as, prior_quality or auto = false."
            )
    return sentences


def lines_of_keys(text: str) -> dict[tuple[str, ...], int]:
    """Where each table and key of a TOML text is first set: path -> line, counted from 1."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    quote: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if quote is not None:
            quote = None if quote in line else quote
            continue
        header = re.match(r"\s*\[\[?(.+?)\]\]?\s*(?:#.*)?$", line)
        pair = re.match(r"""\s*((?:"[^"]*"|'[^']*'|[\w\-. ]+)+?)\s*=""", line)
        if header and not pair and (path := _key_path(header[1])):
            table = path
            lines.setdefault(path, number)
        elif pair and (path := _key_path(pair[1])):
            lines.setdefault(table + path, number)
        for mark in ('"""', "'''"):
            if line.count(mark) % 2:
                quote = mark
    return lines


def _key_path(dotted: str) -> tuple[str, ...]:
    """The path of a dotted, possibly quoted key, read by the TOML parser itself; empty where it is not a key."""
    try:
        node: object = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    path = []
    while isinstance(node, dict) and node:
        key = next(iter(node))
        path.append(key)
        node = node[key]
    return tuple(path)


def _nearest(word: str, known: Iterable[str]) -> str:
    options = list(known)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(sorted(options)) or 'none'})"


class _Reader:
    """Collects every problem of one file, each with the line of the key that caused it."""

    def __init__(self, source: str, lines: Mapping[tuple[str, ...], int]) -> None:
        self.source = source
        self.lines = lines
        self.problems: list[tuple[int, str]] = []

    def problem(self, path: tuple[str, ...], sentence: str) -> None:
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 1)
        self.problems.append((line, f"{self.source}:{line}: {sentence}"))

    def fleet(self, raw: Mapping[str, object]) -> Fleet | None:
        sections: dict[str, object] = {"source": self.source}
        kinds = {field.name: field for field in msgspec.structs.fields(Fleet) if field.name != "source"}
        for name, value in raw.items():
            if name not in kinds:
                self.problem((name,), f"[{name}] is not a section{_nearest(name, kinds)}.")
            elif not isinstance(value, dict):
                self.problem((name,), f"{name} must be a table, [{name}]; it is {value!r}.")
            elif name in NAMED_TABLES:
                rows = {key: self._table((name, key), row, NAMED_TABLES[name]) for key, row in value.items()}
                sections[name] = {key: row for key, row in rows.items() if row is not None}
            else:
                section = self._table((name,), value, type(kinds[name].default))
                if section is not None:
                    sections[name] = section
        for name in ("providers", "models"):
            if not raw.get(name):
                self.problem((name,), f"no [{name}.NAME] is given; the gateway needs at least one.")
        return None if self.problems else Fleet(**sections)  # type: ignore[arg-type]

    def _table(self, path: tuple[str, ...], raw: object, kind: type[msgspec.Struct]) -> msgspec.Struct | None:
        if not isinstance(raw, dict):
            self.problem(path, f"{'.'.join(path)} must be a table, [{'.'.join(path)}]; it is {raw!r}.")
            return None
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        values: dict[str, object] = {}
        before = len(self.problems)
        for key, value in raw.items():
            field = fields.get(key)
            if field is None:
                self.problem((*path, key), f"{'.'.join(path)} has no key {key!r}{_nearest(key, fields)}.")
                continue
            try:
                values[key] = msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                self.problem((*path, key), f"{'.'.join(path)}.{key} is {value!r}: {_plain(error, value, field.type)}")
        for key, field in fields.items():
            if field.required and key not in raw:
                self.problem(path, f"{'.'.join(path)} lacks {key!r}, which every entry of [{path[0]}] must have.")
        return None if len(self.problems) > before else kind(**values)

    def check(self, fleet: Fleet) -> None:
        """What one table says about another, and numbers out of their range."""
        self._ranges(fleet)
        for name, provider in fleet.providers.items():
            url = urlsplit(provider.base_url)
            if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
                self.problem(
                    ("providers", name, "base_url"),
                    f"providers.{name}.base_url is {provider.base_url!r}; give http(s)://HOST[:PORT][/PATH] only.",
                )
        for name, model in fleet.models.items():
            self._model(fleet, name, model)
        self._one_of(fleet.models, fleet.policy.always_best, ("policy", "always_best"))
        self._target(fleet.policy.target)
        self._one_of(fleet.models, fleet.contingency.local_model, ("contingency", "local_model"))
        for name, key in fleet.keys.items():
            if not re.fullmatch(r"[0-9a-f]{64}", key.sha256):
                self.problem(
                    ("keys", name, "sha256"),
                    f"keys.{name}.sha256 is not 64 hexadecimal digits; make one with `printf %s KEY | sha256sum`.",
                )
        if not fleet.keys and fleet.server.host not in LOOPBACK:
            self.problem(
                ("server", "host"),
                f"server.host is {fleet.server.host!r} and no [keys.NAME] is given: anyone could spend; add a key or "
                "listen on 127.0.0.1.",
            )

    def _target(self, target: str | None) -> None:
        if target is None:
            return
        path = ("policy", "target")
        if ("policy", "tradeoff") in self.lines:
            self.problem(path, f"policy.target is {target!r} and policy.tradeoff is given as well; give one of them.")
        try:
            parse_target(target)
        except InputError as error:
            self.problem(path, f"policy.{error}")

    def _model(self, fleet: Fleet, name: str, model: Model) -> None:
        place = ("models", name)
        self._one_of(fleet.providers, model.provider, (*place, "provider"))
        self._one_of(fleet.models, model.successor, (*place, "successor"))
        for fallback in model.fallbacks:
            self._one_of(fleet.models, fallback, (*place, "fallbacks"))
        if name in model.fallbacks or name == model.successor:
            self.problem(place, f"models.{name} names itself as fallback or successor; name another model.")
        seen = [name]
        while (following := fleet.models.get(seen[-1])) and (successor := following.successor) in fleet.models:
            if successor in seen:
                self.problem(
                    (*place, "successor"), f"successors go round: {' -> '.join([*seen, successor])}; break it."
                )
                break
            seen.append(successor)
        for key in ("context_tokens", "max_output_tokens", "bytes_per_token"):
            value = getattr(model, key)
            if value is not None and not value > 0:
                self.problem((*place, key), f"models.{name}.{key} is {value}; it must be above zero.")
        kind = fleet.providers[model.provider].kind if model.provider in fleet.providers else "openai"
        if "transcription" in model.capabilities and kind in ("anthropic", "gemini"):
            self.problem(
                (*place, "capabilities"),
                f"models.{name} is to transcribe, and {model.provider} speaks {kind}'s format, which cannot; name a "
                "provider of kind openai or openai_compatible.",
            )
        if not 0 <= model.usd_per_minute < 1e6:
            self.problem(
                (*place, "usd_per_minute"),
                f"models.{name}.usd_per_minute is {model.usd_per_minute}; a price is zero or more dollars.",
            )
        if model.prior_quality is not None and not 0 <= model.prior_quality <= 1:
            self.problem((*place, "prior_quality"), f"models.{name}.prior_quality is {model.prior_quality}; 0 to 1.")
        for price in (model, *model.tiers):
            for key in ("input_usd_per_million", "output_usd_per_million", "cached_input_usd_per_million"):
                value = getattr(price, key)
                if value is not None and not 0 <= value < 1e6:
                    where = "tiers" if price is not model else key
                    self.problem((*place, where), f"models.{name}.{key} is {value}; a price is zero or more dollars.")

    def _one_of(self, table: Mapping[str, object], name: str | None, path: tuple[str, ...]) -> None:
        if name is not None and name not in table:
            self.problem(path, f"{'.'.join(path)} names {name!r}, which does not exist{_nearest(name, table)}.")

    def _ranges(self, fleet: Fleet) -> None:
        for section, key in _SHARES:
            value = getattr(getattr(fleet, section), key)
            if not 0.0 <= value <= 1.0:
                self.problem((section, key), f"{section}.{key} is {value}; it is a share, from 0 to 1.")
        for section in ("server", "resilience", "watch", "contingency", "context", "ledger", "router"):
            table = getattr(fleet, section)
            for field in msgspec.structs.fields(table):
                value = getattr(table, field.name)
                if isinstance(value, bool) or not isinstance(value, int | float) or (section, field.name) in _SHARES:
                    continue
                zero = f"{section}.{field.name}" in _MAY_BE_ZERO
                if not (value > 0 or (zero and value == 0)) or value == float("inf"):
                    least = "zero or more" if zero else "above zero"
                    self.problem((section, field.name), f"{section}.{field.name} is {value}; it must be {least}.")
        if not 0 <= fleet.server.port <= 65535:
            self.problem(("server", "port"), f"server.port is {fleet.server.port}; ports run from 0 (any) to 65535.")


def _plain(error: msgspec.ValidationError, value: object, kind: object) -> str:
    sentence = str(error).replace("`", "")
    options = getattr(kind, "__args__", ())
    words = [option for option in options if isinstance(option, str)]
    for option in options:  # tuple[Literal[...], ...]: the literals sit one level down
        words += [word for word in getattr(option, "__args__", ()) if isinstance(word, str)]
    unknown = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
    wrong = next((item for item in unknown if words and item not in words), None)
    return sentence + (f"{_nearest(wrong, words)}." if wrong is not None else ".")
