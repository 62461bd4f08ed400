"""One optimiser step in two jitted programs: `accumulate` once per micro-batch, `apply` once.

Gradients are summed, not averaged: the weights that come with a batch already hold the denominators
of the whole step. They, and AdamW's moments, are float32 whatever the parameters are, and are split
over devices as these are.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxr1.inputs.batch import PromptBatch
from jaxr1.inputs.strips import Strips, cut_strips, map_chunks, used_chunks
from jaxr1.models import vlm
from jaxr1.models.said import Other, said
from jaxr1.models.vlm import Model, Prefilled
from jaxr1.nn.params import flatten, nest
from jaxr1.parallel import constrain, mesh_of
from jaxr1.rl.learner import TrainState
from jaxr1.rl.terms import Metrics, Objective

Scalars = Mapping[str, Any]
"""Coefficients that move from step to step: float32 arguments of the programs."""


@struct.dataclass
class TrainBatch:
    """One micro-batch of packed responses, with the columns that its objective takes."""

    prompt: PromptBatch
    strips: Strips
    columns: dict[str, Any]  # {name: float32[B, S, T]}
    ref_head: Any = None  # [V, D], the reference's output matrix, beside the column "ref_hidden"


@struct.dataclass
class Sums:
    """What `accumulate` adds up over micro-batches."""

    grads: Any  # like TrainState.trainable
    loss: Any  # float32 scalar
    metrics: Metrics


@struct.dataclass
class Part:
    """Some strips of each row of a micro-batch, and their columns."""

    strips: Strips
    columns: dict[str, Any]


REF_HIDDEN = "ref_hidden"
"""The column, bfloat16[N, D], of the reference's states that predict each token."""


CARRIED = ("kv", "last_bd", "media_nd")
"""Fields of `Prefilled` through which responses have a gradient for their prompts."""


def _carried(prompt: Prefilled, batch: TrainBatch) -> tuple:
    """Those fields; None for media that no response holds."""
    media = None if batch.strips.media_index_bst is None else prompt.media_nd
    return (prompt.kv, prompt.last_bd, media)


Found = tuple[jax.Array, Any]
"""A loss, and what is measured beside it."""


def _nothing(objective: Objective, scalars: Scalars) -> Found:
    """Those of no tokens."""
    metrics = objective.no_metrics(tuple(scalars))
    return jnp.float32(0), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)


def _added(a: Found, b: Found) -> Found:
    """Those of two parts."""
    return a[0] + b[0], {name: metric.add(b[1][name]) for name, metric in a[1].items()}


def _add_gradient(
    model: Model,
    objective: Objective,
    trainable: dict,
    frozen: dict,
    total: dict,
    batch: TrainBatch,
    scalars: Scalars,
    at_once: int,
) -> tuple[dict, jax.Array, dict]:
    """`total` plus the gradient of a micro-batch's loss; the loss, and its metrics.

    Written out, so that each part of the gradient is added when it is there: beside the sums one
    tree of gradients exists at a time. The loop over chunks of strips ends behind the last one that
    holds a token; what a chunk makes is kept only while it is differentiated. What chunks say to
    their prompts adds up in float32.

        prompts ---> keys, last hidden states ---> chunk 0 ---> loss
                <---   sum of the chunks'     <---         <---
                                              ---> chunk 1 ---> loss
                                              <---         <---

    Where a term must see whole rows, strips are run twice, first for what the loss says of their
    tokens, then for their gradient.

        prompts ---> keys, last hidden states ---> what is said of chunk 0, 1, ... ---> loss
                <---   sum of the chunks'     <---      chunk 0, 1, ...            <---
    """
    params = lambda own: vlm.cast(model, {**own, **frozen})

    def prefill(own: dict) -> tuple[tuple, Prefilled]:
        made = vlm.prefill(model, params(own), batch.prompt)
        return _carried(made, batch), made

    def say(own: dict, carried: tuple, part: Part) -> dict[str, jax.Array]:
        narrow = jax.tree.map(lambda x, like: x.astype(like.dtype), carried, seen)
        prompt = dataclasses.replace(made, **dict(zip(CARRIED, narrow, strict=True)))
        other = None
        if REF_HIDDEN in part.columns:
            other = Other(part.columns[REF_HIDDEN], batch.ref_head)
        return said(
            model,
            params(own),
            prompt,
            part.strips,
            objective.reads,
            temperature=objective.temperature,
            forbidden=objective.forbidden,
            other=other,
        )

    def add(total: dict, found: dict) -> dict:
        # Sharded like the parameters: every device then adds up its own part only.
        axes, flat = model.axes(), flatten(found)
        own = {path: constrain(g, model.rules, *axes[path]) for path, g in flat.items()}
        return jax.tree.map(jnp.add, total, nest(own))

    def loss_of(told: dict[str, jax.Array], part: Part) -> tuple[jax.Array, Metrics]:
        return objective(told, part.columns, part.strips.segment_bst, scalars)

    seen: tuple
    made: Prefilled
    seen, prompt_back, made = jax.vjp(prefill, trainable, has_aux=True)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), seen)
    whole = Part(batch.strips, batch.columns)
    by_chunk = at_once < batch.strips.token_bst.shape[1]

    # What the loss of whole rows says of each token; else a chunk's part has a loss of its own.
    d_said = None
    if by_chunk and objective.whole_rows:
        every = map_chunks(lambda some: say(trainable, wide, some), whole, batch.strips, at_once)
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, metrics), d_said = differentiate(every, whole)

    def of_part(part: Part, d_said: dict | None) -> tuple[tuple, tuple]:
        """Gradients for parameters and prompts; loss and metrics."""
        told, back = jax.vjp(lambda own, seen: say(own, seen, part), trainable, wide)
        found: tuple = ()
        if d_said is None:
            found, d_said = jax.value_and_grad(loss_of, has_aux=True)(told, part)
        return back(d_said), found

    if by_chunk:
        chunks = cut_strips((whole, d_said), at_once)

        def one(i: jax.Array, sums: tuple) -> tuple:
            total, d_prompt, found = sums
            (of_strips, of_prompt), own = of_part(*jax.tree.map(operator.itemgetter(i), chunks))
            d_prompt = jax.tree.map(jnp.add, d_prompt, of_prompt)
            return add(total, of_strips), d_prompt, _added(found, own) if own else ()

        empty = () if objective.whole_rows else _nothing(objective, scalars)
        sums = (total, jax.tree.map(jnp.zeros_like, wide), empty)
        count = used_chunks(batch.strips, at_once)
        total, d_prompt, found = jax.lax.fori_loop(0, count, one, sums)
        loss, metrics = found or (loss, metrics)
    else:
        (of_strips, d_prompt), (loss, metrics) = of_part(whole, None)
        total = add(total, of_strips)
    d_seen = jax.tree.map(lambda x, like: x.astype(like.dtype), d_prompt, seen)

    # The prompts' part in a loop that runs once, as the compiler cannot know: what it makes comes
    # into being after the strips' part is added. Else both trees would exist at once.
    def once(i: jax.Array, total: dict) -> dict:
        _, late = jax.lax.optimization_barrier((i, d_seen))
        return add(total, prompt_back(late)[0])

    times = (batch.prompt.length_b.max() >= 0).astype(jnp.int32)
    return jax.lax.fori_loop(0, times, once, total), loss, metrics


