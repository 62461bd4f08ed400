"""Parameters beside the checkpoints: frozen parts that an earlier stage has moved, references."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxr1.parallel import agree, on_main
from jaxr1.rl.learner import TrainState
from jaxr1.run.state import Progress, ResumeError, abstract, read_in_parts, saving, uncompressed


class Kept:
    """Parameters of a stage that are written beside its checkpoints.

    Args:
      folder: the run directory.
      stage: name of the stage.
      progress: how far it is.
    """

    def __init__(self, folder: Path, stage: str, progress: Progress):
        self.reference, self.parts = folder / "reference" / stage, folder / "frozen" / stage
        self.moving, self.stage, self.progress = folder / "moving" / stage, stage, progress

    def snapshot(self, tree: dict) -> dict:
        """The stage's reference: its parameters as they began, or as `keep` has kept them since.

        Raises:
          ResumeError: the stage was begun without asking for them.
        """
        if self.progress.reference_step:
            return _once(self.moving / str(self.progress.reference_step), widened(tree))
        if self.progress.step and not agree([self.reference.is_dir()])[0]:
            raise ResumeError(
                f"stage {self.stage!r} was begun without a KL term: there is no reference in "
                f"{self.reference}"
            )
        return _once(self.reference, tree)

    def keep(self, step: int, tree: dict, named: Collection[int]) -> None:
        """A reference as it is after a step; on disk when this returns, before its checkpoint.

        Args:
          named: steps of those that a checkpoint names, or may soon; others are removed.
        """
        on_main(lambda: self._clear({*map(str, named)} - {str(step)}))
        _once(self.moving / str(step), tree)

    def _clear(self, spared: Collection[str]) -> None:
        for path in self.moving.glob("*"):
            if path.name not in spared:
                shutil.rmtree(path)

    def frozen(self, states: dict[str, TrainState], moved: list[str]) -> dict[str, TrainState]:
        """The states, with frozen parts that earlier stages have moved as these left them.

        Args:
          moved: such parts; the others are as in the model's directory.
        """
        kept = {}
        for name, state in states.items():
            own = {part: tree for part, tree in state.frozen.items() if part in moved}
            if own:
                own = _once(self.parts / name, own)
            kept[name] = dataclasses.replace(state, frozen={**state.frozen, **own})
        return kept

    def read_frozen(self, learner: str, like: dict) -> dict:
        """The frozen parts of a learner that are kept here; {} where all are the model's.

        Args:
          like: parameters of all parts.
        """
        folder = self.parts / learner
        if not folder.is_dir():
            return {}
        parts = ocp.metadata(folder.absolute()).metadata
        wanted = {part: abstract(like[part]) for part in parts}
        return read_in_parts(functools.partial(ocp.load, folder.absolute()), wanted)


def _once(folder: Path, tree: dict) -> dict:
    """Writes a tree where nothing is yet; what is there, placed like it."""
    if not agree([folder.exists()])[0]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with saving(str(folder)), uncompressed():
            ocp.save(folder.absolute(), tree)
    return read_in_parts(functools.partial(ocp.load, folder.absolute()), abstract(tree))


def widened(tree: dict) -> Any:
    """The shapes of a tree in float32, placed like it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), tree
    )
