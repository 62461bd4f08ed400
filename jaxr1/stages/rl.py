"""Reinforcement learning from rules, one step top to bottom: sample, grade, score, credit, update.

    prompts -> rollout -> grades -> log-probs -> advantages -> updates
                 |          |           |            |            |
                 v          v           v            v            v
               Episodes: draws, responses, grades, columns {sampled_logp, old_logp, ref_logp, ...}

Which algorithm this is:
- G responses to each prompt, graded by plain functions; the advantage of a response is relative to
  its group (GRPO, RLOO, ...: `rl.advantages`);
- a clipped surrogate on tokens (`rl.objectives`), averaged over a whole optimiser step;
- on-policy: one update follows a rollout, so the ratio is exactly 1; several take disjoint groups
  each, with old log-probs of the policy that sampled;
- KL to a frozen reference as a term of the loss.

What was left out: a critic, KL in the reward, replay of old rollouts, sampling while training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw
from jaxr1.rewards.grades import Pending
from jaxr1.rewards.pool import RewardPool
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.grading import submit, wait_for
from jaxr1.rl.journal import Journal
from jaxr1.rl.learner import Learner, TrainState
from jaxr1.rl.objectives import Entropy, PolicyStats
from jaxr1.rl.terms import Objective, Term
from jaxr1.rl.update import read, score, update
from jaxr1.rl.weights import Weighting
from jaxr1.rl.work import Work
from jaxr1.sampling.draw import prompt_key
from jaxr1.sampling.sampler import Sampler, SamplingOptions
from jaxr1.stages.context import POLICY, Clock, Context, Worker
from jaxr1.stages.options import Rl


def policy_learner(options: Rl, context: Context) -> Learner:
    """The policy: the surrogate, what is added to it, and what is measured beside it."""
    terms: list[Term] = [options.surrogate]
    if options.kl.coef:
        terms.append(options.kl)
    if options.entropy_coef:
        terms.append(Entropy(options.entropy_coef))
    length_norm = options.length_norm or options.max_response_tokens
    return Learner(
        model=context.model,
        objective=Objective(
            terms=(*terms, PolicyStats()),
            name=POLICY,
            on_policy=options.updates_per_rollout == 1,
            temperature=options.temperature,
            forbidden=context.processor.media_token_ids,
        ),
        buckets=context.buckets,
        optimizer=options.optimizer,
        updates=options.steps * options.updates_per_rollout,
        freeze=options.freeze,
        weightings=(("weight", Weighting(options.aggregation, length_norm)),),
        micro_batch_tokens=options.micro_batch_tokens,
        strips_at_once=options.strips_at_once,
    )


class RlStage(Worker):
    """Group sampling and its updates."""

    def __init__(self, options: Rl, context: Context):
        self.options, self.policy = options, policy_learner(options, context)
        super().__init__(context, {POLICY: self.policy}, options.steps, options.prompts_per_step)
        sampling = SamplingOptions(
            options.max_response_tokens, options.temperature, options.top_p, options.top_k
        )
        at_once = options.micro_batch_tokens
        self.sampler = Sampler(context.model, context.processor, sampling, context.buckets, at_once)
        self.journal = Journal(context.folder / "rollouts", options.name)
        self.pool = self.enter_context(RewardPool.of(options, context.folder))
        self.reference: dict | None = None

    def begin(self, states: dict[str, TrainState]) -> None:
        """Keeps the policy as it is when the stage begins, if anything asks how far it has moved.

        Where adapters are trained the base without them is the reference, and nothing is kept.
        """
        if "ref_logp" in (*self.policy.objective.needs, *self.options.advantage.needs):
            state = states[POLICY]
            self.reference = {} if state.adapted else self.context.snapshot(state.trainable)

    def step(
        self, states: dict[str, TrainState], draws: list[Draw], number: int
    ) -> tuple[dict[str, TrainState], dict[str, float]]:
        """One rollout and its updates; see `Worker.step`."""
        options, policy, state = self.options, self.policy, states[POLICY]
        clock, work = Clock(), Work()

        # What frozen parts make of the media is computed once, for all that follows.
        prompts = policy.see(state, [draw.prompt for draw in draws], work)
        clock.lap("encode")

        # G responses to each prompt; a wave is graded while the next one is sampled.
        episodes = self.rollout(state.params, draws, prompts, number, clock, work)
        clock.lap("reward_wait")

        # Rewards become advantages. They are on disk before anything learns from them: a resume
        # replays the grades.
        scored = self.scored(options.advantage.needs, state, episodes, episodes.valid_bg, work)
        episodes.columns |= scored
        credit = options.advantage(episodes)
        episodes.columns |= credit.columns
        self.journal.write(number, episodes)

        # Each part is one optimiser step; all are scored before the first, by the sampling policy.
        self.context.phase("update")
        parts = episodes.split(options.updates_per_rollout)
        for part in parts:
            part.columns |= policy.weights(part)
            trained_bg = policy.trained(part)
            part.columns |= self.scored(policy.objective.needs, state, part, trained_bg, work)
        clock.lap("score")

        # Until the first of them is applied nothing is changed, and a signal may drop the step.
        found: list[dict] = []
        for part in parts:
            check = self.context.check if not found else lambda: None
            state, metrics = update(policy, state, part, work, check=check)
            found.append(metrics)
        learned = read(found)
        clock.lap("update")

        measured = episodes.metrics() | credit.metrics | work.metrics() | clock.metrics(work.flops)
        measured["perf/tokens_per_s"] = len(episodes.token_n) / clock.total
        measured["memory/cache_gib"] = self.sampler.cache_gib
        return {**states, POLICY: state}, learned | measured

    def rollout(
        self,
        params: dict,
        draws: list[Draw],
        prompts: list[EncodedPrompt],
        number: int,
        clock: Clock,
        work: Work,
    ) -> Episodes:
        """Graded responses to all prompts: those of a try before a crash, or new ones."""
        options, context = self.options, self.context
        replay = self.journal.has(number)
        groups: list = []
        pending: list[Pending] = []
        weights = self.sampler.weights(params)
        size = -(-len(draws) // options.waves)
        for first in range(0, len(draws), size):
            context.check()
            context.phase("sampling")
            wave, seen = draws[first : first + size], prompts[first : first + size]
            keys = [prompt_key(context.seed, context.stream, draw.position) for draw in wave]
            sampled = self.sampler(
                params, seen, keys, options.group_size, weights=weights, check=context.check
            )
            groups += sampled
            part = Episodes.sampled(wave, sampled)
            work.forward(context.model, seen, part.counts_bg.tolist())
            clock.lap("sample")
            if not replay:
                pending.append(submit(self.pool, part))

        episodes = Episodes.sampled(draws, groups, {POLICY: prompts})
        context.phase("grading")
        grades = self.journal.replay(number, episodes) if replay else None
        if grades is None:
            pending = pending or [submit(self.pool, episodes)]
            grades = episodes.graded(wait_for(pending, context.check))
        episodes.grade(grades)
        for source, reason in episodes.unscored():
            context.drop(source, reason)
        return episodes

    def scored(
        self,
        names: Sequence[str],
        state: TrainState,
        episodes: Episodes,
        placed_bg: np.ndarray,
        work: Work,
    ) -> dict[str, np.ndarray]:
        """Log-probs of responses as columns, those of `names` that are not there yet."""
        params = {"old_logp": state.params}
        if self.reference is not None:
            params["ref_logp"] = {**state.base, **self.reference}
        seen = (episodes, placed_bg, work, self.context.check)
        missing = [name for name in names if name in params and name not in episodes.columns]
        return {name: score(self.policy, params[name], *seen) for name in missing}
