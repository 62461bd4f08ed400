"""One supervised step: cross-entropy on responses, through the same packing, `accumulate` and `apply` as RL."""

from __future__ import annotations

import jax

from jaxr1.inputs.batch import Buckets
from jaxr1.inputs.strips import fill, make_strips, plan_prompts, plan_strips
from jaxr1.models.flops import plan_flops, training_flops
from jaxr1.parallel import batch_multiple, mesh_of, place_rows
from jaxr1.rl import step as rl
from jaxr1.rl.objectives import token_weights
from jaxr1.run.options import Sft
from jaxr1.run.rl_stage import Clock, Hooks, read_metrics
from jaxr1.run.stream import Drawn


class SftStage:
    """The parts of a supervised step that stay the same from step to step; a row is a prompt and its one response."""

    def __init__(self, stage: Sft, model, processor, buckets: Buckets, hooks: Hooks, *, examples: int):
        self.stage, self.model, self.buckets, self.hooks = stage, model, buckets, hooks
        self.steps = max(1, -(-int(stage.epochs * examples) // stage.batch_size))
        self.draws = stage.batch_size
        self.tx, self.rate = stage.optimizer.build(self.steps), stage.optimizer.rate(self.steps)
        self.objective = rl.Objective(kind="sft", forbidden=processor.media_token_ids)

    def step(self, state: rl.TrainState, reference: dict | None, drawn: list[Drawn], number: int):
        """One optimiser step on `drawn`; returns the new state (the old one is donated) and metrics."""
        clock, model = Clock(), self.model
        self.hooks.phase("update")
        prompts, tokens = [d.prompt for d in drawn], [[d.response] for d in drawn]
        weights = token_weights([[len(t) for t in group] for group in tokens], "token-mean")
        mesh = mesh_of(state.trainable)
        multiple = batch_multiple(mesh, model.rules)
        plans = plan_strips(
            [len(p) for p in prompts],
            [[len(t) for t in group] for group in tokens],
            self.buckets,
            token_budget=self.stage.micro_batch_tokens,
            multiple=multiple,
        )
        sums = rl.zero_sums(self.objective, state.trainable)
        nothing = [[0.0] for _ in drawn]
        adapted = state.trainable.get("lora", {})
        for plan in plans:
            self.hooks.check()
            clock.flops += training_flops(plan_flops(model, plan, prompts), state.trainable, adapted)
            zeros = fill(plan, nothing)
            batch = rl.TrainBatch(
                prompt=plan_prompts(plan, prompts, self.buckets, self.model.layout, multiple=multiple),
                strips=make_strips(plan, prompts, tokens, weights),
                advantage_bst=zeros,
                old_logp_bst=zeros,
                ref_logp_bst=zeros,
                sampled_logp_bst=zeros,
            )
            with jax.set_mesh(mesh):
                placed = place_rows(batch, mesh, model.rules)
                sums = rl.accumulate(model, self.objective, state.trainable, state.frozen, sums, placed)
        state, found = rl.apply(self.tx, self.rate, state, sums)
        metrics = read_metrics([found])
        clock.lap("update")
        return state, metrics | clock.metrics()
