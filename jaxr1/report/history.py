"""A run's metrics on one axis of steps, and what each stage made of the held-out sets."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jaxr1.base.jsonl import read_jsonl
from jaxr1.base.names import EVALUATION_MEASURES

Values = dict[str, float | None]


def scores(evaluated: Iterable[Values]) -> list[str]:
    """The names of all scores in some evaluations, in the order in which they appear."""
    names = dict.fromkeys(itertools.chain.from_iterable(evaluated))
    return [name for name in names if name not in EVALUATION_MEASURES]


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of one set. `values` holds a score for each reward, length_mean, n, ..."""

    set: str
    stage: str
    step: int
    x: int
    values: Values


@dataclass
class History:
    """The metrics of a run on one axis of global steps.

    Attributes:
      series: metric name -> [(global step, value)], without missing values.
      evaluations: set name -> its evaluations in order.
      stages: [(name, first global step, last global step)] in order.
    """

    series: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    evaluations: dict[str, list[Evaluated]] = field(default_factory=lambda: defaultdict(list))
    stages: list[tuple[str, int, int]] = field(default_factory=list)


def read_history(run_dir: Path) -> History:
    """Reads metrics.jsonl.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a line is broken; names it.
    """
    history = History()
    begin: dict[str, int] = {}
    last: dict[str, int] = {}
    for row in read_jsonl(run_dir / "metrics.jsonl"):
        stage, step = str(row.get("stage", "")), int(row.get("step", 0))
        if stage not in begin:
            begin[stage] = max((begin[name] + last[name] for name in begin), default=0)
            last[stage] = 0
        last[stage] = max(last[stage], step)
        x = begin[stage] + step
        sets: dict[str, Values] = defaultdict(dict)
        for name, value in row.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or name in ("stage", "step")
            ):
                continue
            parts = name.split("/")
            if parts[0] == "eval" and len(parts) >= 3:
                sets["/".join(parts[1:-1])][parts[-1]] = float(value)
            history.series[name].append((x, float(value)))
        for name, values in sets.items():
            history.evaluations[name].append(Evaluated(name, stage, step, x, values))
    history.stages = [(name, begin[name], begin[name] + last[name]) for name in begin]
    return history


@dataclass(frozen=True)
class StageResult:
    """One row of the table: an evaluation set before and after a stage."""

    set: str
    stage: str
    before: Values
    after: Values


def stage_results(history: History) -> list[StageResult]:
    """For every set and stage: the evaluation the stage started from, and its last one.

    Before the first stage is its step 0; before a later one is its own step 0 if it was evaluated
    there, else the last evaluation of the stages before it. A stage without an evaluation after its
    first step has no row.
    """
    results = []
    for name, evaluations in history.evaluations.items():
        before: Values = {}
        for stage, _, _ in history.stages:
            own = [e for e in evaluations if e.stage == stage]
            if own and own[0].step == 0:
                before = own[0].values
            trained = [e for e in own if e.step > 0]
            if trained:
                results.append(StageResult(name, stage, before, trained[-1].values))
                before = trained[-1].values
    return results
