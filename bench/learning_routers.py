"""The routers that the learning bench compares: the fitted head, and what it has to beat.

Enters: a fitting `Table` and a test `Table`. Leaves: predicted quality and answer tokens `[n, M]` of the test prompts.
Every one of them chooses by the same utility; they differ in what they predict.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.learning_data import TAPS, Table
from onebeat.conductor.learning import fit
from onebeat.conductor.learning.calibrate import calibrate
from onebeat.conductor.learning.solve import Recipe
from onebeat.engine.head import Head

Floats = NDArray[np.float32]
Predicted = tuple[Floats, Floats]
NEIGHBOURS = 40
TAP_SETS = ((TAPS[2],), (TAPS[0], TAPS[2]), TAPS)
RECIPES = (fit.FIRST, Recipe("linear", l2=1.0))


def head(fitting: Table, test: Table, seed: int = 0) -> Predicted:
    """onebeat's own: taps and recipe chosen by folds inside the fitting side."""
    return _score(_fit(fitting, TAP_SETS, RECIPES, seed, auxiliary=True), test)


def kernel(fitting: Table, test: Table, seed: int = 0) -> Predicted:
    """The kernel head without a search, all taps."""
    return kernel_fit(fitting, seed).score_in_bulk(fit.side_by_side(test.states, TAPS))


def kernel_fit(fitting: Table, seed: int = 0) -> Head:
    """A kernel head on all taps, calibrated on its leave-one-out predictions."""
    names = fitting.outcomes.models
    keep = [fitting.everything.models.index(name) for name in names]
    states = fit.side_by_side(fitting.states, TAPS)
    tensors, left_out = fit.fit_tensors(states, fitting.everything, fit.FIRST, seed, keep)
    assert left_out is not None, "a kernel comes with its leave-one-out predictions"
    calibration = calibrate(left_out.logits, fitting.outcomes.score, names, probability=True)
    return Head.from_tensors(tensors, kind="kernel", columns=names, features=states.shape[1], calibration=calibration)


def logistic(fitting: Table, test: Table, seed: int = 0) -> Predicted:
    """Regularised logistic regression on the last tap, without further models as tasks."""
    return _score(_fit(fitting, TAP_SETS[:1], RECIPES[1:], seed, auxiliary=False), test)


def source_means(fitting: Table, test: Table, seed: int = 0) -> Predicted:
    """Each model's mean in the prompt's source, which it is told: the "dataset oracle"."""
    groups, wanted = np.asarray(fitting.outcomes.groups), np.asarray(test.outcomes.groups)
    quality = np.empty((len(wanted), len(fitting.outcomes.models)), np.float32)
    tokens = np.empty_like(quality)
    for name in np.unique(wanted):
        rows = groups == name
        quality[wanted == name] = np.nanmean(fitting.outcomes.score[rows], axis=0)
        tokens[wanted == name] = np.nanmean(fitting.outcomes.output_tokens[rows], axis=0)
    return quality, tokens


def neighbours(fitting: Table, test: Table, seed: int = 0) -> Predicted:
    """The mean of the 40 nearest fitting prompts, by the same standardised features."""
    first, second = fit.side_by_side(fitting.states, TAPS), fit.side_by_side(test.states, TAPS)
    mean, scale = first.mean(0), np.maximum(first.std(0), 1e-6)
    first, second = (first - mean) / scale, (second - mean) / scale
    distances = np.square(second).sum(1)[:, None] + np.square(first).sum(1)[None] - 2 * second @ first.T
    nearest = np.argpartition(distances, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return fitting.outcomes.score[nearest].mean(1), fitting.outcomes.output_tokens[nearest].mean(1)


def words(fitting: Table, test: Table, seed: int = 0) -> Predicted:
    """TF-IDF of words and pairs with logistic regression per model; ridge for the tokens."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    first = vectorizer.fit_transform([str(prompt) for prompt in fitting.outcomes.prompts])
    second = vectorizer.transform([str(prompt) for prompt in test.outcomes.prompts])
    quality, tokens = [], []
    for column in range(len(fitting.outcomes.models)):
        model = LogisticRegression(C=1.0, max_iter=200).fit(first, fitting.outcomes.score[:, column] > 0.5)
        quality.append(model.predict_proba(second)[:, 1])
        length = Ridge(alpha=1.0).fit(first, np.log(np.maximum(fitting.outcomes.output_tokens[:, column], 1.0)))
        tokens.append(np.exp(length.predict(second)))
    return np.stack(quality, 1).astype(np.float32), np.stack(tokens, 1).astype(np.float32)


ROUTERS: dict[str, Callable[[Table, Table, int], Predicted]] = {
    "onebeat train": head,
    "logistic": logistic,
    "kNN-40": neighbours,
    "TF-IDF": words,
    "source means": source_means,
}


def _fit(
    fitting: Table,
    tap_sets: tuple[tuple[fit.TapName, ...], ...],
    recipes: tuple[Recipe, ...],
    seed: int,
    *,
    auxiliary: bool,
) -> fit.FittedHead:
    more = fitting.everything if auxiliary and len(fitting.everything.models) > len(fitting.outcomes.models) else None
    return fit.fit(fitting.states, fitting.outcomes, tap_sets=tap_sets, recipes=recipes, auxiliary=more, seed=seed)


def _score(fitted: fit.FittedHead, test: Table) -> Predicted:
    return fitted.head().score_in_bulk(fit.side_by_side(test.states, fitted.taps))
