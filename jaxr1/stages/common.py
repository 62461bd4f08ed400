"""What every stage can be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxr1.base.checks import check_least, check_types, option
from jaxr1.base.names import check_name
from jaxr1.data import Source
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import BucketOptions
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import Lora, adapter_table
from jaxr1.rewards.spec import Reward
from jaxr1.rl.learner import check_freeze
from jaxr1.rl.optimizer import Optimizer


def check_rewards(rewards: Sequence[Reward], path: str, folder: Path) -> None:
    """Raises OptionError for a reward that cannot be loaded; see `StageOptions.check`."""
    for i, reward in enumerate(rewards):
        with option(f"{path}.{i}"):
            reward.resolve(folder)


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

    @property
    def reads_response(self) -> bool:
        """Whether examples need a worked response."""
        return False

    @property
    def reads_prompt(self) -> bool:
        """Whether prompts are trained on as well."""
        return False

    @property
    def reads_rejected(self) -> bool:
        """Whether they need a worse one beside it."""
        return False

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

    def check(self, path: str, model: Model, processor: Processor, folder: Path) -> None:
        """Raises OptionError for what the stage could not work with, before any stage runs.

        Args:
          path: of the stage in the configuration.
          model, processor: that the run begins with.
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
