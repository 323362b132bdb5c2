"""What a router is on disk: `router.json`, read strictly.

Enters: a folder. Leaves: a frozen `RouterConfig`. Knows nothing of tensors; the inside of `calibration`, `fitted` and
`drift` belongs to whoever fits heads and passes through as plain JSON.

    {"format_version": 1, "name": "mine", "taps": [{"layer": 20, "pooling": "mean"}], "template": "chat",
     "max_prompt_tokens": 2048, "columns": [{"name": "gpt-4o", "input_usd_per_million": 2.5,
     "output_usd_per_million": 10}], "head": {"kind": "linear"}, "dial": {"reference_cost_usd": 0.01}}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import FormatError
from onebeat.engine.records import Column
from onebeat.engine.strict_json import read_object, record, shown

FORMAT_VERSION = 1
PROMPT_MARK = "{prompt}"
LEAST_PROMPT_TOKENS = 16
DEFAULT_PROMPT_TOKENS = 2048
TYPICAL_INPUT_TOKENS = 500
TYPICAL_OUTPUT_TOKENS = 500
"""A typical request, for the dial's reference cost where router.json and its columns' mean lengths give none."""


@dataclass(frozen=True, slots=True)
class Tap:
    """Where features are taken: after `layer` layers (0 is the embedding), pooled over the prompt's tokens."""

    layer: int
    pooling: Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """What turns features into scores.

    `linear`, `low_rank`, `mlp` and `kernel` are onebeat's own, in router_head.safetensors. The others are foreign:
    `sequence_classification` (`score.weight` of a `*ForSequenceClassification` checkpoint), `causal_classifier`
    (RouteLLM's: five appended label tokens) and `bare` (TRINITY's: one matrix `[n, hidden]`).
    """

    kind: str
    tensor: str | None = None
    """Bare heads: the name of the matrix in router_head.safetensors, where there are several."""
    token: Literal["last", "penultimate"] = "last"
    """Bare heads: whose state is read. TRINITY reads the last but one."""
    activation: Literal["softmax", "sigmoid"] | None = None
    """Sequence classification and bare heads: how logits become qualities."""
    label_tokens: tuple[str, ...] = ("[[1]]", "[[2]]", "[[3]]", "[[4]]", "[[5]]")
    """Causal classifiers: the appended tokens, worst grade first."""


