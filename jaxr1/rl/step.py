"""One optimiser step in two jitted programs: `accumulate` once per micro-batch, `apply` once.

Gradients are summed, not averaged: the weights that come with a batch already hold the denominators
of the whole step. They, and AdamW's moments, are float32 whatever the parameters are, and are split
over devices as these are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxr1.inputs.batch import PromptBatch
from jaxr1.inputs.strips import Strips
from jaxr1.models import vlm
from jaxr1.models.vlm import Model
from jaxr1.nn.params import flatten, nest
from jaxr1.parallel import constrain, mesh_of
from jaxr1.rl.learner import TrainState
from jaxr1.rl.terms import Metrics, Objective

Scalars = Mapping[str, np.float32]
"""Coefficients that move from step to step: float32 arguments of the programs."""


@struct.dataclass
class TrainBatch:
    """One micro-batch of packed responses, with the columns that its objective takes."""

    prompt: PromptBatch
    strips: Strips
    columns: dict[str, Any]  # {name: float32[B, S, T]}


@struct.dataclass
class Sums:
    """What `accumulate` adds up over micro-batches."""

    grads: Any  # like TrainState.trainable
    loss: Any  # float32 scalar
    metrics: Metrics


def in_chunks(
    said: Callable[[Strips], dict[str, jax.Array]], strips: Strips, size: int
) -> dict[str, jax.Array]:
    """What the model says of all strips, `size` strips of each row at once (0 is all).

    Rematerialised: the backward pass keeps one chunk's activations; the prompt's gradient adds up
    over the scan.

        strips [B, S, T]  ->  chunks [S / size, B, size, T]  ->  said [B, S, T]
    """
    rows, count, length = strips.token_bst.shape
    if not size or size >= count:
        return said(strips)
    cut = lambda x: jnp.moveaxis(x.reshape(rows, count // size, size, *x.shape[2:]), 1, 0)
    found = jax.lax.map(jax.checkpoint(said), jax.tree.map(cut, strips))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, count, length), found)


def _loss(trainable, frozen, model: Model, objective: Objective, batch: TrainBatch, scalars):
    """The loss of a micro-batch, and its metrics. `trainable` is float32."""
    params = lambda: vlm.cast(model, {**trainable, **frozen})
    prompt = vlm.prefill(model, params(), batch.prompt)

    def said(strips: Strips) -> dict[str, jax.Array]:
        # Cast inside: gradients of the chunks then add up in float32.
        return vlm.said(
            model,
            params(),
            prompt,
            strips,
            objective.reads,
            temperature=objective.temperature,
            forbidden=objective.forbidden,
        )

    found = in_chunks(said, batch.strips, objective.strips_at_once)
    return objective(found, batch.columns, batch.strips.segment_bst, scalars)


@functools.partial(jax.jit, static_argnames=("model", "objective"), donate_argnames="sums")
def accumulate(
    model: Model,
    objective: Objective,
    trainable: dict,
    frozen: dict,
    sums: Sums,
    batch: TrainBatch,
    scalars: Scalars,
) -> Sums:
    """Adds the gradient and the metrics of one micro-batch to `sums` (donated)."""
    with vlm.exactly(model, "update"):
        grad = jax.value_and_grad(_loss, has_aux=True)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
        (loss, metrics), grads = grad(wide, frozen, model, objective, batch, scalars)
        axes = model.axes()
        # Sharded like the parameters: every device then adds up its own part only.
        own = {path: constrain(g, model.rules, *axes[path]) for path, g in flatten(grads).items()}
        return Sums(
            grads=jax.tree.map(jnp.add, sums.grads, nest(own)),
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
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty)
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
    """One optimiser update from accumulated sums (the state is donated).

    Args:
      name: of the learner; goes before the names of metrics.

    Returns:
      The new state, and metrics on the device: NaN for those of an update without tokens.
    """
    state, found = _apply(tx, rate, state, sums.grads)
    metrics = {f"{name}/{key}": value for key, value in {**found, "loss": sums.loss}.items()}
    return state, metrics | {key: value.result() for key, value in sums.metrics.items()}
