"""The critic of PPO: a second learner, which expects the return of every token."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp

from jaxr1.base.checks import check_least, check_types
from jaxr1.inputs.processor import Processor
from jaxr1.models import load
from jaxr1.models.vlm import VALUE, Model
from jaxr1.nn.lora import ADAPTERS, Lora, adapter_table, init_adapters, without_adapters
from jaxr1.nn.params import flatten, init_params, nest
from jaxr1.parallel import mesh_of
from jaxr1.rl.learner import Learner, check_freeze, split_params
from jaxr1.rl.objectives import ValueLoss
from jaxr1.rl.optimizer import Optimizer
from jaxr1.rl.terms import Objective

CRITIC = "critic"
"""The key of its state."""


@dataclasses.dataclass(frozen=True)
class Critic:
    """What PPO's critic can be told. Its backbone reads prompts and media as the policy does.

    Attributes:
      model: directory, preset or hub id of its backbone; "" is a copy of the policy as the stage
        begins. It must read the policy's tokens.
      optimizer: AdamW and its schedule; LMM-R1 has 9e-6.
      warmup: steps in which it learns alone, before the policy moves.
      clip: a value moves by so much in a rollout before its loss is clipped; 0 is off. 0.2 in
        OpenRLHF and LMM-R1, 0.5 in verl.
      freeze: parts of it that stay as they are: "vision", "merger", "decoder".
      lora: train adapters and the value head instead of the backbone.
    """

    model: str = ""
    optimizer: Optimizer = Optimizer(learning_rate=9e-6)
    warmup: int = 0
    clip: float = 0.2
    freeze: tuple[str, ...] = ()
    lora: Lora | None = None

    def __post_init__(self):
        check_types(self)
        check_least(self, warmup=0, clip=0)
        if VALUE in self.freeze:
            raise ValueError("Critic.freeze: a value head that stays as it is drawn says nothing")


def describe_critic(options: Critic, policy: Model) -> Model:
    """The critic's description; reads no weights."""
    like = load.describe_model(options.model, policy) if options.model else policy
    return dataclasses.replace(like, lora=options.lora, has_value=True)


def check_critic(options: Critic, policy: Model, processor: Processor) -> None:
    """Raises ValueError for a critic that does not read what the policy does."""
    model = describe_critic(options, policy)
    check_freeze(options.freeze, [part for part in model.parts if part != VALUE])
    if options.lora is not None:
        adapter_table(model.table(), options.lora)
    if not options.model:
        return
    if model.media != policy.media:
        raise ValueError(f"critic.model {options.model!r} takes other media than the policy")
    own = load.load_processor(options.model).tokenizer.get_vocab()
    if own != processor.tokenizer.get_vocab():
        raise ValueError(
            f"critic.model {options.model!r} has another tokenizer than the policy: it would read "
            "other words in the same ids"
        )


def critic_learner(options: Critic, policy: Learner, updates: int) -> Learner:
    """The critic beside a policy: the same batches and averages, its own loss and optimiser."""
    model = describe_critic(options, policy.model)
    objective = Objective((ValueLoss(options.clip),), CRITIC, on_policy=False)
    return dataclasses.replace(
        policy,
        model=model,
        objective=objective,
        optimizer=options.optimizer,
        updates=updates,
        freeze=options.freeze,
    )


def critic_params(
    options: Critic, critic: Learner, policy: dict, seed: int, shared: Collection[str] = ()
) -> dict:
    """What the critic begins with, placed as the policy is.

    Where the policy is its backbone, it shares what both keep frozen, and has a copy of the rest:
    an update takes over the arrays that it trains.

    Args:
      policy: the policy's parameters as the stage begins.
      seed: of the value head, and of adapters.
      shared: parts that the policy keeps frozen.
    """
    mesh, model = mesh_of(policy), critic.model
    base = without_adapters(policy)
    if options.model:
        _, base = load.load_model(
            options.model, model.dtype, stored_dtype(policy), mesh, rules=model.rules
        )
    table = model.table()
    held = {path: x for path, x in flatten(base).items() if path in table}
    drawn = {path: p for path, p in table.items() if path not in held}
    params = nest(held) | init_params(drawn, seed, "float32", mesh, model.rules)
    if options.lora is not None:
        adapters = init_adapters(table, options.lora, seed, mesh, model.rules)
        params = {**params, ADAPTERS: adapters}
    _, frozen = split_params(params, options.freeze)
    same = {part: tree for part, tree in frozen.items() if part in shared}
    own = {part: tree for part, tree in params.items() if part not in same}
    return {**jax.tree.map(jnp.copy, own), **same}


def stored_dtype(params: dict) -> str:
    """The dtype of the parameters of a model."""
    return str(jax.tree.leaves(params["decoder"])[0].dtype)
