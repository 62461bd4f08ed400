"""Advantages of tokens: a critic's, and the baseline of least variance at each place."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxr1.base.checks import check_least
from jaxr1.rl.advantages.estimator import Credit
from jaxr1.rl.advantages.returns import token_rewards
from jaxr1.rl.advantages.rewarded import RewardEstimator, Whiten
from jaxr1.rl.advantages.scored import Scored, to_go
from jaxr1.rl.terms import LOG_RATIO_LIMIT

__all__ = ["Gae", "Otb"]


@dataclasses.dataclass(frozen=True)
class Gae(RewardEstimator):
    """Generalised advantages of a critic (arXiv:1506.02438), whitened as OpenRLHF and LMM-R1 do.

        delta_t      = reward_t + gamma x V_(t+1) - V_t         V = 0 behind the last own token
        advantage_t  = delta_t + gamma x lam x advantage_(t+1)
        return_t     = advantage_t + V_t                        what the critic is to say

    t + 1 is the next own token: what an environment said in between is skipped. The response's
    reward is that of its last own token, penalties those of theirs. Returns are formed before
    advantages are whitened.

    Attributes:
      lam: 1 is the return minus the value, 0 looks one token ahead.
    """

    lam: float = 1.0
    whiten: Whiten = dataclasses.field(default="tokens", kw_only=True)
    whiten_unbiased: bool = dataclasses.field(default=False, kw_only=True)

    needs: ClassVar[tuple[str, ...]] = ("old_value",)
    needs_group: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_least(self, lam=0)
        if self.lam > 1:
            raise ValueError(f"{type(self).__name__}.lam must be at most 1, got {self.lam}")

    def estimate(self, scored: Scored) -> np.ndarray:
        value_rt = scored.table(scored.episodes.columns["old_value"])
        next_rt = np.zeros_like(value_rt)
        next_rt[:, :-1] = value_rt[:, 1:]
        delta_rt = token_rewards(scored) + self.gamma * next_rt - value_rt
        return scored.column(to_go(delta_rt, self.gamma * self.lam))

    def beside(self, scored: Scored, advantage_n: np.ndarray) -> Credit:
        counted_n = scored.counted_n
        value_n = scored.episodes.columns["old_value"].astype(np.float64)
        return_n = np.where(counted_n, advantage_n + value_n, 0.0)
        value, returns = value_n[counted_n], return_n[counted_n]
        if not len(value):
            value = returns = np.array([np.nan])
        left = (returns - value).var()
        metrics = {
            "critic/explained_variance": float(1 - left / (returns.var() + 1e-5)),
            "critic/value_mean": float(value.mean()),
            "critic/value_min": float(value.min()),
            "critic/value_max": float(value.max()),
            "critic/return_mean": float(returns.mean()),
        }
        return Credit({"return": return_n.astype(np.float32)}, metrics)


@dataclasses.dataclass(frozen=True)
class Otb(RewardEstimator):
    """The return minus the group's baseline of least variance at each token (verl's optimal one).

        W_t  = sum over s <= t of 1 - 2 pi_s + sum_v pi_v^2     squared norm of the score, so far
        b_t  = sum_j R_(j,t) W_(j,t) / (sum_j W_(j,t) + 1e-8)   over the responses that reach t
        advantage_t = R_t - b_t

    t counts own tokens. Where only the longest response is still running there is nothing to
    compare it with: b_t = 0. A reward that all of a group have is no part of their returns.

    Attributes:
      mismatch_cap: each term of W is multiplied by min(w, this)^2, w the weight of the trainer's
        log-probs over the sampler's; 0 is off.
    """

    mismatch_cap: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_least(self, mismatch_cap=0)

    @property
    def needs(self) -> tuple[str, ...]:
        known = ("old_logp", "old_sum_sq")
        return (*known, "sampled_logp") if self.mismatch_cap else known

    def estimate(self, scored: Scored) -> np.ndarray:
        columns, (prompts, samples) = scored.episodes.columns, scored.valid_bg.shape
        logp_n = columns["old_logp"].astype(np.float64)
        norm_n = 1 - 2 * np.exp(logp_n) + columns["old_sum_sq"]
        if self.mismatch_cap:
            log_n = np.clip(logp_n - columns["sampled_logp"], -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            norm_n = norm_n * np.minimum(np.exp(log_n), self.mismatch_cap) ** 2
        weight_rt = np.cumsum(scored.table(norm_n), -1)
        reward_bg = np.where(scored.uneven_b1, scored.reward_bg, 0.0)
        if self.single == "reward":
            alone_b1 = scored.valid_bg.sum(-1, keepdims=True) == 1
            reward_bg = np.where(alone_b1, scored.reward_bg, reward_bg)
        rewards_rt = scored.table(scored.penalty_n) + scored.at_last(reward_bg)
        return_rt = to_go(rewards_rt, self.gamma)

        # By group: what reaches a token, and has a reward, is compared there.
        shape = (prompts, samples, return_rt.shape[1])
        there_bgt = np.arange(shape[2]) < scored.counts_bg[:, :, None]
        there_bgt &= scored.valid_bg[:, :, None]
        weight_bgt = np.where(there_bgt, weight_rt.reshape(shape), 0.0)
        return_bgt = np.where(there_bgt, return_rt.reshape(shape), 0.0)
        total_b1t = (return_bgt * weight_bgt).sum(1, keepdims=True)
        baseline_b1t = total_b1t / (weight_bgt.sum(1, keepdims=True) + 1e-8)
        baseline_b1t = np.where(there_bgt.sum(1, keepdims=True) > 1, baseline_b1t, 0.0)
        return scored.column((return_bgt - baseline_b1t).reshape(return_rt.shape))
