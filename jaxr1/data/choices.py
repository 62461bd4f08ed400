"""Multiple-choice questions: shuffled options with letters, listed inline after the question."""

from collections.abc import Sequence

import numpy as np

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def shuffle_options(
    options: Sequence[str], correct: str, rng: np.random.Generator
) -> tuple[list[str], str]:
    """The options in random order, and the letter that the correct one got.

    Raises:
      ValueError: `correct` is not exactly one of the options, or there are more options than
        letters.
    """
    if list(options).count(correct) != 1:
        raise ValueError(f"{correct!r} must be exactly one of the options {list(options)}")
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options are more than there are letters")
    shuffled = [options[i] for i in rng.permutation(len(options))]
    return shuffled, LETTERS[shuffled.index(correct)]


def with_options(question: str, options: Sequence[str]) -> str:
    """The question followed by its options: "Which? Choose from: (A) left (B) right"."""
    listed = " ".join(
        f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)
    )
    return f"{question.strip()} Choose from: {listed}"
