"""Grades completions in worker processes that can be killed, while the caller goes on sampling.

    submit(items) -> chunks -> queue -> one thread per worker -> worker process -> grades

Grades come in the order of submission, whatever the number of workers.

Reward functions are other people's code run on a model's output: they hang, exit, run out of memory
and return NaN. Each item has a deadline, enforced from outside; a worker that overruns it is ended
with its whole process group and replaced, and only that item is lost (all that were sent, where one
call was for all of them). It may be tried again later. What was lost, and why, is in its Grade.
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
from types import TracebackType
from typing import Any

from jaxr1.rewards.grades import Chunk, Failure, Grade, Pending, RewardError, Row, Status, where
from jaxr1.rewards.process import Ended, Forward, Late, Process
from jaxr1.rewards.spec import ResolvedReward, Reward, check_labels
from jaxr1.rewards.types import Completion, Example
from jaxr1.rewards.workers import Settings, WorkerOptions

MAX_CHUNK = 64  # items in one message
IMPORT_SECONDS = 120.0  # for importing sympy on a busy machine
SEND_SECONDS = 60.0  # for a worker that does nothing else to read what it is sent
GRACE_SECONDS = 2.0  # for a worker to end its own awaited calls at their deadline
LOOK_SECONDS = 0.05  # between two looks at items that are to be tried again later
# kills in a row, with nothing ever graded, after which waiting for the rest is pointless
HOPELESS_AFTER = 8


class RewardPool:
    """Worker processes that grade with a list of rewards.

    Args:
      rewards: the components; their names must differ.
      workers: processes.
      timeout_s: seconds for one item, all components together; a call of the batch form has as much
        for all of its items, and each awaited call has it for its own.
      options: what workers may use, and how often an item is tried.
      directory: where the source of notebook functions is written; None for a temporary one.

    Raises:
      ValueError: an unusable reward; see `Reward.resolve`.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        *,
        workers: int = 1,
        timeout_s: float = 10.0,
        options: WorkerOptions = WorkerOptions(),
        directory: str | os.PathLike[str] | None = None,
    ):
        if not rewards:
            raise ValueError("a reward pool needs at least one reward")
        if workers < 1 or not timeout_s > 0:
            raise ValueError(
                f"workers must be at least 1 and timeout_s positive, got {workers}, {timeout_s}"
            )
        check_labels(rewards)
        self._scratch = tempfile.mkdtemp(prefix="jaxr1_rewards_") if directory is None else None
        self.rewards = self._resolve(rewards, directory or self._scratch or ".")
        self.timeout_s = timeout_s
        self.options = options
        self._hello = {
            "rewards": [reward.to_json() for reward in self.rewards],
            "memory_gib": options.memory_gib,
            "timeout_s": timeout_s,
        }
        self._with_ids = any(reward.reads_ids for reward in self.rewards)
        self._forward = Forward()
        self._queue: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
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

    @classmethod
    def of(cls, settings: Settings, directory: str | os.PathLike[str]) -> RewardPool:
        """The pool that the options of a stage or an evaluation describe."""
        return cls(
            settings.rewards,
            workers=settings.reward_workers,
            timeout_s=settings.reward_timeout_s,
            options=settings.reward_options,
            directory=directory,
        )

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
            said = completion.to_json(with_ids=self._with_ids)
            row = {"id": i, "completion": said, "example": example.to_json()}
            try:
                json.dumps(row)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"item {i}: the example's columns must be JSON values to reach a reward "
                    f"function: {error}"
                ) from None
            rows.append(row)
        examples = len({json.dumps(row["example"]) for row in rows})
        pending = Pending(
            self.rewards, len(rows), examples, lambda: self._graded_any, self._deserted
        )
        with self._lock:
            self._open = {p for p in self._open if not p.done()} | {pending}
        # several chunks for each worker, so that a slow item does not hold up much; one where a
        # function grades the items of a chunk at the same time
        share = 1 if any(reward.together for reward in self.rewards) else 4
        size = max(1, min(MAX_CHUNK, -(-len(rows) // (share * len(self._threads)))))
        for start in range(0, len(rows), size):
            self._queue.put(Chunk(pending, rows[start : start + size]))
        return pending

    def grade(self, items: Sequence[tuple[Completion, Example]]) -> list[Grade]:
        """`submit` and wait."""
        return self.submit(items).result()

    def close(self) -> None:
        """Ends the workers. What is not graded yet raises RewardError in `Pending.result`."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._fail_all(RewardError("the reward pool was closed before all items were graded"))
        with self._lock:
            live = list(self._live)
        for _ in self._threads:
            self._queue.put(None)
        for worker in live:  # a thread may be waiting for one of them
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.process.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join(5.0)
        self._remove_scratch()

    def _fail_all(self, error: RewardError) -> None:
        with self._lock:
            waiting = list(self._open)
        for pending in waiting:
            pending.fail(error)

    def _deserted(self) -> RewardError | None:
        """Why nothing will be graded any more; None while there is a thread that grades."""
        if any(thread.is_alive() for thread in self._threads):
            return None
        return self._broken or RewardError("the reward pool has no thread left that grades")

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
                wait = chunk.ready - time.monotonic()
                if wait > 0:  # to the end of the queue: others need not wait with it
                    self._queue.put(chunk)
                    self._closed.wait(min(wait, LOOK_SECONDS))
                    continue
                try:
                    worker = self._grade_chunk(worker, chunk)
                    self._try_again(chunk)
                except RewardError as error:
                    worker = None
                    chunk.pending.fail(error)
                except Exception as error:  # a bug here must not leave the caller waiting for ever
                    chunk.pending.fail(RewardError(f"the reward pool failed: {error!r}"))
                    self._stop(worker)
                    worker = None
        except BaseException as error:  # nobody may wait for a thread that is gone
            self._fail_all(self._break(f"a thread of the reward pool failed: {error!r}"))
        finally:
            self._stop(worker)

    def _try_again(self, chunk: Chunk) -> None:
        """Queues the items of a chunk that get another try."""
        if chunk.again and not chunk.pending.done():
            tries = chunk.tries + 1
            ready = time.monotonic() + self.options.wait_before(tries)
            self._queue.put(Chunk(chunk.pending, chunk.again, tries, ready))

    def _start(self) -> Process:
        """A worker that has loaded all functions.

        Raises:
          RewardError: it cannot.
        """
        if self._broken is not None:
            raise self._broken
        if self._closed.is_set():
            raise RewardError("the reward pool is closed")
        everything = where(self.rewards, -1)
        try:
            worker = Process(self._forward, self.options.devices)
        except (OSError, RuntimeError) as error:  # no descriptor, memory or thread is left
            raise self._break(
                f"a worker process for the reward functions ({everything}) cannot be started: "
                f"{error}"
            ) from error
        with self._lock:
            self._live.add(worker)
        try:
            deadline = time.monotonic() + self.options.start_s
            worker.send(self._hello, deadline)
            answer = worker.receive(deadline)
        except (Late, Ended) as error:
            how = f"took over {self.options.start_s:g} s"
            if isinstance(error, Ended):
                how = worker.describe_end()
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

    def _grade_chunk(self, worker: Process | None, chunk: Chunk) -> Process | None:
        """Grades all rows, replacing workers as they fail; returns the one that is left."""
        while chunk.rows and not chunk.pending.done() and not self._closed.is_set():
            if worker is None or self._is_used_up(worker):
                self._stop(worker)
                worker = self._start()
            try:
                self._receive_grades(worker, chunk)
            except Late as late:
                self._stop(worker)
                how = str(late) or f"took over {self.timeout_s:g} s"
                text = f"{where(self.rewards, worker.at)} {how}"
                self._lose(chunk, worker, "timeout", text)
                worker = None
            except Ended:
                text = f"{where(self.rewards, worker.at)}: {worker.describe_end()}"
                self._stop(worker)
                if self._closed.is_set():
                    return None
                self._lose(chunk, worker, "crash", text)
                worker = None
        return worker

    def _is_used_up(self, worker: Process) -> bool:
        return worker.graded >= self.options.recycle_after or worker.process.poll() is not None

    def _receive_grades(self, worker: Process, chunk: Chunk) -> None:
        """Sends the rows to a worker, and takes each off when its grade has come.

        Raises:
          Late: the first of the rows left is over its deadline, or all are (`worker.together`).
          Ended: the worker is gone.
        """
        worker.at, worker.together = -1, False
        try:
            worker.send({"items": chunk.rows}, time.monotonic() + SEND_SECONDS)
        except Late:
            raise Late(f"read nothing for {SEND_SECONDS:g} s") from None
        deadline = time.monotonic() + self.timeout_s
        while chunk.rows:
            answer = worker.receive(deadline)
            if "together" in answer:  # a call for all items has a deadline of its own
                worker.at, worker.together = answer["at"], answer["together"]
                grace = GRACE_SECONDS if worker.together else 0.0
                deadline = time.monotonic() + self.timeout_s + grace
                continue
            if "at" in answer:  # which function runs; the item's time goes on
                worker.at = answer["at"]
                continue
            if "loading" in answer:
                deadline = time.monotonic() + IMPORT_SECONDS
                continue
            if "loaded" not in answer:
                worker.graded += 1
                worker.at = -1
                self._graded_any |= answer["status"] == "ok"
                self._kills_in_a_row = 0
                self._finish(chunk, answer)
            deadline = time.monotonic() + self.timeout_s

    def _finish(self, chunk: Chunk, answer: dict[str, Any]) -> None:
        """Hands the first row's grade over, as the worker gave it."""
        values: list[float | None] = answer["values"]
        by_name: dict[str, float | None] = {}
        given = []
        for reward, value, parts in zip(self.rewards, values, answer["parts"], strict=True):
            by_name[reward.name] = value
            by_name |= {f"{reward.name}/{part}": number for part, number in parts.items()}
            if value is not None:
                given.append(reward.weight * value)
        row = chunk.rows.pop(0)
        if answer["status"] == "ok":
            chunk.pending.set_grade(row["id"], Grade(sum(given) if given else None, by_name))
            return
        failure = Failure(answer["reward"], answer.get("traceback") or answer["detail"])
        grade = Grade(None, by_name, answer["status"], answer["detail"])
        self._give_up(chunk, row, grade, failure)

    def _give_up(self, chunk: Chunk, row: Row, grade: Grade, failure: Failure) -> None:
        """Hands over that an item has no grade, unless it gets another try."""
        # the same text gives the same NaN
        if grade.status != "nan" and chunk.tries < self.options.retries:
            chunk.again.append(row)
            return
        if chunk.tries:
            grade.detail += f" (tried {chunk.tries + 1} times)"
        chunk.pending.set_grade(row["id"], grade, failure)

    def _lose(self, chunk: Chunk, worker: Process, status: Status, text: str) -> None:
        """Gives the first row up, or all where the worker was in a call for all of them.

        Raises:
          RewardError: so many were lost at the start that the rest is hopeless.
        """
        failure = Failure(worker.at, text)
        for _ in range(len(chunk.rows) if worker.together else 1):
            by_name: dict[str, float | None] = {reward.name: None for reward in self.rewards}
            self._give_up(chunk, chunk.rows.pop(0), Grade(None, by_name, status, text), failure)
        if chunk.tries < self.options.retries:
            return
        self._kills_in_a_row += 1
        if self._kills_in_a_row >= HOPELESS_AFTER and not self._graded_any:
            raise self._break(
                f"the first {self._kills_in_a_row} items were all lost; "
                f"the reward function {failure.text}"
            )
