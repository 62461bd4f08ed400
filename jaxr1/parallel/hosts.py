"""Agreement of hosts: each decision that picks a shape or a branch goes through `agree`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np


def agree(values: Sequence[int]) -> list[int]:
    """Host 0's integers on every host (the identity on one host).

    Hosts that decide apart (a bucket, a stop, a retry) would launch different programs and hang in
    the first collective; asking host 0 makes the decision once.
    """
    if jax.process_count() == 1:
        return [int(v) for v in values]
    from jax.experimental import multihost_utils

    return [int(v) for v in multihost_utils.broadcast_one_to_all(np.asarray(values, np.int64))]
