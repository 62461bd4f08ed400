"""How long steps wait for their draws: `python tests/inputs/feeding.py --steps 4 --seconds 40`.

Every step takes pictures of a megapixel and then does nothing for some seconds, as the cores do
while an accelerator works. What it waits for its draws after the first step is idle time.
"""

import argparse
import io
import resource
import threading
import time

import numpy as np
from PIL import Image

import jaxr1
from jaxr1.data.example import Dataset, Example
from jaxr1.inputs.ahead import cores
from jaxr1.inputs.draws import Draws

SIDE = 1000


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG of a megapixel: blobs with fine noise, about as large as a photograph's file."""
    small = Image.fromarray(rng.integers(0, 256, (25, 25, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--ahead", type=int, default=None, help="draws; default is a step's")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    files = [photo(rng) for _ in range(16)]
    size = sum(map(len, files)) / len(files) / 1e6

    def row(number: int) -> Example:
        image = {"type": "image", "image": files[number % len(files)]}
        text = {"type": "text", "text": f"What is in picture {number}?"}
        return Example(({"role": "user", "content": [image, text]},), "", source=f"row {number}")

    data = Dataset("photos", args.steps * args.pictures, row)
    processor = jaxr1.load_processor("tiny", max_pixels=1280 * 28 * 28)
    options = dict(seed=0, max_prompt_tokens=2048, on_drop=print, threads=args.threads)
    ahead = args.pictures if args.ahead is None else args.ahead
    waits, position = [], 0
    with Draws(data, processor, **options) as draws:
        for step in range(args.steps):
            began = time.perf_counter()
            position, taken = draws.take(position, args.pictures, ahead)
            waits.append(time.perf_counter() - began)
            if step == 0:
                patches = [found for draw in taken for found in draw.prompt.patches]
                mib = sum(found.nbytes for found in patches) / 2**20
                what = f"{len(patches)} pictures of {size:.2f} MB, {mib / len(patches):.2f} MiB"
                print(f"{what} of patches each; {cores()} cores", flush=True)
            del taken
            print(f"step {step + 1}: waited {waits[-1]:.3f} s", flush=True)
            time.sleep(args.seconds)
        print(f"{threading.active_count()} threads")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    later = waits[1:]
    idle = sum(later) / (sum(later) + len(later) * args.seconds)
    print(f"idle after the first step {idle:.2%}; peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
