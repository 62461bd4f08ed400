"""The rollouts of a stage on disk: written before an update reads them, replayed after a crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxr1.base.jsonl import read_jsonl, write_rows
from jaxr1.parallel import agree, gather, is_main, on_main
from jaxr1.rewards.grades import Grade
from jaxr1.rl.episodes import Episodes


class Journal:
    """rollouts/STAGE_STEP.jsonl, one row a response."""

    def __init__(self, folder: Path, stage: str):
        self.folder, self.stage = folder, stage

    def file(self, step: int) -> Path:
        return self.folder / f"{self.stage}_{step}.jsonl"

    def has(self, step: int) -> bool:
        """Whether a step was graded before a crash."""
        return bool(agree([self.file(step).is_file()])[0])

    def replay(self, step: int, episodes: Episodes) -> list[Grade] | None:
        """The grades that these responses got in a step before a crash, if it has seen them all.

        The same responses get the same grades again: a grader may depend on time.
        """
        if not self.has(step):
            return None
        return gather(lambda: self._read(step, episodes) if is_main() else None, Grade)[0]

    def _read(self, step: int, episodes: Episodes) -> list[Grade] | None:
        found: dict[tuple[int, int, str], Grade] = {}
        for row in read_jsonl(self.file(step)):
            grade = Grade(row["reward"], row["rewards"], row["status"], row["detail"])
            found[row["draw"], row["sample"], row["response"]] = grade
        grades = [found.get(said) for said in episodes.said()]
        return None if None in grades else [grade for grade in grades if grade is not None]

    def write(
        self,
        step: int,
        episodes: Episodes,
        dropped: Mapping[str, Episodes] | None = None,
        carried: Sequence[dict[str, Any]] = (),
    ) -> None:
        """The rows of a step, those of all hosts; on disk when this returns.

        Args:
          episodes: what is learned from.
          dropped: graded responses that are not, by the `role` that says why.
          carried: groups for the next step; they are read again by `carried`.
        """
        rows = episodes.rows()
        for role, others in (dropped or {}).items():
            rows += [row | {"role": row.get("role", role)} for row in others.rows()]
        kept = self.file(step).with_suffix(".carried")

        def written() -> None:
            # First, as a step whose rows are there is replayed.
            kept.unlink(missing_ok=True)
            if carried:
                write_rows(kept, carried)
            write_rows(self.file(step), rows)

        on_main(written)

    def carried(self, step: int) -> list[dict[str, Any]]:
        """The groups that a step has left for the next one."""
        file = self.file(step).with_suffix(".carried")
        read = lambda: read_jsonl(file) if is_main() and file.is_file() else []
        return gather(read)[0]
