"""The process that runs reward functions: `python -m jaxr1.rewards.worker`, started by
`jaxr1.rewards.pool`.

It speaks JSON, one object a line, over its standard input and output as it found them. Before any
user code runs it moves both to private descriptors: what a reward function prints goes to standard
error, and what it reads is empty.

    parent -> worker    {"rewards": [...], "memory_gib": 4.0}      once
    worker -> parent    {"ready": true}                            or {"failed": {"reward", "where", "traceback"}}
    parent -> worker    {"items": [{"id", "completion", "example"}, ...]}
    worker -> parent    {"loading": true}, {"loaded": true}        around a slow import, which no item is charged for
                        {"at": reward index}                       a user function begins
                        {"id", "values": [...], "status", "detail", "traceback", "reward"}      for each item, in order

The parent's deadlines rest on these lines: an item begins when the line of the one before it has
come. This process never imports jax.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from jaxr1.rewards.accuracy import (
    accuracy_reward,
    extract_answer,
    math_verify_module,
    needs_math_verify,
)
from jaxr1.rewards.format import format_reward
from jaxr1.rewards.types import Completion, Example

MAX_TEXT = 4000  # of a traceback sent to the parent

RewardFunction = Callable[..., Any]

BUILTIN: dict[str, RewardFunction] = {"accuracy": accuracy_reward, "format": format_reward}


def load_function(path: str, name: str) -> RewardFunction:
    """The function `name` of the Python file at `path`.

    A file inside a package is imported under its dotted name, so that its relative imports work;
    any other under a name of its own, with its directory first on the module path, so that files
    beside it can be imported.

    Raises:
      whatever the file raises; AttributeError if it has no such name; TypeError if that is not
      callable.
    """
    file = Path(path)
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if root != file.parent:
        module = importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts))
    else:
        module_name = f"jaxr1_reward_{file.stem}"
        loaded = sys.modules.get(module_name)  # two rewards of one file share its globals
        if loaded is not None and getattr(loaded, "__file__", None) == str(file):
            module = loaded
        else:
            spec = importlib.util.spec_from_file_location(module_name, file)
            if spec is None or spec.loader is None:
                raise ImportError(f"{file} cannot be imported")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            spec.loader.exec_module(module)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} in {path} is a {type(function).__name__}, not a function")
    return function


def _number(value: Any) -> float | None:
    """A reward as a float, None for None.

    Raises:
      TypeError: it is not a number.
    """
    if value is None:
        return None
    if isinstance(value, str | bytes):
        raise TypeError(f"it returned {value!r:.200}, which is no number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"it returned a {type(value).__name__}, which is no number") from None


class Grader:
    """Applies the reward functions to one item after the other."""

    def __init__(self, rewards: list[dict[str, Any]], emit: Callable[[dict[str, Any]], None]):
        self.rewards = rewards
        self.emit = emit
        self.functions: list[RewardFunction] = []
        self.uses_math = any(not r["path"] and r["function"] == "accuracy" for r in rewards)
        self.math_loaded = False

    def load(self) -> dict[str, str] | None:
        """Loads all functions; what failed, if one did."""
        for reward in self.rewards:
            try:
                if reward["path"]:
                    self.functions.append(load_function(reward["path"], reward["function"]))
                else:
                    self.functions.append(BUILTIN[reward["function"]])
            except (
                BaseException
            ) as error:  # a file that calls sys.exit() at import is a failure to report as well
                return {
                    "reward": reward["name"],
                    "where": f"{reward['function']} in {reward['path']}",
                    "traceback": traceback.format_exc()[-MAX_TEXT:],
                    "detail": f"{type(error).__name__}: {error}"[:MAX_TEXT],
                }
        return None

    def prepare(self, items: list[dict[str, Any]]) -> None:
        """Imports math-verify before the first item that can need it."""
        if not self.uses_math or self.math_loaded:
            return
        if any(_needs_import(item) for item in items):
            self.emit({"loading": True})
            with contextlib.suppress(ImportError):  # the item that needs it then says so
                math_verify_module()
            self.math_loaded = True
            self.emit({"loaded": True})

    def grade(self, item: dict[str, Any]) -> dict[str, Any]:
        completion, example = (
            Completion.from_json(item["completion"]),
            Example.from_json(item["example"]),
        )
        values: list[float | None] = []
        answer: dict[str, Any] = {
            "id": item["id"],
            "status": "ok",
            "detail": "",
            "traceback": "",
            "reward": -1,
        }
        for index, (reward, function) in enumerate(zip(self.rewards, self.functions, strict=True)):
            where = f"{reward['function']} in {reward['path'] or 'jaxr1'}"
            value: float | None = None
            try:
                if reward["path"]:
                    self.emit({"at": index})
                value = _number(function(completion, example, **reward["options"]))
                if value is not None and not math.isfinite(value):
                    if answer["status"] == "ok":
                        answer |= {
                            "status": "nan",
                            "detail": f"{where} returned {value}",
                            "reward": index,
                        }
                    value = None
            except (
                Exception
            ) as error:  # SystemExit and KeyboardInterrupt end the process: the parent sees a crash
                if answer["status"] == "ok":
                    last = "".join(traceback.format_exception_only(error)).strip()
                    answer |= {
                        "status": "error",
                        "detail": f"{where}: {last}"[:MAX_TEXT],
                        "traceback": traceback.format_exc()[-MAX_TEXT:],
                        "reward": index,
                    }
            values.append(value)
        answer["values"] = values
        return answer


def _needs_import(item: dict[str, Any]) -> bool:
    """Whether the cheap comparisons leave this item to math-verify."""
    gold = item["example"]["answer"]
    if not gold:
        return False
    answer = extract_answer(item["completion"]["text"], tail=True)
    return (
        needs_math_verify(gold, answer or "") or "\\" in gold or "^" in gold
    )  # such a reference is itself parsed


def _follow_parent(parent: int) -> None:
    """Ends this process group when the parent is gone, also while a reward function hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    if (
        os.getpgrp() == os.getpid()
    ):  # the pool starts us as the leader of a group; what we started goes too
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def serve(source: TextIO, emit: Callable[[dict[str, Any]], None]) -> None:
    """Answers the parent's lines until they end."""
    hello = json.loads(source.readline() or "{}")
    if not hello:
        return
    if hello.get("memory_gib"):
        import resource

        limit = int(hello["memory_gib"] * 2**30)
        with contextlib.suppress(ValueError, OSError):  # a lower hard limit is already in force
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    grader = Grader(hello["rewards"], emit)
    failed = grader.load()
    if failed:
        emit({"failed": failed})
        return
    emit({"ready": True})
    for line in source:
        items = json.loads(line)["items"]
        grader.prepare(items)
        for item in items:
            emit(grader.grade(item))


def main() -> None:
    parent = os.getppid()
    source = os.fdopen(os.dup(0), "r", encoding="utf-8")
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)  # prints of reward functions, also those of C code, must not mix with answers
    threading.Thread(target=_follow_parent, args=(parent,), daemon=True).start()

    def emit(message: dict[str, Any]) -> None:
        sink.write(json.dumps(message) + "\n")
        sink.flush()

    serve(source, emit)


if __name__ == "__main__":
    main()
