"""Attention, plain and paged, against float64; and that its sums do not depend on company, chunks or tiles."""

import pytest
import torch

from onebeat.kernels import attention, paged_attention
from onebeat.kernels.backend import Facts
from onebeat.kernels.tuning import AttentionConfig, attention_config

SMALL = AttentionConfig(32, 16, 4, 1)
FORTY = [(index * 7) % 19 if index % 4 else 0 for index in range(40)]
LENGTHS = {"one token": [1], "5 x 123": [123] * 5, "mid tile": [81], "forty, some empty": FORTY}


def make(lengths, heads, head_size, dtype, device):
    """q, k and v as the slices of one fused qkv that the model has."""
    query_heads, key_heads = heads
    qkv = torch.randn(sum(lengths), query_heads + 2 * key_heads, head_size, device=device).to(dtype)
    return qkv[:, :query_heads], qkv[:, query_heads:-key_heads], qkv[:, -key_heads:]


def run(q, k, v, bounds, longest, poisoned, gpu, config=None, window=None, paged=None):
    out = poisoned(*q.shape, dtype=q.dtype)
    scale = q.shape[-1] ** -0.5
    attention.plan(
        q, k, v, bounds, longest, out, scale=scale, window=window, paged=paged, config=config, gpu=gpu
    ).run()  # fmt: skip
    return out


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize(
    ("heads", "head_size", "dtype"),
    [
        ((2, 2), 64, torch.float32),
        ((3, 1), 64, torch.float16),
        ((7, 1), 128, torch.float16),
        ((8, 1), 96, torch.float16),
    ],
    ids=str,
)
def test_agrees_with_float64(lengths, heads, head_size, dtype, device, gpu, packed, poisoned, agree):
    q, k, v = make(lengths, heads, head_size, dtype, device)
    bounds = packed(lengths)
    out = run(q, k, v, bounds, max(lengths), poisoned, gpu)
    agree(out, attention.reference(q, k, v, bounds), times=4)


@pytest.mark.parametrize("window", [1, 7, 40])
def test_a_window_hides_what_is_behind_it(window, device, gpu, packed, poisoned, agree):
    q, k, v = make([5, 0, 61], (3, 1), 64, torch.float32, device)
    bounds = packed([5, 0, 61])
    out = run(q, k, v, bounds, 61, poisoned, gpu, SMALL, window)
    agree(out, attention.reference(q, k, v, bounds, window=window), times=4)


def test_bf16_on_a_gpu(device, gpu, packed, poisoned, agree):
    if device.type != "cuda":
        pytest.skip("the interpreter multiplies bf16 matrices wrongly; bench/gpu.py checks this on a GPU")
    q, k, v = make([300, 1, 77], (14, 2), 128, torch.bfloat16, device)
    bounds = packed([300, 1, 77])
    agree(run(q, k, v, bounds, 300, poisoned, gpu), attention.reference(q, k, v, bounds), times=2)


