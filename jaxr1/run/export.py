"""The parameters of a checkpoint, as a tree or as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from jaxr1.checkpoints.tensors import CheckpointError, listed
from jaxr1.inputs.settings import ProcessorOptions
from jaxr1.models import load
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import ADAPTERS, Lora, init_adapters, merged
from jaxr1.parallel import mesh_of
from jaxr1.run.kept import Kept
from jaxr1.run.options import stored_dtype
from jaxr1.run.state import Checkpoints, Progress
from jaxr1.stages import POLICY


def checkpoint_params(
    folder: Path, checkpoints: Checkpoints, step: int, stage: str, lora: Lora | None, like: Loaded
) -> dict:
    """The policy's parameters of a checkpoint, adapters merged.

    Args:
      folder: the run directory.
      stage: name of the checkpoint's stage.
      lora: of the stage.
      like: what the run started from; gives frozen parts that no stage has trained.
    """
    model, params = like.model, like.params
    frozen = Kept(folder, stage, Progress()).read_frozen(POLICY, params)
    base = {**params, **frozen}
    if lora is None:
        return {**base, **checkpoints.trainable(step, POLICY, base)}
    adapters = init_adapters(model.table(), lora, 0, mesh_of(params), model.rules)
    trained = checkpoints.trainable(step, POLICY, {ADAPTERS: adapters})
    return merged({**base, **trained}, model.table(), lora)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and its parameters."""

    model: Model
    params: dict


def export_checkpoint(
    run_dir: str | Path, out: str | Path, dtype: str | None = None, step: int | None = None
) -> Path:
    """Writes the Hugging Face directory of a checkpoint of a run.

    Args:
      run_dir: a run directory that holds checkpoints/.
      out: the directory to write: new, empty, or one that holds nothing but an earlier model.
      dtype: of the weights; None is the dtype of the model that the run started from.
      step: of the checkpoint, counted over all stages; None is the latest.

    Returns:
      The directory.

    Raises:
      CheckpointError: no checkpoint there, or none of that step (lists the steps), or other files
        in `out`.
      ResumeError: checkpoints of an older layout; names the release that reads them.
    """
    folder = Path(run_dir)
    if not (folder / "config.json").is_file() or not (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{folder} is no run directory (no config.json or no checkpoints)")
    # Read only: a run may be at work there, and be writing its next checkpoint.
    checkpoints = Checkpoints(folder / "checkpoints", keep=None)
    try:
        step = _chosen(checkpoints, step)
        config = json.loads((folder / "config.json").read_text())
        stage = config["stages"][checkpoints.progress(step).stage]
        adapted = [one.get("lora") is not None for one in config["stages"]]
        stored = stored_dtype(config["param_dtype"], adapted)
        like = Loaded(*load.load_model(config["model"], param_dtype=stored))
        lora = _lora(stage.get("lora"))
        params = _read(folder, checkpoints, step, stage["name"], lora, like)
        names = [field.name for field in dataclasses.fields(ProcessorOptions)]
        bounds = {name: config["processor"].get(name) for name in names}
        processor = load.load_processor(config["model"], **bounds)
        return load.save_model(like.model, params, processor, out, dtype)
    finally:
        checkpoints.close()


def _read(
    folder: Path, checkpoints: Checkpoints, step: int, stage: str, lora: Lora | None, like: Loaded
) -> dict:
    """As `checkpoint_params`; CheckpointError where a run removes the checkpoint meanwhile."""
    try:
        return checkpoint_params(folder, checkpoints, step, stage, lora, like)
    except Exception as e:
        if step in checkpoints.steps_on_disk():
            raise
        raise CheckpointError(
            f"{checkpoints.folder}: the run that is at work there has removed the checkpoint of "
            f"step {step} while it was read (keep_checkpoints): give the same command again"
        ) from e


def _chosen(checkpoints: Checkpoints, step: int | None) -> int:
    """The step asked for, or the latest one."""
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(f"{checkpoints.folder} holds no complete checkpoint")
    if step is not None and step not in steps:
        known = listed(map(str, steps))
        raise CheckpointError(
            f"{checkpoints.folder} has no checkpoint of step {step}, only of {known}"
        )
    return steps[-1] if step is None else step


def _lora(options: dict | None) -> Lora | None:
    """From a resolved configuration."""
    if not options:
        return None
    layers = options["layers"] and tuple(options["layers"])
    return Lora(options["rank"], options["alpha"], options["targets"], layers)
