"""Advantages of groups: pure functions of rewards. They run on the host, before responses are packed."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Advantage:
    """How rewards of a group become advantages.

    Attributes:
      baseline: "mean" of the group, or "leave_one_out" (RLOO, arXiv:2402.14740).
      scale: "std" divides by the group's standard deviation (GRPO, arXiv:2402.03300), "none" does not
        (Dr. GRPO, arXiv:2503.20783).
      eps: added to the standard deviation, in reward units: 1e-4 in R1-V and TRL, 1e-6 in verl, 1e-9 in OpenRLHF.
    """

    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["std", "none"] = "std"
    eps: float = 1e-6


def group_advantage(reward_bg: np.ndarray, valid_bg: np.ndarray, options: Advantage = Advantage()) -> np.ndarray:
    """Group-relative advantages: reward minus baseline, over standard deviation + eps, among the samples of a prompt.

        mean             r_i - mean(r)                            arXiv:2402.03300, eq. in section 4.1.2
        leave_one_out    r_i - mean of the others                 arXiv:2402.14740, eq. 8; n / (n - 1) times the above
        scale "std"      divided by std + eps, std unbiased (n - 1)

    Invalid samples (no reward) neither count nor get a value. A group with fewer than two valid samples, or with
    equal rewards, gets zeros, so it adds no gradient.

    Args:
      reward_bg: float[B, G], in the units of the reward; ignored where invalid.
      valid_bg: bool[B, G].
      options: see `Advantage`.

    Returns:
      float32[B, G], 0 where invalid.

    Raises:
      ValueError: an unknown baseline or scale.
    """
    if options.baseline not in ("mean", "leave_one_out"):
        raise ValueError(f"baseline must be 'mean' or 'leave_one_out', got {options.baseline!r}")
    if options.scale not in ("std", "none"):
        raise ValueError(f"scale must be 'std' or 'none', got {options.scale!r}")
    count_b1 = valid_bg.sum(-1, keepdims=True)
    reward_bg = np.where(valid_bg, reward_bg, 0.0).astype(np.float64)
    mean_b1 = reward_bg.sum(-1, keepdims=True) / np.maximum(count_b1, 1)
    # Rewards that are equal must give exactly 0: the mean of equal numbers may differ from them by a rounding.
    low = np.where(valid_bg, reward_bg, np.inf).min(-1, keepdims=True)
    high = np.where(valid_bg, reward_bg, -np.inf).max(-1, keepdims=True)
    usable = valid_bg & (count_b1 >= 2) & (high > low)
    centred_bg = np.where(usable, reward_bg - mean_b1, 0.0)
    others_b1 = np.maximum(count_b1 - 1, 1)
    out = centred_bg * (count_b1 / others_b1) if options.baseline == "leave_one_out" else centred_bg
    if options.scale == "std":
        out = out / (np.sqrt((centred_bg**2).sum(-1, keepdims=True) / others_b1) + options.eps)
    return out.astype(np.float32)


def zero_std(reward_bg: np.ndarray, valid_bg: np.ndarray) -> np.ndarray:
    """bool[B]: groups whose valid rewards are all equal (or fewer than two)."""
    low = np.where(valid_bg, reward_bg, np.inf).min(-1)
    high = np.where(valid_bg, reward_bg, -np.inf).max(-1)
    return ~(high > low)
