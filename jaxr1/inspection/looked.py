"""What is looked at of every row: its words, and the hashes of its pictures."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator

from jaxr1.data import Dataset
from jaxr1.inputs.ahead import in_batches
from jaxr1.inspection.hashes import Hash, perceptual_hash
from jaxr1.media.images import MediaError, load_image, media_hash

BATCH_ROWS = 64
_WORD = re.compile(r"[\u3400-\u9fff]|\w+")


@dataclasses.dataclass(frozen=True)
class Looked:
    """One row, as it is compared.

    Attributes:
      source: of the row.
      words: of its question, in lower case; a Chinese character is a word.
      exact: hashes that equal pictures share.
      alike: hashes that similar pictures nearly share.
      sizes: (height, width) of its pictures, in pixels.
      answer: the reference answer.
      problem: why a picture cannot be read.
    """

    source: str
    words: tuple[str, ...]
    exact: tuple[str, ...]
    alike: tuple[Hash, ...]
    sizes: tuple[tuple[int, int], ...]
    answer: str
    problem: str = ""


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without punctuation."""
    return tuple(_WORD.findall(text.lower()))


def look(dataset: Dataset) -> Iterator[Looked]:
    """All rows of a data set, in order; pictures are decoded in threads ahead of their turn."""
    reading = threading.Lock()  # a user's data set need not know of threads

    def one(row: int) -> Looked:
        with reading:
            example = dataset[row]
            images = example.images
        exact, alike, sizes = list[str](), list[Hash](), list[tuple[int, int]]()
        problem = ""
        for source in images:
            try:
                image = load_image(source)
            except MediaError as error:
                problem = str(error)
                continue
            exact.append(media_hash(image))
            sizes.append((image.height, image.width))
            if (found := perceptual_hash(image)) is not None:
                alike.append(found)
        return Looked(
            source=example.source,
            words=words_of(example.question),
            exact=tuple(exact),
            alike=tuple(alike),
            sizes=tuple(sizes),
            answer=example.answer or "",
            problem=problem,
        )

    rows = range(len(dataset))
    batches = [rows[first : first + BATCH_ROWS] for first in range(0, len(rows), BATCH_ROWS)]
    for batch in in_batches(one, batches):
        yield from batch
