"""The live router: the engine behind an event loop.

Enters: prompts and messages, awaited. Leaves: `Scores` and `Decision`s. The loop never computes and never blocks here:
tokenising, planning and the model run on the engine's threads. Knows nothing of providers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from onebeat.engine import openmp
from onebeat.engine.arguments import check_dial, check_models
from onebeat.engine.decision import Decision
from onebeat.engine.engine import Engine
from onebeat.engine.errors import ConfigError, StoppedError
from onebeat.engine.mailbox import Mailbox
from onebeat.engine.options import EngineOptions
from onebeat.engine.paged_cache import PagedCache
from onebeat.engine.parts import Array, EngineParts, Prepared
from onebeat.engine.records import Column, Prompt, Scores
from onebeat.engine.runner import Runner
from onebeat.engine.snapshot import EngineSnapshot
from onebeat.engine.stepper import Stepper
from onebeat.engine.strict_json import shown
from onebeat.engine.targets import MIDDLE, Setting, Target, tradeoff_of


class Scorer(Protocol):
    """A head."""

    def score(self, features: Array) -> tuple[Array, Array]:
        """[n, F] -> quality [n, M] and output tokens [n, M], row by row."""


class Servable(Protocol):
    """What a `Router` offers to be served."""

    @property
    def runner(self) -> Runner:
        """The backbone with its pooling."""

    @property
    def head(self) -> Scorer:
        """Features to quality and lengths."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the head scores."""

    @property
    def fingerprint(self) -> str:
        """Names the weights."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longer prompts are cut by `prepare`."""

    def prepare(self, prompt: Prompt) -> Prepared:
        """Token ids; called by several threads at once."""

    def setting_for(self, target: str | Target) -> Setting:
        """The dial position for a target, in words or read."""

    def decide(
        self,
        scores: Scores,
        row: int = 0,
        *,
        tradeoff: float = MIDDLE,
        min_quality: float | None = None,
        max_cost_usd: float | None = None,
        models: Sequence[str] | None = None,
    ) -> Decision:
        """The policy, on the loop: arithmetic of some microseconds."""


class LiveRouter:
    """`async with router.serve() as live`. Use it from one event loop.

    While it runs, leave computing to it: a second thread that computes on the CPU slows both (see `openmp.py`).
    """

    def __init__(
        self, router: Servable, *, progress: Callable[[int, int, str], None] | None = None, **options: object
    ) -> None:
        """`options` are `EngineOptions`; `progress` is called as (done, total, what) by the warming-up thread.

        Raises `ConfigError` for an option that is unknown, or is not what it must be.
        """
        if progress is not None and not callable(progress):
            raise ConfigError(f"progress is {shown(progress)}; it must be a function of (done, total, what), or None.")
        self._router = router
        self._options = EngineOptions.of(options)
        self._engine = Engine(
            engine_parts(router, self._options),
            queue_prompts=self._options.queue_prompts,
            tokenizer_threads=self._options.tokenizer_threads,
            report=progress,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that entered the context."""

    @property
    def ready(self) -> bool:
        """Warmed up and answering; what a readiness probe asks."""
        return self._engine.ready

    @property
    def healthy(self) -> bool:
        """False from a crash until the model runs again; for good after the second."""
        return self._engine.healthy

    async def __aenter__(self) -> LiveRouter:
        loop = asyncio.get_running_loop()
        # The thread that loaded the router has computed; from here on the model's thread alone does.
        openmp.rest()
        self._engine.start()
        self._loop = loop
        self._mailbox: Mailbox[Scores] = Mailbox(loop)
        if self._options.wait_until_ready:
            try:
                await asyncio.to_thread(self._engine.wait_until_ready)
            except BaseException:
                await asyncio.to_thread(self._engine.stop, 0.0)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._engine.stop, self._options.grace_s if error is None else 0.0)

    async def wait_until_ready(self) -> None:
        """Raises `StoppedError`, its cause chained, if the model could not be made."""
        await asyncio.to_thread(self._engine.wait_until_ready)

    async def score(self, prompt: Prompt, *, deadline_ms: float | None = None, features: bool = False) -> Scores:
        """The scores of one prompt (n = 1), with its timing.

        Raises `OverloadedError` at once when the queue is full, `DeadlineError` no later than the deadline,
        `InputError` for a prompt that cannot be read, `StoppedError` when the engine stops or crashes. Cancelling
        drops the prompt. `StoppedError`, too, before the context is entered and on another event loop than entered it.
        """
        if self._loop is None:
            raise StoppedError("the live router was not entered; write `async with router.serve() as live:`.")
        if self._loop is not asyncio.get_running_loop():
            raise StoppedError("the live router was entered on another event loop; call router.serve() on this one.")
        return await self._mailbox.expect(self._engine.submit(prompt, deadline_ms=deadline_ms, features=features))

    async def route(
        self,
        prompt: Prompt,
        *,
        tradeoff: float | None = None,
        target: str | None = None,
        min_quality: float | None = None,
        max_cost_usd: float | None = None,
        models: Sequence[str] | None = None,
        deadline_ms: float | None = None,
    ) -> Decision:
        """As `Router.route`, and as `score` for what it waits and raises."""
        position = tradeoff_of(tradeoff, target, models, self._router.setting_for)
        check_dial(position, min_quality, max_cost_usd)
        check_models(models, (column.name for column in self._router.columns))
        scores = await self.score(prompt, deadline_ms=deadline_ms)
        return self._router.decide(
            scores, tradeoff=position, min_quality=min_quality, max_cost_usd=max_cost_usd, models=models
        )

    def snapshot(self) -> EngineSnapshot:
        """What the engine has done and is doing."""
        return self._engine.snapshot()


def engine_parts(router: Servable, options: EngineOptions) -> EngineParts:
    """A router's parts for an engine, sized for its device. Raises `ConfigError` for options that do not fit it."""
    runner = router.runner
    longest = min(router.max_prompt_tokens, runner.backbone.max_positions)
    limits = options.limits(runner.chunk_tokens, longest, runner.device.type == "cuda")
    keep_blocks = options.keep_blocks(PagedCache.block_bytes(runner))
    blocks = 1 + limits.working_blocks + limits.step_sequences + keep_blocks
    return EngineParts(
        prepare=router.prepare,
        make_stepper=lambda: Stepper(runner, blocks, limits.step_tokens, limits.step_sequences),
        score=router.head.score,
        models=tuple(column.name for column in router.columns),
        fingerprint=router.fingerprint.encode(),
        max_prompt_tokens=longest,
        limits=limits,
        keep_blocks=keep_blocks,
    )
