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
                       {"id", "values": [...], "status",
                        "detail", "traceback", "reward"}         for each item, in order

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from jaxr1.rewards.accuracy import takes_algebra
from jaxr1.rewards.algebra import math_verify_module
from jaxr1.rewards.answers import extract_answer
from jaxr1.rewards.builtin import BUILT_IN
from jaxr1.rewards.forms import Form, form_of
from jaxr1.rewards.matching import needs_math_verify
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


Value = tuple[float | None, dict[str, Any]]
"""What one reward function gives one item, and what went wrong, {} if nothing."""


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
        self.functions: list[RewardFunction] = []
        self.forms: list[Form] = []
        self.uses_math = False
        self.math_loaded = False

    def load(self) -> dict[str, str] | None:
        """Loads all functions; what failed, if one did."""
        for reward in self.rewards:
            path, function = reward["path"], reward["function"]
            try:
                if path:
                    self.functions.append(load_function(path, function))
                else:
                    self.functions.append(BUILT_IN[function].load())
                    self.uses_math |= BUILT_IN[function].uses_math
                self.forms.append(form_of(self.functions[-1]))
            # whatever it is: a file that calls sys.exit() at import is a failure to report as well
            except BaseException as error:
                return {
                    "reward": reward["name"],
                    "where": f"{function} in {path}",
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

    def grade_all(self, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The lines that answer items, in order."""
        completions = [Completion.from_json(item["completion"]) for item in items]
        examples = [Example.from_json(item["example"]) for item in items]
        together: dict[int, list[Value]] = {}
        for index, form in enumerate(self.forms):
            if form != "item":
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
        values: list[float | None] = []
        problem: dict[str, Any] = {}
        for index in range(len(self.rewards)):
            found = known.get(index) or self._apply(index, completion, example)
            values.append(found[0])
            problem = problem or found[1]
        fine = {"status": "ok", "detail": "", "traceback": "", "reward": -1}
        return {"id": ident, "values": values} | fine | problem

    def _apply(self, index: int, completion: Completion, example: Example) -> Value:
        """What a function gives one item."""
        reward = self.rewards[index]
        if reward["path"]:
            self.emit({"at": index})
        try:
            given = self.functions[index](completion, example, **reward["options"])
        # SystemExit and KeyboardInterrupt are let through and end the process: the parent sees a
        # crash
        except Exception as error:
            return None, self._problem(index, error)
        return self._checked(index, given)

    def _apply_together(
        self, index: int, completions: list[Completion], examples: list[Example]
    ) -> list[Value]:
        """What a function gives all items: in one call, or in calls that wait for each other."""
        function, options = self.functions[index], self.rewards[index]["options"]
        try:
            if self.forms[index] == "async":
                calls = [
                    function(completion, example, **options)
                    for completion, example in zip(completions, examples, strict=True)
                ]
                given = _run_all(calls, self.timeout_s)
            else:
                given = function(completions, examples, **options)
                if inspect.isawaitable(given):
                    [given] = _run_all([given], self.timeout_s)
                if isinstance(given, Exception):
                    raise given
                given = _as_list(given, len(completions))
        except Exception as error:
            return [(None, self._problem(index, error))] * len(completions)
        return [self._checked(index, one) for one in given]

    def _checked(self, index: int, given: Any) -> Value:
        """What a function gave an item, as a value or as a problem."""
        if isinstance(given, Exception):
            return None, self._problem(index, given)
        try:
            value = _number(given)
        except TypeError as error:
            return None, self._problem(index, error)
        if value is not None and not math.isfinite(value):
            detail = f"{self._where(index)} returned {value}"
            return None, {"status": "nan", "detail": detail, "reward": index}
        return value, {}

    def _where(self, index: int) -> str:
        reward = self.rewards[index]
        return f"{reward['function']} in {reward['path'] or 'jaxr1'}"

    def _problem(self, index: int, error: Exception) -> dict[str, Any]:
        """What is said of an item for which a function raised this."""
        if isinstance(error, _Late):
            detail = f"{self._where(index)} took over {self.timeout_s:g} s"
            return {"status": "timeout", "detail": detail, "reward": index}
        last = "".join(traceback.format_exception_only(error)).strip()
        return {
            "status": "error",
            "detail": f"{self._where(index)}: {last}"[:MAX_TEXT],
            "traceback": "".join(traceback.format_exception(error))[-MAX_TEXT:],
            "reward": index,
        }


class _Late(Exception):
    """An awaited call is over its deadline."""


def _run_all(calls: Sequence[Any], timeout_s: float) -> list[Any]:
    """The results of awaitables that run at the same time, an exception where one raised it."""
    import asyncio  # most rewards wait for nothing

    async def one(call: Any) -> Any:
        task = asyncio.ensure_future(call)
        done, _ = await asyncio.wait([task], timeout=timeout_s)
        if not done:
            task.cancel()
            return _Late()
        return await task

    async def run() -> list[Any]:
        return await asyncio.gather(*map(one, calls), return_exceptions=True)

    return asyncio.run(run())


def _as_list(given: Any, count: int) -> list[Any]:
    """The values of a function of the batch form.

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
