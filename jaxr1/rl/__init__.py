"""The pure parts: advantages, losses, weights, episodes, learners, the train step.

A new term or estimator is named in the `__all__` of its own file.
"""

from jaxr1.rl.advantages import *
from jaxr1.rl.controllers import *
from jaxr1.rl.corrections import *
from jaxr1.rl.filtering import *
from jaxr1.rl.objectives import *
from jaxr1.rl.optimizer import Optimizer as Optimizer
from jaxr1.rl.penalty import *
from jaxr1.rl.reference import *
from jaxr1.rl.terms import *
from jaxr1.rl.weights import *
