"""What a run reads besides its configuration, known again on resume: data, rewards, the model.

inputs.json holds size and hash of every file of rows, reward file and file of the model, and how
many rows each data set had. Pictures and clips are not hashed: there may be millions.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxr1.base.files import fingerprint_of, write_whole
from jaxr1.base.jsonl import AppendLog
from jaxr1.checkpoints.huggingface import COMPANIONS
from jaxr1.checkpoints.tensors import fingerprint
from jaxr1.data import Dataset
from jaxr1.data.example import source_files
from jaxr1.evaluation.heldout import Evaluation
from jaxr1.models import load
from jaxr1.rewards.spec import Reward
from jaxr1.run.console import Console
from jaxr1.run.machine import environment
from jaxr1.run.resume import differences
from jaxr1.run.state import ResumeError
from jaxr1.stages.options import Stage

INPUTS = "inputs.json"
ENVIRONMENT = "environment.json"
# Fields of the environment that bits depend on, as far as is known.
EXACT = ("versions", "devices", "device_kind", "hosts", "processor", "cpus", "git")

Inputs = dict[str, Any]


def inputs_of(
    parts: dict[str, tuple[Stage | Evaluation, Dataset]], model: Path, folder: Path
) -> Inputs:
    """What a run reads, by size and hash.

    Args:
      parts: {path in the configuration: (stage or evaluation, its data)}.
      model: the directory of the model.
      folder: the run directory; source of functions without a file is written there.
    """
    found: Inputs = {"weights": fingerprint(model)}
    names = [name for name in COMPANIONS if (model / name).is_file()]
    found["model"] = {name: fingerprint_of(model / name) for name in names}
    for path, (options, dataset) in parts.items():
        read = {file: fingerprint_of(Path(file)) for file in source_files(options.data)}
        found[f"{path}.data"] = {"rows": len(dataset), **read}
        for name in getattr(options, "models", ()):
            found[f"{path}.model"] = {name: fingerprint(load.resolve(name))}
        graded = _reward_files(getattr(options, "rewards", ()), folder)
        if graded:
            found[f"{path}.rewards"] = {file.name: fingerprint_of(file) for file in graded}
    return found


def _reward_files(rewards: Sequence[Reward], folder: Path) -> list[Path]:
    files = itertools.chain.from_iterable(reward.resolve(folder).files for reward in rewards)
    return [Path(file) for file in files]


def kept_inputs(run_dir: Path) -> Inputs | None:
    """What the run in a directory has read; None where it is not known."""
    file = run_dir / INPUTS
    return json.loads(file.read_text()) if file.is_file() else None


def write_inputs(run_dir: Path, inputs: Inputs) -> None:
    """Writes inputs.json."""
    write_whole(run_dir / INPUTS, json.dumps(inputs, indent=2).encode())


def check_inputs(run_dir: Path, now: Inputs, override: bool) -> list[str]:
    """Compares with what the run in a directory has read.

    Returns:
      The differences that were accepted, one line each.

    Raises:
      ResumeError: there are some and `override` is not set; lists the files.
    """
    before = kept_inputs(run_dir)
    if before is None:
        return []
    # Those of the weights are looked at with the checkpoint, which names frozen parts by them.
    changed = differences(before | {"weights": ""}, now | {"weights": ""})
    if any(".data.rows: " in line for line in changed):
        changed.append("another number of rows: from here on they are drawn in another order")
    if changed and not override:
        raise ResumeError(
            f"{run_dir}: what the run reads is not what it began with:\n  "
            + "\n  ".join(changed)
            + "\nPut the files back, use another --run-dir, or --override-resume to go on."
        )
    return changed


def note_environment(run_dir: Path, begun: bool, total_step: int, console: Console) -> None:
    """Keeps environment.json as it was when the run began; writes down and warns of another one."""
    file, now = run_dir / ENVIRONMENT, environment()
    data = json.dumps(now, indent=2).encode()
    if not begun or not file.is_file():
        write_whole(file, data)
        return
    before = json.loads(file.read_text())
    changed = differences(before, now)
    if not changed:
        return
    another = run_dir / f"environment_{total_step}.json"
    write_whole(another, data)
    if exact := [line for line in changed if line.partition(":")[0].partition(".")[0] in EXACT]:
        console.print(
            f"warning: {file}: the run goes on in another environment, and may differ from an "
            f"uninterrupted one in its last digits ({another}):\n  " + "\n  ".join(exact)
        )
        with AppendLog(run_dir / "overrides.jsonl") as overrides:
            overrides.write({"total_step": total_step, "changed": exact})
