"""What is scored of responses in a step: columns by name, each of somebody's parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from jaxr1.models import vlm
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.learner import Learner
from jaxr1.rl.step import REF_HIDDEN
from jaxr1.rl.update import score
from jaxr1.rl.work import Work

COLUMNS = {
    "old_logp": ("old", "logp"),
    "old_entropy": ("old", "entropy"),
    "old_sum_sq": ("old", "sum_sq"),
    "now_logp": ("now", "logp"),
    "now_entropy": ("now", "entropy"),
    "ref_logp": ("reference", "logp"),
    "ref_hidden": ("reference", "hidden"),
    "old_value": ("critic", "value"),
}
"""{column: (whose parameters, what the model is asked)}.

old         the policy that sampled
now         the policy at hand, before each optimiser step
reference   what the policy is held to
critic      the critic, before it learns from the step
"""


@dataclasses.dataclass(frozen=True)
class Source:
    """Somebody's parameters."""

    learner: Learner
    params: dict


def ref_head(learner: Learner, sources: Mapping[str, Source]) -> jax.Array | None:
    """The reference's output matrix, where a loss of the learner compares whole distributions."""
    if REF_HIDDEN not in learner.objective.needs:
        return None
    return vlm.head(sources["reference"].params)


def scored(
    names: Iterable[str],
    sources: Mapping[str, Source],
    episodes: Episodes,
    placed_bg: np.ndarray,
    work: Work,
    check: Callable[[], None],
) -> dict[str, np.ndarray]:
    """The columns of `names` that are not there yet, one pass for all of one source.

    Args:
      sources: by the names in `COLUMNS`; a column of one that is not here is not scored.
      placed_bg: bool[B, G], responses to score.
      work, check: as of `score`.

    Returns:
      {name: float32[N]}, 0 for other responses.
    """
    asked: dict[str, dict[str, str]] = {}
    for name in sorted({*names} & COLUMNS.keys() - episodes.columns.keys()):
        source, read = COLUMNS[name]
        if source in sources:
            asked.setdefault(source, {})[read] = name
    found: dict[str, np.ndarray] = {}
    for source, named in asked.items():
        learner, params = sources[source].learner, sources[source].params
        said = score(learner, params, episodes, placed_bg, work, check, tuple(named))
        found |= {named[read]: column for read, column in said.items()}
    return found
