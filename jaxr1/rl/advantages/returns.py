"""Advantages of a response by itself, which no other response to the prompt is compared with."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxr1.rl.advantages.rewarded import RewardEstimator, Whiten
from jaxr1.rl.advantages.scored import Scored, to_go
from jaxr1.rl.episodes import Episodes

__all__ = ["ReMax", "ReinforceAdvantage", "ReinforcePlusPlus"]


@dataclasses.dataclass(frozen=True)
class ReinforceAdvantage(RewardEstimator):
    """The return of each token, without a baseline, whitened (as OpenRLHF does).

        return_t = sum over s >= t of gamma^(s - t) x (penalty_s + reward at the last own token)

    Own tokens follow one another: what an environment said in between is skipped.
    """

    whiten: Whiten = dataclasses.field(default="tokens", kw_only=True)
    whiten_unbiased: bool = dataclasses.field(default=False, kw_only=True)

    needs_group: ClassVar[bool] = False

    def estimate(self, scored: Scored) -> np.ndarray:
        return scored.column(to_go(token_rewards(scored), self.gamma))


@dataclasses.dataclass(frozen=True)
class ReinforcePlusPlus(ReinforceAdvantage):
    """The return of each token, whitened with the unbiased variance (arXiv:2501.03262, verl).

    Its KL is a penalty on tokens, the column "penalty".
    """

    whiten_unbiased: bool = dataclasses.field(default=True, kw_only=True)


@dataclasses.dataclass(frozen=True)
class ReMax(RewardEstimator):
    """r - the reward of a greedy response to the same prompt (arXiv:2310.10505).

    A group whose greedy response has no reward counts as little as one without rewards.
    """

    needs_group: ClassVar[bool] = False
    greedy_baseline: ClassVar[bool] = True

    def counts(self, episodes: Episodes) -> np.ndarray:
        return episodes.valid_bg & ~np.isnan(_greedy_of(episodes))[:, None]

    def estimate(self, scored: Scored) -> np.ndarray:
        return scored.reward_bg - self.shaped(_greedy_of(scored.episodes))[:, None]


def _greedy_of(episodes: Episodes) -> np.ndarray:
    """float64[B], rewards of greedy responses."""
    if episodes.baseline_b is None:
        raise ValueError("ReMax compares with a greedy response, and these episodes have none")
    return episodes.baseline_b


def token_rewards(scored: Scored) -> np.ndarray:
    """float64[R, T]: the penalty of each own token, and the response's reward at the last one."""
    return scored.table(scored.penalty_n) + scored.at_last(scored.reward_bg)
