"""metrics.jsonl survives kills and resumes; TensorBoard agrees; the terminal is given back."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console as RichConsole

from jaxr1.base.jsonl import AppendLog, read_jsonl
from jaxr1.report.history import StageResult
from jaxr1.report.table import results_table
from jaxr1.run.console import Console, format_number, format_seconds
from jaxr1.run.metrics import MetricsLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_append_and_cut_back(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    with AppendLog(path) as log:
        log.write({"a": 1})
        offset = log.tell()
        log.write({"a": 2, "text": "é\n\u2028"})
        log.write({"a": 3})
    assert [row["a"] for row in read_jsonl(path)] == [1, 2, 3]
    with AppendLog(path) as log:
        log.truncate(offset)
        log.write({"a": 4})
        assert lines(path) == [{"a": 1}, {"a": 4}]  # flushed without a close
        log.truncate(0)
        assert log.tell() == 0


@pytest.mark.parametrize("torn", [b'{"a": 2', b"x" * 200_000, b""])
def test_torn_last_line_is_cut(tmp_path, torn):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + torn)
    assert read_jsonl(path) == [{"a": 1}]
    with AppendLog(path) as log:
        log.write({"a": 3})
    assert lines(path) == [{"a": 1}, {"a": 3}]


def test_only_a_torn_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"y" * 100_000)
    with AppendLog(path) as log:
        assert log.tell() == 0


def test_wrong_offsets(tmp_path):
    with AppendLog(tmp_path / "log.jsonl") as log:
        log.write({"a": 1})
        with pytest.raises(ValueError, match="lines have been lost"):
            log.truncate(1000)
        with pytest.raises(ValueError, match="no line ends at byte 3"):
            log.truncate(3)
        assert read_jsonl(log.path) == [{"a": 1}]


def test_broken_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2 is not JSON"):
        read_jsonl(path)


WRITER = """
import itertools, sys
from jaxr1.run.metrics import AppendLog
log = AppendLog(sys.argv[1])
for i in itertools.count():
    log.write({"i": i, "x": "y" * 5000})
"""


def test_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        while not path.exists() or path.stat().st_size < 200_000:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with AppendLog(path) as log:
        log.tell()
    assert [row["i"] for row in lines(path)] == list(range(len(lines(path))))


def scalars(directory):
    """{tag: [(step, value)]} of the event files, read record by record."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        position = 0
        while position < len(data):
            length = int.from_bytes(data[position : position + 8], "little")
            event = Event.FromString(data[position + 12 : position + 12 + length])
            position += 12 + length + 4
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 5)))
    return found


