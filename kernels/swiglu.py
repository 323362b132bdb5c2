"""silu(gate) * up over rows that hold gate and up interleaved (g0, u0, g1, u1, ...), with or without int8 quantisation.

Quantising, and the transform before it, are those of kernels.quantize. int8_matmul_swiglu does the same as this inside
the matrix product, without quantising. Source: Shazeer, arXiv:2002.05202.
"""

from __future__ import annotations

from typing import Any

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
from onebeat.kernels.checks import FLOATS, expect, expect_block, refuse
from onebeat.kernels.cpu.swiglu import swiglu as cpu_swiglu
from onebeat.kernels.cpu.swiglu import swiglu_quantize as cpu_swiglu_quantize
from onebeat.kernels.quantize import quantized, row_warps, transform_flops


@jit
def gated(gate: tl.tensor, up: tl.tensor) -> Any:
    """silu(gate) * up in float32."""
    return gate / (1.0 + tl.exp(-gate)) * up


@jit
def _swiglu_kernel(
    gate_up: tl.pointer_type,  # float [T, 2F], interleaved
    out: tl.pointer_type,  # like gate_up, or int8 [T, F]
    scale: tl.pointer_type,  # float32 [T], or None
    width: tl.tensor,  # F
    BLOCK: tl.constexpr,
    QUANTIZE: tl.constexpr,
    HADAMARD: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    column = first + tl.arange(0, BLOCK)
    pair = 2 * first + tl.arange(0, 2 * BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(gate_up + row * 2 * width + pair, mask=pair < 2 * width, other=0.0)
    gate, up = tl.split(tl.reshape(values, (BLOCK, 2)))
    product = gated(gate.to(tl.float32), up.to(tl.float32))
    if QUANTIZE:
        result, row_scale = quantized(product, HADAMARD)
        tl.store(out + row * width + column, result, mask=column < width)
        tl.store(scale + row, row_scale)
    else:
        tl.store(out + row * width + column, product.to(out.dtype.element_ty), mask=column < width)


def plan(gate_up: Tensor, out: Tensor, scale: Tensor | None, gpu: Facts, hadamard: int = 1) -> Launch:
    """A program a row where the row has to be known whole (there is a scale to write), else one a piece of a row."""
    tokens, width = out.shape
    block = power_of_two(width) if scale is not None else min(power_of_two(width), 2048)
    return Launch(
        _swiglu_kernel,
        (tokens, -(-width // block)),
        (gate_up, out, scale, width),
        {"BLOCK": block, "QUANTIZE": scale is not None, "HADAMARD": hadamard, "PDL": gpu.pdl},
        row_warps(block),
        1,
        pdl_options(gpu.pdl),
    )


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] interleaved -> [T, F] of the same dtype. Raises KernelError."""
    _check("swiglu", gate_up)
    if gate_up.is_cpu:
        return cpu_swiglu(gate_up)
    out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype, device=gate_up.device)
    plan(gate_up, out, None, facts(gate_up.device)).run()
    return out


def swiglu_quantize(gate_up: Tensor, hadamard: int = 1) -> tuple[Tensor, Tensor]:
    """gate_up [T, 2F] interleaved -> (int8 [T, F], scale float32 [T]), transformed and scaled as in quantize.

    Raises KernelError.
    """
    _check("swiglu_quantize", gate_up)
    expect_block("swiglu_quantize", "half of gate_up's width", gate_up.shape[1] // 2, hadamard)
    if gate_up.is_cpu:
        return cpu_swiglu_quantize(gate_up, hadamard)
    out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=torch.int8, device=gate_up.device)
    scale = torch.empty(gate_up.shape[0], dtype=torch.float32, device=gate_up.device)
    plan(gate_up, out, scale, facts(gate_up.device), hadamard).run()
    return out, scale


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


def flops(tokens: int, width: int, hadamard: int = 1) -> int:
    """An exponential, an add, a division and a product an output element, and the transform's sums."""
    return 4 * tokens * width + transform_flops(tokens, width, hadamard)
