"""One safetensors file, read through a memory map, a tensor at a time.

Enters: a path. Leaves: the table of its tensors, and copies of single tensors. Nothing of a tensor stays mapped into
memory after it was copied, so that a process never grows by more than what it asked for. Knows nothing of models.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import torch

from onebeat.engine.errors import FormatError, WeightError
from onebeat.engine.strict_json import shown

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
INTEGERS = {"I8": torch.int8, "I64": torch.int64}
KNOWN_BYTES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
LONGEST_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
SLICE_BYTES = 32 * 1024 * 1024
"""Copied and checked at a time: small enough that the mapped pages never weigh beside the tensor itself."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Byte offset from the beginning of the file."""
    size_bytes: int


class SafetensorsFile:
    """An open file; `entries` names its tensors. Raises `WeightError` when the file is damaged or cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size_bytes = file.seek(0, 2)
                # Copy-on-write, because torch refuses to look at a read-only buffer; nothing is ever written.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size_bytes >= 8 else None
        except FileNotFoundError:
            raise WeightError(f"{path} does not exist; fetch the checkpoint again.") from None
        except OSError as error:
            raise WeightError(f"{path} cannot be read: {error.strerror}.") from error
        if self._map is None:
            raise self._damaged(f"it has {self.size_bytes} bytes, less than a header")
        self.entries = self._read_header(self._map)

    def read(self, name: str, into: torch.Tensor | None = None) -> torch.Tensor:
        """A copy of tensor `name` in the file's dtype, or converted into `into` (same shape, strided views allowed).

        Raises `WeightError` when it holds NaN or infinity. Checking costs about a tenth of copying.
        """
        entry = self.entries[name]
        dtype = torch_dtype(entry, name, self.path)
        out = torch.empty(entry.shape, dtype=dtype) if into is None else into
        if not entry.size_bytes:
            return out
        rows, row_bytes = (entry.shape[0], entry.size_bytes // entry.shape[0]) if entry.shape else (1, entry.size_bytes)
        step = max(1, SLICE_BYTES // max(1, row_bytes))
        for first in range(0, rows, step):
            count = min(step, rows - first)
            start = entry.start + first * row_bytes
            part = self._view(dtype, start, count * row_bytes)
            low, high = torch.aminmax(part)
            if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
                raise self._not_finite(part, name, first * (row_bytes // dtype.itemsize))
            if entry.shape:
                out[first : first + count].copy_(part.view(count, *entry.shape[1:]))
            else:
                out.copy_(part.view(()))
            del part
            self._release(start, count * row_bytes)
        return out

    def read_integers(self, name: str) -> torch.Tensor:
        """A copy of the int8 or int64 tensor `name`: onebeat's own int8 copies hold them, checkpoints do not."""
        entry = self.entries[name]
        if entry.dtype not in INTEGERS:
            raise self._damaged(f"{name!r} is {shown(entry.dtype)} where {' or '.join(INTEGERS)} belongs")
        out = torch.empty(entry.shape, dtype=INTEGERS[entry.dtype])
        flat = out.view(-1)
        step = SLICE_BYTES // out.itemsize
        for first in range(0, flat.shape[0], step):
            part = flat[first : first + step]
            start = entry.start + first * out.itemsize
            part.copy_(self._view(out.dtype, start, part.shape[0] * out.itemsize))
            self._release(start, part.shape[0] * out.itemsize)
        return out

    def read_rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """A copy of some rows of the matrix `name`, in that order, without reading the others."""
        entry = self.entries[name]
        dtype = torch_dtype(entry, name, self.path)
        row_bytes = entry.size_bytes // entry.shape[0]
        copied = torch.stack([self._view(dtype, entry.start + row * row_bytes, row_bytes).clone() for row in rows])
        if not bool(torch.isfinite(copied).all()):
            raise self._not_finite(copied.flatten(), name, 0)
        return copied

    def _view(self, dtype: torch.dtype, start: int, size_bytes: int) -> torch.Tensor:
        assert self._map is not None
        count = size_bytes // dtype.itemsize
        if start % dtype.itemsize == 0:
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)
        return torch.frombuffer(bytearray(self._map[start : start + size_bytes]), dtype=dtype)

    def _release(self, start: int, size_bytes: int) -> None:
        """Gives the pages back: a map counts as resident memory, and shards are larger than what stays loaded."""
        if hasattr(mmap, "MADV_DONTNEED") and self._map is not None:
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, start + size_bytes - first)

    def _read_header(self, file: mmap.mmap) -> dict[str, TensorEntry]:
        length = int.from_bytes(file[:8], "little")
        if length > LONGEST_HEADER_BYTES or 8 + length > self.size_bytes:
            raise self._damaged(f"its header claims {length} bytes and the file has {self.size_bytes}")
        try:
            header = msgspec.json.decode(file[8 : 8 + length])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise self._damaged(f"its header is not JSON ({error})") from None
        if not isinstance(header, dict):
            raise self._damaged(f"its header is {shown(header)}, not an object")
        return {name: self._entry(name, found, 8 + length) for name, found in header.items() if name != "__metadata__"}

    def _entry(self, name: str, found: Any, data_start: int) -> TensorEntry:
        try:
            dtype, shape, (begin, end) = found["dtype"], tuple(found["shape"]), found["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
                raise TypeError
            item_bytes = DTYPES[dtype].itemsize if dtype in DTYPES else KNOWN_BYTES.get(dtype)
        except (KeyError, TypeError, ValueError):
            raise self._damaged(f"its entry for {name[:100]!r} is {shown(found)}") from None
        size = end - begin
        if item_bytes is not None and prod(shape) * item_bytes != size:
            raise self._damaged(f"{name!r} is {dtype} {list(shape)} and has {size} bytes")
        if data_start + end > self.size_bytes:
            raise WeightError(
                f"{self.path} is truncated: {name!r} ends at byte {data_start + end} and the file has "
                f"{self.size_bytes}; fetch the checkpoint again."
            )
        return TensorEntry(dtype, shape, data_start + begin, size)

    def _not_finite(self, part: torch.Tensor, name: str, first: int) -> WeightError:
        where = int((~torch.isfinite(part)).nonzero()[0])
        return WeightError(
            f"{self.path} holds {part[where].item()} in {name!r} (element {first + where} of "
            f"{prod(self.entries[name].shape)}); every weight must be finite: fetch or export the checkpoint again."
        )

    def _damaged(self, how: str) -> WeightError:
        return WeightError(f"{self.path} is not a whole safetensors file: {how}; fetch the checkpoint again.")


def torch_dtype(entry: TensorEntry, name: str, path: Path) -> torch.dtype:
    """The torch dtype of a float tensor. Raises `FormatError` for integers and exotic floats."""
    if entry.dtype not in DTYPES:
        raise FormatError(
            f"{path} holds {name!r} as {shown(entry.dtype)}; weights are read from {', '.join(DTYPES)}: "
            "export the checkpoint unquantised."
        )
    return DTYPES[entry.dtype]
