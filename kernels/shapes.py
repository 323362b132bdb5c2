"""The model shapes that kernels are compiled for, tuned at and measured at.

Enters: nothing. Leaves: sizes. Knows no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKENS = (1, 4, 16, 64, 128, 512, 1024, 2048, 4096, 8192, 16384)
"""Tokens of a step, from one to a full batch."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a decoder's kernels need to know of it."""

    name: str
    hidden: int
    query_heads: int
    key_heads: int
    head_size: int
    feed_forward: int
    layers: int
    vocabulary: int
    qkv_bias: bool

    @property
    def qkv(self) -> int:
        """Width of the fused q, k and v."""
        return (self.query_heads + 2 * self.key_heads) * self.head_size

    @property
    def matmuls(self) -> dict[str, tuple[int, int]]:
        """The four products of a layer, as (N, K) of their weight."""
        return {
            "qkv": (self.qkv, self.hidden),
            "out": (self.hidden, self.query_heads * self.head_size),
            "gate_up": (2 * self.feed_forward, self.hidden),
            "down": (self.hidden, self.feed_forward),
        }

    @property
    def layer_weights(self) -> int:
        """Elements of all layers' matrices: what one forward reads at least once."""
        return self.layers * sum(columns * depth for columns, depth in self.matmuls.values())


QWEN_7B = ModelShape("Qwen2.5-7B", 3584, 28, 4, 128, 18944, 28, 152064, qkv_bias=True)
QWEN_HALF_B = ModelShape("Qwen2.5-0.5B", 896, 14, 2, 64, 4864, 24, 151936, qkv_bias=True)
SMOLLM_135M = ModelShape("SmolLM2-135M", 576, 9, 3, 64, 1536, 30, 49152, qkv_bias=False)
MISTRAL_7B = ModelShape("Mistral-7B", 4096, 32, 8, 128, 14336, 32, 32768, qkv_bias=False)
TINY = ModelShape("tiny", 64, 3, 1, 64, 96, 2, 128, qkv_bias=True)
"""Small enough for the interpreter."""
