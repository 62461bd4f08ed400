"""Accuracy, format and length before and after each stage, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from jaxr1.report.history import StageResult


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _plain(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1f}"


COLUMNS = (("accuracy", "accuracy", _percent), ("format", "format", _percent), ("length", "length_mean", _plain))
"""(title, value, how it is written) of each pair of columns, before and after."""


def cells(result: StageResult) -> list[str]:
    """A row as text: set, stage, before and after of each column, number of questions."""
    row = [result.set, result.stage]
    for _, key, show in COLUMNS:
        row += [show(result.before.get(key)), show(result.after.get(key))]
    count = result.after.get("n")
    return [*row, "–" if count is None else f"{count:.0f}"]


def results_table(results: Sequence[StageResult]) -> Table:
    """The results as a table for the terminal; lengths are in tokens."""
    table = Table(title="Before and after each stage (length in tokens)", title_justify="left")
    table.add_column("set", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    for title, _, _ in COLUMNS:
        table.add_column(title, justify="right")  # on a narrow terminal numbers are broken, not names
    table.add_column("n", justify="right", no_wrap=True)
    previous = ""
    for result in results:
        name, stage, *values, count = cells(result)
        # one unit is enough: "31.4 → 82.2 %"
        pairs = [f"{a.removesuffix(' %')} → {b}" for a, b in zip(values[::2], values[1::2], strict=True)]
        shown = "" if result.set == previous else name
        previous = result.set
        table.add_row(*(_no_markup(cell) for cell in (shown, stage, *pairs, count)))
    return table


def _no_markup(text: str) -> str:
    return text.replace("[", r"\[")
