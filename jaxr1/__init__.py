"""jaxr1: reinforcement learning from rules for vision-language models, in JAX.

Importing this package imports nothing else: names load on first use, so that a reward worker never pays for jax.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "Prompt": "jaxr1.inputs.template",
    "load_model": "jaxr1.models.registry",
    "load_processor": "jaxr1.models.registry",
    "save_model": "jaxr1.models.registry",
    "generate": "jaxr1.sampling.generate",
    "Completion": "jaxr1.sampling.generate",
    "score": "jaxr1.sampling.scoring",
    "train": "jaxr1.run.loop",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'jaxr1' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__():
    return sorted({*globals(), *_HOME})
