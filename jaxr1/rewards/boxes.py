"""Boxes in answers: finding them, and comparing those that count in different units.

    [x1, y1, x2, y2]   {"bbox_2d": [...], "label": "cat"}   (x1,y1),(x2,y2)

    pixels     of the resized image that the model sees     Qwen2.5-VL
    original   pixels of the image as it is in the data
    thousand   0 to 1000 on both axes                       Qwen2-VL, Qwen3-VL, InternVL
    unit       0 to 1 on both axes

Overlap does not change when an axis is stretched, so all are compared on the unit square.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxr1.rewards.stated import json_in, plain
from jaxr1.rewards.types import Example

Units = Literal["pixels", "original", "thousand", "unit"]
MAX_BOXES = 200
_KEYS = ("bbox_2d", "bbox", "box_2d", "box")
_NUMBER = r"\s*(-?\d{1,7}(?:\.\d{1,9})?)\s*"
_FOUR = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}[)\]]?\s*,\s*[\[(]?{_NUMBER},{_NUMBER}[)\]]")


@dataclass(frozen=True)
class Box:
    """A box and what is in it; x2 > x1 and y2 > y1, or its area is 0.

    Attributes:
      x1, y1, x2, y2: left, top, right, bottom.
      label: in lower case; "" where none is given.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""

    @property
    def area(self) -> float:
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    def scaled(self, width: float, height: float) -> Box:
        """The box where `width` and `height` are 1."""
        x1, x2, y1, y2 = self.x1 / width, self.x2 / width, self.y1 / height, self.y2 / height
        return Box(x1, y1, x2, y2, self.label)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, 0 to 1; 0 of boxes without an area."""
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    shared = max(0.0, width) * max(0.0, height)
    union = a.area + b.area - shared
    return shared / union if union > 0 else 0.0


def boxes_in(text: str) -> list[Box] | None:
    """The boxes of an answer, at most `MAX_BOXES`: of its JSON, else those among its words.

    [] of an answer that says that there are none ("None", "[]"); None of one without any box.
    """
    found = json_in(text)
    if isinstance(found, Mapping):
        found = [found]
    if isinstance(found, list):
        if _is_four(found):
            found = [found]
        boxes = [box for box in map(_box, found[:MAX_BOXES]) if box is not None]
        if boxes or not found:
            return boxes
    if plain(text) in ("none", "null"):
        return []
    matches = list(_FOUR.finditer(text))[:MAX_BOXES]
    return [_made(match.groups()) for match in matches] or None


def on_unit(box: Box, units: Units, example: Example, image: int) -> Box:
    """A box on the unit square of an image.

    Args:
      box: in `units`.
      units: see the top of this file.
      example: knows the sizes of its images.
      image: which of them, from 0.

    Raises:
      ValueError: the size is needed, and not known.
    """
    if units == "unit":
        return box
    if units == "thousand":
        return box.scaled(1000, 1000)
    if not 0 <= image < len(example.images):
        raise ValueError(
            f"boxes in {units!r} need the size of image {image}, and the row has the sizes of "
            f"{len(example.images)} images; units 'thousand' and 'unit' need none"
        )
    size = example.images[image]
    if units == "pixels":
        return box.scaled(size.seen_width, size.seen_height)
    return box.scaled(size.width, size.height)


def _is_four(value: Any) -> bool:
    """Whether a value is a list of four finite numbers."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
    return len(numbers) == 4 and all(abs(one) < 1e9 and math.isfinite(one) for one in numbers)


def _box(item: Any) -> Box | None:
    """A list of four, or an object that holds one, as a box."""
    label = item.get("label", "") if isinstance(item, Mapping) else ""
    four = item
    if isinstance(item, Mapping):
        four = next((item[key] for key in _KEYS if key in item), None)
    return _made(four, plain(str(label))) if _is_four(four) else None


def _made(four: Any, label: str = "") -> Box:
    x1, y1, x2, y2 = map(float, four)
    return Box(x1, y1, x2, y2, label)
