"""The text decoder: RMSNorm, grouped-query attention, rotary positions, SwiGLU; scanned.

Three entry points share one layer: `prefill` runs prompts and keeps their keys, `extend` runs
packed responses against those keys, `decode` runs one token per response with the responses' own
cache.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxr1.nn.attention import causal_attention, decode_attention, strip_attention
from jaxr1.nn.layers import (
    ACTIVATIONS,
    RopeScaling,
    dense,
    inverse_frequencies,
    mrope_angles,
    rms_norm,
    rotate,
)
from jaxr1.nn.params import Param, Part, Table, linear, stack, vector
from jaxr1.parallel import Rules, constrain


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes and options of a decoder, as its `config.json` states them.

    Attributes:
      mrope_sections: shares of the rotary frequencies for time, rows and columns; () is ordinary
        RoPE.
      mrope_interleaved: the shares alternate (Qwen3-VL) instead of following each other.
      rope_scaling: how the frequencies are stretched, None for not at all.
      qk_norm: RMS norm of queries and keys over each head (Qwen3).
      tied: the output matrix is the embedding.
      context: tokens that the model was made for, 0 where its config.json does not say.
    """

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
    mrope_interleaved: bool = False
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = False
    activation: str = "silu"
    init_scale: float = 0.02
    context: int = 0


@dataclasses.dataclass(frozen=True)
class TextNames:
    """Hugging Face names of a decoder; "{}" is the layer, `qkv` InternLM2's fused matrix."""

    embed: str
    norm: str
    head: str
    layer: str
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    qkv: str = ""

    @classmethod
    def llama(cls, prefix: str, head: str) -> TextNames:
        """What Llama, Qwen2 and Qwen3 call them, under `prefix`; `head` is the output matrix's."""
        return cls(f"{prefix}embed_tokens", f"{prefix}norm", head, prefix + "layers.{}.")

    @classmethod
    def internlm2(cls, prefix: str, head: str) -> TextNames:
        """What InternLM2 (arXiv:2403.17297) calls them."""
        return cls(
            embed=f"{prefix}tok_embeddings",
            norm=f"{prefix}norm",
            head=head,
            layer=prefix + "layers.{}.",
            attention_norm="attention_norm",
            mlp_norm="ffn_norm",
            o="attention.wo",
            gate="feed_forward.w1",
            up="feed_forward.w3",
            down="feed_forward.w2",
            qkv="attention.wqkv",
        )


def text_table(cfg: TextConfig, names: TextNames) -> Table:
    """The decoder's tensors."""
    d, n, k, h, f = cfg.width, cfg.heads, cfg.kv_heads, cfg.head_size, cfg.mlp
    at = lambda name: f"{names.layer}{name}.weight"
    layer: Table = {
        "attention_norm": vector(at(names.attention_norm), (d,), (None,), "ones"),
        "o": linear(at(names.o), (d,), (n, h), ("heads", None, "embed")),
        "mlp_norm": vector(at(names.mlp_norm), (d,), (None,), "ones"),
        "gate": linear(at(names.gate), (f,), (d,), ("embed", "mlp")),
        "up": linear(at(names.up), (f,), (d,), ("embed", "mlp")),
        "down": linear(at(names.down), (d,), (f,), ("mlp", "embed")),
    }
    group = n // k
    # InternLM2 keeps, for each key head, its queries, the key and the value together.
    parts = {"q": (0, group), "k": (group, group + 1), "v": (group + 1, group + 2)}
    for key, (start, stop) in parts.items():
        heads, axis = (n, "heads") if key == "q" else (k, "kv_heads")
        part = Part((k, group + 2, h), 1, start, stop) if names.qkv else None
        name = names.qkv or getattr(names, key)
        layer[key] = linear(at(name), (heads, h), (d,), ("embed", axis, None), part=part)
        if cfg.qkv_bias:
            layer[f"{key}_bias"] = vector(
                f"{names.layer}{name}.bias", (heads, h), (axis, None), part=part
            )
    if cfg.qk_norm:
        layer["q_norm"] = vector(at(names.q_norm), (h,), (None,), "ones")
        layer["k_norm"] = vector(at(names.k_norm), (h,), (None,), "ones")
    layer = {key: dataclasses.replace(p, scale=cfg.init_scale) for key, p in layer.items()}
    table = {f"layers/{key}": p for key, p in stack(layer, cfg.layers).items()}
    size, axes = (cfg.vocab, d), ("vocab", "embed")
    twin = f"{names.head}.weight" if cfg.tied else ""
    table["embed"] = Param(
        size, axes, names.embed + ".weight", size, scale=cfg.init_scale, twin=twin
    )
    table["norm"] = vector(names.norm + ".weight", (d,), (None,), "ones")
    if not cfg.tied:
        table["head"] = Param(size, axes, names.head + ".weight", size, scale=cfg.init_scale)
    return table


def value_kernel(width: int) -> Param:
    """The value head: one row without a bias, drawn with a deviation of 1 / (width + 1), as in
    OpenRLHF.
    """
    return Param((width,), (None,), "value_head.weight", (1, width), scale=1 / (width + 1))


def head_matrix(params: dict) -> jax.Array:
    """[V, D]: the output matrix, which is the embedding where they are tied."""
    return params.get("head", params["embed"])


