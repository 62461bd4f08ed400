"""A run that a signal or an error stops is saved where nothing is lost, and says so."""

import dataclasses
import importlib
import math
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from finished import Finished, same, usable
from reference import one_stage

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import Arithmetic
from jaxr1.inputs.ahead import THREAD_NAME
from jaxr1.nn.lora import ADAPTERS, Lora
from jaxr1.rl import Kl
from jaxr1.run import Evaluation, Sft
from jaxr1.run.signals import ECHO_SECONDS, Interrupted, Signals
from jaxr1.run.state import SaveError

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
# (where, what it calls, lines of metrics.jsonl before it, step that is saved); the evaluation
# before training writes the first line, each step one more.
PLACES = {
    "sampling": ("jaxr1.sampling.decode", "decode_until", 2, 1),
    "grading": ("jaxr1.stages.rollout", "wait_for", 2, 1),
    "scoring": ("jaxr1.rl.update", "score_plans", 2, 1),
    "gradients": ("jaxr1.rl.update", "accumulate", 2, 1),
    "applying": ("jaxr1.rl.update", "apply", 2, 2),
    "evaluating": ("jaxr1.evaluation.heldout", "load_image", 3, 2),
}


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Whatever started the tests: under nohup a closed terminal would be ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def small(folder, **changes):
    """Three steps of two updates with a reference; a held-out set after the second."""
    fields = dict(steps=3, updates_per_rollout=2, kl=Kl(0.05), eval_every=2)
    bounds = dict(max_prompt_tokens=32, max_response_tokens=16, samples=1)
    held_out = Evaluation(data=Arithmetic(count=4, split="test"), **bounds)
    return dataclasses.replace(one_stage(folder, **fields, **changes), evaluations=(held_out,))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, request):
    before = os.getcwd()
    os.chdir(request.config.rootpath)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    jaxr1.train(small(folder))
    os.chdir(before)
    return Finished.read(folder)


@pytest.fixture
def struck(monkeypatch):
    """struck(folder, place, action): `action` is done once, where the place is reached."""

    def strike(folder, place, action, call=1):
        module, name, lines, _ = PLACES[place]
        module = importlib.import_module(module)
        function, calls = getattr(module, name), []

        def patched(*args, **kwargs):
            file = folder / "metrics.jsonl"
            if len(calls) < call and len(file.read_text().splitlines()) >= lines:
                calls.append(name)
                if len(calls) == call:
                    action()
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, patched)
        return calls

    return strike


def encoding() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]


def steps_kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_saves_what_is_complete(tmp_path, struck, uninterrupted, capsys, place):
    """Before the first update of a step the step is dropped, after it finished; both resume."""
    folder, name = tmp_path / "run", NAMES[list(PLACES).index(place) % len(NAMES)]
    number = getattr(signal, name)
    assert struck(folder, place, lambda: os.kill(os.getpid(), number)) == []
    found = jaxr1.train(small(folder))
    assert found.signal == number and usable(found.params)
    assert not encoding(), "a signal ends the threads that encode the next step's draws"
    saved = PLACES[place][3]
    assert steps_kept(folder) == [saved]
    said = capsys.readouterr().out
    assert f"{name}: saving and stopping" in said and "Once more stops at once, and loses" in said
    assert f"{name}: saved at step {saved} of" in said and "the same command resumes" in said
    again = jaxr1.train(small(folder))
    assert again.signal is None and usable(again.params) and not encoding()
    same(Finished.read(folder), uninterrupted)


@pytest.mark.parametrize("place", ["sampling", "gradients", "evaluating"])
def test_an_error_saves_what_is_complete(tmp_path, struck, uninterrupted, capsys, place):
    folder = tmp_path / "run"

    def fail():
        raise RuntimeError("the device is gone")

    struck(folder, place, fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        jaxr1.train(small(folder))
    saved = PLACES[place][3]
    assert steps_kept(folder) == [saved]
    assert f"saved at step {saved} of" in capsys.readouterr().out
    jaxr1.train(small(folder))
    same(Finished.read(folder), uninterrupted)


def test_an_error_after_an_update_says_what_is_lost(tmp_path, struck, uninterrupted, capsys):
    """In the second update of step 2: the arrays of step 1 are gone, and there is no checkpoint.

    With one, it is what is left.
    """

    def fail():
        raise RuntimeError("the device is gone")

    for every, said in (
        (0, "has no checkpoint yet: 1 complete step and the one"),
        (1, "step 1: 0"),
    ):
        folder = tmp_path / f"every{every}"
        config = small(folder, save_every=every)
        struck(folder, "applying", fail, call=2)
        with pytest.raises(RuntimeError, match="the device is gone"):
            jaxr1.train(config)
        assert said in capsys.readouterr().out
        assert steps_kept(folder) == [1] * every
        assert not (folder / "finished.jsonl").exists()
        jaxr1.train(config)
        same(Finished.read(folder), uninterrupted)


def test_a_second_signal_stops_at_once(tmp_path, struck, uninterrupted, capsys):
    folder = tmp_path / "run"

    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ECHO_SECONDS + 0.1)
        os.kill(os.getpid(), signal.SIGINT)

    struck(folder, "sampling", twice)
    with pytest.raises(KeyboardInterrupt):
        jaxr1.train(small(folder))
    assert steps_kept(folder) == []
    assert "1 complete step and the one that was begun are lost" in capsys.readouterr().out
    jaxr1.train(small(folder))
    same(Finished.read(folder), uninterrupted)


