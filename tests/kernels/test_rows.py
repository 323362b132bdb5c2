"""The fused rows against float64: norms, SwiGLU, quantising, positions, embedding, pooling, the head."""

import math

import pytest
import torch

from onebeat.kernels import embedding, pool, quantize, rms_norm, rope, swiglu
from onebeat.kernels.cpu.hadamard import hadamard, hadamard_block

SHAPES = [(1, 64), (5, 100), (123, 33)]
TRANSFORMED = [
    (3, 64, 64), (5, 96, 32), (1, 576, 64), (3, 1536, 64), (7, 64, 32), (5, 48, 16), (3, 96, 16), (7, 16, 16)
]  # fmt: skip
"""Tokens, width, block."""
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def check_quantized(quantized, scale, exact, block=1):
    """The scale to float32's rounding; every value to the nearest integer, give or take the float32 rounding of it.

    A run's transform has a value of at least the run's norm, and its magnitudes add up to at most sqrt(block) times
    that: so much larger, as a share of the peak, become errors of the row, and those of log2(block) stages of sums.
    """
    exact = exact @ matrix(exact.shape[1], block).to(exact.device)
    slack = block**0.5 * (1e-6 + math.log2(block) * 2**-24)
    peak = exact.abs().amax(dim=1)
    assert torch.allclose(scale.double(), peak / 127, rtol=slack, atol=0)
    inverse = torch.where(peak > 0, 127 / peak, torch.zeros_like(peak))
    assert ((quantized.double() - exact * inverse[:, None]).abs() <= 0.5 + 100 * slack).all()


def matrix(width, block):
    """The transform as a matrix, from its definition and not from butterflies: float64 [K, K], symmetric."""
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(block)] for i in range(block)]
    return torch.block_diag(*[torch.tensor(signs, dtype=torch.float64)] * (width // block))


def skip_bf16_sums(dtype, device, summed=True):
    if summed and dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter cuts float32 off to bf16 instead of rounding; bench/gpu.py checks this on a GPU")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_quantize_rows(shape, dtype, device, gpu, poisoned):
    x = torch.randn(shape, device=device).to(dtype)
    x[0] = 0
    out, scale = poisoned(*shape, dtype=torch.int8), poisoned(shape[0])
    quantize.plan(x, out, scale, gpu).run()
    check_quantized(out, scale, x.double())
    assert not out[0].any()
    assert scale[0] == 0


def test_halves_round_to_even(device, gpu, poisoned):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5]], device=device)
    out, scale = poisoned(1, 7, dtype=torch.int8), poisoned(1)
    quantize.plan(x, out, scale, gpu).run()
    assert out.tolist() == [[127, 0, 2, 2, 0, -2, 126]]


def test_a_row_too_small_to_invert_becomes_zeros(device, gpu, poisoned):
    x = torch.full((1, 8), 1e-38, device=device)
    out, scale = poisoned(1, 8, dtype=torch.int8), poisoned(1)
    quantize.plan(x, out, scale, gpu).run()
    assert not out.any()


