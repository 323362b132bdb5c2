"""What a live engine is made of: the seams between its threads, the text and the tensors.

Enters: nothing. Leaves: protocols and records. The engine knows only these; `stepper.py` and `router.py` fill them, and
tests fill them with fakes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.plan import Plan, SchedulerLimits
from onebeat.engine.records import Prompt

Array = NDArray[np.float32]
Report = Callable[[int, int, str], None]
"""Called as (done, total, what) while warming up."""


class Prepared(Protocol):
    """A prompt as token ids; `engine/tokens.py` makes it."""

    @property
    def token_ids(self) -> Sequence[int]:
        """What the model reads, at least one."""

    @property
    def prompt_tokens(self) -> int:
        """Before any cut."""

    @property
    def cut_tokens(self) -> int:
        """Left out of the middle."""

    @property
    def estimated(self) -> bool:
        """Whether both counts are estimates, because the prompt was too long to be tokenised whole."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What warming up measured."""

    ms_per_token: float
    """Of a chunk without context, beside the fixed part."""
    context_cost_tokens: float
    """At this many tokens of context a token takes twice as long as without any."""
    step_ms: float = 0.0
    """The fixed part of a step."""


class Step(Protocol):
    """A step under way."""

    @property
    def is_done(self) -> bool:
        """Whether it was computed before `launch` returned."""

    def wait(self) -> None:
        """Until the next step may be launched."""

    def features(self) -> Array:
        """[n, F] of the ended prompts: last chunks in the plan's order, then the ready ones."""


class Stepper(Protocol):
    """A model that computes plans. Made, used and dropped by the worker thread alone."""

    def warm_up(self, report: Report) -> Speed:
        """Makes every later step as fast as it will be."""

    def launch(self, plan: Plan, token_ids: Mapping[int, Sequence[int]]) -> Step:
        """Starts a step; `token_ids` holds the whole prompt of each chunk."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is made of: everything that knows text or tensors."""

    prepare: Callable[[Prompt], Prepared]
    """Called by several threads at once."""
    make_stepper: Callable[[], Stepper]
    score: Callable[[Array], tuple[Array, Array]]
    """Features [n, F] -> quality [n, M] and output tokens [n, M], row by row."""
    models: tuple[str, ...]
    fingerprint: bytes
    """Names the weights: part of every block key."""
    max_prompt_tokens: int
    limits: SchedulerLimits
    keep_blocks: int
    """Blocks that the prefix cache keeps; at 0 prompts share nothing."""
