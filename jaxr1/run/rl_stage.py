"""One RL step: sample in waves, grade, advantages, pack, old and reference log-probs, accumulate, apply."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxr1.evaluation.heldout import asked, graded
from jaxr1.inputs.batch import Buckets, EncodedPrompt, batch_waste
from jaxr1.inputs.patches import patch_shapes, power_of_two
from jaxr1.inputs.strips import Plan, fill, make_strips, plan_prompts, plan_strips
from jaxr1.models.flops import forward_flops, plan_flops, total_flops, training_flops
from jaxr1.parallel import batch_multiple, mesh_of, place_rows
from jaxr1.rewards.pool import Grade, Pending, RewardPool
from jaxr1.rl import step as rl
from jaxr1.rl.advantages import group_advantage, zero_std
from jaxr1.rl.objectives import token_weights
from jaxr1.run.metrics import read_jsonl, write_rows
from jaxr1.run.monitor import peak_flops
from jaxr1.run.options import BucketOptions, Rl
from jaxr1.run.stream import Drawn
from jaxr1.sampling.draw import prompt_key
from jaxr1.sampling.features import with_features
from jaxr1.sampling.generate import Completion, Sampler, SamplingOptions
from jaxr1.sampling.scoring import score_plans


@dataclasses.dataclass
class Rollouts:
    """What one step sampled: groups[b][g] answers drawn[b]."""

    drawn: list[Drawn]
    groups: list[list[Completion]]
    grades: list[list[Grade]] = dataclasses.field(default_factory=list)
    advantage_bg: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def prompts(self) -> list[EncodedPrompt]:
        return [d.prompt for d in self.drawn]

    def said(self) -> list[tuple[int, int, str]]:
        """(draw, sample, response with its prefix), in sampling order."""
        return [
            (d.position, g, d.prompt.prefix + c.text)
            for d, group in zip(self.drawn, self.groups, strict=True)
            for g, c in enumerate(group)
        ]

    def items(self) -> list:
        """What reward functions see, in sampling order."""
        return [
            (graded(c, d.prompt.prefix), asked(d.example))
            for d, group in zip(self.drawn, self.groups, strict=True)
            for c in group
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object per response, as `rollouts/` keeps them."""
        return [
            {
                "draw": d.position,
                "sample": g,
                "source": d.example.source,
                "prompt": d.example.question,
                "answer": d.example.answer,
                "response": d.prompt.prefix + c.text,
                "rewards": grade.by_name,
                "reward": grade.total,
                "status": grade.status,
                "detail": grade.detail,
                "advantage": float(self.advantage_bg[b, g]),
                "length": len(c.token_ids),
                "finish_reason": c.finish_reason,
                "media": list(d.prompt.hashes),
            }
            for b, d in enumerate(self.drawn)
            for g, (c, grade) in enumerate(zip(self.groups[b], self.grades[b], strict=True))
        ]


class Clock:
    """Seconds by phase, and the work that was done in them.

    Attributes:
      flops: floating-point operations that the model needed (`models.flops`), on all devices.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.flops = 0
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to a phase."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def metrics(self) -> dict[str, float]:
        """`time/...`, `perf/model_tflops` (per second, all devices) and, where the devices are known, `perf/mfu`."""
        total = sum(self.seconds.values())
        out = {f"time/{k}_s": v for k, v in self.seconds.items()}
        out |= {"time/step_s": total, "perf/model_tflops": self.flops / total / 1e12}
        if peak := peak_flops():
            out["perf/mfu"] = self.flops / total / peak
        return out


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a stage needs of the run around it.

    Attributes:
      rollouts: the folder for rollouts.
      phase: shows what is going on.
      check: raises Interrupted when a signal came; called only where nothing is lost.
      drop: writes down something left out, (source, reason).
    """

    rollouts: Path
    phase: Callable[[str], None] = lambda text: None
    check: Callable[[], None] = lambda: None
    drop: Callable[[str, str], None] = lambda source, reason: None


