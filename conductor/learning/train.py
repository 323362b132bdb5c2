"""The whole way from files of outcomes to a router: read, extract, split, search, fit, judge, write.

Enters: a `Job`. Leaves: a folder with router.json and router_head.safetensors, and a `Result` to print. Knows no
command line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onebeat.conductor.learning import dial, fit
from onebeat.conductor.learning.artifact import link_backbone, write_head
from onebeat.conductor.learning.costs import Costs, Price, costs, prices_for
from onebeat.conductor.learning.curves import Judged
from onebeat.conductor.learning.drift import baseline
from onebeat.conductor.learning.features import Features, Reading, extract
from onebeat.conductor.learning.metrics import auc_overall, auc_per_model, auc_within, calibration_error
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.preflight import check_arguments, check_outcomes
from onebeat.conductor.learning.progress import Progress
from onebeat.conductor.learning.solve import Recipe
from onebeat.conductor.learning.sources import read_outcomes
from onebeat.conductor.learning.splits import (
    MAX_PROMPTS,
    Split,
    hold_out_groups,
    hold_out_newest,
    sample_prompts,
    sampled,
    split_prompts,
)
from onebeat.conductor.learning.weights import mean_scores
from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import InputError
from onebeat.engine.whole_folder import whole_folder


@dataclass(frozen=True, slots=True)
class Job:
    """What to fit, on what, how, and where to."""

    files: tuple[Path, ...]
    backbone: Path
    output: Path
    today: str
    """ISO date, for the record."""
    prices: Mapping[str, Price]
    models: tuple[str, ...] = ()
    """The columns; empty: every model of the files. Further models are learnt from and then dropped."""
    tap_sets: tuple[tuple[fit.TapName, ...], ...] = ()
    """Empty: those of `default_tap_sets`."""
    recipes: tuple[Recipe, ...] = fit.RECIPES
    template: str = "{prompt}"
    max_prompt_tokens: int = 2048
    precision: str = "int8"
    test_share: float = 0.3
    held_out_groups: tuple[str, ...] = ()
    newest_share: float | None = None
    """Hold out the newest prompts instead."""
    max_prompts: int = MAX_PROMPTS
    """Of more distinct prompts a seeded sample is read."""
    seed: int = 0
    use_everything: bool = False
    """After judging, fit once more on all prompts, test side included; eval then says so."""
    head_only: bool = False
    """Write the two files of the head alone, without linking the backbone."""
    name: str | None = None
    cache_folder: Path | None = None
    auxiliary: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)
    """From a fleet's model names to columns, for outcomes of its ledger."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was fitted and how good it is."""

    description: Mapping[str, Any]
    head: fit.FittedHead
    report: Sequence[str]
    """What was odd in the files."""
    warnings: Sequence[str]


def train(job: Job, say: Callable[[str], None]) -> Result:
    """Runs a job. Raises `InputError` and the engine's errors, each in one sentence, and before any prompt is read
    wherever that can be; the output folder appears whole or not at all."""
    backbone = BackboneConfig.load(job.backbone)
    tap_sets = job.tap_sets or default_tap_sets(backbone.layers)
    check_arguments(job, tap_sets, backbone)
    with whole_folder(job.output) as half:
        return _train(job, tap_sets, half, say)


def _train(job: Job, tap_sets: Sequence[Sequence[fit.TapName]], folder: Path, say: Callable[[str], None]) -> Result:
    everything = read_outcomes(job.files, columns=job.columns)
    outcomes = everything.with_models(job.models or everything.models)
    for line in everything.report.lines():
        say(line)
    fit.check(outcomes)
    split, read = split_outcomes(outcomes, job), len(outcomes.prompts)
    chosen = sample_prompts(outcomes.prompts, outcomes.groups, job.max_prompts, seed=job.seed)
    if len(chosen) < read:
        say(sampled(len(chosen), read, job.seed))
        everything, outcomes, split = everything.select(chosen), outcomes.select(chosen), split.within(chosen)
    check_outcomes(job, outcomes, split)
    features = _features(job, tap_sets, outcomes)
    everything, outcomes = everything.select(features.rows), outcomes.select(features.rows)
    split = split.within(features.rows)
    warnings = _warnings(outcomes, features)
    head = _fit(job, tap_sets, features, outcomes, everything, split.fit, say)
    prices = prices_for(outcomes, job.prices, features.prompt_tokens)
    judged = judge(head, features, outcomes, prices, split.test) if len(split.test) else None
    test = summary(judged, outcomes.select(split.test)) if judged else {}
    rows = split.fit
    if job.use_everything:
        rows = np.arange(len(outcomes.prompts))
        say(f"fitting once more on all {len(rows)} prompts, with {head.recipe.name()}")
        head = _fit(replace(job, recipes=(head.recipe,)), [head.taps], features, outcomes, everything, rows, say)
    description = describe(job, head, features, outcomes, prices, split, rows, test)
    solved = description["fitted"]["dial"]
    if not solved["points"]:
        warnings.append(
            f"no dial is kept, so no target can be promised: {solved['prompts']} prompts to fit on have a score for "
            f"every model, and {dial.LEAST_PROMPTS} are needed"
        )
    description["fitted"]["sample"] = {"prompts": len(chosen), "of": read, "most": job.max_prompts}
    write_head(folder, description, head.tensors)
    if not job.head_only:
        link_backbone(job.backbone, folder)
    return Result(description, head, everything.report.lines(), warnings)


