"""What a run ends with: the parameters of a checkpoint, as a tree or as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from jaxr1.checkpoints.tensors import CheckpointError, listed
from jaxr1.models import registry
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import Lora, init_adapters, merged
from jaxr1.parallel import mesh_of
from jaxr1.run.options import ProcessorOptions
from jaxr1.run.state import Checkpoints


def checkpoint_params(checkpoints: Checkpoints, step: int, lora: Lora | None, model: Model, params: dict) -> dict:
    """The parameters of a checkpoint, placed like `params` (those that the run started from), adapters merged."""
    if lora is None:
        return checkpoints.params(step, params)
    adapters = init_adapters(model.table(), lora, 0, mesh_of(params), model.rules)
    return merged(checkpoints.params(step, {**params, "lora": adapters}), model.table(), lora)


def export_checkpoint(run_dir: str | Path, out: str | Path, dtype: str | None = None, step: int | None = None) -> Path:
    """Writes the Hugging Face directory of a checkpoint of a run.

    Args:
      run_dir: a run directory that holds checkpoints/.
      out: the directory to write: a new or empty one, or one that holds nothing but an earlier model.
      dtype: of the weights; None is the dtype of the model that the run started from.
      step: of the checkpoint, counted over all stages; None is the latest.

    Returns:
      The directory.

    Raises:
      CheckpointError: no checkpoint there, or none of that step (lists the steps), or other files in `out`.
    """
    folder = Path(run_dir)
    if not (folder / "config.json").is_file() or not (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{folder} is no run directory (no config.json or no checkpoints)")
    checkpoints = Checkpoints(folder / "checkpoints", keep=None)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise CheckpointError(f"{folder / 'checkpoints'} holds no complete checkpoint")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise CheckpointError(
                f"{folder / 'checkpoints'} has no checkpoint of step {step}, only of {listed(map(str, steps))}"
            )
        config = json.loads((folder / "config.json").read_text())
        model, params = registry.load_model(config["model"], param_dtype=config["param_dtype"])
        options, lora = config["stages"][checkpoints.run_state(step).stage].get("lora"), None
        if options:
            layers = options["layers"]
            lora = Lora(options["rank"], options["alpha"], options["targets"], layers and tuple(layers))
        params = checkpoint_params(checkpoints, step, lora, model, params)
        bounds = {f.name: config["processor"].get(f.name) for f in dataclasses.fields(ProcessorOptions)}
        return registry.save_model(model, params, registry.load_processor(config["model"], **bounds), out, dtype)
    finally:
        checkpoints.close()
