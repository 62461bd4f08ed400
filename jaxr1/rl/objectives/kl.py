"""Distances of a policy to a reference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.rl.objectives.policy import LOG_RATIO_LIMIT, ratio_of
from jaxr1.rl.terms import Mean, Metrics, Term, Tokens

__all__ = ["Kl", "kl_estimate"]

KL_LIMIT = 10.0  # as verl and EasyR1 bound the estimate of k3

KlEstimator = Literal["k1", "abs", "k2", "k3", "k1+", "abs+", "k3+"]


def kl_estimate(logp: jax.Array, ref_logp: jax.Array, estimator: KlEstimator) -> jax.Array:
    """Per-token estimate of KL(policy, reference) from a policy's token, with d = logp - ref_logp.

        k1   d                      unbiased; as a loss on-policy its gradient has mean zero
        abs  |d|
        k2   d^2 / 2                the gradient of the KL in expectation
        k3   exp(-d) - 1 + d        unbiased and never negative; clamped at `KL_LIMIT`
        k1+, abs+, k3+              the value of the one, the gradient of k2

    Raises:
      ValueError: an unknown estimator.
    """
    if estimator not in get_args(KlEstimator):
        names = [repr(name) for name in get_args(KlEstimator)]
        known = f"{', '.join(names[:-1])} or {names[-1]}"
        raise ValueError(f"estimator must be {known}, got {estimator!r}")
    d = logp - ref_logp
    bounded = jnp.clip(-d, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    k2 = d * d / 2
    value = {
        "k1": lambda: d,
        "abs": lambda: jnp.abs(d),
        "k2": lambda: k2,
        "k3": lambda: jnp.clip(jnp.exp(bounded) - 1.0 - bounded, -KL_LIMIT, KL_LIMIT),
    }[estimator.removesuffix("+")]()
    if estimator.endswith("+"):
        # Not sg(value - k2) + k2: a large k2 would round the value away.
        return jax.lax.stop_gradient(value) + (k2 - jax.lax.stop_gradient(k2))
    return value


@dataclasses.dataclass(frozen=True)
class Kl(Term):
    """KL to a frozen reference, added to the loss with the policy loss's aggregation.

    Attributes:
      coef: weight; at 0 there is no reference model. Where it is adaptive, its first value.
      estimator: of `kl_estimate` (http://joschu.net/blog/kl-approx.html), from the token alone; or
        "full", the sum over the vocabulary, which needs the reference's distributions.
      is_corrected: the estimate times the ratio, gradient included (arXiv:2512.02556): unbiased
        where the tokens are those of an older policy.
      target: KL of a token that `rl.controllers.AdaptiveKl` aims at: the weight is then the scalar
        "kl_coef"; 0 keeps it as it is.
      horizon: of that controller, in responses.
    """

    coef: float = 0.0
    estimator: KlEstimator | Literal["full"] = "k3"
    is_corrected: bool = False
    target: float = 0.0
    horizon: float = 10000.0

    whole_rows: ClassVar[bool] = False
    needs_zero_advantage: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)
        check_least(self, coef=0, target=0)
        check_positive(self, "horizon")
        if self.target and not self.coef:
            raise ValueError("Kl.target moves a weight: it needs a coef over 0 to begin with")
        if self.is_corrected and self.estimator not in ("k1", "abs", "k2", "k3"):
            raise ValueError(
                "Kl.is_corrected goes with the estimators 'k1', 'abs', 'k2' and 'k3', whose "
                f"gradient is that of their value, got {self.estimator!r}"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        return ("kl_full",) if self.estimator == "full" else ("logp",)

    @property
    def needs(self) -> tuple[str, ...]:
        if self.estimator == "full":
            return ("ref_hidden",)
        return ("ref_logp", "old_logp") if self.is_corrected else ("ref_logp",)

    @property
    def scalars(self) -> dict[str, float]:
        return {"kl_coef": self.coef} if self.target else {}

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        if self.estimator == "full":
            kl = tokens.kl_full
        else:
            kl = kl_estimate(tokens.logp, tokens.ref_logp, self.estimator)
        if self.is_corrected:
            kl = kl * ratio_of(tokens.logp - tokens.old_logp)
        coef = tokens.scalars["kl_coef"] if self.target else self.coef
        return coef * kl, {"kl": Mean.of(kl, tokens.own)}
