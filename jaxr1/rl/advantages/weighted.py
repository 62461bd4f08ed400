"""Advantages relative to the group that a weight or a rank shapes further."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxr1.base.checks import check_least, check_positive
from jaxr1.rl.advantages.group import centred, deviation, with_single
from jaxr1.rl.advantages.rewarded import RewardEstimator, Whiten, component
from jaxr1.rl.advantages.scored import Scored

__all__ = ["CpgdAdvantage", "Gdpo", "GpgAdvantage", "PassK"]


@dataclasses.dataclass(frozen=True)
class GpgAdvantage(RewardEstimator):
    """(responses of the step / those whose reward is not 0) x (r - mean) / f_norm (GPG).

    Attributes:
      f_norm: divides all advantages.
    """

    f_norm: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "f_norm")

    def estimate(self, scored: Scored) -> np.ndarray:
        reward_bg, valid_bg = scored.reward_bg, scored.valid_bg
        factor = valid_bg.sum() / max(1, (valid_bg & (reward_bg != 0)).sum())
        advantage_bg = centred(reward_bg, valid_bg)
        advantage_bg = with_single(advantage_bg, reward_bg, valid_bg, self.single)
        return factor * advantage_bg / self.f_norm


@dataclasses.dataclass(frozen=True)
class PassK(RewardEstimator):
    """The best response of a group gets its lead over the second, the others 0 (arXiv:2503.19595).

    Where two are best, nobody leads.

    Attributes:
      scale: "std" divides by the group's standard deviation, "none" does not.
      eps: added to the standard deviation.
    """

    scale: Literal["none", "std"] = "none"
    eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        check_least(self, eps=0)

    def estimate(self, scored: Scored) -> np.ndarray:
        reward_bg, valid_bg = scored.reward_bg, scored.valid_bg
        ranked_bg = np.sort(np.where(valid_bg, reward_bg, -np.inf), -1)
        best_b1, second_b1 = ranked_bg[:, -1:], ranked_bg[:, -2:-1]
        if reward_bg.shape[1] < 2:
            second_b1 = np.full_like(best_b1, -np.inf)
        led_b1 = np.isfinite(second_b1)
        lead_b1 = np.where(led_b1, best_b1, 0.0) - np.where(led_b1, second_b1, 0.0)
        advantage_bg = np.where(valid_bg & (reward_bg == best_b1), lead_b1, 0.0)
        advantage_bg = with_single(advantage_bg, reward_bg, valid_bg, self.single)
        if self.scale == "std":
            advantage_bg = advantage_bg / (deviation(reward_bg, valid_bg, self) + self.eps)
        return advantage_bg


@dataclasses.dataclass(frozen=True)
class Gdpo(RewardEstimator):
    """Each reward by itself in its group, the weighted sum, then the batch (arXiv:2601.05242).

        advantage = whitened( sum over rewards k of w_k x (r_k - mean_k) / (std_k + eps) )

    A reward that gave a response no value leaves it out of its own mean. Scale and clip are of each
    reward. The paper whitens over responses, verl over tokens.

    Attributes:
      eps: added to standard deviations.
    """

    eps: float = 1e-6
    whiten: Whiten = dataclasses.field(default="responses", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_least(self, eps=0)
        if self.penalty_as == "score":
            raise ValueError(
                "Gdpo.penalty_as must be 'return', got 'score': there is no one reward of a "
                "response that penalties could join"
            )

    def estimate(self, scored: Scored) -> np.ndarray:
        if not scored.episodes.reward_weights:
            raise ValueError("Gdpo weighs rewards by name, and these episodes name none")
        advantage_bg = np.zeros(scored.valid_bg.shape)
        for name, weight in scored.episodes.reward_weights.items():
            value_bg = component(scored.episodes, name, "Gdpo")
            valid_bg = scored.valid_bg & ~np.isnan(value_bg)
            value_bg = np.where(valid_bg, self.shaped(value_bg), 0.0)
            of_one_bg = centred(value_bg, valid_bg)
            of_one_bg = with_single(of_one_bg, value_bg, valid_bg, self.single)
            std_b1 = deviation(value_bg, valid_bg, self)
            advantage_bg = advantage_bg + weight * of_one_bg / (std_b1 + self.eps)
        return advantage_bg


@dataclasses.dataclass(frozen=True)
class CpgdAdvantage(RewardEstimator):
    """The weights of CPGD (arXiv:2505.12504) on r - mean.

        std            (r - mean) / (std + eps)
        clip_filter    (r - mean) x min(groups / groups with different rewards, most)
        none           r - mean

    Groups count where a response has a reward. One published implementation divides a count of
    responses by one of groups, so that its weight is nearly always `most`: here both are of groups.

    Attributes:
      weight: one of the above.
      most: the largest weight of "clip_filter".
      eps: added to the standard deviation.
    """

    weight: Literal["clip_filter", "std", "none"] = "clip_filter"
    most: float = 3.0
    eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        check_least(self, eps=0)
        check_positive(self, "most")

    def estimate(self, scored: Scored) -> np.ndarray:
        reward_bg, valid_bg = scored.reward_bg, scored.valid_bg
        advantage_bg = centred(reward_bg, valid_bg)
        advantage_bg = with_single(advantage_bg, reward_bg, valid_bg, self.single)
        if self.weight == "std":
            return advantage_bg / (deviation(reward_bg, valid_bg, self) + self.eps)
        if self.weight == "clip_filter":
            groups = valid_bg.any(-1).sum()
            return advantage_bg * min(groups / max(1, scored.uneven_b1.sum()), self.most)
        return advantage_bg
