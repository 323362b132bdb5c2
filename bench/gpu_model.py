"""A whole router of Qwen2.5-7B's shape on synthetic weights, from token ids to scores, beside transformers in bf16.

Enters: a device and a model shape. Leaves: wall-clock medians by prompt length, and the memory used. Weights are
made on the device, so nothing is downloaded; what a forward takes does not depend on their values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_timing import wall_ms
from torch import Tensor

from onebeat.engine.batch import pack
from onebeat.engine.config import BackboneConfig
from onebeat.engine.layer import Matrix
from onebeat.engine.loading import load_backbone
from onebeat.engine.runner import Runner
from onebeat.kernels.pool import head
from onebeat.kernels.shapes import ModelShape

PROMPTS = ([128], [512], [2048], [128] * 64)
COLUMNS = 16
TARGET_MS = {(1, 128): 2.4, (1, 512): 6.5, (1, 2048): 26.0, (64, 128): 95.0}
"""To reach, medians on an H200."""
FASTER_TARGET = 1.6
"""Than the best bf16 baseline of the same run, at each length."""
MEMORY_TARGET_BYTES = 9e9
OURS = "onebeat int8"


def config_of(shape: ModelShape) -> BackboneConfig:
    """The engine's config of the shape."""
    return BackboneConfig(
        family="qwen2", vocab_size=shape.vocabulary, hidden_size=shape.hidden, layers=shape.layers,
        feed_forward=shape.feed_forward, query_heads=shape.query_heads, key_heads=shape.key_heads,
        head_size=shape.head_size, max_positions=32768, norm_eps=1e-6, rope_theta=1e6, attention_bias=shape.qkv_bias,
    )  # fmt: skip


class Synthetic:
    """Weights and int8 matrices by the engine's names, made on the device as they are asked for."""

    def __init__(self, shape: ModelShape, device: torch.device) -> None:
        width = shape.hidden
        self._vectors = {"input_norm": width, "post_norm": width, "qkv_bias": shape.qkv}
        self._matrices = {"attention_out" if name == "out" else name: size for name, size in shape.matmuls.items()}
        self._shape, self._device = shape, device

    def __contains__(self, name: object) -> bool:
        last = str(name).split(".")[-1]
        return last in self._matrices or (last in self._vectors and (last != "qkv_bias" or self._shape.qkv_bias))

    def tensor(self, name: str) -> Tensor:
        """A norm's weight or a bias, or the embedding."""
        last = name.split(".")[-1]
        size = (self._shape.vocabulary, self._shape.hidden) if name == "embedding" else (self._vectors[last],)
        return torch.randn(size, device=self._device, dtype=torch.bfloat16) * 0.02 + (last.endswith("norm"))

    def matrix(self, name: str) -> Matrix:
        """int8 with a scale that keeps activations in range."""
        columns, depth = self._matrices[name.split(".")[-1]]
        weight = torch.randint(-127, 128, (columns, depth), dtype=torch.int8, device=self._device)
        return Matrix(weight, torch.full((columns,), 0.02 / 73, device=self._device))


