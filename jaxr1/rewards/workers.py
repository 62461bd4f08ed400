"""What worker processes of reward functions may use, and how often an item is tried."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.rewards.spec import Reward


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """Limits of the worker processes that grade, and what becomes of items that they lose.

    Attributes:
      memory_gib: address space of a worker; beyond it a reward function gets MemoryError. None is
        no limit, which functions on a GPU need: CUDA reserves far more addresses than memory.
      devices: the GPUs that workers see, as CUDA_VISIBLE_DEVICES has it ("2,3"). "" is none: a
        reward that happens to use an accelerator library must not take the trainer's memory.
      retries: how often an item is tried again after a timeout, a crash or an exception, before it
        is given up. A judge behind a network wants some.
      retry_wait_s: seconds before the first of these tries; each one after it waits twice as long.
      start_s: seconds for loading the reward functions.
      recycle_after: items after which a worker is replaced (caches of sympy grow, user code leaks).
    """

    memory_gib: float | None = 8.0
    devices: str = ""
    retries: int = 0
    retry_wait_s: float = 1.0
    start_s: float = 120.0
    recycle_after: int = 2000

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, retries=0, retry_wait_s=0, recycle_after=1)
        check_positive(self, "start_s")
        if self.memory_gib is not None:
            check_positive(self, "memory_gib")

    def wait_before(self, tries: int) -> float:
        """Seconds before an item that has been tried so often is tried again."""
        return self.retry_wait_s * 2.0 ** (tries - 1)


class Settings(Protocol):
    """Options of a stage or an evaluation, as far as they are about rewards."""

    @property
    def rewards(self) -> tuple[Reward, ...]: ...
    @property
    def reward_workers(self) -> int: ...
    @property
    def reward_timeout_s(self) -> float: ...
    @property
    def reward_options(self) -> WorkerOptions: ...
