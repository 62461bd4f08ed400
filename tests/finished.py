"""What a finished run has made, less what depends on the clock: two runs are compared by it."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from jaxr1.base.jsonl import read_jsonl
from jaxr1.checkpoints.tensors import open_checkpoint

CLOCK = ("time/", "perf/", "memory/")


def kept(row):
    """A metrics line without what depends on the clock."""
    return {k: v for k, v in row.items() if not k.startswith(CLOCK)}


def files(folder, pattern):
    """{name: bytes} of rollouts."""
    return {path.name: path.read_bytes() for path in (folder / "rollouts").glob(pattern)}


@dataclasses.dataclass
class Finished:
    """Everything about a finished run that must not depend on interruptions."""

    tensors: dict[str, bytes]
    rollouts: dict[str, bytes]
    metrics: list[dict]
    dropped: bytes

    @classmethod
    def read(cls, folder: Path):
        export = open_checkpoint(folder / "export").items()
        return cls(
            tensors={name: np.array(file.read(name)).tobytes() for name, file in export},
            rollouts=files(folder, "*.jsonl"),
            metrics=[kept(row) for row in read_jsonl(folder / "metrics.jsonl")],
            dropped=(folder / "dropped.jsonl").read_bytes(),
        )


def differing(one: Finished, other: Finished) -> list[str]:
    """What is not the same, bit for bit."""
    found = []
    if one.tensors.keys() != other.tensors.keys():
        found.append("names of tensors")
    found += [f"tensor {k}" for k, x in one.tensors.items() if other.tensors.get(k) != x]
    if one.rollouts.keys() != other.rollouts.keys():
        found.append("names of rollouts")
    found += [k for k, x in one.rollouts.items() if other.rollouts.get(k) != x]
    if json.dumps(one.metrics) != json.dumps(other.metrics):
        found.append("metrics.jsonl")
    if one.dropped != other.dropped:
        found.append("dropped.jsonl")
    return found


def same(one: Finished, other: Finished):
    assert not differing(one, other)


def usable(params) -> bool:
    """Whether every array of a tree can be read, and is finite."""
    return all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(params))
