"""Calls reward functions in the style that they were written in, and reads what they return.

    style       given                                                   returned
    item        completion, example                                     number, None or dict
    batch       completions, examples                                   list of these
    trl         completions, prompts, columns of the rows: lists        list
    verl        data_source, solution_str, ground_truth, extra_info     number or dict with "score"
    easyr1      [{"response", "response_length", "ground_truth"}, ..]   dicts with "overall"
    openrlhf    queries, prompts, labels: lists                         dict with "rewards"

Sources: TRL's GRPO documentation, ms-swift's `ORM`, verl's custom reward functions, the
`reward_function` examples of EasyR1, OpenRLHF's `reward_func`.

A worker process has no trainer, no rendered prompt and no media. Queries are written in ChatML:

    <|im_start|>user\\n question <|im_end|>\\n<|im_start|>assistant\\n   response <|im_end|>
    '------------------------ prompt -----------------------------'   no end where it was cut
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxr1.rewards.styles import STYLES, Style, style_of
from jaxr1.rewards.types import Completion, Example

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
TOTALS = ("score", "overall", "reward")
"""The keys under which a dict may hold the reward; its other numbers are components."""

ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "label")
QUESTION_COLUMNS = ("question", "problem")

Scored = tuple[Any, dict[str, float]]
"""A reward as it was given, and its components by name."""


class NoTrainer:
    """Stands for `trainer_state`: whatever it is asked for, it says that it is not there."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"trainer_state.{name}: rewards run in worker processes, which know no trainer"
        )


