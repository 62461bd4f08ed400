"""`train`: a run from its configuration. Read it from `Run.execute` down."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxr1.data.example import DataError, Dataset
from jaxr1.models import registry
from jaxr1.nn.lora import adapter_table, init_adapters, merged
from jaxr1.rewards.pool import RewardError, RewardPool
from jaxr1.rl import step as rl
from jaxr1.run.check import OptionError, option
from jaxr1.run.console import Console
from jaxr1.run.evaluations import HeldOut, buckets_for
from jaxr1.run.final import checkpoint_params
from jaxr1.run.metrics import AppendLog, MetricsLog, read_jsonl, write_rows
from jaxr1.run.monitor import CompileCounter, Interrupted, Signals, environment, memory_metrics
from jaxr1.run.options import Config, Rl, Sft, Stage
from jaxr1.run.report import write_report
from jaxr1.run.resume import ResumeError, check_config, only_process, resolved, write_config
from jaxr1.run.rl_stage import Hooks, RlStage
from jaxr1.run.sft_stage import SftStage
from jaxr1.run.state import Checkpoints, RunState, load_tree, save_tree
from jaxr1.run.stream import Stream, unparsable_rows

FINISHED = "finished.jsonl"
FIRST_TRAINING_STREAM = 2  # 0 is `generate`, 1 evaluation
DROPS_SHOWN = 3  # of a stage; the rest is only in dropped.jsonl


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
      run_dir: the run directory.
      params: the parameters after the last stage; {} where a finished run has lost both its checkpoints and its export.
      metrics: every line of metrics.jsonl.
      signal: the signal that stopped the run before its end, or None.
    """

    run_dir: Path
    params: dict
    metrics: list[dict[str, Any]]
    signal: int | None = None


def train(config: Config, *, override_resume: bool = False, console: Console | None = None) -> Result:
    """Runs all stages of a configuration, or goes on where a run in the same directory stopped.

    Ctrl-C and SIGTERM save a checkpoint and return; the same call then resumes, bit for bit.

    Args:
      config: the run.
      override_resume: accept a configuration that differs from the one in the run directory. A finished run with more
        steps than before goes on.
      console: where to show progress; default is the terminal.

    Returns:
      The run directory, parameters and metrics.

    Raises:
      ResumeError: the run directory holds another configuration (lists the fields), or another process works in it.
      OptionError: an option that does not fit the model or the machine.
      CheckpointError, DataError, RewardError: model, data or rewards cannot be used.
    """
    folder = Path(config.run_dir)
    try:
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OptionError(f"run_dir: {folder} cannot be written to ({e})") from e
    with Console() if console is None else contextlib.nullcontext(console) as shown, only_process(folder):
        notice = lambda name: shown.print(f"{name}: stopping where nothing is lost; once more stops at once")
        with Signals(notice) as signals:
            return Run(config, shown, signals, override_resume).execute()


