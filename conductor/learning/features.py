"""Pooled states of many prompts, by the engine itself, in packed batches, with a cache that survives interruption.

Enters: prompts, a backbone folder, and where to tap it. Leaves: `[n, H]` per tap and the prompts' lengths. The ids and
the arithmetic are those of serving: same template, same cut, same precision, same chunks. Knows no outcomes.

The cache is a folder per (backbone, template, budget, precision, taps) with parts of some hundred prompts, each written
whole or not at all; a second run, or one after an interruption, computes only what is missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.fit import TapName
from onebeat.engine.as_served import served_backbone, served_weights
from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import InputError
from onebeat.engine.int8_file import FORMAT as INT8_FORMAT
from onebeat.engine.loading import Precision
from onebeat.engine.records import Prompt
from onebeat.engine.runner import Runner, TapPooling
from onebeat.engine.tokens import PromptTokenizer

log = logging.getLogger("onebeat.learning")
Floats = NDArray[np.float32]
PART_TOKENS = 10_000
"""Tokens between two writes to the cache: some seconds' work of two cores at the default tap."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How prompts are read: everything that changes a feature."""

    taps: tuple[TapName, ...]
    template: str = "{prompt}"
    max_prompt_tokens: int = 2048
    precision: Precision = "int8"


@dataclass(frozen=True, slots=True)
class Features:
    """Features of the prompts that could be read."""

    states: dict[TapName, Floats]
    """[k, H] per tap."""
    prompt_tokens: NDArray[np.int64]
    """[k] of the whole prompt, before any cut."""
    cut_tokens: NDArray[np.int64]
    """[k] left out of the middle of a prompt that is longer than the budget; else 0."""
    rows: NDArray[np.int64]
    """[k] positions, in the list that was given, of the prompts that could be read."""
    refused: dict[int, str]
    """Why the others could not."""


