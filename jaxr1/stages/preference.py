"""Preference learning: chosen responses against rejected ones to the same prompt, one step.

    pairs -> both sides on one prompt row -> log-probs of the reference -> losses of pairs -> update

Which algorithm this is: that of its losses (`rl.objectives.preference`), DPO by default, MPO for
MM-Eureka's baseline. Pairs stand in the rows, or are made once of the model's own answers.
"""

from __future__ import annotations

import functools

import numpy as np

from jaxr1.data.example import DataError
from jaxr1.inputs.feed import Feed
from jaxr1.rl.controllers import BcoShift
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.learner import Learner, TrainState
from jaxr1.rl.terms import Objective
from jaxr1.rl.update import read, update
from jaxr1.rl.weights import Weighting, chosen_weights, pair_weights
from jaxr1.rl.work import Work
from jaxr1.stages.answers import answers, problem_of
from jaxr1.stages.context import POLICY, Clock, Context, Worker
from jaxr1.stages.options import Preference
from jaxr1.stages.pairs import Pair, Sorted
from jaxr1.stages.prepared import token_noise
from jaxr1.stages.scored import Source, scored


class PreferenceStage(Worker):
    """Losses of pairs; a row is a prompt and its pairs."""

    def __init__(self, options: Preference, context: Context):
        steps = options.count_steps(context.examples)
        forbidden = context.processor.media_token_ids
        self.options, self.pairs = options, dict[int, list[Pair]]()
        self.policy = Learner(
            model=context.model,
            objective=Objective(options.losses, POLICY, on_policy=False, forbidden=forbidden),
            buckets=context.buckets,
            optimizer=options.optimizer,
            updates=steps,
            freeze=options.freeze,
            weightings=(),
            micro_batch_tokens=options.micro_batch_tokens,
        )
        super().__init__(context, {POLICY: self.policy}, steps, options.batch_size)
        self.scalars = self.policy.objective.scalars
        self.controller = BcoShift(options.bco_momentum)
        self.reference: dict = {}

    def begin(self, states: dict[str, TrainState]) -> None:
        """Keeps the policy as the reference; has it answer, where pairs are made of its answers."""
        state = states[POLICY]
        if not state.adapted:
            self.reference = self.context.snapshot(state.trainable)
        if self.options.answers is not None:
            params = {**state.base, **self.reference}
            self.pairs = self._made(params)

    def _made(self, params: dict) -> dict[int, list[Pair]]:
        """{row: its pairs}; rows without a right or a wrong answer are counted, and not drawn."""
        options, context = self.options, self.context
        assert options.answers is not None and context.dataset is not None
        dataset, limits = context.dataset, (options.max_prompt_tokens, options.max_response_tokens)
        asked = (dataset, context, options.name, limits, context.unusable)
        judge = functools.partial(problem_of, options)
        found = answers(options.answers, params, *asked, judge)
        pairs: dict[int, list[Pair]] = {}
        for row, group in sorted(found.items()):
            source = dataset[row].source
            for number, answer in enumerate(group):
                if answer.reward is None:
                    why = f"{answer.status}: {answer.detail or 'no reward'}"
                    context.drop(source, f"answer {number} is not scored: {why}")
            sides = Sorted.of(group, options.right_reward, options.right_over)
            if sides.problem is not None:
                context.drop(source, sides.problem)
            else:
                pairs[row] = sides.pairs(options.pairs, [context.seed, context.stream, row])
        if not pairs:
            raise DataError(
                f"{dataset.name}: none of its {len(dataset)} rows has a right answer and a wrong "
                f"one (dropped.jsonl says what each lacks): no pair can be made. More "
                f"answers.samples, another right_over than {options.right_over:g} or another "
                "model would give some"
            )
        self.unusable = frozenset(range(len(dataset))) - pairs.keys()
        return pairs

    def step(
        self, states: dict[str, TrainState], feed: Feed, number: int
    ) -> tuple[dict[str, TrainState], dict[str, float]]:
        """One optimiser step on the pairs of the draws; see `Worker.step`."""
        policy, state, context = self.policy, states[POLICY], self.context
        clock, work = Clock(), Work()
        context.phase("update")

        # Both sides of all pairs of a prompt lie in its row.
        draws = feed.take(self.draws)
        pairs = [self.pairs.get(draw.row) or [(draw.response, draw.rejected)] for draw in draws]
        sides = [[side for pair in of_row for side in pair] for of_row in pairs]
        views = {POLICY: policy.see(state, [draw.prompt for draw in draws], work)}
        clock.lap("encode")
        episodes = Episodes.given(draws, sides)
        episodes.views = views
        episodes.columns |= pair_columns(episodes, Weighting(self.options.chosen_average))

        # What losses compare with: the policy before the stage, and ranks of the policy at hand.
        reference = {**state.base, **self.reference}
        sources = {
            "reference": Source(policy, reference),
            "now": Source(policy, state.params),
        }
        objective = policy.objective
        names = [*objective.needs, *objective.fresh]
        asked = (episodes, episodes.valid_bg, work, context.check)
        episodes.columns |= scored(names, sources, *asked)
        noise = functools.partial(token_noise, context, episodes, 0)
        for term in objective.terms:
            episodes.columns |= term.prepare(episodes, noise)
        clock.lap("score")

        scalars = {key: self.scalars[key] for key in objective.scalars}
        state, found = update(policy, state, episodes, work, scalars=scalars, check=context.check)
        metrics = read([found])
        clock.lap("update")
        if "bco_shift" in self.scalars:
            metrics["policy/bco_shift"] = self.scalars["bco_shift"]
            self.scalars = self.controller(self.scalars, metrics)
        metrics["preference/pairs"] = float(sum(map(len, pairs)))
        if self.options.answers is not None:
            metrics["preference/rows"] = float(len(self.pairs))
        return {**states, POLICY: state}, metrics | work.metrics() | clock.metrics(work.flops)


def pair_columns(episodes: Episodes, of_chosen: Weighting) -> dict[str, np.ndarray]:
    """The columns of pairs, whose sides follow one another in each group.

    samples   chosen 1, rejected 1, chosen 2, rejected 2
    pair           1           1         2           2
    sign          +1          -1        +1          -1
    """
    own = episodes.columns["own"]
    counts_bg = episodes.sums(own).astype(np.int64)
    place_bg = np.broadcast_to(np.arange(counts_bg.shape[1]), counts_bg.shape)
    pair_bg = np.where(counts_bg > 0, place_bg // 2 + 1, 0)
    sign_bg = np.where(place_bg % 2 == 0, 1, -1)
    spread = episodes.spread
    return {
        "pair": spread(pair_bg),
        "sign": spread(sign_bg),
        "pair_weight": spread(pair_weights(counts_bg, pair_bg)) * own,
        "chosen_weight": spread(chosen_weights(counts_bg, sign_bg, of_chosen)) * own,
    }
