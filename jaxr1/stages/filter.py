"""Offline filter: a model answers every row n times; rows with a pass rate in a range are kept.

    rows -> n answers each, graded -> pass rates -> filtered/STAGE.jsonl -> later stages pass over
                                                                           rows that are not kept

MM-Eureka (arXiv:2503.07365) drops the rows that 8 answers of the model get all wrong or all right.
"""

from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxr1.base.jsonl import read_jsonl, write_rows
from jaxr1.data.example import DataError
from jaxr1.parallel import gather, is_main, on_main
from jaxr1.rl.filtering import PassRange
from jaxr1.rl.learner import Learner, TrainState, frozen_state
from jaxr1.rl.objectives import CrossEntropy
from jaxr1.rl.optimizer import Optimizer
from jaxr1.rl.terms import Objective
from jaxr1.stages.answers import Answer, answers, problem_of
from jaxr1.stages.context import POLICY, Context, Worker
from jaxr1.stages.options import Filter

SAID = {"low": "under", "high": "over"}


class FilterStage(Worker):
    """Answers before its first step, of which there is none: nothing is trained."""

    def __init__(self, options: Filter, context: Context):
        self.options = options
        forbidden = context.processor.media_token_ids
        learner = Learner(
            model=context.model,
            objective=Objective((CrossEntropy(),), POLICY, forbidden=forbidden),
            buckets=context.buckets,
            optimizer=Optimizer(),
            updates=1,
            micro_batch_tokens=options.micro_batch_tokens,
        )
        super().__init__(context, {POLICY: learner}, steps=0, draws=0)

    def init(self, params: dict) -> dict[str, TrainState]:
        """The model as it is: no part of it has a state of the optimiser."""
        return {POLICY: frozen_state(params)}

    def begin(self, states: dict[str, TrainState]) -> None:
        """Answers, rates, and says what is kept."""
        options, context = self.options, self.context
        assert context.dataset is not None
        dataset, limits = context.dataset, (options.max_prompt_tokens, options.max_response_tokens)
        asked = (dataset, context, options.name, limits, context.unusable)
        judge = functools.partial(problem_of, options)
        found = answers(options.answers, states[POLICY].params, *asked, judge)
        rates: list[dict[str, Any]] = []
        for row, group in sorted(found.items()):
            about = {"row": row, "source": dataset[row].source}
            rates.append(about | rated(group, options.keep))
        for rate in rates:
            if rate["verdict"] != "kept":
                context.drop(rate["source"], _reason(rate, options.keep))
        file = rates_file(context.folder, options.name)

        def written() -> None:
            file.parent.mkdir(exist_ok=True)
            write_rows(file, rates)

        on_main(written)
        counts = collections.Counter(rate["verdict"] for rate in rates)
        others = ", ".join(f"{n} {name}" for name, n in counts.items() if name != "kept")
        left = len(dataset) - len(rates)
        context.say(
            f"{options.name}: {counts['kept']} of {len(dataset)} rows are kept"
            + (f"; {others}" if others else "")
            + (f"; {left} not asked" if left else "")
        )
        if not counts["kept"]:
            raise DataError(
                f"{dataset.name}: stage {options.name!r} keeps none of {len(dataset)} rows "
                f"({others}): widen `keep`, or take another model or other rows"
            )


def rated(group: list[Answer], keep: PassRange) -> dict[str, Any]:
    """Mean, number and verdict of the answers to a row."""
    given = [answer.rewards.get(keep.reward) if keep.reward else answer.reward for answer in group]
    values = [value for value in given if value is not None]
    mean = float(np.mean(values)) if values else None
    return {"pass_rate": mean, "n": len(values), "verdict": keep.verdict(values)}


def _reason(rate: dict[str, Any], keep: PassRange) -> str:
    if rate["verdict"] == "unscored":
        return "no answer was scored"
    bound = keep.low if rate["verdict"] == "low" else keep.high
    what = f"pass rate {rate['pass_rate']:g} of {rate['n']} answers"
    return f"{what}, {SAID[rate['verdict']]} {bound:g}"


def rates_file(folder: Path, name: str) -> Path:
    """Where a stage of this name writes what it has found."""
    return folder / "filtered" / f"{name}.jsonl"


def kept_rows(folder: Path, name: str) -> frozenset[int]:
    """The rows that a stage of this name has kept; the main host reads them for all.

    Raises:
      DataError: its file is not there.
    """
    file = rates_file(folder, name)

    def read() -> list[int]:
        if not is_main():
            return []
        if not file.is_file():
            raise DataError(f"{file}: not there; the stage {name!r} has to run before")
        return [rate["row"] for rate in read_jsonl(file) if rate["verdict"] == "kept"]

    return frozenset(gather(read)[0])
