"""The InternVL models: pictures as tiles of one size, and a thumbnail.

model_type                          tower         decoder                          file layouts
internvl_chat   arXiv:2412.05271    InternViT     InternLM2, Qwen2, Qwen3, Llama   original
internvl        as transformers     InternViT     Qwen2, Qwen3, Llama              hub, v5
"""

from __future__ import annotations

from typing import Any

from jaxr1.inputs.settings import MediaRules
from jaxr1.models.families.decoders import decoder_of, text_config
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

MEDIA_TOKENS = ("<IMG_CONTEXT>", "<img>", "</img>", "<video>")


def _settings(raw: dict) -> dict:
    """Those of the decoder, in either spelling."""
    return raw.get("llm_config") or raw.get("text_config") or {}


def _original_text(raw: dict) -> TextConfig:
    """The code of the original makes the decoder from the decoder's own settings."""
    text = _settings(raw)
    nested, outer = text.get("tie_word_embeddings"), raw.get("tie_word_embeddings")
    return text_config(text, decoder_of(text), tied=bool(outer if nested is None else nested))


def _text(raw: dict) -> TextConfig:
    text = _settings(raw)
    tied = raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    return text_config(text, decoder_of(text), tied=bool(tied))


def _side(value: Any) -> int:
    """A size that files give as a number or as two equal ones."""
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise ValueError(
                f"config.json: only square images and patches are supported, got {list(value)}"
            )
        return int(value[0])
    return int(value)


def _vision(whole: dict, text: TextConfig, shuffle: str) -> VisionConfig:
    """The tower.

    Args:
      shuffle: the version of pixel shuffle where config.json does not say.
    """
    raw = whole["vision_config"]
    if not raw.get("use_mean_pooling", True):
        raise ValueError("config.json: vision_config.use_mean_pooling must be true")
    layer = whole.get("select_layer", whole.get("vision_feature_layer", -1))
    if layer != -1:
        raise ValueError(
            f"config.json: features of layer {layer} are not supported, only -1 (the last)"
        )
    if whole.get("ps_version", shuffle) != "v2":
        raise ValueError("config.json: ps_version must be v2 (v1 transposes the tokens of a tile)")
    merge = round(1 / whole.get("downsample_ratio", 0.5))
    patch, image = _side(raw.get("patch_size", 14)), _side(raw.get("image_size", 448))
    tile = whole.get("force_image_size") or image
    if tile % (patch * merge):
        raise ValueError(
            f"config.json: tiles of {tile} pixels do not "
            f"divide into {merge} x {merge} patches of {patch}"
        )
    return VisionConfig(
        depth=raw["num_hidden_layers"],
        width=raw["hidden_size"],
        mlp=raw["intermediate_size"],
        heads=raw["num_attention_heads"],
        patch_size=patch,
        temporal_patch_size=1,
        merge_size=merge,
        channels=raw.get("num_channels", 3),
        activation=activation(raw, "gelu"),
        out_width=text.width,
        merge_width=text.width,
        norm={"layer_norm": "layer", "rms_norm": "rms"}[raw.get("norm_type", "layer_norm")],
        norm_eps=raw.get("layer_norm_eps", 1e-6),
        qkv_bias=bool(raw.get("attention_bias", raw.get("qkv_bias", False))),
        patch_bias=True,
        rotary_theta=None,
        position_side=image // patch,
        tile_side=tile // patch,
        layer_scale=True,
        qk_norm=bool(raw.get("use_qk_norm", raw.get("qk_normalization", False))),
        merger_eps=1e-5,
        merger_norm_last=True,
        init_scale=raw.get("initializer_range", 0.02),
    )


def _media(raw: dict, vision: VisionConfig) -> MediaRules:
    return MediaRules(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.merge_size,
        tile_side=vision.tile_side,
        tokens=MEDIA_TOKENS,
        token_keys=("image_token_id", "video_token_id"),
        image_pad="<img>{}</img>\n",
        flat=True,
    )


