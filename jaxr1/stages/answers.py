"""Answers of a model to rows of a data set: n each, graded, drawn once and kept.

    rows not there yet -> drawn in batches -> graded -> answers/STAGE.jsonl, a line a row

A killed run draws what is missing, and the same: an answer is a function of the run's seed, the
stage, the row and its number. Preference pairs are made of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.base.jsonl import AppendLog, read_jsonl
from jaxr1.base.names import REWARD_STATISTICS
from jaxr1.data.example import Dataset, Example
from jaxr1.evaluation.asked import Asking
from jaxr1.inputs.exchange import Draw
from jaxr1.parallel import gather, is_main, on_main
from jaxr1.rewards.accuracy import quoted_problem
from jaxr1.rewards.grades import Status
from jaxr1.rewards.pool import RewardPool
from jaxr1.rewards.spec import Reward, check_labels
from jaxr1.rewards.workers import WorkerOptions
from jaxr1.rl.episodes import Episodes
from jaxr1.sampling.draw import prompt_key
from jaxr1.sampling.sampler import Sampler, SamplingOptions
from jaxr1.stages.context import Context


@dataclasses.dataclass(frozen=True)
class Answers:
    """How rows are answered.

    Attributes:
      samples: answers to each row.
      temperature: of sampling.
      top_p: of sampling.
      top_k: of sampling, 0 is off.
      batch_rows: rows in flight.
      rewards: what answers are graded by.
      reward_workers: worker processes that grade.
      reward_timeout_s: seconds before a worker is killed.
      reward_options: what workers may use, and how often an item is tried.
    """

    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_rows: int = 64
    rewards: tuple[Reward, ...] = (Reward("accuracy"),)
    reward_workers: int = 1
    reward_timeout_s: float = 10.0
    reward_options: WorkerOptions = WorkerOptions()

    def __post_init__(self):
        check_types(self)
        check_least(self, samples=1, top_k=0, batch_rows=1, reward_workers=1)
        check_positive(self, "temperature", "reward_timeout_s")
        if not self.rewards:
            raise ValueError("Answers: no rewards")
        check_labels(self.rewards, "answers: ", REWARD_STATISTICS)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to a row.

    Attributes:
      token_ids: of the response, its end included.
      reward: weighted sum; None where it was not scored.
      rewards: {name: value or None}.
      text: of the response.
      status: of its grade, "ok" where nothing has failed.
      detail: what has.
    """

    token_ids: tuple[int, ...]
    reward: float | None
    rewards: dict[str, float | None]
    text: str
    status: Status = "ok"
    detail: str = ""


class Graded(Protocol):
    """Options of a stage that grades answers."""

    @property
    def needs_reference(self) -> bool: ...
    @property
    def leaves_out(self) -> bool: ...


Answered = dict[int, list[Answer]]
"""{row: its answers}; rows that cannot be asked are not in it."""


def answers(
    options: Answers,
    params: dict,
    dataset: Dataset,
    context: Context,
    name: str,
    limits: tuple[int, int],
    unusable: frozenset[int] = frozenset(),
    judge: Callable[[Example], str | None] = lambda example: None,
) -> Answered:
    """The answers to all rows of a data set, those in answers/NAME.jsonl and the missing ones.

    Args:
      params: of the model that answers.
      name: of the stage.
      limits: most tokens of a prompt and of a response.
      unusable: rows that are not asked.
      judge: what is wrong with an example otherwise, or None; it is not asked either. Threads may
        call it.

    Raises:
      DataError: a row that cannot be asked, in a data set that leaves none out.
    """
    file = context.folder / "answers" / f"{name}.jsonl"
    # Opened before it is read: a line that a kill has torn, perhaps inside a letter, is cut first.
    log = AppendLog(file) if is_main() else None
    try:
        found = kept_answers(file)
        rows = [row for row in range(len(dataset)) if row not in found and row not in unusable]
        if rows:
            with RewardPool.of(options, context.folder) as pool:
                asking = _asking(options, context, limits, judge, pool)
                _ask(asking.ask(params, dataset, rows), found, log)
    finally:
        if log is not None:
            log.close()
    return found


def problem_of(options: Graded, example: Example) -> str | None:
    """Why nothing can be graded against the answer of an example, where that leaves it out."""
    is_read = options.needs_reference and options.leaves_out
    return quoted_problem(example.answer) if is_read else None


def _asking(
    options: Answers,
    context: Context,
    limits: tuple[int, int],
    judge: Callable[[Example], str | None],
    pool: RewardPool,
) -> Asking:
    """How the rows of a stage are asked; arguments as of `answers`."""
    sampling = SamplingOptions(limits[1], options.temperature, options.top_p, options.top_k)
    return Asking(
        sampler=Sampler(context.model, context.processor, sampling, context.buckets),
        max_prompt_tokens=limits[0],
        samples=options.samples,
        batch_rows=options.batch_rows,
        key=lambda row: prompt_key(context.seed, context.stream, f"answers/{row}"),
        pool=pool,
        judge=judge,
        on_drop=context.drop,
        check=context.check,
        phase=lambda number, of: context.phase(f"answers {number}/{of}"),
    )


def _ask(asked: Iterator[Episodes], found: Answered, log: AppendLog | None) -> None:
    """Adds answers, each written down before it counts."""
    for episodes in asked:
        for draw, group in zip(episodes.draws, _answers_of(episodes), strict=True):
            found[draw.row] = group
            on_main(functools.partial(_write, log, draw, group))


def kept_answers(file: Path) -> Answered:
    """What a file holds; nothing where there is none. The main host reads it for all."""
    read = lambda: read_jsonl(file) if is_main() and file.is_file() else []
    found: Answered = {}
    for row in gather(read)[0]:
        found[row["row"]] = [
            Answer(**{**one, "token_ids": tuple(one["token_ids"])}) for one in row["answers"]
        ]
    return found


def _write(log: AppendLog | None, draw: Draw, group: list[Answer]) -> None:
    assert log is not None
    rows = [dataclasses.asdict(answer) for answer in group]
    log.write({"row": draw.row, "source": draw.example.source, "answers": rows})


def _answers_of(episodes: Episodes) -> Iterator[list[Answer]]:
    """Those to each prompt."""
    for group, grades in zip(episodes.groups, episodes.grades, strict=True):
        yield [
            Answer(
                tuple(said.token_ids.tolist()),
                grade.total,
                grade.by_name,
                said.text,
                grade.status,
                grade.detail,
            )
            for said, grade in zip(group, grades, strict=True)
        ]
