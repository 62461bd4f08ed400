"""The format reward: did the response reason inside think tags and then answer inside answer tags?

    strict       <think>...</think><answer>...</answer>
    whitespace   _<think>...</think>_<answer>...</answer>_              _ is any whitespace
    lenient      any text <think>...</think> any text <answer>...</answer> any text
    tags         any text <think>...</think>_<answer>...</answer> any text
    base         any text <think>...</think>_<answer>...</answer>_           300 characters thought

The strictness levels of the published systems (strict: LMM-R1; whitespace, the default: R1-Omni,
VisualThinker-R1-Zero; tags, base: MM-Eureka, of an instructed and of a base model). In each of them
the four tags occur exactly once, in this order, and neither block is empty.
"""

from __future__ import annotations

from typing import Literal, get_args

from jaxr1.rewards.types import Completion, Example

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
Variant = Literal["strict", "whitespace", "lenient", "tags", "base"]
BASE_THOUGHT = 300
"""Characters that a base model has to think (MM-Eureka, arXiv:2503.07365)."""


def format_reward(
    completion: Completion, example: Example | None = None, *, variant: Variant = "whitespace"
) -> float:
    """1.0 if the whole completion has the asked form, else 0.0.

    A completion cut at the length limit is 0.0 whatever it holds: it did not end where its author
    meant to end it.

    Args:
      completion: text with the template's prefix, and the finish reason.
      example: not used; reward functions share one signature.
      variant: one of those drawn at the top of this file.

    Returns:
      1.0 or 0.0, in linear time.

    Raises:
      ValueError: unknown variant.
    """
    if variant not in get_args(Variant):
        raise ValueError(
            f"format reward: variant must be one of {', '.join(get_args(Variant))}, got {variant!r}"
        )
    text = completion.text
    if completion.finish_reason == "length" or any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    think, think_end, answer, answer_end = (text.find(tag) for tag in TAGS)
    if not think < think_end < answer < answer_end:
        return 0.0
    thought = text[think + len(TAGS[0]) : think_end]
    answered = text[answer + len(TAGS[2]) : answer_end]
    if not thought.strip() or not answered.strip():
        return 0.0
    between = text[think_end + len(TAGS[1]) : answer]
    before, after = text[:think], text[answer_end + len(TAGS[3]) :]
    fits = {
        "strict": not before + between + after,
        "whitespace": not (before + between + after).strip(),
        "lenient": True,
        "tags": not between.strip(),
        "base": not (between + after).strip() and len(thought.strip()) >= BASE_THOUGHT,
    }
    return float(fits[variant])


def format_reading(
    completion: Completion, example: Example | None = None, *, variant: Variant = "whitespace"
) -> str:
    """What the format reward finds in a completion, for a message; arguments as of the reward."""
    if format_reward(completion, example, variant=variant):
        return "finds the form"
    if completion.finish_reason == "length":
        return "finds a response that was cut"
    wrong = [tag for tag in TAGS if completion.text.count(tag) != 1]
    if len(wrong) == len(TAGS) and not any(tag in completion.text for tag in TAGS):
        return f"finds none of {' '.join(TAGS)}"
    if wrong:
        return f"does not find {' '.join(wrong)} once each"
    return f"finds the tags, but not in the form {variant!r}"
