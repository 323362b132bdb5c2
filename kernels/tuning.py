"""Which tile sizes a kernel uses: a committed table of measured configurations, with defaults where none was measured.

Enters: an op, what the GPU is, a shape. Leaves: a configuration. tools/tune_kernels rewrites the table (tuning.json).
An entry may name a GPU, a Triton version (major.minor), an upper bound on rows and one weight shape; what it leaves out
fits everything. The most specific entry wins. Attention's entries depend on the head size (and element size) alone, not
on how long or how many the sequences are: its sums must not change with the batch. The int8 product's may, for its sums
are exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from onebeat.engine.errors import ConfigError
from onebeat.kernels.backend import MISSING, Facts, triton

TABLE = Path(__file__).with_name("tuning.json")
FORMAT_VERSION = 1
ROW_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Rows of an int8 product up to which one configuration serves; above the last, the entry without `rows_to`."""


@dataclass(frozen=True, slots=True)
class MatmulConfig:
    """Tiles of the int8 product."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group_m: int = 8
    """Rows of tiles that are walked together, so that they share weights in L2."""
    split_k: int | None = None
    """Into how many parts the depth is cut; None: as many as it takes to fill the GPU."""
    tma: bool = False
    """Whether tiles are loaded through TMA descriptors (Hopper and newer)."""
    swap: bool = False
    """Whether the weight is the matrix instruction's left side, which takes 64 rows at least: for few tokens."""
    persistent: bool = False
    """Whether one program per processor walks over many tiles."""


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Tiles of attention, plain and paged."""

    block_m: int
    """Rows of a query tile: tokens times the heads of one group."""
    block_n: int
    """Keys of a tile."""
    warps: int
    stages: int


Config = MatmulConfig | AttentionConfig
KINDS: dict[str, type[MatmulConfig] | type[AttentionConfig]] = {
    "int8_matmul": MatmulConfig,
    "int8_matmul_swiglu": MatmulConfig,
    "attention": AttentionConfig,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the table."""

    op: str
    arch: str
    config: Config
    gpu: str | None = None
    triton: str | None = None
    rows_to: int | None = None
    """The configuration serves up to this many rows (int8 product)."""
    columns: int | None = None
    depth: int | None = None
    head_size: int | None = None
    element_bytes: int | None = None
    measured: dict[str, Any] | None = None
    """Median and spread in microseconds, the date and the commit, where it was measured; None: a default."""

    @property
    def weight(self) -> tuple[bool, bool, bool]:
        """How specific the entry is; the larger tuple wins."""
        return self.gpu is not None, self.triton is not None, self.columns is not None


def parse(text: str, place: str) -> tuple[Entry, ...]:
    """Reads a table. Raises ConfigError that names the entry and the nearest valid key."""
    data = json.loads(text)
    if data.get("format_version") != FORMAT_VERSION:
        got = data.get("format_version")
        raise ConfigError(
            f"{place} has format_version {got}, but this onebeat reads {FORMAT_VERSION}: rewrite the table"
        )
    return tuple(_entry(raw, f"{place}, entry {index}") for index, raw in enumerate(data["entries"]))


def _entry(raw: dict[str, Any], place: str) -> Entry:
    op = raw.get("op")
    if op not in KINDS:
        raise ConfigError(f"{place} is for op {op!r}, but there are only {', '.join(KINDS)}")
    kind = KINDS[op]
    _expect_keys(raw, {item.name for item in fields(Entry)}, place)
    _expect_keys(raw["config"], {item.name for item in fields(kind)}, place)
    return Entry(**{**raw, "config": kind(**raw["config"])})


def _expect_keys(raw: dict[str, Any], known: set[str], place: str) -> None:
    for key in raw:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.0)
            raise ConfigError(f"{place} has the unknown key {key!r}; the nearest known one is {near[0]!r}")


@lru_cache(maxsize=1)
def table() -> tuple[Entry, ...]:
    """The committed table."""
    return parse(TABLE.read_text(encoding="utf-8"), TABLE.name)


def dump(entries: tuple[Entry, ...]) -> str:
    """The table's text: one entry a line, so that a change reads well in a diff."""
    lines = []
    for entry in entries:
        raw = {item.name: getattr(entry, item.name) for item in fields(entry)}
        raw["config"] = {item.name: getattr(entry.config, item.name) for item in fields(entry.config)}
        lines.append("    " + json.dumps({key: value for key, value in raw.items() if value is not None}))
    return f'{{\n  "format_version": {FORMAT_VERSION},\n  "entries": [\n' + ",\n".join(lines) + "\n  ]\n}\n"


def triton_version() -> str:
    """Major and minor of the Triton at hand: the table's `triton`."""
    return "none" if MISSING is not None else ".".join(triton.__version__.split(".")[:2])


def fits(entry: Entry, op: str, gpu: Facts, arch: str) -> bool:
    """Whether the entry is for this op on this GPU under this Triton."""
    return (
        entry.op == op
        and entry.arch == arch
        and entry.gpu in (None, gpu.name)
        and entry.triton in (None, triton_version())
    )


def nearest_arch(arch: str) -> str:
    """The arch whose entries serve: its own, else the nearest older one (sm_86 as sm_80, sm_120 as sm_100)."""
    known = {entry.arch for entry in table()}
    if arch in known:
        return arch
    if not arch.startswith("sm_"):
        return "sm_80"
    older = [int(name[3:]) for name in known if name.startswith("sm_") and int(name[3:]) <= int(arch[3:])]
    if not older:
        raise ConfigError(f"this GPU is {arch}, but onebeat's kernels need sm_80 (Ampere) or newer: use the CPU")
    return f"sm_{max(older)}"


@lru_cache(maxsize=1024)
def matmul_config(op: str, gpu: Facts, bucket: int | None, columns: int, depth: int) -> MatmulConfig:
    """The int8 product's configuration for up to `bucket` rows (None: more than any bucket) and one weight shape."""
    arch = nearest_arch(gpu.arch)
    found = [
        entry
        for entry in table()
        if fits(entry, op, gpu, arch)
        and entry.rows_to == bucket
        and entry.columns in (None, columns)
        and entry.depth in (None, depth)
    ]
    if not found:
        raise ConfigError(
            f"{TABLE.name} has no {op} for {arch} and rows up to {bucket}: run tools/tune_kernels --defaults"
        )
    config = max(found, key=lambda entry: entry.weight).config
    assert isinstance(config, MatmulConfig)
    return config


def row_bucket(rows: int) -> int | None:
    """The bucket that holds so many rows."""
    return next((bucket for bucket in ROW_BUCKETS if rows <= bucket), None)


@lru_cache(maxsize=64)
def attention_config(gpu: Facts, head_size: int, element_bytes: int) -> AttentionConfig:
    """Attention's configuration: by head size and element size alone."""
    arch = nearest_arch(gpu.arch)
    found = [
        entry
        for entry in table()
        if fits(entry, "attention", gpu, arch) and (entry.head_size, entry.element_bytes) == (head_size, element_bytes)
    ]
    if not found:
        raise ConfigError(f"{TABLE.name} has no attention for {arch} and head size {head_size}: run tools/tune_kernels")
    config = max(found, key=lambda entry: entry.weight).config
    assert isinstance(config, AttentionConfig)
    return config
