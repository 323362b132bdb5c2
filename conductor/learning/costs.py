"""What answers cost: list prices, from a file or worked out from bills, and the dollars of every cell.

Enters: outcomes, prices, prompt lengths. Leaves: `[n, M]` dollars, actual and predicted. Knows no provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.engine.errors import InputError
from onebeat.engine.strict_json import nearest

Doubles = NDArray[np.float64]
MIN_BILLS = 10
"""Billed answers from which a model's two prices are worked out when no list names them."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens."""

    input_usd_per_million: float
    output_usd_per_million: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Dollars per answer, [n, M]."""

    actual: Doubles
    """As billed; else from the tokens and the price; NaN where neither is known."""
    predicted: Doubles


def read_prices(path: Path) -> dict[str, Price]:
    """`{"model": {"input_usd_per_million": 2.5, "output_usd_per_million": 10}, ...}`. Raises `InputError`."""
    try:
        prices = msgspec.json.decode(path.read_bytes(), type=dict[str, Price])
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is not a price list ({error}); it maps model names to two prices.") from None
    for name, price in prices.items():
        for value in (price.input_usd_per_million, price.output_usd_per_million):
            if not 0 <= value < 1e6:
                raise InputError(f"{path}: a price of {name!r} is {value}; it must be 0 to 1,000,000 USD per million.")
    return prices


def check_prices(outcomes: Outcomes, listed: Mapping[str, Price]) -> None:
    """Raises `InputError` naming a model that `prices_for` would find no price for. Needs no prompt's length."""
    for column, name in enumerate(outcomes.models):
        if name not in listed and _bills(outcomes, column).sum() < MIN_BILLS:
            near = f" ({nearest(name, listed)})" if listed else ""
            raise InputError(
                f"model {name!r} has no list price{near} and fewer than {MIN_BILLS} outcomes with cost_usd and "
                "output_tokens; add it to the file given by --prices."
            )


def prices_for(outcomes: Outcomes, listed: Mapping[str, Price], prompt_tokens: NDArray[np.int64]) -> list[Price]:
    """One price per model: as listed, else worked out from bills. Raises `InputError` naming a model without either."""
    check_prices(outcomes, listed)
    return [
        listed.get(name) or _from_bills(outcomes, column, prompt_tokens) for column, name in enumerate(outcomes.models)
    ]


def costs(
    outcomes: Outcomes, prices: Sequence[Price], prompt_tokens: NDArray[np.int64], predicted_tokens: NDArray[np.float32]
) -> Costs:
    """Actual and predicted dollars. Where an answer's length is unknown, its predicted length stands in."""
    input_price = np.array([price.input_usd_per_million for price in prices]) / 1e6
    output_price = np.array([price.output_usd_per_million for price in prices]) / 1e6
    read = prompt_tokens.astype(np.float64)[:, None]
    entered = np.where(np.isfinite(outcomes.input_tokens), outcomes.input_tokens, read)
    predicted = read * input_price + predicted_tokens.astype(np.float64) * output_price
    listed = entered * input_price + outcomes.output_tokens.astype(np.float64) * output_price
    billed = outcomes.cost_usd.astype(np.float64)
    actual = np.where(np.isfinite(billed), billed, np.where(np.isfinite(listed), listed, predicted))
    return Costs(actual, predicted)


def _bills(outcomes: Outcomes, column: int) -> NDArray[np.bool_]:
    """[n] whether the model's answer was billed and its length is known."""
    return np.isfinite(outcomes.cost_usd[:, column]) & np.isfinite(outcomes.output_tokens[:, column])


def _from_bills(outcomes: Outcomes, column: int, prompt_tokens: NDArray[np.int64]) -> Price:
    """Two non-negative prices by least squares; one price for both where the two cannot be told apart."""
    cost, written, known = outcomes.cost_usd[:, column], outcomes.output_tokens[:, column], _bills(outcomes, column)
    entered = np.where(np.isfinite(outcomes.input_tokens[:, column]), outcomes.input_tokens[:, column], prompt_tokens)
    design = np.stack([entered[known], written[known]], 1).astype(np.float64)
    target = cost[known].astype(np.float64)
    solution, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    if rank < 2 or (solution < 0).any():
        total = design.sum()
        solution = np.full(2, target.sum() / total if total > 0 else 0.0)
    return Price(*(round(float(value) * 1e6, 6) for value in solution))