class RlStage:
    """The parts of an RL step that stay the same from step to step."""

    def __init__(
        self, stage: Rl, model, processor, buckets: Buckets, pool: RewardPool, hooks: Hooks, *, seed: int, stream: int
    ):
        self.stage, self.model, self.processor, self.buckets = stage, model, processor, buckets
        self.pool, self.hooks, self.seed, self.stream = pool, hooks, seed, stream
        self.steps, self.draws = stage.steps, stage.prompts_per_step
        updates = stage.steps * stage.updates_per_rollout
        self.tx, self.rate = stage.optimizer.build(updates), stage.optimizer.rate(updates)
        options = SamplingOptions(stage.max_response_tokens, stage.temperature, stage.top_p, stage.top_k)
        self.sampler = Sampler(model, processor, options, buckets)
        self.objective = rl.Objective(
            kind="policy",
            surrogate=stage.surrogate,
            kl=stage.kl,
            on_policy=stage.updates_per_rollout == 1,
            temperature=stage.temperature,
            forbidden=processor.media_token_ids,
            strips_at_once=stage.strips_at_once,
        )

    def step(self, state: rl.TrainState, reference: dict | None, drawn: list[Drawn], number: int):
        """One rollout and its updates.

        Args:
          state: donated.
          reference: the trainable parts of the reference model (none where adapters are trained), or None.
          drawn: the prompts.
          number: of the step, names the file of its rollouts.

        Returns:
          The new state, and metrics.
        """
        clock = Clock()
        pixels, drawn = drawn, self.with_features(state, drawn)
        clock.flops += self._work(pixels) - self._work(drawn)
        clock.lap("encode")
        file = self.hooks.rollouts / f"{self.stage.name}_{number}.jsonl"
        replay = read_jsonl(file) if file.is_file() else None
        rollouts, pending = self.sample(state.params, drawn, clock, submit=replay is None)
        self.hooks.phase("grading")
        if replay is not None and [(r["draw"], r["sample"], r["response"]) for r in replay] == rollouts.said():
            # Graded before a crash: the same grades again, for a grader may depend on time.
            self.set_grades(rollouts, [Grade(r["reward"], r["rewards"], r["status"], r["detail"]) for r in replay])
        else:
            pending = pending or [self.pool.submit(rollouts.items())]
            self.set_grades(rollouts, self._wait(pending))
            write_rows(file, rollouts.rows())
        clock.lap("reward_wait")
        self.hooks.phase("update")
        state, updates, waste = self.update(state, reference, rollouts, clock)
        metrics = read_metrics(updates) | self.rollout_metrics(rollouts) | waste
        clock.lap("update")
        tokens = sum(len(c.token_ids) for group in rollouts.groups for c in group)
        return state, metrics | clock.metrics() | {"perf/tokens_per_s": tokens / sum(clock.seconds.values())}

    def with_features(self, state: rl.TrainState, drawn: list[Drawn]) -> list[Drawn]:
        """The draws with what frozen parts make of their media, for all that follows in the step."""
        prompts = with_features(self.model, state.params, [d.prompt for d in drawn], self.buckets, state.unchanging)
        return [dataclasses.replace(d, prompt=p) for d, p in zip(drawn, prompts, strict=True)]

    # ---------------------------------------------------------------- sampling and grading

    def sample(self, params: dict, drawn: list[Drawn], clock: Clock, *, submit: bool) -> tuple[Rollouts, list[Pending]]:
        """Groups for all prompts, in waves; each wave is graded while the next one is sampled."""
        rollouts, pending = Rollouts(drawn, []), []
        size = -(-len(drawn) // self.stage.waves)
        for first in range(0, len(drawn), size):
            self.hooks.check()
            self.hooks.phase("sampling")
            wave = drawn[first : first + size]
            keys = [prompt_key(self.seed, self.stream, d.position) for d in wave]
            groups = self.sampler(params, [d.prompt for d in wave], keys, self.stage.group_size)
            rollouts.groups += groups
            clock.flops += self._work(wave, [[len(c.token_ids) for c in group] for group in groups])
            clock.lap("sample")
            if submit:
                pending.append(self.pool.submit(Rollouts(wave, groups).items()))
        return rollouts, pending

    def _work(self, drawn: list[Drawn], lengths: Sequence[Sequence[int]] | None = None) -> int:
        """Floating-point operations of prompts, and of responses of these lengths."""
        each = zip(drawn, lengths or [[]] * len(drawn), strict=True)
        return sum(sum(forward_flops(self.model, d.prompt, n).values()) for d, n in each)

    def _wait(self, pending: list[Pending]) -> list[Grade]:
        for p in pending:
            while not p.done():
                self.hooks.check()
                time.sleep(0.001)
        return [grade for p in pending for grade in p.result()]

    def set_grades(self, rollouts: Rollouts, grades: Sequence[Grade]) -> None:
        """Grades in sampling order, and the advantages they give."""
        n = self.stage.group_size
        rollouts.grades = [list(grades[i * n : (i + 1) * n]) for i in range(len(rollouts.drawn))]
        reward_bg, valid_bg = _rewards(rollouts)
        rollouts.advantage_bg = group_advantage(reward_bg, valid_bg, self.stage.advantage)
        for d, group in zip(rollouts.drawn, rollouts.grades, strict=True):
            for g, grade in enumerate(group):
                if grade.total is None:
                    reason = (
                        f"draw {d.position}, sample {g} is not scored: {grade.status}: {grade.detail or 'no reward'}"
                    )
                    self.hooks.drop(d.example.source, reason)

    # ---------------------------------------------------------------- update

    def update(self, state: rl.TrainState, reference: dict | None, rollouts: Rollouts, clock: Clock):
        """`updates_per_rollout` optimiser steps on disjoint groups.

        Returns:
          The new state, the metrics of each update (device arrays), and padding metrics.
        """
        stage, model = self.stage, self.model
        tokens = [[c.token_ids for c in group] for group in rollouts.groups]
        advantage = [[float(a) for a in row] for row in rollouts.advantage_bg]
        mesh = mesh_of(state.trainable)
        multiple = batch_multiple(mesh, model.rules)
        jobs = self.plan(rollouts, multiple)
        plans = [p for plans, _ in jobs for p in plans]
        score = lambda params: score_plans(
            model,
            params,
            rollouts.prompts,
            tokens,
            plans,
            self.buckets,
            temperature=stage.temperature,
            forbidden=self.objective.forbidden,
        )
        empty = [[0.0] * len(group) for group in tokens]
        forward = [plan_flops(model, plan, rollouts.prompts) for plan in plans]
        scored = sum(sum(flops.values()) for flops in forward)
        old = ref = empty
        if not self.objective.on_policy:
            clock.flops += scored
            old = _by_place(score(state.params), tokens)
        if reference is not None:
            clock.flops += scored
            parts = {k: v for k, v in state.params.items() if k != "lora"}
            ref = _by_place(score({**parts, **reference}), tokens)
        clock.lap("score")
        sampled = [[c.logprobs for c in group] for group in rollouts.groups]

        adapted = state.trainable.get("lora", {})
        clock.flops += training_flops(total_flops(forward), state.trainable, adapted)
        metrics, waste = [], []
        for number, (plans, weights) in enumerate(jobs):
            sums = rl.zero_sums(self.objective, state.trainable)
            for plan in plans:
                if number == 0:  # nothing is changed yet: a signal may still drop the step
                    self.hooks.check()
                batch = self._batch(plan, rollouts.prompts, tokens, weights, advantage, old, ref, sampled, multiple)
                waste.append((batch_waste(batch.prompt), float((batch.strips.segment_bst > 0).mean()), plan.tokens))
                with jax.set_mesh(mesh):
                    placed = place_rows(batch, mesh, model.rules)
                    sums = rl.accumulate(model, self.objective, state.trainable, state.frozen, sums, placed)
            state, found = rl.apply(self.tx, self.rate, state, sums)
            metrics.append(found)
        return state, metrics, _waste_metrics(waste)

    def plan(self, rollouts: Rollouts, multiple: int = 1) -> list[tuple[list[Plan], list[list[float]]]]:
        """For each update: its micro-batches, and the weight of a token of each response."""
        stage = self.stage
        lengths = [[len(c.token_ids) for c in group] for group in rollouts.groups]
        _, valid_bg = _rewards(rollouts)
        # Without KL and entropy terms a response of advantage 0 has no gradient: it is counted, but not computed.
        matter_bg = valid_bg if stage.kl.coef or stage.surrogate.entropy_coef else rollouts.advantage_bg != 0
        size = len(lengths) // stage.updates_per_rollout
        jobs = []
        for first in range(0, len(lengths), size):
            inside = [range(first, first + size).count(b) for b in range(len(lengths))]
            counted = [
                [n * inside[b] * bool(valid_bg[b, g]) for g, n in enumerate(row)] for b, row in enumerate(lengths)
            ]
            placed = [[n * bool(matter_bg[b, g]) for g, n in enumerate(row)] for b, row in enumerate(counted)]
            norm = stage.surrogate.length_norm or stage.max_response_tokens
            plans = plan_strips(
                [len(p) for p in rollouts.prompts],
                placed,
                self.buckets,
                token_budget=stage.micro_batch_tokens,
                multiple=multiple,
            )
            jobs.append((plans, token_weights(counted, stage.surrogate.aggregation, norm)))
        return jobs

    def _batch(self, plan: Plan, prompts, tokens, weights, advantage, old, ref, sampled, multiple) -> rl.TrainBatch:
        return rl.TrainBatch(
            prompt=plan_prompts(plan, prompts, self.buckets, self.model.layout, multiple=multiple),
            strips=make_strips(plan, prompts, tokens, weights),
            advantage_bst=fill(plan, advantage),
            old_logp_bst=fill(plan, old),
            ref_logp_bst=fill(plan, ref),
            sampled_logp_bst=fill(plan, sampled),
        )

    # ---------------------------------------------------------------- metrics

    def rollout_metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Rewards, lengths and failures of one step's rollouts."""
        reward_bg, valid_bg = _rewards(rollouts)
        flat = [c for group in rollouts.groups for c in group]
        grades = [g for group in rollouts.grades for g in group]
        lengths = np.array([len(c.token_ids) for c in flat])
        out = {
            "reward/mean": float(reward_bg[valid_bg].mean()) if valid_bg.any() else float("nan"),
            "reward/std": float(reward_bg[valid_bg].std()) if valid_bg.any() else float("nan"),
            "reward/frac_zero_std": float(zero_std(reward_bg, valid_bg).mean()),
            "reward/unscored": float((~valid_bg).sum()),
            "rollout/length_mean": float(lengths.mean()),
            "rollout/length_max": float(lengths.max()),
            "rollout/frac_truncated": float(np.mean([c.finish_reason == "length" for c in flat])),
            "rollout/entropy": float(np.mean([c.entropy for c in flat])),
        }
        for name in grades[0].by_name:
            values = [v for g in grades if (v := g.by_name.get(name)) is not None]
            out[f"reward/{name}"] = float(np.mean(values)) if values else float("nan")
        lost = {"timeout": "timeouts", "crash": "crashes", "error": "errors", "nan": "nans"}
        for status, name in lost.items():
            out[f"reward/{name}"] = float(sum(g.status == status for g in grades))
        return out


def program_bound(stage: Rl, buckets: Buckets | BucketOptions, *, prompt_rows: int, multiple: int = 1) -> int:
    """The most update programs that a stage can compile: one for each combination of static sizes.

    Rows and strips are powers of two (times `multiple`), lengths come from the buckets, and patch rows from `arrange`.

    Args:
      stage: gives the group size.
      buckets: lengths of prompts, strips and patch rows; all given.
      prompt_rows: prompts of one update; a group may take several rows.
      multiple: devices that share a batch.
    """
    powers = lambda most: power_of_two(most).bit_length()
    rows = powers(-(-prompt_rows * stage.group_size // multiple))
    # An image has at least one token of its prompt.
    most_images = prompt_rows * stage.group_size * max(buckets.prompt)
    shapes = patch_shapes(buckets.patches, most_images, multiple) if buckets.patches else 1
    return len(buckets.prompt) * len(buckets.response) * rows * powers(stage.group_size) * shapes


def read_metrics(updates: list[dict]) -> dict[str, float]:
    """Metrics of the updates of one step, fetched at once: means, but of `rollout/max_abs_dlogp` the first update's.

    Only then are the parameters still those that sampled: the metric compares two computations, not two policies. An
    update that had nothing to compute (all its advantages are 0) takes no part in means; NaN where none had.
    """
    fetched = jax.device_get(updates)
    first = ("rollout/max_abs_dlogp",)
    known = {k: [u[k] for u in (fetched[:1] if k in first else fetched) if not np.isnan(u[k])] for k in fetched[0]}
    return {k: float(np.mean(values)) if values else float("nan") for k, values in known.items()}


def _rewards(rollouts: Rollouts) -> tuple[np.ndarray, np.ndarray]:
    """float[B, G] and bool[B, G]: rewards, and which samples have one."""
    total = [[g.total for g in group] for group in rollouts.grades]
    valid = np.array([[t is not None for t in row] for row in total])
    return np.array([[0.0 if t is None else t for t in row] for row in total]), valid


def _by_place(found: dict, tokens) -> list[list[Any]]:
    return [[found.get((b, g), 0.0) for g in range(len(group))] for b, group in enumerate(tokens)]


def _waste_metrics(waste: list) -> dict[str, float]:
    """Padding as fractions of padded positions, weighted by micro-batch."""
    if not waste:
        return {}
    prompts, used, size = zip(*waste, strict=True)
    total = sum(size)
    mean = lambda values: float(sum(v * s for v, s in zip(values, size, strict=True)) / total)
    return {
        "perf/padding_prompt": mean([w["prompt"] for w in prompts]),
        "perf/padding_patches": mean([w["patches"] for w in prompts]),
        "perf/padding": mean([1.0 - u for u in used]),
        "perf/vision_pairs": mean([w["vision_pairs"] for w in prompts]),
    }
