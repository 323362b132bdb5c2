"""Weights are what the file holds, fused as the kernels want; a damaged checkpoint is refused, naming what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onebeat.engine.checkpoint_files import content_sha256
from onebeat.engine.config import BackboneConfig, Family
from onebeat.engine.errors import CheckpointError, FormatError, WeightError
from onebeat.engine.safetensors_file import SafetensorsFile
from onebeat.engine.weights import Weights
from tests.engine.tiny_routers import edit_json, edit_tensors, tiny_config
from tools.synthetic_checkpoint import write_checkpoint

INDEX = "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, tiny_config("qwen2"))
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, tiny_config("qwen2"), shard_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


def opened(folder: Path, layers: int = 2) -> Weights:
    return Weights(folder, BackboneConfig.load(folder), layers)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_every_tensor_is_what_the_file_holds_fused(tmp_path: Path, family: Family) -> None:
    config = tiny_config(family, query_heads=4, key_heads=2)
    write_checkpoint(tmp_path, config, dtype="float32")
    stored = load_file(tmp_path / "model.safetensors")
    weights = opened(tmp_path)
    at = "model.layers.1."
    qkv = torch.cat([stored[f"{at}self_attn.{which}_proj.weight"] for which in "qkv"])
    assert torch.equal(weights.tensor("layers.1.qkv"), qkv)
    gate, up = (stored[f"{at}mlp.{which}_proj.weight"] for which in ("gate", "up"))
    gate_up = weights.tensor("layers.1.gate_up")
    assert torch.equal(gate_up[0::2], gate) and torch.equal(gate_up[1::2], up)
    assert torch.equal(weights.tensor("layers.1.down"), stored[f"{at}mlp.down_proj.weight"])
    assert torch.equal(weights.tensor("embedding"), stored["model.embed_tokens.weight"])
    assert torch.equal(weights.tensor("output"), stored["lm_head.weight"])
    assert torch.equal(weights.rows("output", [5, 0]), stored["lm_head.weight"][[5, 0]])
    assert ("layers.0.qkv_bias" in weights) == (family == "qwen2")
    assert ("layers.0.q_norm" in weights) == (family == "qwen3")
    for name in weights.names():
        assert weights.tensor(name).shape == weights.shape(name)


def test_shards_hold_the_same_as_one_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("sharded")
    write_checkpoint(other, tiny_config("qwen2"), shard_bytes=20_000)
    whole, parts = opened(folder), opened(other)
    assert whole.names() == parts.names()
    assert all(torch.equal(whole.tensor(name), parts.tensor(name)) for name in whole.names())


def test_only_layers_up_to_the_tap_are_needed(folder: Path) -> None:
    """A later layer's tensors may even be missing."""

    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    edit_tensors(folder / "model.safetensors", drop)
    assert "layers.1.qkv" not in opened(folder, layers=1)
    with pytest.raises(WeightError, match=r"has no tensor 'model\.layers\.1\."):
        opened(folder, layers=2)


def test_a_checkpoint_without_the_model_prefix_is_read(folder: Path) -> None:
    expected = opened(folder).tensor("layers.0.qkv")

    def strip(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(folder / "model.safetensors", strip)
    assert torch.equal(opened(folder).tensor("layers.0.qkv"), expected)


def test_parts_of_different_dtypes_are_joined_in_the_wider(folder: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update({name: tensors[name].float()}))
    assert opened(folder).tensor("layers.0.qkv").dtype == torch.float32


DOWN = "model.layers.0.mlp.down_proj.weight"
DAMAGE: list[tuple[Callable[[Tensors], object], str]] = [
    (lambda t: t.pop(DOWN), rf"has no tensor '{DOWN}' \[32, 48\]"),
    (lambda t: t.update(extra=torch.zeros(2)), r"holds 'extra', which a qwen2 backbone of 2 layers does not have"),
    (
        lambda t: t.update({"model.layers.2.input_layernorm.weight": torch.ones(32)}),
        r"holds 'model\.layers\.2\.input_layernorm\.weight', which a qwen2 backbone of 2 layers",
    ),
    (
        lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(32)}),
        r"o_proj\.bias', which a qwen2 backbone",
    ),
    (
        lambda t: t.update({DOWN: t[DOWN][:, :-1].clone()}),
        rf"'{DOWN}' as \[32, 47\] and config\.json calls for \[32, 48\]",
    ),
    (lambda t: t.update({DOWN: t[DOWN].to(torch.int8)}), rf"'{DOWN}' as \"I8\"; weights are read from BF16, F16, F32"),
    (lambda t: t.update({DOWN: t[DOWN].double()}), rf"'{DOWN}' as \"F64\""),
]


