"""Judging a router on held-out outcomes, against everything simpler: one record with all of it.

Enters: a router folder and files of outcomes. Leaves: a plain dictionary (JSON), which `report_text` and `report_html`
only lay out. The held-out side is that of the split which router.json names, unless asked otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onebeat.conductor.learning import baselines, dial, metrics
from onebeat.conductor.learning.artifact import read_head
from onebeat.conductor.learning.compare import cost_bounds, figures
from onebeat.conductor.learning.costs import Price, costs
from onebeat.conductor.learning.curves import (
    Choices,
    Curve,
    Judged,
    trace,
)
from onebeat.conductor.learning.features import Reading, extract
from onebeat.conductor.learning.fit import side_by_side
from onebeat.conductor.learning.fitted import fitted_among, fitted_by_name
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.progress import Progress
from onebeat.conductor.learning.sources import read_outcomes
from onebeat.conductor.learning.splits import (
    MAX_PROMPTS,
    Split,
    recorded,
    sample_prompts,
    sampled,
)
from onebeat.conductor.learning.train import judged_of
from onebeat.engine.errors import ConstraintError, InputError
from onebeat.engine.head import Head
from onebeat.engine.loading import Precision
from onebeat.engine.targets import parse_target

FEW_PROMPTS = 100
"""Fewer say little: the interval of a mean score is 10 points to either side and more."""
LEAST_FITTED = 20
"""Prompts on the fitting side from which the simpler heads are fitted for comparison."""
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
    held_out = sides.outcomes.select(sides.split.test)
    judged = _judged(sides, held_out, sides.quality[sides.split.test], sides.tokens[sides.split.test])
    reference = float(description["dial"]["reference_cost_usd"])
    fitted_on = sides.outcomes.select(sides.split.fit)
    single = baselines.best_on_fit(fitted_on if len(fitted_on.prompts) else held_out, judged)
    few = ", too few to rely on" if len(judged.score) < FEW_PROMPTS else ""
    say(f"judging on {len(judged.score)} prompts{few}; the best single model is {single.model}")
    contenders = {"onebeat": judged} | _contenders(sides, held_out)
    curves = {name: trace(contender, reference) for name, contender in contenders.items()}
    curves["cheapest and best, mixed"] = baselines.two_model_curve(judged)
    bounds = cost_bounds(judged)
    result: dict[str, Any] = {
        "router": description["name"],
        "recipe": description["fitted"].get("recipe"),
        "split": sides.split.name,
        "test_side_fitted_on": bool(description["fitted"].get("split", {}).get("test_side_fitted_on")),
        "notes": _notes(question, description, sides),
        "prompts": len(judged.score),
        "prompts_without_every_score": len(held_out.prompts) - len(judged.score),
        "sources": dict(sorted(Counter(judged.groups).items())),
        "read": sides.outcomes.report.lines(),
        "models": [
            {"name": s.model, "quality": s.quality, "usd_per_thousand": 1e3 * s.cost_usd}
            for s in baselines.singles(judged)
        ],
        "best_single": single.model,
        "best_single_chosen_on": "the fitting side" if len(fitted_on.prompts) else "the judged prompts",
        "prediction": _prediction(judged, question),
        "routers": {
            name: figures(
                curve, contenders.get(name), judged, single, reference, bounds, question.bootstraps, question.seed
            )
            for name, curve in curves.items()
        },
        "always": _always(judged, single),
        "curves": {name: _points(curve) for name, curve in curves.items()},
        "targets": _targets(description, judged, reference, question),
        "tradeoffs": _tradeoffs(judged, reference),
    }
    if len(judged.models) == 2:
        result["routellm"] = {name: _routellm(contender, single) for name, contender in contenders.items()}
    return result


def _sides(
    question: Question,
    description: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    say: Callable[[str], None],
) -> Sides:
    names = [column["name"] for column in description["columns"]]
    found = read_outcomes(question.files)
    there = [name for name in names if name in found.models]
    for line in found.report.lines():
        say(line)
    strangers = [name for name in found.models if name not in names]
    if strangers:
        more = " ..." if len(strangers) > 5 else ""
        say(f"not judged, because the router has no column for them: {', '.join(strangers[:5])}{more}")
    if len(there) < 2:
        raise InputError(
            f"the outcomes name {len(there)} of the router's columns ({', '.join(names)}); a choice needs two."
        )
    outcomes = found.with_models(there)
    split, read = _split(question, description, outcomes), len(outcomes.prompts)
    most = question.max_prompts or description["fitted"].get("sample", {}).get("most", MAX_PROMPTS)
    seed = description["fitted"].get("split", {}).get("seed", 0)
    chosen = sample_prompts(outcomes.prompts, outcomes.groups, most, seed=seed)
    if len(chosen) < read:
        say(sampled(len(chosen), read, seed))
        outcomes, split = outcomes.select(chosen), split.within(chosen)
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
            held["TF-IDF logistic"] = _judged(sides, held_out, words, tokens)
    held["oracle"] = baselines.oracle(_judged(sides, held_out, sides.quality[sides.split.test], tokens))
    return held


def _prediction(judged: Judged, question: Question) -> dict[str, Any]:
    quality, score = judged.quality, judged.score
    names = np.asarray(judged.groups)

    def over(statistic: Callable[[Choices], float | None]) -> list[float] | None:
        ends = metrics.bootstrap(statistic, len(score), repeats=question.bootstraps, seed=question.seed)
        return None if ends is None else list(ends)

    return {
        "auc": metrics.auc_overall(quality, score),
        "auc_interval": over(lambda rows: metrics.auc_overall(quality[rows], score[rows])),
        "auc_within_source": metrics.auc_within(quality, score, judged.groups),
        "auc_within_source_interval": over(
            lambda rows: metrics.auc_within(quality[rows], score[rows], [str(name) for name in names[rows]])
        ),
        "auc_pooled": metrics.auc(quality, score),
        "auc_per_model": dict(zip(judged.models, metrics.auc_per_model(quality, score), strict=True)),
        "calibration_error": metrics.calibration_error(quality, score),
    }


def _always(judged: Judged, single: baselines.Single) -> dict[str, Any]:
    held = baselines.singles(judged)
    cheap = min(held, key=lambda s: s.cost_usd)
    return {
        "best": {"model": single.model, "quality": single.quality, "usd_per_thousand": 1e3 * single.cost_usd},
        "cheapest": {"model": cheap.model, "quality": cheap.quality, "usd_per_thousand": 1e3 * cheap.cost_usd},
        "random_mix_at_half_cost": baselines.random_mix(judged, 0.5 * single.cost_usd),
    }


def _targets(
    description: Mapping[str, Any], judged: Judged, reference: float, question: Question
) -> list[dict[str, Any]]:
    held = description["fitted"].get("dial")
    rows: list[dict[str, Any]] = []
    for text in question.targets if held and held.get("points") else ():
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


def _tradeoffs(judged: Judged, reference: float) -> list[dict[str, Any]]:
    """What the dial gives at its tenths, and whom it chooses."""
    positions = np.linspace(0, 1, 11)
    curve = trace(judged, reference, positions)
    return [
        {
            "tradeoff": round(float(positions[i]), 3),
            "quality": float(curve.quality[i]),
            "usd_per_thousand": 1e3 * float(curve.cost_usd[i]),
            "share": {name: round(float(curve.share[i, j]), 4) for j, name in enumerate(judged.models)},
        }
        for i in range(len(positions))
    ]


def _routellm(contender: Judged, single: baselines.Single) -> dict[str, float | None]:
    strong = contender.models.index(single.model)
    weak = 1 - strong
    advantage = contender.quality[:, strong] - contender.quality[:, weak]
    return metrics.routellm(advantage, contender.score[:, weak], contender.score[:, strong])


def _points(curve: Curve) -> list[list[float]]:
    return [
        [float(f"{1e3 * cost:.6g}"), float(f"{quality:.6g}"), float(f"{tradeoff:.6g}")]
        for cost, quality, tradeoff in zip(curve.cost_usd, curve.quality, curve.tradeoff, strict=True)
    ]
