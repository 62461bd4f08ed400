"""A data set made of the rows of files."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from jaxr1.data.containers import Shard, name_of, open_rows, shards_of
from jaxr1.data.example import DataError, Dataset, Example
from jaxr1.data.formats.base import Format
from jaxr1.data.rows import CheckImages
from jaxr1.data.stored import BadField, Row, RowFile, RowPlace
from jaxr1.media.references import MediaError

BadRows: TypeAlias = Literal["error", "drop"]
"""What a bad row does: "error" refuses the data set, "drop" leaves the row out."""

Make: TypeAlias = Callable[[Row, Format | None, CheckImages], Example]
"""Makes the example of a row; the format is what a registry says of it."""

_ADVICE = (
    'check_images="decode" finds such rows when the data is loaded, bad_rows="drop" leaves them out'
)


class LeftOut(Exception):
    """A good row that the options leave out."""


class _Kept:
    """The rows that a data set consists of: where they stand, in 32 bytes each."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._files: list[tuple[RowFile, Path, Format | None]] = []
        self._numbers = array("q")  # file, number, and the two of the place, row by row

    def open(self, shard: Shard, root: str | None) -> RowFile:
        """Goes on to a file, whose rows are added next."""
        rows = open_rows(shard.file)
        self._files.append((rows, shard.root if root is None else Path(root), shard.known))
        return rows

    def at(self, number: int, place: tuple[int, int]) -> RowPlace:
        """Where a row of the file stands that was opened last."""
        rows, root, _ = self._files[-1]
        return RowPlace(rows, place, number, root)

    def add(self, at: RowPlace) -> None:
        self._numbers.extend((len(self._files) - 1, at.number, *at.place))

    def __len__(self) -> int:
        return len(self._numbers) // 4

    def example(self, index: int) -> Example:
        """Reads a row again; it has been checked.

        Raises:
          DataError: its file has changed, or cannot be read any more.
        """
        file, number, *place = self._numbers[4 * index : 4 * index + 4]
        rows, root, known = self._files[file]
        at = RowPlace(rows, (place[0], place[1]), number, root)
        try:
            return self._make(at.read(), known, "no")
        except (MediaError, BadField) as error:
            raise DataError(f"{at.source}: {error}") from error


def load_rows(
    path: str,
    make: Make,
    *,
    image_root: str | None,
    bad_rows: BadRows,
    limit: int | None,
    check_images: CheckImages,
) -> Dataset:
    """A data set of all rows behind a path.

    Args:
      path: a file, a folder, or a pattern of files, read in alphabetical order; or an entry of a
        registry.
      make: an example of a row. It raises BadField or DataError for a bad row, and LeftOut for one
        that the options leave out; either way the message goes to `Dataset.dropped`. It is called
        again, with check_images="no", when the example is used.
      image_root: folder that relative paths start from; None is the folder of the file.
      bad_rows: see `BadRows`.
      limit: keep only the first so many good rows.
      check_images: how far media are opened now.

    Raises:
      DataError: an option is out of range, a file cannot be read, there is no usable row, or (with
        bad_rows="error") a row is bad. The message names the first bad row.
    """
    check_choice("bad_rows", bad_rows, get_args(BadRows))
    check_choice("check_images", check_images, get_args(CheckImages))
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    kept = _Kept(make)
    dropped: list[dict[str, str]] = []
    bad: list[str] = []
    seen, has_videos = 0, False
    for at, value, known in _rows(path, kept, image_root):
        seen += 1
        try:
            example = make(Row(at, value), known, check_images)
        except LeftOut as reason:
            dropped.append({"source": at.source, "reason": str(reason)})
        except (BadField, DataError) as error:
            bad.append(f"{at.source}: {error}")
            dropped.append({"source": at.source, "reason": str(error)})
        else:
            kept.add(at)
            has_videos = has_videos or example.holds("video")
        if limit is not None and len(kept) >= limit:
            break
    if bad and bad_rows == "error":
        raise DataError(f'{_first_of(bad)} (bad_rows="drop" leaves bad rows out)')
    if not len(kept):
        why = f"; the first: {dropped[0]['source']}: {dropped[0]['reason']}" if dropped else ""
        raise DataError(f"{path}: no usable row among {seen}{why}")
    return Dataset(
        name_of(path),
        len(kept),
        kept.example,
        dropped,
        videos=has_videos,
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


def _rows(
    path: str, kept: _Kept, image_root: str | None
) -> Iterator[tuple[RowPlace, Any, Format | None]]:
    """The rows of all files: where each stands, what stands there, and its format if it is told.

    In the place of what cannot be parsed stands the error that says so.
    """
    for shard in shards_of(path):
        rows = kept.open(shard, image_root)
        try:
            for i, (number, place, value) in enumerate(rows.scan()):
                if shard.limit is not None and i >= shard.limit:
                    break
                yield kept.at(number, place), value, shard.known
        except OSError as error:
            raise DataError(f"{shard.file}: cannot be read ({error})") from error
