"""Runs small_run and kills itself with SIGKILL: `python killed.py PHASE RUN_DIR [OPTION ...]`.

PHASE is "none", or where the process dies: "sampling" (with one wave of step 3 sampled), "grading"
(step 3 sampled and handed to the graders), "update" (in the second update of step 4), "evaluation"
(after step 2, half of it asked), "checkpoint" (while step 2's files are written); or
"at:HOOK:CALL:SECONDS", so many seconds after a call of a function of `HOOKS`; "count" writes how
often each is called, and how long it takes, to RUN_DIR.json. "stop:HOOK:CALL" sends SIGTERM in that
call instead, and "raise:HOOK:CALL" raises an error in it.

An OPTION is "unrepeatable" (rewards that never say the same twice), "variant=NAME" (a function of
small_run.py) or "save_every=N".
"""

import dataclasses
import importlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_compilation_cache_dir", os.environ["JAXR1_CACHE"] + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

import jaxr1
from jaxr1.config import load_config
from jaxr1.evaluation.asked import Asking
from jaxr1.rewards.spec import Reward
from jaxr1.rl import update
from jaxr1.run.state import Checkpoints
from jaxr1.stages import rollout

# Where a process may die: (module, class or "", function).
HOOKS = {
    "sampling": ("jaxr1.sampling.decode", "", "decode_until"),
    "grading": ("jaxr1.stages.rollout", "", "wait_for"),
    # Each row of answers that pairs are made of, as it is written down.
    "asking": ("jaxr1.stages.answers", "", "_write"),
    "journal": ("jaxr1.rl.journal", "", "write_rows"),
    "gradients": ("jaxr1.rl.update", "", "accumulate"),
    "update": ("jaxr1.rl.update", "", "apply"),
    "metrics": ("jaxr1.run.metrics", "MetricsLog", "write"),
    "saving": ("jaxr1.run.state", "Checkpoints", "save"),
    "once": ("jaxr1.run.kept", "", "_once"),
    "evaluation": ("jaxr1.evaluation.heldout", "HeldOut", "evaluate"),
    # Inside an evaluation: a batch drawn and on its way to the graders, a picture, the answers.
    "asked": ("jaxr1.evaluation.asked", "Asking", "_graded"),
    "pictures": ("jaxr1.evaluation.heldout", "HeldOut", "_pictures"),
    "answers": ("jaxr1.evaluation.heldout", "", "write_rows"),
    "summary": ("jaxr1.evaluation.heldout", "", "summarise"),
    "export": ("jaxr1.models.load", "", "save_model"),
    # Inside an export: the weights in their file.
    "weights": ("jaxr1.checkpoints.tensors", "", "_write_file"),
    # Whatever takes the place of another file or directory; the export among them.
    "renaming": ("os", "", "replace"),
    "report": ("jaxr1.run.loop", "", "write_report"),
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(phase: str, folder: Path) -> None:
    """Patches one function so that the process dies inside that phase."""
    if phase == "sampling":
        sample, calls = rollout.Sampler.__call__, []

        def dying(self, params, prompts, keys, n, **kw):
            if n > 1:  # not the evaluation
                calls.append(1)
            if len(calls) == 6:  # two waves a step: the second wave of step 3
                die()
            return sample(self, params, prompts, keys, n, **kw)

        rollout.Sampler.__call__ = dying
    elif phase == "grading":
        wait, calls = rollout.wait_for, []

        def dying(*args):
            calls.append(1)
            if len(calls) == 3:
                die()
            return wait(*args)

        rollout.wait_for = dying
    elif phase == "update":
        apply, calls = update.apply, []

        def dying(*args):
            calls.append(1)
            # 2 supervised steps, then 2 updates a step: the last one of step 4.
            if len(calls) == 2 + 2 * 4:
                die()
            return apply(*args)

        update.apply = dying
    elif phase == "evaluation":
        drawn, calls = Asking._draw, itertools.count(1)

        def dying(*args):
            # 8 questions each before training, after the supervised stage, after step 2; threads
            # ask for them.
            if next(calls) == 2 * 8 + 5:
                die()
            return drawn(*args)

        Asking._draw = dying
    elif phase == "checkpoint":
        save = Checkpoints.save

        def dying(self, states, progress, config):
            def watch():
                target, step = folder / "checkpoints", str(progress.total_step)
                begun = lambda path: "tmp" in str(path) and step in str(path)
                while not any(map(begun, target.rglob("*"))):
                    time.sleep(0.0005)
                die()

            if progress.stage == 1 and progress.step == 2:
                threading.Thread(target=watch, daemon=True).start()
            save(self, states, progress, config)

        Checkpoints.save = dying


def hook(name: str, before, after=lambda seconds: None) -> None:
    """Calls `before(number of the call)` and `after(seconds)` around a function of `HOOKS`."""
    module, owner, function = HOOKS[name]
    holder = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    inner, calls = getattr(holder, function), []

    def patched(*args, **kwargs):
        calls.append(name)
        before(len(calls))
        began = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            after(time.perf_counter() - began)

    setattr(holder, function, patched)


def arm_at(name: str, call: int, seconds: float) -> None:
    """Dies so many seconds after the call, whatever is done then."""

    def before(number: int) -> None:
        if number == call:
            threading.Timer(seconds, die).start()

    hook(name, before)


def arm_otherwise(action: str, name: str, call: int) -> None:
    """Is asked to stop in that call, or raises in it."""

    def before(number: int) -> None:
        if number == call and action == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        elif number == call:
            raise RuntimeError("only here")

    hook(name, before)


def count() -> dict[str, list[float]]:
    """{hook: seconds of each call}, filled as the run goes on."""
    found: dict[str, list[float]] = {name: [] for name in HOOKS}
    for name, seconds in found.items():
        hook(name, lambda number: None, seconds.append)
    return found


def option(name: str, default: str) -> str:
    """The value of "name=value" on the command line."""
    given = [text.partition("=")[2] for text in sys.argv[3:] if text.startswith(f"{name}=")]
    return given[0] if given else default


def main() -> None:
    phase, folder = sys.argv[1], Path(sys.argv[2])
    here = Path(__file__).parent
    config = load_config(f"{here / 'small_run.py'}:{option('variant', 'config')}")
    config = dataclasses.replace(config, run_dir=str(folder))
    sft, stage = config.stages
    stage = dataclasses.replace(stage, save_every=int(option("save_every", "2")))
    config = dataclasses.replace(config, stages=(sft, stage))
    if "unrepeatable" in sys.argv:
        rewards = (Reward(f"{here}/small_rewards.py:unrepeatable"),)
        stage = dataclasses.replace(stage, rewards=rewards)
        config = dataclasses.replace(config, stages=(sft, stage))
    counted = count() if phase == "count" else {}
    if phase.startswith("at:"):
        _, name, call, seconds = phase.split(":")
        arm_at(name, int(call), float(seconds))
    elif phase.startswith(("stop:", "raise:")):
        action, name, call = phase.split(":")
        arm_otherwise(action, name, int(call))
    arm(phase, folder)
    result = jaxr1.train(config)
    if counted:
        folder.with_name(f"{folder.name}.json").write_text(json.dumps(counted))
    sys.exit(128 + result.signal if result.signal else 0)


if __name__ == "__main__":
    main()
