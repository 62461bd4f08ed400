"""A run directory is opened in three steps: looked at, loaded, and only then touched."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxr1.base.checks import option
from jaxr1.base.jsonl import AppendLog
from jaxr1.checkpoints.tensors import fingerprint
from jaxr1.data import Dataset
from jaxr1.evaluation.heldout import Evaluation, HeldOut
from jaxr1.inputs.draws import Draws
from jaxr1.models import load
from jaxr1.models.vlm import Model
from jaxr1.nn.lora import ADAPTERS, init_adapters
from jaxr1.parallel import batch_multiple, is_main, on_main
from jaxr1.run.console import Console
from jaxr1.run.dropped import Dropped, answer_problem, unparsable_rows
from jaxr1.run.inputs import check_inputs, inputs_of, kept_inputs, note_environment, write_inputs
from jaxr1.run.kept import Kept
from jaxr1.run.machine import CompileCounter
from jaxr1.run.metrics import MetricsLog
from jaxr1.run.options import Config
from jaxr1.run.resume import check_config, check_same, differences, resolved, write_config
from jaxr1.run.state import KEPT, Checkpoints, Progress, ResumeError, tidy
from jaxr1.sampling.draw import RandomStream
from jaxr1.sampling.programs import Program
from jaxr1.stages import POLICY, Context, Stage, Worker
from jaxr1.stages.programs import list_programs

FINISHED = "finished.jsonl"


class Opened:
    """A run directory with all that a run in it needs.

    Attributes:
      progress: how far the run is.
      saved_at: total step of the latest checkpoint, None without one.
      finished: whether the run is complete.
      model, params: what the run starts from.
      data: the examples of each stage.
      held_out: the held-out sets.
      metrics, dropped: the append-only files.
    """

    def __init__(
        self, config: Config, console: Console, stack: contextlib.ExitStack, override: bool
    ):
        self.config, self.console, self.stack = config, console, stack
        self.dir = Path(config.run_dir)
        self.resolved = resolved(config)
        check_same("the configuration", self.resolved)
        begun = self.look()
        changed = self.load(begun, override)
        self.take_over(begun, changed, begun or self._begins_again())

    def look(self) -> bool:
        """Whether the directory holds a run, and how far it is."""
        on_main(lambda: tidy(self.dir))
        self.checkpoints = Checkpoints(self.dir / "checkpoints", self.config.keep_checkpoints)
        self.stack.callback(self.checkpoints.close)
        self.saved_at = self.checkpoints.latest()
        self.finished = (self.dir / FINISHED).is_file()
        check_same("what is in run_dir", {"checkpoint": self.saved_at, "is over": self.finished})
        self.progress = Progress()
        if self.saved_at is not None:
            self.progress = self.checkpoints.progress(self.saved_at)
        return self.saved_at is not None or self.finished

    def load(self, begun: bool, override: bool) -> list[str]:
        """Loads and checks all that the run needs; the directory is not touched.

        Returns:
          What differs from the run in the directory, and is accepted.
        """
        config = self.config
        ended = self.progress.stage
        changed = check_config(self.dir, self.resolved, override, ended) if begun else []
        with option("mesh"):
            self.mesh = config.mesh.build()
        dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        self.model, self.params = load.load_model(
            config.model, dtype, config.stored_dtype, self.mesh, remat=config.remat
        )
        changed += self._same_weights(override)
        with option("processor"):
            self.processor = load.load_processor(
                config.model, **dataclasses.asdict(config.processor)
            )
        self.held_out = HeldOut(self.dir, config.evaluations, self.processor, config.seed)
        self.data = [stage.data.load() for stage in config.stages]
        for number, stage in enumerate(config.stages):
            path = f"stages.{number}"
            stage.check(path, self.model, self.processor, self.dir)
            for warning in stage.warnings(self.model, batch_multiple(self.mesh, self.model.rules)):
                self.console.print(f"warning: {path}: {warning}")
        self._check_steps()
        pairs = zip(config.stages, self.data, strict=True)
        self.unparsable = [unparsable_rows(stage, dataset) for stage, dataset in pairs]
        self.inputs = inputs_of(self._parts(), load.resolve(config.model), self.dir)
        check_same("what is read", self.inputs)
        if begun and (changed or not self.finished):
            changed += check_inputs(self.dir, self.inputs, override)
        return changed

    def _check_steps(self) -> None:
        """Refuses to end a stage before the step that it has reached."""
        number, done = self.progress.stage, self.progress.step
        if number >= len(self.data):
            raise ResumeError(
                f"{self.dir}: the run is in stages.{number}, which the configuration does not have"
            )
        steps = self.config.stages[number].count_steps(len(self.data[number]))
        if done > steps:
            raise ResumeError(
                f"{self.dir}: stages.{number} has done {done} steps already, the configuration "
                f"gives it {steps}"
            )

    def _parts(self) -> dict[str, tuple[Stage | Evaluation, Dataset]]:
        """{path in the configuration: (stage or held-out set, its data)}."""
        parts: dict[str, tuple[Stage | Evaluation, Dataset]] = {}
        for number, pair in enumerate(zip(self.config.stages, self.data, strict=True)):
            parts[f"stages.{number}"] = pair
        for number, held_out in enumerate(self.held_out.sets):
            parts[f"evaluations.{number}"] = held_out
        return parts

    def _begins_again(self) -> bool:
        """Whether the directory is left of this very run, killed before its first checkpoint."""
        file = self.dir / "config.json"
        if not file.is_file() or kept_inputs(self.dir) != self.inputs:
            return False
        return not differences(json.loads(file.read_text()), self.resolved)

    def _same_weights(self, override: bool) -> list[str]:
        """Refuses other weights than at the beginning: checkpoints hold no frozen parts."""
        weights = fingerprint(load.resolve(self.config.model))
        before, self.progress.model = self.progress.model, weights
        if before in ("", weights):
            return []
        line = f"model: the weights in {self.config.model} are not those that the run began with"
        if not override:
            raise ResumeError(f"{self.dir}: {line} (--override-resume goes on with them)")
        return [line]

    def take_over(self, begun: bool, changed: list[str], same: bool) -> None:
        """Cuts the directory back to its checkpoint, and writes down what goes on in it.

        Args:
          begun: whether it holds a run.
          changed: what differs from that run, and is accepted.
          same: whether what a step has written there is of this run; its grades are then replayed.
        """
        with option("wandb"):
            self.metrics = MetricsLog(
                self.dir,
                tensorboard=self.config.tensorboard,
                wandb=self.config.wandb,
                writes=is_main(),
            )
        self.stack.callback(self.metrics.close)
        self.dropped = Dropped(self.dir, self.console, writes=is_main())
        self.stack.callback(self.dropped.close)
        self.compiles = self.stack.enter_context(CompileCounter())
        self.finished = self.finished and not changed  # there may be steps to do now
        on_main(lambda: self._write_down(begun, changed, same))
        self.dropped.open()
        if not self.finished:
            self._report_rows()

    def _write_down(self, begun: bool, changed: list[str], same: bool) -> None:
        """What `take_over` does with files; arguments as there."""
        offsets, total = self.progress.offsets, self.progress.total_step
        if changed or not self.finished:
            self.metrics.truncate(offsets.get("metrics.jsonl", 0), global_step=total + 1)
            self.dropped.cut(offsets.get("dropped.jsonl", 0))
        if changed or not same:
            self._forget_later()
        if changed:
            (self.dir / FINISHED).unlink(missing_ok=True)
            with AppendLog(self.dir / "overrides.jsonl") as overrides:
                overrides.write({"total_step": total, "changed": changed})
        if not self.finished:
            note_environment(self.dir, begun, total, self.console)
            write_inputs(self.dir, self.inputs)
        # Last: until here, the directory is the old configuration's.
        write_config(self.dir, self.resolved)

    def _forget_later(self) -> None:
        """Removes what another configuration left for the steps to come: grades, answers, and
        parameters.
        """
        for number, stage in enumerate(self.config.stages):
            begun = {self.progress.stage: self.progress.step}.get(number, 0)
            if number < self.progress.stage:
                continue
            for file in (self.dir / "rollouts").glob(f"{stage.name}_*"):
                step = file.stem.removeprefix(f"{stage.name}_")
                if step.isdecimal() and int(step) > begun:
                    file.unlink()
            # Answers are of rows by their numbers: they are drawn again, of the same reference.
            (self.dir / "answers" / f"{stage.name}.jsonl").unlink(missing_ok=True)
            if begun == 0:
                for kept in KEPT:
                    shutil.rmtree(self.dir / kept / stage.name, ignore_errors=True)

    def _report_rows(self) -> None:
        """Rows that readers left out, and those that no rule can grade."""
        for stage, data, bad in zip(self.config.stages, self.data, self.unparsable, strict=True):
            self.dropped.report(stage, data, bad)
        for options, data in self.held_out.sets:
            self.dropped.report(options, data, unparsable_rows(options, data))

    # --- for a stage ----------------------------------------------------------------------------
    def adapted(self, number: int, params: dict) -> tuple[Model, dict]:
        """The model as a stage trains it, with fresh adapters where it has some."""
        lora, model = self.config.stages[number].lora, self.model
        if lora is None:
            return model, params
        seed = self.config.seed + number
        adapters = init_adapters(model.table(), lora, seed, self.mesh, model.rules)
        return dataclasses.replace(model, lora=lora), {**params, ADAPTERS: adapters}

    def context(
        self,
        number: int,
        model: Model,
        kept: Kept,
        check: Callable[[], None],
    ) -> Context:
        """What a stage gets of the run; `check` as in `Context`."""
        stage, data = self.config.stages[number], self.data[number]
        limits = (stage.max_prompt_tokens, stage.max_response_tokens)
        return Context(
            model=model,
            processor=self.processor,
            buckets=self.processor.buckets(stage.buckets, *limits, videos=data.videos),
            folder=self.dir,
            examples=len(data),
            dataset=data,
            unusable=frozenset(self.unparsable[number].rows if stage.leaves_out else ()),
            seed=self.config.seed,
            stream=RandomStream.TRAINING + number,
            phase=self.console.phase,
            check=check,
            say=self.console.print,
            drop=functools.partial(self.dropped.drop, stage.name),
            snapshot=kept.snapshot,
            keep=functools.partial(self._keep, kept),
        )

    def _keep(self, kept: Kept, step: int, last: int, tree: dict) -> None:
        """Keeps a reference that has moved, and those that a checkpoint on disk names."""
        saved = map(self.checkpoints.progress, self.checkpoints.steps())
        kept.keep(step, tree, {last, *(progress.reference_step for progress in saved)})

    def show(self, number: int, worker: Worker, step: int) -> None:
        """Says on the console that a stage begins, or goes on after a step."""
        stages = self.config.stages
        place = (number + 1, len(stages))
        self.console.stage(stages[number].name, worker.steps, step, place)
        listed = len(self.programs(number, worker))
        self.console.programs(lambda: self.compiles.programs, listed)

    def programs(self, number: int, worker: Worker) -> list[Program]:
        """The programs that a stage and the held-out sets may compile.

        One of a stage and one of a set may have equal sizes, and be two: they sample otherwise.
        """
        policy, videos = worker.learners[POLICY], self.data[number].videos
        devices = batch_multiple(self.mesh, policy.model.rules)
        stage = list_programs(self.config.stages[number], worker.learners, devices, videos=videos)
        return [*stage, *self.held_out.programs(policy.model, devices)]

    def draws(self, number: int, context: Context, unusable: frozenset[int]) -> Draws:
        """A stage's examples in their order, without rows that it passes over."""
        stage = self.config.stages[number]
        seeds = np.random.SeedSequence([self.config.seed, number])
        return Draws(
            self.data[number],
            self.processor,
            seed=int(seeds.generate_state(1)[0]),
            max_prompt_tokens=stage.max_prompt_tokens,
            max_response_tokens=stage.max_response_tokens,
            max_patches=context.buckets.patches[-1],
            with_response=stage.reads_response,
            with_rejected=stage.reads_rejected,
            with_prompt=stage.reads_prompt,
            on_drop=context.drop,
            unusable=unusable,
            judge=functools.partial(answer_problem, stage),
            on_stay=None if stage.leaves_out else functools.partial(self.dropped.stay, stage.name),
            check=context.check,
        )