def extract(
    folder: Path,
    prompts: Sequence[Prompt],
    reading: Reading,
    *,
    cache_folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """Features of `prompts`. Raises as the engine does for a backbone or tokenizer that cannot be used."""
    config = BackboneConfig.load(folder)
    check_taps(reading.taps, config)
    tokenizer = PromptTokenizer(
        folder, template=reading.template, max_prompt_tokens=reading.max_prompt_tokens, vocab_size=config.vocab_size
    )
    layers = [layer for layer, _ in reading.taps]
    weights = served_weights(folder, config, max(layers), reading.precision)
    cache = _Cache.open(cache_folder, weights.sha256, reading)
    width = config.hidden_size
    table = _Table({tap: np.zeros((len(prompts), width), np.float32) for tap in reading.taps})
    for row, prompt in enumerate(prompts):
        table.rows.setdefault(_key(prompt), []).append(row)
    known = cache.load(table)
    missing: dict[bytes, NDArray[np.int32]] = {}
    refused: dict[int, str] = {}
    tokens, cut = np.zeros(len(prompts), np.int64), np.zeros(len(prompts), np.int64)
    for key, same in table.rows.items():
        try:
            prepared = tokenizer.prepare(prompts[same[0]])
        except InputError as error:
            refused |= dict.fromkeys(same, str(error))
            continue
        tokens[same], cut[same] = prepared.prompt_tokens, prepared.cut_tokens
        if key not in known:
            missing[key] = np.asarray(prepared.token_ids, np.int32)
    if missing:
        backbone = served_backbone(
            config, weights, tokenizer, layers, reading.precision, max_prompt_tokens=reading.max_prompt_tokens
        )
        runner = Runner(backbone, [_pooling(pooling) for _, pooling in reading.taps])
        total = len(known) + len(missing)
        done = len(known)
        progress(done, total)
        for part in _parts(missing):
            computed = runner.features([missing.pop(key).tolist() for key in part]).numpy()
            cache.save(part, computed)
            for key, row in zip(part, computed, strict=True):
                table.put(key, row)
            done += len(part)
            progress(done, total)
    rows = np.array([row for row in range(len(prompts)) if row not in refused], np.int64)
    states = {tap: held if not refused else held[rows] for tap, held in table.states.items()}
    return Features(states, tokens[rows], cut[rows], rows, refused)


def check_taps(taps: Sequence[TapName], config: BackboneConfig) -> None:
    """Raises `InputError` unless the taps ascend, each layer once, within the backbone."""
    layers = [layer for layer, _ in taps]
    if not layers or sorted(set(layers)) != layers or layers[0] < 0 or layers[-1] > config.layers:
        raise InputError(
            f"taps are at layers {layers}; they must ascend, each layer once, from 0 to the backbone's {config.layers}."
        )


def _pooling(name: str) -> TapPooling:
    if name == "mean":
        return "mean"
    if name == "last":
        return "last"
    raise InputError(f"pooling is {name!r}; it is mean or last.")


def _key(prompt: Prompt) -> bytes:
    exact = prompt.encode("utf-8", "surrogatepass") if isinstance(prompt, str) else msgspec.json.encode(prompt)
    return hashlib.blake2b(exact, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _Table:
    """The features of all prompts, filled in as they come: there is one copy of them."""

    states: dict[TapName, Floats]
    """[n, H] per tap."""
    rows: dict[bytes, list[int]] = field(default_factory=dict)
    """Where each prompt stands, by its key."""

    @property
    def width(self) -> int:
        """taps*H"""
        return sum(held.shape[1] for held in self.states.values())

    def put(self, key: bytes, features: Floats) -> None:
        """[taps*H] of one prompt."""
        width = len(features) // len(self.states)
        for index, held in enumerate(self.states.values()):
            held[self.rows[key]] = features[index * width : (index + 1) * width]


def _parts(missing: dict[bytes, NDArray[np.int32]]) -> Iterator[list[bytes]]:
    """Keys in parts of so many tokens; whoever takes a part may take its prompts out of `missing`."""
    part: list[bytes] = []
    tokens = 0
    for key, ids in list(missing.items()):
        part.append(key)
        tokens += len(ids)
        if tokens >= PART_TOKENS:
            yield part
            part, tokens = [], 0
    if part:
        yield part


@dataclass(frozen=True, slots=True)
class _Cache:
    """Parts on disk: `keys` [k, 16] bytes and `states` [k, taps*H]."""

    folder: Path | None

    @classmethod
    def open(cls, parent: Path | None, weights_sha256: str, reading: Reading) -> _Cache:
        if parent is None:
            return cls(None)
        # The tap decides up to where int8 is calibrated, and the format how: both are part of what is read.
        what = msgspec.json.encode([weights_sha256, reading, INT8_FORMAT if reading.precision == "int8" else None])
        folder = parent / hashlib.blake2b(what, digest_size=12).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def load(self, table: _Table) -> set[bytes]:
        """Fills in what is there. Returns the keys of it."""
        found: set[bytes] = set()
        for path in sorted(self.folder.glob("*.npz")) if self.folder else ():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
                    keys, states = part["keys"], part["states"]
                if states.shape != (len(keys), table.width) or not np.isfinite(states).all():
                    raise ValueError(f"it holds {states.shape} where {len(keys)} rows of {table.width} are expected")
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
                # A disk that was full, a copy that broke off: what it held is computed again.
                log.warning("%s of the feature cache cannot be used (%s); its prompts are read again", path, error)
                path.unlink(missing_ok=True)
                continue
            for row, key in enumerate(keys):
                if key.tobytes() in table.rows:
                    table.put(key.tobytes(), states[row])
                    found.add(key.tobytes())
        return found

    def save(self, keys: list[bytes], states: Floats) -> None:
        if self.folder is None:
            return
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".half-", delete=False) as half:
            np.savez(half, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16), states=states)
            half.flush()
            os.fsync(half.fileno())
        Path(half.name).replace(self.folder / f"{hashlib.blake2b(b''.join(keys), digest_size=12).hexdigest()}.npz")
