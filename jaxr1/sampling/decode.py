"""The decode loop: one jitted `while_loop` per cache size, driven in chunks from the host.

All responses of a batch are at the same position, so the cache is written at one slot per step.
Between chunks the host may stop rows (stop strings), drop finished ones and grow the cache.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxr1.inputs.batch import PromptBatch
from jaxr1.models import text, vlm
from jaxr1.models.vlm import Model, Prefilled
from jaxr1.nn.logprob import reduce_logits, tempered_logits
from jaxr1.nn.params import flatten, nest
from jaxr1.parallel import constrain
from jaxr1.sampling.draw import Filters, draw


@dataclasses.dataclass(frozen=True)
class Static:
    """What a decode program is compiled for, besides shapes."""

    filters: Filters
    forbidden: tuple[int, ...]
    stops: tuple[int, ...]
    mixes_greedy: bool = False  # whether some responses are drawn greedily, beside others


@struct.dataclass
class DecodeState:
    """Everything the loop carries, for B prompt rows with S responses each and C cache slots.

    slot        0  1  2  3  4 | 5 6 7          step = 5: slots 0..4 hold tokens and their keys
    token       a0 a1 a2 a3 a4| . . .
    hidden      the state that predicts a5
    """

    step: Any  # int32 scalar
    hidden_bsd: Any  # [B, S, D]
    token_bsc: Any  # int32[B, S, C]
    logp_bsc: Any  # float32[B, S, C]
    entropy_bsc: Any  # float32[B, S, C]
    length_bs: Any  # int32[B, S]
    done_bs: Any  # bool[B, S]
    greedy_bs: Any  # bool[B, S]
    key_bs2: Any  # uint32[B, S, 2]
    own_kv: Any  # per layer, keys and values [B, S, K, C, H]


@struct.dataclass
class PromptCache:
    """The prompts' side of decoding: per layer, keys and values [B, K, P, H]."""

    kv: Any
    length_b: Any
    next_position_b: Any


@functools.partial(jax.jit, static_argnames=("model", "tokens_at_once"))
def run_prefill(model: Model, params: dict, batch: PromptBatch, tokens_at_once: int) -> Prefilled:
    """Prompt rows through tower and decoder, so many padded tokens at once on a device."""
    with vlm.exactly(model, "prefill"):
        return vlm.prefill(model, vlm.cast(model, params), batch, tokens_at_once)


@functools.partial(jax.jit, static_argnames=("model", "samples", "slots", "greedy"))
def start(
    model: Model, prompt: Prefilled, key_bs2, done_bs, samples: int, slots: int, greedy: int = 0
):
    """A fresh state for S responses a row, the last of them greedy ones where some are, and the
    prompt's cache as decoding reads it.
    """
    keys, values = (jnp.swapaxes(x, 2, 3) for x in prompt.kv)  # [L, B, K, P, H]
    kv = [(keys[i], values[i]) for i in range(model.text.layers)]
    rows, width = prompt.last_bd.shape
    shape = (rows, samples, model.text.kv_heads, slots, model.text.head_size)
    zero = lambda: jnp.zeros(shape, prompt.kv[0].dtype)
    state = DecodeState(
        step=jnp.int32(0),
        hidden_bsd=jnp.broadcast_to(prompt.last_bd[:, None], (rows, samples, width)),
        token_bsc=jnp.zeros((rows, samples, slots), jnp.int32),
        logp_bsc=jnp.zeros((rows, samples, slots), jnp.float32),
        entropy_bsc=jnp.zeros((rows, samples, slots), jnp.float32),
        length_bs=jnp.zeros((rows, samples), jnp.int32),
        done_bs=done_bs,
        greedy_bs=jnp.broadcast_to(jnp.arange(samples) >= samples - greedy, (rows, samples)),
        key_bs2=key_bs2,
        own_kv=[(zero(), zero()) for _ in range(model.text.layers)],
    )
    return _on_rows(model, state), _on_rows(
        model, PromptCache(kv, prompt.length_b, prompt.next_position_b)
    )


