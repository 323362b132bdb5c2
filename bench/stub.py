"""What the engine itself costs: real threads, real scheduler, real futures, and a model that answers at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onebeat.engine.engine import Engine
from onebeat.engine.mailbox import Mailbox
from onebeat.engine.options import EngineOptions
from onebeat.engine.parts import EngineParts, Report, Speed, Step
from onebeat.engine.plan import Plan
from onebeat.engine.records import Scores
from onebeat.engine.router import Router
from onebeat.engine.stepper import DoneStep
from onebeat.engine.tokens import Prepared

PROMPTS, TOGETHER = 6000, 48


class StubModel:
    """Features without a forward."""

    def __init__(self, features: int) -> None:
        self._row = np.zeros((1, features), np.float32)

    def warm_up(self, report: Report) -> Speed:
        """Nothing to warm up."""
        return Speed(1e-3, 1e9)

    def launch(self, plan: Plan, token_ids: Mapping[int, Sequence[int]]) -> Step:
        """As many rows as prompts end."""
        ended = sum(chunk.is_last for chunk in plan.chunks) + len(plan.ready)
        return DoneStep(np.repeat(self._row, ended, axis=0))


async def stubbed_overhead_us(router: Router) -> dict[str, Any]:
    """Microseconds of wall time per prompt, `TOGETHER` callers at a time on one loop, tokens given."""
    dice = random.Random(0)
    prompts = [[dice.randint(1, 40_000) for _ in range(dice.randint(32, 128))] for _ in range(64)]
    prompts += [[dice.randint(1, 40_000) for _ in range(1500)] for _ in range(7)]
    prepared = [Prepared(ids, len(ids), 0) for ids in prompts]
    width, models = router.runner.mean_mask.shape[0], len(router.columns)
    zeros = np.zeros((512, models), np.float32)
    limits = EngineOptions().limits(router.runner.chunk_tokens, 2048, on_gpu=False)
    engine = Engine(
        EngineParts(
            prepare=lambda prompt: prepared[int(str(prompt))],
            make_stepper=lambda: StubModel(width),
            score=lambda features: (zeros[: len(features)], zeros[: len(features)]),
            models=tuple(column.name for column in router.columns),
            fingerprint=b"stub",
            max_prompt_tokens=2048,
            limits=limits,
            keep_blocks=64,
        ),
        queue_prompts=TOGETHER,
    )
    engine.start()
    await asyncio.to_thread(engine.wait_until_ready)
    try:
        medians = sorted([await _once(engine, len(prompts)) for _ in range(3)])
    finally:
        await asyncio.to_thread(engine.stop)
    return {"per_prompt_us": round(medians[1], 1), "callers_together": TOGETHER, "target": "< 150"}


async def _once(engine: Engine, kinds: int) -> float:
    mailbox: Mailbox[Scores] = Mailbox(asyncio.get_running_loop())

    async def caller(first: int) -> None:
        for index in range(first, PROMPTS, TOGETHER):
            await mailbox.expect(engine.submit(str(index % kinds)))

    began = time.perf_counter()
    await asyncio.gather(*(caller(first) for first in range(TOGETHER)))
    return (time.perf_counter() - began) / PROMPTS * 1e6
