"""Pictures that stay in their file of rows until they are needed.

A data set of pictures is larger than memory, and a step uses a few of them. What an example keeps
of a picture that stands in its row (bytes, base64) is where: the file, the place of the row in it,
and the way through the row.
"""

import codecs
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from jaxr1.media.references import MediaError, StoredMedia, media_reference

BATCH_BYTES = 16 << 20
"""About so much of a parquet file is in memory at a time."""

MAX_BATCH_ROWS, PROBE_ROWS = 64, 4
_READ_BYTES = 1 << 20

MAX_HELD = 4
"""Parquet files that hold a batch at the same time: a data set may have hundreds of them."""

MAX_OPEN_BYTES = 64 << 20
"""Size of a row group whose reader is kept, so that rows in order are read once."""

_NOTHING: Iterator[Any] = iter(())
_DECODER = json.JSONDecoder()
_lock = threading.Lock()
_holders: "list[ParquetFile]" = []

Place = tuple[int, int]
"""Of a row: first byte and size in a text file; row group and row of it in a parquet file."""


def as_list(value: Any) -> list[Any]:
    """What a column with one or more values holds, as a list; [] for None."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


class RowFile(ABC):
    """A file of rows that single columns are read from anew.

    Raises:
      MediaError: by `column`, where the file has changed since it was opened, or cannot be read.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._stamp = self._stamped()

    def column(self, place: Place, name: str) -> Any:
        """What a row has in a column."""
        with _lock:
            try:
                if self._stamped() != self._stamp:
                    raise MediaError(f"{self.file}: the file has changed since it was loaded")
                return self._column(place, name)
            except MediaError:
                raise
            except Exception as error:  # parsers raise whatever they like on damaged data
                self._forget()
                raise MediaError(f"{self.file}: cannot be read any more ({error})") from error

    def _stamped(self) -> tuple[int, int]:
        found = os.stat(self.file)
        return found.st_size, found.st_mtime_ns

    @abstractmethod
    def _column(self, place: Place, name: str) -> Any: ...

    @abstractmethod
    def _forget(self) -> None:
        """Lets go of what is held of the file."""