def _layer(
    cfg: TextConfig, w: dict, x: jax.Array, angle: jax.Array, attend: Callable
) -> tuple[jax.Array, tuple]:
    """One decoder layer; `attend(q, k, v) -> (out, kept)` says who sees whom, what is kept."""
    h = rms_norm(x, w["attention_norm"], cfg.norm_eps)
    q, k, v = (dense(h, w, key) for key in "qkv")
    if cfg.qk_norm:
        q, k = rms_norm(q, w["q_norm"], cfg.norm_eps), rms_norm(k, w["k_norm"], cfg.norm_eps)
    out, kept = attend(rotate(q, angle), rotate(k, angle), v)
    x = x + dense(out, w, "o", 2)
    h = rms_norm(x, w["mlp_norm"], cfg.norm_eps)
    gated = ACTIVATIONS[cfg.activation](dense(h, w, "gate")) * dense(h, w, "up")
    return x + dense(gated, w, "down"), kept


def _angles(cfg: TextConfig, position: jax.Array) -> jax.Array:
    inverse = inverse_frequencies(cfg.head_size, cfg.rope_theta, cfg.rope_scaling)
    return mrope_angles(position, inverse, cfg.mrope_sections, interleaved=cfg.mrope_interleaved)


KEPT = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("attention"),
)
"""What the backward pass keeps of a layer where memory allows: products, attention."""


def _scan(step: Callable, x: jax.Array, layers, deep: jax.Array | None, remat: bool):
    """Scans `step(x, layer) -> (x, kept)`; to the output of the first len(deep) layers features
    are added.

    One scan, which counts layers: two would cut the stacked layers, and copy them.
    """

    def numbered(x, both):
        number, layer = both
        x, kept = step(x, layer)
        if deep is not None:
            own = jnp.minimum(number, len(deep) - 1)
            x = jnp.where(number < len(deep), x + deep[own], x)
        return x, kept

    count = jax.tree.leaves(layers)[0].shape[0]
    run = jax.checkpoint(numbered, policy=None if remat else KEPT)
    return jax.lax.scan(run, x, (jnp.arange(count), layers))


def prefill(
    cfg: TextConfig,
    params: dict,
    x_bpd,
    position_bp3,
    length_b,
    rules: Rules,
    *,
    deep_kbpd=None,
    remat: bool = False,
):
    """Runs prompt rows.

    Args:
      x_bpd: embeddings [B, P, D].
      position_bp3: int32[B, P, 3].
      length_b: int32[B], real positions of each row.
      deep_kbpd: [K, B, P, D], added to the output of the first K layers (DeepStack), or None.
      remat: rematerialise each layer in the backward pass.

    Returns:
      Hidden states [B, P, D] after the final norm, and the prompt's keys and values, each [L, B, P,
      K, H].
    """
    angle = _angles(cfg, position_bp3)

    def step(x, w):
        x, kv = _layer(
            cfg, w, x, angle, lambda q, k, v: (causal_attention(q, k, v, length_b), (k, v))
        )
        return constrain(x, rules, "batch", None, None), kv

    x_bpd, kv_lbpkh = _scan(step, x_bpd, params["layers"], deep_kbpd, remat)
    return rms_norm(x_bpd, params["norm"], cfg.norm_eps), kv_lbpkh


def extend(
    cfg: TextConfig,
    params: dict,
    prompt_kv,
    prompt_len_b,
    x_bstd,
    position_bst3,
    segment_bst,
    rules: Rules,
    *,
    deep_kbstd=None,
    remat: bool = False,
) -> jax.Array:
    """Runs packed responses against their prompts' keys.

    Args:
      prompt_kv: keys and values [L, B, P, K, H] of `prefill`.
      prompt_len_b: int32[B].
      x_bstd: embeddings [B, S, T, D].
      position_bst3: int32[B, S, T, 3].
      segment_bst: int32[B, S, T], 0 for padding.
      deep_kbstd: as `prefill`'s, where responses hold media.

    Returns:
      Hidden states [B, S, T, D] after the final norm.
    """
    angle = _angles(cfg, position_bst3)

    def step(x, layer):
        w, kv = layer
        x, _ = _layer(
            cfg,
            w,
            x,
            angle,
            lambda q, k, v: (strip_attention(q, kv, prompt_len_b, (k, v), segment_bst), None),
        )
        return constrain(x, rules, "batch", None, None, None), None

    x_bstd, _ = _scan(step, x_bstd, (params["layers"], prompt_kv), deep_kbstd, remat)
    return rms_norm(x_bstd, params["norm"], cfg.norm_eps)


def unstack(params: dict) -> list[dict]:
    """The stacked layers as a list.

    Taken before a decode loop: slicing inside it would copy every weight each step.
    """
    layers = params["layers"]
    count = layers["q"].shape[0]
    return [jax.tree.map(operator.itemgetter(i), layers) for i in range(count)]


def decode(
    cfg: TextConfig,
    layers: list[dict],
    norm,
    prompt_kv: list,
    prompt_len_b,
    own_kv: list,
    x_bsd,
    position_bs3,
    step,
):
    """One token per response through all layers, writing cache slot `step`.

    Args:
      layers: from `unstack`.
      prompt_kv: per layer, keys and values [B, K, P, H].
      own_kv: per layer, keys and values [B, S, K, C, H].
      x_bsd: embeddings [B, S, D].
      position_bs3: int32[B, S, 3].
      step: int32 scalar, the slot to write.

    Returns:
      Hidden states [B, S, D] after the final norm, and the new caches.
    """
    angle = _angles(cfg, position_bs3)
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
