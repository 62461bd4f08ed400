"""Running: stages in order, and nothing of what they do."""

from jaxr1.evaluation.heldout import Evaluation
from jaxr1.inputs.settings import ProcessorOptions
from jaxr1.inputs.sizes import BucketOptions
from jaxr1.run.options import Config
from jaxr1.stages.answers import Answers
from jaxr1.stages.critic import Critic
from jaxr1.stages.options import Filter, Preference, Rl, Sft

__all__ = [
    "Answers",
    "BucketOptions",
    "Config",
    "Critic",
    "Evaluation",
    "Filter",
    "Preference",
    "ProcessorOptions",
    "Rl",
    "Sft",
]
