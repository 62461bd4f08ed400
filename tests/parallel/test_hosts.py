"""Two processes with two devices each do what one with four does."""

import json
import os
import re
import signal
from pathlib import Path

import hosts
import numpy as np
import pytest

from jaxr1.base.checks import OptionError
from jaxr1.inputs.batch import EncodedPrompt, rows_of
from jaxr1.inputs.planning import plan_strips
from jaxr1.inputs.sizes import Buckets
from jaxr1.parallel import HostOptions, slots
from jaxr1.parallel.join import launched

SCRIPT = Path(__file__).with_name("host.py")
MODELS = ("tiny", "tiny-qwen2_5_vl", "tiny-internvl")
GRAD = 1e-6  # times the global norm


def both(folder: Path, work: str, seed: int) -> tuple:
    """What one process with four devices has found, and two with two."""
    found = []
    for count in (1, 2):
        out = folder / f"{count}.npz"
        asked = [[work, str(out), str(seed)]] * count
        for end in hosts.run(SCRIPT, *asked, devices=4 // count):
            assert end.code == 0, end.output
        found.append(dict(np.load(out)))
    return tuple(found)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory, module_seed):
    return both(tmp_path_factory.mktemp("hosts"), "numbers", module_seed)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_drawn_is_the_same_bit_for_bit(numbers, model):
    one, two = numbers
    assert len(one[f"{model} drawn"])
    for what in ("drawn", "texts"):
        np.testing.assert_array_equal(two[f"{model} {what}"], one[f"{model} {what}"])


