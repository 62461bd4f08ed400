"""Names that one room writes and another one reads: of metrics, and those that name files."""

from __future__ import annotations

import re

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
    "kl",
    "kl_coef",
    "frac_adora",
)
"""What `reward/...` holds besides the components of the reward."""


def is_component(metric: str) -> bool:
    """Whether a metric is the mean of one component of the reward: `reward/<name>`.

    What a reward is made of in turn (`reward/<name>/<part>`) is none: it is no term of the sum.
    """
    room, _, name = metric.partition("/")
    return room == "reward" and "/" not in name and name not in REWARD_STATISTICS


def is_score(metric: str) -> bool:
    """Whether a metric is the score of a held-out set: `eval/<set>/<reward>`."""
    return metric.startswith("eval/") and metric.rpartition("/")[2] not in EVALUATION_MEASURES


def check_name(name: str, path: str) -> None:
    """Checks a name of which files and folders are named: of a stage, a held-out set, a learner.

    Args:
      name: to check.
      path: what the message begins with.

    Raises:
      ValueError: it could leave its folder, hide its file, or be read as a pattern of files.
    """
    if not re.fullmatch(r"\w[\w.+=-]{0,63}", name):
        raise ValueError(
            f"{path}{name!r} is part of file names: it must be 1 to 64 letters, digits or one of "
            "_ . + = -, the first a letter, a digit or _"
        )
