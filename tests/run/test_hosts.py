"""Runs on two hosts: one that dies ends the other by name, and the same command goes on."""

import re
import signal
from pathlib import Path

import hosts
import pytest
from finished import Finished, same

import jaxr1
from jaxr1.base.jsonl import read_jsonl

SCRIPT = Path(__file__).with_name("killed.py")
MINUTE = 60.0


def run(folder, *phases, variant="config", devices=2):
    """A process for each phase, with the same command."""
    asked = [[phase, str(folder), f"variant={variant}"] for phase in phases]
    return hosts.run(SCRIPT, *asked, devices=devices)


def finished(folder) -> Finished:
    return Finished.read(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder) -> Finished:
    """What two hosts leave behind that nothing has interrupted."""
    main, other = run(folder / "whole", "none", "none")
    assert main.code == other.code == 0, main.output + other.output
    # One of them talks and writes.
    assert "report:" in main.output and "report:" not in other.output
    return finished(folder / "whole")


def test_two_hosts_run_what_one_does(folder, whole):
    """All stages, evaluations and the export; the supervised steps as one host's to a rounding."""
    (alone,) = run(folder / "alone", "none", devices=4)
    assert alone.code == 0, alone.output
    one = finished(folder / "alone")
    assert one.rollouts.keys() == whole.rollouts.keys()
    before = [name for name in one.rollouts if name.endswith("_sft_0.jsonl")]
    assert before
    assert all(one.rollouts[name] == whole.rollouts[name] for name in before)
    for here, there in zip(one.metrics, whole.metrics, strict=True):
        assert here.keys() == there.keys()
        if here["stage"] == "sft":
            numbers = lambda row: {k: v for k, v in row.items() if isinstance(v, float)}
            assert numbers(here) == pytest.approx(numbers(there), rel=1e-5, abs=1e-6)
    pick = lambda folder, name: [
        row[name] for row in read_jsonl(folder / "metrics.jsonl") if name in row
    ]
    for name in ("perf/rows_per_prompt", "perf/padded_per_real", "perf/padding"):
        assert pick(folder / "whole", name) == pick(folder / "alone", name)
    jaxr1.load_model(folder / "whole" / "export")


def test_a_dead_host_ends_the_other_by_name_and_the_run_goes_on(folder):
    """Stopped, then killed in saving, in a collective, in grading, while RL trains adapters.

    At the end all is as if nothing had been.
    """
    for end in run(folder / "lora", "none", "none", variant="lora"):
        assert end.code == 0, end.output
    out = folder / "killed"
    main, other = run(out, "none", "stop:gradients:2", variant="lora")
    assert main.code == other.code == 128 + signal.SIGTERM, main.output + other.output
    assert "SIGTERM on host 1: saving and stopping" in main.output
    assert "the same command resumes" in main.output
    for victim, phase in (
        (0, "at:saving:1:0.002"),
        (1, "at:gradients:2:0.0"),
        (0, "at:grading:2:0.0"),
        (1, "at:saving:1:0.002"),
    ):
        phases = ["none", "none"]
        phases[victim] = phase
        ends = run(out, *phases, variant="lora")
        survivor = ends[1 - victim]
        assert ends[victim].code == -signal.SIGKILL, ends[victim].output
        assert survivor.code != 0 and survivor.after_s < MINUTE
        said = rf"error: host {victim} of 2 \(.*, process \d+\) has ended: it was killed"
        assert re.search(said, survivor.output), survivor.output
        assert "goes on from the last checkpoint" in survivor.output
    for end in run(out, "none", "none", variant="lora"):
        assert end.code == 0, end.output
    same(finished(out), finished(folder / "lora"))
    metrics = read_jsonl(out / "metrics.jsonl")
    assert any(row.get("policy/grad_norm", 0) > 0 for row in metrics if row["stage"] == "rl")


def test_an_error_of_one_host_ends_the_other_by_name(folder):
    main, other = run(folder / "failed", "none", "raise:gradients:4")
    assert "RuntimeError: only here" in other.output
    assert "host 1 of 2" in main.output and "RuntimeError: only here" in main.output
    assert main.code and other.code and max(main.after_s, other.after_s) < MINUTE


def test_each_host_fills_its_own_quota(folder):
    """Rollouts that are refilled, groups carried over; one host dies in a refill, the same command
    goes on.
    """
    for end in run(folder / "filtered", "none", "none", variant="filtered"):
        assert end.code == 0, end.output
    made = finished(folder / "filtered")
    steps = [row for row in made.metrics if "filter/tries" in row]
    tries = [int(row["filter/tries"]) for row in steps]
    assert len(steps) == 4 and max(tries) > 1
    for row in steps:
        rows = read_jsonl(folder / "filtered" / "rollouts" / f"rl_{row['step']}.jsonl")
        learned = {one["draw"] for one in rows if "role" not in one}
        assert len(learned) == 4 and all("advantage" in one for one in rows if "role" not in one)
    out = folder / "filtered_killed"
    refilled = next(i for i, count in enumerate(tries) if count > 1)
    call = sum(tries[:refilled]) + 2
    main, other = run(out, "none", f"at:grading:{call}:0.0", variant="filtered")
    assert other.code == -signal.SIGKILL and main.code != 0, main.output + other.output
    for end in run(out, "none", "none", variant="filtered"):
        assert end.code == 0, end.output
    same(finished(out), made)
