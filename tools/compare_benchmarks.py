"""Compares two pytest-benchmark reports: ratios with their spread, and which differences exceed the noise.

    tools/compare_benchmarks A.json B.json [--fail-above 1.05]

A ratio below 1 means that B is faster. Its spread comes from both reports' quartiles; a difference counts when the
medians lie further apart than both half-spreads together, and by more than 2 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

LEAST = 0.02
"""Differences below this are never called real: clocks and placement move by as much between runs."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One case of one report, in seconds."""

    median: float
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case of both reports."""

    name: str
    ratio: float
    """B's median over A's."""
    low: float
    high: float
    """The ratio at the quartiles that are kindest and unkindest to B."""

    @property
    def verdict(self) -> str:
        """Whether the difference exceeds the noise, and which way."""
        if self.low > 1 and self.ratio > 1 + LEAST:
            return "slower"
        if self.high < 1 and self.ratio < 1 - LEAST:
            return "faster"
        return "within noise"


def read(path: Path) -> tuple[dict[str, Timing], str]:
    """The timings of a report by case name, and the machine it was made on. Exits with a sentence where it is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        timings = {
            case["fullname"]: Timing(case["stats"]["median"], case["stats"]["q1"], case["stats"]["q3"])
            for case in report["benchmarks"]
        }
        machine = report["machine_info"].get("cpu", {}).get("brand_raw") or report["machine_info"].get("machine", "?")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no pytest-benchmark report ({type(error).__name__}: {error})") from None
    return timings, machine


def compare(a: dict[str, Timing], b: dict[str, Timing]) -> list[Comparison]:
    """The cases that both have, the largest slowdown first."""
    found = [
        Comparison(name, b[name].median / a[name].median, b[name].low / a[name].high, b[name].high / a[name].low)
        for name in a
        if name in b
    ]
    return sorted(found, key=lambda comparison: -comparison.ratio)


def main(argv: list[str] | None = None) -> int:
    """Prints the table. Returns 1 where a real slowdown exceeds --fail-above, 2 where nothing can be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, help="the earlier report")
    parser.add_argument("b", type=Path, help="the later report")
    parser.add_argument("--fail-above", type=float, metavar="RATIO", help="fail where B is slower than this, for sure")
    args = parser.parse_args(argv)
    (a, machine_a), (b, machine_b) = read(args.a), read(args.b)
    if machine_a != machine_b:
        print(f"different machines: {machine_a} and {machine_b}; ratios say little about the code")
    found = compare(a, b)
    if not found:
        print(f"{args.a} and {args.b} have no case in common")
        return 2
    for comparison in found:
        print(
            f"{comparison.ratio:7.3f}  [{comparison.low:.3f}, {comparison.high:.3f}]  {comparison.verdict:13}"
            f"{comparison.name}"
        )
    real = [comparison for comparison in found if comparison.verdict != "within noise"]
    print(f"{len(found)} cases in both reports, {len(real)} differ by more than the noise")
    for side, other, label in ((a, b, args.a), (b, a, args.b)):
        if missing := sorted(set(side) - set(other)):
            print(f"only in {label}: {', '.join(missing)}")
    worst = [comparison for comparison in real if args.fail_above and comparison.ratio > args.fail_above]
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
