"""Putting a candidate head in service: judged against the one that serves, the previous one kept, a worse one refused.

Enters: a router folder, a folder with a candidate head for the same backbone, and outcomes neither was fitted on.
Leaves: a `Verdict`, and when it is good the candidate's files in place of the current ones. Knows no gateway; one that
serves this folder takes the new head when it is told to reload.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
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
from onebeat.conductor.learning.fitted import fitted_among, fitted_by_name
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.splits import MAX_PROMPTS, sample_prompts
from onebeat.engine.errors import InputError
from onebeat.engine.head import Head

PREVIOUS = "previous"
TRADEOFFS = (0.25, 0.5, 0.75)
LEAST_PAIRED = 30
"""Prompts with every model's score from which two heads are compared on them; else a log is needed."""
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
    warnings: tuple[str, ...] = ()

    @property
    def worse(self) -> bool:
        """Refused: the candidate loses more than the tolerance, or may lose ten times as much."""
        return self.gain < -TOLERANCE or self.low < -10 * TOLERANCE

    def sentence(self) -> str:
        """The verdict in words."""
        said = "is no worse"
        if self.worse:
            said = "is worse" if self.gain < -TOLERANCE else "is not shown to be no worse"
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


def judge(
    router: Path,
    candidate: Path,
    outcomes: Outcomes,
    *,
    files: Sequence[str] = (),
    cache_folder: Path | None = None,
) -> Verdict:
    """Compares on outcomes where every shared model answered, else on a log with propensities.

    Prompts that a head was fitted on are left out. `files` are the names of the files that the outcomes were read from,
    for a head from before it kept hashes of its prompts: of a file that it was fitted on, by name, only the prompts
    that its split held out are used. Raises `InputError` where nothing can be compared.
    """
    current, proposed = read_head(router), read_head(candidate)
    names = [column["name"] for column in proposed[0]["columns"]]
    lost = [column["name"] for column in current[0]["columns"] if column["name"] not in names]
    unjudged = [name for name in lost if name not in outcomes.models]
    if unjudged:
        raise InputError(
            f"the candidate has no column for {', '.join(unjudged)}, which the serving head has, and no outcome names "
            "it, so the loss cannot be measured; give outcomes of it, or fit the candidate with it."
        )
    shared = [name for name in names if name in outcomes.models]
    if len(shared) < 2:
        raise InputError(f"the outcomes name {len(shared)} of the candidate's columns; a comparison needs two.")
    table = outcomes.with_models([*shared, *lost])
    table, warnings = _unseen(table, files, {"serving head": current[0], "candidate": proposed[0]})
    chosen = sample_prompts(table.prompts, table.groups, MAX_PROMPTS)
    drawn = f", a seeded sample of {len(table.prompts):,}" if len(chosen) < len(table.prompts) else ""
    table = table.select(chosen) if drawn else table
    before = _predict(router, router, current, table, cache_folder)
    after = _predict(router, candidate, proposed, table, cache_folder)
    complete = np.asarray(np.isfinite(table.score).all(1))
    verdict = (
        _paired(before, after, table, complete) if complete.sum() >= LEAST_PAIRED else _from_log(before, after, table)
    )
    without = f", the candidate without {', '.join(lost)}" if lost else ""
    return replace(verdict, how=verdict.how + without + drawn, warnings=warnings)


def _unseen(
    table: Outcomes, files: Sequence[str], heads: Mapping[str, Mapping[str, Any]]
) -> tuple[Outcomes, tuple[str, ...]]:
    """The prompts that no head was fitted on, as far as router.json tells, and what it cannot tell."""
    unseen, warnings = np.ones(len(table.prompts), bool), []
    for who, description in heads.items():
        fitted, how = description["fitted"], "by their hashes"
        among = fitted_among(fitted, table.prompts)
        if among is None:
            among, names = fitted_by_name(fitted, table, files)
            how = f"by the name of {names} and its split"
        if among is None:
            warnings.append(f"the {who} was fitted on a file named {names}: its figures here may flatter it")
        elif among.any():
            warnings.append(f"the {who} was fitted on {among.sum()} of the {len(among)} prompts, left out ({how})")
            unseen &= ~among
    if not unseen.any():
        raise InputError(
            f"each of the {len(unseen)} prompts was fitted on by one of the heads; give outcomes that neither has seen."
        )
    return (table if unseen.all() else table.select(np.flatnonzero(unseen))), tuple(warnings)


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


