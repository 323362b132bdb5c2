"""Triton, if it can be imported; what one GPU is; and a kernel launch as a value.

Enters: nothing. Leaves: `triton`, `tl`, `jit`, `Launch`, `Facts`. Knows no kernel. Where Triton cannot be imported the
CPU paths work all the same: `jit` then leaves functions alone, and launching one says why it cannot run.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from onebeat.engine.errors import KernelError

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    MISSING: str | None = None
except ImportError as error:
    MISSING = str(error)
    triton, TensorDescriptor = None, None
    tl = SimpleNamespace(constexpr=object)

__all__ = [
    "INTERPRETER",
    "MISSING",
    "Facts",
    "Launch",
    "TensorDescriptor",
    "facts",
    "fingerprint",
    "gdc_launch_dependents",
    "gdc_wait",
    "jit",
    "pdl_options",
    "power_of_two",
    "tl",
    "triton",
]

VARYING = ("rows", "tokens", "splits", "table_stride", "blocks", "window", "known_positions", "cache_rows")
"""Names of kernel parameters whose values never lead to another compilation."""

PDL_ASKED = os.environ.get("ONEBEAT_PDL", "0") == "1"
"""Programmatic dependent launch is off unless asked for: its gain has not been measured. Read once, at import."""


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function itself where there is no Triton.

    Sizes that change from step to step (those of VARYING) are not specialised: Triton would compile a kernel again
    for 1 token and for multiples of 16, seconds in the middle of serving.
    """
    if MISSING is not None:
        return function
    return triton.jit(do_not_specialize=[name for name in inspect.signature(function).parameters if name in VARYING])(
        function
    )


gdc_wait: Any = None if MISSING is not None else tl.extra.cuda.gdc_wait
gdc_launch_dependents: Any = None if MISSING is not None else tl.extra.cuda.gdc_launch_dependents


@dataclass(frozen=True, slots=True)
class Facts:
    """One GPU, as far as launches depend on it."""

    name: str
    """As the driver says it: "NVIDIA H200"."""
    arch: str
    """ "sm_90"; "gfx942"; "interpreter" for tensors on the CPU."""
    processors: int
    """Streaming multiprocessors."""

    @property
    def hopper_or_newer(self) -> bool:
        """Whether TMA and programmatic dependent launch exist."""
        return self.arch.startswith("sm_") and int(self.arch[3:]) >= 90

    @property
    def pdl(self) -> bool:
        """Whether kernels are launched before the one ahead has ended."""
        return PDL_ASKED and self.hopper_or_newer


INTERPRETER = Facts("interpreter", "interpreter", 3)
"""What a kernel sees under TRITON_INTERPRET=1: three processors, so that persistent loops go round more than once."""


@lru_cache(maxsize=64)
def facts(device: torch.device) -> Facts:
    """What the device is. Raises KernelError where Triton is missing."""
    if MISSING is not None:
        raise KernelError(f"this tensor is on {device}, which needs Triton, but Triton cannot be imported ({MISSING})")
    if device.type == "cpu":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    arch = getattr(properties, "gcnArchName", "").split(":")[0] if torch.version.hip else ""
    arch = arch or f"sm_{properties.major}{properties.minor}"
    return Facts(properties.name, arch, properties.multi_processor_count)


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch: run it, or hand it to the compiler without running it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    """The runtime arguments, in the kernel's order."""
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 3
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further compiler options."""

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told. It contracts no a * b + c: what is to be fused is written `tl.fma`, so that every
        tile size gives the same numbers."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False, **self.extra}

    def run(self) -> None:
        """Launches on the current stream."""
        if MISSING is not None:
            raise KernelError(f"a kernel needs Triton, but Triton cannot be imported ({MISSING})")
        if 0 not in self.grid:
            self.kernel[self.grid](*self.arguments, **self.constants, **self.options)


def pdl_options(enabled: bool) -> dict[str, Any]:
    """The compiler options of programmatic dependent launch."""
    return {"launch_pdl": True} if enabled else {}


def fingerprint() -> str:
    """A hash of the kernels' sources and the tuning table: whether measurements are of the code at hand."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), folder / "tuning.json"]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def power_of_two(number: int) -> int:
    """The least power of two that is not below the number."""
    return 1 << max(number - 1, 0).bit_length()
