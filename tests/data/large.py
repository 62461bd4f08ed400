"""What a large file of rows costs: `python tests/data/large.py`.

Makes a file of rows with a picture inside each, loads it, and draws from it as a stage does, with
the processor of the tiny model. Prints seconds, rows per second, and resident memory.
"""

import argparse
import base64
import csv
import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

KINDS = ("parquet", "one-group.parquet", "jsonl", "json", "tsv")


def pictures(count: int) -> list[bytes]:
    """Pictures of 8 to 10 KiB each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (84, int(rng.integers(72, 92)), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        found.append(file.getvalue())
    return found


def rows(count: int):
    """Rows, no two pictures of which are the same bytes."""
    known, rng = pictures(64), np.random.default_rng(1)
    for i in range(count):
        yield i, known[i % len(known)] + rng.bytes(24)  # behind its end


def write_parquet(file: Path, count: int, group: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    schema = pa.schema([("problem", pa.string()), ("answer", pa.string()), ("images", kind)])
    held, buffer = [], min(group, 1000)
    with open(file, "wb") as sink, pq.ParquetWriter(sink, schema) as writer:
        if group < count:
            for i, data in rows(count):
                held.append(parquet_row(i, data))
                if len(held) == buffer or i == count - 1:
                    writer.write_table(pa.Table.from_pylist(held, schema))
                    held.clear()
        else:  # one group, as pandas writes it
            batch = (pa.RecordBatch.from_pylist([parquet_row(*row)], schema) for row in rows(count))
            table = pa.Table.from_batches(batch, schema)
            writer.write_table(table, row_group_size=count)


def parquet_row(i: int, data: bytes) -> dict:
    images = [{"bytes": data, "path": None}]
    return {"problem": f"<image>How many in {i}?", "answer": str(i % 10), "images": images}


def write_text(file: Path, count: int) -> None:
    with open(file, "w", newline="") as out:
        if file.suffix == ".tsv":
            table = csv.writer(out, delimiter="\t", lineterminator="\n")
            table.writerow(["index", "question", "answer", "image"])
            for i, data in rows(count):
                coded = base64.b64encode(data).decode()
                table.writerow([i, f"How many in {i}?", i % 10, coded])
            return
        is_list = file.suffix == ".json"
        out.write("[" if is_list else "")
        for i, data in rows(count):
            coded = base64.b64encode(data).decode()
            row = {"problem": f"<image>How many in {i}?", "answer": i % 10, "images": [coded]}
            end = ",\n" if is_list else "\n"
            out.write(json.dumps(row) + (end if i < count - 1 else "]" if is_list else "\n"))


def mib(name: str) -> float:
    """Resident memory now ("VmRSS") or at its highest ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def measure(file: Path, check: str, steps: int) -> None:
    import jaxr1
    from jaxr1.data import Files
    from jaxr1.inputs.draws import Draws

    processor = jaxr1.load_processor("tiny")
    print(f"{file.name}: {file.stat().st_size / 2**30:.2f} GiB, check_images={check!r}")
    before, began, worked = mib("VmRSS"), time.monotonic(), time.process_time()
    dataset = Files(str(file), check_images=check).load()
    took = time.monotonic() - began
    worked = time.process_time() - worked
    now, peak = mib("VmRSS") - before, mib("VmHWM") - before
    print(
        f"  load {took:.1f} s ({worked:.1f} s of a processor), {len(dataset) / took:.0f} rows/s; "
        f"resident +{now:.0f} MiB, peak +{peak:.0f} MiB"
    )
    order = np.random.default_rng(2).permutation(len(dataset))[:200]
    began = time.monotonic()
    assert all(dataset[int(i)].images for i in order)
    print(f"  a row in any order {(time.monotonic() - began) / len(order) * 1000:.2f} ms")
    fail = lambda source, reason: print(source, reason)
    with Draws(dataset, processor, seed=0, max_prompt_tokens=512, on_drop=fail) as draws:
        began = time.monotonic()
        position, _ = draws.take(0, 64)
        print(f"  the first 64 draws {time.monotonic() - began:.2f} s")
        resident, at = [], []
        began = time.monotonic()
        for step in range(steps):
            position, _ = draws.take(position, 64, ahead=64)
            if step >= steps // 10:
                resident.append(mib("VmRSS"))
                at.append(step)
        took = time.monotonic() - began
    slope = np.polyfit(at, resident, 1)[0] if len(at) > 1 else 0.0
    print(
        f"  {steps} steps of 64: {64 * steps / took:.0f} draws/s; resident {resident[-1]:.0f} MiB, "
        f"slope {slope * steps:+.1f} MiB in {steps} steps"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--kind", choices=KINDS, default="parquet")
    parser.add_argument("--check-images", choices=("header", "decode", "no"), default="header")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="large_rows_"))
    try:
        file = folder / f"rows.{options.kind}"
        made = os.fork()  # the memory that it takes to make the file is none of reading it
        if made == 0:
            if file.suffix == ".parquet":
                is_one = options.kind.startswith("one")
                write_parquet(file, options.rows, options.rows if is_one else 1000)
            else:
                write_text(file, options.rows)
            os._exit(0)
        assert os.waitpid(made, 0)[1] == 0
        measure(file, options.check_images, options.steps)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
