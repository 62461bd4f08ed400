"""Files of rows: which there are behind a path, and what reads them."""

import glob
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxr1.data.example import DataError
from jaxr1.data.formats.base import Format
from jaxr1.data.formats.llama_factory import REGISTRY, entry_of
from jaxr1.data.parquet import ParquetFile
from jaxr1.data.stored import RowFile
from jaxr1.data.text import CommaTable, JsonLines, JsonList, TabTable

KINDS: Mapping[str, Callable[[str], RowFile]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonList,
    ".parquet": ParquetFile,
    ".pq": ParquetFile,
    ".tsv": TabTable,
    ".csv": CommaTable,
}
_DESCRIPTIONS = (REGISTRY, "dataset_infos.json", "state.json", "config.json")
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """A file of rows.

    Attributes:
      file: its path.
      root: folder that relative paths in its rows start from.
      known: the format of its rows, where a registry says so; else their columns do.
      limit: so many of its rows are read, where a registry says so.
    """

    file: str
    root: Path
    known: Format | None = None
    limit: int | None = None


def shards_of(path: str) -> list[Shard]:
    """The files of rows behind the path of a file, a folder, a pattern, or an entry of a registry.

    Raises:
      DataError: there are none, or a folder holds more than one data set.
    """
    entry = entry_of(os.fspath(path))
    if entry is not None:
        found = _files(str(entry.path))
        root = entry.registry.parent
        return [Shard(file, root, entry.known, entry.limit) for file in found]
    return [Shard(file, Path(file).parent) for file in _files(os.fspath(path))]


def files_of(path: str) -> list[str]:
    """All files that are read for a path, also that of a registry; see `shards_of`."""
    entry = entry_of(os.fspath(path))
    registry = [] if entry is None else [str(entry.registry)]
    return [*registry, *(shard.file for shard in shards_of(path))]


def name_of(path: str) -> str:
    """How a data set is called: as its file or folder, or its entry of a registry."""
    text = os.fspath(path)
    entry = entry_of(text)
    return Path(text).stem if entry is None else entry.name


def open_rows(file: str) -> RowFile:
    """What reads a file of rows.

    Raises:
      DataError: a kind of file that is not read, or one that cannot be opened.
    """
    suffix = Path(file).suffix.lower()
    if suffix not in KINDS:
        raise DataError(f"{file}: unknown kind of file {suffix!r}; known are {', '.join(KINDS)}")
    try:
        return KINDS[suffix](file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _files(text: str) -> list[str]:
    if os.path.isfile(text):
        return [text]
    if os.path.isdir(text):
        return _of_folder(Path(text))
    folder, at, split = text.rpartition("@")
    if at and os.path.isdir(folder):  # as EasyR1 names a split
        return _of_folder(Path(folder), split)
    files = sorted(glob.glob(text)) if any(sign in text for sign in "*?[") else []
    if not files:
        raise DataError(f"{text}: no such file")
    return files


def _of_folder(folder: Path, split: str | None = None) -> list[str]:
    """The data files of a folder, or of "data" in it, in alphabetical order."""
    found: list[Path] = []
    for place in (folder, folder / "data"):
        if not found and place.is_dir():
            inner = sorted(place.iterdir())
            kept = [file for file in inner if file.suffix.lower() in KINDS and file.is_file()]
            found = [f for f in kept if f.name not in _DESCRIPTIONS and f.name[0] != "."]
    splits = {file: _split_of(file) for file in found}
    if split is not None:
        found = [file for file in found if splits[file] == split]
    if not found:
        wanted = f" of the split {split!r}" if split is not None else ""
        raise DataError(f"{folder}: a folder without data files{wanted} ({', '.join(KINDS)})")
    kinds = sorted({file.suffix.lower() for file in found})
    if len(kinds) > 1:
        pattern = found[0].parent / f"*{kinds[0]}"
        raise DataError(
            f"{folder}: a folder with data files of several kinds ({', '.join(kinds)}); name those "
            f'that are meant by a pattern, such as "{pattern}"'
        )
    named = sorted({splits[file] for file in found} - {""})
    if len(named) > 1:
        raise DataError(
            f"{folder}: a folder with the splits {', '.join(named)}; name one of them, such as "
            f'"{folder}@{named[0]}"'
        )
    return list(map(str, found))


def _split_of(file: Path) -> str:
    """The split that a file is named after, as in train-00000-of-00002.parquet; "" for none."""
    found = _SPLIT.match(file.name)
    return found[1].lower() if found else ""
