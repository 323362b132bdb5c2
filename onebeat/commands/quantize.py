"""`onebeat quantize`: an int8 copy of a checkpoint, and what int8 costs it, matrix by matrix."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onebeat.engine.quantize import MatrixError

COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "router.json", "router_head.safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds SRC, DST, `--keep-above` and `--prompts`."""
    parser.add_argument(
        "src", type=Path, help="a checkpoint or router folder (config.json, tokenizer.json, safetensors)"
    )
    parser.add_argument("dst", type=Path, help="the folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--keep-above",
        type=float,
        default=None,
        metavar="SHARE",
        help="keep a matrix in bfloat16 when int8 makes its products err by more than this share of their norm",
    )
    parser.add_argument(
        "--prompts", type=Path, help="calibrate on this file, one prompt per line, not on built-in texts"
    )


def run(args: argparse.Namespace) -> int:
    """Prints one line per matrix, then a summary; writes DST whole or not at all."""
    from onebeat.engine.calibration import CALIBRATION_TEXTS
    from onebeat.engine.config import BackboneConfig
    from onebeat.engine.errors import ConfigError, InputError
    from onebeat.engine.int8_file import INT8_FILE
    from onebeat.engine.quantize import KEEP_ABOVE, write_int8
    from onebeat.engine.router_config import RouterConfig
    from onebeat.engine.tokens import PromptTokenizer
    from onebeat.engine.weights import CLASSIFIER, Weights

    src: Path = args.src
    dst: Path = args.dst
    keep_above = KEEP_ABOVE if args.keep_above is None else args.keep_above
    if not keep_above >= 0:
        raise ConfigError(
            f"--keep-above is {keep_above}; it must be a share of 0 or more (the default is {KEEP_ABOVE})."
        )
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ConfigError(f"{dst} is there already and not an empty folder; name a new folder for the int8 copy.")
    config = BackboneConfig.load(src)
    router = RouterConfig.load(src) if (src / "router.json").is_file() else None
    layers = config.layers if router is None else router.last_layer
    weights = Weights(src, config, layers)
    tokenizer = PromptTokenizer(src, template="{prompt}", vocab_size=config.vocab_size)
    texts = list(CALIBRATION_TEXTS)
    if args.prompts is not None:
        try:
            texts = [line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{args.prompts} cannot be read as UTF-8 text ({error}); give one prompt per line."
            ) from None
        if not texts:
            raise InputError(f"{args.prompts} has 0 prompts; give one per line.")
    lines: list[MatrixError] = []
    print(f"{'matrix':<28}{'int8 error':>12}{'unsmoothed':>12}")

    def report(line: MatrixError) -> None:
        lines.append(line)
        print(
            f"{line.name:<28}{line.error:>12.4f}{line.plain_error:>12.4f}{'  kept in bfloat16' * line.kept}", flush=True
        )

    prompts = [tokenizer.prepare(text).token_ids for text in texts]
    classifier = weights.raw(CLASSIFIER)
    write_int8(
        weights,
        config,
        layers,
        prompts,
        dst / INT8_FILE,
        keep_above=keep_above,
        report=report,
        others={} if classifier is None else {CLASSIFIER: classifier},
    )
    for name in COPIED:
        if (src / name).is_file():
            shutil.copyfile(src / name, dst / name)
    kept = sum(line.kept for line in lines)
    worst = max(lines, key=lambda line: line.error)
    print(
        f"{dst}: {len(lines)} matrices of {layers} layers, {kept} kept in bfloat16 (error above {keep_above:g}); "
        f"worst {worst.name} at {worst.error:.4f}; {(dst / INT8_FILE).stat().st_size / 1e6:.0f} MB."
    )
    return 0
