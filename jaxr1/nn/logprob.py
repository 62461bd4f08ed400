"""Log-probabilities from hidden states, in chunks: logits of all responses never exist at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxr1.parallel import DEFAULT_RULES, Rules, axis_shards, constrain

FORBIDDEN = -1e30  # finite, so that p * log p of a forbidden id is 0 and not NaN


def vocabulary_bias(vocab: int, forbidden: tuple[int, ...]) -> jax.Array:
    """float32[V]: 0, or `FORBIDDEN` at ids that are never sampled and not normalised over."""
    bias = jnp.zeros(vocab, jnp.float32)
    return bias.at[jnp.asarray(forbidden, jnp.int32)].set(FORBIDDEN) if forbidden else bias


def tempered_logits(
    hidden: jax.Array, head_vd: jax.Array, temperature, forbidden: tuple[int, ...]
) -> jax.Array:
    """float32[..., V]: masked logits at the sampling temperature, of sampler and trainer."""
    logit = jnp.einsum("...d,vd->...v", hidden, head_vd, preferred_element_type=jnp.float32)
    return logit / temperature + vocabulary_bias(head_vd.shape[0], forbidden)


# --- sums over the vocabulary -------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Reduction:
    """What is asked of a distribution over the vocabulary: a sum over it, and what that means.

    Attributes:
      part: (logit [..., V], exp(logit - top) [..., V], is the target [..., V], the reference's
        logit [..., V]) -> [..., V], summed.
      power: the sum is of things that are proportional to exp(-power top).
      result: (sum, log of the normaliser, normaliser / exp(top), log of the reference's normaliser)
        -> [...].
      of_two: it compares with a reference; what this gives is None for the others.
    """

    part: Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]
    power: int
    result: Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]
    of_two: bool = False


REDUCTIONS = {
    # A sum, not a gather: the vocabulary may be split over devices, and a gather brings it
    # together.
    "logp": Reduction(
        part=lambda logit, weight, chosen, other: jnp.where(chosen, logit, 0.0),
        power=0,
        result=lambda x, log_total, total, log_other: x - log_total,
    ),
    "entropy": Reduction(
        part=lambda logit, weight, chosen, other: weight * logit,
        power=1,
        result=lambda x, log_total, total, log_other: log_total - x / total,
    ),
    # The sum of squared probabilities.
    "sum_sq": Reduction(
        part=lambda logit, weight, chosen, other: weight * weight,
        power=2,
        result=lambda x, log_total, total, log_other: x / total**2,
    ),
    # KL(policy, reference), of all ids: sum of p (log p - log q).
    "kl_full": Reduction(
        part=lambda logit, weight, chosen, other: weight * (logit - other),
        power=1,
        result=lambda x, log_total, total, log_other: x / total - (log_total - log_other),
        of_two=True,
    ),
}
"""By name; in nats."""


@struct.dataclass
class Running:
    """Sums over the part of the vocabulary that was seen, for each token."""

    top: Any  # the highest logit
    total: Any  # the sum of exp(logit - top)
    sums: dict[str, Any]
    other: Running | None = None  # of the reference


def _nothing(shape: tuple[int, ...], reads: tuple[str, ...], compared: bool = False) -> Running:
    """Of no ids yet; `compared` with a reference.

    Raises:
      ValueError: something of two distributions is asked for, and there is one.
    """
    if two := [name for name in reads if REDUCTIONS[name].of_two and not compared]:
        raise ValueError(f"{two[0]!r} compares with a reference, and none is given")
    zero = jnp.zeros(shape, jnp.float32)
    other = _nothing(shape, ()) if compared else None
    return Running(zero + FORBIDDEN, zero, dict.fromkeys(reads, zero), other)


def _and(
    seen: Running,
    logit: jax.Array,
    target: jax.Array,
    id_v: jax.Array,
    other: jax.Array | None = None,
) -> Running:
    """With the logits [..., V] of more ids, and those of the reference."""
    top = jnp.maximum(seen.top, jax.lax.stop_gradient(logit.max(-1)))
    weight, scale = jnp.exp(logit - top[..., None]), jnp.exp(seen.top - top)
    chosen = id_v == target[..., None]
    sums = {}
    for name, before in seen.sums.items():
        reduction = REDUCTIONS[name]
        before = before * scale**reduction.power if reduction.power else before
        sums[name] = before + reduction.part(logit, weight, chosen, other).sum(-1)
    of_other = None
    if seen.other is not None and other is not None:
        of_other = _and(seen.other, other, target, id_v)
    return Running(top, seen.total * scale + weight.sum(-1), sums, of_other)


def _log_total(seen: Running) -> jax.Array:
    return seen.top + jnp.log(seen.total)


def _results(seen: Running) -> dict[str, jax.Array]:
    log_total = _log_total(seen)
    log_other = None if seen.other is None else _log_total(seen.other)
    return {
        name: REDUCTIONS[name].result(x, log_total, seen.total, log_other)
        for name, x in seen.sums.items()
    }


def reduce_logits(
    logit: jax.Array, target: jax.Array, reads: tuple[str, ...]
) -> dict[str, jax.Array]:
    """{name: float32[...]} of distributions over the last axis.

    Args:
      logit: float32[..., V].
      target: int32[...].
      reads: "logp" is log p(target), "entropy" the entropy; both in nats.
    """
    ids = jnp.arange(logit.shape[-1])
    return _results(_and(_nothing(target.shape, reads), logit, target, ids))


LOGITS = 2**25
"""Logits of a chunk on a device; 128 MiB."""


def reduce_tokens(
    hidden_bmd: jax.Array,
    head_vd: jax.Array,
    target_bm: jax.Array,
    reads: tuple[str, ...],
    *,
    temperature=1.0,
    forbidden: tuple[int, ...] = (),
    rules: Rules = DEFAULT_RULES,
    reference: tuple[jax.Array, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """`reduce_logits` of each token, over chunks of the vocabulary with rematerialisation.

        head [V, D]  ->  [chunks, c, D]      of M tokens' distributions c numbers exist at a time

    Chunks of the vocabulary, not of the tokens: devices that keep parts of the output matrix bring
    one chunk of it together at a time, and its gradient is complete, chunk by chunk; over chunks of
    tokens a whole matrix of gradients would be added up again and again.

    Args:
      hidden_bmd: [B, M, D], the hidden state that predicts each target.
      head_vd: [V, D], in its own dtype; multiplied in that of `hidden_bmd`.
      target_bm: int32[B, M].
      reads: names of `REDUCTIONS`.
      temperature: of sampling; > 0.
      forbidden: ids outside the normaliser.
      rules: logical axes to mesh axes.
      reference: the hidden states [B, M, D'] and the output matrix [V, D'] that "kl_full" compares
        with, chunk by chunk beside the policy's; they have no gradient.

    Returns:
      {name: float32[B, M]}.

    Raises:
      ValueError: "kl_full" without a reference.
    """
    vocab = head_vd.shape[0]
    ways = axis_shards("vocab", rules)
    tokens = -(-target_bm.size // axis_shards("batch", rules))
    logits = tokens * vocab * (1 if reference is None else 2)
    chunks = _chunks(vocab // ways if vocab % ways == 0 else vocab, -(-logits // LOGITS))
    size = -(-vocab // (chunks * ways)) * ways
    each = np.arange(chunks * size).reshape(ways, chunks, size // ways)
    ids = jnp.asarray(np.swapaxes(each, 0, 1).reshape(chunks, size), jnp.int32)
    bias = jnp.pad(
        vocabulary_bias(vocab, forbidden), (0, chunks * size - vocab), constant_values=FORBIDDEN
    )

    def cut(head_vd: jax.Array) -> jax.Array:
        width = head_vd.shape[1]
        padded = jnp.pad(head_vd, ((0, chunks * size - vocab), (0, 0)))
        # A device that keeps some ids has as many in every chunk.
        head = jnp.swapaxes(padded.reshape(ways, chunks, size // ways, width), 0, 1)
        return constrain(head.reshape(chunks, size, width), rules, None, "vocab", "embed")

    def logits_of(hidden: jax.Array, head_cd: jax.Array, id_c: jax.Array, dtype) -> jax.Array:
        head_cd = constrain(head_cd.astype(dtype), rules, "vocab", None)
        logit = jnp.einsum(
            "bmd,cd->bmc", hidden.astype(dtype), head_cd, preferred_element_type=jnp.float32
        )
        return logit / temperature + bias[id_c]

    # The gradient of hidden states adds up over the chunks; bfloat16 would lose what the last add.
    hidden, dtype = hidden_bmd.astype(jnp.float32), hidden_bmd.dtype
    ref_bmd, ref_vd = (None, None) if reference is None else jax.lax.stop_gradient(reference)

    @jax.checkpoint
    def one(seen: Running, chunk):
        head_cd, id_c, ref_cd = chunk
        logit = logits_of(hidden, head_cd, id_c, dtype)
        other = None if ref_bmd is None else logits_of(ref_bmd, ref_cd, id_c, ref_bmd.dtype)
        return _and(seen, logit, target_bm, id_c, other), None

    first = _nothing(target_bm.shape, reads, reference is not None)
    parts = (cut(head_vd), ids, None if ref_vd is None else cut(ref_vd))
    return _results(jax.lax.scan(one, first, parts)[0])


def _chunks(vocab: int, least: int) -> int:
    """Chunks of a vocabulary: so many, or up to twice as many where these have equal sizes."""
    least = min(least, vocab)
    return next((n for n in range(least, 2 * least + 1) if vocab % n == 0), least)
