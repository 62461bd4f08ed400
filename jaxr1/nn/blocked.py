"""Attention in blocks of queries: its memory is linear in the length, forward and backward.

    queries: some of each strip's tokens at once      keys: the prompt's, then the strip's own

                       p p p p p - - -                a a a a b b b -
        block 0   a    x x x x x                      x
                  a    x x x x x                      x x
        block 1   a    x x x x x                      x x x
                  ...

One softmax runs over all keys of a query. What the backward pass needs of it are the output and the
logarithm of its denominator, so that scores live for a block only (arXiv:2205.14135). Scores of
parts are merged by that logarithm (arXiv:2402.05099): a kernel for one part can take its place,
forward and backward.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

MASKED = -1e30  # finite: a row without keys must not become NaN

SCORES = 2**22
"""Scores of a block on a device; 16 MiB."""

LEAST = 16
"""Queries of a block: with fewer, products become thin and keys are read too often."""

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys of one part, their values, and who sees them.

    Attributes:
      key, value: [B, U, K, H], seen by every query of a row, or [B, S, U, K, H], by those of their
        own strip.
      segment: int32[B, U] or [B, S, U]; 0 is seen by none. A query sees keys of its own strip that
        have its number.
      causal: a query sees no key behind its own place.
    """

    key: jax.Array
    value: jax.Array
    segment: jax.Array
    causal: bool = dataclasses.field(default=False, metadata=dict(static=True))

    @property
    def letters(self) -> str:
        """The dimensions of `key` in a product."""
        return "bsukh" if self.key.ndim == 5 else "bukh"


def scores_at_once() -> int:
    """How many scores may exist on all devices together."""
    mesh = jax.sharding.get_abstract_mesh()
    return SCORES * (1 if mesh.empty else mesh.size)


def queries_at_once(scores: int, length: int) -> int:
    """How many queries of each strip a block has; `length` where scores may exist all at once.

    Few enough that their scores stay near the processor: that is faster, too.

    Args:
      scores: of one query of every strip and head, on all devices.
      length: queries of a strip.
    """
    most = scores_at_once() // max(1, scores)
    return length if most >= length else max(LEAST, 1 << max(0, most.bit_length() - 1))


def _scores(q_bstkgh: jax.Array, keys: Keys, segment_bst: jax.Array, first: jax.Array) -> jax.Array:
    """float32[B, K, G, S, T, U], `MASKED` where a query does not see a key.

    Args:
      segment_bst: numbers of the queries.
      first: int32, the place of the first query in its strip.
    """
    # Who sees whom is known before the layers are run: left alone, it would be worked out for all
    # blocks at once, and kept.
    q_bstkgh, segment_bst, first = jax.lax.optimization_barrier((q_bstkgh, segment_bst, first))
    score = product(f"bstkgh,{keys.letters}->bkgstu", q_bstkgh, keys.key)
    score *= q_bstkgh.shape[-1] ** -0.5
    if keys.segment.ndim == 2:
        seen_bstu = (keys.segment > 0)[:, None, None]
    else:
        of_key = keys.segment[:, :, None]
        seen_bstu = (segment_bst[..., None] == of_key) & (of_key > 0)
    if keys.causal:
        place = first + jnp.arange(q_bstkgh.shape[2])
        seen_bstu &= place[:, None] >= jnp.arange(keys.segment.shape[-1])
    return jnp.where(seen_bstu[:, None, None], score, MASKED)


