"""What is in a data set: counts, lengths, sizes, languages, answers, what is twice or lost."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxr1.data import Dataset
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import TooLong
from jaxr1.inputs.template import Prompt, PromptError
from jaxr1.inspection.looked import Looked, look
from jaxr1.inspection.overlap import twice
from jaxr1.media.images import MediaError
from jaxr1.rewards.pool import RewardPool
from jaxr1.rewards.reading.letters import choice_letter
from jaxr1.rewards.reading.numbers import parse_number
from jaxr1.rewards.types import Completion, Example, ImageSize

SHOWN = 5  # rows named for each finding
ENCODED = 500  # rows whose prompts are encoded and whose references graded, spread over the set
SHAPES = ("<think>It is so.</think>\n<answer>{answer}</answer>", "\\boxed{{{answer}}}")
"""How the reference answer is said to a reward: the reward that suits it counts."""

_SCRIPTS = (
    ("Chinese or Japanese", re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")),
    ("Korean", re.compile(r"[\uac00-\ud7af]")),
    ("Cyrillic", re.compile(r"[\u0400-\u04ff]")),
    ("Arabic", re.compile(r"[\u0600-\u06ff]")),
    ("Latin", re.compile(r"[A-Za-z\u00c0-\u024f]")),
)
_SIGNS = re.compile(r"[=^\\+*/<>{}]")


@dataclasses.dataclass
class Survey:
    """What was found in one data set.

    Attributes:
      path: in the configuration, such as "stages.0.data".
      name: of the data set.
      rows: how many there are.
      looked: each of them.
      dropped: rows that are left out, {reason: how many}.
      examples: of each reason, a few sources.
      tokens: of prompts that were encoded.
      sizes: {row: sizes of its pictures} of these, as rewards see them.
      counts: {what: {value: how many}}.
      twice: rows whose question and pictures are equal, and rows with an equal picture.
      rewards: {reward: how many reference answers it gives which value}.
      unhappy: reference answers that a reward does not give its best, a few for each.
    """

    path: str
    name: str
    rows: int
    looked: list[Looked]
    dropped: collections.Counter[str]
    examples: dict[str, list[str]]
    tokens: list[int]
    sizes: dict[int, tuple[ImageSize, ...]]
    counts: dict[str, collections.Counter[str]]
    twice: tuple[list[list[str]], list[list[str]]]
    rewards: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    unhappy: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def drop(self, source: str, reason: str) -> None:
        """Counts a row that is left out, by the kind of the reason."""
        kind = re.sub(r"\d[\d,.]*", "#", reason)[:120]
        self.dropped[kind] += 1
        known = self.examples.setdefault(kind, [])
        if len(known) < SHOWN:
            known.append(f"{source}: {reason}")

    def to_json(self) -> dict[str, Any]:
        """As inspect.json keeps it."""
        return {
            "path": self.path,
            "name": self.name,
            "rows": self.rows,
            "dropped": dict(self.dropped),
            "dropped_examples": self.examples,
            "prompt_tokens": quantiles(self.tokens),
            "question_words": quantiles([len(row.words) for row in self.looked]),
            "megapixels": quantiles(megapixels(self.looked)),
            "counts": {what: dict(found) for what, found in self.counts.items()},
            "same_row": self.twice[0][:SHOWN],
            "same_row_groups": len(self.twice[0]),
            "same_picture_groups": len(self.twice[1]),
            "rewards": {name: dict(found) for name, found in self.rewards.items()},
            "not_the_best": self.unhappy,
        }


def survey(
    path: str,
    dataset: Dataset,
    processor: Processor,
    limits: tuple[int, int],
    judge: Callable[[Any], str | None],
) -> Survey:
    """Looks at every row of a data set.

    Args:
      path: of it in the configuration.
      limits: most tokens of a prompt, most patches of a picture.
      judge: why a row's reference answer leaves it out, or None.
    """
    looked = list(look(dataset))
    found = Survey(
        path=path,
        name=dataset.name,
        rows=len(dataset),
        looked=looked,
        dropped=collections.Counter(),
        examples={},
        tokens=[],
        sizes={},
        counts=counted(looked),
        twice=twice(looked),
    )
    for left_out in dataset.dropped:
        found.drop(left_out["source"], left_out["reason"])
    for i, row in enumerate(looked):
        if row.problem:
            found.drop(row.source, row.problem)
        elif (problem := judge(dataset[i])) is not None:
            found.drop(row.source, problem)
    for i in range(0, len(dataset), max(1, len(dataset) // ENCODED)):
        example = dataset[i]
        try:
            prompt = processor.encode(Prompt(example.messages), *limits)
            found.tokens.append(len(prompt))
            found.sizes[i] = tuple(ImageSize(*size) for size in prompt.sizes)
        except TooLong as error:
            found.drop(example.source, str(error))
        except (MediaError, PromptError):  # said above, or by the reader
            continue
    return found


def counted(looked: Sequence[Looked]) -> dict[str, collections.Counter[str]]:
    """{what: {value: rows}}: pictures of a row, languages of questions, kinds of answers."""
    pictures = collections.Counter(str(len(row.sizes)) for row in looked)
    return {
        "pictures in a row": pictures,
        "language": collections.Counter(language(" ".join(row.words)) for row in looked),
        "answer": collections.Counter(answer_kind(row.answer) for row in looked),
    }


def language(text: str) -> str:
    """The script that most letters of a text are of."""
    counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS}
    name = max(counts, key=lambda one: counts[one])
    return name if counts[name] else "none"


def answer_kind(answer: str) -> str:
    """What kind of answer a reference is, by its looks."""
    text = answer.strip()
    if not text:
        return "none"
    if parse_number(text) is not None:
        return "number"
    if len(text) <= 4 and choice_letter(text):
        return "letter"
    if text.lower().rstrip(".") in ("yes", "no", "true", "false", "是", "否", "对", "错"):
        return "yes or no"
    if _SIGNS.search(text):
        return "expression"
    return "word" if len(text.split()) == 1 else "several words"


def graded_references(
    found: Survey, dataset: Dataset, pool: RewardPool, labels: Sequence[str]
) -> None:
    """What each reward gives to the reference answers themselves.

    A reward that compares with the reference should be happy with all of them: what it does not
    understand it can only call wrong.
    """
    rows, items = [*found.sizes], []
    for row in rows:
        e = dataset[row]
        asked = Example(e.question, e.answer, e.source, e.metadata, found.sizes[row])
        items += [(Completion(shape.format(answer=e.answer)), asked) for shape in SHAPES]
    grades = iter(pool.grade(items))
    for row in rows:
        pair = [next(grades) for _ in SHAPES]
        for label in labels:
            given = [grade.by_name.get(label) for grade in pair]
            values = [value for value in given if value is not None]
            best = max(values, default=None)
            name = "none" if best is None else f"{best:g}"
            found.rewards.setdefault(label, collections.Counter())[name] += 1
            known = found.unhappy.setdefault(label, [])
            if (best is None or best < 1) and len(known) < SHOWN:
                why = next((grade.detail for grade in pair if grade.detail), "")
                known.append(
                    f"{found.looked[row].source}: {dataset[row].answer!r:.80} {why}".strip()
                )


def megapixels(looked: Iterable[Looked]) -> list[float]:
    """Of all pictures."""
    found = []
    for row in looked:
        found += [height * width / 1e6 for height, width in row.sizes]
    return found


def quantiles(values: Sequence[float]) -> Mapping[str, float]:
    """Least, median, 95 %, largest; {} of none."""
    if not len(values):
        return {}
    low, middle, high, most = np.quantile(np.asarray(values, np.float64), [0, 0.5, 0.95, 1])
    return {"min": float(low), "median": float(middle), "95%": float(high), "max": float(most)}
