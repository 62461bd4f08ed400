"""README's table of what large models need, against programs compiled for shapes only."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).with_name("large.py")


@pytest.fixture(scope="module")
def measured():
    """{(row, program): GiB of temporaries on a device}."""
    command = [sys.executable, str(SCRIPT), "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {(row["name"], row["program"]): row["temporaries"] for row in found}


def stated() -> dict[tuple[str, str], float]:
    """The rows of README's table."""
    pattern = r"^\| (.+ devices?, P .+?) \| (score|update) \| [\d.]+ \| ([\d.]+) \|$"
    found = re.findall(pattern, (ROOT / "README.md").read_text(), re.M)
    return {(name, program): float(gib) for name, program, gib in found}


def test_the_table_is_what_compiles(measured):
    table = stated()
    print(measured)
    assert len(measured) >= 4
    for row, gib in measured.items():
        assert table[row] == pytest.approx(gib, rel=0.1, abs=0.15), row


@pytest.mark.parametrize(
    ("name", "program", "most"),
    [
        ("P 4096, 16 x 4096", "score", 6),
        ("P 4096, 16 x 4096", "update", 15),
        ("P 1024, 8 x 512", "update", 11),
    ],
)
def test_seven_billion_on_eight_devices(measured, name, program, most):
    assert measured[f"Qwen2.5-VL-7B, 8 devices, {name}", program] <= most


def test_deep_features_cost_no_copy_of_the_decoder(measured):
    sizes = "Qwen3-VL-8B, 8 devices, P 1024, 4 x 256"
    with_picture, text = measured[sizes, "score"], measured[f"{sizes}, text only", "score"]
    assert with_picture <= 1.1 * text
