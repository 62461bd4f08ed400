"""Policy losses of tokens.

A new one is a class of this file, a name in `__all__` and in `TokenLoss`. Notation: l is the
log-prob of a token, A its advantage, z = l - old, the ratio exp(z); sg() has no gradient.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.rl.terms import LOG_RATIO_LIMIT, Mean, Metrics, Term, Tokens

__all__ = ["Cispo", "Cpgd", "Dppo", "Dro", "Gpg", "Ppo", "Reinforce", "Sapo", "clipped_surrogate"]

PROBABILITY_FLOOR = 1e-8  # of all other ids together, in a divergence of two certain policies


def ratio_of(log_ratio: jax.Array) -> jax.Array:
    """exp, with the logarithm clamped to +-`LOG_RATIO_LIMIT`."""
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def clipped_surrogate(
    logp: jax.Array, old_logp: jax.Array, advantage: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """PPO's clipped surrogate per token: -min(r A, clip(r) A) (arXiv:1707.06347, eq. 7).

    Args:
      logp: log-probs of the policy, the differentiated ones.
      old_logp: log-probs at rollout; equal to `logp` when one update follows, then the ratio is 1.
      advantage: same shape.
      clip_low, clip_high: widths of the clip interval.

    Returns:
      Loss, ratio, and 1.0 where the clip took the gradient away.
    """
    ratio = ratio_of(logp - old_logp)
    low, high = clipped_sides(ratio, advantage, clip_low, clip_high)
    return surrogate(ratio, advantage, clip_low, clip_high), ratio, low + high


def surrogate(
    ratio: jax.Array, advantage: jax.Array, clip_low: float, clip_high: float, limit: float = 0.0
) -> jax.Array:
    """-min(r A, clip(r) A); a `limit` over 0 bounds the ratio of the first of the two."""
    bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    free = jnp.minimum(ratio, limit) if limit else ratio
    return -jnp.minimum(free * advantage, bounded * advantage)


def clipped_sides(
    ratio: jax.Array, advantage: jax.Array, clip_low: float, clip_high: float
) -> tuple[jax.Array, jax.Array]:
    """1.0 where the lower and where the upper bound takes the gradient away."""
    low = (ratio < 1.0 - clip_low) & (advantage < 0)
    high = (ratio > 1.0 + clip_high) & (advantage > 0)
    return low.astype(jnp.float32), high.astype(jnp.float32)


def clip_metrics(low: jax.Array, high: jax.Array, ratio: jax.Array, own: jax.Array) -> Metrics:
    """Shares of tokens at the bounds, and the mean ratio."""
    return {
        "clip_frac": Mean.of(low + high, own),
        "clip_frac_low": Mean.of(low, own),
        "clip_frac_high": Mean.of(high, own),
        "ratio": Mean.of(ratio, own),
    }


@dataclasses.dataclass(frozen=True)
class Ppo(Term):
    """The clipped surrogate of PPO (arXiv:1707.06347, eq. 7), which GRPO takes too.

    Attributes:
      clip_low: the ratio is clipped to [1 - clip_low, 1 + clip_high].
      clip_high: its upper width; apart from the lower one in DAPO (arXiv:2503.14476).
      dual_clip: c: where A < 0 the loss is at most -c A (arXiv:1912.09729 has 3.0); 0 is off.
      ratio_limit: the ratio's upper bound where it is not clipped, and there only
        (arXiv:2505.07291); over 1 + clip_high; 0 is off.
      ratio_cap: the ratio's upper bound on both sides of the minimum (MM-Eureka has 3.0); 0 is off.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    ratio_limit: float = 0.0
    ratio_cap: float = 0.0

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, clip_low=0, clip_high=0)
        for name, least in (
            ("dual_clip", 1),
            ("ratio_limit", 1 + self.clip_high),
            ("ratio_cap", 1),
        ):
            value = getattr(self, name)
            if value != 0 and not value > least:
                raise ValueError(f"Ppo.{name} must be 0 (off) or over {least}, got {value!r}")

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        advantage, own = tokens.advantage, tokens.own
        ratio = ratio_of(tokens.logp - tokens.old_logp)
        low, high = clipped_sides(ratio, advantage, self.clip_low, self.clip_high)
        metrics = clip_metrics(low, high, ratio, own)
        if self.ratio_cap:
            ratio = jnp.minimum(ratio, self.ratio_cap)
        loss = surrogate(ratio, advantage, self.clip_low, self.clip_high, self.ratio_limit)
        if self.dual_clip:
            most = -self.dual_clip * advantage
            over = (advantage < 0) & (loss > most)
            loss = jnp.where(over, most, loss)
            metrics["dual_clip_frac"] = Mean.of(over, own)
        return loss, metrics


