"""What every command does first: quiet libraries, compilation cache, readable errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jaxr1.base.errors import UserError
from jaxr1.base.text import visible

T = TypeVar("T")


def prepare() -> None:
    """Settings that must be made before jax is used; the environment wins over each of them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import logging

    import jax

    from jaxr1.base.files import cache_folder

    logging.getLogger("absl").setLevel(logging.ERROR)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def arguments(
    kind: type[T], command: str, argv: Sequence[str] | None, config: Sequence[Any] = ()
) -> T:
    """The command line of `python -m jaxr1.<command>` as an instance of the dataclass `kind`.

    Exits with status 2 and a message where they do not fit (its `__post_init__` may raise
    ValueError).
    """
    import tyro

    prog = f"python -m jaxr1.{command}"
    args = None if argv is None else list(argv)
    try:
        return tyro.cli(kind, prog=prog, args=args, config=tuple(config))
    except BrokenPipeError:  # of the help
        _read_no_more()
        sys.exit(0)


def finish(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status: 1 where something in its input is to be mended.

    Such a mistake is printed as one message; everything else is a bug and keeps its traceback.
    """
    try:
        return command()
    except UserError as e:
        print(f"error: {visible(str(e))}", file=sys.stderr)
    except BrokenPipeError:
        _read_no_more()
    return 1


def _read_no_more() -> None:
    """Whoever reads has seen enough (`... | head`): what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