@dataclass(frozen=True, slots=True)
class Dial:
    """What anchors the tradeoff between quality and dollars."""

    reference_cost_usd: float | None = None
    """What a typical answer of the dearest column costs."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """A checked router.json."""

    name: str
    taps: tuple[Tap, ...]
    columns: tuple[Column, ...]
    head: HeadConfig
    template: str = "chat"
    """`chat` (the tokenizer's chat template), or a text that holds `{prompt}` once."""
    max_prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    """Longer prompts are cut to this many tokens, template included, by leaving out their middle."""
    calibration: dict[str, Any] | None = None
    dial: Dial = Dial()
    fitted: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def load(cls, folder: Path) -> RouterConfig:
        """Reads `folder/router.json`. Raises `FormatError` in one sentence."""
        path = folder / "router.json"
        if not path.is_file():
            raise FormatError(
                f"{folder} has no router.json: it is a backbone without a head; "
                "fit one with `onebeat train`, or describe the head that it has in a router.json."
            )
        return cls.from_json(read_object(path), str(path))

    @classmethod
    def from_json(cls, found: dict[str, Any], place: str = "router.json") -> RouterConfig:
        """The config that a decoded router.json describes; `place` names it in errors."""
        version = found.get("format_version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise FormatError(f"{place}: format_version is {shown(version)}; it must be {FORMAT_VERSION}.")
        if version > FORMAT_VERSION:
            raise FormatError(
                f"{place} is of format version {version} and this onebeat reads up to {FORMAT_VERSION}; "
                "upgrade onebeat."
            )
        for index, item in enumerate(_objects(found, "taps", place)):
            record(item, Tap, f"{place}, taps[{index}]")
        for index, item in enumerate(_objects(found, "columns", place)):
            record(item, Column, f"{place}, columns[{index}]")
        record(_object(found, "head", place), HeadConfig, f"{place}, head")
        record(_object(found, "dial", place), Dial, f"{place}, dial")
        config = record(found, cls, place)
        config._check(place)
        return config

    @property
    def reference_cost_usd(self) -> float:
        """The dial's anchor: as written, else the dearest column's typical answer, else (no prices) a dollar."""
        if self.dial.reference_cost_usd is not None:
            return self.dial.reference_cost_usd
        return max(_typical_cost_usd(column) for column in self.columns) or 1.0

    @property
    def last_layer(self) -> int:
        """How many layers the forward pass needs."""
        return max(tap.layer for tap in self.taps)

    def check_backbone(self, backbone: BackboneConfig, place: str) -> None:
        """Raises `FormatError` where this router asks for layers or positions that the backbone does not have."""
        for tap in self.taps:
            if tap.layer > backbone.layers:
                raise FormatError(
                    f"{place} taps layer {tap.layer} and the backbone has {backbone.layers}; "
                    "tap a layer that it has, or use the backbone that the head was fitted on."
                )
        if self.max_prompt_tokens > backbone.max_positions:
            raise FormatError(
                f"{place}: max_prompt_tokens is {self.max_prompt_tokens} and the backbone reads "
                f"{backbone.max_positions} positions; lower max_prompt_tokens."
            )

    def _check(self, place: str) -> None:
        """The rules that types do not express."""
        if not self.taps or not self.columns:
            raise FormatError(
                f"{place} has {len(self.taps)} taps and {len(self.columns)} columns; it needs one of each."
            )
        layers = [tap.layer for tap in self.taps]
        if layers[0] < 0 or sorted(set(layers)) != layers:
            raise FormatError(f"{place}: taps are at layers {layers}; they must ascend from 0 on, each layer once.")
        names = [column.name for column in self.columns]
        for name in names:
            if not name.strip() or names.count(name) > 1:
                raise FormatError(f"{place}: {names.count(name)} columns are called {name!r}; each needs its own name.")
        for column in self.columns:
            _check_column(column, place)
        if (problem := template_problem(self.template)) is not None:
            raise FormatError(f"{place}: template {problem}.")
        if self.max_prompt_tokens < LEAST_PROMPT_TOKENS:
            raise FormatError(
                f"{place}: max_prompt_tokens is {self.max_prompt_tokens}; it must be {LEAST_PROMPT_TOKENS} or more."
            )
        reference = self.dial.reference_cost_usd
        if reference is not None and not 0.0 < reference < 1e6:
            raise FormatError(f"{place}: dial.reference_cost_usd is {reference}; it must be dollars above 0.")


def template_problem(template: str) -> str | None:
    """What is wrong with a prompt template, in words that follow its name; None where nothing is."""
    if template == "chat" or template.count(PROMPT_MARK) == 1:
        return None
    return f'is {shown(template)}; it must be "chat" or hold {PROMPT_MARK} exactly once'


def _object(found: dict[str, Any], key: str, place: str) -> dict[str, Any]:
    value = found.get(key, {})
    if not isinstance(value, dict):
        raise FormatError(f"{place}: {key} is {shown(value)}; it must be an object.")
    return value


def _objects(found: dict[str, Any], key: str, place: str) -> list[dict[str, Any]]:
    value = found.get(key, [])
    if not isinstance(value, list):
        raise FormatError(f"{place}: {key} is {shown(value)}; it must be a list.")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise FormatError(f"{place}: {key}[{index}] is {shown(item)}; it must be an object.")
    return value


def _check_column(column: Column, place: str) -> None:
    ranges = {
        "input_usd_per_million": (column.input_usd_per_million, 1e6),
        "output_usd_per_million": (column.output_usd_per_million, 1e6),
        "mean_quality": (column.mean_quality, 1.0),
        "mean_output_tokens": (column.mean_output_tokens, 1e9),
    }
    for key, (value, largest) in ranges.items():
        if value is not None and not 0.0 <= value <= largest:
            raise FormatError(f"{place}: {key} of column {column.name!r} is {value}; it must be 0 to {largest:g}.")


def _typical_cost_usd(column: Column) -> float:
    output_tokens = column.mean_output_tokens or TYPICAL_OUTPUT_TOKENS
    dollars = TYPICAL_INPUT_TOKENS * column.input_usd_per_million + output_tokens * column.output_usd_per_million
    return dollars / 1e6
