"""What a resume needs: how far the run is, and its checkpoints. Orbax is called here and in `kept`.

    checkpoints/STEP/   learners  {name: {trainable, optimiser, step}}       arrays
                        progress  {..., model, moved, config, layout}        everything else
    frozen/STAGE/       parts that an earlier stage trained and this one keeps as they are
    reference/STAGE/    what the stage began with, where a KL asks
    moving/STAGE/STEP/  that reference where it follows the policy, as it was moved last

Frozen parts are named, not copied: they are those of the model's directory, which is known by the
fingerprint of its weights, or those in frozen/STAGE.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxr1.base.errors import UserError
from jaxr1.parallel import is_parted, together
from jaxr1.rl.learner import TrainState

LAYOUT = 2  # of what a checkpoint holds
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what Orbax has not finished
RELEASES = {1: "0.1"}  # the last release that reads an older layout
KEPT = ("reference", "frozen", "moving")  # folders of what is written beside the checkpoints
READ_BYTES = 64 << 20  # arrays of so many bytes, or the largest one, are read at the same time


class SaveError(UserError):
    """A checkpoint that could not be written."""


class ResumeError(UserError):
    """A run directory that cannot be gone on with: of another configuration, or in use."""


@dataclasses.dataclass
class Progress:
    """How far a run is; the host's side of a checkpoint.

    Attributes:
      stage: number of the current stage.
      step: steps done in it.
      total_step: steps done in the run; names the checkpoint.
      position: of the stage's draws.
      offsets: lengths of the append-only files, to cut them back to.
      evaluate: the evaluation at this step is still to come.
      model: fingerprint of the weights that the run started from.
      moved: parts that earlier stages have trained: they are no longer the model directory's.
      skipped: steps in a row, up to this one, whose gradients were not finite.
      streaks: {kind of warning: steps in a row, up to this one, that call for it}; see `run.watch`.
      scalars: coefficients that move from step to step.
      reference_step: of the stage, in which its reference moved last; 0 is never.
      order: of the stage's draws, what it depends on besides the position; see `data.order`.
    """

    stage: int = 0
    step: int = 0
    total_step: int = 0
    position: int = 0
    offsets: dict[str, int] = dataclasses.field(default_factory=dict)
    evaluate: bool = False
    model: str = ""
    moved: list[str] = dataclasses.field(default_factory=list)
    skipped: int = 0
    streaks: dict[str, int] = dataclasses.field(default_factory=dict)
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    reference_step: int = 0
    order: dict[str, float] = dataclasses.field(default_factory=dict)

    def next_stage(self, number: int) -> Progress:
        """At the beginning of another stage."""
        return Progress(
            stage=number,
            total_step=self.total_step,
            offsets=self.offsets,
            evaluate=self.evaluate,
            model=self.model,
            moved=self.moved,
        )


def abstract(tree) -> Any:
    """Shapes, dtypes and shardings of a tree, to load a checkpoint into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def uncompressed() -> ocp.Context:
    """Arrays are written as they are.

    Compressed, one takes its size once more while it is written, and twice while it is read, to
    save a fourteenth of the disk.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context


def read_in_parts(read: Callable[[Any], Any], like: Any) -> Any:
    """A tree of arrays from disk, of which few are on their way at the same time.

    An array is there twice until it is placed: all at once would take twice the memory.

    Args:
      read: reads a tree in which most leaves may be placeholders, and come back as such.
      like: shapes, dtypes and shardings; its own placeholders stay.
    """
    leaves, tree = jax.tree.flatten(like)
    sizes = {i: x.size * x.dtype.itemsize for i, x in enumerate(leaves) if x is not ocp.PLACEHOLDER}
    most = max([READ_BYTES, *sizes.values()])
    out, part = list(leaves), set[int]()

    def fetch() -> None:
        asked = [x if i in part else ocp.PLACEHOLDER for i, x in enumerate(leaves)]
        found = jax.tree.leaves(read(jax.tree.unflatten(tree, asked)))
        for i in part:
            out[i] = jax.block_until_ready(found[i])

    for i, size in sizes.items():
        if sum(sizes[j] for j in part) + size > most:
            fetch()
            part.clear()
        part.add(i)
    if part:
        fetch()
    return jax.tree.unflatten(tree, out)


def learned(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a learner."""
    return {"trainable": state.trainable, "optimiser": state.opt, "step": state.step}


