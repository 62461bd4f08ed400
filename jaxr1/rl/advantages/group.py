"""Advantages relative to the group: what a response has over the others to its prompt."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxr1.base.checks import check_least, check_types
from jaxr1.rl.advantages.estimator import Credit, Estimator
from jaxr1.rl.episodes import Episodes

__all__ = ["Advantage", "group_advantage"]


@dataclasses.dataclass(frozen=True)
class Advantage(Estimator):
    """Group-relative advantages, see `group_advantage`.

    Attributes:
      baseline: "mean" of the group, or "leave_one_out" (RLOO, arXiv:2402.14740).
      scale: "std" divides by the group's standard deviation (GRPO, arXiv:2402.03300), "none" does
        not (Dr. GRPO, arXiv:2503.20783).
      eps: added to the standard deviation, in reward units: 1e-4 in R1-V and TRL, 1e-6 in verl,
        1e-9 in OpenRLHF.
    """

    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["std", "none"] = "std"
    eps: float = 1e-6

    def __post_init__(self):
        check_types(self)
        check_least(self, eps=0)

    def __call__(self, episodes: Episodes) -> Credit:
        advantage_bg = group_advantage(episodes.reward_bg, episodes.valid_bg, self)
        return Credit({"advantage": episodes.spread(advantage_bg)})


def group_advantage(
    reward_bg: np.ndarray, valid_bg: np.ndarray, options: Advantage = Advantage()
) -> np.ndarray:
    """Reward minus baseline, over standard deviation + eps, among the samples of a prompt.

        mean             r_i - mean(r)              arXiv:2402.03300, eq. in section 4.1.2
        leave_one_out    r_i - mean of the others   arXiv:2402.14740, eq. 8: n / (n - 1) x that
        scale "std"      divided by std + eps, std unbiased (n - 1)

    Invalid samples (no reward) neither count nor get a value. A group with fewer than two valid
    samples, or with equal rewards, gets zeros, so it adds no gradient.

    Args:
      reward_bg: float[B, G], in the units of the reward; ignored where invalid.
      valid_bg: bool[B, G].
      options: see `Advantage`.

    Returns:
      float32[B, G], 0 where invalid.
    """
    count_b1 = valid_bg.sum(-1, keepdims=True)
    reward_bg = np.where(valid_bg, reward_bg, 0.0).astype(np.float64)
    mean_b1 = reward_bg.sum(-1, keepdims=True) / np.maximum(count_b1, 1)
    # Equal rewards must give exactly 0: the mean of equal numbers may differ from them by a
    # rounding.
    low = np.where(valid_bg, reward_bg, np.inf).min(-1, keepdims=True)
    high = np.where(valid_bg, reward_bg, -np.inf).max(-1, keepdims=True)
    usable = valid_bg & (count_b1 >= 2) & (high > low)
    advantage_bg = centred_bg = np.where(usable, reward_bg - mean_b1, 0.0)
    others_b1 = np.maximum(count_b1 - 1, 1)
    if options.baseline == "leave_one_out":
        advantage_bg = centred_bg * (count_b1 / others_b1)
    if options.scale == "std":
        std_b1 = np.sqrt((centred_bg**2).sum(-1, keepdims=True) / others_b1)
        advantage_bg = advantage_bg / (std_b1 + options.eps)
    return advantage_bg.astype(np.float32)
