"""`python -m jaxr1.bench --model DIR --image 448 ...`: seconds of each phase of a GRPO step, compilation apart."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Literal

QUESTION = "How many red circles are in the image? think step by step and give the answer in answer tags"


@dataclasses.dataclass(frozen=True)
class Bench:
    """Times the phases of a GRPO step on fixed work: every response has its full length, pictures are new each step.

    The phases: `encode` is the vision tower alone; `prefill` the prompts, tower included; `decode` all response tokens;
    `score` log-probs of the responses without gradient; `update` one optimiser step; `step` a whole GRPO step, from
    pictures to new parameters (it prefills, decodes and updates; it does not score).

    Attributes:
      model: Hugging Face directory, preset name or hub id.
      image: side of the square pictures, in pixels.
      prompts: prompts of a step.
      group: responses per prompt.
      tokens: tokens of each response.
      steps: measured steps, after a first one that compiles.
      dtype: of the computation.
      micro_batch_tokens: padded tokens that are differentiated at once.
      json: print the result as one JSON line at the end.
    """

    model: str = "tiny"
    image: int = 448
    prompts: int = 8
    group: int = 8
    tokens: int = 128
    steps: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch_tokens: int = 8192
    json: bool = False

    def __post_init__(self):
        for name, least in (("image", 1), ("prompts", 1), ("group", 2), ("tokens", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    from jaxr1.entry import arguments, complain, prepare

    prepare()
    import tyro

    args = arguments(Bench, "bench", argv, (tyro.conf.FlagCreatePairsOff,))
    with complain() as failed:
        result = run(args)
        print(f"{'phase':<10}{'median s':>10}{'first s':>10}   (the first includes compilation)")
        for name, phase in result["phases"].items():
            print(f"{name:<10}{phase['median_s']:>10.3f}{phase['first_s']:>10.3f}")
        print(f"peak memory {result['memory_gib']:.2f} GiB, {result['decode_tokens_per_s']:.0f} tokens/s decoded")
        if args.json:
            print(json.dumps(result))
        return 0
    return failed.status


def run(args: Bench) -> dict:
    """Measures; returns {"phases": {name: {"median_s", "first_s", "all_s"}}, ...}."""
    import jax
    import numpy as np

    import jaxr1
    from jaxr1.data import Arithmetic
    from jaxr1.data.example import Example
    from jaxr1.inputs.batch import Buckets, make_batch
    from jaxr1.inputs.patches import rows_for
    from jaxr1.models import vlm
    from jaxr1.parallel import mesh_of, place_rows
    from jaxr1.rewards.pool import Grade
    from jaxr1.rl import Optimizer
    from jaxr1.rl import step as rl
    from jaxr1.run.monitor import memory_metrics
    from jaxr1.run.options import Rl
    from jaxr1.run.rl_stage import Clock, Hooks, RlStage, Rollouts
    from jaxr1.run.stream import Drawn
    from jaxr1.sampling import decode as loop
    from jaxr1.sampling.draw import prompt_key
    from jaxr1.sampling.generate import Sampler, SamplingOptions
    from jaxr1.sampling.scoring import score_plans

    pixels = args.image**2
    model, params = jaxr1.load_model(args.model, dtype=args.dtype)
    processor = jaxr1.load_processor(args.model, min_pixels=pixels, max_pixels=pixels)
    rng = np.random.default_rng(0)

    def questions() -> list[Drawn]:
        drawn = []
        for i in range(args.prompts):
            picture = rng.integers(0, 255, (args.image, args.image, 3), dtype=np.uint8)
            content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
            messages = ({"role": "user", "content": content},)
            prompt = processor.encode(jaxr1.Prompt(messages))
            drawn.append(Drawn(i, i, Example(messages, "1"), prompt))
        return drawn

    first = questions()
    longest, patches = max(len(d.prompt) for d in first), max(len(x) for d in first for x in d.prompt.patches)
    # One size each: a benchmark pads to what it measures, not to the next bucket.
    buckets = Buckets((-(-longest // 8) * 8,), (args.tokens,), (patches,))
    stage = Rl(
        data=Arithmetic(count=1),  # not read: the pictures are made here
        steps=args.steps + 1, prompts_per_step=args.prompts, group_size=args.group, waves=1,
        max_response_tokens=args.tokens, micro_batch_tokens=args.micro_batch_tokens,
        optimizer=Optimizer(learning_rate=1e-6),
    )  # fmt: skip
    worker = RlStage(stage, model, processor, buckets, None, Hooks(Path()), seed=0, stream=0)  # type: ignore[arg-type]
    worker.sampler = Sampler(
        model, processor, SamplingOptions(args.tokens, temperature=1.0, ignore_stops=True), buckets
    )
    encode = jax.jit(vlm.encode, static_argnums=0)
    state = rl.init_state(params, worker.tx)
    mesh = mesh_of(params)
    times: dict[str, list[float]] = {}

    def timed(name: str, work, *inputs, **options):
        began = time.perf_counter()
        out = jax.block_until_ready(work(*inputs, **options))
        times.setdefault(name, []).append(time.perf_counter() - began)
        return out

    def rollouts_of(drawn, params) -> Rollouts:
        keys = [prompt_key(0, 0, d.position) for d in drawn]
        rollouts = Rollouts(drawn, worker.sampler(params, [d.prompt for d in drawn], keys, args.group))
        grades = [Grade(float(g % 7), {}) for _ in drawn for g in range(args.group)]
        worker.set_grades(rollouts, grades)
        return rollouts

    for number in range(args.steps + 1):
        drawn = first if number == 0 else questions()
        prompts = [d.prompt for d in drawn]
        batch = make_batch(prompts, buckets, model.layout, rows=rows_for(len(prompts), 1))
        with jax.set_mesh(mesh):
            placed = place_rows(batch, mesh, model.rules)
            timed("encode", encode, model, state.params, placed.media)
            timed("prefill", loop.run_prefill, model, state.params, placed)
            # Once more: the rollout's own prefill, which is taken off below, compiles nothing.
            timed("again", loop.run_prefill, model, state.params, placed)
        began = time.perf_counter()
        rollouts = rollouts_of(drawn, state.params)
        times.setdefault("decode", []).append(time.perf_counter() - began - times.pop("again")[0])
        tokens = [[c.token_ids for c in group] for group in rollouts.groups]
        assert all(len(t) == args.tokens for group in tokens for t in group)
        plans = worker.plan(rollouts)[0][0]
        options = dict(temperature=1.0, forbidden=processor.media_token_ids)
        timed("score", score_plans, model, state.params, prompts, tokens, plans, buckets, **options)
        began = time.perf_counter()
        state, _, _ = worker.update(state, None, rollouts, Clock())
        jax.block_until_ready(state)
        times.setdefault("update", []).append(time.perf_counter() - began)
        began = time.perf_counter()
        state, _, _ = worker.update(state, None, rollouts_of(questions(), state.params), Clock())
        jax.block_until_ready(state)
        times.setdefault("step", []).append(time.perf_counter() - began)

    phases = {
        name: {"median_s": float(np.median(s[1:])), "first_s": s[0], "all_s": [round(x, 4) for x in s[1:]]}
        for name, s in times.items()
    }
    memory = memory_metrics()
    work = args.prompts * args.group * args.tokens
    return {
        "phases": phases,
        "decode_tokens_per_s": work / float(np.median(times["decode"][1:])),
        "memory_gib": memory.get("memory/device_gib", memory.get("memory/host_peak_gib", 0.0)),
        "prompt_tokens": longest,
        "backend": jax.default_backend(),
        **{k: getattr(args, k) for k in ("image", "prompts", "group", "tokens", "steps", "dtype")},
    }


if __name__ == "__main__":
    sys.exit(main())
