"""Writes a checkpoint with random weights: any of the four families, any shape, seeded, in little memory.

    python -m tools.synthetic_checkpoint FOLDER --preset qwen2.5-7b --router
    python -m tools.synthetic_checkpoint FOLDER --family llama --hidden 64 --layers 2 --feed-forward 96 --heads 4 2 16

The same seed writes the same bytes, whatever the shard size. The tokenizer has one token per byte (and a few control
tokens), so that every text can be read; `--router` adds a router.json and a random head.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from onebeat.engine.config import FAMILIES, BackboneConfig, RopeScaling
from onebeat.engine.weights import layer_parts

WEIGHT_DEVIATION = 0.02
PIECE_NUMBERS = 2**24
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[[1]]", "[[2]]", "[[3]]", "[[4]]", "[[5]]"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FLEET = [("large", 5.0, 25.0), ("middle", 1.0, 5.0), ("small", 0.1, 0.4), ("tiny", 0.02, 0.05)]
"""Made-up models with made-up prices for `--router`: name, dollars per million tokens in and out."""

QWEN2 = BackboneConfig("qwen2", 151936, 896, 24, 4864, 14, 2, 64, 32768, 1e-6, 1e6, attention_bias=True)
LLAMA = BackboneConfig("llama", 49152, 576, 30, 1536, 9, 3, 64, 8192, 1e-5, 1e5, tied_embeddings=True)
TINY = BackboneConfig("llama", 512, 64, 3, 128, 1, 1, 64, 4096, 1e-5, 1e4, tied_embeddings=True)
"""For tests and benches that need a backbone which is read, not a good one."""
PRESETS: dict[str, BackboneConfig] = {
    "smollm2-135m": LLAMA,
    "qwen2.5-0.5b": replace(QWEN2, tied_embeddings=True),
    "qwen2.5-7b": replace(
        QWEN2,
        vocab_size=152064,
        hidden_size=3584,
        layers=28,
        feed_forward=18944,
        query_heads=28,
        key_heads=4,
        head_size=128,
    ),
    "qwen3-0.6b": BackboneConfig(
        "qwen3", 151936, 1024, 28, 3072, 16, 8, 128, 40960, 1e-6, 1e6, qk_norm=True, tied_embeddings=True
    ),
    "llama-3.1-8b": BackboneConfig(
        "llama", 128256, 4096, 32, 14336, 32, 8, 128, 131072, 1e-5, 5e5, RopeScaling(8.0, 1.0, 4.0, 8192)
    ),
    "mistral-7b": BackboneConfig("mistral", 32000, 4096, 32, 14336, 32, 8, 128, 32768, 1e-5, 1e4, window=4096),
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]


def write_checkpoint(
    folder: Path, config: BackboneConfig, *, seed: int = 0, dtype: str = "bfloat16", shard_bytes: int = 2**31
) -> None:
    """config.json, tokenizer and weights of a random model. A shard holds at least one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", hugging_face_config(config) | {"torch_dtype": dtype})
    write_tokenizer(folder)
    item_bytes = getattr(torch, dtype).itemsize
    shards: list[list[Planned]] = [[]]
    for planned in plan(config):
        size = prod(planned.shape) * item_bytes
        if shards[-1] and sum(prod(other.shape) * item_bytes for other in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(planned)
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, seed, dtype, item_bytes)
        weight_map |= {planned.name: name for planned in shard}
    if len(shards) > 1:
        total = sum(prod(planned.shape) * item_bytes for planned in plan(config))
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def write_router(folder: Path, *, layer: int, pooling: str = "mean", seed: int = 0, models: int = len(FLEET)) -> None:
    """A router.json and a random linear head over made-up models, beside a checkpoint that is already there."""
    from safetensors.numpy import save_file

    config = BackboneConfig.load(folder)
    columns = [
        {
            "name": FLEET[index][0] if index < len(FLEET) else f"model-{index}",
            "input_usd_per_million": FLEET[index % len(FLEET)][1],
            "output_usd_per_million": FLEET[index % len(FLEET)][2],
            "mean_output_tokens": 300.0,
        }
        for index in range(models)
    ]
    write_json(
        folder / "router.json",
        {
            "format_version": 1,
            "name": "synthetic",
            "taps": [{"layer": layer, "pooling": pooling}],
            "template": "chat",
            "max_prompt_tokens": min(2048, config.max_positions),
            "columns": columns,
            "head": {"kind": "linear"},
        },
    )
    random = np.random.Generator(np.random.SFC64(seed))
    width = config.hidden_size
    tensors = {
        "norm.mean": np.zeros(width),
        "norm.scale": np.full(width, 0.5),
        "quality.weight": random.normal(0, width**-0.5, (models, width)),
        "quality.bias": random.normal(0, 1, models),
        "length.weight": random.normal(0, 0.2 * width**-0.5, (models, width)),
        "length.bias": np.full(models, 5.5),
    }
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, folder / "router_head.safetensors")


