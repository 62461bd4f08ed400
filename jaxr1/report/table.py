"""Scores and length of the held-out sets before and after each stage, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from jaxr1.base.text import visible
from jaxr1.report.history import StageResult, scores


@dataclass(frozen=True)
class Column:
    """A pair of columns, before and after.

    Attributes:
      title: above it.
      key: of the value in an evaluation.
      is_share: written in percent.
    """

    title: str
    key: str
    is_share: bool

    def show(self, value: float | None) -> str:
        """A dash where there is no number."""
        if value is None or not math.isfinite(value):
            return "–"
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.1f}"


def columns(results: Sequence[StageResult]) -> list[Column]:
    """One for each score that was written, and the length."""
    evaluated = []
    for result in results:
        evaluated += [result.before, result.after]
    found = []
    for name in scores(evaluated):
        known = [values.get(name) for values in evaluated]
        is_share = all(value is None or 0 <= value <= 1 for value in known)
        found.append(Column(name, name, is_share))
    return [*found, Column("length", "length_mean", False)]


def cells(result: StageResult, shown: Sequence[Column]) -> list[str]:
    """A row as text: set, stage, before and after of each column, number of questions."""
    row = [result.set, result.stage]
    for column in shown:
        row += [column.show(values.get(column.key)) for values in (result.before, result.after)]
    count = result.after.get("n")
    return [*row, "–" if count is None else f"{count:.0f}"]


def results_table(results: Sequence[StageResult]) -> Table:
    """The results as a table for the terminal; lengths are in tokens."""
    table = Table(title="Before and after each stage (length in tokens)", title_justify="left")
    table.add_column("set", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    shown = columns(results)
    for column in shown:
        # On a narrow terminal numbers are broken, not names.
        table.add_column(_no_markup(column.title), justify="right")
    table.add_column("n", justify="right", no_wrap=True)
    previous = ""
    for result in results:
        name, stage, *values, count = cells(result, shown)
        # One unit is enough: "31.4 → 82.2 %".
        pairs = zip(values[::2], values[1::2], strict=True)
        changes = [f"{before.removesuffix(' %')} → {after}" for before, after in pairs]
        row = ["" if result.set == previous else name, stage, *changes, count]
        previous = result.set
        table.add_row(*map(_no_markup, row))
    return table


def _no_markup(text: str) -> Text:
    return Text(visible(text))
