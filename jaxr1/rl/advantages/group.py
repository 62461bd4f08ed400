"""Advantages relative to the group: what a response has over the others to its prompt."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxr1.base.checks import check_least
from jaxr1.rl.advantages.rewarded import RewardEstimator, Whiten
from jaxr1.rl.advantages.scored import Scored, uneven

__all__ = [
    "Advantage",
    "DrGrpo",
    "LitePpo",
    "Opo",
    "ReinforcePlusPlusBaseline",
    "Rloo",
    "group_advantage",
]

Baseline = Literal["mean", "leave_one_out", "length"]
Scale = Literal["std", "none", "batch"]


@dataclasses.dataclass(frozen=True)
class Advantage(RewardEstimator):
    """Group-relative advantages (GRPO, arXiv:2402.03300), see `group_advantage`.

    Attributes:
      baseline: "mean" of the group, "leave_one_out" (RLOO, arXiv:2402.14740), or "length", the mean
        in which a response counts by its own tokens (OPO, arXiv:2505.23585).
      scale: "std" divides by the group's standard deviation (GRPO), "none" does not (Dr. GRPO,
        arXiv:2503.20783), "batch" divides by that of all responses of the step (LitePPO,
        arXiv:2508.08221).
      eps: added to the standard deviation, in reward units: 1e-4 in R1-V and TRL, 1e-6 in verl,
        1e-9 in OpenRLHF.
      eps_under_root: eps is added to the variance instead, in its units.
    """

    baseline: Baseline = "mean"
    scale: Scale = "std"
    eps: float = 1e-6
    eps_under_root: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_least(self, eps=0)

    def estimate(self, scored: Scored) -> np.ndarray:
        return group_values(scored.reward_bg, scored.valid_bg, self, scored.counts_bg)


@dataclasses.dataclass(frozen=True)
class DrGrpo(Advantage):
    """r - mean, not divided (arXiv:2503.20783); takes the aggregation "seq-mean-token-sum-norm"."""

    scale: Scale = "none"


@dataclasses.dataclass(frozen=True)
class LitePpo(Advantage):
    """(r - mean of the group) / standard deviation of the batch (arXiv:2508.08221)."""

    scale: Scale = "batch"
    eps: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Rloo(Advantage):
    """r - mean of the others (arXiv:2402.14740); LMM-R1 and MM-Eureka then whiten over tokens."""

    baseline: Baseline = "leave_one_out"
    scale: Scale = "none"


@dataclasses.dataclass(frozen=True)
class Opo(Advantage):
    """r - length-weighted mean of the group, not divided (arXiv:2505.23585)."""

    baseline: Baseline = "length"
    scale: Scale = "none"


@dataclasses.dataclass(frozen=True)
class ReinforcePlusPlusBaseline(Advantage):
    """r - mean of the group, then whitened over the tokens of the batch (arXiv:2501.03262)."""

    scale: Scale = "none"
    whiten: Whiten = dataclasses.field(default="tokens", kw_only=True)


def group_advantage(
    reward_bg: np.ndarray,
    valid_bg: np.ndarray,
    options: Advantage = Advantage(),
    counts_bg: np.ndarray | None = None,
) -> np.ndarray:
    """Reward minus baseline, over standard deviation + eps, among the samples of a prompt.

        mean             r_i - mean(r)                   arXiv:2402.03300, eq. in section 4.1.2
        leave_one_out    r_i - mean of the others        arXiv:2402.14740, eq. 8: n / (n - 1) x that
        length           r_i - sum(T_j r_j) / sum(T_j)   arXiv:2505.23585, T tokens of a response
        scale "std"      divided by std + eps, std over n - 1 (over n where not `unbiased`)
        scale "batch"    the same with the std of all valid samples

    Invalid samples (no reward) neither count nor get a value. A group of equal rewards gets exactly
    zeros, so it adds no gradient; so does one with fewer than two valid samples, but where
    `single` is "reward".

    Args:
      reward_bg: float[B, G], in the units of the reward; ignored where invalid.
      valid_bg: bool[B, G].
      options: see `Advantage`; only what is named here is read.
      counts_bg: int[B, G], own tokens of each response, for the baseline "length".

    Returns:
      float32[B, G], 0 where invalid.

    Raises:
      ValueError: the baseline "length" without counts.
    """
    return group_values(reward_bg, valid_bg, options, counts_bg).astype(np.float32)


def group_values(
    reward_bg: np.ndarray,
    valid_bg: np.ndarray,
    options: Advantage,
    counts_bg: np.ndarray | None = None,
) -> np.ndarray:
    """As `group_advantage`, in float64."""
    count_b1 = valid_bg.sum(-1, keepdims=True)
    reward_bg = np.where(valid_bg, reward_bg, 0.0).astype(np.float64)
    advantage_bg = centred_bg = centred(reward_bg, valid_bg)
    if options.baseline == "leave_one_out":
        advantage_bg = centred_bg * (count_b1 / np.maximum(count_b1 - 1, 1))
    elif options.baseline == "length":
        if counts_bg is None:
            raise ValueError('the baseline "length" needs the tokens of each response')
        # Of centred rewards, so that equal ones stay at exactly 0.
        tokens_bg = np.where(valid_bg, counts_bg, 0)
        total_b1 = np.maximum(tokens_bg.sum(-1, keepdims=True), 1)
        shift_b1 = (tokens_bg * centred_bg).sum(-1, keepdims=True) / total_b1
        advantage_bg = np.where(valid_bg, centred_bg - shift_b1, 0.0)
    advantage_bg = with_single(advantage_bg, reward_bg, valid_bg, options.single)
    if options.scale == "none":
        return advantage_bg
    over = (reward_bg, valid_bg)
    if options.scale == "batch":
        over = (reward_bg.reshape(1, -1), valid_bg.reshape(1, -1))
    std = deviation(*over, options)
    if options.eps_under_root:
        return advantage_bg / np.sqrt(std**2 + options.eps)
    return advantage_bg / (std + options.eps)


def deviation(reward_bg: np.ndarray, valid_bg: np.ndarray, options: RewardEstimator) -> np.ndarray:
    """float64[B, 1]: the standard deviation of each group's valid rewards.

    It is 1 where they are equal or fewer than two: there is nothing to divide, whatever eps is.
    """
    count_b1 = valid_bg.sum(-1, keepdims=True)
    squares_b1 = (centred(reward_bg, valid_bg) ** 2).sum(-1, keepdims=True)
    std_b1 = np.sqrt(squares_b1 / np.maximum(count_b1 - int(options.unbiased), 1))
    return np.where(uneven(reward_bg, valid_bg), std_b1, 1.0)


def centred(reward_bg: np.ndarray, valid_bg: np.ndarray) -> np.ndarray:
    """float64[B, G]: rewards minus their mean; exactly 0 in groups of equal ones, or of one."""
    reward_bg = np.where(valid_bg, reward_bg, 0.0)
    mean_b1 = reward_bg.sum(-1, keepdims=True) / np.maximum(valid_bg.sum(-1, keepdims=True), 1)
    return np.where(valid_bg & uneven(reward_bg, valid_bg), reward_bg - mean_b1, 0.0)


def with_single(
    advantage_bg: np.ndarray, reward_bg: np.ndarray, valid_bg: np.ndarray, single: str
) -> np.ndarray:
    """What a group's only valid response gets, in its place; see `RewardEstimator.single`."""
    if single == "zero":
        return advantage_bg
    alone_bg = valid_bg & (valid_bg.sum(-1, keepdims=True) == 1)
    return np.where(alone_bg, reward_bg, advantage_bg)
