"""The spine on a CPU: forward passes beside transformers, packing, and a cold process.

    python bench/spine.py [--out bench/results/spine_cpu.json] [--large FOLDER]

The backbone is the default router's (`onebeat pull` fetches it). Rivals take turns within each round, so that a ratio
is of runs seconds apart; medians and the spread of the middle half are printed. The ceiling comes first, the last
line is JSON. `--large` names a router folder (`python -m tools.synthetic_checkpoint FOLDER --preset qwen2.5-7b
--router`) that a process of its own loads in int8 and scores a prompt with, for its peak memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebeat.engine.batch import pack
from onebeat.engine.config import BackboneConfig
from onebeat.engine.default_router import CACHE_FOLDER, default_router_folder
from onebeat.engine.loading import load_backbone
from onebeat.engine.model import Backbone
from onebeat.engine.router import Router
from onebeat.engine.weights import Weights
from onebeat.kernels.cpu.native import native_kernels
from onebeat.kernels.cpu.native.structures import product_run
from onebeat.kernels.cpu.packed_matmul import PackedMatrix

LENGTHS = (16, 64, 128, 512)
ROUNDS = {16: 41, 64: 31, 128: 25, 512: 11}
PACKED_PROMPTS = 32
COLD_RUNS = 5
FULL_TARGET, TAP_TARGET, PACKED_TARGET = 0.55, 0.40, 1.3
COLD_TARGET_S, COLD_TARGET_MB, LARGE_TARGET_MB = 2.5, 900, 12 * 1024

Row = dict[str, Any]
Run = Callable[[], object]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/spine_cpu.json"))
    parser.add_argument("--large", type=Path, help="a router folder of 7 B parameters to load in int8 and score with")
    parser.add_argument("--load-and-score", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.load_and_score is not None:
        return load_and_score(args.load_and_score)
    with torch.inference_mode():
        result = measure(args.large)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def measure(large: Path | None) -> Row:
    """Everything, printing as it goes."""
    folder = default_router_folder()
    config = BackboneConfig.load(folder)
    router = Router.from_pretrained(folder)
    full = load_backbone(config, Weights(folder, config, config.layers), [config.layers], "int8")
    tops = peak_tops(config)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{machine}\nint8 products of this backbone's layers at 512 rows: {tops:.2f} TOPS on this machine")
    for tokens in LENGTHS:
        floor = floor_ms(config, config.layers, tokens, tops)
        print(f"  {tokens:4d} tokens: {config.layers} layers cannot take less than {floor:.1f} ms")
    rows = forwards(folder, config, full, router, tops)
    packed = packing(router)
    cold = cold_process()
    result: Row = {
        "bench": "spine_cpu",
        "machine": machine,
        "measured_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "backbone": folder.name,
        "layers": config.layers,
        "tap_layers": len(router.runner.backbone.layers),
        "int8_tops": round(tops, 3),
        "forward": rows,
        "packed": packed,
        "cold_route": cold,
    }
    if large is not None:
        result["large"] = large_checkpoint(large)
    return result


def peak_tops(config: BackboneConfig, rows: int = 512) -> float:
    """The rate of the four products of a layer, one after the other, best of many runs: oneDNN's on all threads, or the
    native kernels' on one core times the threads, whichever is higher."""
    width = (config.query_heads + 2 * config.key_heads) * config.head_size
    shapes = (
        (width, config.hidden_size),
        (config.hidden_size, config.query_heads * config.head_size),
        (2 * config.feed_forward, config.hidden_size),
        (config.hidden_size, config.feed_forward),
    )
    library = native_kernels(CACHE_FOLDER / "kernels").library
    through_torch = on_one_core = 0.0
    for n, k in shapes:
        matrix = PackedMatrix(torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.ones(n))
        a = torch.randint(-127, 128, (rows, k), dtype=torch.int8)
        through_torch += min(timed(lambda a=a, matrix=matrix: matrix.multiply(a)) for _ in range(60))  # type: ignore[misc]
        if library is not None:
            run = product_run(library, a, torch.randint(-127, 128, (n, k), dtype=torch.int8))
            on_one_core += min(timed(run) for _ in range(60))
    fastest = min(through_torch, on_one_core / torch.get_num_threads()) if library is not None else through_torch
    return 2 * rows * sum(n * k for n, k in shapes) / fastest / 1e9


