"""The native kernels' records, as `onebeat_cpu.h` lays them out, and matrices in the order that they read.

Enters: int8 matrices and vectors. Leaves: ctypes structures, with the tensors that they point into. Knows no engine.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onebeat.kernels.cpu.hadamard import hadamard_block

BLOCK_COLUMNS, LANES = 32, 16
OFFSET = 128
_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """int8 [N, K] in blocks of 32 columns."""

    _fields_ = (
        *((name, _POINTER) for name in ("bytes", "scale", "bias")),
        *((name, _INT) for name in ("blocks", "depth", "hadamard")),
    )


class Layer(ctypes.Structure):
    """A decoder layer."""

    _fields_ = (
        *((name, Matrix) for name in ("qkv", "attention_out", "gate_up", "down")),
        *((name, _POINTER) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, ctypes.c_float) for name in ("norm_eps", "score_scale")),
        *((name, _INT) for name in ("hidden", "query_heads", "key_heads", "head_size", "window")),
    )


class Batch(ctypes.Structure):
    """What a layer reads of a batch."""

    _fields_ = (
        *((name, _INT) for name in ("tokens", "sequences")),
        *((name, _POINTER) for name in ("cu_seqlens", "turns", "slots", "block_table", "context_tokens")),
        *((name, _INT) for name in ("table_width", "block_tokens")),
    )


class Rows(ctypes.Structure):
    """int8 rows."""

    _fields_ = (("bytes", _POINTER), ("stride", _INT), ("scale", _POINTER), ("sum", _POINTER))


class Target(ctypes.Structure):
    """Where a product goes."""

    _fields_ = (
        *(("ending", ctypes.c_int), ("out", _POINTER), ("residual", _POINTER)),
        *(("stride", _INT), ("columns", _INT)),
    )


class Packed(NamedTuple):
    """A matrix as the kernels read it."""

    matrix: Matrix
    owned: tuple[Tensor, ...]
    """What it points into: to be kept as long as it is used."""


def packed(weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Packed:
    """weight int8 [N, K], scale float32 [N], bias float32 [N] -> blocks [N/32, K/4, 32, 4] of bytes around 128.

    `weight` was transformed by `hadamard_block(K)`, and so will be the rows that a layer multiplies it with.
    """
    rows, columns = -weight.shape[0] % BLOCK_COLUMNS, -weight.shape[1] % 4
    padded = F.pad(weight, [0, columns, 0, rows])
    blocks = padded.view(padded.shape[0] // BLOCK_COLUMNS, BLOCK_COLUMNS, -1, 4).transpose(1, 2).contiguous()
    in_order = blocks.view(torch.uint8).bitwise_xor_(OFFSET)
    scales = F.pad(scale.float(), [0, rows])
    biases = None if bias is None else F.pad(bias.float(), [0, rows])
    matrix = Matrix(
        in_order.data_ptr(),
        scales.data_ptr(),
        None if biases is None else biases.data_ptr(),
        padded.shape[0] // BLOCK_COLUMNS,
        padded.shape[1],
        hadamard_block(weight.shape[1]),
    )
    return Packed(matrix, (in_order, scales) if biases is None else (in_order, scales, biases))


def gates_beside_ups(gate_up: Tensor) -> Tensor:
    """gate_up [2F, ...], rows g0, u0, g1, u1, ... -> 16 gates, their 16 ups, the next 16 gates ...; F padded to 16."""
    padding = [0, 0] * (gate_up.dim() - 1) + [0, -(gate_up.shape[0] // 2) % LANES]
    halves = [F.pad(gate_up[half::2], padding).view(-1, LANES, *gate_up.shape[1:]) for half in (0, 1)]
    return torch.stack(halves, dim=1).flatten(0, 2)


def product(library: ctypes.CDLL, rows: Tensor, weight: Tensor) -> Tensor:
    """rows int8 [T, K] times weight int8 [N, K] transposed, on this thread: float32 [T, N], for checks and tests."""
    return product_run(library, rows, weight)()


def product_run(library: ctypes.CDLL, rows: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """`product`, prepared: each call computes it again, into the same tensor."""
    held = F.pad(rows, [0, -rows.shape[1] % 64])
    sums = rows.sum(1, dtype=torch.int32)
    ones, out = torch.ones(rows.shape[0]), torch.empty(rows.shape[0], weight.shape[0])
    matrix, owned = packed(weight, torch.ones(weight.shape[0]))
    arguments = (
        ctypes.byref(matrix),
        ctypes.byref(Rows(held.data_ptr(), held.shape[1], ones.data_ptr(), sums.data_ptr())),
        *(_INT(0), _INT(rows.shape[0]), _INT(0), _INT(matrix.blocks)),
        ctypes.byref(Target(0, out.data_ptr(), None, out.shape[1], out.shape[1])),
    )

    def run(owned: tuple[Tensor, ...] = (*owned, held, sums, ones)) -> Tensor:
        library.multiply(*arguments)
        return out

    return run


def self_check(library: ctypes.CDLL) -> bool:
    """Whether the compiled product is exact on its worst cases."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-127, 128, (29, 196), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (45, 196), dtype=torch.int8, generator=generator)
    rows[0], rows[1], weight[0], weight[1] = 127, -127, 127, -127
    return torch.equal(product(library, rows, weight), (rows.double() @ weight.double().t()).float())
