"""Hugging Face directories in and out: find one, load it onto a mesh, write a complete one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxr1.checkpoints.tensors import CheckpointError, listed, open_checkpoint, write_checkpoint
from jaxr1.parallel import Rules, sharding

LAYOUTS = ("v5", "hub")
# Files beside the weights that belong to a complete directory.
COMPANIONS = ("config.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
              "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json", "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja")  # fmt: skip
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model")


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
    def names(self) -> list[str]: ...
    def from_hf(self, array: np.ndarray) -> np.ndarray: ...
    def to_hf(self, array: np.ndarray) -> np.ndarray: ...


Table = Mapping[str, TensorEntry]


def find_directory(path: str | os.PathLike) -> Path:
    """A local directory as it is, or the local snapshot of a hub id ("org/name"), fetched when it is not there yet.

    Only weights, JSON and tokenizer files are fetched; HF_HUB_OFFLINE is respected.

    Raises:
      CheckpointError: neither exists, or the hub cannot be reached; says which command fetches the model.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    text = str(path)
    parts = text.split("/")
    if len(parts) != 2 or not all(parts) or text.startswith((".", "~")) or directory.parent.is_dir():
        raise CheckpointError(f"{text!r} is no directory, no preset and no hub id of the form org/name")
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
    file = directory / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{directory}: config.json is missing")
    try:
        raw = json.loads(file.read_text())
    except ValueError as e:
        raise CheckpointError(f"{file}: not valid JSON: {e}") from e
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise CheckpointError(f"{file}: no model_type")
    return raw


def load_params(directory: Path, tables: Mapping[str, Table], dtype: str, mesh, rules: Rules) -> dict:
    """Loads the weights of a directory in whichever layout its files use.

    Args:
      tables: the model's parameter table under each layout's names.
      dtype: of the parameters in memory.
      mesh: devices to place them on.
      rules: logical axes to mesh axes.

    Returns:
      {path in the table: array}.

    Raises:
      CheckpointError: missing, unexpected or wrongly shaped tensors, all listed by name.
    """
    files = open_checkpoint(directory)
    fits = {layout: sum(n in files for p in t.values() for n in p.names()) for layout, t in tables.items()}
    table = tables[max(fits, key=lambda layout: fits[layout])]
    expected = {name: p for p in table.values() for name in p.names()}
    missing = [n for n in expected if n not in files]
    wrong = [
        f"{n} is {list(files[n].shape(n))}, config.json says {list(p.hf_shape)}"
        for n, p in expected.items()
        if n in files and files[n].shape(n) != p.hf_shape
    ]
    # A tied head is sometimes stored all the same; position buffers were stored by old versions.
    extra = [n for n in files if n not in expected and n != "lm_head.weight" and not n.endswith("rotary_emb.inv_freq")]
    problems = [("missing tensors", missing), ("tensors of another shape", wrong), ("unexpected tensors", extra)]
    if any(found for _, found in problems):
        text = "".join(f"\n  {what} ({len(found)}): {listed(found)}" for what, found in problems if found)
        raise CheckpointError(f"{directory}: the weights do not fit config.json{text}")

    flat = {}
    for path, p in table.items():
        host = np.empty(p.shape, jnp.dtype(dtype))
        if p.layers:
            for i, name in enumerate(p.names()):
                host[i] = p.from_hf(files[name].read(name))
        else:
            [name] = p.names()
            host[...] = p.from_hf(files[name].read(name))
        flat[path] = jax.device_put(host, sharding(mesh, p.axes, p.shape, rules))
    return flat


def hf_tensors(flat: Mapping[str, jax.Array], table: Table, dtype) -> list[tuple[str, np.ndarray]]:
    """(name, array) in Hugging Face names and layouts."""
    out = []
    for path, p in table.items():
        host = np.asarray(jax.device_get(flat[path]))
        for i, name in enumerate(p.names()):
            out.append((name, p.to_hf(host[i] if p.layers else host).astype(dtype)))
    return out


def save_directory(
    out: Path,
    flat: Mapping[str, jax.Array],
    table: Table,
    raw_config: str,
    companions: Path | None,
    dtype: str,
    changed: Mapping[str, str] | None = None,
) -> None:
    """Writes a complete Hugging Face directory by atomic rename; what stood there before is replaced.

    Args:
      flat: {path in the table: array}.
      table: the parameter table under the names to write.
      raw_config: the config.json to write, its dtype entries replaced.
      companions: a directory to take tokenizer and processor files from.
      dtype: of the weights.
      changed: texts of companion files to write in place of those in the directory.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    if companions:
        for name in COMPANIONS:
            if (companions / name).is_file():
                shutil.copyfile(companions / name, partial / name)
    for name, text in (changed or {}).items():
        (partial / name).write_text(text)
    config = json.loads(raw_config)
    for place in (config, config.get("text_config"), config.get("vision_config")):
        if isinstance(place, dict):
            for key in {"dtype", "torch_dtype"} & set(place):
                place[key] = dtype
    config.setdefault("torch_dtype" if "dtype" not in config else "dtype", dtype)
    (partial / "config.json").write_text(json.dumps(config, indent=2))
    write_checkpoint(partial, hf_tensors(flat, table, jnp.dtype(dtype)))
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)
