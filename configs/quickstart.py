"""The quickstart: a 2M-parameter Qwen2-VL learns to add handwritten digits, by a cold start and GRPO.

python -m jaxr1.train configs/quickstart.py                 # seed 0
python -m jaxr1.train configs/quickstart.py --seed 1
python -m jaxr1.train configs/quickstart.py:blank           # control: blank pictures, accuracy stays at chance
python -m jaxr1.train configs/quickstart.py:shuffled        # control: rewards against another row's answer
"""

from jaxr1.data import Arithmetic
from jaxr1.rewards import Reward
from jaxr1.rl import Advantage, Optimizer
from jaxr1.run import Config, Evaluation, Rl, Sft
from jaxr1.run.options import BucketOptions

WORKED = 1024  # worked examples of the cold start; RL goes on with the rows after them
# One size each: a prompt takes 27 tokens, a response 16 or 18, a picture 8 patches. A new size is a new compilation.
SIZES = BucketOptions(prompt=(32,), response=(18,), patches=(8,))


def config() -> Config:
    """Sft on 1024 worked examples, then Rl on pictures with nothing but their answers."""
    return Config(
        model="tiny",
        run_dir="runs/quickstart",
        stages=(
            Sft(
                name="cold-start",
                data=Arithmetic(count=WORKED, worked=True),
                epochs=6.4,
                batch_size=16,
                max_prompt_tokens=32,
                max_response_tokens=18,
                buckets=SIZES,
                optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup=20, final=0.1, b2=0.95),
            ),
            Rl(
                name="grpo",
                data=Arithmetic(count=8192, start=WORKED),
                steps=360,
                prompts_per_step=64,
                group_size=8,
                max_prompt_tokens=32,
                max_response_tokens=18,
                waves=2,
                advantage=Advantage(eps=1e-4),
                rewards=(Reward("accuracy"), Reward("format", weight=0.2, options={"variant": "whitespace"})),
                buckets=SIZES,
                optimizer=Optimizer(learning_rate=2e-4, schedule="linear", warmup=5, final=0.1, b2=0.95),
                eval_every=60,
                save_every=60,
            ),
        ),
        evaluations=(
            Evaluation(name="heldout", data=Arithmetic(count=512, split="test"), max_prompt_tokens=32,
                       max_response_tokens=20, batch_rows=128),
        ),
    )  # fmt: skip
