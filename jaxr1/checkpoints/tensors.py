"""Safetensors files: read through a memory map and written in shards, tensor by tensor.

The format is a length, a JSON header and raw bytes, so nothing in a file is ever executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from jaxr1.base.errors import UserError

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
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_HEADER = 100 << 20  # bytes; a larger one is a damaged file
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PROMPT_FILE = "jaxr1_prompt.json"  # what the model is asked with, see `inputs.wording`
SHARD_BYTES = 5 << 30
BLOCK_BYTES = 1 << 20


class CheckpointError(UserError):
    """A checkpoint directory that cannot be used; the message lists what is wrong with it."""


def read_json(file: Path, missing: dict | None = None) -> dict:
    """The JSON object in a file; `missing` where there is none.

    Raises:
      CheckpointError: the file is missing (and `missing` is None), or holds no JSON object.
    """
    if not file.is_file():
        if missing is None:
            raise CheckpointError(f"{file.parent}: {file.name} is missing")
        return missing
    try:
        found = json.loads(file.read_text())
    except ValueError as e:
        raise CheckpointError(f"{file}: not valid JSON: {e}") from e
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return found


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
                raise CheckpointError(
                    f"{path}: not a safetensors file, or truncated ({size} bytes)"
                )
            try:
                self.header = json.loads(f.read(length))
                self.header.pop("__metadata__", None)
                entries = [
                    (n, str(e["dtype"]), tuple(e["shape"]), *e["data_offsets"])
                    for n, e in self.header.items()
                ]
                if any(min(begin, end, *shape) < 0 for _, _, shape, begin, end in entries):
                    raise ValueError("a negative size or offset")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                raise CheckpointError(f"{path}: damaged safetensors header: {e!r:.200}") from e
            self.start = 8 + length
            for name, kind, shape, begin, end in entries:
                dtype = DTYPES.get(kind)
                if dtype is None:
                    raise CheckpointError(
                        f"{path}: tensor {name!r} has the unsupported dtype {kind}"
                    )
                if (
                    self.start + end > size
                    or end - begin != math.prod(shape) * np.dtype(dtype).itemsize
                ):
                    raise CheckpointError(
                        f"{path}: tensor {name!r} lies outside the file ({size} bytes): truncated?"
                    )
            self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def kind(self, name: str) -> str:
        """The dtype of a tensor as the format spells it, a key of `DTYPES`."""
        return self.header[name]["dtype"]

    def read(self, name: str) -> np.ndarray:
        """A view of the mapped bytes; pages are read as they are used."""
        begin, end = self.header[name]["data_offsets"]
        raw = self._bytes[self.start + begin : self.start + end]
        return raw.view(DTYPES[self.kind(name)]).reshape(self.shape(name))

    def sample(self, pieces: int = 64, size: int = 4096) -> bytes:
        """Bytes from places that are spread evenly over the tensors."""
        last = max(self.start, len(self._bytes) - size)
        starts = np.linspace(self.start, last, pieces).astype(int)
        return b"".join(self._bytes[start : start + size].tobytes() for start in starts)

    def drop(self, name: str) -> None:
        """Gives a tensor's mapped pages back: resident memory does not grow with what was read.

        Views of the tensor stay valid: what is used again is mapped again.
        """
        begin, end = (self.start + offset for offset in self.header[name]["data_offsets"])
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        # Windows has no such call; its pages go under pressure
        if end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)


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
        if outside := sorted({f for f in where.values() if not _is_plain(f)}):
            raise CheckpointError(
                f"{index}: names files outside the directory ({listed(map(repr, outside))}); "
                "accepted are names of files in it"
            )
        missing = sorted({f for f in where.values() if not (directory / f).is_file()})
        if missing:
            raise CheckpointError(
                f"{directory}: {INDEX} names shards that are missing: {', '.join(missing)}"
            )
        files = {f: TensorFile(directory / f) for f in sorted(set(where.values()))}
        absent = sorted(n for n, f in where.items() if n not in files[f].header)
        if absent:
            raise CheckpointError(
                f"{directory}: tensors missing from the shard that {INDEX} names: {listed(absent)}"
            )
        return {name: files[f] for name, f in where.items()}
    if (directory / SINGLE).is_file():
        file = TensorFile(directory / SINGLE)
        return dict.fromkeys(file.header, file)
    found = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
    raise CheckpointError(
        f"{directory}: no weights here (expected {SINGLE} or {INDEX}); the folder holds "
        f"{', '.join(found) or 'nothing'}"
    )


def _is_plain(name: str) -> bool:
    """Whether a name from an index stays in the index's directory."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def fingerprint(directory: Path) -> str:
    """A hash of a directory's weights: all names, types and shapes, and some of the bytes.

    Training moves nearly every number, so a few kilobytes here and there tell two models apart.
    """
    digest = hashlib.sha256()
    for file in sorted(set(open_checkpoint(directory).values()), key=lambda file: file.path.name):
        digest.update(json.dumps(file.header, sort_keys=True).encode())
        digest.update(file.sample())
    return digest.hexdigest()[:16]


