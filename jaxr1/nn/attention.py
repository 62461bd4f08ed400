"""Attention: one signature per shape of problem, each with its mask drawn.

Scores, softmaxes and sums of weighted values are float32, whatever the dtype of queries and keys: a
score of 50, as Qwen2's biases make them, has no digit behind the point in bfloat16. Grouped-query
attention keeps its keys once: queries [.., N, H] are viewed as [.., K, N / K, H]. Rows without any
key give finite values, which carry weight 0 in every loss.

Scores of short sequences exist all at once; those of long ones in blocks (`nn.blocked`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxr1.nn.blocked import MASKED, Keys, attend, product, queries_at_once
from jaxr1.nn.pairs import attend_pairs


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """[..., N, H] -> [..., K, N / K, H]."""
    *lead, heads, size = q.shape
    return q.reshape(*lead, kv_heads, heads // kv_heads, size)


def _scores(spec: str, q: jax.Array, k: jax.Array) -> jax.Array:
    """float32 products of queries and keys, over the square root of the head size."""
    return product(spec, q, k) * q.shape[-1] ** -0.5


def _joint_softmax(
    on_prompt: jax.Array, on_own: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One softmax over the keys of two score arrays [..., keys], through a shared maximum.

    Returns:
      The two arrays of weights, still to be divided by the third, their sum [...].
    """
    top = jax.lax.stop_gradient(jnp.maximum(on_prompt.max(-1), on_own.max(-1)))[..., None]
    on_prompt, on_own = jnp.exp(on_prompt - top), jnp.exp(on_own - top)
    return on_prompt, on_own, on_prompt.sum(-1) + on_own.sum(-1)


def segment_attention(
    q_rmnh: jax.Array, k_rmnh: jax.Array, v_rmnh: jax.Array, segment_rm: jax.Array
) -> jax.Array:
    """Full attention inside each segment of a patch row: an image (or a frame) sees itself only.

        row       a a a a b b -        segment  1 1 1 1 2 2 0

             a a a a b b -
        a    x x x x
        b            x x
        -                              padding: no key at all

    Args:
      q_rmnh, k_rmnh, v_rmnh: [R, M, N, H].
      segment_rm: int32[R, M], 0 for padding.

    Returns:
      [R, M, N, H].
    """
    rows, length, heads, _ = q_rmnh.shape
    size = queries_at_once(rows * heads * length, length)
    if size < length:
        own = Keys(k_rmnh[:, None], v_rmnh[:, None], segment_rm[:, None])
        out = attend(q_rmnh[:, None, :, :, None], segment_rm[:, None], (own,), size)
        return out.reshape(q_rmnh.shape).astype(v_rmnh.dtype)
    score = _scores("rmnh,runh->rnmu", q_rmnh, k_rmnh)
    seen = (segment_rm[:, :, None] == segment_rm[:, None, :]) & (segment_rm[:, :, None] > 0)
    score = jnp.where(seen[:, None], score, MASKED)
    return jnp.einsum("rnmu,runh->rmnh", jax.nn.softmax(score, -1).astype(v_rmnh.dtype), v_rmnh)


