"""The steps: each asks a model about every row that is left, and keeps what it says.

pseudo        picture, question, answer        -> explanation     vision-language model
description   picture, question, explanation   -> description     vision-language model
reasoning     description, question            -> thought, answer text model, n samples
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxr1.base.jsonl import AppendLog, read_jsonl
from jaxr1.bridging.options import Bridge
from jaxr1.data import Dataset, Example
from jaxr1.evaluation.asked import Asking
from jaxr1.inputs.sizes import BucketOptions
from jaxr1.models import load
from jaxr1.parallel import gather, is_main, on_main
from jaxr1.rewards import Reward, RewardPool
from jaxr1.rewards.workers import WorkerOptions
from jaxr1.rl.episodes import Episodes
from jaxr1.sampling.draw import RandomStream, prompt_key
from jaxr1.sampling.sampler import Sampler, SamplingOptions


@dataclasses.dataclass(frozen=True)
class Said:
    """What a model has said to a row.

    Attributes:
      text: with what the template has opened it with.
      stopped: it ended by itself.
      right: its answer is right; None where nothing was graded.
    """

    text: str
    stopped: bool
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
      name: of its file.
      model: who is asked.
      ask: the messages of an example, given what the steps before have said.
      max_tokens: limit of a text.
      samples: texts of each row.
      is_graded: whether its texts are answers.
    """

    name: str
    model: str
    ask: Callable[[Example, Mapping[str, str]], list[dict[str, Any]]]
    max_tokens: int
    samples: int = 1
    is_graded: bool = False


def steps_of(options: Bridge) -> list[Step]:
    """The three steps."""
    words = options.words

    def pseudo(example: Example, known: Mapping[str, str]) -> list[dict[str, Any]]:
        text = words.asked("pseudo", question=example.question, answer=str(example.answer))
        return [*media_of(example), {"type": "text", "text": text}]

    def describe(example: Example, known: Mapping[str, str]) -> list[dict[str, Any]]:
        text = words.asked("describe", question=example.question, pseudo=known["pseudo"])
        return [*media_of(example), {"type": "text", "text": text}]

    def reason(example: Example, known: Mapping[str, str]) -> list[dict[str, Any]]:
        told = known["description"]
        text = words.asked("reason", question=example.question, description=told)
        return [{"type": "text", "text": text}]

    describer, reasoner = (
        options.describe_model or options.model,
        options.reason_model or options.model,
    )
    return [
        Step("pseudo", options.model, pseudo, options.max_pseudo_tokens),
        Step("description", describer, describe, options.max_description_tokens),
        Step(
            "reasoning",
            reasoner,
            reason,
            options.max_reasoning_tokens,
            options.samples,
            is_graded=True,
        ),
    ]


def media_of(example: Example) -> list[dict[str, Any]]:
    """The media of an example, as parts, in order."""
    found: list[dict[str, Any]] = []
    for message in example.messages:
        if not isinstance(message["content"], str):
            found += [part for part in message["content"] if part["type"] != "text"]
    return found


class Models:
    """The model that is asked, of which one is in memory at a time."""

    def __init__(self, options: Bridge):
        self.options, self.name = options, ""
        self.held: tuple[Any, dict, Any] | None = None
        self.mesh = options.mesh.build()

    def get(self, name: str) -> tuple[Any, dict, Any]:
        """(model, parameters, processor)."""
        if name != self.name:
            self.held = None  # before the next one comes
            is_cpu = jax.default_backend() == "cpu"
            dtype = self.options.dtype or ("float32" if is_cpu else "bfloat16")
            model, params = load.load_model(name, dtype, dtype, self.mesh)
            asked = dataclasses.asdict(self.options.processor)
            self.held = (model, params, load.load_processor(name, **asked))
            self.name = name
        assert self.held is not None
        return self.held