class TextFile(RowFile):
    """JSON lines, or the objects of a JSON list."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._forget()

    def _forget(self) -> None:
        self._last: tuple[Place, dict[str, Any]] = ((-1, -1), {})

    def _column(self, place: Place, name: str) -> Any:
        if self._last[0] != place:  # a row may hold several pictures
            with open(self.file, "rb") as rows:
                rows.seek(place[0])
                self._last = (place, json.loads(rows.read(place[1]).decode("utf-8-sig")))
        return self._last[1][name]


class ParquetFile(RowFile):
    """A parquet file, of which one batch of rows is held at a time.

    Rows of a group can only be read in order, and often come in one page: files with small row
    groups are read quickly in any order; of one large group what stands before the wanted row is
    read too, and for that moment takes up to three times its size.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._sizes: dict[int, tuple[int, bool]] = {}  # rows of a batch, whether the group is large
        self._forget()

    def _forget(self) -> None:
        self._batches: Iterator[Any] = _NOTHING
        self._held: Any = None
        self._at: tuple[int, str, int] = (-1, "", -1)  # row group, column, number of the batch

    def _column(self, place: Place, name: str) -> Any:
        group, row = place
        if group not in self._sizes:
            with self._opened() as table:
                large = table.metadata.row_group(group).total_byte_size > MAX_OPEN_BYTES
                self._sizes[group] = _batch_rows(table, group), large
        size, large = self._sizes[group]
        number = row // size
        is_over = self._at[2] < number and self._batches is _NOTHING
        if self._at[:2] != (group, name) or self._at[2] > number or is_over:
            self._batches, self._at = self._read(group, name, size), (group, name, -1)
        while self._at[2] < number:
            self._held = next(self._batches)
            self._at = (group, name, self._at[2] + 1)
        if large and self._batches is not _NOTHING:  # a reader keeps the whole page that it is in
            self._batches = _NOTHING
            _give_back()
        if self in _holders:
            _holders.remove(self)
        _holders.append(self)
        while len(_holders) > MAX_HELD:
            _holders.pop(0)._forget()
        return self._held[row % size].as_py()

    def _opened(self) -> Any:
        import pyarrow.parquet as pq  # slow to import, and most runs read no parquet

        # With a buffer a column is read piece by piece, and not a whole row group of it at once.
        return pq.ParquetFile(self.file, buffer_size=_READ_BYTES, pre_buffer=False)

    def _read(self, group: int, name: str, size: int) -> Iterator[Any]:
        with self._opened() as table:
            # a point in a name would be a way into a struct
            columns = None if "." in name else [name]
            for batch in table.iter_batches(size, row_groups=[group], columns=columns):
                yield batch.column(name)

    def rows(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        """All rows, with their places."""
        with self._opened() as table:
            for group in range(table.num_row_groups):
                row = 0
                for batch in table.iter_batches(_batch_rows(table, group), row_groups=[group]):
                    for columns in batch.to_pylist():
                        yield (group, row), columns
                        row += 1
        _give_back()


def _give_back() -> None:
    """Memory that pyarrow keeps for later."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def _batch_rows(table: Any, group: int) -> int:
    """Rows of a group that are read together."""
    about = table.metadata.row_group(group)
    size = about.total_byte_size // max(1, about.num_rows)
    # That counts a value which occurs often once: rows as they are in memory say more.
    first = next(table.iter_batches(PROBE_ROWS, row_groups=[group]), None)
    if first is not None and first.num_rows:
        size = max(size, first.nbytes // first.num_rows)
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, size)))


@dataclass(frozen=True, slots=True)
class InRow(StoredMedia):
    """Encoded bytes that stand in a row of a file.

    Attributes:
      rows: the file.
      place: of the row.
      path: the column, then keys and indices inside it.
      source: file and number of the row, for messages.
    """

    rows: RowFile
    place: Place
    path: tuple[str | int, ...]
    source: str

    @property
    def name(self) -> str:
        inner = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in self.path[1:])
        return f"{self.path[0]}{inner} of {self.source}"

    def read(self) -> bytes:
        value = self.rows.column(self.place, str(self.path[0]))
        for key in self.path[1:]:
            value = as_list(value)[key] if isinstance(key, int) else value[key]
        found = media_reference(value)
        if isinstance(found, str):
            raise MediaError(f"{self.name}: a path now, and bytes when it was loaded")
        return found


def json_rows(file: str) -> Iterator[tuple[Place, Any]] | None:
    """The objects of a JSON list one by one, with their places in the bytes of the file.

    One of them is in memory at a time. None where the file holds no list, or breaks off: what is
    wrong is for the parser of the whole to say.
    """
    with open(file, "rb") as opened:
        try:
            found = _list_places(_Window(opened))
        except UnicodeDecodeError:
            return None
    return None if found is None else _objects(file, found)


def _objects(file: str, places: list[Place]) -> Iterator[tuple[Place, Any]]:
    with open(file, "rb") as opened:
        for first, size in places:
            opened.seek(first)
            yield (first, size), json.loads(opened.read(size).decode())


def _list_places(window: "_Window") -> list[Place] | None:
    """The places of a list's values; None where it is no list, or no whole one."""
    if window.next() != "[":
        return None
    window.advance(window.at + 1)
    found: list[Place] = []
    if window.next() != "]":
        while True:
            window.next()
            first, end = window.offset, window.value()
            if end is None:
                return None
            window.advance(end)
            found.append((first, window.offset - first))
            following = window.next()
            if following == "]":
                break
            if following != ",":
                return None
            window.advance(window.at + 1)
    window.advance(window.at + 1)
    return found if not window.next() else None


class _Window:
    """The part of a JSON file that is being parsed.

    Attributes:
      text: that part.
      at: what of it is done with, in characters.
      offset: the same in bytes, from the beginning of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.text, self.at, self.offset = "", 0, 0
        self._file, self._read = file, codecs.getincrementaldecoder("utf-8")()
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self.offset = len(codecs.BOM_UTF8)
        file.seek(self.offset)

    def advance(self, to: int) -> None:
        """Is done with the text before a place in it."""
        self.offset += len(self.text[self.at : to].encode())
        self.at = to

    def next(self) -> str:
        """The next character that is no white space, which is passed over; "" at the end."""
        while True:
            self.advance(_skip(self.text, self.at))
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def value(self) -> int | None:
        """Where in the text the value ends that begins here; None where none does."""
        while True:
            try:
                end = _DECODER.raw_decode(self.text, self.at)[1]
            except (ValueError, RecursionError):
                end = None  # perhaps only for want of its end
            # The text may break off inside a number, after what is one too: 3.5 of 3.5e-7.
            if end is not None and self._following(end) in (",", "]"):
                return end
            if not self._more():
                return None

    def _following(self, end: int) -> str:
        at = _skip(self.text, end)
        return self.text[at : at + 1]

    def _more(self) -> bool:
        """Reads on, at least as much as is there already; False at the end of the file."""
        data = self._file.read(max(_READ_BYTES, len(self.text) - self.at))
        self.text = self.text[self.at :] + self._read.decode(data, final=not data)
        self.at = 0
        return bool(data)


def _skip(text: str, at: int) -> int:
    """The place of the next character that is no white space of JSON."""
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at
