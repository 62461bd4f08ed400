"""A rollout that is filled: groups are sampled until each host has the ones that it is to have.

    host 0   quota 2   [ kept low ]   [ kept . ]           -> 2
    host 1   quota 2   [ kept kept ]  [ .    . ] full      -> 2, and waits until all are
                        try 1          try 2

Which prompts a host has decides where their pixels are, so quotas are of hosts. All hosts know all
grades, and so ask for the same draws.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxr1.base.errors import UserError
from jaxr1.inputs.batch import EncodedPrompt
from jaxr1.inputs.exchange import Draw
from jaxr1.parallel import owner
from jaxr1.rewards.grades import Grade
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.filtering import Counts, OnlineFilter, Verdict
from jaxr1.sampling.sampler import Completion


class FilterError(UserError):
    """A rollout that its filter leaves too few groups of."""


@dataclasses.dataclass(frozen=True)
class Group:
    """The graded responses to one prompt.

    Attributes:
      draw: the prompt.
      said: the responses, one drawn greedily last where there is one.
      grades: theirs.
      verdict: what the filter says of it.
      views: {learner: the prompt as it sees it}; {} until it is looked at.
    """

    draw: Draw
    said: Sequence[Completion]
    grades: Sequence[Grade]
    verdict: Verdict = "kept"
    views: dict[str, EncodedPrompt] = dataclasses.field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As a journal keeps a group for the next step: what cannot be read from its text."""
        draw = self.draw
        said = [dataclasses.asdict(completion) for completion in self.said]
        for one in said:
            one |= {name: one[name].tolist() for name in ("token_ids", "logprobs")}
        place = {"position": draw.position, "row": draw.row, "host": draw.prompt.host}
        return place | {"said": said, "grades": [dataclasses.asdict(g) for g in self.grades]}

    @classmethod
    def read(cls, row: dict[str, Any], draw: Draw) -> Group:
        """What `row` has written, of a prompt that is there again."""
        said = []
        for one in row["said"]:
            ids = np.array(one["token_ids"], np.int32)
            logprobs = np.array(one["logprobs"], np.float32)
            said.append(Completion(**{**one, "token_ids": ids, "logprobs": logprobs}))
        return cls(draw, said, [Grade(**grade) for grade in row["grades"]])


def groups_of(episodes: Episodes) -> list[Group]:
    """The groups of graded episodes."""
    found = []
    for b, draw in enumerate(episodes.draws):
        views = {name: prompts[b] for name, prompts in episodes.views.items()}
        group = Group(draw, episodes.groups[b], episodes.grades[b], views=views)
        found.append(group)
    return found


def joined(groups: Sequence[Group]) -> Episodes:
    """Graded episodes of these groups, in order."""
    draws = [group.draw for group in groups]
    views = {name: [g.views[name] for g in groups] for name in (groups[0].views if groups else ())}
    episodes = Episodes.sampled(draws, [group.said for group in groups], views)
    episodes.grade([grade for group in groups for grade in group.grades])
    return episodes


class Filling:
    """The groups of a step, as they come.

    Attributes:
      kept: those that the step may learn from, in the order of their sampling.
      dropped: the others.
      counts: of both, without those that an earlier step has sampled.
      tries: rollouts so far.
    """

    def __init__(self, rule: OnlineFilter, prompts: int, group_size: int, carried: Sequence[Group]):
        """Begins with what an earlier step has left.

        Args:
          prompts: groups that the step is to have.
          group_size: responses of a group that are looked at.
        """
        self.rule, self.prompts, self.group_size = rule, prompts, group_size
        self.kept, self.dropped = list(carried), list[Group]()
        self.counts, self.tries = Counts(), 0
        self.quotas = collections.Counter(map(owner, range(prompts)))

    def missing(self) -> dict[int, int]:
        """{host: groups that it lacks}, without those that lack none."""
        have = collections.Counter(group.draw.prompt.host for group in self.kept)
        return {h: n - have[h] for h, n in sorted(self.quotas.items()) if n > have[h]}

    def turns(self, name: str) -> list[int]:
        """The hosts of the prompts to sample next; as many as are likely to be enough.

        Args:
          name: of the stage, for the message.

        Raises:
          FilterError: there were `max_tries` tries already.
        """
        missing = self.missing()
        if self.tries == self.rule.max_tries:
            raise FilterError(self._starved(name, sum(missing.values())))
        self.tries += 1
        # The first rollout has one prompt for each group. Then the share that was kept says how
        # many it takes; where none was, as many as a rollout has.
        rate = 1.0
        if self.counts.sampled:
            rate = max(self.counts.groups["kept"], 0.5) / self.counts.sampled
        asked = {host: math.ceil(count / rate) for host, count in missing.items()}
        turns: list[int] = []
        for turn in range(max(asked.values(), default=0)):
            turns += [host for host, count in asked.items() if turn < count]
        return turns[: self.prompts]

    def _starved(self, name: str, missing: int) -> str:
        rule = self.rule
        what = f"the mean of {rule.reward!r}" if rule.reward else "the mean reward"
        equal = " and values that differ" if rule.drop_equal else ""
        return (
            f"stage {name!r}: after {self.tries} tries {missing} of {self.prompts} groups are "
            f"missing; one is kept with {what} from {rule.low:g} to {rule.high:g}{equal}. Of "
            f"{self.counts.sampled} groups: {self.counts.told()}. Widen online_filter, choose "
            "easier or harder rows (python -m jaxr1.filter), or raise online_filter.max_tries"
        )

    def add(self, groups: Sequence[Group]) -> None:
        """Takes graded groups: those that the rule keeps, and the others."""
        for group in groups:
            values = self.rule.values(group.grades[: self.group_size])
            verdict = self.rule.verdict(values)
            self.counts.add(verdict, values)
            target = self.kept if verdict == "kept" else self.dropped
            target.append(dataclasses.replace(group, verdict=verdict))

    def chosen(self) -> list[Group]:
        """The step's groups, the i-th of the i-th host in turn."""
        by_host: dict[int, list[Group]] = {}
        for group in self.kept:
            by_host.setdefault(group.draw.prompt.host, []).append(group)
        queues = {host: iter(groups) for host, groups in by_host.items()}
        return [next(queues[owner(i)]) for i in range(self.prompts)]

    def surplus(self) -> list[Group]:
        """Groups that are kept beyond the step's; none where the step shrinks instead."""
        if not self.rule.refill:
            return []
        taken = {group.draw.position for group in self.chosen()}
        return [group for group in self.kept if group.draw.position not in taken]

    def metrics(self) -> dict[str, float]:
        """`filter/...`: what was sampled, its shares, tries, and groups beyond the step's."""
        own = {"filter/tries": float(self.tries), "filter/surplus": float(len(self.surplus()))}
        return self.counts.metrics() | own
