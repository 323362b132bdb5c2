"""From features and outcomes to a head: which taps and which recipe, judged by folds, calibrated, then fitted on all.

Enters: raw pooled features by tap `[n, H]` and the outcomes of the fitting side of a split. Leaves: a `FittedHead`:
tensors, calibration, the out-of-fold predictions behind every number that is quoted, and a table of what was tried.
Knows nothing of files, backbones or the test side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning import calibrate, solve
from onebeat.conductor.learning.kernel import fit_kernel
from onebeat.conductor.learning.metrics import auc_overall, auc_within
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.solve import Recipe
from onebeat.conductor.learning.splits import folds
from onebeat.conductor.learning.trials import TapName as TapName
from onebeat.conductor.learning.trials import Trial, between_models, losses_of, steadiest
from onebeat.engine.errors import InputError
from onebeat.engine.head import MAX_OUTPUT_TOKENS, Head, logistic

Floats = NDArray[np.float32]
MIN_PROMPTS = 20
FOLDS = 4
MAX_KERNEL_PROMPTS = 30_000
"""More are sampled for a kernel head: its coordinates of so many take 0.8 GB. A linear head takes all, in chunks."""
FIRST = Recipe("kernel", width=8)
"""Taps are compared by this recipe, the cheapest to fit and usually the best."""
RECIPES = (
    FIRST,
    Recipe("kernel", width=3),
    Recipe("linear", l2=0.3),
    Recipe("linear", l2=1.0),
    Recipe("linear", l2=1.0, pairwise=0.5),
)
NETWORKS = (
    Recipe("low_rank", l2=0.3, width=8),
    Recipe("mlp", l2=0.3, width=32),
    Recipe("mlp", l2=0.3, width=32, pairwise=0.5),
)
"""Tried as well when asked for: slower to fit by a factor of ten, and on the public outcomes never the best."""


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head, and the evidence for it."""

    taps: tuple[TapName, ...]
    recipe: Recipe
    models: tuple[str, ...]
    tensors: Mapping[str, Floats]
    calibration: dict[str, object] | None
    out_of_fold: Floats
    """[n, M] calibrated quality of every fitting prompt by a head that had not seen it: the dial is solved on it."""
    out_of_fold_tokens: Floats
    """[n, M] predicted output tokens, likewise."""
    trials: tuple[Trial, ...]

    def head(self) -> Head:
        """The head as the engine will use it."""
        return Head.from_tensors(
            self.tensors,
            kind=self.recipe.kind,
            columns=self.models,
            features=len(self.tensors["norm.mean"]),
            calibration=self.calibration,
        )


