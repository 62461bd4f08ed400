"""`train`: a run from its configuration. Read it from `Run.execute` down."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import Any

from jaxr1.base.checks import OptionError
from jaxr1.base.jsonl import read_jsonl, write_rows
from jaxr1.data import DataError
from jaxr1.inputs.draws import Draws
from jaxr1.models import load
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import ADAPTERS, init_adapters, merged
from jaxr1.report.report import write_report
from jaxr1.rewards.grades import RewardError
from jaxr1.rl.learner import TrainState
from jaxr1.run.console import Console
from jaxr1.run.export import Loaded, checkpoint_params
from jaxr1.run.machine import memory_metrics
from jaxr1.run.opening import FINISHED, Opened
from jaxr1.run.options import Config
from jaxr1.run.resume import only_process
from jaxr1.run.signals import Interrupted, Signals
from jaxr1.run.state import Kept
from jaxr1.stages import POLICY, Stage, Worker, build

States = dict[str, TrainState]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
      run_dir: the run directory.
      params: the parameters after the last stage; {} where a finished run has lost both its
        checkpoints and its export.
      metrics: every line of metrics.jsonl.
      signal: the signal that stopped the run before its end, or None.
    """

    run_dir: Path
    params: dict
    metrics: list[dict[str, Any]]
    signal: int | None = None


def train(
    config: Config, *, override_resume: bool = False, console: Console | None = None
) -> Result:
    """Runs all stages of a configuration, or goes on where a run in the same directory stopped.

    Ctrl-C and SIGTERM save a checkpoint and return; the same call then resumes, bit for bit.

    Args:
      config: the run.
      override_resume: accept a configuration that differs from the one in the run directory. A
        finished run with more steps than before goes on.
      console: where to show progress; default is the terminal.

    Returns:
      The run directory, parameters and metrics.

    Raises:
      ResumeError: the run directory holds another configuration (lists the fields), or another
        process works in it.
      OptionError: an option that does not fit the model or the machine.
      CheckpointError, DataError, RewardError: model, data or rewards cannot be used.
    """
    folder = Path(config.run_dir)
    try:
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OptionError(f"run_dir: {folder} cannot be written to ({e})") from e
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(Console()) if console is None else console
        stack.enter_context(only_process(folder))
        notice = "stopping where nothing is lost; once more stops at once"
        signals = stack.enter_context(Signals(lambda name: shown.print(f"{name}: {notice}")))
        return Run(Opened(config, shown, stack, override_resume), signals).execute()


