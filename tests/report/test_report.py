"""The report: from files alone, numbers as written, untrusted text harmless."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from jaxr1.base.jsonl import AppendLog
from jaxr1.report.curves import panels
from jaxr1.report.history import read_history
from jaxr1.report.page import choose_samples
from jaxr1.report.report import write_report
from jaxr1.run.metrics import MetricsLog

EVIL = '<script>alert("1")</script><img src=x onerror=y>&amp; \x00\u202e $x$ [bold] é'


def evaluation(log, run_dir, stage, step, accuracy, rows):
    values = {"accuracy": accuracy, "format": 0.5, "length_mean": 30.25, "n": len(rows)}
    log.write(stage, step, {f"eval/digits_easy/{key}": value for key, value in values.items()})
    with AppendLog(run_dir / "rollouts" / f"eval_digits_easy_{stage}_{step}.jsonl") as rollouts:
        for i, right in enumerate(rows):
            answer = i if right else -1
            row = {
                "prompt": f"question {i} {EVIL}",
                "answer": str(i),
                "response": f"<think>{stage} {EVIL}</think><answer>{answer}</answer>",
                "rewards": {"accuracy": float(right), "format": None, "<b>": 1},
                "finish_reason": "stop" if right else "length",
                "media": ["ab12"] if i else ["../outside"],
            }
            rollouts.write(row)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run <1>")
    (directory / "media").mkdir()
    Image.new("RGB", (40, 20), "red").save(directory / "media" / "ab12.png")
    Image.new("RGB", (40, 20), "blue").save(directory / "outside.png")
    with MetricsLog(directory, tensorboard=False) as log:
        evaluation(log, directory, "cold_start", 0, 0.0, [0] * 20)
        for step in range(1, 11):
            log.write("cold_start", step, {"policy/loss": 1 / step, "policy/grad_norm": 1.0})
        evaluation(log, directory, "cold_start", 10, 0.4, [0] * 20)
        for step in range(1, 81):
            kl = float("nan") if step == 3 else 0.01
            log.write("rl", step, {"reward/mean": step / 80, "policy/kl": kl})
            if step % 40 == 0:
                evaluation(log, directory, "rl", step, step / 100, [i % 4 < 3 for i in range(20)])
    return directory


@pytest.fixture(scope="module")
def report(run_dir):
    return write_report(run_dir)


def test_history(run_dir):
    history = read_history(run_dir)
    assert history.stages == [("cold_start", 0, 10), ("rl", 10, 90)]
    assert history.series["reward/mean"][0] == (11, 1 / 80)
    assert len(history.series["policy/kl"]) == 79
    assert [e.x for e in history.evaluations["digits_easy"]] == [0, 10, 50, 90]


def test_table_has_before_and_after_each_stage(report):
    pairs = [(r.stage, r.before["accuracy"], r.after["accuracy"]) for r in report.results]
    assert pairs == [("cold_start", 0.0, 0.4), ("rl", 0.4, 0.8)]
    for part in ("digits_easy", "cold_start", "40.0 %", "80.0 %", "30.2", "20"):
        assert part in report.text


def test_every_reward_has_its_columns(tmp_path):
    """Two sets graded by rewards of their own: shares in percent, other numbers as they are."""
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step, value in ((0, 0.25), (1, 0.5)):
            boxes = {"iou": value, "length_mean": 9.0, "n": 4}
            log.write("rl", step, {f"eval/boxes/{key}": number for key, number in boxes.items()})
            poems = {"rhymes": 10 * value, "length_mean": 8.0, "n": 3}
            log.write("rl", step, {f"eval/poems/{key}": number for key, number in poems.items()})
        log.write("rl", 1, {"reward/iou": 0.3, "reward/brevity": -2.0, "reward/std": 1.0})
    report = write_report(tmp_path)
    [head] = [line for line in report.text.splitlines() if "stage" in line and "set" in line]
    assert [cell.strip() for cell in head.split("┃")[3:-1]] == ["iou", "rhymes", "length", "n"]
    [boxes] = [line for line in report.text.splitlines() if "boxes" in line]
    assert "25.0 → 50.0 %" in boxes and "– → –" in boxes
    [poems] = [line for line in report.text.splitlines() if "poems" in line]
    assert "2.5 → 5.0" in poems
    titles = [panel.title for panel in panels(read_history(tmp_path))]
    assert titles == ["Iou", "Rhymes", "Brevity", "Response length"]


def test_curves_are_a_picture(report):
    with Image.open(report.png) as image:
        assert image.format == "PNG" and image.width >= 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.urls, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attributes)
        self.urls += [value for name, value in attributes if name in ("src", "srcset", "href")]

    def handle_data(self, data):
        self.text += data


def test_page_is_self_contained_and_harmless(report):
    reader = Reader()
    reader.feed(report.html.read_text(encoding="utf-8"))
    assert "script" not in reader.tags and "b" not in reader.tags and "link" not in reader.tags
    assert reader.urls and all(url.startswith("data:image/") for url in reader.urls)
    assert '<script>alert("1")</script>' in reader.text  # shown as text
    assert "\x00" not in reader.text and "\u202e" not in reader.text
    assert "default-src 'none'" in report.html.read_text(encoding="utf-8")
    pictures = [base64.b64decode(url.partition(",")[2]) for url in reader.urls]
    assert all(Image.open(io.BytesIO(data)).size for data in pictures)
    assert reader.text.count("before training") == reader.text.count("after rl, step 80") == 12
    # A path in a media name leads nowhere.
    assert "question 0 " in reader.text and reader.text.count("picture not kept") == 1


def test_samples_are_mixed(run_dir):
    evaluations = read_history(run_dir).evaluations["digits_easy"]
    samples = choose_samples(run_dir, evaluations)
    right = [sample.after["rewards"]["accuracy"] for sample in samples]
    assert len(samples) == 12 and 0 < sum(right) < 12
    assert all(s.before["prompt"] == s.after["prompt"] == s.question for s in samples)
    assert "cold_start" in samples[0].before["response"] and "rl" in samples[0].after["response"]
    assert samples == choose_samples(run_dir, evaluations)


def test_run_that_has_barely_begun(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path)
    MetricsLog(tmp_path, tensorboard=False).write("rl", 1, {"reward/mean": 0.5})
    report = write_report(tmp_path)
    assert report.results == () and "No evaluation" in report.html.read_text()
    (tmp_path / "metrics.jsonl").write_text("")
    assert write_report(tmp_path).png.stat().st_size > 1000


def test_large_pictures_are_made_smaller(tmp_path):
    (tmp_path / "media").mkdir()
    Image.effect_noise((1200, 1200), 90).save(tmp_path / "media" / "ab12.png")
    with MetricsLog(tmp_path, tensorboard=False) as log:
        evaluation(log, tmp_path, "rl", 0, 0.0, [1, 1])
    page = write_report(tmp_path).html.read_text()
    (uri,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert max(Image.open(io.BytesIO(base64.b64decode(uri))).size) == 512


# A bare package takes the place of jaxr1.run: what the modules import themselves is looked at, not
# what else lives in the room.
IMPORTS = """
import os, sys, types
import jaxr1
room = types.ModuleType("jaxr1.run")
room.__path__ = [os.path.join(os.path.dirname(jaxr1.__file__), "run")]
sys.modules["jaxr1.run"] = room
import jaxr1.report.report, jaxr1.run.console, jaxr1.run.metrics, jaxr1.rewards
from jaxr1.report.curves import draw_curves
from jaxr1.report.history import History
draw_curves(History())
print([m for m in ("jax", "torch", "matplotlib.pyplot") if m in sys.modules])
"""


def test_reports_and_metrics_need_neither_jax_nor_pyplot():
    command = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