def floor_ms(config: BackboneConfig, layers: int, tokens: int, tops: float) -> float:
    """The products alone, at the peak rate."""
    width = (config.query_heads + 2 * config.key_heads) * config.head_size
    per_token = config.hidden_size * (width + config.query_heads * config.head_size + 3 * config.feed_forward)
    return 2 * tokens * layers * per_token / tops / 1e9


def forwards(folder: Path, config: BackboneConfig, full: Backbone, router: Router, tops: float) -> list[Row]:
    """transformers in bfloat16, ours at full depth, ours up to the last tap: in turns, per length."""
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tap = router.runner.backbone
    layers = len(tap.layers)
    print(f"\nbatch 1, ms: median (middle half)         transformers bf16 = {config.layers} layers")
    print(f"{'tokens':>6} {'transformers':>22} {'int8 full':>22} {'ratio':>6} {f'int8, {layers}':>22} {'ratio':>6}")
    rows = []
    for tokens in LENGTHS:
        ids = random_ids(config, tokens, seed=tokens)
        tensor, batch = torch.tensor([ids]), pack([ids])
        names = ("transformers_bf16", "int8_full", "int8_tap")
        runs: list[Run] = [
            lambda tensor=tensor: theirs(tensor, use_cache=False),  # type: ignore[misc]
            lambda batch=batch: full.forward(batch),  # type: ignore[misc]
            lambda batch=batch: tap.forward(batch),  # type: ignore[misc]
        ]
        times = in_turns(runs, ROUNDS[tokens])
        row: Row = {"tokens": tokens, "floor_full_ms": round(floor_ms(config, config.layers, tokens, tops), 2)}
        for name, series in zip(names, times, strict=True):
            row[name] = summary(series)
        row["ratio_full"] = round(statistics.median(map(ratio, times[1], times[0])), 3)
        row["ratio_tap"] = round(statistics.median(map(ratio, times[2], times[0])), 3)
        row["targets"] = {"ratio_full": FULL_TARGET} | ({"ratio_tap": TAP_TARGET} if tokens == 128 else {})
        rows.append(row)
        shown = [f"{row[name]['median_ms']:.2f} ({row[name]['q1_ms']:.1f}-{row[name]['q3_ms']:.1f})" for name in names]
        ours = f"{shown[1]:>22} {row['ratio_full']:6.3f} {shown[2]:>22} {row['ratio_tap']:6.3f}"
        print(f"{tokens:6d} {shown[0]:>22} {ours}", flush=True)
    print(f"to reach: full at most {FULL_TARGET} everywhere, tap at most {TAP_TARGET} at 128 tokens")
    return rows


