"""Which programs sampling may compile: known from its options, before anything is drawn.

prefill        for each number of rows, and P
state          whole ----------------> half the samples ---> a quarter of both
cache slots    all of them             the last two          the last two
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from jaxr1.inputs.arrangement import PatchGeometry
from jaxr1.inputs.room import list_rooms
from jaxr1.inputs.sizes import Buckets, falling
from jaxr1.sampling.decode import smaller
from jaxr1.sampling.sampler import FIRST_SLOTS, LAST_SLOTS

Program = tuple[str, tuple[int, ...]]
"""The name of a jitted function, and the sizes that it is compiled for."""


def list_media(
    rows: int, width: int, buckets: Buckets, media: Mapping[str, PatchGeometry], devices: int
) -> list[tuple[int, ...]]:
    """The sizes of the media rows that prompt rows may have: rows and length, for each kind."""
    found = []
    for geometry in media.values():
        patches = rows // devices * width * geometry.merge**2
        found.append(list_rooms(buckets.patches, geometry, patches=patches, devices=devices))
    return [tuple(itertools.chain(*sizes)) for sizes in itertools.product(*found)]


def list_prefills(
    name: str,
    prompts: Iterable[tuple[int, ...]],
    buckets: Buckets,
    media: Mapping[str, PatchGeometry],
    devices: int,
) -> set[Program]:
    """Programs that read prompt rows.

    Args:
      name: of the function.
      prompts: rows and P of the prompts, and further sizes.
    """
    programs = set()
    for sizes in prompts:
        for of_media in list_media(sizes[0], sizes[1], buckets, media, devices):
            programs.add((name, (*sizes, *of_media)))
    return programs


def list_sampling(
    rows: Sequence[int],
    samples: int,
    max_new_tokens: int,
    buckets: Buckets,
    media: Mapping[str, PatchGeometry],
    devices: int,
) -> set[Program]:
    """The programs of a `Sampler`.

    Args:
      rows: padded numbers of prompts that it is called with.
      samples: responses of each.
      max_new_tokens: limit of a response.
      devices: that share a batch.
    """
    slots = falling(max_new_tokens, (2, 4), FIRST_SLOTS)
    late = slots[-LAST_SLOTS:]
    prompts = list(itertools.product(rows, buckets.prompt))
    programs = {("weights", ())} | list_prefills("run_prefill", prompts, buckets, media, devices)
    for count, width in prompts:
        programs.add(("start", (count, width, samples, slots[0])))
        shapes = [*smaller(count, samples, devices), (count, samples)]
        for size in slots:
            of_size = shapes if size in late and size != slots[0] else shapes[-1:]
            programs |= {("decode_until", (*shape, size, width)) for shape in of_size}
        for before, after in itertools.pairwise(slots):
            of_size = shapes if after in late else shapes[-1:]
            programs |= {("grow", (*shape, before, after)) for shape in of_size}
            if after not in late:
                continue
            for shape, less in itertools.product(shapes, shapes):
                shrinks = math.prod(less) < math.prod(shape) and less[1] <= shape[1]
                if shrinks and (shape == shapes[-1] or before in late[:-1]):
                    programs.add(("select", (*shape, before, width, *less)))
    return programs
