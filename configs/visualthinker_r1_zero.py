"""VisualThinker-R1-Zero (arXiv:2503.05132): GRPO on a base Qwen2-VL-2B, no cold start.

Spatial reasoning on SAT; `paper` has the published numbers. Where the authors' code leaves a
choice, the comment beside the value says so.

    python -m jaxr1.train configs/visualthinker_r1_zero.py --model DIR
    python -m jaxr1.train configs/visualthinker_r1_zero.py:tiny

The first one reads SAT_static.parquet; --stages.0.data.path FILE says that it lies elsewhere.
"""

import dataclasses

from jaxr1.data import Sat, Spatial
from jaxr1.rewards import Reward
from jaxr1.rl import Advantage, Kl, Optimizer
from jaxr1.run import Config, Evaluation, ProcessorOptions, Rl


def paper() -> Config:
    """The published run: 1500 steps of 8 prompts x 8 responses.

    On the first 15,000 static rows of SAT.
    """
    return Config(
        model="Qwen/Qwen2-VL-2B",
        run_dir="runs/visualthinker_r1_zero",
        processor=ProcessorOptions(max_pixels=401408, template="r1_zero"),
        remat=True,
        stages=(
            Rl(
                name="grpo",
                data=Sat(path="SAT_static.parquet", limit=15000, bad_rows="drop"),
                # 4 GPUs x 1 prompt x 2 accumulation steps = 8 prompts, if the per-device batch
                # counts prompts.
                steps=1500,
                prompts_per_step=8,
                group_size=8,
                temperature=1.0,
                max_prompt_tokens=1024,
                max_response_tokens=700,
                waves=2,
                updates_per_rollout=1,  # the ratio is exactly 1, so the clip never acts
                advantage=Advantage(baseline="mean", scale="std", eps=1e-4),
                aggregation="seq-mean-token-mean",
                kl=Kl(coef=0.04, estimator="k3"),
                rewards=(
                    Reward("accuracy", options={"tail": True}),
                    Reward("format", options={"variant": "whitespace"}),
                ),
                optimizer=Optimizer(learning_rate=1e-6, schedule="linear", clip_norm=1.0),
                micro_batch_tokens=16384,
                strips_at_once=2,
                save_every=100,
            ),
        ),
    )


def tiny() -> Config:
    """The same stage on the built-in model and scenes, in a minute or two on a CPU.

    It is too short to learn much.
    """
    whole = paper()
    stage = whole.stages[0]
    assert isinstance(stage, Rl)
    return dataclasses.replace(
        whole,
        model="tiny",
        run_dir="runs/visualthinker_r1_zero_tiny",
        processor=ProcessorOptions(template="r1_zero"),
        remat=False,
        stages=(
            dataclasses.replace(
                stage,
                data=Spatial(count=512),
                steps=4,
                prompts_per_step=4,
                group_size=4,
                max_prompt_tokens=256,
                max_response_tokens=32,
                save_every=2,
                optimizer=dataclasses.replace(stage.optimizer, learning_rate=1e-4),
            ),
        ),
        evaluations=(
            Evaluation(
                name="spatial",
                data=Spatial(count=32, split="test"),
                max_prompt_tokens=256,
                max_response_tokens=32,
            ),
        ),
    )
