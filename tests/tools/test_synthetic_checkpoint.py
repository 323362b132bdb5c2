"""The generator writes what transformers loads, the same bytes for the same seed, in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from onebeat import Router
from onebeat.engine.config import FAMILIES, BackboneConfig, Family
from tests.engine.tiny_routers import tiny_config
from tools.synthetic_checkpoint import WEIGHT_DEVIATION, main, write_checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_every_family_without_a_word_on_missing_or_extra_weights(
    tmp_path: Path, family: Family
) -> None:
    write_checkpoint(tmp_path, tiny_config(family, query_heads=4, key_heads=2))
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.model_type == family
    assert BackboneConfig.load(tmp_path).family == family


def test_the_seed_decides_the_bytes_and_the_shards_do_not(tmp_path: Path) -> None:
    for name, seed, shard_bytes in (("a", 1, 2**31), ("b", 1, 10_000), ("c", 2, 2**31)):
        write_checkpoint(tmp_path / name, tiny_config(), seed=seed, shard_bytes=shard_bytes)
    a, c = (load_file(tmp_path / name / "model.safetensors") for name in "ac")
    shards = sorted((tmp_path / "b").glob("model-*.safetensors"))
    b = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert len(shards) > 5
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    embedding = "model.embed_tokens.weight"
    assert not torch.equal(a[embedding], c[embedding])
    assert a[embedding].float().std().item() == pytest.approx(WEIGHT_DEVIATION, rel=0.05)


def test_the_command_line_makes_a_router_that_routes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--hidden", "64", "--layers", "3", "--feed-forward", "80", "--heads", "2", "1", "96", "--vocab", "280"]
    assert main([str(tmp_path), "--family", "mistral", *shape, "--router", "--tap", "2"]) == 0
    assert "family='mistral'" in capsys.readouterr().out
    router = Router.from_pretrained(tmp_path)
    assert router.runner.layers == 2 and router.route("hello").model
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--vocab", "100"])


def test_a_large_checkpoint_needs_little_memory(tmp_path: Path) -> None:
    """300 MB are written by a process that grows by a few pieces of 32 MB."""
    code = (
        "import resource, sys; from tools.synthetic_checkpoint import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "shape = ['--hidden', '1024', '--layers', '4', '--feed-forward', '12288', '--heads', '4', '1', '64']\n"
        "main([sys.argv[1], *shape, '--vocab', '300'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (tmp_path / "model.safetensors").stat().st_size > 300e6
    assert int(done.stdout.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024) < 150e6
