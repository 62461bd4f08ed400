"""Loading and saving hold one tensor at a time.

Measured as the peak memory of a subprocess on a checkpoint of sparse files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scale.py"
# 16 layers of 53 MiB, in stacks of up to 256 MiB, and two matrices of 48 MiB: several times what
# may be in memory at once.
SIZES = ["--layers=16", "--width=1024", "--mlp=8192", "--heads=8", "--kv-heads=2", "--vocab=24576"]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("devices", "dtype"), [(1, "bfloat16"), (1, "float32"), (4, "bfloat16")])
def test_memory_does_not_grow_with_the_model(devices, dtype):
    """Beyond the parameters there is one tensor on its way, and what malloc keeps (160 MiB)."""
    flags = [*SIZES, "--stack-mib=16", f"--dtype={dtype}", "--shard-mib=200", "--save"]
    result = subprocess.run(
        [sys.executable, SCRIPT, *flags],
        env=dict(os.environ, SCALE_DEVICES=str(devices), JAX_PLATFORMS="cpu", XLA_FLAGS=""),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    print(found)
    wide = 2 if dtype == "float32" else 1
    one = wide * found["largest_tensor_mib"]
    assert found["parameters_mib"] >= 900 * wide and found["files"] >= 5
    assert found["load_extra_mib"] <= one + 160
    # As fetched and as written; on a CPU the copy on several devices is host memory too.
    assert found["save_extra_mib"] <= (2 if devices == 1 else 3) * one + 160
