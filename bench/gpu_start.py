"""From the start of a process to a ready engine, with an int8 checkpoint of a model's shape in the page cache.

Enters: a device and a shape. Leaves: seconds from spawning a process until its live router is ready, what the device's
memory then holds, and the peak on the way. The checkpoint is synthetic: random int8 matrices of the right sizes, in
the very format that `onebeat quantize` writes, so that reading, checking, moving, warming up and capturing are the real
ones. The first start also hashes the file and compiles kernels, which later ones find done.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_model import Synthetic, config_of
from torch import Tensor

from onebeat.engine.int8_file import INT8_FILE, int8_writer
from onebeat.kernels.shapes import ModelShape

READY_TARGET_S = 8.0
STARTS = 3
BYTE_TOKENIZER_ROWS = 264
SPAWN = "import sys; sys.path[:0] = sys.argv[1:3]; import gpu_start; gpu_start.child(*sys.argv[3:])"


def start_lines(shape: ModelShape, device: torch.device, root: Path) -> list[dict[str, Any]]:
    """One record for each start."""
    shape = replace(shape, vocabulary=max(shape.vocabulary, BYTE_TOKENIZER_ROWS))
    with tempfile.TemporaryDirectory(prefix="onebeat-start-") as folder:
        began = time.perf_counter()
        size_bytes = write_folder(shape, Path(folder))
        print(f"wrote {size_bytes / 1e9:.2f} GB of int8 in {time.perf_counter() - began:.0f} s")
        return [one_start(Path(folder), device, root, number) for number in range(1, STARTS + 1)]


def write_folder(shape: ModelShape, folder: Path) -> int:
    """A router folder with an int8 copy in the checkpoint's place. Returns the copy's size."""
    from tools.synthetic_checkpoint import hugging_face_config, write_json, write_router, write_tokenizer

    write_json(folder / "config.json", hugging_face_config(config_of(shape)))
    write_tokenizer(folder)
    write_router(folder, layer=shape.layers)
    source = Synthetic(shape, torch.device("cpu"))
    drawn: dict[str, tuple[Tensor, Tensor]] = {}
    with int8_writer(folder / INT8_FILE, tensors=2 + 16 * shape.layers) as writer:
        writer.add("embedding", source.tensor("embedding"))
        writer.add("final_norm", torch.ones(shape.hidden))
        for layer in range(shape.layers):
            at = f"layers.{layer}."
            for name in ("qkv", "attention_out", "gate_up", "down"):
                if name not in drawn:  # Random numbers for one layer take longer than writing them all.
                    matrix = source.matrix(at + name)
                    assert matrix.scale is not None
                    drawn[name] = (matrix.weight, matrix.scale)
                writer.add(at + name, drawn[name][0])
                writer.add(f"{at}{name}.scale", drawn[name][1])
            for name in ("input_norm", "post_norm", "qkv_bias"):
                if at + name in source:
                    writer.add(at + name, source.tensor(at + name))
    return (folder / INT8_FILE).stat().st_size


def one_start(folder: Path, device: torch.device, root: Path, number: int) -> dict[str, Any]:
    """Spawns a process and waits for its word that it is ready."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", SPAWN, str(root), str(root / "bench"), str(folder), device.type],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    ready_s = time.perf_counter() - began
    _, errors = process.communicate(timeout=600)
    if process.returncode != 0 or not said.strip():
        return {"start": number, "why_not": (errors.strip().splitlines() or ["it ended without a word"])[-1][:300]}
    return {"start": number, "ready_s": round(ready_s, 2), **json.loads(said)}


def child(folder: str, device: str) -> None:
    """What is timed: import, load, serve, ready; then one prompt, to prove it."""
    from onebeat.engine.router import Router

    async def until_ready() -> None:
        loading = time.perf_counter()
        router = Router.from_pretrained(folder, precision="int8", device=device)
        warming = time.perf_counter()
        async with router.serve() as live:
            spent = {
                "load_s": round(warming - loading, 2), "warm_up_s": round(time.perf_counter() - warming, 2),
            }  # fmt: skip
            cuda = device == "cuda"
            spent["memory_bytes"] = torch.cuda.memory_reserved() if cuda else None
            spent["peak_memory_bytes"] = torch.cuda.max_memory_reserved() if cuda else None
            print(json.dumps(spent), flush=True)
            assert (await live.score("What is 17 * 23?")).quality.shape[0] == 1

    asyncio.run(until_ready())


def show(lines: list[dict[str, Any]]) -> None:
    """One row a start."""
    for line in lines:
        if "why_not" in line:
            print(f"start {line['start']}: not measured: {line['why_not']}")
            continue
        peak = line["peak_memory_bytes"]
        memory = "" if peak is None else f", GPU memory {peak / 1e9:.2f} GB at most (to reach 9)"
        print(
            f"start {line['start']}: ready after {line['ready_s']:.2f} s (to reach {READY_TARGET_S:.0f}): "
            f"load {line['load_s']:.2f}, warm-up {line['warm_up_s']:.2f}{memory}"
        )
