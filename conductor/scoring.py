"""Asks the router, in-process, within its deadline; no answer in time is an answer too.

Enters: a `ChatRequest`. Leaves: predictions by column, or the reason why there are none, and how long it took. Of the
live router it knows `score` only.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from onebeat.conductor.records import ChatRequest
from onebeat.conductor.routes import Prediction
from onebeat.engine.errors import DeadlineError, InputError, OnebeatError, OverloadedError
from onebeat.engine.records import Prompt, Scores

log = logging.getLogger("onebeat.scoring")

OnFeatures = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], None]


class LiveRouter(Protocol):
    """What the gateway needs of `router.serve()`."""

    async def score(self, prompt: Prompt, *, deadline_ms: float | None = None, features: bool = False) -> Scores: ...


class Scored(Struct, frozen=True):
    predictions: dict[str, Prediction] | None
    router_ms: float
    why: str | None = None
    """Why there are no predictions; None where there are."""
    is_late: bool = False
    has_failed: bool = False


class Scorer:
    """One router for all requests. `on_features` gets the drift share of them."""

    def __init__(
        self,
        live: LiveRouter | None,
        *,
        on_features: OnFeatures | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._live = live
        self._on_features = on_features
        self._draw = draw
        self.late = 0
        self.failed = 0

    async def predict(self, request: ChatRequest, deadline_ms: float, drift_share: float) -> Scored:
        """Never raises for the router's sake: its failure is the prior's turn."""
        watched = self._on_features is not None and drift_share > 0 and self._draw() < drift_share
        scored = await self.ask(request.as_prompt(), deadline_ms, watched=watched)
        self.late += scored.is_late
        self.failed += scored.has_failed
        return scored

    async def ask(self, prompt: Prompt, deadline_ms: float, *, watched: bool = False) -> Scored:
        """The same of any prompt, without counting."""
        if self._live is None:
            return Scored(None, 0.0, "no router is configured")
        late = failed = False
        started = time.perf_counter()
        why: str | None
        scores: Scores | None = None
        try:
            # The engine sheds what cannot meet its deadline; the timeout here holds even if its worker is stuck.
            async with asyncio.timeout(deadline_ms / 1e3):
                scores = await self._live.score(prompt, deadline_ms=deadline_ms, features=watched)
            why = None
        except (TimeoutError, DeadlineError, OverloadedError):
            late = True
            why = f"the router had no answer within {deadline_ms:g} ms"
        except InputError as error:
            why = f"the router cannot read this prompt ({error})"
        except OnebeatError as error:
            failed = True
            log.error("the router failed: %s", error)
            why = "the router failed"
        router_ms = 1e3 * (time.perf_counter() - started)
        if scores is None:
            return Scored(None, router_ms, why, late, failed)
        quality, lengths = scores.quality[0].tolist(), scores.output_tokens[0].tolist()
        predictions = {
            name: Prediction(q, length) for name, q, length in zip(scores.models, quality, lengths, strict=True)
        }
        if watched and self._on_features is not None and scores.features is not None:
            self._on_features(scores.features, scores.quality, scores.output_tokens)
        return Scored(predictions, router_ms)
