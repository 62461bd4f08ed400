"""Supervised training on worked responses: the update of RL with another objective."""

from __future__ import annotations

from jaxr1.inputs.feed import Feed
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.learner import Learner, TrainState
from jaxr1.rl.objectives import CrossEntropy
from jaxr1.rl.terms import Objective
from jaxr1.rl.update import read, update
from jaxr1.rl.work import Work
from jaxr1.stages.context import POLICY, Clock, Context, Worker
from jaxr1.stages.options import Sft


class SftStage(Worker):
    """Cross-entropy; a row is a prompt and its one response."""

    def __init__(self, options: Sft, context: Context):
        steps = options.count_steps(context.examples)
        forbidden = context.processor.media_token_ids
        self.policy = Learner(
            model=context.model,
            objective=Objective((CrossEntropy(),), POLICY, forbidden=forbidden),
            buckets=context.buckets,
            optimizer=options.optimizer,
            updates=steps,
            freeze=options.freeze,
            micro_batch_tokens=options.micro_batch_tokens,
        )
        super().__init__(context, {POLICY: self.policy}, steps, options.batch_size)

    def step(
        self, states: dict[str, TrainState], feed: Feed, number: int
    ) -> tuple[dict[str, TrainState], dict[str, float]]:
        """One optimiser step on the draws; see `Worker.step`."""
        clock, work = Clock(), Work()
        self.context.phase("update")
        draws = feed.take(self.draws)
        episodes = Episodes.given(draws, [[draw.response] for draw in draws])
        episodes.columns |= self.policy.weights(episodes)
        check = self.context.check
        state, found = update(self.policy, states[POLICY], episodes, work, check=check)
        metrics = read([found])
        clock.lap("update")
        return {**states, POLICY: state}, metrics | work.metrics() | clock.metrics(work.flops)
