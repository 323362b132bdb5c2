"""int8 matrices laid out for the CPU's own product, prepared once and multiplied many times.

Enters: an int8 matrix with a scale per row, then int8 activations. Leaves: float32 products, before the activations'
own scales. The int32 sums are exact, so a row of the product has the same bits whatever other rows are multiplied
with it.

oneDNN's prepacked product fuses the per-channel scale (measured on 2 cores of Zen 5, the four matrices of a
SmolLM2-135M layer: 0.63 ms against 0.67 ms for `torch._int_mm` and its epilogue at 128 rows, 2.15 ms against 2.47 ms
at 512). It takes activations as unsigned bytes around 128; its signed variant is a hundred times slower. On
processors without VNNI it may saturate between bytes, so that it is tried once on the worst case and `torch._int_mm`,
or float64, takes its place where it is not exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

ZERO_POINT = 128
"""Where 0 lies in an unsigned byte."""


class PackedMatrix:
    """int8 [N, K] with one float32 scale per row, in the layout of the fastest exact product of this machine."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        """weight int8 [N, K], scale float32 [N]; neither is kept where the product has a layout of its own."""
        self.rows, self.columns = weight.shape
        self.scale = scale.contiguous()
        self.multiply: Callable[[Tensor], Tensor] = _product_of(weight.contiguous(), self.scale, exact_product())
        """int8 [T, K] -> float32 [T, N]: sums times the scale of the row of the matrix. Overwrites its argument."""


def _product_of(weight: Tensor, scale: Tensor, kind: str) -> Callable[[Tensor], Tensor]:
    if kind == "prepacked":
        return _prepacked(weight, scale)
    if kind == "int_mm":
        turned = weight.t()
        return lambda rows: torch._int_mm(rows, turned).float().mul_(scale)
    wide = weight.double().t()
    return lambda rows: torch.mm(rows.double(), wide).float().mul_(scale)


def _prepacked(weight: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.onednn.qlinear_prepack(weight, [128, weight.shape[1]])
    zero_points = torch.zeros(weight.shape[0], dtype=torch.int64)
    product = torch.ops.onednn.qlinear_pointwise.default

    def multiply(rows: Tensor) -> Tensor:
        unsigned = rows.view(torch.uint8).bitwise_xor_(ZERO_POINT)
        out: Tensor = product(
            unsigned, 1.0, ZERO_POINT, packed, scale, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return out

    return multiply


@functools.cache
def exact_product() -> str:
    """The fastest product that is exact here: "prepacked", "int_mm" or "float64"."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-127, 128, (17, 192), dtype=torch.int8, generator=generator)
    rows[0], rows[1] = 127, -127
    weight = torch.randint(-127, 128, (33, 192), dtype=torch.int8, generator=generator)
    weight[0], weight[1] = 127, -127
    expected = (rows.double() @ weight.double().t()).float()
    for kind in ("prepacked", "int_mm"):
        try:
            got = _product_of(weight, torch.ones(33), kind)(rows.clone())
        except (RuntimeError, AttributeError, NotImplementedError):
            continue  # this build of torch has no such product; the next one is tried
        if torch.equal(got, expected):
            return kind
    return "float64"
