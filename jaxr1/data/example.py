"""What a data set holds: examples, in a plain sequence, without models or tokenizers."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload, runtime_checkable

from jaxr1.base.errors import UserError
from jaxr1.data.order import Order, Shuffled
from jaxr1.media.images import MediaError
from jaxr1.media.references import StoredMedia


class DataError(UserError):
    """A data set that cannot be used; the message names file, row and field."""


# eq=False: examples hold arrays and dicts, so neither equality nor hashing would mean anything
@dataclass(frozen=True, eq=False)
class Example:
    """One question with its media and its reference answer.

    Attributes:
      messages: chat turns without a final assistant turn: {"role": ..., "content": str or parts}; a
        part is {"type": "text", "text": str}, {"type": "image", "image": path, bytes, PIL image or
        uint8 array [H, W, 3]} or {"type": "video", "video": path or bytes}. Bytes that stand in a
        file of rows stay there, and `StoredMedia` takes their place.
      answer: the reference answer that rewards compare with.
      response: a worked response, for supervised stages; for preference stages the better one.
      rejected: the worse one.
      source: where it comes from, such as "train.jsonl:17" (rows count from 1); every error about
        it says so.
      metadata: the other columns, plain values without media; rewards see them.
    """

    messages: tuple[dict[str, Any], ...]
    answer: str | None
    response: str | None = None
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    rejected: str | None = None

    @property
    def question(self) -> str:
        """The text of the user turns, without media, joined by line breaks."""
        texts = []
        for message in self.messages:
            if message["role"] == "user":
                texts += [text.strip() for text in _texts(message["content"]) if text.strip()]
        return "\n".join(texts)

    @property
    def images(self) -> list[Any]:
        """The image references, in the order of the conversation; bytes in files are read."""
        return self._media("image")

    @property
    def videos(self) -> list[Any]:
        """The video references, in the order of the conversation; bytes in files are read."""
        return self._media("video")

    def noted(self, more: dict[str, Any]) -> "Example":
        """The same with more metadata."""
        return dataclasses.replace(self, metadata={**self.metadata, **more})

    def holds(self, kind: str) -> bool:
        """Whether there is a medium of this kind, "image" or "video"; nothing of it is read."""
        return bool(self._places(kind))

    def _media(self, kind: str) -> list[Any]:
        return [m.read() if isinstance(m, StoredMedia) else m for m in self._places(kind)]

    def _places(self, kind: str) -> list[Any]:
        found: list[Any] = []
        for message in self.messages:
            if not isinstance(message["content"], str):
                found += [part[kind] for part in message["content"] if part["type"] == kind]
        return found


def _texts(content: str | list[dict[str, Any]]) -> list[str]:
    """The texts of a turn, without its media."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


class Dataset(Sequence[Example]):
    """Examples by index, made when asked for.

    Attributes:
      name: what metrics and messages call it.
      dropped: rows left out, each {"source": ..., "reason": ...}.
      videos: whether rows may hold videos; it decides which sizes of patches a run prepares for.
      drop_bad: a row whose media turn out to be damaged when they are used is left out, instead of
        ending the run.
      advice: what an error about such a row adds.
      order: makes the order of draws of a seed; None is shuffled passes.
    """

    def __init__(
        self,
        name: str,
        length: int,
        get: Callable[[int], Example],
        dropped: Iterable[dict[str, str]] = (),
        *,
        videos: bool = False,
        drop_bad: bool = False,
        advice: str = "",
        order: Callable[[int], Order] | None = None,
    ) -> None:
        """Takes the examples as a function of their place.

        Args:
          name: see above, as for the other attributes.
          length: number of examples.
          get: `get(i)` returns example i, for 0 <= i < length; it must be a pure function of i.
          dropped: rows left out.
        """
        self.name = name
        self.dropped = list(dropped)
        self.videos, self.drop_bad, self.advice = videos, drop_bad, advice
        self.order = order
        self._length = length
        self._get = get

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...
    def __getitem__(self, index: int | slice) -> "Example | Dataset":
        if isinstance(index, slice):
            rows = range(self._length)[index]
            return self.made(len(rows), lambda i: self._get(rows[i]), ())
        return self._get(range(self._length)[index])

    def made(
        self,
        length: int,
        get: Callable[[int], Example],
        dropped: Iterable[dict[str, str]],
    ) -> "Dataset":
        """Another data set made of these rows; arguments as when one is made.

        Raises:
          DataError: they have an order of their own, which other rows cannot have.
        """
        if self.order is not None:
            raise DataError(
                f"{self.name}: a mixture or a curriculum stands around a choice of rows, not in it"
            )
        options: dict[str, Any] = {
            "videos": self.videos,
            "drop_bad": self.drop_bad,
            "advice": self.advice,
        }
        return Dataset(self.name, length, get, dropped, **options)

    def with_order(self, order: Callable[[int], Order]) -> "Dataset":
        """The same rows in another order of draws; DataError where they have one of their own."""
        found = self.made(self._length, self._get, self.dropped)
        found.order = order
        return found

    def ordered(self, seed: int, length: int | None = None) -> Order:
        """The order in which rows are drawn.

        Args:
          length: of rows that are shuffled; None is of all.
        """
        if self.order is not None:
            return self.order(seed)
        return Shuffled(self._length if length is None else length, seed)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {self._length} examples, {len(self.dropped)} dropped)"


@runtime_checkable
class DataSource(Protocol):
    """The data-set protocol: a frozen dataclass of options whose `load()` gives the examples.

    A user's own class needs no more than this to stand in a config.
    """

    def load(self) -> Dataset:
        """The examples. Raises DataError where the options or the files are unusable."""
        ...


def source_files(source: Any) -> list[str]:
    """The files of rows that a data source reads, and those of sources that it is made of."""
    if hasattr(source, "files"):
        return list(source.files())
    found: list[str] = []
    if dataclasses.is_dataclass(source):
        for name in (field.name for field in dataclasses.fields(source)):
            inner = getattr(source, name)
            if hasattr(inner, "load"):
                found += source_files(inner)
    return found


def refusal(dataset: Dataset, example: Example, error: Exception) -> DataError | None:
    """What is raised about an example that cannot be encoded, with its row, field and what helps.

    None where the data set leaves such rows out.
    """
    if dataset.drop_bad:
        return None
    kinds = [f"{kind}s" for kind in ("image", "video") if example.holds(kind)]
    field = f"field {' or '.join(map(repr, kinds))}: " if isinstance(error, MediaError) else ""
    advice = f" ({dataset.advice})" if dataset.advice and field else ""
    return DataError(f"{example.source}: {field}{error}{advice}")