class Run:
    """One process's work on a run directory.

    Attributes:
      at: the directory, opened.
      progress: how far the run is.
      params: what the next stage begins with.
      saved_at: total step of the latest checkpoint, None without one.
      to_load: the checkpoint that the first stage to run goes on from.
    """

    def __init__(self, at: Opened, signals: Signals):
        self.at, self.config, self.console, self.signals = at, at.config, at.console, signals
        self.progress, self.params = at.progress, at.params
        self.saved_at = self.to_load = at.saved_at

    def execute(self) -> Result:
        """All stages in order, from where the last checkpoint stands."""
        try:
            if self.at.finished:
                done = f"{self.at.dir} is finished: nothing to do."
                self.console.print(f"{done} Use another --run-dir for a new run.")
                self.params = self._final_params()
                return self._result()
            for number in range(self.progress.stage, len(self.config.stages)):
                self._stage(number)
            self._finish()
            write_rows(self.at.dir / FINISHED, [{"steps": self.progress.total_step}])
        except Interrupted:
            name = signal.Signals(self.signals.received or signal.SIGINT).name
            self.console.print(f"{name}: {self._saved()}; the same command resumes")
        return self._result()

    def _stage(self, number: int) -> None:
        """A stage from its beginning, or from the checkpoint that is to be loaded."""
        stage, model, params = self.config.stages[number], self.at.model, self.params
        if number > self.progress.stage:
            self.progress = dataclasses.replace(self.progress, stage=number, step=0, position=0)
        if stage.lora is not None:
            seed, rules = self.config.seed + number, model.rules
            adapters = init_adapters(model.table(), stage.lora, seed, self.at.mesh, rules)
            params = {**params, ADAPTERS: adapters}
            model = dataclasses.replace(model, lora=stage.lora)
        kept = Kept(self.at.dir, stage.name, begun=self.progress.step > 0)
        context = self.at.context(number, model, kept.snapshot, self.signals.check)
        with build(stage, context) as worker:
            states = kept.frozen(worker.init(params), self.progress.moved)
            if self.to_load is not None:
                states, self.to_load = self.at.checkpoints.load(self.to_load, states), None
            worker.begin(states)
            self.console.stage(stage.name, worker.steps, self.progress.step, self._place(number))
            if self.saved_at is None:
                self.progress.evaluate = True
                self._save(states)
            draws = self.at.draws(number, context)
            state = self._steps(stage, worker, draws, model, states)[POLICY]
        self.params = state.params
        if stage.lora is not None:
            self.params = merged(self.params, self.at.model.table(), stage.lora)
        moved = sorted({*self.progress.moved, *state.moving})
        self.progress = dataclasses.replace(self.progress, moved=moved)

    def _place(self, number: int) -> str:
        """The stage's place among several, for the console."""
        count = len(self.config.stages)
        return f" ({number + 1} of {count})" if count > 1 else ""

    def _saved(self) -> str:
        return f"saved at step {self.progress.total_step} of {self.at.dir}"

    def _steps(
        self, stage: Stage, worker: Worker, draws: Draws, model: Model, states: States
    ) -> States:
        """The steps that are left of a stage; saved where a signal, a row or a grader ends it."""
        try:
            self._evaluate(stage.name, model, states)
            while self.progress.step < worker.steps:
                states = self._step(stage, worker, draws, states)
                self._evaluate(stage.name, model, states)
                self.signals.check()
        except Interrupted:
            self._save(states)
            raise
        except (DataError, RewardError):  # before anything of its step was changed
            self._save(states)
            if self.progress.total_step:
                self.console.print(
                    f"{self._saved()}: with the data or the reward mended the same command goes "
                    "on from there (--override-resume where the configuration is another)"
                )
            raise
        return states

    def _step(self, stage: Stage, worker: Worker, draws: Draws, states: States) -> States:
        """One step; progress moves only when it is complete, and is saved before an evaluation."""
        compiled, step = self.at.compiles.count, self.progress.step + 1
        position, drawn = draws.take(self.progress.position, worker.draws)
        states, metrics = worker.step(states, drawn, step)
        last = step == worker.steps
        self.progress = dataclasses.replace(
            self.progress,
            step=step,
            total_step=self.progress.total_step + 1,
            position=position,
            evaluate=last or bool(stage.eval_every and step % stage.eval_every == 0),
        )
        metrics |= memory_metrics() | {"perf/compiles": self.at.compiles.count - compiled}
        self._write(stage.name, metrics)
        if last or (stage.save_every and step % stage.save_every == 0):
            self._save(states)
        return states

    # --- what is written ------------------------------------------------------------------------
    def _write(self, stage: str, metrics: dict[str, float]) -> None:
        step = self.progress.step
        self.at.metrics.write(stage, step, metrics, global_step=self.progress.total_step)
        self.console.step(step, metrics)

    def _evaluate(self, stage: str, model: Model, states: States) -> None:
        """All held-out sets where an evaluation is due; one metrics line."""
        if not self.progress.evaluate:
            return
        metrics = self.at.held_out.evaluate(
            model,
            states[POLICY].params,
            stage,
            self.progress.step,
            phase=self.console.phase,
            check=self.signals.check,
            drop=self.at.dropped.drop,
        )
        if metrics:
            self._write(stage, metrics)
        self.progress.evaluate = False

    def _save(self, states: States) -> None:
        """A checkpoint of the last complete step, with the lengths of the append-only files."""
        if self.saved_at != self.progress.total_step:
            metrics, dropped = self.at.metrics.tell(), self.at.dropped.tell()
            self.progress.offsets = {"metrics.jsonl": metrics, "dropped.jsonl": dropped}
            self.at.checkpoints.save(states, self.progress, self.at.resolved)
            self.saved_at = self.progress.total_step

    def _finish(self) -> None:
        """The export and the report."""
        self.at.checkpoints.wait()
        if self.config.export:
            self.console.phase("export")
            out = self.at.dir / "export"
            load.save_model(self.at.model, self.params, self.at.processor, out)
            self.console.print(f"model: {out}")
        if self.config.report and self.config.evaluations:
            self.console.phase("report")
            report = write_report(self.at.dir)
            self.console.print(report.table)
            self.console.print(f"curves: {report.png}\nreport: {report.html}")

    def _final_params(self) -> dict:
        """What a finished run ended with: of its checkpoint, else its export; {} without both."""
        if self.saved_at is not None:
            stage = self.config.stages[self.progress.stage]
            like, saved = Loaded(self.at.model, self.params), (self.at.checkpoints, self.saved_at)
            return checkpoint_params(self.at.dir, *saved, stage.name, stage.lora, like)
        export = self.at.dir / "export"
        return load.load_model(export, mesh=self.at.mesh)[1] if export.is_dir() else {}

    def _result(self) -> Result:
        metrics = read_jsonl(self.at.dir / "metrics.jsonl")
        return Result(self.at.dir, self.params, metrics, self.signals.received)
