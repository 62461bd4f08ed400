"""What a loss is made of: terms, what they see, what they measure, and their sum.

    loss = sum over terms k, sum over tokens:  columns[term_k.weight] * loss_k

A term names the columns that it `needs` and what it `reads` of the model. Weights are columns too,
made on the host (`rl.weights`), where the whole batch of an optimiser step is known: micro-batches,
devices and hosts only add. What a term sums over a response is never cut, nor what it sums over
several of a row: it then sees whole rows (`Term.whole_rows`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxr1.rl.episodes import Episodes

__all__ = ["Max", "Mean", "Metrics", "Objective", "Term", "Tokens"]


LOG_RATIO_LIMIT = 20.0
"""Bound of a log-ratio before its exponential, which would overflow before a clip is there."""


# --- metrics of a term --------------------------------------------------------------------------
@struct.dataclass
class Mean:
    """A mean kept as its two sums, so that adding micro-batches and devices stays exact."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, value: jax.Array, where: jax.Array) -> Mean:
        """Of `value` where `where` is true, or with `where` as weights."""
        weight = where.astype(jnp.float32)
        return cls((value * weight).sum(), weight.sum())

    def add(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    def result(self) -> jax.Array:
        """NaN where nothing was counted."""
        return self.total / self.weight


@struct.dataclass
class Max:
    """The largest of values that are not negative."""

    value: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, value: jax.Array, where: jax.Array) -> Max:
        """Of `value` where `where` is true."""
        weight = where.astype(jnp.float32)
        return cls((value * weight).max(), weight.sum())

    def add(self, other: Max) -> Max:
        return Max(jnp.maximum(self.value, other.value), self.weight + other.weight)

    def result(self) -> jax.Array:
        """NaN where nothing was counted."""
        return jnp.where(self.weight > 0, self.value, jnp.nan)


Metrics = dict[str, Mean | Max]


# --- what a term sees ---------------------------------------------------------------------------
class Tokens:
    """What a term sees of a micro-batch: some strips of its rows or all, every array [B, S, T].

        segment    [ 1 1 1 1 2 2 2 3 3 3 0 0 ]     responses of a strip, 0 = padding
        own        [ 1 1 1 1 1 0 0 1 1 1 0 0 ]     tokens that the policy produced, bool
        logp       [ . . . . . . . . . . 0 0 ]     what the model says: the names in `reads`
        advantage  [ . . . . . . . . . . 0 0 ]     columns: the names in `needs`

    Attributes:
      segment: int32[B, S, T].
      scalars: {name: float32 scalar}, coefficients that move from step to step.
    """

    def __init__(
        self,
        said: Mapping[str, jax.Array],
        columns: Mapping[str, jax.Array],
        segment_bst: jax.Array,
        scalars: Mapping[str, jax.Array],
    ):
        self._said, self._columns = said, columns
        self.segment, self.scalars = segment_bst, scalars

    def __getattr__(self, name: str) -> jax.Array:
        """A column, or what the model says, by its name."""
        for named in (self._said, self._columns):
            if name in named:
                return named[name]
        known = ", ".join([*self._said, *self._columns])
        raise AttributeError(
            f"a term reads {name!r}: name it in `needs` or `reads`; given: {known}"
        )

    @property
    def own(self) -> jax.Array:
        """bool[B, S, T]: tokens that the policy produced. A weight of 0 does not say so."""
        return (self.segment > 0) & (self._columns["own"] > 0)

    @property
    def response(self) -> jax.Array:
        """int32[B, S, T]: a number for each token's response in its row, from 1; 0 = padding."""
        _, strips, length = self.segment.shape
        first = jnp.arange(strips)[:, None] * length
        return jnp.where(self.segment > 0, first + self.segment, 0)

    def sum_by(self, label_bst: jax.Array, x_bst: jax.Array) -> jax.Array:
        """The sum of `x` over the tokens of a row that have one label, at each of these tokens.

            label  [ 1 1 1 2 2 2 0 ]      x  [ a b c d e f g ]
            sum    [ a+b+c  (three times)  d+e+f  (three times)  g ]

        Args:
          label_bst: int32[B, S, T], 0 to S * T: `response`, or a column that names pairs.
          x_bst: float32[B, S, T].
        """
        rows, strips, length = label_bst.shape
        label, x = (a.reshape(rows, strips * length) for a in (label_bst, x_bst))
        add = functools.partial(jax.ops.segment_sum, num_segments=strips * length + 1)
        total = jnp.take_along_axis(jax.vmap(add)(x, label), label, 1)
        return total.reshape(x_bst.shape)


Noise = Callable[[], np.ndarray]


