"""SwiGLU on the CPU."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from onebeat.kernels.cpu.quantize import quantize_rows


def swiglu(gate_up: Tensor) -> Tensor:
    """See kernels.swiglu."""
    return _swiglu(gate_up).to(gate_up.dtype)


def swiglu_quantize(gate_up: Tensor, hadamard: int = 1) -> tuple[Tensor, Tensor]:
    """See kernels.swiglu."""
    return quantize_rows(_swiglu(gate_up), hadamard)


def _swiglu(gate_up: Tensor) -> Tensor:
    wide = gate_up.float()
    return silu(wide[:, 0::2]) * wide[:, 1::2]
