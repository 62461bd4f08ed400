"""What an estimator is: how rewards become the advantage of each token.

A frozen dataclass, called on the `Episodes` of a step. It sees rewards, rewards by name, validity,
counts and the columns that it `needs`, and gives columns back:

    reward_bg [[1 0]      ->   advantage   [ .7 .7 .7 .7 -.7 -.7 .7 .7 .7 -.7 -.7 -.7 -.7 -.7 ]
               [1 0]]
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxr1.rl.episodes import Episodes

__all__ = ["Credit", "Estimator"]


@dataclasses.dataclass(frozen=True)
class Credit:
    """What an estimator gives.

    Attributes:
      columns: {name: float32[N]}: "advantage" always; whatever else a loss may need.
      metrics: numbers to be logged.
    """

    columns: dict[str, np.ndarray]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


class Estimator:
    """A frozen dataclass that is called on the episodes of a step.

    Subclasses override what differs, as properties or as class attributes.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads, by name; they are scored for all responses."""
        return ()

    @property
    def needs_group(self) -> bool:
        """Whether it compares the responses of a prompt, so that there must be two at least."""
        return True

    @property
    def greedy_baseline(self) -> bool:
        """Whether it reads `Episodes.baseline_b`, for which each prompt is answered once more."""
        return False

    def __call__(self, episodes: Episodes) -> Credit:
        raise NotImplementedError