@pytest.mark.parametrize(("change", "sentence"), DAMAGE)
def test_a_tensor_that_does_not_fit_is_named(folder: Path, change: Callable[[Tensors], object], sentence: str) -> None:
    edit_tensors(folder / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=sentence):
        opened(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("place", [0, 777, 32 * 48 - 1])
def test_a_number_that_is_not_finite_is_found(folder: Path, value: float, dtype: torch.dtype, place: int) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[DOWN] = tensors[DOWN].to(dtype)
        tensors[DOWN].view(-1)[place] = value

    edit_tensors(folder / "model.safetensors", spoil)
    weights = opened(folder)
    with pytest.raises(WeightError, match=rf"holds {value} in '{DOWN}' \(element {place} of 1536\)"):
        weights.tensor("layers.0.down")


def test_a_file_cut_anywhere_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for length in (0, 3, 8, 20, 8 + header - 1, 8 + header, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightError, match=r"model\.safetensors is (truncated|not a whole safetensors file)"):
            opened(folder)


HEADERS: list[Any] = [
    [],
    {"a": 1},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": "12", "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
    {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4 * 10**30]}},
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(WeightError):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_data_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    text += b" " * ((3 - len(text)) % 4)
    numbers = torch.tensor([1.5, -2.0, 3.25])
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + numbers.numpy().tobytes())
    assert torch.equal(SafetensorsFile(tmp_path / "a.safetensors").read("a"), numbers)


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    save_file({"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.read("scalar").item() == 2.5
    assert file.read("empty").shape == (0, 3)


def test_an_index_that_names_a_missing_shard_is_refused(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(WeightError, match=rf"names the shard '{shard.name}', which is not in"):
        opened(sharded)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3, "pickle.bin"])
def test_an_index_that_points_outside_the_folder_is_refused(sharded: Path, name: object) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    with pytest.raises(FormatError, match=r"a shard must be a \.safetensors file inside"):
        opened(sharded)


def test_an_index_and_its_shards_must_agree(sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop("model.norm.weight"))
    with pytest.raises(WeightError, match=r"holds 'model\.norm\.weight', which .* places in null"):
        opened(sharded)
    edit_json(
        sharded / INDEX,
        lambda index: index["weight_map"].update(
            {"model.norm.weight": index["weight_map"]["model.embed_tokens.weight"]}
        ),
    )
    with pytest.raises(WeightError, match=r"places 'model\.norm\.weight' in .*, which does not hold it"):
        opened(sharded)
    edit_json(sharded / INDEX, lambda index: index.update(weight_map=[]))
    with pytest.raises(FormatError, match=r"weight_map of \[\]"):
        opened(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "model.PT", "head.pkl", "x.ckpt"])
def test_a_pickle_beside_the_safetensors_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(FormatError, match=rf"{name} is a pickle, which can run code .*remove it"):
        opened(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config())
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    with pytest.raises(FormatError, match=r"holds neither model\.safetensors nor .*consolidated\.safetensors"):
        opened(tmp_path)


def test_the_hash_follows_the_contents(folder: Path) -> None:
    before = opened(folder).sha256
    assert opened(folder).sha256 == before
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors[DOWN].view(-1)[0].add_(1))
    assert opened(folder).sha256 != before


def test_a_remembered_hash_is_used_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onebeat.engine.checkpoint_files.REMEMBERED_BYTES", 1)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = content_sha256([path], tmp_path / "cache")
    (note,) = (tmp_path / "cache" / "hashes").iterdir()
    note.write_text(note.read_text().replace(json.loads(note.read_text())["sha256"], "ab" * 32))
    assert content_sha256([path], tmp_path / "cache") != first, "the note was not used"
    path.write_bytes(b"two")
    assert content_sha256([path], tmp_path / "cache2") == content_sha256([path], tmp_path / "cache")
    note.write_text("{")
    assert content_sha256([path], tmp_path / "cache2") == content_sha256([path], tmp_path / "cache")


def test_reading_never_holds_more_than_one_tensor(tmp_path: Path) -> None:
    """128 MB of weights of which the largest tensor has 20 MB: the process grows by much less than the file."""
    config = tiny_config(vocab_size=300, hidden_size=1024, feed_forward=10240, layers=2)
    write_checkpoint(tmp_path, config, shard_bytes=2**26)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size > 120e6
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from onebeat.engine.config import BackboneConfig; from onebeat.engine.weights import Weights\n"
        "folder = Path(sys.argv[1]); weights = Weights(folder, BackboneConfig.load(folder), 2)\n"
        "weights.tensor('layers.0.input_norm'); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in weights.names(): weights.tensor(name)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 90e6
