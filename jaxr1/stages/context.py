"""What every stage gets of the run around it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from jaxr1.base.names import check_name
from jaxr1.data import Dataset
from jaxr1.inputs.feed import Feed
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import Buckets
from jaxr1.models.flops import peak_flops
from jaxr1.models.vlm import Model
from jaxr1.rl.learner import Learner, TrainState

POLICY = "policy"
"""The learner that every stage has; the key of its state."""


class Clock:
    """Seconds by phase."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to a phase."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    def metrics(self, flops: int) -> dict[str, float]:
        """`time/...`, `perf/model_tflops` and, where the devices are known, `perf/mfu`.

        Args:
          flops: floating-point operations that the model needed in this time, on all devices.
        """
        rate = flops / self.total
        metrics = {f"time/{name}_s": seconds for name, seconds in self.seconds.items()}
        metrics |= {"time/step_s": self.total, "perf/model_tflops": rate / 1e12}
        if peak := peak_flops():
            metrics["perf/mfu"] = rate / peak
        return metrics


@dataclasses.dataclass(frozen=True)
class Context:
    """What a stage needs of the run.

    Attributes:
      model: the description, with the stage's adapters.
      processor: prompts in, numbers out.
      buckets: static sizes.
      folder: the run directory.
      examples: how many the stage's data have.
      dataset: these; None where they are not read.
      unusable: rows of it that are passed over.
      seed: of the run.
      stream: number of the stage's random stream.
      phase: shows what is going on.
      check: raises Interrupted when a signal came; called only where nothing is lost.
      say: prints a line on the console.
      drop: writes down something left out, (source, reason).
      snapshot: parameters as they were when the stage began, or as `keep` has kept them since; on
        disk, given back on resume.
      keep: the reference as it is after a step, given the step of the one before: each stays as
        long as a checkpoint may name it.
    """

    model: Model
    processor: Processor
    buckets: Buckets
    folder: Path
    examples: int = 0
    dataset: Dataset | None = None
    unusable: frozenset[int] = frozenset()
    seed: int = 0
    stream: int = 0
    phase: Callable[[str], None] = lambda text: None
    check: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda text: None
    drop: Callable[[str, str], None] = lambda source, reason: None
    snapshot: Callable[[dict], dict] = lambda tree: tree
    keep: Callable[[int, int, dict], None] = lambda step, last, tree: None


class Worker(contextlib.ExitStack):
    """A stage at work; a context manager, whose end is that of what it has started.

    Attributes:
      context: what it gets of the run.
      learners: {name: what learns}; their states are what a checkpoint holds.
      steps: how many it has.
      draws: examples that a step takes.
      scalars: coefficients that move from step to step.
      reference_step: in which the reference moved last; 0 is never.
      resumed: the step after which a checkpoint was taken up, until the next one begins.
      unusable: rows that the stage passes over, known when it has begun.
    """

    def __init__(self, context: Context, learners: dict[str, Learner], steps: int, draws: int):
        super().__init__()
        for name in learners:
            check_name(name, "learner ")
        self.context, self.learners, self.steps, self.draws = context, learners, steps, draws
        self.scalars: dict[str, float] = {}
        self.reference_step = 0
        self.resumed: int | None = None
        self.unusable = context.unusable

    def init(self, params: dict) -> dict[str, TrainState]:
        """Fresh states; `params` are what the stage begins with."""
        return {name: learner.init(params) for name, learner in self.learners.items()}

    def resume(self, step: int, scalars: dict[str, float], reference_step: int) -> None:
        """Takes over what a checkpoint holds beside the states, before `begin`.

        Args:
          step: the last one done.
        """
        self.resumed = step
        self.scalars = {**self.scalars, **scalars}
        self.reference_step = reference_step

    def begin(self, states: dict[str, TrainState]) -> None:
        """Called once with the states that the stage begins or goes on with."""

    def step(
        self, states: dict[str, TrainState], feed: Feed, number: int
    ) -> tuple[dict[str, TrainState], dict[str, float]]:
        """One step of the stage.

        Args:
          states: donated.
          feed: gives its examples.
          number: of the step; names its files.

        Returns:
          The new states, and metrics.
        """
        raise NotImplementedError