def test_metrics_log(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("sft", 1, {"policy/loss": np.float32(0.5), "n": 3}, global_step=1)
        offset = log.tell()
        log.write("rl", 1, {"reward/mean": float("nan"), "policy/kl": 0.25}, global_step=2)
    assert lines(tmp_path / "metrics.jsonl") == [
        {"stage": "sft", "step": 1, "policy/loss": 0.5, "n": 3.0},
        {"stage": "rl", "step": 1, "reward/mean": None, "policy/kl": 0.25},
    ]
    assert scalars(tmp_path / "tensorboard") == {
        "policy/loss": [(1, 0.5)],
        "n": [(1, 3.0)],
        "policy/kl": [(2, 0.25)],
    }
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.truncate(offset, global_step=2)
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_wandb_missing_says_how(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        MetricsLog(tmp_path, wandb="project")


class Wandb:
    """What a run tells Weights & Biases; as wandb, it takes no step below its last one."""

    def __init__(self):
        self.records, self.metrics, self.opened = {}, {}, ""

    def init(self, *, id, **_):
        self.opened = id
        self.records.setdefault(id, [])
        return self

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, row):
        self.records[self.opened].append(row)

    def finish(self):
        pass


def test_wandb_has_a_record_for_each_directory(tmp_path, monkeypatch):
    """a/seed0 and b/seed0 do not share one; a resumed run goes on in its own, below its end too."""
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for folder in ("a", "b", "a"):
        (tmp_path / folder / "seed0").mkdir(parents=True, exist_ok=True)
        with MetricsLog(tmp_path / folder / "seed0", tensorboard=False, wandb="p") as log:
            for step in (7, 8):
                log.write("rl", step, {"reward/mean": 0.5}, global_step=step)
    first, second = wandb.records.values()
    assert [row["global_step"] for row in first] == [7, 8, 7, 8] and len(second) == 2
    assert wandb.metrics == {"global_step": None, "*": "global_step"}


def test_control_characters_are_shown():
    """A row's name cannot clear the screen, nor an answer turn the line around."""
    out = io.StringIO()
    with Console(file=out) as console:
        console.print("row \x1b[2J\x1b]0;title\x07.png\r\x9b1m", 3, "one\n\ttwo \u202etxt")
        console.stage("rl", 1)
        console.phase("asking \x1b[1m")
        RichConsole(file=out, width=200).print(console._render())
        row = {"accuracy": 0.5, "\x1b[31mred": 0.5}
        console.print(results_table([StageResult("set", "rl", row, row)]))
    said = out.getvalue()
    assert "row \\x1b[2J\\x1b]0;title\\x07.png\\x0d\\x9b1m 3 one\n        two \\u202etxt" in said
    assert "asking \\x1b[1m" in said and "\\x1b[31mred" in said
    assert not set(said) & set("\x1b\x07\r\x9b\u202e")


def test_nobody_reads(tmp_path):
    """A run whose terminal or pipe is closed goes on; what it prints goes nowhere."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:
        with Console(file=file) as console:
            for step in range(3):
                console.print("x" * 100_000)
                console.step(step, {"reward/mean": 0.5})


def test_plain_console_prints_one_line_a_step():
    out = io.StringIO()
    with Console(file=out) as console:
        console.stage("rl", 10, place=(2, 2))
        console.phase("sampling")
        for step in (1, 2):
            found = {"reward/mean": 0.5, "policy/kl": 1e-5, "other": 3.0, "eval/a/accuracy": 0.25}
            console.step(step, found | {"perf/compiles": 2 - step, "reward/unscored": step - 1})
        console.print("[bold]as it is[/bold]", 3)
    text = out.getvalue().splitlines()
    assert text[0] == "stage rl (2 of 2): 10 steps"
    assert text[1] == "rl 1/10  reward/mean 0.500  policy/kl 1.0e-05  eval/a/accuracy 0.250"
    assert text[2].endswith("left in stage")
    assert "other" not in text[2] and "reward/unscored 1.000" in text[2]
    assert text[3:] == ["[bold]as it is[/bold] 3"]
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_live_console_restores_the_terminal(error, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, before = Terminal(), (sys.stdout, sys.stderr)
    try:
        with Console(file=out) as console:
            assert console.is_live
            console.stage("rl", 10, done=4)
            console.phase("sampling")
            found = {"reward/mean": 0.5, "eval/digits/accuracy": 0.25}
            console.step(5, found | {"rollout/length_mean": float("nan")})
            console._live.refresh()
            if error:
                raise error("stop")
    except (KeyboardInterrupt, RuntimeError) as caught:
        assert type(caught) is error
    text = out.getvalue()
    hide, show = "\x1b[?25l", "\x1b[?25h"  # the cursor
    assert text.count(hide) == 1 and text.rindex(show) > text.rindex(hide)
    assert (sys.stdout, sys.stderr) == before
    for part in ("stage rl", "5/10", "sampling", "eval/digits/accuracy", "0.250"):
        assert part in text


def test_numbers():
    values = [0.0, 0.71312, -12.345, 123456.0, 1e-5, float("nan"), None]
    said = ["0", "0.713", "-12.3", "1.2e+05", "1.0e-05", "–", "–"]
    assert list(map(format_number, values)) == said
    said = ["0:00", "1:01", "1:01:01", "–:––"]
    assert list(map(format_seconds, [0, 61, 3661.4, None])) == said


def test_time_left_forgets_steps_that_compile(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    console = Console(live=False, file=io.StringIO())
    console.stage("rl", 10)
    assert console.seconds_left() is None
    for now, step, compiles in ((100.0, 1, 9), (102.0, 2, 0), (104.0, 3, 0), (150.0, 4, 1)):
        clock[0] = now
        console.step(step, {"perf/compiles": compiles})
        assert (console.seconds_left() is None) == (step == 1)
    assert console.seconds_left() == pytest.approx(12.0)
