"""silu(gate) * up over rows that hold gate and up interleaved (g0, u0, g1, u1, ...), with or without int8 quantisation.

Source: Shazeer, arXiv:2002.05202. int8_matmul_swiglu does the same inside the matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.checks import FLOATS, expect, refuse
from onebeat.kernels.cpu.swiglu import swiglu as cpu_swiglu
from onebeat.kernels.cpu.swiglu import swiglu_quantize as cpu_swiglu_quantize


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] interleaved -> [T, F] of the same dtype. Raises KernelError."""
    _check("swiglu", gate_up)
    return cpu_swiglu(gate_up)


def swiglu_quantize(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """gate_up [T, 2F] interleaved -> (int8 [T, F], scale float32 [T]). Raises KernelError."""
    _check("swiglu_quantize", gate_up)
    return cpu_swiglu_quantize(gate_up)


def _check(op: str, gate_up: Tensor) -> None:
    expect(op, "gate_up", gate_up, FLOATS, (None, None))
    if gate_up.shape[1] % 2:
        refuse(op, "gate_up's width", gate_up.shape[1], "gate and up in pairs")


def reference(gate_up: Tensor) -> Tensor:
    """The maths in float64. [T, F] float64."""
    wide = gate_up.double()
    return torch.nn.functional.silu(wide[:, 0::2]) * wide[:, 1::2]


def bytes_moved(tokens: int, width: int, element_bytes: int = 2, *, quantized: bool = True) -> int:
    """Gate and up (2 * width) read once; the result written once."""
    out = width + 4 if quantized else width * element_bytes
    return tokens * (2 * width * element_bytes + out)


def flops(tokens: int, width: int) -> int:
    """An exponential, an add, a division and a product an output element."""
    return 4 * tokens * width
