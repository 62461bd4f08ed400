"""Qwen2-VL (arXiv:2409.12191): its vision tower and merger, its config files and its Hugging Face names."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxr1.models.text import TextConfig, text_table
from jaxr1.nn.attention import segment_attention
from jaxr1.nn.layers import ACTIVATIONS, inverse_frequencies, layer_norm, rotate
from jaxr1.nn.params import Table, linear, stack, vector
from jaxr1.parallel import Rules, constrain

LAYER_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the Qwen2-VL vision tower."""

    depth: int
    width: int
    out_width: int
    mlp: int
    heads: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    channels: int
    activation: str
    rope_theta: float = 10000.0
    init_scale: float = 0.02

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels x frames x height x width."""
        return self.channels * self.temporal_patch_size * self.patch_size**2


def vision_config(raw: dict) -> VisionConfig:
    """From the `vision_config` of a config.json, hub or v5 spelling."""
    width = raw.get("embed_dim", 1280)
    return VisionConfig(
        depth=raw.get("depth", 32),
        width=width,
        out_width=raw.get("hidden_size", 3584),
        mlp=int(width * raw.get("mlp_ratio", 4)),
        heads=raw.get("num_heads", 16),
        patch_size=raw.get("patch_size", 14),
        temporal_patch_size=raw.get("temporal_patch_size", 2),
        merge_size=raw.get("spatial_merge_size", 2),
        channels=raw.get("in_channels", raw.get("in_chans", 3)),
        activation=raw.get("hidden_act", "quick_gelu"),
        rope_theta=(raw.get("rope_parameters") or {}).get("rope_theta", 10000.0),
        init_scale=raw.get("initializer_range", 0.02),
    )


def text_config(raw: dict) -> TextConfig:
    """From a config.json: v5 files nest `text_config`, hub files keep the text settings at the top.

    Raises:
      ValueError: a setting that this decoder does not have (sliding window, scaled rotary positions).
    """
    text = raw.get("text_config") or raw
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"config.json: rope type {kind!r} is not supported (default or mrope)")
    if text.get("use_sliding_window"):
        raise ValueError("config.json: use_sliding_window is not supported")
    heads, width = text["num_attention_heads"], text["hidden_size"]
    size = text.get("head_dim") or width // heads
    sections = tuple(rope.get("mrope_section", (16, 24, 24)))
    if sum(sections) != size // 2:
        raise ValueError(f"config.json: mrope_section {sections} must add up to half the head size, {size // 2}")
    return TextConfig(
        vocab=text["vocab_size"],
        width=width,
        mlp=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_size=size,
        norm_eps=text.get("rms_norm_eps", 1e-5),
        rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))),
        mrope_sections=sections,
        qkv_bias=True,
        tied=bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings", False)),
        activation=text.get("hidden_act", "silu"),
        init_scale=text.get("initializer_range", 0.02),
    )


def vision_table(cfg: VisionConfig, prefix: str) -> tuple[Table, Table]:
    """The tensors of the tower and of the merger (two parts, frozen apart)."""
    d, n, h, m = cfg.width, cfg.heads, cfg.width // cfg.heads, cfg.width * cfg.merge_size**2
    block, merger = prefix + "blocks.{}.", prefix + "merger."
    three = (cfg.channels, cfg.temporal_patch_size, cfg.patch_size, cfg.patch_size)
    blocks: Table = {
        "norm1": vector(block + "norm1.weight", (d,), (None,), "ones"),
        "norm1_bias": vector(block + "norm1.bias", (d,), (None,)),
        "qkv": linear(block + "attn.qkv.weight", (3, n, h), (d,), ("embed", None, "heads", None)),
        "qkv_bias": vector(block + "attn.qkv.bias", (3, n, h), (None, "heads", None)),
        "proj": linear(block + "attn.proj.weight", (d,), (n, h), ("heads", None, "embed")),
        "proj_bias": vector(block + "attn.proj.bias", (d,), (None,)),
        "norm2": vector(block + "norm2.weight", (d,), (None,), "ones"),
        "norm2_bias": vector(block + "norm2.bias", (d,), (None,)),
        "fc1": linear(block + "mlp.fc1.weight", (cfg.mlp,), (d,), ("embed", "mlp")),
        "fc1_bias": vector(block + "mlp.fc1.bias", (cfg.mlp,), ("mlp",)),
        "fc2": linear(block + "mlp.fc2.weight", (d,), (cfg.mlp,), ("mlp", "embed")),
        "fc2_bias": vector(block + "mlp.fc2.bias", (d,), (None,)),
    }
    tower = {f"blocks/{key}": p for key, p in stack(blocks, cfg.depth).items()}
    tower["patch"] = linear(
        prefix + "patch_embed.proj.weight", (d,), (math.prod(three),), (None, "embed"), hf_shape=(d, *three)
    )
    merge: Table = {
        "norm": vector(merger + "ln_q.weight", (d,), (None,), "ones"),
        "norm_bias": vector(merger + "ln_q.bias", (d,), (None,)),
        "fc1": linear(merger + "mlp.0.weight", (m,), (m,), ("embed", "mlp")),
        "fc1_bias": vector(merger + "mlp.0.bias", (m,), ("mlp",)),
        "fc2": linear(merger + "mlp.2.weight", (cfg.out_width,), (m,), ("mlp", "embed")),
        "fc2_bias": vector(merger + "mlp.2.bias", (cfg.out_width,), (None,)),
    }
    scaled = [{k: dataclasses.replace(p, scale=cfg.init_scale) for k, p in table.items()} for table in (tower, merge)]
    return scaled[0], scaled[1]


def table(text: TextConfig, vision: VisionConfig, visual: str, language: str, head: str) -> Table:
    """Every tensor of the model under its part: vision/..., merger/..., decoder/..."""
    tower, merger = vision_table(vision, visual)
    parts = {"vision": tower, "merger": merger, "decoder": text_table(text, language, head)}
    return {f"{part}/{path}": p for part, entries in parts.items() for path, p in entries.items()}


def tower(cfg: VisionConfig, params: dict, patch_rmc, place_rm2, segment_rm, rules: Rules, *, remat: bool = False):
    """The vision tower on patch rows.

    Args:
      patch_rmc: [R, M, channels * frames * height * width], patches in merge-block order.
      place_rm2: int32[R, M, 2], row and column of each patch in its image.
      segment_rm: int32[R, M], a number per image (or frame), 0 for padding.

    Returns:
      [R, M, D_vision].
    """
    x = patch_rmc.astype(params["patch"].dtype) @ params["patch"]
    inverse = inverse_frequencies(cfg.width // cfg.heads // 2, cfg.rope_theta)
    turned = place_rm2.astype(jnp.float32)[..., None] * inverse  # [R, M, 2, H / 4]: rows first, then columns
    angle = turned.reshape(*turned.shape[:2], -1)
    act = ACTIVATIONS[cfg.activation]

    def block(x, w):
        h = layer_norm(x, w["norm1"], w["norm1_bias"], LAYER_NORM_EPS)
        qkv = jnp.einsum("rmd,dcnh->crmnh", h, w["qkv"]) + w["qkv_bias"][:, None, None]
        out = segment_attention(rotate(qkv[0], angle), rotate(qkv[1], angle), qkv[2], segment_rm)
        x = x + jnp.einsum("rmnh,nhd->rmd", out, w["proj"]) + w["proj_bias"]
        h = layer_norm(x, w["norm2"], w["norm2_bias"], LAYER_NORM_EPS)
        x = x + act(h @ w["fc1"] + w["fc1_bias"]) @ w["fc2"] + w["fc2_bias"]
        return constrain(x, rules, "batch", None, None), None

    return jax.lax.scan(jax.checkpoint(block) if remat else block, x, params["blocks"])[0]


def merge(cfg: VisionConfig, params: dict, feature_rmd: jax.Array) -> jax.Array:
    """The merger: each block of merge_size^2 neighbouring patches becomes one token of the decoder.

    Returns:
      [R, M / merge_size^2, D].
    """
    h = layer_norm(feature_rmd, params["norm"], params["norm_bias"], LAYER_NORM_EPS)
    h = h.reshape(h.shape[0], h.shape[1] // cfg.merge_size**2, -1)
    h = jax.nn.gelu(h @ params["fc1"] + params["fc1_bias"], approximate=False)
    return h @ params["fc2"] + params["fc2_bias"]
