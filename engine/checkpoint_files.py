"""Which files of a folder are the checkpoint: one safetensors file, or the shards that an index names.

Enters: a folder. Leaves: open `SafetensorsFile`s by tensor name, and the hash of their contents. Refuses pickles, and
what lies outside the folder. Knows nothing of which tensors a backbone needs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from onebeat.engine.default_router import CACHE_FOLDER
from onebeat.engine.errors import FormatError, WeightError
from onebeat.engine.safetensors_file import SafetensorsFile
from onebeat.engine.strict_json import read_object, shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
HASHED_AT_ONCE_BYTES = 8 * 1024 * 1024
REMEMBERED_BYTES = 32 * 1024 * 1024
"""A file of at least this size is worth a note of its hash: it takes 40 ms to hash, 15 GB take 20 s."""


def refuse_pickles(folder: Path) -> None:
    """Raises `FormatError` when a pickle lies in the folder, even beside safetensors."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            raise FormatError(
                f"{path} is a pickle, which can run code when it is opened; onebeat reads only {SINGLE}: "
                "convert it with safetensors, or remove it from the folder."
            )


def open_shards(folder: Path) -> dict[str, SafetensorsFile]:
    """Tensor name -> the file that holds it. Raises `FormatError` or `WeightError` in one sentence."""
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; give one that holds config.json and {SINGLE}.")
    refuse_pickles(folder)
    if (folder / SINGLE).is_file():
        file = SafetensorsFile(folder / SINGLE)
        return dict.fromkeys(file.entries, file)
    if (folder / INDEX).is_file():
        return _open_index(folder)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    raise FormatError(
        f"{folder} holds neither {SINGLE} nor {INDEX} (safetensors there: {', '.join(others) or 'none'}); "
        "fetch the checkpoint again."
    )


def _open_index(folder: Path) -> dict[str, SafetensorsFile]:
    index = folder / INDEX
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index} has a weight_map of {shown(weight_map)}; it must name a file for every tensor.")
    files: dict[str, SafetensorsFile] = {}
    for name in weight_map.values():
        if isinstance(name, str) and name in files:
            continue
        # A bare name is the only form that cannot leave the folder.
        if not isinstance(name, str) or not name.endswith(".safetensors") or name != Path(name).name or "\\" in name:
            raise FormatError(
                f"{index} names the shard {shown(name)}; a shard must be a .safetensors file inside {folder}."
            )
        if not (folder / name).is_file():
            raise WeightError(
                f"{index} names the shard {name!r}, which is not in {folder}; fetch the checkpoint again."
            )
        files[name] = SafetensorsFile(folder / name)
    for tensor, name in weight_map.items():
        if tensor not in files[name].entries:
            raise WeightError(
                f"{index} places {tensor!r} in {name}, which does not hold it; fetch the checkpoint again."
            )
    for name, file in files.items():
        for tensor in file.entries:
            if weight_map.get(tensor) != name:
                raise WeightError(
                    f"{folder / name} holds {tensor!r}, which {INDEX} places in {shown(weight_map.get(tensor))}; "
                    "fetch the checkpoint again."
                )
    return {tensor: files[name] for tensor, name in weight_map.items()}


def content_sha256(paths: Sequence[Path], cache_folder: Path = CACHE_FOLDER) -> str:
    """SHA-256 over the contents of `paths`. A file is hashed once and remembered until its size or times change."""
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(_file_sha256(path, cache_folder / "hashes")))
    return total.hexdigest()


def _file_sha256(path: Path, memory: Path) -> str:
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    seen = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note = memory / f"{hashlib.sha256(json.dumps(seen[:1]).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["seen"] == seen:
            return str(known["sha256"])
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASHED_AT_ONCE_BYTES):
            digest.update(piece)
    # A cache that cannot be written costs the next start a second reading, nothing else.
    with suppress(OSError):
        memory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory, delete=False, encoding="utf-8") as half:
            json.dump({"seen": seen, "sha256": digest.hexdigest()}, half)
        Path(half.name).replace(note)
    return digest.hexdigest()
