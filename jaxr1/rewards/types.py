"""What a reward function sees: the completion it judges and the example that was asked.

Both are plain data: they cross a process boundary as JSON, and neither holds media or anything of
jax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """One response, as a reward function sees it.

    Attributes:
      text: the response; a prefix that the template put before it (such as an opening think tag) is
        part of it.
      finish_reason: "stop" if the model ended it, "length" if it was cut at the limit.
      length: the tokens that the model said, its stop token among them; 0 where it is not known.
      token_ids: int[length], these tokens; None where they are not known, and in a worker none of
        whose functions names them.
    """

    text: str
    finish_reason: FinishReason = "stop"
    length: int = 0
    token_ids: Any = field(default=None, compare=False, repr=False)

    def to_json(self, *, with_ids: bool = False) -> dict[str, Any]:
        row = {"text": self.text, "finish_reason": self.finish_reason, "length": self.length}
        if with_ids and self.token_ids is not None:
            row["token_ids"] = [int(i) for i in self.token_ids]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Completion:
        return cls(row["text"], row["finish_reason"], row["length"], row.get("token_ids"))


class ImageSize(NamedTuple):
    """The size of an image, and the one that it was resized to for the model, in pixels."""

    width: int
    height: int
    seen_width: int
    seen_height: int


@dataclass(frozen=True)
class Example:
    """The asked question as a reward function sees it, without its media.

    Attributes:
      question: the text of the question.
      answer: the reference answer; None where the data has none.
      source: the name of the data set the row came from.
      metadata: every other column of the row (JSON values).
      images: the sizes of its images, in the order of the conversation; () where not known.
    """

    question: str = ""
    answer: str | None = None
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    images: tuple[ImageSize, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.answer,
            "source": self.source,
            "metadata": self.metadata,
            "images": self.images,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Example:
        return cls(
            question=row["question"],
            answer=row["answer"],
            source=row["source"],
            metadata=dict(row["metadata"]),
            images=tuple(ImageSize(*size) for size in row["images"]),
        )
