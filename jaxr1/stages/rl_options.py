"""What a stage of reinforcement learning can be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from jaxr1.base.checks import check_least, check_positive, option
from jaxr1.base.names import REWARD_STATISTICS
from jaxr1.inputs.processor import Processor
from jaxr1.models.vlm import Model
from jaxr1.rewards.spec import Reward, check_labels
from jaxr1.rewards.workers import WorkerOptions
from jaxr1.rl.advantages import Advantage, AnyEstimator
from jaxr1.rl.controllers import AdaptiveEntropy, AdaptiveKl, Controller
from jaxr1.rl.corrections import Correction
from jaxr1.rl.filtering import OnlineFilter
from jaxr1.rl.objectives import Kl, Ppo, Surrogate
from jaxr1.rl.penalty import KlReward
from jaxr1.rl.reference import Reference
from jaxr1.rl.update import read
from jaxr1.rl.weights import Aggregation
from jaxr1.stages.common import StageOptions, check_rewards
from jaxr1.stages.context import POLICY
from jaxr1.stages.critic import CRITIC, Critic, check_critic

KL_REWARD = "kl_reward_coef"
"""The scalar that weighs the KL in the reward."""


@dataclasses.dataclass(frozen=True)
class Rl(StageOptions):
    """Reinforcement learning from rules: group sampling, advantages, a policy loss, KL.

    Attributes:
      data: examples with an `answer`.
      steps: rollouts.
      prompts_per_step: prompts of one rollout.
      group_size: responses per prompt.
      temperature: of sampling and of every log-prob.
      top_p: of sampling; log-probs are before this filter.
      top_k: of sampling, 0 is off; log-probs are before this filter.
      waves: parts a rollout is sampled in; one is graded while the next is sampled.
      updates_per_rollout: optimiser steps that one pass over a rollout takes, on disjoint groups;
        over 1, old log-probs are computed first. verl's ppo_mini_batch_size is prompts_per_step /
        updates_per_rollout; OpenRLHF's train_batch_size is group_size times that.
      inner_epochs: passes over a rollout.
      kl_stop: the rest of a rollout's updates is left out when one finds the policy this far from
        the one that sampled (mean of old - new log-probs of a token); 0 is off.
      old_logp: what ratios and clips compare with: "trainer" scores the sampling policy again where
        several updates follow; "sampler" takes the log-probs that the sampler reported (verl's
        bypass mode).
      advantage: how rewards become advantages.
      surrogate: the policy loss.
      corrections: multiply the policy loss of each token: weights for a sampler that differs from
        the trainer, and masks (`rl.corrections`).
      kl: the penalty to the reference, in the loss.
      kl_reward: the penalty to the reference, in the reward of each token.
      reference: whether the reference follows the policy.
      critic: what expects the return of each token, for an advantage that asks (`Gae`): PPO.
      entropy_coef: weight of the entropy bonus.
      entropy: how that weight moves; None keeps it as it is.
      aggregation: how tokens are averaged, see `rl.weights.token_weights`.
      count_empty: responses of which no token counts stay in the number of responses that are
        averaged over (TRL, EasyR1); verl leaves them out.
      length_norm: the constant of "seq-mean-token-sum-norm" (Dr. GRPO), in tokens; 0 is
        max_response_tokens.
      rewards: components and weights.
      reward_workers: worker processes that grade.
      reward_timeout_s: seconds before a worker is killed.
      reward_options: what workers may use, and how often an item is tried.
      drop_unparsable: leave out rows whose reference answer cannot be parsed (they are listed in
        dropped.jsonl).
      kept_by: the name of an earlier `Filter` stage with the same data: only rows that it has kept
        are drawn; "" draws all.
      online_filter: which groups a step learns from, and whether others are sampled instead; None
        is all.
      strips_at_once: most strips of a row that are differentiated together; 0 is no bound but
        micro_batch_tokens.
    """

    name: str = "rl"
    max_response_tokens: int = 512
    steps: int = 100
    prompts_per_step: int = 8
    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    waves: int = 2
    updates_per_rollout: int = 1
    inner_epochs: int = 1
    kl_stop: float = 0.0
    old_logp: Literal["trainer", "sampler"] = "trainer"
    advantage: AnyEstimator = Advantage()
    surrogate: Surrogate = Ppo()
    corrections: tuple[Correction, ...] = ()
    kl: Kl = Kl()
    kl_reward: KlReward = KlReward()
    reference: Reference = Reference()
    critic: Critic | None = None
    entropy_coef: float = 0.0
    entropy: AdaptiveEntropy | None = None
    aggregation: Aggregation = "token-mean"
    count_empty: bool = False
    length_norm: float = 0.0
    rewards: tuple[Reward, ...] = (Reward("accuracy"), Reward("format", weight=0.5))
    reward_workers: int = 1
    reward_timeout_s: float = 10.0
    reward_options: WorkerOptions = WorkerOptions()
    drop_unparsable: bool = True
    kept_by: str = ""
    online_filter: OnlineFilter | None = None
    strips_at_once: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_least(
            self,
            self.path,
            steps=1,
            prompts_per_step=1,
            group_size=2 if self.advantage.needs_group else 1,
            top_k=0,
            waves=1,
            updates_per_rollout=1,
            inner_epochs=1,
            kl_stop=0,
            reward_workers=1,
            strips_at_once=0,
            length_norm=0,
        )
        check_positive(self, "reward_timeout_s", path=self.path)
        if self.temperature <= 0:
            raise ValueError(
                f"{self.path}temperature must be over 0, greedy samples of a group are all equal"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"{self.path}top_p must be in (0, 1], got {self.top_p}")
        if self.prompts_per_step % self.updates_per_rollout:
            raise ValueError(
                f"{self.path}updates_per_rollout ({self.updates_per_rollout}) must divide "
                f"prompts_per_step ({self.prompts_per_step})"
            )
        if not self.rewards:
            raise ValueError(f"{self.path}no rewards")
        check_labels(self.rewards, self.path, REWARD_STATISTICS)
        for name, problem in self._meaningless():
            raise ValueError(f"{self.path}{name} {problem}")

    def _meaningless(self) -> list[tuple[str, str]]:
        """(option, why another one makes it meaningless)."""
        found = []
        if self.length_norm and self.aggregation != "seq-mean-token-sum-norm":
            found.append(("length_norm", f"is not read with aggregation {self.aggregation!r}"))
        if self.kl_stop and self.updates == 1:
            found.append(("kl_stop", "has nothing to stop: one update follows a rollout"))
        if self.reference.every and not self.needs_ref:
            found.append(
                (
                    "reference.every",
                    "moves a reference that nothing asks for: kl and kl_reward are 0",
                )
            )
        if self.old_logp == "sampler" and "old_logp" in self.corrected:
            found.append(
                ("corrections", "compare sampler and trainer, but old_logp is the sampler's itself")
            )
        if self.online_filter is not None:
            found += self._unfiltered(self.online_filter)
        needs_critic = "old_value" in self.advantage.needs
        if self.critic is not None and not needs_critic:
            found.append(("critic", f"is not read by {type(self.advantage).__name__}: take Gae"))
        if self.critic is None and needs_critic:
            found.append(("advantage", f"{type(self.advantage).__name__} needs a critic"))
        if self.critic is not None and self.critic.warmup >= self.steps:
            found.append(("critic.warmup", f"leaves no step of {self.steps} for the policy"))
        responses = self.prompts_at_once * self.group_size
        if responses == 1 and getattr(self.advantage, "whiten", "none") != "none":
            found.append(("advantage.whiten", "needs more than one response in a step"))
        return found

    def _unfiltered(self, rule: OnlineFilter) -> list[tuple[str, str]]:
        """As `_meaningless`, of the filter."""
        found = []
        labels = [reward.label for reward in self.rewards]
        if rule.reward and rule.reward not in labels:
            one = f"must be one of {', '.join(map(repr, labels))}, or '' for their sum"
            found.append(("online_filter.reward", f"{one}, got {rule.reward!r}"))
        if self.group_size < 2:
            found.append(("online_filter", "looks at groups: group_size must be at least 2"))
        if rule.after >= self.steps:
            found.append(("online_filter.after", f"leaves no step of {self.steps} to filter"))
        if rule.carry and "old_logp" in self.corrected:
            found.append(
                (
                    "corrections",
                    "compare sampler and trainer, whose log-probs of carried "
                    "groups nobody computes: leave out online_filter.carry",
                )
            )
        return found

    # --- what follows from the options ----------------------------------------------------------
    @property
    def updates(self) -> int:
        """Most optimiser steps that follow a rollout."""
        return self.updates_per_rollout * self.inner_epochs

    @property
    def is_on_policy(self) -> bool:
        """Whether the ratio is exactly 1: one update, compared with the policy at hand."""
        return self.updates == 1 and not self.old_of_sampler

    @property
    def old_of_sampler(self) -> bool:
        """Whether old log-probs are the sampler's: those of carried groups are no one else's."""
        carries = self.online_filter is not None and self.online_filter.carry
        return carries or self.old_logp == "sampler"

    @property
    def policy_steps(self) -> int:
        """Steps in which the policy moves."""
        return self.steps - (self.critic.warmup if self.critic is not None else 0)

    def learns(self, learner: str, step: int) -> bool:
        """Whether a learner is updated in a step, counted from 1."""
        if learner == CRITIC:
            return self.critic is not None
        return step > self.steps - self.policy_steps

    def has_moved_far(self, updates: Mapping[str, list[dict]]) -> bool:
        """Whether the last update found the policy over `kl_stop` from the one that sampled."""
        if not updates.get(POLICY):
            return False
        return read(updates[POLICY][-1:])[f"{POLICY}/approx_kl"] > self.kl_stop

    @property
    def models(self) -> tuple[str, ...]:
        """Other models that the stage reads."""
        return (self.critic.model,) if self.critic is not None and self.critic.model else ()

    @property
    def greedy(self) -> int:
        """Responses to each prompt that are drawn greedily, outside its group."""
        return int(getattr(self.advantage, "greedy_baseline", False))

    @property
    def credited(self) -> tuple[str, ...]:
        """Columns that credit is made of."""
        return (*self.advantage.needs, *(["ref_logp"] if self.kl_reward.coef else []))

    @property
    def corrected(self) -> tuple[str, ...]:
        """Columns that corrections are made of."""
        return tuple(sorted({name for one in self.corrections for name in one.needs}))

    @property
    def needs_ref(self) -> bool:
        """Whether anything asks for a reference model."""
        return bool(self.kl.coef) or "ref_logp" in self.credited

    @property
    def controllers(self) -> tuple[Controller, ...]:
        """What moves coefficients after a step."""
        samples, found = self.prompts_per_step * self.group_size, list[Controller]()
        if self.entropy is not None:
            found.append(self.entropy)
        if self.kl.target:
            found.append(AdaptiveKl(self.kl.target, samples, self.kl.horizon))
        if self.kl_reward.target:
            name, metric = KL_REWARD, "reward/kl"
            found.append(
                AdaptiveKl(
                    self.kl_reward.target,
                    samples,
                    self.kl_reward.horizon,
                    metric=metric,
                    scalar=name,
                )
            )
        return tuple(found)

    @property
    def scalars(self) -> dict[str, float]:
        """Coefficients that move from step to step beside those of the loss, as they begin."""
        return {KL_REWARD: self.kl_reward.coef} if self.kl_reward.target else {}

    @property
    def needs_reference(self) -> bool:
        return any(reward.needs_reference for reward in self.rewards)

    @property
    def leaves_out(self) -> bool:
        return self.drop_unparsable

    def count_steps(self, examples: int) -> int:
        return self.steps

    def check(self, path: str, model: Model, processor: Processor, folder: Path) -> None:
        super().check(path, model, processor, folder)
        if self.critic is not None:
            with option(f"{path}.critic"):
                check_critic(self.critic, model, processor)
        check_rewards(self.rewards, f"{path}.rewards", folder)

    @property
    def prompts_at_once(self) -> int:
        return self.prompts_per_step // self.updates_per_rollout

    def warnings(self, model: Model, devices: int = 1) -> list[str]:
        found = super().warnings(model, devices)
        if self.kl.coef and self.kl.estimator == "full":
            tokens = self.prompts_per_step * self.group_size * self.max_response_tokens
            gib = 2 * tokens * model.text.width / 2**30
            found.append(
                "kl.estimator 'full' keeps the reference's last hidden states in the memory of "
                f"each host: up to {gib:.3g} GiB in a step"
            )
        if self.top_p < 1 or self.top_k:
            found.append(
                "top_p and top_k filter the draw, but not the log-probs that are trained on"
            )
        return found
