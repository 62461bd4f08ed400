"""Draws as hosts tell them to one another: everything but the pixels.

owner    prompt in numbers, pixels, question, answer, ...
others   prompt in numbers, blanks, question, answer, ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxr1.data.example import Example
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.levels import Levels
from jaxr1.inputs.patches import blank
from jaxr1.parallel import gather, host_count, host_index


@dataclasses.dataclass(frozen=True)
class Draw:
    """One draw of an example.

    Attributes:
      position: in the order of draws; it keys the random draws of this prompt, so that a row met
        again is drawn anew.
      row: in the data set.
      example: on other hosts than the prompt's its question stands for its messages.
      response: token ids of the response that is trained on.
      problem: what is wrong with the example, which is drawn all the same; None: nothing.
      rejected: token ids of the worse one beside it.
    """

    position: int
    row: int
    example: Example
    prompt: EncodedPrompt
    response: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    problem: str | None = None
    rejected: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def is_own(self) -> bool:
        """Whether this host has its pixels, decodes its responses and grades them."""
        return self.prompt.host == host_index()


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A row that cannot be used, in a data set that leaves such rows out."""

    source: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Told:
    """A draw on its way: without messages and metadata, shapes in the place of its patches."""

    draw: Draw
    shapes: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, draw: Draw) -> Told:
        seen = draw.example
        asked = ({"role": "user", "content": seen.question},)
        return cls(
            dataclasses.replace(
                draw,
                example=Example(asked, seen.answer, seen.response, seen.source),
                prompt=dataclasses.replace(draw.prompt, patches=()),
            ),
            tuple((patches.shape, str(patches.dtype)) for patches in draw.prompt.patches),
        )

    def heard(self) -> Draw:
        patches = tuple(blank(shape, np.dtype(dtype)) for shape, dtype in self.shapes)
        return dataclasses.replace(
            self.draw, prompt=dataclasses.replace(self.draw.prompt, patches=patches)
        )


SENT = (Told, Draw, Example, EncodedPrompt, Levels, LeftOut)
"""What hosts tell one another of."""


def share(make: Callable[[], dict[int, Draw | LeftOut]]) -> dict[int, Draw | LeftOut]:
    """{position: its draw} of all hosts, on all of them.

    Args:
      make: gives those of this host.

    Raises:
      Exception: what `make` raises on any host.
    """
    if host_count() == 1:
        return make()
    own: dict[int, Draw | LeftOut] = {}

    def tell() -> dict[int, Told | LeftOut]:
        for position, made in make().items():
            if isinstance(made, Draw):
                prompt = dataclasses.replace(made.prompt, host=host_index())
                made = dataclasses.replace(made, prompt=prompt)
            own[position] = made
        return {at: Told.of(made) if isinstance(made, Draw) else made for at, made in own.items()}

    found: dict[int, Draw | LeftOut] = {}
    for told in gather(tell, *SENT):
        for position, one in told.items():
            heard = one.heard() if isinstance(one, Told) else one
            found[position] = own.get(position, heard)
    return found
