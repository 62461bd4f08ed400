"""The repetition reward: how much of a response has been said before in it."""

from __future__ import annotations

from jaxr1.rewards.types import Completion, Example


def repetition_reward(
    completion: Completion,
    example: Example | None = None,
    *,
    ngram: int = 3,
    penalty: float = -1.0,
    lower: bool = True,
) -> float:
    """penalty x (1 - different n-grams / n-grams) over the words of a response (arXiv:2502.03373).

    Words are what whitespace divides. A response of fewer than `ngram` words gets 0.

    Args:
      completion: its text, with the template's prefix.
      example: not used; reward functions share one signature.
      ngram: words of an n-gram: 3 in TRL and ms-swift, 6 in VLM-R1.
      penalty: of a response that says one n-gram for ever; 0 at most.
      lower: whether upper and lower case are the same (ms-swift).

    Raises:
      ValueError: ngram is less than 1, or penalty is over 0.
    """
    if ngram < 1:
        raise ValueError(f"repetition reward: ngram must be at least 1, got {ngram}")
    if penalty > 0:
        raise ValueError(f"repetition reward: penalty must be 0 at most, got {penalty}")
    said, different = _ngrams(completion, ngram, lower)
    return penalty * (1 - different / said) if said else 0.0


def repetition_reading(
    completion: Completion,
    example: Example | None = None,
    *,
    ngram: int = 3,
    penalty: float = -1.0,
    lower: bool = True,
) -> str:
    """What the repetition reward finds in a completion, for a message; arguments as of it."""
    said, different = _ngrams(completion, ngram, lower)
    return f"finds {said} runs of {ngram} words, {different} of them different"


def _ngrams(completion: Completion, ngram: int, lower: bool) -> tuple[int, int]:
    """How many n-grams a response has, and how many different ones."""
    words = (completion.text.lower() if lower else completion.text).split()
    found = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    return len(found), len(set(found))
