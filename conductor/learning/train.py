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

from onebeat.conductor.learning import fit
from onebeat.conductor.learning.artifact import link_backbone, write_head
from onebeat.conductor.learning.costs import Price, costs, prices_for
from onebeat.conductor.learning.dial import balanced_reference
from onebeat.conductor.learning.drift import baseline
from onebeat.conductor.learning.features import Features, Reading, extract
from onebeat.conductor.learning.fitted import FIELD, hashes
from onebeat.conductor.learning.judging import Ground, ground_of, means_over_all, rounded, summary
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
from onebeat.engine.config import BackboneConfig
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
    warnings = _warnings(outcomes, features, job.max_prompt_tokens)
    head = _fit(job, tap_sets, features, outcomes, everything, split.fit, say)
    prices = prices_for(outcomes, job.prices, features.prompt_tokens)
    test = summary(_predicted(head, features, split.test), outcomes.select(split.test))
    if test and test["prompts_without_every_score"] == test["prompts"]:
        warnings.append(
            "no held-out prompt has every model's score: predictions are judged on the scores there are, and what "
            "choices among the models would earn cannot be"
        )
    if not test and (job.test_share > 0 or job.held_out_groups or job.newest_share is not None):
        warnings.append(
            f"no graded prompt is held out ({split.name}), so the head is judged on nothing; of a source with one or "
            "two prompts none may be: name sources that hold more in `group`, or use --hold-out-newest"
        )
    rows = split.fit
    if job.use_everything:
        rows = np.arange(len(outcomes.prompts))
        say(f"fitting once more on all {len(rows)} prompts, with {head.recipe.name()}")
        head = _fit(replace(job, recipes=(head.recipe,)), [head.taps], features, outcomes, everything, rows, say)
    table = outcomes.select(rows)
    money = costs(table, prices, features.prompt_tokens[rows], head.out_of_fold_tokens)
    ground = ground_of(head.out_of_fold, money, table)
    description = describe(job, head, features, outcomes, prices, split, rows, test, ground)
    if ground.why_not:
        warnings.append(
            f"no dial is kept, so no target can be promised: {ground.why_not}; the middle of the dial is set by "
            f"{ground.how}"
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


def describe(
    job: Job,
    head: fit.FittedHead,
    features: Features,
    outcomes: Outcomes,
    prices: Sequence[Price],
    split: Split,
    rows: np.ndarray[Any, Any],
    test: Mapping[str, Any],
    ground: Ground,
) -> dict[str, Any]:
    """router.json."""
    from onebeat import __version__

    table, reference = outcomes.select(rows), balanced_reference(ground.judged)
    files = ", ".join(path.name for path in job.files)
    states = _side(features, head.taps, rows)
    means = means_over_all(table.score, head.out_of_fold, table)
    lengths = means_over_all(table.output_tokens, head.out_of_fold_tokens, table)
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
                "mean_quality": rounded(float(means[column])),
                "mean_output_tokens": round(float(lengths[column]), 1),
                "fitted_on": f"{int((table.weight[:, column] > 0).sum())} outcomes of {files}",
                "fitted_at": job.today,
            }
            for column, (name, price) in enumerate(zip(outcomes.models, prices, strict=True))
        ],
        "head": {"kind": head.recipe.kind},
        "calibration": head.calibration,
        "dial": {"reference_cost_usd": rounded(reference)},
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
                    "log_loss": rounded(trial.log_loss),
                    "between_models": rounded(trial.between_models),
                    "auc_within_source": rounded(trial.auc_within),
                }
                for trial in head.trials[:12]
            ],
            "dial": ground.dial(reference, seed=job.seed),
            FIELD: hashes(table.prompts),
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


def _warnings(outcomes: Outcomes, features: Features, most: int) -> list[str]:
    warnings = [f"{name}: its column predicts a constant" for name in fit.one_class(outcomes)]
    if fit.confounded(outcomes):
        warnings.append(
            "no source has outcomes of two models, so a good model cannot be told from easy prompts; do not rely on "
            "this head before it is judged on prompts that several models answered"
        )
    if features.refused:
        row, why = next(iter(features.refused.items()))
        warnings.append(f"{len(features.refused)} prompts cannot be read and are left out (first, prompt {row}: {why})")
    if (cut := features.cut_tokens > 0).any():
        warnings.append(
            f"{cut.sum()} prompts of up to {features.prompt_tokens.max():,} tokens are longer than the "
            f"{most:,} of --max-prompt-tokens, and are read without their middle"
        )
    return warnings


def _newest(time_s: np.ndarray[Any, Any]) -> float | None:
    known = time_s[np.isfinite(time_s)]
    return float(known.max()) if known.size else None


def _predicted(head: fit.FittedHead, features: Features, rows: np.ndarray[Any, Any]) -> fit.Floats:
    """[k, M] quality of these rows."""
    return head.head().score_in_bulk(_side(features, head.taps, rows))[0]
