"""Static sizes: everything that compiles, compiles for sizes from here."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from jaxr1.base.checks import check_types
from jaxr1.base.errors import UserError


class TooLong(UserError):
    """A sequence is longer than the largest bucket."""


def geometric(low: int, high: int, ratio: float = 2.0, multiple: int = 8) -> tuple[int, ...]:
    """Sizes from `low` to `high`, each about `ratio` times the last, rounded up to `multiple`."""
    sizes, size = [], float(min(low, high))
    while size < high:
        sizes.append(int(-(-size // multiple) * multiple))
        size *= ratio
    sizes.append(int(-(-high // multiple) * multiple))
    return tuple(sorted(set(sizes)))


def falling(high: int, ratios: Sequence[int], least: int, multiple: int = 8) -> tuple[int, ...]:
    """Sizes down from `high`, each the last over the next ratio (the last ratio goes on).

    None is under `least` but `high` itself; all are rounded up to `multiple`.
    """
    sizes, size = [high], high
    for ratio in itertools.chain(ratios, itertools.repeat(ratios[-1])):
        size = -(-size // ratio)
        if size < least:
            return tuple(sorted({-(-x // multiple) * multiple for x in sizes}))
        sizes.append(size)
    raise AssertionError("ratios are over 1")


def power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def rows_for(count: int, multiple: int) -> int:
    """Rows of a batch for `count` real ones: `multiple` times a power of two."""
    return multiple * power_of_two(-(-count // multiple))


def finely(count: int, multiple: int = 1, ratio: float = 1.25) -> int:
    """The smallest size >= count of a geometric series: padding of at most 1 - 1 / ratio."""
    size = 1
    while size * multiple < count:
        size = max(size + 1, math.floor(size * ratio))
    return size * multiple


def pack_first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `sizes` in bins of `capacity`: largest first, in the first bin with room."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for b, free in enumerate(room):
            if sizes[i] <= free:
                bins[b].append(i)
                room[b] -= sizes[i]
                break
        else:
            bins.append([i])
            room.append(capacity - sizes[i])
    return bins


def bucket(size: int, sizes: Sequence[int], what: str) -> int:
    """The smallest bucket that holds `size`.

    Raises:
      TooLong: none does.
    """
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise TooLong(f"{what} of {size} is over the limit of {max(sizes)}")


def roomy(longest: int, sizes: Sequence[int]) -> int:
    """P of a rollout: a quarter is spare, but in the largest bucket.

    The longest of many prompts is close to the same from step to step. That it fits a smaller
    bucket by chance, once in a hundred steps, is not worth the programs of another P.
    """
    return bucket(max(longest, min(longest * 4 // 3, max(sizes))), sizes, "a prompt")


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The static sizes that arrays may have; whatever compiles, compiles for these.

    Attributes:
      prompt: prompt lengths P in tokens.
      response: strip lengths T (and decode cache sizes) in tokens.
      patches: patch-row lengths M in patches; the largest bounds an image. In a run pictures lie in
        rows of M where one is given, else in one row a device (`inputs.room`).
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    patches: tuple[int, ...]

    @classmethod
    def up_to(cls, prompt: int, response: int, patches: int) -> Buckets:
        """Few sizes up to the limits, for each pair of P and T is another program.

        Strips are filled with whole groups, so that few lengths do.
        """
        return cls(
            falling(prompt, (2, 4), 64),
            falling(response, (4,), 64),
            geometric(16, patches, multiple=16),
        )


@dataclasses.dataclass(frozen=True)
class BucketOptions:
    """Static sizes; () is a few of them up to the stage's (or processor's) limits.

    Attributes:
      prompt: prompt lengths in tokens.
      response: response lengths in tokens.
      patches: patch-row lengths in patches.
    """

    prompt: tuple[int, ...] = ()
    response: tuple[int, ...] = ()
    patches: tuple[int, ...] = ()

    def __post_init__(self):
        check_types(self)

    def build(self, prompt: int, response: int, patches: int) -> Buckets:
        """The sizes given, and a few up to these limits where nothing is given."""
        whole = Buckets.up_to(prompt, response, max(16, patches))
        return Buckets(
            self.prompt or whole.prompt,
            self.response or whole.response,
            self.patches or whole.patches,
        )
