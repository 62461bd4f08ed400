"""Log-probabilities from hidden states, in chunks: logits of all responses never exist at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxr1.parallel import DEFAULT_RULES, Rules, batch_shards, constrain

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


def _logp(logit: jax.Array, total: jax.Array, target: jax.Array) -> jax.Array:
    # A sum, not a gather: the vocabulary may be split over devices, and a gather brings it
    # together.
    chosen = jnp.arange(logit.shape[-1]) == target[..., None]
    return jnp.where(chosen, logit, 0.0).sum(-1) - total


def _entropy(logit: jax.Array, total: jax.Array, target: jax.Array) -> jax.Array:
    return total - (jnp.exp(logit - total[..., None]) * logit).sum(-1)


REDUCTIONS = {"logp": _logp, "entropy": _entropy}
"""What may be asked of a distribution over the vocabulary, by name; each is a sum over it."""


def reduce_logits(
    logit: jax.Array, target: jax.Array, reads: tuple[str, ...]
) -> dict[str, jax.Array]:
    """{name: float32[...]} of distributions over the last axis.

    Args:
      logit: float32[..., V].
      target: int32[...].
      reads: "logp" is log p(target), "entropy" the entropy; both in nats.
    """
    total = jax.nn.logsumexp(logit, -1)
    return {name: REDUCTIONS[name](logit, total, target) for name in reads}


def reduce_tokens(
    hidden_bmd: jax.Array,
    head_vd: jax.Array,
    target_bm: jax.Array,
    reads: tuple[str, ...],
    *,
    temperature=1.0,
    forbidden: tuple[int, ...] = (),
    rules: Rules = DEFAULT_RULES,
    chunk: int = 256,
) -> dict[str, jax.Array]:
    """`reduce_logits` of each token, over chunks of tokens with rematerialisation.

    Memory is `chunk` x V instead of B x M x V, forward and backward (measured at 8192 tokens, V =
    151936: 1.3 GiB of temporaries with rematerialisation, 10.4 GiB without chunks). A chunk takes
    some tokens of every row, so that devices which share a batch each compute their own rows:

        hidden [B, M, D]  ->  [chunks, B, c, D]      B x c is about `chunk` tokens a device

    Args:
      hidden_bmd: [B, M, D], the hidden state that predicts each target.
      head_vd: [V, D], in its own dtype; multiplied in that of `hidden_bmd`.
      target_bm: int32[B, M].
      reads: names of `REDUCTIONS`.
      temperature: of sampling; > 0.
      forbidden: ids outside the normaliser.
      rules: logical axes to mesh axes.
      chunk: tokens at once on a device.

    Returns:
      {name: float32[B, M]}.
    """
    rows, count = target_bm.shape
    size = min(count, max(1, chunk * batch_shards(rules) // rows))
    padded = -(-count // size) * size
    cut = lambda x: jnp.moveaxis(x.reshape(rows, -1, size, *x.shape[2:]), 1, 0)
    hidden = cut(jnp.pad(hidden_bmd, ((0, 0), (0, padded - count), (0, 0))))
    hidden = constrain(hidden, rules, None, "batch", None, None)
    target = cut(jnp.pad(target_bm, ((0, 0), (0, padded - count))))
    # Whole along D: split there, every chunk's logits would be summed over devices. Wide, because
    # its gradient adds up over the chunks, and bfloat16 would lose most of what the last ones add.
    wide = constrain(head_vd.astype(hidden.dtype), rules, "vocab", None).astype(jnp.float32)

    @jax.checkpoint
    def one(args):
        hidden_bcd, target_bc = args
        logit = tempered_logits(hidden_bcd, wide.astype(hidden_bcd.dtype), temperature, forbidden)
        return reduce_logits(logit, target_bc, reads)

    whole = lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, padded)[:, :count]
    return jax.tree.map(whole, jax.lax.map(one, (hidden, target)))
