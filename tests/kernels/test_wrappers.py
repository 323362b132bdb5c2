"""The wrappers on the CPU: right results, and bad arguments refused before anything is computed."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from onebeat.engine.errors import KernelError
from onebeat.kernels.attention import attention
from onebeat.kernels.attention import reference as attention_reference
from onebeat.kernels.embedding import embedding
from onebeat.kernels.int8_matmul import int8_matmul, int8_matmul_swiglu
from onebeat.kernels.int8_matmul import reference as matmul_reference
from onebeat.kernels.paged_attention import paged_attention
from onebeat.kernels.paged_attention import reference as paged_reference
from onebeat.kernels.pool import head, pool
from onebeat.kernels.quantize import quantize_rows, quantize_weight
from onebeat.kernels.rms_norm import rms_norm, rms_norm_quantize
from onebeat.kernels.rope import rope_
from onebeat.kernels.swiglu import swiglu, swiglu_quantize

BOUNDS = torch.tensor([0, 3, 3, 8], dtype=torch.int32)
Q = torch.randn(8, 6, 64)
K = torch.randn(8, 2, 64)
CACHE = torch.randn(5, 4, 2, 64)
CONTEXT = torch.tensor([7, 0, 5], dtype=torch.int32)
TABLE = torch.tensor([[4, 1], [0, 0], [2, 3]], dtype=torch.int32)
X = torch.randn(4, 32)
A = torch.randint(-127, 128, (4, 32), dtype=torch.int8)
W = torch.randint(-127, 128, (10, 32), dtype=torch.int8)
S4, S10 = torch.rand(4), torch.rand(10)
QKV = torch.randn(4, 10 * 64)
COS = torch.randn(16, 32)
AT = torch.tensor([0, 1, 2, 15])
TURN = {"query_heads": 6, "key_heads": 2}


def bounds(*values):
    return torch.tensor(values, dtype=torch.int32)


def with_rope(qkv=QKV, cos=COS, sin=COS, positions=AT, **options):
    return lambda: rope_(qkv.clone(), cos, sin, positions, **{**TURN, **options})


BAD = {
    "q is int": (lambda: attention(Q.int(), K, K, BOUNDS, 5), "q is torch.int32", "bfloat16"),
    "q is no tensor": (lambda: attention([1.0], K, K, BOUNDS, 5), "q is a list", "a tensor"),
    "q has two dimensions": (lambda: attention(Q[0], K, K, BOUNDS, 5), "q's shape is [6, 64]", "[any, any, any]"),
    "k of another dtype": (lambda: attention(Q, K.half(), K, BOUNDS, 5), "k is torch.float16", "torch.float32"),
    "k of other tokens": (lambda: attention(Q, K[:7], K, BOUNDS, 5), "k's shape is [7, 2, 64]", "[8, any, 64]"),
    "v of other heads": (lambda: attention(Q, K, K[:, :1], BOUNDS, 5), "v's shape is [8, 1, 64]", "[8, 2, 64]"),
    "k elsewhere": (lambda: attention(Q, K.to("meta"), K, BOUNDS, 5), "k's device is meta", "cpu"),
    "q transposed": (
        lambda: attention(torch.randn(8, 64, 6).transpose(1, 2), K, K, BOUNDS, 5),
        "q's last stride is 6",
        ".contiguous()",
    ),
    "head size": (lambda: attention(Q[..., :32], K[..., :32], K[..., :32], BOUNDS, 5), "head size is 32", "64, 96 or"),
    "group": (lambda: attention(Q[:, :5], K, K, BOUNDS, 5), "query heads is 5", "multiple of the 2"),
    "int64 bounds": (lambda: attention(Q, K, K, BOUNDS.long(), 5), "cu_seqlens is torch.int64", "int32"),
    "no bounds": (lambda: attention(Q, K, K, bounds(), 5), "cu_seqlens' length is 0", "one more"),
    "decreasing bounds": (
        lambda: attention(Q, K, K, bounds(0, 5, 3, 8), 8),
        "decreasing (5, then 3)",
        "never decrease",
    ),
    "overrunning bounds": (lambda: attention(Q, K, K, bounds(0, 9), 9), "from 0 to 9", "0 to the 8 tokens"),
    "bounds from 1": (lambda: attention(Q, K, K, bounds(1, 8), 8), "from 1 to 8", "0 to the 8 tokens"),
    "short max_seqlen": (lambda: attention(Q, K, K, BOUNDS, 4), "max_seqlen is 4", "at least 5"),
    "tensor max_seqlen": (lambda: attention(Q, K, K, BOUNDS, torch.tensor(5)), "max_seqlen is a Tensor", "an int"),
    "negative max_seqlen": (lambda: attention(Q, K, K, BOUNDS, -1), "max_seqlen is -1", "0 or more"),
    "window 0": (lambda: attention(Q, K, K, BOUNDS, 5, window=0), "window is 0", "1 or more"),
    "scale 0": (lambda: attention(Q, K, K, BOUNDS, 5, scale=0.0), "scale is 0.0", "positive"),
    "cache dtype": (
        lambda: paged_attention(Q, CACHE.half(), CACHE, BOUNDS, CONTEXT, TABLE, 5),
        "key_cache is torch.float16",
        "float32",
    ),
    "caches differ": (
        lambda: paged_attention(Q, CACHE, CACHE[:4], BOUNDS, CONTEXT, TABLE, 5),
        "value_cache's shape is [4, 4, 2, 64]",
        "[5, 4, 2, 64]",
    ),
    "block of 3": (
        lambda: paged_attention(Q, *[CACHE[:, :3].contiguous()] * 2, BOUNDS, CONTEXT, TABLE, 5),
        "block is 3",
        "power of two",
    ),
    "context below chunk": (
        lambda: paged_attention(Q, CACHE, CACHE, BOUNDS, bounds(2, 0, 5), TABLE, 5),
        "context_tokens[0] is 2",
        "at least the chunk's own 3",
    ),
    "context beyond table": (
        lambda: paged_attention(Q, CACHE, CACHE, BOUNDS, bounds(9, 0, 5), TABLE, 5),
        "context_tokens[0] is 9",
        "at most the 8",
    ),
    "block beyond cache": (
        lambda: paged_attention(Q, CACHE, CACHE, BOUNDS, CONTEXT, TABLE + 1, 5),
        "block_table[0] is between 2 and 5",
        "0 to 4",
    ),
    "table of other sequences": (
        lambda: paged_attention(Q, CACHE, CACHE, BOUNDS, CONTEXT, TABLE[:2], 5),
        "block_table's shape is [2, 2]",
        "[3, any]",
    ),
    "quantize int8": (lambda: quantize_rows(A), "x is torch.int8", "torch.bfloat16 or"),
    "quantize transposed": (lambda: quantize_rows(X.t()), "x is not contiguous", ".contiguous()"),
    "rows of half a block": (lambda: quantize_rows(X, hadamard=64), "x's width is 32", "a multiple of the block 64"),
    "weight of half a block": (
        lambda: quantize_weight(X[:, :24].contiguous(), hadamard=16),
        "w's width is 24",
        "a multiple of the block 16",
    ),
    "block of 8": (lambda: quantize_rows(X, hadamard=8), "hadamard is 8", "64, 32, 16 or 1"),
    "block of 0": (lambda: quantize_weight(X, hadamard=0), "hadamard is 0", "64, 32, 16 or 1"),
    "norm of half a block": (
        lambda: rms_norm_quantize(X, X[0], 1e-6, hadamard=64),
        "x's width is 32",
        "a multiple of the block 64",
    ),
    "swiglu of half a block": (
        lambda: swiglu_quantize(X, hadamard=32),
        "half of gate_up's width is 16",
        "a multiple of the block 32",
    ),
    "weight of one dimension": (lambda: quantize_weight(X[0]), "w's shape is [32]", "[any, any]"),
    "a is float": (lambda: int8_matmul(X, S4, W, S10), "a is torch.float32", "torch.int8"),
    "depths differ": (
        lambda: int8_matmul(A, S4, W[:, :31].contiguous(), S10),
        "weight's shape is [10, 31]",
        "[any, 32]",
    ),
    "weight transposed": (
        lambda: int8_matmul(A, S4, W.t().contiguous().t(), S10),
        "weight is not contiguous",
        "tensor",
    ),
    "scale in bf16": (lambda: int8_matmul(A, S4.bfloat16(), W, S10), "a_scale is torch.bfloat16", "torch.float32"),
    "weight scale short": (lambda: int8_matmul(A, S4, W, S10[:9]), "weight_scale's shape is [9]", "[10]"),
    "bias short": (lambda: int8_matmul(A, S4, W, S10, bias=S4), "bias's shape is [4]", "[10]"),
    "residual short": (lambda: int8_matmul(A, S4, W, S10, residual=X), "residual's shape is [4, 32]", "[4, 10]"),
    "int output": (
        lambda: int8_matmul(A, S4, W, S10, out_dtype=torch.int32),
        "out_dtype is torch.int32",
        "torch.bfloat16",
    ),
    "no depth": (lambda: int8_matmul(A[:, :0], S4, W[:, :0], S10), "K is 0", "1 to 133"),
    "odd gate and up": (lambda: int8_matmul_swiglu(A, S4, W[:9], S10[:9]), "weight's rows is 9", "in pairs"),
    "norm weight": (lambda: rms_norm(X, X[0, :31], 1e-6), "weight's shape is [31]", "[32]"),
    "residual dtype": (
        lambda: rms_norm_quantize(X, X[0], 1e-6, residual=X.half()),
        "residual is torch.float16",
        "float32",
    ),
    "odd swiglu": (lambda: swiglu(X[:, :31].contiguous()), "gate_up's width is 31", "in pairs"),
    "swiglu of int8": (lambda: swiglu_quantize(A), "gate_up is torch.int8", "torch.bfloat16"),
    "qkv width": (with_rope(QKV[:, :639].contiguous()), "qkv's width is 639", "6 + 2 * 2 heads"),
    "cos width": (with_rope(cos=COS[:, :31]), "cos's shape is [16, 31]", "[any, 32]"),
    "sin of other positions": (with_rope(sin=COS[:9]), "sin's shape is [9, 32]", "[16, 32]"),
    "position beyond cos": (with_rope(positions=AT + 1), "positions is between 1 and 16", "0 to 15"),
    "positions short": (with_rope(positions=AT[:3]), "positions's shape is [3]", "[4]"),
    "one norm": (with_rope(q_norm=COS[0]), "q_norm without k_norm", "both or neither"),
    "slots missing": (with_rope(key_cache=CACHE, value_cache=CACHE), "slots is missing", "all three or none"),
    "slot beyond": (
        with_rope(key_cache=CACHE.clone(), value_cache=CACHE.clone(), slots=AT + 10),
        "slots is between 10 and 25",
        "0 to 19",
    ),
    "id beyond": (lambda: embedding(torch.tensor([0, 4]), X), "token_ids is between 0 and 4", "0 to 3"),
    "float ids": (lambda: embedding(S4, X), "token_ids is torch.float32", "int32 or torch.int64"),
    "pool mode": (lambda: pool(X, bounds(0, 4), "max"), "mode is 'max'", "last"),
    "pool bounds": (lambda: pool(X, bounds(0, 5), "mean"), "from 0 to 5", "0 to the 4 tokens"),
    "head width": (lambda: head(X, X[:, :9].contiguous()), "weight's shape is [4, 9]", "[any, 32]"),
    "two norms": (
        lambda: head(X, X, norm_weight=X[0], center=X[0], spread=X[0]),
        "norm_weight beside center",
        "one kind",
    ),
    "center alone": (lambda: head(X, X, center=X[0]), "center without spread", "both or neither"),
}


@pytest.mark.parametrize(("call", "got", "takes"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_named(call, got, takes):
    with pytest.raises(KernelError) as caught:
        call()
    assert got in str(caught.value)
    assert takes in str(caught.value).split("but it takes")[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_the_cpu(dtype, agree):
    q, k = Q.to(dtype), K.to(dtype)
    for window in (None, 2):
        out = attention(q, k, k, BOUNDS, 5, window=window)
        agree(out, attention_reference(q, k, k, BOUNDS, window=window), times=4)
        cache = CACHE.to(dtype)
        out = paged_attention(q, cache, cache, BOUNDS, CONTEXT, TABLE, 5, window=window)
        agree(out, paged_reference(q, cache, cache, BOUNDS, CONTEXT, TABLE, window=window), times=4)


def test_int8_matmul_on_the_cpu(agree):
    bias, residual = torch.randn(10), torch.randn(4, 10)
    out = int8_matmul(A, S4, W, S10, bias=bias, residual=residual, out_dtype=torch.float32)
    agree(out, matmul_reference(A, S4, W, S10, bias=bias, residual=residual))


def test_norm_and_swiglu_transform_what_they_quantise():
    given = {"norm": rms_norm(X, X[0], 1e-6)[0], "swiglu": swiglu(X)}
    got = {"norm": rms_norm_quantize(X, X[0], 1e-6, hadamard=32)[:2], "swiglu": swiglu_quantize(X, hadamard=16)}
    for name, block in (("norm", 32), ("swiglu", 16)):
        for result, expected in zip(got[name], quantize_rows(given[name], hadamard=block), strict=True):
            assert torch.equal(result, expected), name


def test_the_weights_side_carries_the_division():
    rows, scale = quantize_rows(X, hadamard=32)
    weight, weight_scale = quantize_weight(X, hadamard=32)
    assert torch.equal(rows, weight)
    assert torch.equal(scale, weight_scale * 32)


def test_no_tokens_at_all():
    assert attention(Q[:0], K[:0], K[:0], bounds(0, 0), 0).shape == (0, 6, 64)
    assert quantize_rows(X[:0])[0].shape == (0, 32)
    assert quantize_rows(X[:0], hadamard=32)[0].shape == (0, 32)
    assert int8_matmul(A[:0], S4[:0], W, S10).shape == (0, 10)
    assert pool(X[:0], bounds(0, 0), "mean").tolist() == [[0.0] * 32]
    assert head(X[:0], X).shape == (0, 4)


def test_cpu_paths_work_where_triton_cannot_be_imported():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from onebeat.kernels import attention, backend, embedding, int8_matmul, pool, quantize, rms_norm, rope, swiglu
        from onebeat.engine.errors import KernelError
        assert backend.MISSING, "triton was imported"
        a, s = quantize.quantize_rows(torch.randn(3, 64))
        gate_up = int8_matmul.int8_matmul(a, s, a, s, out_dtype=torch.float32).repeat(1, 2)
        rms_norm.rms_norm(swiglu.swiglu(gate_up), torch.ones(3), 1e-6)
        x = torch.randn(5, 1, 64)
        bounds = torch.tensor([0, 5], dtype=torch.int32)
        assert attention.attention(x, x, x, bounds, 5).shape == x.shape
        assert pool.pool(x.view(5, 64), bounds, "mean").shape == (1, 64)
        try:
            backend.facts(torch.device("cuda", 0))
        except KernelError as error:
            assert "Triton cannot be imported" in str(error)
        else:
            raise AssertionError("a GPU without Triton was accepted")
        print("fine")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=dict(os.environ), timeout=120
    )
    assert done.stdout.strip() == "fine", done.stderr
