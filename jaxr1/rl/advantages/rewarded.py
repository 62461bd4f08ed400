"""What all built-in estimators share: how rewards come in, and what is done to advantages at last.

reward    scaled, clipped, joined by penalties             RewardEstimator.scored
   |
advantage of a response or of a token                      estimate, of each class
   |
penalties to come, ADORA, whitening, clip                  RewardEstimator.__call__
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from jaxr1.base.checks import OptionError, check_least, check_types
from jaxr1.rl.advantages.estimator import Credit, Estimator
from jaxr1.rl.advantages.scored import Scored, to_go, whitened
from jaxr1.rl.episodes import Episodes

__all__ = ["RewardEstimator"]

Whiten = Literal["none", "tokens", "responses"]

PENALTY = "penalty"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardEstimator(Estimator):
    """An estimator with the options that all built-in ones share; subclasses say `estimate`.

    A response without a reward enters no mean, no deviation, no whitening and no count, and gets 0;
    so does a token that the policy did not produce.

    Whitening is over the whole batch, so it moves what was exactly 0 before: a group of equal
    rewards then has the advantage -mean / std, and a gradient.

    Attributes:
      reward_scale: multiplies rewards, before the clip.
      reward_clip: rewards are clipped to +- this; 0 is off (10 in OpenRLHF).
      single: what a group with one valid response gets where responses are compared: "zero", or
        "reward" as in verl (its mean is taken for 0, its standard deviation for 1).
      unbiased: the variance of rewards is over n - 1.
      penalty_as: how the column "penalty", rewards of single tokens such as -coef x KL, joins where
        there is one: "return", a token's advantage gains the penalties from it on (OpenRLHF,
        LMM-R1); "score", their sum joins the reward of the response (verl).
      gamma: discount of what comes later, for each own token.
      adora: multiplies the advantages of groups that teach little (ADORA, 0.1 in MM-Eureka); 1 is
        off. A group is kept as it is where no response is correct, where none is wrong, or where
        the longest correct one is longer than the wrong ones in the mean.
      adora_reward: the reward that says whether a response is correct; "" is the whole reward.
      adora_threshold: correct responses are over it.
      adora_limit: tokens from which on the longest correct response is no reason to keep a group;
        0 is off (MM-Eureka has 4094, of responses of at most 4096).
      whiten: advantages minus their mean, over their standard deviation: "tokens" counts each own
        token once (long responses count more), "responses" each response once.
      whiten_unbiased: the variance is over n - 1 (verl), or over n (OpenRLHF).
      whiten_divide: False takes the mean away and does not divide ("no_std_norm").
      advantage_clip: advantages are clipped to +- this at the end; 0 is off.
    """

    reward_scale: float = 1.0
    reward_clip: float = 0.0
    single: Literal["zero", "reward"] = "zero"
    unbiased: bool = True
    penalty_as: Literal["return", "score"] = "return"
    gamma: float = 1.0
    adora: float = 1.0
    adora_reward: str = ""
    adora_threshold: float = 0.5
    adora_limit: int = 0
    whiten: Whiten = "none"
    whiten_unbiased: bool = True
    whiten_divide: bool = True
    advantage_clip: float = 0.0

    def __post_init__(self):
        check_types(self)
        check_least(self, reward_clip=0, advantage_clip=0, gamma=0, adora=0, adora_limit=0)
        if self.gamma > 1:
            raise ValueError(f"{type(self).__name__}.gamma must be at most 1, got {self.gamma}")

    def estimate(self, scored: Scored) -> np.ndarray:
        """float64[B, G], an advantage for each response, to which the penalties of its tokens are
        added; or float64[N], one for each token, with the penalties in it.
        """
        raise NotImplementedError

    def beside(self, scored: Scored, advantage_n: np.ndarray) -> Credit:
        """What else it gives, of the advantages before ADORA, whitening and clip."""
        return Credit({})

    def __call__(self, episodes: Episodes) -> Credit:
        scored = self.scored(episodes)
        advantage_n = self.estimate(scored)
        if advantage_n.ndim == 2:
            later_rt = to_go(scored.table(scored.penalty_n), self.gamma)
            advantage_n = scored.spread(advantage_n) + scored.column(later_rt)
        # Chosen, and not multiplied by 0: what a response that does not count holds may be NaN.
        counted_n = scored.counted_n
        advantage_n = np.where(counted_n, advantage_n, 0.0)
        credit = self.beside(scored, advantage_n)
        metrics = dict(credit.metrics)

        if self.adora != 1:
            little_b = self._little(scored)
            metrics["reward/frac_adora"] = float(little_b.mean()) if len(little_b) else 0.0
            factor_bg = np.where(little_b[:, None], self.adora, 1.0)
            factor_bg = np.broadcast_to(factor_bg, scored.valid_bg.shape)
            advantage_n = advantage_n * scored.spread(factor_bg)
        if self.whiten != "none":
            weight_n = counted_n.astype(np.float64)
            if self.whiten == "responses":
                weight_n = weight_n / scored.spread(np.maximum(scored.counts_bg, 1))
            advantage_n = whitened(advantage_n, weight_n, self.whiten_unbiased, self.whiten_divide)
        if self.advantage_clip:
            advantage_n = np.clip(advantage_n, -self.advantage_clip, self.advantage_clip)
        advantage_n = np.where(counted_n, advantage_n, 0.0)
        return Credit(credit.columns | {"advantage": advantage_n.astype(np.float32)}, metrics)

    def counts(self, episodes: Episodes) -> np.ndarray:
        """bool[B, G]: responses of which there is something to say."""
        return episodes.valid_bg

    def scored(self, episodes: Episodes) -> Scored:
        """The rewards as the options want them, and the penalties that are no part of them."""
        valid_bg = self.counts(episodes)
        reward_bg = self.shaped(episodes.reward_bg)
        penalty_n = np.zeros(len(episodes.token_n))
        if PENALTY in episodes.columns:
            own_n = episodes.columns["own"] > 0
            penalty_n = np.where(own_n, episodes.columns[PENALTY].astype(np.float64), 0.0)
            if self.penalty_as == "score":
                reward_bg = reward_bg + episodes.sums(penalty_n)
                penalty_n = np.zeros_like(penalty_n)
        return Scored(episodes, valid_bg, np.where(valid_bg, reward_bg, 0.0), penalty_n)

    def shaped(self, reward: np.ndarray) -> np.ndarray:
        """Rewards of any shape, scaled and clipped."""
        reward = np.asarray(reward, np.float64) * self.reward_scale
        if self.reward_clip:
            reward = np.clip(reward, -self.reward_clip, self.reward_clip)
        return reward

    def _little(self, scored: Scored) -> np.ndarray:
        """bool[B]: groups that ADORA scales: thinking longer has not helped there."""
        valid_bg, counts_bg = scored.valid_bg, scored.counts_bg
        told_bg = self._told(scored.episodes)
        right_bg = valid_bg & (told_bg > self.adora_threshold)
        wrong_bg = valid_bg & (told_bg <= self.adora_threshold)  # NaN is neither
        longest_b = np.where(right_bg, counts_bg, 0).max(-1, initial=0)
        wrong_b = wrong_bg.sum(-1)
        mean_b = np.where(wrong_bg, counts_bg, 0).sum(-1) / np.maximum(wrong_b, 1)
        helped_b = longest_b > mean_b
        if self.adora_limit:
            helped_b &= longest_b < self.adora_limit
        return right_bg.any(-1) & (wrong_b > 0) & ~helped_b

    def _told(self, episodes: Episodes) -> np.ndarray:
        """float64[B, G]: the reward that says what is correct, as it was given."""
        if not self.adora_reward:
            return episodes.reward_bg
        return component(episodes, self.adora_reward, f"{type(self).__name__}.adora_reward")


def component(episodes: Episodes, name: str, path: str) -> np.ndarray:
    """float64[B, G]: one reward of each response, unweighted; NaN where it gave none.

    Raises:
      OptionError: no reward is called so; names the option at `path` and the rewards there are.
    """
    known = episodes.reward_weights
    if name not in known:
        there = ", ".join(map(repr, known)) or "none"
        raise OptionError(f"{path}: no reward is called {name!r}; there are {there}")
    value_bg = np.full(episodes.valid_bg.shape, np.nan)
    for b, group in enumerate(episodes.grades):
        given = [grade.by_name.get(name) for grade in group]
        value_bg[b] = [np.nan if value is None else value for value in given]
    return value_bg
