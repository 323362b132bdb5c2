"""`onebeat quantize`: an int8 copy of a checkpoint, and what int8 costs it, matrix by matrix."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from onebeat.engine.router_files import HEAD_FILES, TEXT_FILES
from onebeat.engine.strict_json import shown

if TYPE_CHECKING:
    from onebeat.engine.quantize import MatrixError
    from onebeat.engine.tokens import PromptTokenizer


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
    from onebeat.engine.arguments import number
    from onebeat.engine.config import BackboneConfig
    from onebeat.engine.errors import ConfigError
    from onebeat.engine.int8_file import INT8_FILE
    from onebeat.engine.quantize import KEEP_ABOVE, write_int8
    from onebeat.engine.router_config import RouterConfig
    from onebeat.engine.tokens import PromptTokenizer
    from onebeat.engine.weights import CLASSIFIER, Weights
    from onebeat.engine.whole_folder import whole_folder

    src: Path = args.src
    keep_above = KEEP_ABOVE if args.keep_above is None else args.keep_above
    meaning = f"it must be a share of 0 or more (the default is {KEEP_ABOVE})"
    number("--keep-above", keep_above, meaning, least=0.0, error=ConfigError)
    texts = _texts(args.prompts)
    lines: list[MatrixError] = []

    def report(line: MatrixError) -> None:
        lines.append(line)
        print(
            f"{line.name:<28}{line.error:>12.4f}{line.plain_error:>12.4f}{'  kept in bfloat16' * line.kept}", flush=True
        )

    with whole_folder(args.dst) as half:
        config = BackboneConfig.load(src)
        router = RouterConfig.load(src) if (src / "router.json").is_file() else None
        layers = config.layers if router is None else router.last_layer
        weights = Weights(src, config, layers)
        tokenizer = PromptTokenizer(src, template="{prompt}", vocab_size=config.vocab_size)
        prompts = [_token_ids(tokenizer, text) for text in texts]
        classifier = weights.raw(CLASSIFIER)
        others = {} if classifier is None else {CLASSIFIER: classifier}
        print(f"{'matrix':<28}{'int8 error':>12}{'unsmoothed':>12}")
        copy = half / INT8_FILE
        write_int8(weights, config, layers, prompts, copy, keep_above=keep_above, report=report, others=others)
        for name in (*TEXT_FILES, *HEAD_FILES):
            if (src / name).is_file():
                shutil.copyfile(src / name, half / name)
        megabytes = copy.stat().st_size / 1e6
    kept = sum(line.kept for line in lines)
    worst = max(lines, key=lambda line: line.error, default=None)
    said = "no matrix was read" if worst is None else f"worst {worst.name} at {worst.error:.4f}"
    print(
        f"{args.dst}: {len(lines)} matrices of {layers} layers, {kept} kept in bfloat16 (error above {keep_above:g}); "
        f"{said}; {megabytes:.0f} MB."
    )
    return 0


def _token_ids(tokenizer: PromptTokenizer, text: str) -> list[int]:
    from onebeat.engine.errors import InputError

    try:
        return tokenizer.prepare(text).token_ids
    except InputError as error:
        raise InputError(f"the calibration prompt {shown(text)} cannot be used: {error}") from None


def _texts(path: Path | None) -> list[str]:
    """What to calibrate on."""
    from onebeat.engine.calibration import CALIBRATION_TEXTS
    from onebeat.engine.errors import InputError

    if path is None:
        return list(CALIBRATION_TEXTS)
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}); give one prompt per line.") from None
    if not texts:
        raise InputError(f"{path} has 0 prompts; give one per line.")
    return texts
