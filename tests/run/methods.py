"""How well other methods learn the quickstart's task: `python tests/run/methods.py [PART ...]`.

    cold     the quickstart's cold start, exported: what the methods begin with
    methods  250 steps of each from there, three seeds, GRPO among them
    mpo      pairs of the model's own answers, one seed
    full     the quickstart and PPO with a critic, whole, with their times

A row a run is appended to notebooks/methods.jsonl, and a run that has one is not done again; a run
that was killed goes on where it was. Without arguments all parts are done, one after the other; at
the end the table of notebooks/methods.md is printed.
"""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import jax
import numpy as np

import jaxr1
from jaxr1.base.jsonl import AppendLog, read_jsonl
from jaxr1.config import load_config
from jaxr1.entry import prepare
from jaxr1.run.console import Console

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart.py"
ROWS = ROOT / "notebooks" / "methods.jsonl"
RUNS = Path("runs") / "methods"
STEPS, SEEDS = 250, (0, 1, 2)
METHODS = ("config", "rloo", "dr_grpo", "reinforce_pp", "gspo", "cispo", "cpgd")
NAMES = {"config": "grpo"}
T_95 = {4: 2.776}  # Student's t, two-sided, of so many degrees of freedom


# --- runs ---------------------------------------------------------------------------------------
def planned(part: str) -> list[tuple[str, int, object]]:
    """(name, seed, configuration) of each run of a part."""
    export = str(RUNS / "cold" / "export")
    runs = []
    if part == "cold":
        whole = load_config(str(CONFIG))
        runs.append(("cold", 0, dataclasses.replace(whole, stages=whole.stages[:1])))
    elif part == "methods":
        for seed in SEEDS:
            for variant in METHODS:
                whole = load_config(f"{CONFIG}:{variant}")
                stage = dataclasses.replace(
                    whole.stages[1], steps=STEPS, eval_every=0, save_every=0
                )
                config = dataclasses.replace(whole, model=export, stages=(stage,), seed=seed)
                runs.append((NAMES.get(variant, variant), seed, config))
    elif part == "mpo":
        whole = load_config(f"{CONFIG}:mpo")
        stage = dataclasses.replace(whole.stages[1], eval_every=0)
        config = dataclasses.replace(whole, model=export, stages=(stage,))
        runs.append(("mpo", 0, config))
    elif part == "full":
        for variant, seeds in (("config", (0,)), ("ppo", (0, 1))):
            whole = load_config(f"{CONFIG}:{variant}")
            for seed in seeds:
                name = "quickstart" if variant == "config" else "ppo, whole"
                runs.append((name, seed, dataclasses.replace(whole, seed=seed)))
    return runs


def run(part: str) -> None:
    """The runs of a part that have no row yet."""
    for name, seed, config in planned(part):
        done = read_jsonl(ROWS) if ROWS.exists() else []
        if any((row["name"], row["seed"]) == (name, seed) for row in done):
            continue
        folder = RUNS / (name if part == "cold" else f"{name.replace(', ', '_')}_{seed}")
        exports = part == "cold"
        config = dataclasses.replace(
            config, run_dir=str(folder), export=exports, report=False, tensorboard=False
        )
        began, cpu = time.perf_counter(), time.process_time()
        with Console(quiet=True) as console:
            result = jaxr1.train(config, console=console)
        if result.signal:
            sys.exit(f"{name}, seed {seed}: stopped; the same command goes on")
        metrics = result.metrics
        row = {"part": part, "name": name, "seed": seed, **measured(metrics)}
        row |= {
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "step_s": round(
                float(np.median([m["time/step_s"] for m in metrics[5:] if "time/step_s" in m])), 4
            ),
        }
        with AppendLog(ROWS) as log:
            log.write(row)
        print(json.dumps(row), flush=True)
        jax.clear_caches()


def measured(metrics: list[dict]) -> dict:
    """Held-out accuracy before and after, in percent."""
    held_out = [m["eval/heldout/accuracy"] for m in metrics if "eval/heldout/accuracy" in m]
    return {"before": round(100 * held_out[0], 1), "accuracy": round(100 * held_out[-1], 1)}


# --- the table ----------------------------------------------------------------------------------
def interval(a: list[float], b: list[float]) -> tuple[float, float]:
    """Difference of means, and half of its 95 % interval (Student's t, equal variances)."""
    free = len(a) + len(b) - 2
    pooled = (np.var(a, ddof=1) * (len(a) - 1) + np.var(b, ddof=1) * (len(b) - 1)) / free
    half = T_95[free] * math.sqrt(pooled * (1 / len(a) + 1 / len(b)))
    return float(np.mean(a) - np.mean(b)), half


def table(rows: list[dict]) -> str:
    """The table of the page."""
    by_name: dict[str, list[float]] = {}
    for row in rows:
        if row["part"] == "methods":
            by_name.setdefault(row["name"], []).append(row["accuracy"])
    lines = ["| method | seeds | mean | less GRPO's, 95 % interval |", "|---|---|---|---|"]
    for name, found in by_name.items():
        seeds = ", ".join(f"{value:.1f}" for value in found)
        against = ""
        if name != "grpo" and len(found) == len(by_name["grpo"]) == len(SEEDS):
            difference, half = interval(found, by_name["grpo"])
            against = f"{difference:+.1f} ± {half:.1f}"
        lines.append(f"| {name} | {seeds} | {np.mean(found):.1f} | {against} |")
    lines += [
        "",
        "| run | seed | before | after | minutes | step, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["part"] != "methods":
            minutes = f"{row['seconds'] / 60:.1f}"
            ends = f"{row['before']} | {row['accuracy']}"
            lines.append(
                f"| {row['name']} | {row['seed']} | {ends} | {minutes} | {row['step_s']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    prepare()
    ROWS.parent.mkdir(exist_ok=True)
    for part in sys.argv[1:] or ("cold", "methods", "mpo", "full"):
        run(part)
    print(table(read_jsonl(ROWS)))
