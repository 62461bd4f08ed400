"""Advantages, objectives, the optimiser, the train step."""

from jaxr1.rl.advantages import Advantage, group_advantage
from jaxr1.rl.objectives import Kl, Surrogate, clipped_surrogate, kl_estimate, token_weights
from jaxr1.rl.optimizer import Optimizer

__all__ = [
    "Advantage",
    "Kl",
    "Optimizer",
    "Surrogate",
    "clipped_surrogate",
    "group_advantage",
    "kl_estimate",
    "token_weights",
]
