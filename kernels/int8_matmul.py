"""W8A8 matrix product: int8 activations with a scale a token, int8 weights with a scale a channel, exact int32 sums.

    out[m, n] = a_scale[m] * weight_scale[n] * sum_k a[m, k] weight[n, k]  (+ bias[n]) (+ residual[m, n])

The sums are exact in any order, so tiles and split-K may vary with M without changing a bit; the epilogue is spelled
with explicit fused multiply-adds for the same reason. `int8_matmul_swiglu` takes gate and up rows interleaved (g0, u0,
g1, u1, ...) and returns silu(gate) * up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onebeat.kernels.backend import (
    Facts,
    Launch,
    TensorDescriptor,
    facts,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    pdl_options,
    tl,
)
from onebeat.kernels.checks import FLOAT32, FLOATS, INT8, expect, refuse
from onebeat.kernels.cpu.int8_matmul import int8_matmul as cpu_int8_matmul
from onebeat.kernels.cpu.int8_matmul import int8_matmul_swiglu as cpu_int8_matmul_swiglu
from onebeat.kernels.int8_epilogue import write_tile
from onebeat.kernels.tuning import MatmulConfig, matmul_config, row_bucket

MAX_K = 2**31 // 127**2
"""Above this an int32 sum could overflow."""


@jit
def _int8_matmul_kernel(
    a: tl.pointer_type,  # int8 [M, K], or its TMA descriptor
    a_scale: tl.pointer_type,  # float32 [M]
    weight: tl.pointer_type,  # int8 [N, K], or its TMA descriptor
    weight_scale: tl.pointer_type,  # float32 [N]
    bias: tl.pointer_type,  # float [N], or None
    residual: tl.pointer_type,  # float [M, N], or None
    out: tl.pointer_type,  # float [M, N]; [M, N / 2] with SWIGLU
    partials: tl.pointer_type,  # int32 [splits, M, N], or None
    arrivals: tl.pointer_type,  # int32 [tiles], zero before and after, or None
    rows: tl.tensor,  # M
    columns: tl.tensor,  # N
    depth: tl.tensor,  # K, also the stride of a row of a and of weight
    splits: tl.tensor,
    split_depth: tl.tensor,  # a multiple of BLOCK_K
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SWIGLU: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN_K: tl.constexpr,
    TMA: tl.constexpr,
    SWAP: tl.constexpr,
    FLATTEN: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(columns, BLOCK_N)
    for item in tl.range(tl.program_id(0), tiles_m * tiles_n * splits, tl.num_programs(0), flatten=FLATTEN):
        tile = item // splits
        part = item % splits
        in_group = GROUP_M * tiles_n
        first_m = tile // in_group * GROUP_M
        group_m = tl.minimum(tiles_m - first_m, GROUP_M)
        tile_m = first_m + tile % in_group % group_m
        tile_n = tile % in_group // group_m
        row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        lane = tl.arange(0, BLOCK_K)
        begin = part * split_depth
        end = tl.minimum(begin + split_depth, depth)
        # Rows and columns beyond the edge read the first ones; they are never stored.
        a_row = tl.where(row < rows, row, 0).to(tl.int64) * depth
        weight_row = tl.where(column < columns, column, 0).to(tl.int64) * depth
        sums = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), dtype=tl.int32)
        for k in tl.range(begin, end, BLOCK_K):
            if TMA:
                left = a.load([tile_m * BLOCK_M, k])
                right = weight.load([tile_n * BLOCK_N, k])
            elif EVEN_K:
                left = tl.load(a + a_row[:, None] + (k + lane)[None, :])
                right = tl.load(weight + weight_row[:, None] + (k + lane)[None, :])
            else:
                inside = (k + lane < end)[None, :]
                left = tl.load(a + a_row[:, None] + (k + lane)[None, :], mask=inside, other=0)
                right = tl.load(weight + weight_row[:, None] + (k + lane)[None, :], mask=inside, other=0)
            if SWAP:
                sums = tl.dot(right, tl.trans(left), sums, out_dtype=tl.int32)
            else:
                sums = tl.dot(left, tl.trans(right), sums, out_dtype=tl.int32)
        if SWAP:
            sums = tl.trans(sums)
        if SPLIT:
            inside = (row < rows)[:, None] & (column < columns)[None, :]
            place = row.to(tl.int64)[:, None] * columns + column[None, :]
            part_size = rows.to(tl.int64) * columns
            tl.store(partials + part * part_size + place, sums, mask=inside)
            # Every thread's sums are written before the one atomic that announces them.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + tile, 1, sem="acq_rel")
            if arrived == splits - 1:
                sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
                for other in tl.range(0, splits):
                    at = partials + other * part_size + place
                    sums += tl.load(at, mask=inside, other=0, cache_modifier=".cg")
                tl.store(arrivals + tile, 0)
                write_tile(
                    sums, row, tile_n * BLOCK_N, a_scale, weight_scale, bias, residual, out, rows, columns,
                    BIAS, RESIDUAL, SWIGLU, BLOCK_M, BLOCK_N,
                )  # fmt: skip
        else:
            write_tile(
                sums, row, tile_n * BLOCK_N, a_scale, weight_scale, bias, residual, out, rows, columns,
                BIAS, RESIDUAL, SWIGLU, BLOCK_M, BLOCK_N,
            )  # fmt: skip


def splits_of(config: MatmulConfig, rows: int, columns: int, depth: int, gpu: Facts) -> tuple[int, int]:
    """Into how many parts the depth is cut, and how deep each is: as many as fill the GPU, each at least four tiles."""
    tiles = -(-rows // config.block_m) * -(-columns // config.block_n)
    steps = -(-depth // config.block_k)
    wanted = config.split_k
    if wanted is None:
        wanted = min(gpu.processors * (2 if config.warps <= 4 else 1) // tiles, steps // 4, 16)
    part = -(-steps // max(wanted, 1)) * config.block_k
    return -(-depth // part), part


class _Counters:
    """Zeroed counters of one GPU. Kernels leave theirs zero, so they are kept: for eager launches by stream, and
    for each launch of a captured graph its own piece of a pool, so that graphs may replay side by side."""

    POOL = 1 << 20

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.zeros(self.POOL, dtype=torch.int32, device=device)
        self._taken = 0
        self._by_stream: dict[int, Tensor] = {}

    def eager(self, stream: int, count: int) -> Tensor:
        """At least `count` counters for launches on one stream, which run one after the other."""
        kept = self._by_stream.get(stream)
        if kept is None or kept.numel() < count:
            kept = torch.zeros(max(1024, 1 << count.bit_length()), dtype=torch.int32, device=self._device)
            self._by_stream[stream] = kept
        return kept

    def captured(self, count: int) -> Tensor:
        """`count` counters for one launch of a graph; once the pool is used up, zeroed by the graph itself."""
        if self._taken + count > self.POOL:
            return torch.zeros(count, dtype=torch.int32, device=self._device)
        self._taken += count
        return self._pool[self._taken - count : self._taken]


_COUNTERS: dict[torch.device, _Counters] = {}


def _arrivals(device: torch.device, tiles: int) -> Tensor:
    """Zeroed counters, one a tile."""
    if device.type != "cuda":
        return torch.zeros(tiles, dtype=torch.int32, device=device)
    kept = _COUNTERS.get(device)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(tiles, dtype=torch.int32, device=device) if kept is None else kept.captured(tiles)
    if kept is None:
        kept = _COUNTERS[device] = _Counters(device)
    return kept.eager(torch.cuda.current_stream(device).cuda_stream, tiles)


def plan(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    config: MatmulConfig | None = None,
    gpu: Facts,
) -> Launch:
    """A program a tile and part of the depth, or one a processor that walks over them."""
    (rows, depth), columns = a.shape, weight.shape[0]
    if config is None:
        op = "int8_matmul_swiglu" if swiglu else "int8_matmul"
        config = matmul_config(op, gpu, row_bucket(rows), columns, depth)
    splits, part = splits_of(config, rows, columns, depth, gpu)
    tiles = -(-rows // config.block_m) * -(-columns // config.block_n)
    split = splits > 1
    partials = torch.empty((splits, rows, columns), dtype=torch.int32, device=a.device) if split else None
    arrivals = _arrivals(a.device, tiles) if split else None
    aligned = depth % 16 == 0 and a.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
    tma = config.tma and aligned and rows > 0
    left: Any = a
    right: Any = weight
    if tma:
        left = TensorDescriptor(a, list(a.shape), list(a.stride()), [config.block_m, config.block_k])
        right = TensorDescriptor(weight, list(weight.shape), list(weight.stride()), [config.block_n, config.block_k])
    items, sizes = tiles * splits, (rows, columns, depth, splits, part)
    return Launch(
        _int8_matmul_kernel,
        (min(items, gpu.processors) if config.persistent else items,),
        (left, a_scale, right, weight_scale, bias, residual, out, partials, arrivals, *sizes),
        {
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "GROUP_M": config.group_m,
            "BIAS": bias is not None,
            "RESIDUAL": residual is not None,
            "SWIGLU": swiglu,
            "SPLIT": split,
            "EVEN_K": depth % config.block_k == 0,
            "TMA": tma,
            "SWAP": config.swap,
            "FLATTEN": config.persistent and not split,
            "PDL": gpu.pdl,
        },
        config.warps,
        config.stages,
        pdl_options(gpu.pdl),
    )


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
    if a.is_cpu:
        return cpu_int8_matmul(a, a_scale, weight, weight_scale, bias=bias, residual=residual, out_dtype=out_dtype)
    out = torch.empty((a.shape[0], columns), dtype=out_dtype, device=a.device)
    plan(a, a_scale, weight, weight_scale, out, bias=bias, residual=residual, gpu=facts(a.device)).run()
    return out


def int8_matmul_swiglu(
    a: Tensor, a_scale: Tensor, weight: Tensor, weight_scale: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """a int8 [M, K], weight int8 [2F, K] (gate and up rows interleaved), weight_scale [2F] -> [M, F] of out_dtype."""
    _check("int8_matmul_swiglu", a, a_scale, weight, weight_scale, out_dtype)
    if weight.shape[0] % 2:
        refuse("int8_matmul_swiglu", "the number of weight's rows", weight.shape[0], "gate and up rows in pairs")
    if a.is_cpu:
        return cpu_int8_matmul_swiglu(a, a_scale, weight, weight_scale, out_dtype=out_dtype)
    out = torch.empty((a.shape[0], weight.shape[0] // 2), dtype=out_dtype, device=a.device)
    plan(a, a_scale, weight, weight_scale, out, swiglu=True, gpu=facts(a.device)).run()
    return out


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
