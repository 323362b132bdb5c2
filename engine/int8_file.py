"""onebeat's int8 copy of a backbone on disk: written tensor by tensor, checked tensor by tensor when read.

Enters: tensors by onebeat's names. Leaves: a safetensors file that is there whole or not at all, and a source of
matrices for `load_backbone`. Each matrix is `NAME` int8 with `NAME.scale` float32, or `NAME` bfloat16 where it is kept.
Every tensor has a sum of its words beside it, so that a damaged file is noticed for a tenth of the cost of copying it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from onebeat.engine.checkpoint_files import content_sha256
from onebeat.engine.errors import WeightError
from onebeat.engine.layer import Matrix
from onebeat.engine.safetensors_file import INTEGERS, SafetensorsFile

INT8_FILE = "int8.safetensors"
"""The name of the copy in a folder that `onebeat quantize` wrote."""
CHECK = "check."
"""Prefix of the int64 [1] tensor that holds another one's word sum."""
FORMAT = 3
"""Goes up when the same checkpoint would give another int8 copy. 3: rows and weights are Hadamard-transformed in runs,
as `kernels.cpu.hadamard.hadamard_block` says; products with a copy from before would be nonsense."""
FORMAT_NAME = "format"
"""The int64 [1] tensor that holds it."""
HEADER_BYTES_PER_TENSOR = 256
NAMES = {torch.int8: "I8", torch.int64: "I64", torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}


@dataclass(slots=True)
class Int8Writer:
    """Appends tensors to a file whose header is written last, so that no more than one is ever in memory."""

    file: IO[bytes]
    header_bytes: int
    entries: dict[str, dict[str, object]] = field(default_factory=dict)
    end: int = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor and its check."""
        tensor = tensor.detach().contiguous()
        self._append(name, tensor)
        self._append(CHECK + name, torch.tensor([word_sum(tensor)], dtype=torch.int64))

    def _append(self, name: str, tensor: Tensor) -> None:
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        self.file.write(raw.data)
        self.entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self.end, self.end + raw.nbytes],
        }
        self.end += raw.nbytes

    def finish(self) -> None:
        """Writes the header into the room left for it."""
        header = json.dumps(self.entries).encode()
        assert len(header) <= self.header_bytes, "more tensors were added than announced"
        self.file.seek(0)
        self.file.write(self.header_bytes.to_bytes(8, "little") + header.ljust(self.header_bytes))


@contextmanager
def int8_writer(path: Path, tensors: int) -> Iterator[Int8Writer]:
    """A writer for at most `tensors` tensors; the file appears at `path` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header_bytes = 2 * (tensors + 1) * HEADER_BYTES_PER_TENSOR
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".int8-", delete=False) as half:
        try:
            half.write(bytes(8 + header_bytes))
            writer = Int8Writer(half.file, header_bytes)
            writer.add(FORMAT_NAME, torch.tensor([FORMAT], dtype=torch.int64))
            yield writer
            writer.finish()
            half.flush()
            os.fsync(half.fileno())
            Path(half.name).chmod(0o644)
            Path(half.name).replace(path)
        except BaseException:
            Path(half.name).unlink(missing_ok=True)
            raise


class Int8File:
    """An int8 copy, open for reading. Raises `WeightError` for a damaged one, and for one of another format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        found = int(self.tensor(FORMAT_NAME)[0]) if FORMAT_NAME in self else "before 3"
        if found != FORMAT:
            raise WeightError(
                f"{path} is an int8 copy of format {found} and this onebeat reads format {FORMAT}; write it again with "
                "onebeat quantize."
            )

    def __contains__(self, name: object) -> bool:
        return name in self._file.entries

    def matrix(self, name: str) -> Matrix:
        """int8 [N, K] with its scale [N], or bfloat16 without where it is kept."""
        weight = self.tensor(name)
        return Matrix(weight, self.tensor(name + ".scale")) if weight.dtype == torch.int8 else Matrix(weight)

    def tensor(self, name: str) -> Tensor:
        """One tensor, checked, owned."""
        if name not in self or CHECK + name not in self:
            raise WeightError(f"{self.path} has no tensor {name!r}; write the int8 copy again.")
        integers = self._file.entries[name].dtype in INTEGERS
        tensor = self._file.read_integers(name) if integers else self._file.read(name)
        expected = int(self._file.read_integers(CHECK + name)[0])
        if word_sum(tensor) != expected:
            raise WeightError(
                f"{self.path} is damaged: the words of {name!r} sum to {word_sum(tensor)} and {expected} was written; "
                "write the int8 copy again."
            )
        return tensor

    def raw(self, name: str) -> Tensor | None:
        """A tensor that a head wants by its checkpoint's name, or None."""
        return self.tensor(name) if name in self else None

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of a matrix. Raises `WeightError` for the output matrix, which an int8 copy does not hold."""
        return self.tensor(name)[list(rows)]

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return content_sha256([self.path])


def word_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes taken as int64 words, modulo 2^64: any single damaged word changes it."""
    raw = tensor.reshape(-1).view(torch.uint8)
    whole = raw.shape[0] // 8 * 8
    return int(raw[:whole].view(torch.int64).sum() + raw[whole:].sum(dtype=torch.int64))