@dataclasses.dataclass(frozen=True)
class Reinforce(Term):
    """-exp(l - sg(l)) A: the value is -A and the gradient -A grad l, with no ratio to clip."""

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage",)
    whole_rows: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        one = jnp.exp(tokens.logp - jax.lax.stop_gradient(tokens.logp))
        return -one * tokens.advantage, {}


@dataclasses.dataclass(frozen=True)
class Gpg(Term):
    """-A l (arXiv:2504.02546): the plain policy gradient."""

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage",)
    whole_rows: ClassVar[bool] = False

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        return -tokens.advantage * tokens.logp, {}


@dataclasses.dataclass(frozen=True)
class Cispo(Term):
    """-sg(bounded ratio) A l (arXiv:2506.13585): a clipped ratio that still has a gradient.

    Attributes:
      bounds: "cap" bounds the ratio by `clip_high` itself, and not from below; "interval" clips it
        to [1 - clip_low, 1 + clip_high].
      clip_low: the lower width of "interval".
      clip_high: the bound of "cap" (5.0 in arXiv:2510.13786), the upper width of "interval".
    """

    bounds: Literal["cap", "interval"] = "cap"
    clip_low: float = 0.2
    clip_high: float = 5.0

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, clip_low=0, clip_high=0)

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        least, most = 0.0, self.clip_high
        if self.bounds == "interval":
            least, most = 1.0 - self.clip_low, 1.0 + self.clip_high
        ratio = jax.lax.stop_gradient(ratio_of(tokens.logp - tokens.old_logp))
        low, high = (x.astype(jnp.float32) for x in (ratio < least, ratio > most))
        loss = -jnp.clip(ratio, least, most) * tokens.advantage * tokens.logp
        return loss, clip_metrics(low, high, ratio, tokens.own)


@dataclasses.dataclass(frozen=True)
class Sapo(Term):
    """-(4 / tau) sigmoid(tau (ratio - 1)) A (arXiv:2511.20347): a clip with soft edges.

    Attributes:
      tau_positive: tau where A > 0.
      tau_negative: tau elsewhere.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_positive(self, "tau_positive", "tau_negative")

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        advantage = tokens.advantage
        ratio = ratio_of(tokens.logp - tokens.old_logp)
        tau = jnp.where(advantage > 0, self.tau_positive, self.tau_negative)
        gate = jax.nn.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau
        return -gate * advantage, {"ratio": Mean.of(ratio, tokens.own)}


@dataclasses.dataclass(frozen=True)
class Cpgd(Term):
    """A clipped log-prob, and a drift from the old policy (arXiv:2505.12504).

        -A min(l, old + log(1 + clip_high))     where A > 0
        -A max(l, old + log(1 - clip_low))      where A < 0
        + drift sg(min(ratio - 1, drift_cap)) l

    Attributes:
      clip_low: lower width, in the ratio; under 1.
      clip_high: upper width, in the ratio.
      drift: weight of the drift; 0 is off.
      drift_cap: its upper bound on the ratio minus 1.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    drift: float = 0.01
    drift_cap: float = 2.0

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        check_least(self, clip_low=0, clip_high=0, drift=0)
        check_positive(self, "drift_cap")
        if self.clip_low >= 1:
            raise ValueError(f"Cpgd.clip_low must be under 1, got {self.clip_low!r}")

    @property
    def needs_zero_advantage(self) -> bool:
        return self.drift > 0

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        logp, old_logp, advantage = tokens.logp, tokens.old_logp, tokens.advantage
        ratio = jax.lax.stop_gradient(ratio_of(logp - old_logp))
        low, high = clipped_sides(ratio, advantage, self.clip_low, self.clip_high)
        most = jnp.minimum(logp, old_logp + jnp.log1p(self.clip_high))
        least = jnp.maximum(logp, old_logp + jnp.log1p(-self.clip_low))
        loss = -jnp.where(advantage > 0, most, least) * advantage
        if self.drift:
            loss = loss + self.drift * jnp.minimum(ratio - 1.0, self.drift_cap) * logp
        return loss, clip_metrics(low, high, ratio, tokens.own)


