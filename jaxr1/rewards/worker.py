"""The process that runs reward functions: `python -m jaxr1.rewards.worker`, started by the pool.

It speaks JSON, one object a line, over its standard input and output as it found them. Before any
user code runs it moves both to private descriptors: what a reward function prints goes to standard
error, and what it reads is empty.

    parent -> worker   {"rewards": [...], "memory_gib": 4.0,
                        "timeout_s": 10.0}                       once
    worker -> parent   {"ready": true}                           once
                or     {"failed": {"reward", "where", "traceback", "detail"}}, and ends
    parent -> worker   {"items": [{"id", "completion", "example"}, ...]}
    worker -> parent   {"loading": true}, {"loaded": true}       around a slow import, which no item
                                                                 is charged for
                       {"at": reward index}                      a user function begins an item
                       {"at": reward index, "together": true}    it begins all items of the line
                       {"at": -1, "together": false}             functions for all items are done
                       {"id", "values": [...], "parts": [{...}],
                        "status", "detail", "traceback",
                        "reward"}                                for each item, in order

The parent's deadlines rest on these lines: an item begins when the line of the one before it has
come, or when the functions for all items are done, which come first and have a deadline each. This
process never imports jax.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from jaxr1.rewards.accuracy import takes_algebra
from jaxr1.rewards.applying import OTHERWISE, Branches, Late, Value, number_of, run_all
from jaxr1.rewards.builtin import BUILT_IN
from jaxr1.rewards.foreign import Function
from jaxr1.rewards.reading.algebra import math_verify_module
from jaxr1.rewards.reading.answers import extract_answer
from jaxr1.rewards.reading.matching import needs_math_verify
from jaxr1.rewards.types import Completion, Example

MAX_TEXT = 4000  # of a traceback sent to the parent

RewardFunction = Callable[..., Any]


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
        module = _load_file(file)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} in {path} is a {type(function).__name__}, not a function")
    return function


def _load_file(file: Path) -> ModuleType:
    """A file that is in no package, as a module; two rewards of one file share its globals."""
    name = f"jaxr1_reward_{file.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Grader:
    """Applies the reward functions to items, one after the other or all at once."""

    def __init__(
        self,
        rewards: list[dict[str, Any]],
        emit: Callable[[dict[str, Any]], None],
        timeout_s: float = 10.0,
    ):
        self.rewards = rewards
        self.emit = emit
        self.timeout_s = timeout_s
        self.branches: list[Branches] = []
        self.uses_math = False
        self.math_loaded = False

    def load(self) -> dict[str, str] | None:
        """Loads all functions; what failed, if one did."""
        for reward in self.rewards:
            functions: dict[str, Function] = {}
            for value, branch in (reward["routes"] or {OTHERWISE: reward}).items():
                try:
                    functions[value] = self._load(branch)
                # whatever it is: a file that calls sys.exit() at import is a failure to report too
                except BaseException as error:
                    return {
                        "reward": reward["name"],
                        "where": f"{branch['function']} in {branch['path']}",
                        "traceback": traceback.format_exc()[-MAX_TEXT:],
                        "detail": f"{type(error).__name__}: {error}"[:MAX_TEXT],
                    }
            self.branches.append(Branches(functions, reward["column"]))
        return None

    def _load(self, reward: dict[str, Any]) -> Function:
        path, name = reward["path"], reward["function"]
        if path:
            return Function(load_function(path, name), reward["options"], reward["style"])
        self.uses_math |= BUILT_IN[name].uses_math
        return Function(BUILT_IN[name].load(), reward["options"])

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

    def grade_all(self, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The lines that answer items, in order."""
        completions = [Completion.from_json(item["completion"]) for item in items]
        examples = [Example.from_json(item["example"]) for item in items]
        together: dict[int, list[Value]] = {}
        for index, branches in enumerate(self.branches):
            if branches.together:
                self.emit({"at": index, "together": True})
                together[index] = self._apply_together(index, completions, examples)
        if together:
            self.emit({"at": -1, "together": False})
        for place, item in enumerate(items):
            known = {index: values[place] for index, values in together.items()}
            yield self._grade(item["id"], completions[place], examples[place], known)

    def _grade(
        self, ident: int, completion: Completion, example: Example, known: dict[int, Value]
    ) -> dict[str, Any]:
        """The line that answers an item; the first thing that goes wrong gives it its status."""
        found: list[Value] = []
        problem: dict[str, Any] = {}
        for index in range(len(self.rewards)):
            one = known.get(index) or self._apply(index, completion, example)
            found.append(one)
            problem = problem or one.problem
        fine = {"status": "ok", "detail": "", "traceback": "", "reward": -1}
        given = {"values": [one.value for one in found], "parts": [one.parts for one in found]}
        return {"id": ident} | given | fine | problem

    def _apply(self, index: int, completion: Completion, example: Example) -> Value:
        """What a reward gives one item."""
        if self.rewards[index]["path"] or self.rewards[index]["routes"]:
            self.emit({"at": index})
        try:
            function = self.branches[index].of(example)
            given = function.one(completion, example)
        # SystemExit and KeyboardInterrupt are let through and end the process: the parent sees a
        # crash
        except Exception as error:
            return self._problem(index, error)
        return self._read_one(index, function, given)

    def _apply_together(
        self, index: int, completions: list[Completion], examples: list[Example]
    ) -> list[Value]:
        """What a reward gives all items, each from the function that its row routes it to."""
        found: dict[int, Value] = {}
        places: dict[Function, list[int]] = {}
        for place, example in enumerate(examples):
            try:
                places.setdefault(self.branches[index].of(example), []).append(place)
            except ValueError as error:
                found[place] = self._problem(index, error)
        for function, at in places.items():
            own = [completions[place] for place in at], [examples[place] for place in at]
            found |= zip(at, self._apply_all(index, function, *own), strict=True)
        return [found[place] for place in range(len(examples))]

    def _apply_all(
        self,
        index: int,
        function: Function,
        completions: list[Completion],
        examples: list[Example],
    ) -> list[Value]:
        """What one function gives items: in one call, in calls that wait, or one by one."""
        pairs = list(zip(completions, examples, strict=True))
        if not function.together:
            return [self._apply(index, *pair) for pair in pairs]
        try:
            if not function.style.batch:
                calls = [function.one(*pair) for pair in pairs]
                singly = run_all(calls, self.timeout_s)
                return [self._read_one(index, function, given) for given in singly]
            given = function.many(completions, examples)
            if inspect.isawaitable(given):
                [given] = run_all([given], self.timeout_s)
            if isinstance(given, Exception):
                raise given
            scored = function.read_many(given, len(pairs))
        except Exception as error:
            return [self._problem(index, error)] * len(pairs)
        return [self._checked(index, *one) for one in scored]

    def _read_one(self, index: int, function: Function, given: Any) -> Value:
        """What a call for one item returned, as a value or as a problem."""
        if isinstance(given, Exception):
            return self._problem(index, given)
        try:
            return self._checked(index, *function.read_one(given))
        except TypeError as error:
            return self._problem(index, error)

    def _checked(self, index: int, given: Any, parts: dict[str, float]) -> Value:
        """A reward as it was given, as a value or as a problem."""
        if isinstance(given, Exception):
            return self._problem(index, given)
        try:
            value = number_of(given)
        except TypeError as error:
            return self._problem(index, error)
        if value is not None and not math.isfinite(value):
            detail = f"{self._where(index)} returned {value}"
            return Value(None, parts, {"status": "nan", "detail": detail, "reward": index})
        return Value(value, parts)

    def _where(self, index: int) -> str:
        reward = self.rewards[index]
        return f"{reward['function']} in {reward['path'] or 'jaxr1'}"

    def _problem(self, index: int, error: Exception) -> Value:
        """What an item gets for which a function raised this."""
        if isinstance(error, Late):
            detail = f"{self._where(index)} took over {self.timeout_s:g} s"
            return Value(None, {}, {"status": "timeout", "detail": detail, "reward": index})
        last = "".join(traceback.format_exception_only(error)).strip()
        problem = {
            "status": "error",
            "detail": f"{self._where(index)}: {last}"[:MAX_TEXT],
            "traceback": "".join(traceback.format_exception(error))[-MAX_TEXT:],
            "reward": index,
        }
        return Value(None, {}, problem)


def _needs_import(item: dict[str, Any]) -> bool:
    """Whether the cheap comparisons leave this item to math-verify."""
    gold = item["example"]["answer"]
    if not gold:
        return False
    answer = extract_answer(item["completion"]["text"], tail=True)
    # a reference that no kind of answers reads is itself parsed
    return takes_algebra(gold) or needs_math_verify(gold, answer or "")


def _follow_parent(parent: int) -> None:
    """Ends this process group when the parent is gone, also while a reward function hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    # the pool starts us as the leader of a group; what we started goes too
    if os.getpgrp() == os.getpid():
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
    grader = Grader(hello["rewards"], emit, hello["timeout_s"])
    failed = grader.load()
    if failed:
        emit({"failed": failed})
        return
    emit({"ready": True})
    for line in source:
        items = json.loads(line)["items"]
        grader.prepare(items)
        for answer in grader.grade_all(items):
            emit(answer)


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
