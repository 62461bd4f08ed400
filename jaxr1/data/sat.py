"""Reading SAT, the spatial aptitude data set (arXiv:2412.07755)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxr1.data.choices import shuffle_options, with_options
from jaxr1.data.containers import files_of
from jaxr1.data.example import Dataset, Example
from jaxr1.data.formats.base import Format
from jaxr1.data.formats.own import FORMAT as OWN
from jaxr1.data.rows import CheckImages, make_example
from jaxr1.data.stored import BadField, Row, as_list
from jaxr1.data.tables import BadRows, LeftOut, load_rows
from jaxr1.media.references import is_empty

# Columns that a parquet row does not hand on as they are: they are rewritten, or are no part of SAT
# but would mean something to `make_example`.
_REPLACED = (
    "image_bytes",
    "question",
    "answers",
    "correct_answer",
    "answer",
    "response",
    "messages",
    "image",
)


@dataclass(frozen=True)
class Sat:
    """SAT, the spatial aptitude data set (arXiv:2412.07755), in either of its two usual forms.

    Parquet (array/SAT): `image_bytes` (one or two images), `question`, `answers`, `question_type`,
    `correct_answer`. The options are shuffled by a hash of `seed` and the row, so a row always
    looks the same, and are listed with letters after the question; the answer is the letter, and
    the metadata hold `choices`, `answer_text` and `question_type`. JSON (VisualThinker-R1-Zero,
    arXiv:2503.05132): rows of `messages` and `images` where the question already lists its options
    and images may be printed byte strings; the answer is the assistant's text, never a letter.

    Attributes:
      path: file or pattern, as in `Files`.
      image_root: as in `Files`.
      seed: of the order of options.
      single_image_only: leave out rows with more than one image; they are listed in
        `Dataset.dropped`.
      limit: keep only the first so many rows. VisualThinker-R1-Zero trains on the first 15000 of
        the static part.
      bad_rows: as in `Files`.
      check_images: as in `Files`.
    """

    path: str
    image_root: str | None = None
    seed: int = 0
    single_image_only: bool = True
    limit: int | None = None
    bad_rows: BadRows = "error"
    check_images: CheckImages = "header"

    def files(self) -> list[str]:
        """The files of rows that `load` reads."""
        return files_of(self.path)

    def load(self) -> Dataset:
        """Reads and checks every row; errors are those of `Files.load`."""
        return load_rows(
            self.path,
            self._example,
            image_root=self.image_root,
            bad_rows=self.bad_rows,
            limit=self.limit,
            check_images=self.check_images,
        )

    def _example(self, row: Row, known: Format | None, check_images: CheckImages) -> Example:
        columns = row.columns
        is_parquet = "image_bytes" in columns
        if is_parquet:
            images = columns["image_bytes"]
        else:
            images = columns.get("images") or columns.get("image")
        count = sum(not is_empty(image) for image in as_list(images))
        if self.single_image_only and count != 1:
            raise LeftOut(f"{count} images; single_image_only keeps rows with one")
        known = self._format if is_parquet else OWN
        return make_example(row, known, require_answer=True, check_images=check_images)

    @property
    def _format(self) -> Format:
        """The format of parquet rows of SAT."""
        names = {"images": "image_bytes", "prompt": "question", "answer": "correct_answer"}
        return Format("SAT", (), lambda row: self._asked(row.columns), names=names)

    def _asked(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a parquet row of SAT as those of a row of `Files`."""
        for name in ("question", "answers", "correct_answer"):
            if columns.get(name) is None:
                raise BadField(name, "missing")
        question, correct = str(columns["question"]), str(columns["correct_answer"])
        options = [str(option) for option in columns["answers"]]
        images = as_list(columns["image_bytes"])
        rng = _rng_of([self.seed, question, options, correct], images)
        try:
            choices, letter = shuffle_options(options, correct, rng)
        except ValueError as error:
            raise BadField("correct_answer", str(error)) from error
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        parts.append({"type": "text", "text": with_options(question, choices)})
        other = {name: value for name, value in columns.items() if name not in _REPLACED}
        return {
            **other,
            "prompt": [{"role": "user", "content": parts}],
            "images": images,
            "answer": letter,
            "choices": choices,
            "answer_text": correct,
        }


def _rng_of(values: list[Any], images: list[Any]) -> np.random.Generator:
    """A random generator of a row's own: its seed is a hash of what the row holds."""
    # Hashed, not counted: dropping or adding rows must not reshuffle the others.
    digest = hashlib.sha256(json.dumps(values).encode())
    for image in images:
        data = image.get("bytes") if isinstance(image, Mapping) else image
        digest.update(data if isinstance(data, bytes) else str(data).encode())
    return np.random.default_rng(int.from_bytes(digest.digest()[:8], "little"))
