"""What a resume needs: the run's state, its checkpoints, its files. All Orbax calls are here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp


@dataclasses.dataclass
class RunState:
    """The host's side of a checkpoint; everything that is not an array.

    Attributes:
      stage: number of the current stage.
      step: steps done in it.
      total_step: steps done in the run; names the checkpoint.
      position: of the stage's stream.
      offsets: lengths of the append-only files, to cut them back to.
      evaluate: the evaluation at this step is still to come.
    """

    stage: int = 0
    step: int = 0
    total_step: int = 0
    position: int = 0
    offsets: dict[str, int] = dataclasses.field(default_factory=dict)
    evaluate: bool = False


def abstract(tree) -> Any:
    """Shapes, dtypes and shardings of a tree, to load a checkpoint into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Checkpoints:
    """Checkpoints of a run: arrays and run state, saved in the background, complete or absent."""

    def __init__(self, folder: Path, keep: int | None):
        policies = ocp.training.preservation_policies
        self.checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.LatestN(keep),
            cleanup_tmp_directories=True,  # what a killed save left behind
        )
        self.pending = None

    def save(self, state, run: RunState, config: dict) -> None:
        """Starts a save; the previous one is finished first."""
        self.wait()
        if jax.default_backend() == "cpu":
            # A host view of a CPU array is the array: the next donated update would write under the save's feet.
            state = jax.tree.map(jnp.copy, state)
        self.pending = self.checkpointer.save_checkpointables_async(
            run.total_step, {"state": state, "run": {**dataclasses.asdict(run), "config": json.dumps(config)}}
        )

    def wait(self) -> None:
        """Until the last save is complete on disk."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def latest(self) -> int | None:
        found = self.checkpointer.latest
        return None if found is None else found.step

    def steps(self) -> list[int]:
        """Those of all complete checkpoints, ascending."""
        return sorted(found.step for found in self.checkpointer.checkpoints)

    def run_state(self, step: int) -> RunState:
        saved = dict(self.checkpointer.load_checkpointables(step, {"run": None})["run"])
        saved.pop("config")
        return RunState(**saved)

    def load(self, step: int, like) -> Any:
        """The arrays of a checkpoint, placed like `like`."""
        return self.checkpointer.load_checkpointables(step, {"state": abstract(like)})["state"]

    def params(self, step: int, like: dict) -> dict:
        """Only the parameters of a checkpoint, placed like `like`; the optimiser state is not read."""
        meta = self.checkpointer.checkpointables_metadata(step).metadata["state"]
        skipped = jax.tree.map(lambda _: ocp.PLACEHOLDER, meta)
        wanted = dict(skipped)
        for part in ("trainable", "frozen"):
            wanted[part] = {k: abstract(like[k]) for k in skipped[part]}
        state = self.checkpointer.load_checkpointables(step, {"state": wanted})["state"]
        return {**state["trainable"], **state["frozen"]}

    def close(self) -> None:
        self.wait()
        self.checkpointer.close()


def save_tree(folder: Path, tree) -> None:
    """Writes a tree of arrays once (a stage's reference)."""
    if not folder.exists():
        ocp.save(folder.absolute(), tree)


def load_tree(folder: Path, like) -> Any:
    return ocp.load(folder.absolute(), abstract(like))
