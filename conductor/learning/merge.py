"""Several outcomes of one prompt and model become one: they are taken for repeated measurements of the same thing.

Enters: a column of numbers for each field and the cell of every record. Leaves: dense tables. The order of the records
has no say, to the last bit. Knows no prompts and no names.

Score, tokens and cost become their mean by weight, over the records of a weight above 0 that know them; the weight
becomes the mean weight of those, so that grading a prompt twice does not make it count twice. A cell whose records all
have weight 0 keeps their plain means, and weight 0.

The propensity stays where the records are one that was read twice. Of a prompt that was asked again there is none: that
the same model answered both times has another chance than either record says, and where two did there is no log of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]
BY_WEIGHT = ("score", "input_tokens", "output_tokens", "cost_usd")


@dataclass(frozen=True, slots=True)
class Merged:
    """Dense tables, and what was merged into them."""

    tables: dict[str, Floats]
    """[cells] each; NaN where nothing is known. `weight` is 0 where there is no score."""
    cells: Rows
    """[k] the cells that have records, ascending."""
    count: Rows
    """[k] how many records each has."""
    conflicting: NDArray[np.bool_]
    """[k] whether their scores differ."""
    redrawn: NDArray[np.bool_]
    """[k] whether they are several answers, so that their propensities are left out."""


def merge(columns: Mapping[str, Sequence[float]], cell_of: Rows, size: int) -> Merged:
    """Tables of `size` cells from records [r] and the cells that they are of. There must be one record."""
    fields = {name: np.asarray(values) for name, values in columns.items()}
    order = np.argsort(cell_of, kind="stable")
    first = _first(cell_of[order])
    if len(first) < len(order):
        # Sums depend on their order in the last bit: records of one cell are put in that of their numbers.
        order = np.lexsort([*fields.values(), cell_of])
        first = _first(cell_of[order])
    count = np.diff(np.r_[first, len(order)])
    scores = fields["score"][order]
    weight = np.nan_to_num(fields["weight"][order], nan=1.0)
    heaviest = np.repeat(np.maximum.reduceat(weight, first), count)
    share = np.where((heaviest > 0) & (np.repeat(count, count) > 1), weight, 1.0)
    tables: dict[str, Floats] = {}
    for name, values in fields.items():
        by = share if name in BY_WEIGHT else (share > 0).astype(np.float64)
        read = weight if name == "weight" else values[order]
        tables[name] = np.full(size, np.nan, np.float32)
        tables[name][cell_of[order][first]] = _means(read, by, first)
    tables["weight"] = np.where(np.isfinite(tables["score"]), tables["weight"], np.float32(0.0))
    conflicting = np.maximum.reduceat(scores, first) > np.minimum.reduceat(scores, first)
    several = np.zeros(len(first), bool)
    for values in fields.values():
        known = np.nan_to_num(values[order], nan=-1.0)
        several |= np.maximum.reduceat(known, first) > np.minimum.reduceat(known, first)
    cells = cell_of[order][first]
    redrawn = several & np.isfinite(tables["propensity"][cells])
    tables["propensity"][cells[redrawn]] = np.nan
    return Merged(tables, cells, count, conflicting, redrawn)


def _first(ordered: Rows) -> Rows:
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def _means(values: Doubles, by: Doubles, first: Rows) -> Doubles:
    """[k] the mean of what is known in each run that starts at `first`; NaN where nothing is."""
    counts = np.where(np.isfinite(values), by, 0.0)
    total, summed = (np.add.reduceat(x, first) for x in (np.nan_to_num(values) * counts, counts))
    return np.where(summed > 0, total / np.where(summed > 0, summed, 1.0), np.nan)
