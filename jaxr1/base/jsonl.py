"""JSON lines: files that are only ever appended to, and files that are written whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO


class AppendLog:
    """An append-only file of JSON lines, on resume cut back to a checkpointed offset.

    Every line is flushed: a killed process loses at most the line it was writing. Such a torn last
    line is cut when the file is opened.

    Args:
      path: the file; it and its directory are made when needed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(self.path, "ab+")
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        position, keep = end, 0
        while position > 0:  # backwards in blocks: the file may be long, a line is not
            start = max(0, position - 65536)
            self._file.seek(start)
            newline = self._file.read(position - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            position = start
        if keep != end:
            self._file.truncate(keep)
        self._file.seek(0, os.SEEK_END)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one object. NaN and infinities become null: JSON has no such numbers.

        Raises:
          TypeError: something in it is no JSON value.
        """
        self._file.write(
            json.dumps(_finite(row), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        )
        self._file.flush()

    def tell(self) -> int:
        """The length in bytes, safely on disk: what a checkpoint writes down."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, offset: int) -> None:
        """Forgets everything after `offset`, a value that `tell` gave.

        Raises:
          ValueError: the file is shorter than that, or no line ends there: it is not the file of
            that checkpoint.
        """
        end = self.tell()
        if offset < 0 or offset > end:
            raise ValueError(
                f"{self.path} has {end} bytes, but the checkpoint was made when it had {offset}: "
                "lines have been lost"
            )
        if offset > 0:
            self._file.seek(offset - 1)
            if self._file.read(1) != b"\n":
                raise ValueError(
                    f"{self.path}: no line ends at byte {offset}; "
                    "this is not the file of that checkpoint"
                )
        self._file.truncate(offset)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> AppendLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class NoLog:
    """In the place of an `AppendLog` that another host writes."""

    def write(self, row: Mapping[str, Any]) -> None:
        pass

    def tell(self) -> int:
        return 0

    def truncate(self, offset: int) -> None:
        pass

    def close(self) -> None:
        pass


def _finite(value: Any) -> Any:
    """The same value with every float that JSON cannot hold replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a torn last line (a killed process) is left out.

    Raises:
      ValueError: any other line is not a JSON object; names file and line.
    """
    rows = []
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))  # the last line may be torn inside a letter
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object")
        rows.append(row)
    return rows


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines by atomic rename, on disk before this returns."""
    scratch = file.with_suffix(".tmp")
    with open(scratch, "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
        f.flush()
        os.fsync(f.fileno())
    os.replace(scratch, file)
