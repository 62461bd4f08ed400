"""Names of metrics that one room writes and another one reads."""

from __future__ import annotations

EVALUATION_MEASURES = ("length_mean", "frac_truncated", "n")
"""What `eval/<set>/...` holds besides a score for each reward."""

REWARD_STATISTICS = (
    "mean",
    "std",
    "frac_zero_std",
    "unscored",
    "timeouts",
    "crashes",
    "errors",
    "nans",
)
"""What `reward/...` holds besides the components of the reward."""


def is_component(metric: str) -> bool:
    """Whether a metric is the mean of one component of the reward: `reward/<name>`."""
    room, _, name = metric.partition("/")
    return room == "reward" and name not in REWARD_STATISTICS


def is_score(metric: str) -> bool:
    """Whether a metric is the score of a held-out set: `eval/<set>/<reward>`."""
    return metric.startswith("eval/") and metric.rpartition("/")[2] not in EVALUATION_MEASURES
