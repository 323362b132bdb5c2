"""int8 decoder layers for x86-64 with AVX-512 VNNI, in C: compiled once by the machine's own gcc, as Triton does on a
GPU.

Enters: the folder that keeps the compiled library. Leaves: the library, or why this machine cannot have it; the torch
path of `engine.cpu_layer` takes its place then. Knows no engine.

The library is bound to the OpenMP runtime that torch has loaded, so that both share one team of threads: a second
runtime's workers would take turns with torch's for the same cores. It computes a known product before it is kept.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from onebeat.kernels.cpu.native.structures import Batch, Layer, self_check

SOURCES = ("product.c", "rows.c", "attention.c", "layer.c")
HEADER = "onebeat_cpu.h"
# No contraction and no -ffast-math: a row's bits must not depend on how the compiler cut a loop.
FLAGS = (
    *("-std=c11", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=off"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"),
)
COMPILE_TIMEOUT_S = 120
WANTED = os.environ.get("ONEBEAT_CPU_KERNELS", "native")
"""`torch` leaves the native kernels out. Read once, at import."""


@dataclass(frozen=True, slots=True)
class Native:
    """The compiled library, or None and one sentence that says why there is none."""

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def native_kernels(folder: Path) -> Native:
    """The library from `folder`, compiled into it first where it is missing. Never raises: there is another path."""
    if WANTED != "native":
        return Native(None, f"ONEBEAT_CPU_KERNELS is {WANTED!r}; unset it for the native kernels.")
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.cpu._is_vnni_supported():
        return Native(None, "this processor has no AVX-512 VNNI, which the native kernels are written for.")
    flags = _flags()
    here = Path(__file__).parent
    texts = [(here / name).read_bytes() for name in (HEADER, *SOURCES)]
    name = hashlib.sha256(b"\0".join([*texts, " ".join(flags).encode()])).hexdigest()[:32] + ".so"
    try:
        if (folder / name).is_file():
            return _open(folder / name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _compile(here, flags, folder, name)
    except OSError:
        with tempfile.TemporaryDirectory() as elsewhere:  # A loaded library outlives its file.
            return _compile(here, flags, Path(elsewhere), name)


def _flags() -> tuple[str, ...]:
    """With bfloat16 products where the processor has them (Zen 4, Sapphire Rapids); they are put together elsewhere."""
    return (*FLAGS, "-mavx512bf16") if torch.cpu._is_avx512_bf16_supported() else FLAGS


def _compile(here: Path, flags: tuple[str, ...], folder: Path, name: str) -> Native:
    """Compiles into a folder of its own and moves the checked library into place whole."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "gcc", "cc"))), None)
    if compiler is None:
        return Native(None, "no C compiler was found; install gcc for the native kernels.")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        built = Path(place) / name
        # OpenMP is not linked: its symbols are those of the runtime that torch has loaded.
        objects = [str(Path(place) / source.replace(".c", ".o")) for source in SOURCES]
        commands = [
            [compiler, *flags, "-c", str(here / source), "-o", target]
            for source, target in zip(SOURCES, objects, strict=True)
        ]
        for command in [*commands, [compiler, "-shared", *objects, "-o", str(built)]]:
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
            except subprocess.TimeoutExpired:
                return Native(None, f"{compiler} took longer than {COMPILE_TIMEOUT_S} s over the native kernels.")
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no message"])[0]
                return Native(None, f"{compiler} cannot compile the native kernels ({said}); gcc 9 or newer can.")
        found = _open(built)
        if found.library is None:
            return found
        if self_check(found.library):
            built.replace(folder / name)
            return Native(found.library, _where(folder))
        return Native(None, f"what {compiler} made of the native kernels computes a wrong product; try another gcc.")


def _open(path: Path) -> Native:
    for runtime in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError as error:
        return Native(None, f"the native kernels do not load ({error}); gcc's OpenMP is what they are written for.")
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.onebeat_workspace_bytes.restype = integer
    library.onebeat_workspace_bytes.argtypes = [ctypes.POINTER(Layer), integer, integer, integer]
    library.onebeat_layer.restype = None
    library.onebeat_layer.argtypes = [
        *(ctypes.POINTER(Layer), ctypes.POINTER(Batch), pointer, pointer, pointer, pointer, pointer, integer)
    ]
    return Native(library, _where(path.parent))


def _where(folder: Path) -> str:
    return f"int8 layers run in native kernels, compiled into {folder}"