def onebeat_calls(shape: ModelShape, device: torch.device) -> Callable[[list[int]], Callable[[], Tensor]]:
    """Makes, for prompt lengths, the call that an in-process caller would make: ids in host memory in, scores out."""
    source = Synthetic(shape, device)
    longest = max(max(lengths) for lengths in PROMPTS)
    backbone = load_backbone(
        config_of(shape), source, [shape.layers], "int8", device=device, matrices=source, max_positions=longest
    )  # fmt: skip
    runner = Runner(backbone, ["mean"])
    weight = torch.randn(2 * COLUMNS, shape.hidden, device=device)

    @torch.inference_mode()
    def make(lengths: list[int]) -> Callable[[], Tensor]:
        batch = pack([list(range(length)) for length in lengths] if shape.vocabulary > 4096 else _ids(lengths), device)
        chunks = [-(-length // 128) for length in lengths]
        tokens = torch.tensor(lengths, device=device)
        owner = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(chunks, device=device))

        def forward() -> Tensor:
            carries = runner.step(batch)
            if len(owner) > len(lengths):
                carries = torch.zeros(len(lengths), shape.hidden, device=device).index_add_(0, owner, carries)
            return head(runner.finish(carries, tokens), weight)

        ids = torch.randint(min(shape.vocabulary, 30000), (sum(lengths),), dtype=torch.int32)
        if device.type != "cuda":
            return lambda: forward()
        ids = ids.pin_memory()
        replay, scores = captured(forward)

        def call() -> Tensor:
            batch.token_ids.copy_(ids, non_blocking=True)
            replay()
            return scores.cpu()

        return call

    return make


def _ids(lengths: list[int]) -> list[list[int]]:
    return [[position % 100 for position in range(length)] for length in lengths]


def captured(forward: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The forward as a CUDA graph, and the tensor that each replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = forward()
    return graph.replay, scores


def transformers_calls(
    shape: ModelShape, device: torch.device, compiled: bool
) -> Callable[[list[int]], Callable[[], Tensor]]:
    """The same in transformers: bf16, SDPA, mean of the last states; one prompt, or a batch of equal lengths."""
    from transformers import Qwen2Config, Qwen2Model

    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers, num_attention_heads=shape.query_heads, num_key_value_heads=shape.key_heads,
        max_position_embeddings=32768, rms_norm_eps=1e-6, head_dim=shape.head_size, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Qwen2Model(config).eval()
        finally:
            torch.set_default_dtype(before)
    if compiled:
        for layer in model.layers:
            if device.type == "cuda":
                layer.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
            else:  # a dry run proves the path; generating C++ for it would take minutes
                layer.compile(backend="eager", dynamic=False)

    @torch.inference_mode()
    def make(lengths: list[int]) -> Callable[[], Tensor]:
        ids = torch.randint(min(shape.vocabulary, 30000), (len(lengths), lengths[0]))
        static = ids.to(device)

        def forward() -> Tensor:
            return model(input_ids=static).last_hidden_state.float().mean(dim=1)

        def eager() -> Tensor:
            static.copy_(ids)
            return forward().cpu()

        if not compiled or device.type != "cuda":
            return torch.inference_mode()(eager)
        replay, features = captured(forward)

        def call() -> Tensor:
            static.copy_(ids)
            replay()
            return features.cpu()

        return call

    return make


def model_lines(
    shape: ModelShape, device: torch.device, prompts: tuple[list[int], ...], ceilings: dict[str, float],
    seconds_left: Callable[[], float],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One record for each implementation and length; an implementation that cannot run says why."""
    lines: dict[str, Callable[[], Callable[[list[int]], Callable[[], Tensor]]]] = {
        OURS: lambda: onebeat_calls(shape, device),
        "transformers bf16 SDPA": lambda: transformers_calls(shape, device, compiled=False),
        "transformers bf16 SDPA, torch.compile": lambda: transformers_calls(shape, device, compiled=True),
    }
    for name, prepare in lines.items():
        if seconds_left() < 20:
            yield {"name": name, "why_not": "no time was left for it in this call; ask for --sections model alone"}
            continue
        began = time.perf_counter()
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            make = prepare()
            for lengths in prompts:
                if seconds_left() < 10:
                    yield {"name": name, "why_not": f"no time was left for {len(lengths)} x {lengths[0]}"}
                    continue
                with torch.inference_mode():
                    time_taken = wall_ms(make(lengths))
                yield {
                    "name": name, "prompts": len(lengths), "prompt_tokens": lengths[0], **time_taken.json(),
                    "floor_us": floor_us(shape, sum(lengths), ceilings),
                    "memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
                    "ready_after_s": round(time.perf_counter() - began, 2),
                }  # fmt: skip
            del make
        except (RuntimeError, ImportError, TypeError, ValueError, AttributeError) as error:
            yield {"name": name, "why_not": f"{type(error).__name__}: {str(error)[:300]}"}


def verdicts(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each length: ours, the best baseline's, how many times faster, the memory, and what was to be reached."""
    found = []
    measured = [line for line in lines if "why_not" not in line]
    for ours in (line for line in measured if line["name"] == OURS):
        size = (ours["prompts"], ours["prompt_tokens"])
        others = [
            line for line in measured if line["name"] != OURS and (line["prompts"], line["prompt_tokens"]) == size
        ]
        best = min(others, key=lambda line: line["median_us"], default=None)
        found.append({
            "prompts": size[0], "prompt_tokens": size[1], "median_ms": round(ours["median_us"] / 1e3, 3),
            "floor_ms": round(ours["floor_us"] / 1e3, 3), "target_ms": TARGET_MS.get(size),
            "best_baseline": best and best["name"],
            "times_faster": best and round(best["median_us"] / ours["median_us"], 3), "target_times": FASTER_TARGET,
            "memory_bytes": ours["memory_bytes"], "target_memory_bytes": MEMORY_TARGET_BYTES,
        })  # fmt: skip
    return found


def show_verdicts(rows: list[dict[str, Any]]) -> None:
    """One row a length."""
    for row in rows:
        beside = "no baseline" if row["best_baseline"] is None else (
            f"{row['times_faster']:.2f} times faster than {row['best_baseline']} (to reach {row['target_times']})"
        )  # fmt: skip
        target = "" if row["target_ms"] is None else f" (to reach {row['target_ms']:.1f})"
        memory = "" if row["memory_bytes"] is None else f", {row['memory_bytes'] / 1e9:.2f} GB (to reach 9)"
        print(
            f"{row['prompts']:3} x {row['prompt_tokens']:5} tokens: {row['median_ms']:.2f} ms{target}, {beside}{memory}"
        )


def floor_us(shape: ModelShape, tokens: int, ceilings: dict[str, float]) -> float:
    """The larger of int8 weights over bandwidth and operations over the int8 rate, as the same run measured them."""
    weights = shape.layer_weights
    return max(weights / ceilings["copy_bytes_per_s"], 2 * weights * tokens / ceilings["int8_ops"]) * 1e6
