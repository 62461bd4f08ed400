"""The draws of one step, taken as they are asked for: a rollout that is refilled takes more."""

from __future__ import annotations

import time
from collections.abc import Sequence

from jaxr1.inputs.draws import Draws
from jaxr1.inputs.exchange import Draw


class Feed:
    """What a step takes of a stage's draws.

    Attributes:
      position: of the next draw; where the next step begins.
      waited: seconds until draws were there.
    """

    def __init__(self, draws: Draws, position: int, ahead: int = 0):
        """Begins at a position.

        Args:
          ahead: draws behind those taken that are encoded meanwhile, for who takes the next ones.
        """
        self.position, self.waited = position, 0.0
        self._draws, self._ahead = draws, ahead

    def take(self, count: int, turns: Sequence[int] = ()) -> list[Draw]:
        """The next `count` draws; `turns` and errors as of `Draws.take`."""
        began = time.perf_counter()
        self.position, drawn = self._draws.take(self.position, count, self._ahead, turns)
        self.waited += time.perf_counter() - began
        return drawn

    def again(self, places: Sequence[tuple[int, int, int]]) -> list[Draw]:
        """Draws of earlier steps, by (position, row, host)."""
        return self._draws.again(places)
