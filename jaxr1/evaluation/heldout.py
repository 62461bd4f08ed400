"""Held-out sets: asked greedily, graded by any rewards, summed up, written down for the report."""

from __future__ import annotations

import dataclasses
import functools
import io
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.base.files import write_whole
from jaxr1.base.jsonl import write_rows
from jaxr1.base.names import EVALUATION_MEASURES, check_name
from jaxr1.data import Dataset, Example, Source
from jaxr1.evaluation.asked import Asking
from jaxr1.inputs.exchange import Draw
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.sizes import BucketOptions, Buckets, rows_for
from jaxr1.media.images import load_image, media_hash
from jaxr1.models.vlm import Model
from jaxr1.parallel import is_main, on_main
from jaxr1.rewards.accuracy import quoted_problem
from jaxr1.rewards.pool import RewardPool
from jaxr1.rewards.spec import Reward, check_labels
from jaxr1.rewards.workers import WorkerOptions
from jaxr1.sampling.draw import RandomStream, prompt_key
from jaxr1.sampling.programs import Program, list_sampling
from jaxr1.sampling.sampler import Sampler, SamplingOptions

# What a row of rollouts/eval_*.jsonl holds of `Episodes.rows`.
ROW = ("prompt", "answer", "response", "rewards", "finish_reason", "length", "source")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A held-out set, answered before, during and after training.

    Attributes:
      data: examples with an `answer`.
      name: in metrics (`eval/<name>/<reward>`).
      rewards: what answers are graded by; their weights are not looked at.
      reward_workers: worker processes that grade.
      reward_timeout_s: seconds before a worker is killed.
      reward_options: what workers may use, and how often an item is tried.
      temperature: 0 is greedy.
      max_prompt_tokens: a longer prompt is an error.
      max_response_tokens: limit of a response.
      batch_rows: prompts in flight.
      samples: examples whose pictures are kept, for the report.
    """

    data: Source
    name: str = "heldout"
    rewards: tuple[Reward, ...] = (Reward("accuracy"), Reward("format"))
    reward_workers: int = 1
    reward_timeout_s: float = 10.0
    reward_options: WorkerOptions = WorkerOptions()
    temperature: float = 0.0
    max_prompt_tokens: int = 4096
    max_response_tokens: int = 512
    batch_rows: int = 64
    samples: int = 64

    def __post_init__(self):
        path = f"evaluation {self.name!r}: "
        check_types(self, path)
        check_least(
            self,
            path,
            reward_workers=1,
            temperature=0,
            max_prompt_tokens=1,
            max_response_tokens=1,
            batch_rows=1,
            samples=0,
        )
        check_positive(self, "reward_timeout_s", path=path)
        check_name(self.name, f"{path}the name ")
        if not self.rewards:
            raise ValueError(f"{path}no rewards")
        check_labels(self.rewards, path, EVALUATION_MEASURES)

    leaves_out: ClassVar[bool] = False
    """No row is left out: a set whose size moves cannot be compared."""

    @property
    def needs_reference(self) -> bool:
        """Whether no answer is right where the reference answer cannot be parsed."""
        return any(reward.needs_reference for reward in self.rewards)


class HeldOut:
    """The held-out sets of a run directory."""

    def __init__(
        self, folder: Path, evaluations: Sequence[Evaluation], processor: Processor, seed: int
    ):
        """Loads the data of all sets; DataError where one cannot be used."""
        self.folder, self.processor, self.seed = folder, processor, seed
        self.sets = [(options, options.data.load()) for options in evaluations]
        self._pools: dict[Hashable, RewardPool] = {}
        self._judged: set[str] = set()  # names of sets whose answers were all looked at
        # Whoever lets go of the sets, or ends, ends their workers.
        weakref.finalize(self, _close_all, self._pools)

    def programs(self, model: Model, devices: int) -> list[Program]:
        """The programs that the sets may compile, where no row is left out.

        Args:
          devices: that share a batch.
        """
        programs: list[Program] = []
        for options, dataset in self.sets:
            at_once = min(options.batch_rows, max(1, len(dataset)))
            counts = {at_once, len(dataset) % at_once or at_once}
            programs += list_sampling(
                sorted({rows_for(count, devices) for count in counts}),
                1,
                options.max_response_tokens,
                buckets_of(options, dataset, self.processor),
                model.media,
                devices,
            )
        return programs

    def close(self) -> None:
        """Ends the workers that grade; a later evaluation starts new ones."""
        _close_all(self._pools)

    def _pool(self, options: Evaluation) -> RewardPool:
        """The workers of a set, kept from one evaluation to the next and shared by sets alike."""
        workers = (options.reward_workers, options.reward_timeout_s, options.reward_options)
        key = (options.rewards, *workers)
        if key not in self._pools:
            self._pools[key] = RewardPool.of(options, self.folder)
        return self._pools[key]

    def evaluate(
        self,
        model: Model,
        params: dict,
        stage: str,
        step: int,
        *,
        phase: Callable[[str], None] = lambda text: None,
        check: Callable[[], None] = lambda: None,
        drop: Callable[[str, str, str], None] = lambda name, source, reason: None,
        stay: Callable[[str, str, str], None] = lambda name, source, reason: None,
    ) -> dict[str, float]:
        """Metrics of all sets; their answers go to rollouts/.

        Args:
          stage, step: name the files.
          phase: shows what is going on.
          check: raises where the run is to stop.
          drop: writes down a row that cannot be asked: name of the set, source, reason.
          stay: the same for a row that is asked, and that no answer can be right for.
        """
        metrics: dict[str, float] = {}
        for options, dataset in self.sets:
            name = options.name
            phase(f"evaluating {name}")
            began = time.perf_counter()
            pool = self._pool(options)
            rows: list[dict[str, Any]] = []
            leave_out = lambda source, reason, name=name: drop(name, source, reason)
            asked = (self.processor, self.seed, pool, check, leave_out)
            for draw, row in answers_to(options, dataset, model, params, *asked):
                self._judge(options, draw.example, stay)
                media = self._pictures(dataset, draw) if len(rows) < options.samples else []
                rows.append({key: row[key] for key in ROW} | {"media": media})
            self._judged.add(name)
            file = self.folder / "rollouts" / f"eval_{name}_{stage}_{step}.jsonl"
            on_main(functools.partial(write_rows, file, rows))
            metrics |= summarise(options, rows)
            metrics[f"time/eval_{name}_s"] = time.perf_counter() - began
        return metrics

    def _judge(
        self, options: Evaluation, example: Example, stay: Callable[[str, str, str], None]
    ) -> None:
        """Tells once of a reference answer that cannot be parsed: a set may be too large for it to
        be done beforehand.
        """
        if options.name in self._judged or not options.needs_reference or not is_main():
            return
        if (problem := quoted_problem(example.answer)) is not None:
            stay(options.name, example.source, problem)

    def _pictures(self, dataset: Dataset, draw: Draw) -> list[str]:
        """Keeps the pictures of a question, and returns their hashes; the main host does so."""
        if not is_main():
            return []
        hashes = []
        example = draw.example if draw.is_own else dataset[draw.row]
        for source in example.images:
            image = load_image(source)
            hashes.append(media_hash(image))
            file = self.folder / "media" / f"{hashes[-1]}.png"
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                picture = io.BytesIO()
                image.save(picture, "PNG")
                write_whole(file, picture.getvalue())
        return hashes


def buckets_of(options: Evaluation, dataset: Dataset, processor: Processor) -> Buckets:
    """The static sizes of a held-out set."""
    limits = (options.max_prompt_tokens, options.max_response_tokens)
    return processor.buckets(BucketOptions(), *limits, videos=dataset.videos)


def answers_to(
    options: Evaluation,
    dataset: Dataset,
    model: Model,
    params: dict,
    processor: Processor,
    seed: int,
    pool: RewardPool,
    check: Callable[[], None],
    on_drop: Callable[[str, str], None],
) -> Iterator[tuple[Draw, dict[str, Any]]]:
    """Every example of a set once with its row, in order.

    Args:
      on_drop: called with (source, reason) of a row that cannot be encoded in a data set that
        leaves such rows out.

    Raises:
      DataError: an example that cannot be asked; a held-out set has no rows to spare, so no other
        one is passed over.
    """
    sampling = SamplingOptions(options.max_response_tokens, options.temperature)
    asking = Asking(
        sampler=Sampler(model, processor, sampling, buckets_of(options, dataset, processor)),
        max_prompt_tokens=options.max_prompt_tokens,
        samples=1,
        batch_rows=options.batch_rows,
        key=lambda row: prompt_key(seed, RandomStream.EVALUATION, row),
        pool=pool,
        refuses_long=True,
        on_drop=on_drop,
        check=check,
    )
    for episodes in asking.ask(params, dataset, range(len(dataset))):
        yield from zip(episodes.draws, episodes.rows(), strict=True)


def _close_all(pools: dict[Hashable, RewardPool]) -> None:
    while pools:
        pools.popitem()[1].close()


def summarise(options: Evaluation, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of a held-out set. A sample that a reward could not grade counts as 0."""
    metrics: dict[str, float] = {}

    def mean(name: str, values: list[float]) -> None:
        metrics[f"eval/{options.name}/{name}"] = float(np.mean(values)) if values else 0.0

    for reward in options.rewards:
        mean(reward.label, [row["rewards"].get(reward.label) or 0.0 for row in rows])
    mean("length_mean", [row["length"] for row in rows])
    mean("frac_truncated", [row["finish_reason"] == "length" for row in rows])
    metrics[f"eval/{options.name}/n"] = float(len(rows))
    return metrics
