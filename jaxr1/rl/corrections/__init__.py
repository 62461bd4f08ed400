"""Corrections: what multiplies the loss of single tokens, made on the host before packing.

    x = old_logp - sampled_logp     w = exp(x)     what the trainer says over what the sampler said

           token by token                 a response as a whole
    bound  TokenTruncate  min(w, C)       SequenceTruncate  min(W, C)         W = product of w
    mask   TokenMask      w if within     SequenceMask      W if within
                                          SeqMaskTis        w if their mean is within
    keep   Reject         by a statistic of x, of a token or of a response
           TopEntropy     high entropy    OffPolicyMask     not what is bad and far away
                                          OverlongFilter    not what was cut

Where the sampler is the trainer's own model x is 0 but for rounding, and nothing needs a weight:
`mismatch_metrics` shows whether that is so. A multiplier is a number of the host and has no
gradient; several are multiplied (`correct`), each made as if it were alone. Means, quantiles and
counts are over own tokens of responses that have a reward, of the whole step, so the columns that
a correction `needs` must be there for all of these; elsewhere it is 1. Denominators of a loss do
not know of it. A new one is a class in one of these files, which names it in `__all__`.
"""

from jaxr1.rl.corrections.correction import *
from jaxr1.rl.corrections.masks import *
from jaxr1.rl.corrections.mismatch import *
from jaxr1.rl.corrections.weights import *
