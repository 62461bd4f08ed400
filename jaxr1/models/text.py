"""The text decoder: RMSNorm, grouped-query attention with rotary positions, SwiGLU; layers stacked and scanned.

Three entry points share one layer: `prefill` runs prompts and keeps their keys, `extend` runs packed responses against
those keys, `decode` runs one token per response with the responses' own cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxr1.nn.attention import causal_attention, decode_attention, strip_attention
from jaxr1.nn.layers import ACTIVATIONS, inverse_frequencies, mrope_angles, rms_norm, rotate
from jaxr1.nn.params import Param, Table, linear, stack, vector
from jaxr1.parallel import Rules, constrain


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes and options of a decoder, as its `config.json` states them."""

    vocab: int
    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_eps: float
    rope_theta: float
    mrope_sections: tuple[int, ...]
    qkv_bias: bool
    tied: bool
    activation: str = "silu"
    init_scale: float = 0.02


def text_table(cfg: TextConfig, prefix: str, head: str) -> Table:
    """The decoder's tensors. `prefix` is the Hugging Face name of the decoder, `head` that of the output matrix."""
    d, n, k, h, f = cfg.width, cfg.heads, cfg.kv_heads, cfg.head_size, cfg.mlp
    at, mlp = "layers.{}.self_attn", "layers.{}.mlp"
    layer: Table = {
        "attention_norm": vector(prefix + "layers.{}.input_layernorm.weight", (d,), (None,), "ones"),
        "q": linear(f"{prefix}{at}.q_proj.weight", (n, h), (d,), ("embed", "heads", None)),
        "k": linear(f"{prefix}{at}.k_proj.weight", (k, h), (d,), ("embed", "kv_heads", None)),
        "v": linear(f"{prefix}{at}.v_proj.weight", (k, h), (d,), ("embed", "kv_heads", None)),
        "o": linear(f"{prefix}{at}.o_proj.weight", (d,), (n, h), ("heads", None, "embed")),
        "mlp_norm": vector(prefix + "layers.{}.post_attention_layernorm.weight", (d,), (None,), "ones"),
        "gate": linear(f"{prefix}{mlp}.gate_proj.weight", (f,), (d,), ("embed", "mlp")),
        "up": linear(f"{prefix}{mlp}.up_proj.weight", (f,), (d,), ("embed", "mlp")),
        "down": linear(f"{prefix}{mlp}.down_proj.weight", (d,), (f,), ("mlp", "embed")),
    }
    if cfg.qkv_bias:
        layer["q_bias"] = vector(f"{prefix}{at}.q_proj.bias", (n, h), ("heads", None))
        layer["k_bias"] = vector(f"{prefix}{at}.k_proj.bias", (k, h), ("kv_heads", None))
        layer["v_bias"] = vector(f"{prefix}{at}.v_proj.bias", (k, h), ("kv_heads", None))
    layer = {key: dataclasses.replace(p, scale=cfg.init_scale) for key, p in layer.items()}
    table = {f"layers/{key}": p for key, p in stack(layer, cfg.layers).items()}
    size, axes = (cfg.vocab, d), ("vocab", "embed")
    table["embed"] = Param(size, axes, prefix + "embed_tokens.weight", size, scale=cfg.init_scale)
    table["norm"] = vector(prefix + "norm.weight", (d,), (None,), "ones")
    if not cfg.tied:
        table["head"] = Param(size, axes, head, size, scale=cfg.init_scale)
    return table


def head_matrix(params: dict) -> jax.Array:
    """[V, D]: the output matrix, which is the embedding where they are tied."""
    return params.get("head", params["embed"])


def _layer(cfg: TextConfig, w: dict, x: jax.Array, angle: jax.Array, attend: Callable) -> tuple[jax.Array, tuple]:
    """One decoder layer on x [..., D]; `attend(q, k, v) -> (out, kept)` decides who sees whom and what is kept."""
    h = rms_norm(x, w["attention_norm"], cfg.norm_eps)
    q = jnp.einsum("...d,dnh->...nh", h, w["q"])
    k = jnp.einsum("...d,dkh->...kh", h, w["k"])
    v = jnp.einsum("...d,dkh->...kh", h, w["v"])
    if cfg.qkv_bias:
        q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
    out, kept = attend(rotate(q, angle), rotate(k, angle), v)
    x = x + jnp.einsum("...nh,nhd->...d", out, w["o"])
    h = rms_norm(x, w["mlp_norm"], cfg.norm_eps)
    gated = ACTIVATIONS[cfg.activation](h @ w["gate"]) * (h @ w["up"])
    return x + gated @ w["down"], kept


