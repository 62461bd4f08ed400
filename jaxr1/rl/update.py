"""The host's side of a learner's work: responses planned, packed, placed; scored, or learned from.

    episodes -> plans -> strips + columns -> accumulate, once per micro-batch -> apply

Every stage updates through `update`; what is computed is counted here, in `Work`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from jaxr1.inputs.batch import EncodedPrompt, PromptBatch
from jaxr1.inputs.planning import plan_strips
from jaxr1.inputs.strips import Plan, fill, make_strips, plan_prompts
from jaxr1.models.flops import plan_flops, total_flops, training_flops
from jaxr1.parallel import batch_hosts, batch_multiple, fetch, mesh_of, place_rows
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.learner import Learner, TrainState
from jaxr1.rl.step import Sums, TrainBatch, accumulate, apply, zero_sums
from jaxr1.rl.work import Padding, Work
from jaxr1.sampling.scoring import READS, score_plans

# Describes the rollout, so of several updates only the first one's counts: later ones compare two
# policies, not two computations.
OF_ROLLOUT = "rollout/"


def plan_episodes(
    learner: Learner, params: dict, episodes: Episodes, placed_bg: np.ndarray
) -> list[Plan]:
    """The micro-batches of the responses in `placed_bg`, bool[B, G].

    `params` say which devices share a batch.
    """
    mesh, rules = mesh_of(params), learner.model.rules
    return plan_strips(
        [len(draw.prompt) for draw in episodes.draws],
        episodes.counts_bg.tolist(),
        learner.buckets,
        token_budget=learner.micro_batch_tokens,
        strips_at_once=learner.strips_at_once,
        multiple=batch_multiple(mesh, rules),
        placed=placed_bg,
        hosts=batch_hosts(mesh, rules),
        owners=[draw.prompt.host for draw in episodes.draws],
    )


def score(
    learner: Learner,
    params: dict,
    episodes: Episodes,
    placed_bg: np.ndarray,
    work: Work,
    check: Callable[[], None] = lambda: None,
    reads: tuple[str, ...] = READS,
) -> dict[str, np.ndarray]:
    """What a model says of responses under given parameters, without gradient.

    Args:
      params: the learner's, or a reference's.
      placed_bg: bool[B, G], responses to score.
      work: what is computed is added to it.
      check: called before each micro-batch.
      reads: what is asked, see `models.said`.

    Returns:
      {name: float32[N]}; 0 for the other responses.
    """
    prompts = episodes.seen_by(learner.name)
    plans = plan_episodes(learner, params, episodes, placed_bg)
    work.flops += sum(sum(plan_flops(learner.model, p, prompts).values()) for p in plans)
    return score_plans(
        learner.model,
        params,
        prompts,
        plans,
        episodes.token_n,
        learner.buckets,
        temperature=learner.objective.temperature,
        forbidden=learner.objective.forbidden,
        check=check,
        reads=reads,
        placed=work.rows(learner.name),
    )


def gradients(
    learner: Learner,
    state: TrainState,
    episodes: Episodes,
    work: Work,
    *,
    scalars: Mapping[str, float] | None = None,
    check: Callable[[], None] = lambda: None,
    ref_head: jax.Array | None = None,
) -> Sums:
    """The gradient of the loss over all episodes, which hold every column that the objective takes.

    Args:
      work: what is computed is added to it.
      scalars: coefficients that move, by name; a new value compiles nothing.
      check: called before each micro-batch, and when the last one is done.
      ref_head: [V, D], the reference's output matrix, where a loss compares whole distributions.
    """
    model, objective = learner.model, learner.objective
    prompts = episodes.seen_by(learner.name)
    plans = plan_episodes(learner, state.params, episodes, learner.trained(episodes))
    forward = total_flops(plan_flops(model, plan, prompts) for plan in plans)
    work.flops += training_flops(forward, state.trainable, state.adapted)

    # Gradients add up over micro-batches: weights already hold the denominators of the whole step.
    mesh = mesh_of(state.trainable)
    moving = {name: np.float32(value) for name, value in (scalars or {}).items()}
    sums = zero_sums(objective, state.trainable, moving)
    for plan in plans:
        # What a pass before has uploaded is here still; this one is the last to need it.
        with jax.set_mesh(mesh):
            rows = work.rows(learner.name).rows(
                plan, prompts, learner.buckets, model.media, mesh, model.rules, last=True
            )
            batch = make_batch(learner, plan, prompts, episodes, rows.batch)
            work.padding.append(Padding.of(plan, rows.waste, batch.strips))
            placed = place_rows(batch, mesh, model.rules)
            placed = dataclasses.replace(placed, ref_head=ref_head)
            # The host is one micro-batch ahead, and no more: a signal is heard when it comes.
            jax.block_until_ready(sums.loss)
            check()
            sums = accumulate(
                model,
                objective,
                state.trainable,
                state.frozen,
                sums,
                placed,
                moving,
                plan.at_once,
            )
    jax.block_until_ready(sums.loss)
    check()
    return sums


def update(
    learner: Learner,
    state: TrainState,
    episodes: Episodes,
    work: Work,
    *,
    scalars: Mapping[str, float] | None = None,
    check: Callable[[], None] = lambda: None,
    ref_head: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step on all episodes; see `gradients`.

    Args:
      state: donated, but not before all gradients are there: what `check` raises leaves it as it
        was.

    Returns:
      The new state, and metrics on the device (`read`).
    """
    sums = gradients(
        learner, state, episodes, work, scalars=scalars, check=check, ref_head=ref_head
    )
    return apply(learner.tx, learner.rate, state, sums, learner.name)


def make_batch(
    learner: Learner,
    plan: Plan,
    prompts: Sequence[EncodedPrompt],
    episodes: Episodes,
    prompt: PromptBatch | None = None,
    *,
    multiple: int = 1,
) -> TrainBatch:
    """The arrays of a micro-batch: prompt rows, strips, and the objective's columns.

    Args:
      prompt: the rows, where they are made; None makes them.
      multiple: of rows that are made.
    """
    if prompt is None:
        media = learner.model.media
        prompt = plan_prompts(plan, prompts, learner.buckets, media, multiple=multiple)
    columns = {name: fill(plan, episodes.columns[name]) for name in learner.objective.columns}
    return TrainBatch(
        prompt=prompt,
        strips=make_strips(plan, prompts, episodes.token_n),
        columns=columns,
    )


def read(updates: Sequence[dict[str, jax.Array]]) -> dict[str, float]:
    """Metrics of the updates of one step, fetched at once: their means, or the first one's.

    An update that had nothing to compute (all its advantages are 0) takes no part in a mean; NaN
    where none had.
    """
    fetched = fetch(list(updates))
    metrics = {}
    for name in fetched[0]:
        among = fetched[:1] if name.startswith(OF_ROLLOUT) else fetched
        values = [found[name] for found in among]
        known = [value for value in values if not np.isnan(value)]
        metrics[name] = float(np.mean(known)) if known else float("nan")
    return metrics