def test_before_anything_is_trained(tmp_path, struck, monkeypatch, capsys):
    """Nothing is saved, and the same command begins again; where it is asked for, it is saved."""
    monkeypatch.setitem(PLACES, "evaluating", ("jaxr1.evaluation.heldout", "load_image", 0, 0))
    for first in (False, True):
        folder = tmp_path / f"first{first}"
        config = dataclasses.replace(small(folder), save_first=first)
        struck(folder, "evaluating", lambda: os.kill(os.getpid(), signal.SIGTERM))
        found = jaxr1.train(config)
        assert found.signal == signal.SIGTERM and usable(found.params)
        assert steps_kept(folder) == [0] * first
        said = capsys.readouterr().out
        assert ("nothing was trained yet; the same command begins again" in said) != first
    assert [row["step"] for row in jaxr1.train(config).metrics] == [0, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("name", ["save_model", "write_report"])
def test_export_and_report_are_finished(tmp_path, monkeypatch, capsys, name):
    """A signal that comes then changes nothing: all is done, and the status says so."""
    loop = importlib.import_module("jaxr1.run.loop")
    module = loop.load if name == "save_model" else loop
    function = getattr(module, name)

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*args)

    monkeypatch.setattr(module, name, signalled)
    config = dataclasses.replace(small(tmp_path / "run"), report=True)
    assert jaxr1.train(config).signal is None
    assert "SIGTERM: export and report are finished first" in capsys.readouterr().out
    for made in ("export/model.safetensors", "report.html", "finished.jsonl"):
        assert (tmp_path / "run" / made).exists()


def test_signals_are_heard_between_tokens(monkeypatch):
    """A token takes 0.7 s here: the host looks every few of them, and draws the same."""
    from jaxr1.sampling import decode, sampler

    model, params = jaxr1.load_model("tiny")
    processor = jaxr1.load_processor("tiny")
    encoded = [processor.encode(jaxr1.Prompt([{"role": "user", "content": "What is it?"}]))]
    options = sampler.SamplingOptions(max_new_tokens=64, ignore_stops=True)
    keys = [np.array([1, 2], np.uint32)]
    buckets = one_stage("unused").stages[0].buckets
    buckets = processor.buckets(buckets, 32, 64, videos=False)
    draw = sampler.Sampler(model, processor, options, buckets)
    [[whole]] = draw(params, encoded, keys, 1)

    clock, looks = [0.0], []
    run = decode.decode_until

    def slow(model, params, cache, state, limit, *rest):
        before = int(state.step)
        state = run(model, params, cache, state, limit, *rest)
        clock[0] += 0.7 * (int(state.step) - before)
        return state

    monkeypatch.setattr(decode, "decode_until", slow)
    monkeypatch.setattr(sampler.time, "perf_counter", lambda: clock[0])
    draw = sampler.Sampler(model, processor, options, buckets)
    [[looked]] = draw(params, encoded, keys, 1, check=lambda: looks.append(clock[0]))
    assert np.array_equal(whole.token_ids, looked.token_ids)
    assert np.array_equal(whole.logprobs, looked.logprobs)
    assert max(np.diff([0.0, *looks])) < 6 and len(looks) > 8


def test_checkpoints_by_time(tmp_path):
    """By time, by steps, and at the end of a stage; by default nothing before twenty minutes."""
    for minutes, expected in ((20.0, [3]), (1e-9, [1, 2, 3]), (0.0, [3])):
        folder = tmp_path / f"{minutes}"
        config = dataclasses.replace(small(folder), save_minutes=minutes, keep_checkpoints=9)
        jaxr1.train(config)
        assert steps_kept(folder) == expected


def test_a_save_that_fails_is_seen_at_the_next_step(tmp_path, monkeypatch, capsys):
    """The disk is full: the run stops at once, with what was saved before."""
    folder = tmp_path / "run"
    config = small(folder, save_every=1)
    state = importlib.import_module("jaxr1.run.state")
    save = state.Checkpoints.save

    class Broken:
        def result(self, timeout=None):
            raise OSError(28, "No space left on device")

    def failing(self, states, progress, config):
        if progress.total_step == 2:
            self.saving, self.pending = 2, Broken()
        else:
            save(self, states, progress, config)

    monkeypatch.setattr(state.Checkpoints, "save", failing)
    with pytest.raises(
        SaveError, match=r"checkpoint of step 2 could not be written.*No space left"
    ):
        jaxr1.train(config)
    trained = [row for row in read_jsonl(folder / "metrics.jsonl") if "policy/loss" in row]
    assert len(trained) == 2 and steps_kept(folder) == [1]
    assert "is of step 1: 1 complete step and the one that was begun" in capsys.readouterr().out


