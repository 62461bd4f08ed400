"""Rows in parquet files, of which a group at a time can be read."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, Any

from jaxr1.base.files import cache_folder
from jaxr1.data.example import DataError
from jaxr1.data.stored import Place, RowFile

BATCH_BYTES = 16 << 20
"""About so much of a file is in memory at a time when it is read in order."""

MAX_BATCH_ROWS, PROBE_ROWS = 64, 4
_READ_BYTES = 1 << 20

MAX_GROUP_BYTES = 8 << 20
"""Row groups up to this size are read as a whole to get at a row; larger ones are written out."""

MAX_HELD = 4
"""Row groups that are in memory at the same time."""

_held: list[tuple[ParquetFile, int, Any]] = []
_lock = threading.Lock()


class ParquetFile(RowFile):
    """A parquet file.

    A row of a group is only got at by reading what stands before it. Groups that this would be slow
    with are written, row by row, to a file without a name, which is gone with the process.

    The place of a row is its group and its number there; in the file without a name -1 - its first
    byte, and its size.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._spool: IO[bytes] | None = None
        self._spooled = 0  # bytes
        self._schema: Any = None
        self._metadata: Any = None

    def scan(self) -> Iterator[tuple[int, Place, Any]]:
        import pyarrow as pa  # slow to import, and most runs read no parquet

        number = 0
        try:
            with self._opened() as table:
                for group in range(table.num_row_groups):
                    batch_rows, is_large = self._extent(table, group)
                    row = 0
                    for batch in table.iter_batches(batch_rows, row_groups=[group]):
                        places = self._written(batch) if is_large else None
                        for i, columns in enumerate(batch.to_pylist()):
                            place = (group, row) if places is None else places[i]
                            row, number = row + 1, number + 1
                            yield number, place, columns
        except pa.ArrowException as error:
            raise DataError(f"{self.file}: not a readable parquet file ({error})") from error
        pa.default_memory_pool().release_unused()

    def _opened(self) -> Any:
        import pyarrow.parquet as pq

        # With a buffer a column is read piece by piece, and not a whole row group of it at once.
        return pq.ParquetFile(self.file, buffer_size=_READ_BYTES, pre_buffer=False)

    def _extent(self, table: Any, group: int) -> tuple[int, bool]:
        """Rows of a group that are read together, and whether the group is a large one."""
        about = table.metadata.row_group(group)
        rows = max(1, about.num_rows)
        size = about.total_byte_size // rows
        # That counts a value which occurs often once: rows as they are in memory say more.
        first = next(table.iter_batches(PROBE_ROWS, row_groups=[group]), None)
        if first is not None and first.num_rows:
            size = max(size, first.nbytes // first.num_rows)
        batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, size)))
        return batch_rows, size * rows > MAX_GROUP_BYTES

    # --- large groups ---------------------------------------------------------------------------
    def _written(self, batch: Any) -> list[Place]:
        """Writes the rows of a batch to the file without a name; gives their places there."""
        import pyarrow as pa

        for i, field in enumerate(batch.schema):
            if pa.types.is_dictionary(field.type):  # its values would stand outside of the rows
                batch = batch.set_column(i, field.name, batch.column(i).dictionary_decode())
        self._schema = batch.schema
        folder = cache_folder()
        try:
            if self._spool is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._spool = tempfile.TemporaryFile(dir=folder)
            places = []
            for i in range(batch.num_rows):
                row = batch.slice(i, 1).serialize()
                self._spool.write(row)
                places.append((-1 - self._spooled, row.size))
                self._spooled += row.size
            self._spool.flush()
        except OSError as error:
            raise DataError(
                f"{self.file}: its row groups have more than {MAX_GROUP_BYTES >> 20} MiB, and its "
                f"rows cannot be written to {folder} for that ({error}); write the file with "
                "smaller row groups, or set JAXR1_CACHE to a folder with room for it"
            ) from error
        return places

    def _read(self, place: Place) -> tuple[Any, int]:
        if place[0] >= 0:
            return self._of_group(*place)
        import pyarrow as pa

        assert self._spool is not None
        data = os.pread(self._spool.fileno(), place[1], -1 - place[0])
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)
        return batch.to_pylist()[0], place[1]

    # --- small groups ---------------------------------------------------------------------------
    def _of_group(self, group: int, row: int) -> tuple[Any, int]:
        with _lock:
            at = next((i for i, (f, g, _) in enumerate(_held) if f is self and g == group), None)
            if at is None:
                with self._opened() as table:
                    _held.append((self, group, table.read_row_group(group, use_threads=False)))
                del _held[:-MAX_HELD]
            else:
                _held.append(_held.pop(at))  # the one that was used last is let go of last
            found = _held[-1][2]
        return found.slice(row, 1).to_pylist()[0], found.nbytes // found.num_rows
