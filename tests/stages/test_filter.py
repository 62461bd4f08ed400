"""Filters: what a rollout keeps, refills, carries over; which rows a model's answers keep."""

import collections
import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from reference import one_stage

import jaxr1
from jaxr1 import filter as jaxr1_filter
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import Arithmetic, DataError, Files, Rated
from jaxr1.inputs.exchange import Draw
from jaxr1.nn.lora import Lora
from jaxr1.rewards import Grade, Reward
from jaxr1.rl import OnlineFilter, PassRange
from jaxr1.run import Answers, Filter
from jaxr1.sampling.draw import RandomStream, prompt_key
from jaxr1.sampling.sampler import Completion, Sampler, SamplingOptions
from jaxr1.stages import filling
from jaxr1.stages.filling import Filling, FilterError, Group

BY_ROW = Reward("tests/run/small_rewards.py:by_row")
MIXED = OnlineFilter(reward="by_row", low=0.2, high=0.8)


@pytest.fixture(autouse=True)
def root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def trained(folder, rule, **changes):
    """(metrics of the steps, {step: rows of its rollout})."""
    fields = dict(rewards=(BY_ROW,), online_filter=rule) | changes
    result = jaxr1.train(one_stage(folder, **fields))
    steps = [row for row in result.metrics if "reward/mean" in row]
    files = {row["step"]: result.run_dir / "rollouts" / f"rl_{row['step']}.jsonl" for row in steps}
    return steps, {step: read_jsonl(file) for step, file in files.items()}


def by_draw(rows, *roles):
    """{draw: rewards of its responses} of the rows in these roles; "" is what is learned from."""
    found = collections.defaultdict(list)
    for row in rows:
        if row.get("role", "") in roles:
            found[row["draw"]].append(row["reward"])
    return found


def test_the_online_filter_refills_to_a_full_batch_and_never_shrinks_it(tmp_path):
    """Each in the range; the others are written down with the reason, and counted."""
    steps, rows = trained(tmp_path / "run", MIXED, steps=3, data=Arithmetic(count=64))
    for metrics in steps:
        found = rows[metrics["step"]]
        kept = by_draw(found, "")
        assert len(kept) == 2 and all(0.2 <= np.mean(group) <= 0.8 for group in kept.values())
        assert all("advantage" in row for row in found if "role" not in row)
        low, high = by_draw(found, "low"), by_draw(found, "high")
        assert all(np.mean(group) < 0.2 for group in low.values())
        assert all(np.mean(group) > 0.8 for group in high.values())
        surplus = by_draw(found, "surplus")
        sampled = len(kept) + len(low) + len(high) + len(surplus)
        assert metrics["filter/sampled"] == sampled
        assert metrics["filter/surplus"] == len(surplus)
        assert metrics["filter/low"] == pytest.approx(len(low) / sampled)
        means = [np.mean(group) for some in (kept, low, high, surplus) for group in some.values()]
        assert metrics["filter/mean"] == pytest.approx(np.mean(means))
        assert metrics["policy/grad_norm"] > 0
    # Two rows of three are always dropped: one try is hardly ever enough.
    assert sum(metrics["filter/tries"] for metrics in steps) > 3
    drawn = [row["draw"] for found in rows.values() for row in found]
    assert len({*drawn}) * 4 == len(drawn)  # no prompt is sampled twice


def test_it_stops_by_name_when_nothing_is_kept(tmp_path):
    """A range that no group can reach."""
    rule = OnlineFilter(reward="by_row", low=1.5, high=2, max_tries=2)
    with pytest.raises(FilterError, match=r"after 2 tries 2 of 2 groups .* from 1.5 to 2.*too low"):
        trained(tmp_path / "run", rule)


def test_a_step_that_shrinks_learns_of_what_is_kept(tmp_path):
    """Dropped groups stay in the rollout without an advantage; a step may have none."""
    rule = OnlineFilter(reward="by_row", low=0.2, high=0.8, refill=False)
    steps, rows = trained(tmp_path / "run", rule, steps=4, data=Arithmetic(count=64))
    counts = []
    for metrics in steps:
        groups = by_draw(rows[metrics["step"]], "")
        kept = [0.2 <= np.mean(group) <= 0.8 for group in groups.values()]
        assert len(groups) == 2 and metrics["filter/tries"] == 0
        assert metrics["filter/kept"] == np.mean(kept)
        dropped = {draw for draw, keep in zip(groups, kept, strict=True) if not keep}
        found = [r["advantage"] for r in rows[metrics["step"]] if r["draw"] in dropped]
        assert not any(found)
        assert (metrics.get("policy/grad_norm", 0) > 0) == any(kept)
        counts.append(sum(kept))
    assert min(counts) < 2, "no step has shrunk: take more of them"


