"""The built-in rewards, one row each: a new one is a file of its own and a row in this table."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args


@dataclass(frozen=True)
class BuiltIn:
    """Where a built-in reward is, and what it is able to do.

    Its options are the keyword-only parameters of its function; one without a default must be
    given. The annotation of each says what it accepts: `Literal[...]`, `bool`, `int`, `float` or
    `str`.

    Attributes:
      module: the module of its function, imported only when the reward is used.
      function: the function's name in that module.
      needs_reference: whether it compares with the reference answer, and so can say nothing where
        that cannot be parsed.
      uses_math: whether it may call math-verify, whose slow import no item is charged for.
      reading: the name of the function, of the same arguments, that says what the reward reads.
      together: whether it takes lists of completions and examples, and returns one.
    """

    module: str
    function: str
    reading: str
    needs_reference: bool = False
    uses_math: bool = False
    together: bool = False

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        return getattr(importlib.import_module(self.module), self.function)

    def explain(self) -> Callable[..., str]:
        """The function that says in words what the reward reads in a completion."""
        return getattr(importlib.import_module(self.module), self.reading)

    def options(self) -> dict[str, Any]:
        """Its options by name, each with its annotation, in the order of the signature."""
        return {p.name: p.annotation for p in self._parameters()}

    def required(self) -> list[str]:
        """The options that have no default."""
        return [p.name for p in self._parameters() if p.default is p.empty]

    def _parameters(self) -> list[inspect.Parameter]:
        parameters = inspect.signature(self.load(), eval_str=True).parameters.values()
        return [p for p in parameters if p.kind is p.KEYWORD_ONLY]


BUILT_IN: dict[str, BuiltIn] = {
    "accuracy": BuiltIn(
        "jaxr1.rewards.accuracy",
        "accuracy_reward",
        "accuracy_reading",
        needs_reference=True,
        uses_math=True,
    ),
    "format": BuiltIn("jaxr1.rewards.format", "format_reward", "format_reading"),
    "soft_overlong": BuiltIn("jaxr1.rewards.length", "soft_overlong_reward", "length_reading"),
    "cosine": BuiltIn(
        "jaxr1.rewards.length",
        "cosine_reward",
        "length_reading",
        needs_reference=True,
        uses_math=True,
    ),
    "stop_properly": BuiltIn("jaxr1.rewards.length", "stop_properly_reward", "length_reading"),
    "repetition": BuiltIn("jaxr1.rewards.repetition", "repetition_reward", "repetition_reading"),
    "format_result": BuiltIn(
        "jaxr1.rewards.format_result",
        "format_result_reward",
        "format_result_reading",
        needs_reference=True,
        uses_math=True,
    ),
    "label": BuiltIn("jaxr1.rewards.label", "label_reward", "label_reading"),
    "iou": BuiltIn("jaxr1.rewards.grounding", "iou_reward", "boxes_reading"),
    "detection": BuiltIn("jaxr1.rewards.grounding", "detection_reward", "boxes_reading"),
    "numeric": BuiltIn("jaxr1.rewards.tasks", "numeric_reward", "matching_reading"),
    "yes_no": BuiltIn("jaxr1.rewards.tasks", "yes_no_reward", "matching_reading"),
    "choice_text": BuiltIn("jaxr1.rewards.tasks", "choice_text_reward", "matching_reading"),
    "all_match": BuiltIn("jaxr1.rewards.tasks", "all_match_reward", "matching_reading"),
    "json_fields": BuiltIn("jaxr1.rewards.tasks", "json_fields_reward", "matching_reading"),
    "sokoban": BuiltIn("jaxr1.rewards.sokoban", "sokoban_reward", "sokoban_reading"),
    "remote": BuiltIn("jaxr1.rewards.remote", "remote_reward", "remote_reading", together=True),
}
"""The rewards that a config may name without a file."""

_KINDS: dict[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a string"),
}


def name_of(function: Callable[..., Any]) -> str | None:
    """Which built-in reward a function object is; None for any other function."""
    home = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    for name, reward in BUILT_IN.items():
        if home == (reward.module, reward.function):
            return name
    return None


def check_builtin(name: str, options: Mapping[str, Any]) -> None:
    """Refuses a name that is not in the table, and options that its reward does not take.

    Raises:
      ValueError: unknown name or option (near misses are named), a value that is not accepted, or
        an option that is missing.
    """
    if name not in BUILT_IN:
        hint = _did_you_mean(name, BUILT_IN)
        if name.endswith(".py"):
            hint = f" (a function in a file is '{name}:function_name')"
        raise ValueError(
            f"no built-in reward is called {name!r}{hint}; built in are "
            f"{', '.join(map(repr, BUILT_IN))}, and your own is 'path.py:function'"
        )
    accepted = BUILT_IN[name].options()
    for key, value in options.items():
        if key not in accepted:
            hint = _did_you_mean(key, accepted)
            raise ValueError(
                f"the built-in reward {name!r} has no option {key!r}{hint}; "
                f"it has {', '.join(accepted) or 'none'}"
            )
        if wanted := wanted_instead(accepted[key], value):
            raise ValueError(f"the built-in reward {name!r}: {key} must be {wanted}, got {value!r}")
    for key in BUILT_IN[name].required():
        if key not in options:
            wanted = wanted_instead(accepted[key], None)
            raise ValueError(f"the built-in reward {name!r} needs the option {key!r}, {wanted}")


def wanted_instead(annotation: Any, value: object) -> str:
    """What an option of this annotation must be, for a message; "" where the value fits."""
    choices = (True, False) if annotation is bool else get_args(annotation)
    if choices:
        return "" if value in choices else f"one of {', '.join(map(repr, choices))}"
    kind, words = _KINDS[annotation]
    # Python counts True as a whole number; who writes it for one has mistaken the option
    return "" if isinstance(value, kind) and not isinstance(value, bool) else words


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
