"""What a run shows: a live table with a progress bar on a terminal, plain lines elsewhere.

stage rl (2 of 2)   ━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━  120/200   0:02:31 left in stage   sampling
reward/mean        0.713     eval/digits/accuracy   0.684
reward/accuracy    0.621     eval/digits/format     0.992
...
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from jaxr1.base.names import is_component, is_score
from jaxr1.base.text import visible
from jaxr1.report.report import Report

REWARDS = "reward/*"  # stands for all components
MAIN = (
    "reward/mean",
    REWARDS,
    "reward/frac_zero_std",
    "rollout/length_mean",
    "policy/loss",
    "policy/kl",
    "reward/kl",
    "policy/accuracy",
    "policy/margin",
    "preference/pairs",
    "critic/loss",
    "critic/explained_variance",
    "policy/grad_norm",
    "time/step_s",
)
_SMOOTHING = 0.1  # of the seconds a step takes, for the time left


def format_number(value: float | None) -> str:
    """A metric in at most seven characters or so: 0.713, 58.2, 1.2e-05; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e5 or size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 10 else f"{value:.1f}"


def format_seconds(seconds: float | None) -> str:
    """h:mm:ss, or m:ss under an hour; a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return "–:––"
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Terminal(RichConsole):
    def on_broken_pipe(self) -> None:
        """A closed pipe ends the printing, not the process."""
        raise BrokenPipeError


class Console:
    """Shows a run; a context manager that leaves the terminal as it was, come what may.

    Args:
      live: True for the live table, False for plain lines; None: live where standard output is a
        terminal.
      file: where to write, standard output by default.
      quiet: show nothing: another host does.
    """

    def __init__(
        self, *, live: bool | None = None, file: IO[str] | None = None, quiet: bool = False
    ):
        self.rich = _Terminal(file=file, highlight=False, quiet=quiet)
        if live is None:
            live = not quiet and (
                self.rich.is_terminal
                and not self.rich.is_dumb_terminal
                and not self.rich.is_jupyter
            )
        self.rich.soft_wrap = not live  # a log keeps its lines whole, whatever width it guesses
        self.is_live = live
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        self._stage, self._of, self._total, self._step = "", "", 0, 0
        self._phase = ""
        self._count: Callable[[], int] | None = None
        self._programs = (0, 0)  # that were compiled before the stage, and those that it may need
        self._metrics: dict[str, float] = {}
        self._last_step_at: float | None = None
        self._seconds_per_step: float | None = None

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            if kind is None:
                self._phase = ""
            try:
                self._live.stop()  # shows the cursor again and gives stdout and stderr back
            except OSError:
                self._nobody_reads()
            self._live = None

    def stage(self, name: str, total: int, done: int = 0, place: tuple[int, int] = (1, 1)) -> None:
        """A stage begins, or goes on after `done` of `total` steps.

        Args:
          place: its number, from 1, and how many there are.
        """
        of = " ({} of {})".format(*place) if place[1] > 1 else ""
        if (
            self.is_live and self._live is None
        ):  # not before: a run that is finished has nothing to show
            self._live = Live(
                get_renderable=self._render,
                console=self.rich,
                refresh_per_second=4,
                vertical_overflow="crop",
            )
            self._live.start()
        self._stage, self._of, self._total, self._step = name, of, total, done
        self._last_step_at, self._seconds_per_step = time.monotonic(), None
        self._phase = ""
        # evaluations stay: they are what this stage starts from
        self._metrics = {
            key: value for key, value in self._metrics.items() if key.startswith("eval/")
        }
        if not self.is_live:
            start = f", going on after step {done}" if done else ""
            steps = f": {total} steps{start}" if total else ""  # a filter has none
            self.print(f"stage {name}{of}{steps}")

    def programs(self, count: Callable[[], int], most: int) -> None:
        """How many programs the stage may compile, and what counts those of the process.

        Each may take a minute of a large model; the count is shown while it grows.
        """
        self._count, self._programs = count, (count(), most)

    def _compiled(self) -> str:
        if self._count is None:
            return ""
        before, most = self._programs
        return f"compiled {self._count() - before} of at most {most} programs"

    def phase(self, text: str) -> None:
        """What the run does now (sampling, grading, update, ...); only the live table shows it."""
        self._phase = text

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done, or an evaluation has come in (the same step again).

        Args:
          step: of this stage, 1 after the first update; 0 is the evaluation before training.
          metrics: name -> value; the main ones are shown.
        """
        now = time.monotonic()
        compiled = (
            metrics.get("perf/compiles", 0) > 0
        )  # such a step says nothing about the next ones
        if step > self._step and self._last_step_at is not None and not compiled:
            seconds = (now - self._last_step_at) / (step - self._step)
            old = self._seconds_per_step
            self._seconds_per_step = seconds if old is None else old + _SMOOTHING * (seconds - old)
        if step > self._step or self._last_step_at is None:
            self._last_step_at = now
        self._step = step
        self._metrics |= {key: float(value) for key, value in metrics.items()}
        if not self.is_live:
            shown = "  ".join(
                f"{key} {format_number(float(metrics[key]))}" for key in self._shown(metrics)
            )
            left = (
                f"  {format_seconds(self.seconds_left())} left in stage"
                if self._seconds_per_step is not None
                else ""
            )
            said = f"  {self._compiled()}" if compiled and self._count is not None else ""
            self.print(f"{self._stage} {step}/{self._total}  {shown}{left}{said}")

    def seconds_left(self) -> float | None:
        """Estimated seconds until the stage ends; None before a step without a compilation."""
        if self._seconds_per_step is None:
            return None
        return max(0, self._total - self._step) * self._seconds_per_step

    def step_seconds_left(self) -> float | None:
        """Estimated seconds until the step in progress ends; None as in `seconds_left`."""
        if self._seconds_per_step is None or self._last_step_at is None:
            return None
        return max(0.0, self._seconds_per_step - (time.monotonic() - self._last_step_at))

    def print(self, *objects: Any) -> None:
        """Prints above the table; brackets in strings are no markup, control characters are shown.

        Where nobody reads any more (a closed terminal or pipe) the run goes on without a console:
        all that counts is in its files.
        """
        shown = [visible(x) if isinstance(x, str) else x for x in objects]
        try:
            self.rich.print(*shown, markup=False)
            if self._live is None:
                self.rich.file.flush()  # a log that is followed should not lag by a buffer
        except OSError:
            self._nobody_reads()

    def report(self, report: Report) -> None:
        """What the report says at the end of a run, and where it is."""
        self.print(report.table)
        self.print(f"curves: {report.png}\nreport: {report.html}")

    def _nobody_reads(self) -> None:
        """What is still to be written goes nowhere."""
        with contextlib.suppress(OSError, ValueError):  # a file without a number of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.rich.file.fileno())

    @staticmethod
    def _shown(metrics: Mapping[str, float]) -> list[str]:
        shown = []
        for key in MAIN:
            if key == REWARDS:
                shown += [name for name in metrics if is_component(name)]
            elif key in metrics:
                shown.append(key)
        if metrics.get("reward/unscored", 0) > 0:
            shown.append("reward/unscored")
        measured = [key for key in metrics if key.startswith("eval/")]
        return shown + [key for key in measured if is_score(key) or key.endswith("/length_mean")]

    def _render(self) -> RenderableType:
        line = Table.grid(padding=(0, 2))
        line.add_row(
            Text(visible(f"stage {self._stage}{self._of}"), style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._step, width=32),
            Text(f"{self._step}/{self._total}"),
            Text(f"{format_seconds(self.seconds_left())} left in stage", style="cyan"),
            self._spinner if self._phase else Text(""),
            Text(visible(self._phase), style="dim"),
            Text(self._compiled() if self._seconds_per_step is None else "", style="dim"),
        )
        keys = self._shown(self._metrics)
        if not keys:
            return line
        left = [key for key in keys if not key.startswith("eval/")]
        right = [key for key in keys if key.startswith("eval/")]
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "right", "left", "right"):
            table.add_column(justify=justify)  # type: ignore[arg-type]
        for i in range(max(len(left), len(right))):
            cells = []
            for column in (left, right):
                key = column[i] if i < len(column) else ""
                cells += [
                    Text(visible(key), style="dim"),
                    Text(format_number(self._metrics[key]) if key else ""),
                ]
            table.add_row(*cells)
        return Group(line, table)
