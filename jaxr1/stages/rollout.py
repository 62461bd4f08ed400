"""Rollouts: responses drawn in waves, each graded while the next one is drawn; written, replayed.

wave 0   draw -> grade ...................
wave 1           draw -> grade ...........      -> Episodes, whose grades are on disk
wave 2                   draw -> grade ...
"""

from __future__ import annotations

import contextlib

from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw
from jaxr1.rewards.grades import Pending
from jaxr1.rewards.pool import RewardPool
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.grading import submit, wait_for
from jaxr1.rl.journal import Journal
from jaxr1.rl.work import Work
from jaxr1.sampling.draw import prompt_key
from jaxr1.sampling.sampler import Sampler, SamplingOptions
from jaxr1.stages.context import POLICY, Clock, Context
from jaxr1.stages.options import Rl


class Rollouts(contextlib.ExitStack):
    """Draws and grades the responses of a stage; a context manager, whose end is its graders'.

    Attributes:
      journal: its rollouts on disk.
      sampler: draws.
    """

    def __init__(self, options: Rl, context: Context):
        super().__init__()
        self.options, self.context = options, context
        limits = SamplingOptions(
            options.max_response_tokens, options.temperature, options.top_p, options.top_k
        )
        at_once = options.micro_batch_tokens
        self.sampler = Sampler(context.model, context.processor, limits, context.buckets, at_once)
        self.journal = Journal(context.folder / "rollouts", options.name)
        self.pool = self.enter_context(RewardPool.of(options, context.folder))

    def __call__(
        self,
        params: dict,
        draws: list[Draw],
        views: dict[str, list[EncodedPrompt]],
        number: int,
        clock: Clock,
        work: Work,
    ) -> Episodes:
        """Graded responses to all prompts: those of a try before a crash, or new ones.

        Args:
          params: the policy's.
          views: the prompts as each learner sees them.
          number: of the step.
          clock, work: what is done is noted there.
        """
        options, context = self.options, self.context
        replay = self.journal.has(number)
        groups: list = []
        pending: list[Pending] = []
        weights, prompts = self.sampler.weights(params), views[POLICY]
        size = -(-len(draws) // options.waves)
        for first in range(0, len(draws), size):
            context.check()
            context.phase("sampling")
            wave, seen = draws[first : first + size], prompts[first : first + size]
            keys = [prompt_key(context.seed, context.stream, draw.position) for draw in wave]
            sampled = self.sampler(
                params,
                seen,
                keys,
                options.group_size,
                greedy=options.greedy,
                weights=weights,
                check=context.check,
            )
            groups += sampled
            part = Episodes.sampled(wave, sampled)
            work.forward(context.model, seen, part.counts_bg.tolist())
            clock.lap("sample")
            if not replay:
                pending.append(submit(self.pool, part))

        episodes = Episodes.sampled(draws, groups, views)
        context.phase("grading")
        grades = self.journal.replay(number, episodes) if replay else None
        if grades is None:
            pending = pending or [submit(self.pool, episodes)]
            grades = episodes.graded(wait_for(pending, context.check))
        episodes.grade(grades)
        for source, reason in episodes.unscored():
            context.drop(source, reason)
        clock.lap("reward_wait")
        if options.greedy:
            episodes = episodes.set_apart()
        episodes.reward_weights = {reward.label: reward.weight for reward in options.rewards}
        return episodes
