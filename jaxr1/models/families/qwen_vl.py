"""The Qwen-VL models: pictures of any size, M-RoPE, video.

model_type                        tower            decoder                     file layouts
qwen2_vl     arXiv:2409.12191     rotary ViT       Qwen2, M-RoPE               hub, v5
qwen2_5_vl   arXiv:2502.13923     windows          Qwen2, M-RoPE               hub, v5
qwen3_vl     arXiv:2511.21631     deep features    Qwen3, interleaved M-RoPE   v5
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxr1.inputs.settings import MediaRules
from jaxr1.inputs.videos import PER_CLIP, PER_FRAME, VideoRules
from jaxr1.models.families.decoders import DECODERS, Decoder, Defaults, text_config
from jaxr1.models.families.family import (
    Family,
    FileNames,
    Preset,
    PresetFiles,
    TokenId,
    activation,
    preset_head,
    preset_text,
)
from jaxr1.models.text import TextConfig
from jaxr1.models.vit import VisionConfig, VisionNames

MEDIA_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
)
MEDIA_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_token_id": "<|vision_pad|>",
}
PREFIXES = {"v5": ("model.visual.", "model.language_model."), "hub": ("visual.", "model.")}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What distinguishes one of these families.

    Attributes:
      vision: tower of the settings of `vision_config`.
      block: Hugging Face names in a block of the tower that the others do not have.
      merger: names in the merger.
      deep: there is a merger for each of the deep features.
      video: how clips are sampled and sized.
      seconds: positions of a video count seconds, by `tokens_per_second`.
    """

    decoder: Decoder
    defaults: Defaults
    vision: Callable[[dict], VisionConfig]
    block: dict[str, str]
    merger: dict[str, str]
    deep: bool = False
    video: VideoRules = PER_FRAME
    seconds: bool = False

    def text(self, raw: dict) -> TextConfig:
        """The decoder; its settings are nested in newer files."""
        text = raw.get("text_config") or raw
        tied = raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")
        return text_config(text, self.decoder, self.defaults, tied=bool(tied), mrope=True)

    def tower(self, raw: dict, text: TextConfig) -> VisionConfig:
        return self.vision(raw.get("vision_config") or {})

    def names(self, layout: str, raw: dict) -> FileNames:
        visual, language = PREFIXES[layout]
        return FileNames(self.decoder.names(language, "lm_head"), self.vision_names(visual))

    def vision_names(self, prefix: str) -> VisionNames:
        block = {"norm1": "norm1", "norm2": "norm2", "proj": "attn.proj", "qkv": "attn.qkv"}
        names = {"patch": f"{prefix}patch_embed.proj", "position=": f"{prefix}pos_embed.weight"}
        names |= {role: f"{prefix}blocks.{{}}.{n}" for role, n in (block | self.block).items()}
        names |= {f"merger_{role}": f"{prefix}merger.{n}" for role, n in self.merger.items()}
        if self.deep:
            deep = f"{prefix}deepstack_merger_list.{{}}."
            names |= {f"deep_{role}": deep + n for role, n in self.merger.items()}
        return names

    def media(self, raw: dict, vision: VisionConfig) -> MediaRules:
        settings = raw.get("vision_config") or {}
        return MediaRules(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.merge_size,
            tokens=MEDIA_TOKENS,
            token_keys=tuple(MEDIA_IDS),
            image_pad="<|vision_start|>{}<|vision_end|>",
            video_pad="<|vision_start|>{}<|vision_end|>",
            video=self.video,
            tokens_per_second=settings.get("tokens_per_second", 4) if self.seconds else 0,
            mrope=True,
        )


