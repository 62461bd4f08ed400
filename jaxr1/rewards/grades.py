"""Grades: the rewards of one completion, and those still on their way from the workers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxr1.base.errors import UserError
from jaxr1.rewards.spec import ResolvedReward

Status = Literal["ok", "timeout", "crash", "error", "nan"]


class RewardError(UserError):
    """A reward function that does not load, or fails for every item; names function and file."""


@dataclass
class Grade:
    """The reward of one completion.

    Attributes:
      total: sum of weight x value over the components that gave a value; None if none did, or if
        the status is not "ok": the sample then stays out of its group's baseline.
      by_name: the unweighted value of every reward, None where it gave none; and under
        "<reward>/<component>" those components that its function told of.
      status: "ok"; "timeout" (over its deadline), "crash" (the worker process ended), "error" (an
        exception, or a value that is no number), "nan" (NaN or infinite).
      detail: for people: function, file, and the last line of the traceback.
    """

    total: float | None
    by_name: dict[str, float | None]
    status: Status = "ok"
    detail: str = ""


@dataclass(frozen=True)
class Failure:
    """Why an item has no grade.

    Attributes:
      reward: index of the component that failed, -1 if it is not known.
      text: the traceback, or a description.
    """

    reward: int
    text: str


LOOK_SECONDS = 1.0  # between two looks whether those who grade are still there


class Pending:
    """Grades on their way; made by `RewardPool.submit`."""

    def __init__(
        self,
        rewards: Sequence[ResolvedReward],
        count: int,
        examples: int = 2,
        worked: Callable[[], bool] = lambda: False,
        deserted: Callable[[], RewardError | None] = lambda: None,
    ):
        """An empty place for each grade.

        Args:
          rewards: the components.
          count: items to wait for.
          examples: how many different examples the items have.
          worked: tells whether the pool has ever graded an item.
          deserted: tells why nothing will be graded any more, None while there is who does it.
        """
        self._rewards, self._examples, self._worked = rewards, examples, worked
        self._deserted = deserted
        self._grades: list[Grade | None] = [None] * count
        self._failures: dict[int, Failure] = {}
        self._error: RewardError | None = None
        self._left = count
        self._lock = threading.Lock()
        self._done = threading.Event()
        if count == 0:
            self._done.set()

    def done(self) -> bool:
        """Whether `result` would return (or raise) at once; also where nobody is left to grade."""
        if not self._done.is_set() and (error := self._deserted()) is not None:
            self.fail(error)
        return self._done.is_set()

    def result(self, timeout_s: float | None = None) -> list[Grade]:
        """Waits for all grades; they are in the order of the submitted items.

        Raises:
          RewardError: a function does not load, no worker can be started, or the same function
            failed for every item (two or more) and that is a bug in it, not bad luck: nothing was
            ever graded, or it raised an exception for different examples. (One example that always
            hangs costs only its own samples.) The message names function and file and holds the
            first traceback.
          TimeoutError: `timeout_s` seconds have passed.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not self.done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"{self._left} of {len(self._grades)} items are not graded after {timeout_s} s"
                )
            self._done.wait(min(left, LOOK_SECONDS))
        if self._error is not None:
            raise self._error
        grades = [grade for grade in self._grades if grade is not None]
        if self._is_bug(grades):
            first = self._failures[min(self._failures)]
            raise RewardError(
                f"the reward function {where(self._rewards, first.reward)} failed for all "
                f"{len(grades)} items; the first:\n{first.text}"
            )
        return grades

    def set_grade(self, index: int, grade: Grade, failure: Failure | None = None) -> None:
        """Puts a grade in its place, with the failure behind it; the first one to come counts."""
        with self._lock:
            if self._grades[index] is not None:
                return
            self._grades[index] = grade
            if failure is not None:
                self._failures[index] = failure
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def fail(self, error: RewardError) -> None:
        """Ends the waiting: `result` raises this error, unless all grades are there."""
        with self._lock:
            if not self._done.is_set():
                self._error = error
                self._done.set()

    def _is_bug(self, grades: Sequence[Grade]) -> bool:
        """Whether every item failed in a way that shows a bug in one reward function."""
        if len(grades) < 2 or len(self._failures) < len(grades):
            return False
        culprits = {failure.reward for failure in self._failures.values()}
        raised = self._examples >= 2 and all(grade.status == "error" for grade in grades)
        return len(culprits) == 1 and (raised or not self._worked())


Row = dict[str, Any]
"""One item as JSON: {"id": its place in `RewardPool.submit`, "completion", "example"}."""


@dataclass(frozen=True)
class Chunk:
    """Items that one worker grades, and where the grades go.

    Attributes:
      pending: gets the grades.
      rows: the items; graded and lost ones are taken off.
      tries: how often they have been tried before.
      ready: when they may be tried, in seconds of time.monotonic().
      again: those that are to be tried again.
    """

    pending: Pending
    rows: list[Row]
    tries: int = 0
    ready: float = 0.0
    again: list[Row] = field(default_factory=list)


def where(rewards: Sequence[ResolvedReward], index: int) -> str:
    """How messages call the reward function at an index; all of them where it is -1, not known."""
    if index >= 0:
        return rewards[index].where
    return " or ".join(reward.where for reward in rewards)
