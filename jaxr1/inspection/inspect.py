"""Looks at all data of a configuration; the console, inspect.html and inspect.json say what it is.

What a stage trains on is compared with every held-out set, and with files that are named.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxr1.base.files import write_whole
from jaxr1.base.jsonl import write_rows
from jaxr1.data import DataError, Dataset, Files
from jaxr1.inputs.processor import Processor
from jaxr1.inspection.looked import Looked, look
from jaxr1.inspection.overlap import Overlap, overlaps
from jaxr1.inspection.page import page_html
from jaxr1.inspection.survey import Survey, graded_references, quantiles, survey
from jaxr1.rewards.accuracy import quoted_problem
from jaxr1.rewards.pool import RewardPool

OVERLAPS = "overlaps.jsonl"


class Part(Protocol):
    """A stage, or a held-out set."""

    @property
    def data(self) -> Any: ...
    @property
    def max_prompt_tokens(self) -> int: ...
    @property
    def needs_reference(self) -> bool: ...


def inspect(
    parts: Mapping[str, Part],
    processor: Processor,
    out: Path,
    against: Sequence[str] = (),
    ngram: int = 13,
    say: Callable[[str], None] = print,
) -> int:
    """Looks, and writes what it has found.

    Args:
      parts: {path in the configuration: stage or held-out set}; paths of stages begin with
        "stages".
      out: the folder to write to.
      against: files of rows that stages are compared with besides.
      ngram: words of a run that questions may not have in common.

    Returns:
      How many rows of stages are in another set too.

    Raises:
      DataError: a set that cannot be loaded.
    """
    out.mkdir(parents=True, exist_ok=True)
    surveys: dict[str, tuple[Survey, Dataset]] = {}
    for path, part in parts.items():
        dataset = part.data.load()
        limits = (part.max_prompt_tokens, processor.max_patches)
        judge = functools.partial(_problem, part)
        found = survey(f"{path}.data", dataset, processor, limits, judge)
        if rewards := getattr(part, "rewards", ()):
            with RewardPool(rewards, directory=out) as pool:
                graded_references(found, dataset, pool, [reward.label for reward in rewards])
        surveys[path] = (found, dataset)
        say(told(found))

    trained = {path: one for path, (one, _) in surveys.items() if path.startswith("stages")}
    others = {path: one.looked for path, (one, _) in surveys.items() if path not in trained}
    others |= {file: _looked(file) for file in against}
    common: dict[tuple[str, str], list[Overlap]] = {}
    for path, one in trained.items():
        for name, rows in others.items():
            common[path, name] = overlaps(one.looked, rows, ngram)
            say(_told_common(path, name, common[path, name]))

    _write(out, [*surveys.values()], common)
    say(f"page: {out / 'inspect.html'}")
    return len({(key[0], o.row) for key, some in common.items() for o in some if o.is_same})


def _problem(part: Part, example: Any) -> str | None:
    return quoted_problem(example.answer) if part.needs_reference else None


def _looked(file: str) -> list[Looked]:
    try:
        return list(look(Files(file, require_answer=False, bad_rows="drop").load()))
    except DataError as error:
        raise DataError(f"--against {error}") from error


def _write(
    out: Path,
    surveys: list[tuple[Survey, Dataset]],
    common: dict[tuple[str, str], list[Overlap]],
) -> None:
    data = {
        "sets": [one.to_json() for one, _ in surveys],
        "in_common": {" / ".join(key): len(found) for key, found in common.items()},
    }
    write_whole(out / "inspect.json", json.dumps(data, indent=2, ensure_ascii=False).encode())
    rows = []
    for (path, name), found in common.items():
        for one in found:
            rows.append(
                {"set": path, "other_set": name, "row": one.row, "source": one.source}
                | {"kind": one.kind, "other": one.other, "same": one.is_same}
            )
    write_rows(out / OVERLAPS, rows)
    write_whole(out / "inspect.html", page_html(surveys, common).encode())


def told(found: Survey) -> str:
    """A few lines for the console."""
    lines = [f"{found.path}: {found.name}, {found.rows} rows"]
    for what, counts in found.counts.items():
        shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(5))
        lines.append(f"  {what}: {shown}")
    if tokens := quantiles(found.tokens):
        shown = ", ".join(f"{name} {value:.0f}" for name, value in tokens.items())
        lines.append(f"  prompt tokens: {shown}")
    for label, values in found.rewards.items():
        shown = ", ".join(f"{name} x {count}" for name, count in values.most_common(4))
        lines.append(f"  {label} of the reference answers: {shown}")
        lines += [f"    {line}" for line in found.unhappy[label]]
    for reason, count in found.dropped.most_common(5):
        lines.append(f"  left out: {count} x {reason}; {found.examples[reason][0]}")
    rows_twice, pictures_twice = found.twice
    if rows_twice:
        lines.append(f"  equal rows: {len(rows_twice)} groups, such as {', '.join(rows_twice[0])}")
    if pictures_twice:
        lines.append(f"  equal pictures: {len(pictures_twice)} groups of rows")
    return "\n".join(lines)


def _told_common(path: str, name: str, found: Sequence[Overlap]) -> str:
    same = [one for one in found if one.is_same]
    line = f"{path} and {name}: {len(same)} rows in both"
    if same:
        line += f", such as {same[0].source} ({same[0].kind}: {same[0].other})"
    if other := len(found) - len(same):
        line += f"; {other} with a question or a picture in common"
    return line
