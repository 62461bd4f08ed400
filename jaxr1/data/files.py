"""Reading one's own data: files of prompts, images, videos and answers."""

from dataclasses import dataclass

from jaxr1.data.containers import files_of
from jaxr1.data.example import Dataset, Example
from jaxr1.data.formats.base import Format
from jaxr1.data.formats.table import format_of
from jaxr1.data.rows import CheckImages, make_example
from jaxr1.data.stored import Row
from jaxr1.data.tables import BadRows, load_rows


@dataclass(frozen=True)
class Files:
    """Rows of one's own, from `.jsonl`, `.json` (a list), `.parquet`, `.tsv` or `.csv` files.

    Rows of other trainers (verl, EasyR1, TRL, ms-swift, LLaMA-Factory, VLM-R1, ...) are known by
    their columns and read as they are: notebooks/data.md has what becomes what. They become these
    columns, which one's own rows have:
      prompt or messages: a string, or chat turns ({"role", "content"}; content is a string or
        parts). In a string of a system or user turn `<image>` marks the places of the images; where
        turns have no place for any, they stand before the first user turn's text. A part of a list
        is {"type": "text", "text"} or {"type": "image"}, which names its image ("image", "path" or
        "url") or takes the next one of `images`; in the text of a part `<image>` stays text.
      images or image: one or more of path (relative to `image_root`) or `file://` address, bytes,
        base64, `data:` URI, {"bytes", "path"}, or the printed form of a byte string. Paths are
        kept, and opened when the picture is needed; bytes in any form stay in the file of rows
        until then. A column of nothing but empty entries (null, "", nulls for both bytes and path)
        has no picture; an empty one beside others is an error.
      videos or video: the same for videos, whose places `<video>` marks (only in rows that have
        this column); a part {"type": "video"} names its file ("video" or "path") or takes the next
        one.
      answer: text or a number; of text with exactly one answer block, what stands in it. Where it
        is missing it is taken in the same way from the response.
      response: a worked response; a final assistant turn of the messages counts as one.
      chosen and rejected: two responses for preference stages, the better and the worse one; text,
        or turns of which the last one counts.
      Any other column goes to `metadata` (values that hold bytes are left out).

    Attributes:
      path: a file; a pattern such as "data/part-*.parquet", or a folder of files of one kind (read
        in alphabetical order), or "folder@train" for those of a split; an entry of LLaMA-Factory's
        registry, "data/dataset_info.json:name".
      image_root: folder that relative image paths start from; None is the folder of the file.
      bad_rows: "error" refuses the data set at the first load; "drop" leaves bad rows out and lists
        them in `Dataset.dropped` (in a run, in dropped.jsonl; there also those whose media prove
        damaged only when they are used).
      limit: keep only the first so many good rows.
      require_answer: whether a row without an answer is a bad row.
      check_images: "header" opens every image and video without decoding it, "decode" decodes it
        too (finds truncated files, takes longer), "no" leaves all to the moment of use.
    """

    path: str
    image_root: str | None = None
    bad_rows: BadRows = "error"
    limit: int | None = None
    require_answer: bool = True
    check_images: CheckImages = "header"

    def files(self) -> list[str]:
        """The files of rows that `load` reads."""
        return files_of(self.path)

    def load(self) -> Dataset:
        """Reads and checks every row.

        Raises:
          DataError: a file cannot be read, there is no usable row, or (with bad_rows="error") a row
            is bad. Rows are counted from 1; in JSON lines and tables of text they are the lines
            that they begin at.
        """
        return load_rows(
            self.path,
            self._example,
            image_root=self.image_root,
            bad_rows=self.bad_rows,
            limit=self.limit,
            check_images=self.check_images,
        )

    def _example(self, row: Row, known: Format | None, check_images: CheckImages) -> Example:
        known = format_of(row.columns) if known is None else known
        return make_example(
            row, known, require_answer=self.require_answer, check_images=check_images
        )
