"""Test settings: four simulated devices, float32, no network, one cache of compiled programs."""

import gc
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAXR1_CACHE", str(Path(tempfile.gettempdir()) / "jaxr1-test-cache"))

import jax
import numpy as np
import pytest

# Tests are many small programs, compiled once and run once: code generation without optimisation
# halves their time, and the older fusion emitters, where XLA still has them, compile the update in
# a quarter of what is left.
FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_compilation_cache_dir", os.environ["JAXR1_CACHE"] + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees a module's compiled programs.

    Each holds memory maps, of which Linux allows a process 65,530.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def seed():
    """A fresh seed each run; pytest prints it when the test fails."""
    value = int.from_bytes(os.urandom(4), "little")
    print(f"seed {value}")
    return value


@pytest.fixture(scope="module")
def module_seed():
    """As `seed`, for what a module makes once."""
    value = int.from_bytes(os.urandom(4), "little")
    print(f"module seed {value}")
    return value


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)