def fit(
    features: Mapping[TapName, Floats],
    outcomes: Outcomes,
    *,
    tap_sets: Sequence[Sequence[TapName]],
    recipes: Sequence[Recipe] = RECIPES,
    auxiliary: Outcomes | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> FittedHead:
    """Searches taps with one recipe, then recipes on those taps, then fits the winner on every prompt.

    Between tap sets that the folds cannot tell apart (by one standard error of the difference, prompt by prompt) the
    one of most taps is taken, if it reads no deeper than the best: chance should not choose a poorer view.

    `auxiliary` holds further models of the same prompts: tasks that shape what the models share, dropped afterwards.
    Raises `InputError` where the outcomes cannot tell models apart.
    """
    check(outcomes)
    if len(outcomes.prompts) > MAX_KERNEL_PROMPTS and any(recipe.kind == "kernel" for recipe in recipes):
        say(
            f"kernel heads are fitted on {MAX_KERNEL_PROMPTS:,} of {len(outcomes.prompts):,} prompts, drawn by seed "
            f"{seed}; calibration and dial count all"
        )
    joint = _with_auxiliary(outcomes, auxiliary)
    keep = [joint.models.index(name) for name in outcomes.models]
    trials: list[Trial] = []

    def attempt(taps: Sequence[TapName], recipe: Recipe) -> tuple[Trial, Predicted]:
        predicted = out_of_fold(side_by_side(features, taps), joint, recipe, seed, keep)
        trial = _judge(tuple(taps), recipe, predicted.logits, outcomes)
        trials.append(trial)
        between = "" if trial.between_models is None else f", between {trial.between_models:.4f}"
        losses = f"loss {trial.log_loss:.4f}{between}"
        say(f"{describe_taps(taps):24} {recipe.name():44} {losses}")
        return trial, predicted

    first = recipes[0] if FIRST not in recipes else FIRST
    tried = [attempt(taps, first) for taps in tap_sets]
    best, predicted = tried[steadiest([trial for trial, _ in tried])]
    for recipe in recipes:
        if recipe != first:
            trial, candidate = attempt(best.taps, recipe)
            if trial.criterion < best.criterion:
                best, predicted = trial, candidate
    tensors, left_out = fit_tensors(side_by_side(features, best.taps), joint, best.recipe, seed, keep)
    predicted = predicted if left_out is None else left_out
    calibration = _calibration(predicted.logits, best.recipe, outcomes)
    return FittedHead(
        best.taps,
        best.recipe,
        outcomes.models,
        tensors,
        calibration,
        apply_calibration(predicted.logits, calibration, outcomes.models),
        predicted.tokens,
        tuple(sorted(trials, key=lambda trial: trial.criterion)),
    )


def check(outcomes: Outcomes) -> None:
    """Raises `InputError` where there is nothing to learn, saying what would be enough."""
    prompts = len(outcomes.prompts)
    if prompts < MIN_PROMPTS:
        found = "1 prompt is" if prompts == 1 else f"{prompts} prompts are"
        raise InputError(f"{found} too few to fit and judge a head; give {MIN_PROMPTS} or more.")
    if len(outcomes.models) < 2:
        raise InputError(
            f"{outcomes.models[0]} is the only model with outcomes, so there is nothing to choose; give outcomes of "
            "at least two models."
        )
    scores = outcomes.score[np.isfinite(outcomes.score)]
    if not scores.size:
        raise InputError(f"the outcomes of all {prompts} prompts have weight 0, so none counts; give some a weight.")
    if scores.min() == scores.max():
        raise InputError(
            f"all {scores.size} scores are {scores[0]:g}: no prompt tells models apart; give outcomes with both "
            "successes and failures."
        )


def confounded(outcomes: Outcomes) -> bool:
    """Whether no source has outcomes of two models: then nothing tells a good model from easy prompts."""
    known, names = np.isfinite(outcomes.score), np.asarray(outcomes.groups)
    return not any(known[names == name].any(0).sum() > 1 for name in set(outcomes.groups))


def one_class(outcomes: Outcomes) -> list[str]:
    """Models whose scores never differ: their column is a constant, which is worth a warning."""
    held = []
    for column, name in enumerate(outcomes.models):
        scores = outcomes.score[np.isfinite(outcomes.score[:, column]), column]
        if scores.size and scores.min() == scores.max():
            held.append(f"{name} (always {scores[0]:g} on {scores.size} prompts)")
    return held


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions for prompts that the head had not seen."""

    logits: Floats
    """[n, M] before calibration."""
    tokens: Floats
    """[n, M]"""


def out_of_fold(x: Floats, outcomes: Outcomes, recipe: Recipe, seed: int, keep: Sequence[int]) -> Predicted:
    """What heads fitted on the other folds, standardised on those alone, predict for each prompt."""
    logits = np.empty((len(x), len(keep)), np.float32)
    tokens = np.empty_like(logits)
    for number, held in enumerate(folds(outcomes.prompts, outcomes.groups, FOLDS, seed=seed)):
        if len(held):
            seen = np.setdiff1d(np.arange(len(x)), held)
            tensors, _ = fit_tensors(x[seen], outcomes.select(seen), recipe, seed * 10 + number, keep)
            head = bare_head(tensors, recipe.kind)
            logits[held], lengths = head.uncalibrated(x[held])
            tokens[held] = np.exp(np.minimum(lengths, np.log(MAX_OUTPUT_TOKENS)))
    return Predicted(logits, tokens)


def fit_tensors(
    x: Floats, outcomes: Outcomes, recipe: Recipe, seed: int, keep: Sequence[int]
) -> tuple[dict[str, Floats], Predicted | None]:
    """All tensors of a head for the columns `keep`; of a kernel also its leave-one-out predictions."""
    if recipe.kind == "kernel" and len(x) > MAX_KERNEL_PROMPTS:
        return _sampled_kernel(x, outcomes, recipe, seed, keep)
    norm = _norm(x)
    states = np.subtract(x, norm["norm.mean"], dtype=np.float32)
    states /= norm["norm.scale"]
    if recipe.kind == "kernel":
        found = fit_kernel(
            states,
            outcomes.score,
            outcomes.output_tokens,
            outcomes.groups,
            rank=recipe.width,
            gamma=recipe.gamma,
            dimensions=recipe.dimensions,
            keep=keep,
            weight=outcomes.weight,
            seed=seed,
        )
        return norm | found.tensors, Predicted(found.left_out, found.left_out_tokens)
    quality = solve.quality_tensors(states, outcomes.score, outcomes.weight, recipe, seed)
    for name in ("quality.weight", "quality.bias", "quality.skip"):
        if name in quality:
            quality[name] = np.ascontiguousarray(quality[name][list(keep)])
    tokens, weight = outcomes.output_tokens[:, list(keep)], outcomes.weight[:, list(keep)]
    return norm | quality | solve.length_tensors(states, tokens, weight), None


def _sampled_kernel(
    x: Floats, outcomes: Outcomes, recipe: Recipe, seed: int, keep: Sequence[int]
) -> tuple[dict[str, Floats], Predicted | None]:
    """A kernel head on a sample of the prompts; the others are predicted as the unseen prompts that they are."""
    rows = np.sort(np.random.default_rng(seed).choice(len(x), MAX_KERNEL_PROMPTS, replace=False))
    tensors, left_out = fit_tensors(x[rows], outcomes.select(rows), recipe, seed, keep)
    logits, lengths = bare_head(tensors, recipe.kind).uncalibrated(x)
    tokens = np.exp(np.minimum(lengths, np.log(MAX_OUTPUT_TOKENS)))
    if left_out is not None:
        logits[rows], tokens[rows] = left_out.logits, left_out.tokens
    return tensors, Predicted(logits, tokens)


def bare_head(tensors: Mapping[str, Floats], kind: str) -> Head:
    """A head without calibration, its columns numbered."""
    names = [str(number) for number in range(len(tensors["quality.bias"]))]
    return Head.from_tensors(tensors, kind=kind, columns=names, features=len(tensors["norm.mean"]))


def apply_calibration(logits: Floats, calibration: dict[str, object] | None, models: Sequence[str]) -> Floats:
    """[n, M] quality of logits."""
    held = (calibration or {}).get("columns", {})
    quality = logistic(logits)
    for column, name in enumerate(models):
        chosen = held.get(name) if isinstance(held, Mapping) else None
        if chosen is not None and chosen["kind"] == "platt":
            quality[:, column] = logistic(chosen["slope"] * logits[:, column] + chosen["offset"])
        elif chosen is not None:
            quality[:, column] = np.interp(logits[:, column], chosen["logits"], chosen["quality"])
    return quality


def describe_taps(taps: Sequence[TapName]) -> str:
    """`layers 15+20 mean`, for people."""
    poolings = sorted({pooling for _, pooling in taps})
    return f"layers {'+'.join(str(layer) for layer, _ in taps)} {'/'.join(poolings)}"


def _calibration(logits: Floats, recipe: Recipe, outcomes: Outcomes) -> dict[str, object] | None:
    probability = recipe.kind == "kernel"
    score, weight = outcomes.score, outcomes.weight
    return calibrate.calibrate(logits, score, outcomes.models, probability=probability, weight=weight)


def _judge(taps: tuple[TapName, ...], recipe: Recipe, logits: Floats, outcomes: Outcomes) -> Trial:
    weight = outcomes.weight.astype(np.float64)
    known = weight > 0
    calibration = _calibration(logits, recipe, outcomes)
    quality = apply_calibration(logits, calibration, outcomes.models).astype(np.float64)
    score = outcomes.score.astype(np.float64)
    residual = np.where(known, quality - np.nan_to_num(score), np.nan)
    several = known.sum(1) > 1
    centred = np.full_like(residual, np.nan)
    if several.sum() >= MIN_PROMPTS:  # Of fewer the mean would be noise, and of none no number.
        mean = (np.nan_to_num(residual) * weight).sum(1) / np.maximum(weight.sum(1), 1e-12)
        centred[several] = residual[several] - mean[several, None]
    return Trial(
        taps,
        recipe,
        calibrate.log_loss(quality[known], score[known], weight[known]),
        between_models(centred, weight),
        auc_overall(quality, score, weight),
        auc_within(quality, score, outcomes.groups, weight),
        losses_of(quality, score, weight, centred),
    )


def _with_auxiliary(outcomes: Outcomes, auxiliary: Outcomes | None) -> Outcomes:
    if auxiliary is None:
        return outcomes
    extra = [name for name in auxiliary.models if name not in outcomes.models]
    more = auxiliary.with_models(extra)
    return replace(
        outcomes,
        models=(*outcomes.models, *extra),
        score=np.concatenate([outcomes.score, more.score], axis=1),
        weight=np.concatenate([outcomes.weight, more.weight], axis=1),
        propensity=np.concatenate([outcomes.propensity, more.propensity], axis=1),
        output_tokens=np.concatenate([outcomes.output_tokens, more.output_tokens], axis=1),
        input_tokens=np.concatenate([outcomes.input_tokens, more.input_tokens], axis=1),
        cost_usd=np.concatenate([outcomes.cost_usd, more.cost_usd], axis=1),
    )


def side_by_side(features: Mapping[TapName, Floats], taps: Sequence[TapName]) -> Floats:
    """[n, taps*H] the features of several taps, as the head reads them."""
    if len(taps) == 1:
        return np.asarray(features[taps[0]], np.float32)
    return np.concatenate([np.asarray(features[tap], np.float32) for tap in taps], axis=1)


def _norm(x: Floats) -> dict[str, Floats]:
    """Mean and standard deviation; a feature that never varies keeps scale 1, so that it adds nothing."""
    scale = x.std(0, dtype=np.float64).astype(np.float32)
    return {"norm.mean": x.mean(0, dtype=np.float64).astype(np.float32), "norm.scale": np.where(scale > 1e-6, scale, 1)}
