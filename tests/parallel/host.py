"""What one of several hosts does in a test: `python host.py WORK OUT SEED`.

Its place comes from the environment, as in a run. The main host writes OUT. WORK is

    numbers    draws, log-probs, weights, advantages and gradients of models of all kinds of towers
    values     what hosts tell one another: values, errors, signals' flags, waiting
    stop       host 1 stands still, its watch with it, as a machine does that is cut off
"""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_compilation_cache_dir", os.environ["JAXR1_CACHE"] + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from reference import learner, mixed_prompts

import jaxr1
from jaxr1.data import DataError, Dataset, Example
from jaxr1.inputs.batch import fitting_buckets
from jaxr1.inputs.draws import Draws
from jaxr1.inputs.exchange import Draw, share
from jaxr1.inputs.patches import is_blank
from jaxr1.nn.params import flatten
from jaxr1.parallel import (
    HostOptions,
    MeshOptions,
    agree,
    fetch,
    gather,
    host_count,
    host_index,
    is_main,
    joined,
    on_main,
    owner,
    together,
    wait_until,
)
from jaxr1.rl import Advantage, Credit, Estimator, Ppo
from jaxr1.rl.episodes import Episodes
from jaxr1.rl.update import gradients, score
from jaxr1.rl.work import Work
from jaxr1.run import resume
from jaxr1.run.resume import check_same, check_shared
from jaxr1.sampling.draw import RandomStream, prompt_key
from jaxr1.sampling.sampler import Sampler, SamplingOptions

FAMILIES = {"tiny": (), "tiny-qwen2_5_vl": ("vision",), "tiny-internvl": ()}
PROMPTS, GROUP, TOKENS = 7, 4, 12  # an odd number: hosts have unequal parts of it


@dataclasses.dataclass(frozen=True)
class BatchStd(Estimator):
    """Group advantages over the deviation of the whole batch, then whitened over all tokens."""

    def __call__(self, episodes: Episodes) -> Credit:
        centred = Advantage(scale="none")(episodes).columns["advantage"]
        centred = centred / (episodes.reward_bg[episodes.valid_bg].std() + 1e-6)
        return Credit(
            {"advantage": ((centred - centred.mean()) / centred.std()).astype(np.float32)}
        )


def draws_of(processor, rng) -> list[Draw]:
    """The same prompts on every host, each encoded by its owner."""
    prompts = mixed_prompts(rng, PROMPTS)
    own = lambda: {
        i: Draw(i, i, Example((), None), processor.encode(prompts[i]))
        for i in range(PROMPTS)
        if owner(i) == host_index()
    }
    found = share(own)
    return [found[i] for i in range(PROMPTS)]


def numbers(seed: int) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    mesh = MeshOptions().build()
    for name, freeze in FAMILIES.items():
        rng = np.random.default_rng(seed)
        model, params = jaxr1.load_model(name, mesh=mesh)
        processor = jaxr1.load_processor(name)
        draws = draws_of(processor, rng)
        own = [draw.prompt for draw in draws if draw.is_own]
        pixels = sum(not is_blank(p) for prompt in own for p in prompt.patches)
        there = sum(not is_blank(p) for draw in draws for p in draw.prompt.patches)
        assert pixels == there  # of other hosts' prompts there are none
        prompts = [draw.prompt for draw in draws]
        sampler = Sampler(
            model, processor, SamplingOptions(TOKENS), fitting_buckets(prompts, TOKENS)
        )
        keys = [prompt_key(seed, RandomStream.TRAINING, draw.position) for draw in draws]
        groups = sampler(params, prompts, keys, GROUP)
        out[f"{name} drawn"] = np.concatenate([c.token_ids for group in groups for c in group])
        out[f"{name} texts"] = np.array([c.text for group in groups for c in group])

        # The gradient, of responses that do not depend on what was drawn.
        lengths = rng.integers(1, TOKENS, (PROMPTS, GROUP))
        tokens = [[rng.integers(20, 500, n).astype(np.int32) for n in row] for row in lengths]
        episodes = Episodes.given(draws, tokens)
        episodes.reward_bg = rng.random((PROMPTS, GROUP))
        size = fitting_buckets(prompts, TOKENS)
        policy = learner(
            model, processor, [Ppo()], size, budget=160, freeze=freeze, on_policy=False
        )
        state, work = policy.init(params), Work()
        episodes.views = {"policy": policy.see(state, prompts, work)}
        episodes.columns |= BatchStd()(episodes).columns | policy.weights(episodes)
        seen = (episodes, episodes.valid_bg, work)
        episodes.columns["old_logp"] = score(policy, state.params, *seen)["logp"] + np.float32(0.01)
        sums = gradients(policy, state, episodes, work)
        out |= {
            f"{name} {key}": episodes.columns[key] for key in ("advantage", "weight", "old_logp")
        }
        out |= {f"{name} grad {key}": fetch(x) for key, x in flatten(sums.grads).items()}
        out[f"{name} loss"] = fetch(sums.loss)
        out[f"{name} updates"] = np.array([len(work.padding)])
    return out


