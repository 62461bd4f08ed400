"""Accuracy on a held-out set: greedy answers, graded by the rules that training is graded by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxr1.data.example import DataError, Dataset, Example, refusal
from jaxr1.inputs.batch import EncodedPrompt, TooLong
from jaxr1.inputs.images import MediaError
from jaxr1.inputs.processor import Processor
from jaxr1.inputs.template import Prompt, PromptError
from jaxr1.rewards import types
from jaxr1.rewards.pool import Grade, Pending, RewardPool
from jaxr1.sampling.draw import prompt_key
from jaxr1.sampling.generate import Completion, Sampler

EVALUATION_STREAM = 1  # its draws are apart from those of every training stage (which have 2, 3, ...)


@dataclasses.dataclass(frozen=True)
class Answered:
    """One held-out example, the text that opened the answer, what the model said, and its grade."""

    example: Example
    prefix: str
    completion: Completion
    grade: Grade


def graded(completion: Completion, prefix: str) -> types.Completion:
    """A completion as reward functions see it: with the prefix that the template put before it."""
    return types.Completion(prefix + completion.text, completion.finish_reason)


def asked(example: Example) -> types.Example:
    """An example as reward functions see it: without media."""
    return types.Example(example.question, example.answer, example.source, example.metadata)


def answers(
    dataset: Dataset,
    processor: Processor,
    sampler: Sampler,
    params: dict,
    pool: RewardPool,
    *,
    seed: int,
    batch_rows: int,
    max_prompt_tokens: int | None = None,
    on_drop: Callable[[str, str], None] = lambda source, reason: None,
) -> Iterator[Answered]:
    """Every example once, in order; a batch is graded while the next one is sampled.

    Args:
      on_drop: called with (source, reason) of a row that cannot be encoded in a data set that leaves such rows out.

    Raises:
      DataError: an example that cannot be asked; a held-out set has no rows to spare, so no other one is passed over.
    """
    waiting: list[tuple[Sequence[Example], list[str], list[Completion], Pending]] = []

    def finish() -> Iterator[Answered]:
        *columns, pending = waiting.pop()
        for row in zip(*columns, pending.result(), strict=True):
            yield Answered(*row)

    for first in range(0, len(dataset), batch_rows):
        examples, prompts, keys = [], [], []
        for i in range(first, min(first + batch_rows, len(dataset))):
            example = dataset[i]
            prompt = _encoded(processor, dataset, example, max_prompt_tokens, on_drop)
            if prompt is not None:
                examples.append(example)
                prompts.append(prompt)
                keys.append(prompt_key(seed, EVALUATION_STREAM, i))
        if not examples:
            continue
        completions = [group[0] for group in sampler(params, prompts, keys, 1)]
        items = [(graded(c, p.prefix), asked(e)) for c, p, e in zip(completions, prompts, examples, strict=True)]
        pending = pool.submit(items)
        if waiting:
            yield from finish()
        waiting.append((examples, [p.prefix for p in prompts], completions, pending))
    while waiting:
        yield from finish()


def _encoded(
    processor: Processor, dataset: Dataset, example: Example, limit: int | None, on_drop
) -> EncodedPrompt | None:
    """The prompt, or None where it cannot be encoded and the data set leaves such rows out."""
    try:
        return processor.encode(Prompt(example.messages), limit)
    except TooLong as e:
        raise DataError(f"{example.source}: {e}") from e
    except (MediaError, PromptError) as e:
        if (refused := refusal(dataset, example, e)) is not None:
            raise refused from e
        on_drop(example.source, str(e))
        return None


def summarise(name: str, rows: Sequence[Answered]) -> dict[str, float]:
    """Metrics of a held-out set. A sample that no rule could grade counts as wrong."""
    value = lambda row, key: row.grade.by_name.get(key) or 0.0
    mean = lambda values: float(np.mean(values)) if rows else 0.0
    return {
        f"eval/{name}/accuracy": mean([value(r, "accuracy") for r in rows]),
        f"eval/{name}/format": mean([value(r, "format") for r in rows]),
        f"eval/{name}/length_mean": mean([len(r.completion.token_ids) for r in rows]),
        f"eval/{name}/frac_truncated": mean([r.completion.finish_reason == "length" for r in rows]),
        f"eval/{name}/n": float(len(rows)),
    }
