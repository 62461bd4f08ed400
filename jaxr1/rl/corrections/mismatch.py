"""How far the trainer's log-probs are from the sampler's."""

from __future__ import annotations

import math

import numpy as np

from jaxr1.rl.corrections.correction import Ratios, mean_of
from jaxr1.rl.episodes import Episodes

__all__ = ["mismatch_metrics"]


def mismatch_metrics(episodes: Episodes, low: float = 0.5, high: float = 2.0) -> dict[str, float]:
    """How far the trainer's log-probs are from those that the sampler reported.

        max_abs, mean_abs        of old_logp - sampled_logp
        kl                       mean of sampled_logp - old_logp
        k3                       mean of w - 1 - log w
        perplexity_ratio         mean over responses of exp(mean of sampled_logp - old_logp)
        chi2_token               mean of w^2, minus 1
        chi2_sequence            mean over responses of W^2, minus 1
        effective_sample_size    1 / mean of (w / its mean)^2, a share of the tokens
        frac_above, frac_below   tokens with w over `high`, under `low`

    Args:
      episodes: with the columns "old_logp" and "sampled_logp".
      low, high: bounds that are reported on.

    Returns:
      {"mismatch/<name>": number}, over own tokens of responses that have a reward; NaN of none.
    """
    ratios = Ratios(episodes)
    raw, x = ratios.raw_n[ratios.counted_n], ratios.x_n[ratios.counted_n]
    w, said_bg = np.exp(x), ratios.said_bg
    squares = mean_of(w**2)
    found = {
        "max_abs": float(np.abs(raw).max()) if len(raw) else math.nan,
        "mean_abs": mean_of(np.abs(raw)),
        "kl": mean_of(-raw),
        "k3": mean_of(w - 1 - x),
        "perplexity_ratio": mean_of(np.exp(-ratios.mean_bg(ratios.x_n))[said_bg]),
        "chi2_token": squares - 1,
        "chi2_sequence": mean_of(np.exp(2 * ratios.log_bg)[said_bg]) - 1,
        "effective_sample_size": mean_of(w) ** 2 / squares,
        "frac_above": mean_of(w > high),
        "frac_below": mean_of(w < low),
    }
    return {f"mismatch/{name}": value for name, value in found.items()}
