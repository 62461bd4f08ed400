"""What a run is: its configuration as a tree of frozen dataclasses. A run is a tuple of stages."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxr1.data.arithmetic import Arithmetic
from jaxr1.data.example import DataSource
from jaxr1.data.readers import Files, Sat
from jaxr1.data.spatial import Spatial
from jaxr1.models.vlm import PARTS
from jaxr1.nn.lora import Lora
from jaxr1.parallel import MeshOptions
from jaxr1.rewards.spec import Reward, check_labels
from jaxr1.rl.advantages import Advantage
from jaxr1.rl.objectives import Kl, Surrogate
from jaxr1.rl.optimizer import Optimizer
from jaxr1.run.check import check_least, check_positive, check_types

Data = Arithmetic | Spatial | Files | Sat | DataSource


@dataclasses.dataclass(frozen=True)
class BucketOptions:
    """Static sizes; an empty tuple is a geometric series up to the stage's limits (to the processor's for patches).

    Attributes:
      prompt: prompt lengths in tokens.
      response: response lengths in tokens.
      patches: patch-row lengths in patches.
    """

    prompt: tuple[int, ...] = ()
    response: tuple[int, ...] = ()
    patches: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sft:
    """Supervised stage: cross-entropy on the responses of the data, token mean over each batch.

    Attributes:
      data: examples with a `response`.
      name: of the stage, in metrics and files.
      epochs: passes over the data; the last batch is filled from the next pass.
      batch_size: examples per optimiser step.
      max_prompt_tokens: examples with a longer prompt are dropped and written down.
      max_response_tokens: examples with a longer response are dropped and written down.
      micro_batch_tokens: padded tokens that are differentiated at once.
      optimizer: AdamW and its schedule.
      freeze: parts that stay as they are: "vision", "merger", "decoder".
      lora: train low-rank adapters instead of the model; they are merged into it at the end of the stage.
      eval_every: optimiser steps between evaluations; 0 is only at the end.
      save_every: optimiser steps between checkpoints; 0 is only at the end.
      buckets: static sizes.
    """

    data: Data
    name: str = "sft"
    epochs: float = 1.0
    batch_size: int = 32
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    micro_batch_tokens: int = 16384
    optimizer: Optimizer = Optimizer(learning_rate=1e-5, schedule="cosine", warmup=0.05)
    freeze: tuple[str, ...] = ()
    lora: Lora | None = None
    eval_every: int = 0
    save_every: int = 0
    buckets: BucketOptions = BucketOptions()

    def __post_init__(self):
        path = f"stage {self.name!r}: "
        check_types(self, path)
        _check_stage(self, path)
        check_least(self, path, batch_size=1)
        check_positive(self, path, "epochs")


@dataclasses.dataclass(frozen=True)
class Rl:
    """Reinforcement learning from rules: group sampling, advantages, clipped surrogate, KL.

    Attributes:
      data: examples with an `answer`.
      name: of the stage, in metrics and files.
      steps: rollouts.
      prompts_per_step: prompts of one rollout.
      group_size: responses per prompt.
      temperature: of sampling and of every log-prob.
      top_p: of sampling; log-probs are before this filter.
      top_k: of sampling, 0 is off; log-probs are before this filter.
      max_prompt_tokens: longer prompts are dropped and written down.
      max_response_tokens: limit of a response.
      waves: parts a rollout is sampled in; one is graded while the next is sampled.
      updates_per_rollout: optimiser steps per rollout, on disjoint groups; over 1, old log-probs are computed first.
      advantage: how rewards of a group become advantages.
      surrogate: the policy objective.
      kl: the penalty to the reference.
      rewards: components and weights.
      reward_workers: worker processes that grade.
      reward_timeout_s: seconds before a worker is killed.
      drop_unparsable: leave out rows whose reference answer cannot be parsed (they are listed in dropped.jsonl).
      optimizer: AdamW and its schedule.
      freeze: parts that stay as they are: "vision", "merger", "decoder".
      lora: train low-rank adapters instead of the model; they are merged into it at the end of the stage.
      micro_batch_tokens: padded tokens that are differentiated at once.
      strips_at_once: strips of a row that are differentiated together; 0 is all. Fewer need less memory.
      eval_every: steps between evaluations; 0 is only at the end.
      save_every: steps between checkpoints; 0 is only at the end.
      buckets: static sizes.
    """

    data: Data
    name: str = "rl"
    steps: int = 100
    prompts_per_step: int = 8
    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 512
    waves: int = 2
    updates_per_rollout: int = 1
    advantage: Advantage = Advantage()
    surrogate: Surrogate = Surrogate()
    kl: Kl = Kl()
    rewards: tuple[Reward, ...] = (Reward("accuracy"), Reward("format", weight=0.5))
    reward_workers: int = 1
    reward_timeout_s: float = 10.0
    drop_unparsable: bool = True
    optimizer: Optimizer = Optimizer()
    freeze: tuple[str, ...] = ()
    lora: Lora | None = None
    micro_batch_tokens: int = 16384
    strips_at_once: int = 0
    eval_every: int = 0
    save_every: int = 0
    buckets: BucketOptions = BucketOptions()

    def __post_init__(self):
        path = f"stage {self.name!r}: "
        check_types(self, path)
        _check_stage(self, path)
        check_least(
            self, path, steps=1, prompts_per_step=1, group_size=2, top_k=0, waves=1, updates_per_rollout=1,
            reward_workers=1, strips_at_once=0,
        )  # fmt: skip
        check_positive(self, path, "reward_timeout_s")
        check_least(self.kl, f"{path}kl.", coef=0)
        check_least(self.advantage, f"{path}advantage.", eps=0)
        check_least(self.surrogate, f"{path}surrogate.", clip_low=0, clip_high=0, length_norm=0)
        if self.temperature <= 0:
            raise ValueError(f"{path}temperature must be over 0, greedy samples of a group are all equal")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"{path}top_p must be in (0, 1], got {self.top_p}")
        if self.strips_at_once & (self.strips_at_once - 1):
            raise ValueError(f"{path}strips_at_once must be a power of two or 0, got {self.strips_at_once}")
        if self.prompts_per_step % self.updates_per_rollout:
            raise ValueError(
                f"{path}updates_per_rollout ({self.updates_per_rollout}) must divide "
                f"prompts_per_step ({self.prompts_per_step})"
            )
        if not self.rewards:
            raise ValueError(f"{path}no rewards")
        check_labels(self.rewards, path)


Stage = Sft | Rl


def _check_stage(stage: Stage, path: str) -> None:
    """Raises ValueError where an option that all stages have is out of range."""
    check_least(
        stage, path, max_prompt_tokens=1, max_response_tokens=1, micro_batch_tokens=1, eval_every=0, save_every=0
    )
    optimizer = f"{path}optimizer."
    check_least(stage.optimizer, optimizer, learning_rate=0, warmup=0, final=0, weight_decay=0, clip_norm=0)
    check_positive(stage.optimizer, optimizer, "eps")
    if not stage.name or "/" in stage.name:
        raise ValueError(f"{path}the name is part of file names: it must not be empty or hold a slash")
    for part in stage.freeze:
        if part not in PARTS:
            raise ValueError(f"{path}freeze: {part!r} is none of {', '.join(PARTS)}")
    for name, limit in (("prompt", stage.max_prompt_tokens), ("response", stage.max_response_tokens)):
        sizes = getattr(stage.buckets, name)
        if sizes and max(sizes) < limit:
            raise ValueError(f"{path}buckets.{name} must reach max_{name}_tokens, {limit}; the largest is {max(sizes)}")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A held-out set, answered before, during and after training.

    Attributes:
      data: examples with an `answer`.
      name: in metrics (`eval/<name>/accuracy`).
      temperature: 0 is greedy.
      max_prompt_tokens: a longer prompt is an error.
      max_response_tokens: limit of a response.
      batch_rows: prompts in flight.
      format: variant of the format check: "strict", "whitespace" or "lenient".
      tail: read an answer without tags from the end of a finished response, as the accuracy reward's option `tail` does.
      samples: examples whose pictures are kept, for the report.
    """

    data: Data
    name: str = "heldout"
    temperature: float = 0.0
    max_prompt_tokens: int = 4096
    max_response_tokens: int = 512
    batch_rows: int = 64
    format: Literal["strict", "whitespace", "lenient"] = "whitespace"
    tail: bool = False
    samples: int = 64

    def __post_init__(self):
        path = f"evaluation {self.name!r}: "
        check_types(self, path)
        check_least(self, path, temperature=0, max_prompt_tokens=1, max_response_tokens=1, batch_rows=1, samples=0)
        if not self.name or "/" in self.name:
            raise ValueError(f"{path}the name is part of file names: it must not be empty or hold a slash")


