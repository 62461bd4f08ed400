"""Grades, waited for: every host grades the responses to its own prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from jaxr1.parallel import gather, together, wait_until
from jaxr1.rewards.grades import Grade, Pending
from jaxr1.rewards.pool import RewardPool
from jaxr1.rl.episodes import Episodes


def submit(pool: RewardPool, episodes: Episodes) -> Pending:
    """This host's responses, handed to its graders; what one host's pool raises all raise."""
    return together(lambda: pool.submit(episodes.items()))


def wait_for(pending: Sequence[Pending], check: Callable[[], None]) -> list[list[Grade]]:
    """The grades of each host, in the order of submission; what `check` raises ends the waiting."""
    wait_until(lambda: all(one.done() for one in pending), check)
    results = lambda: list(itertools.chain.from_iterable(one.result() for one in pending))
    return gather(results, Grade)
