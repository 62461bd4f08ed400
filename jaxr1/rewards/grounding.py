"""Rewards of boxes: one object that is pointed at, and all objects of a picture.

The forms and units of boxes are in `rewards.boxes`. VLM-R1 (arXiv:2504.07615) has both rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxr1.rewards.boxes import Box, Units, boxes_in, on_unit, overlap
from jaxr1.rewards.stated import plain, stated
from jaxr1.rewards.types import Completion, Example


def iou_reward(
    completion: Completion,
    example: Example,
    *,
    threshold: float = 0.0,
    boxes: Units = "pixels",
    gold: Units = "original",
    image: int = 0,
) -> dict[str, float] | None:
    """How far the first box of the answer covers that of the reference: intersection over union.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` holds the box; `images` the sizes that "pixels" and "original" need.
      threshold: over 0, the reward is 1 where the overlap is larger and else 0 (VLM-R1: 0.5).
      boxes: units of the answer's box.
      gold: units of the reference.
      image: which image of the row it is in, from 0.

    Returns:
      {"score", "iou"}; an answer without a box gets 0. None where the reference has no box.

    Raises:
      ValueError: a size is needed that is not known.
    """
    wanted = boxes_in(example.answer or "")
    if not wanted:
        return None
    found = boxes_in(stated(completion) or "")
    if not found:
        return {"score": 0.0, "iou": 0.0}
    one, other = found[0], wanted[0]
    if boxes != gold:
        one, other = on_unit(one, boxes, example, image), on_unit(other, gold, example, image)
    value = overlap(one, other)
    return {"score": float(value > threshold) if threshold > 0 else value, "iou": value}


def detection_reward(
    completion: Completion,
    example: Example,
    *,
    position: float = 0.7,
    label: float = 0.0,
    completeness: float = 0.3,
    least: float = 0.5,
    extra_penalty: bool = False,
    boxes: Units = "pixels",
    gold: Units = "original",
    image: int = 0,
) -> dict[str, float] | None:
    """How well the boxes of the answer are those of the reference (VLM-R1's `weighted_sum`).

    Pairs are taken greedily, the largest overlap first, down to `least`. Of n wanted boxes and m
    answered ones, a pair with different labels having position 0:

        position       sum of the overlaps of pairs / n
        label          pairs with the same label / n
        completeness   1 - (boxes without a pair of the n / n + of the m / m) / 2

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` holds the boxes, "None" or [] if there are none; then saying so is 1, and
        any box 0.
      position, label, completeness: weights; their weighted mean is the reward.
      least: overlap of a pair.
      extra_penalty: whether the reward is multiplied by n / m where m is larger (VLM-R1's
        `odLength`).
      boxes, gold, image: as of the IoU reward.

    Returns:
      {"score", "position", "label", "completeness"}; None where the reference has no boxes and does
      not say that there are none.

    Raises:
      ValueError: a size is needed that is not known, or the weights have no sum over 0.
    """
    if min(position, label, completeness) < 0 or position + label + completeness <= 0:
        raise ValueError("detection reward: weights must be 0 or more, and not all 0")
    wanted = boxes_in(example.answer or "")
    if wanted is None:
        return None
    answer = stated(completion)
    found = boxes_in(answer) if answer else None
    if not wanted or not found:
        same = float(not wanted and found is not None and not found)
        return dict.fromkeys(("score", "position", "label", "completeness"), same)
    if boxes != gold:
        found = [on_unit(box, boxes, example, image) for box in found]
        wanted = [on_unit(box, gold, example, image) for box in wanted]
    pairs = _pairs(found, wanted, least)
    named = [value for value, i, j in pairs if found[i].label == wanted[j].label]
    n, m = len(wanted), len(found)
    parts = {
        "position": sum(named) / n,
        "label": len(named) / n,
        "completeness": 1 - ((n - len(pairs)) / n + (m - len(pairs)) / m) / 2,
    }
    weights = {"position": position, "label": label, "completeness": completeness}
    score = sum(weights[key] * value for key, value in parts.items()) / sum(weights.values())
    return {"score": score * (min(1.0, n / m) if extra_penalty else 1.0)} | parts


def boxes_reading(
    completion: Completion, example: Example, **options: float | int | bool | str
) -> str:
    """What the rewards of this file read in a completion, for a message; arguments as of them."""
    answer = stated(completion)
    if answer is None:
        return "finds no whole answer"
    found = boxes_in(answer)
    shown = "finds no box" if not found else f"finds {len(found)} boxes, the first {found[0]}"
    return f"{shown} in {plain(answer)!r:.60} (reference {example.answer!r:.60})"


def _pairs(
    found: Sequence[Box], wanted: Sequence[Box], least: float
) -> list[tuple[float, int, int]]:
    """(overlap, index of found, of wanted), greedily; no box is in two pairs."""
    all_pairs = []
    for i, one in enumerate(found):
        all_pairs += [(overlap(one, other), i, j) for j, other in enumerate(wanted)]
    taken: list[tuple[float, int, int]] = []
    used_found: set[int] = set()
    used_wanted: set[int] = set()
    for value, i, j in sorted(all_pairs, key=lambda pair: -pair[0]):
        if value < least:
            break
        if i not in used_found and j not in used_wanted:
            taken.append((value, i, j))
            used_found.add(i)
            used_wanted.add(j)
    return taken
