"""Which reward functions a run uses, and how a worker process finds them again.

    "accuracy", "format", ...     built in, see `rewards.builtin`
    "my_rewards.py:brevity"       a function at the top level of a file
    brevity                       a Python function object: its file where it has one, else
                                  (notebook) its source is copied

Nothing is pickled and no user file is executed in the main process: files are read as syntax trees
to check that the function exists and can be called, and workers import them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxr1.rewards.builtin import BUILT_IN, check_builtin, name_of
from jaxr1.rewards.notebook import check_function, describe_function, locate
from jaxr1.rewards.source import check_file

OptionValue = bool | int | float | str


@dataclass(frozen=True)
class ResolvedReward:
    """A reward that a worker can load: everything here is JSON.

    Attributes:
      name: the key of its values in grades and metrics (`reward/<name>`).
      weight: its factor in the total.
      path: absolute path of the file that defines it; "" for a built-in one.
      function: the function's name in that file, or the built-in's name.
      options: keyword arguments of every call.
      together: it grades several items at the same time, so that they are best sent together.
    """

    name: str
    weight: float
    path: str
    function: str
    options: dict[str, OptionValue]
    together: bool = False

    @property
    def where(self) -> str:
        """The function as error messages name it."""
        return f"{self.function} in {self.path}" if self.path else f"built-in {self.function}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weight": self.weight,
            "path": self.path,
            "function": self.function,
            "options": self.options,
        }


@dataclass(frozen=True)
class Reward:
    """One component of the reward of a stage.

    Attributes:
      function: "accuracy", "format" or another of `rewards.builtin`, "path.py:function" (relative
        to the working directory, or absolute), or a Python function with the signature
        `def f(completion, example) -> float | None`; see `jaxr1.rewards.types`. With the parameters
        `completions, examples` it takes lists and returns one; an `async def` grades several items
        at the same time.
      weight: its factor in the total.
      name: its name in metrics and tables; by default the function's.
      options: keyword arguments for the function, as a mapping or as pairs, e.g. {"variant":
        "lenient"} for "format".

    Raises:
      ValueError: unknown built-in or option, a bad weight, a function object that cannot be sent to
        a worker.
    """

    function: str | Callable[..., float | None] = "accuracy"
    weight: float = 1.0
    name: str = ""
    options: tuple[tuple[str, OptionValue], ...] = ()

    def __post_init__(self) -> None:
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        # a tuple: the dataclass stays hashable and frozen all the way down
        object.__setattr__(self, "options", tuple((str(key), value) for key, value in pairs))
        self._check_values()
        if callable(self.function):
            builtin = name_of(self.function)
            if builtin is None:
                check_function(self.function, dict(self.options))
            else:
                object.__setattr__(self, "function", builtin)
        elif not isinstance(self.function, str):
            raise ValueError(
                f"a reward's function must be a name or a Python function, got {self.function!r}"
            )
        if isinstance(self.function, str) and ":" not in self.function:
            check_builtin(self.function, dict(self.options))

    def _check_values(self) -> None:
        is_number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not is_number or not math.isfinite(self.weight):
            raise ValueError(
                f"reward {self.label!r}: weight must be a finite number, got {self.weight!r}"
            )
        for key, value in self.options:
            if not isinstance(value, bool | int | float | str):
                raise ValueError(
                    f"reward {self.label!r}: option {key!r} must be a number, string or bool, "
                    f"got {value!r}"
                )

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the reference answer, and so needs one that can be parsed."""
        builtin = BUILT_IN.get(self.function) if isinstance(self.function, str) else None
        return builtin is not None and builtin.needs_reference

    @property
    def label(self) -> str:
        """The name in metrics: the given one, else the function's."""
        if self.name:
            return self.name
        if callable(self.function):
            return getattr(self.function, "__name__", "reward")
        return str(self.function).rpartition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """Names only, for the resolved config of a run: a function object becomes file and name."""
        function = self.function
        return {
            "function": describe_function(function) if callable(function) else function,
            "weight": self.weight,
            "name": self.label,
            "options": dict(self.options),
        }

    def resolve(self, directory: str | os.PathLike[str]) -> ResolvedReward:
        """Finds the function and checks that it can be called.

        Args:
          directory: where the source of a function without a file of its own (notebook, interactive
            session) is written; made when needed.

        Raises:
          ValueError: the file or function is missing (near misses are named), the file has a syntax
            error, the function cannot be called with (completion, example, **options), or a
            notebook function uses something that a worker process cannot have; each says which file
            and function, and what to do.
        """
        options = dict(self.options)
        if callable(self.function):
            path, name = locate(self.function, Path(directory))
        elif ":" not in self.function:
            return ResolvedReward(self.label, float(self.weight), "", self.function, options)
        else:
            text, _, name = self.function.rpartition(":")
            path = Path(text).expanduser().absolute()
        together = check_file(path, name, options)
        return ResolvedReward(self.label, float(self.weight), str(path), name, options, together)


def check_labels(rewards: Sequence[Reward], path: str = "", taken: Sequence[str] = ()) -> None:
    """Checks that each reward has a name of its own.

    Args:
      rewards: of one stage or evaluation.
      path: what the message begins with.
      taken: names that none may have.

    Raises:
      ValueError: two have one name, or one has a name in `taken`.
    """
    names = [reward.label for reward in rewards]
    if wrong := [name for name in names if name in taken]:
        raise ValueError(f"{path}a reward may not be called {wrong[0]!r}: give it another name")
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{path}two rewards are called {', '.join(double)}: give one of them another name"
        )
