"""Row operations of the CPU's int8 path, arranged so that a row's bits depend on that row alone.

Enters: float32 rows. Leaves: int8 rows and the largest magnitude of each; gated rows. torch's vectorised exp (in
silu) and complex product round otherwise than the scalar code that finishes a thread's share, so that widths are
multiples of the vector's and a call is cut where threads would meet elsewhere (`spans`). Sums of squares, maxima,
products and rounding are the same in both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from onebeat.kernels.cpu.hadamard import hadamard

LEVELS = 127.0
"""The largest int8 that is used; -128 is not."""
LANES = 32
"""Float32 values (or 16 complex ones, twice as wide) that torch's widest loop takes at once."""
GRAIN = 32768
"""Values below which torch gives an elementwise call to one thread."""
SMALLEST = 1e-30
"""Stands for the largest magnitude of a row of zeros."""

_LEVELS, _GRID = torch.tensor(LEVELS), torch.tensor(2.0**17)


def quantize_in_place(rows: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """rows float32 [T, K] -> (int8 [T, K], largest magnitude float32 [T, 1]); a value is int8 * largest / LEVELS.

    Transforms runs of `block` values first (see `hadamard`; 1: none). Rounds half to even. Overwrites `rows`.
    """
    largest = rows.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST)
    if block == 1:
        return rows.mul_(torch.div(_LEVELS, largest)).round_().to(torch.int8), largest
    # As whole numbers of 17 bits, 64 of which add up exactly in any order: a matrix product, whose order depends on how
    # many rows there are, is then as good as sums in pairs, and takes a fifth of their time.
    whole = rows.mul_(torch.div(_GRID, largest)).round_()
    mixed = torch.mm(whole.view(-1, block), _matrix(block)).view(rows.shape)
    peak = mixed.abs().amax(-1, keepdim=True).clamp_min_(1.0)
    return mixed.mul_(torch.div(_LEVELS, peak)).round_().to(torch.int8), peak.mul_(largest).div_(_GRID)


@functools.cache
def _matrix(block: int) -> Tensor:
    """The Hadamard matrix, [block, block] of +1 and -1."""
    return hadamard(torch.eye(block), block)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """x float32 [T, H] -> 1 / sqrt(mean(x^2) + eps), [T, 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(torch.addcmul(_number(eps), norm, norm, value=1.0 / x.shape[-1]))


@functools.cache
def _number(value: float) -> Tensor:
    """A scalar as a tensor: making one costs more than the sum it goes into."""
    return torch.tensor(value)


def gate(gate_up: Tensor, scale: Tensor) -> Tensor:
    """gate_up float32 [T, 2F], gate before up, scale [T, 1] -> silu(gate * scale) * up [T, F]: up is left unscaled."""
    width = gate_up.shape[1] // 2
    gated = torch.mul(gate_up[:, :width], scale)
    for begin, end in spans(gated.shape[0], width, LANES):
        F.silu(gated[begin:end], inplace=True)
    return gated.mul_(gate_up[:, width:])


def turn_(heads: Tensor, turns: Tensor) -> None:
    """Rotates heads float32 [T, N, D], whose dimensions 2i and 2i + 1 are a pair, by turns complex64 [T, 1, D/2]."""
    tokens, count, size = heads.shape
    width = size // 2
    pairs = torch.view_as_complex(heads.view(tokens, count, width, 2))
    for begin, end in spans(tokens, count * width, LANES // 2):
        pairs[begin:end].mul_(turns[begin:end])


def spans(rows: int, width: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Cuts `rows` so that in a call over [rows, width] every thread's share begins at a multiple of `lanes`.

    `width` is a multiple of `lanes`. With a power of two of threads there is hardly ever more than one span.
    """
    begin = 0
    while begin < rows:
        take = rows - begin
        while _share(take * width) % lanes:
            take -= 1
        yield begin, begin + take
        begin += take


def _share(values: int) -> int:
    """How many values torch gives to each thread."""
    threads = min(torch.get_num_threads(), -(-values // GRAIN))
    return -(-values // threads)
