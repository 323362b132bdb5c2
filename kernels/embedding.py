"""Rows of the embedding table: the one kernel with nothing to compute."""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.backend import (
    Facts,
    Launch,
    facts,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    pdl_options,
    power_of_two,
    tl,
)
from onebeat.kernels.checks import FLOATS, INDEX, expect, expect_range
from onebeat.kernels.cpu.embedding import embedding as cpu_embedding


@jit
def _embedding_kernel(
    token_ids: tl.pointer_type,  # int32 or int64 [T]
    table: tl.pointer_type,  # float [V, H]
    out: tl.pointer_type,  # like table [T, H]
    rows: tl.tensor,  # V
    width: tl.tensor,  # H, also the stride of a row
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(token_ids + token).to(tl.int64)
    row = tl.minimum(tl.maximum(row, 0), rows - 1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(table + row * width + column, mask=column < width)
    tl.store(out + token * width + column, values, mask=column < width)


def plan(token_ids: Tensor, table: Tensor, out: Tensor, gpu: Facts) -> Launch:
    """A program a piece of a row."""
    rows, width = table.shape
    block = min(power_of_two(width), 2048)
    return Launch(
        _embedding_kernel,
        (len(token_ids), -(-width // block)),
        (token_ids, table, out, rows, width),
        {"BLOCK": block, "PDL": gpu.pdl},
        4,
        1,
        pdl_options(gpu.pdl),
    )


def embedding(token_ids: Tensor, table: Tensor) -> Tensor:
    """token_ids [T], table [V, H] -> [T, H]. On a GPU an id outside takes the nearest row. Raises KernelError."""
    expect("embedding", "token_ids", token_ids, INDEX, (None,))
    expect("embedding", "table", table, FLOATS, (None, None), token_ids.device)
    expect_range("embedding", "token_ids", token_ids, table.shape[0])
    if token_ids.is_cpu:
        return cpu_embedding(token_ids, table)
    out = torch.empty(len(token_ids), table.shape[1], dtype=table.dtype, device=table.device)
    plan(token_ids, table, out, facts(table.device)).run()
    return out


def reference(token_ids: Tensor, table: Tensor) -> Tensor:
    """The rows. [T, H]."""
    return table[token_ids.long()]


def bytes_moved(tokens: int, width: int, element_bytes: int = 2) -> int:
    """Rows read once and written once."""
    return 2 * tokens * width * element_bytes


def flops(tokens: int, width: int) -> int:
    """Nothing is computed."""
    return 0 * tokens * width