def plan(config: BackboneConfig) -> Iterator[Planned]:
    """Every tensor of the model, in the order of a Hugging Face checkpoint."""
    yield Planned("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    for layer in range(config.layers):
        for group in layer_parts(config, layer).values():
            yield from (Planned(f"model.{part.name}", part.shape) for part in group)
    yield Planned("model.norm.weight", (config.hidden_size,))
    if not config.tied_embeddings:
        yield Planned("lm_head.weight", (config.vocab_size, config.hidden_size))


def random_numbers(planned: Planned, seed: int, dtype: str) -> Iterator[torch.Tensor]:
    """A tensor's numbers, flat and in pieces: norms near 1, everything else uniform around 0.

    Seeded by the name, so that shards do not matter; in pieces, because an embedding alone may be a gigabyte.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed} {planned.name}".encode()).digest()[:8], "little")
    random, count = np.random.Generator(np.random.SFC64(key)), prod(planned.shape)
    for first in range(0, count, PIECE_NUMBERS):
        raw = random.integers(-(2**15), 2**15, min(PIECE_NUMBERS, count - first), dtype=np.int16)
        scaled = torch.from_numpy(raw).to(getattr(torch, dtype)) * (WEIGHT_DEVIATION * 3**0.5 / 2**15)
        yield scaled + 1 if planned.name.endswith("norm.weight") else scaled


def hugging_face_config(config: BackboneConfig) -> dict[str, Any]:
    """The config.json that transformers would load this shape from."""
    names = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral"}
    found: dict[str, Any] = {
        "architectures": [f"{names[config.family]}ForCausalLM"],
        "model_type": config.family,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
    }
    if config.family in ("llama", "qwen3"):
        found["attention_bias"] = config.attention_bias
    if config.family == "mistral":
        found["sliding_window"] = config.window
    if config.rope_scaling is not None:
        found["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_positions,
        }
    return found


def write_tokenizer(folder: Path) -> None:
    """One token per byte, and the control tokens of a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", names | {"chat_template": CHAT_TEMPLATE})


def write_json(path: Path, value: object) -> None:
    """Indented, as people read it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_shard(file: BinaryIO, shard: Sequence[Planned], seed: int, dtype: str, item_bytes: int) -> None:
    """A safetensors file: length of the header, header, data."""
    header, end = {}, 0
    for planned in shard:
        begin, end = end, end + prod(planned.shape) * item_bytes
        header[planned.name] = {"dtype": DTYPES[dtype], "shape": planned.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for planned in shard:
        for piece in random_numbers(planned, seed, dtype):
            file.write(piece.view(torch.uint8).numpy().data)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default=None)
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--vocab", type=int, help="rows of the embedding; at least 264 for the byte tokenizer")
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--feed-forward", type=int)
    parser.add_argument("--heads", type=int, nargs=3, metavar=("QUERY", "KEY", "SIZE"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shard-bytes", type=int, default=2**31)
    parser.add_argument("--router", action="store_true", help="add a router.json and a random head")
    parser.add_argument("--tap", type=int, help="the head's layer; the last by default")
    args = parser.parse_args(arguments)
    config = PRESETS[args.preset or "smollm2-135m"]
    if args.family:
        config = replace(
            config,
            family=args.family,
            attention_bias=args.family == "qwen2",
            qk_norm=args.family == "qwen3",
            window=4096 if args.family == "mistral" else None,
        )
    asked = {"vocab_size": args.vocab, "hidden_size": args.hidden, "layers": args.layers}
    asked["feed_forward"] = args.feed_forward
    if args.heads:
        asked |= dict(zip(("query_heads", "key_heads", "head_size"), args.heads, strict=True))
    config = replace(config, **{key: value for key, value in asked.items() if value is not None})
    if config.vocab_size < 256 + len(CONTROL_TOKENS):
        parser.error(f"--vocab is {config.vocab_size}; the byte tokenizer needs {256 + len(CONTROL_TOKENS)} or more.")
    write_checkpoint(args.folder, config, seed=args.seed, dtype=args.dtype, shard_bytes=args.shard_bytes)
    if args.router:
        write_router(args.folder, layer=config.layers if args.tap is None else args.tap, seed=args.seed)
    print(f"{args.folder}: {config}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
