"""A folder that appears whole or not at all.

Enters: the folder that is wanted. Leaves: a hidden folder beside it to write into, and, when all went well, that folder
in its place by one rename. Knows nothing of what is written.

    with whole_folder(target) as half:
        (half / "config.json").write_text(...)

What a killed run leaves behind is never in the place of the target, and the next run for the same target removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onebeat.engine.errors import ConfigError
from onebeat.engine.strict_json import shown


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends without an exception.

    Raises `ConfigError` at once where `target` is there and not an empty folder, or cannot be written: enter it before
    any work starts.
    """
    refuse_taken(target)
    try:
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        half = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.half-", dir=target.parent))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{target} cannot be written ({why}); name another folder or free this one.") from None
    held = os.open(half, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield half
        half.chmod(0o755)
        for path in half.rglob("*"):
            _sync(path)
        refuse_taken(target)  # Somebody else may have been quicker.
        half.replace(target)
        _sync(target.parent)
    finally:
        os.close(held)
        shutil.rmtree(half, ignore_errors=True)


def refuse_taken(target: Path) -> None:
    """Raises `ConfigError` where `target` is there and not an empty folder."""
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{shown(str(target))} cannot be looked at ({why}); name another folder.") from None
    if taken:
        raise ConfigError(f"{target} is there already and not an empty folder; name a new folder.")


def _remove_leftovers(target: Path) -> None:
    """Half folders of runs that were killed: nobody holds their lock any more."""
    for path in target.parent.glob(f".{_literal(target.name[:100])}.half-*"):
        with suppress(OSError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)


def _literal(name: str) -> str:
    """`name` for a glob that takes it letter by letter."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sync(path: Path) -> None:
    """To the disk: a rename that survives a power cut must not outlive what it renames."""
    held = os.open(path, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)
