"""Judging a router on held-out outcomes, against everything simpler: one record with all of it.

Enters: a router folder and files of outcomes. Leaves: a plain dictionary (JSON), which `report_text` and `report_html`
only lay out. The held-out side is that of the split which router.json names, unless asked otherwise.

Predictions are judged on every outcome; choices only on prompts that every model answered, because of the others it is
not known what another choice would have scored; and the router's value is estimated from a log with propensities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onebeat.conductor.learning import baselines, choosing, dial, logged, prediction
from onebeat.conductor.learning.artifact import read_head
from onebeat.conductor.learning.costs import Price, costs
from onebeat.conductor.learning.curves import Judged
from onebeat.conductor.learning.features import Reading, extract
from onebeat.conductor.learning.fit import side_by_side
from onebeat.conductor.learning.fitted import fitted_among, fitted_by_name
from onebeat.conductor.learning.judging import judged_of
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.progress import Progress
from onebeat.conductor.learning.resample import Resamples
from onebeat.conductor.learning.sources import read_outcomes
from onebeat.conductor.learning.splits import (
    MAX_PROMPTS,
    Split,
    recorded,
    sample_prompts,
    sampled,
)
from onebeat.conductor.learning.weights import known_weight
from onebeat.engine.errors import ConstraintError, InputError
from onebeat.engine.head import Head
from onebeat.engine.loading import Precision
from onebeat.engine.targets import parse_target

FEW_PROMPTS = 100
"""Fewer say little: the interval of a mean score is 10 points to either side and more."""
LEAST_FITTED = 20
"""Prompts on the fitting side from which the simpler heads are fitted for comparison."""
TF_IDF = "TF-IDF logistic"
TARGETS = ("90%", "95%", "98%")


@dataclass(frozen=True, slots=True)
class Question:
    """What to judge on what."""

    files: tuple[Path, ...]
    router: Path
    everything: bool = False
    """Judge on all prompts: right for outcomes that the head has never seen."""
    targets: tuple[str, ...] = TARGETS
    bootstraps: int = 200
    seed: int = 0
    cache_folder: Path | None = None
    max_prompts: int | None = None
    """Of more distinct prompts a seeded sample is judged; None: as many as the head was fitted among."""
    precision: Precision | None = None
    """None: that which the head was fitted in."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """From a fleet's model names to the columns that score them, for outcomes of its ledger."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The prompts, split, with the features and predictions of all of them."""

    outcomes: Outcomes
    states: np.ndarray[Any, Any]
    quality: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    prompt_tokens: np.ndarray[Any, Any]
    split: Split
    prices: list[Price]


