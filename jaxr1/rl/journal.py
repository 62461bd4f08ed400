"""The rollouts of a stage on disk: written before an update reads them, replayed after a crash."""

from __future__ import annotations

from pathlib import Path

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
        """The grades that a step got before a crash, if they are of these very responses.

        The same responses get the same grades again: a grader may depend on time.
        """
        if not self.has(step):
            return None
        return gather(lambda: self._read(step, episodes) if is_main() else None, Grade)[0]

    def _read(self, step: int, episodes: Episodes) -> list[Grade] | None:
        rows = read_jsonl(self.file(step))
        if [(row["draw"], row["sample"], row["response"]) for row in rows] != episodes.said():
            return None
        return [Grade(row["reward"], row["rewards"], row["status"], row["detail"]) for row in rows]

    def write(self, step: int, episodes: Episodes) -> None:
        """The rows of a step, those of all hosts; on disk when this returns."""
        on_main(lambda: write_rows(self.file(step), episodes.rows()))
