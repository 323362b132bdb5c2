"""What a learned router must beat: choices that need no head, and heads that need no backbone.

Enters: the fitting and judging sides of a split. Leaves: predicted quality `[n, M]` per baseline, to be traced by the
same dial, or fixed operating points. Uses scikit-learn (the `train` extra) for TF-IDF only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning import solve
from onebeat.conductor.learning.curves import Curve, Doubles, Judged, single_means
from onebeat.conductor.learning.metrics import hull
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.resample import Traced
from onebeat.conductor.learning.weights import known_weight, mean_scores
from onebeat.engine.records import Prompt

Floats = NDArray[np.float32]
NEIGHBOURS = 40
TERMS = 5000
UNKNOWN_QUALITY = 0.5
"""Of a model that the fitting side has no outcome of."""


@dataclass(frozen=True, slots=True)
class Single:
    """Always the same model."""

    model: str
    quality: float
    cost_usd: float


def singles(judged: Judged) -> list[Single]:
    """Every model by itself, dearest first."""
    quality, cost = single_means(judged)
    held = [Single(name, float(quality[column]), float(cost[column])) for column, name in enumerate(judged.models)]
    return sorted(held, key=lambda single: -single.cost_usd)


def best_on_fit(outcomes: Outcomes, judged: Judged) -> Single:
    """The model with the best mean on the fitting side: what one would deploy without a router, chosen honestly."""
    means = np.nan_to_num(mean_scores(outcomes), nan=-1.0)
    name = outcomes.models[int(np.argmax(means))]
    return next(single for single in singles(judged) if single.model == name)


def per_source_means(outcomes: Outcomes, groups: Sequence[str]) -> Doubles:
    """[n, M] each model's mean score in the prompt's source: an oracle of the data set, blind to the prompt."""
    overall = np.nan_to_num(mean_scores(outcomes), nan=UNKNOWN_QUALITY)
    names = np.asarray(outcomes.groups)
    means = {}
    for name in set(groups):
        inside, weight = outcomes.score[names == name], known_weight(outcomes)[names == name]
        # Sources that were never seen, or hardly, lean on the model's overall mean, worth five outcomes.
        means[name] = ((np.nan_to_num(inside) * weight).sum(0) + 5.0 * overall) / (weight.sum(0) + 5.0)
    return np.stack([means[group] for group in groups]).astype(np.float64)


def per_source_tokens(outcomes: Outcomes, groups: Sequence[str]) -> Floats:
    """[n, M] mean output tokens in the prompt's source, for the costs that go with `per_source_means`."""
    names, weight = np.asarray(outcomes.groups), known_weight(outcomes)
    overall = _mean_or(outcomes.output_tokens, weight, solve.DEFAULT_OUTPUT_TOKENS)
    means = {
        name: _mean_or(outcomes.output_tokens[names == name], weight[names == name], overall) for name in set(groups)
    }
    return np.stack([means[group] for group in groups]).astype(np.float32)


def neighbours(fitted: Floats, outcomes: Outcomes, states: Floats, count: int = NEIGHBOURS) -> Doubles:
    """[n, M] the mean score, by weight, of the `count` nearest fitting prompts by cosine of standardised features."""
    mean, scale = fitted.mean(0), fitted.std(0) + 1e-6
    known = (fitted - mean) / scale
    known = known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-9)
    asked = (states - mean) / scale
    asked = asked / np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-9)
    overall, weight = np.nan_to_num(mean_scores(outcomes), nan=UNKNOWN_QUALITY), known_weight(outcomes)
    held = min(count, len(known))
    quality = np.empty((len(asked), len(outcomes.models)))
    for start in range(0, len(asked), 1024):
        nearness = asked[start : start + 1024] @ known.T
        nearest = np.argpartition(-nearness, held - 1, axis=1)[:, :held]
        there = weight[nearest].sum(1)  # [b, held, M] to [b, M]
        total = (np.nan_to_num(outcomes.score[nearest]) * weight[nearest]).sum(1)
        quality[start : start + 1024] = np.where(there > 0, total / np.where(there > 0, there, 1.0), overall)
    return quality


def tf_idf(fit_prompts: Sequence[Prompt], outcomes: Outcomes, prompts: Sequence[Prompt]) -> Doubles | None:
    """[n, M] a logistic regression per model on words and pairs of words; None without scikit-learn or words."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), max_features=TERMS, sublinear_tf=True)
    try:
        known = vectorizer.fit_transform([_text(prompt) for prompt in fit_prompts])
    except ValueError:  # "empty vocabulary": none of the prompts holds a word.
        return None
    asked = vectorizer.transform([_text(prompt) for prompt in prompts])
    quality = np.empty((len(prompts), len(outcomes.models)))
    for column in range(len(outcomes.models)):
        there = np.flatnonzero(np.isfinite(outcomes.score[:, column]))
        target = outcomes.score[there, column] >= 0.5
        if target.all() or not target.any():
            quality[:, column] = float(target.mean()) if len(target) else UNKNOWN_QUALITY
            continue
        model = LogisticRegression(C=1.0, max_iter=1000)
        model.fit(known[there], target, sample_weight=outcomes.weight[there, column])
        quality[:, column] = model.predict_proba(asked)[:, 1]
    return quality


def oracle(judged: Judged) -> Judged:
    """The same prompts, with every outcome foreseen."""
    return replace(judged, quality=judged.score, predicted_cost_usd=judged.cost_usd)


def always(singles: Traced, column: int) -> Traced:
    """Always the same model: one point."""
    return Traced(_picked(singles.curve, [column]), singles.quality[:, [column]], singles.cost_usd[:, [column]])


def mixed(singles: Traced, first: int, second: int) -> Traced:
    """A coin between two models, at two points: all in between is reached by mixing."""
    pair = [first, second]
    return Traced(_picked(singles.curve, pair), singles.quality[:, pair], singles.cost_usd[:, pair])


def any_two_mixed(singles: Traced) -> Traced:
    """The best coin between any two models at every cost, chosen in hindsight: RouterBench's "zero router"."""
    curve = singles.curve
    costs, qualities = hull(curve.cost_usd, curve.quality)
    ends = [
        int(np.flatnonzero((curve.cost_usd == x) & (curve.quality == y))[0])
        for x, y in zip(costs, qualities, strict=True)
    ]
    lifted = np.empty_like(singles.quality)
    for sample, (cost, quality) in enumerate(zip(singles.cost_usd, singles.quality, strict=True)):
        lifted[sample] = np.interp(cost, *hull(cost, quality))
    share = np.stack([np.interp(curve.cost_usd, costs, column) for column in curve.share[ends].T], 1)
    best = np.interp(curve.cost_usd, costs, qualities)
    return Traced(Curve(curve.tradeoff, best, curve.cost_usd, share), lifted, singles.cost_usd)


def _picked(curve: Curve, columns: list[int]) -> Curve:
    return Curve(curve.tradeoff[columns], curve.quality[columns], curve.cost_usd[columns], curve.share[columns])


def _mean_or(table: Floats, weight: Doubles, fallback: float | Doubles) -> Doubles:
    counts = np.where(np.isfinite(table), weight, 0.0)
    total, summed = (np.nan_to_num(table) * counts).sum(0), counts.sum(0)
    return np.asarray(np.where(summed > 0, total / np.where(summed > 0, summed, 1.0), fallback), np.float64)


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(
        content if isinstance(content := message.get("content"), str) else msgspec.json.encode(content).decode()
        for message in prompt
    )
