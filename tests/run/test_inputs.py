"""What changes under a run is noticed when it goes on, and what others left there is not harmed."""

import dataclasses
import importlib
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from finished import kept, usable
from PIL import Image
from reference import one_stage

import jaxr1
from jaxr1.base.jsonl import read_jsonl
from jaxr1.data import Arithmetic, Files
from jaxr1.export import main as export
from jaxr1.report.report import write_report
from jaxr1.rewards import Reward
from jaxr1.rl import Kl
from jaxr1.run import Evaluation, Sft
from jaxr1.run import inputs as inputs_module
from jaxr1.run.export import export_checkpoint
from jaxr1.run.resume import ResumeError
from jaxr1.run.saving import DivergedError
from jaxr1.sampling.sampler import NotFiniteError


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def changed(config, **fields):
    """The configuration with fields of its last stage changed."""
    *before, last = config.stages
    return dataclasses.replace(config, stages=(*before, dataclasses.replace(last, **fields)))


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A user's own source around another one."""

    inner: Files

    def load(self):
        return self.inner.load()


def test_changed_files_are_refused_by_name(tmp_path):
    """Rows, rewards, tokenizer: named, and accepted where it is asked for; then they are the run's.

    A finished run reads nothing, and so asks nothing.
    """
    rows = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text("def f(completion, example):\n    return 1.0\n")
    shutil.copytree(jaxr1.load_processor("tiny").directory, tmp_path / "model")
    held_out = Evaluation(
        data=Wrapped(Files(str(tmp_path / "b.jsonl"))),
        rewards=(Reward("accuracy"),),
        max_prompt_tokens=32,
        max_response_tokens=4,
    )
    config = one_stage(
        tmp_path / "run",
        steps=1,
        data=Files(str(tmp_path / "a.jsonl")),
        rewards=(Reward(f"{tmp_path}/mine.py:f"),),
    )
    config = dataclasses.replace(
        config, model=str(tmp_path / "model"), evaluations=(held_out,), export=False
    )
    jaxr1.train(config)
    ways = {
        "a.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, rows[:5]))),
        "b.jsonl": lambda path: path.write_text(path.read_text().replace("What", "That")),
        "mine.py": lambda path: path.write_text(path.read_text().replace("1.0", "2.0")),
        "model/tokenizer_config.json": lambda path: path.write_text(path.read_text() + "\n"),
    }
    for step, (name, change) in enumerate(ways.items(), start=2):
        change(tmp_path / name)
        assert jaxr1.train(changed(config, steps=step - 1)).signal is None  # finished
        longer = changed(config, steps=step)
        with pytest.raises(ResumeError, match=r"stages\.0\.steps"):
            jaxr1.train(longer)
        jaxr1.train(longer, override_resume=True)
        line = read_jsonl(tmp_path / "run" / "overrides.jsonl")[-1]
        said = "\n".join(line["changed"])
        assert line["total_step"] == step - 1 and name.rpartition("/")[2] + ": " in said
        assert ("stages.0.data.rows: 6 in the run, now 5" in said) == (name == "a.jsonl")
        assert ("drawn in another order" in said) == (name == "a.jsonl")
    # Without another configuration: refused by the file alone.
    (tmp_path / "run" / "finished.jsonl").unlink()
    ways["b.jsonl"](tmp_path / "a.jsonl")
    with pytest.raises(ResumeError, match=r"(?s)not what it began with:.*a\.jsonl: .*--override"):
        jaxr1.train(longer)
    assert jaxr1.train(longer, override_resume=True).signal is None


def test_another_environment_is_written_down(tmp_path, monkeypatch, capsys):
    config = one_stage(tmp_path / "run", steps=1)
    jaxr1.train(config)
    first = (tmp_path / "run" / "environment.json").read_text()
    now = json.loads(first)
    assert now["device_kind"] and now["versions"]["jaxlib"]
    now["versions"]["jaxlib"], now["device_kind"] = "0.0.1", "another"
    monkeypatch.setattr(inputs_module, "environment", lambda: now)
    jaxr1.train(changed(config, steps=2), override_resume=True)
    said = capsys.readouterr().out
    assert "environment.json: the run goes on in another environment" in said
    assert 'versions.jaxlib: "' in said and 'now "0.0.1"' in said and "device_kind: " in said
    assert (tmp_path / "run" / "environment.json").read_text() == first
    assert json.loads((tmp_path / "run" / "environment_1.json").read_text()) == now
    lines = read_jsonl(tmp_path / "run" / "overrides.jsonl")
    assert any("device_kind" in text for line in lines for text in line["changed"])