def evaluate(question: Question, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The whole judgement. Raises `InputError` where the outcomes do not fit the router's columns."""
    description, tensors = read_head(question.router)
    sides = _sides(question, description, tensors, say)
    test = sides.split.test
    held_out = sides.outcomes.select(test)
    whole: np.ndarray[Any, Any] = np.asarray(np.isfinite(held_out.score).all(1) & (len(held_out.models) > 1))
    reference = float(description["dial"]["reference_cost_usd"])
    result: dict[str, Any] = {
        "router": description["name"],
        "recipe": description["fitted"].get("recipe"),
        "split": sides.split.name,
        "test_side_fitted_on": bool((description["fitted"].get("split") or {}).get("test_side_fitted_on")),
        "notes": [*_notes(question, description, sides), *_unjudged(description, held_out, whole)],
        "prompts": int(whole.sum()),
        "prompts_without_every_score": len(test) - int(whole.sum()),
        "sources": dict(sorted(Counter(held_out.groups).items())),
        "read": sides.outcomes.report.lines(),
        "prediction": prediction.figures(
            held_out.models,
            sides.quality[test],
            held_out.score,
            held_out.groups,
            Resamples(len(test), question.bootstraps, question.seed),
            known_weight(held_out),
        ),
    }
    if whole.any():
        result |= _choices(question, description, sides, held_out, reference, say)
        if len(sides.split.fit) >= LEAST_FITTED and TF_IDF not in result["routers"]:
            result["notes"].append(f"not compared with {TF_IDF}: it needs onebeat[train], and prompts that hold words")
    money = costs(held_out, sides.prices, sides.prompt_tokens[test], sides.tokens[test])
    return result | {"logged": logged.values(held_out, sides.quality[test].astype(np.float64), money, reference)}


def _choices(
    question: Question,
    description: Mapping[str, Any],
    sides: Sides,
    held_out: Outcomes,
    reference: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The part of the judgement that needs prompts with every model's score."""
    test = sides.split.test
    judged = _judged(sides, held_out, sides.quality[test], sides.tokens[test])
    fitted_on = sides.outcomes.select(sides.split.fit)
    single = baselines.best_on_fit(fitted_on if len(fitted_on.prompts) else held_out, judged)
    say(f"judging on {len(judged.score)} prompts; the best single model is {single.model}")
    contenders = {choosing.ROUTER: judged} | _contenders(sides, held_out) | {choosing.ORACLE: baselines.oracle(judged)}
    resamples = Resamples(len(judged.score), question.bootstraps, question.seed)
    return choosing.judge(contenders, single, reference, resamples) | {
        "best_single_chosen_on": "the fitting side" if len(fitted_on.prompts) else "the judged prompts",
        "targets": _targets(description, judged, reference, question),
    }


def _sides(
    question: Question,
    description: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    say: Callable[[str], None],
) -> Sides:
    names = [column["name"] for column in description["columns"]]
    found = read_outcomes(question.files, columns=question.columns)
    there = [name for name in names if name in found.models]
    for line in found.report.lines():
        say(line)
    strangers = [name for name in found.models if name not in names]
    if strangers:
        more = " ..." if len(strangers) > 5 else ""
        say(f"not judged, because the router has no column for them: {', '.join(strangers[:5])}{more}")
        if len(there) < len(names):
            say("a model that the outcomes name otherwise than the router is found by --fleet, through `scored_as`")
    if not there:
        raise InputError(f"no outcome names one of the router's columns, {', '.join(names)}; nothing can be judged.")
    outcomes = found.with_models(there)
    split, read = _split(question, description, outcomes), len(outcomes.prompts)
    most = question.max_prompts or (description["fitted"].get("sample") or {}).get("most", MAX_PROMPTS)
    seed = (description["fitted"].get("split") or {}).get("seed", 0)
    chosen = sample_prompts(outcomes.prompts, outcomes.groups, most, seed=seed)
    if len(chosen) < read:
        say(sampled(len(chosen), read, seed))
        outcomes, split = outcomes.select(chosen), split.within(chosen)
    counting = np.flatnonzero(np.isfinite(outcomes.score).any(1))
    outcomes, split = outcomes.select(counting), split.within(counting)
    if not len(split.test):
        raise InputError(f"no outcome of the router's columns is on the judged side ({split.name}), or none counts.")
    taps = tuple((tap["layer"], tap["pooling"]) for tap in description["taps"])
    precision: Precision = question.precision or description["fitted"].get("precision", "int8")
    reading = Reading(taps, description["template"], description["max_prompt_tokens"], precision)
    features = extract(
        question.router,
        outcomes.prompts,
        reading,
        cache_folder=question.cache_folder,
        progress=Progress("reading prompts"),
    )
    outcomes, split = outcomes.select(features.rows), split.within(features.rows)
    states = side_by_side(features.states, taps)
    head = Head.from_tensors(
        tensors,
        kind=description["head"]["kind"],
        columns=names,
        features=states.shape[1],
        calibration=description["calibration"],
    )
    quality, tokens = head.score_in_bulk(states)
    keep = [names.index(name) for name in there]
    prices = [
        Price(description["columns"][i]["input_usd_per_million"], description["columns"][i]["output_usd_per_million"])
        for i in keep
    ]
    return Sides(outcomes, states, quality[:, keep], tokens[:, keep], features.prompt_tokens, split, prices)


def _split(question: Question, description: Mapping[str, Any], outcomes: Outcomes) -> Split:
    held = description["fitted"].get("split")
    everything = np.arange(len(outcomes.prompts))
    if question.everything or not held:
        return Split(np.zeros(0, np.int64), everything, "all prompts")
    split = recorded(held, outcomes)
    if not len(split.test):
        raise InputError(f"the split ({split.name}) leaves no prompt to judge on; use --all for unseen outcomes.")
    return split


def _notes(question: Question, description: Mapping[str, Any], sides: Sides) -> list[str]:
    """What a reader of the figures must know of the prompts that they were taken on."""
    fitted = description["fitted"]
    held = fitted.get("split") or {}
    everywhere = bool(held.get("test_side_fitted_on"))
    notes: list[str] = []
    judged = sides.outcomes.select(sides.split.test)
    among = fitted_among(fitted, judged.prompts)
    about = ""
    if among is None and question.everything:
        about = "about "
        among, _ = fitted_by_name(fitted, judged, (path.name for path in question.files))
    elif among is None and not everywhere:
        among = np.zeros(len(judged.prompts), bool)
    count = len(judged.prompts) if among is None else int(among.sum())
    if count:
        leave = "; leave out --all to judge on the others" if question.everything and not everywhere else ""
        notes.append(f"WARNING: the head was fitted on {about}{count} of these {len(judged.prompts)} prompts{leave}")
    if not (fitted.get("dial") or {}).get("points"):
        notes.append("no target is checked: the router has no solved dial")
    if len(sides.split.fit) < LEAST_FITTED:
        notes.append(
            f"not compared with per-source means, nearest neighbours and TF-IDF: they would be fitted on "
            f"{len(sides.split.fit)} prompts, and need {LEAST_FITTED} that are not judged on"
        )
    return notes


def _unjudged(description: Mapping[str, Any], held_out: Outcomes, whole: np.ndarray[Any, Any]) -> list[str]:
    """What cannot be judged, and why."""
    notes: list[str] = []
    models, prompts = held_out.models, len(held_out.prompts)
    missing = [column["name"] for column in description["columns"] if column["name"] not in models]
    if missing:
        notes.append(
            f"chosen among the other columns only, and no target checked: no outcome names {', '.join(missing)}"
        )
    if len(models) < 2:
        notes.append(
            f"no choice is judged: only {models[0]} of the router's columns has outcomes, and a choice needs two"
        )
    elif not whole.any():
        notes.append(
            f"no choice is judged: none of {prompts} prompts has a score for all {len(models)} models, so that what "
            "another choice would have scored is not known"
        )
    elif not whole.all():
        notes.append(
            f"choices are judged on the {int(whole.sum())} prompts with a score for all {len(models)} models, "
            f"predictions on all {prompts} ({int(np.isfinite(held_out.score).sum())} outcomes)"
        )
    if 0 < (count := int(whole.sum())) < FEW_PROMPTS:
        notes.append(f"{count} prompts to judge choices by are too few to rely on: {FEW_PROMPTS} say a little")
    return notes


def _judged(sides: Sides, held_out: Outcomes, quality: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any]) -> Judged:
    return judged_of(quality, costs(held_out, sides.prices, sides.prompt_tokens[sides.split.test], tokens), held_out)


def _contenders(sides: Sides, held_out: Outcomes) -> dict[str, Judged]:
    fitted = sides.outcomes.select(sides.split.fit)
    tokens = sides.tokens[sides.split.test]
    held: dict[str, Judged] = {}
    if len(fitted.prompts) >= LEAST_FITTED:
        source_tokens = baselines.per_source_tokens(fitted, held_out.groups)
        means = baselines.per_source_means(fitted, held_out.groups)
        held["per-source means"] = _judged(sides, held_out, means, source_tokens)
        nearest = baselines.neighbours(sides.states[sides.split.fit], fitted, sides.states[sides.split.test])
        held["40 nearest neighbours"] = _judged(sides, held_out, nearest, tokens)
        words = baselines.tf_idf(fitted.prompts, fitted, held_out.prompts)
        if words is not None:
            held[TF_IDF] = _judged(sides, held_out, words, tokens)
    return held


def _targets(
    description: Mapping[str, Any], judged: Judged, reference: float, question: Question
) -> list[dict[str, Any]]:
    held = description["fitted"].get("dial")
    rows: list[dict[str, Any]] = []
    solved = held and held.get("points") and len(judged.models) == len(description["columns"])
    for text in question.targets if solved else ():
        try:
            check = dial.check(held, parse_target(text), judged, reference, seed=question.seed)
        except ConstraintError as error:
            rows.append({"target": text, "unreachable": str(error)})
            continue
        rows.append(
            {
                "target": text,
                "tradeoff": check.setting.tradeoff,
                "promised_share": check.setting.share_of_best,
                "promised_interval": list(check.setting.share_interval),
                "measured_share": check.measured_share,
                "measured_interval": list(check.measured_share_interval),
                "promised_usd_per_thousand": check.setting.usd_per_thousand,
                "measured_usd_per_thousand": check.measured_usd_per_thousand,
                "holds": check.holds,
            }
        )
    return rows
