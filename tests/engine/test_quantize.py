"""int8 copies: what they cost, that outliers are smoothed, that a damaged or half-written one is never used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from onebeat import Router
from onebeat.cli import main
from onebeat.engine import quantize
from onebeat.engine.batch import pack
from onebeat.engine.errors import WeightError
from onebeat.engine.int8_file import Int8File, int8_writer, word_sum
from onebeat.engine.loading import load_backbone
from onebeat.engine.quantize import MatrixError, load_int8_backbone, product_error, write_int8
from tests.engine.tiny_models import StateDict, backbone_of, build, config_of, prompt
from tests.engine.tiny_routers import edit_json, tiny_router

PROMPTS = [prompt(60, 1), prompt(1, 2), prompt(31, 3)]


def outlying(family: str, **changes: Any) -> Any:
    """A model with outliers: a few channels of activations are 40 times larger, and their weights as much smaller."""
    model = build(family, **changes)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            into_attention = (attention.q_proj, attention.k_proj, attention.v_proj)
            into_mlp = (mlp.gate_proj, mlp.up_proj)
            for norm, matrices in ((layer.input_layernorm, into_attention), (layer.post_attention_layernorm, into_mlp)):
                norm.weight[::31] *= 40
                for matrix in matrices:
                    matrix.weight[:, ::31] /= 40
            mlp.up_proj.weight[::37] *= 40
            mlp.down_proj.weight[:, ::37] /= 40
    return model


def quantized(model: Any, path: Path, **options: Any) -> tuple[list[MatrixError], Int8File]:
    lines: list[MatrixError] = []
    write_int8(StateDict(model.state_dict()), config_of(model), 3, PROMPTS, path, report=lines.append, **options)
    return lines, Int8File(path)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_copy_stays_near_the_float_model_in_spite_of_outliers(family: str, tmp_path: Path) -> None:
    model = outlying(family, **({"hidden_size": 384} if family == "qwen2" else {}))
    lines, copy = quantized(model, tmp_path / "copy.safetensors")
    exact, plain = backbone_of(model, "float32", taps=[3]), backbone_of(model, "int8", taps=[3])
    smooth = load_backbone(config_of(model), copy, [3], "int8", matrices=copy)
    batch = pack([prompt(100, 9)])
    [theirs], [ours], [without] = exact.forward(batch), smooth.forward(batch), plain.forward(batch)
    error, plain_error = (float((state - theirs).norm() / theirs.norm()) for state in (ours, without))
    assert error < 0.05
    assert error < 0.7 * plain_error
    assert len(lines) == 12
    assert all(0 < line.error < 0.05 and not line.kept for line in lines)
    smoothed = [line for line in lines if "attention_out" not in line.name]
    assert sum(line.error for line in smoothed) < 0.7 * sum(line.plain_error for line in smoothed)


def test_matrices_above_the_threshold_stay_bfloat16(tmp_path: Path) -> None:
    model = outlying("llama")
    errors, _ = quantized(model, tmp_path / "all.safetensors")
    threshold = sorted(line.error for line in errors)[-3]
    lines, copy = quantized(model, tmp_path / "kept.safetensors", keep_above=threshold)
    kept = {line.name for line in lines if line.kept}
    assert kept == {line.name for line in errors if line.error > threshold}
    assert len(kept) == 2
    for line in lines:
        assert (copy.tensor(line.name).dtype == torch.bfloat16) == line.kept
        assert (copy.matrix(line.name).scale is None) == line.kept


def test_the_copy_is_made_once_then_read(tmp_path: Path) -> None:
    model = build("llama")
    weights = StateDict(model.state_dict())
    first = load_int8_backbone(weights, config_of(model), [1, 3], PROMPTS, tmp_path)
    [path] = tmp_path.iterdir()
    written = path.stat().st_ino
    second = load_int8_backbone(weights, config_of(model), [1, 3], PROMPTS, tmp_path)
    assert path.stat().st_ino == written
    batch = pack([prompt(20, 5)])
    for ours, theirs in zip(first.forward(batch), second.forward(batch), strict=True):
        assert torch.equal(ours, theirs)


def test_another_checkpoint_never_finds_the_copy(tmp_path: Path) -> None:
    model = build("llama")
    load_int8_backbone(StateDict(model.state_dict()), config_of(model), [1], PROMPTS, tmp_path)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    load_int8_backbone(StateDict(model.state_dict()), config_of(model), [1], PROMPTS, tmp_path)
    load_int8_backbone(StateDict(model.state_dict()), config_of(model), [1], PROMPTS[:1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_copies_that_nobody_reads_are_forgotten(tmp_path: Path) -> None:
    model = build("llama")
    weights = StateDict(model.state_dict())
    load_int8_backbone(weights, config_of(model), [1], PROMPTS, tmp_path)
    [old] = tmp_path.iterdir()
    os.utime(old, (0, 0))
    load_int8_backbone(weights, config_of(model), [1], PROMPTS, tmp_path)
    assert old.stat().st_mtime > 0
    os.utime(old, (0, 0))
    load_int8_backbone(weights, config_of(model), [2], PROMPTS, tmp_path)
    assert not old.exists()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("where", ["header", "matrix", "end"])
def test_a_damaged_copy_is_made_again(where: str, tmp_path: Path) -> None:
    model = build("llama")
    weights = StateDict(model.state_dict())
    load_int8_backbone(weights, config_of(model), [1], PROMPTS, tmp_path)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    entry = Int8File(path)._file.entries["layers.0.down"]
    damaged = bytearray(whole)
    if where == "end":
        del damaged[-100:]
    else:
        damaged[20 if where == "header" else entry.start + 77] ^= 0x40
    path.write_bytes(damaged)
    if where == "matrix":
        with pytest.raises(WeightError, match=r"'layers.0.down' sum to -?\d+ and -?\d+ was written"):
            Int8File(path).matrix("layers.0.down")
    load_int8_backbone(weights, config_of(model), [1], PROMPTS, tmp_path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), int8_writer(tmp_path / "copy.safetensors", 1) as writer:
        writer.add("a", torch.ones(3))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    model = build("llama")
    weights = StateDict(model.state_dict())
    backbone = load_int8_backbone(weights, config_of(model), [1], PROMPTS, tmp_path / "file" / "int8")
    assert backbone.forward(pack([[1, 2]]))[0].shape == (2, 96)


def test_the_file_is_one_that_the_safetensors_library_reads(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(7, dtype=torch.int8), "b": torch.ones(3, 5), "c": torch.ones(1, dtype=torch.bfloat16)}
    path = tmp_path / "copy.safetensors"
    with int8_writer(path, len(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert int(file.get_tensor(f"check.{name}")) == word_sum(tensor)


def test_a_copy_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    quantized(build("llama"), tmp_path / "copy.safetensors")
    tensors = load_file(tmp_path / "copy.safetensors")
    del tensors["format"]
    save_file(tensors, tmp_path / "old.safetensors")
    with pytest.raises(WeightError, match="of format before 3 and this onebeat reads format 3; write it again"):
        Int8File(tmp_path / "old.safetensors")


def test_what_smoothing_leaves_is_spread_by_the_transform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token's outlier in a channel that is small for all others: no factor of that channel can help both."""
    rows, weight = torch.randn(64, 128), torch.randn(96, 128)
    rows[5, 17] = 300.0
    spread = product_error(rows, weight, weight)
    monkeypatch.setattr(quantize, "hadamard_block", lambda width: 1)
    assert spread < 0.6 * product_error(rows, weight, weight)


