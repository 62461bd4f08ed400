"""The label reward: one class of a few, such as an emotion, under any of its names.

" Happiness. "  ->  happy        "so happy that ..."  ->  no label: wrong
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from jaxr1.rewards.stated import plain, stated
from jaxr1.rewards.types import Completion, Example

EMOTIONS: dict[str, tuple[str, ...]] = {
    "happy": ("happiness", "joy", "joyful", "glad", "cheerful", "delighted"),
    "surprise": ("surprised", "surprising", "astonished", "astonishment", "amazed"),
    "neutral": ("neutrality", "no emotion", "none"),
    "angry": ("anger", "angered", "mad", "furious", "rage"),
    "disgust": ("disgusted", "disgusting"),
    "sad": ("sadness", "sorrow", "sorrowful", "unhappy"),
    "fear": ("fearful", "afraid", "scared", "frightened", "terrified"),
    "contemptuous": ("contempt", "scorn", "scornful", "disdain"),
    "disappointed": ("disappointment",),
    "helpless": ("helplessness",),
    "anxious": ("anxiety", "worried", "worry", "nervous"),
}
"""The classes of DFEW and MAFW in the spelling of R1-Omni (arXiv:2503.05379), and other names."""


def label_reward(
    completion: Completion, example: Example, *, table: str = ""
) -> dict[str, float] | None:
    """1 if the stated label is another name of the reference, or the same, else 0.

    Letter case, outer punctuation and whitespace mean nothing. An answer that is no label as a
    whole is wrong: a sentence may name a class to deny it.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` is the reference; where the table does not know it, only itself is right.
      table: path of a JSON file {class: [other names]}; "" is that of `EMOTIONS`.

    Returns:
      {"score", "parsed": 1 if the answer is a label}; None where there is no reference.

    Raises:
      ValueError: the file is missing or no such table.
    """
    gold = plain(example.answer or "")
    if not gold:
        return None
    classes = _classes(table)
    wanted = classes.get(gold, gold)
    said = plain(stated(completion) or "")
    found = wanted if said == gold else classes.get(said)
    return {"score": float(found == wanted), "parsed": float(found is not None)}


def label_reading(completion: Completion, example: Example, *, table: str = "") -> str:
    """What the label reward reads in a completion, for a message; arguments as of it."""
    answer = stated(completion)
    if answer is None:
        return "finds no whole answer"
    found = _classes(table).get(plain(answer))
    known = f"the label {found!r}" if found else "which is no label of the table"
    return f"reads {answer!r:.60}, {known} (reference {example.answer!r:.60})"


@functools.lru_cache(maxsize=8)
def _classes(table: str) -> dict[str, str]:
    """{name: class} of a table; every class is a name of itself."""
    given = _read(table) if table else EMOTIONS
    names: dict[str, str] = {}
    for kind, others in given.items():
        for name in (kind, *others):
            if names.setdefault(plain(name), kind) != kind:
                raise ValueError(
                    f"label reward: {name!r} is a name of {names[plain(name)]!r} and of {kind!r}"
                )
    return names


def _read(table: str) -> dict[str, list[str]]:
    wanted = "a JSON object {class: [other names]}"
    try:
        given = json.loads(Path(table).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"label reward: table {table!r} must be {wanted}: {error}") from error
    lists = given.values() if isinstance(given, dict) else [None]
    for names in lists:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"label reward: table {table!r} must be {wanted}, got {names!r:.60}")
    return given
