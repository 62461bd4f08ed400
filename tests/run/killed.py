"""Runs small_run and kills itself with SIGKILL in a given phase: `python killed.py PHASE RUN_DIR`.

PHASE is "none", or where the process dies: "sampling" (with one wave of step 3 sampled), "grading"
(step 3 sampled and handed to the graders), "update" (in the second update of step 4), "evaluation"
(after step 2, half of it asked), "checkpoint" (while step 2's files are written).
"""

import dataclasses
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
from jaxr1.evaluation import heldout
from jaxr1.rewards.spec import Reward
from jaxr1.rl import update
from jaxr1.run.state import Checkpoints
from jaxr1.stages import rl


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(phase: str, folder: Path) -> None:
    """Patches one function so that the process dies inside that phase."""
    if phase == "sampling":
        sample, calls = rl.Sampler.__call__, []

        def dying(self, params, prompts, keys, n, **kw):
            if n > 1:  # not the evaluation
                calls.append(1)
            if len(calls) == 6:  # two waves a step: the second wave of step 3
                die()
            return sample(self, params, prompts, keys, n, **kw)

        rl.Sampler.__call__ = dying
    elif phase == "grading":
        wait, calls = rl.wait_for, []

        def dying(*args):
            calls.append(1)
            if len(calls) == 3:
                die()
            return wait(*args)

        rl.wait_for = dying
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
        encoded, calls = heldout.Asked._encoded, []

        def dying(*args):
            calls.append(1)
            # 8 questions each before training, after the supervised stage, after step 2.
            if len(calls) == 2 * 8 + 5:
                die()
            return encoded(*args)

        heldout.Asked._encoded = dying
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


def main() -> None:
    phase, folder = sys.argv[1], Path(sys.argv[2])
    here = Path(__file__).parent
    config = load_config(str(here / "small_run.py"))
    config = dataclasses.replace(config, run_dir=str(folder))
    if "unrepeatable" in sys.argv:
        sft, stage = config.stages
        rewards = (Reward(f"{here}/small_rewards.py:unrepeatable"),)
        stage = dataclasses.replace(stage, rewards=rewards)
        config = dataclasses.replace(config, stages=(sft, stage))
    arm(phase, folder)
    result = jaxr1.train(config)
    sys.exit(128 + result.signal if result.signal else 0)


if __name__ == "__main__":
    main()
