"""Rows whose pass rate lies in a range: those that `python -m jaxr1.filter` has looked at."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxr1.base.checks import check_types
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data.example import DataError, Dataset, DataSource, Example, source_files

PASS_RATE = "pass_rate"
"""The column of metadata that holds a row's pass rate."""


@dataclass(frozen=True)
class Rated:
    """The rows of another data set whose pass rate lies in a range.

    Each has its pass rate in `metadata["pass_rate"]`, where a curriculum finds it.

    Attributes:
      data: the rows, with the options that they were rated with.
      rates: the file that `python -m jaxr1.filter` has written: one row each, with its number among
        the rows ("row", from 0), its "source" and its "pass_rate".
      low: rows with a lower pass rate are left out.
      high: rows with a higher pass rate are left out.
    """

    data: DataSource
    rates: str
    low: float = 0.01
    high: float = 0.99

    def __post_init__(self) -> None:
        check_types(self)

    def files(self) -> list[str]:
        """The files of rows and the file of rates."""
        return [*source_files(self.data), self.rates]

    def load(self) -> Dataset:
        """The rows that are kept; the others are in `Dataset.dropped`.

        Raises:
          DataError: the rates are missing, broken or of other rows, or no row is in the range.
        """
        rows = self.data.load()
        found = self._read()
        kept: list[tuple[int, float]] = []
        dropped = list(rows.dropped)
        for row in range(len(rows)):
            if row not in found:
                continue
            source, rate = found[row]
            if rate is not None and self.low <= rate <= self.high:
                kept.append((row, rate))
                continue
            why = "no answer was scored" if rate is None else f"pass rate {rate:g}"
            dropped.append({"source": source, "reason": f"{why}, kept is {self._range}"})
        self._check(rows, found)
        if not kept:
            raise DataError(f"{self.rates}: none of {len(found)} pass rates is {self._range}")

        def get(i: int) -> Example:
            row, rate = kept[i]
            return rows[row].noted({PASS_RATE: rate})

        return rows.made(len(kept), get, dropped)

    @property
    def _range(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def _read(self) -> dict[int, tuple[str, float | None]]:
        """{row: (source, pass rate)}."""
        if not Path(self.rates).is_file():
            raise DataError(f"{self.rates}: no such file; python -m jaxr1.filter writes it")
        try:
            lines = read_jsonl(Path(self.rates))
            return {line["row"]: (line["source"], line[PASS_RATE]) for line in lines}
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise DataError(
                f"{self.rates}: expected lines with 'row', 'source' and 'pass_rate' ({error!r})"
            ) from error

    def _check(self, rows: Dataset, found: dict[int, tuple[str, float | None]]) -> None:
        """Refuses rates of other rows: of the first and last one, and by their number."""
        known = sorted(found)
        if known and known[-1] >= len(rows):
            raise DataError(
                f"{self.rates}: a rate of row {known[-1]}, but {rows.name} has {len(rows)} rows"
            )
        for row in known[:1] + known[-1:]:
            if Path(found[row][0]).name != Path(rows[row].source).name:
                raise DataError(
                    f"{self.rates}: row {row} was {found[row][0]!r}, and is {rows[row].source!r}: "
                    "the rows are not those that were rated"
                )
