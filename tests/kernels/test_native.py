"""The native int8 kernels: exact products, layers that agree with the torch path, and machines that cannot have
them."""

from __future__ import annotations

import ctypes
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebeat.engine import loading
from onebeat.engine.batch import pack
from onebeat.engine.cpu_layer import CpuInt8Layer
from onebeat.engine.native_layer import NativeInt8Layer
from onebeat.kernels.cpu import native
from onebeat.kernels.cpu.hadamard import hadamard_block
from onebeat.kernels.cpu.native.structures import Rows, gates_beside_ups, product
from onebeat.kernels.cpu.quantize import quantize_rows
from tests.engine.tiny_models import LLAMA3_ROPE, backbone_of, build, prompt

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"hidden_size": 384, "intermediate_size": 172}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "llama biased": ("llama", {"head_dim": 96, "attention_bias": True, "hidden_size": 102}),
    "llama scaled": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama one key head": ("llama", {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1}),
    "llama ungrouped": ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "mistral": ("mistral", {"sliding_window": 19}),
    "mistral window over a block": ("mistral", {"sliding_window": 65}),
}
LENGTHS = (1, 33, 5, 150, 64)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> native.Native:
    found = native.native_kernels(tmp_path_factory.mktemp("kernels"))
    if found.library is None:
        pytest.skip(found.reason)
    return found


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test found out about its own folder is no other test's answer."""
    yield
    native.native_kernels.cache_clear()


def states(name: str, found: native.Native, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, ...]:
    family, changes = FAMILIES[name]
    monkeypatch.setattr(loading, "native_kernels", lambda folder: found)
    backbone = backbone_of(build(family, **changes), "int8", taps=[1, 3])
    kind = CpuInt8Layer if found.library is None else NativeInt8Layer
    assert all(isinstance(layer, kind) for layer in backbone.layers)
    return backbone.forward(pack([prompt(tokens, tokens) for tokens in LENGTHS]))


def worst_row(own: Tensor, reference: Tensor) -> float:
    """The largest error of a row as a share of the row's norm."""
    return float(((own - reference).norm(dim=1) / reference.norm(dim=1)).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_as_near_to_float32_as_the_torch_path(
    name: str, built: native.Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, changes = FAMILIES[name]
    batch = pack([prompt(tokens, tokens) for tokens in LENGTHS])
    references = backbone_of(build(family, **changes), "float32", taps=[1, 3]).forward(batch)
    through_torch = states(name, native.Native(None, "not wanted"), monkeypatch)
    for own, other, reference in zip(states(name, built, monkeypatch), through_torch, references, strict=True):
        assert 0 < worst_row(own, reference) < 1.25 * worst_row(other, reference)


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_processors_without_bfloat16_products_come_close(
    name: str, built: native.Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_flags", lambda: native.FLAGS)
    plain = native.native_kernels(tmp_path)
    for own, other in zip(states(name, plain, monkeypatch), states(name, built, monkeypatch), strict=True):
        assert float((own - other).norm() / other.norm()) < 0.03


@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(1, 1, 1), (7, 33, 65), (8, 32, 4), (19, 100, 577), (97, 65, 130)]
)
def test_products_are_exact(rows: int, columns: int, depth: int, built: native.Native) -> None:
    generator = torch.Generator().manual_seed(rows)
    left = torch.randint(-127, 128, (rows, depth), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (columns, depth), dtype=torch.int8, generator=generator)
    left[0], weight[-1] = -127, 127
    assert built.library is not None
    expected = left.double() @ weight.double().t()
    assert torch.equal(product(built.library, left, weight), expected.float())


@pytest.mark.parametrize("width", [16, 40, 48, 96, 576, 1536])
def test_rows_are_transformed_and_quantised_to_the_bits_of_sums_in_pairs(width: int, built: native.Native) -> None:
    assert built.library is not None
    rows = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    rows[1], rows[2, width // 3] = 0, 900.0
    stride, block = -(-width // 64) * 64, hadamard_block(width)
    bytes_, scale, sums = torch.empty(7, stride, dtype=torch.int8), torch.empty(7), torch.empty(7, dtype=torch.int32)
    held = Rows(bytes_.data_ptr(), stride, scale.data_ptr(), sums.data_ptr())
    mixed, number, real = torch.empty(stride), ctypes.c_int64, ctypes.c_float
    for index, row in enumerate(rows):
        place = ctypes.c_void_p(row.data_ptr())
        built.library.quantize_row(
            *(place, None, real(0), number(width), number(block)),
            *(ctypes.c_void_p(mixed.data_ptr()), ctypes.byref(held), number(index)),
        )
    expected, expected_scale = quantize_rows(rows, block)
    assert torch.equal(bytes_[:, :width], expected)
    assert torch.equal(scale, expected_scale.clamp_min(1e-30 / 127))
    assert torch.equal(sums, expected.sum(1, dtype=torch.int32))


def test_the_largest_depth_of_a_known_model_does_not_overflow(built: native.Native) -> None:
    left, weight = torch.full((2, 29568), 127, dtype=torch.int8), torch.full((1, 29568), 127, dtype=torch.int8)
    assert built.library is not None
    assert product(built.library, left, weight).tolist() == [[127.0 * 127 * 29568]] * 2


def test_gates_and_ups_alternate_by_sixteens() -> None:
    interleaved = torch.stack([torch.arange(40), 100 + torch.arange(40)], dim=1).flatten()
    arranged = gates_beside_ups(interleaved)
    assert arranged.tolist()[:34] == [*range(16), *range(100, 116), 16, 17]
    assert arranged.tolist()[64:] == [*range(32, 40), *[0] * 8, *range(132, 140), *[0] * 8]


def test_a_compiled_library_is_kept_whole_and_opened_again(built: native.Native, tmp_path: Path) -> None:
    assert native.native_kernels(tmp_path).library is not None
    [kept] = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    native.native_kernels.cache_clear()
    assert native.native_kernels(tmp_path).library is not None
    assert kept.stat().st_mtime_ns == written


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("echo 'error: unrecognized option -mavx512vnni' >&2; exit 1", "unrecognized option"),
        ("exit 0", "do not load"),
    ],
)
def test_a_compiler_that_cannot_leaves_nothing_behind_and_says_why(
    compiler: str, reason: str, built: native.Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", script(tmp_path / "cc", compiler))
    found = native.native_kernels(tmp_path / "kernels")
    assert found.library is None
    assert reason in found.reason
    assert not list((tmp_path / "kernels").iterdir())


def test_no_compiler_at_all_is_one_sentence(
    built: native.Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert native.native_kernels(tmp_path / "kernels").reason.startswith("no C compiler was found; install gcc")


def test_a_folder_that_cannot_be_written_still_gets_kernels_for_this_process(
    built: native.Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert native.native_kernels(tmp_path / "file" / "kernels").library is not None


def test_what_computes_a_wrong_product_is_not_kept(
    built: native.Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "self_check", lambda library: False)
    found = native.native_kernels(tmp_path)
    assert "wrong product" in found.reason
    assert not list(tmp_path.iterdir())
