"""What the learning bench fits and judges on: outcomes from the published sets, features from the engine.

Enters: the folder of the published sets, a backbone, a cache folder. Leaves: `Table`s. Knows no heads and no metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.costs import Price, prices_for
from onebeat.conductor.learning.features import Reading, extract
from onebeat.conductor.learning.fit import TapName
from onebeat.conductor.learning.outcomes import Gatherer, Outcomes
from onebeat.conductor.learning.progress import Progress
from tools.import_outcomes import LIST_PRICES, SETS, Outcome

Rows = NDArray[np.int64]
SEVEN = (
    "gpt-4o-2024-08-06",
    "gpt-4o-mini-2024-07-18",
    "claude-3-5-sonnet-20241022",
    "claude-3-5-haiku-20241022",
    "claude-3-haiku-20240307",
    "gemini-1.5-pro",
    "gemini-1.5-flash",
)
"""Three vendors' models that answered every prompt of ZeroEval."""
TAPS: tuple[TapName, ...] = ((15, "mean"), (17, "last"), (19, "mean"))
PRICES = {name: Price(entered, written) for name, (entered, written) in LIST_PRICES.items()}


@dataclass(frozen=True, slots=True)
class Source:
    """Where prompts, backbone and cached features are."""

    data: Path
    backbone: Path
    cache: Path | None
    precision: str


@dataclass(frozen=True, slots=True)
class Table:
    """Outcomes of `models`, those of every model of the set, and the features of the same prompts."""

    outcomes: Outcomes
    everything: Outcomes
    states: dict[TapName, NDArray[np.float32]]
    prompt_tokens: NDArray[np.int64]

    def take(self, rows: Rows) -> Table:
        """The same for these prompts."""
        states = {tap: state[rows] for tap, state in self.states.items()}
        return Table(self.outcomes.select(rows), self.everything.select(rows), states, self.prompt_tokens[rows])

    def with_models(self, models: tuple[str, ...]) -> Table:
        """The same with these models to choose from."""
        return Table(self.everything.with_models(models), self.everything, self.states, self.prompt_tokens)

    def prices(self) -> list[Price]:
        """List prices of `outcomes.models`."""
        return prices_for(self.outcomes, PRICES, self.prompt_tokens)


def load(source: Source, sets: tuple[str, ...], models: tuple[str, ...] = (), share: float = 1.0) -> Table:
    """The outcomes of these sets with features; of `share` of the prompts, chosen by their hash."""
    gatherer = Gatherer()
    for name in sets:
        part, reader = SETS[name]
        gatherer.add_all(_placed(name, reader(source.data / part), share))
    everything = gatherer.table()
    reading = Reading(TAPS, precision=source.precision)  # type: ignore[arg-type]
    found = extract(
        source.backbone,
        everything.prompts,
        reading,
        cache_folder=source.cache,
        progress=Progress(f"reading {'+'.join(sets)}"),
    )
    everything = everything.select(found.rows)
    outcomes = everything.with_models(models or everything.models)
    return Table(outcomes, everything, found.states, found.prompt_tokens)


def _placed(name: str, outcomes: Iterator[Outcome], share: float) -> Iterator[tuple[str, Outcome]]:
    for number, outcome in enumerate(outcomes, 1):
        quarter = hashlib.sha256(str(outcome["prompt"]).encode()).digest()[0] % 4
        if quarter < 4 * share:
            yield f"{name}:{number}", outcome
