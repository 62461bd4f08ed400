"""What a large data set costs before the first step: `python tests/run/start_up.py`.

A run of one step is made twice in processes of their own, on a file of few rows and on one of many,
each row with a picture of its own inside the file and an answer in LaTeX that takes computer
algebra to parse. The difference of the two is what the rows cost, in seconds until the first step
begins and in memory.
"""

import argparse
import base64
import dataclasses
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("JAXR1_CACHE", str(Path(tempfile.gettempdir()) / "jaxr1-test-cache"))

SIDE = 58  # noise of so many pixels a side is a PNG of about 10 KiB
KINDS = ("jsonl", "json", "parquet")


def rows_of(count: int):
    """{"prompt", "images", "answer"}, with the encoded bytes of one picture."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "PNG")
        a, b, c, d = map(int, rng.integers(2, 900, 4))
        answer = f"\\frac{{{a}\\sqrt{{{b}}}}}{{{c}}}+{d}x^2"
        prompt = f"<image>What is {number}?"
        yield {"prompt": prompt, "images": [file.getvalue()], "answer": answer}


def write(file: Path, count: int) -> None:
    """A file of rows, of the kind that its name says."""
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = pa.schema(
            [
                ("prompt", pa.string()),
                ("images", pa.list_(pa.binary())),
                ("answer", pa.string()),
            ]
        )
        with pq.ParquetWriter(file, kinds) as table:
            batch = []
            for row in rows_of(count):
                batch.append(row)
                if len(batch) == 64:
                    table.write_table(pa.Table.from_pylist(batch, kinds))
                    batch = []
            table.write_table(pa.Table.from_pylist(batch, kinds))
        return
    listed = file.suffix == ".json"
    with open(file, "w") as out:
        out.write("[" * listed)
        for number, row in enumerate(rows_of(count)):
            coded = [base64.b64encode(picture).decode() for picture in row["images"]]
            out.write((",\n" if listed and number else "") + json.dumps({**row, "images": coded}))
            out.write("" if listed else "\n")
        out.write("]" * listed)


def measure(file: str, run_dir: str) -> None:
    """One step; prints what its beginning took."""
    began = time.perf_counter()
    from reference import one_stage

    from jaxr1.data import Files
    from jaxr1.rewards import Reward
    from jaxr1.run import BucketOptions
    from jaxr1.run.loop import Run, train

    found = {}
    step = Run._step

    def watched(self, *args):
        found["seconds"] = time.perf_counter() - began
        found["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return step(self, *args)

    Run._step = watched
    buckets = BucketOptions(prompt=(64,), response=(16,), patches=(64,))
    fields = dict(max_prompt_tokens=64, buckets=buckets, rewards=(Reward("accuracy"),))
    config = one_stage(Path(run_dir), steps=1, data=Files(file), **fields)
    train(dataclasses.replace(config, export=False))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[::2])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for kind in args.kinds:
            found = {}
            for count in (args.few, args.rows):
                file = Path(scratch) / f"rows{count}.{kind}"
                write(file, count)
                command = [sys.executable, __file__, "--measure", str(file), f"{file}.run"]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[count] = json.loads(told.stdout.splitlines()[-1])
                size = file.stat().st_size / 2**30
                file.unlink()
                print(f"{kind}, {count} rows ({size:.2f} GiB): {found[count]}", flush=True)
            few, many = found[args.few], found[args.rows]
            seconds, gib = many["seconds"] - few["seconds"], many["gib"] - few["gib"]
            print(f"{kind}: {seconds:.1f} s and {gib:.2f} GiB more", flush=True)


if __name__ == "__main__":
    main()
