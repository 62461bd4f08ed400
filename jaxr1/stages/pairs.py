"""Preference pairs of a model's own answers: right ones against wrong ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxr1.stages.answers import Answer

Pair = tuple[np.ndarray, np.ndarray]
"""Token ids of a chosen and of a rejected response, int32 each."""


@dataclasses.dataclass(frozen=True)
class Sorted:
    """The answers to a row that may be in pairs, each once."""

    right: list[Answer]
    wrong: list[Answer]

    @classmethod
    def of(cls, answers: Sequence[Answer], reward: str, threshold: float) -> Sorted:
        """Right are those whose reward is over the threshold; what was not scored is neither.

        Of equal answers the first one counts: a grader may say something else of the next.

        Args:
          reward: its name; "" is the whole reward.
        """
        right, wrong = list[Answer](), list[Answer]()
        seen = set[tuple[int, ...]]()
        for answer in answers:
            value = answer.rewards.get(reward) if reward else answer.reward
            if value is None or not answer.token_ids or answer.token_ids in seen:
                continue
            seen.add(answer.token_ids)
            (right if value > threshold else wrong).append(answer)
        return cls(right, wrong)

    @property
    def problem(self) -> str | None:
        """Why there is no pair."""
        if not self.right and not self.wrong:
            return "no answer was scored: there is nothing to compare"
        if not self.right:
            return "no right answer: there is nothing to choose"
        if not self.wrong:
            return "no wrong answer: there is nothing to reject"
        return None

    def pairs(self, most: int, key: Sequence[int]) -> list[Pair]:
        """Up to so many pairs, an answer in one of them at most; drawn by a key."""
        rng = np.random.default_rng(list(key))
        right, wrong = (rng.permutation(len(side)) for side in (self.right, self.wrong))
        ids = lambda answer: np.asarray(answer.token_ids, np.int32)
        chosen = [ids(self.right[i]) for i in right[:most]]
        return list(zip(chosen, [ids(self.wrong[i]) for i in wrong[:most]], strict=False))
