"""Hugging Face directories: find one, read its config.json, write a complete one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxr1.checkpoints.tensors import (
    INDEX,
    PROMPT_FILE,
    SHARD_BYTES,
    SINGLE,
    CheckpointError,
    listed,
    read_json,
    write_checkpoint,
)
from jaxr1.checkpoints.weights import hf_tensors
from jaxr1.nn.params import Table
from jaxr1.parallel import is_main

# Files beside the weights that belong to a complete directory.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    PROMPT_FILE,
)
# Code is fetched to go along with an export of the original InternVL layout; it is not run here.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.py", "merges.txt", "tokenizer.model")


def find_directory(path: str | os.PathLike) -> Path:
    """A local directory as it is, or the snapshot of a hub id ("org/name"), fetched if need be.

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


def _of_a_model(path: Path) -> bool:
    """Whether a model's directory has files of this name."""
    return path.is_file() and (
        path.name in (*COMPANIONS, INDEX) or path.suffix in (".safetensors", ".py")
    )


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new directory to fill: takes the place of `out` at the end, vanishes on failure.

    A complete directory exists at every moment: the old one is moved aside, the new one moved in,
    and only then the old one deleted. What is killed between the two moves leaves the old one as
    `.NAME.PID.old`. Only a model is replaced: a folder without weights, and files that no model
    directory has, are somebody's.

    Raises:
      CheckpointError: `out` is a file, holds no weights, or other files than a model's.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file, not a directory")
    held = sorted(out.iterdir()) if out.is_dir() else []
    foreign = [path.name for path in held if not _of_a_model(path)]
    if not foreign and not any((out / name).is_file() for name in (SINGLE, INDEX)):
        foreign = [path.name for path in held]  # no model: whatever is there is somebody's
    if foreign:
        raise CheckpointError(
            f"{out} holds {listed(foreign, 3)}, which would be lost: give a new or empty "
            f"directory, or one that holds a model ({SINGLE} or {INDEX}) and nothing else"
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
    """Writes a complete Hugging Face directory; one that was there is replaced at the end.

    Where arrays lie on several hosts the main one writes; the others give what they hold of each.

    Args:
      flat: {path in the table: array}.
      table: the parameter table under the names to write.
      raw_config: the config.json to write, its dtype entries replaced.
      companions: a directory to take tokenizer and processor files from.
      dtype: of the weights.
      changed: {name of a JSON file: keys to set in it}.
      max_bytes: of one file of weights; more of them are shards with an index.
    """
    tensors = hf_tensors(flat, table, jnp.dtype(dtype))
    if not is_main() and not all(x.is_fully_addressable for x in flat.values()):
        for _, tensor in tensors:
            tensor.make()
        return
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
        write_checkpoint(partial, tensors, max_bytes)
