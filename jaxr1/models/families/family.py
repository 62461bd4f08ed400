"""What a family of models is: everything that differs from one `model_type` to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jaxr1.inputs.settings import MediaRules
from jaxr1.models.text import TextConfig, TextNames
from jaxr1.models.vit import VisionConfig, VisionNames
from jaxr1.nn.layers import ACTIVATIONS

TokenId = Callable[[str], Any]
"""The id of a token by its text."""


@dataclasses.dataclass(frozen=True)
class FileNames:
    """Hugging Face names of a model's tensors in one file layout."""

    text: TextNames
    vision: VisionNames | None = None


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes of a built-in model.

    With the hub's rotary base (10000) and sections, neighbouring columns of so small a head differ
    by a thousandth of a radian: the decoder could not tell the left digit from the right one. Hence
    the small base and the wide sections. Likewise `image_mean` is the grey of paper, so that what
    is left of a patch is ink.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    vision_width: int = 128
    vision_depth: int = 2
    vision_heads: int = 4
    vision_mlp_ratio: int = 4
    patch_size: int = 14
    vocab: int = 512
    min_pixels: int = 28 * 28
    max_pixels: int = 224 * 224
    tile: int = 56
    max_tiles: int = 1
    rope_theta: float = 10.0
    image_mean: float = 0.97
    image_std: float = 0.5
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class PresetFiles:
    """How a built-in model of a family is written.

    Attributes:
      name: that users call it by.
      config: its config.json, in the spelling of the family's files on the hub.
      images: its preprocessor_config.json, without mean and standard deviation.
      tokens: special tokens besides those of every preset.
    """

    name: str
    config: Callable[[Preset, TokenId], dict]
    images: Callable[[Preset], dict]
    tokens: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """The models of one `model_type`.

    Attributes:
      layouts: sets of names that files may use; the first one is what `save_model` writes.
      text: decoder of a parsed config.json. Raises KeyError for a missing size, ValueError for a
        setting that is not supported.
      names: the tensors' names in a layout, given the parsed config.json.
      vision: tower of a parsed config.json, given the decoder; None for text only.
      media: what prompts must know of the tower, given the parsed config.json; None for text only.
      head: who says whether the output matrix is the embedding: the settings, or the files where
        these do not agree with themselves (`head_decides`).
      own_template: config.json may name the template of prompts.
      preset: how its built-in model is written, None for none.
    """

    layouts: tuple[str, ...]
    text: Callable[[dict], TextConfig]
    names: Callable[[str, dict], FileNames]
    vision: Callable[[dict, TextConfig], VisionConfig] | None = None
    media: Callable[[dict, VisionConfig], MediaRules] | None = None
    head: Literal["settings", "files"] = "settings"
    own_template: bool = False
    preset: PresetFiles | None = None

    def head_decides(self, raw: dict) -> bool:
        """Whether the files say if the head is tied to the embedding: it is if they hold none.

        transformers goes by the outer setting of a config.json, and earlier versions of it by the
        nested one; where the two do not agree, or one is left out, both kinds of files exist.
        """
        text, outer = raw.get("text_config"), raw.get("tie_word_embeddings")
        if self.head == "settings" or not text or outer is True:
            return False
        return outer is None or outer != text.get("tie_word_embeddings", outer)


def activation(raw: dict, default: str) -> str:
    """The activation that settings name.

    Raises:
      ValueError: one that is not supported.
    """
    name = raw.get("hidden_act", default)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"config.json: hidden_act {name!r} is not supported ({known})")
    return name


def preset_text(preset: Preset) -> dict:
    """Settings of a preset's decoder that all families spell alike."""
    return {
        "vocab_size": preset.vocab,
        "hidden_size": preset.width,
        "intermediate_size": preset.mlp,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "num_key_value_heads": preset.kv_heads,
        "head_dim": preset.width // preset.heads,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_theta": preset.rope_theta,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "initializer_range": 0.05,
    }


def preset_head(model_type: str, architecture: str, token_id: TokenId) -> dict:
    """What every preset's config.json begins with."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
    }