class Checkpoints:
    """Checkpoints of a run, saved in the background, complete or absent.

    Args:
      folder: where they are.
      keep: how many are kept; None only reads, and neither removes nor tidies anything: a run may
        be at work there. Any other number needs the run's lock.
    """

    def __init__(self, folder: Path, keep: int | None):
        policies = ocp.training.preservation_policies
        self.folder = folder
        self.checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.LatestN(keep),
            cleanup_tmp_directories=keep is not None,  # what a killed save left behind
            context=uncompressed(),
        )
        self.pending: Any = None
        self.saving = 0  # step of the pending one
        self.failed = False

    def save(self, states: dict[str, TrainState], progress: Progress, config: dict) -> None:
        """Starts a save; the previous one is finished first.

        Raises:
          SaveError: the previous one, or what this one does at once, has failed.
        """
        self.wait()
        self.saving = progress.total_step
        learners = {name: learned(state) for name, state in states.items()}
        if jax.default_backend() == "cpu":
            # A host view of a CPU array is the array: the next donated update would write under it.
            learners = jax.tree.map(jnp.copy, learners)
        noted = {**dataclasses.asdict(progress), "config": json.dumps(config), "layout": LAYOUT}
        with self._told():
            self.pending = self.checkpointer.save_checkpointables_async(
                progress.total_step, {"learners": learners, "progress": noted}
            )

    def check(self) -> None:
        """Raises SaveError if a save has failed by now; it is not waited for."""
        together(lambda: self._finish(timeout=0))

    def wait(self) -> None:
        """Until the last save is complete on disk.

        Raises:
          SaveError: it has failed.
        """
        together(lambda: self._finish(timeout=None))

    def _finish(self, timeout: float | None) -> None:
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        with self._told():
            try:
                pending.result(timeout)
            except TimeoutError:
                if timeout is None:
                    raise
                self.pending = pending

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What fails inside is said as a SaveError."""
        try:
            with saving(f"{self.folder}: the checkpoint of step {self.saving}"):
                yield
        except SaveError:
            self.failed = True
            raise

    def latest(self) -> int | None:
        found = self.checkpointer.latest
        return None if found is None else found.step

    def steps_on_disk(self) -> list[int]:
        """As `steps`, of what is complete now: a save that failed was never there."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def steps(self) -> list[int]:
        """Those of all complete checkpoints, ascending."""
        return sorted(found.step for found in self.checkpointer.checkpoints)

    def progress(self, step: int) -> Progress:
        """How far the run was.

        Raises:
          ResumeError: the checkpoint has another layout; names the release that reads it.
        """
        held = self.checkpointer.checkpointables_metadata(step).metadata
        if "progress" not in held:
            self._refuse(1)
        saved = dict(self.checkpointer.load_checkpointables(step, {"progress": None})["progress"])
        if (layout := saved.pop("layout")) != LAYOUT:
            self._refuse(layout)
        saved.pop("config")
        return Progress(**saved)

    def _refuse(self, layout: int) -> None:
        release = RELEASES.get(layout)
        reads = f"release {release} of jaxr1 reads" if release else "a newer release of jaxr1 wrote"
        raise ResumeError(
            f"{self.folder}: these checkpoints have layout {layout}, which {reads}; this one has "
            f"layout {LAYOUT}. Go on with that release, or begin anew in another run directory "
            "(the report and export/ of this one can be used as they are)"
        )

    def load(self, step: int, states: dict[str, TrainState]) -> dict[str, TrainState]:
        """The states of a checkpoint, placed like `states`, whose frozen parts they keep.

        What it holds is deleted in `states` before it is loaded: a resumed run never needs more
        memory than a fresh one.
        """
        like = {name: abstract(learned(state)) for name, state in states.items()}
        for x in jax.tree.leaves([learned(state) for state in states.values()]):
            x.delete()
        found = read_in_parts(functools.partial(self._learners, step), like)
        return {
            name: dataclasses.replace(
                state,
                trainable=found[name]["trainable"],
                opt=found[name]["optimiser"],
                step=found[name]["step"],
            )
            for name, state in states.items()
        }

    def trainable(self, step: int, learner: str, like: dict) -> dict:
        """Only the trained parameters of a learner, placed like `like`; {part: parameters}.

        Args:
          like: parameters of all parts that may have been trained.
        """
        meta = self.checkpointer.checkpointables_metadata(step).metadata["learners"]
        wanted = jax.tree.map(lambda _: ocp.PLACEHOLDER, meta)
        parts = wanted[learner]["trainable"]
        wanted[learner] = {**wanted[learner], "trainable": {k: abstract(like[k]) for k in parts}}
        return read_in_parts(functools.partial(self._learners, step), wanted)[learner]["trainable"]

    def _learners(self, step: int, like: Any) -> Any:
        return self.checkpointer.load_checkpointables(step, {"learners": like})["learners"]

    def close(self) -> None:
        """Waits for the last save.

        Raises:
          SaveError: it has failed, and nobody was told yet.
        """
        if is_parted():  # the others are no longer there to write their part
            return
        try:
            self._finish(timeout=None)
        finally:
            try:
                self.checkpointer.close()
            except Exception:
                if not self.failed:  # else Orbax says again what was said
                    raise


@contextlib.contextmanager
def saving(what: str) -> Iterator[None]:
    """What fails inside is said as a SaveError, which begins with `what`."""
    try:
        yield
    except Exception as e:  # Orbax and tensorstore have errors of their own for a full disk
        raise SaveError(
            f"{what} could not be written ({type(e).__name__}: {e}). Is the disk full? What was "
            "saved before is whole"
        ) from e


def tidy(folder: Path) -> None:
    """Removes what killed saves and exports left behind in a run directory; needs its lock."""
    left: list[Path] = []
    for kept in KEPT:
        left += (folder / kept).glob(f"**/*{UNFINISHED}*")
    exports = list(folder.glob(".export.*.partial"))
    if (folder / "export").is_dir():  # else the old one is the only one
        exports += folder.glob(".export.*.old")
    files = [*folder.glob(".*.tmp"), *(folder / "media").glob(".*.tmp")]
    # An export or a report needs no lock: it may be at work.
    for path in (*left, *filter(_is_of_the_dead, [*exports, *files])):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_of_the_dead(path: Path) -> bool:
    """Whether the process has ended whose number is the last but one part of a name."""
    number = path.name.split(".")[-2]
    if not number.isdecimal() or os.name == "nt":  # there, asking is ending
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # of somebody else, or no number of a process
        return False
    return int(number) == os.getpid()  # this process has just begun: another one had its number