def packing(router: Router) -> Row:
    """32 prompts of 16 to 256 tokens, one by one and packed, in turns."""
    config = router.runner.backbone.config
    lengths = [16 + 240 * index // (PACKED_PROMPTS - 1) for index in range(PACKED_PROMPTS)]
    prompts = [random_ids(config, tokens, seed=tokens) for tokens in lengths]
    features = router.runner.features

    def one_by_one() -> Tensor:
        return torch.cat([features([prompt]) for prompt in prompts])

    alone, together = in_turns([one_by_one, lambda: features(prompts)], 7)
    row = {
        "prompts": PACKED_PROMPTS,
        "tokens": sum(lengths),
        "one_by_one": summary(alone),
        "packed": summary(together),
        "one_by_one_prompts_per_s": round(PACKED_PROMPTS / statistics.median(alone) * 1e3, 1),
        "packed_prompts_per_s": round(PACKED_PROMPTS / statistics.median(together) * 1e3, 1),
        "gain": round(statistics.median(map(ratio, alone, together)), 3),
        "same_bits": bool(torch.equal(one_by_one(), features(prompts))),
        "target": PACKED_TARGET,
    }
    print(
        f"\n{PACKED_PROMPTS} prompts of 16 to 256 tokens: {row['one_by_one_prompts_per_s']} prompts/s one by one, "
        f"{row['packed_prompts_per_s']} packed: {row['gain']} times (to reach {PACKED_TARGET}); "
        f"same bits: {row['same_bits']}"
    )
    return row


def cold_process() -> Row:
    """`onebeat route` from nothing, the caches on disk present: wall time and peak memory."""
    command = [sys.executable, "-m", "onebeat", "route", "--json", "What is 17 * 23?"]
    imports = [sys.executable, "-c", "import torch"]
    seconds, torch_seconds, peak = [], [], 0
    for _ in range(COLD_RUNS):
        torch_seconds.append(timed(lambda: subprocess.run(imports, check=True)) / 1e3)
        began = time.perf_counter()
        peak = max(peak, peak_mb(command))
        seconds.append(time.perf_counter() - began)
    row = {
        "median_s": round(statistics.median(seconds), 2),
        "import_torch_s": round(statistics.median(torch_seconds), 2),
        "peak_mb": peak,
        "targets": {"median_s": COLD_TARGET_S, "peak_mb": COLD_TARGET_MB},
    }
    print(
        f"\nonebeat route, cold process: {row['median_s']} s (import torch alone {row['import_torch_s']} s; to reach "
        f"{COLD_TARGET_S} s), peak {peak} MB (to reach {COLD_TARGET_MB} MB)"
    )
    return row


def large_checkpoint(folder: Path) -> Row:
    """Twice: the first run writes the int8 copy, the second reads it."""
    row: Row = {"target_peak_mb": LARGE_TARGET_MB}
    for name in ("first_start", "second_start"):
        began = time.perf_counter()
        peak = peak_mb([sys.executable, __file__, "--load-and-score", str(folder)])
        row[name] = {"seconds": round(time.perf_counter() - began, 1), "peak_mb": peak}
        print(f"{folder.name}, int8, {name}: {row[name]['seconds']} s, peak {peak} MB (to reach {LARGE_TARGET_MB} MB)")
    return row


def load_and_score(folder: Path) -> int:
    """What `large_checkpoint` measures: load, score one prompt."""
    router = Router.from_pretrained(folder, precision="int8", device="cpu")
    scores = router.score(["What is 17 * 23?"])
    assert scores.quality.shape == (1, len(router.columns))
    return 0


def peak_mb(command: list[str]) -> int:
    """The peak resident memory of a process that must succeed, in MB, measured by a parent of its own."""
    watcher = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", watcher, *command], check=True, capture_output=True, text=True)
    unit = 1024 if sys.platform != "darwin" else 1024**2
    return int(done.stdout) // unit


def in_turns(runs: Sequence[Run], rounds: int) -> list[list[float]]:
    """Milliseconds of each of `runs`, which take turns; the first two rounds only warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for index in range(rounds + 2):
        for run, series in zip(runs, times, strict=True):
            spent = timed(run)
            if index >= 2:
                series.append(spent)
    return times


def timed(run: Run) -> float:
    """Milliseconds of one run."""
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1e3


def ratio(ours: float, theirs: float) -> float:
    """Of two runs of one round."""
    return ours / theirs


def summary(series: list[float]) -> dict[str, float]:
    """Median, middle half and best, in ms."""
    q1, _, q3 = statistics.quantiles(series, n=4)
    named = {"median_ms": statistics.median(series), "q1_ms": q1, "q3_ms": q3, "best_ms": min(series)}
    return {name: round(value, 2) for name, value in named.items()}


def random_ids(config: BackboneConfig, tokens: int, seed: int) -> list[int]:
    """Seeded token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (tokens,), generator=generator).tolist()


if __name__ == "__main__":
    sys.exit(main())
