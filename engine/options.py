"""How a live engine is set up, and what that means for one device.

Enters: `router.serve(...)`'s keywords. Leaves: `EngineOptions`, and the `SchedulerLimits` that follow from them for a
runner's block size and device. Knows no threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from onebeat.engine.arguments import flag, number, whole
from onebeat.engine.errors import ConfigError
from onebeat.engine.plan import Order, SchedulerLimits
from onebeat.engine.strict_json import nearest, shown

MEBIBYTE = 2**20
MOST_PROMPTS, MOST_TOKENIZERS = 10**7, 256
LONGEST_GRACE_S = 86_400.0
WHOLE = {
    "queue_prompts": MOST_PROMPTS,
    "working_prompts": 4096,
    "tokenizer_threads": MOST_TOKENIZERS,
    "step_tokens": 2**17,
    "light_step_tokens": 2**17,
    "step_sequences": 4096,
}
"""The largest value of each whole number; the least is 1. More would be a slip of the pen, paid for in memory."""
CHOSEN_BY_DEVICE = ("step_tokens", "light_step_tokens", "step_sequences")
"""May be None."""
NUMBERS = {"prefix_cache_mebibytes": 2.0**20, "credit_tokens_per_s": 1e9, "grace_s": LONGEST_GRACE_S}
"""The largest value of each number; the least is 0."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """All of `router.serve`'s options."""

    queue_prompts: int = 512
    """Callers that may be inside at once, from acceptance to answer; one more is told `OverloadedError` at once."""
    step_tokens: int | None = None
    """A step's budget under a long queue. None: 512 on a CPU, 2,048 on a GPU."""
    light_step_tokens: int | None = None
    """A step's budget while little waits. None: one chunk on a CPU, 512 on a GPU."""
    step_sequences: int | None = None
    """Chunks in one step. None: 32 on a CPU, 64 on a GPU."""
    prefix_cache_mebibytes: float = 256.0
    """Memory for beginnings kept for later prompts; at 0 nothing is shared between prompts, now or later."""
    working_prompts: int = 16
    """Prompts of the longest kind whose keys and values may be in memory at once."""
    credit_tokens_per_s: float = 50.0
    """A second of waiting outweighs this much more work."""
    tokenizer_threads: int = 2
    grace_s: float = 5.0
    """How long leaving the context lets accepted prompts finish."""
    wait_until_ready: bool = True
    """Whether entering the context waits for the warm-up; otherwise prompts queue until `ready`."""
    order: Order = Order.SHORTEST

    def __post_init__(self) -> None:
        for name, largest in WHOLE.items():
            value = getattr(self, name)
            if value is not None or name not in CHOSEN_BY_DEVICE:
                object.__setattr__(self, name, whole(name, value, least=1, largest=largest, error=ConfigError))
        for name, most in NUMBERS.items():
            meaning = f"it must be a number of 0 to {most:g}"
            found = number(name, getattr(self, name), meaning, least=0.0, largest=most, error=ConfigError)
            object.__setattr__(self, name, found)
        flag("wait_until_ready", self.wait_until_ready, error=ConfigError)
        if not isinstance(self.order, Order):
            known = ", ".join(f"Order.{order.name}" for order in Order)
            raise ConfigError(f"order is {shown(self.order)}; it must be one of {known} of onebeat.engine.plan.")

    @classmethod
    def of(cls, given: Mapping[str, object]) -> EngineOptions:
        """From keywords. Raises `ConfigError` for an unknown one, with the nearest that is known."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(f"serve() has no option {name!r}; {nearest(name, known)}.")
        return cls(**given)  # type: ignore[arg-type]

    def limits(self, chunk_tokens: int, max_prompt_tokens: int, on_gpu: bool) -> SchedulerLimits:
        """What the scheduler obeys on this device. Raises `ConfigError` where a step could not hold one chunk."""
        light = self.light_step_tokens or (512 if on_gpu else chunk_tokens)
        step = self.step_tokens or max(light, 2048 if on_gpu else 512)
        if not chunk_tokens <= light <= step:
            raise ConfigError(
                f"light_step_tokens is {light} and step_tokens {step}; they must satisfy {chunk_tokens} (one chunk) <= "
                "light_step_tokens <= step_tokens."
            )
        return SchedulerLimits(
            chunk_tokens,
            step_tokens=step,
            light_step_tokens=light,
            step_sequences=self.step_sequences or (64 if on_gpu else 32),
            working_blocks=self.working_prompts * -(-max_prompt_tokens // chunk_tokens),
            credit_tokens_per_s=self.credit_tokens_per_s,
            always_in_cache=on_gpu,
            order=self.order,
        )

    def keep_blocks(self, block_bytes: int) -> int:
        """Blocks that the prefix cache may keep. Raises `ConfigError` for a budget that holds none, but is not 0."""
        blocks = int(self.prefix_cache_mebibytes * MEBIBYTE // block_bytes)
        if not blocks and self.prefix_cache_mebibytes:
            raise ConfigError(
                f"prefix_cache_mebibytes is {self.prefix_cache_mebibytes:g} and one block takes "
                f"{block_bytes / MEBIBYTE:.3g}; give at least that, or 0 for no prefix cache."
            )
        return blocks
