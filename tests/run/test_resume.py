"""Invariant 6: killed anywhere and resumed equals uninterrupted, bit for bit."""

import collections
import json
import os
import signal
import time

import pytest
from finished import Finished, files, same
from run.kills import run, start

from jaxr1.base.jsonl import read_jsonl


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(variant): what a run makes that nothing has interrupted."""
    found = {}

    def made(variant):
        if variant not in found:
            folder = tmp_path_factory.mktemp("runs") / variant
            code, output = run("none", folder, f"variant={variant}")
            assert code == 0, output
            found[variant] = Finished.read(folder)
        return found[variant]

    return made


@pytest.fixture(scope="module")
def uninterrupted(whole):
    return whole("config")


@pytest.fixture(scope="module")
def uninterrupted_on_four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "four"
    code, output = run("none", folder, devices=4)
    assert code == 0, output
    return Finished.read(folder)


def test_the_run_is_worth_comparing(uninterrupted):
    """Every step moved the parameters, both stages and all evaluations are there."""
    metrics = uninterrupted.metrics
    steps = [row for row in metrics if "policy/grad_norm" in row]
    assert [(row["stage"], row["step"]) for row in steps] == [
        *[("sft", 1), ("sft", 2)],
        *[("rl", 1), ("rl", 2), ("rl", 3), ("rl", 4)],
    ]
    assert all(row["policy/grad_norm"] > 0 for row in steps)
    tests = [(row["stage"], row["step"]) for row in metrics if "eval/heldout/accuracy" in row]
    assert tests == [("sft", 0), ("sft", 2), ("rl", 2), ("rl", 4)]
    assert any(row.get("policy/kl", 0) > 0 for row in metrics)


@pytest.mark.parametrize(
    ("phase", "variant"),
    [
        ("sampling", "config"),
        ("checkpoint", "config"),
        ("grading", "lora"),  # on bfloat16 parameters
        ("evaluation", "frozen"),  # a tower that the first stage has moved
        ("update", "ppo"),  # a critic, coefficients and a reference that move
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, whole, phase, variant):
    """Some of the places of kills.py, which dies at random ones."""
    folder, options = tmp_path / "run", f"variant={variant}"
    code, output = run(phase, folder, options)
    assert code == -signal.SIGKILL, output
    assert not (folder / "export").exists()
    code, output = run("none", folder, options)
    assert code == 0, output
    same(Finished.read(folder), whole(variant))


def test_killed_and_resumed_on_four_devices(tmp_path, uninterrupted_on_four):
    """In the update; parameters and optimiser state are split over a mesh (1, 4, 1)."""
    code, output = run("update", tmp_path / "run", devices=4)
    assert code == -signal.SIGKILL, output
    code, output = run("none", tmp_path / "run", devices=4)
    assert code == 0, output
    same(Finished.read(tmp_path / "run"), uninterrupted_on_four)


def test_grades_are_replayed(tmp_path):
    """A grader that never says the same twice: the update uses what was written before the kill."""
    code, output = run("update", tmp_path / "run", "unrepeatable")
    assert code == -signal.SIGKILL, output
    written = files(tmp_path / "run", "rl_*.jsonl")
    assert set(written) == {f"rl_{i}.jsonl" for i in (1, 2, 3, 4)}
    code, output = run("none", tmp_path / "run", "unrepeatable")
    assert code == 0, output
    assert files(tmp_path / "run", "rl_*.jsonl") == written


def test_a_finished_run_says_so(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    assert run("none", folder)[0] == 0
    before = (folder / "metrics.jsonl").read_bytes()
    code, output = run("none", folder)
    assert code == 0 and "is finished" in output
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit(tmp_path, uninterrupted, number):
    """Stopped in the middle of RL: a checkpoint, a message, the exit status of the signal.

    Resumed, it is the same run.
    """
    folder = tmp_path / "run"
    process = start("none", folder)
    deadline = time.time() + 200
    while time.time() < deadline and not (folder / "rollouts" / "rl_1.jsonl").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=200)
    if process.returncode == 0:
        pytest.fail(f"the run ended before the signal came:\n{output}")
    assert process.returncode == 128 + number, output
    assert "the same command resumes" in output
    code, output = run("none", folder)
    assert code == 0, output
    same(Finished.read(folder), uninterrupted)


def test_progressive_lengths_switch_at_the_right_step_and_survive_a_kill(tmp_path, whole):
    """Length limit and group size (Vision-R1's PTST) are those of the stage, from its first step.

    Killed while the second stage samples for the first time, and in its last update.
    """
    made, variant = whole("progressive"), "variant=progressive"
    for name, group, most in (("short", 8, 8), ("long", 4, 16)):
        for step in (1, 2):
            text = made.rollouts[f"{name}_{step}.jsonl"].decode()
            rows = [json.loads(line) for line in text.splitlines()]
            groups = collections.Counter(row["draw"] for row in rows)
            assert {*groups.values()} == {group} and len(groups) == 4
            lengths = [row["length"] for row in rows]
            assert max(lengths) <= most
            # The limit is met: nearly all responses of a random model are cut.
            assert max(lengths) == most
    folder = tmp_path / "run"
    # The third rollout to be graded is the second stage's first; then, resumed there, the third
    # update is in its second step.
    for phase in ("at:grading:3:0", "at:update:3:0"):
        code, output = run(phase, folder, variant)
        assert code == -signal.SIGKILL, output
        assert (folder / "rollouts" / "short_2.jsonl").exists()
    code, output = run("none", folder, variant)
    assert code == 0, output
    same(Finished.read(folder), made)


def test_killed_in_a_refill_and_with_groups_carried_over(tmp_path, whole):
    """Rollouts of several tries: in a later one of a step, then behind a step that has left groups
    for the next one.
    """
    made, options = whole("filtered"), ("variant=filtered", "save_every=1")
    steps = [row for row in made.metrics if "filter/tries" in row]
    tries = [int(row["filter/tries"]) for row in steps]
    refilled = next(i for i, count in enumerate(tries) if count > 1)
    folder = tmp_path / "run"
    code, output = run(f"at:grading:{sum(tries[:refilled]) + 2}:0", folder, *options)
    assert code == -signal.SIGKILL, output
    assert not (folder / "rollouts" / f"rl_{refilled + 1}.jsonl").exists()

    # It began again with the first step.
    left = [i for i, row in enumerate(steps[:-1]) if row["filter/surplus"]]
    assert left, "no step has left groups: another seed is needed"
    code, output = run(f"at:grading:{sum(tries[: left[0] + 1]) + 1}:0", folder, *options)
    assert code == -signal.SIGKILL, output
    assert (folder / "rollouts" / f"rl_{left[0] + 1}.carried").exists()
    code, output = run("none", folder, *options)
    assert code == 0, output
    same(Finished.read(folder), made)


def test_killed_or_stopped_in_an_offline_filter(tmp_path, whole):
    """While rows are answered; the same answers and the same rows come out."""
    folder, variant = tmp_path / "run", "variant=offline"
    code, output = run("at:asking:11:0", folder, variant)
    assert code == -signal.SIGKILL, output
    drawn = (folder / "answers" / "filter.jsonl").read_bytes()
    assert 0 < drawn.count(b"\n") < 64 and not (folder / "filtered").exists()
    code, output = run("stop:asking:20", folder, variant)
    assert code == 128 + signal.SIGTERM and "nothing was trained yet" in output, output
    assert (folder / "answers" / "filter.jsonl").read_bytes().startswith(drawn)
    code, output = run("none", folder, variant)
    assert code == 0, output
    same(Finished.read(folder), whole("offline"))
    found = read_jsonl(folder / "filtered" / "filter.jsonl")
    kept = {row["source"] for row in found if row["verdict"] == "kept"}
    assert len(found) == 64 and 0 < len(kept) < 64
    for file in (folder / "rollouts").glob("rl_*.jsonl"):
        assert {row["source"] for row in read_jsonl(file)} <= kept


def test_killed_while_it_answers_and_while_it_learns_of_pairs(tmp_path, whole):
    """Preference: half of the answers are drawn, then half of the steps are done; the same file of
    answers, rows without a pair, shift of MPO and parameters come out.
    """
    folder, variant = tmp_path / "run", "variant=preference"
    file = folder / "answers" / "preference.jsonl"
    code, output = run("at:asking:11:0", folder, variant)
    assert code == -signal.SIGKILL, output
    drawn = file.read_bytes()
    assert 0 < drawn.count(b"\n") < 24
    code, output = run("at:update:3:0", folder, variant)  # of a resumed run: of the third step
    assert code == -signal.SIGKILL, output
    assert file.read_bytes().startswith(drawn) and file.read_bytes().count(b"\n") == 24
    code, output = run("none", folder, variant)
    assert code == 0, output
    made = whole("preference")
    same(Finished.read(folder), made)
    rows = [row for row in made.metrics if "policy/bco_shift" in row]
    # Before the first step the policy is its reference: the mean of rewards is 0, or rounding.
    assert len(rows) == 4 and len({row["policy/bco_shift"] for row in rows}) >= 3
    lacking = made.dropped.count(b"there is nothing to")
    assert lacking and rows[0]["preference/rows"] == 24 - lacking
