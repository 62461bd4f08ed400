"""What a run has learned, from its files alone: a table, curves, a page of sample answers.

metrics.jsonl + rollouts/eval_*.jsonl + media/*.png  ->  table, curves.png, report.html
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console as RichConsole
from rich.table import Table

from jaxr1.base.files import write_whole
from jaxr1.report.curves import DARK, LIGHT, draw_curves
from jaxr1.report.history import StageResult, read_history, stage_results
from jaxr1.report.page import page_html
from jaxr1.report.table import results_table


@dataclass(frozen=True)
class Report:
    """What `write_report` made.

    Attributes:
      table: for a rich console; `text` is the same as plain text.
      png: the curves.
      html: the page.
      results: the numbers in the table.
    """

    table: Table
    png: Path
    html: Path
    results: tuple[StageResult, ...]

    @property
    def text(self) -> str:
        console = RichConsole(file=io.StringIO(), width=120, color_system=None)
        console.print(self.table)
        return console.file.getvalue()  # type: ignore[attr-defined]


def write_report(run_dir: str | os.PathLike[str]) -> Report:
    """Writes curves.png and report.html into a run directory; safe to call again at any time.

    Args:
      run_dir: holds `metrics.jsonl` and, where there are any,
        `rollouts/eval_<set>_<stage>_<step>.jsonl` (one row a question: prompt, answer, response,
        rewards by name, finish_reason, media) and `media/<hash>.png`.

    Raises:
      FileNotFoundError: there is no metrics.jsonl.
      ValueError: a file is broken; names file and line.
    """
    directory = Path(run_dir)
    history = read_history(directory)
    results = stage_results(history)
    light, dark = draw_curves(history, LIGHT), draw_curves(history, DARK)
    png, page = directory / "curves.png", directory / "report.html"
    write_whole(png, light)
    write_whole(page, page_html(directory, history, results, light, dark).encode("utf-8"))
    return Report(results_table(results), png, page, tuple(results))
