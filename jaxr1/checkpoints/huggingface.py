"""Hugging Face directories in and out: find one, load it onto a mesh, write a complete one."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxr1.checkpoints.tensors import (
    BLOCK_BYTES,
    FLOATS,
    INDEX,
    SHARD_BYTES,
    CheckpointError,
    LazyTensor,
    TensorFile,
    copy_into,
    listed,
    open_checkpoint,
    read_json,
    write_checkpoint,
)
from jaxr1.parallel import Rules, sharding

LAYOUTS = ("v5", "hub")
# Files beside the weights that belong to a complete directory.
COMPANIONS = ("config.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
              "processor_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
              "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.json",
              "chat_template.jinja")  # fmt: skip
# Code is fetched to go along with an export of the original InternVL layout; it is not run here.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.py", "merges.txt", "tokenizer.model")
# A stacked tensor of up to this size is put together on the host and placed at once; a larger one
# is placed layer by layer, so that what the host holds of it is one layer.
STACK_BYTES = 256 << 20


class TensorEntry(Protocol):
    """What a checkpoint needs to know of one tensor (`jaxr1.nn.params.Param` is one)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def axes(self) -> tuple[str | None, ...]: ...
    @property
    def hf_shape(self) -> tuple[int, ...]: ...
    @property
    def layers(self) -> int: ...
    @property
    def twin(self) -> str: ...
    def names(self) -> list[str]: ...
    def of(self, whole: np.ndarray) -> np.ndarray: ...
    def from_hf(self, whole: np.ndarray) -> np.ndarray: ...
    def to_hf(self, array: np.ndarray) -> np.ndarray: ...


Table = Mapping[str, TensorEntry]


def find_directory(path: str | os.PathLike) -> Path:
    """A local directory as it is, or the local snapshot of a hub id ("org/name"), fetched when it
    is not there yet.

    Only weights, JSON, tokenizer files and the code beside them (never run) are fetched;
    HF_HUB_OFFLINE is respected.

    Raises:
      CheckpointError: neither exists, or the hub cannot be reached; says which command fetches the
        model.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    text = str(path)
    parts = text.split("/")
    if (
        len(parts) != 2
        or not all(parts)
        or text.startswith((".", "~"))
        or directory.parent.is_dir()
    ):
        raise CheckpointError(
            f"{text!r} is no directory, no preset and no hub id of the form org/name"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(text, allow_patterns=list(HUB_FILES)))
    except Exception as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        patterns = " ".join(f"--include '{p}'" for p in HUB_FILES)
        raise CheckpointError(
            f"{text!r} is not on this machine and could not be fetched ({reason}).\n"
            f"Where there is a network, run:\n  hf download {text} {patterns}\n"
            "or give the path of a directory that holds the model."
        ) from e


def read_config(directory: Path) -> dict:
    """The parsed config.json.

    Raises:
      CheckpointError: it is missing or no JSON object.
    """
    raw = read_json(directory / "config.json")
    if "model_type" not in raw:
        raise CheckpointError(f"{directory / 'config.json'}: no model_type")
    return raw


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
        floating point, all listed by name.
    """
    files = open_checkpoint(directory)
    fits = {
        layout: sum(n in files for p in t.values() for n in p.names())
        for layout, t in tables.items()
    }
    table = tables[max(fits, key=lambda layout: fits[layout])]
    expected = {name: p for p in table.values() for name in p.names()}
    found = [n for n in expected if n in files]
    missing = [n for n in expected if n not in files]
    wrong = [
        f"{n} is {list(files[n].shape(n))}, config.json says {list(expected[n].hf_shape)} ({files[n].path.name})"
        for n in found
        if files[n].shape(n) != expected[n].hf_shape
    ]
    whole = [
        f"{n} is {files[n].kind(n)} ({files[n].path.name})"
        for n in found
        if files[n].kind(n) not in FLOATS
    ]
    # A tied head is sometimes stored all the same; position buffers were stored by old versions.
    twins = {p.twin: p.names()[0] for p in table.values() if p.twin in files}
    extra = [
        n
        for n in files
        if n not in expected and n not in twins and not n.endswith("rotary_emb.inv_freq")
    ]
    apart = [
        f"{n} is not {of}"
        for n, of in twins.items()
        if of in files and not _same_tensor(files, n, of)
    ]
    problems = [("missing tensors", missing), ("tensors of another shape", wrong),
                ("tensors that are not floating point", whole), ("unexpected tensors", extra),
                ("tensors that differ though tie_word_embeddings is true", apart)]  # fmt: skip
    if any(names for _, names in problems):
        text = "".join(
            f"\n  {what} ({len(names)}): {listed(names)}" for what, names in problems if names
        )
        raise CheckpointError(f"{directory}: the weights do not fit config.json{text}")
    return {
        path: _load_tensor(files, p, jnp.dtype(dtype), sharding(mesh, p.axes, p.shape, rules))
        for path, p in table.items()
    }


