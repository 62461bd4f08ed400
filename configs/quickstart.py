"""The quickstart: a 1.3M-parameter Qwen2-VL learns to add handwritten digits.

A cold start on worked examples, then GRPO:

    python -m jaxr1.train configs/quickstart.py             # seed 0
    python -m jaxr1.train configs/quickstart.py --seed 1

Other methods on the same task (`notebooks/methods.md` has what they reached):

    python -m jaxr1.train configs/quickstart.py:ppo         # with a critic
    python -m jaxr1.train configs/quickstart.py:rloo        # and dr_grpo, reinforce_pp, gspo, ...

Two controls, in which accuracy should stay at chance:

    python -m jaxr1.train configs/quickstart.py:blank       # blank pictures
    python -m jaxr1.train configs/quickstart.py:shuffled    # rewards for another row's answer
"""

import dataclasses

from jaxr1.data import Arithmetic, Dataset
from jaxr1.rewards import Reward
from jaxr1.rl import (
    MPO,
    Advantage,
    Cispo,
    Cpgd,
    CpgdAdvantage,
    DrGrpo,
    Gae,
    Gspo,
    Optimizer,
    ReinforcePlusPlus,
    Rloo,
)
from jaxr1.run import (
    Answers,
    BucketOptions,
    Config,
    Critic,
    Evaluation,
    Preference,
    Rl,
    Sft,
)

# Worked examples of the cold start: too few to read digits well; RL goes on with the rows after.
WORKED = 208
# One size each: a prompt takes 27 tokens, a response 16 or 18, a picture 8 patches. A new size is a
# new compilation.
SIZES = BucketOptions(prompt=(32,), response=(18,), patches=(8,))
# The tags are a part of the task: an answer counts between them alone.
ACCURACY = Reward("accuracy", options={"tail": False})


def config() -> Config:
    """Sft on 208 worked examples, then Rl on pictures with nothing but their answers."""
    return Config(
        model="tiny",
        run_dir="runs/quickstart",
        stages=(
            Sft(
                name="cold-start",
                data=Arithmetic(count=WORKED, worked=True),
                epochs=26,
                batch_size=16,
                max_prompt_tokens=32,
                max_response_tokens=18,
                buckets=SIZES,
                optimizer=Optimizer(
                    learning_rate=1e-3, schedule="cosine", warmup=20, final=0.1, b2=0.95
                ),
            ),
            Rl(
                name="grpo",
                data=Arithmetic(count=8192, start=WORKED),
                steps=500,
                prompts_per_step=64,
                group_size=8,
                max_prompt_tokens=32,
                max_response_tokens=18,
                waves=2,
                advantage=Advantage(eps=1e-4),
                rewards=(
                    ACCURACY,
                    Reward("format", weight=0.2, options={"variant": "whitespace"}),
                ),
                buckets=SIZES,
                optimizer=Optimizer(
                    learning_rate=4e-4, schedule="linear", warmup=5, final=0.1, b2=0.95
                ),
                eval_every=60,
                save_every=60,
            ),
        ),
        evaluations=(
            Evaluation(
                name="heldout",
                data=Arithmetic(count=512, split="test"),
                max_prompt_tokens=32,
                max_response_tokens=20,
                batch_rows=128,
                rewards=(ACCURACY, Reward("format", options={"variant": "whitespace"})),
            ),
        ),
    )


# --- other methods ------------------------------------------------------------------------------
def _method(name: str, **fields) -> Config:
    """The quickstart with fields of its second stage changed."""
    whole = config()
    cold, rl = whole.stages
    rl = dataclasses.replace(rl, name=name, **fields)
    return dataclasses.replace(whole, stages=(cold, rl), run_dir=f"runs/quickstart_{name}")


def ppo() -> Config:
    """PPO with a critic, as LMM-R1: the value of each token, advantages whitened over the batch.

    A critic needs no group to compare with: fewer responses pay for its work.
    """
    optimizer = Optimizer(learning_rate=4e-4, schedule="linear", warmup=5, final=0.1, b2=0.95)
    critic = Critic(optimizer=optimizer, warmup=5)
    return _method("ppo", group_size=5, advantage=Gae(), critic=critic)


def rloo() -> Config:
    """A response against the mean of the others."""
    return _method("rloo", advantage=Rloo())


def dr_grpo() -> Config:
    """No division: neither by the group's deviation nor by a response's length."""
    return _method("dr_grpo", advantage=DrGrpo(), aggregation="seq-mean-token-sum-norm")


def reinforce_pp() -> Config:
    """No baseline of the group: returns whitened over the batch."""
    return _method("reinforce_pp", advantage=ReinforcePlusPlus())


def gspo() -> Config:
    """The ratio of a whole response, clipped in two updates of a rollout."""
    return _method("gspo", surrogate=Gspo(), updates_per_rollout=2)


def cispo() -> Config:
    """Clipped weights instead of clipped gradients, in two updates of a rollout."""
    return _method("cispo", surrogate=Cispo(), updates_per_rollout=2)


def cpgd() -> Config:
    """MM-Eureka's last one: clipped log-probs and a drift, in two updates of a rollout."""
    return _method("cpgd", surrogate=Cpgd(), advantage=CpgdAdvantage("std"), updates_per_rollout=2)


def mpo() -> Config:
    """MM-Eureka's baseline, MPO: pairs of the model's own answers, right against wrong."""
    whole = config()
    cold = whole.stages[0]
    preference = Preference(
        name="mpo",
        data=Arithmetic(count=2048, start=WORKED),
        losses=MPO,
        answers=Answers(rewards=(ACCURACY,)),
        pairs=2,
        epochs=2,
        batch_size=32,
        max_prompt_tokens=32,
        max_response_tokens=18,
        buckets=SIZES,
        optimizer=Optimizer(learning_rate=2e-4, schedule="cosine", warmup=5, final=0.1, b2=0.95),
        eval_every=32,
    )
    return dataclasses.replace(whole, stages=(cold, preference), run_dir="runs/quickstart_mpo")


# --- controls -----------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class OtherAnswers:
    """A control: the questions of a data set with the answers of the row after.

    Such rewards can teach nothing.
    """

    data: Arithmetic

    def load(self) -> Dataset:
        """The rows, every answer one row late; worked responses are left as they are."""
        rows = self.data.load()
        shifted = lambda i: dataclasses.replace(rows[i], answer=rows[(i + 1) % len(rows)].answer)
        return Dataset(f"{rows.name} with other answers", len(rows), shifted)


def shuffled() -> Config:
    """Control: RL is rewarded for the answer to another picture."""
    whole = config()
    cold, rl = whole.stages
    rl = dataclasses.replace(rl, data=OtherAnswers(rl.data))
    return dataclasses.replace(whole, stages=(cold, rl), run_dir="runs/quickstart_shuffled")


def blank() -> Config:
    """Control: every picture is white, in training and in evaluation; only guessing is left."""
    whole = config()

    def blanked(part):
        """A stage or an evaluation on white pictures."""
        return dataclasses.replace(part, data=dataclasses.replace(part.data, blank=True))

    return dataclasses.replace(
        whole,
        run_dir="runs/quickstart_blank",
        stages=tuple(map(blanked, whole.stages)),
        evaluations=tuple(map(blanked, whole.evaluations)),
    )
