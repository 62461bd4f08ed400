"""Which groups are worth learning from: those that are neither too easy nor too hard.

    group's mean    0 ......... low ............... high ......... 1
                    |   "low"    |      "kept"       |    "high"   |

A group whose rewards are all equal teaches nothing where advantages are relative to the group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from jaxr1.base.checks import check_least, check_types
from jaxr1.rewards.grades import Grade

__all__ = ["OnlineFilter", "PassRange"]

Verdict = Literal["kept", "low", "high", "equal", "unscored"]
"""What becomes of a group: "kept"; its mean is too "low" or too "high"; all its values are "equal";
or fewer than two of them are there ("unscored").
"""


@dataclasses.dataclass(frozen=True)
class PassRange:
    """A range of the mean of a reward over the answers to a prompt: of its pass rate.

    Attributes:
      reward: the label of the reward that is looked at; "" is the weighted sum of all.
      low: prompts with a lower mean are dropped.
      high: prompts with a higher mean are dropped.
    """

    reward: str = "accuracy"
    low: float = 0.01
    high: float = 0.99

    def __post_init__(self):
        check_types(self)
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is over high ({self.high:g}): nothing is kept")

    def values(self, grades: Sequence[Grade]) -> list[float]:
        """What the reward gave to the answers that it scored."""
        found = [g.by_name.get(self.reward) if self.reward else g.total for g in grades]
        return [value for value in found if value is not None]

    def verdict(self, values: Sequence[float]) -> Verdict:
        """What becomes of a prompt whose answers have these values."""
        if not values:
            return "unscored"
        mean = float(np.mean(values))
        if mean < self.low:
            return "low"
        return "high" if mean > self.high else "kept"


@dataclasses.dataclass(frozen=True)
class OnlineFilter(PassRange):
    """Keeps the groups of a rollout whose mean reward lies in a range, and samples others instead.

    Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2) is `low=0.01, high=0.99` on accuracy, or
    `drop_equal` on any reward; MM-Eureka (arXiv:2503.07365) keeps 0.1 to 0.9 of accuracy.

    Attributes:
      drop_equal: groups whose values are all equal are dropped, whatever their mean.
      refill: sample more prompts until the step has all its groups. False leaves dropped groups
        out of the step, which shrinks (MM-Eureka's first version).
      max_tries: rollouts of up to `prompts_per_step` prompts for one step, before the run stops.
      carry: graded groups beyond the step's are kept for the next one, where the ratio of the
        policy to the one that sampled them is no longer 1. False drops and counts them.
      after: so many steps at the beginning of the stage are not filtered.
    """

    drop_equal: bool = False
    refill: bool = True
    max_tries: int = 20
    carry: bool = False
    after: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_least(self, max_tries=1, after=0)
        if self.carry and not self.refill:
            raise ValueError("carry has nothing to carry without refill")

    def verdict(self, values: Sequence[float]) -> Verdict:
        """What becomes of a group; one of a single scored response has nothing to compare with."""
        if len(values) < 2:
            return "unscored"
        if self.drop_equal and min(values) == max(values):
            return "equal"
        return super().verdict(values)


class Counts:
    """How many groups were sampled for a step, and what became of them."""

    def __init__(self):
        self.groups = dict.fromkeys(get_args(Verdict), 0)
        self.means: list[float] = []

    def add(self, verdict: Verdict, values: Sequence[float]) -> None:
        """Counts a group."""
        self.groups[verdict] += 1
        if values:
            self.means.append(float(np.mean(values)))

    @property
    def sampled(self) -> int:
        return sum(self.groups.values())

    def metrics(self) -> dict[str, float]:
        """`filter/sampled`, a share of each verdict, and the mean over all sampled groups."""
        shares = {f"filter/{name}": n / max(self.sampled, 1) for name, n in self.groups.items()}
        mean = float(np.mean(self.means)) if self.means else float("nan")
        return {"filter/sampled": float(self.sampled), **shares, "filter/mean": mean}

    def told(self) -> str:
        """For a message: "3 kept, 12 too low, ..."."""
        names = {"low": "too low", "high": "too high", "equal": "all equal"}
        found = [f"{n} {names.get(name, name)}" for name, n in self.groups.items() if n]
        return ", ".join(found)
