"""Where the default router lives on this machine, and whether it is whole.

Enters: the environment (read once, when this module is imported). Leaves: a folder that `Router.from_pretrained` reads.
Knows nothing of how the folder was made: that is `engine.pull`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from onebeat.engine.errors import FetchError
from onebeat.engine.router_files import HEAD_FILES

BACKBONE = "smollm2-135m-instruct-q4_1-v1"
"""The backbone and the version of its conversion: a new conversion gets a new folder, never half of an old one."""

BACKBONE_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")

PACKAGED_HEAD = files("onebeat") / "default_router"
"""The head that this version of onebeat ships."""


def cache_folder_of(environment: Mapping[str, str]) -> Path:
    """Where everything that onebeat keeps lies, by these variables."""
    if own := environment.get("ONEBEAT_HOME"):
        return Path(own).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "onebeat"


CACHE_FOLDER = cache_folder_of(os.environ)
"""`$ONEBEAT_HOME`, else `$XDG_CACHE_HOME/onebeat`, else `~/.cache/onebeat`."""


def default_router_path(cache_folder: Path = CACHE_FOLDER) -> Path:
    """The folder the default router belongs in, there or not."""
    return cache_folder / "routers" / BACKBONE


def default_router_folder(cache_folder: Path = CACHE_FOLDER) -> Path:
    """The default router, ready to load, with this version's head beside its backbone.

    Raises `FetchError` when `onebeat pull` has not finished here.
    """
    folder = default_router_path(cache_folder)
    missing = [name for name in BACKBONE_FILES if not (folder / name).is_file()]
    if missing:
        raise FetchError(
            f"the default router is not in {folder} (no {missing[0]}); run `onebeat pull` once to fetch it."
        )
    refresh_head(folder)
    return folder


def refresh_head(folder: Path) -> None:
    """Puts the head of this version of onebeat beside the backbone, when an upgrade has brought another one."""
    for name in HEAD_FILES:
        try:
            packaged = PACKAGED_HEAD.joinpath(name).read_bytes()
        except FileNotFoundError as error:
            raise FetchError(f"this installation of onebeat lacks default_router/{name}; install it again.") from error
        target = folder / name
        if target.is_file() and target.read_bytes() == packaged:
            continue
        # Another process may be reading: it must see the old file or the new one, never a part.
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}-", delete=False) as half:
                half.write(packaged)
            Path(half.name).replace(target)
        except OSError as error:
            raise FetchError(
                f"{target} is from another version of onebeat and cannot be replaced ({error.strerror}); "
                "make the folder writable or run `onebeat pull` as its owner."
            ) from error
