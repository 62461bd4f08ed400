"""inspect.html: what was found, and a few rows of each set with their pictures; loads nothing.

Everything that a data set holds is untrusted text, and is escaped.
"""

from __future__ import annotations

import base64
import collections
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jaxr1.data import Dataset
from jaxr1.inspection.overlap import Overlap
from jaxr1.inspection.survey import Survey, megapixels, quantiles
from jaxr1.media.images import MediaError, load_image

SAMPLES = 12  # rows of each set
SIDE = 320  # pixels of the longer side of a picture

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
.row { border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-wrap: anywhere; }
.row img { max-width: 100%; background: #fff; }
.source { opacity: .65; font-size: .8rem; }
pre { white-space: pre-wrap; margin: .4rem 0; font: inherit; }
"""


def page_html(
    surveys: Sequence[tuple[Survey, Dataset]], found: Mapping[tuple[str, str], Sequence[Overlap]]
) -> str:
    """The page.

    Args:
      found: {(path of a set, path of another one): what they have in common}.
    """
    parts = ["<h1>Data of this configuration</h1>", _overlap_html(found)]
    for survey, dataset in surveys:
        parts.append(_survey_html(survey))
        rows = range(0, len(dataset), max(1, len(dataset) // SAMPLES))
        cards = [_row_html(dataset, row) for row in list(rows)[:SAMPLES]]
        parts.append(f'<div class="rows">{"".join(cards)}</div>')
    head = f'<meta charset="utf-8"><title>Data</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>"


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _cell(value: object) -> str:
    kind = ' class="n"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{_escape(value)}</td>"


def _table(rows: Sequence[tuple[object, ...]], head: Sequence[str] = ()) -> str:
    cells = lambda row: "".join(map(_cell, row))
    top = "".join(f"<th>{_escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    if not rows:
        return ""
    return f"<table><tr>{top}</tr>{body}</table>" if top else f"<table>{body}</table>"


def _overlap_html(found: Mapping[tuple[str, str], Sequence[Overlap]]) -> str:
    rows = []
    for (one, other), some in found.items():
        kinds = collections.Counter(overlap.kind for overlap in some)
        same = sum(overlap.is_same for overlap in some)
        rows.append((one, other, same, kinds["both"], kinds["picture"], kinds["question"]))
    head = ("set", "other set", "same rows", "both", "picture", "question")
    return "<h2>In common with other sets</h2>" + _table(rows, head) if rows else ""


def _survey_html(survey: Survey) -> str:
    parts = [f"<h2>{_escape(survey.path)}: {_escape(survey.name)}, {survey.rows} rows</h2>"]
    measures: list[tuple[str, Sequence[float]]] = [
        ("prompt, tokens", survey.tokens),
        ("question, words", [len(row.words) for row in survey.looked]),
        ("picture, megapixels", megapixels(survey.looked)),
    ]
    rows = []
    for what, values in measures:
        if found := quantiles(values):
            rows.append((what, *(f"{value:.4g}" for value in found.values())))
    parts.append(_table(rows, ("", "least", "median", "95 %", "most")))
    for what, counts in survey.counts.items():
        parts.append(_table(counts.most_common(8), (what, "rows")))
    for label, given in survey.rewards.items():
        named = f"{label} of the reference answer"
        parts.append(_table(given.most_common(), (named, "rows")))
        parts += [f"<pre>{_escape(line)}</pre>" for line in survey.unhappy[label]]
    if survey.dropped:
        parts.append(_table(survey.dropped.most_common(), ("left out", "rows")))
        for lines in survey.examples.values():
            parts += [f"<pre>{_escape(line)}</pre>" for line in lines]
    rows_twice, pictures_twice = survey.twice
    if rows_twice or pictures_twice:
        such = "; ".join(", ".join(sources) for sources in rows_twice[:3])
        equal: list[tuple[object, ...]] = [
            ("equal rows", sum(map(len, rows_twice)), such),
            ("rows with an equal picture", sum(map(len, pictures_twice)), ""),
        ]
        parts.append(_table(equal, ("twice", "rows", "such as")))
    return "".join(parts)


def _row_html(dataset: Dataset, row: int) -> str:
    example = dataset[row]
    pictures = "".join(map(_picture_html, example.images))
    answer = f"<pre><b>{_escape(example.answer)}</b></pre>"
    source = f'<div class="source">{_escape(example.source)}</div>'
    question = f"<pre>{_escape(example.question)}</pre>"
    return f'<div class="row">{pictures}{question}{answer}{source}</div>'


def _picture_html(source: Any) -> str:
    try:
        image = load_image(source)
    except MediaError as error:
        return f"<pre>{_escape(error)}</pre>"
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