@functools.partial(
    jax.jit, static_argnames=("model", "objective", "at_once"), donate_argnames="sums"
)
def accumulate(
    model: Model,
    objective: Objective,
    trainable: dict,
    frozen: dict,
    sums: Sums,
    batch: TrainBatch,
    scalars: Scalars,
    at_once: int,
) -> Sums:
    """Adds the gradient and the metrics of one micro-batch to `sums` (donated).

    Args:
      at_once: strips of a row that are differentiated together (`Plan.at_once`).
    """
    with vlm.exactly(model, "update"):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
        grads, loss, metrics = _add_gradient(
            model, objective, wide, frozen, sums.grads, batch, scalars, at_once
        )
        return Sums(
            grads=grads,
            loss=sums.loss + loss,
            metrics={name: sums.metrics[name].add(found) for name, found in metrics.items()},
        )


def zero_sums(objective: Objective, trainable: dict, scalars: Scalars | None = None) -> Sums:
    """Empty sums, float32, sharded like the parameters."""
    leaves, tree = jax.tree.flatten(trainable)
    places = tuple((x.shape, x.sharding) for x in leaves)
    return _zeros(objective, tuple(scalars or ()), tree, places, mesh_of(trainable))()


@functools.lru_cache(maxsize=64)
def _zeros(objective: Objective, scalars: tuple[str, ...], tree, places: tuple, mesh):
    """The jitted function that makes `zero_sums`: one launch, whatever the number of parameters."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    grads = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(x, jnp.float32) for x, _ in places])
    empty = Sums(grads=grads, loss=number, metrics=objective.no_metrics(scalars))
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: whole, empty)
    own = jax.tree.unflatten(tree, [sharding for _, sharding in places])

    def zeros() -> Sums:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)

    return jax.jit(zeros, out_shardings=dataclasses.replace(shardings, grads=own))


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16 with probabilities that keep the mean (arXiv:1502.02551, §3.2).

    An update of AdamW is mostly smaller than half of a bfloat16's last digit, and would be lost.
    """
    # As large as the digits that are cut off.
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    kept = bits & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnames=("tx", "rate"), donate_argnames="state")
def _apply(tx, rate, state: TrainState, grads):
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    old, tree = jax.tree.flatten(state.trainable)
    wide = jax.tree.unflatten(tree, [x.astype(jnp.float32) for x in old])
    updates, opt = tx.update(grads, state.opt, wide)
    new = jax.tree.leaves(optax.apply_updates(wide, updates))
    key = jax.random.fold_in(jax.random.key(0), state.step)
    stored = []
    for i, (n, o) in enumerate(zip(new, old, strict=True)):
        same = o.dtype == n.dtype
        stored.append(n if same else round_stochastically(n, jax.random.fold_in(key, i)))
    # A step whose gradient is not finite is skipped whole, and counted: the run goes on from sound
    # parameters.
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    metrics = {
        "grad_norm": norm,
        "skipped": 1.0 - finite.astype(jnp.float32),
        "learning_rate": jnp.asarray(rate(state.step), jnp.float32),
    }
    return dataclasses.replace(
        state,
        step=state.step + finite,  # as the optimiser's own count, which the rate follows
        trainable=keep(jax.tree.unflatten(tree, stored), state.trainable),
        opt=keep(opt, state.opt),
    ), metrics


def apply(tx, rate, state: TrainState, sums: Sums, name: str = "policy") -> tuple[TrainState, dict]:
    """One optimiser update from accumulated sums (the state is donated, but for frozen parts).

    Args:
      name: of the learner; goes before the names of metrics.

    Returns:
      The new state, and metrics on the device: NaN for those of an update without tokens.
    """
    # Frozen parts are not handed over: another learner may hold them too.
    moved, found = _apply(tx, rate, dataclasses.replace(state, frozen={}), sums.grads)
    state = dataclasses.replace(moved, frozen=state.frozen)
    metrics = {f"{name}/{key}": value for key, value in {**found, "loss": sums.loss}.items()}
    return state, metrics | {key: value.result() for key, value in sums.metrics.items()}