def _on_rows(model: Model, tree):
    """Rows split over the devices of a batch, heads of caches over those of a layer."""

    def one(x):
        heads = {
            4: ("kv_heads", None, None),
            5: (None, "kv_heads", None, None),
        }  # [B, K, P, H] and [B, S, K, C, H]
        return (
            constrain(x, model.rules, "batch", *heads.get(x.ndim, (None,) * (x.ndim - 1)))
            if x.ndim
            else x
        )

    return jax.tree.map(one, tree)


def _gathered(model: Model, params: dict) -> dict:
    """The decoder whole along `fsdp`: else each layer is gathered anew for every token."""
    axes, mesh_axes = model.axes(), dict(model.rules)

    def one(path: str, x: jax.Array) -> jax.Array:
        own = axes.get(
            f"decoder/{path}", (None,) * x.ndim
        )  # adapters, which are small, have other paths here
        return constrain(
            x, model.rules, *(None if "fsdp" in mesh_axes.get(a or "", ()) else a for a in own)
        )

    return nest({path: one(path, x) for path, x in flatten(params).items()})


@struct.dataclass
class Weights:
    """The decoder as the loop reads it: in the compute dtype, layer by layer."""

    layers: Any  # a list of parameters
    norm: Any  # [D]
    head: Any  # [V, D]
    embed: Any  # [V, D], as it is stored


@functools.partial(jax.jit, static_argnames="model")
def weights(model: Model, params: dict) -> Weights:
    """What a decode loop reads of the parameters; made once for all that is drawn with them.

    The layers are a copy: to slice the stacked ones inside the loop would copy them each step.
    """
    cast = vlm.cast(model, params)
    head = vlm.head(cast).astype(model.dtype)
    decoder = _gathered(model, {**cast["decoder"], "head": head})
    embed = cast["decoder"]["embed"]
    return Weights(text.unstack(decoder), decoder["norm"], decoder["head"], embed)


@functools.partial(jax.jit, static_argnames=("model", "static"), donate_argnames="state")
def decode_until(
    model: Model,
    weights: Weights,
    prompt: PromptCache,
    state: DecodeState,
    limit,
    temperature,
    static: Static,
) -> DecodeState:
    """Draws tokens until slot `limit`, or until every response is done.

    Args:
      limit: int32 scalar <= C; moving it does not recompile.
      temperature: float32 scalar; 1 for greedy.
    """
    embed = {vlm.DECODER: {"embed": weights.embed}}
    rows, samples, width = state.hidden_bsd.shape

    def body(s: DecodeState) -> DecodeState:
        logit = tempered_logits(
            s.hidden_bsd.reshape(-1, width), weights.head, temperature, static.forbidden
        )
        token = draw(logit, s.key_bs2.reshape(-1, 2), s.step, static.filters)
        if static.mixes_greedy:
            token = jnp.where(s.greedy_bs.ravel(), jnp.argmax(logit, -1).astype(jnp.int32), token)
        of_token = reduce_logits(logit, token, ("logp", "entropy"))
        token, logp, entropy = (
            x.reshape(rows, samples) for x in (token, of_token["logp"], of_token["entropy"])
        )
        live = ~s.done_bs
        note = lambda x_bsc, x: jax.lax.dynamic_update_slice(
            x_bsc, jnp.where(live, x, 0)[..., None], (0, 0, s.step)
        )
        position = prompt.next_position_b[:, None] + s.step
        hidden, own_kv = text.decode(
            model.text,
            weights.layers,
            weights.norm,
            prompt.kv,
            prompt.length_b,
            s.own_kv,
            vlm.embed(model, embed, token, None, None)[0],
            jnp.broadcast_to(position[..., None], (rows, samples, 3)),
            s.step,
        )
        stopped = functools.reduce(
            jnp.logical_or, [token == i for i in static.stops], jnp.zeros_like(live)
        )
        return dataclasses.replace(
            s,
            step=s.step + 1,
            hidden_bsd=hidden,
            token_bsc=note(s.token_bsc, token),
            logp_bsc=note(s.logp_bsc, logp),
            entropy_bsc=note(s.entropy_bsc, entropy),
            length_bs=s.length_bs + live,
            done_bs=s.done_bs | stopped,
            own_kv=own_kv,
        )

    with vlm.exactly(model, "decode"):
        return jax.lax.while_loop(lambda s: (s.step < limit) & ~s.done_bs.all(), body, state)


