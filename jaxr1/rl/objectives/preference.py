"""Losses of pairs: a chosen response and a rejected one to the same prompt.

    pair   [ 1 1 1 2 2 1 1 0 0 2 2 2 ]      a number for each pair of a row, 0 = in none
    sign   [ + + + - - - - . . + + + ]      +1 chosen, -1 rejected

A response is in one pair at most. C is the sum of l - ref over the chosen response's own tokens, R
that of the rejected one, h = beta (C - R). The loss of a pair stands at each token of both, and the
column "pair_weight" shares it out (`rl.weights.pair_weights`): a mean over pairs.

A new one is a class of this file, a name in `__all__` and in `PairLoss`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.rl.terms import Mean, Metrics, Term, Tokens

__all__ = [
    "MPO",
    "ApoDown",
    "ApoZero",
    "BcoPair",
    "ChosenNll",
    "DiscoPop",
    "Dpo",
    "DpoNorm",
    "ExoPair",
    "Hinge",
    "Ipo",
    "NcaPair",
    "RobustDpo",
    "SppoHard",
]

log_sigmoid = jax.nn.log_sigmoid


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What is known of each token's pair, float32[B, S, T] each.

    Attributes:
      tokens: the columns.
      own: bool, own tokens that are in a pair.
      chosen: C.
      rejected: R.
      chosen_count: own tokens of the chosen response.
      rejected_count: own tokens of the rejected one.
    """

    tokens: Tokens
    own: jax.Array
    chosen: jax.Array
    rejected: jax.Array
    chosen_count: jax.Array
    rejected_count: jax.Array

    @classmethod
    def of(cls, tokens: Tokens) -> Pairs:
        pair = tokens.pair.astype(jnp.int32)
        own = tokens.own & (pair > 0)
        d = tokens.logp - tokens.ref_logp
        is_chosen = (own & (tokens.sign > 0), own & (tokens.sign < 0))
        sums = [tokens.sum_by(pair, jnp.where(where, d, 0.0)) for where in is_chosen]
        counts = [tokens.sum_by(pair, where.astype(jnp.float32)) for where in is_chosen]
        return cls(tokens, own, *sums, *counts)

    @property
    def mean_chosen(self) -> jax.Array:
        """C over the tokens of its response."""
        return self.chosen / jnp.maximum(self.chosen_count, 1.0)

    @property
    def mean_rejected(self) -> jax.Array:
        """R over the tokens of its response."""
        return self.rejected / jnp.maximum(self.rejected_count, 1.0)

    def mean(self, value: jax.Array) -> Mean:
        """Over pairs: a token counts for its share of one."""
        count = jnp.maximum(self.chosen_count + self.rejected_count, 1.0)
        return Mean.of(value, self.own / count)


@dataclasses.dataclass(frozen=True)
class PairTerm(Term):
    """A loss of pairs: subclasses say `loss`.

    Attributes:
      coef: weight in a sum of losses.
      beta: of the reward beta (l - ref) of a response.
    """

    coef: float = 1.0
    beta: float = 0.1

    needs: ClassVar[tuple[str, ...]] = ("pair", "ref_logp", "sign")
    weight: ClassVar[str] = "pair_weight"
    whole_rows: ClassVar[bool] = True
    needs_zero_advantage: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)
        check_least(self, coef=0)
        check_positive(self, "beta")

    def h(self, pairs: Pairs) -> jax.Array:
        """The difference of a pair's rewards."""
        return self.beta * (pairs.chosen - pairs.rejected)

    def loss(self, pairs: Pairs) -> jax.Array:
        """float32[B, S, T], of each token's pair."""
        raise NotImplementedError

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        pairs = Pairs.of(tokens)
        h = self.h(pairs)
        return self.coef * self.loss(pairs), {
            "accuracy": pairs.mean(h > 0),
            "margin": pairs.mean(h),
            "chosen_reward": pairs.mean(self.beta * pairs.chosen),
            "rejected_reward": pairs.mean(self.beta * pairs.rejected),
        }


