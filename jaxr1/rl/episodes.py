"""The responses of a step, and what is known of them: named columns, a number for each token.

    prompt 0  sample 0   a a a a          counts_bg [[4 2]
              sample 1   b b                         [3 5]]
    prompt 1  sample 0   c c c
              sample 1   d d d d d

    token_n   [ a a a a b b c c c d d d d d ]        N = 14
    own       [ 1 1 1 1 1 1 1 0 1 1 1 1 0 0 ]        0: said by an environment, not by the policy

Host arithmetic (means in a response, sums, whitening over the batch, masks) is numpy on a column.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw
from jaxr1.rewards import types
from jaxr1.rewards.grades import Grade
from jaxr1.sampling.sampler import Completion

# Grades that give no reward, by status, and the metric that counts each.
LOST = {"timeout": "timeouts", "crash": "crashes", "error": "errors", "nan": "nans"}


@dataclasses.dataclass
class Episodes:
    """G responses to each of B prompts.

    Attributes:
      draws: the prompts.
      token_n: int32[N], the tokens of all responses, prompt by prompt and sample by sample.
      counts_bg: int64[B, G], tokens of each response.
      columns: {name: float32[N]}.
      groups: groups[b][g] is the completion that was sampled; () where responses are given ones.
      grades: grades[b][g]; () before grading.
      reward_bg: float64[B, G], in the units of the rewards; 0 where there is none.
      reward_weights: {name of a reward: its weight in the sum}.
      baseline: one more response to each prompt, outside its group; graded and written down, never
        packed or counted. None where there is none.
      baseline_b: float64[B], the rewards of these; NaN for one that has none.
      views: {learner: the prompts as it sees them}, with what its frozen parts made of their media.
      valid_bg: bool[B, G], responses that have a reward (all, where responses are given ones).
    """

    draws: list[Draw]
    token_n: np.ndarray
    counts_bg: np.ndarray
    columns: dict[str, np.ndarray]
    valid_bg: np.ndarray
    groups: Sequence[Sequence[Completion]] = ()
    grades: Sequence[Sequence[Grade]] = ()
    reward_bg: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    reward_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    baseline: Episodes | None = None
    baseline_b: np.ndarray | None = None
    views: dict[str, list[EncodedPrompt]] = dataclasses.field(default_factory=dict)

    # --- making ---------------------------------------------------------------------------------
    @classmethod
    def sampled(
        cls,
        draws: list[Draw],
        groups: Sequence[Sequence[Completion]],
        views: dict[str, list[EncodedPrompt]] | None = None,
    ) -> Episodes:
        """What a sampler gave, not graded yet; its log-probs are the column "sampled_logp"."""
        said = list(itertools.chain.from_iterable(groups))
        tokens = iter([completion.token_ids for completion in said])
        episodes = cls.given(draws, [list(itertools.islice(tokens, len(g))) for g in groups])
        episodes.groups, episodes.views = groups, views or {}
        episodes.valid_bg = np.zeros(episodes.counts_bg.shape, bool)
        episodes.columns["sampled_logp"] = _joined([c.logprobs for c in said], np.float32)
        return episodes

    @classmethod
    def given(cls, draws: list[Draw], responses: Sequence[Sequence[np.ndarray]]) -> Episodes:
        """Responses that nobody sampled: responses[b][g] holds the int32 tokens of one.

        Groups may differ in size: what a smaller one lacks has no tokens.
        """
        samples = max((len(group) for group in responses), default=0)
        counts_bg = np.zeros((len(draws), samples), np.int64)
        for b, group in enumerate(responses):
            counts_bg[b, : len(group)] = [len(tokens) for tokens in group]
        token_n = _joined(list(itertools.chain.from_iterable(responses)), np.int32)
        own = np.ones(len(token_n), np.float32)
        return cls(draws, token_n, counts_bg, {"own": own}, counts_bg > 0)

    def graded(self, by_host: Sequence[Sequence[Grade]]) -> list[Grade]:
        """The grades of all responses, in order, given those of each host's own."""
        left = [iter(grades) for grades in by_host]
        samples = self.counts_bg.shape[1]
        grades: list[Grade] = []
        for draw in self.draws:
            grades += itertools.islice(left[draw.prompt.host], samples)
        return grades

    def grade(self, grades: Sequence[Grade]) -> None:
        """Takes the grades of all responses, in order."""
        samples = self.counts_bg.shape[1]
        self.grades = [grades[i : i + samples] for i in range(0, len(grades), samples)]
        total = [0.0 if g.total is None else g.total for g in grades]
        self.reward_bg = np.array(total, np.float64).reshape(self.counts_bg.shape)
        scored = [g.total is not None for g in grades]
        self.valid_bg = np.array(scored, bool).reshape(self.counts_bg.shape)

    def split(self, parts: int) -> list[Episodes]:
        """The groups in `parts` equal parts, in order, each with its share of every column."""
        size = len(self.draws) // parts
        starts = range(0, len(self.draws), size)
        return [self._part(first, first + size) for first in starts]

    def _part(self, first: int, last: int) -> Episodes:
        start, end = self.counts_bg[:first].sum(), self.counts_bg[:last].sum()
        return Episodes(
            draws=self.draws[first:last],
            token_n=self.token_n[start:end],
            counts_bg=self.counts_bg[first:last],
            columns={name: column[start:end] for name, column in self.columns.items()},
            valid_bg=self.valid_bg[first:last],
            groups=self.groups[first:last],
            grades=self.grades[first:last],
            reward_bg=self.reward_bg[first:last],
            reward_weights=self.reward_weights,
            baseline=None if self.baseline is None else self.baseline._part(first, last),
            baseline_b=None if self.baseline_b is None else self.baseline_b[first:last],
            views={name: prompts[first:last] for name, prompts in self.views.items()},
        )

    def seen_by(self, learner: str) -> list[EncodedPrompt]:
        """The prompts as a learner sees them; with their pixels where nothing else was computed."""
        return self.views.get(learner) or [draw.prompt for draw in self.draws]

    # --- one more response outside the group ----------------------------------------------------
    def set_apart(self) -> Episodes:
        """These without the last sample of each prompt, which becomes their `baseline`.

        samples    [ 0 1 2 3 ]   ->   [ 0 1 2 ]    baseline [ 3 ]
        """
        inside = Episodes.sampled(self.draws, [group[:-1] for group in self.groups], self.views)
        inside.baseline = Episodes.sampled(self.draws, [group[-1:] for group in self.groups])
        if self.grades:
            inside.grade(list(itertools.chain.from_iterable(g[:-1] for g in self.grades)))
            outside = inside.baseline
            outside.grade([group[-1] for group in self.grades])
            inside.baseline_b = np.where(outside.valid_bg, outside.reward_bg, np.nan)[:, 0]
        return inside

    # --- arithmetic -----------------------------------------------------------------------------
    def spread(self, value_bg: np.ndarray) -> np.ndarray:
        """float32[N]: a number of each response, at each of its tokens."""
        return np.repeat(value_bg.ravel(), self.counts_bg.ravel()).astype(np.float32)

    def sums(self, column: np.ndarray) -> np.ndarray:
        """float64[B, G]: the sum of a column over each response."""
        response = np.repeat(np.arange(self.counts_bg.size), self.counts_bg.ravel())
        total = np.bincount(response, weights=column, minlength=self.counts_bg.size)
        return total.reshape(self.counts_bg.shape)

    @property
    def counted_n(self) -> np.ndarray:
        """bool[N]: own tokens of responses that have a reward."""
        return (self.columns["own"] > 0) & np.repeat(self.valid_bg.ravel(), self.counts_bg.ravel())

    @property
    def zero_std_b(self) -> np.ndarray:
        """bool[B]: groups whose rewards are all equal, or that have fewer than two."""
        low = np.where(self.valid_bg, self.reward_bg, np.inf).min(-1)
        high = np.where(self.valid_bg, self.reward_bg, -np.inf).max(-1)
        return ~(high > low)

    # --- for others to read ---------------------------------------------------------------------
    def items(self) -> list[tuple[types.Completion, types.Example]]:
        """What reward functions see of this host's own prompts, in order.

        With the prefix that the template put before it.
        """
        seen = []
        for draw, group in zip(self.draws, self.groups, strict=True):
            if not draw.is_own:
                continue
            e = draw.example
            sizes = tuple(types.ImageSize(*size) for size in draw.prompt.sizes)
            asked = types.Example(e.question, e.answer, e.source, e.metadata, sizes)
            for c in group:
                text = draw.prompt.prefix + c.text
                said = types.Completion(text, c.finish_reason, len(c.token_ids), c.token_ids)
                seen.append((said, asked))
        return seen

    def said(self) -> list[tuple[int, int, str]]:
        """(draw, sample, response with its prefix), in order: what a replay is recognised by."""
        said = []
        for draw, group in zip(self.draws, self.groups, strict=True):
            text = [draw.prompt.prefix + completion.text for completion in group]
            said += [(draw.position, g, t) for g, t in enumerate(text)]
        return said

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object per response, as `rollouts/` keeps them; a prompt's baseline last."""
        rows, samples = [], self.counts_bg.shape[1]
        advantage_bg = None
        if "advantage" in self.columns:
            # The mean over its own tokens, which are all equal but where credit is given token by
            # token.
            own = self.columns["own"]
            advantage_bg = self.sums(self.columns["advantage"] * own)
            advantage_bg = advantage_bg / np.maximum(self.sums(own), 1)
        for b in range(len(self.draws)):
            for g in range(samples):
                row = self._row(b, g)
                if advantage_bg is not None:
                    row["advantage"] = float(advantage_bg[b, g])
                rows.append(row)
            if self.baseline is not None:
                rows.append(self.baseline._row(b, 0) | {"sample": samples, "role": "baseline"})
        return rows

    def _row(self, b: int, g: int) -> dict[str, Any]:
        draw, completion, grade = self.draws[b], self.groups[b][g], self.grades[b][g]
        return {
            "draw": draw.position,
            "sample": g,
            "source": draw.example.source,
            "prompt": draw.example.question,
            "answer": draw.example.answer,
            "response": draw.prompt.prefix + completion.text,
            "rewards": grade.by_name,
            "reward": grade.total,
            "status": grade.status,
            "detail": grade.detail,
            "length": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "media": list(draw.prompt.hashes),
        }

    def unscored(self) -> list[tuple[str, str]]:
        """(source, reason) of each response without a reward."""
        found = []
        for draw, group in zip(self.draws, self.grades, strict=True):
            for g, grade in enumerate(group):
                if grade.total is None:
                    what = f"draw {draw.position}, sample {g} is not scored: {grade.status}"
                    found.append((draw.example.source, f"{what}: {grade.detail or 'no reward'}"))
        return found

    def metrics(self) -> dict[str, float]:
        """Rewards, lengths and failures."""
        said = list(itertools.chain.from_iterable(self.groups))
        grades = list(itertools.chain.from_iterable(self.grades))
        reward = self.reward_bg[self.valid_bg]
        metrics = {
            "reward/mean": _mean(reward),
            "reward/std": float(reward.std()) if len(reward) else float("nan"),
            "reward/frac_zero_std": float(self.zero_std_b.mean()),
            "reward/unscored": float(sum(grade.total is None for grade in grades)),
            "rollout/length_mean": float(self.counts_bg.mean()),
            "rollout/length_max": float(self.counts_bg.max()),
            "rollout/frac_truncated": _mean([c.finish_reason == "length" for c in said]),
            "rollout/entropy": _mean([c.entropy for c in said]),
        }
        # not every grade has all: components of a reward are known where it was given
        for name in dict.fromkeys(itertools.chain.from_iterable(g.by_name for g in grades)):
            given = [grade.by_name.get(name) for grade in grades]
            metrics[f"reward/{name}"] = _mean([value for value in given if value is not None])
        for status, name in LOST.items():
            metrics[f"reward/{name}"] = float(sum(grade.status == status for grade in grades))
        return metrics


def _joined(arrays: Sequence[np.ndarray], dtype) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """NaN of none."""
    return float(np.mean(values)) if len(values) else float("nan")