def paired_attention(
    q_rmnh: jax.Array,
    k_rmnh: jax.Array,
    v_rmnh: jax.Array,
    segment_rm: jax.Array,
    pair_rp2: jax.Array,
    block: int,
) -> jax.Array:
    """`segment_attention` on long rows of many images: only the blocks with a shared segment.

        row, blocks of 4    a a a a | a a b b | b b b b | c c - -          segments of any length

              0  1  2  3
        0     x  x             the host lists the pairs (query block, key block) that share
        1     x  x  x          an image: (0 0) (0 1) (1 0) (1 1) (1 2) (2 1) (2 2) (3 3),
        2        x  x          and inside a pair the segments decide
        3              x

    One softmax runs over all pairs of a query.

    Args:
      q_rmnh, k_rmnh, v_rmnh: [R, M, N, H].
      segment_rm: int32[R, M], 0 for padding.
      pair_rp2: int32[R, P, 2], sorted by query block; key block -1 fills the list up.
      block: patches of a block; divides M.

    Returns:
      [R, M, N, H].
    """
    rows, length = segment_rm.shape
    cut = lambda x: x.reshape(rows, length // block, block, *x.shape[2:])
    out = attend_pairs(cut(q_rmnh), cut(k_rmnh), cut(v_rmnh), cut(segment_rm), pair_rp2)
    return out.reshape(q_rmnh.shape).astype(v_rmnh.dtype)


def window_attention(
    q_rmnh: jax.Array,
    k_rmnh: jax.Array,
    v_rmnh: jax.Array,
    index_rwk: jax.Array,
    segment_rwk: jax.Array,
    slot_rm: jax.Array,
) -> jax.Array:
    """Attention inside windows: patches are gathered window by window, and put back.

    Windows at the border of an image are small; the host packs several into the K places of one
    row, told apart by segments (`segment_attention`).

    Args:
      q_rmnh, k_rmnh, v_rmnh: [R, M, N, H].
      index_rwk: int32[R, W, K], which patch of the row lies in each place.
      segment_rwk: int32[R, W, K], 0 for an empty place.
      slot_rm: int32[R, M], the place w * K + k of each patch.

    Returns:
      [R, M, N, H].
    """
    rows, windows, size = index_rwk.shape
    flat = lambda x: x.reshape(rows, x.shape[1], -1)

    def gather(x):
        taken = jnp.take_along_axis(flat(x), index_rwk.reshape(rows, -1, 1), 1)
        return taken.reshape(rows * windows, size, *x.shape[2:])

    out = segment_attention(
        gather(q_rmnh), gather(k_rmnh), gather(v_rmnh), segment_rwk.reshape(-1, size)
    )
    out = out.reshape(rows, windows * size, -1)
    return jnp.take_along_axis(out, slot_rm[..., None], 1).reshape(q_rmnh.shape)


def causal_attention(
    q_bpnh: jax.Array, k_bpkh: jax.Array, v_bpkh: jax.Array, length_b: jax.Array
) -> jax.Array:
    """Causal attention of a prompt row, whose first `length` positions are real.

             p0 p1 p2 --        length 3
        p0   x
        p1   x  x
        p2   x  x  x
        --   x  x  x            padding sees the prompt: finite, and read by nobody

    Returns:
      [B, P, N, H].
    """
    q = _grouped(q_bpnh, k_bpkh.shape[2])
    rows, length, heads, _ = q_bpnh.shape
    real_bu = jnp.arange(length) < length_b[:, None]
    size = queries_at_once(rows * heads * length, length)
    if size < length:
        real = real_bu[:, None].astype(jnp.int32)
        own = Keys(k_bpkh[:, None], v_bpkh[:, None], real, causal=True)
        out = attend(q[:, None], jnp.ones_like(real), (own,), size)
        return out.reshape(q_bpnh.shape).astype(v_bpkh.dtype)
    score = _scores("bpkgh,bukh->bkgpu", q, k_bpkh)
    seen = jnp.tril(jnp.ones((length, length), bool)) & real_bu[:, None, :]
    score = jnp.where(seen[:, None, None], score, MASKED)
    out = jnp.einsum("bkgpu,bukh->bpkgh", jax.nn.softmax(score, -1).astype(v_bpkh.dtype), v_bpkh)
    return out.reshape(q_bpnh.shape)


def strip_mask(segment_bst: jax.Array) -> jax.Array:
    """bool[B, S, T, T]: which tokens of its own strip a packed response token sees.

    strip       a0 a1 b0 b1 --   segment  1  1  2  2  0      two responses in one strip, 0 = padding

              a0 a1 b0 b1 --
          a0   x
          a1   x  x
          b0         x            b never sees a
          b1         x  x
          --                      no key of its own: finite output, weight 0 in the loss
    """
    length = segment_bst.shape[-1]
    query, key = segment_bst[..., :, None], segment_bst[..., None, :]
    return jnp.tril(jnp.ones((length, length), bool)) & (query == key) & (query > 0)


def strip_attention(
    q_bstnh: jax.Array,
    prompt_kv: tuple[jax.Array, jax.Array],
    prompt_len_b: jax.Array,
    own_kv: tuple[jax.Array, jax.Array],
    segment_bst: jax.Array,
) -> jax.Array:
    """Attention of packed responses: to the whole prompt, and by `strip_mask` to themselves.

    The prompt's keys are used in place, once for all S strips: nothing of size S x prompt keys is
    made. One softmax runs over both parts, through a shared maximum.

    Args:
      q_bstnh: [B, S, T, N, H].
      prompt_kv: keys and values [B, P, K, H].
      prompt_len_b: int32[B], valid prompt positions.
      own_kv: keys and values [B, S, T, K, H].
      segment_bst: int32[B, S, T], 0 for padding.

    Returns:
      [B, S, T, N, H].
    """
    prompt_k, prompt_v = prompt_kv
    own_k, own_v = own_kv
    q = _grouped(q_bstnh, prompt_k.shape[2])
    rows, strips, length, heads, _ = q_bstnh.shape
    real_bp = jnp.arange(prompt_k.shape[1]) < prompt_len_b[:, None]
    size = queries_at_once(rows * strips * heads * (prompt_k.shape[1] + length), length)
    if size < length:
        prompt = Keys(prompt_k, prompt_v, real_bp.astype(jnp.int32))
        own = Keys(own_k, own_v, segment_bst, causal=True)
        out = attend(q, segment_bst, (prompt, own), size)
        return out.reshape(q_bstnh.shape).astype(q_bstnh.dtype)
    on_prompt = _scores("bstkgh,bpkh->bkgstp", q, prompt_k)
    on_prompt = jnp.where(real_bp[:, None, None, None, None, :], on_prompt, MASKED)
    on_own = _scores("bstkgh,bsukh->bkgstu", q, own_k)
    on_own = jnp.where(strip_mask(segment_bst)[:, None, None], on_own, MASKED)
    on_prompt, on_own, total = _joint_softmax(on_prompt, on_own)
    out = product("bkgstp,bpkh->bstkgh", on_prompt.astype(prompt_v.dtype), prompt_v)
    out += product("bkgstu,bsukh->bstkgh", on_own.astype(own_v.dtype), own_v)
    out = out / jnp.moveaxis(total, (1, 2), (3, 4))[..., None]
    return out.reshape(q_bstnh.shape).astype(q_bstnh.dtype)


def decode_attention(
    q_bsnh: jax.Array,
    prompt_kv: tuple[jax.Array, jax.Array],
    prompt_len_b: jax.Array,
    own_kv: tuple[jax.Array, jax.Array],
    step: jax.Array,
) -> jax.Array:
    """Attention of one new token per response: its prompt, and cache slots 0 .. step of its own.

    The same sums as `strip_attention` with T = 1, in the layouts that a cache wants: heads before
    positions, so that each product is one batch of small matrices without a transpose.

    Args:
      q_bsnh: [B, S, N, H].
      prompt_kv: keys and values [B, K, P, H].
      prompt_len_b: int32[B].
      own_kv: keys and values [B, S, K, C, H], slot `step` already holding the new token.
      step: int32 scalar.

    Returns:
      [B, S, N, H].
    """
    prompt_k, prompt_v = prompt_kv
    own_k, own_v = own_kv
    q = _grouped(q_bsnh, prompt_k.shape[1])
    on_prompt = _scores("bskgh,bkph->bksgp", q, prompt_k)
    real_bp = jnp.arange(prompt_k.shape[2]) < prompt_len_b[:, None]
    on_prompt = jnp.where(real_bp[:, None, None, None, :], on_prompt, MASKED)
    on_own = _scores("bskgh,bskch->bksgc", q, own_k)
    on_own = jnp.where(jnp.arange(own_k.shape[3]) <= step, on_own, MASKED)
    on_prompt, on_own, total = _joint_softmax(on_prompt, on_own)
    out = product("bksgp,bkph->bskgh", on_prompt.astype(prompt_v.dtype), prompt_v)
    out += product("bksgc,bskch->bskgh", on_own.astype(own_v.dtype), own_v)
    out = out / jnp.moveaxis(total, 1, 2)[..., None]
    return out.reshape(q_bsnh.shape).astype(q_bsnh.dtype)
