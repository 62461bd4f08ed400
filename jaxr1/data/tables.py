"""Tables on disk: the rows of JSON lines, JSON and parquet files, and a data set made from them."""

import functools
import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from jaxr1.data.example import DataError, Dataset, Example
from jaxr1.data.stored import InRow, ParquetFile, Place, RowFile, TextFile, json_rows
from jaxr1.media.references import StoredMedia

BadRows: TypeAlias = Literal["error", "drop"]
"""What a bad row does: "error" refuses the data set, "drop" leaves the row out."""

_ADVICE = (
    'check_images="decode" finds such rows when the data is loaded, bad_rows="drop" leaves them out'
)


class BadField(ValueError):
    """What is wrong with one field of a row."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"field {name!r}: {reason}")


class LeftOut(Exception):
    """A good row that the options leave out."""


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
      source: file and number, such as "train.jsonl:17". Numbers count from 1; in JSON lines they
        are the lines of the file.
      root: folder that relative paths in the row start from.
      value: what stands there: a mapping of columns, or the error that says why there is none.
      stored: makes of the way to bytes inside the row (a column, then keys and indices) what stands
        for them in an example.
    """

    source: str
    root: Path
    value: Any
    stored: Callable[[tuple[str | int, ...]], StoredMedia]

    @property
    def columns(self) -> Mapping[str, Any]:
        """The columns by name.

        Raises:
          DataError: the row could not be read, or is no object.
        """
        if isinstance(self.value, DataError):
            raise self.value
        if not isinstance(self.value, Mapping):
            raise DataError(
                f"a row must be an object with columns, got {type(self.value).__name__}"
            )
        return self.value


def load_rows(
    path: str,
    make: Callable[[Row], Example],
    *,
    image_root: str | None,
    bad_rows: BadRows,
    limit: int | None,
) -> Dataset:
    """A data set of all rows of a file or a pattern.

    Args:
      path: a file, or a pattern of files, read in alphabetical order.
      make: an example of a row. It raises BadField or DataError for a bad row, and LeftOut for one
        that the options leave out; either way the message goes to `Dataset.dropped`.
      image_root: folder that relative paths start from; None is the folder of the file.
      bad_rows: see `BadRows`.
      limit: keep only the first so many good rows.

    Raises:
      DataError: an option is out of range, a file cannot be read, there is no usable row, or (with
        bad_rows="error") a row is bad. The message names the first bad row.
    """
    check_choice("bad_rows", bad_rows, get_args(BadRows))
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    kept: list[Example] = []
    dropped: list[dict[str, str]] = []
    bad: list[str] = []
    seen = 0
    for row in _rows(path, image_root):
        seen += 1
        try:
            kept.append(make(row))
        except LeftOut as reason:
            dropped.append({"source": row.source, "reason": str(reason)})
        except (BadField, DataError) as error:
            bad.append(f"{row.source}: {error}")
            dropped.append({"source": row.source, "reason": str(error)})
        if limit is not None and len(kept) >= limit:
            break
    if bad and bad_rows == "error":
        raise DataError(f'{_first_of(bad)} (bad_rows="drop" leaves bad rows out)')
    if not kept:
        why = f"; the first: {dropped[0]['source']}: {dropped[0]['reason']}" if dropped else ""
        raise DataError(f"{path}: no usable row among {seen}{why}")
    return Dataset(
        Path(path).stem,
        len(kept),
        kept.__getitem__,
        dropped,
        videos=any(example.holds("video") for example in kept),
        drop_bad=bad_rows == "drop",
        advice=_ADVICE,
    )


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raises DataError where the option `name` has a value that is not among the known ones."""
    if value not in known:
        raise DataError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def _first_of(bad: list[str]) -> str:
    """The first of several messages, and how many more there are."""
    more = len(bad) - 1
    if not more:
        return bad[0]
    return f"{bad[0]}; {more} more bad row{'s' if more > 1 else ''}"


def _rows(path: str, image_root: str | None) -> Iterator[Row]:
    """The rows of all files; one that cannot be parsed holds the error that says so."""
    for file in files_of(path):
        root = Path(image_root) if image_root is not None else Path(file).parent
        for number, rows, place, value in _places(file):
            source = f"{file}:{number}"
            stored = functools.partial(_in_row, rows, place, source)
            yield Row(source, root, value, stored)


def _in_row(rows: RowFile, place: Place, source: str, path: tuple[str | int, ...]) -> InRow:
    return InRow(rows, place, path, source)


def files_of(path: str) -> list[str]:
    """The file of that name, or those that match the pattern."""
    text = os.fspath(path)
    if os.path.isfile(text):
        return [text]
    if os.path.isdir(text):
        pattern = os.path.join(text, "*.parquet")
        raise DataError(f'{text}: a folder; name a file, or a pattern such as "{pattern}"')
    files = sorted(glob.glob(text)) if any(sign in text for sign in "*?[") else []
    if not files:
        raise DataError(f"{text}: no such file")
    return files


def _places(file: str) -> Iterator[tuple[int, RowFile, Place, Any]]:
    """The rows of a file: number, the file for reading them again, place in it, value."""
    suffix = Path(file).suffix.lower()
    try:
        if suffix in (".jsonl", ".ndjson"):
            text = TextFile(file)
            for number, place, value in _lines(file):
                yield number, text, place, value
        elif suffix == ".json":
            text = TextFile(file)
            for number, (place, value) in enumerate(_json_list(file), 1):
                yield number, text, place, value
        elif suffix in (".parquet", ".pq"):
            table = ParquetFile(file)
            for number, (place, value) in enumerate(_parquet_rows(table), 1):
                yield number, table, place, value
        else:
            raise DataError(
                f"{file}: unknown kind of file {suffix!r}; known are .jsonl, .json and .parquet"
            )
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _lines(file: str) -> Iterator[tuple[int, Place, Any]]:
    begin = 0
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            place, begin = (begin, len(line)), begin + len(line)
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                try:
                    yield number, place, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield number, place, DataError(f"not JSON: {error}")


def _json_list(file: str) -> Iterator[tuple[Place, Any]]:
    found = json_rows(file)
    if found is not None:
        return found
    try:
        rows = json.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        hint = "; is it JSON lines? then name it .jsonl" if "Extra data" in str(error) else ""
        raise DataError(f"{file}: not JSON: {error}{hint}") from error
    raise DataError(f"{file}: expected a list of objects, got {type(rows).__name__}")


def _parquet_rows(table: ParquetFile) -> Iterator[tuple[Place, dict[str, Any]]]:
    import pyarrow as pa  # slow to import, and most runs read no parquet

    try:
        yield from table.rows()
    except pa.ArrowException as error:
        raise DataError(f"{table.file}: not a readable parquet file ({error})") from error
