"""Warnings of a run that goes on but teaches nothing: counted in its progress, told on the console.

equal       all responses of every group have one reward, so that all advantages are 0
truncated   all responses are cut at the length limit
unscored    no response has a reward
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxr1.base.jsonl import read_jsonl
from jaxr1.inputs.wording import Wording
from jaxr1.parallel import is_main
from jaxr1.rewards.builtin import BUILT_IN
from jaxr1.rewards.format import TAGS
from jaxr1.rewards.spec import Reward
from jaxr1.rewards.types import Completion, Example
from jaxr1.run.console import format_number
from jaxr1.run.opening import Opened
from jaxr1.run.state import Progress
from jaxr1.stages import Stage

PATIENCE = 5  # steps in a row before the first warning
AGAIN = 50  # steps between two warnings of a kind while it lasts


def count_streaks(
    stage: Stage, before: Mapping[str, int], metrics: Mapping[str, float]
) -> dict[str, int]:
    """{kind: steps in a row, up to this one}, of what a step's metrics show.

    Args:
      stage: of the step.
      before: what this returned for the step before.
      metrics: of the step.
    """
    if "reward/mean" not in metrics:  # a stage without rewards
        return {}
    is_unscored = math.isnan(metrics["reward/mean"])
    advantage = getattr(stage, "advantage", None)
    shown = {
        "unscored": is_unscored,
        "truncated": metrics["rollout/frac_truncated"] == 1,
        # With a baseline from elsewhere equal rewards of a group do teach.
        "equal": not is_unscored
        and metrics["reward/frac_zero_std"] == 1
        and getattr(advantage, "needs_group", True),
    }
    return {kind: before.get(kind, 0) + 1 if holds else 0 for kind, holds in shown.items()}


def is_due(steps: int) -> bool:
    """Whether a kind that has lasted so many steps is told now."""
    return steps >= PATIENCE and (steps - PATIENCE) % AGAIN == 0


def warn(at: Opened, stage: Stage, progress: Progress, metrics: Mapping[str, float]) -> None:
    """Tells what has lasted too long: with one response, what was read in it, what to change.

    The main host does, which has the rollouts.
    """
    if not is_main():
        return
    for kind, steps in progress.streaks.items():
        if is_due(steps):
            file = at.dir / "rollouts" / f"{stage.name}_{progress.step}.jsonl"
            # One that ended by itself says more; `min` takes the first.
            row = min(read_jsonl(file), key=lambda row: row["finish_reason"] == "length")
            lines = _ABOUT[kind](at, stage, progress, metrics, row)
            said = [f"warning: {stage.name}: for {steps} steps {lines[0]}", *lines[1:]]
            at.console.print("\n  ".join(said))


def _equal(at: Opened, stage: Any, progress: Progress, metrics: Mapping, row: dict) -> list[str]:
    """All rewards of each group are equal."""
    lines = ["all responses of a group had equal rewards: nothing is learned from them"]
    lines += _shown(stage, row)
    full = [metrics.get(f"reward/{reward.label}") == 1 for reward in stage.rewards]
    if all(full):
        return [*lines, "every reward is full: take harder rows, or end the stage"]
    missed = _missed(stage, row)
    if "format" in missed and _asks_for_tags(at):
        lines.append("the tags are asked for, but not given: teach them by an Sft stage")
    elif "format" in missed:
        lines.append(
            "no option of the run asks for tags: --processor.system r1 or "
            "--processor.question-template think_answer does, or teach them by an Sft stage"
        )
    if not missed.get("accuracy", {}).get("tail", True):
        lines.append('accuracy reads tags and boxes alone (its option "tail" is off)')
    return [
        *lines,
        "else the rows are too hard or too easy for this model, or its responses too much alike "
        f"(temperature {stage.temperature:g}, group_size {stage.group_size})",
    ]


def _truncated(
    at: Opened, stage: Any, progress: Progress, metrics: Mapping, row: dict
) -> list[str]:
    """No response ends by itself."""
    return [
        "all responses were cut at the length limit: they never end, and an answer that comes last "
        "is never read",
        *_shown(stage, row),
        f"give them more than {stage.max_response_tokens} tokens "
        f"(--stages.{progress.stage}.max-response-tokens), ask for short answers "
        "(--processor.question-template short), or see that the template is the model's own "
        "(--processor.template)",
    ]


def _unscored(at: Opened, stage: Any, progress: Progress, metrics: Mapping, row: dict) -> list[str]:
    """No response has a reward."""
    why = row["detail"] or "every reward function returned None"
    return [
        "no response had a reward: nothing is learned",
        *_shown(stage, row),
        f"its grade is {row['status']!r}: {why}",
        "mend the reward functions (names and options are in config.json, all reasons in "
        f"{at.dir / 'dropped.jsonl'}), or give them more than {stage.reward_timeout_s:g} s "
        f"(--stages.{progress.stage}.reward-timeout-s)",
    ]


_ABOUT = {"equal": _equal, "truncated": _truncated, "unscored": _unscored}


def _shown(stage: Any, row: dict) -> list[str]:
    """A response, and what each reward says of it."""
    lines = [f"a response to {row['prompt']!r:.80} ({row['source']}): {row['response']!r:.200}"]
    for reward in stage.rewards:
        value = row["rewards"].get(reward.label)
        lines.append(f"{reward.label} {format_number(value)}{_reading(reward, row)}")
    return lines


def _reading(reward: Reward, row: dict) -> str:
    """What a built-in reward reads in a response."""
    builtin = BUILT_IN.get(reward.function) if isinstance(reward.function, str) else None
    if builtin is None:
        return ""
    completion = Completion(row["response"], row["finish_reason"], row["length"])
    example = Example(row["prompt"], row["answer"], row["source"])
    return f": {builtin.explain()(completion, example, **dict(reward.options))}"


def _missed(stage: Any, row: dict) -> dict[str, dict[str, Any]]:
    """{name of a built-in reward that a response does not get: the reward's options}."""
    zero = [reward for reward in stage.rewards if row["rewards"].get(reward.label) == 0]
    return {reward.function: dict(reward.options) for reward in zero if reward.function in BUILT_IN}


def _asks_for_tags(at: Opened) -> bool:
    """Whether an option of the run names the tags; rows may do so themselves."""
    wording: Wording = at.processor.wording
    return any(tag in wording.system + wording.question for tag in TAGS)