@pytest.mark.parametrize(("tokens", "width", "block"), TRANSFORMED)
@pytest.mark.parametrize("dtype", FLOATS)
def test_transformed_rows(tokens, width, block, dtype, device, gpu, poisoned):
    x = torch.randn(tokens, width, device=device).to(dtype)
    x[-1] = 0
    x[0, width // 3] = 30000
    out, scale = poisoned(tokens, width, dtype=torch.int8), poisoned(tokens)
    quantize.plan(x, out, scale, gpu, block).run()
    check_quantized(out, scale, x.double(), block)
    sums = hadamard(x.cpu().float(), block)
    peak = sums.abs().amax(dim=1, keepdim=True)
    inverse = torch.div(torch.tensor(127.0), peak.clamp(min=1e-30))  # 127.0 / peak would round twice
    assert torch.equal(out.cpu(), (sums * inverse).round().to(torch.int8)), "the CPU's sums, bit for bit"
    assert torch.equal(scale.cpu(), peak[:, 0] / 127)
    if tokens > 1:
        assert not out[-1].any()
        assert scale[-1] == 0


@pytest.mark.parametrize(("width", "block"), [(64, 64), (96, 32), (576, 64), (48, 16), (100, 1)])
def test_products_of_transformed_rows_and_weights_are_what_they_were(width, block):
    assert hadamard_block(width) == block
    x, w = torch.randn(5, width), torch.randn(7, width)
    x[2, 3], w[1, width - 1] = 1000, 50
    exact = x.double() @ w.double().t()
    rows, weight = ((ints * scale[:, None]) for ints, scale in (quantize.reference(it, block) for it in (x, w)))
    assert torch.allclose(rows @ weight.t() / block, exact, rtol=0, atol=1e-12 * exact.abs().max().item())

    int8, scale = quantize.quantize_rows(x, block)
    weight8, weight_scale = quantize.quantize_weight(w, block)
    check_quantized(weight8, weight_scale * block, w.double(), block)
    scales = scale[:, None].double() * weight_scale
    # K roundings of half a step a side, each times at most 127 steps of the other's, independently of one another.
    allowed = 127 * scales * math.sqrt(width)
    assert (((int8.double() @ weight8.double().t()) * scales - exact).abs() <= allowed).all()


@pytest.mark.parametrize("block", [16, 32, 64])
def test_an_outlier_costs_a_transformed_row_less(block):
    x = torch.randn(9, 576)
    x[:, 100] = 200
    errors = []
    for size in (1, block):
        rows, scale = quantize.quantize_rows(x, size)
        back = rows.double() * scale[:, None] @ matrix(576, size) / size
        errors.append((back - x).square().mean().sqrt().item())
    # A step is the outlier's share either way, but on the way back `block` roundings add up and are divided by `block`.
    assert errors[1] < 1.5 * errors[0] / math.sqrt(block)


@pytest.mark.parametrize(("tokens", "width", "block"), TRANSFORMED[:4])
@pytest.mark.parametrize("dtype", FLOATS)
def test_transformed_norms(tokens, width, block, dtype, device, gpu, poisoned):
    skip_bf16_sums(dtype, device)
    x, weight = torch.randn(tokens, width, device=device).to(dtype), torch.randn(width, device=device).to(dtype)
    residual = torch.randn(tokens, width, device=device).to(dtype)
    x[0, width // 3], x[-1], residual[-1] = 3000, 0, 0
    out, scale = poisoned(tokens, width, dtype=torch.int8), poisoned(tokens)
    summed = poisoned(tokens, width, dtype=dtype)
    rms_norm.plan(x, weight, 1e-6, residual, out, scale, summed, gpu, block).run()
    exact, expected_sum = rms_norm.reference(x, weight, 1e-6, residual=residual)
    check_quantized(out, scale, exact, block)
    assert torch.equal(summed, expected_sum)


@pytest.mark.parametrize(("tokens", "width", "block"), TRANSFORMED[:4])
@pytest.mark.parametrize("dtype", FLOATS)
def test_transformed_swiglu(tokens, width, block, dtype, device, gpu, poisoned):
    gate_up = (4 * torch.randn(tokens, 2 * width, device=device)).to(dtype)
    gate_up[0, 2 * (width // 3)], gate_up[-1] = 100, 0
    out, scale = poisoned(tokens, width, dtype=torch.int8), poisoned(tokens)
    swiglu.plan(gate_up, out, scale, gpu, block).run()
    check_quantized(out, scale, swiglu.reference(gate_up), block)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(shape, dtype, with_residual, device, gpu, poisoned, agree):
    skip_bf16_sums(dtype, device, with_residual)
    x, weight = torch.randn(shape, device=device).to(dtype), torch.randn(shape[1], device=device).to(dtype)
    residual = torch.randn(shape, device=device).to(dtype) if with_residual else None
    out, summed = poisoned(*shape, dtype=dtype), poisoned(*shape, dtype=dtype) if with_residual else None
    rms_norm.plan(x, weight, 1e-6, residual, out, None, summed, gpu).run()
    exact, expected_sum = rms_norm.reference(x, weight, 1e-6, residual=residual)
    agree(out, exact)
    if summed is not None:
        assert torch.equal(summed, expected_sum)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_norm_quantize(shape, dtype, device, gpu, poisoned):
    skip_bf16_sums(dtype, device)
    x, weight = torch.randn(shape, device=device).to(dtype), torch.randn(shape[1], device=device).to(dtype)
    residual = torch.randn(shape, device=device).to(dtype)
    out, scale, summed = poisoned(*shape, dtype=torch.int8), poisoned(shape[0]), poisoned(*shape, dtype=dtype)
    rms_norm.plan(x, weight, 1e-6, residual, out, scale, summed, gpu).run()
    exact, expected_sum = rms_norm.reference(x, weight, 1e-6, residual=residual)
    check_quantized(out, scale, exact)
    assert torch.equal(summed, expected_sum)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 2500)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_swiglu(shape, dtype, device, gpu, poisoned, agree):
    gate_up = (4 * torch.randn(shape[0], 2 * shape[1], device=device)).to(dtype)
    out, scale = poisoned(*shape, dtype=dtype), poisoned(shape[0])
    swiglu.plan(gate_up, out, None, gpu).run()
    exact = swiglu.reference(gate_up)
    agree(out, exact)
    quantized = poisoned(*shape, dtype=torch.int8)
    swiglu.plan(gate_up, quantized, scale, gpu).run()
    check_quantized(quantized, scale, exact)


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("heads", [(1, 1), (9, 3), (7, 1), (16, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", ["bare", "bias", "norms", "bias and norms"])
def test_rope(head_size, heads, dtype, options, device, gpu, poisoned, agree):
    query_heads, key_heads = heads
    width = (query_heads + 2 * key_heads) * head_size
    qkv = torch.randn(5, width, device=device).to(dtype)
    angles = torch.rand(30, head_size // 2, device=device) * 6
    cos, sin = angles.cos(), angles.sin()
    positions = torch.tensor([0, 29, 3, 3, 17], device=device)
    bias = torch.randn(width, device=device).to(dtype) if "bias" in options else None
    norms = tuple(torch.randn(head_size, device=device).to(dtype) for _ in range(2)) if "norms" in options else None
    before = qkv.clone()
    rope.plan(qkv, cos, sin, positions, query_heads, key_heads, bias, norms, 1e-6, None, gpu).run()
    counts = {"query_heads": query_heads, "key_heads": key_heads}
    norm = dict(zip(("q_norm", "k_norm"), norms or (None, None), strict=True))
    expected = rope.reference(before, cos, sin, positions, bias=bias, **counts, **norm)
    agree(qkv, expected)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_rope_writes_the_cache(index, device, gpu, poisoned):
    qkv = torch.randn(6, 5 * 64, device=device)
    angles = torch.rand(30, 32, device=device)
    keys, values = poisoned(3, 4, 1, 64), poisoned(3, 4, 1, 64)
    slots = torch.tensor([11, 0, 3, 4, 7, 8], device=device).to(index)
    positions = torch.arange(6, device=device).to(index)
    rope.plan(qkv, angles.cos(), angles.sin(), positions, 3, 1, None, None, 1e-6, (keys, values, slots), gpu).run()
    assert torch.equal(keys.view(12, 64)[slots.long()], qkv[:, 192:256])
    assert torch.equal(values.view(12, 64)[slots.long()], qkv[:, 256:])
    untouched = [slot for slot in range(12) if slot not in slots.tolist()]
    assert keys.view(12, 64)[untouched].isnan().all()
    assert values.view(12, 64)[untouched].isnan().all()


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_embedding(index, device, gpu, poisoned):
    table = torch.randn(50, 2500, device=device).to(torch.bfloat16)
    ids = torch.tensor([0, 49, 7, 7], device=device).to(index)
    out = poisoned(4, 2500, dtype=torch.bfloat16)
    embedding.plan(ids, table, out, gpu).run()
    assert torch.equal(out, table[ids.long()])
    embedding.plan(torch.tensor([-3, 99], device=device), table, out[:2], gpu).run()
    assert torch.equal(out[:2], table[[0, 49]]), "ids outside take the nearest row"


@pytest.mark.parametrize("mode", ["mean", "last", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pool(mode, dtype, device, gpu, packed, poisoned, agree):
    lengths = [1, 0, 123, 64, 5, 0]
    hidden = torch.randn(sum(lengths), 100, device=device).to(dtype)
    bounds = packed(lengths)
    out = poisoned(6, 100)
    pool.plan(hidden, bounds, mode, out, gpu).run()
    agree(out, pool.reference(hidden, bounds, mode), times=4)
    alone = poisoned(1, 100)
    pool.plan(hidden[1:124].contiguous(), packed([123]), mode, alone, gpu).run()
    assert torch.equal(alone[0], out[2]), "a sequence's row does not depend on its company"


@pytest.mark.parametrize("norm", ["none", "rms", "standardised"])
def test_head(norm, device, gpu, poisoned, agree):
    features, weight = torch.randn(3, 1100, device=device), torch.randn(11, 1100, device=device)
    row, bias = torch.rand(1100, device=device) + 0.5, torch.randn(11, device=device)
    gain, center = row if norm == "rms" else None, row if norm == "standardised" else None
    out = poisoned(3, 11)
    pool.plan_head(features, weight, bias, gain, 1e-6, center, center, out, gpu).run()
    expected = pool.reference_head(features, weight, bias, norm_weight=gain, center=center, spread=center)
    agree(out, expected, times=8)
