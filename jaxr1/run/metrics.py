"""What a run measures: metrics.jsonl, TensorBoard event files, Weights & Biases if asked.

metrics.jsonl is the one that counts: append-only, one object a line, cut back to the checkpoint's
offset on resume, so that an interrupted and resumed run leaves the same lines as one that was never
interrupted.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxr1.base.files import write_whole
from jaxr1.base.jsonl import AppendLog, NoLog


class MetricsLog:
    """The metrics of a run, one call a step.

    Args:
      run_dir: the run directory; writes `metrics.jsonl` and `tensorboard/` there.
      tensorboard: whether to write TensorBoard event files.
      wandb: project name for Weights & Biases; None for none.
      writes: False writes nothing: another host does.

    Raises:
      ImportError: wandb is asked for and not installed; says how to install it.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        tensorboard: bool = True,
        wandb: str | None = None,
        writes: bool = True,
    ):
        self.run_dir = Path(run_dir)
        self.log = AppendLog(self.run_dir / "metrics.jsonl") if writes else NoLog()
        tensorboard, wandb = (tensorboard, wandb) if writes else (False, None)
        self._tensorboard = tensorboard
        self._purge_step: int | None = None
        self._writer: Any = None
        self._wandb: Any = None
        self._count = 0
        if wandb is not None:
            try:
                import wandb as module
            except ImportError:
                raise ImportError(
                    "logging to Weights & Biases needs the package wandb: pip install wandb"
                ) from None
            # kept in the directory: a resumed run goes on in the same record, and a directory of
            # the same name elsewhere (a/seed0, b/seed0) has another one
            self._wandb = module.init(
                project=wandb,
                name=self.run_dir.name,
                id=_kept_id(self.run_dir / "wandb_id"),
                dir=str(self.run_dir),
                resume="allow",
            )
            # steps as a metric: wandb drops what is logged under a smaller step of its own than
            # before, which is what a resumed run logs first
            self._wandb.define_metric("global_step")
            self._wandb.define_metric("*", step_metric="global_step")

    def write(
        self, stage: str, step: int, metrics: Mapping[str, Any], *, global_step: int | None = None
    ) -> None:
        """Writes the metrics of one step.

        Args:
          stage: name of the stage.
          step: step within the stage.
          metrics: name -> number; anything with __float__ will do. NaN and infinities become null
            in the file and are left out of TensorBoard.
          global_step: steps since the run began, the x axis of TensorBoard; by default the calls so
            far.
        """
        values = {name: float(value) for name, value in metrics.items()}
        self.log.write({"stage": stage, "step": step, **values})
        x = self._count if global_step is None else global_step
        self._count += 1
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if self._tensorboard:
            writer = self._open_tensorboard()
            for name, value in finite.items():
                writer.add_scalar(name, value, x)
        if self._wandb is not None:
            self._wandb.log({"stage": stage, "global_step": x, **finite})

    def _open_tensorboard(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # imported late: protobuf is slow to import

            self._writer = SummaryWriter(
                str(self.run_dir / "tensorboard"),
                purge_step=self._purge_step,
                flush_secs=10,
                write_to_disk=True,
            )
        return self._writer

    def tell(self) -> int:
        """The offset of metrics.jsonl, for the checkpoint."""
        if self._writer is not None:
            self._writer.flush()
        return self.log.tell()

    def truncate(self, offset: int, *, global_step: int | None = None) -> None:
        """Cuts metrics.jsonl back to a checkpoint; TensorBoard hides what `global_step` repeats."""
        self.log.truncate(offset)
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._purge_step = global_step

    def close(self) -> None:
        self.log.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _kept_id(file: Path) -> str:
    """What the file holds: a random id, made once."""
    if not file.is_file():
        write_whole(file, secrets.token_hex(8).encode())
    return file.read_text()
