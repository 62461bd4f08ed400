"""Rows that stay in their files: read again by their place when they are needed.

A data set of pictures is larger than memory, and a step uses a few of them. What is kept of a row
is where it stands; what an example keeps of a picture in its row (bytes, base64) is the way to it.
"""

from __future__ import annotations

import collections
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxr1.data.example import DataError
from jaxr1.media.references import MediaError, StoredMedia, media_reference

Place = tuple[int, int]
"""Of a row in its file: first byte and size in text; see `ParquetFile` for the other one."""

Way = tuple[str | int, ...]
"""The way through a row: a column, then keys and indices."""

MAX_RECENT_ROWS, MAX_RECENT_BYTES = 64, 32 << 20
"""So many of the rows that were read last are in memory, and not more than so much of them."""


def as_list(value: Any) -> list[Any]:
    """What a column with one or more values holds, as a list; [] for None."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


class BadField(ValueError):
    """What is wrong with one field of a row."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"field {name!r}: {reason}")
        self.name, self.reason = name, reason


class _Recent:
    """The rows that were read last: one with several pictures is read and parsed once."""

    def __init__(self) -> None:
        self._rows: collections.OrderedDict[Any, tuple[Any, int]] = collections.OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def get(self, key: Any) -> tuple[Any, int] | None:
        with self._lock:
            found = self._rows.get(key)
            if found is not None:
                self._rows.move_to_end(key)
            return found

    def put(self, key: Any, row: Any, size: int) -> None:
        with self._lock:
            if key not in self._rows:
                self._rows[key], self._bytes = (row, size), self._bytes + size
            while self._bytes > MAX_RECENT_BYTES or len(self._rows) > MAX_RECENT_ROWS:
                self._bytes -= self._rows.popitem(last=False)[1][1]


_recent = _Recent()


class RowFile(ABC):
    """A file of rows, which are read in order, and by their places.

    Attributes:
      file: its path.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._stamp = self._stamped()
        self._found: dict[str, dict[str, Place]] = {}
        self._finding = threading.Lock()

    @abstractmethod
    def scan(self) -> Iterator[tuple[int, Place, Any]]:
        """All rows in order: number, place, and what stands there.

        What cannot be parsed is a DataError in the place of the value.

        Raises:
          DataError: the file is none of its kind.
        """

    @abstractmethod
    def _read(self, place: Place) -> tuple[Any, int]:
        """What stands at a place, and its size in bytes."""

    def row(self, place: Place) -> Any:
        """What stands at a place.

        Raises:
          MediaError: the file has changed since it was opened, or cannot be read.
        """
        try:
            if self._stamped() != self._stamp:
                raise MediaError(f"{self.file}: the file has changed since it was loaded")
            found = _recent.get((self, place))
            if found is None:
                found = self._read(place)
                _recent.put((self, place), *found)
            return found[0]
        except MediaError:
            raise
        except Exception as error:  # parsers raise whatever they like on damaged data
            raise MediaError(f"{self.file}: cannot be read any more ({error})") from error

    def find(self, column: str, value: str) -> Any:
        """The row that has a value in a column; None where there is none."""
        with self._finding:
            if column not in self._found:
                rows = (found for found in self.scan() if isinstance(found[2], Mapping))
                self._found[column] = {str(row.get(column)): place for _, place, row in rows}
        place = self._found[column].get(value)
        return None if place is None else self.row(place)

    def _stamped(self) -> tuple[int, int]:
        found = os.stat(self.file)
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row stands.

    Attributes:
      rows: the file.
      place: in it.
      number: of the row, from 1; in text files its line.
      root: folder that relative paths in the row start from.
    """

    rows: RowFile
    place: Place
    number: int
    root: Path

    @property
    def source(self) -> str:
        """File and number, such as "train.jsonl:17"."""
        return f"{self.rows.file}:{self.number}"

    def read(self) -> Row:
        """The row.

        Raises:
          MediaError: the file has changed since it was opened, or cannot be read.
        """
        return Row(self, self.rows.row(self.place))


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
      at: where it stands.
      value: what stands there: a mapping of columns, or the error that says why there is none.
    """

    at: RowPlace
    value: Any

    @property
    def source(self) -> str:
        """File and number, such as "train.jsonl:17"."""
        return self.at.source

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


class Known(Protocol):
    """A format of rows; see `Format`."""

    def own(self, row: Row) -> Mapping[str, Any]:
        """The columns of a row by our names."""
        ...

    def said(self, name: str) -> str:
        """What a column of ours is called in the file."""
        ...


@dataclass(frozen=True, slots=True)
class InRow(StoredMedia):
    """Encoded bytes that stand in a row of a file.

    Attributes:
      at: where the row stands.
      known: its format.
      way: to the bytes, by our names of columns.
    """

    at: RowPlace
    known: Known
    way: Way

    @property
    def name(self) -> str:
        return f"{self.known.said(written(self.way))} of {self.at.source}"

    def read(self) -> bytes:
        value: Any = self.known.own(self.at.read())
        for key in self.way:
            value = as_list(value)[key] if isinstance(key, int) else value[key]
        found = media_reference(value)
        if isinstance(found, str):
            raise MediaError(f"{self.name}: a path now, and bytes when it was loaded")
        return found


def written(way: Way) -> str:
    """A way through a row as messages write it: messages[0].content[1]."""
    first, *rest = way
    return f"{first}" + "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in rest)
