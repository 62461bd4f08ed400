"""What learns: a model, an objective and an optimiser; its parameters and their state.

A run holds {"policy": state}; with a critic it would hold two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxr1.inputs.batch import Buckets, EncodedPrompt
from jaxr1.models.vlm import VALUE, Model
from jaxr1.nn.lora import ADAPTERS, adapter_table, without_adapters
from jaxr1.parallel import mesh_of, put
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.optimizer import Optimizer, vectors_of
from jaxr1.rl.terms import Objective
from jaxr1.rl.weights import Weighting
from jaxr1.rl.work import Work
from jaxr1.sampling.features import with_features


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
    def base(self) -> dict:
        """The parameters without adapters."""
        return without_adapters(self.params)

    @property
    def adapted(self) -> tuple[str, ...]:
        """Parts whose matrices have adapters that are trained."""
        return tuple(self.trainable.get(ADAPTERS, {}))

    @property
    def moving(self) -> tuple[str, ...]:
        """Parts of the model that training changes."""
        return (*(part for part in self.trainable if part != ADAPTERS), *self.adapted)

    @property
    def unchanging(self) -> tuple[str, ...]:
        """Parts whose computation stays the same: frozen, and without a trained adapter."""
        return tuple(part for part in self.frozen if part not in self.adapted)


def check_freeze(freeze: Sequence[str], parts: Sequence[str]) -> None:
    """Raises ValueError for a part that is not there, or where nothing is left to train."""
    if unknown := [part for part in freeze if part not in parts]:
        raise ValueError(f"{unknown[0]!r} is none of the model's parts: {', '.join(parts)}")
    if set(freeze) >= set(parts):
        raise ValueError("nothing is left to train")


def split_params(params: dict, freeze: tuple[str, ...]) -> tuple[dict, dict]:
    """(trainable, frozen) by part; of a model with adapters these are trained, and a value head.

    Raises:
      ValueError: as `check_freeze`.
    """
    parts = tuple(part for part in params if part != ADAPTERS)
    if ADAPTERS in params:
        freeze = tuple(part for part in parts if part != VALUE)
    else:
        check_freeze(freeze, parts)
    trainable = {part: tree for part, tree in params.items() if part not in freeze}
    return trainable, {part: tree for part, tree in params.items() if part in freeze}


def init_state(
    params: dict, tx: optax.GradientTransformation, freeze: tuple[str, ...] = ()
) -> TrainState:
    """A fresh optimiser state beside the parameters, sharded like them.

    Raises:
      ValueError: parameters to train that are neither float32 nor bfloat16; see also
        `split_params`.
    """
    trainable, frozen = split_params(params, freeze)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(trainable)}
    if other := sorted(dtypes - {"float32", "bfloat16"}):
        raise ValueError(
            f"parameters that are trained must be float32 or bfloat16, not {', '.join(other)}"
        )
    # Not under jit: moments are `zeros_like` a parameter, and take its sharding from an array only.
    opt = tx.init(jax.tree.map(_zeros_like, trainable))
    whole = NamedSharding(mesh_of(params), PartitionSpec())
    on_all = lambda x: x if isinstance(x.sharding, NamedSharding) else put(np.asarray(x), whole)
    return TrainState(on_all(jnp.int32(0)), trainable, frozen, jax.tree.map(on_all, opt))


def frozen_state(params: dict) -> TrainState:
    """A state of which nothing is trained, without an optimiser's."""
    whole = NamedSharding(mesh_of(params), PartitionSpec())
    return TrainState(put(np.zeros((), np.int32), whole), {}, params, ())


def _zeros_like(x: jax.Array) -> jax.Array:
    return jnp.zeros(x.shape, jnp.float32, device=x.sharding)


@dataclasses.dataclass(frozen=True)
class Learner:
    """What stays the same of it from step to step.

    Attributes:
      model: its description.
      objective: the loss.
      buckets: static sizes.
      optimizer: AdamW and its schedule.
      updates: optimiser steps in all, for the schedule.
      freeze: parts that stay as they are.
      weightings: (name of a weight column, how its tokens are averaged).
      micro_batch_tokens: padded tokens that a device differentiates at once.
      strips_at_once: most strips of a row that are differentiated together; 0 is no bound.
    """

    model: Model
    objective: Objective
    buckets: Buckets
    optimizer: Optimizer
    updates: int
    freeze: tuple[str, ...] = ()
    weightings: tuple[tuple[str, Weighting], ...] = (("weight", Weighting()),)
    micro_batch_tokens: int = 8192
    strips_at_once: int = 0

    @property
    def name(self) -> str:
        """Goes before the names of its metrics, and is the key of its state."""
        return self.objective.name

    @property
    def tx(self) -> optax.GradientTransformation:
        if not self.optimizer.weight_decay:
            return self.optimizer.build(self.updates)
        return self.optimizer.build(self.updates, vectors_of(self.model.table()))

    @property
    def rate(self) -> optax.Schedule:
        return self.optimizer.rate(self.updates)

    @property
    def unchanging(self) -> tuple[str, ...]:
        """As `TrainState.unchanging`, known before there is a state."""
        model = self.model
        if model.lora is None:
            return self.freeze
        table = model.table()
        adapted = {path.partition("/")[0] for path in adapter_table(table, model.lora)}
        parts = dict.fromkeys(path.partition("/")[0] for path in table)
        return tuple(part for part in parts if part not in adapted and part != VALUE)

    def init(self, params: dict) -> TrainState:
        """A fresh state; see `init_state`."""
        return init_state(params, self.tx, self.freeze)

    def see(
        self, state: TrainState, prompts: list[EncodedPrompt], work: Work
    ) -> list[EncodedPrompt]:
        """The prompts with what this learner's frozen parts make of their media, computed once.

        The prompts that were given keep their pixels: another learner may have another tower.
        """
        seen = with_features(self.model, state.params, prompts, self.buckets, state.unchanging)
        work.forward(self.model, prompts)
        work.forward(self.model, seen, times=-1)  # what is left to compute
        return seen

    def weights(self, episodes: Episodes) -> dict[str, np.ndarray]:
        """The weight columns of one optimiser step: what counts is own and has a reward."""
        own = episodes.columns["own"]
        counted_bg = np.where(episodes.valid_bg, episodes.sums(own), 0).astype(np.int64)
        return {
            name: episodes.spread(weighting(counted_bg)) * own
            for name, weighting in self.weightings
        }

    def trained(self, episodes: Episodes) -> np.ndarray:
        """bool[B, G]: responses that have a gradient. The others are counted, but not computed."""
        if self.objective.needs_zero_advantage:
            return episodes.valid_bg
        return episodes.valid_bg & (episodes.sums(episodes.columns["advantage"] != 0) > 0)
