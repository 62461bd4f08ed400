"""The styles of reward functions, one row each: ours, and those of other trainers.

A function is known by the names of its parameters; `rewards.foreign` calls it as its style wants.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Parameters = Mapping[str, inspect.Parameter]


@dataclass(frozen=True)
class Style:
    """How reward functions of one origin are called.

    Attributes:
      name: what `Reward.style` says.
      known_by: parameters that a function of this style has; () of one that is only named.
      call: for people.
      batch: one call is for up to 64 items.
      offered: the keywords that it is called with; () where it is called by position.
      columns: whether every column of the rows is offered too.
    """

    name: str
    known_by: tuple[str, ...]
    call: str
    batch: bool = False
    offered: tuple[str, ...] = ()
    columns: bool = False

    def fits(self, parameters: Parameters) -> bool:
        """Whether a function with these parameters is of this style."""
        if self.name == "batch":  # as TRL's begins, but for the second
            return tuple(parameters)[:2] == self.known_by
        return bool(self.known_by) and set(self.known_by) <= set(parameters)


_TRL = (
    "prompts",
    "completions",
    "completion_ids",
    "response_token_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
)
_TRL_CALL = "def f(completions, prompts, **columns) -> list"
_OPENRLHF = ("queries", "prompts", "labels")

STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style("item", (), "def f(completion, example) -> float | None"),
        Style(
            "batch", ("completions", "examples"), "def f(completions, examples) -> list", batch=True
        ),
        Style("trl", ("completions",), _TRL_CALL, batch=True, offered=_TRL, columns=True),
        Style("ms-swift", (), _TRL_CALL, batch=True, offered=_TRL, columns=True),
        Style(
            "verl",
            ("solution_str",),
            "def f(data_source, solution_str, ground_truth, extra_info) -> float | dict",
            offered=("data_source", "solution_str", "ground_truth", "extra_info"),
        ),
        Style(
            "verl-batch",
            ("solution_strs",),
            "def f(data_sources, solution_strs, ground_truths, extra_infos) -> list",
            batch=True,
            offered=("data_sources", "solution_strs", "ground_truths", "extra_infos"),
        ),
        Style("easyr1", ("reward_inputs",), "def f(reward_inputs) -> list[dict]", batch=True),
        Style("easyr1-item", ("reward_input",), "def f(reward_input) -> dict"),
        Style(
            "openrlhf",
            _OPENRLHF,
            "def f(queries, prompts, labels) -> dict",
            batch=True,
            offered=_OPENRLHF,
        ),
    )
}
"""All of them. Any may be `async def`; calls for one item then wait for each other."""

_BY_TYPE = {"batch": "easyr1", "sequential": "easyr1-item"}
SIGNATURE = "def f(completion, example) -> float | None, or one of another trainer's style"


def style_of(parameters: Parameters, reward_type: object = None) -> Style:
    """The style of a function; "item" where its parameters are those of no other.

    Args:
      parameters: of its signature.
      reward_type: what its file calls REWARD_TYPE, as EasyR1's do: "batch" or "sequential".
    """
    for style in STYLES.values():
        if style.fits(parameters):
            return style
    if isinstance(reward_type, str) and reward_type in _BY_TYPE:
        return STYLES[_BY_TYPE[reward_type]]
    return STYLES["item"]


def check_style(name: str) -> None:
    """Raises ValueError where there is no style of this name; "" is that it is to be recognised."""
    if name and name not in STYLES:
        raise ValueError(f"style must be '' or one of {', '.join(STYLES)}, got {name!r}")


def check_call(
    signature: inspect.Signature, where: str, options: Mapping[str, Any], style: Style
) -> None:
    """Checks that a function can be called as its style wants, with the options.

    Args:
      signature: of the function.
      where: how the message calls the function.
      options: keyword arguments of every call.
      style: of the function.

    Raises:
      ValueError: it cannot; says how it would be called, and what all styles look like.
    """
    try:
        if style.offered:
            _bind_keywords(signature, options, style)
        else:
            first = [None] if style.name.startswith("easyr1") else [None, None]
            signature.bind(*first, **options)
    except TypeError as error:
        given = "".join(f", {key}=..." for key in options)
        call = style.call.removeprefix("def ").partition(")")[0]
        raise ValueError(
            f"{where} cannot be called as {call}{given}): {error}. It has the signature "
            f"{signature}. Functions are known by the names of their parameters: {described()}"
        ) from None


def described() -> str:
    """All styles in one line, for messages."""
    shown = [f"{s.call} ({s.name})" for s in STYLES.values() if s.known_by or s.name == "item"]
    return "; ".join(shown)


def _bind_keywords(signature: inspect.Signature, options: Mapping[str, Any], style: Style) -> None:
    """Raises TypeError where the keywords of a style and the options are not what is taken."""
    parameters = signature.parameters
    given = set(options) | {name for name in style.offered if name in parameters}
    for name, parameter in parameters.items():
        is_needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if style.columns and is_needed:  # whether the rows have it shows when they come
            given.add(name)
    signature.bind(**dict.fromkeys(given))
