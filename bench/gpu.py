"""The GPU bench, in one call: the card's ceilings, whether every kernel is right, how fast each is, and a 7B router.

    python bench/gpu.py                          everything, under eight minutes
    python bench/gpu.py --sections kernels       one part: ceilings (always), correct, kernels, model, start
    python bench/gpu.py --dry-run                every code path at tiny sizes on the CPU; its times mean nothing

Needs the source tree, and a Python with torch and Triton (transformers too, for the model's baselines). Prints the
ceilings, then tables; writes JSON (bench/results/gpu-NAME.json, for the README's table: tools/gpu_table); the last
line is JSON too.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import gpu_cases  # noqa: E402
import gpu_correct  # noqa: E402
import gpu_model  # noqa: E402
import gpu_start  # noqa: E402
import gpu_timing  # noqa: E402

from onebeat.kernels import backend, shapes  # noqa: E402

SECTIONS = ("correct", "kernels", "model", "start")
DRY_SHAPE = shapes.ModelShape("dry run", 64, 3, 1, 64, 96, 2, 128, qkv_bias=True)


def packed_lengths() -> list[int]:
    """64 prompts of 100 to 300 tokens, the same in every run."""
    return [100 + (index * 53) % 201 for index in range(64)]


def about(shape: shapes.ModelShape) -> dict[str, Any]:
    """Which card, which versions, which code."""
    cuda = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if cuda else None
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": properties.name if properties else None,
        "gpu_memory_bytes": properties.total_memory if properties else None,
        "driver": shell("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "torch": torch.__version__, "cuda": torch.version.cuda, "triton": getattr(backend.triton, "__version__", None),
        "python": sys.version.split()[0], "commit": shell("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "kernels": backend.fingerprint(), "shape": shape.name,
    }  # fmt: skip


def shell(*command: str) -> str | None:
    """The first line a command prints, or None where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def compile_case(index: int, arguments: tuple[Any, ...], arch: str) -> float:
    """Compiles one case's kernel into Triton's cache. In a worker, on the meta device: it needs no GPU."""
    import compile_kernels

    made = list(gpu_cases.cases(gpu_cases.Maker(torch.device("meta"), arguments[0]), *arguments[1:]))[index]
    began = time.perf_counter()
    compile_kernels.compile_launch(made.launch(), arch)
    return time.perf_counter() - began


def compile_ahead(gpu: backend.Facts, arguments: tuple[Any, ...], count: int) -> None:
    """Compiles all cases in parallel, so that the measuring process finds them in the cache. Failing only costs
    time.
    """
    if not gpu.arch.startswith("sm_"):
        return
    began = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that uses CUDA may hang
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 16), spawn) as workers:
        tasks = [workers.submit(compile_case, index, (gpu, *arguments), gpu.arch) for index in range(count)]
        failed = [task.exception() for task in tasks if task.exception() is not None]
    print(f"compiled {count - len(failed)} of {count} cases ahead in {time.perf_counter() - began:.0f} s")
    for error in failed[:3]:
        print(f"  not ahead: {type(error).__name__}: {str(error)[:200]}")


