"""What a token counts in a loss: aggregation as columns, with the denominators of a whole step.

Made on the host before packing, so that a loss is one sum whatever the micro-batches and devices.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

__all__ = [
    "WEIGHTINGS",
    "Aggregation",
    "Weighting",
    "chosen_weights",
    "pair_weights",
    "token_weights",
]

Aggregation = Literal[
    "token-mean",
    "token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
]


def token_weights(
    counts_bg: np.ndarray,
    aggregation: Aggregation,
    length_norm: float = 1.0,
    count_empty: bool = False,
) -> np.ndarray:
    """The weight of each token of each response, for the whole batch of one optimiser step.

        token-mean                 1 / N          N = tokens of the batch
        token-sum                  1
        seq-mean-token-mean        1 / (R T_i)    R = responses with a token, T_i = its tokens
        seq-mean-token-sum         1 / R
        seq-mean-token-sum-norm    1 / (R L)      L = `length_norm`

    Args:
      counts_bg: int[B, G], tokens that count in each response; 0 leaves the response out.
      aggregation: one of the above.
      length_norm: L, in tokens.
      count_empty: R is all B G responses: those without a token count as losses of 0 (as in TRL and
        EasyR1; verl leaves them out).

    Returns:
      float64[B, G], equal for the tokens of a response; 0 where none counts.

    Raises:
      ValueError: an unknown aggregation.
    """
    counts_bg = np.asarray(counts_bg, np.int64)
    tokens = max(1, counts_bg.sum())
    responses = max(1, counts_bg.size if count_empty else (counts_bg > 0).sum())
    denominators = {
        "token-mean": lambda: np.float64(tokens),
        "token-sum": lambda: np.float64(1),
        "seq-mean-token-mean": lambda: responses * np.maximum(counts_bg, 1).astype(np.float64),
        "seq-mean-token-sum": lambda: np.float64(responses),
        "seq-mean-token-sum-norm": lambda: np.float64(responses * length_norm),
    }
    if aggregation not in denominators:
        raise ValueError(f"unknown aggregation {aggregation!r}")
    return np.where(counts_bg > 0, 1.0 / denominators[aggregation](), 0.0)


@dataclasses.dataclass(frozen=True)
class Weighting:
    """How the tokens of one weight column are averaged.

    Attributes:
      aggregation: see `token_weights`.
      length_norm: the constant of "seq-mean-token-sum-norm", in tokens.
      count_empty: responses without a counted token stay in the number of responses.
    """

    aggregation: Aggregation = "token-mean"
    length_norm: float = 1.0
    count_empty: bool = False

    def __call__(self, counts_bg: np.ndarray) -> np.ndarray:
        """float64[B, G], of `token_weights`."""
        return token_weights(counts_bg, self.aggregation, self.length_norm, self.count_empty)


WEIGHTINGS = {
    "response_weight": Weighting("seq-mean-token-mean"),
    "token_weight": Weighting("token-mean"),
}
"""Those of weight columns that mean the same in every stage: a mean over responses of what stands
at each of their tokens, and a mean over tokens."""


def pair_weights(counts_bg: np.ndarray, pair_bg: np.ndarray) -> np.ndarray:
    """The column "pair_weight", 1 / (P T): a mean over P pairs, each of T tokens in both responses.

    Args:
      counts_bg: int[B, G], tokens that count in each response.
      pair_bg: int[B, G], the number of each response's pair in its prompt row; 0 is none.

    Returns:
      float64[B, G], equal for the tokens of a pair. A pair without a token is none.
    """
    counts_bg, pair_bg = np.asarray(counts_bg, np.int64), np.asarray(pair_bg, np.int64)
    same_bgg = (pair_bg[:, :, None] == pair_bg[:, None, :]) & (pair_bg[:, :, None] > 0)
    tokens_bg = (same_bgg * counts_bg[:, None, :]).sum(-1)
    rows = np.nonzero(tokens_bg)[0]
    pairs = len(np.unique(np.stack([rows, pair_bg[tokens_bg > 0]]), axis=1).T)
    return np.where(tokens_bg > 0, 1.0 / (max(1, pairs) * np.maximum(tokens_bg, 1)), 0.0)


def chosen_weights(counts_bg: np.ndarray, sign_bg: np.ndarray, weighting: Weighting) -> np.ndarray:
    """The column "chosen_weight": `weighting` over the chosen responses (sign +1) alone."""
    return weighting(np.where(np.asarray(sign_bg) > 0, counts_bg, 0))
