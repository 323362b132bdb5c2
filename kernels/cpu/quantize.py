"""Int8 rows on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.cpu.hadamard import hadamard as transform


def quantize_rows(x: Tensor, hadamard: int = 1) -> tuple[Tensor, Tensor]:
    """See kernels.quantize."""
    x = transform(x.float(), hadamard)
    peak = x.abs().amax(dim=1) if x.shape[1] else torch.zeros(len(x))
    inverse = torch.where(peak > 0, torch.div(torch.tensor(127.0), peak), torch.zeros_like(peak))
    return (x * inverse[:, None]).round().to(torch.int8), peak / 127.0