def test_every_word_counts() -> None:
    tensor = torch.zeros(101, dtype=torch.int8)
    for index in (0, 50, 99, 100):
        changed = tensor.clone()
        changed[index] = 1
        assert word_sum(changed) != word_sum(tensor)


def test_quantize_refuses_what_would_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    assert main(["quantize", str(tmp_path), str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path), str(tmp_path / "new"), "--keep-above", "-1"]) == 2
    assert "--keep-above is -1.0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_quantize_takes_the_chat_template_along_and_decides_as_the_router_does(tmp_path: Path) -> None:
    source = tiny_router(tmp_path / "source")
    edit_json(source / "tokenizer_config.json", lambda found: found.pop("chat_template", None))
    edit_json(source / "router.json", lambda found: found.update(template="chat"))
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    assert main(["quantize", str(source), str(tmp_path / "copy")]) == 0
    names = {path.name for path in source.iterdir()} - {"model.safetensors"}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names | {"int8.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"source", "copy"}
    ours, theirs = Router.from_pretrained(tmp_path / "copy"), Router.from_pretrained(source)
    assert ours.prepare("hello").token_ids == theirs.prepare("hello").token_ids
    # Calibrated on the same texts, framed by another template: near, and not the same bits.
    assert abs(ours.score(["hello"]).quality - theirs.score(["hello"]).quality).max() < 0.02


def test_a_quantize_that_is_interrupted_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_router(tmp_path / "source")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onebeat.commands.quantize.shutil.copyfile", interrupted)
    assert main(["quantize", str(source), str(tmp_path / "copy")]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_another_chat_template_is_another_fingerprint(tmp_path: Path) -> None:
    source = tiny_router(tmp_path / "source")
    before = Router.from_pretrained(source).fingerprint
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert Router.from_pretrained(source).fingerprint != before
