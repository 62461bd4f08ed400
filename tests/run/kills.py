"""Kills small runs at random moments, resumes them, and compares them bit for bit.

    python tests/run/kills.py [--moments 20] [--seed 0] [--hooks asked weights]

A moment is a call of one of the functions in `killed.HOOKS` (or of those that are named), and a
time after it that may lie beyond its end. Each run is killed once or twice, saves at every step,
every second or not before the end of a stage, and is compared with a run of the same variant that
nothing has interrupted: rollouts, metrics without clocks, dropped rows and the exported weights.
The exit status is 1 where one differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from finished import Finished, differing

os.environ.setdefault("JAXR1_CACHE", str(Path(tempfile.gettempdir()) / "jaxr1-test-cache"))
SCRIPT = Path(__file__).with_name("killed.py")
VARIANTS = ("config", "lora", "frozen", "bfloat16")
ROW = "{:>3}  {:9} {:>4}  {:34} {:16} {:>4}  {}"


def start(phase, folder, *more, devices=1):
    """A process of killed.py."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), phase, str(folder), *more],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(phase, folder, *more, devices=1):
    """(exit status, output) of killed.py."""
    process = start(phase, folder, *more, devices=devices)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def moment(rng: random.Random, counted: dict[str, list[float]]) -> str:
    """A phase of killed.py: every hook is as likely as another, and so is each of its calls."""
    name = rng.choice(list(counted))
    call = rng.randrange(len(counted[name]))
    # Calls that return at once (a save in the background, a dispatch) are followed for a while.
    seconds = rng.uniform(0, max(1.2 * counted[name][call], rng.choice([0.002, 0.05, 0.4])))
    return f"at:{name}:{call + 1}:{seconds:.4f}"


def saved_steps(folder: Path) -> str:
    """The steps of which a run directory holds checkpoints."""
    found = (folder / "checkpoints").glob("[0-9]*")
    return ",".join(sorted(path.name for path in found if path.name.isdecimal())) or "none"


def case(rng, folder: Path, variant: str, counted: dict, whole: Finished) -> tuple[list, str]:
    """Kills and resumes one run: (columns of the table, what is wrong with it)."""
    save_every = rng.choice([0, 1, 2])
    options = (f"variant={variant}", f"save_every={save_every}")
    phases, saved = [moment(rng, counted) for _ in range(rng.choice([1, 1, 2]))], []
    kills = 0
    for phase in phases:
        code, output = run(phase, folder, *options)
        if code not in (0, -signal.SIGKILL):
            return [save_every, " ".join(phases), "?", kills], f"exit status {code}: {output}"
        kills += code != 0
        saved.append(saved_steps(folder))
    code, output = run("none", folder, *options)
    columns = [save_every, " ".join(p.removeprefix("at:") for p in phases), " ".join(saved), kills]
    if code:
        return columns, f"the resumed run ended with {code}: {output}"
    return columns, ", ".join(differing(Finished.read(folder), whole))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--hooks", nargs="+", default=None, help="of killed.HOOKS; default is all")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    rng, began, wrong, kills = random.Random(seed), time.time(), 0, 0
    print(f"seed {seed}, {args.moments} runs")
    print(ROW.format("", "variant", "save", "hook:call:seconds", "checkpoints", "kill", "result"))
    with tempfile.TemporaryDirectory() as scratch:
        whole, counted = {}, {}
        for variant in VARIANTS[: args.moments]:
            folder = Path(scratch) / variant
            code, output = run("count", folder, f"variant={variant}")
            if code:
                print(output)
                return 1
            whole[variant] = Finished.read(folder)
            calls = json.loads(folder.with_name(f"{variant}.json").read_text())
            hooks = [name for name in args.hooks or calls if calls.get(name)]
            if not hooks:
                parser.error(f"none of {args.hooks} is called; there are {', '.join(calls)}")
            counted[variant] = {name: calls[name] for name in hooks}
        for number in range(args.moments):
            variant = VARIANTS[number % len(VARIANTS)]
            folder = Path(scratch) / f"case{number}"
            columns, fault = case(rng, folder, variant, counted[variant], whole[variant])
            wrong, kills = wrong + bool(fault), kills + columns[-1]
            print(ROW.format(number + 1, variant, *columns, fault or "same"), flush=True)
    print(
        f"seed {seed}: {wrong} of {args.moments} differ, {kills} kills, {time.time() - began:.0f} s"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
