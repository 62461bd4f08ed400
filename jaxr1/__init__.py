"""jaxr1: reinforcement learning from rules for vision-language models, in JAX.

Importing this package imports nothing else: names load on first use, so that a reward worker never
pays for jax.
"""

import importlib
import sys
import types

__version__ = "0.2.0"

_HOME = {
    "Prompt": "jaxr1.inputs.template",
    "load_model": "jaxr1.models.load",
    "load_processor": "jaxr1.models.load",
    "save_model": "jaxr1.models.load",
    "generate": "jaxr1.sampling.generate",
    "Completion": "jaxr1.sampling.sampler",
    "score": "jaxr1.sampling.scoring",
    "train": "jaxr1.run.loop",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(
            f"module 'jaxr1' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}"
        )
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__():
    return sorted({*globals(), *_HOME})


class _Package(types.ModuleType):
    """Keeps `jaxr1.train` the function after `import jaxr1.train`.

    Importing a submodule sets it as an attribute of its package, which would hide the public
    function of the same name (train, score, ...). Commands stay modules of that name for `python -m
    jaxr1.train`; they are found in sys.modules, also by `from jaxr1.train import main`.
    """

    def __setattr__(self, name, value):
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
