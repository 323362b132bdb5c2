"""A pretend model at the stepper's seam: as fast or as slow, as sound or as broken as a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onebeat.engine.engine import Engine
from onebeat.engine.parts import Array, EngineParts, Report, Speed, Step
from onebeat.engine.plan import Plan, SchedulerLimits

CHUNK_TOKENS = 8


@dataclass(frozen=True)
class Prepared:
    token_ids: list[int]
    prompt_tokens: int
    cut_tokens: int = 0
    estimated: bool = False


def prepare(prompt: object) -> Prepared:
    """`"3 4 5"` is three tokens. A prompt of other words cannot be prepared."""
    ids = [int(word) for word in str(prompt).split()]
    return Prepared(ids, len(ids))


def score(features: Array) -> tuple[Array, Array]:
    return features / 1000.0, features + 1.0


@dataclass
class FakeStep:
    ended: Array
    is_done: bool
    log: list[str]
    name: str

    def wait(self) -> None:
        self.log.append(f"wait {self.name}")

    def features(self) -> Array:
        self.log.append(f"read {self.name}")
        return self.ended


@dataclass
class FakeModel:
    """Features of a prompt: the sum of its token ids, gathered chunk by chunk through pretend blocks."""

    token_ms: float = 0.0
    step_ms: float = 0.0
    asynchronous: bool = False
    gate: threading.Event | None = None
    """Every step waits for it."""
    warm_gate: threading.Event | None = None
    break_on: int | None = None
    """A token id that makes a step crash."""
    failures: list[BaseException] = field(default_factory=list)
    """Raised while warming up, one each time."""
    made: int = 0
    computed: list[int] = field(default_factory=list)
    """First token of every chunk computed."""
    steps: list[Plan] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    memory: dict[int, float] = field(default_factory=dict)

    def make(self) -> FakeModel:
        self.made += 1
        return self

    def warm_up(self, report: Report) -> Speed:
        report(0, 1, "pretending")
        if self.warm_gate is not None:
            assert self.warm_gate.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        report(1, 1, "ready")
        return Speed(self.token_ms or 0.001, 1e9)

    def launch(self, plan: Plan, token_ids: Mapping[int, Sequence[int]]) -> Step:
        self.steps.append(plan)
        if self.gate is not None:
            assert self.gate.wait(10)
        time.sleep((self.step_ms + self.token_ms * plan.tokens) / 1000.0)
        ended = []
        for chunk in plan.chunks:
            ids = token_ids[chunk.prompt_id][chunk.start : chunk.stop]
            if self.break_on in ids:
                raise ZeroDivisionError("the model broke")
            self.computed.append(ids[0])
            carry = float(sum(ids)) + (self.memory[chunk.blocks[-2]] if chunk.start else 0.0)
            if chunk.blocks:
                self.memory[chunk.blocks[-1]] = carry
            if chunk.is_last:
                ended.append(carry)
        ended += [self.memory[chunk.blocks[-1]] for chunk in plan.ready]
        name = str(len(self.steps))
        self.log.append(f"launch {name}")
        return FakeStep(np.array(ended, dtype=np.float32)[:, None], not self.asynchronous, self.log, name)


def engine_of(model: FakeModel, *, report: Callable[[int, int, str], None] | None = None, **changes: object) -> Engine:
    """An engine over the pretend model; not started."""
    options: dict[str, object] = {"queue_prompts": 100, "tokenizer_threads": 2, "keep_blocks": 32}
    options |= changes
    limits = SchedulerLimits(
        CHUNK_TOKENS,
        step_tokens=32,
        light_step_tokens=CHUNK_TOKENS,
        step_sequences=8,
        working_blocks=32,
    )
    parts = EngineParts(
        prepare=options.get("prepare", prepare),  # type: ignore[arg-type]
        make_stepper=model.make,
        score=options.get("score", score),  # type: ignore[arg-type]
        models=("only",),
        fingerprint=b"fake",
        max_prompt_tokens=200,
        limits=limits,
        keep_blocks=options["keep_blocks"],  # type: ignore[arg-type]
    )
    return Engine(
        parts,
        queue_prompts=options["queue_prompts"],  # type: ignore[arg-type]
        tokenizer_threads=options["tokenizer_threads"],  # type: ignore[arg-type]
        report=report,
    )
