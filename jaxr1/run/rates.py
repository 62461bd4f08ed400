"""Pass rates of rows: a run of one `Filter` stage, and what it has found beside the rows."""

from __future__ import annotations

import bisect
import dataclasses
from pathlib import Path

from jaxr1.base.checks import check_least
from jaxr1.base.jsonl import read_jsonl, write_rows
from jaxr1.data import Files
from jaxr1.inputs.settings import ProcessorOptions
from jaxr1.parallel import HostOptions, is_main
from jaxr1.rewards import Reward
from jaxr1.rl.filtering import PassRange
from jaxr1.run.loop import train
from jaxr1.run.options import Config
from jaxr1.stages.answers import Answers
from jaxr1.stages.filter import rates_file
from jaxr1.stages.options import Filter

HISTOGRAM = 30  # characters of its longest bar


@dataclasses.dataclass(frozen=True)
class FilterRows:
    """Has a model answer every row n times, and writes pass rates beside the rows.

    In a configuration `Rated(Files("rows.jsonl"), "rows.rates.jsonl", low=0.01, high=0.99)` is then
    the rows in the range. The same command goes on where it was stopped.

    Attributes:
      model: Hugging Face directory, preset name or hub id.
      data: the rows.
      out: the file to write; "" is that of the rows with the ending ".rates.jsonl".
      run_dir: where answers are kept; "" is `out` with the ending ".run".
      samples: answers to each row.
      reward: what they are graded by: the name of a built-in reward, or "path.py:function".
      low: rows with a lower pass rate are counted as dropped.
      high: rows with a higher pass rate are counted as dropped.
      temperature: of sampling.
      batch_rows: rows in flight.
      reward_workers: worker processes that grade.
      reward_timeout_s: seconds before a worker is killed.
      max_prompt_tokens: rows with a longer prompt are left out.
      max_response_tokens: limit of an answer.
      processor: image bounds, system prompt and words around the question.
      hosts: machines that answer together.
      seed: of the answers.
    """

    model: str
    data: Files
    out: str = ""
    run_dir: str = ""
    samples: int = 8
    reward: str = "accuracy"
    low: float = 0.01
    high: float = 0.99
    temperature: float = 1.0
    batch_rows: int = 64
    reward_workers: int = 1
    reward_timeout_s: float = 10.0
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    processor: ProcessorOptions = ProcessorOptions()
    hosts: HostOptions = HostOptions()
    seed: int = 0

    def __post_init__(self):
        check_least(self, "", seed=0)
        self.stage()

    def stage(self) -> Filter:
        """The stage of the run."""
        return Filter(
            data=self.data,
            answers=Answers(
                samples=self.samples,
                temperature=self.temperature,
                batch_rows=self.batch_rows,
                rewards=(Reward(self.reward),),
                reward_workers=self.reward_workers,
                reward_timeout_s=self.reward_timeout_s,
            ),
            keep=PassRange(Reward(self.reward).label, self.low, self.high),
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
        )


def filter_rows(options: FilterRows) -> int:
    """The command's work; its exit status. Errors as of `train`."""
    out = Path(options.out or Path(options.data.files()[0]).with_suffix(".rates.jsonl"))
    stage = options.stage()
    config = Config(
        stages=(stage,),
        model=options.model,
        run_dir=options.run_dir or str(out.with_suffix(".run")),
        seed=options.seed,
        processor=options.processor,
        hosts=options.hosts,
        param_dtype="bfloat16",
        export=False,
        report=False,
        tensorboard=False,
    )
    result = train(config)
    if result.signal:
        return 128 + result.signal
    if is_main():
        rates = read_jsonl(rates_file(result.run_dir, stage.name))
        write_rows(out, rates)
        print(histogram([rate["pass_rate"] for rate in rates if rate["pass_rate"] is not None]))
        print(f"pass rates: {out}")
    return 0


def histogram(rates: list[float]) -> str:
    """How many rows have which pass rate: 0, up to a quarter, and so on, 1."""
    names = ("0", "to 1/4", "to 1/2", "to 3/4", "under 1", "1")
    bounds = (0.0, 0.25, 0.5, 0.75, 1 - 1e-9)
    counts = [0] * len(names)
    for rate in rates:
        counts[bisect.bisect_left(bounds, rate)] += 1
    longest = max([*counts, 1])
    lines = []
    for name, count in zip(names, counts, strict=True):
        bar = "#" * round(HISTOGRAM * count / longest)
        lines.append(f"{name:>8} {count:>7} {bar}".rstrip())
    return "\n".join(["pass rate    rows", *lines])
