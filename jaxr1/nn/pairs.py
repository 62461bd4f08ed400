"""Attention over a list of pairs (block of queries, block of keys), some pairs at once.

    pairs          (0 0) (0 1) (1 0) | (1 1) (1 2) (2 1) | ...      sorted by block of queries
    at once         ----- first -----   ----- second ----

The list may be longer than need be: parts behind the last pair are left out. A query's softmax goes
on from one part of the list to the next: its highest score and its denominator are carried, and
what was summed up before is scaled down (arXiv:1805.02867). The backward pass has the logarithm of
the denominator, and makes the scores again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxr1.nn.blocked import MASKED, product, scores_at_once


def _take(x_rc: jax.Array, at_rp: jax.Array) -> jax.Array:
    """[R, P, ...]: of each row the blocks at some places."""
    index = at_rp.reshape(*at_rp.shape, *(1,) * (x_rc.ndim - 2))
    return jnp.take_along_axis(x_rc, index, 1)


def _add(x_rp: jax.Array, at_rp: jax.Array, count: int) -> jax.Array:
    """[R, count, ...]: what belongs to the same block, summed."""
    return jax.vmap(lambda x, at: jax.ops.segment_sum(x, at, count))(x_rp, at_rp)


def _score(q_rcbnh, k_rcbnh, segment_rcb, pair_rp2) -> jax.Array:
    """float32[R, P, N, block, block]; `MASKED` where the segments differ."""
    query, key = pair_rp2[..., 0], jnp.maximum(pair_rp2[..., 1], 0)
    score = product("rpmnh,rpunh->rpnmu", _take(q_rcbnh, query), _take(k_rcbnh, key))
    score *= q_rcbnh.shape[-1] ** -0.5
    of_query = _take(segment_rcb, query)[..., :, None]
    of_key = _take(segment_rcb, key)[..., None, :]
    seen = (of_query == of_key) & (of_query > 0) & (pair_rp2[..., 1] >= 0)[..., None, None]
    return jnp.where(seen[:, :, None], score, MASKED)


def _parts(pair_rp2: jax.Array, q_rcbnh: jax.Array) -> jax.Array:
    """[parts, R, P', 2]: the list in equal parts, whose scores may exist at once."""
    rows, blocks, block, heads, _ = q_rcbnh.shape
    most = scores_at_once() // (rows * heads * block**2)
    count = pair_rp2.shape[1]
    parts = -(-count // max(1, most))
    size = -(-count // parts)
    filler = jnp.array([blocks - 1, -1], pair_rp2.dtype)
    missing = parts * size - count
    padded = jnp.concatenate([pair_rp2, jnp.broadcast_to(filler, (rows, missing, 2))], 1)
    return jnp.moveaxis(padded.reshape(rows, parts, size, 2), 1, 0)


def _loop(step, carried, pair_rp2: jax.Array, q_rcbnh: jax.Array):
    """`step(carried, pairs)` for each part of the list that holds a pair."""
    parts = _parts(pair_rp2, q_rcbnh)
    used = (pair_rp2[..., 1] >= 0).sum(1).max()
    count = -(-used // parts.shape[2])
    return jax.lax.fori_loop(0, count, lambda i, carried: step(carried, parts[i]), carried)


def _by_query(x_rcnb: jax.Array) -> jax.Array:
    """[R, C, N, block] -> [R, C, block, N, 1], as outputs lie."""
    return jnp.swapaxes(x_rcnb, 2, 3)[..., None]


@jax.custom_vjp
def attend_pairs(q_rcbnh, k_rcbnh, v_rcbnh, segment_rcb, pair_rp2) -> jax.Array:
    """Attention of queries to the keys of their segment, in the pairs of blocks that are listed.

    Args:
      q_rcbnh, k_rcbnh, v_rcbnh: [R, C, block, N, H].
      segment_rcb: int32, 0 for padding.
      pair_rp2: int32[R, P, 2]; key block -1 is no pair.

    Returns:
      float32[R, C, block, N, H]; 0 where a query is in no pair.
    """
    return _forward(q_rcbnh, k_rcbnh, v_rcbnh, segment_rcb, pair_rp2)[0]


def _forward(q_rcbnh, k_rcbnh, v_rcbnh, segment_rcb, pair_rp2):
    rows, blocks, block, heads, _ = q_rcbnh.shape

    def part(carried, pair):
        top, total, out = carried
        query, key = pair[..., 0], jnp.maximum(pair[..., 1], 0)
        score = _score(q_rcbnh, k_rcbnh, segment_rcb, pair)
        highest = jax.vmap(lambda x, at: jax.ops.segment_max(x, at, blocks))(score.max(-1), query)
        higher = jnp.maximum(top, highest)
        weight = jnp.exp(score - _take(higher, query)[..., None])
        scale = jnp.exp(top - higher)
        found = product("rpnmu,rpunh->rpmnh", weight.astype(v_rcbnh.dtype), _take(v_rcbnh, key))
        total = total * scale + _add(weight.sum(-1), query, blocks)
        out = out * _by_query(scale) + _add(found, query, blocks)
        return higher, total, out

    zero = jnp.zeros((rows, blocks, heads, block), jnp.float32)
    start = (zero + MASKED, zero, jnp.zeros(q_rcbnh.shape, jnp.float32))
    top, total, out = _loop(part, start, pair_rp2, q_rcbnh)
    out = out / _by_query(jnp.where(total > 0, total, 1.0))
    log_total = top + jnp.log(jnp.where(total > 0, total, 1.0))
    return out, (q_rcbnh, k_rcbnh, v_rcbnh, segment_rcb, pair_rp2, out, log_total)


def _backward(kept, d_out_rcbnh):
    q_rcbnh, k_rcbnh, v_rcbnh, segment_rcb, pair_rp2, out, log_total = kept
    blocks, scale, dtype = q_rcbnh.shape[1], q_rcbnh.shape[-1] ** -0.5, q_rcbnh.dtype
    along_rcnb = jnp.swapaxes((d_out_rcbnh * out).sum(-1), 2, 3)

    def part(sums, pair):
        d_q, d_k, d_v = sums
        query, key = pair[..., 0], jnp.maximum(pair[..., 1], 0)
        d_out = _take(d_out_rcbnh, query).astype(dtype)
        score = _score(q_rcbnh, k_rcbnh, segment_rcb, pair)
        weight = jnp.exp(score - _take(log_total, query)[..., None])
        d_weight = product("rpmnh,rpunh->rpnmu", d_out, _take(v_rcbnh, key))
        d_score = weight * (d_weight - _take(along_rcnb, query)[..., None]) * scale
        d_score, weight = d_score.astype(dtype), weight.astype(dtype)
        of_query = product("rpnmu,rpunh->rpmnh", d_score, _take(k_rcbnh, key))
        of_key = product("rpnmu,rpmnh->rpunh", d_score, _take(q_rcbnh, query))
        of_value = product("rpnmu,rpmnh->rpunh", weight, d_out)
        d_q += _add(of_query, query, blocks)
        return d_q, d_k + _add(of_key, key, blocks), d_v + _add(of_value, key, blocks)

    zero = jnp.zeros(q_rcbnh.shape, jnp.float32)
    sums = _loop(part, (zero, zero, zero), pair_rp2, q_rcbnh)
    return *(x.astype(dtype) for x in sums), None, None


attend_pairs.defvjp(_forward, _backward)
