"""What a model says of response tokens: the one place that sampling, scoring and training share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxr1.inputs.strips import Strips
from jaxr1.models.vlm import VALUE, Model, Prefilled, extend, head
from jaxr1.nn.logprob import reduce_tokens

HIDDEN = "hidden"
"""What is read of a reference for the whole of its distributions."""


class Other(NamedTuple):
    """A reference's distributions: its last hidden states [B, S, T, D], and its output matrix."""

    hidden_bstd: jax.Array
    head_vd: jax.Array


def said(
    model: Model,
    params: dict,
    prompt: Prefilled,
    strips: Strips,
    reads: tuple[str, ...],
    *,
    temperature,
    forbidden: tuple[int, ...],
    other: Other | None = None,
) -> dict[str, jax.Array]:
    """What the model says of every response token, {name: float32[B, S, T]}; 0 at padding.

    `params` are from `vlm.cast`. Sampling reports the same numbers from its cache (invariant 2).

    Args:
      strips: some of the prompts' strips, or all (`inputs.strips.cut_strips`).
      reads: of `nn.logprob.REDUCTIONS`; of a critic "value", of the state that predicts; "hidden"
        is that state, bfloat16[B, S, T, D].
      other: what "kl_full" compares with, of the same strips.
    """
    state = extend(model, params, prompt, strips)
    rows, *shape = strips.target_bst.shape
    flat = lambda x: x.reshape(rows, -1, x.shape[-1])
    found, of_other = {}, None
    if other is not None:
        of_other = flat(other.hidden_bstd.astype(state.dtype)), other.head_vd
    if of_vocabulary := tuple(name for name in reads if name not in (VALUE, HIDDEN)):
        found = reduce_tokens(
            flat(state),
            head(params),
            strips.target_bst.reshape(rows, -1),
            of_vocabulary,
            temperature=temperature,
            forbidden=forbidden,
            rules=model.rules,
            reference=of_other,
        )
    if VALUE in reads:
        found[VALUE] = state.astype(jnp.float32) @ params[VALUE]["kernel"]
    real = strips.segment_bst > 0
    out = {name: jnp.where(real, x.reshape(rows, *shape), 0.0) for name, x in found.items()}
    if HIDDEN in reads:
        out[HIDDEN] = jnp.where(real[..., None], state, 0).astype(jnp.bfloat16)
    return out
