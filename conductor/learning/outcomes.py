"""Graded outcomes: one record per (prompt, model), gathered into a dense table, with everything odd counted.

Enters: raw records (mappings) from `sources`. Leaves: an `Outcomes` table and a `ReadReport`. Knows nothing of files,
features or heads.

The record, whatever the file format. `prompt` or `messages`, `model` and `score` are required:

    prompt          text; or
    messages        a list of {"role", "content"} as OpenAI's chat completions have it (in CSV: as JSON)
    model           the name of the column
    score           0 (wrong) to 1 (right); fractions are welcome
    input_tokens    as billed                output_tokens   as billed
    cost_usd        what the call cost       latency_ms      until the last token; no head predicts it yet
    group           the source of the prompt: a benchmark, a tenant, a feature; splits and "within source" use it
    time            ISO 8601 or seconds since 1970; `onebeat train --hold-out-newest` uses it
    weight          how much this outcome counts, 1 by default: 2 is as if twice, 0 not at all
    propensity      with what probability a router chose this model, for off-policy estimates

Nothing is dropped silently: every record that is left out, merged or mended is counted under a name, with its place.
What is made of several outcomes of one prompt and model, `merge` says. Prompts stand in the order of a hash: the same
records give the same table, bit for bit, in whatever order and from however many files they come.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.merge import Merged, merge
from onebeat.engine.errors import InputError
from onebeat.engine.records import Prompt

REQUIRED = ("prompt", "model", "score")
OPTIONAL = ("input_tokens", "output_tokens", "cost_usd", "latency_ms", "group", "time", "weight", "propensity")
FIELDS = (*REQUIRED, "messages", *OPTIONAL)
UNGROUPED = "ungrouped"
_NUMBERS = ("score", "input_tokens", "output_tokens", "cost_usd", "weight", "propensity")
MOST = 1e12
"""Tokens, dollars, weights: more is a mistake, and sums of squares would leave float32."""
MAX_CELLS = 200_000_000
"""Prompts times models of one table: four float32 tables of this size take 3.2 GB, the most that fits in 4 GB."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What was read, and what was wrong with it."""

    records: int
    """Records met, good and bad."""
    used: int
    """Records that ended in the table (a duplicate is not used twice)."""
    problems: Mapping[str, int]
    """How many records had each problem."""
    examples: Mapping[str, str]
    """For each problem, where it was first met and what it looked like."""

    def lines(self) -> list[str]:
        """The report as text: one line for the total and one for each problem."""
        text = [f"{self.records:,} records read, {self.used:,} used"]
        return text + [f"  {count:,} {name}: {self.examples[name]}" for name, count in sorted(self.problems.items())]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """A dense table of n prompts and M models; NaN where nothing is known."""

    prompts: tuple[Prompt, ...]
    """[n]"""
    groups: tuple[str, ...]
    """[n] the source of each prompt."""
    models: tuple[str, ...]
    """[M] sorted by name."""
    score: Floats
    """[n, M] in 0..1."""
    output_tokens: Floats
    """[n, M]"""
    input_tokens: Floats
    """[n, M]"""
    cost_usd: Floats
    """[n, M]"""
    weight: Floats
    """[n, M], 0 where there is no score."""
    propensity: Floats
    """[n, M] with what probability a router chose this model."""
    time_s: NDArray[np.float64]
    """[n] seconds since 1970 of the newest outcome of each prompt, NaN where unknown."""
    report: ReadReport

    def select(self, rows: NDArray[np.int64]) -> Outcomes:
        """The same table with these prompts only."""
        return Outcomes(
            tuple(self.prompts[row] for row in rows),
            tuple(self.groups[row] for row in rows),
            self.models,
            self.score[rows],
            self.output_tokens[rows],
            self.input_tokens[rows],
            self.cost_usd[rows],
            self.weight[rows],
            self.propensity[rows],
            self.time_s[rows],
            self.report,
        )

    def with_models(self, models: Collection[str]) -> Outcomes:
        """The same table with these models only, in this order. Raises `InputError` for one without outcomes."""
        missing = [name for name in models if name not in self.models]
        if missing:
            raise InputError(f"no outcome names model {missing[0]!r}; the models are {', '.join(self.models)}.")
        keep = [self.models.index(name) for name in models]
        return Outcomes(
            self.prompts,
            self.groups,
            tuple(models),
            self.score[:, keep],
            self.output_tokens[:, keep],
            self.input_tokens[:, keep],
            self.cost_usd[:, keep],
            self.weight[:, keep],
            self.propensity[:, keep],
            self.time_s,
            self.report,
        )


