"""A small two-stage run: seconds on a CPU, with everything that a checkpoint must hold."""

import dataclasses
from pathlib import Path

from jaxr1.data import Arithmetic
from jaxr1.nn.lora import Lora
from jaxr1.rewards import Reward
from jaxr1.rl import (
    MPO,
    AotUnpaired,
    Gae,
    Kl,
    KlReward,
    OnlineFilter,
    Optimizer,
    PassRange,
    Reference,
)
from jaxr1.run import (
    Answers,
    BucketOptions,
    Config,
    Critic,
    Evaluation,
    Filter,
    Preference,
    Rl,
    Sft,
)

REWARDS = Path(__file__).with_name("small_rewards.py")


def config() -> Config:
    """Two supervised steps, then four RL steps of two updates with a reference and own rewards."""
    buckets = BucketOptions(prompt=(32,), response=(16,), patches=(8,))
    return Config(
        model="tiny",
        run_dir="runs/small",
        tensorboard=False,
        stages=(
            Sft(
                name="sft",
                data=Arithmetic(count=64, worked=True),
                epochs=0.25,
                batch_size=8,
                max_prompt_tokens=32,
                max_response_tokens=24,
                buckets=BucketOptions(prompt=(32,), response=(24,), patches=(8,)),
                optimizer=Optimizer(learning_rate=1e-3),
            ),
            Rl(
                name="rl",
                data=Arithmetic(count=64, start=64),
                steps=4,
                prompts_per_step=4,
                group_size=4,
                max_prompt_tokens=32,
                max_response_tokens=16,
                updates_per_rollout=2,
                kl=Kl(0.05),
                rewards=(Reward("format"), Reward(f"{REWARDS}:spread", weight=0.5)),
                optimizer=Optimizer(learning_rate=1e-3, schedule="cosine", warmup=2),
                buckets=buckets,
                save_every=2,
                eval_every=2,
            ),
        ),
        evaluations=(
            Evaluation(
                data=Arithmetic(count=8, split="test"),
                max_prompt_tokens=32,
                max_response_tokens=16,
                samples=4,
            ),
        ),
    )


def _second(**fields) -> Config:
    """With fields of the RL stage changed."""
    whole = config()
    sft, rl = whole.stages
    return dataclasses.replace(whole, stages=(sft, dataclasses.replace(rl, **fields)))


def lora() -> Config:
    """RL trains adapters, on bfloat16 parameters."""
    adapted = _second(lora=Lora(rank=4, targets="decoder/layers/(q|v)"))
    return dataclasses.replace(adapted, param_dtype="bfloat16")


def frozen() -> Config:
    """RL keeps the tower as the supervised stage has left it."""
    return _second(freeze=("vision",))


def bfloat16() -> Config:
    """Parameters that are rounded stochastically."""
    return dataclasses.replace(config(), param_dtype="bfloat16")


def ppo() -> Config:
    """PPO: a critic, KL in the reward with a weight that moves, a reference that moves."""
    return _second(
        kl=Kl(),
        kl_reward=KlReward(0.05, target=0.02, horizon=50),
        reference=Reference(every=1, alpha=0.5),
        advantage=Gae(lam=0.9),
        critic=Critic(optimizer=Optimizer(learning_rate=1e-3), warmup=1, freeze=("vision",)),
    )


def filtered() -> Config:
    """Rollouts that are refilled; two groups of three are dropped, and some are kept for later."""
    return _second(
        rewards=(Reward(f"{REWARDS}:by_row"),),
        online_filter=OnlineFilter(reward="by_row", low=0.2, high=0.8, carry=True),
    )


def progressive() -> Config:
    """Two stages of RL: short responses in large groups, then longer ones in small groups."""
    whole = config()
    first = dataclasses.replace(
        whole.stages[1],
        name="short",
        steps=2,
        group_size=8,
        max_response_tokens=8,
        buckets=dataclasses.replace(whole.stages[1].buckets, response=(8,)),
    )
    second = dataclasses.replace(whole.stages[1], name="long", steps=2, group_size=4)
    return dataclasses.replace(whole, stages=(first, second))


def offline() -> Config:
    """The model's own answers say which rows it is trained on."""
    whole = config()
    reward = Reward(f"{REWARDS}:by_row")
    rl = dataclasses.replace(whole.stages[1], rewards=(reward,), kept_by="filter")
    stage = Filter(
        data=rl.data,
        answers=Answers(samples=4, batch_rows=8, rewards=(reward,)),
        keep=PassRange("by_row", 0.2, 0.8),
        max_prompt_tokens=32,
        max_response_tokens=16,
        buckets=rl.buckets,
    )
    return dataclasses.replace(whole, stages=(stage, rl))


def preference() -> Config:
    """Four steps on pairs of the model's own answers; the shift of MPO moves."""
    whole = config()
    sft, rl = whole.stages
    asked = Answers(samples=3, batch_rows=8, rewards=(Reward(f"{REWARDS}:spread"),))
    stage = Preference(
        name="preference",
        data=Arithmetic(count=24, start=64),
        answers=asked,
        right_over=0.5,
        losses=(*MPO, AotUnpaired()),
        bco_momentum=0.5,
        batch_size=6,
        max_prompt_tokens=32,
        max_response_tokens=16,
        optimizer=rl.optimizer,
        buckets=rl.buckets,
        eval_every=2,
    )
    return dataclasses.replace(whole, stages=(sft, stage))