def drawn() -> dict[str, list]:
    """Two steps of five draws each, from twelve rows of which three are too long."""
    long = {2, 5, 9}

    def get(row: int) -> Example:
        text = "word " * (400 if row in long else row + 1)
        return Example(({"role": "user", "content": text},), str(row), source=f"rows:{row}")

    dropped: list[str] = []
    draws, position = [], 0
    with Draws(
        Dataset("rows", 12, get),
        jaxr1.load_processor("tiny"),
        seed=3,
        max_prompt_tokens=200,
        on_drop=lambda source, reason: dropped.append(source),
    ) as source:
        for _ in range(3):
            position, step = source.take(position, 5, ahead=5)
            draws.append(step)
    return {
        "rows": [[d.row, d.position, len(d.prompt)] for step in draws for d in step],
        "hosts": [[d.prompt.host for d in step] for step in draws],
        "dropped": [*dropped, position],
    }


def raised(work) -> str:
    """Class and message of what `work` raises."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def values(seed: int) -> dict[str, np.ndarray]:
    here = host_index()

    def fails_on(host: int, error: Exception):
        if here == host:
            raise error
        return here

    sent = {"text": "ä\u2028", 3: (None, [1.5, True]), "array": np.arange(3) + here}
    back = gather(lambda: Draw(here, 1, Example((), str(here)), None, np.arange(2)), Draw, Example)
    slow = time.monotonic() + here
    wait_until(lambda: time.monotonic() > slow, lambda: None)
    resume.SHARED_S = 0.5
    for name in ("0", "1"):
        Path(sys.argv[2]).with_name(name).mkdir(exist_ok=True)
    written = Path(sys.argv[2] + ".main")
    on_main(lambda: written.write_text("main"))
    own = gather(lambda: sent)
    found = {
        "hosts": [host_count(), agree([here + 7])[0], *gather(lambda: here)],
        "whole": [repr(x["array"].tolist()) + repr(x["text"]) + repr(x[3]) for x in own],
        "back": [f"{type(x).__name__} {x.example.answer} {x.response.dtype}" for x in back],
        "own": [raised(lambda: gather(lambda: fails_on(here, DataError(f"row {here}"))))],
        "one": [raised(lambda: together(lambda: fails_on(1, DataError("row 7"))))],
        "theirs": [raised(lambda: together(lambda: fails_on(1, KeyError("row 7"))))],
        "unknown": [raised(lambda: gather(lambda: object()))],
        "written": [written.read_text()],
        "same": [raised(lambda: check_same("it", {"a": {"b": 1}, "run_dir": here}))],
        "other": [raised(lambda: check_same("it", {"a": {"b": here}}))],
        "apart": [raised(lambda: check_shared(written.with_name(str(here))))],
        "drawn": [drawn()],
        "waited": [time.monotonic() >= slow],
    }
    return {"found": np.array(json.dumps(gather(lambda: json.dumps(found))))}


def stop(seed: int) -> dict[str, np.ndarray]:
    if host_index() == 1:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        Path(sys.argv[2]).write_text(" ".join(children))  # for whoever cleans up
        for process in (*map(int, children), os.getpid()):
            os.kill(process, signal.SIGSTOP)
    agree([0])
    return {}


def main() -> None:
    work, out, seed = sys.argv[1:]
    with joined(HostOptions(heartbeat_s=3 if work == "stop" else 20, wait_s=60)):
        found = {"numbers": numbers, "values": values, "stop": stop}[work](int(seed))
        if is_main():
            np.savez(out, **found)


if __name__ == "__main__":
    main()
