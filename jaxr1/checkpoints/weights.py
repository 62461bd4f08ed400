"""The weights of a Hugging Face directory: onto a mesh, and back out of a parameter tree."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxr1.checkpoints.tensors import (
    BLOCK_BYTES,
    FLOATS,
    CheckpointError,
    LazyTensor,
    TensorFile,
    copy_into,
    is_finite,
    itemised,
    open_checkpoint,
)
from jaxr1.nn.params import Param, Table
from jaxr1.parallel import Rules, fetch, sharding

# A stacked tensor of up to this size is put together on the host and placed at once; a larger one
# is placed layer by layer, so that what the host holds of it is one layer.
STACK_BYTES = 256 << 20


def load_params(
    directory: Path, tables: Mapping[str, Table], dtype: str, mesh, rules: Rules
) -> dict:
    """Loads the weights of a directory in whichever layout its files use.

    The files are mapped, and every device gets its slice straight from the mapped tensors,
    transposed and cast. Besides the parameters themselves (on a CPU they are host memory) the host
    holds one tensor at a time: a slice of a layer, of a stack of up to STACK_BYTES, or of an
    embedding.

    Args:
      tables: the model's parameter table under each layout's names.
      dtype: of the parameters in memory.
      mesh: devices to place them on.
      rules: logical axes to mesh axes.

    Returns:
      {path in the table: array}.

    Raises:
      CheckpointError: missing, unexpected or wrongly shaped tensors or numbers that are not
        floating point, all listed by name; or a tensor with a number that is not finite.
    """
    files = open_checkpoint(directory)
    fits = {}
    for layout, table in tables.items():
        fits[layout] = sum(name in files for name in _names(table))
    table = tables[max(fits, key=lambda layout: fits[layout])]
    _check_tensors(directory, files, table)
    return {
        path: _load_tensor(files, p, jnp.dtype(dtype), sharding(mesh, p.axes, p.shape, rules))
        for path, p in table.items()
    }


def _names(table: Table) -> dict[str, Param]:
    """Each Hugging Face name of a table, with the entry that it belongs to."""
    names = {}
    for p in table.values():
        names.update(dict.fromkeys(p.names(), p))
    return names


def _check_tensors(directory: Path, files: Mapping[str, TensorFile], table: Table) -> None:
    """Refuses files with tensors that are missing, unknown, or of another shape or type."""
    expected = _names(table)
    # A tied head is sometimes stored all the same; position buffers were stored by old versions.
    twins = {p.twin: p.names()[0] for p in table.values() if p.twin in files}
    problems: dict[str, list[str]] = {
        "missing tensors": [],
        "tensors of another shape": [],
        "tensors that are not floating point": [],
        "unexpected tensors": [],
        "tensors that differ though tie_word_embeddings is true": [],
    }
    missing, shaped, typed, extra, apart = problems.values()
    for name, p in expected.items():
        if name not in files:
            missing.append(name)
            continue
        file = files[name]
        if file.shape(name) != p.hf_shape:
            shaped.append(
                f"{name} is {list(file.shape(name))}, config.json says {list(p.hf_shape)} "
                f"({file.path.name})"
            )
        if file.kind(name) not in FLOATS:
            typed.append(f"{name} is {file.kind(name)} ({file.path.name})")
    for name in files:
        if not (name in expected or name in twins or name.endswith("rotary_emb.inv_freq")):
            extra.append(name)
    for name, of in twins.items():
        if of in files and not _same_tensor(files, name, of):
            apart.append(f"{name} is not {of}")
    if any(problems.values()):
        raise CheckpointError(
            f"{directory}: the weights do not fit config.json{itemised(problems)}"
        )


def _same_tensor(files: Mapping[str, TensorFile], one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint hold the same values, compared a few rows at a time."""
    a, b = files[one].read(one), files[other].read(other)
    rows = max(1, BLOCK_BYTES // max(1, a[:1].nbytes))
    same = a.shape == b.shape and a.dtype == b.dtype
    for start in range(0, len(a) if same else 0, rows):
        # as bytes: numpy compares bfloat16 slowly
        first, second = (x[start : start + rows].view(np.uint8) for x in (a, b))
        same = same and np.array_equal(first, second)
        files[one].drop(one)
        files[other].drop(other)
    return same


Index = tuple[slice, ...]


def _load_tensor(
    files: Mapping[str, TensorFile], p: Param, dtype: np.dtype, target: NamedSharding
) -> jax.Array:
    """One entry of the table, placed as `target` says."""

    def read(name: str, index: Index, out: np.ndarray) -> None:
        file = files[name]
        copy_into(p.from_hf(file.read(name))[index], out, lambda: file.drop(name))
        file.drop(name)
        if not is_finite(out):
            raise CheckpointError(
                f"{file.path}: tensor {name!r} holds NaN or infinite numbers (as {dtype}): the "
                "file is damaged, or its training had failed"
            )

    names = p.names()
    if not p.layers:
        return _place(p.shape, dtype, target, lambda index, out: read(names[0], index, out))

    # The size of the whole stack decides, not that of a host's slices: all hosts must run the same
    # programs.
    if math.prod(p.shape) * dtype.itemsize <= STACK_BYTES:

        def read_layers(index: Index, out: np.ndarray) -> None:
            for i, name in enumerate(names[index[0]]):
                read(name, index[1:], out[i, ...])

        return _place(p.shape, dtype, target, read_layers)

    layer_target = NamedSharding(target.mesh, PartitionSpec(*target.spec[1:]))
    stack = jnp.zeros(p.shape, dtype, device=target)
    for i, name in enumerate(names):
        layer = _place(p.shape[1:], dtype, layer_target, functools.partial(read, name))
        stack = jax.block_until_ready(_layer_writer(target)(stack, layer, i))
    return stack


@functools.cache
def _layer_writer(target: NamedSharding) -> Callable:
    """(stack [L, ...], layer [...], i) -> the stack with its layer i replaced, in place."""
    # donated: two stacks of a large model do not fit on a device
    return jax.jit(
        lambda stack, layer, i: jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0),
        donate_argnums=0,
        out_shardings=target,
    )


