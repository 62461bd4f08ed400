"""`python -m jaxr1.bench --model DIR --image 448 ...`: seconds of the phases of a GRPO step."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Literal

QUESTION = (
    "How many red circles are in the image? think step by step and give the answer in answer tags"
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Times the phases of a GRPO step: responses of full length, new pictures each step.

    The phases: `encode` is the vision tower alone; `prefill` the prompts, tower included; `decode`
    all response tokens; `score` log-probs of the responses without gradient; `update` one optimiser
    step; `step` a whole GRPO step, from pictures to new parameters (it prefills, decodes and
    updates; it does not score).

    Attributes:
      model: Hugging Face directory, preset name or hub id.
      image: side of the square pictures, in pixels.
      prompts: prompts of a step.
      group: responses per prompt.
      tokens: tokens of each response.
      steps: measured steps, after a first one that compiles.
      dtype: of the computation.
      micro_batch_tokens: padded tokens that are differentiated at once.
      critic: PPO: values of all responses, and an update of a critic beside the policy's.
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
    critic: bool = False
    json: bool = False

    def __post_init__(self):
        for name, least in (
            ("image", 1),
            ("prompts", 1),
            ("group", 2),
            ("tokens", 1),
            ("steps", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    from jaxr1.entry import arguments, finish, prepare

    prepare()
    import tyro

    args = arguments(Bench, "bench", argv, (tyro.conf.FlagCreatePairsOff,))

    def bench() -> int:
        result = run(args)
        print(f"{'phase':<10}{'median s':>10}{'first s':>10}   (the first includes compilation)")
        for name, phase in result["phases"].items():
            print(f"{name:<10}{phase['median_s']:>10.3f}{phase['first_s']:>10.3f}")
        memory, speed = result["memory_gib"], result["decode_tokens_per_s"]
        print(f"peak memory {memory:.2f} GiB, {speed:.0f} tokens/s decoded")
        if args.json:
            print(json.dumps(result))
        return 0

    return finish(bench)


def run(args: Bench) -> dict:
    """Measures; returns {"phases": {name: {"median_s", "first_s", "all_s"}}, ...}."""
    import jax
    import numpy as np

    import jaxr1
    from jaxr1.data import Arithmetic, Example
    from jaxr1.inputs.batch import make_batch
    from jaxr1.inputs.exchange import Draw
    from jaxr1.inputs.sizes import Buckets, rows_for
    from jaxr1.models import vlm
    from jaxr1.parallel import mesh_of, place_rows
    from jaxr1.rewards.grades import Grade
    from jaxr1.rl import Advantage, Gae, Optimizer
    from jaxr1.rl.episodes import Episodes
    from jaxr1.rl.update import score, update
    from jaxr1.rl.work import Work
    from jaxr1.run.machine import memory_metrics
    from jaxr1.sampling import decode
    from jaxr1.sampling.draw import prompt_key
    from jaxr1.sampling.sampler import Sampler, SamplingOptions
    from jaxr1.stages import Context, Rl
    from jaxr1.stages.context import POLICY
    from jaxr1.stages.critic import CRITIC, Critic, critic_params
    from jaxr1.stages.learners import critic_of, policy_learner
    from jaxr1.stages.scored import Source, scored

    pixels = args.image**2
    model, params = jaxr1.load_model(args.model, dtype=args.dtype)
    processor = jaxr1.load_processor(args.model, min_pixels=pixels, max_pixels=pixels)
    rng = np.random.default_rng(0)

    def questions() -> list[Draw]:
        draws = []
        for i in range(args.prompts):
            picture = rng.integers(0, 255, (args.image, args.image, 3), dtype=np.uint8)
            image, text = {"type": "image", "image": picture}, {"type": "text", "text": QUESTION}
            messages = ({"role": "user", "content": [image, text]},)
            prompt = processor.encode(jaxr1.Prompt(messages))
            draws.append(Draw(i, i, Example(messages, "1"), prompt))
        return draws

    first = questions()
    longest = max(len(draw.prompt) for draw in first)
    patches = max(max(map(len, draw.prompt.patches)) for draw in first)
    # One size each: a benchmark pads to what it measures, not to the next bucket.
    buckets = Buckets((-(-longest // 8) * 8,), (args.tokens,), (patches,))
    options = Rl(
        data=Arithmetic(count=1),  # not read: the pictures are made here
        advantage=Gae() if args.critic else Advantage(),
        critic=Critic() if args.critic else None,
        steps=args.steps + 1,
        group_size=args.group,
        max_response_tokens=args.tokens,
        micro_batch_tokens=args.micro_batch_tokens,
        optimizer=Optimizer(learning_rate=1e-6),
    )
    learner = policy_learner(options, Context(model, processor, buckets, Path()))
    full_length = SamplingOptions(args.tokens, temperature=1.0, ignore_stops=True)
    sampler = Sampler(model, processor, full_length, buckets, args.micro_batch_tokens)
    states, mesh = {POLICY: learner.init(params)}, mesh_of(params)
    learners = {POLICY: learner}
    if options.critic is not None:
        learners[CRITIC] = critic_of(options, options.critic, learner)
        own = critic_params(options.critic, learners[CRITIC], params, 0)
        states[CRITIC] = learners[CRITIC].init(own)
    encode = jax.jit(vlm.encode, static_argnums=0)
    times: dict[str, list[float]] = {}

    def timed(name: str, work, *inputs):
        began = time.perf_counter()
        out = jax.block_until_ready(work(*inputs))
        times.setdefault(name, []).append(time.perf_counter() - began)
        return out

    def rollout(draws: list[Draw], params: dict) -> Episodes:
        keys = [prompt_key(0, 0, draw.position) for draw in draws]
        groups = sampler(params, [draw.prompt for draw in draws], keys, args.group)
        episodes = Episodes.sampled(draws, groups)
        assert (episodes.counts_bg == args.tokens).all()
        episodes.grade(
            [Grade(float(i % args.group % 7), {}) for i in range(args.prompts * args.group)]
        )
        sources = {name: Source(one, states[name].params) for name, one in learners.items()}
        asked = (episodes, episodes.valid_bg, Work(), lambda: None)
        episodes.columns |= scored(options.credited, sources, *asked)
        episodes.columns |= options.advantage(episodes).columns
        episodes.columns |= learner.weights(episodes)
        return episodes

    def learn(name: str, episodes: Episodes) -> None:
        states[name], _ = update(learners[name], states[name], episodes, Work())
        jax.block_until_ready(states[name])

    for number in range(args.steps + 1):
        state = states[POLICY]
        draws = first if number == 0 else questions()
        prompts = [draw.prompt for draw in draws]
        rows = rows_for(len(prompts), 1)
        batch = make_batch(prompts, buckets, model.media, rows=rows)
        with jax.set_mesh(mesh):
            placed = place_rows(batch, mesh, model.rules)
            timed("encode", encode, model, state.params, placed.media)
            at_once = args.micro_batch_tokens
            timed("prefill", decode.run_prefill, model, state.params, placed, at_once)
            # Once more: the rollout's own prefill, which is taken off below, compiles nothing.
            timed("again", decode.run_prefill, model, state.params, placed, at_once)
        began = time.perf_counter()
        episodes = rollout(draws, state.params)
        spent = time.perf_counter() - began - times.pop("again")[0]
        times.setdefault("decode", []).append(spent)
        timed("score", score, learner, state.params, episodes, episodes.valid_bg, Work())
        del state  # an update takes it over
        for name in reversed(learners):
            timed("update" if name == POLICY else name, learn, name, episodes)
        began = time.perf_counter()
        episodes = rollout(questions(), states[POLICY].params)
        for name in reversed(learners):
            learn(name, episodes)
        times.setdefault("step", []).append(time.perf_counter() - began)

    phases: dict[str, dict] = {}
    for name, seconds in times.items():
        rest = [round(x, 4) for x in seconds[1:]]
        median = float(np.median(seconds[1:]))
        phases[name] = {"median_s": median, "first_s": seconds[0], "all_s": rest}
    memory = memory_metrics()
    work = args.prompts * args.group * args.tokens
    return {
        "phases": phases,
        "decode_tokens_per_s": work / phases["decode"]["median_s"],
        "memory_gib": memory.get("memory/device_gib", memory.get("memory/host_peak_gib", 0.0)),
        "prompt_tokens": longest,
        "backend": jax.default_backend(),
        **{
            name: getattr(args, name)
            for name in ("image", "prompts", "group", "tokens", "steps", "dtype")
        },
    }


if __name__ == "__main__":
    sys.exit(main())
