"""The host's work, done in threads before its results are asked for.

What takes long about media (reading, decoding, resizing, hashing, copying) lets go of the
interpreter, so threads of this process suffice, and nothing is copied between processes. Results
come by key, in the order that they are asked for: how many threads there are changes nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

THREAD_NAME = "jaxr1-ahead"
MOST_THREADS = 32

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Ahead(contextlib.AbstractContextManager, Generic[Key, Result]):
    """A function of keys, called in threads; a context manager, whose end is theirs.

    What the function raises is raised where its result is taken, and nowhere else.
    """

    def __init__(self, work: Callable[[Key], Result], threads: int | None = None):
        """Starts no thread before there is work.

        Args:
          work: a function of the key alone, which threads may call at once.
          threads: None is one for each core.
        """
        self.work, self.threads = work, threads or min(cores(), MOST_THREADS)
        self._begun: dict[Key, concurrent.futures.Future[Result]] = {}
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        """Results that were begun, and not taken."""
        return len(self._begun)

    def start(self, keys: Iterable[Key]) -> None:
        """Begins these, in order, but for those begun already."""
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self.threads, THREAD_NAME)
        for key in keys:
            if key not in self._begun:
                self._begun[key] = self._pool.submit(self.work, key)

    def take(self, key: Key) -> Result:
        """The result of one key, which is forgotten; it is waited for, or begun only now."""
        self.start([key])
        return self._begun.pop(key).result()

    def forget(self, keys: Iterable[Key] | None = None) -> None:
        """Gives up these, where they were begun; None is all."""
        for key in list(self._begun if keys is None else keys):
            if (begun := self._begun.pop(key, None)) is not None:
                begun.cancel()

    def close(self) -> None:
        """Gives everything up, and ends the threads when each has done what it was at."""
        self.forget()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __exit__(self, *_) -> None:
        self.close()


def in_batches(
    work: Callable[[Key], Result], batches: Iterable[Iterable[Key]], threads: int | None = None
) -> Iterator[list[Result]]:
    """The results of one batch of keys after the other.

    While one is used the next is worked on, so that two are in memory. Arguments as of `Ahead`.
    """
    listed = [list(batch) for batch in batches]
    with Ahead(work, threads) as ahead:
        for batch, following in itertools.pairwise([*listed, []]):
            ahead.start(batch)
            found = [ahead.take(key) for key in batch]
            ahead.start(following)
            yield found
