"""The groups of a rollout as optimiser steps take them: parts, each with all columns it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from jaxr1.rl.corrections import correct, mismatch_metrics
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.learner import Learner
from jaxr1.rl.work import Work
from jaxr1.stages.context import Context
from jaxr1.stages.options import Rl
from jaxr1.stages.scored import Source, scored


class Prepared:
    """The parts of a rollout.

        groups     [ 0 1 2 3 4 5 ]      updates_per_rollout 3, inner_epochs 2
        updates    0 1 | 2 3 | 4 5 | 0 1 | 2 3 | 4 5

    Args:
      learners: by name.
      work: what is computed is added to it.
    """

    def __init__(
        self,
        options: Rl,
        context: Context,
        learners: Mapping[str, Learner],
        episodes: Episodes,
        work: Work,
    ):
        self.options, self.context, self.learners, self.work = options, context, learners, work
        self.parts = episodes.split(options.updates_per_rollout)

    def score(self, sources: Mapping[str, Source]) -> None:
        """Weights, and what is the same in all epochs: of the policy that sampled."""
        for part in self.parts:
            if self.options.old_of_sampler:
                part.columns["old_logp"] = part.columns["sampled_logp"]
            for learner in self.learners.values():
                part.columns |= learner.weights(part)
                needs = [*learner.objective.needs, *self.options.corrected]
                self._add(part, needs, learner, without_now(sources), self.context.check)

    def ready(
        self,
        index: int,
        learner: Learner,
        sources: Mapping[str, Source],
        check: Callable[[], None],
    ) -> tuple[Episodes, dict[str, float]]:
        """The part of an optimiser step, and what is logged of its corrections.

        Args:
          index: of the optimiser step in the rollout.
          check: may end the step; see `update`.
        """
        part, objective = self.parts[index % len(self.parts)], learner.objective
        for name in ("now_logp", "now_entropy"):
            part.columns.pop(name, None)
        asked = [*objective.fresh, *(self.options.corrected if objective.corrected else ())]
        if index == 0 and "now_logp" in asked:  # nothing has moved: the sampler has told them
            part.columns["now_logp"] = part.columns["sampled_logp"]
        self._add(part, asked, learner, sources, check)
        metrics: dict[str, float] = {}
        if objective.corrected:
            found = correct(self.options.corrections, part)
            part.columns["correction"] = found.column.astype(np.float32)
            metrics = found.metrics
            if "old_logp" in self.options.corrected:
                metrics = metrics | mismatch_metrics(part)
        noise = functools.partial(token_noise, self.context, part, index)
        for term in objective.terms:
            part.columns |= term.prepare(part, noise)
        return part, metrics

    def _add(
        self,
        part: Episodes,
        names: Iterable[str],
        learner: Learner,
        sources: Mapping[str, Source],
        check: Callable[[], None],
    ) -> None:
        """Scores columns; of all responses, where something is said of a whole batch."""
        is_whole = learner.objective.fresh or learner.objective.corrected
        placed_bg = part.valid_bg if is_whole else learner.trained(part)
        part.columns |= scored(names, sources, part, placed_bg, self.work, check)


def without_now(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Those that stay the same while the rollout is learned from."""
    return {name: source for name, source in sources.items() if name != "now"}


def token_noise(context: Context, part: Episodes, index: int) -> np.ndarray:
    """float64[N], uniform in [0, 1): a function of the run's seed, the stage, the draw, the sample,
    the token's place and the optimiser step.
    """
    found = [np.zeros(0)]
    for draw, counts in zip(part.draws, part.counts_bg, strict=True):
        for sample, count in enumerate(counts.tolist()):
            key = [context.seed, context.stream, draw.position, sample, index]
            found.append(np.random.default_rng(key).random(count))
    return np.concatenate(found)