def roll_back(router: Path, stamp: str | None = None) -> Path:
    """Puts a kept head back, the newest unless `stamp` names one, and keeps in its place the head that served.

    So rolling back twice changes nothing. Returns the folder that the two changed places in. Raises `InputError` when
    there is none.
    """
    kept = sorted(path for path in (router / PREVIOUS).glob("*") if (path / TENSORS).is_file())
    chosen = [path for path in kept if stamp is None or path.name == stamp]
    if not chosen:
        held = f"it keeps {', '.join(path.name for path in kept)}" if kept else "there is nothing to go back to"
        raise InputError(f"{router} keeps no previous head{'' if stamp is None else f' {stamp}'}; {held}.")
    description, tensors = read_head(chosen[-1])
    replaced, replaced_tensors = read_head(router)
    write_head(router, description, tensors)
    write_head(chosen[-1], replaced, replaced_tensors)
    return chosen[-1]


def _predict(
    backbone: Path,
    folder: Path,
    head: tuple[dict[str, Any], Mapping[str, np.ndarray[Any, Any]]],
    table: Outcomes,
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
    predicted, actual = np.full(table.score.shape, np.inf), np.full(table.score.shape, np.nan)
    for name in table.models:
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
    reference, spent = before.reference, _spent(before, after)
    gains = np.zeros(len(rows))
    for tradeoff in TRADEOFFS:
        for sign, predicted in ((-1.0, before), (1.0, after)):
            chosen = _choices(predicted, tradeoff, reference)[rows]
            reward = tradeoff * table.score[rows, chosen] - (1 - tradeoff) * spent[rows, chosen] / reference
            gains += sign * reward / len(TRADEOFFS)
    gain = off_policy.mean_of(gains, table.weight[rows].mean(1).astype(np.float64))
    return Verdict(len(rows), "every model's answer is known", gain.value, gain.low, gain.high)


def _from_log(before: _Predicted, after: _Predicted, table: Outcomes) -> Verdict:
    """Both heads by one estimator on one log, at the same positions of the same dial."""
    known = np.isfinite(table.score) & np.isfinite(table.propensity)
    rows = np.flatnonzero(known.sum(1) == 1)
    if not len(rows):
        raise InputError(
            f"{int(np.isfinite(table.score).all(1).sum())} of {len(table.prompts)} unseen prompts have every model's "
            f"score ({LEAST_PAIRED} are needed), and none has one score with its propensity: nothing to judge a "
            "candidate by; give paired outcomes, or a ledger with propensities."
        )
    choice = known[rows].argmax(1)
    propensity, weight = (values[rows, choice].astype(np.float64) for values in (table.propensity, table.weight))
    drawn = propensity < 1
    if drawn.any() and not off_policy.propensities_possible(choice[drawn], propensity[drawn], len(table.models)):
        raise InputError(
            f"the choices of {int(drawn.sum())} logged prompts do not come as often as their propensities say, so "
            "nothing can be judged by them; give propensities of those choices, or outcomes of every model."
        )
    score = table.score[rows, choice].astype(np.float64)
    reference, spent = before.reference, _spent(before, after)[rows]
    quality = _between(before.quality, after.quality)[rows]
    place = np.arange(len(rows))
    dial: list[off_policy.Rivals] = []
    for tradeoff in TRADEOFFS:
        first, second = (_choices(predicted, tradeoff, reference)[rows] for predicted in (before, after))
        paid = (1 - tradeoff) * spent / reference
        reward = tradeoff * score - paid[place, choice]
        span = tradeoff + np.abs(paid[place, second] - paid[place, first])
        dial.append(off_policy.Rivals(first, second, reward, tradeoff * quality - paid, span))
    found = off_policy.difference(choice, propensity, dial, weight)
    how = (
        f"doubly robust from the log; the heads choose differently on {found.differing}, and the log speaks for "
        f"{found.effective_prompts:.0f} of those"
    )
    return Verdict(len(rows), how, found.gain.value, found.gain.low, found.gain.high)


def _spent(before: _Predicted, after: _Predicted) -> Doubles:
    """[n, M] what each answer cost, the same for both heads: as billed, else by the candidate's prices and lengths."""
    return np.where(np.isfinite(after.actual_usd), after.actual_usd, before.actual_usd)


def _between(first: Doubles, second: Doubles) -> Doubles:
    """[n, M] the middle of two heads' predictions; where one has no column, the other's."""
    both = np.isfinite(first) & np.isfinite(second)
    return np.where(both, (first + np.where(both, second, 0.0)) / 2, np.maximum(first, second))
