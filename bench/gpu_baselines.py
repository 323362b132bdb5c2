"""What torch offers for attention: its fused backends for one sequence, and what it has for packed ones.

Enters: a maker of q, k and v. Leaves: functions to time. A backend that refuses raises when it is made; the report
then says so and why.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

Run = Callable[[], object]
Inputs = Callable[[], tuple[Tensor, Tensor, Tensor]]


def sdpa_baselines(qkv: Inputs) -> dict[str, Callable[[], Run]]:
    """cuDNN and flash attention over one sequence, with grouped heads and with keys repeated ahead of time."""
    found: dict[str, Callable[[], Run]] = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        for grouped in (True, False):

            def baseline(backend: SDPBackend = backend, grouped: bool = grouped) -> Run:
                q, k, v = (x.transpose(0, 1)[None] for x in qkv())
                if not grouped:
                    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
                usable = backend if q.is_cuda else SDPBackend.MATH

                def run() -> Tensor:
                    with sdpa_kernel(usable):
                        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

                run()
                return run

            name = "SDPA cuDNN" if backend == SDPBackend.CUDNN_ATTENTION else "SDPA flash"
            found[name + (" grouped" if grouped else "")] = baseline
    return found


def packed_baselines(qkv: Inputs, bounds: Tensor, longest: int) -> dict[str, Callable[[], Run]]:
    """torch's nested (jagged) SDPA, and its variable-length attention where this torch has one."""

    def repeated() -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv()
        group = q.shape[1] // k.shape[1]
        return q.contiguous(), k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)

    def nested() -> Run:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(x, bounds.long(), max_seqlen=longest).transpose(1, 2)
            for x in repeated()
        )

        def run() -> Tensor:
            return scaled_dot_product_attention(q, k, v, is_causal=True)

        run()
        return run

    def varlen() -> Run:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = repeated()
        try:
            run = lambda: varlen_attn(q, k, v, bounds, bounds, longest, longest, is_causal=True)  # noqa: E731
            run()
        except TypeError:  # newer torch says causal by the window's right edge
            run = lambda: varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0))  # noqa: E731
            run()
        return run

    return {"SDPA nested": nested, "varlen_attn": varlen}
