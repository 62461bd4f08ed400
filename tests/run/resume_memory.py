"""What a resumed run holds beside a fresh one, and what loading its checkpoint takes at most.

    python tests/run/resume_memory.py [--million 300] [--steps 2]

A random Qwen2-VL with a small tower and about so many million parameters is trained for some steps
in one process, and for one more in another, which resumes it; a third does all of them at once.
Live arrays are counted where the last step begins. The peak is of resident memory while the
checkpoint is read, beyond what was resident when it began (what the run held before is deleted by
then), in sizes of what is read. On a CPU arrays are host memory. Linux only.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))
os.environ.setdefault("JAXR1_CACHE", str(Path(tempfile.gettempdir()) / "jaxr1-test-cache"))

GIB = 2**30


def write_model(folder: Path, million: int) -> None:
    """A random model of about so many million parameters."""
    from jaxr1.models.families.family import Preset
    from jaxr1.models.presets import PRESETS, write_preset

    width, mlp = 1024, 4096
    layer = 4 * width**2 + 3 * width * mlp
    sizes = dataclasses.replace(
        Preset(), width=width, mlp=mlp, heads=16, kv_heads=16, layers=round(million * 1e6 / layer)
    )
    write_preset(PRESETS["tiny"], sizes, folder)


def measure(model: str, run_dir: str, steps: int) -> None:
    """Trains up to a number of steps, and prints what was held and what loading took."""
    import jax
    from reference import one_stage
    from scale import Peak, memory

    from jaxr1.run.loop import Run, train
    from jaxr1.run.state import Checkpoints, learned

    found: dict[str, float] = {}
    step, load, read = Run._step, Checkpoints.load, Checkpoints._learners
    peaks: list[Peak] = []

    def watched(self, *args):
        gc.collect()
        found["live"] = sum(x.nbytes for x in jax.live_arrays())
        found["resident"] = memory("VmRSS")
        return step(self, *args)

    def loading(self, number, states):
        with contextlib.ExitStack() as stack:

            def reading(_, *args):
                if not peaks:  # what is replaced is deleted by now
                    gc.collect()
                    peaks.append(stack.enter_context(Peak()))
                return read(self, *args)

            Checkpoints._learners = reading
            out = jax.block_until_ready(load(self, number, states))
        found["peak"], found["seconds"] = peaks[0].bytes, peaks[0].seconds
        arrays = jax.tree.leaves([learned(state) for state in out.values()])
        found["loaded"] = sum(x.nbytes for x in arrays)
        return out

    Run._step, Checkpoints.load = watched, loading
    config = one_stage(Path(run_dir), steps=steps)
    config = dataclasses.replace(config, model=model, export=False)
    train(config, override_resume=True)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", type=int, default=300)
    parser.add_argument("--steps", type=int, default=2, help="before the one that is resumed")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure[:2], int(args.measure[2]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_model(model, args.million)

        def run(name: str, steps: int) -> dict[str, float]:
            command = [sys.executable, __file__, "--measure", str(model), f"{scratch}/{name}"]
            told = subprocess.run(
                [*command, str(steps)], check=True, stdout=subprocess.PIPE, text=True
            )
            return json.loads(told.stdout.splitlines()[-1])

        run("stopped", args.steps)
        resumed = run("stopped", args.steps + 1)
        fresh = run("fresh", args.steps + 1)
    for name, held in (("fresh", fresh), ("resumed", resumed)):
        print(
            f"{name}: {held['live']:.0f} bytes of live arrays ({held['live'] / GIB:.3f} GiB), "
            f"{held['resident'] / GIB:.2f} GiB resident"
        )
    print(
        f"loaded: {resumed['loaded'] / GIB:.3f} GiB in {resumed['seconds']:.1f} s, peak "
        f"{resumed['peak'] / GIB:.3f} GiB: {resumed['peak'] / resumed['loaded']:.2f} of it"
    )


if __name__ == "__main__":
    main()
