"""Corrections by the ratio of the trainer's probabilities to the sampler's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxr1.base.checks import check_least, check_types
from jaxr1.rl.corrections.correction import Correction, Ratios, mean_of
from jaxr1.rl.episodes import Episodes

__all__ = ["SeqMaskTis", "SequenceMask", "SequenceTruncate", "TokenMask", "TokenTruncate"]


@dataclasses.dataclass(frozen=True)
class Weight(Correction):
    """A bounded ratio; subclasses say how it is bounded.

    Attributes:
      most: the upper bound.
      least: the lower bound; 0 is none.
      batch_normalise: divides by the mean over the step, of tokens or of responses, whichever are
        weighed; what was masked counts in it with 0.
    """

    most: float = 2.0
    least: float = 0.0
    batch_normalise: bool = False

    needs: ClassVar[tuple[str, ...]] = ("old_logp", "sampled_logp")
    of_responses: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, least=0)
        if not self.most > self.least:
            raise ValueError(
                f"{type(self).__name__}.most must be over least ({self.least}), got {self.most}"
            )

    def within(self, ratio: np.ndarray) -> np.ndarray:
        """Whether ratios are inside the bounds, which belong to them."""
        return (ratio >= self.least) & (ratio <= self.most)

    def weigh(self, ratios: Ratios) -> np.ndarray:
        """float64[N], or float64[B, G] of responses."""
        raise NotImplementedError

    def multiplier(self, episodes: Episodes) -> np.ndarray:
        ratios = Ratios(episodes)
        weight = self.weigh(ratios)
        if self.batch_normalise:
            mean = mean_of(weight[ratios.said_bg if self.of_responses else ratios.counted_n])
            weight = weight / mean if mean > 0 else weight
        return ratios.spread(weight) if self.of_responses else weight


@dataclasses.dataclass(frozen=True)
class TokenTruncate(Weight):
    """w of each token, within bounds (truncated importance sampling)."""

    name: ClassVar[str] = "token_truncate"

    def weigh(self, ratios: Ratios) -> np.ndarray:
        return np.clip(ratios.w_n, self.least, self.most)


@dataclasses.dataclass(frozen=True)
class SequenceTruncate(Weight):
    """The product of w over a response, within bounds, at each of its tokens."""

    name: ClassVar[str] = "sequence_truncate"
    of_responses: ClassVar[bool] = True

    def weigh(self, ratios: Ratios) -> np.ndarray:
        return np.clip(np.exp(ratios.log_bg), self.least, self.most)


@dataclasses.dataclass(frozen=True)
class TokenMask(Weight):
    """w of each token that is within bounds, 0 of others (IcePop)."""

    most: float = 5.0
    least: float = 0.5

    name: ClassVar[str] = "token_mask"

    def weigh(self, ratios: Ratios) -> np.ndarray:
        return np.where(self.within(ratios.w_n), ratios.w_n, 0.0)


@dataclasses.dataclass(frozen=True)
class SequenceMask(Weight):
    """The product of w over a response where it is within bounds, else 0 (TRL)."""

    most: float = 3.0

    name: ClassVar[str] = "sequence_mask"
    of_responses: ClassVar[bool] = True

    def weigh(self, ratios: Ratios) -> np.ndarray:
        ratio_bg = np.exp(ratios.log_bg)
        return np.where(self.within(ratio_bg), ratio_bg, 0.0)


@dataclasses.dataclass(frozen=True)
class SeqMaskTis(Weight):
    """w of each token of responses whose geometric mean of w is within bounds, 0 of others.

    Attributes:
      token_most: bounds w of each token; 0 does not, as in OpenRLHF.
    """

    most: float = 5.0
    least: float = 0.5
    token_most: float = 0.0

    name: ClassVar[str] = "seq_mask_tis"

    def __post_init__(self):
        super().__post_init__()
        check_least(self, token_most=0)

    def weigh(self, ratios: Ratios) -> np.ndarray:
        kept_bg = self.within(np.exp(ratios.mean_bg(ratios.x_n)))
        weight_n = np.minimum(ratios.w_n, self.token_most) if self.token_most else ratios.w_n
        return np.where(ratios.spread(kept_bg), weight_n, 0.0)
