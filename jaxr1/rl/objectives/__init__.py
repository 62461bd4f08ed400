"""Losses: the terms that objectives are made of.

    GRPO    (Ppo(), Kl(0.04), PolicyStats())
    GSPO    (Gspo(), PolicyStats())
    SFT     (CrossEntropy(),)
    DPO     (Dpo(),)
    critic  (ValueLoss(),)

A new loss is a new class in one of these files: a frozen dataclass that names what it takes
(`rl.terms.Term`) and is called on `Tokens`; its file names it in `__all__`.
"""

from jaxr1.rl.objectives.entropy import *
from jaxr1.rl.objectives.entropy import CovLoss
from jaxr1.rl.objectives.kl import *
from jaxr1.rl.objectives.measures import *
from jaxr1.rl.objectives.policy import *
from jaxr1.rl.objectives.policy import TokenLoss
from jaxr1.rl.objectives.preference import *
from jaxr1.rl.objectives.preference import PairLoss
from jaxr1.rl.objectives.sequence import *
from jaxr1.rl.objectives.sequence import SequenceLoss
from jaxr1.rl.objectives.supervised import *
from jaxr1.rl.objectives.transport import *
from jaxr1.rl.objectives.transport import TransportLoss
from jaxr1.rl.objectives.values import *
from jaxr1.rl.terms import Term

Surrogate = TokenLoss | SequenceLoss | CovLoss | Term
"""What may stand as the policy loss of a stage: one of these files, or one of the user's own."""

PreferenceLoss = PairLoss | TransportLoss | Term
"""What may stand as a loss of chosen and rejected responses."""
