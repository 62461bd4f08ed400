"""What every `python -m jaxr1.X` does first: quiet libraries, the compilation cache, readable errors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass


def prepare() -> None:
    """Settings that must be made before jax is used; the environment wins over each of them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import logging

    import jax

    from jaxr1.models.presets import cache_folder

    logging.getLogger("absl").setLevel(logging.ERROR)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@dataclass
class Failed:
    """The exit status of a command that ended with a mistake in its input."""

    status: int = 1


@contextlib.contextmanager
def complain() -> Iterator[Failed]:
    """Prints mistakes in the input as one message without a traceback; everything else is a bug and keeps its own."""
    from jaxr1.checkpoints.tensors import CheckpointError
    from jaxr1.config import ConfigError
    from jaxr1.data.example import DataError
    from jaxr1.inputs.batch import TooLong
    from jaxr1.inputs.images import MediaError
    from jaxr1.inputs.template import PromptError
    from jaxr1.rewards.pool import RewardError
    from jaxr1.run.resume import ResumeError

    failed = Failed()
    expected = (CheckpointError, ConfigError, DataError, TooLong, MediaError, PromptError, RewardError, ResumeError)
    try:
        yield failed
    except expected as e:
        print(f"error: {e}", file=sys.stderr)