# --- names --------------------------------------------------------------------------------------
def _original_names(layout: str, raw: dict) -> FileNames:
    decoder = decoder_of(_settings(raw))
    head = "language_model.output" if decoder.fused else "language_model.lm_head"
    return FileNames(decoder.names("language_model.model.", head), _original_vision())


def _original_vision() -> VisionNames:
    block = "vision_model.encoder.layers.{}."
    own = {
        "norm1": "norm1",
        "norm2": "norm2",
        "qkv": "attn.qkv",
        "proj": "attn.proj",
        "q_norm": "attn.q_norm",
        "k_norm": "attn.k_norm",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
        "scale1=": "ls1",
        "scale2=": "ls2",
    }
    return {
        "patch": "vision_model.embeddings.patch_embedding",
        "cls=": "vision_model.embeddings.class_embedding",
        "position=": "vision_model.embeddings.position_embedding",
        "merger_norm": "mlp1.0",
        "merger_fc1": "mlp1.1",
        "merger_fc2": "mlp1.3",
        **{role: block + name for role, name in own.items()},
    }


def _names(layout: str, raw: dict) -> FileNames:
    decoder = decoder_of(_settings(raw))
    if layout == "hub":
        text = decoder.names("language_model.model.", "language_model.lm_head")
        return FileNames(text, _vision_names(""))
    return FileNames(decoder.names("model.language_model.", "lm_head"), _vision_names("model."))


def _vision_names(prefix: str) -> VisionNames:
    block = prefix + "vision_tower.encoder.layer.{}."
    merger = prefix + "multi_modal_projector."
    own = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "proj": "attention.projection_layer",
        "q_norm": "attention.q_norm",
        "k_norm": "attention.k_norm",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
        "scale1=": "lambda_1",
        "scale2=": "lambda_2",
    }
    return {
        "patch": prefix + "vision_tower.embeddings.patch_embeddings.projection",
        "cls=": prefix + "vision_tower.embeddings.cls_token",
        "position=": prefix + "vision_tower.embeddings.position_embeddings",
        "merger_norm": merger + "layer_norm",
        "merger_fc1": merger + "linear_1",
        "merger_fc2": merger + "linear_2",
        **{role: block + name for role, name in own.items()},
    }


# --- built-in model -----------------------------------------------------------------------------
def _preset(preset: Preset, token_id: TokenId) -> dict:
    vision = {
        "initializer_range": 0.05,
        "hidden_size": preset.vision_width,
        "num_hidden_layers": preset.vision_depth,
        "num_attention_heads": preset.vision_heads,
        "intermediate_size": preset.vision_width * preset.vision_mlp_ratio,
        "image_size": [preset.tile, preset.tile],
        "patch_size": [preset.patch_size, preset.patch_size],
        "attention_bias": True,
        "model_type": "internvl_vision",
    }
    rope = {"rope_type": "default", "rope_theta": preset.rope_theta}
    text = {**preset_text(preset), "model_type": "qwen2", "rope_parameters": rope}
    return {
        **preset_head("internvl", "InternVLForConditionalGeneration", token_id),
        "image_token_id": token_id("<IMG_CONTEXT>"),
        "image_seq_length": (preset.tile // preset.patch_size // 2) ** 2,
        "downsample_ratio": 0.5,
        "text_config": text,
        "vision_config": vision,
    }


def _preset_images(preset: Preset) -> dict:
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": preset.max_tiles,
        "size": {"height": preset.tile, "width": preset.tile},
    }


# --- the families -------------------------------------------------------------------------------
FAMILIES = {
    "internvl_chat": Family(
        layouts=("original",),
        text=_original_text,
        names=_original_names,
        # Files that do not say mean v1, as the class of their config has it.
        vision=lambda raw, text: _vision(raw, text, "v1"),
        media=_media,
        own_template=True,
    ),
    "internvl": Family(
        layouts=("hub", "v5"),
        text=_text,
        names=_names,
        vision=lambda raw, text: _vision(raw, text, "v2"),
        media=_media,
        head="files",
        preset=PresetFiles(
            "tiny-internvl", _preset, _preset_images, ("<img>", "<IMG_CONTEXT>", "</img>")
        ),
    ),
}
