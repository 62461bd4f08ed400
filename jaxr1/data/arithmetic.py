"""Built-in data: arithmetic with real handwritten digits in one picture. Nothing to fetch."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np
from PIL import Image

from jaxr1.data.example import DataError, Dataset, Example

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

_STREAM = 0xA417  # keeps this data set's random draws apart from those of others with the same seed
_TEST_SHARE = 0.22


@dataclass(frozen=True)
class _Operation:
    """What may be asked about digits; `worked` gives what stands before "= answer"."""

    question: str
    answer: Callable[[list[int]], int]
    worked: Callable[[list[int]], str]


_OPERATIONS: Mapping[str, _Operation] = {
    "add": _Operation(
        "What is the sum of the digits in the picture?", sum, lambda d: " + ".join(map(str, d))
    ),
    "product": _Operation(
        "What is the product of the digits in the picture?",
        math.prod,
        lambda d: " * ".join(map(str, d)),
    ),
    "difference": _Operation(
        "What is the difference between the largest and the smallest digit in the picture?",
        lambda d: max(d) - min(d),
        lambda d: f"{max(d)} - {min(d)}",
    ),
    "largest": _Operation(
        "What is the largest digit in the picture?", max, lambda d: f"max {' '.join(map(str, d))}"
    ),
    "smallest": _Operation(
        "What is the smallest digit in the picture?", min, lambda d: f"min {' '.join(map(str, d))}"
    ),
}
OPERATIONS: tuple[str, ...] = tuple(_OPERATIONS)


@dataclass(frozen=True)
class Arithmetic:
    """Pictures of handwritten digits side by side; the question asks for an operation on them.

    Example i is a pure function of (seed, split, start + i) and of the look of the pictures. The
    `test` split composes digits (single pictures of the UCI set) that the `train` split never
    shows: see `digit_split`.

    Attributes:
      count: how many examples.
      split: "train" or "test".
      worked: give every example a `response`, "<think>3 + 5 = 8</think>\\n<answer>8</answer>", for
        a cold start.
      seed: of the whole stream.
      operations: which of `OPERATIONS` to ask for, drawn evenly.
      digits: how many digits a picture shows, 1 to 6.
      pictures: show the digits in a picture; without, the question lists them, for a model of text
        only.
      blank: leave the pictures white but keep questions and answers: a control that must stay at
        chance.
      start: row of the stream to begin with, so that stages can use disjoint rows of one stream.
      cell: height and width of the place of one digit, in pixels.
      noise: standard deviation of the grey noise, in levels of 256.
    """

    count: int
    split: Split = "train"
    worked: bool = False
    seed: int = 0
    operations: tuple[str, ...] = ("add",)
    digits: int = 2
    pictures: bool = True
    blank: bool = False
    start: int = 0
    cell: int = 28
    noise: float = 6.0

    def load(self) -> Dataset:
        """The examples; each picture is drawn when its example is asked for.

        Raises:
          DataError: an option is out of range.
        """
        check_stream(self.count, self.split, self.seed, self.start)
        for operation in self.operations:
            if operation not in _OPERATIONS:
                raise DataError(
                    f"operations: unknown {operation!r}; known are {', '.join(OPERATIONS)}"
                )
        if not self.operations:
            raise DataError(f"operations: none; known are {', '.join(OPERATIONS)}")
        if not 1 <= self.digits <= 6:
            raise DataError(f"digits must be 1 to 6, got {self.digits}")
        if self.cell < 8:
            raise DataError(f"cell must be at least 8 pixels, got {self.cell}")
        if not 0 <= self.noise <= 64:
            raise DataError(f"noise must be 0 to 64 levels, got {self.noise}")
        if self.blank and not self.pictures:
            raise DataError("blank leaves pictures white, but pictures is false")
        name = f"arithmetic-{self.split}"
        if self.blank:
            name += "-blank"
        if not self.pictures:
            name += "-text"
        return Dataset(name, self.count, lambda i: self._example(self.start + i))

    def _example(self, row: int) -> Example:
        rng = np.random.default_rng([_STREAM, self.seed, SPLITS.index(self.split), row])
        name = self.operations[int(rng.integers(len(self.operations)))]
        operation = _OPERATIONS[name]
        values = [int(value) for value in rng.integers(10, size=self.digits)]
        samples = [int(rng.choice(_samples_by_class(self.split)[value])) for value in values]
        answer = str(operation.answer(values))
        response = (
            f"<think>{operation.worked(values)} = {answer}</think>\n<answer>{answer}</answer>"
        )
        if self.pictures:
            picture = np.full((self.cell, self.cell * self.digits, 3), 255, np.uint8)
            if not self.blank:
                picture[:] = self._picture(samples, rng)[..., None]
            parts = [
                {"type": "image", "image": picture},
                {"type": "text", "text": operation.question},
            ]
        else:
            listed = f"the list {', '.join(map(str, values))}"
            question = operation.question.replace("the picture", listed)
            parts = [{"type": "text", "text": f"{question} Answer with one number."}]
        return Example(
            messages=({"role": "user", "content": parts},),
            answer=answer,
            response=response if self.worked else None,
            source=f"arithmetic-{self.split}:{row + 1}",
            metadata={"operation": name, "digits": values, "samples": samples},
        )

    def _picture(self, samples: list[int], rng: np.random.Generator) -> np.ndarray:
        """uint8[cell, cell * digits]: dark ink on light paper, each digit moved inside its cell."""
        image_nhw, _ = _digits()
        side = max(8, round(self.cell * 0.8))
        paper = np.zeros((self.cell, self.cell * len(samples)), np.float32)
        for place, sample in enumerate(samples):
            small = Image.fromarray((image_nhw[sample] * 15).astype(np.uint8))
            ink = small.resize((side, side), Image.Resampling.BICUBIC)
            top, left = rng.integers(self.cell - side + 1, size=2)
            left += place * self.cell
            paper[top : top + side, left : left + side] = np.asarray(ink)
        grey = 248.0 - paper + rng.normal(0.0, self.noise, paper.shape)
        return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def digit_split() -> dict[Split, np.ndarray]:
    """Which of the 1797 digit pictures each split may show, as sorted int64 indices.

    The splits are disjoint, and every class is in both: about 22 % of each go to "test", by one
    fixed permutation, whatever the seed of a data set.
    """
    return {name: np.sort(np.concatenate(_samples_by_class(name))) for name in SPLITS}


def check_stream(count: int, split: str, seed: int, start: int) -> None:
    """Checks the options that all built-in data sets share.

    Raises:
      DataError: one is out of range.
    """
    if count < 1:
        raise DataError(f"count must be at least 1, got {count}")
    if split not in SPLITS:
        raise DataError(f"split must be 'train' or 'test', got {split!r}")
    if seed < 0 or start < 0:
        raise DataError(f"seed and start must not be negative, got {seed} and {start}")


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8[1797, 8, 8] of 0 (paper) to 16 (ink), and uint8[1797] digits."""
    with (
        resources.files("jaxr1.data").joinpath("digits.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return arrays["image"], arrays["label"]


@functools.cache
def _samples_by_class(split: Split) -> tuple[np.ndarray, ...]:
    """For each digit 0 to 9, the indices of its pictures in a split."""
    _, label = _digits()
    rng = np.random.default_rng(_STREAM)
    classes = []
    for digit in range(10):
        shuffled = rng.permutation(np.flatnonzero(label == digit))
        cut = round(_TEST_SHARE * len(shuffled))
        classes.append(shuffled[:cut] if split == "test" else shuffled[cut:])
    return tuple(classes)
