"""A made-up world in which difficulty is a direction of the features: what the tests of learning fit and judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.curves import Judged
from onebeat.conductor.learning.outcomes import Gatherer, Outcomes

MODELS = ("cheap", "middle", "dear")
ABILITY = np.array([0.0, 1.0, 2.0])
PRICE_USD = np.array([0.0001, 0.0005, 0.002])


def world(
    prompts: int = 400, features: int = 24, seed: int = 0, *, noise: float = 0.3
) -> tuple[NDArray[np.float32], NDArray[np.float64], Outcomes]:
    """Features [n, F], true success probabilities [n, 3] and the outcomes drawn from them."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(prompts, features)).astype(np.float32)
    difficulty = 1.2 * x[:, 0] + 0.8 * np.tanh(x[:, 1] * x[:, 2]) + noise * random.normal(size=prompts)
    chance = 1 / (1 + np.exp(-(1.5 * (ABILITY - 0.5) - 1.6 * difficulty[:, None])))
    score = random.uniform(size=chance.shape) < chance
    tokens = np.exp(4.5 + 0.4 * x[:, :1] + 0.2 * ABILITY) * np.exp(0.1 * random.normal(size=chance.shape))
    records = [
        (
            f"row {row}",
            {
                "prompt": f"made-up prompt {row}",
                "model": name,
                "score": int(score[row, column]),
                "output_tokens": float(tokens[row, column]),
                "cost_usd": float(PRICE_USD[column]),
                "group": f"source {row % 3}",
            },
        )
        for row in range(prompts)
        for column, name in enumerate(MODELS)
    ]
    table = Gatherer().add_all(records).table().with_models(MODELS)
    place = {prompt: row for row, prompt in enumerate(table.prompts)}
    return x, chance, table.select(np.array([place[f"made-up prompt {row}"] for row in range(prompts)]))


def specialists(prompts: int = 400, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64], Outcomes]:
    """The same, of models that are good at opposite things: what one of them fails says little of the others."""
    x, _, outcomes = world(prompts, seed=seed)
    skill = np.stack([1.5 * x[:, 0] + 0.2, -1.5 * x[:, 0] + 0.3, 0.3 * x[:, 1] + 0.4], axis=1)
    chance = 1 / (1 + np.exp(-1.3 * skill.astype(np.float64)))
    score = np.random.default_rng(seed + 7).uniform(size=chance.shape) < chance
    return x, chance, replace(outcomes, score=score.astype(np.float32))


def logged(outcomes: Outcomes, chance: NDArray[np.float64], seed: int = 0, *, explore: float = 0.4) -> Outcomes:
    """One answer a prompt: of the model that a policy with a notion of the truth takes, or of one drawn at random."""
    random = np.random.default_rng(seed)
    rows, models = np.arange(len(chance)), chance.shape[1]
    propensity = np.full(chance.shape, explore / models)
    propensity[rows, (chance + 0.3 * random.normal(size=chance.shape)).argmax(1)] += 1.0 - explore
    chosen = (propensity.cumsum(1) < random.uniform(size=(len(rows), 1))).sum(1)
    known = np.zeros(chance.shape, bool)
    known[rows, chosen] = True

    def masked(table: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.where(known, table, np.nan).astype(np.float32)

    return replace(
        outcomes,
        score=masked(outcomes.score),
        output_tokens=masked(outcomes.output_tokens),
        cost_usd=masked(outcomes.cost_usd),
        weight=np.where(known, outcomes.weight, np.float32(0)),
        propensity=masked(propensity),
    )


def judged(seed: int = 0, prompts: int = 600, *, noise: float = 0.4) -> Judged:
    """Predictions that are the truth blurred by `noise` in log odds."""
    _, chance, outcomes = world(prompts, seed=seed)
    random = np.random.default_rng(seed + 1)
    blurred = np.log(chance / (1 - chance)) + noise * random.normal(size=chance.shape)
    cost = np.tile(PRICE_USD, (prompts, 1))
    quality = 1 / (1 + np.exp(-blurred))
    return Judged(MODELS, quality, cost, outcomes.score.astype(np.float64), cost, outcomes.groups)
