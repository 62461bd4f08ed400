"""Policy losses of whole responses.

A new one is a class of this file, a name in `__all__` and in `SequenceLoss`. Notation: l is the
log-prob of a token, z = l - old, A the advantage, T the response's own tokens; sums and means are
over these; sg() has no gradient. A loss of a response stands at each of its tokens, and the column
"response_weight" shares it out: 1 / (R T) of R responses.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxr1.base.checks import check_least, check_types
from jaxr1.rl.objectives.policy import (
    LOG_RATIO_LIMIT,
    clip_metrics,
    clipped_sides,
    ratio_of,
    surrogate,
)
from jaxr1.rl.terms import Mean, Metrics, Term, Tokens

__all__ = ["Gmpo", "Gspo", "Luspo", "Vespo"]

LOG_WEIGHT_RANGE = (float(np.log(1e-8)), 20.0)  # of ratios in VESPO


def response_sum(tokens: Tokens, x: jax.Array) -> jax.Array:
    """The sum over the own tokens of each response, at each of its tokens."""
    return tokens.sum_by(tokens.response, jnp.where(tokens.own, x, 0.0))


def response_tokens(tokens: Tokens) -> jax.Array:
    """Own tokens of each token's response, at least 1."""
    return jnp.maximum(response_sum(tokens, jnp.ones_like(tokens.advantage)), 1.0)


@dataclasses.dataclass(frozen=True)
class Gspo(Term):
    """-min(s A, clip(s) A) with one ratio of a response, s = exp(mean z) (arXiv:2507.18071).

    Attributes:
      clip_low: s is clipped to [1 - clip_low, 1 + clip_high].
      clip_high: its upper width.
      token: GSPO-token: of the same value, but each token has its own gradient,
        s_t = sg(s) exp(l_t - sg(l_t)), which differs where advantages differ inside a response.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    token: bool = False

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    weight: ClassVar[str] = "response_weight"
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, clip_low=0, clip_high=0)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        logp, advantage = tokens.logp, tokens.advantage
        mean = response_sum(tokens, logp - tokens.old_logp) / response_tokens(tokens)
        ratio = ratio_of(mean)
        if self.token:
            ratio = jax.lax.stop_gradient(ratio) * jnp.exp(logp - jax.lax.stop_gradient(logp))
        low, high = clipped_sides(ratio, advantage, self.clip_low, self.clip_high)
        loss = surrogate(ratio, advantage, self.clip_low, self.clip_high)
        return loss, clip_metrics(low, high, ratio, tokens.own)


@dataclasses.dataclass(frozen=True)
class Luspo(Term):
    """GSPO's loss of a response times its length T (arXiv:2602.05261), as the mean over responses.

    Attributes:
      clip_low: the ratio of a response is clipped to [1 - clip_low, 1 + clip_high].
      clip_high: its upper width.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    weight: ClassVar[str] = "response_weight"
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, clip_low=0, clip_high=0)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        loss, metrics = Gspo(self.clip_low, self.clip_high)(tokens)
        return loss * response_tokens(tokens), metrics


@dataclasses.dataclass(frozen=True)
class Gmpo(Term):
    """-A exp(mean u): the geometric mean of clipped ratios (arXiv:2507.20673).

        u = min(z, clip(z))   where A > 0        clip(z) to [-clip_low, clip_high]
            max(z, clip(z))   where A < 0

    A is the mean of a response's advantages.

    Attributes:
      clip_low: lower width, of the log ratio.
      clip_high: upper width, of the log ratio.
    """

    clip_low: float = 0.4
    clip_high: float = 0.4

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    weight: ClassVar[str] = "response_weight"
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, clip_low=0, clip_high=0)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        advantage, count = tokens.advantage, response_tokens(tokens)
        z, sign = tokens.logp - tokens.old_logp, jnp.sign(advantage)
        bounded = jnp.clip(z, -self.clip_low, self.clip_high)
        u = sign * jnp.minimum(sign * z, sign * bounded)
        ratio = ratio_of(response_sum(tokens, u) / count)
        loss = -response_sum(tokens, advantage) / count * ratio
        low = ((z < -self.clip_low) & (advantage < 0)).astype(jnp.float32)
        high = ((z > self.clip_high) & (advantage > 0)).astype(jnp.float32)
        return loss, clip_metrics(low, high, ratio, tokens.own)


@dataclasses.dataclass(frozen=True)
class Vespo(Term):
    """-sg(phi) A l with phi = exp(lambda + k log W - lambda W) (arXiv:2602.10693).

    W = exp(sum z) is the ratio of the whole response. The loss is one of tokens: the stage's
    aggregation averages it.

    Attributes:
      k_positive: k where A >= 0.
      lambda_positive: lambda where A >= 0.
      k_negative: k where A < 0.
      lambda_negative: lambda where A < 0.
      is_corrected: log W also holds the sum of old - sampled, the difference of trainer and
        sampler; other corrections of that do not multiply the loss then.
    """

    k_positive: float = 2.0
    lambda_positive: float = 3.0
    k_negative: float = 3.0
    lambda_negative: float = 2.0
    is_corrected: bool = False

    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        least = dict.fromkeys(("k_positive", "lambda_positive", "k_negative", "lambda_negative"), 0)
        check_least(self, **least)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "old_logp", *(("sampled_logp",) if self.is_corrected else ()))

    @property
    def corrected(self) -> bool:  # type: ignore[override]
        return not self.is_corrected

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        advantage = tokens.advantage
        z = jax.lax.stop_gradient(tokens.logp) - tokens.old_logp
        each = jnp.clip(z, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        if self.is_corrected:
            each = each + jnp.clip(tokens.old_logp - tokens.sampled_logp, *LOG_WEIGHT_RANGE)
        log_w = jnp.clip(response_sum(tokens, each), *LOG_WEIGHT_RANGE)
        k = jnp.where(advantage >= 0, self.k_positive, self.k_negative)
        bend = jnp.where(advantage >= 0, self.lambda_positive, self.lambda_negative)
        phi = jnp.exp(bend + k * log_w - bend * jnp.exp(log_w))
        loss, own = -phi * advantage * tokens.logp, tokens.own
        return loss, {"phi": Mean.of(phi, own), "ratio": Mean.of(jnp.exp(log_w), own)}


SequenceLoss = Gspo | Luspo | Gmpo | Vespo
"""Those whose fields are flags of the command line."""