def _place(
    shape: tuple[int, ...],
    dtype: np.dtype,
    target: NamedSharding,
    fill: Callable[[Index, np.ndarray], None],
) -> jax.Array:
    """An array whose distinct device slices are each written once by `fill(index, out)`."""
    made: dict[tuple, np.ndarray] = {}

    def of_device(index: Index | None) -> np.ndarray:
        assert index is not None  # jax's type allows None, its code never passes it
        ends = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
        if ends not in made:
            made[ends] = np.empty([stop - start for start, stop in ends], dtype)
            fill(index, made[ends])
        return made[ends]

    # waited for: slices of the next tensor are not read while those of this one are still on the
    # host
    array = jax.block_until_ready(
        jax.make_array_from_callback(shape, target, of_device, dtype=dtype)
    )
    made.clear()
    # jax lets go of host buffers that were copied to a device when the collector runs
    gc.collect(0)
    return array


def hf_tensors(flat: Mapping[str, jax.Array], table: Table, dtype) -> list[tuple[str, LazyTensor]]:
    """A parameter tree under Hugging Face names and layouts; fetched when written.

    Args:
      flat: {path in the table: array}.
      table: entries that share a name are the parts of that tensor.
      dtype: of the tensors.

    Returns:
      (name, tensor), in the order of the table.

    Raises:
      ValueError: the entries of one name do not fill the tensor, or overlap.
    """
    parts: dict[str, list[tuple[str, int | None]]] = {}
    for path, p in table.items():
        for i, name in enumerate(p.names()):
            parts.setdefault(name, []).append((path, i if p.layers else None))
    out = []
    for name, places in parts.items():
        shapes = {table[path].hf_shape for path, _ in places}
        shape = shapes.pop()
        rows = np.zeros(shape[:1], np.int32)
        for path, _ in places:
            table[path].of(rows)[...] += 1
        if shapes or (rows != 1).any():
            raise ValueError(
                f"{name}: {', '.join(path for path, _ in places)} are not the parts of one tensor"
            )
        make = functools.partial(_assemble, name, flat, table, places, shape, np.dtype(dtype))
        out.append((name, LazyTensor(shape, np.dtype(dtype), make)))
    return out


def _assemble(
    name: str, flat, table: Table, places: list[tuple[str, int | None]], shape, dtype
) -> np.ndarray:
    """One Hugging Face tensor from the entries that it consists of: (path, layer or None).

    Raises:
      CheckpointError: a number in it is not finite; such a file could not be loaded again.
    """
    whole = np.empty(shape, dtype)
    for path, layer in places:
        p = table[path]
        copy_into(p.to_hf(_fetch(flat[path], layer)), p.of(whole))
    if not is_finite(whole):
        raise CheckpointError(
            f"{name}: holds NaN or infinite numbers (as {dtype}), and is not written"
        )
    return whole


def _fetch(x: jax.Array, layer: int | None) -> np.ndarray:
    """An array, or one layer of a stack, on the host."""
    if x.is_fully_addressable and [d.platform for d in x.devices()] == ["cpu"]:
        host = np.asarray(x)  # a view
        return host if layer is None else host[layer]
    # Fetching keeps its copy on the host for as long as the array lives: here it dies with the
    # slice
    return fetch(
        jnp.copy(x) if layer is None else jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
    )
