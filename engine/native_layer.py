"""A decoder layer in int8 on a CPU with AVX-512 VNNI: one call into the native kernels.

Enters: states float32 [T, H] and a batch. Leaves: the next states. Knows no other device or precision. The same
mathematics, cache layout and order of rotating dimensions as `cpu_layer`, which stands in wherever the kernels cannot:
another processor, no compiler, a matrix kept in bfloat16. The call leaves the interpreter's lock free.

A row's bits depend on its prompt alone, whatever it is batched with.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from onebeat.engine.batch import Batch
from onebeat.engine.config import BackboneConfig
from onebeat.engine.layer import Matrix
from onebeat.engine.rotary import Rotation
from onebeat.kernels.cpu.native import structures

HEAD_STEP = 16
"""Head sizes are multiples of it: the kernels take so many dimensions at once."""

NATIVE_CHUNK_TOKENS = 64
"""What a backbone of native layers alone computes at a time. A chunk after a long context is the longest step that a
short prompt waits for, and from 64 rows on the kernels gain nothing from more. Attention takes keys in blocks of 32, so
any multiple of that would do."""


class NativeInt8Layer:
    """One decoder layer, all of whose matrices are int8. q and k rows, biases and norms are in paired order."""

    def __init__(
        self,
        library: ctypes.CDLL,
        config: BackboneConfig,
        matrices: Mapping[str, Matrix],
        biases: Mapping[str, Tensor | None],
        norms: Mapping[str, Tensor],
    ) -> None:
        """`matrices` and `biases` by the names of `structures.Layer`, gate_up interleaved; vectors are float32."""
        self._library = library
        self._owned: list[Tensor] = []
        fields: dict[str, structures.Matrix | int | None] = {}
        for name, matrix in matrices.items():
            assert matrix.scale is not None
            turned = structures.gates_beside_ups if name == "gate_up" else _unchanged
            packed = structures.packed(turned(matrix.weight), turned(matrix.scale), biases.get(name))
            fields[name] = packed.matrix
            self._owned += packed.owned
        for name, vector in norms.items():
            held = vector.contiguous()
            self._owned.append(held)
            fields[name] = held.data_ptr()
        self._layer = structures.Layer(
            **fields,
            norm_eps=config.norm_eps,
            score_scale=config.head_size**-0.5,
            hidden=config.hidden_size,
            query_heads=config.query_heads,
            key_heads=config.key_heads,
            head_size=config.head_size,
            window=config.window or 0,
        )

    def forward(
        self, x: Tensor, batch: Batch, rotation: Rotation, keys: Tensor | None, values: Tensor | None
    ) -> Tensor:
        """[T, H] -> [T, H]. `keys` and `values` [B, chunk_tokens, NKV, D] are this layer's cache, where there is
        one."""
        threads = torch.get_num_threads()
        shape = _shape_of(batch, rotation)
        space = _workspace(
            self._library.onebeat_workspace_bytes(ctypes.byref(self._layer), shape.tokens, shape.sequences, threads)
        )
        x, out = x.contiguous(), torch.empty_like(x)
        self._library.onebeat_layer(
            ctypes.byref(self._layer),
            ctypes.byref(shape),
            x.data_ptr(),
            out.data_ptr(),
            None if keys is None else keys.data_ptr(),
            None if values is None else values.data_ptr(),
            space.data_ptr(),
            threads,
        )
        return out


def fits(config: BackboneConfig, matrices: Mapping[str, Matrix]) -> bool:
    """Whether the native kernels can compute this layer."""
    return config.head_size % HEAD_STEP == 0 and all(matrix.scale is not None for matrix in matrices.values())


class _Held(threading.local):
    """What one thread's calls share: memory for the kernels, and the last batch's record."""

    space: Tensor = torch.empty(0, dtype=torch.uint8)
    batch: Batch | None = None
    turns: Tensor | None = None
    shape: structures.Batch = structures.Batch()


_HELD = _Held()


def _workspace(needed_bytes: int) -> Tensor:
    if _HELD.space.shape[0] < needed_bytes:
        _HELD.space = torch.empty(needed_bytes, dtype=torch.uint8)
    return _HELD.space


def _shape_of(batch: Batch, rotation: Rotation) -> structures.Batch:
    """The batch as the kernels read it; every layer of a pass reads the same."""
    turns = rotation.turns
    assert turns is not None
    if _HELD.batch is not batch or _HELD.turns is not turns:
        table = batch.block_table
        _HELD.batch, _HELD.turns = batch, turns
        _HELD.shape = structures.Batch(
            batch.tokens,
            batch.cu_seqlens.shape[0] - 1,
            batch.cu_seqlens.data_ptr(),
            turns.data_ptr(),
            None if batch.slots is None else batch.slots.data_ptr(),
            None if table is None else table.data_ptr(),
            None if batch.context_tokens is None else batch.context_tokens.data_ptr(),
            0 if table is None else table.shape[1],
            1 if batch.cache is None else batch.cache.chunk_tokens,
        )
    return _HELD.shape


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