def default_tap_sets(layers: int) -> list[tuple[fit.TapName, ...]]:
    """The middle third of the depth, where difficulty shows best: one layer, two, or two with a last token between."""
    first, between, third, second = (max(1, round(layers * share)) for share in (0.5, 0.567, 0.633, 0.667))
    single: tuple[fit.TapName, ...] = ((second, "mean"),)
    if not first < between < third < second:
        return [single]
    return [single, ((first, "mean"), (second, "mean")), ((first, "mean"), (between, "last"), (third, "mean"))]


def split_outcomes(outcomes: Outcomes, job: Job) -> Split:
    """The split that the job names."""
    if job.newest_share is not None:
        return hold_out_newest(outcomes.time_s, job.newest_share)
    if job.held_out_groups:
        return hold_out_groups(outcomes.groups, job.held_out_groups)
    return split_prompts(outcomes.prompts, outcomes.groups, test_share=job.test_share, seed=job.seed)


def judge(
    head: fit.FittedHead, features: Features, outcomes: Outcomes, prices: Sequence[Price], rows: np.ndarray[Any, Any]
) -> Judged:
    """What the head predicts for `rows`, beside what came out; prompts without a score for every model are left out."""
    quality, tokens = head.head().score_in_bulk(_side(features, head.taps, rows))
    table = outcomes.select(rows)
    return judged_of(quality, costs(table, prices, features.prompt_tokens[rows], tokens), table)


def judged_of(quality: fit.Floats, money: Costs, outcomes: Outcomes) -> Judged:
    """Predictions and outcomes of the prompts that every model answered."""
    complete = np.flatnonzero(np.isfinite(outcomes.score).all(1))
    if not len(complete):
        raise InputError("no prompt has a score for every model, so a choice cannot be judged; name fewer --models.")
    return Judged(
        outcomes.models,
        quality[complete].astype(np.float64),
        money.predicted[complete],
        outcomes.score[complete].astype(np.float64),
        money.actual[complete],
        tuple(outcomes.groups[row] for row in complete),
    )


def summary(judged: Judged, outcomes: Outcomes) -> dict[str, Any]:
    """The held-out figures that router.json carries."""
    quality, score = judged.quality, judged.score
    per_model = dict(zip(judged.models, auc_per_model(quality, score), strict=True))
    return {
        "prompts": len(score),
        "prompts_without_every_score": len(outcomes.prompts) - len(score),
        "auc": _rounded(auc_overall(quality, score)),
        "auc_within_source": _rounded(auc_within(quality, score, judged.groups)),
        "auc_per_model": {name: _rounded(value) for name, value in per_model.items()},
        "calibration_error": _rounded(calibration_error(quality, score)),
    }


