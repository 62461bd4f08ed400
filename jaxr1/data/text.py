"""Rows in text files: JSON lines, JSON lists, and tables of tabs or commas."""

import codecs
import csv
import io
import itertools
import json
import sys
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxr1.data.example import DataError
from jaxr1.data.json_lists import list_places
from jaxr1.data.stored import Place, RowFile

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # for all of the process: a cell may be a picture


class TextFile(RowFile):
    """A file of rows in UTF-8, or in what a byte order mark says.

    Attributes:
      encoding: of the text.
      start: where it begins, in bytes.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        with open(file, "rb") as opened:
            head = opened.read(4)
        marks = [(mark, name) for mark, name in _MARKS if head.startswith(mark)]
        mark, self.encoding = marks[0] if marks else (b"", "utf-8")
        self.start = len(mark)

    @abstractmethod
    def _parsed(self, text: str) -> Any:
        """The row of a text."""

    def _read(self, place: Place) -> tuple[Any, int]:
        with open(self.file, "rb") as opened:
            opened.seek(place[0])
            found = opened.read(place[1])
        return self._parsed(found.decode(self.encoding)), place[1]

    def _lines(self) -> Iterator[tuple[Place, bytes]]:
        """The lines with their places; one ends with a line feed."""
        begin = self.start
        with open(self.file, "rb") as opened:
            opened.seek(begin)
            for line in opened if self.encoding == "utf-8" else self._wide_lines(opened):
                place, begin = (begin, len(line)), begin + len(line)
                yield place, line

    def _wide_lines(self, opened: Any) -> Iterator[bytes]:
        """Lines of two bytes a character, where the byte of a line feed may stand in others."""
        text = io.TextIOWrapper(opened, self.encoding, errors="surrogatepass", newline="\n")
        for line in text:
            yield line.encode(self.encoding, errors="surrogatepass")


class JsonLines(TextFile):
    """A row a line; blank ones are none."""

    def scan(self) -> Iterator[tuple[int, Place, Any]]:
        for number, (place, line) in enumerate(self._lines(), 1):
            if line.strip(b"\0\xef\xbb\xbf \t\r\n"):
                try:
                    yield number, place, self._parsed(line.decode(self.encoding))
                except (ValueError, RecursionError) as error:
                    yield number, place, DataError(f"not JSON: {error}")

    def _parsed(self, text: str) -> Any:
        return json.loads(text.removeprefix("\ufeff"))  # of a file that was joined to another


class JsonList(TextFile):
    """The objects of a JSON list."""

    def scan(self) -> Iterator[tuple[int, Place, Any]]:
        places = list_places(self.file, self.encoding, self.start)
        if places is None:
            raise self._wrong()
        with open(self.file, "rb") as opened:
            for number, (first, size) in enumerate(places, 1):
                opened.seek(first)
                value = json.loads(opened.read(size).decode(self.encoding))
                yield number, (int(first), int(size)), value

    def _wrong(self) -> DataError:
        """What the parser of the whole says."""
        try:
            text = Path(self.file).read_bytes()[self.start :].decode(self.encoding)
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            hint = "; is it JSON lines? then name it .jsonl" if "Extra data" in str(error) else ""
            return DataError(f"{self.file}: not JSON: {error}{hint}")
        kind = type(rows).__name__
        return DataError(f"{self.file}: expected a list of objects, got {kind}")

    def _parsed(self, text: str) -> Any:
        return json.loads(text)


class Delimited(TextFile):
    """A table whose first line names the columns; an empty cell is none.

    As tables are written by pandas and spreadsheets: a cell in double quotes may hold the
    delimiter, line breaks, and quotes written twice.
    """

    delimiter: str

    def scan(self) -> Iterator[tuple[int, Place, Any]]:
        header: list[str] | None = None
        for number, place, cells in self._records():
            if isinstance(cells, DataError):
                if header is None:
                    raise DataError(f"{self.file}: the line of column names: {cells}")
                yield number, place, cells
            elif header is None:
                self._header = header = cells
            elif cells:
                yield number, place, self._named(cells)

    def _records(self) -> Iterator[tuple[int, Place, Any]]:
        """The records with the number of their first line; one may go over several lines."""
        lines = self._lines()
        number = 1
        for place, line in lines:
            taken = [(place, line)]
            try:
                cells: Any = self._cells(line.decode(self.encoding), self._following(lines, taken))
            except UnicodeDecodeError as error:
                cells = DataError(f"not text: {error}")
            except csv.Error as error:
                cells = DataError(f"not a row of cells: {error}")
            yield number, (place[0], sum(size for (_, size), _ in taken)), cells
            number += len(taken)

    def _following(
        self, lines: Iterator[tuple[Place, bytes]], taken: list[tuple[Place, bytes]]
    ) -> Iterator[str]:
        """The texts of lines, which are added to those that were taken."""
        for found in lines:
            taken.append(found)
            yield found[1].decode(self.encoding)

    def _cells(self, text: str, following: Iterator[str]) -> list[str]:
        """The cells of a record that begins with a text, and may go on in those that follow."""
        plain = text.removesuffix("\n").removesuffix("\r")
        if '"' not in plain:
            return plain.split(self.delimiter) if plain else []
        return next(csv.reader(itertools.chain([text], following), delimiter=self.delimiter))

    def _named(self, cells: list[str]) -> Any:
        if len(cells) != len(self._header):
            return DataError(
                f"{len(cells)} cells, and {len(self._header)} columns have a name; is there a "
                "double quote that opens a cell and is not closed?"
            )
        pairs = zip(self._header, cells, strict=True)
        return {name: cell or None for name, cell in pairs}

    def _parsed(self, text: str) -> Any:
        first, *more = io.StringIO(text, newline="\n")
        return self._named(self._cells(first, iter(more)))


class TabTable(Delimited):
    """Cells between tabs."""

    delimiter = "\t"


class CommaTable(Delimited):
    """Cells between commas."""

    delimiter = ","
