"""What every `python -m jaxr1.X` does first: quiet libraries, the compilation cache, readable errors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


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


def arguments(kind: type[T], command: str, argv: Sequence[str] | None, config: Sequence[Any] = ()) -> T:
    """The options of `python -m jaxr1.<command>` from the command line, as an instance of the dataclass `kind`.

    Exits with status 2 and a message where they do not fit (its `__post_init__` may raise ValueError).
    """
    import tyro

    prog = f"python -m jaxr1.{command}"
    return tyro.cli(kind, prog=prog, args=None if argv is None else list(argv), config=tuple(config))


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
    from jaxr1.run.check import OptionError
    from jaxr1.run.resume import ResumeError

    failed = Failed()
    expected = (
        CheckpointError, ConfigError, DataError, TooLong, MediaError, OptionError, PromptError, RewardError, ResumeError,
    )  # fmt: skip
    try:
        yield failed
    except expected as e:
        print(f"error: {e}", file=sys.stderr)
    except BrokenPipeError:  # whoever reads has seen enough (`... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
