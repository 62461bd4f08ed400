"""Grades completions in worker processes that can be killed, while the caller goes on sampling.

    submit(items) -> chunks -> queue -> one thread per worker -> worker process -> grades

Grades come in the order of submission, whatever the number of workers.

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
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from jaxr1.rewards.grades import Failure, Grade, Pending, RewardError, Status, where
from jaxr1.rewards.process import Ended, Forward, Late, Process
from jaxr1.rewards.spec import ResolvedReward, Reward, check_labels
from jaxr1.rewards.types import Completion, Example

MAX_CHUNK = 64  # items in one message
START_SECONDS = 120.0  # for loading the user's files, and for importing sympy on a busy machine
# kills in a row, with nothing ever graded, after which waiting for the rest is pointless
HOPELESS_AFTER = 8

Row = dict[str, Any]  # one item as JSON: {"id": its place in `submit`, "completion", "example"}


@dataclass(frozen=True)
class _Chunk:
    """Items that one worker grades, and where the grades go; graded ones are taken off `rows`."""

    pending: Pending
    rows: list[Row]


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
        self.rewards = self._resolve(rewards, directory or self._scratch or ".")
        self.timeout_s = timeout_s
        self.recycle_after = recycle_after
        described = [reward.to_json() for reward in self.rewards]
        self._hello = {"rewards": described, "memory_gib": memory_gib}
        self._forward = Forward()
        self._queue: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
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

    def _resolve(
        self, rewards: Sequence[Reward], directory: str | os.PathLike[str]
    ) -> list[ResolvedReward]:
        try:
            return [reward.resolve(directory) for reward in rewards]
        except BaseException:
            self._remove_scratch()
            raise

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
        rows: list[Row] = []
        for i, (completion, example) in enumerate(items):
            row = {"id": i, "completion": completion.to_json(), "example": example.to_json()}
            try:
                json.dumps(row)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"item {i}: the example's columns must be JSON values to reach a reward "
                    f"function: {error}"
                ) from None
            rows.append(row)
        examples = len({json.dumps(row["example"]) for row in rows})
        pending = Pending(self.rewards, len(rows), examples, lambda: self._graded_any)
        with self._lock:
            self._open = {p for p in self._open if not p.done()} | {pending}
        # several chunks for each worker, so that a slow item does not hold up much
        size = max(1, min(MAX_CHUNK, -(-len(rows) // (4 * len(self._threads)))))
        for start in range(0, len(rows), size):
            self._queue.put(_Chunk(pending, rows[start : start + size]))
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
            pending.fail(RewardError("the reward pool was closed before all items were graded"))
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

    # --- one thread for each worker -------------------------------------------------------------
    def _run(self) -> None:
        worker: Process | None = None
        try:
            # started ahead of the first item; what fails is said with that item
            with contextlib.suppress(RewardError):
                worker = self._start()
            while (chunk := self._queue.get()) is not None:
                try:
                    worker = self._grade_chunk(worker, chunk)
                except RewardError as error:
                    worker = None
                    chunk.pending.fail(error)
                except Exception as error:  # a bug here must not leave the caller waiting for ever
                    chunk.pending.fail(RewardError(f"the reward pool failed: {error!r}"))
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
            everything = where(self.rewards, -1)
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
        """An error to raise now, and for every further chunk: no other worker would fare better."""
        error = RewardError(text)
        if not self._closed.is_set():
            self._broken = error
        return error

    def _stop(self, worker: Process | None) -> None:
        if worker is not None:
            with self._lock:
                self._live.discard(worker)
            worker.kill()

    def _grade_chunk(self, worker: Process | None, chunk: _Chunk) -> Process | None:
        """Grades all rows, replacing workers as they fail; returns the one that is left."""
        while chunk.rows and not chunk.pending.done() and not self._closed.is_set():
            if worker is None or self._is_used_up(worker):
                self._stop(worker)
                worker = self._start()
            try:
                self._receive_grades(worker, chunk)
            except Late:
                self._stop(worker)
                text = f"{where(self.rewards, worker.at)} took over {self.timeout_s:g} s"
                self._lose(chunk, "timeout", Failure(worker.at, text))
                worker = None
            except Ended:
                text = f"{where(self.rewards, worker.at)}: {worker.describe_end()}"
                self._stop(worker)
                if self._closed.is_set():
                    return None
                self._lose(chunk, "crash", Failure(worker.at, text))
                worker = None
        return worker

    def _is_used_up(self, worker: Process) -> bool:
        return worker.graded >= self.recycle_after or worker.process.poll() is not None

    def _receive_grades(self, worker: Process, chunk: _Chunk) -> None:
        """Sends the rows to a worker, and takes each off when its grade has come.

        Raises:
          Late: the first of the rows left is over its deadline.
          Ended: the worker is gone.
        """
        worker.at = -1
        worker.send({"items": chunk.rows})
        deadline = time.monotonic() + self.timeout_s
        while chunk.rows:
            answer = worker.receive(deadline)
            if "at" in answer:  # which function runs; the item's time goes on
                worker.at = answer["at"]
                continue
            if "loading" in answer:
                deadline = time.monotonic() + START_SECONDS
                continue
            if "loaded" not in answer:
                worker.graded += 1
                worker.at = -1
                self._graded_any |= answer["status"] == "ok"
                self._kills_in_a_row = 0
                self._finish(chunk, answer)
            deadline = time.monotonic() + self.timeout_s

    def _finish(self, chunk: _Chunk, answer: dict[str, Any]) -> None:
        """Hands the first row's grade over, as the worker gave it."""
        values: list[float | None] = answer["values"]
        by_name: dict[str, float | None] = {}
        given = []
        for reward, value in zip(self.rewards, values, strict=True):
            by_name[reward.name] = value
            if value is not None:
                given.append(reward.weight * value)
        index = chunk.rows.pop(0)["id"]
        if answer["status"] == "ok":
            chunk.pending.set_grade(index, Grade(sum(given) if given else None, by_name))
            return
        failure = Failure(answer["reward"], answer["traceback"] or answer["detail"])
        grade = Grade(None, by_name, answer["status"], answer["detail"])
        chunk.pending.set_grade(index, grade, failure)

    def _lose(self, chunk: _Chunk, status: Status, failure: Failure) -> None:
        """Gives the first row up.

        Raises:
          RewardError: so many were lost at the start that the rest is hopeless.
        """
        by_name: dict[str, float | None] = {reward.name: None for reward in self.rewards}
        index = chunk.rows.pop(0)["id"]
        chunk.pending.set_grade(index, Grade(None, by_name, status, failure.text), failure)
        self._kills_in_a_row += 1
        if self._kills_in_a_row >= HOPELESS_AFTER and not self._graded_any:
            raise self._break(
                f"the first {self._kills_in_a_row} items were all lost; "
                f"the reward function {failure.text}"
            )