class Function:
    """A loaded reward function, called as its style wants.

    Attributes:
      style: see `rewards.styles`.
      awaited: whether its calls return something to wait for.
    """

    def __init__(
        self, function: Callable[..., Any], options: Mapping[str, Any], style: str = ""
    ) -> None:
        """Looks at the function; a class becomes an instance of it.

        Args:
          function: what the file defines.
          options: keyword arguments of every call.
          style: a name of `STYLES`; "" is that it is to be recognised.
        """
        made: Any = function() if inspect.isclass(function) else function
        self._call: Callable[..., Any] = made
        self._options = dict(options)
        code = self._call if inspect.isroutine(self._call) else type(self._call).__call__
        self.awaited = any(map(inspect.iscoroutinefunction, (self._call, code)))
        self._parameters = _parameters(self._call)
        reward_type = getattr(code, "__globals__", {}).get("REWARD_TYPE")
        self.style: Style = STYLES.get(style) or style_of(self._parameters, reward_type)
        self._chats = style == "trl" or (
            self.style.name == "trl" and _reads_chats(code, self._parameters)
        )
        self._logged: list[tuple[str, Any]] = []

    @property
    def together(self) -> bool:
        """Whether it grades several items at the same time."""
        return self.style.batch or self.awaited

    # --- calling --------------------------------------------------------------------------------
    def one(self, completion: Completion, example: Example) -> Any:
        """What it returns for one item, where its style is one of single items."""
        if self.style.name == "verl":
            found = _verl(completion, example)
            return self._call(**self._taken(found))
        if self.style.name == "easyr1-item":
            return self._call(_easyr1(completion, example), **self._options)
        return self._call(completion, example, **self._options)

    def many(self, completions: Sequence[Completion], examples: Sequence[Example]) -> Any:
        """What it returns for all items in one call, where its style is one of lists.

        Raises:
          ValueError: it wants a column that no row has; names it, and those there are.
        """
        name, self._logged = self.style.name, []
        if name == "batch":
            return self._call(completions, examples, **self._options)
        pairs = list(zip(completions, examples, strict=True))
        if name == "easyr1":
            return self._call([_easyr1(*pair) for pair in pairs], **self._options)
        if name == "openrlhf":
            return self._call(**self._taken(_openrlhf(completions, examples)))
        if name == "verl-batch":
            rows = [_verl(*pair) for pair in pairs]
            plural = {f"{key}s": [row[key] for row in rows] for key in _VERL}
            return self._call(**self._taken(plural))
        return self._call(**self._taken(self._trl(completions, examples)))

    def _taken(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Those keywords that the function takes, and the options, which go before."""
        if any(p.kind is p.VAR_KEYWORD for p in self._parameters.values()):
            return {**found, **self._options}
        taken = {name: found[name] for name in found if name in self._parameters}
        return {**taken, **self._options}

    def _trl(
        self, completions: Sequence[Completion], examples: Sequence[Example]
    ) -> dict[str, Any]:
        """The keywords of TRL and ms-swift."""
        found: dict[str, Any] = dict(_columns(examples))
        prompts, said = [e.question for e in examples], [c.text for c in completions]
        found["prompts"] = [_turn("user", text) for text in prompts] if self._chats else prompts
        found["completions"] = [_turn("assistant", text) for text in said] if self._chats else said
        if all(completion.token_ids is not None for completion in completions):
            ids = [[int(i) for i in completion.token_ids or ()] for completion in completions]
            found["completion_ids"] = found["response_token_ids"] = ids
        found["trainer_state"] = NoTrainer()
        found["log_extra"] = found["log_metric"] = lambda name, given: self._logged.append(
            (str(name), given)
        )
        needed = [name for name, p in self._parameters.items() if _is_needed(p)]
        missing = [name for name in needed if name not in found and name not in self._options]
        if missing:
            there = ", ".join(sorted(set(found) - set(self.style.offered))) or "none"
            raise ValueError(
                f"it wants {missing[0]!r}, and no row has such a column; there are {there} "
                "(media are not sent to reward functions)"
            )
        return found

    # --- reading --------------------------------------------------------------------------------
    def read_one(self, given: Any) -> Scored:
        """What a call for one item returned, as a reward and its components.

        Raises:
          TypeError: a dict that does not say which of its values is the reward.
        """
        if self.style.name == "verl" and isinstance(given, tuple | list) and given:
            given = given[0]  # verl takes the first of several values
        return scored(given)

    def read_many(self, given: Any, count: int) -> list[Scored]:
        """What a call for all items returned, item by item.

        Raises:
          TypeError: there are not as many as items.
        """
        parts: list[dict[str, float]] = [{} for _ in range(count)]
        logged = self._logged
        if isinstance(given, Mapping):
            if "rewards" not in given:
                raise TypeError(f"it returned a dict without 'rewards': {sorted(given)}")
            logged = [*logged, *_other_values(given)]
            given = given["rewards"]
        for name, values in logged:
            _spread(parts, name, _plain(values))
        found = [scored(one) for one in _as_list(_plain(given), count)]
        return [(value, own | more) for (value, own), more in zip(found, parts, strict=True)]


def scored(given: Any) -> Scored:
    """A value, or a dict with a total, as a reward and its components.

    Raises:
      TypeError: a dict without one of `TOTALS`.
    """
    if not isinstance(given, Mapping):
        return given, {}
    total = next((key for key in TOTALS if key in given), None)
    if total is None:
        raise TypeError(
            f"it returned a dict with {sorted(map(str, given))}, without any of {list(TOTALS)}"
        )
    parts = {str(key): _finite(value) for key, value in given.items() if key != total}
    return given[total], {key: value for key, value in parts.items() if value is not None}


# --- what functions are given -------------------------------------------------------------------
_VERL = ("data_source", "solution_str", "ground_truth", "extra_info")


def _verl(completion: Completion, example: Example) -> dict[str, Any]:
    row = example.metadata
    model, extra = row.get("reward_model"), row.get("extra_info")
    given = model.get("ground_truth") if isinstance(model, Mapping) else None
    return {
        "data_source": row.get("data_source", source_name(example)),
        "solution_str": completion.text,
        "ground_truth": example.answer if given is None else given,
        "extra_info": extra if isinstance(extra, Mapping) else dict(row),
    }


def _easyr1(completion: Completion, example: Example) -> dict[str, Any]:
    return {
        **example.metadata,
        "response": completion.text,
        "response_length": completion.length,
        "ground_truth": example.answer,
    }


def _openrlhf(completions: Sequence[Completion], examples: Sequence[Example]) -> dict[str, Any]:
    queries = [query(c, e) for c, e in zip(completions, examples, strict=True)]
    return {
        "queries": queries,
        "prompts": [PROMPT.format(example.question) for example in examples],
        "labels": [example.answer for example in examples],
    }


def query(completion: Completion, example: Example) -> str:
    """Prompt and response in ChatML; without the end of the turn where the response was cut."""
    end = END if completion.finish_reason == "stop" else ""
    return PROMPT.format(example.question) + completion.text + end


def source_name(example: Example) -> str:
    """The data set of a row: its source without the number of the row."""
    return re.sub(r":\d+\Z", "", example.source)


def _columns(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """The columns of rows as lists; None where a row lacks one.

    Question and reference answer stand under each name that other trainers give them, unless the
    rows have a column that is called so.
    """
    names = dict.fromkeys(QUESTION_COLUMNS + ANSWER_COLUMNS)
    for example in examples:
        names |= dict.fromkeys(example.metadata)

    def value(example: Example, name: str) -> Any:
        if name in example.metadata:
            return example.metadata[name]
        if name in QUESTION_COLUMNS:
            return example.question
        return example.answer if name in ANSWER_COLUMNS else None

    return {name: [value(example, name) for example in examples] for name in names}


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


# --- what is known of a function ----------------------------------------------------------------
def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a callable without a signature, from C code
        return {}


def _is_needed(parameter: inspect.Parameter) -> bool:
    is_named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return is_named and parameter.default is parameter.empty


def _reads_chats(code: Any, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a function wants completions as chats of one turn, and not as plain text.

    Its annotation of `completions` says so (a list of lists of dicts, as TRL's own functions have
    it, or a list of str); without one, it does if it reads "content", a key of turns.
    """
    given = parameters.get("completions")
    hint = "" if given is None or given.annotation is given.empty else str(given.annotation)
    if re.search("(?i)dict", hint):
        return True
    if "str" in hint:
        return False
    return "content" in _constants(getattr(inspect.unwrap(code), "__code__", None))


def _constants(code: Any) -> set[Any]:
    """The constants of a code object, its nested functions included."""
    found: set[Any] = set()
    for constant in getattr(code, "co_consts", ()):
        found |= _constants(constant) if inspect.iscode(constant) else {constant}
    return found


# --- what functions return ----------------------------------------------------------------------
def _plain(given: Any) -> Any:
    """Arrays and tensors of whatever library as lists and numbers."""
    return given.tolist() if hasattr(given, "tolist") else given


def _as_list(given: Any, count: int) -> list[Any]:
    """The values of a call for all items.

    Raises:
      TypeError: there are not as many as items.
    """
    if isinstance(given, str | bytes | dict) or not hasattr(given, "__len__"):
        raise TypeError(
            f"it returned a {type(given).__name__}, which is no list of {count} numbers"
        )
    if len(given) != count:
        raise TypeError(f"it returned {len(given)} values for {count} completions")
    return list(given)


def _other_values(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a dict of a batch holds besides the rewards; `extra_logs` is a dict of more."""
    found: list[tuple[str, Any]] = []
    for name, values in given.items():
        if isinstance(values, Mapping):
            found += [(str(key), value) for key, value in values.items()]
        elif name != "rewards":
            found.append((str(name), values))
    return found


def _spread(parts: list[dict[str, float]], name: str, values: Any) -> None:
    """Gives each item its own of the values, or all the same one; what is no number is left out."""
    is_list = isinstance(values, list | tuple)
    if is_list and len(values) != len(parts):
        return
    for i, part in enumerate(parts):
        number = _finite(values[i] if is_list else values)
        if number is not None:
            part[name] = number


def _finite(value: Any) -> float | None:
    """A component as a float; None of text, and of what cannot be averaged."""
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
