"""Rows of the embedding table: the one kernel with nothing to compute."""

from __future__ import annotations

from torch import Tensor

from onebeat.kernels.checks import FLOATS, INDEX, expect, expect_range
from onebeat.kernels.cpu.embedding import embedding as cpu_embedding


def embedding(token_ids: Tensor, table: Tensor) -> Tensor:
    """token_ids [T], table [V, H] -> [T, H]. On a GPU an id outside takes the nearest row. Raises KernelError."""
    expect("embedding", "token_ids", token_ids, INDEX, (None,))
    expect("embedding", "table", table, FLOATS, (None, None), token_ids.device)
    expect_range("embedding", "token_ids", token_ids, table.shape[0])
    return cpu_embedding(token_ids, table)


def reference(token_ids: Tensor, table: Tensor) -> Tensor:
    """The rows. [T, H]."""
    return table[token_ids.long()]


def bytes_moved(tokens: int, width: int, element_bytes: int = 2) -> int:
    """Rows read once and written once."""
    return 2 * tokens * width * element_bytes


def flops(tokens: int, width: int) -> int:
    """Nothing is computed."""
    return 0 * tokens * width
