"""Reinforcement learning from rules, one step top to bottom: sample, grade, score, credit, update.

    prompts -> rollout -> grades -> log-probs -> advantages -> updates
                 |          |           |            |            |
                 v          v           v            v            v
               Episodes: draws, responses, grades, columns {sampled_logp, ref_logp, advantage, ...}

Which algorithm this is:
- G responses to each prompt, graded by plain functions; an estimator makes advantages of rewards:
  relative to the group (GRPO, RLOO, ...), or token by token with a critic (`rl.advantages`);
- a policy loss on tokens or responses (`rl.objectives`), averaged over a whole optimiser step;
- on-policy: one update follows a rollout, so the ratio is exactly 1; several take disjoint groups
  each, several epochs the same ones again, with old log-probs of the policy that sampled;
- KL to a reference as a term of the loss, as a part of the reward, or both;
- with a critic (PPO) every update of the policy follows one of the critic on the same groups.

What was left out: replay of old rollouts, sampling while training.
"""

from __future__ import annotations

import functools

from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw
from jaxr1.inputs.feed import Feed
from jaxr1.rl.learner import TrainState
from jaxr1.rl.penalty import penalty
from jaxr1.rl.reference import mixed
from jaxr1.rl.update import read, update
from jaxr1.rl.work import Work
from jaxr1.stages.context import POLICY, Clock, Context, Worker
from jaxr1.stages.critic import CRITIC, critic_params
from jaxr1.stages.filter import kept_rows
from jaxr1.stages.learners import critic_of, policy_learner
from jaxr1.stages.options import Rl
from jaxr1.stages.prepared import Prepared
from jaxr1.stages.rl_options import KL_REWARD
from jaxr1.stages.rollout import Rollouts
from jaxr1.stages.scored import Source, ref_head, scored


