"""Rollouts: responses drawn in waves, each graded while the next one is drawn; written, replayed.

wave 0   draw -> grade ...................
wave 1           draw -> grade ...........      -> Episodes, whose grades are on disk
wave 2                   draw -> grade ...

With an online filter a rollout is a first try: others follow until the step has all its groups.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw
from jaxr1.inputs.feed import Feed
from jaxr1.rewards.grades import Pending
from jaxr1.rewards.pool import RewardPool
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.grading import submit, wait_for
from jaxr1.rl.journal import Journal
from jaxr1.rl.work import Work
from jaxr1.sampling.decode import Weights
from jaxr1.sampling.draw import prompt_key
from jaxr1.sampling.sampler import Sampler, SamplingOptions
from jaxr1.stages.context import POLICY, Clock, Context
from jaxr1.stages.filling import Filling, Group, groups_of, joined
from jaxr1.stages.options import Rl

See = Callable[[list[Draw]], dict[str, list[EncodedPrompt]]]
"""Prompts as each learner sees them."""


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
        self.filling: Filling | None = None
        self.carried: list[Group] = []

    def resume(self, step: int, feed: Feed) -> None:
        """Takes up the groups that a step has left for the next one, their prompts made again."""
        rule = self.options.online_filter
        rows = self.journal.carried(step) if rule is not None and rule.carry else []
        draws = feed.again([(row["position"], row["row"], row["host"]) for row in rows])
        self.carried = [Group.read(row, draw) for row, draw in zip(rows, draws, strict=True)]

    def __call__(
        self, params: dict, feed: Feed, see: See, number: int, clock: Clock, work: Work
    ) -> Episodes:
        """Graded responses to the prompts of a step: those of a try before a crash, or new ones.

        Args:
          params: the policy's.
          feed: gives the prompts.
          see: looks at them.
          number: of the step.
          clock, work: what is done is noted there.

        Raises:
          FilterError: the online filter keeps too few groups.
        """
        options, rule = self.options, self.options.online_filter
        weights = self.sampler.weights(params)

        def sampled(draws: list[Draw]) -> Episodes:
            views = see(draws)
            clock.lap("encode")
            return self._sampled(params, weights, draws, views, number, clock, work)

        self.filling = None
        if rule is None or number <= rule.after:
            episodes = sampled(feed.take(options.prompts_per_step))
        elif rule.refill:
            episodes = self._filled(feed, sampled, see)
        else:
            episodes = self._shrunk(sampled(feed.take(options.prompts_per_step)))
        if options.greedy:
            episodes = episodes.set_apart()
        episodes.reward_weights = {reward.label: reward.weight for reward in options.rewards}
        return episodes

    def write(self, number: int, episodes: Episodes) -> dict[str, float]:
        """Writes down a step's rollout, and returns what is logged of its filter."""
        if (filling := self.filling) is None:
            self.journal.write(number, episodes)
            return {}
        surplus = filling.surplus()
        self.carried = [
            dataclasses.replace(group, views={}) for group in surplus if filling.rule.carry
        ]
        others: dict[str, list[Group]] = {"surplus": surplus}
        for group in filling.dropped if filling.rule.refill else ():
            others.setdefault(group.verdict, []).append(group)
        dropped = {role: joined(groups) for role, groups in others.items() if groups}
        carried = [group.row() for group in self.carried]
        self.journal.write(number, episodes, dropped, carried)
        return filling.metrics()

    def _sampled(
        self,
        params: dict,
        weights: Weights,
        draws: list[Draw],
        views: dict[str, list[EncodedPrompt]],
        number: int,
        clock: Clock,
        work: Work,
    ) -> Episodes:
        """Graded responses to these prompts, as they are learned from."""
        options, context = self.options, self.context
        replay = self.journal.has(number)
        groups: list = []
        pending: list[Pending] = []
        prompts = views[POLICY]
        size = -(-options.prompts_per_step // options.waves)
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
        return episodes

    # --- with a filter --------------------------------------------------------------------------
    def _filling(self, carried: list[Group]) -> Filling:
        options, rule = self.options, self.options.online_filter
        assert rule is not None
        return Filling(rule, options.prompts_per_step, options.group_size, carried)

    def _filled(self, feed: Feed, sampled: Callable[[list[Draw]], Episodes], see: See) -> Episodes:
        """As many groups as the step is to have, each of which the filter keeps."""
        filling = self.filling = self._filling(self.carried)
        while filling.missing():
            turns = filling.turns(self.options.name)
            filling.add(groups_of(sampled(feed.take(len(turns), turns))))
        chosen = filling.chosen()
        # Carried groups are looked at again, in a run that goes on as in one that resumes.
        old = [i for i, group in enumerate(chosen) if not group.views]
        views = see([chosen[i].draw for i in old]) if old else {}
        for place, i in enumerate(old):
            seen = {name: prompts[place] for name, prompts in views.items()}
            chosen[i] = dataclasses.replace(chosen[i], views=seen)
        return joined(chosen)

    def _shrunk(self, episodes: Episodes) -> Episodes:
        """All groups, of which only those that the filter keeps count."""
        filling = self.filling = self._filling([])
        filling.add(groups_of(episodes))
        kept = {group.draw.position for group in filling.kept}
        counts_b = np.array([draw.position in kept for draw in episodes.draws], bool)
        episodes.valid_bg = episodes.valid_bg & counts_b[:, None]
        return episodes
