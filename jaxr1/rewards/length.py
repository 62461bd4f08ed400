"""Rewards of the length of a response, in tokens. None pays for every token: that is soon hacked.

soft_overlong    0 -----------------.                     cosine    start -.
                                      ` .                                     ` .
                -1                       `----- (floor)   end                     `-----
                   L - buffer          L                        0                  L
"""

from __future__ import annotations

import math

from jaxr1.rewards.accuracy import accuracy_reward
from jaxr1.rewards.types import Completion, Example


def soft_overlong_reward(
    completion: Completion,
    example: Example | None = None,
    *,
    max_length: int,
    buffer: int,
    floor: bool = True,
) -> float:
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13).

        0                                 up to max_length - buffer tokens
        (max_length - buffer - T) / buffer    beyond, so -1 at max_length

    Args:
      completion: with its length T.
      example: not used; reward functions share one signature.
      max_length: L, in tokens.
      buffer: the tokens before L in which it falls.
      floor: whether it stays at -1 beyond L; False falls on (verl, ms-swift).

    Raises:
      ValueError: a buffer that is not in 1 to max_length, or a completion of unknown length.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(
            f"soft_overlong reward: buffer must be in 1 to max_length ({max_length}), got {buffer}"
        )
    free = max_length - buffer
    value = min(0.0, (free - _length(completion, "soft_overlong")) / buffer)
    return max(-1.0, value) if floor else value


def cosine_reward(
    completion: Completion,
    example: Example,
    *,
    max_length: int,
    correct_start: float = 1.0,
    correct_end: float = 0.5,
    wrong_start: float = -1.0,
    wrong_end: float = -0.5,
    clamp: bool = True,
    tail: bool = True,
) -> float | None:
    """Correct responses had better be short, wrong ones long (arXiv:2502.03373).

        end + (start - end) / 2 x (1 + cos(pi x T / max_length))

    It begins at `start` (T = 0) and reaches `end` at max_length. Whether a response is correct is
    what the accuracy reward says of it.

        TRL        correct 1.0 to 0.5    wrong -1.0 to -0.5
        ms-swift   correct 1.0 to 0.5    wrong -0.5 to 0     without the clamp
        VLM-R1     correct 1.0 to 0.5    wrong 0 to -0.5     max_length 1024

    Args:
      completion: with its length T.
      example: `answer` is the reference.
      max_length: in tokens.
      correct_start, correct_end: of correct responses.
      wrong_start, wrong_end: of wrong ones.
      clamp: whether it stays at `end` beyond max_length; False rises again.
      tail: an option of the accuracy reward.

    Returns:
      None where the reference cannot be parsed.

    Raises:
      ValueError: max_length is not positive, or a completion of unknown length.
    """
    if max_length < 1:
        raise ValueError(f"cosine reward: max_length must be at least 1, got {max_length}")
    right = accuracy_reward(completion, example, tail=tail)
    if right is None:
        return None
    start, end = (correct_start, correct_end) if right else (wrong_start, wrong_end)
    share = _length(completion, "cosine") / max_length
    share = min(share, 1.0) if clamp else share
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def stop_properly_reward(
    completion: Completion, example: Example | None = None, *, cut: float = -1.0
) -> float:
    """0 of a response that ended by itself, `cut` of one that was cut at the length limit.

    It is added to the other rewards; OpenRLHF's coefficient of a like name changes their total.
    """
    return cut if completion.finish_reason == "length" else 0.0


def length_reading(
    completion: Completion, example: Example | None = None, **options: float | bool
) -> str:
    """What the rewards of this file find in a completion, for a message."""
    end = "was cut" if completion.finish_reason == "length" else "ended by itself"
    if not completion.length:
        return f"finds a response that {end}"
    return f"finds {completion.length} tokens in a response that {end}"


def _length(completion: Completion, name: str) -> int:
    if completion.length < 1:
        raise ValueError(f"{name} reward: the completion does not say its length in tokens")
    return completion.length