def _cut(x_bst: jax.Array, size: int) -> jax.Array:
    """[B, S, T, ...] -> [blocks, B, S, size, ...]."""
    rows, strips, length, *rest = x_bst.shape
    return jnp.moveaxis(x_bst.reshape(rows, strips, length // size, size, *rest), 2, 0)


def _join(x_nbst: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x_nbst, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _starts(length: int, size: int) -> jax.Array:
    return jnp.arange(0, length, size, dtype=jnp.int32)


def attend(
    q_bstkgh: jax.Array, segment_bst: jax.Array, parts: tuple[Keys, ...], size: int
) -> jax.Array:
    """Attention of queries to all parts, `size` queries of each strip at once.

    Args:
      q_bstkgh: G queries of each of K heads.
      segment_bst: int32, the number of each query.
      parts: the keys.

    Returns:
      float32[B, S, T, K, G, H]; finite, and of no use, at queries that see no key.
    """
    length = q_bstkgh.shape[2]
    pad = [(0, 0), (0, 0), (0, -length % size)]
    q = jnp.pad(q_bstkgh, [*pad, (0, 0), (0, 0), (0, 0)])
    return _attend(q, jnp.pad(segment_bst, pad), parts, size)[:, :, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q_bstkgh: jax.Array, segment_bst: jax.Array, parts: tuple[Keys, ...], size: int):
    return _forward(q_bstkgh, segment_bst, parts, size)[0]


def _forward(q_bstkgh, segment_bst, parts: tuple[Keys, ...], size: int):
    def block(_, queries):
        q, segment, first = queries
        scores = [_scores(q, keys, segment, first) for keys in parts]
        top = functools.reduce(jnp.maximum, [score.max(-1) for score in scores])
        total, out = jnp.zeros_like(top), jnp.zeros(q.shape, jnp.float32)
        for score, keys in zip(scores, parts, strict=True):
            weight = jnp.exp(score - top[..., None])
            total += weight.sum(-1)
            weight = weight.astype(keys.value.dtype)
            out += product(f"bkgstu,{keys.letters}->bstkgh", weight, keys.value)
        out /= jnp.moveaxis(total, (1, 2), (3, 4))[..., None]
        return None, (out, top + jnp.log(total))

    queries = (_cut(q_bstkgh, size), _cut(segment_bst, size), _starts(q_bstkgh.shape[2], size))
    _, (out, log_total) = jax.lax.scan(block, None, queries)
    out = checkpoint_name(_join(out), "attention")
    log_total = checkpoint_name(log_total, "attention")
    return out, (q_bstkgh, segment_bst, parts, out, log_total)


def _backward(size: int, kept, d_out_bstkgh: jax.Array):
    q_bstkgh, segment_bst, parts, out_bstkgh, log_total = kept
    scale, dtype = q_bstkgh.shape[-1] ** -0.5, q_bstkgh.dtype
    # Of each query: how far its output lies along the cotangent, which the softmax takes off.
    along_bstkg = (d_out_bstkgh * out_bstkgh).sum(-1)

    def block(sums, queries):
        q, segment, first, log_total, d_out, along = queries
        along = jnp.moveaxis(along, (3, 4), (1, 2))[..., None]
        d_q, d_parts = jnp.zeros(q.shape, jnp.float32), []
        for (d_key, d_value), keys in zip(sums, parts, strict=True):
            letters, narrow = keys.letters, d_out.astype(keys.value.dtype)
            weight = jnp.exp(_scores(q, keys, segment, first) - log_total[..., None])
            d_value += product(f"bkgstu,bstkgh->{letters}", weight.astype(narrow.dtype), narrow)
            d_weight = product(f"bstkgh,{letters}->bkgstu", narrow, keys.value)
            d_score = (weight * (d_weight - along) * scale).astype(dtype)
            d_q += product(f"bkgstu,{letters}->bstkgh", d_score, keys.key)
            d_key += product(f"bkgstu,bstkgh->{letters}", d_score, q)
            d_parts.append((d_key, d_value))
        return d_parts, d_q.astype(dtype)

    zero = lambda x: jnp.zeros(x.shape, jnp.float32)
    nothing = [(zero(keys.key), zero(keys.value)) for keys in parts]
    starts = _starts(q_bstkgh.shape[2], size)
    cut = [_cut(x, size) for x in (q_bstkgh, segment_bst, d_out_bstkgh, along_bstkg)]
    queries = (cut[0], cut[1], starts, log_total, cut[2], cut[3])
    sums, d_q = jax.lax.scan(block, nothing, queries)
    d_parts = []
    for (d_key, d_value), keys in zip(sums, parts, strict=True):
        d_key, d_value = d_key.astype(keys.key.dtype), d_value.astype(keys.value.dtype)
        d_parts.append(dataclasses.replace(keys, key=d_key, value=d_value, segment=None))
    return _join(d_q), None, tuple(d_parts)


_attend.defvjp(_forward, _backward)
