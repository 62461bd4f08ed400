"""The held-out sets of a run: asked, graded, summed up, and written down for the report."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxr1.data.example import Dataset
from jaxr1.evaluation.heldout import Answered, answers, summarise
from jaxr1.inputs.batch import Buckets
from jaxr1.inputs.images import load_image, media_hash
from jaxr1.inputs.processor import Processor
from jaxr1.models.vlm import Model
from jaxr1.rewards.pool import RewardPool
from jaxr1.rewards.spec import Reward
from jaxr1.run.metrics import write_rows
from jaxr1.run.options import BucketOptions, Evaluation
from jaxr1.sampling.generate import Sampler, SamplingOptions


def buckets_for(processor: Processor, options: BucketOptions, prompt: int, response: int, dataset: Dataset) -> Buckets:
    """Static sizes: those of the options, and geometric series up to the limits where they say nothing.

    Args:
      prompt: most tokens of a prompt.
      response: most tokens of a response.
      dataset: says whether frames of videos are to be counted among the images.
    """
    largest = processor.max_frame_patches if dataset.videos else processor.max_patches
    whole = Buckets.up_to(prompt, response, max(16, largest))
    patches = (processor.max_patches,) if processor.tiles else options.patches or whole.patches
    return Buckets(options.prompt or whole.prompt, options.response or whole.response, patches)


class HeldOut:
    """The held-out sets of a run directory."""

    def __init__(self, run_dir: Path, evaluations: Sequence[Evaluation], processor: Processor, seed: int):
        """Loads the data of all sets; DataError where one cannot be used."""
        self.dir, self.processor, self.seed = run_dir, processor, seed
        self.sets = [(e, e.data.load()) for e in evaluations]

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
    ) -> dict[str, float]:
        """Metrics of all sets; their answers go to rollouts/.

        Args:
          stage, step: name the files.
          phase: shows what is going on.
          check: raises where the run is to stop.
          drop: writes down a row that cannot be asked: name of the set, source, reason.
        """
        found: dict[str, float] = {}
        for options, dataset in self.sets:
            phase(f"evaluating {options.name}")
            began = time.perf_counter()
            rows = self._answers(options, dataset, model, params, check, functools.partial(drop, options.name))
            kept = [self._row(row, i < options.samples) for i, row in enumerate(rows)]
            write_rows(self.dir / "rollouts" / f"eval_{options.name}_{stage}_{step}.jsonl", kept)
            found |= summarise(options.name, rows) | {f"time/eval_{options.name}_s": time.perf_counter() - began}
        return found

    def _answers(
        self, options: Evaluation, dataset: Dataset, model: Model, params: dict, check, drop
    ) -> list[Answered]:
        rewards = (
            Reward("accuracy", options=(("tail", options.tail),)),
            Reward("format", options=(("variant", options.format),)),
        )
        limits = (options.max_prompt_tokens, options.max_response_tokens)
        buckets = buckets_for(self.processor, BucketOptions(), *limits, dataset)
        sampling = SamplingOptions(max_new_tokens=options.max_response_tokens, temperature=options.temperature)
        sampler = Sampler(model, self.processor, sampling, buckets)
        rows = []
        with RewardPool(rewards, directory=self.dir) as pool:
            for row in answers(
                dataset, self.processor, sampler, params, pool,
                seed=self.seed, batch_rows=options.batch_rows, max_prompt_tokens=options.max_prompt_tokens,
                on_drop=drop,
            ):  # fmt: skip
                check()
                rows.append(row)
        return rows

    def _row(self, row: Answered, with_pictures: bool) -> dict[str, Any]:
        media = []
        for source in row.example.images if with_pictures else ():
            image = load_image(source)
            media.append(media_hash(image))
            file = self.dir / "media" / f"{media[-1]}.png"
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                image.save(file)
        return {
            "prompt": row.example.question,
            "answer": row.example.answer,
            "response": row.prefix + row.completion.text,
            "rewards": row.grade.by_name,
            "finish_reason": row.completion.finish_reason,
            "length": len(row.completion.token_ids),
            "source": row.example.source,
            "media": media,
        }
