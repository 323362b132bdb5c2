"""Every op through its wrapper, at the shapes of the default router's backbone (CPU) or of Qwen2.5-7B (CUDA)."""

import pytest
import torch

from onebeat.kernels import attention, embedding, int8_matmul, paged_attention, pool, quantize, rms_norm, rope, swiglu
from onebeat.kernels.cpu.hadamard import hadamard_block
from onebeat.kernels.shapes import QWEN_7B, SMOLLM_135M

CUDA = torch.cuda.is_available()
SHAPE = QWEN_7B if CUDA else SMOLLM_135M
TOKENS = (1, 16, 128, 512, 2048, 8192) if CUDA else (1, 32, 128, 512)
DTYPE = torch.bfloat16
ELEMENT_BYTES = 2


def int8(device, *shape):
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=device)


def rand(device, *shape):
    return torch.randn(shape, device=device).to(DTYPE)


def bounds(device, *lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", ["qkv", "out", "gate_up", "down"])
def test_int8_matmul(timed, device, name, tokens):
    columns, depth = SHAPE.matmuls[name]

    def make():
        given = (int8(device, tokens, depth), torch.rand(tokens, device=device))
        given += (int8(device, columns, depth), torch.rand(columns, device=device))
        op = int8_matmul.int8_matmul_swiglu if name == "gate_up" else int8_matmul.int8_matmul
        return lambda: op(*given, out_dtype=DTYPE)

    moved = int8_matmul.bytes_moved(tokens, columns, depth, 1 if name == "gate_up" else 2)
    flops = int8_matmul.flops(tokens, columns, depth)
    timed(make, moved=moved, flops=flops, ceiling="int8_ops", tokens=tokens, columns=columns, depth=depth)


@pytest.mark.parametrize("lengths", [[count] for count in TOKENS] + [[32] * 16], ids=lambda it: f"{len(it)}x{it[0]}")
def test_attention(timed, device, lengths):
    heads, key_heads, size = SHAPE.query_heads, SHAPE.key_heads, SHAPE.head_size

    def make():
        qkv = rand(device, sum(lengths), heads + 2 * key_heads, size)
        q, k, v, cu = qkv[:, :heads], qkv[:, heads:-key_heads], qkv[:, -key_heads:], bounds(device, *lengths)
        return lambda: attention.attention(q, k, v, cu, max(lengths))

    moved = attention.bytes_moved(lengths, heads, key_heads, size, ELEMENT_BYTES)
    timed(make, moved=moved, flops=attention.flops(lengths, heads, size), ceiling="bf16_flops", lengths=lengths)


@pytest.mark.parametrize(("queries", "context"), [(128, 128), (128, 1024)])
def test_paged_attention(timed, device, queries, context):
    heads, key_heads, size = SHAPE.query_heads, SHAPE.key_heads, SHAPE.head_size

    def make():
        blocks = context // 128
        caches = [rand(device, blocks, 128, key_heads, size) for _ in range(2)]
        table = torch.randperm(blocks).to(torch.int32)[None].to(device)
        q, held = rand(device, queries, heads, size), torch.tensor([context], dtype=torch.int32, device=device)
        return lambda: paged_attention.paged_attention(q, *caches, bounds(device, queries), held, table, queries)

    chunks = [(queries, context)]
    moved = paged_attention.bytes_moved(chunks, heads, key_heads, size, ELEMENT_BYTES)
    flops = paged_attention.flops(chunks, heads, size)
    timed(make, moved=moved, flops=flops, ceiling="bf16_flops", queries=queries, context=context)


@pytest.mark.parametrize("tokens", TOKENS)
def test_rms_norm_quantize(timed, device, tokens):
    width, block = SHAPE.hidden, hadamard_block(SHAPE.hidden)

    def make():
        x, weight, residual = rand(device, tokens, width), rand(device, width), rand(device, tokens, width)
        return lambda: rms_norm.rms_norm_quantize(x, weight, 1e-6, residual=residual, hadamard=block)

    moved, flops = rms_norm.bytes_moved(tokens, width, ELEMENT_BYTES), rms_norm.flops(tokens, width, block)
    timed(make, moved=moved, flops=flops, ceiling="bf16_flops", tokens=tokens, width=width)


@pytest.mark.parametrize("tokens", TOKENS)
def test_quantize_rows(timed, device, tokens):
    width, block = SHAPE.feed_forward, hadamard_block(SHAPE.feed_forward)

    def make():
        x = rand(device, tokens, width)
        return lambda: quantize.quantize_rows(x, block)

    moved, flops = quantize.bytes_moved(tokens, width, ELEMENT_BYTES), quantize.flops(tokens, width, block)
    timed(make, moved=moved, flops=flops, ceiling="bf16_flops", tokens=tokens, width=width)


@pytest.mark.parametrize("tokens", TOKENS)
def test_swiglu_quantize(timed, device, tokens):
    width, block = SHAPE.feed_forward, hadamard_block(SHAPE.feed_forward)

    def make():
        gate_up = rand(device, tokens, 2 * width)
        return lambda: swiglu.swiglu_quantize(gate_up, block)

    moved, flops = swiglu.bytes_moved(tokens, width, ELEMENT_BYTES), swiglu.flops(tokens, width, block)
    timed(make, moved=moved, flops=flops, ceiling="bf16_flops", tokens=tokens, width=width)


@pytest.mark.parametrize("tokens", TOKENS)
def test_rope(timed, device, tokens):
    heads, key_heads, size = SHAPE.query_heads, SHAPE.key_heads, SHAPE.head_size
    angles = torch.rand(tokens, size // 2, device=device)
    cos, sin, positions = angles.cos(), angles.sin(), torch.arange(tokens, device=device)

    def make():
        qkv = rand(device, tokens, SHAPE.qkv)
        return lambda: rope.rope_(qkv, cos, sin, positions, query_heads=heads, key_heads=key_heads)

    moved = rope.bytes_moved(tokens, heads, key_heads, size, ELEMENT_BYTES)
    flops = rope.flops(tokens, heads, key_heads, size)
    timed(make, moved=moved, flops=flops, ceiling="bf16_flops", tokens=tokens)


@pytest.mark.parametrize("tokens", TOKENS)
def test_embedding(timed, device, tokens):
    table = rand(device, 32768, SHAPE.hidden)

    def make():
        ids = torch.randint(32768, (tokens,), device=device)
        return lambda: embedding.embedding(ids, table)

    moved = embedding.bytes_moved(tokens, SHAPE.hidden, ELEMENT_BYTES)
    timed(make, moved=moved, flops=0, ceiling="bf16_flops", tokens=tokens, width=SHAPE.hidden)


@pytest.mark.parametrize("tokens", TOKENS)
def test_pool(timed, device, tokens):
    def make():
        hidden, cu = rand(device, tokens, SHAPE.hidden), bounds(device, tokens)
        return lambda: pool.pool(hidden, cu, "mean")

    width = SHAPE.hidden
    moved, flops = pool.bytes_moved(tokens, 1, width, "mean", ELEMENT_BYTES), pool.flops(tokens, width, "mean")
    timed(make, moved=moved, flops=flops, ceiling="bf16_flops", tokens=tokens, width=width)
