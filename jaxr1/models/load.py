"""From a Hugging Face directory, preset name or hub id to a model and its parameters, and back."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import jax

from jaxr1.checkpoints import huggingface, weights
from jaxr1.checkpoints.tensors import open_checkpoint
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.template import CHATML
from jaxr1.inputs.wording import Wording
from jaxr1.models import presets
from jaxr1.models.families.table import FAMILIES
from jaxr1.models.vlm import DTYPES, Model, describe
from jaxr1.nn.lora import ADAPTERS, merged
from jaxr1.nn.params import count, flatten, nest
from jaxr1.parallel import DEFAULT_RULES, Rules, single_device_mesh

LARGE = 10**9
"""Parameters of a model whose activations are not kept by default."""


def resolve(path: str | os.PathLike) -> Path:
    """Where a model lies: a directory, a preset (made in the cache on first use) or a hub id."""
    if str(path) in presets.PRESETS and not Path(path).is_dir():
        return presets.preset_directory(str(path))
    return huggingface.find_directory(path)


def load_model(
    path: str | os.PathLike,
    dtype: str = "float32",
    param_dtype: str | None = "float32",
    mesh: jax.sharding.Mesh | None = None,
    *,
    rules: Rules = DEFAULT_RULES,
    remat: bool | None = False,
) -> tuple[Model, dict]:
    """Loads a model.

    Args:
      path: a Hugging Face directory, a preset name ("tiny") or a hub id ("org/name").
      dtype: of the computation.
      param_dtype: of the parameters in memory; None is the checkpoint's own.
      mesh: devices to place them on; None is the first device.
      rules: logical axes to mesh axes.
      remat: rematerialise layers in the backward pass (less memory, a third more compute); None is
        for models of over a billion parameters.

    Returns:
      The model (frozen, hashable) and its parameter tree.

    Raises:
      CheckpointError: the directory does not hold a supported model; the message lists what is
        wrong.
      ValueError: an unknown dtype.
    """
    if param_dtype not in (None, *DTYPES):
        raise ValueError(f"param_dtype must be one of {', '.join(DTYPES)}, got {param_dtype!r}")
    directory = resolve(path)
    raw = huggingface.read_config(directory)
    param_dtype = param_dtype or _own_dtype(raw)
    model = describe(raw, dtype=dtype, rules=rules, remat=bool(remat))
    if remat is None:
        model = dataclasses.replace(model, remat=count(model.table()) > LARGE)
    family = FAMILIES[model.family]
    if family.head_decides(raw):
        tied = not any(name.endswith("lm_head.weight") for name in open_checkpoint(directory))
        model = dataclasses.replace(model, text=dataclasses.replace(model.text, tied=tied))
    tables = {layout: model.table(layout) for layout in family.layouts}
    flat = weights.load_params(directory, tables, param_dtype, mesh or single_device_mesh(), rules)
    return model, nest(flat)


def describe_model(path: str | os.PathLike, like: Model) -> Model:
    """The description of a model that is computed as another one is; reads no weights.

    Raises:
      CheckpointError: as `load_model`.
    """
    raw = huggingface.read_config(resolve(path))
    return describe(raw, dtype=like.dtype, rules=like.rules, remat=like.remat)


def load_processor(
    path: str | os.PathLike,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    template: str | None = None,
    *,
    system: str | None = None,
    question_template: str | None = None,
    video_fps: float | None = None,
    video_max_frames: int | None = None,
    video_max_pixels: int | None = None,
) -> Processor:
    """The processor of a model: its tokenizer, chat template and image settings.

    Args:
      path: as for `load_model`.
      min_pixels, max_pixels: bounds of the resized image in pixels; None is what the directory
        says.
      template: None is the directory's chat template; "r1_zero" the template for base models of
        VisualThinker; "chatml" or "internvl2_5" ChatML without or with InternVL's system turn.
      system: a system prompt for all conversations without one, or the name of a known one; "" is
        none, None is what an exported model was trained with, as for the next one.
      question_template: words around the question, which takes the place of "{question}" in them,
        or the name of known ones (`jaxr1.inputs.wording`).
      video_fps: frames taken for a second of video; None is what the directory says, as for the
        next two.
      video_max_frames: most frames taken of a video.
      video_max_pixels: most pixels of a resized frame (of all frames together for Qwen3-VL).

    Raises:
      CheckpointError: the directory lacks a file, or its type is not supported.
      ValueError: an unknown template or name, a question template without its place, a system
        prompt that the model cannot be asked with, a bound out of range, or bounds of videos for a
        model that takes none.
    """
    directory = resolve(path)
    raw = huggingface.read_config(directory)
    described = describe(raw)  # refuses what is not supported
    family, vision = FAMILIES[described.family], described.vision
    wording = Wording.read(directory).given(template, system, question_template)
    template = wording.template
    if template is None and family.own_template and raw.get("template") in CHATML:
        template = raw["template"]
    rules = None
    if family.media is not None and vision is not None:
        rules = family.media(raw, vision)
    processor = Processor.from_directory(
        directory,
        raw,
        rules,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        template=template,
        wording=wording,
    )
    bounds = {"fps": video_fps, "max_frames": video_max_frames, "max_pixels": video_max_pixels}
    given = {k: v for k, v in bounds.items() if v is not None}
    if not given:
        return processor
    if processor.videos is None:
        raise ValueError(f"a model of type {processor.family!r} takes no video")
    if video_max_pixels is not None:  # a lower upper bound lowers the lower bound with it
        given["min_pixels"] = min(processor.videos.min_pixels, video_max_pixels)
    return dataclasses.replace(processor, videos=processor.videos.replace(**given))


def _own_dtype(raw: dict) -> str:
    """The dtype that a parsed config.json gives the weights of its files."""
    return (
        raw.get("dtype")
        or raw.get("torch_dtype")
        or (raw.get("text_config") or {}).get("dtype")
        or "float32"
    )


def save_model(
    model: Model, params: dict, processor, path: str | os.PathLike, dtype: str | None = None
) -> Path:
    """Writes a complete Hugging Face directory that `load_model` and transformers read.

    Args:
      params: adapters among them are merged.
      processor: its directory gives tokenizer, chat template and image settings (with the bounds
        that it was loaded with); None leaves them out.
      dtype: of the weights; None is the checkpoint's own.

    Returns:
      The directory.
    """
    raw = json.loads(model.raw_config)
    own = _own_dtype(raw)
    out = Path(path)
    if model.lora is not None and ADAPTERS in params:
        params = merged(params, model.table(), model.lora)
    source = processor.directory if processor is not None else None
    changed = processor.changed_files() if processor is not None else None
    huggingface.save_directory(
        out, flatten(params), model.table(), model.raw_config, source, dtype or own, changed
    )
    return out
