"""Rewards from rules: what a reward is (`spec`), built-in ones (`builtin`), workers (`pool`)."""

from jaxr1.rewards.accuracy import accuracy_reward, parse_answer_problem
from jaxr1.rewards.format import format_reward
from jaxr1.rewards.grades import Grade, Pending, RewardError
from jaxr1.rewards.length import cosine_reward, soft_overlong_reward, stop_properly_reward
from jaxr1.rewards.methods import VLM_R1
from jaxr1.rewards.pool import RewardPool
from jaxr1.rewards.repetition import repetition_reward
from jaxr1.rewards.spec import ResolvedReward, Reward, Route
from jaxr1.rewards.types import Completion, Example
from jaxr1.rewards.workers import WorkerOptions

__all__ = [
    "VLM_R1",
    "Completion",
    "Example",
    "Grade",
    "Pending",
    "ResolvedReward",
    "Reward",
    "RewardError",
    "RewardPool",
    "Route",
    "WorkerOptions",
    "accuracy_reward",
    "cosine_reward",
    "format_reward",
    "parse_answer_problem",
    "repetition_reward",
    "soft_overlong_reward",
    "stop_properly_reward",
]
