"""Rows that are left out: each written down once, counted, a few of them shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

from jaxr1.base.jsonl import AppendLog, NoLog, read_jsonl
from jaxr1.data import DataError, Dataset, Example
from jaxr1.rewards.accuracy import quoted_problem, takes_algebra
from jaxr1.run.console import Console

SHOWN = 3  # of a stage; the rest is only in dropped.jsonl
PARSED = 500  # answers of a data set that take computer algebra, a second in all, before a run
STAYS = "(the row stays, no answer to it is right)"


class Graded(Protocol):
    """Options of a stage or an evaluation."""

    @property
    def name(self) -> str: ...
    @property
    def needs_reference(self) -> bool: ...
    @property
    def leaves_out(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Unparsable:
    """What is known of the reference answers of a data set before a run begins.

    Attributes:
      rows: {row: why no response can be graded against its answer}.
      failed: how many of these took computer algebra.
      parsed: all that took it and were parsed.
      later: the others, which are parsed when they are drawn or asked.
    """

    rows: dict[int, str]
    failed: int = 0
    parsed: int = 0
    later: int = 0


def answer_problem(options: Graded, example: Example) -> str | None:
    """Why no response can be graded against the reference answer of an example; None if one can."""
    return quoted_problem(example.answer) if options.needs_reference else None


def unparsable_rows(options: Graded, dataset: Dataset) -> Unparsable:
    """Rows whose reference answer cannot be parsed, as far as that is looked at beforehand.

    Every row is looked at for what its text alone says. Of those that take computer algebra, which
    are milliseconds each, `PARSED` are parsed, spread over the data set; more only until one is
    found that can be graded, where rows are left out. What is found depends on the data alone.

    Raises:
      DataError: no row would be left.
    """
    if not options.needs_reference:
        return Unparsable({})
    plain: dict[int, str] = {}
    doubtful = []
    for row in range(len(dataset)):
        answer = dataset[row].answer
        if takes_algebra(answer):
            doubtful.append(row)
        elif (reason := quoted_problem(answer)) is not None:
            plain[row] = reason
    is_sound = len(plain) + len(doubtful) < len(dataset)  # some row can be graded
    spread = doubtful[:: max(1, -(-len(doubtful) // PARSED))]
    failed, parsed = {}, 0
    for row in [*spread, *sorted({*doubtful} - {*spread})]:
        if parsed >= len(spread) and (is_sound or not options.leaves_out):
            break
        parsed += 1
        if (reason := quoted_problem(dataset[row].answer)) is not None:
            failed[row] = reason
        else:
            is_sound = True
    bad = dict(sorted({**plain, **failed}.items()))
    if bad and len(bad) == len(dataset) and options.leaves_out:
        raise DataError(
            f"{dataset.name}: no row has a reference answer that can be parsed; the first: {bad[0]}"
        )
    return Unparsable(bad, len(failed), parsed, len(doubtful) - parsed)


class Dropped:
    """dropped.jsonl of a run directory.

    Attributes:
      log: the file; another host writes it where `writes` is False.
    """

    def __init__(self, folder: Path, console: Console, writes: bool = True):
        self.file, self.console = folder / "dropped.jsonl", console
        self.log = AppendLog(self.file) if writes else NoLog()
        self._known: set[tuple[str, str, str]] = set()
        self._shown: dict[str, int] = {}

    def tell(self) -> int:
        """The length of the file, for a checkpoint."""
        return self.log.tell()

    def cut(self, offset: int) -> None:
        """Forgets what was written after a checkpoint."""
        self.log.truncate(offset)

    def open(self) -> None:
        """Reads what was written before, so that nothing is written twice."""
        if isinstance(self.log, NoLog):
            return
        for row in read_jsonl(self.file):
            self._known.add((row["stage"], row["source"], row["reason"]))

    def note(self, stage: str, source: str, reason: str) -> bool:
        """Writes down something left out; whether it is new."""
        if (stage, source, reason) in self._known:
            return False
        self._known.add((stage, source, reason))
        self.log.write({"stage": stage, "source": source, "reason": reason})
        return True

    def drop(self, stage: str, source: str, reason: str) -> None:
        """As `note`, and shows the first few of a stage."""
        self._tell(stage, source, reason, "left out: ")

    def stay(self, stage: str, source: str, reason: str) -> None:
        """As `drop`, of a row that no rule can grade, and which is used all the same."""
        self._tell(stage, source, f"{reason} {STAYS}", "")

    def _tell(self, stage: str, source: str, reason: str, what: str) -> None:
        shown = self._shown.get(stage, 0)
        if not self.note(stage, source, reason) or shown == SHOWN:
            return
        self._shown[stage] = shown + 1
        more = f" (further ones are only in {self.file})" if shown + 1 == SHOWN else ""
        self.console.print(f"{stage}: {what}{source}: {reason}{more}")

    def report(self, options: Graded, dataset: Dataset, found: Unparsable) -> None:
        """Writes down and counts rows that the reader left out or that no rule can grade."""
        left_out = list(dataset.dropped)
        staying = []
        for row, reason in found.rows.items():
            source = dataset[row].source
            if options.leaves_out:
                left_out.append({"source": source, "reason": reason})
            else:
                staying.append({"source": source, "reason": f"{reason} {STAYS}"})
        total = len(dataset) + len(dataset.dropped)
        self._count(options.name, left_out, total, "rows are left out")
        self._count(options.name, staying, total, "reference answers cannot be parsed")
        if found.later:
            share = 100 * found.failed / found.parsed
            self.console.print(
                f"{options.name}: of {found.parsed + found.later} answers that take computer "
                f"algebra, {found.parsed} were looked at, and {share:.1f} % of these cannot be "
                "parsed; each of the others is looked at in its turn"
            )

    def _count(self, name: str, rows: list[dict[str, str]], total: int, what: str) -> None:
        for row in rows:
            self.note(name, row["source"], row["reason"])
        if rows:
            self.console.print(
                f"{name}: {len(rows)} of {total} {what}, the first: "
                f"{rows[0]['source']}: {rows[0]['reason']} (all in {self.file})"
            )

    def close(self) -> None:
        self.log.close()