def test_groups_are_carried_over(tmp_path):
    """What a step has kept too much of is the beginning of the next one, and not sampled again.

    Its policy has moved on, so the ratio is no longer 1.
    """
    rule = OnlineFilter(reward="by_row", low=0.2, high=0.8, carry=True)
    options = dict(steps=4, prompts_per_step=3, data=Arithmetic(count=64))
    steps, rows = trained(tmp_path / "run", rule, **options)
    carried = 0
    for metrics in steps[1:]:
        before, now = rows[metrics["step"] - 1], by_draw(rows[metrics["step"]], "")
        left = by_draw(before, "surplus")
        assert {**now, **left} == {**left, **now}
        used = left.keys() & now.keys()
        assert len(used) == min(len(left), 3)
        carried += len(used)
        if used:
            assert abs(metrics["policy/approx_kl"]) > 1e-4
    assert carried, "no step has kept too much: take more of them"


def test_the_filter_begins_later_and_equal_groups_go(tmp_path):
    rule = OnlineFilter(reward="", low=-1, high=2, drop_equal=True, after=1)
    steps, rows = trained(tmp_path / "run", rule, data=Arithmetic(count=64))
    assert "filter/sampled" not in steps[0] and "filter/sampled" in steps[1]
    assert all(min(group) < max(group) for group in by_draw(rows[2], "").values())
    assert all(min(group) == max(group) for group in by_draw(rows[2], "equal").values())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (dict(reward="accuracy"), "online_filter.reward must be one of 'by_row'"),
        (dict(reward="by_row", after=2), "leaves no step of 2"),
    ],
)
def test_what_cannot_be_meant(tmp_path, rule, message):
    with pytest.raises(ValueError, match=message):
        one_stage(tmp_path, rewards=(BY_ROW,), online_filter=OnlineFilter(**rule))
    with pytest.raises(ValueError, match="nothing is kept"):
        OnlineFilter(low=0.5, high=0.4)
    with pytest.raises(ValueError, match="nothing to carry"):
        OnlineFilter(refill=False, carry=True)


# --- offline ------------------------------------------------------------------------------------
def test_offline_keeps_exactly_the_rows_in_the_range(tmp_path, monkeypatch, rng):
    """Those that answers, drawn and graded one row at a time, say; a later stage draws no others.

    Then by the command, whose file `Rated` reads.
    """
    seed, n = int(rng.integers(1000)), 4
    data = Arithmetic(count=48)
    config = one_stage(tmp_path / "run", rewards=(BY_ROW,), data=data)
    rl = dataclasses.replace(config.stages[0], kept_by="filter")
    stage = Filter(
        data=data,
        answers=Answers(samples=n, batch_rows=16, rewards=(BY_ROW,)),
        keep=PassRange("by_row", 0.2, 0.8),
        max_prompt_tokens=32,
        max_response_tokens=16,
        buckets=rl.buckets,
    )
    result = jaxr1.train(dataclasses.replace(config, stages=(stage, rl), seed=seed))
    found = read_jsonl(result.run_dir / "filtered" / "filter.jsonl")

    # By hand, with the model before any step.
    model, params = jaxr1.load_model("tiny")
    processor = jaxr1.load_processor("tiny")
    limits = SamplingOptions(16, 1.0)
    sampler = Sampler(model, processor, limits, processor.buckets(rl.buckets, 32, 16, videos=False))
    spec = importlib.util.spec_from_file_location("rewards", "tests/run/small_rewards.py")
    rewards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rewards)
    want = {}
    for row, example in enumerate(data.load()):
        key = prompt_key(seed, RandomStream.TRAINING, f"answers/{row}")
        (said,) = sampler(params, [processor.encode(jaxr1.Prompt(example.messages))], [key], n)
        want[row] = np.mean([rewards.by_row(completion, example) for completion in said])
    assert {row["row"]: row["pass_rate"] for row in found} == want
    kept = {row["source"] for row in found if 0.2 <= want[row["row"]] <= 0.8}
    assert kept == {row["source"] for row in found if row["verdict"] == "kept"} and kept
    drawn = set()
    for file in (result.run_dir / "rollouts").glob("rl_*.jsonl"):
        drawn |= {row["source"] for row in read_jsonl(file)}
    assert drawn <= kept


