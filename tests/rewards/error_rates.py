"""How often graders err, on labelled pairs of a response and a reference.

    python tests/rewards/error_rates.py [--pairs FILE] [--write]

Each file under `pairs/` has one pair on a line: kind, question, response, reference, whether a
careful teacher marks it right, and the choices where the question offers some. Three graders see
the same pairs: `accuracy_reward` as a run calls it, math-verify alone, and the reward of TRL, where
that is installed. `--write` brings the tables in notebooks/grading.md up to date.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PAIRS = {name: HERE / "pairs" / f"{name}.jsonl" for name in ("seen", "held")}
NOTEBOOK = HERE.parents[1] / "notebooks" / "grading.md"
BEGIN, END = "<!-- error rates: begin -->", "<!-- error rates: end -->"
Z95 = 1.959964  # of the normal distribution, two-sided

Pair = dict[str, Any]
Grader = Callable[[Pair], bool]


def read_pairs(file: Path) -> list[Pair]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- graders ------------------------------------------------------------------------------------
def ours(pair: Pair) -> bool:
    """`accuracy_reward`, with the question and the choices of the row, as a run calls it."""
    from jaxr1.rewards import Completion, Example, accuracy_reward

    metadata = {"choices": pair["choices"]} if "choices" in pair else {}
    example = Example(pair["question"], pair["reference"], metadata=metadata)
    return accuracy_reward(Completion(pair["response"]), example) == 1.0


def math_verify(pair: Pair) -> bool:
    """math-verify's parse and verify, the reference first, on the answer block where there is one.

    It finds LaTeX between its delimiters only, so that a bare expression is given them.
    """
    from math_verify import parse, verify

    block = re.search(r"<answer>(.*?)</answer>", pair["response"], re.DOTALL)
    answer = block.group(1) if block else pair["response"]
    return bool(verify(parse(_delimited(pair["reference"])), parse(_delimited(answer))))


def _delimited(text: str) -> str:
    is_bare = re.search(r"[\\^_]", text) and not re.search(r"\$|\\boxed|\\[(\[]", text)
    return f"${text.strip()}$" if is_bare and len(text) < 200 else text


def trl(pair: Pair) -> bool:
    """TRL's accuracy reward; None, its word for a reference that it cannot parse, counts as 0."""
    from trl.rewards import accuracy_reward

    given = accuracy_reward([[{"content": pair["response"]}]], [pair["reference"]])
    return given[0] == 1.0


def graders() -> dict[str, Grader]:
    """{name: grader} of those that are installed."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    found: dict[str, Grader] = {"jaxr1": ours, "math-verify": math_verify}
    if importlib.util.find_spec("trl") is not None:
        found["TRL"] = trl
    return found


# --- results ------------------------------------------------------------------------------------
@dataclass
class Errors:
    """What a grader got wrong on a list of pairs.

    Attributes:
      false_positives: {kind: wrong answers graded right}.
      false_negatives: {kind: right answers graded wrong}.
      wrong: the pairs that were misjudged.
      seconds: what each pair took.
    """

    false_positives: Counter[str] = field(default_factory=Counter)
    false_negatives: Counter[str] = field(default_factory=Counter)
    wrong: list[Pair] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def of(self, kind: str) -> tuple[int, int]:
        return self.false_positives[kind], self.false_negatives[kind]

    def total(self) -> tuple[int, int]:
        return self.false_positives.total(), self.false_negatives.total()

    def milliseconds(self, percent: float) -> float:
        return 1000 * float(np.percentile(self.seconds, percent))


def measure(grader: Grader, pairs: Iterable[Pair]) -> Errors:
    """Every pair graded once."""
    errors = Errors()
    for pair in pairs:
        start = time.perf_counter()
        given = grader(pair)
        errors.seconds.append(time.perf_counter() - start)
        if given != pair["right"]:
            (errors.false_positives if given else errors.false_negatives)[pair["kind"]] += 1
            errors.wrong.append(pair)
    return errors


def measure_all(pairs: list[Pair]) -> dict[str, Errors]:
    """{name: errors}, all in this process and after every import."""
    found = {}
    for name, grader in graders().items():
        warm = {"question": "", "response": "\\boxed{\\sqrt{8}}", "reference": "2\\sqrt{2}"}
        grader(warm)
        found[name] = measure(grader, pairs)
    return found


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent (E. B. Wilson, JASA 22 (1927), 209-212)."""
    if total == 0:
        return 0.0, 100.0
    share, z2 = count / total, Z95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def _share(count: int, total: int) -> str:
    low, high = wilson(count, total)
    return f"{count} ({100 * count / max(total, 1):.1f} %, {low:.1f} to {high:.1f})"


def table(pairs: list[Pair], found: dict[str, Errors]) -> list[str]:
    """Lines of Markdown: one for each kind, and one for all."""
    right = Counter(pair["kind"] for pair in pairs if pair["right"])
    every = Counter(pair["kind"] for pair in pairs)
    heads = [f"{name} {what}" for name in found for what in ("FP", "FN")]
    lines = ["| " + " | ".join(["kind", "n", *heads]) + " |", "|---" * (2 + len(heads)) + "|"]
    for kind, n in every.items():
        cells = [kind, f"{n - right[kind]} + {right[kind]}"]
        for errors in found.values():
            false_positives, false_negatives = errors.of(kind)
            cells += [
                _share(false_positives, n - right[kind]),
                _share(false_negatives, right[kind]),
            ]
        lines.append("| " + " | ".join(cells) + " |")
    cells = ["all", f"{every.total() - right.total()} + {right.total()}"]
    for errors in found.values():
        false_positives, false_negatives = errors.total()
        cells += [
            _share(false_positives, every.total() - right.total()),
            _share(false_negatives, right.total()),
        ]
    return [*lines, "| " + " | ".join(cells) + " |"]


def times(found: dict[str, Errors]) -> str:
    said = [
        f"{name} {errors.milliseconds(50):.2f} and {errors.milliseconds(99):.1f}"
        for name, errors in found.items()
    ]
    return f"Milliseconds for a pair, p50 and p99: {'; '.join(said)}."


def versions() -> str:
    named = {"math-verify": "math-verify", "TRL": "trl", "sympy": "sympy"}
    return ", ".join(f"{name} {importlib.metadata.version(key)}" for name, key in named.items())


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How often graders err on labelled pairs.")
    parser.add_argument("--pairs", type=Path, help="a file of pairs (default: those in pairs/)")
    parser.add_argument("--write", action="store_true", help=f"update {NOTEBOOK.name}")
    parser.add_argument("--wrong", action="store_true", help="show what jaxr1 misjudges")
    options = parser.parse_args(given)
    if options.write and "TRL" not in graders():
        sys.exit("the page shows TRL as well, which is not installed: pip install 'jaxr1[trl]'")
    files = {options.pairs.stem: options.pairs} if options.pairs else PAIRS
    lines = []
    for name, file in files.items():
        if not file.exists():
            print(f"{file} is not there: left out", file=sys.stderr)
            continue
        pairs = read_pairs(file)
        found = measure_all(pairs)
        lines += [f"### {name}.jsonl: {len(pairs)} pairs", "", *table(pairs, found), ""]
        lines += [times(found), ""]
        for pair in found["jaxr1"].wrong if options.wrong else ():
            print("FN" if pair["right"] else "FP", json.dumps(pair, ensure_ascii=False))
    print("\n".join(lines))
    if options.write:
        text = NOTEBOOK.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        made = "\n".join([BEGIN, "", f"{versions()}.", "", *lines])
        NOTEBOOK.write_text(f"{before}{made}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
