"""What a bridging is: rows, models, words, rules."""

from __future__ import annotations

import dataclasses

from jaxr1.base.checks import check_least, check_positive, check_types
from jaxr1.bridging.checks import RULES
from jaxr1.bridging.words import Words
from jaxr1.data import Files, Source
from jaxr1.inputs.settings import ProcessorOptions
from jaxr1.parallel import HostOptions, MeshOptions
from jaxr1.rewards import Reward


@dataclasses.dataclass(frozen=True)
class Bridge:
    """Makes worked responses to questions about pictures with a model that reasons in text alone.

    Modality bridging (Vision-R1, arXiv:2503.06749, section 3.2): a vision-language model explains
    the known answer, then writes a description that suffices to find it; a text model that never
    sees the picture reasons from the description; what is right and consistent is kept, and stands
    beside the picture in a file that `Sft` reads. The same command goes on where it was stopped.

    Attributes:
      data: rows with media and an answer.
      model: the vision-language model: Hugging Face directory, preset name or hub id.
      reason_model: the model that reasons; "" is the other one.
      describe_model: the model that describes; "" is `model`.
      out: the file to write.
      run_dir: where each step keeps its texts; "" is `out` with the ending ".run".
      samples: reasonings of each row, of which the first one that is kept counts.
      temperature: of sampling.
      top_p: of sampling.
      max_prompt_tokens: longest prompt of each step; longer ones are dropped.
      max_pseudo_tokens: of the explanation.
      max_description_tokens: of the description.
      max_reasoning_tokens: of the reasoning.
      batch_rows: rows in flight.
      reward: says which answers are right: a built-in reward, or "path.py:function".
      right_over: right answers have more than this.
      rules: against inconsistent thoughts, by name.
      reward_timeout_s: seconds before a worker is killed.
      words: what the models are asked.
      processor: image bounds and template.
      mesh: sizes of the mesh axes.
      hosts: machines that work together.
      dtype: of parameters and computation; "" is float32 on CPU and bfloat16 elsewhere.
      seed: of sampling.
    """

    data: Source
    model: str
    reason_model: str = ""
    describe_model: str = ""
    out: str = "cold_start.jsonl"
    run_dir: str = ""
    samples: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_prompt_tokens: int = 4096
    max_pseudo_tokens: int = 1024
    max_description_tokens: int = 1024
    max_reasoning_tokens: int = 4096
    batch_rows: int = 64
    reward: str = "accuracy"
    right_over: float = 0.5
    rules: tuple[str, ...] = tuple(RULES)
    reward_timeout_s: float = 10.0
    words: Words = Words()
    processor: ProcessorOptions = ProcessorOptions()
    mesh: MeshOptions = MeshOptions()
    hosts: HostOptions = HostOptions()
    dtype: str = ""
    seed: int = 0

    def __post_init__(self):
        path = "bridge: "
        check_types(self, path)
        least = {f"max_{what}_tokens": 1 for what in ("prompt", "pseudo", "description")}
        check_least(self, path, samples=1, batch_rows=1, seed=0, max_reasoning_tokens=1, **least)
        check_positive(self, "temperature", "reward_timeout_s", path=path)
        Reward(self.reward)
        if unknown := [name for name in self.rules if name not in RULES]:
            known = ", ".join(map(repr, RULES))
            raise ValueError(f"{path}no rule is called {unknown[0]!r}; there are {known}")
        if self.dtype not in ("", "float32", "bfloat16"):
            raise ValueError(f"{path}dtype must be float32 or bfloat16, got {self.dtype!r}")


@dataclasses.dataclass(frozen=True)
class BridgeFiles(Bridge):
    """Makes worked responses to questions about pictures with a model that reasons in text alone.

    A vision-language model explains the known answer, then writes a description that suffices to
    find it; a text model that never sees the picture reasons from the description; what is right
    and consistent stands beside the picture again, in a file that a supervised stage reads. The
    same command goes on where it was stopped.
    """

    data: Files