def test_the_command_and_the_rows_it_has_rated(tmp_path, monkeypatch, capsys):
    """`python -m jaxr1.filter`: rates beside the rows, read again as a data set."""
    lines = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(12)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, lines)))
    reward = f"{Path.cwd()}/tests/run/small_rewards.py:by_row"
    asked = ["--model", "tiny", "--data.path", str(rows), "--reward", reward, "--samples", "4"]
    assert jaxr1_filter.main([*asked, "--max-response-tokens", "8"]) == 0
    assert "pass rate    rows" in capsys.readouterr().out
    out = tmp_path / "rows.rates.jsonl"
    rates = read_jsonl(out)
    # by_row is of the row's number: always wrong, by chance, always right
    assert [rate["pass_rate"] for rate in rates][2::3] == [0] * 4
    assert [rate["pass_rate"] for rate in rates][1::3] == [1] * 4
    data = Rated(Files(str(rows)), str(out), low=0.01, high=0.99)
    dataset = data.load()
    kept = [rate for rate in rates if 0.01 <= rate["pass_rate"] <= 0.99]
    assert [example.metadata["pass_rate"] for example in dataset] == [r["pass_rate"] for r in kept]
    assert [example.source for example in dataset] == [rate["source"] for rate in kept]
    assert len(dataset.dropped) == 12 - len(kept) and data.files() == [str(rows), str(out)]

    rows.write_text("\n".join(map(json.dumps, lines[:4])))
    with pytest.raises(DataError, match="a rate of row 11, but rows has 4 rows"):
        data.load()
    with pytest.raises(DataError, match=r"python -m jaxr1.filter writes it"):
        dataclasses.replace(data, rates=str(tmp_path / "none.jsonl")).load()


def test_a_filter_of_other_rows_or_that_is_not_there(tmp_path):
    config = one_stage(tmp_path / "run", rewards=(BY_ROW,), data=Arithmetic(count=48))
    rl = dataclasses.replace(config.stages[0], kept_by="filter")
    other = Filter(data=Arithmetic(count=40))
    with pytest.raises(ValueError, match=r"kept_by must name an earlier Filter.*there is none"):
        dataclasses.replace(config, stages=(rl,))
    with pytest.raises(ValueError, match="whose data differ"):
        dataclasses.replace(config, stages=(other, rl))
    with pytest.raises(ValueError, match="lora is of a stage that trains"):
        Filter(data=rl.data, lora=Lora())
    with pytest.raises(ValueError, match=r"keep.reward must be one of 'accuracy'"):
        Filter(data=rl.data, keep=PassRange("format"))


# --- quotas of hosts ----------------------------------------------------------------------------
def group(position, host, values):
    prompt = type("Prompt", (), {"host": host})
    grades = [Grade(value, {"accuracy": value}) for value in values]
    return Group(Draw(position, position, None, prompt), [None] * len(values), grades)


def of_host(groups, host):
    return [one.draw.position for one in groups if one.draw.prompt.host == host]


def test_each_host_fills_its_own_quota(monkeypatch, rng):
    """Whatever is kept where: only hosts that lack groups are asked, and the order is in turn."""
    hosts = int(rng.integers(2, 5))
    monkeypatch.setattr(filling, "owner", lambda i: i % hosts)
    prompts = int(rng.integers(hosts, 12))
    full = Filling(OnlineFilter(max_tries=1000), prompts, 4, [])
    position = 0
    while full.missing():
        missing = full.missing()
        turns = full.turns("rl")
        assert turns and {*turns} <= {*missing} and len(turns) <= prompts
        for host in turns:
            # the first host is the one with the hardest rows
            right = rng.random() < (0.15 if host == 0 else 0.7)
            full.add([group(position, host, [0, 1, 0, 1] if right else [0, 0, 0, 0])])
            position += 1
    chosen = full.chosen()
    assert [one.draw.prompt.host for one in chosen] == [i % hosts for i in range(prompts)]
    every = [one.draw.position for one in (*chosen, *full.surplus(), *full.dropped)]
    assert sorted(every) == list(range(position))
    # of each host, those that came first
    for host in range(hosts):
        mine = of_host(chosen, host)
        assert mine == of_host(full.kept, host)[: len(mine)]


def test_a_group_is_written_and_read_again(rng):
    """Bit for bit, through JSON."""
    logprobs = -rng.exponential(size=5).astype(np.float32)
    said = Completion("a b", rng.integers(0, 99, 5).astype(np.int32), logprobs, "stop", 0.3)
    one = group(7, 0, [1.0])
    one = Group(one.draw, [said], [Grade(1.0, {"accuracy": 1.0})])
    again = Group.read(json.loads(json.dumps(one.row())), one.draw)
    (other,) = again.said
    np.testing.assert_array_equal(other.token_ids, said.token_ids)
    assert other.token_ids.dtype == np.int32 and other.logprobs.dtype == np.float32
    np.testing.assert_array_equal(other.logprobs, said.logprobs)
    assert (other.text, other.entropy) == (said.text, said.entropy)
    assert again.grades == one.grades