class RlStage(Worker):
    """Group sampling and its updates."""

    def __init__(self, options: Rl, context: Context):
        self.options, self.policy = options, policy_learner(options, context)
        learners = {POLICY: self.policy}
        if options.critic is not None:
            learners[CRITIC] = critic_of(options, options.critic, self.policy)
        super().__init__(context, learners, options.steps, options.prompts_per_step)
        self.rollouts = self.enter_context(Rollouts(options, context))
        self.scalars = options.scalars | self.policy.objective.scalars
        self.reference: dict | None = None

    def init(self, params: dict) -> dict[str, TrainState]:
        """Fresh states; the critic's backbone is the policy as the stage begins, or its own."""
        states = {POLICY: self.policy.init(params)}
        if self.options.critic is not None:
            critic = self.learners[CRITIC]
            seed, frozen = self.context.seed, states[POLICY].frozen
            own = critic_params(self.options.critic, critic, params, seed, frozen)
            states[CRITIC] = critic.init(own)
        return states

    def begin(self, states: dict[str, TrainState]) -> None:
        """Which rows are drawn; and the policy as the stage begins, if anything asks how far it has
        moved.

        Where adapters are trained the base without them is the reference, and nothing is kept as
        long as it does not move.
        """
        if self.options.kept_by:
            kept = kept_rows(self.context.folder, self.options.kept_by)
            self.unusable = self.unusable | (frozenset(range(self.context.examples)) - kept)
        if not self.options.needs_ref:
            return
        state = states[POLICY]
        if state.adapted and not self.options.reference.every:
            self.reference = {}
        else:
            self.reference = self.context.snapshot(state.trainable)

    def step(
        self, states: dict[str, TrainState], feed: Feed, number: int
    ) -> tuple[dict[str, TrainState], dict[str, float]]:
        """One rollout and its updates; see `Worker.step`."""
        options, clock, work = self.options, Clock(), Work()
        measured: dict[str, float] = {}

        # G responses to each prompt; a wave is graded while the next one is sampled. What frozen
        # parts make of the media is computed once, for all that follows.
        params, see = states[POLICY].params, functools.partial(self.views, states, work)
        if self.resumed is not None:
            self.rollouts.resume(self.resumed, feed)
            self.resumed = None
        episodes = self.rollouts(params, feed, see, number, clock, work)

        # What credit is made of: log-probs and values of all graded responses, KL as a penalty.
        asked = (episodes, episodes.valid_bg, work, self.context.check)
        episodes.columns |= scored(options.credited, self.sources(states), *asked)
        if options.kl_reward.coef:
            coef = self.scalars.get(KL_REWARD, options.kl_reward.coef)
            episodes.columns["penalty"], found = penalty(episodes, options.kl_reward, coef)
            measured |= found

        # Rewards become advantages. They are on disk before anything learns from them: a resume
        # replays the grades.
        credit = options.advantage(episodes)
        episodes.columns |= credit.columns
        measured |= self.rollouts.write(number, episodes)

        # Each part is one optimiser step; what all need is scored before the first of them.
        self.context.phase("update")
        parts = Prepared(options, self.context, self.learners, episodes, work)
        parts.score(self.sources(states))
        clock.lap("score")

        # Until the first of them is applied nothing is changed, and a signal may drop the step.
        learning = [name for name in (CRITIC, POLICY) if options.learns(name, number)]
        updates: dict[str, list[dict]] = {name: [] for name in learning}
        for index in range(options.updates):
            for name in learning:
                is_first = not any(updates.values())
                check = self.context.check if is_first else lambda: None
                learner, sources = self.learners[name], self.sources(states)
                part, found = parts.ready(index, learner, sources, check)
                scalars = {key: self.scalars[key] for key in learner.objective.scalars}
                state, metrics = update(
                    learner,
                    states[name],
                    part,
                    work,
                    scalars=scalars,
                    check=check,
                    ref_head=ref_head(learner, sources),
                )
                states = {**states, name: state}
                updates[name].append(metrics)
                measured |= {key: value for key, value in found.items() if key not in measured}
            if options.kl_stop and options.has_moved_far(updates):
                break
        measured["policy/updates"] = float(len(updates.get(POLICY, ())))
        for metrics_of in updates.values():
            measured |= read(metrics_of)
        clock.lap("update")

        # What moves from step to step: coefficients, and the reference.
        measured |= episodes.metrics() | credit.metrics
        for controller in options.controllers:
            self.scalars = controller(self.scalars, measured)
        if self.reference is not None and options.reference.is_due(number):
            self.move_reference(states[POLICY], number)

        measured |= work.metrics() | clock.metrics(work.flops)
        measured["perf/tokens_per_s"] = len(episodes.token_n) / clock.total
        measured["memory/cache_gib"] = self.rollouts.sampler.cache_gib
        return states, measured

    # --- parts of a step ------------------------------------------------------------------------
    def views(
        self, states: dict[str, TrainState], work: Work, draws: list[Draw]
    ) -> dict[str, list[EncodedPrompt]]:
        """The prompts as each learner sees them."""
        prompts = [draw.prompt for draw in draws]
        return {
            name: learner.see(states[name], prompts, work)
            for name, learner in self.learners.items()
        }

    def sources(self, states: dict[str, TrainState]) -> dict[str, Source]:
        """Whose parameters a column may be scored with, as they are now."""
        policy = states[POLICY]
        found = {name: Source(self.policy, policy.params) for name in ("old", "now")}
        if self.reference is not None:
            params = {**policy.base, **self.reference}
            found["reference"] = Source(self.policy, params)
        if CRITIC in states:
            found["critic"] = Source(self.learners[CRITIC], states[CRITIC].params)
        return found

    def move_reference(self, policy: TrainState, number: int) -> None:
        """The reference takes over a share of the policy; kept on disk before a checkpoint is."""
        assert self.reference is not None
        self.reference = mixed(self.reference, policy.trainable, self.options.reference.alpha)
        self.context.keep(number, self.reference_step, self.reference)
        self.reference_step = number
