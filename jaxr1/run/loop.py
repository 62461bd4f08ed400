"""`train`: a run from its configuration. Read it from `Run.execute` down."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxr1.checkpoints.tensors import CheckpointError
from jaxr1.data.example import Dataset
from jaxr1.evaluation import heldout
from jaxr1.inputs.batch import Buckets
from jaxr1.inputs.images import load_image, media_hash
from jaxr1.models import registry
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import Lora, init_adapters, merged
from jaxr1.parallel import mesh_of
from jaxr1.rewards.pool import RewardPool
from jaxr1.rewards.spec import Reward
from jaxr1.rl import step as rl
from jaxr1.run.console import Console
from jaxr1.run.metrics import AppendLog, MetricsLog, read_jsonl
from jaxr1.run.monitor import CompileCounter, Interrupted, Signals, environment, memory_metrics
from jaxr1.run.options import BucketOptions, Config, Evaluation, ProcessorOptions, Rl, Sft, Stage
from jaxr1.run.report import write_report
from jaxr1.run.resume import ResumeError, check_config, resolved, write_config
from jaxr1.run.rl_stage import Hooks, RlStage, write_rows
from jaxr1.run.sft_stage import SftStage
from jaxr1.run.state import Checkpoints, RunState, load_tree, save_tree
from jaxr1.run.stream import Stream, unparsable_rows
from jaxr1.sampling.generate import Sampler, SamplingOptions

FINISHED = "finished.jsonl"
FIRST_TRAINING_STREAM = 2  # 0 is `generate`, 1 evaluation


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
      override_resume: accept a configuration that differs from the one in the run directory.
      console: where to show progress; default is the terminal.

    Returns:
      The run directory, parameters and metrics.

    Raises:
      ResumeError: the run directory holds another configuration; lists the fields.
      CheckpointError, DataError, RewardError: model, data or rewards cannot be used.
    """
    with Console() if console is None else contextlib.nullcontext(console) as shown, Signals() as signals:
        return Run(config, shown, signals, override_resume).execute()


