"""The bridging, top to bottom: three steps, what is kept of them, and the file for a cold start."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxr1.base.errors import UserError
from jaxr1.base.files import fingerprint_of, write_whole
from jaxr1.base.jsonl import write_rows
from jaxr1.bridging.checks import RULES, Reasoned
from jaxr1.bridging.options import Bridge
from jaxr1.bridging.steps import Asker, Models, Said, Step, steps_of
from jaxr1.checkpoints.tensors import fingerprint
from jaxr1.data import Dataset, Example
from jaxr1.data.example import source_files
from jaxr1.media.images import load_image, media_hash
from jaxr1.media.references import StoredMedia
from jaxr1.models import load
from jaxr1.parallel import is_main, joined, on_main
from jaxr1.run.console import Console
from jaxr1.run.resume import check_shared, differences, only_process
from jaxr1.run.signals import Interrupted, Signals

OPTIONS = "bridge.json"
DROPPED = "dropped.jsonl"


class BridgeError(UserError):
    """A bridging that cannot be gone on with, or keeps nothing."""


@dataclasses.dataclass
class Tally:
    """How many rows each step was asked, and why it dropped some.

    Attributes:
      asked: {step: rows}.
      dropped: {(step, row's source): reason}.
    """

    asked: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    def drop(self, step: str, source: str, reason: str) -> None:
        """Counts a row that a step has dropped; the first reason counts."""
        self.dropped.setdefault((step, source), reason)

    def rows(self) -> list[dict[str, str]]:
        """As dropped.jsonl has them."""
        return [{"step": s, "source": row, "reason": r} for (s, row), r in self.dropped.items()]

    def table(self) -> str:
        """For the console: a line a step, then its reasons."""
        lines = ["step          rows   dropped"]
        for step, asked in self.asked.items():
            reasons = [r for (name, _), r in self.dropped.items() if name == step]
            lines.append(f"{step:<12} {asked:>6} {len(reasons):>9}")
            kinds = collections.Counter(reason.partition(":")[0] for reason in reasons)
            lines += [f"  {count:>6} x {kind}" for kind, count in kinds.most_common()]
        return "\n".join(lines)


def bridge(options: Bridge, console: Console | None = None) -> int:
    """The command's work; its exit status.

    Raises:
      BridgeError: the folder holds the texts of other options, or nothing is kept.
      DataError, CheckpointError, RewardError: rows, models or the reward cannot be used.
    """
    folder = Path(options.run_dir or Path(options.out).with_suffix(".run"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(joined(options.hosts))
        shown = console or stack.enter_context(Console(quiet=not is_main()))
        on_main(lambda: stack.enter_context(only_process(folder)))
        check_shared(folder)
        stops = lambda name: shown.print(f"{name}: stopping; the same command goes on")
        signals = stack.enter_context(Signals(stops))
        try:
            return _bridged(options, folder, shown, signals.check)
        except Interrupted:
            return 128 + (signals.stopped_by or signal.SIGINT)


def _bridged(options: Bridge, folder: Path, shown: Console, check: Callable[[], None]) -> int:
    rows = options.data.load()
    steps = steps_of(options)
    on_main(lambda: _same_options(folder, _described(options, steps)))
    tally = Tally()
    asker = Asker(options, Models(options), folder, check, shown.phase, tally.drop)

    # Explanation, then description: a text that was cut says too little, and its row is dropped.
    known: dict[int, dict[str, str]] = {row: {} for row in range(len(rows))}
    *writing, reasoning = steps
    for step in writing:
        tally.asked[step.name] = len(known)
        said = asker(step, rows, known)
        known = _further(step, rows, known, said, tally)

    # Reasoning from the description alone: right, consistent, and about a picture in its words.
    tally.asked[reasoning.name] = len(known)
    kept: list[dict[str, Any]] = []
    out = Path(options.out)
    for row, texts in asker(reasoning, rows, known).items():
        found = chosen(options, rows[row], texts)
        if isinstance(found, str):
            tally.drop(reasoning.name, rows[row].source, found)
        else:
            kept.append(_worked(options, rows[row], found, out))
    shown.print(tally.table())
    on_main(lambda: write_rows(folder / DROPPED, tally.rows()))
    if not kept:
        raise BridgeError(f"none of {len(rows)} rows is kept; {folder / DROPPED} says why")
    on_main(lambda: write_rows(out, kept))
    shown.print(f"{out}: {len(kept)} of {len(rows)} rows, for a supervised stage")
    return 0


def _further(
    step: Step,
    rows: Dataset,
    known: Mapping[int, Mapping[str, str]],
    said: Mapping[int, list[Said]],
    tally: Tally,
) -> dict[int, dict[str, str]]:
    """What is known of the rows that go on behind a step."""
    further = {}
    for row, texts in said.items():
        text = texts[0].text.strip()
        if not text or not texts[0].stopped:
            reason = "it was cut at the length limit" if text else "nothing was said"
            tally.drop(step.name, rows[row].source, reason)
        else:
            further[row] = {**known[row], step.name: text}
    return further


def chosen(options: Bridge, example: Example, texts: list[Said]) -> Reasoned | str:
    """The first reasoning that is right and breaks no rule; else why the last one is dropped."""
    reason = "nothing was said"
    for said in texts:
        reference = str(example.answer)
        found = Reasoned.of(said.text, reference, example.question, said.stopped)
        broken = [why for name in options.rules if (why := RULES[name](found)) is not None]
        if not said.right:
            reason = f"not right: {found.answer!r:.40}, the answer is {reference!r:.40}"
        elif broken:
            reason = broken[0]
        elif not found.thought:
            reason = "there is no thought"
        else:
            return found
    return reason


# --- what is written ----------------------------------------------------------------------------
def _worked(options: Bridge, example: Example, found: Reasoned, out: Path) -> dict[str, Any]:
    """A row of the cold start: the question with its media, and the worked response."""
    thought = options.words.of_the_picture(found.thought)
    answer = found.answer or found.reference
    response = options.words.asked("response", thought=thought, answer=answer)
    messages = [_with_files(message, out) for message in example.messages]
    row = {"messages": messages, "response": response, "answer": example.answer}
    return row | {"bridged_from": example.source} | example.metadata


def _with_files(message: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """A turn whose media are files, named from the folder of the rows."""
    if isinstance(message["content"], str):
        return dict(message)
    parts = []
    for part in message["content"]:
        kind = part["type"]
        parts.append(part if kind == "text" else {**part, kind: _file_of(part[kind], kind, out)})
    return {**message, "content": parts}


def _file_of(medium: Any, kind: str, out: Path) -> str:
    """The path of a medium; one that is in no file of its own is written beside the rows."""
    if isinstance(medium, str):
        return os.path.relpath(medium, out.parent)
    folder = out.with_suffix(".media")
    if kind == "video":
        data = medium.read() if isinstance(medium, StoredMedia) else medium
        name = f"{fingerprint_bytes(data)}.mp4"
    else:
        image = load_image(medium.read() if isinstance(medium, StoredMedia) else medium)
        picture = io.BytesIO()
        image.save(picture, "PNG")
        data, name = picture.getvalue(), f"{media_hash(image)}.png"

    def write() -> None:
        if not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, data)

    if is_main():
        write()
    return os.path.relpath(folder / name, out.parent)


def fingerprint_bytes(data: bytes) -> str:
    """16 hexadecimal digits of the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


# --- options of a folder ------------------------------------------------------------------------
def _described(options: Bridge, steps: list[Step]) -> dict[str, Any]:
    """What the texts in a folder depend on."""
    told = dataclasses.asdict(options) | {"data": repr(options.data)}
    for name in ("out", "run_dir", "hosts", "mesh", "rules", "words", "batch_rows"):
        told.pop(name)
    asked = {name: getattr(options.words, name) for name in ("pseudo", "describe", "reason")}
    models = {step.name: fingerprint(load.resolve(step.model)) for step in steps}
    files = {file: fingerprint_of(Path(file)) for file in source_files(options.data)}
    return json.loads(json.dumps(told | {"words": asked, "models": models, "files": files}))


def _same_options(folder: Path, now: dict[str, Any]) -> None:
    """Keeps the options that a folder's texts were made with.

    Raises:
      BridgeError: they were others.
    """
    file = folder / OPTIONS
    if file.is_file():
        changed = differences(json.loads(file.read_text()), now)
        if changed:
            raise BridgeError(
                f"{folder}: its texts were made with other options:\n  "
                + "\n  ".join(changed)
                + "\nUse another --run-dir."
            )
        return
    write_whole(file, json.dumps(now, indent=2).encode())