@dataclasses.dataclass(frozen=True)
class Asker:
    """Asks the rows of a step that have no texts yet.

    Attributes:
      folder: where texts are kept.
      check: raises where the work is to end.
      phase: shows what is going on.
      drop: called with (step, source, reason).
    """

    options: Bridge
    models: Models
    folder: Path
    check: Callable[[], None]
    phase: Callable[[str], None]
    drop: Callable[[str, str, str], None]

    def __call__(
        self, step: Step, rows: Dataset, known: Mapping[int, Mapping[str, str]]
    ) -> dict[int, list[Said]]:
        """{row: its texts}; rows that cannot be asked are dropped.

        Args:
          known: {row: {step before: its text}} of the rows to ask.
        """
        file = self.folder / f"{step.name}.jsonl"
        # Opened before it is read: a line that a kill has torn is cut first.
        log = AppendLog(file) if is_main() else None
        try:
            found = kept_texts(file)
            left = [row for row in sorted(known) if row not in found]
            if left:
                self._ask(step, _asked_rows(step, rows, known), left, found, log)
        finally:
            if log is not None:
                log.close()
        return {row: found[row] for row in sorted(known) if row in found}

    def _ask(
        self,
        step: Step,
        dataset: Dataset,
        left: list[int],
        found: dict[int, list[Said]],
        log: AppendLog | None,
    ) -> None:
        options = self.options
        model, params, processor = self.models.get(step.model)
        limits = (options.max_prompt_tokens, step.max_tokens)
        buckets = processor.buckets(BucketOptions(), *limits, videos=dataset.videos)
        sampling = SamplingOptions(step.max_tokens, options.temperature, options.top_p)
        with self._pool(step) as pool:
            asking = Asking(
                sampler=Sampler(model, processor, sampling, buckets),
                max_prompt_tokens=options.max_prompt_tokens,
                samples=step.samples,
                batch_rows=options.batch_rows,
                key=lambda row: prompt_key(
                    options.seed, RandomStream.TRAINING, f"{step.name}/{row}"
                ),
                pool=pool,
                on_drop=functools.partial(self.drop, step.name),
                check=self.check,
                phase=lambda number, of: self.phase(f"{step.name} {number}/{of}"),
            )
            for episodes in asking.ask(params, dataset, left):
                for row, texts in _texts_of(episodes, options.right_over):
                    found[row] = texts
                    on_main(functools.partial(_write, log, row, dataset[row].source, texts))

    @contextlib.contextmanager
    def _pool(self, step: Step) -> Iterator[RewardPool | None]:
        if not step.is_graded:
            yield None
            return
        with RewardPool.of(_Graders(self.options), self.folder) as pool:
            yield pool


@dataclasses.dataclass(frozen=True)
class _Graders:
    """The settings of the workers that grade."""

    options: Bridge

    @property
    def rewards(self) -> tuple[Reward, ...]:
        return (Reward(self.options.reward),)

    @property
    def reward_workers(self) -> int:
        return 1

    @property
    def reward_timeout_s(self) -> float:
        return self.options.reward_timeout_s

    @property
    def reward_options(self) -> WorkerOptions:
        return WorkerOptions()


def _asked_rows(step: Step, rows: Dataset, known: Mapping[int, Mapping[str, str]]) -> Dataset:
    """The rows with a step's question in the place of their own."""

    def get(row: int) -> Example:
        example = rows[row]
        asked = {"role": "user", "content": step.ask(example, known[row])}
        return dataclasses.replace(example, messages=(asked,), response=None, rejected=None)

    return rows.made(len(rows), get, ())


def _texts_of(episodes: Episodes, right_over: float) -> Iterator[tuple[int, list[Said]]]:
    for b, (draw, group) in enumerate(zip(episodes.draws, episodes.groups, strict=True)):
        texts = []
        for g, completion in enumerate(group):
            right = None
            if episodes.grades:
                total = episodes.grades[b][g].total
                right = total is not None and total > right_over
            text = draw.prompt.prefix + completion.text
            texts.append(Said(text, completion.finish_reason == "stop", right))
        yield draw.row, texts


def _write(log: AppendLog | None, row: int, source: str, texts: list[Said]) -> None:
    assert log is not None
    log.write({"row": row, "source": source, "texts": [dataclasses.asdict(one) for one in texts]})


def kept_texts(file: Path) -> dict[int, list[Said]]:
    """What a file holds; the main host reads it for all."""
    read = lambda: read_jsonl(file) if is_main() and file.is_file() else []
    return {row["row"]: [Said(**one) for one in row["texts"]] for row in gather(read)[0]}