class Run:
    """One process's work on a run directory."""

    def __init__(self, config: Config, console: Console, signals: Signals, override: bool):
        self.config, self.console, self.signals = config, console, signals
        self.dir = Path(config.run_dir)
        self.rollouts = self.dir / "rollouts"
        self.rollouts.mkdir(parents=True, exist_ok=True)
        self.resolved = resolved(config)
        overridden = check_config(self.dir, self.resolved, override)
        (self.dir / "environment.json").write_text(json.dumps(environment(), indent=2))
        self.mesh = config.mesh.build()
        dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        self.model, self.params = registry.load_model(
            config.model, dtype, config.param_dtype, self.mesh, remat=config.remat
        )
        self.processor = registry.load_processor(config.model, **dataclasses.asdict(config.processor))
        self.evaluations = [(e, e.data.load()) for e in config.evaluations]
        self.checkpoints = Checkpoints(self.dir / "checkpoints", config.keep_checkpoints)
        self.metrics = MetricsLog(self.dir, tensorboard=config.tensorboard, wandb=config.wandb)
        self.dropped = AppendLog(self.dir / "dropped.jsonl")
        self.run, self.saved_at = RunState(), self.checkpoints.latest()
        self.to_load = self.saved_at  # the checkpoint that the first stage to run starts from
        if self.saved_at is not None:
            self.run = self.checkpoints.run_state(self.saved_at)
            self.metrics.truncate(self.run.offsets["metrics.jsonl"], global_step=self.run.total_step + 1)
            self.dropped.truncate(self.run.offsets["dropped.jsonl"])
        else:
            self.metrics.truncate(0)
            self.dropped.truncate(0)
        if overridden:
            self._forget_later()
        write_config(self.dir, self.resolved)  # last: until here, the directory is the old configuration's
        self.already_dropped = {(r["stage"], r["source"], r["reason"]) for r in read_jsonl(self.dir / "dropped.jsonl")}
        self.compiles = CompileCounter()

    def _forget_later(self) -> None:
        """Removes what a configuration that is replaced left for the steps to come: grades, and references."""
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
            self.console.print(f"{name}: saved at step {self.run.total_step} of {self.dir}; the same command resumes")
        finally:
            self.checkpoints.close()
            self.metrics.close()
            self.dropped.close()
            self.compiles.close()
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
            self.console.stage(stage.name, worker.steps, self.run.step)
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
        dataset = stage.data.load()
        drop = lambda source, reason: self._drop(stage.name, source, reason)
        for row in dataset.dropped:
            drop(row["source"], row["reason"])
        hooks = Hooks(self.rollouts, self.console.phase, self.signals.check, drop)
        longest, context = stage.max_prompt_tokens + stage.max_response_tokens, self.model.text.context
        if 0 < context < longest:
            self.console.print(f"warning: up to {longest} tokens, but the model was made for {context}")
        buckets = self._buckets(stage.buckets, stage.max_prompt_tokens, stage.max_response_tokens, dataset)
        unusable: frozenset[int] = frozenset()
        worker: SftStage | RlStage
        if isinstance(stage, Rl):
            pool = RewardPool(
                stage.rewards, workers=stage.reward_workers, timeout_s=stage.reward_timeout_s, directory=self.dir
            )
            stack.enter_context(pool)
            graded_by_rule = any(r.function == "accuracy" for r in stage.rewards)
            if stage.drop_unparsable and graded_by_rule:
                unusable = unparsable_rows(dataset, drop)
            if stage.top_p < 1 or stage.top_k:
                self.console.print("warning: top_p/top_k filter the draw, but not the log-probs that are trained on")
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

    def _drop(self, stage: str, source: str, reason: str) -> None:
        row = {"stage": stage, "source": source, "reason": reason}
        if tuple(row.values()) not in self.already_dropped:
            self.already_dropped.add((stage, source, reason))
            self.dropped.write(row)

    def _buckets(self, options: BucketOptions, prompt: int, response: int, dataset: Dataset) -> Buckets:
        largest = self.processor.max_frame_patches if dataset.videos else self.processor.max_patches
        whole = Buckets.up_to(prompt, response, max(16, largest))
        patches = (self.processor.max_patches,) if self.processor.tiles else options.patches or whole.patches
        return Buckets(options.prompt or whole.prompt, options.response or whole.response, patches)

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
        found: dict[str, float] = {}
        step = self.run.step
        for options, dataset in self.evaluations:
            self.console.phase(f"evaluating {options.name}")
            began = time.perf_counter()
            found |= self._evaluate_set(options, dataset, stage, step, params)
            found[f"time/eval_{options.name}_s"] = time.perf_counter() - began
        if found:
            self.metrics.write(stage, step, found, global_step=self.run.total_step)
            self.console.step(step, found)
        self.run.evaluate = False

    def _evaluate_set(self, options: Evaluation, dataset: Dataset, stage: str, step: int, params: dict) -> dict:
        rewards = (
            Reward("accuracy", options=(("tail", options.tail),)),
            Reward("format", options=(("variant", options.format),)),
        )
        buckets = self._buckets(BucketOptions(), options.max_prompt_tokens, options.max_response_tokens, dataset)
        sampling = SamplingOptions(max_new_tokens=options.max_response_tokens, temperature=options.temperature)
        sampler = Sampler(self.model, self.processor, sampling, buckets)
        with RewardPool(rewards, directory=self.dir) as pool:
            answers = heldout.answers(
                dataset,
                self.processor,
                sampler,
                params,
                pool,
                seed=self.config.seed,
                batch_rows=options.batch_rows,
                max_prompt_tokens=options.max_prompt_tokens,
            )
            rows = []
            for row in answers:
                self.signals.check()
                rows.append(row)
        kept = [self._sample_row(row, i < options.samples) for i, row in enumerate(rows)]
        write_rows(self.rollouts / f"eval_{options.name}_{stage}_{step}.jsonl", kept)
        return heldout.summarise(options.name, rows)

    def _sample_row(self, row: heldout.Answered, with_pictures: bool) -> dict[str, Any]:
        media = []
        for source in row.example.images if with_pictures else ():
            image = load_image(source)
            media.append(media_hash(image))
            file = self.dir / "media" / f"{media[-1]}.png"
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                image.save(file)
        return {
            "prompt": row.example.question,
            "answer": row.example.answer,
            "response": self.processor.prefix + row.completion.text,
            "rewards": row.grade.by_name,
            "finish_reason": row.completion.finish_reason,
            "length": len(row.completion.token_ids),
            "source": row.example.source,
            "media": media,
        }

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
        if self.config.report and self.evaluations:
            self.console.phase("report")
            report = write_report(self.dir)
            self.console.print(report.table)
            self.console.print(f"curves: {report.png}\nreport: {report.html}")

    def _final_params(self) -> dict:
        """What a finished run ended with: its checkpoint's, else its export's parameters; {} where both are gone."""
        if self.saved_at is not None:
            return checkpoint_params(
                self.checkpoints, self.saved_at, self.config.stages[-1].lora, self.model, self.params
            )
        export = self.dir / "export"
        return registry.load_model(export, mesh=self.mesh)[1] if export.is_dir() else {}

    def _result(self) -> Result:
        return Result(self.dir, self.params, read_jsonl(self.dir / "metrics.jsonl"), self.signals.received)


def checkpoint_params(checkpoints: Checkpoints, step: int, lora: Lora | None, model: Model, params: dict) -> dict:
    """The parameters of a checkpoint, placed like `params` (those that the run started from), adapters merged."""
    if lora is None:
        return checkpoints.params(step, params)
    adapters = init_adapters(model.table(), lora, 0, mesh_of(params), model.rules)
    return merged(checkpoints.params(step, {**params, "lora": adapters}), model.table(), lora)


def export_checkpoint(run_dir: str | Path, out: str | Path, dtype: str | None = None) -> Path:
    """Writes the Hugging Face directory of a run's latest checkpoint.

    Args:
      run_dir: a run directory that holds checkpoints/.
      out: the directory to write.
      dtype: of the weights; None is the dtype of the model that the run started from.

    Returns:
      The directory.

    Raises:
      CheckpointError: no checkpoint there.
    """
    folder = Path(run_dir)
    if not (folder / "config.json").is_file() or not (folder / "checkpoints").is_dir():
        raise CheckpointError(f"{folder} is no run directory (no config.json or no checkpoints)")
    checkpoints = Checkpoints(folder / "checkpoints", keep=None)
    try:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"{folder / 'checkpoints'} holds no complete checkpoint")
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