def check_share(options: PairTerm, name: str, most: float) -> None:
    """Raises ValueError where a field is not in [0, most)."""
    if not 0 <= getattr(options, name) < most:
        where = f"{type(options).__name__}.{name}"
        value = getattr(options, name)
        raise ValueError(f"{where} must be at least 0 and under {most}, got {value!r}")


# --- of the margin h ----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Dpo(PairTerm):
    """-log sigmoid(h) (arXiv:2305.18290, eq. 7)."""

    def loss(self, pairs: Pairs) -> jax.Array:
        return -log_sigmoid(self.h(pairs))


@dataclasses.dataclass(frozen=True)
class DpoNorm(PairTerm):
    """-log sigmoid(beta (C / T_c - R / T_r)): DPO with means over tokens (arXiv:2411.15124)."""

    def loss(self, pairs: Pairs) -> jax.Array:
        return -log_sigmoid(self.beta * (pairs.mean_chosen - pairs.mean_rejected))


@dataclasses.dataclass(frozen=True)
class Hinge(PairTerm):
    """max(0, 1 - h) (arXiv:2305.10425)."""

    def loss(self, pairs: Pairs) -> jax.Array:
        return jax.nn.relu(1.0 - self.h(pairs))


@dataclasses.dataclass(frozen=True)
class Ipo(PairTerm):
    """(C / T_c - R / T_r - 1 / (2 beta))^2 (arXiv:2310.12036, eq. 17), with means over tokens."""

    def loss(self, pairs: Pairs) -> jax.Array:
        return (pairs.mean_chosen - pairs.mean_rejected - 0.5 / self.beta) ** 2


@dataclasses.dataclass(frozen=True)
class RobustDpo(PairTerm):
    """[-(1 - s) log sigmoid(h) + s log sigmoid(-h)] / (1 - 2 s) (arXiv:2403.00409).

    Attributes:
      smoothing: s, the share of pairs that are the wrong way round; under 0.5.
    """

    smoothing: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "smoothing", 0.5)

    def loss(self, pairs: Pairs) -> jax.Array:
        h, s = self.h(pairs), self.smoothing
        return (s * log_sigmoid(-h) - (1 - s) * log_sigmoid(h)) / (1 - 2 * s)


@dataclasses.dataclass(frozen=True)
class ExoPair(PairTerm):
    """The divergence of sigmoid(h) from 1 - s (arXiv:2402.00856, eq. 16).

        sigmoid(h) (log sigmoid(h) - log(1 - s)) + sigmoid(-h) (log sigmoid(-h) - log s)

    Attributes:
      smoothing: s; over 0, since its logarithm counts.
    """

    smoothing: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "smoothing")
        check_share(self, "smoothing", 1.0)

    def loss(self, pairs: Pairs) -> jax.Array:
        h, s = self.h(pairs), self.smoothing
        of = lambda h, share: jax.nn.sigmoid(h) * (log_sigmoid(h) - np.log(share))
        return of(h, 1.0 - s) + of(-h, s)


@dataclasses.dataclass(frozen=True)
class DiscoPop(PairTerm):
    """-(1 - g) log sigmoid(h) + g exp(-h), with g = sigmoid(h / tau) (arXiv:2406.08414, eq. 5).

    Attributes:
      tau: over 0, and at most 1: beyond, the loss of a wrong pair would grow exponentially.
    """

    tau: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.tau <= 1:
            raise ValueError(f"DiscoPop.tau must be over 0 and at most 1, got {self.tau!r}")

    def loss(self, pairs: Pairs) -> jax.Array:
        h = self.h(pairs)
        # g exp(-h) under one exponential: for h far under 0 it is 0 times infinity otherwise.
        exponential = jnp.exp(log_sigmoid(h / self.tau) - h)
        return exponential - jax.nn.sigmoid(-h / self.tau) * log_sigmoid(h)