def _same_tensor(files: Mapping[str, TensorFile], one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint hold the same values, compared a few rows at a time."""
    a, b = files[one].read(one), files[other].read(other)
    rows = max(1, BLOCK_BYTES // max(1, a[:1].nbytes))
    same = a.shape == b.shape and a.dtype == b.dtype
    for start in range(0, len(a) if same else 0, rows):
        bits = [
            x[start : start + rows].view(np.uint8) for x in (a, b)
        ]  # of bfloat16, which numpy compares slowly
        same = same and np.array_equal(bits[0], bits[1])
        files[one].drop(one)
        files[other].drop(other)
    return same


Index = tuple[slice, ...]


def _load_tensor(
    files: Mapping[str, TensorFile], p: TensorEntry, dtype: np.dtype, target: NamedSharding
) -> jax.Array:
    """One entry of the table, placed as `target` says."""

    def read(name: str, index: Index, out: np.ndarray) -> None:
        file = files[name]
        copy_into(p.from_hf(file.read(name))[index], out, lambda: file.drop(name))
        file.drop(name)

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
    """An array of `shape` whose device slices are written by `fill(index, out)`, each distinct one
    once.
    """
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
    gc.collect(
        0
    )  # jax lets go of host buffers that were copied to a device when the collector runs
    return array


def hf_tensors(flat: Mapping[str, jax.Array], table: Table, dtype) -> list[tuple[str, LazyTensor]]:
    """The checkpoint of a parameter tree in Hugging Face names and layouts; each tensor is fetched
    when it is written.

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
        make = functools.partial(_assemble, flat, table, places, shape, np.dtype(dtype))
        out.append((name, LazyTensor(shape, np.dtype(dtype), make)))
    return out


def _assemble(flat, table: Table, places: list[tuple[str, int | None]], shape, dtype) -> np.ndarray:
    """One Hugging Face tensor from the entries that it consists of: (path, layer or None)."""
    whole = np.empty(shape, dtype)
    for path, layer in places:
        p = table[path]
        copy_into(p.to_hf(_fetch(flat[path], layer)), p.of(whole))
    return whole


def _fetch(x: jax.Array, layer: int | None) -> np.ndarray:
    """An array, or one layer of a stack, on the host."""
    if x.is_fully_addressable and [d.platform for d in x.devices()] == ["cpu"]:
        host = np.asarray(x)  # a view
        return host if layer is None else host[layer]
    # np.asarray keeps its copy on the host for as long as the array lives: here it dies with the
    # slice
    return np.asarray(
        jnp.copy(x) if layer is None else jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
    )


def _of_a_model(path: Path) -> bool:
    """Whether a model's directory has files of this name."""
    return path.is_file() and (
        path.name in (*COMPANIONS, INDEX) or path.suffix in (".safetensors", ".py")
    )


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new directory to fill, which takes the place of `out` when the block ends, and vanishes
    when it fails.

    A complete directory exists at every moment: the old one is moved aside, the new one moved in,
    and only then the old one deleted. What is killed between the two moves leaves the old one as
    `.NAME.PID.old`. Only a model is replaced: files that no model directory has are somebody's.

    Raises:
      CheckpointError: `out` is a file, or holds other files than a model's.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file, not a directory")
    foreign = sorted(p.name for p in out.iterdir() if not _of_a_model(p)) if out.is_dir() else []
    if foreign:
        raise CheckpointError(
            f"{out} holds {listed(foreign, 3)}, which would be lost: give a new or empty directory"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (
        out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("partial", "old")
    )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(partial, out)
        except BaseException:
            if old.exists():
                os.replace(old, out)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def save_directory(
    out: Path,
    flat: Mapping[str, jax.Array],
    table: Table,
    raw_config: str,
    companions: Path | None,
    dtype: str,
    changed: Mapping[str, Mapping] | None = None,
    max_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a complete Hugging Face directory; what stood there before is replaced once the new
    one is complete.

    Args:
      flat: {path in the table: array}.
      table: the parameter table under the names to write.
      raw_config: the config.json to write, its dtype entries replaced.
      companions: a directory to take tokenizer and processor files from.
      dtype: of the weights.
      changed: {name of a JSON file: keys to set in it}.
      max_bytes: of one file of weights; more of them are shards with an index.
    """
    with replacing(out) as partial:
        if companions:
            # Code that an original InternVL directory names in its config.json goes along as it is:
            # it is not run here.
            for name in (*COMPANIONS, *(p.name for p in companions.glob("*.py"))):
                if (companions / name).is_file():
                    shutil.copyfile(companions / name, partial / name)
        changed = dict(changed or {})
        config = {**json.loads(raw_config), **changed.pop("config.json", {})}
        for name, keys in changed.items():
            whole = {**read_json(partial / name, missing={}), **keys}
            (partial / name).write_text(json.dumps(whole, indent=2))
        for place in (
            config,
            *(config.get(key) for key in ("text_config", "llm_config", "vision_config")),
        ):
            if isinstance(place, dict):
                for key in {"dtype", "torch_dtype"} & set(place):
                    place[key] = dtype
        config.setdefault("torch_dtype" if "dtype" not in config else "dtype", dtype)
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        write_checkpoint(partial, hf_tensors(flat, table, jnp.dtype(dtype)), max_bytes)
