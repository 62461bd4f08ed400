"""Drawing tokens: the keys, the filters, one draw."""

from __future__ import annotations

import dataclasses
import enum
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

FILTERED = -1e30


class RandomStream(enum.IntEnum):
    """Tells apart draws that share a seed: those of `generate`, of evaluation, of each stage."""

    GENERATE = 0
    EVALUATION = 1
    TRAINING = 2  # of the first stage; stage i has TRAINING + i


@dataclasses.dataclass(frozen=True)
class Filters:
    """How tokens are drawn; static, so that unused filters cost nothing.

    Attributes:
      greedy: take the most likely token.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of most likely tokens whose probability reaches p; 1 keeps all.
    """

    greedy: bool = False
    top_k: int = 0
    top_p: float = 1.0


def prompt_key(seed: int, stream: int, draw_id: int | str) -> np.ndarray:
    """uint32[2]: the key data of one prompt's draws, from (seed, stream, draw id) and nothing else.

    Args:
      seed: of the run.
      stream: see `RandomStream`.
      draw_id: of the prompt; strings are hashed to 64 bits.
    """
    number = _hashed(draw_id) if isinstance(draw_id, str) else draw_id
    # SeedSequence spreads all 128 bits; folding in jax one by one would launch a program per
    # prompt.
    return np.random.SeedSequence(
        [seed & (2**64 - 1), stream, number & (2**64 - 1)]
    ).generate_state(2, np.uint32)


def _hashed(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def filtered(logit_nv: jax.Array, filters: Filters) -> jax.Array:
    """Logits with the filtered ones at `FILTERED`; reported log-probs are from before."""
    if filters.top_k and filters.top_k < logit_nv.shape[-1]:
        floor = jax.lax.top_k(logit_nv, filters.top_k)[0][:, -1:]
        logit_nv = jnp.where(logit_nv < floor, FILTERED, logit_nv)
    if filters.top_p < 1.0:
        ordered = -jnp.sort(-logit_nv, -1)
        before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
        # The last token whose predecessors do not reach p yet: the first one always stays.
        kept = jnp.maximum((before < filters.top_p).sum(-1, keepdims=True), 1)
        floor = jnp.take_along_axis(ordered, kept - 1, 1)
        logit_nv = jnp.where(logit_nv < floor, FILTERED, logit_nv)
    return logit_nv


def draw(logit_nv: jax.Array, key_n: jax.Array, position: jax.Array, filters: Filters) -> jax.Array:
    """A token per row, Gumbel-max, keyed by (prompt, sample, position): rows are independent.

    Args:
      logit_nv: float32[N, V], tempered and masked.
      key_n: uint32[N, 2], key data per (prompt, sample).
      position: int32 scalar, position in the response.
      filters: static.

    Returns:
      int32[N].
    """
    if filters.greedy:
        return jnp.argmax(logit_nv, -1).astype(jnp.int32)
    logit_nv = filtered(logit_nv, filters)

    def one(data, logit_v):
        key = jax.random.fold_in(jax.random.wrap_key_data(data), position)
        return jnp.argmax(logit_v + jax.random.gumbel(key, logit_v.shape))

    return jax.vmap(one)(key_n, logit_nv).astype(jnp.int32)


def sample_keys(keys_b2: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """uint32[B, S, 2]: the key of each (prompt, sample).

    Args:
      keys_b2: uint32[B, 2] of `prompt_key`.
      samples: int[B, S], the number of each sample in its group.
    """
    return np.asarray(_fold_samples(jnp.asarray(keys_b2), jnp.asarray(samples, jnp.int32)))


@jax.jit
def _fold_samples(keys_b2, samples_bs):
    one = lambda data, s: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(data), s))
    return jax.vmap(lambda data, row: jax.vmap(lambda s: one(data, s))(row))(keys_b2, samples_bs)
