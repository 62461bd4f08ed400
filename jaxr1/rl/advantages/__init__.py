"""Estimators: how rewards become the advantage of each token. They run on the host, before packing.

A new one is a class in one of these files, which names it in `__all__`.
"""

from jaxr1.rl.advantages.estimator import *
from jaxr1.rl.advantages.estimator import Estimator
from jaxr1.rl.advantages.group import *
from jaxr1.rl.advantages.group import Advantage

AnyEstimator = Advantage | Estimator
"""What may stand as the advantage of a stage: one of this file, or one of the user's own."""
