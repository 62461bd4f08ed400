"""What a token counts in a loss: aggregation as columns, with the denominators of a whole step.

Made on the host before packing, so that a loss is one sum whatever the micro-batches and devices.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

__all__ = ["Aggregation", "Weighting", "token_weights"]

Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]


def token_weights(
    counts_bg: np.ndarray, aggregation: Aggregation, length_norm: float = 1.0
) -> np.ndarray:
    """The weight of each token of each response, for the whole batch of one optimiser step.

        token-mean                 1 / N          N = tokens of the batch
        seq-mean-token-mean        1 / (R T_i)    R = responses with a token, T_i = its tokens
        seq-mean-token-sum         1 / R
        seq-mean-token-sum-norm    1 / (R L)      L = `length_norm`

    Args:
      counts_bg: int[B, G], tokens that count in each response; 0 leaves the response out.
      aggregation: one of the above.
      length_norm: L, in tokens.

    Returns:
      float64[B, G], equal for the tokens of a response; 0 where none counts.

    Raises:
      ValueError: an unknown aggregation.
    """
    counts_bg = np.asarray(counts_bg, np.int64)
    tokens, responses = max(1, counts_bg.sum()), max(1, (counts_bg > 0).sum())
    denominators = {
        "token-mean": lambda: np.float64(tokens),
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
    """

    aggregation: Aggregation = "token-mean"
    length_norm: float = 1.0

    def __call__(self, counts_bg: np.ndarray) -> np.ndarray:
        """float64[B, G], of `token_weights`."""
        return token_weights(counts_bg, self.aggregation, self.length_norm)
