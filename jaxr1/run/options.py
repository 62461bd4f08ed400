"""What a run is: its configuration as a tree of frozen dataclasses. A run is a tuple of stages.

Each room declares and checks its own part of the tree.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

from jaxr1.base.checks import check_least, check_types
from jaxr1.evaluation.heldout import Evaluation
from jaxr1.inputs.settings import ProcessorOptions
from jaxr1.parallel import HostOptions, MeshOptions
from jaxr1.stages.options import Filter, Rl, Stage


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
      hosts: machines that run together, where there are several.
      dtype: of the computation; "" is float32 on CPU and bfloat16 elsewhere.
      param_dtype: of parameters; bfloat16 is rounded stochastically after each update (the
        optimiser's state is float32). "" is that of the model's files where all stages train
        adapters only (which are float32 themselves), and float32 elsewhere.
      remat: rematerialise layers in the backward pass; None is for models of over a billion
        parameters.
      keep_checkpoints: how many are kept.
      save_minutes: longest time between checkpoints, besides those of a stage's `save_every`; 0 is
        off. Every stage ends with one.
      save_first: write a checkpoint before anything is trained too.
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
    hosts: HostOptions = HostOptions()
    dtype: Literal["", "float32", "bfloat16"] = ""
    param_dtype: Literal["", "float32", "bfloat16"] = ""
    remat: bool | None = None
    keep_checkpoints: int = 2
    save_minutes: float = 20.0
    save_first: bool = False
    export: bool = True
    report: bool = True
    tensorboard: bool = True
    wandb: str | None = None

    @property
    def stored_dtype(self) -> str | None:
        """`param_dtype`, with what "" means; None is the dtype of the model's files."""
        return stored_dtype(self.param_dtype, [stage.lora is not None for stage in self.stages])

    def __post_init__(self):
        check_types(self, "")
        names = [stage.name for stage in self.stages]
        if not names:
            raise ValueError("a run needs at least one stage")
        sets = [evaluation.name for evaluation in self.evaluations]
        for what, given in (("stage", names), ("evaluation", sets)):
            if len(set(given)) != len(given):
                raise ValueError(f"{what} names must differ, got {', '.join(given)}")
        files = [f"{one}_{stage}" for one, stage in itertools.product(sets, names)]
        if double := sorted({file for file in files if files.count(file) > 1}):
            raise ValueError(
                f"evaluations and stages share the files eval_{double[0]}_STEP.jsonl: rename one"
            )
        for number, stage in enumerate(self.stages):
            if isinstance(stage, Rl) and stage.kept_by:
                self._check_filter(stage, self.stages[:number])
        if not self.run_dir:
            raise ValueError("run_dir must name a folder")
        check_least(self, "", seed=0, keep_checkpoints=1, save_minutes=0)

    def _check_filter(self, stage: Rl, before: Sequence[Stage]) -> None:
        """Refuses `kept_by` where it names no filter of the same rows."""
        found = [one for one in before if isinstance(one, Filter) and one.name == stage.kept_by]
        if not found:
            names = [one.name for one in before if isinstance(one, Filter)]
            known = ", ".join(map(repr, names)) or "none"
            raise ValueError(
                f"{stage.path}kept_by must name an earlier Filter stage; there is {known}, "
                f"got {stage.kept_by!r}"
            )
        if found[0].data != stage.data:
            raise ValueError(
                f"{stage.path}kept_by names stage {stage.kept_by!r}, whose data differ: rows are "
                "known by their numbers"
            )


def stored_dtype(param_dtype: str, adapted: Sequence[bool]) -> str | None:
    """The dtype of parameters in memory; None is that of the model's files.

    Args:
      param_dtype: the option.
      adapted: of each stage, whether it trains adapters.
    """
    return param_dtype or (None if all(adapted) else "float32")
