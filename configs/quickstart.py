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

WORKED = 1024  # worked examples of the cold start; RL goes on with the rows after them


def config() -> Config:
    """Sft on 1024 worked examples, then Rl on pictures with nothing but their answers."""
    return Config(
        model="tiny",
        run_dir="runs/quickstart",
        stages=(
            Sft(
                name="cold-start",
                data=Arithmetic(count=WORKED, worked=True),
                epochs=12,
                batch_size=32,
                max_prompt_tokens=64,
                max_response_tokens=32,
                optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup=0.05, final=0.1),
            ),
            Rl(
                name="grpo",
                data=Arithmetic(count=20000, start=WORKED),
                steps=200,
                prompts_per_step=64,
                group_size=8,
                max_prompt_tokens=64,
                max_response_tokens=32,
                waves=2,
                advantage=Advantage(eps=1e-4),
                rewards=(Reward("accuracy"), Reward("format", weight=0.2, options={"variant": "whitespace"})),
                optimizer=Optimizer(learning_rate=3e-4, schedule="cosine", warmup=5, final=0.1),
                eval_every=50,
                save_every=50,
            ),
        ),
        evaluations=(
            Evaluation(name="heldout", data=Arithmetic(count=512, split="test"), max_prompt_tokens=64,
                       max_response_tokens=32, batch_rows=128),
        ),
    )  # fmt: skip
