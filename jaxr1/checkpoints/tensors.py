"""Safetensors files: read through a memory map, tensor by tensor; written in shards with an index.

The format is a length, a JSON header and raw bytes, so nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(v): k for k, v in DTYPES.items()}
MAX_HEADER = 100 << 20  # bytes; a larger one is a damaged file
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint directory that cannot be used; the message lists what is wrong with it."""


class TensorFile:
    """One memory-mapped safetensors file.

    Raises:
      CheckpointError: the file is truncated or is no safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        size = path.stat().st_size
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
                raise CheckpointError(f"{path}: not a safetensors file, or truncated ({size} bytes)")
            try:
                self.header = json.loads(f.read(length))
                self.header.pop("__metadata__", None)
                entries = [(n, str(e["dtype"]), tuple(e["shape"]), *e["data_offsets"]) for n, e in self.header.items()]
                if any(min(begin, end, *shape) < 0 for _, _, shape, begin, end in entries):
                    raise ValueError("a negative size or offset")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                raise CheckpointError(f"{path}: damaged safetensors header: {e!r:.200}") from e
        self.start = 8 + length
        for name, kind, shape, begin, end in entries:
            dtype = DTYPES.get(kind)
            if dtype is None:
                raise CheckpointError(f"{path}: tensor {name!r} has the unsupported dtype {kind}")
            if self.start + end > size or end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
                raise CheckpointError(f"{path}: tensor {name!r} lies outside the file ({size} bytes): truncated?")
        self.bytes = np.memmap(path, np.uint8, "r")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def read(self, name: str) -> np.ndarray:
        """A view of the mapped bytes; pages are read as they are used."""
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        raw = self.bytes[self.start + begin : self.start + end]
        return raw.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


def open_checkpoint(directory: Path) -> dict[str, TensorFile]:
    """Which file holds which tensor, for a single file or shards with an index.

    Raises:
      CheckpointError: no weights, or shards that the index names are missing (all are listed).
    """
    index = directory / INDEX
    if index.is_file():
        try:
            where = {str(n): str(f) for n, f in json.loads(index.read_text())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{index}: damaged: {e!r:.200}") from e
        missing = sorted({f for f in where.values() if not (directory / f).is_file()})
        if missing:
            raise CheckpointError(f"{directory}: {INDEX} names shards that are missing: {', '.join(missing)}")
        files = {f: TensorFile(directory / f) for f in sorted(set(where.values()))}
        absent = sorted(n for n, f in where.items() if n not in files[f].header)
        if absent:
            raise CheckpointError(f"{directory}: tensors missing from the shard that {INDEX} names: {listed(absent)}")
        return {name: files[f] for name, f in where.items()}
    if (directory / SINGLE).is_file():
        file = TensorFile(directory / SINGLE)
        return dict.fromkeys(file.header, file)
    found = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
    raise CheckpointError(
        f"{directory}: no weights here (expected {SINGLE} or {INDEX}); the folder holds {', '.join(found) or 'nothing'}"
    )


def listed(names: Iterable[str], most: int = 12) -> str:
    """The first names, and how many more."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def write_checkpoint(directory: Path, tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int = 5 << 30) -> None:
    """Writes tensors in order into shards of at most `max_bytes` (one file where they fit), with an index."""
    shards: list[list[tuple[str, np.ndarray]]] = [[]]
    total = size = 0
    for name, array in tensors:
        if shards[-1] and size + array.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, array))
        size, total = size + array.nbytes, total + array.nbytes
    if len(shards) == 1:
        _write_file(directory / SINGLE, shards[0])
        return
    where = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / file, shard)
        where.update({name: file for name, _ in shard})
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))


def _write_file(path: Path, tensors: list[tuple[str, np.ndarray]]) -> None:
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors:
        end = offset + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, array in tensors:
            f.write(np.ascontiguousarray(array).tobytes())
        f.flush()
        os.fsync(f.fileno())
