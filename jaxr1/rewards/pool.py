"""Grades completions in worker processes that can be killed, while the caller goes on sampling.

    submit(items) -> chunks -> queue -> one thread per worker -> worker process -> grades, in the
    order of submission

Reward functions are other people's code run on a model's output: they hang, exit, run out of memory
and return NaN. Each item has a deadline, enforced from outside; a worker that overruns it is ended
with its whole process group and replaced, and only that item is lost. What was lost, and why, is in
its Grade.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from jaxr1.base.errors import UserError
from jaxr1.rewards.process import Ended, Forward, Late, Process
from jaxr1.rewards.spec import ResolvedReward, Reward, check_labels
from jaxr1.rewards.types import Completion, Example

Status = Literal["ok", "timeout", "crash", "error", "nan"]

MAX_CHUNK = 64  # items in one message
START_SECONDS = 120.0  # for loading the user's files, and for importing sympy on a busy machine
HOPELESS_AFTER = (
    8  # kills in a row, with nothing ever graded, after which waiting for the rest is pointless
)


class RewardError(UserError):
    """A reward function that cannot work: it does not load, or fails for every item. Names function
    and file.
    """


@dataclass
class Grade:
    """The reward of one completion.

    Attributes:
      total: sum of weight x value over the components that gave a value; None if none did, or if
        the status is not "ok": the sample then stays out of its group's baseline.
      by_name: the unweighted value of every component, None where it gave none.
      status: "ok"; "timeout" (over its deadline), "crash" (the worker process ended), "error" (an
        exception, or a value that is no number), "nan" (NaN or infinite).
      detail: for people: function, file, and the last line of the traceback.
    """

    total: float | None
    by_name: dict[str, float | None]
    status: Status = "ok"
    detail: str = ""


@dataclass
class _Failure:
    reward: int  # index of the component, -1 if not known
    text: str  # traceback or description


class Pending:
    """Grades on their way; made by `RewardPool.submit`."""

    def __init__(
        self,
        rewards: Sequence[ResolvedReward],
        count: int,
        examples: int = 2,
        worked: Callable[[], bool] = lambda: False,
    ):
        """Args: how many different `examples` the items have; whether the pool has ever graded an
        item (`worked`).
        """
        self._rewards, self._examples, self._worked = rewards, examples, worked
        self._grades: list[Grade | None] = [None] * count
        self._failures: dict[int, _Failure] = {}
        self._error: RewardError | None = None
        self._left = count
        self._lock = threading.Lock()
        self._done = threading.Event()
        if count == 0:
            self._done.set()

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._done.is_set()

    def result(self, timeout_s: float | None = None) -> list[Grade]:
        """Waits for all grades; they are in the order of the submitted items.

        Raises:
          RewardError: a function does not load, or the same one failed for every item (two or more)
            and that is a bug in it, not bad luck: nothing was ever graded, or it raised an
            exception for different examples. (One example that always hangs costs only its own
            samples.) The message names function and file and holds the first traceback.
          TimeoutError: `timeout_s` seconds have passed.
        """
        if not self._done.wait(timeout_s):
            raise TimeoutError(
                f"{self._left} of {len(self._grades)} items are not graded after {timeout_s} s"
            )
        if self._error is not None:
            raise self._error
        grades = [grade for grade in self._grades if grade is not None]
        culprits = {failure.reward for failure in self._failures.values()}
        raised = self._examples >= 2 and all(grade.status == "error" for grade in grades)
        if (
            len(grades) >= 2
            and len(self._failures) == len(grades)
            and len(culprits) == 1
            and (raised or not self._worked())
        ):
            first = self._failures[min(self._failures)]
            raise RewardError(
                f"the reward function {_where(self._rewards, first.reward)} failed for all {len(grades)} items; "
                f"the first:\n{first.text}"
            )
        return grades

    def _set(self, index: int, grade: Grade, failure: _Failure | None) -> None:
        with self._lock:
            if self._grades[index] is not None:
                return
            self._grades[index] = grade
            if failure is not None:
                self._failures[index] = failure
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def _fail(self, error: RewardError) -> None:
        with self._lock:
            if not self._done.is_set():
                self._error = error
                self._done.set()


def wait_for(pending: Sequence[Pending], check: Callable[[], None]) -> list[Grade]:
    """All grades, in the order of submission; what `check` raises ends the waiting."""
    grades: list[Grade] = []
    for one in pending:
        while not one.done():
            check()
            time.sleep(0.001)
        grades += one.result()
    return grades


def _where(rewards: Sequence[ResolvedReward], index: int) -> str:
    if index >= 0:
        return rewards[index].where
    return " or ".join(reward.where for reward in rewards)


class RewardPool:
    """Worker processes that grade with a list of rewards.

    Args:
      rewards: the components; their names must differ.
      workers: processes.
      timeout_s: seconds for one item, all components together.
      recycle_after: items after which a worker is replaced (caches of sympy grow, user code leaks).
      directory: where the source of notebook functions is written; None for a temporary one.
      memory_gib: address space of a worker; beyond it a reward function gets MemoryError. None for
        no limit.

    Raises:
      ValueError: an unusable reward; see `Reward.resolve`.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        *,
        workers: int = 1,
        timeout_s: float = 10.0,
        recycle_after: int = 2000,
        directory: str | os.PathLike[str] | None = None,
        memory_gib: float | None = 8.0,
    ):
        if not rewards:
            raise ValueError("a reward pool needs at least one reward")
        if workers < 1 or recycle_after < 1 or not timeout_s > 0:
            raise ValueError(
                f"workers and recycle_after must be at least 1 and timeout_s positive, "
                f"got {workers}, {recycle_after}, {timeout_s}"
            )
        check_labels(rewards)
        self._scratch = tempfile.mkdtemp(prefix="jaxr1_rewards_") if directory is None else None
        try:
            self.rewards = [reward.resolve(directory or self._scratch or ".") for reward in rewards]
        except BaseException:
            self._remove_scratch()
            raise
        self.timeout_s = timeout_s
        self.recycle_after = recycle_after
        self._hello = {
            "rewards": [reward.to_json() for reward in self.rewards],
            "memory_gib": memory_gib,
        }
        self._forward = Forward()
        self._queue: queue.SimpleQueue[tuple[Pending, list[tuple[int, dict[str, Any]]]] | None] = (
            queue.SimpleQueue()
        )
        self._closed = threading.Event()
        self._broken: RewardError | None = None
        self._open: set[Pending] = set()
        self._lock = threading.Lock()
        self._live: set[Process] = set()
        self._graded_any = False
        self._kills_in_a_row = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"jaxr1-reward-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, items: Sequence[tuple[Completion, Example]]) -> Pending:
        """Starts grading and returns at once.

        Raises:
          RewardError: the pool is closed.
          ValueError: an example's metadata is not JSON; names its place in `items`.
        """
        if self._closed.is_set():
            raise RewardError("the reward pool is closed")
        rows = []
        for i, (completion, example) in enumerate(items):
            row = {"id": i, "completion": completion.to_json(), "example": example.to_json()}
            try:
                json.dumps(row)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"item {i}: the example's columns must be JSON values to reach a reward function: {error}"
                ) from None
            rows.append((i, row))
        examples = len({json.dumps(row["example"]) for _, row in rows})
        pending = Pending(self.rewards, len(rows), examples, lambda: self._graded_any)
        with self._lock:
            self._open = {p for p in self._open if not p.done()} | {pending}
        # several chunks for each worker, so that a slow item does not hold up much
        size = max(1, min(MAX_CHUNK, -(-len(rows) // (4 * len(self._threads)))))
        for start in range(0, len(rows), size):
            self._queue.put((pending, rows[start : start + size]))
        return pending

    def grade(self, items: Sequence[tuple[Completion, Example]]) -> list[Grade]:
        """`submit` and wait."""
        return self.submit(items).result()

    def close(self) -> None:
        """Ends the workers. What is not graded yet raises RewardError in `Pending.result`."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock:
            waiting, live = list(self._open), list(self._live)
        for pending in waiting:
            pending._fail(RewardError("the reward pool was closed before all items were graded"))
        for _ in self._threads:
            self._queue.put(None)
        for worker in live:  # a thread may be waiting for one of them
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.process.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join(5.0)
        self._remove_scratch()

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    # --- one thread for each worker
    # ---------------------------------------------------------------------------------

    def _run(self) -> None:
        worker: Process | None = None
        try:
            with contextlib.suppress(
                RewardError
            ):  # started ahead of the first item; what fails is said with that item
                worker = self._start()
            while (job := self._queue.get()) is not None:
                pending, rows = job
                try:
                    worker = self._grade_chunk(worker, pending, rows)
                except RewardError as error:
                    worker = None
                    pending._fail(error)
                except Exception as error:  # a bug here must not leave the caller waiting for ever
                    pending._fail(RewardError(f"the reward pool failed: {error!r}"))
                    self._stop(worker)
                    worker = None
        finally:
            self._stop(worker)

    def _start(self) -> Process:
        """A worker that has loaded all functions.

        Raises:
          RewardError: it cannot.
        """
        if self._broken is not None:
            raise self._broken
        if self._closed.is_set():
            raise RewardError("the reward pool is closed")
        worker = None
        try:
            worker = Process(self._hello, self._forward)
            with self._lock:
                self._live.add(worker)
            answer = worker.receive(time.monotonic() + START_SECONDS)
        except (Late, Ended) as error:
            everything = _where(self.rewards, -1)
            how = f"took over {START_SECONDS:.0f} s" if isinstance(error, Late) else ""
            how = how or (worker.describe_end() if worker else "the worker did not start")
            self._stop(worker)
            raise self._break(
                f"loading the reward functions ({everything}) failed: {how}"
            ) from None
        if "failed" in answer:
            failed = answer["failed"]
            self._stop(worker)
            raise self._break(
                f"the reward function {failed['where']} cannot be loaded:\n{failed['traceback']}"
            )
        return worker

    def _break(self, text: str) -> RewardError:
        error = RewardError(text)
        if not self._closed.is_set():
            self._broken = error
        return error

    def _stop(self, worker: Process | None) -> None:
        if worker is not None:
            with self._lock:
                self._live.discard(worker)
            worker.kill()

    def _grade_chunk(
        self, worker: Process | None, pending: Pending, rows: list[tuple[int, dict[str, Any]]]
    ) -> Process | None:
        """Grades all rows, replacing workers as they fail; returns the one that is left."""
        while rows and not pending.done() and not self._closed.is_set():
            if worker is not None and (
                worker.graded >= self.recycle_after or worker.process.poll() is not None
            ):
                self._stop(worker)
                worker = None
            if worker is None:
                worker = self._start()
            at = -1
            try:
                worker.send({"items": [row for _, row in rows]})
                deadline = time.monotonic() + self.timeout_s
                while rows:
                    answer = worker.receive(deadline)
                    if "at" in answer:  # which function runs; the item's time goes on
                        at = answer["at"]
                        continue
                    if "loading" in answer:
                        deadline = time.monotonic() + START_SECONDS
                        continue
                    if "loaded" not in answer:
                        worker.graded += 1
                        self._graded_any |= answer["status"] == "ok"
                        self._kills_in_a_row = 0
                        self._finish(pending, rows.pop(0)[0], answer)
                        at = -1
                    deadline = time.monotonic() + self.timeout_s
            except Late:
                self._stop(worker)
                text = f"{_where(self.rewards, at)} took over {self.timeout_s:g} s"
                self._lose(pending, rows.pop(0)[0], "timeout", text, at)
                worker = None
            except Ended:
                text = f"{_where(self.rewards, at)}: {worker.describe_end()}"
                self._stop(worker)
                if self._closed.is_set():
                    return None
                self._lose(pending, rows.pop(0)[0], "crash", text, at)
                worker = None
        return worker

    def _finish(self, pending: Pending, index: int, answer: dict[str, Any]) -> None:
        values: list[float | None] = answer["values"]
        by_name = {reward.name: value for reward, value in zip(self.rewards, values, strict=True)}
        status: Status = answer["status"]
        if status != "ok":
            text = answer["traceback"] or answer["detail"]
            failure = _Failure(answer["reward"], text)
            pending._set(index, Grade(None, by_name, status, answer["detail"]), failure)
            return
        given = [
            reward.weight * value
            for reward, value in zip(self.rewards, values, strict=True)
            if value is not None
        ]
        pending._set(index, Grade(sum(given) if given else None, by_name), None)

    def _lose(self, pending: Pending, index: int, status: Status, text: str, at: int) -> None:
        by_name: dict[str, float | None] = {reward.name: None for reward in self.rewards}
        pending._set(index, Grade(None, by_name, status, text), _Failure(at, text))
        self._kills_in_a_row += 1
        if self._kills_in_a_row >= HOPELESS_AFTER and not self._graded_any:
            error = (
                f"the first {self._kills_in_a_row} items were all lost; the reward function {text}"
            )
            raise self._break(error)