def kernel_line(case: gpu_cases.Case, ceilings: dict[str, float]) -> dict[str, Any]:
    """Times one case and its baselines."""
    copies = gpu_timing.copies_for(case.bytes_moved)
    launches = [case.launch() for _ in range(copies)]
    ours = gpu_timing.measure([launch.run for launch in launches])
    del launches
    line: dict[str, Any] = {
        "op": case.op, "name": case.name, "tokens": case.tokens, **ours.json(),
        "floor_us": case.floor_us(ceilings), "roofline": case.floor_us(ceilings) / ours.median_us,
        "bytes": case.bytes_moved, "flops": case.flops, "baselines": {}, "unavailable": {},
    }  # fmt: skip
    for name, prepare in case.baselines.items():
        try:
            runs = [prepare() for _ in range(min(copies, 8) if name == "torch.compile" else copies)]
            line["baselines"][name] = gpu_timing.measure(runs).json()
        except (RuntimeError, ImportError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            line["unavailable"][name] = f"{type(error).__name__}: {str(error)[:200]}"
    if line["baselines"]:
        best = min(line["baselines"].values(), key=lambda measured: measured["median_us"])
        line["times_faster_than_best"] = best["median_us"] / ours.median_us
    return line


def print_kernel(line: dict[str, Any]) -> None:
    """One row of the table."""
    others = ", ".join(
        f"{name} {taken['median_us']:.1f}" for name, taken in line["baselines"].items()
    ) or "no baseline"  # fmt: skip
    print(
        f"{line['op'] + ' ' + line['name']:34}{line['tokens']:6} tokens {line['median_us']:10.1f} us "
        f"[{line['low_us']:.1f}, {line['high_us']:.1f}]  {100 * line['roofline']:5.1f} % of roofline   {others}"
    )


def run_correct(make: gpu_cases.Maker, dry: bool) -> list[dict[str, object]]:
    """All checks; those that fail are printed."""
    found = list(gpu_correct.checks(make, dry))
    for check in found:
        if not check.holds:
            print(f"WRONG: {check.name}: off by {check.error:.3g}, {check.allowed:.3g} is allowed")
    print(f"{sum(check.holds for check in found)} of {len(found)} checks hold")
    return [check.json() for check in found]


def run_model(shape: shapes.ModelShape, args: argparse.Namespace, ceilings: dict[str, float], deadline: float) -> Any:
    """The whole router, beside transformers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = ([5], [9, 9]) if args.dry_run else gpu_model.PROMPTS
    lines = []
    left = lambda: deadline - time.monotonic()  # noqa: E731
    for line in gpu_model.model_lines(shape, device, prompts, ceilings, left):
        lines.append(line)
        if "why_not" in line:
            print(f"{line['name']}: not measured: {line['why_not']}")
            continue
        print(
            f"{line['name']:40}{line['prompts']:3} x {line['prompt_tokens']:5} tokens "
            f"{line['median_us'] / 1000:8.2f} ms "
            f"[{line['low_us'] / 1000:.2f}, {line['high_us'] / 1000:.2f}]  floor {line['floor_us'] / 1000:.2f} ms"
        )
    return lines


def main() -> int:
    """Runs the sections asked for. Returns 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, through every code path")
    parser.add_argument("--tokens", nargs="+", type=int, help="instead of 1 to 16,384")
    parser.add_argument("--minutes", type=float, default=7.5, help="no baseline is begun after this")
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu-NAME.json (none in a dry run)")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.dry_run:
        parser.error("torch sees no GPU here; give --dry-run to prove the code paths on the CPU")
    deadline = time.monotonic() + args.minutes * 60
    shape = DRY_SHAPE if args.dry_run else shapes.QWEN_7B
    tokens = tuple(args.tokens or ((1, 64) if args.dry_run else shapes.TOKENS))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = backend.facts(device)
    make = gpu_cases.Maker(device, gpu, torch.bfloat16 if device.type == "cuda" else torch.float16)
    report: dict[str, Any] = {"format_version": 1, "dry_run": args.dry_run, "about": about(shape)}
    ceilings = report["ceilings"] = gpu_timing.ceilings(args.dry_run)
    print(
        f"ceilings: copy {ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
        f"bf16 {ceilings['bf16_flops'] / 1e12:.0f} TFLOP/s, "
        f"int8 {ceilings['int8_ops'] / 1e12:.0f} TOP/s"
    )
    if "correct" in args.sections:
        report["correct"] = run_correct(make, args.dry_run)
    if "model" in args.sections:
        # Half of what is left at most, so that the kernels' table is never crowded out by a slow compile.
        share = 0.5 if "kernels" in args.sections else 1.0
        until = time.monotonic() + share * (deadline - time.monotonic())
        report["model"] = run_model(shape, args, ceilings, until)
        report["verdicts"] = gpu_model.verdicts(report["model"])
        gpu_model.show_verdicts(report["verdicts"])
    if "start" in args.sections:
        report["start"] = gpu_start.start_lines(shape, device, ROOT)
        gpu_start.show(report["start"])
    if "kernels" in args.sections:
        lengths = [7, 33] if args.dry_run else packed_lengths()
        everything = list(gpu_cases.cases(make, shape, tokens, lengths))
        compile_ahead(gpu, (shape, tokens, lengths), len(everything))
        report["kernels"] = []
        for case in everything:
            if time.monotonic() > deadline:
                case = replace(case, baselines={})
            report["kernels"].append(kernel_line(case, ceilings))
            print_kernel(report["kernels"][-1])
    out = args.out or (
        None if args.dry_run else ROOT / "bench" / "results" / f"gpu-{slug(report['about']['gpu'])}.json"
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    wrong = [check for check in report.get("correct", []) if not check["holds"]]
    print(json.dumps({"checks_failed": len(wrong), "kernels": summary(report.get("kernels", [])), "out": str(out)}))
    return 1 if wrong else 0


def slug(name: str) -> str:
    """A card's name as part of a file's."""
    return "-".join(name.lower().replace("nvidia", "").split())


def summary(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The geometric mean of each op's share of its roofline."""
    shares: dict[str, list[float]] = {}
    for line in lines:
        shares.setdefault(line["op"], []).append(line["roofline"])
    return {op: round(math.exp(sum(map(math.log, values)) / len(values)), 4) for op, values in shares.items()}


if __name__ == "__main__":
    sys.exit(main())