def describe(
    job: Job,
    head: fit.FittedHead,
    features: Features,
    outcomes: Outcomes,
    prices: Sequence[Price],
    split: Split,
    rows: np.ndarray[Any, Any],
    test: Mapping[str, Any],
) -> dict[str, Any]:
    """router.json."""
    from onebeat import __version__

    table = outcomes.select(rows)
    judged = judged_of(
        head.out_of_fold, costs(table, prices, features.prompt_tokens[rows], head.out_of_fold_tokens), table
    )
    reference = dial.balanced_reference(judged)
    files = ", ".join(path.name for path in job.files)
    states = _side(features, head.taps, rows)
    means = mean_scores(table)
    return {
        "format_version": 1,
        "name": job.name or job.output.absolute().name,
        "taps": [{"layer": layer, "pooling": pooling} for layer, pooling in head.taps],
        "template": job.template,
        "max_prompt_tokens": job.max_prompt_tokens,
        "columns": [
            {
                "name": name,
                "input_usd_per_million": price.input_usd_per_million,
                "output_usd_per_million": price.output_usd_per_million,
                "mean_quality": _rounded(float(means[column])),
                "mean_output_tokens": _mean_tokens(table, head, column),
                "fitted_on": f"{int((table.weight[:, column] > 0).sum())} outcomes of {files}",
                "fitted_at": job.today,
            }
            for column, (name, price) in enumerate(zip(outcomes.models, prices, strict=True))
        ],
        "head": {"kind": head.recipe.kind},
        "calibration": head.calibration,
        "dial": {"reference_cost_usd": _rounded(reference)},
        "fitted": {
            "by": f"onebeat {__version__}",
            "at": job.today,
            "files": [path.name for path in job.files],
            "prompts": len(rows),
            "outcomes": int((table.weight > 0).sum()),
            "sources": dict(sorted(Counter(table.groups).items())),
            "split": {
                "name": split.name,
                "seed": job.seed,
                "test_share": job.test_share,
                "held_out_groups": list(job.held_out_groups),
                "newest_share": job.newest_share,
                "newest_fitted_s": _newest(outcomes.time_s[split.fit]) if job.newest_share is not None else None,
                "test_side_fitted_on": job.use_everything,
            },
            "test": dict(test),
            "recipe": head.recipe.name(),
            "precision": job.precision,
            "trials": [
                {
                    "taps": fit.describe_taps(trial.taps),
                    "recipe": trial.recipe.name(),
                    "log_loss": _rounded(trial.log_loss),
                    "between_models": _rounded(trial.between_models),
                    "auc_within_source": _rounded(trial.auc_within),
                }
                for trial in head.trials[:12]
            ],
            "dial": dial.solve(judged, reference, seed=job.seed),
        },
        "drift": baseline(states, head.out_of_fold, head.out_of_fold_tokens, seed=job.seed),
    }


def _features(job: Job, tap_sets: Sequence[Sequence[fit.TapName]], outcomes: Outcomes) -> Features:
    taps = tuple(sorted({tap for taps in tap_sets for tap in taps}))
    reading = Reading(taps, job.template, job.max_prompt_tokens, job.precision)  # type: ignore[arg-type]
    progress = Progress("reading prompts")
    return extract(job.backbone, outcomes.prompts, reading, cache_folder=job.cache_folder, progress=progress)


def _fit(
    job: Job,
    tap_sets: Sequence[Sequence[fit.TapName]],
    features: Features,
    outcomes: Outcomes,
    everything: Outcomes,
    rows: np.ndarray[Any, Any],
    say: Callable[[str], None],
) -> fit.FittedHead:
    further = job.auxiliary and len(everything.models) > len(outcomes.models)
    return fit.fit(
        {tap: states[rows] for tap, states in features.states.items()},
        outcomes.select(rows),
        tap_sets=tap_sets,
        recipes=job.recipes,
        auxiliary=everything.select(rows) if further else None,
        seed=job.seed,
        say=say,
    )


def _side(features: Features, taps: Sequence[fit.TapName], rows: np.ndarray[Any, Any]) -> fit.Floats:
    """[k, taps*H] of these rows."""
    return fit.side_by_side({tap: features.states[tap][rows] for tap in taps}, taps)


def _warnings(outcomes: Outcomes, features: Features) -> list[str]:
    warnings = [f"{name}: its column predicts a constant" for name in fit.one_class(outcomes)]
    if features.refused:
        row, why = next(iter(features.refused.items()))
        warnings.append(f"{len(features.refused)} prompts cannot be read and are left out (first, prompt {row}: {why})")
    return warnings


def _newest(time_s: np.ndarray[Any, Any]) -> float | None:
    known = time_s[np.isfinite(time_s)]
    return float(known.max()) if known.size else None


def _mean_tokens(table: Outcomes, head: fit.FittedHead, column: int) -> float:
    known = table.output_tokens[:, column]
    known = known[np.isfinite(known)]
    return round(float(known.mean() if known.size else head.out_of_fold_tokens[:, column].mean()), 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