def test_a_reference_that_cannot_be_written(tmp_path, monkeypatch):
    """As with a checkpoint: one message that names the folder, and nothing half of it is used."""
    state = importlib.import_module("jaxr1.run.state")

    def full(folder, tree):
        raise ValueError("No space left on device")

    monkeypatch.setattr(state.ocp, "save", full)
    with pytest.raises(SaveError, match=r"reference/rl could not be written .*No space left"):
        jaxr1.train(small(tmp_path / "run"))
    assert not (tmp_path / "run" / "reference" / "rl").exists()


def test_a_checkpoint_holds_what_is_trained(tmp_path):
    """Adapters or parts that are not frozen, and the optimiser's moments of these alone."""
    from orbax.checkpoint import v1 as ocp

    frozen = one_stage(tmp_path / "frozen", steps=1, freeze=("vision", "merger"))
    lora = one_stage(tmp_path / "lora", steps=1, lora=Lora(rank=2, targets="decoder/layers/q"))
    expected = {"frozen": {"decoder"}, "lora": {ADAPTERS}}
    for config in (frozen, lora):
        found = jaxr1.train(config)
        folder = tmp_path / config.run_dir.rsplit("/", 1)[1]
        assert {p.name for p in (folder / "checkpoints" / "1").iterdir()} >= {"learners"}
        with ocp.training.Checkpointer(folder / "checkpoints") as opened:
            held = opened.checkpointables_metadata(1).metadata["learners"]
        policy = held["policy"]
        assert held.keys() == {"policy"} and policy.keys() == {"trainable", "optimiser", "step"}
        assert policy["trainable"].keys() == expected[folder.name]
        count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree) if x.shape)
        assert count(policy["optimiser"]) == 2 * count(policy["trainable"]) > 0
        assert usable(found.params)


def test_signals_of_an_ignored_hangup():
    """What nohup has said stays: a closed terminal does not stop the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)  # passed on by a launcher too: still one
            assert signals.received == signal.SIGUSR1
    finally:
        signal.signal(signal.SIGHUP, before)


def test_supervised_stages_too(tmp_path, struck, monkeypatch):
    """Stopped in the gradients of its second step, with parameters that can be used."""
    monkeypatch.setitem(PLACES, "gradients", ("jaxr1.rl.update", "accumulate", 1, 1))
    config = one_stage(tmp_path / "run")
    sizes = dict(max_prompt_tokens=32, max_response_tokens=24)
    stage = Sft(data=Arithmetic(count=8, worked=True), batch_size=4, epochs=2, **sizes)
    config = dataclasses.replace(config, stages=(stage,))
    struck(tmp_path / "run", "gradients", lambda: os.kill(os.getpid(), signal.SIGUSR1))
    found = jaxr1.train(config)
    assert found.signal == signal.SIGUSR1 and usable(found.params)
    assert steps_kept(tmp_path / "run") == [1]
    assert [row["step"] for row in jaxr1.train(config).metrics] == [1, 2, 3, 4]


def test_a_signal_is_heard_by_all_hosts_at_the_same_check(monkeypatch):
    """What was gathered decides; one that comes meanwhile is for the next time."""
    said = []
    with Signals(said.append) as signals:
        late = lambda work: ([work()], os.kill(os.getpid(), signal.SIGTERM))[0]
        monkeypatch.setattr("jaxr1.run.signals.gather", late)
        signals.check()
        assert signals.received == signal.SIGTERM and signals.stopped_by is None
        monkeypatch.setattr("jaxr1.run.signals.gather", lambda work: [work()])
        with pytest.raises(Interrupted):
            signals.check()
        assert signals.stopped_by == signal.SIGTERM and said == ["SIGTERM"]


def test_a_host_that_has_heard_of_a_signal_takes_its_own_for_the_same(monkeypatch):
    """A scheduler signals all hosts, seconds apart: only a second one of its own ends a host."""
    said = []
    with Signals(said.append) as signals:
        monkeypatch.setattr("jaxr1.run.signals.gather", lambda work: [work(), signal.SIGUSR1])
        with pytest.raises(Interrupted):
            signals.check()
        assert signals.stopped_by == signal.SIGUSR1 and said == ["SIGUSR1 on host 1"]
        os.kill(os.getpid(), signal.SIGUSR1)
        signals.received_at -= 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1)
