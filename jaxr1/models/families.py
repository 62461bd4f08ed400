"""Model families: from a config.json to sizes and options, and from roles to Hugging Face names.

    model_type                         tower               decoder                            file layouts
    qwen2_vl       arXiv:2409.12191    rotary ViT          Qwen2, M-RoPE                      hub, v5
    qwen2_5_vl     arXiv:2502.13923    windows             Qwen2, M-RoPE                      hub, v5
    qwen3_vl       arXiv:2511.21631    deep features       Qwen3, interleaved M-RoPE          v5
    internvl_chat  arXiv:2412.05271    InternViT, tiles    InternLM2, Qwen2, Qwen3, Llama     original
    internvl       the same, as transformers has it        Qwen2, Qwen3, Llama                hub, v5
    qwen2, qwen3, llama                none                text only                          hub

A layout is a set of names that files may use; the first one of a family is what `save_model` writes.
"""

from __future__ import annotations

from typing import Any

from jaxr1.models.text import TextConfig, TextNames, text_table
from jaxr1.models.vit import Names, VisionConfig, vision_table
from jaxr1.nn.layers import ACTIVATIONS, RopeScaling
from jaxr1.nn.params import Table

LAYOUTS: dict[str, tuple[str, ...]] = {
    "qwen2_vl": ("hub", "v5"),
    "qwen2_5_vl": ("hub", "v5"),
    "qwen3_vl": ("v5",),
    "internvl_chat": ("original",),
    "internvl": ("hub", "v5"),
    "qwen2": ("hub",),
    "qwen3": ("hub",),
    "llama": ("hub",),
}
FAMILIES = tuple(LAYOUTS)
QWEN_VL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
INTERNVL = ("internvl_chat", "internvl")
DECODERS = ("qwen2", "qwen3", "llama", "internlm2")
# Norm epsilon and rotary base where a config.json says nothing, as the classes of transformers have them.
DEFAULTS = {"qwen2_vl": (1e-5, 1e6), "qwen2_5_vl": (1e-5, 1e6), "qwen3_vl": (1e-6, 5e5)} | dict.fromkeys(
    DECODERS, (1e-6, 1e4)
)


def configs(raw: dict) -> tuple[TextConfig, VisionConfig | None]:
    """Decoder and tower of a parsed config.json whose model_type is one of `FAMILIES`.

    Raises:
      KeyError: a size is missing.
      ValueError: a setting that these functions do not have.
    """
    family = raw["model_type"]
    if family in QWEN_VL:
        text = raw.get("text_config") or raw
        vision = raw.get("vision_config") or {}
        tower = {"qwen2_vl": _qwen2_vision, "qwen2_5_vl": _qwen2_5_vision, "qwen3_vl": _qwen3_vision}[family]
        kind = "qwen3" if family == "qwen3_vl" else "qwen2"
        return _text(text, raw, kind, mrope=True), tower(vision)
    if family in INTERNVL:
        text = raw.get("llm_config") or raw.get("text_config") or {}
        if text.get("model_type") not in DECODERS:
            raise ValueError(
                f"config.json: the decoder {text.get('model_type')!r} is not supported; supported: {', '.join(DECODERS)}"
            )
        decoder = _text(text, raw, text["model_type"])
        return decoder, _intern_vision(raw["vision_config"], raw, decoder.width)
    return _text(raw, raw, family), None


def head_decides(raw: dict) -> bool:
    """Whether the files must say if the head is tied to the embedding: it is where they hold none.

    transformers goes by the outer setting of a config.json, and earlier versions of it by the nested one; where the two
    do not agree, or one is left out, both kinds of files exist.
    """
    text, outer = raw.get("text_config"), raw.get("tie_word_embeddings")
    if raw["model_type"] not in (*QWEN_VL, "internvl") or not text or outer is True:
        return False
    return outer is None or outer != text.get("tie_word_embeddings", outer)


def table(family: str, raw: dict, text: TextConfig, vision: VisionConfig | None, layout: str) -> Table:
    """Every tensor of the model under its part: vision/..., merger/..., decoder/..."""
    parts: dict[str, Table] = {}
    visual: Names
    if vision is None:
        names = TextNames.llama("model.", "lm_head")
    elif family in QWEN_VL:
        tower, language = {"v5": ("model.visual.", "model.language_model."), "hub": ("visual.", "model.")}[layout]
        names = TextNames.llama(language, "lm_head")
        parts["vision"], parts["merger"] = vision_table(vision, _qwen_names(family, tower))
    else:
        decoder = (raw.get("llm_config") or raw.get("text_config") or {}).get("model_type")
        make = TextNames.internlm2 if decoder == "internlm2" else TextNames.llama
        if layout == "original":
            head = "language_model.output" if decoder == "internlm2" else "language_model.lm_head"
            names, visual = make("language_model.model.", head), _intern_original()
        elif layout == "hub":
            names, visual = make("language_model.model.", "language_model.lm_head"), _intern_transformers("")
        else:
            names, visual = make("model.language_model.", "lm_head"), _intern_transformers("model.")
        parts["vision"], parts["merger"] = vision_table(vision, visual)
    parts["decoder"] = text_table(text, names)
    return {f"{part}/{path}": p for part, entries in parts.items() for path, p in entries.items()}