def test_what_is_over_stays_as_it_was(tmp_path):
    """A change to a finished stage has no effect, so it is refused, with leave too.

    As is an end before the step that is reached.
    """
    first = one_stage(tmp_path / "run", steps=2)
    second = dataclasses.replace(first.stages[0], name="second", steps=3)
    both = dataclasses.replace(first, stages=(*first.stages, second), export=False)
    jaxr1.train(both)
    longer = dataclasses.replace(first.stages[0], steps=600)
    for stages in ((longer, second), (second,)):
        with pytest.raises(
            ResumeError, match=r"(?s)has passed the stages before.*stages\.0\.\w+: "
        ):
            jaxr1.train(dataclasses.replace(both, stages=stages), override_resume=True)
    with pytest.raises(ResumeError, match=r"stages\.1 has done 3 steps already.* gives it 2"):
        jaxr1.train(changed(both, steps=2), override_resume=True)
    with pytest.raises(ResumeError, match=r"is in stages\.1, which .* does not have"):
        jaxr1.train(dataclasses.replace(both, stages=first.stages), override_resume=True)
    # What was refused has left no trace.
    assert [row["step"] for row in jaxr1.train(both).metrics] == [1, 2, 1, 2, 3]


def test_killed_before_its_first_checkpoint(tmp_path, monkeypatch):
    """The same command begins again, with the grades that were written; another one without."""
    rewards = (Reward("tests/run/small_rewards.py:unrepeatable"),)
    config = one_stage(tmp_path / "run", steps=2, rewards=rewards, kl=Kl(0.1))
    update = importlib.import_module("jaxr1.rl.update")
    apply, calls = update.apply, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # which saves nothing
        return apply(*args)

    monkeypatch.setattr(update, "apply", dying)
    with pytest.raises(KeyboardInterrupt):
        jaxr1.train(config)
    folder = tmp_path / "run"
    assert not list((folder / "checkpoints").iterdir())
    files = [folder / "rollouts" / f"rl_{step}.jsonl" for step in (1, 2)]
    written = [file.read_bytes() for file in files]
    shutil.copytree(folder, tmp_path / "other")
    found = jaxr1.train(config)
    assert [file.read_bytes() for file in files] == written
    assert [row["step"] for row in found.metrics] == [1, 2]
    other = dataclasses.replace(config, run_dir=str(tmp_path / "other"), seed=5)
    jaxr1.train(other)
    assert (tmp_path / "other" / "rollouts" / "rl_1.jsonl").read_bytes() != written[0]