class Term:
    """A part of a loss: a frozen dataclass that says what it takes, and is called on `Tokens`.

    Subclasses override what differs, as properties or as class attributes.
    """

    whole_rows: ClassVar[bool] = True
    """Whether it must see all responses of a row together, as a loss of pairs must. False lets the
    strips of a row be differentiated some at a time without being computed twice."""

    corrected: ClassVar[bool] = False
    """Whether a step's corrections (`rl.corrections`) multiply its loss: that of a policy."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What a parent's text may do without is not known of another text.
        if "__call__" in vars(cls) and "whole_rows" not in vars(cls):
            cls.whole_rows = True

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads, by name."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """What it reads of the model: "logp", "entropy" (`nn.logprob.REDUCTIONS`)."""
        return ("logp",)

    @property
    def weight(self) -> str:
        """The column that multiplies its loss."""
        return "weight"

    @property
    def needs_zero_advantage(self) -> bool:
        """Whether it has a gradient for responses whose advantage is 0."""
        return False

    @property
    def fresh(self) -> tuple[str, ...]:
        """Columns that `prepare` reads of the parameters at hand, scored before each optimiser
        step: "now_logp", "now_entropy".
        """
        return ()

    @property
    def scalars(self) -> dict[str, float]:
        """The scalars that it reads, with the values that they begin with."""
        return {}

    def prepare(self, episodes: Episodes, noise: Noise) -> dict[str, np.ndarray]:
        """Columns float32[N] that it makes of all responses of an optimiser step, on the host: what
        is ranked or averaged over the whole batch. They are among its `needs`.

        Args:
          noise: gives float64[N], uniform in [0, 1), the same for a token whatever the batch.
        """
        return {}

    def __call__(self, tokens: Tokens) -> tuple[jax.Array | None, Metrics]:
        """The loss float32[B, S, T], and metrics by name.

        A loss of a response (or of a pair) is the same number at each of its tokens; weights share
        it out. None is a term that only measures. The learner puts its own name before those of
        metrics, but for names that hold a slash.
        """
        raise NotImplementedError


# --- the sum of terms ---------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss, and how the model is asked for what its terms read; `accumulate` is compiled for it.

    Attributes:
      terms: added up.
      name: of the learner; goes before the names of metrics.
      on_policy: one update follows the rollout: old log-probs are the current ones, the ratio is 1.
      temperature: of sampling.
      forbidden: ids outside the normaliser.
      corrected: the column "correction" multiplies the loss of the terms that take it.
    """

    terms: tuple[Term, ...]
    name: str = "policy"
    on_policy: bool = True
    temperature: float = 1.0
    forbidden: tuple[int, ...] = ()
    corrected: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """What the model is asked for."""
        return _sorted(term.reads for term in self.terms)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that terms read; on policy the old log-probs are the model's own."""
        found = _sorted(term.needs for term in self.terms)
        return tuple(name for name in found if not (self.on_policy and name == "old_logp"))

    @property
    def columns(self) -> tuple[str, ...]:
        """Everything that a micro-batch must hold: what terms read, their weights, own tokens."""
        weights = [term.weight for term in self.terms]
        return _sorted([self.needs, weights, ["own"], ["correction"] if self.corrected else []])

    @property
    def fresh(self) -> tuple[str, ...]:
        """Columns of the parameters at hand that terms make others of."""
        return _sorted(term.fresh for term in self.terms)

    @property
    def scalars(self) -> dict[str, float]:
        """The scalars that terms read, with their first values."""
        found: dict[str, float] = {}
        for term in self.terms:
            found |= term.scalars
        return found

    @property
    def whole_rows(self) -> bool:
        """Whether a term must see all responses of a row together."""
        return any(term.whole_rows for term in self.terms)

    @property
    def needs_zero_advantage(self) -> bool:
        """Whether responses of advantage 0 have a gradient; where there is no advantage, all do."""
        return "advantage" not in self.needs or any(t.needs_zero_advantage for t in self.terms)

    def __call__(
        self,
        said: Mapping[str, jax.Array],
        columns: Mapping[str, jax.Array],
        segment_bst: jax.Array,
        scalars: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, Metrics]:
        """The weighted sum over a micro-batch (or some of its strips), and all terms' metrics."""
        if self.on_policy and "logp" in said:
            columns = {**columns, "old_logp": jax.lax.stop_gradient(said["logp"])}
        tokens = Tokens(said, columns, segment_bst, scalars)
        losses: dict[str, jax.Array] = {}  # by weight column, so that each is multiplied once
        metrics: Metrics = {}
        for term in self.terms:
            loss_bst, found = term(tokens)
            if loss_bst is not None:
                if self.corrected and term.corrected:
                    loss_bst = loss_bst * tokens.correction
                before = losses.get(term.weight)
                losses[term.weight] = loss_bst if before is None else before + loss_bst
            for name, value in found.items():
                metrics[name if "/" in name else f"{self.name}/{name}"] = value
        weighted = [(loss_bst * columns[name]).sum() for name, loss_bst in losses.items()]
        return jnp.float32(sum(weighted)), metrics

    def no_metrics(self, scalars: tuple[str, ...]) -> Metrics:
        """The metrics of no tokens at all, abstract: their names are those that the terms give."""
        one = jax.ShapeDtypeStruct((1, 1, 1), jnp.float32)
        segment = jax.ShapeDtypeStruct((1, 1, 1), jnp.int32)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        said, columns = dict.fromkeys(self.reads, one), dict.fromkeys(self.columns, one)
        return jax.eval_shape(self, said, columns, segment, dict.fromkeys(scalars, number))[1]


def _sorted(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """All names, each once."""
    return tuple(sorted(set(itertools.chain.from_iterable(names))))