@dataclasses.dataclass(frozen=True)
class Dppo(Term):
    """-A sg(min(ratio, ratio_cap)) l inside a trust region of probabilities (arXiv:2602.04879).

    A token whose probability has moved too far to where its advantage pushes it has no gradient:
    for A > 0 up by more than `clip_high`, else down by more than `clip_low`.

    Attributes:
      kind: how far it moved: "tv" is the difference of the two probabilities, "kl" the divergence
        KL(old, new) of this token against all others.
      clip_low: bound where A <= 0; None is 0.15 for "tv" and 0.05 for "kl".
      clip_high: bound where A > 0; None likewise.
      ratio_cap: upper bound of the ratio.
    """

    kind: Literal["tv", "kl"] = "tv"
    clip_low: float | None = None
    clip_high: float | None = None
    ratio_cap: float = 20.0

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    whole_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_types(self)
        given = [name for name in ("clip_low", "clip_high") if getattr(self, name) is not None]
        check_least(self, **dict.fromkeys(given, 0))
        check_positive(self, "ratio_cap")

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        advantage, own = tokens.advantage, tokens.own
        logp, old_logp = jax.lax.stop_gradient(tokens.logp), tokens.old_logp
        up, down = logp > old_logp, logp < old_logp
        usual = {"tv": 0.15, "kl": 0.05}[self.kind]
        low_bound = usual if self.clip_low is None else self.clip_low
        high_bound = usual if self.clip_high is None else self.clip_high
        if self.kind == "tv":
            moved = jnp.abs(jnp.exp(logp) - jnp.exp(old_logp))
        else:
            other, old_other = (
                jnp.maximum(-jnp.expm1(x), PROBABILITY_FLOOR) for x in (logp, old_logp)
            )
            moved = jnp.exp(old_logp) * (old_logp - logp)
            moved = moved + old_other * (jnp.log(old_other) - jnp.log(other))
        high = (up & (moved > high_bound) & (advantage > 0)).astype(jnp.float32)
        low = (down & (moved > low_bound) & (advantage <= 0)).astype(jnp.float32)
        ratio = ratio_of(logp - old_logp)
        inside = 1.0 - low - high
        loss = -advantage * jnp.minimum(ratio, self.ratio_cap) * inside * tokens.logp
        return loss, clip_metrics(low, high, ratio, own)


@dataclasses.dataclass(frozen=True)
class Dro(Term):
    """-(A l - beta / 2 z^2): a policy gradient with a squared distance (arXiv:2405.19107).

    Attributes:
      beta: weight of the distance.
    """

    beta: float

    corrected: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("advantage", "old_logp")
    whole_rows: ClassVar[bool] = False
    needs_zero_advantage: ClassVar[bool] = True

    def __post_init__(self):
        check_types(self)
        check_positive(self, "beta")

    def __call__(self, tokens: Tokens) -> tuple[jax.Array, Metrics]:
        z = tokens.logp - tokens.old_logp
        loss = self.beta / 2 * z * z - tokens.advantage * tokens.logp
        return loss, {"ratio": Mean.of(ratio_of(z), tokens.own)}


TokenLoss = Ppo | Reinforce | Gpg | Cispo | Sapo | Cpgd | Dppo | Dro
"""Those whose fields are flags of the command line."""
