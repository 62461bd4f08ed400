"""When a run is saved, and what is left of it where it ends before its time."""

from __future__ import annotations

import contextlib
import time

import jax

from jaxr1.base.errors import UserError
from jaxr1.data import DataError
from jaxr1.parallel import agree, failed_alike
from jaxr1.rewards.grades import RewardError
from jaxr1.rl.learner import TrainState
from jaxr1.run.console import format_seconds
from jaxr1.run.opening import Opened
from jaxr1.run.state import Progress, SaveError
from jaxr1.sampling.sampler import NotFiniteError
from jaxr1.stages.options import Stage

States = dict[str, TrainState]

# Nothing is saved after these: the run is to stop at once, the disk is full, or the state is what
# has gone wrong.
UNSAVED = (KeyboardInterrupt, SaveError, NotFiniteError)
MENDED = (
    "with the data or the reward mended the same command goes on from there (--override-resume "
    "where the configuration, a file of rows or a reward file is another). Another number of rows "
    "changes the order in which they are drawn from there on"
)


class DivergedError(UserError):
    """A stage that has learned nothing for many steps."""


def intact(states: States) -> bool:
    """Whether the arrays are still there: the first update of a step takes them over."""
    return not any(x.is_deleted() for x in jax.tree.leaves(states))


def check_skipped(stage: Stage, progress: Progress) -> None:
    """Raises DivergedError where too many steps in a row had no finite gradient."""
    if 0 < stage.max_skipped_steps <= progress.skipped:
        raise DivergedError(
            f"stage {stage.name!r}, step {progress.step}: the gradient was not finite in "
            f"{progress.skipped} steps in a row (max_skipped_steps is {stage.max_skipped_steps}). "
            "These steps were skipped, the parameters are those before them: go on with a smaller "
            "learning_rate (--override-resume), or from other data"
        )


class Saver:
    """The checkpoints of a run in their order.

    Attributes:
      saved_at: total step of the latest checkpoint, None without one.
      said: what was made of the run when it ended.
      is_trained: only the export and the report are left.
    """

    def __init__(self, at: Opened):
        self.at, self.config = at, at.config
        self.saved_at, self.said = at.saved_at, ""
        self.since, self.is_trained = time.monotonic(), False

    def notice(self, name: str, progress: Progress) -> None:
        """Says what a signal does now, and how long that may take."""
        console, lost = self.at.console, self.unsaved(progress)
        if self.is_trained:
            console.print(f"{name}: export and report are finished first; once more stops at once")
            return
        seconds = console.step_seconds_left()
        left = "" if seconds is None else f" ({format_seconds(seconds)} left, by the last steps)"
        console.print(
            f"{name}: saving and stopping; a step whose update has begun is finished first{left}. "
            f"Once more stops at once, and loses {_counted(lost)}"
        )

    def due(self, stage: Stage, step: int, is_last: bool) -> bool:
        """Whether a checkpoint follows a step of a stage."""
        minutes = self.config.save_minutes
        is_late = minutes > 0 and time.monotonic() - self.since >= 60 * minutes
        is_late = bool(agree([int(is_late)])[0])
        return is_last or is_late or bool(stage.save_every and step % stage.save_every == 0)

    def save(self, states: States, progress: Progress) -> None:
        """A checkpoint of the last complete step, with the lengths of the append-only files.

        Nothing is written where there is one already, or where nothing was trained.
        """
        if self.saved_at == progress.total_step:
            return
        if not progress.total_step and not self.config.save_first:
            return
        metrics, dropped = self.at.metrics.tell(), self.at.dropped.tell()
        progress.offsets = {"metrics.jsonl": metrics, "dropped.jsonl": dropped}
        self.at.checkpoints.save(states, progress, self.at.resolved)
        self.saved_at, self.since = progress.total_step, time.monotonic()

    def unsaved(self, progress: Progress) -> int:
        """Complete steps that no checkpoint holds."""
        return progress.total_step - (self.saved_at or 0)

    def stopped(self, states: States, progress: Progress) -> None:
        """Saves what a step began with that a signal has ended; on disk when this returns."""
        self.save(states, progress)
        self.at.checkpoints.wait()
        if self.saved_at is None:
            self.said = "nothing was trained yet; the same command begins again"
        else:
            self.said = f"{self._saved()}; the same command resumes"

    def failed(self, error: BaseException, states: States, progress: Progress) -> None:
        """Saves what a step began with that an error has ended, or says what is lost.

        All hosts must have come here to save: one alone waits for them in vain.
        """
        alike = failed_alike(error)
        with contextlib.suppress(SaveError):  # the error that is on its way matters more
            if alike and not isinstance(error, UNSAVED) and intact(states):
                self.save(states, progress)
            if alike:
                self.at.checkpoints.wait()
        self.saved_at = max(self.at.checkpoints.steps_on_disk(), default=None)
        lost = self.unsaved(progress)
        if isinstance(error, UNSAVED) or lost or not intact(states) or not alike:
            self.said = self._lost(lost)
        elif not progress.total_step:
            return  # nothing was trained: the error says all
        elif isinstance(error, DataError | RewardError):
            self.said = f"{self._saved()}: {MENDED}"
        else:
            self.said = f"{self._saved()}; the same command goes on from there"
        self.at.console.print(self.said)

    def _saved(self) -> str:
        return f"saved at step {self.saved_at} of {self.at.dir}"

    def _lost(self, steps: int) -> str:
        """What is said where the state of the last step is not kept."""
        if self.saved_at is None:
            return f"{self.at.dir} has no checkpoint yet: {_counted(steps)} are lost"
        last = f"the last checkpoint of {self.at.dir} is of step {self.saved_at}"
        return f"{last}: {_counted(steps)} after it are lost; the same command goes on from there"


def _counted(steps: int) -> str:
    return f"{steps} complete step{'' if steps == 1 else 's'} and the one that was begun"
