"""Putting a candidate head in service: judged against the one that serves, the previous one kept, a worse one refused.

Enters: a router folder, a folder with a candidate head for the same backbone, and outcomes neither was fitted on.
Leaves: a `Verdict`, and when it is good the candidate's files in place of the current ones. Knows no gateway; one that
serves this folder takes the new head when it is told to reload.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onebeat.conductor.learning import off_policy
from onebeat.conductor.learning.artifact import DESCRIPTION, TENSORS, read_head, write_head
from onebeat.conductor.learning.costs import Price, costs
from onebeat.conductor.learning.curves import Choices, Doubles, choose
from onebeat.conductor.learning.features import Reading, extract
from onebeat.conductor.learning.fit import side_by_side
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.splits import MAX_PROMPTS, sample_prompts
from onebeat.engine.errors import InputError
from onebeat.engine.head import Head

PREVIOUS = "previous"
TRADEOFFS = (0.25, 0.5, 0.75)
TOLERANCE = 0.002
"""Utility that a candidate may lose and still be called equal: two answers in a thousand."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the candidate did against the current head. Utility is `tradeoff * score - (1 - tradeoff) * cost / ref`."""

    prompts: int
    how: str
    gain: float
    low: float
    high: float
    """95 % interval of the gain."""

    @property
    def worse(self) -> bool:
        """Refused: the candidate loses more than the tolerance, or may lose ten times as much."""
        return self.gain < -TOLERANCE or self.low < -10 * TOLERANCE

    def sentence(self) -> str:
        """The verdict in words."""
        said = "is worse" if self.worse else "is no worse"
        return (
            f"the candidate {said}: mean utility {self.gain:+.4f} [{self.low:+.4f}, {self.high:+.4f}] over "
            f"{self.prompts} prompts ({self.how})"
        )


@dataclass(frozen=True, slots=True)
class _Predicted:
    quality: Doubles
    cost_usd: Doubles
    actual_usd: Doubles
    reference: float


def judge(router: Path, candidate: Path, outcomes: Outcomes, *, cache_folder: Path | None = None) -> Verdict:
    """Compares on outcomes where every shared model answered, else on a log with propensities.

    Raises `InputError` where neither can be done.
    """
    current, proposed = read_head(router), read_head(candidate)
    names = [column["name"] for column in proposed[0]["columns"]]
    shared = [name for name in names if name in outcomes.models]
    lost = {column["name"] for column in current[0]["columns"]} - set(names)
    if len(shared) < 2:
        raise InputError(f"the outcomes name {len(shared)} of the candidate's columns; a comparison needs two.")
    table = outcomes.with_models(shared)
    chosen = sample_prompts(table.prompts, table.groups, MAX_PROMPTS)
    drawn = f", a seeded sample of {len(table.prompts):,}" if len(chosen) < len(table.prompts) else ""
    table = table.select(chosen) if drawn else table
    ours = [name for name in shared if name not in lost]
    before = _predict(router, router, current, table, ours, cache_folder)
    after = _predict(router, candidate, proposed, table, shared, cache_folder)
    complete = np.asarray(np.isfinite(table.score).all(1))
    verdict = _paired(before, after, table, complete) if complete.sum() >= 30 else _from_log(after, table)
    return replace(verdict, how=verdict.how + drawn)


def promote(router: Path, candidate: Path, stamp: str) -> Path:
    """Keeps the current head under `previous/STAMP` and puts the candidate's in place. Returns where it was kept."""
    description, tensors = read_head(candidate)
    kept = router / PREVIOUS / stamp
    if kept.exists():
        raise InputError(f"{kept} is there already; promote again in a second.")
    kept.mkdir(parents=True)
    for name in (DESCRIPTION, TENSORS):
        shutil.copyfile(router / name, kept / name)
    write_head(router, description, tensors)
    return kept


def roll_back(router: Path) -> Path:
    """Puts the newest kept head back. Returns where it came from. Raises `InputError` when none was kept."""
    kept = sorted(path for path in (router / PREVIOUS).glob("*") if (path / TENSORS).is_file())
    if not kept:
        raise InputError(f"{router} keeps no previous head; there is nothing to go back to.")
    description, tensors = read_head(kept[-1])
    write_head(router, description, tensors)
    shutil.rmtree(kept[-1])
    return kept[-1]


