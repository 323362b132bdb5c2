"""Walsh-Hadamard transforms of short runs of a row: what spreads an outlier before int8 sees it.

Enters: float32 rows. Leaves: the same rows, every run of `block` values multiplied by the Hadamard matrix of +1 and -1.
The matrix is its own inverse but for a factor of `block`, so that rows and weights that are both transformed, one of
them divided by `block`, have the products they had. Sums are taken pairwise in a fixed order: a row's bits depend on
that row alone, and the native kernels' are the same.

Source: QuaRot (Ashkboos et al., arXiv:2404.00456), which transforms whole rows; blocks of 64 do as well here.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS = (64, 32, 16)


def hadamard_block(width: int) -> int:
    """The block that int8 rows of this width are transformed by: the largest of `BLOCKS` that divides it, else 1."""
    return next((block for block in BLOCKS if width % block == 0), 1)


def hadamard(rows: Tensor, block: int) -> Tensor:
    """rows float32 [..., K], K a multiple of `block`, a power of two -> the same shape, not normalised.

    A block of 1 leaves them as they are.
    """
    if block == 1 or rows.numel() == 0:
        return rows
    # Runs stand in columns, so that every sum is one of two contiguous halves.
    columns = rows.reshape(-1, block).t().contiguous()
    runs, size = columns.shape[1], 1
    while size < block:
        low, high = columns.view(-1, 2, size, runs).unbind(1)
        columns = torch.stack([low + high, low - high], dim=1)
        size *= 2
    return columns.view(block, runs).t().reshape(rows.shape)
