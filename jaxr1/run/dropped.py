"""Rows that are left out: each written down once, counted, a few of them shown."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from jaxr1.base.jsonl import AppendLog, NoLog, read_jsonl
from jaxr1.data import DataError, Dataset
from jaxr1.rewards.accuracy import parse_answer_problem
from jaxr1.run.console import Console

SHOWN = 3  # of a stage; the rest is only in dropped.jsonl


class Graded(Protocol):
    """Options of a stage or an evaluation."""

    @property
    def name(self) -> str: ...
    @property
    def needs_reference(self) -> bool: ...
    @property
    def leaves_out(self) -> bool: ...


def unparsable_rows(options: Graded, dataset: Dataset) -> dict[int, str]:
    """Rows whose reference answer cannot be parsed, and why: no response can be graded against it.

    Raises:
      DataError: no row would be left.
    """
    if not options.needs_reference:
        return {}
    bad = {}
    for row in range(len(dataset)):
        answer = dataset[row].answer
        if (reason := parse_answer_problem(answer)) is not None:
            bad[row] = f"answer {answer!r:.80}: {reason}"
    if bad and len(bad) == len(dataset) and options.leaves_out:
        raise DataError(
            f"{dataset.name}: no row has a reference answer that can be parsed; the first: {bad[0]}"
        )
    return bad


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
        shown = self._shown.get(stage, 0)
        if not self.note(stage, source, reason) or shown == SHOWN:
            return
        self._shown[stage] = shown + 1
        more = f" (further ones are only in {self.file})" if shown + 1 == SHOWN else ""
        self.console.print(f"{stage}: left out: {source}: {reason}{more}")

    def report(self, options: Graded, dataset: Dataset, unparsable: dict[int, str]) -> None:
        """Writes down and counts rows that the reader left out or that no rule can grade."""
        left_out = list(dataset.dropped)
        staying = []
        for row, reason in unparsable.items():
            source = dataset[row].source
            if options.leaves_out:
                left_out.append({"source": source, "reason": reason})
            else:
                kept = f"{reason} (the row stays, no answer to it is right)"
                staying.append({"source": source, "reason": kept})
        total = len(dataset) + len(dataset.dropped)
        self._count(options.name, left_out, total, "rows are left out")
        self._count(options.name, staying, total, "reference answers cannot be parsed")

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
