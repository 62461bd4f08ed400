"""Losses of pairs whose margins are sorted over the whole step (arXiv:2406.05882).

    aot           k-th of all (chosen - rejected) of the policy   less   k-th of the reference's
    aot_unpaired  k-th of all C                                   less   k-th of all R

Notation as in `objectives.preference`. A new one is a class of this file, a name in `__all__` and
in `TransportLoss`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from jaxr1.rl.episodes import Episodes
from jaxr1.rl.objectives.preference import Pairs, PairTerm, check_share, log_sigmoid
from jaxr1.rl.terms import Noise

__all__ = ["Aot", "AotUnpaired"]


@dataclasses.dataclass(frozen=True)
class Sums:
    """The pairs of an optimiser step, float64[P] each, and where they are.

    Attributes:
      place: int[N], 1 + the number of each token's pair; 0 for tokens in none, and for those that
        are not the policy's.
      chosen: sums of l over chosen responses.
      rejected: sums of l over rejected ones.
      ref_chosen: sums of the reference's l.
      ref_rejected: sums of the reference's l.
    """

    place: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    ref_chosen: np.ndarray
    ref_rejected: np.ndarray

    @classmethod
    def of(cls, episodes: Episodes) -> Sums:
        columns = episodes.columns
        row = np.repeat(np.arange(len(episodes.counts_bg)), episodes.counts_bg.sum(-1))
        number = columns["pair"].astype(np.int64)
        where = (columns["own"] > 0) & (number > 0) & (episodes.spread(episodes.valid_bg) > 0)
        key = row * (1 + number.max(initial=0)) + number
        place = np.zeros(len(number), np.int64)
        pairs, place[where] = np.unique(key[where], return_inverse=True)
        place[where] += 1
        total = lambda name, of: np.bincount(
            place[of], columns[name][of].astype(np.float64), 1 + len(pairs)
        )[1:]
        both = (where & (columns["sign"] > 0), where & (columns["sign"] < 0))
        sums = [total(name, of) for name in ("now_logp", "ref_logp") for of in both]
        return cls(place, *sums)

    def spread(self, value: np.ndarray) -> np.ndarray:
        """float32[N]: value[i] at each own token of pair i."""
        return np.concatenate([[0.0], value])[self.place].astype(np.float32)


def partners(value: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value, that of the others which has its rank."""
    found = np.empty_like(others)
    found[np.argsort(value, kind="stable")] = np.sort(others)
    return found


@dataclasses.dataclass(frozen=True)
class SortedTerm(PairTerm):
    """A loss of differences between sorted numbers.

    What a number is subtracted from is found on the host, before the step, with the parameters at
    hand: the loss itself sorts nothing.

    Attributes:
      smoothing: s in -(1 - s) log sigmoid(beta d) - s log sigmoid(-beta d); under 0.5.
    """

    smoothing: float = 0.0

    fresh: ClassVar[tuple[str, ...]] = ("now_logp",)

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "smoothing", 0.5)

    def of(self, d: jax.Array) -> jax.Array:
        """The loss of a difference."""
        x, s = self.beta * d, self.smoothing
        return -(1 - s) * log_sigmoid(x) - s * log_sigmoid(-x)


@dataclasses.dataclass(frozen=True)
class Aot(SortedTerm):
    """d = the k-th of all chosen - rejected log-probs, less the k-th of the reference's."""

    needs: ClassVar[tuple[str, ...]] = (*PairTerm.needs, "aot_ref")

    def prepare(self, episodes: Episodes, noise: Noise) -> dict[str, np.ndarray]:
        sums = Sums.of(episodes)
        margin, ref = sums.chosen - sums.rejected, sums.ref_chosen - sums.ref_rejected
        # Of the pair's own reference too: what the loss sees is l - ref.
        return {"aot_ref": sums.spread(partners(margin, ref) - ref)}

    def loss(self, pairs: Pairs) -> jax.Array:
        return self.of(pairs.chosen - pairs.rejected - pairs.tokens.aot_ref)


@dataclasses.dataclass(frozen=True)
class AotUnpaired(SortedTerm):
    """d = the k-th of all C, less the k-th of all R.

    The two are of different pairs, perhaps in different micro-batches: each has its own part of the
    gradient, and half of the value.
    """

    needs: ClassVar[tuple[str, ...]] = (*PairTerm.needs, "aot_chosen", "aot_rejected")

    def prepare(self, episodes: Episodes, noise: Noise) -> dict[str, np.ndarray]:
        sums = Sums.of(episodes)
        chosen, rejected = sums.chosen - sums.ref_chosen, sums.rejected - sums.ref_rejected
        return {
            "aot_chosen": sums.spread(partners(rejected, chosen)),
            "aot_rejected": sums.spread(partners(chosen, rejected)),
        }

    def loss(self, pairs: Pairs) -> jax.Array:
        tokens = pairs.tokens
        both = self.of(pairs.chosen - tokens.aot_rejected)
        both = both + self.of(tokens.aot_chosen - pairs.rejected)
        return both - 0.5 * jax.lax.stop_gradient(both)


TransportLoss = Aot | AotUnpaired
"""Those whose fields are flags of the command line."""