# --- of the two rewards apart -------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class NcaPair(PairTerm):
    """-log sigmoid(a) - log sigmoid(-a) / 2 - log sigmoid(-b) / 2 with a = beta C, b = beta R
    (arXiv:2402.05369).
    """

    def loss(self, pairs: Pairs) -> jax.Array:
        a, b = self.beta * pairs.chosen, self.beta * pairs.rejected
        return -log_sigmoid(a) - 0.5 * (log_sigmoid(-a) + log_sigmoid(-b))


@dataclasses.dataclass(frozen=True)
class BcoPair(PairTerm):
    """-log sigmoid(beta C - shift) - log sigmoid(shift - beta R) (arXiv:2404.04656).

    The shift is the scalar "bco_shift", which begins at 0 (`rl.controllers.BcoShift` moves it).
    """

    scalars: ClassVar[dict[str, float]] = {"bco_shift": 0.0}

    def loss(self, pairs: Pairs) -> jax.Array:
        shift = pairs.tokens.scalars["bco_shift"]
        a, b = self.beta * pairs.chosen, self.beta * pairs.rejected
        return -log_sigmoid(a - shift) - log_sigmoid(shift - b)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        loss, found = super().__call__(tokens)
        # Under names of its own: beside it another loss may have another beta.
        sides = ("chosen_reward", "rejected_reward")
        return loss, found | {f"bco_{name}": found[name] for name in sides}


@dataclasses.dataclass(frozen=True)
class SppoHard(PairTerm):
    """(C - 1 / (2 beta))^2 + (R + 1 / (2 beta))^2 (arXiv:2405.00675), the chosen one always won."""

    def loss(self, pairs: Pairs) -> jax.Array:
        half = 0.5 / self.beta
        return (pairs.chosen - half) ** 2 + (pairs.rejected + half) ** 2


@dataclasses.dataclass(frozen=True)
class ApoZero(PairTerm):
    """1 - sigmoid(beta C) + sigmoid(beta R) (arXiv:2408.06266, eq. 7): chosen up, rejected down."""

    def loss(self, pairs: Pairs) -> jax.Array:
        sigmoid = jax.nn.sigmoid
        return sigmoid(-self.beta * pairs.chosen) + sigmoid(self.beta * pairs.rejected)


@dataclasses.dataclass(frozen=True)
class ApoDown(PairTerm):
    """sigmoid(beta C) + 1 - sigmoid(h) (arXiv:2408.06266, eq. 8): both down, the rejected more."""

    def loss(self, pairs: Pairs) -> jax.Array:
        return jax.nn.sigmoid(self.beta * pairs.chosen) + jax.nn.sigmoid(-self.h(pairs))


@dataclasses.dataclass(frozen=True)
class ChosenNll(Term):
    """Negative log-likelihood of the chosen responses.

    The column "chosen_weight" (`rl.weights.chosen_weights`) averages it over all their tokens, or
    over each response first.

    Attributes:
      coef: weight in a sum of losses.
    """

    coef: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("sign",)
    weight: ClassVar[str] = "chosen_weight"
    whole_rows: ClassVar[bool] = False
    needs_zero_advantage: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)
        check_least(self, coef=0)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        chosen = tokens.own & (tokens.sign > 0)
        loss = jnp.where(chosen, -tokens.logp, 0.0)
        return self.coef * loss, {"chosen_nll": Mean.of(loss, chosen)}


PairLoss = (
    Dpo
    | DpoNorm
    | Hinge
    | Ipo
    | RobustDpo
    | ExoPair
    | DiscoPop
    | NcaPair
    | BcoPair
    | SppoHard
    | ApoZero
    | ApoDown
    | ChosenNll
)
"""Those whose fields are flags of the command line."""

MPO: tuple[PairLoss, ...] = (Dpo(0.8), BcoPair(0.2), ChosenNll(1.0))
"""The mix of arXiv:2411.10442."""