def _predict(
    backbone: Path,
    folder: Path,
    head: tuple[dict[str, Any], Mapping[str, np.ndarray[Any, Any]]],
    table: Outcomes,
    names: list[str],
    cache_folder: Path | None,
) -> _Predicted:
    description, tensors = head
    columns = [column["name"] for column in description["columns"]]
    taps = tuple((tap["layer"], tap["pooling"]) for tap in description["taps"])
    precision = description["fitted"].get("precision", "int8")
    reading = Reading(taps, description["template"], description["max_prompt_tokens"], precision)
    features = extract(backbone, table.prompts, reading, cache_folder=cache_folder)
    if features.refused:
        raise InputError(f"{len(features.refused)} prompts of the outcomes cannot be read; leave them out.")
    states = side_by_side(features.states, taps)
    loaded = Head.from_tensors(
        tensors,
        kind=description["head"]["kind"],
        columns=columns,
        features=states.shape[1],
        calibration=description["calibration"],
    )
    quality, tokens = loaded.score_in_bulk(states)
    held_quality = np.full(table.score.shape, -np.inf)
    predicted, actual = np.full(table.score.shape, np.inf), np.zeros(table.score.shape)
    for name in names:
        if name not in columns:
            continue
        at, place = columns.index(name), table.models.index(name)
        column = description["columns"][at]
        price = Price(column["input_usd_per_million"], column["output_usd_per_million"])
        money = costs(table.with_models([name]), [price], features.prompt_tokens, tokens[:, at : at + 1])
        held_quality[:, place] = quality[:, at]
        predicted[:, place], actual[:, place] = money.predicted[:, 0], money.actual[:, 0]
    if not np.isfinite(held_quality).any():
        raise InputError(f"{folder} scores none of the models in the outcomes.")
    return _Predicted(held_quality, predicted, actual, float(description["dial"]["reference_cost_usd"]))


def _choices(predicted: _Predicted, tradeoff: float, reference: float) -> Choices:
    quality = np.where(np.isfinite(predicted.quality), predicted.quality, -1.0)
    cost = np.where(np.isfinite(predicted.cost_usd), predicted.cost_usd, 1e9)
    return choose(quality, cost, tradeoff, reference)


def _paired(before: _Predicted, after: _Predicted, table: Outcomes, complete: np.ndarray[Any, Any]) -> Verdict:
    """Both heads on the same dial, so that a head is not called better for standing on another point of its curve."""
    rows = np.flatnonzero(complete)
    reference = before.reference
    gains = np.zeros(len(rows))
    for tradeoff in TRADEOFFS:
        for sign, predicted in ((-1.0, before), (1.0, after)):
            chosen = _choices(predicted, tradeoff, reference)[rows]
            reward = tradeoff * table.score[rows, chosen] - (1 - tradeoff) * after.actual_usd[rows, chosen] / reference
            gains += sign * reward / len(TRADEOFFS)
    half = 1.96 * float(gains.std(ddof=1)) / len(gains) ** 0.5
    mean = float(gains.mean())
    return Verdict(len(rows), "every model's answer is known", mean, mean - half, mean + half)


def _from_log(after: _Predicted, table: Outcomes) -> Verdict:
    known = np.isfinite(table.score) & np.isfinite(table.propensity)
    rows = np.flatnonzero(known.sum(1) == 1)
    if not len(rows):
        raise InputError(
            "no prompt has every model's score, and none has one score with its propensity: nothing to judge "
            "a candidate by; give paired outcomes, or a ledger with propensities."
        )
    choice = known[rows].argmax(1)
    reference, tradeoff = after.reference, 0.5
    cost_share = (1 - tradeoff) * np.where(np.isfinite(after.cost_usd), after.cost_usd, 0.0)[rows] / reference
    score = table.score[rows, choice].astype(np.float64)
    spent = (1 - tradeoff) * after.actual_usd[rows, choice] / reference
    log = off_policy.Log(choice, table.propensity[rows, choice].astype(np.float64), tradeoff * score - spent)
    modelled = tradeoff * np.where(np.isfinite(after.quality), after.quality, 0.0)[rows] - cost_share
    found = off_policy.compare(log, _choices(after, tradeoff, reference)[rows], modelled)
    how = f"doubly robust from the log, {found.effective_prompts:.0f} effective prompts"
    return Verdict(len(rows), how, found.gain.value, found.gain.low, found.gain.high)
