"""Losses of pairs written from their formulas in numpy, and numbers that they are held to."""

import dataclasses

import numpy as np
from formulas import SHAPE, Numbers

from jaxr1.rl.objectives import (
    Aot,
    AotUnpaired,
    ApoDown,
    ApoZero,
    BcoPair,
    ChosenNll,
    DiscoPop,
    Dpo,
    DpoNorm,
    ExoPair,
    Hinge,
    Ipo,
    NcaPair,
    RobustDpo,
    SppoHard,
)


@dataclasses.dataclass
class Sums:
    """Of pairs, or of the pair of each token: C, R, and the tokens of the two responses."""

    c: np.ndarray
    r: np.ndarray
    c_count: np.ndarray
    r_count: np.ndarray

    @property
    def means(self):
        return self.c / np.maximum(self.c_count, 1) - self.r / np.maximum(self.r_count, 1)


def draw_pairs(rng):
    """Numbers whose rows hold pairs across strips, and a response or more that is in none."""
    n = Numbers.draw(rng)
    pair, sign, weight = np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE)
    for row in range(SHAPE[0]):
        labels = rng.permutation(np.unique(n.label[row][n.segment[row] > 0]))
        for i, label in enumerate(labels[: 2 * rng.integers(1, len(labels) // 2 + 1)]):
            of = n.label[row] == label
            pair[row][of], sign[row][of] = i // 2 + 1, 1 - 2 * (i % 2)
        for number in np.unique(pair[row])[1:]:
            weight[row][pair[row] == number] = rng.random()
    n.values |= {
        "pair": pair,
        "sign": sign,
        "pair_weight": weight * n.own,
        "chosen_weight": rng.random(SHAPE) * n.own * (sign > 0),
        "aot_ref": rng.normal(size=SHAPE),
        "aot_chosen": rng.normal(size=SHAPE),
        "aot_rejected": rng.normal(size=SHAPE),
    }
    return n


def sums(n):
    """Of each token's pair; 0 at tokens of none."""
    found = Sums(*(np.zeros(SHAPE) for _ in range(4)))
    for row, number in {(b, n.pair[b, s, t]) for b, s, t in np.argwhere(n.pair > 0)}:
        of = np.zeros(SHAPE, bool)
        of[row] = n.pair[row] == number
        for sign, total, count in ((1, found.c, found.c_count), (-1, found.r, found.r_count)):
            which = of & n.own & (n.sign == sign)
            total[of], count[of] = (n.logp - n.ref_logp)[which].sum(), which.sum()
    return found


def pairs(n):
    """How many pairs have a token of the policy's."""
    return len({(b, n.pair[b, s, t]) for b, s, t in np.argwhere((n.pair > 0) & n.own)})


def sigmoid(x):
    return np.exp(log_sigmoid(x))


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def exo(h, s):
    p, q = sigmoid(h), sigmoid(-h)
    return p * (log_sigmoid(h) - np.log(1 - s)) + q * (log_sigmoid(-h) - np.log(s))


def disco(h, tau):
    g = log_sigmoid(h / tau)
    return -(1 - np.exp(g)) * log_sigmoid(h) + np.exp(g - h)


def robust(h, s):
    return ((s - 1) * log_sigmoid(h) + s * log_sigmoid(-h)) / (1 - 2 * s)


def nca(a, b):
    return -log_sigmoid(a) - log_sigmoid(-a) / 2 - log_sigmoid(-b) / 2


def smooth(x, s):
    return -(1 - s) * log_sigmoid(x) - s * log_sigmoid(-x)


PAIR_LOSSES = [
    (Dpo(), lambda p: -log_sigmoid(0.1 * (p.c - p.r))),
    (Dpo(0.8, 0.5), lambda p: -0.8 * log_sigmoid(0.5 * (p.c - p.r))),
    (DpoNorm(beta=2.0), lambda p: -log_sigmoid(2.0 * p.means)),
    (Hinge(beta=0.6), lambda p: np.maximum(0, 1 - 0.6 * (p.c - p.r))),
    (Ipo(), lambda p: (p.means - 5.0) ** 2),
    (RobustDpo(beta=0.5), lambda p: robust(0.5 * (p.c - p.r), 0.1)),
    (RobustDpo(smoothing=0.3), lambda p: robust(0.1 * (p.c - p.r), 0.3)),
    (ExoPair(beta=0.5), lambda p: exo(0.5 * (p.c - p.r), 1e-3)),
    (ExoPair(smoothing=0.2), lambda p: exo(0.1 * (p.c - p.r), 0.2)),
    (DiscoPop(), lambda p: disco(0.1 * (p.c - p.r), 0.05)),
    (DiscoPop(beta=0.5, tau=0.7), lambda p: disco(0.5 * (p.c - p.r), 0.7)),
    (NcaPair(beta=0.5), lambda p: nca(0.5 * p.c, 0.5 * p.r)),
    (BcoPair(0.2), lambda p: -0.2 * (log_sigmoid(0.1 * p.c) + log_sigmoid(-0.1 * p.r))),
    (SppoHard(beta=0.5), lambda p: (p.c - 1) ** 2 + (p.r + 1) ** 2),
    (ApoZero(beta=0.5), lambda p: 1 - sigmoid(0.5 * p.c) + sigmoid(0.5 * p.r)),
    (ApoDown(beta=0.5), lambda p: sigmoid(0.5 * p.c) + 1 - sigmoid(0.5 * (p.c - p.r))),
]
"""(term, its loss of `Sums`)."""


def aot(n):
    p = sums(n)
    return smooth(0.5 * (p.c - p.r - n.aot_ref), 0.1)


def aot_unpaired(n):
    def both(n):
        p = sums(n)
        return smooth(0.5 * (p.c - n.aot_rejected), 0.1) + smooth(0.5 * (n.aot_chosen - p.r), 0.1)

    return both(n) - both(n.sg) / 2


def of_sums(loss):
    return lambda n: loss(sums(n))


PAIR_TERMS = [
    *((term, of_sums(loss)) for term, loss in PAIR_LOSSES),
    (Aot(beta=0.5, smoothing=0.1), aot),
    (AotUnpaired(beta=0.5, smoothing=0.1), aot_unpaired),
    (ChosenNll(0.7), lambda n: -0.7 * n.logp),
]
"""(term, its loss at each token of `Numbers`)."""
