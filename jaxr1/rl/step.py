"""One optimiser step in two jitted programs: `accumulate` once per micro-batch, `apply` once.

Gradients are summed, not averaged: the weights that come with a batch already hold the denominators of the whole step.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxr1.inputs.batch import PromptBatch
from jaxr1.inputs.strips import Strips
from jaxr1.models import vlm
from jaxr1.models.vlm import PARTS, Model
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
        return ("policy/clip_frac", "policy/ratio", "policy/kl", "policy/entropy", "policy/approx_kl")


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


@functools.partial(jax.jit, static_argnames="tx")
def _init(tx: optax.GradientTransformation, trainable: dict):
    return tx.init(trainable)


def init_state(params: dict, tx: optax.GradientTransformation, freeze: tuple[str, ...] = ()) -> TrainState:
    """A fresh optimiser state beside the parameters, sharded like them."""
    trainable, frozen = split_params(params, freeze)
    return TrainState(step=jnp.int32(0), trainable=trainable, frozen=frozen, opt=_init(tx, trainable))


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
        "policy/kl": jnp.zeros_like(logp),
    }
    if objective.kl.coef:
        kl = kl_estimate(logp, batch.ref_logp_bst, objective.kl.estimator)
        loss, means["policy/kl"] = loss + objective.kl.coef * kl, kl
    if surrogate.entropy_coef:
        loss = loss - surrogate.entropy_coef * entropy
    return loss, means, {"rollout/max_abs_dlogp": jnp.abs(logp - batch.sampled_logp_bst)}


def _loss(trainable, frozen, model: Model, objective: Objective, batch: TrainBatch):
    params = vlm.cast(model, {**trainable, **frozen})
    prompt = vlm.prefill(model, params, batch.prompt)

    def chunk(part: TrainBatch):
        strips = part.strips
        logp, entropy = vlm.response_logp(
            model, params, prompt, strips, temperature=objective.temperature, forbidden=objective.forbidden
        )
        loss, means, largest = token_losses(objective, part, logp, entropy)
        real = (strips.weight_bst > 0).astype(jnp.float32)
        sums = {k: Ratio((v * real).sum(), real.sum()) for k, v in means.items()}
        return (loss * strips.weight_bst).sum(), (sums, {k: (v * real).max() for k, v in largest.items()})

    count = batch.strips.token_bst.shape[1]
    size = objective.strips_at_once
    if not size or size >= count:
        return chunk(batch)

    def cut(x, axis):
        split = x.reshape(*x.shape[:axis], count // size, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(split, axis, 0)

    strips = {k: getattr(batch.strips, k) for k in type(batch.strips).__dataclass_fields__}
    parts = TrainBatch(
        prompt=None,  # type: ignore[arg-type]  # the chunks share what was prefilled
        strips=Strips(**{k: v if v is None else cut(v, 2 if k == "position_3bst" else 1) for k, v in strips.items()}),
        advantage_bst=cut(batch.advantage_bst, 1),
        old_logp_bst=cut(batch.old_logp_bst, 1),
        ref_logp_bst=cut(batch.ref_logp_bst, 1),
        sampled_logp_bst=cut(batch.sampled_logp_bst, 1),
    )
    # Rematerialised: the backward pass keeps one chunk's activations; the prompt's gradient adds up over the scan.
    losses, (means, largest) = jax.lax.map(jax.checkpoint(chunk), parts)
    added = jax.tree.map(lambda x: x.sum(0), means)
    return losses.sum(), (added, jax.tree.map(lambda x: x.max(0), largest))


@functools.partial(jax.jit, static_argnames=("model", "objective"), donate_argnames="sums")
def accumulate(
    model: Model, objective: Objective, trainable: dict, frozen: dict, sums: Sums, batch: TrainBatch
) -> Sums:
    """Adds the gradient and the metrics of one micro-batch to `sums` (donated)."""
    with jax.named_scope("update"):
        grad = jax.value_and_grad(_loss, has_aux=True)
        (loss, (means, largest)), grads = grad(trainable, frozen, model, objective, batch)
        return Sums(
            grads=jax.tree.map(jnp.add, sums.grads, grads),
            loss=sums.loss + loss,
            means={k: sums.means[k] + v for k, v in means.items()},
            largest={k: jnp.maximum(sums.largest[k], v) for k, v in largest.items()},
        )


@functools.partial(jax.jit, static_argnames="objective")
def zero_sums(objective: Objective, trainable: dict) -> Sums:
    """Empty sums, sharded like the parameters."""
    zero = lambda: jnp.zeros((), jnp.float32)
    largest = {} if objective.kind == "sft" else {"rollout/max_abs_dlogp": zero()}
    return Sums(
        grads=jax.tree.map(jnp.zeros_like, trainable),
        loss=zero(),
        means={k: Ratio(zero(), zero()) for k in objective.means()},
        largest=largest,
    )


@functools.partial(jax.jit, static_argnames=("tx", "rate"), donate_argnames="state")
def _apply(tx, rate, state: TrainState, grads):
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    updates, opt = tx.update(grads, state.opt, state.trainable)
    # A step whose gradient is not finite is skipped whole, and counted: the run goes on from sound parameters.
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    trainable = keep(optax.apply_updates(state.trainable, updates), state.trainable)
    metrics = {
        "policy/grad_norm": norm,
        "policy/skipped": 1.0 - finite.astype(jnp.float32),
        "policy/learning_rate": jnp.asarray(rate(state.step), jnp.float32),
    }
    return dataclasses.replace(state, step=state.step + 1, trainable=trainable, opt=keep(opt, state.opt)), metrics


def apply(tx, rate, state: TrainState, sums: Sums) -> tuple[TrainState, dict]:
    """One optimiser update from accumulated sums (the state is donated); metrics stay on the device."""
    state, metrics = _apply(tx, rate, state, sums.grads)
    metrics["policy/loss"] = sums.loss
    metrics.update({k: r.total / jnp.maximum(r.weight, 1.0) for k, r in sums.means.items()})
    return state, {**metrics, **sums.largest}