def listed(names: Iterable[str], most: int = 12) -> str:
    """The first names, and how many more."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def itemised(problems: Mapping[str, Sequence[str]]) -> str:
    """One line for each kind of problem that has any: what, how many, and the first names."""
    lines = [f"\n  {what} ({len(n)}): {listed(n)}" for what, n in problems.items() if n]
    return "".join(lines)


def is_finite(array: np.ndarray) -> bool:
    """Whether no number of a floating-point array is NaN or infinite; looked at block by block."""
    rows = np.atleast_1d(array)
    step = max(1, BLOCK_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if block.dtype == ml_dtypes.bfloat16:
            # numpy asks values of a dtype that is not its own one at a time: exponents are bits
            found = (block.view(np.uint16) & 0x7F80) != 0x7F80
        else:
            found = np.isfinite(block)
        if not found.all():
            return False
    return True


def copy_into(
    source: np.ndarray, out: np.ndarray, after_block: Callable[[], None] = lambda: None
) -> None:
    """out[...] = source, block by block in the order in which `source` lies in memory.

    A block passes through a small buffer when its order in `out` is another: it is read (and cast)
    as it lies, and turned while it is in the processor's cache, which is several times faster than
    one transposed copy. Blocks also let a mapped source be dropped while the copy moves on.

    Args:
      source: any strides.
      out: of the same shape.
      after_block: called after each block of about BLOCK_BYTES.
    """
    if source.dtype == out.dtype:
        # numpy copies values of a dtype that is not its own (bfloat16) one call at a time: as
        # integers they are its own
        kind = np.dtype(f"u{out.dtype.itemsize}")
        source, out = source.view(kind), out.view(kind)
    if not source.size or not source.ndim:
        out[...] = source
        return
    order = sorted(
        range(source.ndim), key=lambda axis: -abs(source.strides[axis]) * (source.shape[axis] > 1)
    )
    turned = [axis for axis in order if source.shape[axis] > 1] != [
        i for i, n in enumerate(source.shape) if n > 1
    ]
    source, out = source.transpose(order), out.transpose(order)
    row, values = source[0], math.prod(source.shape[1:])
    # a turned block of few rows would write few neighbours at a time
    step = max(32 if turned else 1, BLOCK_BYTES // max(1, row.nbytes))
    # rows of the buffer are longer than they need be: at a distance of a power of two they would
    # push each other out of the cache
    buffer = (
        np.empty((min(step, len(source)), values + 32), out.dtype)[:, :values] if turned else None
    )
    for start in range(0, len(source), step):
        block = source[start : start + step]
        if buffer is not None:
            passed = buffer[: len(block)].reshape(block.shape)
            passed[...] = block
            block = passed
        out[start : start + step] = block
        after_block()


class Source(Protocol):
    """A tensor to write: a numpy array, or a `LazyTensor`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __array__(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are made when it is written.

    Attributes:
      shape, dtype: known before.
      make: returns the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.make()


def _bytes_of(tensor: Source) -> int:
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def write_checkpoint(
    directory: Path, tensors: Iterable[tuple[str, Source]], max_bytes: int = SHARD_BYTES
) -> None:
    """Writes tensors in order into shards of at most `max_bytes`, with an index if several.

    Which shard a tensor goes to is planned from the sizes alone, so that `LazyTensor`s are in
    memory one at a time.

    Raises:
      CheckpointError: a dtype that the format does not have.
      ValueError: a `LazyTensor` that makes something else than it said.
    """
    shards: list[list[tuple[str, Source]]] = [[]]
    total = size = 0
    for name, tensor in tensors:
        if np.dtype(tensor.dtype) not in NAMES:
            raise CheckpointError(
                f"{directory}: tensor {name!r}: safetensors has no dtype {tensor.dtype}"
            )
        if shards[-1] and size + _bytes_of(tensor) > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, tensor))
        size, total = size + _bytes_of(tensor), total + _bytes_of(tensor)
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


def _write_file(path: Path, tensors: list[tuple[str, Source]]) -> None:
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors:
        end = offset + _bytes_of(tensor)
        kind = NAMES[np.dtype(tensor.dtype)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            array = np.asarray(tensor)
            if (array.shape, array.dtype) != (tuple(tensor.shape), np.dtype(tensor.dtype)):
                raise ValueError(
                    f"{path}: {name}: planned {tensor.dtype}{tensor.shape}, got "
                    f"{array.dtype}{array.shape}"
                )
            f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array  # before the next one is made
        f.flush()
        os.fsync(f.fileno())
