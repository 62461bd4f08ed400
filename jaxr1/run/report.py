"""What a run has learned, from its files alone: a table, a picture of the curves, and a page with sample answers.

    metrics.jsonl + rollouts/eval_*.jsonl + media/*.png  ->  table, curves.png, report.html

The page is one file: pictures are inside it, and it loads nothing. Everything a model or a data set wrote is untrusted
text and is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table

from jaxr1.run.metrics import read_jsonl

SAMPLES = 12  # pictures on the page, for each evaluation set
MAX_RESPONSE_CHARS = 4000
MAX_MEDIA_BYTES = 400_000  # larger pictures are made smaller for the page
MAX_MEDIA_SIDE = 512  # pixels

Values = dict[str, float | None]


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one set. `values` holds accuracy, format, length_mean, n as far as they were written."""

    set: str
    stage: str
    step: int
    x: int
    values: Values


@dataclass
class History:
    """The metrics of a run on one axis of global steps.

    Attributes:
      series: metric name -> [(global step, value)], without missing values.
      evaluations: set name -> its evaluations in order.
      stages: [(name, first global step, last global step)] in order.
    """

    series: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    evaluations: dict[str, list[Evaluation]] = field(default_factory=lambda: defaultdict(list))
    stages: list[tuple[str, int, int]] = field(default_factory=list)


def read_history(run_dir: Path) -> History:
    """Reads metrics.jsonl.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a line is broken; names it.
    """
    history = History()
    begin: dict[str, int] = {}
    last: dict[str, int] = {}
    for row in read_jsonl(run_dir / "metrics.jsonl"):
        stage, step = str(row.get("stage", "")), int(row.get("step", 0))
        if stage not in begin:
            begin[stage] = max((begin[name] + last[name] for name in begin), default=0)
            last[stage] = 0
        last[stage] = max(last[stage], step)
        x = begin[stage] + step
        sets: dict[str, Values] = defaultdict(dict)
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or name in ("stage", "step"):
                continue
            parts = name.split("/")
            if parts[0] == "eval" and len(parts) >= 3:
                sets["/".join(parts[1:-1])][parts[-1]] = float(value)
            history.series[name].append((x, float(value)))
        for name, values in sets.items():
            history.evaluations[name].append(Evaluation(name, stage, step, x, values))
    history.stages = [(name, begin[name], begin[name] + last[name]) for name in begin]
    return history


@dataclass(frozen=True)
class StageResult:
    """One row of the table: an evaluation set before and after a stage."""

    set: str
    stage: str
    before: Values
    after: Values


def stage_results(history: History) -> list[StageResult]:
    """For every set and stage: the evaluation the stage started from, and its last one.

    Before the first stage is its step 0; before a later one is its own step 0 if it was evaluated there, else the last
    evaluation of the stages before it. A stage without an evaluation after its first step has no row.
    """
    results = []
    for name, evaluations in history.evaluations.items():
        before: Values = {}
        for stage, _, _ in history.stages:
            own = [e for e in evaluations if e.stage == stage]
            if own and own[0].step == 0:
                before = own[0].values
            trained = [e for e in own if e.step > 0]
            if trained:
                results.append(StageResult(name, stage, before, trained[-1].values))
                before = trained[-1].values
    return results


# --- the table ------------------------------------------------------------------------------------------------------


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _plain(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1f}"


_COLUMNS = (("accuracy", "accuracy", _percent), ("format", "format", _percent), ("length", "length_mean", _plain))


def _cells(result: StageResult) -> list[str]:
    cells = [result.set, result.stage]
    for _, key, show in _COLUMNS:
        cells += [show(result.before.get(key)), show(result.after.get(key))]
    count = result.after.get("n")
    return [*cells, "–" if count is None else f"{count:.0f}"]