# ---------------------------------------------------------------- decoders


def _text(text: dict, raw: dict, kind: str, *, mrope: bool = False) -> TextConfig:
    """`text` holds the decoder's settings, `raw` the whole file; kind is one of `DECODERS`."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    rope_kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = _rope_scaling(rope, rope_kind)
    for key in ("use_sliding_window", "attention_bias", "mlp_bias", "bias", "dual_chunk_attention_config"):
        if text.get(key):
            raise ValueError(f"config.json: {key} is not supported for {kind}")
    if "sliding_attention" in (text.get("layer_types") or ()):
        raise ValueError("config.json: layer_types with sliding_attention is not supported")
    if (rope.get("partial_rotary_factor") or text.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("config.json: a partial_rotary_factor other than 1 is not supported")
    eps, theta = DEFAULTS.get(raw["model_type"], DEFAULTS[kind])
    heads, width = text["num_attention_heads"], text["hidden_size"]
    size = text.get("head_dim") or width // heads
    sections: tuple[int, ...] = ()
    if mrope:
        sections = tuple(rope.get("mrope_section", (24, 20, 20) if kind == "qwen3" else (16, 24, 24)))
        if sum(sections) != size // 2:
            raise ValueError(f"config.json: mrope_section {sections} must add up to half the head size, {size // 2}")
    outer, nested = raw.get("tie_word_embeddings"), text.get("tie_word_embeddings")
    # The code of the original InternVL makes the decoder from the decoder's own settings.
    own = raw["model_type"] == "internvl_chat" and nested is not None
    tied = nested if own else outer or nested
    return TextConfig(
        vocab=text["vocab_size"],
        width=width,
        mlp=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_size=size,
        norm_eps=text.get("rms_norm_eps", eps),
        rope_theta=float(rope.get("rope_theta", text.get("rope_theta", theta))),
        rope_scaling=scaling,
        mrope_sections=sections,
        mrope_interleaved=mrope and kind == "qwen3",
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied=bool(tied),
        activation=_activation(text, "silu"),
        init_scale=text.get("initializer_range", 0.02),
        context=text.get("max_position_embeddings") or 0,
    )


def _activation(raw: dict, default: str) -> str:
    name = raw.get("hidden_act", default)
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json: hidden_act {name!r} is not supported ({', '.join(ACTIVATIONS)})")
    return name


def _rope_scaling(rope: dict, kind: str) -> RopeScaling | None:
    """Raises ValueError for a kind of scaling that is not supported."""
    if kind in ("default", "mrope"):
        return None
    if kind == "dynamic":
        # Dynamic NTK stretches the frequencies of texts that are past the configured maximum. Here they are fixed at that
        # maximum, where they are still the plain ones: cached keys could not be turned again.
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise ValueError(f"config.json: rope type {kind!r} is not supported (default, mrope, dynamic, linear or llama3)")


# ---------------------------------------------------------------- towers


def _side(value: Any) -> int:
    """A size that files give as a number or as two equal ones."""
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise ValueError(f"config.json: only square images and patches are supported, got {list(value)}")
        return int(value[0])
    return int(value)


def _qwen_common(raw: dict, width: int, out_width: int, merge: int) -> dict[str, Any]:
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
    width = raw.get("embed_dim", 1280)
    return VisionConfig(
        **_qwen_common(raw, width, raw.get("hidden_size", 3584), raw.get("spatial_merge_size", 2)),
        mlp=int(width * raw.get("mlp_ratio", 4)),
        patch_size=raw.get("patch_size", 14),
        activation=_activation(raw, "quick_gelu"),
    )


def _qwen2_5_vision(raw: dict) -> VisionConfig:
    merge, patch = raw.get("spatial_merge_size", 2), raw.get("patch_size", 14)
    window = raw.get("window_size", 112) // merge // patch * merge
    return VisionConfig(
        **_qwen_common(raw, raw.get("hidden_size", 1280), raw.get("out_hidden_size", 3584), merge),
        mlp=raw.get("intermediate_size", 3420),
        patch_size=patch,
        activation=_activation(raw, "silu"),
        norm="rms",
        merger_norm="rms",
        gated=True,
        window=window,
        full=tuple(raw.get("fullatt_block_indexes", (7, 15, 23, 31))),
    )


def _qwen3_vision(raw: dict) -> VisionConfig:
    positions = raw.get("num_position_embeddings", 2304)
    side = round(positions**0.5)
    if side * side != positions:
        raise ValueError(f"config.json: num_position_embeddings {positions} is no square")
    return VisionConfig(
        **_qwen_common(
            raw, raw.get("hidden_size", 1152), raw.get("out_hidden_size", 3584), raw.get("spatial_merge_size", 2)
        ),
        mlp=raw.get("intermediate_size", 4304),
        patch_size=raw.get("patch_size", 16),
        activation=_activation(raw, "gelu_pytorch_tanh"),
        patch_bias=True,
        position_side=side,
        deep=tuple(raw.get("deepstack_visual_indexes", (8, 16, 24))),
    )


def _intern_vision(raw: dict, whole: dict, text_width: int) -> VisionConfig:
    if not raw.get("use_mean_pooling", True):
        raise ValueError("config.json: vision_config.use_mean_pooling must be true")
    layer = whole.get("select_layer", whole.get("vision_feature_layer", -1))
    if layer != -1:
        raise ValueError(f"config.json: features of layer {layer} are not supported, only -1 (the last)")
    # Original files that do not say mean v1, as the class of their config has it; transformers' layout knows v2 only.
    if whole.get("ps_version", "v1" if whole["model_type"] == "internvl_chat" else "v2") != "v2":
        raise ValueError("config.json: ps_version must be v2 (v1 transposes the tokens of a tile)")
    merge = round(1 / whole.get("downsample_ratio", 0.5))
    patch, image = _side(raw.get("patch_size", 14)), _side(raw.get("image_size", 448))
    tile = whole.get("force_image_size") or image
    if tile % (patch * merge):
        raise ValueError(f"config.json: tiles of {tile} pixels do not divide into {merge} x {merge} patches of {patch}")
    return VisionConfig(
        depth=raw["num_hidden_layers"],
        width=raw["hidden_size"],
        mlp=raw["intermediate_size"],
        heads=raw["num_attention_heads"],
        patch_size=patch,
        temporal_patch_size=1,
        merge_size=merge,
        channels=raw.get("num_channels", 3),
        activation=_activation(raw, "gelu"),
        out_width=text_width,
        merge_width=text_width,
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


def _qwen_names(family: str, prefix: str) -> Names:
    block, merger = prefix + "blocks.{}.", prefix + "merger."
    names = {
        "patch": prefix + "patch_embed.proj",
        "position=": prefix + "pos_embed.weight",
        **{key: f"{block}{name}" for key, name in (("norm1", "norm1"), ("norm2", "norm2"), ("proj", "attn.proj"))},
        "qkv": block + "attn.qkv",
    }
    two = (
        {"fc1": "mlp.linear_fc1", "fc2": "mlp.linear_fc2"}
        if family == "qwen3_vl"
        else {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    )
    mlp = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"} if family == "qwen2_5_vl" else two
    merge = {"norm": "ln_q", "fc1": "mlp.0", "fc2": "mlp.2"}
    if family == "qwen3_vl":
        merge = {"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"}
        names |= {f"deep_{key}": f"{prefix}deepstack_merger_list.{{}}.{name}" for key, name in merge.items()}
    return (
        names
        | {key: block + name for key, name in mlp.items()}
        | {f"merger_{key}": merger + name for key, name in merge.items()}
    )


def _intern_original() -> Names:
    block = "vision_model.encoder.layers.{}."
    own = {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "proj": "attn.proj", "q_norm": "attn.q_norm",
           "k_norm": "attn.k_norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "scale1=": "ls1", "scale2=": "ls2"}  # fmt: skip
    return {
        "patch": "vision_model.embeddings.patch_embedding",
        "cls=": "vision_model.embeddings.class_embedding",
        "position=": "vision_model.embeddings.position_embedding",
        "merger_norm": "mlp1.0",
        "merger_fc1": "mlp1.1",
        "merger_fc2": "mlp1.3",
        **{key: block + name for key, name in own.items()},
    }


def _intern_transformers(prefix: str) -> Names:
    block, merger = prefix + "vision_tower.encoder.layer.{}.", prefix + "multi_modal_projector."
    own = {"norm1": "layernorm_before", "norm2": "layernorm_after", "q": "attention.q_proj", "k": "attention.k_proj",
           "v": "attention.v_proj", "proj": "attention.projection_layer", "q_norm": "attention.q_norm",
           "k_norm": "attention.k_norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "scale1=": "lambda_1",
           "scale2=": "lambda_2"}  # fmt: skip
    return {
        "patch": prefix + "vision_tower.embeddings.patch_embeddings.projection",
        "cls=": prefix + "vision_tower.embeddings.cls_token",
        "position=": prefix + "vision_tower.embeddings.position_embeddings",
        "merger_norm": merger + "layer_norm",
        "merger_fc1": merger + "linear_1",
        "merger_fc2": merger + "linear_2",
        **{key: block + name for key, name in own.items()},
    }
