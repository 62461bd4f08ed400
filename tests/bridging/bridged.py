"""Bridges the built-in pictures: `python bridged.py SEES REASONS OUT`, two model directories."""

import os
import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_compilation_cache_dir", os.environ["JAXR1_CACHE"] + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

from jaxr1.bridging.bridge import bridge
from jaxr1.bridging.options import Bridge
from jaxr1.data import Arithmetic

ROWS = 48


def options(sees: str, reasons: str, out: str) -> Bridge:
    """Few rows at a time, so that there are many places to be killed in."""
    return Bridge(
        data=Arithmetic(count=ROWS, digits=1),
        model=sees,
        reason_model=reasons,
        out=out,
        max_prompt_tokens=512,
        max_pseudo_tokens=32,
        max_description_tokens=32,
        max_reasoning_tokens=64,
        batch_rows=4,
        samples=2,
    )


if __name__ == "__main__":
    sys.exit(bridge(options(*sys.argv[1:4])))
