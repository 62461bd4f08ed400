"""One optimiser step in two jitted programs: `accumulate` once per micro-batch, `apply` once.

Gradients are summed, not averaged: the weights that come with a batch already hold the denominators of the whole step.
They, and AdamW's moments, are float32 whatever the parameters are, and are split over devices as these are.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxr1.inputs.batch import PromptBatch
from jaxr1.inputs.strips import Strips
from jaxr1.models import vlm
from jaxr1.models.vlm import PARTS, Model
from jaxr1.nn.params import flatten, nest
from jaxr1.parallel import constrain, mesh_of
from jaxr1.rl.objectives import Kl, Surrogate, clipped_surrogate, kl_estimate


@struct.dataclass
class TrainState:
    """What training changes, and the frozen parts beside it (they have no optimiser state)."""

    step: Any  # int32 scalar, optimiser steps
    trainable: dict  # {part: parameters}
    frozen: dict  # {part: parameters}
    opt: Any

    @property
    def params(self) -> dict:
        return {**self.trainable, **self.frozen}

    @property
    def unchanging(self) -> tuple[str, ...]:
        """Parts whose computation stays the same: frozen, and without an adapter that is trained."""
        return tuple(part for part in self.frozen if part not in self.trainable.get("lora", {}))


@struct.dataclass
class TrainBatch:
    """One micro-batch of packed responses, with what the objective needs of each token."""

    prompt: PromptBatch
    strips: Strips
    advantage_bst: Any  # float32[B, S, T]
    old_logp_bst: Any  # float32[B, S, T]
    ref_logp_bst: Any  # float32[B, S, T]
    sampled_logp_bst: Any  # float32[B, S, T], as the sampler reported


@struct.dataclass
class Ratio:
    """A mean kept as its two sums, so that adding micro-batches and devices stays exact."""

    total: Any
    weight: Any

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.total + other.total, self.weight + other.weight)


@struct.dataclass
class Sums:
    """What `accumulate` adds up over micro-batches."""

    grads: Any  # like TrainState.trainable
    loss: Any  # float32 scalar
    means: dict[str, Ratio]
    largest: dict[str, Any]  # maxima


@dataclasses.dataclass(frozen=True)
class Objective:
    """What `accumulate` is compiled for; static.

    Attributes:
      kind: "policy" (surrogate + KL) or "sft" (cross-entropy on responses).
      on_policy: one update follows the rollout: the old log-probs are the current ones, the ratio is exactly 1.
      temperature: of sampling.
      forbidden: ids outside the normaliser.
      strips_at_once: strips of a row that are differentiated together; 0 is all. Fewer need less memory.
    """

    kind: str = "policy"
    surrogate: Surrogate = Surrogate()
    kl: Kl = Kl()
    on_policy: bool = True
    temperature: float = 1.0
    forbidden: tuple[int, ...] = ()
    strips_at_once: int = 0

    def means(self) -> tuple[str, ...]:
        if self.kind == "sft":
            return ("sft/nll",)
        names = ("policy/clip_frac", "policy/ratio", "policy/entropy", "policy/approx_kl")
        return (*names, "policy/kl") if self.kl.coef else names


def split_params(params: dict, freeze: tuple[str, ...]) -> tuple[dict, dict]:
    """(trainable, frozen) by part. Where there are adapters (`nn.lora`), they are all that is trained.

    Raises:
      ValueError: a part that does not exist, or nothing left to train.
    """
    unknown = [part for part in freeze if part not in PARTS]
    if unknown:
        raise ValueError(f"freeze: {unknown[0]!r} is none of {', '.join(PARTS)}")
    if "lora" in params:
        freeze = tuple(part for part in params if part != "lora")
    if set(freeze) >= set(params):
        raise ValueError("freeze: nothing is left to train")
    return {k: v for k, v in params.items() if k not in freeze}, {k: v for k, v in params.items() if k in freeze}


def init_state(params: dict, tx: optax.GradientTransformation, freeze: tuple[str, ...] = ()) -> TrainState:
    """A fresh optimiser state beside the parameters, sharded like them.

    Raises:
      ValueError: parameters to train that are neither float32 nor bfloat16; see also `split_params`.
    """
    trainable, frozen = split_params(params, freeze)
    if other := {str(x.dtype) for x in jax.tree.leaves(trainable)} - {"float32", "bfloat16"}:
        raise ValueError(f"parameters that are trained must be float32 or bfloat16, not {', '.join(sorted(other))}")
    # Not under jit: moments are `zeros_like` a parameter, and get its sharding only from an array that has one.
    opt = tx.init(jax.tree.map(_zeros_like, trainable))
    whole = NamedSharding(mesh_of(params), PartitionSpec())
    place = lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, whole)
    return TrainState(step=place(jnp.int32(0)), trainable=trainable, frozen=frozen, opt=jax.tree.map(place, opt))


def _zeros_like(x: jax.Array) -> jax.Array:
    return jnp.zeros(x.shape, jnp.float32, device=x.sharding)


def token_losses(objective: Objective, batch: TrainBatch, logp, entropy) -> tuple[jax.Array, dict, dict]:
    """Per-token losses and metrics [B, S, T] of one chunk of strips: (loss, means, maxima)."""
    if objective.kind == "sft":
        return -logp, {"sft/nll": -logp}, {}
    old = jax.lax.stop_gradient(logp) if objective.on_policy else batch.old_logp_bst
    surrogate = objective.surrogate
    loss, ratio, clipped = clipped_surrogate(logp, old, batch.advantage_bst, surrogate.clip_low, surrogate.clip_high)
    means = {
        "policy/clip_frac": clipped,
        "policy/ratio": ratio,
        "policy/entropy": entropy,
        "policy/approx_kl": old - logp,
    }
    if objective.kl.coef:
        kl = kl_estimate(logp, batch.ref_logp_bst, objective.kl.estimator)
        loss, means["policy/kl"] = loss + objective.kl.coef * kl, kl
    if surrogate.entropy_coef:
        loss = loss - surrogate.entropy_coef * entropy
    return loss, means, {"rollout/max_abs_dlogp": jnp.abs(logp - batch.sampled_logp_bst)}


def _loss(trainable, frozen, model: Model, objective: Objective, batch: TrainBatch):
    """The loss of a micro-batch, and its metrics. `trainable` is float32."""
    params = lambda: vlm.cast(model, {**trainable, **frozen})
    prompt = vlm.prefill(model, params(), batch.prompt)

    def chunk(part: TrainBatch):
        strips = part.strips
        # Cast inside: gradients of the chunks then add up in float32.
        logp, entropy = vlm.response_logp(
            model, params(), prompt, strips, temperature=objective.temperature, forbidden=objective.forbidden
        )
        loss, means, largest = token_losses(objective, part, logp, entropy)
        real = (strips.weight_bst > 0).astype(jnp.float32)
        sums = {k: Ratio((v * real).sum(), real.sum()) for k, v in means.items()}
        return (loss * strips.weight_bst).sum(), (sums, {k: (v * real).max() for k, v in largest.items()})

    count = batch.strips.token_bst.shape[1]
    size = objective.strips_at_once
    if not size or size >= count:
        return chunk(batch)

    def cut(x):
        """[B, S, ...] -> [S / size, B, size, ...]"""
        return jnp.moveaxis(x.reshape(x.shape[0], count // size, size, *x.shape[2:]), 1, 0)

    shared = dataclasses.replace(batch, prompt=None)  # type: ignore[arg-type]  # the chunks share what was prefilled
    parts = jax.tree.map(cut, shared)
    # Rematerialised: the backward pass keeps one chunk's activations; the prompt's gradient adds up over the scan.
    losses, (means, largest) = jax.lax.map(jax.checkpoint(chunk), parts)
    added = jax.tree.map(lambda x: x.sum(0), means)
    return losses.sum(), (added, jax.tree.map(lambda x: x.max(0), largest))


@functools.partial(jax.jit, static_argnames=("model", "objective"), donate_argnames="sums")
def accumulate(
    model: Model, objective: Objective, trainable: dict, frozen: dict, sums: Sums, batch: TrainBatch
) -> Sums:
    """Adds the gradient and the metrics of one micro-batch to `sums` (donated)."""
    with vlm.exactly(model, "update"):
        grad = jax.value_and_grad(_loss, has_aux=True)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)
        (loss, (means, largest)), grads = grad(wide, frozen, model, objective, batch)
        axes = model.axes()
        # Sharded like the parameters: every device then adds up its own part only.
        own = nest({path: constrain(g, model.rules, *axes[path]) for path, g in flatten(grads).items()})
        return Sums(
            grads=jax.tree.map(jnp.add, sums.grads, own),
            loss=sums.loss + loss,
            means={k: sums.means[k] + v for k, v in means.items()},
            largest={k: jnp.maximum(sums.largest[k], v) for k, v in largest.items()},
        )


def zero_sums(objective: Objective, trainable: dict) -> Sums:
    """Empty sums, float32, sharded like the parameters."""
    leaves, tree = jax.tree.flatten(trainable)
    return _zeros(objective, tree, tuple((x.shape, x.sharding) for x in leaves), mesh_of(trainable))()


@functools.lru_cache(maxsize=64)
def _zeros(objective: Objective, tree, leaves: tuple, mesh):
    """The jitted function that makes `zero_sums`: one launch, whatever the number of parameters."""

    def make(leaf, scalar) -> Sums:
        return Sums(
            grads=jax.tree.unflatten(tree, [leaf(*x) for x in leaves]),
            loss=scalar(),
            means={k: Ratio(scalar(), scalar()) for k in objective.means()},
            largest={} if objective.kind == "sft" else {"rollout/max_abs_dlogp": scalar()},
        )

    whole = NamedSharding(mesh, PartitionSpec())
    zeros = lambda: make(lambda shape, _: jnp.zeros(shape, jnp.float32), lambda: jnp.zeros((), jnp.float32))
    return jax.jit(zeros, out_shardings=make(lambda _, sharding: sharding, lambda: whole))


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down with probabilities that keep the mean (arXiv:1502.02551, section 3.2).

    An update of AdamW is mostly smaller than half of a bfloat16's last digit, and would be lost to rounding.
    """
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)  # as large as the digits that are cut off
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnames=("tx", "rate"), donate_argnames="state")
def _apply(tx, rate, state: TrainState, grads):
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    old, tree = jax.tree.flatten(state.trainable)
    wide = jax.tree.unflatten(tree, [x.astype(jnp.float32) for x in old])
    updates, opt = tx.update(grads, state.opt, wide)
    new = jax.tree.leaves(optax.apply_updates(wide, updates))
    key = jax.random.fold_in(jax.random.key(0), state.step)
    stored = [
        n if o.dtype == n.dtype else round_stochastically(n, jax.random.fold_in(key, i))
        for i, (n, o) in enumerate(zip(new, old, strict=True))
    ]
    # A step whose gradient is not finite is skipped whole, and counted: the run goes on from sound parameters.
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    metrics = {
        "policy/grad_norm": norm,
        "policy/skipped": 1.0 - finite.astype(jnp.float32),
        "policy/learning_rate": jnp.asarray(rate(state.step), jnp.float32),
    }
    return dataclasses.replace(
        state,
        step=state.step + finite,  # as the optimiser's own count, which the rate follows
        trainable=keep(jax.tree.unflatten(tree, stored), state.trainable),
        opt=keep(opt, state.opt),
    ), metrics


def apply(tx, rate, state: TrainState, sums: Sums) -> tuple[TrainState, dict]:
    """One optimiser update from accumulated sums (the state is donated).

    Returns:
      The new state, and metrics on the device: NaN for means and maxima of an update that had no tokens to compute.
    """
    state, metrics = _apply(tx, rate, state, sums.grads)
    metrics["policy/loss"] = sums.loss
    metrics.update({k: r.total / r.weight for k, r in sums.means.items()})
    weight = sums.means[next(iter(sums.means))].weight
    return state, {**metrics, **{k: jnp.where(weight > 0, v, jnp.nan) for k, v in sums.largest.items()}}