def _angles(cfg: TextConfig, position: jax.Array) -> jax.Array:
    return mrope_angles(position, inverse_frequencies(cfg.head_size, cfg.rope_theta), cfg.mrope_sections)


def prefill(cfg: TextConfig, params: dict, x_bpd, position_3bp, length_b, rules: Rules, *, remat: bool = False):
    """Runs prompt rows.

    Args:
      x_bpd: embeddings [B, P, D].
      position_3bp: int32[3, B, P].
      length_b: int32[B], real positions of each row.
      remat: rematerialise each layer in the backward pass.

    Returns:
      Hidden states [B, P, D] after the final norm, and the prompt's keys and values, each [L, B, P, K, H].
    """
    angle = _angles(cfg, position_3bp)

    def step(x, w):
        x, kv = _layer(cfg, w, x, angle, lambda q, k, v: (causal_attention(q, k, v, length_b), (k, v)))
        return constrain(x, rules, "batch", None, None), kv

    x_bpd, kv_lbpkh = jax.lax.scan(jax.checkpoint(step) if remat else step, x_bpd, params["layers"])
    return rms_norm(x_bpd, params["norm"], cfg.norm_eps), kv_lbpkh


def extend(
    cfg: TextConfig,
    params: dict,
    prompt_kv,
    prompt_len_b,
    x_bstd,
    position_3bst,
    segment_bst,
    rules: Rules,
    *,
    remat: bool = False,
) -> jax.Array:
    """Runs packed responses against their prompts' keys.

    Args:
      prompt_kv: keys and values [L, B, P, K, H] of `prefill`.
      prompt_len_b: int32[B].
      x_bstd: embeddings [B, S, T, D].
      position_3bst: int32[3, B, S, T].
      segment_bst: int32[B, S, T], 0 for padding.

    Returns:
      Hidden states [B, S, T, D] after the final norm.
    """
    angle = _angles(cfg, position_3bst)

    def step(x, layer):
        w, kv = layer
        x, _ = _layer(
            cfg, w, x, angle, lambda q, k, v: (strip_attention(q, kv, prompt_len_b, (k, v), segment_bst), None)
        )
        return constrain(x, rules, "batch", None, None, None), None

    x_bstd, _ = jax.lax.scan(jax.checkpoint(step) if remat else step, x_bstd, (params["layers"], prompt_kv))
    return rms_norm(x_bstd, params["norm"], cfg.norm_eps)


def unstack(params: dict) -> list[dict]:
    """The stacked layers as a list. Taken before a decode loop: slicing inside it would copy every weight each step."""
    layers = params["layers"]
    return [{key: value[i] for key, value in layers.items()} for i in range(layers["q"].shape[0])]


def decode(
    cfg: TextConfig, layers: list[dict], norm, prompt_kv: list, prompt_len_b, own_kv: list, x_bsd, position_3bs, step
):
    """One token per response through all layers, writing cache slot `step`.

    Args:
      layers: from `unstack`.
      prompt_kv: per layer, keys and values [B, K, P, H].
      own_kv: per layer, keys and values [B, S, K, C, H].
      x_bsd: embeddings [B, S, D].
      position_3bs: int32[3, B, S].
      step: int32 scalar, the slot to write.

    Returns:
      Hidden states [B, S, D] after the final norm, and the new caches.
    """
    angle = _angles(cfg, position_3bs)
    caches = []
    for w, kv, (own_k, own_v) in zip(layers, prompt_kv, own_kv, strict=True):

        def attend(q, k, v, kv=kv, own_k=own_k, own_v=own_v):
            start = (0, 0, 0, step, 0)
            own_k = jax.lax.dynamic_update_slice(own_k, k[:, :, :, None].astype(own_k.dtype), start)
            own_v = jax.lax.dynamic_update_slice(own_v, v[:, :, :, None].astype(own_v.dtype), start)
            return decode_attention(q, kv, prompt_len_b, (own_k, own_v), step), (own_k, own_v)

        x_bsd, cache = _layer(cfg, w, x_bsd, angle, attend)
        caches.append(cache)
    return rms_norm(x_bsd, norm, cfg.norm_eps), caches
