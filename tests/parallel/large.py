"""What the programs of published models need, compiled for shapes only: nothing is allocated.

    python tests/parallel/large.py             every row of README's table
    python tests/parallel/large.py --json      the same, a JSON object each
    python tests/parallel/large.py --quick     those that the tests look at
    python tests/parallel/large.py --topology v5p:2x2x2 --dtype bfloat16
                                               for a TPU that is not there (needs libtpu)

A row is a model, sizes and a program. Every device has one prompt row and a picture of as many
tokens as a quarter of it; parameters are split over `fsdp`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).parent.parent))

from models.test_published import PUBLISHED

from jaxr1.inputs.batch import EncodedPrompt, fitting_buckets
from jaxr1.inputs.planning import plan_strips
from jaxr1.inputs.strips import make_strips, plan_prompts
from jaxr1.models.vlm import Model, describe
from jaxr1.nn.params import nest
from jaxr1.parallel import make_mesh, sharding
from jaxr1.rl import Kl, PolicyStats, Ppo
from jaxr1.rl.step import Sums, TrainBatch, accumulate
from jaxr1.rl.terms import Objective
from jaxr1.sampling.decode import run_prefill
from jaxr1.sampling.scoring import score_batch


@dataclasses.dataclass(frozen=True)
class Row:
    """A program of a model, for G responses of T tokens to a prompt of P on each device."""

    model: str
    program: str
    devices: int
    prompt: int
    group: int
    response: int
    picture: bool = True
    budget: int = 8192
    strips_at_once: int = 0

    @property
    def name(self) -> str:
        picture = "" if self.picture else ", text only"
        sizes = f"P {self.prompt}, {self.group} x {self.response}{picture}"
        return f"{self.model}, {self.devices} device{'s'[: self.devices - 1]}, {sizes}"


LONG = dict(model="Qwen2.5-VL-7B", devices=8, prompt=4096, group=16, response=4096)
SHORT = dict(model="Qwen2.5-VL-7B", devices=8, prompt=1024, group=8, response=512)
DEEP = dict(model="Qwen3-VL-8B", devices=8, prompt=1024, group=4, response=256)
RECIPE = dict(model="Qwen2-VL-2B", devices=1, prompt=1024, group=8, response=700)
ROWS = [
    Row(program="score", **LONG),
    Row(program="update", **LONG),
    Row(program="update", **SHORT),
    Row(program="score", **DEEP),
    Row(program="score", picture=False, **DEEP),
    Row(program="score", **SHORT),
    Row(program="update", budget=16384, strips_at_once=2, **RECIPE),
    Row(program="update", **DEEP),
    Row(program="update", picture=False, **DEEP),
]


@dataclasses.dataclass
class Abstract:
    """Shapes on a mesh."""

    model: Model
    mesh: jax.sharding.Mesh

    def rows(self, tree):
        """Host arrays [rows, ...] as shapes, split over the devices."""

        def one(x):
            axes = ("batch", *(None,) * (x.ndim - 1))
            place = sharding(self.mesh, axes, x.shape, self.model.rules)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

        return jax.tree.map(one, tree)

    def whole(self, tree):
        """Numbers that every device has."""
        place = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    def params(self) -> dict:
        """float32 parameters."""
        flat = {}
        for path, p in self.model.table().items():
            place = sharding(self.mesh, p.axes, p.shape, self.model.rules)
            flat[path] = jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=place)
        return nest(flat)


def made_prompt(length: int, picture: bool, model: Model) -> EncodedPrompt:
    """A prompt of so many tokens; a quarter of them are a picture's."""
    merge = model.vision.merge_size
    side = int((length // 4) ** 0.5) * merge if picture else 0
    tokens = side**2 // merge**2
    index = np.where(np.arange(length) < tokens, np.arange(length), -1).astype(np.int32)
    pixels = (np.zeros((side**2, model.vision.geometry.values), np.float32),) if picture else ()
    grids = ((1, side, side),) if picture else ()
    zero = np.zeros((length, 3), np.int32)
    return EncodedPrompt(zero[:, 0], index, zero, length, pixels, grids)


def compiled(row: Row, dtype: str = "float32", devices=None):
    """The compiled program of a row, for these devices or those of this process."""
    model = describe(PUBLISHED[row.model][1], dtype=dtype, remat=True)
    devices = (devices or jax.devices())[: row.devices]
    abstract = Abstract(model, make_mesh((1, row.devices, 1), devices))
    prompts = [made_prompt(row.prompt, row.picture, model)] * row.devices
    counts = [[row.response] * row.group] * row.devices
    buckets = fitting_buckets(prompts, row.response)
    lengths = [len(prompt) for prompt in prompts]
    options = dict(token_budget=row.budget, strips_at_once=row.strips_at_once, multiple=row.devices)
    [plan] = plan_strips(lengths, counts, buckets, **options)
    tokens = np.zeros(sum(map(sum, counts)), np.int32)
    batch = plan_prompts(plan, prompts, buckets, model.media, multiple=row.devices)
    batch, strips = abstract.rows((batch, make_strips(plan, prompts, tokens)))
    params, forbidden = abstract.params(), (1, 2)
    with jax.set_mesh(abstract.mesh):
        if row.program == "prefill":
            return run_prefill.lower(model, params, batch, row.budget).compile()
        if row.program == "score":
            asked = (np.float32(1), ("logp",), forbidden, plan.at_once)
            return score_batch.lower(model, params, batch, strips, *asked).compile()
        objective = Objective((Ppo(), Kl(0.1), PolicyStats()), forbidden=forbidden)
        column = np.zeros((plan.rows, plan.strips, plan.strip_len), np.float32)
        columns = abstract.rows(dict.fromkeys(objective.columns, column))
        number = jax.ShapeDtypeStruct((), jnp.float32)
        loss, metrics = abstract.whole((number, objective.no_metrics(())))
        sums, micro_batch = Sums(params, loss, metrics), TrainBatch(batch, strips, columns)
        given = (model, objective, params, {}, sums, micro_batch, {}, plan.at_once)
        return accumulate.lower(*given).compile()


def measured(row: Row, *target) -> dict:
    """GiB on each device; `target` as the further arguments of `compiled`."""
    began = time.perf_counter()
    found = compiled(row, *target).memory_analysis()
    return {
        "name": row.name,
        "program": row.program,
        "temporaries": found.temp_size_in_bytes / 2**30,
        "arguments": found.argument_size_in_bytes / 2**30,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--topology", help="of a TPU, such as v5p:2x2x2")
    parser.add_argument("--dtype", default="float32", help="of the computation")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_compilation_cache", False)
    devices = None
    if args.topology:
        devices = topologies.get_topology_desc(args.topology, platform="tpu").devices
    for row in ROWS[:5] if args.quick else ROWS:
        found = measured(row, args.dtype, devices)
        if args.json:
            print(json.dumps(found), flush=True)
        else:
            line = f"{found['name']} | {found['program']} | {found['arguments']:.1f}"
            print(f"| {line} | {found['temporaries']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