# --- towers -------------------------------------------------------------------------------------
def _common(raw: dict, width: int, out_width: int, merge: int) -> dict[str, Any]:
    """Settings that the three towers spell alike."""
    return dict(
        depth=raw.get("depth", 32),
        width=width,
        out_width=out_width,
        merge_width=width * merge**2,
        merge_size=merge,
        heads=raw.get("num_heads", 16),
        temporal_patch_size=raw.get("temporal_patch_size", 2),
        channels=raw.get("in_channels", raw.get("in_chans", 3)),
        rotary_theta=float((raw.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
        init_scale=raw.get("initializer_range", 0.02),
    )


def _qwen2_vision(raw: dict) -> VisionConfig:
    width, merge = raw.get("embed_dim", 1280), raw.get("spatial_merge_size", 2)
    return VisionConfig(
        **_common(raw, width, raw.get("hidden_size", 3584), merge),
        mlp=int(width * raw.get("mlp_ratio", 4)),
        patch_size=raw.get("patch_size", 14),
        activation=activation(raw, "quick_gelu"),
    )


def _qwen2_5_vision(raw: dict) -> VisionConfig:
    merge, patch = raw.get("spatial_merge_size", 2), raw.get("patch_size", 14)
    window = raw.get("window_size", 112) // merge // patch * merge
    return VisionConfig(
        **_common(raw, raw.get("hidden_size", 1280), raw.get("out_hidden_size", 3584), merge),
        mlp=raw.get("intermediate_size", 3420),
        patch_size=patch,
        activation=activation(raw, "silu"),
        norm="rms",
        merger_norm="rms",
        gated=True,
        window=window,
        full=tuple(raw.get("fullatt_block_indexes", (7, 15, 23, 31))),
    )


def _qwen3_vision(raw: dict) -> VisionConfig:
    positions, merge = raw.get("num_position_embeddings", 2304), raw.get("spatial_merge_size", 2)
    side = round(positions**0.5)
    if side * side != positions:
        raise ValueError(f"config.json: num_position_embeddings {positions} is no square")
    return VisionConfig(
        **_common(raw, raw.get("hidden_size", 1152), raw.get("out_hidden_size", 3584), merge),
        mlp=raw.get("intermediate_size", 4304),
        patch_size=raw.get("patch_size", 16),
        activation=activation(raw, "gelu_pytorch_tanh"),
        patch_bias=True,
        position_side=side,
        deep=tuple(raw.get("deepstack_visual_indexes", (8, 16, 24))),
    )


# --- built-in models ----------------------------------------------------------------------------
def _media_ids(token_id: TokenId) -> dict:
    return {key: token_id(name) for key, name in MEDIA_IDS.items()}


def _preset_vision(preset: Preset, model_type: str) -> dict:
    """Settings of a preset's tower that all spell alike."""
    return {
        "initializer_range": 0.05,
        "depth": preset.vision_depth,
        "num_heads": preset.vision_heads,
        "patch_size": preset.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "model_type": model_type,
    }


def _wide_vision(preset: Preset) -> dict:
    """Those that the newer two spell alike."""
    return {
        "hidden_size": preset.vision_width,
        "out_hidden_size": preset.width,
        "intermediate_size": preset.vision_width * preset.vision_mlp_ratio,
        "in_channels": 3,
    }


def _half(preset: Preset) -> int:
    """Rotary frequencies of a head."""
    return preset.width // preset.heads // 2


def _flat_preset(preset: Preset, token_id: TokenId, head: tuple[str, str], vision: dict) -> dict:
    """The config.json of the older two, whose decoder's settings are not nested."""
    space = 7 * _half(preset) // 16  # for rows, and for columns; time gets the rest
    rope = {"type": "mrope", "mrope_section": [_half(preset) - 2 * space, space, space]}
    return {
        **preset_head(*head, token_id),
        **preset_text(preset),
        **_media_ids(token_id),
        "rope_scaling": rope,
        "vision_config": vision,
    }


def _qwen2_preset(preset: Preset, token_id: TokenId) -> dict:
    vision = _preset_vision(preset, "qwen2_vl") | {
        "embed_dim": preset.vision_width,
        "hidden_size": preset.width,
        "mlp_ratio": preset.vision_mlp_ratio,
        "in_chans": 3,
        "hidden_act": "quick_gelu",
    }
    head = ("qwen2_vl", "Qwen2VLForConditionalGeneration")
    return _flat_preset(preset, token_id, head, vision)


def _qwen2_5_preset(preset: Preset, token_id: TokenId) -> dict:
    vision = _preset_vision(preset, "qwen2_5_vl") | _wide_vision(preset)
    vision |= {
        "window_size": 4 * preset.patch_size,
        "fullatt_block_indexes": [preset.vision_depth - 1],
        "tokens_per_second": 2,
        "hidden_act": "silu",
    }
    head = ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration")
    return _flat_preset(preset, token_id, head, vision)


def _qwen3_preset(preset: Preset, token_id: TokenId) -> dict:
    side, space = -(-int(preset.max_pixels**0.5) // preset.patch_size), _half(preset) // 3
    vision = _preset_vision(preset, "qwen3_vl") | _wide_vision(preset)
    vision |= {
        "num_position_embeddings": side**2,
        "deepstack_visual_indexes": [0],
        "hidden_act": "gelu_pytorch_tanh",
    }
    rope = {
        "rope_type": "default",
        "mrope_interleaved": True,
        "rope_theta": preset.rope_theta,
        "mrope_section": [_half(preset) - 2 * space, space, space],
    }
    return {
        **preset_head("qwen3_vl", "Qwen3VLForConditionalGeneration", token_id),
        **_media_ids(token_id),
        "text_config": {
            **preset_text(preset),
            "model_type": "qwen3_vl_text",
            "rope_parameters": rope,
        },
        "vision_config": vision,
    }


def _preset_images(preset: Preset) -> dict:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": preset.min_pixels,
        "max_pixels": preset.max_pixels,
        "patch_size": preset.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }


# --- the families -------------------------------------------------------------------------------
def _family(kind: Kind, layouts: tuple[str, ...], preset: PresetFiles) -> Family:
    return Family(
        layouts=layouts,
        text=kind.text,
        names=kind.names,
        vision=kind.tower,
        media=kind.media,
        head="files",
        preset=preset,
    )


_TWO_LAYERS = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_GATED = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
_LINEAR = {"fc1": "mlp.linear_fc1", "fc2": "mlp.linear_fc2"}
_MERGER = {"norm": "ln_q", "fc1": "mlp.0", "fc2": "mlp.2"}
_QWEN2 = (DECODERS["qwen2"], Defaults(1e-5, 1e6))
_QWEN3 = (DECODERS["qwen3"], Defaults(1e-6, 5e5))

FAMILIES = {
    "qwen2_vl": _family(
        Kind(*_QWEN2, _qwen2_vision, _TWO_LAYERS, _MERGER),
        ("hub", "v5"),
        PresetFiles("tiny", _qwen2_preset, _preset_images),
    ),
    "qwen2_5_vl": _family(
        Kind(*_QWEN2, _qwen2_5_vision, _GATED, _MERGER, seconds=True),
        ("hub", "v5"),
        PresetFiles("tiny-qwen2_5_vl", _qwen2_5_preset, _preset_images),
    ),
    "qwen3_vl": _family(
        Kind(
            *_QWEN3,
            _qwen3_vision,
            _LINEAR,
            {"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"},
            deep=True,
            video=PER_CLIP,
        ),
        ("v5",),
        PresetFiles("tiny-qwen3_vl", _qwen3_preset, _preset_images),
    ),
}