class Run:
    """One process's work on a run directory."""

    def __init__(self, config: Config, console: Console, signals: Signals, override: bool):
        self.config, self.console, self.signals = config, console, signals
        self.dir = Path(config.run_dir)
        self.rollouts = self.dir / "rollouts"
        self.resolved = resolved(config)
        self.run = RunState()
        self.stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:  # what fails on the way leaves nothing open
            self._open(override, opened)
            self.stack = opened.pop_all()

    def _open(self, override: bool, opened: contextlib.ExitStack) -> None:
        """Loads and checks all that the run needs, and only then touches what the directory holds."""
        config = self.config
        self.checkpoints = Checkpoints(self.dir / "checkpoints", config.keep_checkpoints)
        opened.callback(self.checkpoints.close)
        self.saved_at = self.checkpoints.latest()
        self.to_load = self.saved_at  # the checkpoint that the first stage to run starts from
        begun = self.saved_at is not None or (self.dir / FINISHED).is_file()
        changed = check_config(self.dir, self.resolved, override) if begun else []
        with option("mesh"):
            self.mesh = config.mesh.build()
        dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        self.model, self.params = registry.load_model(
            config.model, dtype, config.param_dtype, self.mesh, remat=config.remat
        )
        with option("processor"):
            self.processor = registry.load_processor(config.model, **dataclasses.asdict(config.processor))
        self.held_out = HeldOut(self.dir, config.evaluations, self.processor, config.seed)
        self.data = [stage.data.load() for stage in config.stages]
        for number, stage in enumerate(config.stages):
            self._check_stage(f"stages.{number}", stage)
        self.unparsable = [self._unparsable(*both) for both in zip(config.stages, self.data, strict=True)]

        if self.saved_at is not None:
            self.run = self.checkpoints.run_state(self.saved_at)
        with option("wandb"):
            self.metrics = MetricsLog(self.dir, tensorboard=config.tensorboard, wandb=config.wandb)
        opened.callback(self.metrics.close)
        self.dropped = AppendLog(self.dir / "dropped.jsonl")
        opened.callback(self.dropped.close)
        if changed or not (self.dir / FINISHED).is_file():
            self.metrics.truncate(self.run.offsets.get("metrics.jsonl", 0), global_step=self.run.total_step + 1)
            self.dropped.truncate(self.run.offsets.get("dropped.jsonl", 0))
        if changed or not begun:
            self._forget_later()
        if changed:
            (self.dir / FINISHED).unlink(missing_ok=True)  # there may be steps to do now
            with AppendLog(self.dir / "overrides.jsonl") as log:
                log.write({"total_step": self.run.total_step, "changed": changed})
        (self.dir / "environment.json").write_text(json.dumps(environment(), indent=2))
        write_config(self.dir, self.resolved)  # last: until here, the directory is the old configuration's
        self.already_dropped = {(r["stage"], r["source"], r["reason"]) for r in read_jsonl(self.dir / "dropped.jsonl")}
        self.drops_shown = 0
        self.compiles = CompileCounter()
        opened.callback(self.compiles.close)
        if not (self.dir / FINISHED).is_file():
            self._report_rows()

    def _check_stage(self, path: str, stage: Stage) -> None:
        """What a later stage cannot work with is said before the first one runs."""
        if stage.lora is None:
            with option(f"{path}.freeze"):
                rl.split_params(self.params, stage.freeze)
        else:
            with option(f"{path}.lora"):
                adapter_table(self.model.table(), stage.lora)
        for i, reward in enumerate(stage.rewards if isinstance(stage, Rl) else ()):
            with option(f"{path}.rewards.{i}"):
                reward.resolve(self.dir)
        longest, context = stage.max_prompt_tokens + stage.max_response_tokens, self.model.text.context
        if 0 < context < longest:
            self.console.print(f"warning: {path}: up to {longest} tokens, but the model was made for {context}")
        if isinstance(stage, Rl) and (stage.top_p < 1 or stage.top_k):
            self.console.print(
                f"warning: {path}: top_p and top_k filter the draw, but not the log-probs that are trained on"
            )

    def _forget_later(self) -> None:
        """Removes what another configuration left for the steps to come: grades, and references."""
        for number, stage in enumerate(self.config.stages):
            begun = self.run.step if number == self.run.stage else 0 if number > self.run.stage else math.inf
            for file in self.rollouts.glob(f"{stage.name}_*.jsonl"):
                step = file.stem.removeprefix(f"{stage.name}_")
                if step.isdecimal() and int(step) > begun:
                    file.unlink()
            if begun == 0:
                shutil.rmtree(self.dir / "reference" / stage.name, ignore_errors=True)

    # ---------------------------------------------------------------- the run

    def execute(self) -> Result:
        """All stages in order, from where the last checkpoint stands."""
        end = self.dir / FINISHED
        with self.stack:
            try:
                if end.is_file():
                    self.console.print(f"{self.dir} is finished: nothing to do. Use another --run-dir for a new run.")
                    self.params = self._final_params()
                    return self._result()
                for number in range(self.run.stage, len(self.config.stages)):
                    if number > self.run.stage:
                        self.run = dataclasses.replace(self.run, stage=number, step=0, position=0)
                    self._stage(number)
                self._finish()
                write_rows(end, [{"steps": self.run.total_step}])
            except Interrupted:
                name = signal.Signals(self.signals.received or signal.SIGINT).name
                self.console.print(
                    f"{name}: saved at step {self.run.total_step} of {self.dir}; the same command resumes"
                )
        return self._result()

    def _stage(self, number: int) -> None:
        stage, base = self.config.stages[number], self.model
        if stage.lora is not None:
            self.model = dataclasses.replace(base, lora=stage.lora)
            adapters = init_adapters(base.table(), stage.lora, self.config.seed + number, self.mesh, base.rules)
            self.params = {**self.params, "lora": adapters}
        with contextlib.ExitStack() as stack:
            worker, stream = self._worker(stage, number, stack)
            state = rl.init_state(self.params, worker.tx, stage.freeze)
            if self.to_load is not None:
                state, self.to_load = self.checkpoints.load(self.to_load, state), None
            reference = self._reference(stage, state)
            of = f" ({number + 1} of {len(self.config.stages)})" if len(self.config.stages) > 1 else ""
            self.console.stage(stage.name, worker.steps, self.run.step, of)
            if self.saved_at is None:
                self.run.evaluate = True
                self._save(state)
            try:
                self._evaluate(stage.name, state.params)
                while self.run.step < worker.steps:
                    state = self._step(stage, worker, stream, state, reference)
                    self._evaluate(stage.name, state.params)
                    self.signals.check()
            except Interrupted:
                self._save(state)
                raise
            except (DataError, RewardError):  # a row or a grader failed before anything of its step was changed
                self._save(state)
                if self.run.total_step:
                    self.console.print(
                        f"saved at step {self.run.total_step} of {self.dir}: with the data or the reward mended the same "
                        "command goes on from there (--override-resume where the configuration is another)"
                    )
                raise
        self.model, self.params = base, state.params
        if stage.lora is not None:
            self.params = merged(self.params, base.table(), stage.lora)

    def _step(self, stage: Stage, worker: SftStage | RlStage, stream: Stream, state: rl.TrainState, reference):
        """One step of a stage; the run state moves only when it is complete, and is saved before it is evaluated."""
        compiled, step = self.compiles.count, self.run.step + 1
        position, drawn = stream.take(self.run.position, worker.draws)
        state, metrics = worker.step(state, reference, drawn, step)
        last = step == worker.steps
        self.run = dataclasses.replace(
            self.run,
            step=step,
            total_step=self.run.total_step + 1,
            position=position,
            evaluate=last or bool(stage.eval_every and step % stage.eval_every == 0),
        )
        metrics |= memory_metrics() | {"perf/compiles": self.compiles.count - compiled}
        self.metrics.write(stage.name, step, metrics, global_step=self.run.total_step)
        self.console.step(step, metrics)
        if last or (stage.save_every and step % stage.save_every == 0):
            self._save(state)
        return state

    def _worker(self, stage: Stage, number: int, stack: contextlib.ExitStack) -> tuple[SftStage | RlStage, Stream]:
        """The stage's step and its stream of examples."""
        dataset, self.drops_shown = self.data[number], 0
        unusable = (
            frozenset(self.unparsable[number]) if isinstance(stage, Rl) and stage.drop_unparsable else frozenset()
        )
        drop = lambda source, reason: self._drop(stage.name, source, reason)
        hooks = Hooks(self.rollouts, self.console.phase, self.signals.check, drop)
        buckets = buckets_for(
            self.processor, stage.buckets, stage.max_prompt_tokens, stage.max_response_tokens, dataset
        )
        worker: SftStage | RlStage
        if isinstance(stage, Rl):
            pool = RewardPool(
                stage.rewards, workers=stage.reward_workers, timeout_s=stage.reward_timeout_s, directory=self.dir
            )
            stack.enter_context(pool)
            worker = RlStage(
                stage, self.model, self.processor, buckets, pool, hooks,
                seed=self.config.seed, stream=FIRST_TRAINING_STREAM + number,
            )  # fmt: skip
        else:
            worker = SftStage(stage, self.model, self.processor, buckets, hooks, examples=len(dataset))
        stream = Stream(
            dataset,
            self.processor,
            seed=int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0]),
            max_prompt_tokens=stage.max_prompt_tokens,
            max_response_tokens=stage.max_response_tokens,
            max_patches=buckets.patches[-1],
            with_response=isinstance(stage, Sft),
            on_drop=drop,
            unusable=unusable,
        )
        return worker, stream

    def _unparsable(self, stage: Stage, dataset: Dataset) -> dict[int, str]:
        """Rows that the accuracy reward of a stage cannot grade, and why; DataError where none would be left."""
        if not isinstance(stage, Rl) or not any(r.function == "accuracy" for r in stage.rewards):
            return {}
        bad = unparsable_rows(dataset)
        if bad and len(bad) == len(dataset) and stage.drop_unparsable:
            raise DataError(f"{dataset.name}: no row has a reference answer that can be parsed; the first: {bad[0]}")
        return bad

    def _report_rows(self) -> None:
        """Writes down, and counts aloud, the rows that readers left out and those that cannot be graded."""
        for stage, dataset, bad in zip(self.config.stages, self.data, self.unparsable, strict=True):
            self._report(stage.name, dataset, bad, isinstance(stage, Rl) and stage.drop_unparsable)
        for options, dataset in self.held_out.sets:
            self._report(options.name, dataset, unparsable_rows(dataset), False)

    def _report(self, name: str, dataset: Dataset, unparsable: dict[int, str], left_out: bool) -> None:
        kept = "" if left_out else " (the row stays, no answer to it is right)"
        bad = [{"source": dataset[row].source, "reason": reason + kept} for row, reason in unparsable.items()]
        dropped = list(dataset.dropped)
        for rows, what in (
            (dropped + bad if left_out else dropped, "rows are left out"),
            ([] if left_out else bad, "reference answers cannot be parsed"),
        ):
            for row in rows:
                self._note(name, row["source"], row["reason"])
            if rows:
                self.console.print(
                    f"{name}: {len(rows)} of {len(dataset) + len(dataset.dropped)} {what}, the first: "
                    f"{rows[0]['source']}: {rows[0]['reason']} (all in {self.dir / 'dropped.jsonl'})"
                )

    def _note(self, stage: str, source: str, reason: str) -> bool:
        """Writes down something left out; whether it is new."""
        row = {"stage": stage, "source": source, "reason": reason}
        if tuple(row.values()) in self.already_dropped:
            return False
        self.already_dropped.add((stage, source, reason))
        self.dropped.write(row)
        return True

    def _drop(self, stage: str, source: str, reason: str) -> None:
        """As `_note`, and shows the first few of a stage."""
        if self._note(stage, source, reason) and self.drops_shown < DROPS_SHOWN:
            self.drops_shown += 1
            last = self.drops_shown == DROPS_SHOWN
            more = f" (further ones are only in {self.dir / 'dropped.jsonl'})" if last else ""
            self.console.print(f"{stage}: left out: {source}: {reason}{more}")

    def _reference(self, stage: Stage, state: rl.TrainState) -> dict | None:
        """The trainable parts of the stage's reference model (frozen parts are shared), written once."""
        if not isinstance(stage, Rl) or not stage.kl.coef:
            return None
        if stage.lora is not None:
            return {}  # the base without its adapters
        folder = self.dir / "reference" / stage.name
        if self.run.step == 0:
            save_tree(folder, state.trainable)
        elif not folder.is_dir():
            raise ResumeError(f"stage {stage.name!r} was begun without a KL term: there is no reference in {folder}")
        return load_tree(folder, state.trainable)

    # ---------------------------------------------------------------- evaluation, checkpoints, end

    def _evaluate(self, stage: str, params: dict) -> None:
        """All held-out sets where an evaluation is due; one metrics line."""
        if not self.run.evaluate:
            return
        found = self.held_out.evaluate(
            self.model,
            params,
            stage,
            self.run.step,
            phase=self.console.phase,
            check=self.signals.check,
            drop=self._drop,
        )
        if found:
            self.metrics.write(stage, self.run.step, found, global_step=self.run.total_step)
            self.console.step(self.run.step, found)
        self.run.evaluate = False

    def _save(self, state: rl.TrainState) -> None:
        """A checkpoint of the last complete step; append-only files are remembered at their present length."""
        if self.saved_at == self.run.total_step:
            return
        self.run.offsets = {"metrics.jsonl": self.metrics.tell(), "dropped.jsonl": self.dropped.tell()}
        self.checkpoints.save(state, self.run, self.resolved)
        self.saved_at = self.run.total_step

    def _finish(self) -> None:
        """The export and the report."""
        self.checkpoints.wait()
        if self.config.export:
            self.console.phase("export")
            out = registry.save_model(self.model, self.params, self.processor, self.dir / "export")
            self.console.print(f"model: {out}")
        if self.config.report and self.config.evaluations:
            self.console.phase("report")
            report = write_report(self.dir)
            self.console.print(report.table)
            self.console.print(f"curves: {report.png}\nreport: {report.html}")

    def _final_params(self) -> dict:
        """What a finished run ended with: its checkpoint's, else its export's parameters; {} where both are gone."""
        if self.saved_at is not None:
            lora = self.config.stages[self.run.stage].lora
            return checkpoint_params(self.checkpoints, self.saved_at, lora, self.model, self.params)
        export = self.dir / "export"
        return registry.load_model(export, mesh=self.mesh)[1] if export.is_dir() else {}

    def _result(self) -> Result:
        return Result(self.dir, self.params, read_jsonl(self.dir / "metrics.jsonl"), self.signals.received)
