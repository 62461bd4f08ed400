"""What a stage can be told: one frozen dataclass for each kind, which checks itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jaxr1.base.checks import check_least, check_positive
from jaxr1.inputs.processor import Processor
from jaxr1.models.vlm import Model
from jaxr1.rewards.spec import Reward
from jaxr1.rl.controllers import BcoShift
from jaxr1.rl.filtering import PassRange
from jaxr1.rl.objectives import BcoPair, ChosenNll, Dpo, PreferenceLoss
from jaxr1.rl.optimizer import Optimizer
from jaxr1.stages.answers import Answers
from jaxr1.stages.common import StageOptions, check_rewards
from jaxr1.stages.rl_options import Rl


@dataclasses.dataclass(frozen=True)
class Sft(StageOptions):
    """Supervised stage: cross-entropy on the responses of the data, token mean over each batch.

    Attributes:
      data: examples with a `response`.
      epochs: passes over the data, rows that turn out to be left out counted; the last batch is
        filled from the next pass.
      batch_size: examples per optimiser step.
      train_on_prompt: the loss is over what the prompt says behind its last medium too, as in
        VisualThinker's supervised baseline; `max_response_tokens` then counts both.
      max_response_tokens: examples with a longer response are dropped and written down.
    """

    name: str = "sft"
    optimizer: Optimizer = Optimizer(learning_rate=1e-5, schedule="cosine", warmup=0.05)
    epochs: float = 1.0
    batch_size: int = 32
    train_on_prompt: bool = False

    @property
    def reads_response(self) -> bool:
        return True

    @property
    def reads_prompt(self) -> bool:
        return self.train_on_prompt

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
class Preference(StageOptions):
    """Preference stage: losses of pairs of responses to one prompt (DPO's family, MPO).

    Attributes:
      data: examples with `chosen` and `rejected`, or with an `answer` where pairs are made of the
        model's own answers.
      losses: added up, each with its `coef`; `rl.objectives.MPO` is MM-Eureka's baseline.
      epochs: passes over the data, rows that turn out to be left out counted.
      batch_size: prompts of an optimiser step.
      max_response_tokens: rows with a longer response are dropped and written down.
      answers: how the model answers the rows, once, before the stage begins; None reads pairs.
      right_reward: the reward that says which answers are right; "" is the whole reward.
      right_over: right answers have more than this, the others are wrong.
      pairs: of a row, at most, with answers.
      chosen_average: how `ChosenNll` averages: over all tokens of the step (TRL), or
        over those of a response first (arXiv:2411.10442).
      bco_momentum: share of the old value in the running shift of `BcoPair`; 0 keeps it at 0, as
        TRL does.
      drop_unparsable: with answers, leave out rows whose reference answer cannot be parsed.
    """

    name: str = "preference"
    optimizer: Optimizer = Optimizer(learning_rate=5e-6, schedule="cosine", warmup=0.05)
    losses: tuple[PreferenceLoss, ...] = (Dpo(),)
    epochs: float = 1.0
    batch_size: int = 32
    answers: Answers | None = None
    right_reward: str = ""
    right_over: float = 0.5
    pairs: int = 1
    chosen_average: Literal["token-mean", "seq-mean-token-mean"] = "token-mean"
    bco_momentum: float = 0.0
    drop_unparsable: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_least(self, self.path, batch_size=1, pairs=1)
        check_positive(self, "epochs", path=self.path)
        BcoShift(self.bco_momentum)
        if not self.losses:
            raise ValueError(f"{self.path}no losses")
        for name, problem in self._meaningless():
            raise ValueError(f"{self.path}{name} {problem}")

    def _meaningless(self) -> list[tuple[str, str]]:
        """(option, why another one makes it meaningless)."""
        found = []
        kinds = {type(loss) for loss in self.losses}
        if self.bco_momentum and BcoPair not in kinds:
            found.append(("bco_momentum", "moves the shift of BcoPair, which is not among losses"))
        if self.chosen_average != "token-mean" and ChosenNll not in kinds:
            found.append(("chosen_average", "is that of ChosenNll, which is not among losses"))
        if self.answers is None:
            for name in ("right_reward", "right_over", "pairs"):
                if getattr(self, name) != getattr(type(self), name):
                    found.append((name, "is of pairs that are made of answers: set answers"))
            return found
        labels = [reward.label for reward in self.answers.rewards]
        if self.right_reward and self.right_reward not in labels:
            found.append(("right_reward", f"must be one of {', '.join(map(repr, labels))}"))
        if self.answers.samples < 2:
            found.append(("answers.samples", "must be at least 2: a right answer and a wrong one"))
        return found

    @property
    def reads_response(self) -> bool:
        return self.answers is None

    @property
    def reads_rejected(self) -> bool:
        return self.answers is None

    @property
    def needs_reference(self) -> bool:
        return self.answers is not None and any(r.needs_reference for r in self.answers.rewards)

    @property
    def leaves_out(self) -> bool:
        return self.drop_unparsable

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """What answers are graded by."""
        return self.answers.rewards if self.answers is not None else ()

    @property
    def prompts_at_once(self) -> int:
        return self.batch_size

    def count_steps(self, examples: int) -> int:
        return max(1, -(-int(self.epochs * examples) // self.batch_size))

    def check(self, path: str, model: Model, processor: Processor, folder: Path) -> None:
        super().check(path, model, processor, folder)
        check_rewards(self.rewards, f"{path}.answers.rewards", folder)


@dataclasses.dataclass(frozen=True)
class Filter(StageOptions):
    """Offline filter: the model answers every row; rows with a pass rate in a range are kept.

    It trains nothing. A later stage with the same data draws the rows that are kept where its
    `kept_by` names this one.

    Attributes:
      data: examples with an `answer`.
      answers: how the rows are answered, once: answers/NAME.jsonl.
      keep: of which reward the pass rate is, and its range.
      drop_unparsable: leave out rows whose reference answer cannot be parsed.
    """

    name: str = "filter"
    answers: Answers = Answers()
    keep: PassRange = PassRange()
    drop_unparsable: bool = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("optimizer", "freeze", "lora", "eval_every", "save_every"):
            if getattr(self, name) != getattr(StageOptions, name):
                raise ValueError(f"{self.path}{name} is of a stage that trains")
        labels = [reward.label for reward in self.rewards]
        if self.keep.reward and self.keep.reward not in labels:
            raise ValueError(
                f"{self.path}keep.reward must be one of {', '.join(map(repr, labels))}, or '' for "
                f"their sum, got {self.keep.reward!r}"
            )

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """What answers are graded by."""
        return self.answers.rewards

    @property
    def needs_reference(self) -> bool:
        return any(reward.needs_reference for reward in self.rewards)

    @property
    def leaves_out(self) -> bool:
        return self.drop_unparsable

    @property
    def prompts_at_once(self) -> int:
        return self.answers.batch_rows

    def count_steps(self, examples: int) -> int:
        return 0

    def check(self, path: str, model: Model, processor: Processor, folder: Path) -> None:
        check_rewards(self.rewards, f"{path}.answers.rewards", folder)


Stage = Sft | Rl | Preference | Filter