@dataclasses.dataclass(frozen=True)
class ProcessorOptions:
    """What the processor does other than the model directory says; None leaves it.

    Attributes:
      min_pixels: lower bound of the area of a resized image.
      max_pixels: upper bound of the area of a resized image.
      template: "r1_zero" for base models; "chatml" or "internvl2_5" for directories without a chat template of their own.
      video_fps: frames taken for a second of video.
      video_max_frames: most frames taken of a video.
      video_max_pixels: upper bound of the area of a resized frame (of all frames together for Qwen3-VL).
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    template: Literal["r1_zero", "chatml", "internvl2_5"] | None = None
    video_fps: float | None = None
    video_max_frames: int | None = None
    video_max_pixels: int | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
      stages: executed in order.
      model: Hugging Face directory, preset name or hub id.
      run_dir: where everything is written; the same command with the same folder resumes.
      seed: of parameters of presets excepted, all that is random.
      evaluations: held-out sets.
      processor: image bounds and template.
      mesh: sizes of the mesh axes.
      dtype: of the computation; "" is float32 on CPU and bfloat16 elsewhere.
      param_dtype: of parameters; bfloat16 is rounded stochastically after each update (the optimiser's state is float32).
      remat: rematerialise layers in the backward pass.
      keep_checkpoints: how many are kept.
      export: write export/ at the end.
      report: write the table, the curves and the page at the end.
      tensorboard: write event files.
      wandb: project to log to; needs the extra.
    """

    stages: tuple[Stage, ...]
    model: str = "tiny"
    run_dir: str = "runs/run"
    seed: int = 0
    evaluations: tuple[Evaluation, ...] = ()
    processor: ProcessorOptions = ProcessorOptions()
    mesh: MeshOptions = MeshOptions()
    dtype: Literal["", "float32", "bfloat16"] = ""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    keep_checkpoints: int = 2
    export: bool = True
    report: bool = True
    tensorboard: bool = True
    wandb: str | None = None

    def __post_init__(self):
        check_types(self)
        names = [s.name for s in self.stages]
        if not names:
            raise ValueError("a run needs at least one stage")
        for what, given in (("stage", names), ("evaluation", [e.name for e in self.evaluations])):
            if len(set(given)) != len(given):
                raise ValueError(f"{what} names must differ, got {', '.join(given)}")
        if not self.run_dir:
            raise ValueError("run_dir must name a folder")
        check_least(self, "", seed=0, keep_checkpoints=1)
