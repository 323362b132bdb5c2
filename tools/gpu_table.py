"""The README's GPU table, generated from the JSON that bench/gpu.py wrote.

    tools/gpu_table                     prints the table
    tools/gpu_table --write README.md   puts it between the markers <!-- gpu-table --> and <!-- /gpu-table -->
    tools/gpu_table --check README.md   fails where what stands there is not what would be written

Where nothing was measured it says so; where the kernels have changed since, it says that too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from onebeat.kernels.backend import fingerprint  # noqa: E402

OPEN, CLOSE = "<!-- gpu-table -->", "<!-- /gpu-table -->"


def reports(folder: Path) -> list[dict[str, Any]]:
    """What was measured on GPUs, the latest first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("gpu-*.json"))]
    return sorted((one for one in found if not one["dry_run"]), key=lambda one: one["about"]["when"], reverse=True)


def table(report: dict[str, Any] | None, today: str) -> str:
    """Markdown for one report, or the plain statement that there is none."""
    if report is None:
        return (
            "Not measured yet: no GPU was at hand. The kernels are proven by Triton's interpreter against float64 and "
            "by compiling for sm_80, sm_89, sm_90 and sm_100; `python bench/gpu.py` measures them in one call."
        )
    about, ceilings = report["about"], report["ceilings"]
    lines = [
        f"{about['gpu']}, driver {about['driver']}, torch {about['torch']}, Triton {about['triton']}, "
        f"{about['when'][:10]}, commit {(about['commit'] or 'unknown')[:10]}. Ceilings in the same run: copy "
        f"{ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s, bf16 {ceilings['bf16_flops'] / 1e12:.0f} TFLOP/s, "
        f"int8 {ceilings['int8_ops'] / 1e12:.0f} TOP/s."
    ]
    if about["kernels"] != today:
        lines.append("\n**Measured on older kernels than today's.**")
    failed = [check["name"] for check in report.get("correct", []) if not check["holds"]]
    if failed:
        lines.append(f"\n**{len(failed)} checks failed in that run:** {', '.join(failed)}")
    lines += model_lines(report.get("model", [])) + kernel_lines(report.get("kernels", []))
    return "\n".join(lines)


def model_lines(lines: list[dict[str, Any]]) -> list[str]:
    """End to end, one row a length."""
    measured = [line for line in lines if "why_not" not in line]
    if not measured:
        return []
    out = ["", "| prompts x tokens | floor | " + " | ".join(dict.fromkeys(line["name"] for line in measured)) + " |"]
    names = list(dict.fromkeys(line["name"] for line in measured))
    out.append("|---" * (len(names) + 2) + "|")
    for size in dict.fromkeys((line["prompts"], line["prompt_tokens"]) for line in measured):
        here = {line["name"]: line for line in measured if (line["prompts"], line["prompt_tokens"]) == size}
        floor = next(iter(here.values()))["floor_us"] / 1000
        cells = [f"{here[name]['median_us'] / 1000:.2f} ms" if name in here else "not measured" for name in names]
        out.append(f"| {size[0]} x {size[1]:,} | {floor:.2f} ms | " + " | ".join(cells) + " |")
    return out


def kernel_lines(lines: list[dict[str, Any]]) -> list[str]:
    """One row a kernel and shape."""
    if not lines:
        return []
    out = ["", "| kernel | tokens | median | spread (10 to 90 %) | of roofline | best baseline |", "|---" * 6 + "|"]
    for line in lines:
        best = min(line["baselines"].items(), key=lambda item: item[1]["median_us"], default=None)
        beside = "none" if best is None else f"{best[0]} {best[1]['median_us']:.1f} us"
        out.append(
            f"| {(line['op'] + ' ' + line['name']).strip()} | {line['tokens']:,} | {line['median_us']:.1f} us "
            f"| {line['low_us']:.1f} to {line['high_us']:.1f} | {100 * line['roofline']:.0f} % | {beside} |"
        )
    return out


def main(argv: list[str] | None = None) -> int:
    """Prints, writes or checks. Returns 1 where a check fails, 2 where a file has no markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", type=Path, metavar="FILE")
    choice.add_argument("--check", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    text = table(next(iter(reports(args.results)), None), fingerprint())
    path: Path | None = args.write or args.check
    if path is None:
        print(text)
        return 0
    before = path.read_text(encoding="utf-8")
    if OPEN not in before or CLOSE not in before:
        print(f"{path} has no {OPEN} ... {CLOSE}: put both where the table belongs", file=sys.stderr)
        return 2
    after = re.sub(f"{OPEN}.*?{CLOSE}", lambda _: f"{OPEN}\n{text}\n{CLOSE}", before, flags=re.DOTALL)
    if args.write:
        path.write_text(after, encoding="utf-8")
    elif before != after:
        print(f"{path}'s GPU table is out of date: run tools/gpu_table --write {path}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
