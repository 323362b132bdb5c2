"""What every wrapper checks before it allocates or launches.

Enters: the arguments of an op. Leaves: nothing, or a KernelError that names the argument, what it is and what is taken.
Costs about half a microsecond a tensor. Contents of tensors on a GPU are not read, for that would stop the stream (and
cannot happen while a graph is captured): the kernels clamp `cu_seqlens` to the tensors instead, so that a wrong one can
give wrong rows but never touch memory that is not theirs.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from onebeat.engine.errors import KernelError
from onebeat.kernels.cpu.hadamard import BLOCKS

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
INT8 = (torch.int8,)
INT32 = (torch.int32,)
INDEX = (torch.int32, torch.int64)
FLOAT32 = (torch.float32,)
HEAD_SIZES = (64, 96, 128)


def refuse(op: str, argument: str, got: object, takes: object) -> NoReturn:
    """Raises the one kind of sentence that every wrapper speaks."""
    raise KernelError(f"{op}: {argument} is {got}, but it takes {takes}")


def expect(
    op: str,
    name: str,
    tensor: Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
    device: torch.device | None = None,
    *,
    dense: bool = True,
) -> None:
    """Refuses a tensor of another dtype, shape (None: any size) or device, or one that is not contiguous.

    With `dense=False` only the last dimension has to be contiguous (slices of a fused qkv are fine).
    """
    if not isinstance(tensor, Tensor):
        refuse(op, name, f"a {type(tensor).__name__}", "a tensor")
    if tensor.dtype not in dtypes:
        refuse(op, name, tensor.dtype, " or ".join(str(dtype) for dtype in dtypes))
    got = tensor.shape
    fits = len(got) == len(shape)
    for size, want in zip(got, shape, strict=False):
        if want is not None and size != want:
            fits = False
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        refuse(op, f"{name}'s shape", list(got), f"[{wanted}]")
    if device is not None and tensor.device != device:
        refuse(op, f"{name}'s device", tensor.device, f"{device}, where the other tensors are")
    if tensor.is_contiguous():
        return
    if dense:
        refuse(op, name, f"not contiguous (strides {tensor.stride()})", "a contiguous tensor: call .contiguous()")
    if got[-1] > 1 and tensor.stride(-1) != 1:
        refuse(op, f"{name}'s last stride", tensor.stride(-1), "1: call .contiguous()")


def expect_heads(op: str, query_heads: int, key_heads: int, head_size: int) -> None:
    """Refuses head sizes that no kernel was built for, and groups that do not divide."""
    if head_size not in HEAD_SIZES:
        refuse(op, "the head size", head_size, "64, 96 or 128")
    if key_heads < 1 or query_heads % key_heads:
        refuse(op, "the number of query heads", query_heads, f"a multiple of the {key_heads} key heads")


def expect_block(op: str, name: str, width: int, hadamard: int) -> None:
    """Refuses a transform's block that no kernel was built for, and a width that is not made of whole blocks."""
    if hadamard != 1 and hadamard not in BLOCKS:
        refuse(op, "hadamard", hadamard, f"{', '.join(map(str, BLOCKS))} or 1")
    if width % hadamard:
        refuse(op, name, width, f"a multiple of the block {hadamard} (hadamard_block(width) gives one that fits)")


def expect_sequences(op: str, cu_seqlens: Tensor, tokens: int, max_seqlen: int, device: torch.device) -> None:
    """Refuses `cu_seqlens` that is not [S+1] int32; on the CPU also one that decreases or overruns."""
    expect(op, "cu_seqlens", cu_seqlens, INT32, (None,), device)
    if len(cu_seqlens) < 1:
        refuse(op, "cu_seqlens' length", 0, "the number of sequences and one more")
    if not isinstance(max_seqlen, int):
        refuse(
            op, "max_seqlen", f"a {type(max_seqlen).__name__}", "an int (no tensor: reading one would stop the stream)"
        )
    if max_seqlen < 0:
        refuse(op, "max_seqlen", max_seqlen, "the length of the longest sequence, 0 or more")
    if not cu_seqlens.is_cpu:
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != tokens:
        refuse(op, "cu_seqlens", f"from {bounds[0]} to {bounds[-1]}", f"from 0 to the {tokens} tokens given")
    previous = 0
    for bound in bounds:
        if bound < previous:
            refuse(op, "cu_seqlens", f"decreasing ({previous}, then {bound})", "starts that never decrease")
        if bound - previous > max_seqlen:
            refuse(op, "max_seqlen", max_seqlen, f"at least {bound - previous}, the length of a sequence in cu_seqlens")
        previous = bound


def expect_window(op: str, window: int | None) -> None:
    """Refuses a sliding window of no tokens."""
    if window is not None and window < 1:
        refuse(op, "window", window, "None or the number of tokens a query sees, itself included, 1 or more")


def expect_range(op: str, name: str, ids: Tensor, limit: int) -> None:
    """On the CPU, refuses ids outside [0, limit). On a GPU the kernels clamp them."""
    if ids.is_cpu and ids.numel():
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= limit:
            refuse(op, name, f"between {low} and {high}", f"0 to {limit - 1}")