@pytest.mark.parametrize("model", MODELS)
def test_what_reads_the_whole_batch_is_the_same(numbers, model):
    """The deviation of the batch, whitening over tokens, the denominators of token-mean.

    Hosts have four prompts and three, and responses of unequal lengths.
    """
    one, two = numbers
    for what in ("advantage", "weight", "updates"):
        np.testing.assert_array_equal(two[f"{model} {what}"], one[f"{model} {what}"])
    np.testing.assert_allclose(two[f"{model} old_logp"], one[f"{model} old_logp"], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_the_same(numbers, model):
    one, two = numbers
    names = [name for name in one if name.startswith(f"{model} grad ")]
    assert names
    whole = np.sqrt(sum((one[name].astype(np.float64) ** 2).sum() for name in names))
    apart = np.sqrt(sum(((one[name] - two[name]).astype(np.float64) ** 2).sum() for name in names))
    assert 0 < apart < GRAD * whole or apart == 0
    np.testing.assert_allclose(two[f"{model} loss"], one[f"{model} loss"], rtol=1e-5, atol=1e-6)


def test_what_hosts_tell_one_another(tmp_path):
    one, two = both(tmp_path, "values", 0)
    main, other = map(json.loads, json.loads(str(two["found"])))
    (alone,) = map(json.loads, json.loads(str(one["found"])))
    # Rows that are left out are passed over by all; the others go to the hosts in turn.
    [drawn], [same], [apart] = main["drawn"], other["drawn"], alone["drawn"]
    assert drawn == same and drawn["rows"] == apart["rows"] and len(drawn["dropped"]) == 4
    assert drawn["dropped"] == apart["dropped"] and drawn["hosts"] == [[0, 1, 0, 1, 0]] * 3
    assert main["hosts"] == other["hosts"] == [2, 7, 0, 1]
    assert (
        main["whole"]
        == other["whole"]
        == [f"{[here, here + 1, here + 2]}'ä\\u2028'(None, [1.5, True])" for here in (0, 1)]
    )
    assert main["back"] == other["back"] == ["Draw 0 int64", "Draw 1 int64"]
    # What one host raises all raise: the first one's, and where it is no error of ours its name.
    assert main["own"] == other["own"] == ["DataError: row 0"]
    assert main["one"] == other["one"] == ["DataError: row 7"]
    assert main["theirs"] == ["HostError: KeyError: 'row 7'"]
    assert other["theirs"] == ["KeyError: 'row 7'"]
    assert "do not tell one another of a object" in main["unknown"][0]
    assert main["same"] == other["same"] == [""]
    differs = "OptionError: it must be the same on all hosts:\n  a.b: 0 on host 0, 1 on host 1"
    assert main["other"] == other["other"] == [differs]
    apart = "OptionError: run_dir: host 1 does not see in"
    assert main["apart"][0].startswith(apart) and other["apart"][0].startswith(apart)
    assert main["written"] == other["written"] == ["main"]
    assert main["waited"] == other["waited"] == [True]


def test_a_machine_that_is_cut_off_ends_the_others_by_name(tmp_path):
    watches = tmp_path / "watches"
    processes = hosts.start(SCRIPT, [["stop", str(watches), "0"]] * 2)
    try:
        processes[0].wait(timeout=60)
    finally:
        for process in processes:
            process.kill()
        for watch in map(int, watches.read_text().split()):
            os.kill(watch, signal.SIGKILL)
    output = processes[0].output()
    assert processes[0].returncode
    assert re.search(r"error: host 1 of 2 \(.*\) has not answered for [34] s", output), output


# --- whose row is which -------------------------------------------------------------------------
def test_every_prompt_lies_in_a_row_of_its_own_host(rng):
    """Plans place each response once, and give each host as many rows as the others."""
    for shares in (
        (0,),
        (0, 0, 0, 0),
        (0, 0, 1, 1),
        (0, 1, 0, 1),
        (0, 1, 2),
        (0, 0, 0, 0, 1, 1, 1, 1),
    ):
        count = int(rng.integers(1, 20))
        owners = rng.integers(0, max(shares) + 1, count).tolist()
        lengths = rng.integers(0, 16, (count, 3)).tolist()
        plans = plan_strips(
            rng.integers(1, 64, count).tolist(),
            lengths,
            Buckets((32, 64), (8, 16), (16,)),
            token_budget=200,
            multiple=len(shares),
            hosts=shares if max(shares) else (),
            owners=owners,
        )
        for plan in plans:
            free = slots(shares, plan.rows)
            assert {len(own) for own in free} == {plan.rows // len(set(shares))} or (
                len(set(np.bincount(shares))) > 1
            )
            for prompt, row in zip(plan.prompts, plan.at, strict=True):
                assert row in free[owners[prompt]]
            rows = dict(zip(plan.prompts, plan.at, strict=True))
            assert all(place.row == rows[place.prompt] for place in plan.places)
            none = np.zeros(0, np.int32)
            chosen = [EncodedPrompt(none, none, none, 0, host=owners[i]) for i in plan.prompts]
            assert rows_of(chosen, plan.rows, shares) == list(plan.at)
        placed = [(p.prompt, p.sample, p.length) for plan in plans for p in plan.places]
        assert sorted(placed) == [
            (b, g, n) for b, row in enumerate(lengths) for g, n in enumerate(row) if n
        ]


# --- joining ------------------------------------------------------------------------------------
def test_places_come_from_options_then_from_the_environment():
    filled = lambda environment, **given: HostOptions(**given).filled(environment)
    assert filled({}) == HostOptions()
    jax_env = {
        "JAX_COORDINATOR_ADDRESS": "a:1",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
    }
    assert filled(jax_env) == HostOptions("a:1", 4, 3)
    assert filled(jax_env, coordinator="b:2", count=2, index=0) == HostOptions("b:2", 2, 0)
    pod = {"JOB_COMPLETION_INDEX": "1"}
    assert filled(pod, coordinator="b:2", count=2) == HostOptions("b:2", 2, 1)


@pytest.mark.parametrize(
    ("environment", "given", "said"),
    [
        ({}, dict(coordinator="a:1"), "this would be host -1 of 0: give --hosts.count"),
        ({}, dict(coordinator="a:1", count=2, index=2), "host 2 of 2"),
        ({}, dict(coordinator="a", count=2, index=1), r"hosts.coordinator: expected name:port"),
        ({}, dict(count=2, index=1), "give --hosts.coordinator"),
        ({"JAX_PROCESS_ID": "x"}, dict(coordinator="a:1"), "JAX_PROCESS_ID: expected a number"),
    ],
)
def test_places_that_do_not_fit_are_refused(environment, given, said):
    with pytest.raises(OptionError, match=said):
        HostOptions(**given).filled(environment)


def test_launchers_are_known_by_their_environment():
    step = {"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}
    assert launched(step)
    assert not launched({"SLURM_NTASKS": "2"})  # an allocation, in which srun was not called
    assert not launched(step | {"SLURM_NTASKS": "1"})
