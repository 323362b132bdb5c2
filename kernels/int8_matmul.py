"""W8A8 matrix product: int8 activations with a scale a token, int8 weights with a scale a channel, exact int32 sums.

    out[m, n] = a_scale[m] * weight_scale[n] * sum_k a[m, k] weight[n, k]  (+ bias[n]) (+ residual[m, n])

The sums are exact in any order, so tiles and split-K may vary with M without changing a bit; the epilogue is spelled
with explicit fused multiply-adds for the same reason. `int8_matmul_swiglu` takes gate and up rows interleaved (g0, u0,
g1, u1, ...) and returns silu(gate) * up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.checks import FLOAT32, FLOATS, INT8, expect, refuse
from onebeat.kernels.cpu.int8_matmul import int8_matmul as cpu_int8_matmul
from onebeat.kernels.cpu.int8_matmul import int8_matmul_swiglu as cpu_int8_matmul_swiglu

MAX_K = 2**31 // 127**2
"""Above this an int32 sum could overflow."""


def int8_matmul(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """a int8 [M, K], a_scale [M], weight int8 [N, K], weight_scale [N] -> [M, N] of out_dtype.

    `bias` [N] and `residual` [M, N] are added in float32 before the one rounding. Raises KernelError.
    """
    _check("int8_matmul", a, a_scale, weight, weight_scale, out_dtype)
    columns = weight.shape[0]
    if bias is not None:
        expect("int8_matmul", "bias", bias, FLOATS, (columns,), a.device)
    if residual is not None:
        expect("int8_matmul", "residual", residual, FLOATS, (a.shape[0], columns), a.device)
    return cpu_int8_matmul(a, a_scale, weight, weight_scale, bias=bias, residual=residual, out_dtype=out_dtype)


def int8_matmul_swiglu(
    a: Tensor, a_scale: Tensor, weight: Tensor, weight_scale: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """a int8 [M, K], weight int8 [2F, K] (gate and up rows interleaved), weight_scale [2F] -> [M, F] of out_dtype."""
    _check("int8_matmul_swiglu", a, a_scale, weight, weight_scale, out_dtype)
    if weight.shape[0] % 2:
        refuse("int8_matmul_swiglu", "the number of weight's rows", weight.shape[0], "gate and up rows in pairs")
    return cpu_int8_matmul_swiglu(a, a_scale, weight, weight_scale, out_dtype=out_dtype)


def _check(op: str, a: Tensor, a_scale: Tensor, weight: Tensor, weight_scale: Tensor, out_dtype: torch.dtype) -> None:
    expect(op, "a", a, INT8, (None, None))
    rows, depth = a.shape
    expect(op, "a_scale", a_scale, FLOAT32, (rows,), a.device)
    expect(op, "weight", weight, INT8, (None, depth), a.device)
    expect(op, "weight_scale", weight_scale, FLOAT32, (weight.shape[0],), a.device)
    if not 0 < depth <= MAX_K:
        refuse(op, "K", depth, f"1 to {MAX_K}, so that no int32 sum overflows")
    if out_dtype not in FLOATS:
        refuse(op, "out_dtype", out_dtype, " or ".join(str(dtype) for dtype in FLOATS))


def exact_sums(a: Tensor, weight: Tensor) -> Tensor:
    """The int32 sums in float64, where they are exact (below 2^53). [M, N] float64."""
    return a.double() @ weight.double().t()


def reference(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The maths in float64. [M, N] float64."""
    out = exact_sums(a, weight) * a_scale.double()[:, None] * weight_scale.double()
    if bias is not None:
        out = out + bias.double()
    return out if residual is None else out + residual.double()


def reference_swiglu(a: Tensor, a_scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """The maths in float64. [M, F] float64."""
    gate_up = reference(a, a_scale, weight, weight_scale)
    return torch.nn.functional.silu(gate_up[:, 0::2]) * gate_up[:, 1::2]


def flops(rows: int, columns: int, depth: int) -> int:
    """Multiply-adds counted as two."""
    return 2 * rows * columns * depth


def bytes_moved(rows: int, columns: int, depth: int, out_bytes: int = 2, *, residual: bool = False) -> int:
    """a, weight and scales read once; the output (half as wide after SwiGLU: halve out_bytes) written once."""
    return rows * depth + columns * depth + 4 * (rows + columns) + rows * columns * out_bytes * (2 if residual else 1)