def results_table(results: Sequence[StageResult]) -> Table:
    """The results as a table for the terminal; lengths are in tokens."""
    table = Table(title="Before and after each stage (length in tokens)", title_justify="left")
    table.add_column("set", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    for title, _, _ in _COLUMNS:
        table.add_column(title, justify="right")  # on a narrow terminal numbers are broken, not names
    table.add_column("n", justify="right", no_wrap=True)
    previous = ""
    for result in results:
        name, stage, *values, count = _cells(result)
        # one unit is enough: "31.4 → 82.2 %"
        pairs = [f"{a.removesuffix(' %')} → {b}" for a, b in zip(values[::2], values[1::2], strict=True)]
        shown = "" if result.set == previous else name
        previous = result.set
        table.add_row(*(_no_markup(cell) for cell in (shown, stage, *pairs, count)))
    return table


def _no_markup(text: str) -> str:
    return text.replace("[", r"\[")


# --- the curves -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Theme:
    paper: str
    ink: str
    soft: str
    grid: str
    lines: tuple[str, ...]


# Okabe and Ito's colours, told apart with any colour vision
_LIGHT = _Theme("#ffffff", "#1f2328", "#656d76", "#d8dee4", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b"))
_DARK = _Theme("#161b22", "#e6edf3", "#9aa4ae", "#30363d", ("#56b4e9", "#e69f00", "#2fbf94", "#e09bc4", "#f0e442"))

_PANELS = (
    # title, y label, evaluated key, [(series, label)]
    ("Accuracy", "share of answers right", "accuracy", [("reward/accuracy", "training samples")]),
    ("Format", "share in the asked form", "format", [("reward/format", "training samples")]),
    ("Reward", "mean total reward", "", [("reward/mean", "training samples")]),
    ("Response length", "tokens, mean", "length_mean", [("rollout/length_mean", "training samples")]),
    ("KL to the reference", "nats per token", "", [("policy/kl", "")]),
    ("Gradient norm", "before clipping", "", [("policy/grad_norm", "")]),
)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values, fewer at the ends."""
    half = window // 2
    out = []
    for i in range(len(values)):
        part = values[max(0, i - half) : i + half + 1]
        out.append(sum(part) / len(part))
    return out


def draw_curves(history: History, theme: _Theme = _LIGHT) -> bytes:
    """The curves over global steps as a PNG: the panels that have data, stage boundaries drawn through all of them."""
    # figure objects only: pyplot would keep global state and may ask for a display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = []
    for title, unit, key, names in _PANELS:
        curves = [(label, history.series[name]) for name, label in names if history.series.get(name)]
        marked = [
            (f"held-out: {name}", [(e.x, value) for e in evaluations if (value := e.values.get(key)) is not None])
            for name, evaluations in history.evaluations.items()
            if key
        ]
        marked = [(label, points) for label, points in marked if points]
        if curves or marked:
            panels.append((title, unit, curves, marked, key in ("accuracy", "format")))
    columns = min(3, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows), dpi=130, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    end = max((last for _, _, last in history.stages), default=1)
    for i, (title, unit, curves, marked, is_share) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_facecolor(theme.paper)
        axes.set_title(title, color=theme.ink, fontsize=12, loc="left", pad=16)
        axes.set_xlabel("step, all stages", color=theme.soft, fontsize=9)
        axes.set_ylabel(unit, color=theme.soft, fontsize=9)
        axes.tick_params(colors=theme.soft, labelsize=8, length=0)
        axes.grid(color=theme.grid, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
        for j, (label, points) in enumerate(marked):
            colour = theme.lines[j % (len(theme.lines) - 1) + 1]
            axes.plot(
                *_xy(points),
                color=colour,
                linewidth=1.8,
                marker="o",
                markersize=4,
                label=label,
                zorder=3,
                clip_on=False,
            )
        for label, points in curves:
            xs, ys = _xy(points)
            window = len(ys) // 20
            if window >= 3:  # noisy: the values pale, their mean over a twentieth of the run in front
                axes.plot(xs, ys, color=theme.lines[0], linewidth=0.8, alpha=0.3)
                ys = _running_mean(ys, window)
            axes.plot(xs, ys, color=theme.lines[0], linewidth=1.6, label=label or None)
        axes.set_xlim(0, max(end, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if is_share:
            axes.set_ylim(-0.03, 1.03)
        else:
            low, high = axes.get_ylim()
            axes.set_ylim(min(0.0, low), high)
        for j, (name, first, last) in enumerate(history.stages):
            if j > 0:
                axes.axvline(first, color=theme.soft, linewidth=0.8, linestyle=(0, (4, 3)))
            if last - first >= 0.04 * end:
                short = name if len(name) <= 18 else name[:17] + "…"
                # a stage's name above its part of the axis; dollar signs would start mathematics
                axes.text((first + last) / 2, 1.015, short.replace("$", r"\$"), transform=axes.get_xaxis_transform(),
                          ha="center", va="bottom", fontsize=8, color=theme.soft)  # fmt: skip
        if marked or any(label for label, _ in curves):
            axes.legend(fontsize=8, frameon=False, labelcolor=theme.ink)
    if not panels:
        figure.text(0.5, 0.5, "no metrics yet", color=theme.soft, ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=theme.paper, metadata={"Software": None})
    return buffer.getvalue()


def _xy(points: Iterable[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    kept = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


# --- the samples ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One held-out question and what the model answered before training and after it."""

    question: str
    answer: str
    media: tuple[str, ...]
    before: dict[str, Any] | None
    after: dict[str, Any]


def _rollouts(run_dir: Path, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The rows of rollouts/eval_<set>_<stage>_<step>.jsonl; [] where that file is not there. The step may be padded."""
    pattern = re.compile(re.escape(f"eval_{evaluation.set}_{evaluation.stage}_") + f"0*{evaluation.step}" + r"\.jsonl")
    directory = run_dir / "rollouts"
    for path in sorted(directory.glob("eval_*.jsonl")) if directory.is_dir() else []:
        if pattern.fullmatch(path.name):
            return read_jsonl(path)
    return []


def _accuracy(row: dict[str, Any] | None) -> float | None:
    rewards = (row or {}).get("rewards")
    value = rewards.get("accuracy") if isinstance(rewards, dict) else None
    return float(value) if isinstance(value, int | float) else None


def choose_samples(run_dir: Path, evaluations: Sequence[Evaluation], limit: int = SAMPLES) -> list[Sample]:
    """Pairs the first and last evaluation's rows by question and picture, and takes some of every kind.

    Half of the places go to questions that were learned, the rest to those right before and after, those still wrong
    and those forgotten, in turn; within a kind in file order. The page must not look better than the run was.
    """
    if not evaluations:
        return []
    first, last = _rollouts(run_dir, evaluations[0]), _rollouts(run_dir, evaluations[-1])
    if evaluations[0] is evaluations[-1]:
        first = []

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return (str(row.get("prompt", "")), str(row.get("answer", "")), *map(str, row.get("media") or ()))

    earlier: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in first:
        earlier[key(row)].append(row)
    kinds: dict[tuple[bool, bool], list[Sample]] = defaultdict(list)
    for row in last:
        matches = earlier.get(key(row))
        before = matches.pop(0) if matches else None
        media = tuple(map(str, row.get("media") or ()))
        sample = Sample(str(row.get("prompt", "")), str(row.get("answer", "")), media, before, row)
        kinds[(_accuracy(before) or 0.0) > 0, (_accuracy(row) or 0.0) > 0].append(sample)
    learned = kinds.pop((False, True), [])
    others = [kinds[kind] for kind in ((True, True), (False, False), (True, False)) if kind in kinds]
    rest: list[Sample] = []
    for i in range(max(map(len, others), default=0)):
        rest += [group[i] for group in others if i < len(group)]
    kept = learned[: max(limit // 2, limit - len(rest))]
    chosen = {id(sample) for sample in [*kept, *rest[: limit - len(kept)]]}
    everything = [*learned, *rest]
    order = {key(row): i for i, row in reversed(list(enumerate(last)))}
    return sorted((s for s in everything if id(s) in chosen), key=lambda s: order[key(s.after)])


# --- the page -------------------------------------------------------------------------------------------------------

_CSS = """
:root { color-scheme: light dark; --paper: #f6f8fa; --card: #fff; --ink: #1f2328; --soft: #59636e; --line: #d8dee4;
  --good: #1a7f37; --goodbg: #dafbe1; --bad: #b42318; --badbg: #ffebe9; --tag: #0969da; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9aa4ae;
  --line: #30363d; --good: #56d364; --goodbg: #12261e; --bad: #ff9b93; --badbg: #2d1618; --tag: #79c0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 36px 0 12px; }
p.note { color: var(--soft); margin: 0 0 12px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: right; border-top: 1px solid var(--line); white-space: nowrap; }
thead tr:first-child th { border-top: 0; }
th { font-weight: 600; color: var(--soft); font-size: 13px; } th.group { text-align: center; }
thead tr + tr th { border-top: 0; padding-top: 0; }
td.name, th.name { text-align: left; } td.after { font-weight: 600; }
.curves { padding: 12px; } .curves img { width: 100%; height: auto; display: block; }
.sample { display: grid; grid-template-columns: 190px 1fr 1fr; margin-bottom: 16px; overflow: hidden; }
.ask { grid-column: 1 / -1; padding: 12px 16px; border-bottom: 1px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; font-weight: 600; }
.ask small { display: block; font-weight: 400; color: var(--soft); }
.media { padding: 14px; border-right: 1px solid var(--line); }
.media img { max-width: 100%; height: auto; border-radius: 6px; display: block; margin: 0 auto 8px; background: #fff;
  min-width: 96px; image-rendering: auto; }
.media span { color: var(--soft); font-size: 13px; }
.reply { padding: 12px 16px; min-width: 0; } .reply + .reply { border-left: 1px solid var(--line); }
.reply h3 { margin: 0 0 8px; font-size: 12px; font-weight: 600; letter-spacing: .04em; text-transform: uppercase;
  color: var(--soft); }
.reply pre { margin: 0 0 10px; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace;
  max-height: 320px; overflow-y: auto; }
.tag { color: var(--tag); } .none { color: var(--soft); font-style: italic; }
.chip { display: inline-block; font-size: 12px; border-radius: 99px; padding: 1px 9px; margin: 0 6px 4px 0;
  background: var(--paper); border: 1px solid var(--line); color: var(--soft); }
.chip.good { background: var(--goodbg); color: var(--good); border-color: transparent; }
.chip.bad { background: var(--badbg); color: var(--bad); border-color: transparent; }
@media (max-width: 720px) { .sample { grid-template-columns: 1fr; }
  .media { border-right: 0; border-bottom: 1px solid var(--line); }
  .reply + .reply { border-left: 0; border-top: 1px solid var(--line); } }
"""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _escape(text: Any) -> str:
    """Text for HTML: escaped, and without control characters and direction overrides, which could disguise the page."""
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True)


def _data_uri(png: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(png).decode()}"


def _media_html(run_dir: Path, name: str) -> str:
    # the name comes out of a file: it must not be able to point elsewhere
    path = run_dir / "media" / f"{name}.png"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", name) or not path.is_file():
        return '<span class="none">picture not kept</span>'
    data = path.read_bytes()
    if len(data) > MAX_MEDIA_BYTES:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data)) as image:
                image.thumbnail((MAX_MEDIA_SIDE, MAX_MEDIA_SIDE))
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, format="JPEG", quality=85)
        except (OSError, ValueError, Image.DecompressionBombError):
            return '<span class="none">picture not readable</span>'
        return f'<img alt="" src="{_data_uri(buffer.getvalue(), "image/jpeg")}">'
    return f'<img alt="" src="{_data_uri(data)}">'


def _reply_html(title: str, row: dict[str, Any] | None) -> str:
    heading = f"<h3>{_escape(title)}</h3>"
    if row is None:
        return f'<div class="reply">{heading}<span class="none">not evaluated</span></div>'
    text = str(row.get("response", ""))
    cut = "" if len(text) <= MAX_RESPONSE_CHARS else f'\n<span class="none">… {len(text)} characters in all</span>'
    body = _escape(text[:MAX_RESPONSE_CHARS])
    for tag in ("think", "/think", "answer", "/answer"):
        body = body.replace(f"&lt;{tag}&gt;", f'<span class="tag">&lt;{tag}&gt;</span>')
    body = body or '<span class="none">(empty)</span>'
    chips = []
    rewards = row.get("rewards")
    for name, value in (rewards if isinstance(rewards, dict) else {}).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        kind = ("good" if value > 0 else "bad") if is_number else ""
        shown = f"{value:.3g}" if is_number else "–"
        chips.append(f'<span class="chip {kind}">{_escape(name)} {_escape(shown)}</span>')
    if row.get("finish_reason") == "length":
        chips.append('<span class="chip bad">cut at the length limit</span>')
    return f'<div class="reply">{heading}<pre>{body}{cut}</pre>{"".join(chips)}</div>'


def _sample_html(run_dir: Path, sample: Sample, before: str, after: str) -> str:
    media = "".join(_media_html(run_dir, name) for name in sample.media) or '<span class="none">text only</span>'
    return (
        f'<article class="card sample"><div class="ask">{_escape(sample.question)}'
        f"<small>reference answer: {_escape(sample.answer)}</small></div>"
        f'<div class="media">{media}</div>'
        f"{_reply_html(before, sample.before)}{_reply_html(after, sample.after)}</article>"
    )


def _table_html(results: Sequence[StageResult]) -> str:
    if not results:
        return '<p class="note">No evaluation has been written yet.</p>'
    groups = "".join(
        f'<th class="group" colspan="2">{title}{" (tokens)" if title == "length" else ""}</th>'
        for title, _, _ in _COLUMNS
    )
    second = "<th>before</th><th>after</th>" * len(_COLUMNS)
    rows = []
    for result in results:
        cells = [_escape(cell) for cell in _cells(result)]
        row = f'<td class="name">{cells[0]}</td><td class="name">{cells[1]}</td>'
        row += "".join(f"<td{' class=after' if i % 2 else ''}>{cell}</td>" for i, cell in enumerate(cells[2:-1]))
        rows.append(f"<tr>{row}<td>{cells[-1]}</td></tr>")
    return (
        '<div class="card scroll"><table><thead>'
        f'<tr><th class="name">set</th><th class="name">stage</th>{groups}<th>n</th></tr>'
        f"<tr><th></th><th></th>{second}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _page(run_dir: Path, history: History, results: Sequence[StageResult], light: bytes, dark: bytes) -> str:
    parts = [f"<h1>{_escape(run_dir.resolve().name)}</h1>"]
    stages = " → ".join(f"{name} ({last - first} steps)" for name, first, last in history.stages)
    parts.append(f'<p class="note">{_escape(stages)}</p>')
    parts += ["<h2>Before and after each stage</h2>", _table_html(results), "<h2>Curves</h2>"]
    parts.append(
        '<div class="card curves"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}">'
        f'<img alt="Accuracy, format, reward, length, KL and gradient norm over steps" src="{_data_uri(light)}">'
        "</picture></div>"
    )
    for name, evaluations in history.evaluations.items():
        samples = choose_samples(run_dir, evaluations)
        if not samples:
            continue
        first, last = evaluations[0], evaluations[-1]
        before = "before training" if first.step == 0 else f"after {first.stage}, step {first.step}"
        after = f"after {last.stage}, step {last.step}"
        parts.append(f"<h2>Sample answers: {_escape(name)}</h2>")
        parts.append('<p class="note">Held-out questions; learned, kept, still wrong and forgotten ones are mixed.</p>')
        parts += [_sample_html(run_dir, sample, before, after) for sample in samples]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # even if something slipped through the escaping, it could neither run nor load
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(run_dir.resolve().name)}: report</title><style>{_CSS}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


# --- all of it ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What `write_report` made.

    Attributes:
      table: for a rich console; `text` is the same as plain text.
      png: the curves.
      html: the page.
      results: the numbers in the table.
    """

    table: Table
    png: Path
    html: Path
    results: tuple[StageResult, ...]

    @property
    def text(self) -> str:
        console = RichConsole(file=io.StringIO(), width=120, color_system=None)
        console.print(self.table)
        return console.file.getvalue()  # type: ignore[attr-defined]


def write_report(run_dir: str | os.PathLike[str]) -> Report:
    """Writes curves.png and report.html into a run directory, from its files alone; safe to call again at any time.

    Args:
      run_dir: holds `metrics.jsonl` and, where there are any, `rollouts/eval_<set>_<stage>_<step>.jsonl` (one row a
        question: prompt, answer, response, rewards by name, finish_reason, media) and `media/<hash>.png`.

    Raises:
      FileNotFoundError: there is no metrics.jsonl.
      ValueError: a file is broken; names file and line.
    """
    directory = Path(run_dir)
    history = read_history(directory)
    results = stage_results(history)
    light, dark = draw_curves(history, _LIGHT), draw_curves(history, _DARK)
    png, page = directory / "curves.png", directory / "report.html"
    _replace(png, light)
    _replace(page, _page(directory, history, results, light, dark).encode("utf-8"))
    return Report(results_table(results), png, page, tuple(results))


def _replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: someone may be looking at the old one."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_bytes(data)
    scratch.replace(path)