def test_others_may_look_while_a_run_is_at_work(tmp_path, capsys, monkeypatch):
    """Export and report leave a checkpoint that is being written alone.

    The run itself removes what a killed one has left, of its checkpoints, references and exports.
    """
    config = one_stage(tmp_path / "run", steps=1, kl=Kl(0.1))
    config = dataclasses.replace(config, keep_checkpoints=1)
    jaxr1.train(config)
    folder, dead = tmp_path / "run", 2**22 + 1
    unfinished = [
        folder / "checkpoints" / "2.orbax-checkpoint-tmp",
        folder / "reference" / "rl.orbax-checkpoint-tmp",
        folder / "frozen" / "rl" / "policy.orbax-checkpoint-tmp",
        folder / f".export.{dead}.partial",
    ]
    for path in unfinished:
        path.mkdir(parents=True)
        (path / "data").touch()
    torn = folder / f".config.json.{dead}.tmp"
    torn.touch()
    own = folder / f".export.{os.getppid()}.partial"  # of an export that is at work
    own.mkdir()
    assert export(["--run-dir", str(folder), "--out", str(tmp_path / "out")]) == 0
    write_report(folder)
    assert all(path.is_dir() for path in unfinished) and torn.is_file()
    jaxr1.train(changed(config, steps=2), override_resume=True)
    assert not any(path.exists() for path in unfinished) and not torn.exists() and own.is_dir()

    # A signal during the command: it is finished; and a checkpoint may go while it is read.
    module = importlib.import_module("jaxr1.run.export")
    read = module.checkpoint_params

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(*args)

    monkeypatch.setattr(module, "checkpoint_params", signalled)
    assert export(["--run-dir", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "SIGTERM: the export is finished first" in capsys.readouterr().err

    def removed(*args):
        shutil.rmtree(folder / "checkpoints" / "2")
        return read(*args)

    monkeypatch.setattr(module, "checkpoint_params", removed)
    with pytest.raises(
        jaxr1.checkpoints.tensors.CheckpointError, match="has removed the checkpoint"
    ):
        export_checkpoint(folder, tmp_path / "again")


def test_pictures_are_written_whole(tmp_path, monkeypatch):
    """What is killed while a picture is written leaves no half of one behind."""
    bounds = dict(max_prompt_tokens=32, max_response_tokens=4)
    held_out = Evaluation(data=Arithmetic(count=2, split="test"), **bounds)
    config = dataclasses.replace(one_stage(tmp_path / "run", steps=1), evaluations=(held_out,))
    save = Image.Image.save

    def torn(self, file, *args, **kwargs):
        save(self, file, *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="No space left"):
        jaxr1.train(config)
    assert not list((tmp_path / "run" / "media").glob("*"))
    monkeypatch.setattr(Image.Image, "save", save)
    jaxr1.train(config)
    for file in (tmp_path / "run" / "media").iterdir():
        with Image.open(file) as image:
            assert image.format == "PNG" and np.asarray(image).size


@pytest.fixture
def overflowing(tmp_path):
    """The directory of a model of finite weights whose logits are not."""
    model, params = jaxr1.load_model("tiny")
    params["decoder"]["norm"] = jax.numpy.full_like(params["decoder"]["norm"], 3e38)
    return str(jaxr1.save_model(model, params, jaxr1.load_processor("tiny"), tmp_path / "nan"))


def test_a_model_that_says_nan_stops_the_run(tmp_path, overflowing, capsys):
    """In a rollout and in an evaluation: nothing is trained, exported or called finished."""
    held_out = Evaluation(
        data=Arithmetic(count=2, split="test"), max_prompt_tokens=32, max_response_tokens=4
    )
    for sets in ((), (held_out,)):
        folder = tmp_path / f"run{len(sets)}"
        config = dataclasses.replace(one_stage(folder), model=overflowing, evaluations=sets)
        with pytest.raises(NotFiniteError, match="has the log-prob nan: the model's numbers"):
            jaxr1.train(config)
        assert not list((folder / "checkpoints").iterdir()) and not (folder / "export").exists()
        assert "has no checkpoint yet: 0 complete steps" in capsys.readouterr().out


def test_steps_that_teach_nothing_stop_the_run(tmp_path, overflowing, capsys):
    """After so many in a row, counted over a resume too; the parameters are those before them."""
    sizes = dict(max_prompt_tokens=32, max_response_tokens=24)
    stage = Sft(
        data=Arithmetic(count=16, worked=True),
        batch_size=4,
        epochs=1.5,
        max_skipped_steps=4,
        **sizes,
    )
    config = dataclasses.replace(one_stage(tmp_path / "run"), stages=(stage,), model=overflowing)
    config = dataclasses.replace(config, export=False)
    with pytest.raises(
        DivergedError, match=r"stage 'sft', step 4: .* not finite in 4 steps in a row"
    ):
        jaxr1.train(config)
    assert "saved at step 4 of" in capsys.readouterr().out
    with pytest.raises(DivergedError, match=r"step 5: .* in 5 steps in a row"):
        jaxr1.train(config)
    found = jaxr1.train(changed(config, max_skipped_steps=0), override_resume=True)
    assert [row["step"] for row in map(kept, found.metrics)] == [1, 2, 3, 4, 5, 6]
    assert all(row["policy/skipped"] == 1 for row in found.metrics) and usable(found.params)