def prompt_key(prompt: Prompt) -> bytes:
    """A hash that ignores white space and letter case, so that twins share a side of a split."""
    text = prompt if isinstance(prompt, str) else msgspec.json.encode(prompt, order="sorted").decode()
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=16).digest()


@dataclass(slots=True)
class Gatherer:
    """Collects records one by one in memory that grows with distinct prompts, not with records."""

    known_models: Collection[str] | None = None
    """When given, outcomes of any other model are counted and left out."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """From a fleet's model names to the columns that score them."""
    records: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    _prompts: list[Prompt] = field(default_factory=list)
    _groups: list[str | None] = field(default_factory=list)
    _times: array[float] = field(default_factory=lambda: array("d"))
    _index: dict[bytes, int] = field(default_factory=dict)
    _models: dict[str, int] = field(default_factory=dict)
    _columns: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in _NUMBERS})
    _prompt_of: array[int] = field(default_factory=lambda: array("q"))
    _model_of: array[int] = field(default_factory=lambda: array("q"))

    def add_all(self, records: Iterable[tuple[str, Mapping[str, object] | str]]) -> Gatherer:
        """Adds `(place, record)` pairs; a record that is a string is what was wrong with an unreadable one."""
        for place, record in records:
            self.records += 1
            if isinstance(record, str):
                self._problem("unreadable", place, record)
            else:
                self._add(place, record)
        return self

    def table(self) -> Outcomes:
        """Everything gathered. Raises `InputError` when nothing is usable or the table would not fit in memory."""
        if not self._prompt_of:
            details = "; ".join(f"{count} {name}: {self.examples[name]}" for name, count in self.problems.items())
            raise InputError(
                f"none of {self.records} records is a usable outcome ({details or 'the file is empty'}); each needs "
                "prompt or messages, model, and score in 0..1."
            )
        models = sorted(self._models)
        if len(self._prompts) * len(models) > MAX_CELLS:
            raise InputError(
                f"{len(self._prompts):,} prompts times {len(models):,} models exceed {MAX_CELLS:,} cells; name the "
                "models to fit with --models."
            )
        rank = np.empty(len(models), np.int64)
        rank[[self._models[name] for name in models]] = np.arange(len(models))
        keys = list(self._index)
        ordered = sorted(range(len(keys)), key=keys.__getitem__)
        place = np.empty(len(keys), np.int64)
        place[ordered] = np.arange(len(keys))
        cells = place[np.asarray(self._prompt_of, np.int64)] * len(models) + rank[np.asarray(self._model_of, np.int64)]
        return self._dense(models, ordered, merge(self._columns, cells, len(keys) * len(models)))

    def _dense(self, models: list[str], ordered: list[int], merged: Merged) -> Outcomes:
        """`ordered`: the rows of the prompts, as they came, in the order that they are to stand in."""
        prompts = tuple(self._prompts[row] for row in ordered)
        self._count_merged(merged, prompts, models)
        tables = {name: table.reshape(len(prompts), len(models)) for name, table in merged.tables.items()}
        report = ReadReport(self.records, len(merged.cells), dict(self.problems), dict(self.examples))
        return Outcomes(
            prompts,
            tuple(self._groups[row] or UNGROUPED for row in ordered),
            tuple(models),
            tables["score"],
            tables["output_tokens"],
            tables["input_tokens"],
            tables["cost_usd"],
            tables["weight"],
            tables["propensity"],
            np.asarray(self._times)[ordered],
            report,
        )

    def _count_merged(self, merged: Merged, prompts: tuple[Prompt, ...], models: list[str]) -> None:
        def example(at: NDArray[np.bool_]) -> str:
            prompt, model = divmod(int(merged.cells[np.argmax(at)]), len(models))
            return f"model {models[model]}, prompt {_shorten(prompts[prompt])}"

        repeated = int((merged.count - 1).sum())
        if repeated:
            self._count("duplicates of a prompt and model (merged)", repeated, example(merged.count > 1))
        if merged.conflicting.any():
            said = example(merged.conflicting)
            count = int(merged.conflicting.sum())
            self._count("prompts and models with conflicting scores (averaged)", count, said)
        if merged.redrawn.any():
            said, count = example(merged.redrawn), int(merged.redrawn.sum())
            self._count("prompts asked again of the same model (their propensities are left out)", count, said)

    def _add(self, place: str, record: Mapping[str, object]) -> None:
        prompt = self._prompt(place, record)
        if prompt is None:
            return
        model, score = record.get("model"), _number(record.get("score"))
        model = self.renamed.get(model, model) if isinstance(model, str) else model
        if not isinstance(model, str) or not model.strip():
            self._problem("without a model", place, repr(model))
        elif self.known_models is not None and model not in self.known_models:
            self._problem("of a model that is not asked for (left out)", place, model)
        elif score is None:
            self._problem("without a score", place, repr(record.get("score")))
        elif math.isnan(score) or not 0.0 <= score <= 1.0:
            self._problem("with a score outside 0..1 (left out)", place, repr(record.get("score")))
        else:
            self._append(place, prompt, model, score, record)

    def _append(self, place: str, prompt: Prompt, model: str, score: float, record: Mapping[str, object]) -> None:
        exact = prompt if isinstance(prompt, str) else msgspec.json.encode(prompt, order="sorted").decode()
        key = hashlib.blake2b(exact.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        row = self._index.get(key)
        group = record.get("group")
        group = str(group) if group not in (None, "") else None
        if row is None:
            row = self._index[key] = len(self._prompts)
            self._prompts.append(prompt)
            self._groups.append(group)
            self._times.append(math.nan)
        elif group is not None and group != self._groups[row]:
            before = self._groups[row]
            if before is not None:
                self._problem("with another group than before (the first by name is kept)", place, group)
            self._groups[row] = group if before is None else min(before, group)
        moment = _time(record.get("time"))
        if moment != moment and record.get("time") not in (None, ""):
            self._problem("with a time that is neither ISO 8601 nor seconds (ignored)", place, repr(record["time"]))
        if not moment <= self._times[row]:
            self._times[row] = moment if moment == moment else self._times[row]
        self._prompt_of.append(row)
        self._model_of.append(self._models.setdefault(model, len(self._models)))
        self._columns["score"].append(score)
        for name in _NUMBERS[1:]:
            self._columns[name].append(self._optional(place, name, record.get(name)))

    def _optional(self, place: str, name: str, raw: object) -> float:
        if raw is None or raw == "":
            return math.nan
        value = _number(raw)
        if value is None or not 0.0 <= value <= MOST:
            self._problem(f"with {name} that is not a number from 0 to {MOST:g} (ignored)", place, repr(raw))
            return math.nan
        if name == "propensity" and not 0.0 < value <= 1.0:
            self._problem("with a propensity that is not above 0 and at most 1 (ignored)", place, repr(raw))
            return math.nan
        return value

    def _prompt(self, place: str, record: Mapping[str, object]) -> Prompt | None:
        prompt, messages = record.get("prompt"), record.get("messages")
        if isinstance(prompt, str) and prompt.strip():
            return prompt
        if isinstance(messages, str) and messages.strip():
            try:
                messages = msgspec.json.decode(messages)
            except msgspec.DecodeError as error:
                self._problem("with messages that are not JSON", place, str(error))
                return None
        if isinstance(messages, list) and messages and all(isinstance(m, dict) and "content" in m for m in messages):
            return messages
        self._problem("without a prompt", place, repr(prompt if prompt is not None else messages)[:80])
        return None

    def _problem(self, name: str, place: str, what: str) -> None:
        self._count(name, 1, f"first at {place}: {what[:120]}")

    def _count(self, name: str, count: int, example: str) -> None:
        self.problems[name] += count
        self.examples.setdefault(name, example)


def _number(raw: object) -> float | None:
    if isinstance(raw, bool):
        return float(raw)
    if isinstance(raw, int | float | Decimal):
        try:
            return float(raw)
        except OverflowError:
            return math.inf if raw > 0 else -math.inf
    if isinstance(raw, str):
        lowered = raw.strip().lower()
        if lowered in ("true", "false"):
            return float(lowered == "true")
        try:
            return float(lowered)
        except ValueError:
            return None
    return None


def _time(raw: object) -> float:
    number = _number(raw)
    if number is not None:
        return number if math.isfinite(number) else math.nan
    try:
        moment = datetime.fromisoformat(raw) if isinstance(raw, str) else raw
    except ValueError:
        return math.nan
    if not isinstance(moment, datetime):
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _shorten(prompt: Prompt) -> str:
    return repr(prompt if isinstance(prompt, str) else prompt[-1].get("content"))[:60]