def fill_cache(k, v, lengths, block, device):
    """The keys and values of packed sequences, laid into shuffled blocks; everything else in the cache is poison."""
    used = [-(-length // block) for length in lengths]
    order = torch.randperm(sum(used) + 2)
    table = torch.zeros(len(lengths), max(used), dtype=torch.int32, device=device)
    caches = [torch.full((len(order), block, *x.shape[1:]), float("nan"), dtype=x.dtype, device=device) for x in (k, v)]
    start = taken = 0
    for index, length in enumerate(lengths):
        for number in range(used[index]):
            place = int(order[taken])
            taken += 1
            table[index, number] = place
            rows = slice(start + number * block, start + min((number + 1) * block, length))
            for cache, x in zip(caches, (k, v), strict=True):
                cache[place, : rows.stop - rows.start] = x[rows]
        start += length
    return *caches, table


@pytest.mark.parametrize(("block", "tile"), [(16, 32), (32, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [None, 9])
def test_a_paged_chunk_agrees_with_float64(block, tile, dtype, window, device, gpu, packed, poisoned, agree):
    contexts, chunks = [70, 3, 0, 33], [6, 3, 0, 17]
    _, k, v = make(contexts, (6, 2), 64, dtype, device)
    q, _, _ = make(chunks, (6, 2), 64, dtype, device)
    keys, values, table = fill_cache(k, v, contexts, block, device)
    context = torch.tensor(contexts, dtype=torch.int32, device=device)
    bounds = packed(chunks)
    config = AttentionConfig(32, tile, 4, 1)
    out = run(q, keys, values, bounds, 17, poisoned, gpu, config, window, (context, table))
    clean = [cache.nan_to_num(0.0) for cache in (keys, values)]
    expected = paged_attention.reference(q, *clean, bounds, context, table, window=window)
    agree(out, expected, times=4)


def test_bits_do_not_depend_on_company_or_chunks(device, gpu, packed, poisoned):
    """Two heads a group: chunks begin where tiles do, for numpy's products depend on a row's place, unlike a GPU's."""
    lengths, block = [40, 75, 9], 16
    q, k, v = make(lengths, (4, 2), 64, torch.float32, device)
    together = run(q, k, v, packed(lengths), 75, poisoned, gpu, SMALL)
    alone = run(q[40:115], k[40:115], v[40:115], packed([75]), 75, poisoned, gpu, SMALL)
    assert torch.equal(together[40:115], alone)
    keys, values, table = fill_cache(k, v, lengths, block, device)
    for first, last in ((0, 32), (32, 64), (64, 75)):
        context = torch.tensor([last], dtype=torch.int32, device=device)
        chunk = run(
            q[40 + first : 40 + last], keys, values, packed([last - first]), last - first, poisoned, gpu, SMALL,
            paged=(context, table[1:2]),
        )  # fmt: skip
        assert torch.equal(chunk, alone[first:last]), f"tokens {first} to {last}"


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_100"])
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_tiles_depend_on_the_head_size_alone(arch, head_size):
    gpu = Facts("", arch, 132)
    tiles = set()
    for lengths, heads in (([1], (8, 8)), ([4000, 3], (8, 8)), ([7] * 64, (8, 8)), ([300], (8, 8))):
        shape = (sum(lengths), heads[0], head_size)
        q = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        bounds = torch.empty(len(lengths) + 1, dtype=torch.int32, device="meta")
        for paged in (None, (bounds[1:], torch.empty(len(lengths), 64, dtype=torch.int32, device="meta"))):
            keys = q if paged is None else torch.empty(9, 128, *shape[1:], dtype=torch.bfloat16, device="meta")
            launch = attention.plan(
                q, keys, keys, bounds, max(lengths), q, scale=1.0, window=None, paged=paged, gpu=gpu
            )  # fmt: skip
            tiles.add((launch.constants["BLOCK_M"], launch.constants["BLOCK_N"], launch.warps, launch.stages))
    config = attention_config(gpu, head_size, 2)
    assert tiles == {(config.block_m, config.block_n, config.warps, config.stages)}


def test_keys_above_the_diagonal_are_never_loaded(device, gpu, packed, poisoned):
    """Poison in a later token must not reach an earlier one, nor another sequence."""
    q, k, v = make([50, 20], (3, 1), 64, torch.float32, device)
    clean = run(q, k, v, packed([50, 20]), 50, poisoned, gpu, SMALL)
    k, v = k.clone(), v.clone()
    k[48:50] = v[48:50] = float("nan")
    dirty = run(q, k, v, packed([50, 20]), 50, poisoned, gpu, SMALL)
    assert torch.equal(clean[:32], dirty[:32]), "whole tiles ahead of the poison"
    assert torch.equal(clean[50:], dirty[50:]), "the next sequence"
    assert dirty[48:50].isnan().all()
