"""Is the kernel head ahead of kNN at every cost? Both judged on the same prompts, every prompt held out once.

Enters: a `Source`. Leaves: points ahead at equal dollars with paired bootstrap intervals over all prompts. Splits by
seed share most of their prompts, so the spread between them understates how far such a difference can be off; here each
prompt counts once. The kernel is fitted without a search. Knows no other router.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.learning_data import SEVEN, Source, Table, load
from bench.learning_routers import Predicted, kernel, neighbours
from onebeat.conductor.learning.costs import costs
from onebeat.conductor.learning.curves import Curve, choose, dial_positions, quality_at_cost, reference_cost
from onebeat.conductor.learning.splits import folds

Doubles = NDArray[np.float64]
FOLDS, BOOTSTRAPS = 5, 400


def ahead_of_neighbours(source: Source, shares: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """Points of accuracy ahead of kNN-40 at `shares` of the best single model's dollars, with central 95 %."""
    table = load(source, ("zeroeval",), SEVEN)
    rows = len(table.outcomes.prompts)
    predictions = [_empty(rows), _empty(rows)]
    for number, held in enumerate(folds(table.outcomes.prompts, table.outcomes.groups, FOLDS)):
        fitting, test = table.take(np.setdiff1d(np.arange(rows), held)), table.take(held)
        for (quality, tokens), router in zip(predictions, (kernel, neighbours), strict=True):
            quality[held], tokens[held] = router(fitting, test, number)
    ours, theirs = (_positions(table, predicted) for predicted in predictions)
    actual = costs(table.outcomes, table.prices(), table.prompt_tokens, predictions[0][1]).actual
    best = int(table.outcomes.score.mean(0).argmax())
    random = np.random.default_rng(0)
    counts = np.stack([np.ones(rows), *(random.multinomial(rows, np.full(rows, 1 / rows)) for _ in range(BOOTSTRAPS))])
    counts /= rows
    first, second = ([counts @ part.T for part in side] for side in (ours, theirs))
    budget = counts @ actual[:, best]
    report: dict[str, dict[str, float | None]] = {}
    print("\npoints ahead of kNN-40 at the same dollars, every prompt held out once, paired bootstrap over prompts")
    for share in shares:
        lead = [
            _minus(_at(first, sample, share * budget[sample]), _at(second, sample, share * budget[sample]))
            for sample in range(len(counts))
        ]
        known = [value for value in lead[1:] if value is not None]
        ends = np.quantile(known, [0.025, 0.975]) if len(known) > BOOTSTRAPS // 2 else (None, None)
        row = {"points": lead[0], "low": ends[0], "high": ends[1]}
        report[f"at_{round(100 * share)}"] = {key: _rounded(value) for key, value in row.items()}
        print(f"  {round(100 * share):>4} %  " + "  ".join(f"{key} {_rounded(value)}" for key, value in row.items()))
    return report


def _empty(rows: int) -> Predicted:
    return np.empty((rows, len(SEVEN)), np.float32), np.empty((rows, len(SEVEN)), np.float32)


def _positions(table: Table, predicted: Predicted) -> tuple[Doubles, Doubles]:
    """[P, n] score and dollars of what each dial position chooses."""
    money = costs(table.outcomes, table.prices(), table.prompt_tokens, predicted[1])
    reference, rows = reference_cost(money.actual), np.arange(len(predicted[0]))
    score, dollars = [], []
    for tradeoff in dial_positions():
        chosen = choose(predicted[0].astype(np.float64), money.predicted, float(tradeoff), reference)
        score.append(table.outcomes.score[rows, chosen])
        dollars.append(money.actual[rows, chosen])
    return np.stack(score).astype(np.float64), np.stack(dollars)


def _at(side: list[Doubles], sample: int, dollars: float) -> float | None:
    score, cost = side[0][sample], side[1][sample]
    return quality_at_cost(Curve(dial_positions(), score, cost, np.empty((0, 0))), dollars)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else 100 * (a - b)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)
