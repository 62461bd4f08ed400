"""Rows of a data set, asked in batches: encoded ahead, drawn, graded while the next are drawn.

    encode   batch 0   batch 1   batch 2
    draw               batch 0   batch 1   batch 2
    grade                        batch 0   batch 1   batch 2     -> Episodes

Held-out sets, answers that stages make pairs and pass rates of, and texts of other models are all
asked so.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxr1.data import DataError, Dataset, Example
from jaxr1.data.example import refusal
from jaxr1.inputs.ahead import in_batches
from jaxr1.inputs.exchange import Draw, LeftOut, share
from jaxr1.inputs.sizes import TooLong
from jaxr1.inputs.template import Prompt, PromptError
from jaxr1.media.images import MediaError
from jaxr1.parallel import host_index, owner
from jaxr1.rewards.grades import Pending
from jaxr1.rewards.pool import RewardPool
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.grading import submit, wait_for
from jaxr1.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Asking:
    """How rows are asked.

    Attributes:
      sampler: draws the answers.
      max_prompt_tokens: longest prompt.
      samples: answers to each row.
      batch_rows: rows in flight.
      key: the random key of a row.
      pool: grades; None leaves answers without grades.
      refuses_long: a longer prompt is an error; else its row is left out.
      judge: what is wrong with an example otherwise, or None; it is left out. Threads may call it.
      on_drop: called with (source, reason) of a row that is left out.
      check: raises where the asking is to end.
      phase: called with (number of the batch, batches) before each.
    """

    sampler: Sampler
    max_prompt_tokens: int
    samples: int
    batch_rows: int
    key: Callable[[int], np.ndarray]
    pool: RewardPool | None = None
    refuses_long: bool = False
    judge: Callable[[Example], str | None] = lambda example: None
    on_drop: Callable[[str, str], None] = lambda source, reason: None
    check: Callable[[], None] = lambda: None
    phase: Callable[[int, int], None] = lambda number, of: None

    def ask(self, params: dict, dataset: Dataset, rows: Sequence[int]) -> Iterator[Episodes]:
        """The answers to these rows, batch by batch, in order.

        Raises:
          DataError: a row that cannot be asked, in a data set that leaves none out.
        """
        size = self.batch_rows
        batches = [rows[first : first + size] for first in range(0, len(rows), size)]
        own = [[row for i, row in enumerate(b) if owner(i) == host_index()] for b in batches]
        weights = self.sampler.weights(params)
        reading = threading.Lock()  # a user's data set need not know of threads
        draw = functools.partial(self._draw, dataset, reading)
        encoded = in_batches(draw, own)
        waiting: list[tuple[Episodes, Pending | None]] = []
        for number, (batch, mine) in enumerate(zip(batches, own, strict=True)):
            self.phase(number + 1, len(batches))
            found = share(functools.partial(_numbered, mine, encoded))
            self.check()
            draws = self._kept([found[row] for row in batch])
            if draws:
                waiting.append(self._drawn(params, weights, draws))
            if len(waiting) > 1:
                yield self._graded(*waiting.pop(0))
        for some in waiting:
            yield self._graded(*some)

    def _drawn(
        self, params: dict, weights: Any, draws: list[Draw]
    ) -> tuple[Episodes, Pending | None]:
        keys = [self.key(draw.row) for draw in draws]
        prompts = [draw.prompt for draw in draws]
        check = self.check
        groups = self.sampler(params, prompts, keys, self.samples, weights=weights, check=check)
        episodes = Episodes.sampled(draws, groups)
        return episodes, None if self.pool is None else submit(self.pool, episodes)

    def _graded(self, episodes: Episodes, pending: Pending | None) -> Episodes:
        if pending is not None:
            episodes.grade(episodes.graded(wait_for([pending], self.check)))
        return episodes

    def _kept(self, found: Sequence[Draw | LeftOut]) -> list[Draw]:
        """The rows of a batch that can be asked; the others are written down."""
        draws = []
        for one in found:
            if isinstance(one, LeftOut):
                self.on_drop(one.source, one.reason)
            else:
                draws.append(one)
        return draws

    def _draw(self, dataset: Dataset, reading: threading.Lock, row: int) -> Draw | LeftOut:
        """A row, encoded; called in threads, ahead of its turn."""
        with reading:
            example = dataset[row]
        if (problem := self.judge(example)) is not None:
            return LeftOut(example.source, problem)
        limits = (self.max_prompt_tokens, self.sampler.buckets.patches[-1])
        try:
            prompt = self.sampler.processor.encode(Prompt(example.messages), *limits)
            return Draw(row, row, example, prompt)
        except TooLong as e:
            if self.refuses_long:
                raise DataError(f"{example.source}: {e}") from e
            return LeftOut(example.source, str(e))
        except (MediaError, PromptError) as e:
            if (refused := refusal(dataset, example, e)) is not None:
                raise refused from e
            return LeftOut(example.source, str(e))


def _numbered(rows: Sequence[int], encoded: Iterator[list[Draw | LeftOut]]) -> dict[int, Any]:
    """The next batch, which is of these rows."""
    return dict(zip(rows, next(encoded), strict=True))
