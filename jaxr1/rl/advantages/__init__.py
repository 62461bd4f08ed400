"""Estimators: how rewards become the advantage of each token. They run on the host, before packing.

    group       r - baseline of the group: GRPO, Dr. GRPO, LitePPO, RLOO, OPO, REINFORCE++-baseline
    weighted    the group's mean and a weight: GPG, Pass@k, GDPO, CPGD
    returns     each response by itself: REINFORCE, REINFORCE++, ReMax
    tokens      token by token: GAE, the optimal token baseline

A new one is a class in one of these files, which names it in `__all__`; as a `RewardEstimator` it
has the options that all of them share.
"""

from jaxr1.rl.advantages.estimator import *
from jaxr1.rl.advantages.estimator import Estimator
from jaxr1.rl.advantages.group import *
from jaxr1.rl.advantages.group import Advantage
from jaxr1.rl.advantages.returns import *
from jaxr1.rl.advantages.rewarded import *
from jaxr1.rl.advantages.tokens import *
from jaxr1.rl.advantages.weighted import *

AnyEstimator = Advantage | Estimator
"""What may stand as the advantage of a stage: one of these files, or one of the user's own."""
