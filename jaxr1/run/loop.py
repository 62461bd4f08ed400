"""`train`: a run from its configuration. Read it from `Run.execute` down."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import Any

from jaxr1.base.jsonl import read_jsonl, write_rows
from jaxr1.inputs.draws import Draws
from jaxr1.inputs.feed import Feed
from jaxr1.models import load
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import merged
from jaxr1.parallel import is_main, joined, on_main
from jaxr1.report.report import write_report
from jaxr1.run.console import Console
from jaxr1.run.export import Loaded, checkpoint_params
from jaxr1.run.kept import Kept
from jaxr1.run.machine import memory_metrics, state_metrics
from jaxr1.run.opening import FINISHED, Opened
from jaxr1.run.options import Config
from jaxr1.run.resume import check_shared, only_process
from jaxr1.run.saving import Saver, States, check_skipped
from jaxr1.run.signals import Interrupted, Signals
from jaxr1.run.state import Progress
from jaxr1.run.watch import count_streaks, warn
from jaxr1.stages import POLICY, Stage, Worker, build


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
      run_dir: the run directory.
      params: the parameters after the last stage, or where a signal stopped the run; {} where a
        finished run has lost both its checkpoints and its export.
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

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save a checkpoint and return; the same call then resumes,
    bit for bit. An error saves one too, where nothing of its step was changed yet.

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
      NotFiniteError, DivergedError: the model computes NaN, or nothing was learned for many steps.
      SaveError: a checkpoint could not be written.
      KeyboardInterrupt: a second signal; the last checkpoint is what is left.
    """
    folder = Path(config.run_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(joined(config.hosts))
        shown = console or stack.enter_context(Console(quiet=not is_main()))
        on_main(lambda: stack.enter_context(only_process(folder)))
        check_shared(folder)
        notice = "stopping when everything is loaded; once more stops at once"
        signals = stack.enter_context(Signals(lambda name: shown.print(f"{name}: {notice}")))
        return Run(Opened(config, shown, stack, override_resume), signals).execute()


class Run:
    """One process's work on a run directory.

    Attributes:
      at: the directory, opened.
      progress: how far the run is.
      params: what the next stage begins with.
      states: of the stage in progress, as its last complete step left them.
      saver: its checkpoints.
      to_load: the checkpoint that the first stage to run goes on from.
    """

    def __init__(self, at: Opened, signals: Signals):
        self.at, self.config, self.console, self.signals = at, at.config, at.console, signals
        self.progress, self.params, self.to_load = at.progress, at.params, at.saved_at
        self.states: States = {}
        self.saver = Saver(at)
        signals.notice = lambda name: self.saver.notice(name, self.progress)

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
            self.saver.is_trained = True
            self._finish()
            steps = [{"steps": self.progress.total_step}]
            on_main(lambda: write_rows(self.at.dir / FINISHED, steps))
        except Interrupted:
            number = self.signals.stopped_by or signal.SIGINT
            self.console.print(f"{signal.Signals(number).name}: {self.saver.said}")
            return self._result(number)
        return self._result()

    def _stage(self, number: int) -> None:
        """A stage from its beginning, or from the checkpoint that is to be loaded."""
        stage = self.config.stages[number]
        if number > self.progress.stage:
            self.progress = self.progress.next_stage(number)
        model, params = self.at.adapted(number, self.params)
        kept = Kept(self.at.dir, stage.name, self.progress)
        context = self.at.context(number, model, kept, self.signals.check)
        with build(stage, context) as worker:
            states = kept.frozen(worker.init(params), self.progress.moved)
            if self.to_load is not None:
                states, self.to_load = self.at.checkpoints.load(self.to_load, states), None
            # From here the states own the parameters; another reference would keep the first ones.
            self.params = self.at.params = {}
            done = self.progress
            worker.resume(done.step, done.scalars, done.reference_step)
            self.states = states
            if not self.progress.total_step and self.saver.saved_at is None:
                self.progress.evaluate = True
            try:
                self.at.show(number, worker, self.progress.step)
                worker.begin(states)
                if worker.steps and not self.progress.total_step:
                    self.saver.save(states, self.progress)
                draws = worker.enter_context(self.at.draws(number, context, worker.unusable))
                draws.order.resume(self.progress.order)
                self._steps(stage, worker, draws, model)
            except Interrupted:
                self.saver.stopped(self.states, self.progress)
                self.params = self._trained(stage)
                raise
            except BaseException as error:
                self.saver.failed(error, self.states, self.progress)
                raise
        self.params = self._trained(stage)
        moved = sorted({*self.progress.moved, *self.states[POLICY].moving})
        self.states.clear()  # the optimiser's state goes before the next one comes
        self.progress = dataclasses.replace(self.progress, moved=moved)

    def _trained(self, stage: Stage) -> dict:
        """The model's parameters as the stage has them, adapters merged."""
        params = self.states[POLICY].params
        return params if stage.lora is None else merged(params, self.at.model.table(), stage.lora)

    def _steps(self, stage: Stage, worker: Worker, draws: Draws, model: Model) -> None:
        """The steps that are left of a stage."""
        if worker.steps:
            self._evaluate(stage.name, model)
        while self.progress.step < worker.steps:
            self.signals.check()
            self._step(stage, worker, draws)
            check_skipped(stage, self.progress)
            self._evaluate(stage.name, model)
        self.signals.check()

    def _step(self, stage: Stage, worker: Worker, draws: Draws) -> None:
        """One step; progress moves only when it is complete, and is saved before an evaluation."""
        self.at.checkpoints.check()
        compiled, step = self.at.compiles.count, self.progress.step + 1
        last = step == worker.steps
        # The draws of the next step are encoded while this one runs.
        ahead = 0 if last else worker.draws
        feed = Feed(draws, self.progress.position, ahead)
        states, metrics = worker.step(self.states, feed, step)
        draws.follow(metrics)
        progress = dataclasses.replace(
            self.progress,
            step=step,
            total_step=self.progress.total_step + 1,
            position=feed.position,
            evaluate=last or bool(stage.eval_every and step % stage.eval_every == 0),
            skipped=self.progress.skipped + 1 if metrics.get(f"{POLICY}/skipped") == 1 else 0,
            streaks=count_streaks(stage, self.progress.streaks, metrics),
            scalars=worker.scalars,
            reference_step=worker.reference_step,
            order=draws.order.state,
        )
        metrics |= memory_metrics() | state_metrics(states) | {"time/draws_wait_s": feed.waited}
        metrics |= self.at.compiles.metrics(since=compiled)
        self._write(stage.name, progress, metrics)
        warn(self.at, stage, progress, metrics)
        self.states, self.progress = states, progress
        if self.saver.due(stage, step, last):
            self.saver.save(states, progress)

    # --- what is written ------------------------------------------------------------------------
    def _write(self, stage: str, progress: Progress, metrics: dict[str, float]) -> None:
        self.at.metrics.write(stage, progress.step, metrics, global_step=progress.total_step)
        self.console.step(progress.step, metrics)

    def _evaluate(self, stage: str, model: Model) -> None:
        """All held-out sets where an evaluation is due; one metrics line."""
        if not self.progress.evaluate:
            return
        metrics = self.at.held_out.evaluate(
            model,
            self.states[POLICY].params,
            stage,
            self.progress.step,
            phase=self.console.phase,
            check=self.signals.check,
            drop=self.at.dropped.drop,
            stay=self.at.dropped.stay,
        )
        if metrics:
            self._write(stage, self.progress, metrics)
        self.progress.evaluate = False

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
            on_main(lambda: self.console.report(write_report(self.at.dir)))

    def _final_params(self) -> dict:
        """What a finished run ended with: of its checkpoint, else its export; {} without both."""
        if self.at.saved_at is not None:
            stage = self.config.stages[self.progress.stage]
            like = Loaded(self.at.model, self.params)
            saved = (self.at.checkpoints, self.at.saved_at)
            return checkpoint_params(self.at.dir, *saved, stage.name, stage.lora, like)
        export = self.at.dir / "export"
        return load.load_model(export, mesh=self.at.mesh)[1] if export.is_dir() else {}

    def _result(self, stopped_by: int | None = None) -> Result:
        metrics = read_jsonl(self.at.dir / "metrics.jsonl")
        return Result(self.at.dir, self.params, metrics, stopped_by)
