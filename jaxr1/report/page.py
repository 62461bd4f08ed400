"""report.html: table, curves and sample answers in one file with its pictures; loads nothing.

Everything that a model or a data set wrote is untrusted text, and is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxr1.base.jsonl import read_jsonl
from jaxr1.report.history import Evaluated, History, StageResult, scores
from jaxr1.report.table import cells, columns

SAMPLES = 12  # pictures on the page, for each evaluation set
MAX_RESPONSE_CHARS = 4000
MAX_MEDIA_BYTES = 400_000  # larger pictures are made smaller for the page
MAX_MEDIA_SIDE = 512  # pixels


# --- the samples --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One held-out question and what the model answered before training and after it."""

    question: str
    answer: str
    media: tuple[str, ...]
    before: dict[str, Any] | None
    after: dict[str, Any]


def _rollouts(run_dir: Path, evaluation: Evaluated) -> list[dict[str, Any]]:
    """Rows of rollouts/eval_<set>_<stage>_<step>.jsonl (step may be padded); [] without file."""
    pattern = re.compile(
        re.escape(f"eval_{evaluation.set}_{evaluation.stage}_")
        + f"0*{evaluation.step}"
        + r"\.jsonl"
    )
    directory = run_dir / "rollouts"
    for path in sorted(directory.glob("eval_*.jsonl")) if directory.is_dir() else []:
        if pattern.fullmatch(path.name):
            return read_jsonl(path)
    return []


def _is_right(row: dict[str, Any] | None, score: str) -> bool:
    """Whether an answer has a positive value of a score; what was not graded has not."""
    rewards = (row or {}).get("rewards")
    value = rewards.get(score) if isinstance(rewards, dict) else None
    return isinstance(value, int | float) and value > 0


