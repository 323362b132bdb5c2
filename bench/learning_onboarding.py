"""Two questions to the kernel head: what 50 graded prompts of a new model are worth, and what int8 changes.

Enters: a `Source`. Leaves: reports, printed and returned. The new model is withheld from everything, auxiliary tasks
included; its 50 prompts are chosen from the fitting side by `onebeat onboard`'s own rule.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.learning_data import SEVEN, TAPS, Source, Table, load
from bench.learning_routers import kernel_fit
from onebeat.conductor.learning import fit, onboard
from onebeat.conductor.learning.costs import costs
from onebeat.conductor.learning.curves import choose, reference_cost
from onebeat.conductor.learning.metrics import auc
from onebeat.conductor.learning.splits import folds, split_prompts

GRADED, SPLITS, JUDGED = 50, 4, 300
STUDENT_T = 3.18
"""Of 95 % over four splits."""
DIALS = (0.1, 0.3, 0.5, 0.7, 0.9)


def onboarding(source: Source) -> dict[str, object]:
    """Each of the seven models in turn: Brier score by a constant, by 50 graded prompts, and by a whole refit.

    The constant is the model's mean over the whole fitting side: better than what 50 graded prompts could tell.
    """
    table = load(source, ("zeroeval",), SEVEN)
    print(f"\nonboarding from {GRADED} graded prompts: share of the refit's gain over a constant")
    constant, fifty, refit = (np.zeros((SPLITS, len(SEVEN))) for _ in range(3))
    ranks = np.zeros((len(SEVEN), 2))
    for seed in range(SPLITS):
        split = split_prompts(table.outcomes.prompts, table.outcomes.groups, seed=seed)
        fitting, test = table.take(split.fit), table.take(split.test)
        whole, _ = kernel_fit(fitting, seed).score_in_bulk(fit.side_by_side(test.states, TAPS))
        for column, name in enumerate(SEVEN):
            score = test.outcomes.score[:, column]
            predicted = _onboarded(fitting, test, name, seed)
            constant[seed, column] = np.square(score - fitting.outcomes.score[:, column].mean()).mean()
            fifty[seed, column] = np.square(score - predicted).mean()
            refit[seed, column] = np.square(score - whole[:, column]).mean()
            ranks[column] += np.array([auc(predicted, score) or 0.0, auc(whole[:, column], score) or 0.0]) / SPLITS
    share = (constant - fifty).sum(0) / (constant - refit).sum(0)
    for column, name in enumerate(SEVEN):
        print(f"  {name:28} {share[column]:6.1%}  AUC {ranks[column, 0]:.3f} of {ranks[column, 1]:.3f}")
    by_split = (constant - fifty).sum(1) / (constant - refit).sum(1)
    total, half = float(by_split.mean()), float(STUDENT_T * by_split.std(ddof=1) / SPLITS**0.5)
    print(f"  {'all together':28} {total:6.1%} ± {half:.1%} over {SPLITS} splits")
    return {
        "graded_prompts": GRADED,
        "splits": SPLITS,
        "share_of_brier_gain": dict(zip(SEVEN, share.round(4).tolist(), strict=True)),
        "share_of_brier_gain_together": round(total, 4),
        "half_width": round(half, 4),
        "share_by_split": by_split.round(4).tolist(),
        "auc_after_50_and_after_refit": {name: ranks[at].round(4).tolist() for at, name in enumerate(SEVEN)},
    }


def _onboarded(fitting: Table, test: Table, name: str, seed: int) -> np.ndarray:  # type: ignore[type-arg]
    """Quality of a withheld model on the test side from 50 graded prompts.

    The columns' predictions for the prompts to grade come from a head fitted on the other half of the fitting side:
    a model is onboarded on prompts that the head has not seen.
    """
    others = tuple(model for model in SEVEN if model != name)
    rest = [model for model in fitting.everything.models if model != name]
    withheld = replace(
        fitting, outcomes=fitting.everything.with_models(others), everything=fitting.everything.with_models(rest)
    )
    head = kernel_fit(withheld, seed)
    seen, fresh = folds(fitting.outcomes.prompts, fitting.outcomes.groups, 2, seed=seed)
    pool, _ = kernel_fit(withheld.take(seen), seed).score_in_bulk(fit.side_by_side(fitting.states, TAPS)[fresh])
    chosen = onboard.choose_prompts(pool, GRADED, seed=seed)
    graded = fitting.outcomes.score[fresh[chosen], SEVEN.index(name)]
    found = onboard.combine(pool[chosen], graded, seed=seed)
    quality, _ = head.score_in_bulk(fit.side_by_side(test.states, TAPS))
    return onboard.predict(found, quality)


def int8(source: Source) -> dict[str, object]:
    """How often the served int8 backbone decides as float32 does, on held-out prompts, over the dial."""
    table = load(source, ("zeroeval",), SEVEN)
    split = split_prompts(table.outcomes.prompts, table.outcomes.groups, seed=0)
    head = kernel_fit(table.take(split.fit))
    rows = split.test[np.random.default_rng(0).permutation(len(split.test))[:JUDGED]]
    test = table.take(np.sort(rows))
    decisions, qualities = [], []
    for precision in ("float32", "int8"):
        quality, tokens = head.score_in_bulk(served(source, test, precision))
        money = costs(test.outcomes, test.prices(), test.prompt_tokens, tokens)
        reference = reference_cost(money.actual)
        decisions.append([choose(quality.astype(float), money.predicted, dial, reference) for dial in DIALS])
        qualities.append(quality)
    same = {str(dial): float((a == b).mean()) for dial, a, b in zip(DIALS, *decisions, strict=True)}
    change = float(np.abs(qualities[0] - qualities[1]).mean())
    print(
        f"\nint8 against float32 on {len(rows)} held-out prompts: mean change of quality {change:.4f}; same decision:"
    )
    print("  " + "  ".join(f"tradeoff {dial}: {share:.1%}" for dial, share in same.items()))
    return {"prompts": len(rows), "same_decision": same, "mean_quality_change": round(change, 5)}


def served(source: Source, test: Table, precision: str) -> np.ndarray:  # type: ignore[type-arg]
    """Features as `Router.from_pretrained` computes them: int8 with its smoothed copy."""
    from onebeat import Router

    router = Router.from_pretrained(str(source.backbone), precision=precision)  # type: ignore[arg-type]
    found = router.score(list(test.outcomes.prompts), features=True).features
    assert found is not None, "features were asked for"
    return found
