"""Which reward functions a run uses, and how a worker process finds them again.

    "accuracy", "format", ...     built in, see `rewards.builtin`
    "my_rewards.py:brevity"       a function at the top level of a file
    "http://host:5000/get_reward" a service, see `rewards.remote`
    brevity                       a Python function object: its file where it has one, else
                                  (notebook) its source is copied
    Route("task", {...})          one of several, by a column of the row

Nothing is pickled and no user file is executed in the main process: files are read as syntax trees
to check that the function exists and can be called, and workers import them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxr1.rewards.applying import OTHERWISE
from jaxr1.rewards.builtin import BUILT_IN, check_builtin, name_of
from jaxr1.rewards.notebook import check_function, describe_function, locate
from jaxr1.rewards.source import check_file
from jaxr1.rewards.styles import check_style

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
      style: the one that was named, see `rewards.styles`; "" is recognised when it is loaded.
      together: it grades several items at the same time, so that they are best sent together.
      reads_ids: it asks for the token ids of responses.
      column: of the rows, by which `routes` are chosen.
      routes: {value of the column: reward}, where there are several.
    """

    name: str
    weight: float
    path: str
    function: str
    options: dict[str, OptionValue]
    style: str = ""
    together: bool = False
    reads_ids: bool = False
    column: str = ""
    routes: dict[str, ResolvedReward] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The function as error messages name it."""
        if self.routes:
            return " or ".join(dict.fromkeys(route.where for route in self.routes.values()))
        return f"{self.function} in {self.path}" if self.path else f"built-in {self.function}"

    @property
    def files(self) -> list[str]:
        """The files of its functions."""
        found = [self.path] if self.path else []
        for route in self.routes.values():
            found += route.files
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weight": self.weight,
            "path": self.path,
            "function": self.function,
            "options": self.options,
            "style": self.style,
            "column": self.column,
            "routes": {value: route.to_json() for value, route in self.routes.items()},
        }


@dataclass(frozen=True)
class Route:
    """Which reward a row gets, by one of its columns: one component of several functions.

    Attributes:
      column: of the rows. "source" is the name of the data set (for rows of files the path of the
        file), where no column is called so.
      rewards: {value of the column as text: a `Reward`, or what its `function` may be}, as a
        mapping or as pairs. Names and weights of these are not looked at.
      otherwise: for other values, and for rows without the column; None makes these errors.

    Raises:
      ValueError: no reward, or one that routes on.
    """

    column: str
    rewards: Mapping[str, Any] | tuple[tuple[str, Any], ...]
    otherwise: Any = None

    def __post_init__(self) -> None:
        given = self.rewards.items() if isinstance(self.rewards, Mapping) else self.rewards
        pairs = tuple((str(value), _as_reward(reward)) for value, reward in given)
        object.__setattr__(self, "rewards", pairs)
        if self.otherwise is not None:
            object.__setattr__(self, "otherwise", _as_reward(self.otherwise))
        if not self.branches:
            raise ValueError(f"Route({self.column!r}): there is no reward to choose from")
        for value, reward in self.branches.items():
            if isinstance(reward.function, Route):
                raise ValueError(f"Route({self.column!r}): {value!r} routes on; give a reward")

    @property
    def branches(self) -> dict[str, Reward]:
        """{value: reward}; `OTHERWISE` for all other values."""
        other = {} if self.otherwise is None else {OTHERWISE: self.otherwise}
        return dict(self.rewards) | other

    def to_json(self) -> dict[str, Any]:
        routes = {value: reward.to_json() for value, reward in self.branches.items()}
        return {"column": self.column, "routes": routes}


def _as_reward(given: Any) -> Reward:
    return given if isinstance(given, Reward) else Reward(given)


@dataclass(frozen=True)
class Reward:
    """One component of the reward of a stage.

    Attributes:
      function: "accuracy", "format" or another of `rewards.builtin`, "path.py:function" (relative
        to the working directory, or absolute), the address of a service ("http://...", see
        `rewards.remote`), a `Route`, or a Python function with the signature
        `def f(completion, example) -> float | None`; see `jaxr1.rewards.types`. With the parameters
        `completions, examples` it takes lists and returns one; an `async def` grades several items
        at the same time. Functions written for other trainers are known by the names of their
        parameters (`rewards.styles`).
      weight: its factor in the total.
      name: its name in metrics and tables; by default the function's.
      options: keyword arguments for the function, as a mapping or as pairs, e.g. {"variant":
        "lenient"} for "format".
      style: how the function is called, a name of `rewards.styles.STYLES`; "" is that it is
        recognised. "trl" gives completions as chats of one turn, "ms-swift" as plain text.

    Raises:
      ValueError: unknown built-in or option, a bad weight, a function object that cannot be sent to
        a worker.
    """

    function: str | Callable[..., Any] | Route = "accuracy"
    weight: float = 1.0
    name: str = ""
    options: tuple[tuple[str, OptionValue], ...] = ()
    style: str = ""

    def __post_init__(self) -> None:
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        # a tuple: the dataclass stays hashable and frozen all the way down
        object.__setattr__(self, "options", tuple((str(key), value) for key, value in pairs))
        self._check_values()
        if isinstance(self.function, str) and self.function.startswith(("http://", "https://")):
            object.__setattr__(self, "options", (("url", self.function), *self.options))
            object.__setattr__(self, "function", "remote")
        if isinstance(self.function, Route):
            if self.options:
                raise ValueError(f"reward {self.label!r}: a Route's rewards have the options")
        elif callable(self.function):
            builtin = name_of(self.function)
            if builtin is None:
                check_function(self.function, dict(self.options), self.style)
            else:
                object.__setattr__(self, "function", builtin)
        elif not isinstance(self.function, str):
            raise ValueError(
                f"a reward's function must be a name or a Python function, got {self.function!r}"
            )
        if isinstance(self.function, str) and ":" not in self.function:
            if self.style:
                raise ValueError(f"reward {self.label!r}: a built-in reward takes no style")
            check_builtin(self.function, dict(self.options))

    def _check_values(self) -> None:
        check_style(self.style)
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
        if isinstance(self.function, Route):
            return any(reward.needs_reference for reward in self.function.branches.values())
        builtin = BUILT_IN.get(self.function) if isinstance(self.function, str) else None
        return builtin is not None and builtin.needs_reference

    @property
    def label(self) -> str:
        """The name in metrics: the given one, else the function's."""
        if self.name:
            return self.name
        if isinstance(self.function, Route):
            return "route"
        if callable(self.function):
            return getattr(self.function, "__name__", "reward")
        return str(self.function).rpartition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """Names only, for the resolved config of a run: a function object becomes file and name."""
        function = self.function
        shown: Any = describe_function(function) if callable(function) else function
        row = {
            "function": function.to_json() if isinstance(function, Route) else shown,
            "weight": self.weight,
            "name": self.label,
            "options": dict(self.options),
        }
        return row | ({"style": self.style} if self.style else {})

    def resolve(self, directory: str | os.PathLike[str]) -> ResolvedReward:
        """Finds the function and checks that it can be called.

        Args:
          directory: where the source of a function without a file of its own (notebook, interactive
            session) is written; made when needed.

        Raises:
          ValueError: the file or function is missing (near misses are named), the file has a syntax
            error, the function cannot be called as its style wants, or a notebook function uses
            something that a worker process cannot have; each says which file and function, and what
            to do.
        """
        options, weight = dict(self.options), float(self.weight)
        if isinstance(self.function, Route):
            routes = {v: r.resolve(directory) for v, r in self.function.branches.items()}
            return ResolvedReward(
                self.label,
                weight,
                "",
                "route",
                {},
                together=any(route.together for route in routes.values()),
                reads_ids=any(route.reads_ids for route in routes.values()),
                column=self.function.column,
                routes=routes,
            )
        if callable(self.function):
            path, name = locate(self.function, Path(directory))
        elif ":" not in self.function:
            together = BUILT_IN[self.function].together
            return ResolvedReward(self.label, weight, "", self.function, options, together=together)
        else:
            text, _, name = self.function.rpartition(":")
            path = Path(text).expanduser().absolute()
        checked = check_file(path, name, options, self.style)
        return ResolvedReward(
            self.label,
            weight,
            str(path),
            name,
            options,
            self.style,
            checked.together,
            checked.reads_ids,
        )


def check_labels(rewards: Sequence[Reward], path: str = "", taken: Sequence[str] = ()) -> None:
    """Checks that each reward has a name of its own.

    Args:
      rewards: of one stage or evaluation.
      path: what the message begins with.
      taken: names that none may have.

    Raises:
      ValueError: two have one name, or one has a name in `taken`, or one with "/", which stands
        between the names of a reward and of its components.
    """
    names = [reward.label for reward in rewards]
    if parts := [name for name in names if "/" in name]:
        raise ValueError(
            f"{path}a reward may not be called {parts[0]!r}: its name must have no '/'"
        )
    if wrong := [name for name in names if name in taken]:
        raise ValueError(f"{path}a reward may not be called {wrong[0]!r}: give it another name")
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{path}two rewards are called {', '.join(double)}: give one of them another name"
        )