def choose_samples(
    run_dir: Path, evaluations: Sequence[Evaluated], limit: int = SAMPLES
) -> list[Sample]:
    """Pairs rows of the first and last evaluation by question; takes some of every kind.

    Half of the places go to questions that were learned, the rest to those right before and after,
    those still wrong and those forgotten, in turn; within a kind in file order. The page must not
    look better than the run was.
    """
    if not evaluations:
        return []
    first, last = _rollouts(run_dir, evaluations[0]), _rollouts(run_dir, evaluations[-1])
    score = next(
        iter(scores(e.values for e in evaluations)), ""
    )  # the first one decides what is right
    if evaluations[0] is evaluations[-1]:
        first = []

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return (
            str(row.get("prompt", "")),
            str(row.get("answer", "")),
            *map(str, row.get("media") or ()),
        )

    earlier: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in first:
        earlier[key(row)].append(row)
    kinds: dict[tuple[bool, bool], list[Sample]] = defaultdict(list)
    for row in last:
        matches = earlier.get(key(row))
        before = matches.pop(0) if matches else None
        media = tuple(map(str, row.get("media") or ()))
        sample = Sample(str(row.get("prompt", "")), str(row.get("answer", "")), media, before, row)
        kinds[_is_right(before, score), _is_right(row, score)].append(sample)
    learned = kinds.pop((False, True), [])
    others = [
        kinds[kind] for kind in ((True, True), (False, False), (True, False)) if kind in kinds
    ]
    rest: list[Sample] = []
    for i in range(max(map(len, others), default=0)):
        rest += [group[i] for group in others if i < len(group)]
    kept = learned[: max(limit // 2, limit - len(rest))]
    chosen = {id(sample) for sample in [*kept, *rest[: limit - len(kept)]]}
    everything = [*learned, *rest]
    order = {key(row): i for i, row in reversed(list(enumerate(last)))}
    return sorted((s for s in everything if id(s) in chosen), key=lambda s: order[key(s.after)])


# --- the page -----------------------------------------------------------------------------------
_CSS = """
:root { color-scheme: light dark; --paper: #f6f8fa; --card: #fff; --ink: #1f2328; --soft: #59636e;
  --line: #d8dee4; --good: #1a7f37; --goodbg: #dafbe1; --bad: #b42318; --badbg: #ffebe9; --tag:
  #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9aa4ae; --line: #30363d;
    --good: #56d364; --goodbg: #12261e; --bad: #ff9b93; --badbg: #2d1618; --tag: #79c0ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui,
  sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; }
p.note { color: var(--soft); margin: 0 0 12px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: right; border-top: 1px solid var(--line); white-space:
  nowrap; }
thead tr:first-child th { border-top: 0; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
th.group { text-align: center; }
thead tr + tr th { border-top: 0; padding-top: 0; }
td.name, th.name { text-align: left; }
td.after { font-weight: 600; }
.curves { padding: 12px; }
.curves img { width: 100%; height: auto; display: block; }
.sample { display: grid; grid-template-columns: 190px 1fr 1fr; margin-bottom: 16px; overflow:
  hidden; }
.ask { grid-column: 1 / -1; padding: 12px 16px; border-bottom: 1px solid var(--line); white-space:
  pre-wrap; overflow-wrap: anywhere; font-weight: 600; }
.ask small { display: block; font-weight: 400; color: var(--soft); }
.media { padding: 14px; border-right: 1px solid var(--line); }
.media img { max-width: 100%; height: auto; border-radius: 6px; display: block; margin: 0 auto
  8px; background: #fff; min-width: 96px; image-rendering: auto; }
.media span { color: var(--soft); font-size: 13px; }
.reply { padding: 12px 16px; min-width: 0; }
.reply + .reply { border-left: 1px solid var(--line); }
.reply h3 { margin: 0 0 8px; font-size: 12px; font-weight: 600; letter-spacing: .04em;
  text-transform: uppercase; color: var(--soft); }
.reply pre { margin: 0 0 10px; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5
  ui-monospace, monospace; max-height: 320px; overflow-y: auto; }
.tag { color: var(--tag); }
.none { color: var(--soft); font-style: italic; }
.chip { display: inline-block; font-size: 12px; border-radius: 99px; padding: 1px 9px; margin: 0
  6px 4px 0; background: var(--paper); border: 1px solid var(--line); color: var(--soft); }
.chip.good { background: var(--goodbg); color: var(--good); border-color: transparent; }
.chip.bad { background: var(--badbg); color: var(--bad); border-color: transparent; }
@media (max-width: 720px) {
  .sample { grid-template-columns: 1fr; }
  .media { border-right: 0; border-bottom: 1px solid var(--line); }
  .reply + .reply { border-left: 0; border-top: 1px solid var(--line); }
}
"""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _escape(text: Any) -> str:
    """Text for HTML: escaped, no control characters or direction overrides, which disguise."""
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
    cut = ""
    if len(text) > MAX_RESPONSE_CHARS:
        cut = f'\n<span class="none">… {len(text)} characters in all</span>'
    body = _escape(text[:MAX_RESPONSE_CHARS])
    for tag in ("think", "/think", "answer", "/answer"):
        body = body.replace(f"&lt;{tag}&gt;", f'<span class="tag">&lt;{tag}&gt;</span>')
    if not text.strip():
        body = f'<span class="none">({"blank" if text else "empty"})</span>'
    chips = []
    rewards = row.get("rewards")
    for name, value in (rewards if isinstance(rewards, dict) else {}).items():
        kind, shown = "", "–"
        if isinstance(value, int | float) and not isinstance(value, bool):
            kind, shown = "good" if value > 0 else "bad", f"{value:.3g}"
        chips.append(f'<span class="chip {kind}">{_escape(name)} {_escape(shown)}</span>')
    if row.get("finish_reason") == "length":
        chips.append('<span class="chip bad">cut at the length limit</span>')
    return f'<div class="reply">{heading}<pre>{body}{cut}</pre>{"".join(chips)}</div>'


def _sample_html(run_dir: Path, sample: Sample, before: str, after: str) -> str:
    media = "".join(_media_html(run_dir, name) for name in sample.media)
    media = media or '<span class="none">text only</span>'
    return (
        f'<article class="card sample"><div class="ask">{_escape(sample.question)}'
        f"<small>reference answer: {_escape(sample.answer)}</small></div>"
        f'<div class="media">{media}</div>'
        f"{_reply_html(before, sample.before)}{_reply_html(after, sample.after)}</article>"
    )


def _table_html(results: Sequence[StageResult]) -> str:
    if not results:
        return '<p class="note">No evaluation has been written yet.</p>'
    shown = columns(results)
    groups = ""
    for column in shown:
        unit = " (tokens)" if column.key == "length_mean" else ""
        groups += f'<th class="group" colspan="2">{_escape(column.title)}{unit}</th>'
    second = "<th>before</th><th>after</th>" * len(shown)
    rows = []
    for result in results:
        name, stage, *values, count = (_escape(cell) for cell in cells(result, shown))
        row = f'<td class="name">{name}</td><td class="name">{stage}</td>'
        row += "".join(
            f"<td{' class=after' if i % 2 else ''}>{cell}</td>" for i, cell in enumerate(values)
        )
        rows.append(f"<tr>{row}<td>{count}</td></tr>")
    head = f'<tr><th class="name">set</th><th class="name">stage</th>{groups}<th>n</th></tr>'
    head += f"<tr><th></th><th></th>{second}<th></th></tr>"
    return (
        f'<div class="card scroll"><table><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def page_html(
    run_dir: Path, history: History, results: Sequence[StageResult], light: bytes, dark: bytes
) -> str:
    parts = [f"<h1>{_escape(run_dir.resolve().name)}</h1>"]
    stages = " → ".join(f"{name} ({last - first} steps)" for name, first, last in history.stages)
    parts.append(f'<p class="note">{_escape(stages)}</p>')
    parts += ["<h2>Before and after each stage</h2>", _table_html(results), "<h2>Curves</h2>"]
    parts.append(
        '<div class="card curves"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}">'
        f'<img alt="Scores, reward, length and other metrics over steps" src="{_data_uri(light)}">'
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
        parts.append(
            '<p class="note">Held-out questions: learned, kept, still wrong and forgotten ones.</p>'
        )
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
