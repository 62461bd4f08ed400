"""Config files and the command line: a Python file gives the options, flags change fields.

configs/quickstart.py            its function `config`, or `paper` where the file has variants
configs/x.py:tiny                its function `tiny`
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxr1.base.errors import UserError
from jaxr1.run.options import Config

DEFAULT_VARIANTS = ("config", "paper")


class ConfigError(UserError):
    """A config file or a flag that cannot be used; says what would be accepted."""


def load_config(spec: str) -> Config:
    """The configuration that "path.py" or "path.py:variant" names.

    Raises:
      ConfigError: no such file or variant (with the nearest one), a wrong key, type or value in it,
        or the function returns something else.
    """
    path, _, variant = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path()
        near = difflib.get_close_matches(file.name, [p.name for p in folder.glob("*.py")], 1)
        raise ConfigError(
            f"no config file {path!r}" + (f"; did you mean {folder / near[0]}?" if near else "")
        )
    name = f"jaxr1_config_{file.stem}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    _run(file, lambda: module_spec.loader.exec_module(module))  # type: ignore[union-attr]
    variants = [
        n
        for n, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == name and not n.startswith("_")
    ]
    variant = variant or next((v for v in DEFAULT_VARIANTS if v in variants), "")
    if variant not in variants:
        near = difflib.get_close_matches(variant, variants, 1)
        raise ConfigError(
            f"{path} has no variant {variant or 'config'!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" It has: {', '.join(variants) or 'none'}"
        )
    config = _run(file, getattr(module, variant))
    if not isinstance(config, Config):
        raise ConfigError(
            f"{path}:{variant} returned {type(config).__name__}, expected jaxr1.run.Config"
        )
    return config


def _run(file: Path, function: Callable[[], Any]) -> Any:
    """Runs a part of a config file; a mistake in an option becomes a ConfigError with its line,
    bugs stay as they are.
    """
    try:
        return function()
    except SyntaxError as e:
        raise ConfigError(f"{e.filename}:{e.lineno}: {e.msg}") from e
    except (TypeError, ValueError) as e:
        frames = traceback.extract_tb(e.__traceback__)
        inside = [f for f in frames if Path(f.filename).resolve() == file.resolve()]
        wrong_call = isinstance(e, TypeError) and re.match(
            r"(\w+)\.__init__\(\) (got|missing|takes)", str(e)
        )
        # A ValueError raised by the options themselves; one raised by the file's own code is a bug
        # to be seen whole.
        wrong_value = isinstance(e, ValueError) and bool(inside) and frames[-1] is not inside[-1]
        if not inside or not (wrong_call or wrong_value):
            raise
        raise ConfigError(f"{file}:{inside[-1].lineno}: {e}{_nearest(str(e))}") from e


def _nearest(text: str) -> str:
    """A hint such as "; did you mean 'group_size'?" for a keyword that a class does not have."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if not found:
        return ""
    loaded = [m for n, m in sys.modules.items() if n.startswith("jaxr1")]
    cls = next((c for m in loaded if inspect.isclass(c := vars(m).get(found.group(1)))), None)
    fields = list(inspect.signature(cls).parameters) if cls else []
    if near := difflib.get_close_matches(found.group(2), fields, 1):
        return f"; did you mean {near[0]!r}?"
    return f"; it has {', '.join(fields)}" if fields else ""


def parse(config: Config, flags: Sequence[str], prog: str) -> Config:
    """The configuration with single fields changed: `--seed 3 --stages.1.kl.coef 0.01`.

    Exits with the field's path and what would be accepted when a flag does not fit (and prints help
    for --help).
    """
    import tyro

    return tyro.cli(
        tyro.conf.AvoidSubcommands[type(config)],  # type: ignore[misc]
        prog=prog,
        args=list(flags),
        default=config,
        config=(tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed),
    )
