"""A fitted head on disk: router.json and router_head.safetensors, written whole or not at all.

Enters: tensors and a description. Leaves: two files in a folder, and with a backbone linked beside them a router that
`Router.from_pretrained` loads. Knows the format, not how anything was fitted.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from onebeat.engine.errors import FormatError, InputError
from onebeat.engine.head import Head
from onebeat.engine.loading import Precision
from onebeat.engine.router_config import RouterConfig
from onebeat.engine.router_files import TEXT_FILES

DESCRIPTION, TENSORS = "router.json", "router_head.safetensors"
BACKBONE_PATTERNS = (*TEXT_FILES, "*.safetensors", "*.index.json")
HALF_PRECISION = ("kernel.landmarks", "hidden.weight")
_Share = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]


class _Split(msgspec.Struct, frozen=True):
    """`fitted.split`: what it takes to make it again."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    test_share: _Share
    held_out_groups: list[str]
    test_side_fitted_on: bool
    newest_share: _Share | None = None
    newest_fitted_s: float | None = None


class _Sample(msgspec.Struct, frozen=True):
    most: Annotated[int, msgspec.Meta(ge=1)]


class _Fitted(msgspec.Struct, frozen=True):
    """What learning reads of `fitted`, beside the dial and the hashes, which their own readers check."""

    split: _Split | None = None
    sample: _Sample | None = None
    precision: Precision = "int8"
    files: list[str] = []


def write_head(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Checks both parts as a reader would, then puts them in `folder`. Raises as the readers do."""
    config = RouterConfig.from_json(dict(description))
    halved = HALF_PRECISION if config.head.kind == "kernel" else ()
    stored = {
        name: np.ascontiguousarray(value, np.float16 if name in halved else np.float32)
        for name, value in tensors.items()
    }
    Head.from_tensors(
        stored,
        kind=config.head.kind,
        columns=[column.name for column in config.columns],
        features=len(stored["norm.mean"]),
        calibration=config.calibration,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".half-") as half:
        save_file(stored, Path(half) / TENSORS)
        text = msgspec.json.format(msgspec.json.encode(description), indent=2)
        (Path(half) / DESCRIPTION).write_bytes(text + b"\n")
        for name in (TENSORS, DESCRIPTION):
            (Path(half) / name).replace(folder / name)


def read_head(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description as plain JSON, with what it leaves to defaults, and the tensors.

    Raises `FormatError` for what is missing or foreign.
    """
    config = RouterConfig.load(folder)
    path = folder / TENSORS
    if not path.is_file():
        raise FormatError(f"{folder} has a {DESCRIPTION} but no {TENSORS}; fit the head with `onebeat train`.")
    written = msgspec.json.decode((folder / DESCRIPTION).read_bytes())
    try:
        msgspec.convert(written.get("fitted", {}), _Fitted)
        tensors = dict(load_file(path))
    except msgspec.ValidationError as error:
        raise FormatError(f"fitted of {folder / DESCRIPTION} cannot be read ({error}); fit the router again.") from None
    except SafetensorError as error:
        raise FormatError(f"{path} is no whole safetensors file ({error}); fit the router again.") from None
    defaults = {name: value for name, value in msgspec.to_builtins(config).items() if name not in written}
    description = written | defaults | {"dial": {"reference_cost_usd": config.reference_cost_usd}}
    return description, tensors


def link_backbone(source: Path, folder: Path) -> None:
    """Puts the backbone's files beside the head: hard links where the file system allows it, copies elsewhere."""
    if source.resolve() == folder.resolve():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in BACKBONE_PATTERNS:
        for path in source.glob(pattern):
            target = folder / path.name
            if path.name in (DESCRIPTION, TENSORS) or (target.exists() and target.samefile(path)):
                continue
            if target.exists():
                raise InputError(f"{target} is there and is not that of {source}; choose an empty folder.")
            try:
                os.link(path.resolve(), target)
            except OSError:
                shutil.copyfile(path, target)