@functools.partial(jax.jit, static_argnames=("model", "slots"))
def grow(model: Model, state: DecodeState, slots: int) -> DecodeState:
    """The same state with more cache slots, the new ones zero."""

    def wider(x, axis):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, slots - x.shape[axis])
        return jnp.pad(x, pad)

    wide = dataclasses.replace(
        state,
        token_bsc=wider(state.token_bsc, 2),
        logp_bsc=wider(state.logp_bsc, 2),
        entropy_bsc=wider(state.entropy_bsc, 2),
        own_kv=[(wider(k, 3), wider(v, 3)) for k, v in state.own_kv],
    )
    return _on_rows(model, wide)


@functools.partial(jax.jit, static_argnames="model")
def select(model: Model, state: DecodeState, prompt: PromptCache, row_r, slot_rs, done_rs):
    """The chosen responses only: rows `row_r` of the batch, and of each the samples `slot_rs`.

    `done_rs` marks places that are only there to fill the shape.
    """
    pick = lambda x: jnp.take_along_axis(
        x[row_r], slot_rs.reshape(slot_rs.shape + (1,) * (x.ndim - 2)), 1
    )
    state = DecodeState(
        step=state.step,
        hidden_bsd=pick(state.hidden_bsd),
        token_bsc=pick(state.token_bsc),
        logp_bsc=pick(state.logp_bsc),
        entropy_bsc=pick(state.entropy_bsc),
        length_bs=pick(state.length_bs),
        done_bs=pick(state.done_bs) | done_rs,
        greedy_bs=pick(state.greedy_bs),
        key_bs2=pick(state.key_bs2),
        own_kv=[(pick(k), pick(v)) for k, v in state.own_kv],
    )
    return _on_rows(model, state), _on_rows(model, jax.tree.map(lambda x: x[row_r], prompt))


def smaller(rows: int, samples: int, multiple: int) -> list[tuple[int, int]]:
    """The shapes that a state of so many rows and samples may shrink to, the smallest first.

    Half of the samples, while most prompts have some that are drawn; then a quarter of both, for
    the few long ones at the end. Each further shape is a program for every cache size.

    Args:
      multiple: rows stay a multiple of it (devices that share a batch).
    """
    part = lambda size, ways: next(size // n for n in ways if size % n == 0)
    few = part(rows // multiple, (4, 2, 1)) * multiple
    found = {(few, part(samples, (4, 2, 1))), (rows, part(samples, (2, 1)))}
    return sorted(found - {(rows, samples)})


def compaction(
    done_bs: np.ndarray, multiple: int, whole: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Which rows and samples go on, when half of the work can go.

    Args:
      done_bs: bool[B, S].
      multiple: rows stay a multiple of it (devices that share a batch).
      whole: rows and samples at the beginning, which say what the state may shrink to; None is that
        it has not shrunk yet.

    Returns:
      (row_r, slot_rs, done_rs) for `select`, or None.
    """
    rows, samples = done_bs.shape
    live = ~done_bs
    busy = np.flatnonzero(live.any(1))
    if not len(busy):
        return None
    at_first = whole or (rows, samples)
    for keep_rows, keep in smaller(at_first[0], at_first[1], multiple):
        if keep_rows * keep < rows * samples and keep_rows <= rows and keep <= samples:
            if keep_rows >= len(busy) and keep >= live.sum(1).max():
                break
    else:
        return None
    row = np.zeros(keep_rows, np.int32)
    chosen = busy if keep_rows < rows else np.arange(rows)
    row[: len(chosen)] = chosen
    slot = np.argsort(done_bs[row], axis=1, kind="stable")[:, :keep].astype(np.int32)
    filler = np.zeros((keep_rows, keep), bool)
    filler[len(chosen) :] = True
    return row, slot, filler
