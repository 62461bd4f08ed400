"""The hard format-result reward of Vision-R1: a right answer counts in the right form only."""

from __future__ import annotations

from jaxr1.rewards.accuracy import accuracy_reading, accuracy_reward
from jaxr1.rewards.format import Variant, format_reading, format_reward
from jaxr1.rewards.reading.answers import extract_answer
from jaxr1.rewards.types import Completion, Example


def format_result_reward(
    completion: Completion,
    example: Example,
    *,
    variant: Variant = "whitespace",
    label: str = "",
) -> dict[str, float] | None:
    """1 if both the form and the answer are right, else 0 (Vision-R1, arXiv:2503.06749, HFRRF).

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: `answer` is the reference.
      variant: the form, an option of the format reward.
      label: words that stand before the value in the answer block, "Final Answer:" in Vision-R1; an
        answer without them is wrong. "" reads the whole block. Letter case is not looked at.

    Returns:
      {"score", "format", "accuracy"}; None where the reference cannot be parsed.
    """
    right = accuracy_reward(_labelled(completion, label), example, tail=False)
    if right is None:
        return None
    form = format_reward(completion, variant=variant)
    return {"score": form * right, "format": form, "accuracy": right}


def format_result_reading(
    completion: Completion,
    example: Example,
    *,
    variant: Variant = "whitespace",
    label: str = "",
) -> str:
    """What the reward finds and reads, for a message; arguments as of it."""
    read = accuracy_reading(_labelled(completion, label), example, tail=False)
    return f"{format_reading(completion, variant=variant)}, and {read}"


def _labelled(completion: Completion, label: str) -> Completion:
    """The completion with no more in its answer block than what follows the label."""
    if not label:
        return completion
    answer = extract_answer(completion.text) or ""
    at = answer.casefold().rfind(label.casefold())
    value = answer[at + len(label) :] if at >= 0 else ""
    return Completion(f"<answer>{value}</answer>", completion.finish_reason, completion.length)
