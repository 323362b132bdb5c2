"""The int8 product: exact sums, every epilogue, and the same bits whatever the tiles and however many the rows."""

import pytest
import torch

from onebeat.kernels import int8_matmul, tuning
from onebeat.kernels.backend import Facts
from onebeat.kernels.tuning import MatmulConfig

TILES = {
    "plain": MatmulConfig(16, 32, 32, 4, 1, split_k=1),
    "split": MatmulConfig(16, 32, 32, 4, 1, split_k=3),
    "swapped": MatmulConfig(16, 64, 32, 4, 1, swap=True, split_k=1),
    "swapped and split": MatmulConfig(32, 64, 64, 4, 1, swap=True, split_k=2),
    "persistent through TMA": MatmulConfig(32, 32, 32, 4, 1, tma=True, persistent=True, split_k=1, group_m=2),
    "wide": MatmulConfig(64, 256, 64, 4, 1, split_k=1),
}


def make(rows, columns, depth, device):
    a = torch.randint(-127, 128, (rows, depth), dtype=torch.int8, device=device)
    weight = torch.randint(-127, 128, (columns, depth), dtype=torch.int8, device=device)
    return a, torch.rand(rows, device=device) / 100, weight, torch.rand(columns, device=device) / 100


@pytest.mark.parametrize("config", TILES.values(), ids=TILES.keys())
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 40, 96), (5, 72, 160), (123, 136, 208)])
def test_sums_are_exact(config, rows, columns, depth, device, gpu, poisoned):
    a, _, weight, _ = make(rows, columns, depth, device)
    ones = torch.ones(max(rows, columns), device=device)
    out = poisoned(rows, columns)
    int8_matmul.plan(a, ones[:rows], weight, ones[:columns], out, config=config, gpu=gpu).run()
    assert torch.equal(out.double(), int8_matmul.exact_sums(a, weight))


def test_the_largest_sums_are_exact(device, gpu, poisoned):
    a = torch.full((3, 1024), -128, dtype=torch.int8, device=device)
    weight = torch.full((32, 1024), -128, dtype=torch.int8, device=device)
    ones = torch.ones(32, device=device)
    out = poisoned(3, 32)
    int8_matmul.plan(a, ones[:3], weight, ones, out, config=TILES["split"], gpu=gpu).run()
    assert (out == 128 * 128 * 1024).all()


@pytest.mark.parametrize("config", TILES.values(), ids=TILES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("epilogue", ["bias", "residual", "both", "swiglu"])
def test_every_epilogue_agrees_with_float64(config, dtype, epilogue, device, gpu, poisoned, agree):
    a, a_scale, weight, weight_scale = make(37, 72, 96, device)
    bias = torch.randn(72, device=device).to(dtype) if epilogue in ("bias", "both") else None
    residual = torch.randn(37, 72, device=device).to(dtype) if epilogue in ("residual", "both") else None
    swiglu = epilogue == "swiglu"
    out = poisoned(37, 36 if swiglu else 72, dtype=dtype)
    int8_matmul.plan(
        a, a_scale, weight, weight_scale, out, bias=bias, residual=residual, swiglu=swiglu, config=config, gpu=gpu
    ).run()  # fmt: skip
    if swiglu:
        agree(out, int8_matmul.reference_swiglu(a, a_scale, weight, weight_scale), times=2)
    else:
        agree(out, int8_matmul.reference(a, a_scale, weight, weight_scale, bias=bias, residual=residual))


@pytest.mark.parametrize("swiglu", [False, True])
def test_bits_depend_neither_on_tiles_nor_on_rows(swiglu, device, gpu, poisoned):
    a, a_scale, weight, weight_scale = make(40, 136, 208, device)
    bias = None if swiglu else torch.randn(136, device=device)
    results = []
    for config in TILES.values():
        for rows in (40, 17, 1):
            out = poisoned(rows, 68 if swiglu else 136)
            int8_matmul.plan(
                a[:rows], a_scale[:rows], weight, weight_scale, out, bias=bias, swiglu=swiglu, config=config, gpu=gpu
            ).run()  # fmt: skip
            results.append(out)
    for out in results[1:]:
        assert torch.equal(out, results[0][: len(out)])


def hopper_configs():
    entries = {(entry.op, entry.config): entry for entry in tuning.table() if entry.arch == "sm_90"}
    return [entry for entry in entries.values() if isinstance(entry.config, MatmulConfig)]


@pytest.mark.parametrize("entry", hopper_configs(), ids=lambda entry: f"{entry.op} {entry.rows_to}")
def test_the_tables_tiles_compute_the_same(entry, device, gpu, poisoned):
    swiglu = entry.op == "int8_matmul_swiglu"
    a, a_scale, weight, weight_scale = make(70, 272, 272, device)
    out, plain = (poisoned(70, 136 if swiglu else 272) for _ in range(2))
    for target, config in ((out, entry.config), (plain, TILES["plain"])):
        int8_matmul.plan(a, a_scale, weight, weight_scale, target, swiglu=swiglu, config=config, gpu=gpu).run()
    assert torch.equal(out, plain)


def test_the_counters_of_split_sums_are_left_zero(device, gpu, poisoned, monkeypatch):
    counters = torch.zeros(64, dtype=torch.int32, device=device)
    monkeypatch.setattr(int8_matmul, "_arrivals", lambda where, tiles: counters)
    a, a_scale, weight, weight_scale = make(20, 72, 160, device)
    for _ in range(2):
        out = poisoned(20, 72)
        int8_matmul.plan(a, a_scale, weight, weight_scale, out, config=TILES["split"], gpu=gpu).run()
        assert not counters.any()


@pytest.mark.parametrize("rows", [1, 16, 64, 128, 512, 4096])
@pytest.mark.parametrize("shape", [(4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944), (960, 576)])
def test_splits_cover_the_depth_once(rows, shape):
    columns, depth = shape
    gpu = Facts("", "sm_90", 132)
    config = tuning.matmul_config("int8_matmul", gpu, tuning.row_bucket(rows), columns, depth)
    splits, part = int8_matmul.splits_of(config, rows, columns, depth, gpu)
    assert splits >= 1
    assert part % config.block_k == 0
    assert (splits - 1) * part < depth <= splits * part
