"""What a stage can be told: one frozen dataclass for each kind, which checks itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from jaxr1.base.checks import check_least, check_positive, check_types, option
from jaxr1.base.names import REWARD_STATISTICS, check_name
from jaxr1.data import Source
from jaxr1.inputs.sizes import BucketOptions
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import Lora, adapter_table
from jaxr1.rewards.spec import Reward, check_labels
from jaxr1.rewards.workers import WorkerOptions
from jaxr1.rl.advantages import Advantage, AnyEstimator
from jaxr1.rl.learner import check_freeze
from jaxr1.rl.objectives import Kl, Ppo, Surrogate
from jaxr1.rl.optimizer import Optimizer
from jaxr1.rl.weights import Aggregation

ADAPTER_RATE = 1e-5  # the lowest learning rate that is usual for low-rank adapters


@dataclasses.dataclass(frozen=True)
class StageOptions:
    """What every stage can be told.

    Attributes:
      data: the examples.
      name: of the stage, in metrics and files.
      max_prompt_tokens: examples with a longer prompt are dropped and written down.
      max_response_tokens: limit of a response.
      micro_batch_tokens: padded tokens, prompts and strips, that a device differentiates at once.
      optimizer: AdamW and its schedule.
      freeze: parts that stay as they are: "vision", "merger", "decoder".
      lora: train low-rank adapters instead of the model; they are merged into it at the end of the
        stage.
      eval_every: steps between evaluations; 0 is only at the end.
      save_every: steps between checkpoints; 0 is by time (`Config.save_minutes`) and at the end.
      max_skipped_steps: the run stops when so many steps in a row had no finite gradient; 0 is
        never.
      buckets: static sizes.
    """

    data: Source
    name: str = ""
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    micro_batch_tokens: int = 8192
    optimizer: Optimizer = Optimizer()
    freeze: tuple[str, ...] = ()
    lora: Lora | None = None
    eval_every: int = 0
    save_every: int = 0
    max_skipped_steps: int = 10
    buckets: BucketOptions = BucketOptions()

    reads_response: ClassVar[bool] = False
    """Whether examples need a worked response."""

    def __post_init__(self):
        check_types(self, self.path)
        check_least(
            self,
            self.path,
            max_prompt_tokens=1,
            max_response_tokens=1,
            micro_batch_tokens=1,
            eval_every=0,
            save_every=0,
            max_skipped_steps=0,
        )
        check_name(self.name, f"{self.path}the name ")
        if self.name.startswith("eval_"):
            raise ValueError(f"{self.path}files of evaluations begin with eval_: take another name")
        for what in ("prompt", "response"):
            sizes, limit = getattr(self.buckets, what), getattr(self, f"max_{what}_tokens")
            if sizes and max(sizes) < limit:
                raise ValueError(
                    f"{self.path}buckets.{what} must reach max_{what}_tokens, {limit}; the largest "
                    f"is {max(sizes)}"
                )

    @property
    def path(self) -> str:
        """What messages about an option begin with."""
        return f"stage {self.name!r}: "

    @property
    def needs_reference(self) -> bool:
        """Whether no response is right where the reference answer cannot be parsed."""
        return False

    @property
    def leaves_out(self) -> bool:
        """Whether such rows are left out."""
        return False

    def count_steps(self, examples: int) -> int:
        """How many steps the stage has with so many examples."""
        raise NotImplementedError

    def check(self, path: str, model: Model, folder: Path) -> None:
        """Raises OptionError for what the stage could not work with, before any stage runs.

        Args:
          path: of the stage in the configuration.
          folder: where the sources of reward functions without a file of their own are written.
        """
        if self.lora is None:
            with option(f"{path}.freeze"):
                check_freeze(self.freeze, model.parts)
        else:
            with option(f"{path}.lora"):
                adapter_table(model.table(), self.lora)

    @property
    def prompts_at_once(self) -> int:
        """Prompts of an optimiser step, which devices share."""
        raise NotImplementedError

    def warnings(self, model: Model, devices: int = 1) -> list[str]:
        """What works, but may not be meant.

        Args:
          devices: that share a batch.
        """
        found = []
        if self.prompts_at_once < devices:
            found.append(
                f"an optimiser step has {self.prompts_at_once} prompts for {devices} devices: in "
                f"scoring and updates {devices - self.prompts_at_once} of them have nothing to do"
            )
        longest = self.max_prompt_tokens + self.max_response_tokens
        if 0 < model.text.context < longest:
            found.append(f"up to {longest} tokens, but the model was made for {model.text.context}")
        rate = self.optimizer.learning_rate
        if self.lora is not None and rate < ADAPTER_RATE:
            found.append(
                f"optimizer.learning_rate is {rate:g}, which hardly moves adapters: from "
                f"{ADAPTER_RATE:g} to 1e-4 is usual"
            )
        return found


@dataclasses.dataclass(frozen=True)
class Sft(StageOptions):
    """Supervised stage: cross-entropy on the responses of the data, token mean over each batch.

    Attributes:
      data: examples with a `response`.
      epochs: passes over the data, rows that turn out to be left out counted; the last batch is
        filled from the next pass.
      batch_size: examples per optimiser step.
      max_response_tokens: examples with a longer response are dropped and written down.
    """

    name: str = "sft"
    optimizer: Optimizer = Optimizer(learning_rate=1e-5, schedule="cosine", warmup=0.05)
    epochs: float = 1.0
    batch_size: int = 32

    reads_response: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_least(self, self.path, batch_size=1)
        check_positive(self, "epochs", path=self.path)

    @property
    def prompts_at_once(self) -> int:
        return self.batch_size

    def count_steps(self, examples: int) -> int:
        return max(1, -(-int(self.epochs * examples) // self.batch_size))


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
      updates_per_rollout: optimiser steps per rollout, on disjoint groups; over 1, old log-probs
        are computed first.
      advantage: how rewards become advantages.
      surrogate: the policy loss.
      kl: the penalty to the reference.
      entropy_coef: weight of the entropy bonus.
      aggregation: how tokens are averaged, see `rl.weights.token_weights`.
      length_norm: the constant of "seq-mean-token-sum-norm" (Dr. GRPO), in tokens; 0 is
        max_response_tokens.
      rewards: components and weights.
      reward_workers: worker processes that grade.
      reward_timeout_s: seconds before a worker is killed.
      reward_options: what workers may use, and how often an item is tried.
      drop_unparsable: leave out rows whose reference answer cannot be parsed (they are listed in
        dropped.jsonl).
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
    advantage: AnyEstimator = Advantage()
    surrogate: Surrogate = Ppo()
    kl: Kl = Kl()
    entropy_coef: float = 0.0
    aggregation: Aggregation = "token-mean"
    length_norm: float = 0.0
    rewards: tuple[Reward, ...] = (Reward("accuracy"), Reward("format", weight=0.5))
    reward_workers: int = 1
    reward_timeout_s: float = 10.0
    reward_options: WorkerOptions = WorkerOptions()
    drop_unparsable: bool = True
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

    @property
    def needs_reference(self) -> bool:
        return any(reward.needs_reference for reward in self.rewards)

    @property
    def leaves_out(self) -> bool:
        return self.drop_unparsable

    def count_steps(self, examples: int) -> int:
        return self.steps

    def check(self, path: str, model: Model, folder: Path) -> None:
        super().check(path, model, folder)
        for i, reward in enumerate(self.rewards):
            with option(f"{path}.rewards.{i}"):
                reward.resolve(folder)

    @property
    def prompts_at_once(self) -> int:
        return self.prompts_per_step // self.updates_per_rollout

    def warnings(self, model: Model, devices: int = 1) -> list[str]:
        found = super().warnings(model, devices)
        if self.top_p < 1 or self.top_k:
            found.append(
                "top_p and top_k filter the draw, but not the log-probs that are trained on"
            )
        return found


Stage = Sft | Rl
