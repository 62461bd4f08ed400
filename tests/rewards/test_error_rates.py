"""How often the accuracy reward errs on labelled pairs, bounded, and as the page of it says."""

import collections
import re

import numpy as np
import pytest
from rewards import error_rates

from jaxr1.rewards import Completion, Example, accuracy_reward

# {pairs: most false positives of 500, most false negatives of 500, most errors in a kind}. Wanted
# are 3, 10 and 5 %. What the held-back pairs are allowed is what was measured: nobody may look at
# them to mend it.
MOST = {"seen": (3, 10, 0.05), "held": (8, 15, 0.1)}
KINDS = (
    "number unit percentage fraction interval set tuple equation matrix letter letter_text "
    "several_letters option_text word date time money chinese several_boxed unterminated hedge "
    "negation contradiction shotgun"
).split()


FILES = list(error_rates.PAIRS)


@pytest.fixture(scope="module")
def found():
    """{file: (pairs, {grader: errors})}, measured once."""
    made = {}
    for name, file in error_rates.PAIRS.items():
        pairs = error_rates.read_pairs(file)
        made[name] = pairs, error_rates.measure_all(pairs)
    return made


@pytest.mark.parametrize("name", FILES)
def test_the_pairs_are_whole(name):
    pairs = error_rates.read_pairs(error_rates.PAIRS[name])
    kinds = collections.Counter(pair["kind"] for pair in pairs)
    assert sorted(kinds) == sorted(KINDS) and len(pairs) == 1000
    assert sum(pair["right"] for pair in pairs) == 500
    assert all(40 <= count <= 46 for count in kinds.values())
    for pair in pairs:
        assert isinstance(pair["right"], bool) and pair["reference"] and pair["question"]
    asked = {(p["question"], p["reference"], p["response"], str(p.get("choices"))) for p in pairs}
    assert len(asked) == len(pairs)


@pytest.mark.parametrize("name", FILES)
def test_few_errors_and_fewer_than_others(name, found):
    pairs, by_grader = found[name]
    own = by_grader["jaxr1"]
    wrong = own.wrong if name == "seen" else []  # the others stay unread
    said = [(pair["kind"], pair["reference"], pair["response"][-120:]) for pair in wrong]
    false_positives, false_negatives = own.total()
    most_positives, most_negatives, most_of_a_kind = MOST[name]
    assert false_positives <= most_positives, said
    assert false_negatives <= most_negatives, said
    for kind, count in collections.Counter(pair["kind"] for pair in pairs).items():
        assert sum(own.of(kind)) <= most_of_a_kind * count, (kind, said)
    for other in by_grader.keys() - {"jaxr1"}:
        theirs = by_grader[other].total()
        assert false_positives < theirs[0] and false_negatives < theirs[1], other
    assert own.milliseconds(99) <= 1.5 * by_grader["math-verify"].milliseconds(99)


def cells(lines):
    """{(kind, column): cell} of a Markdown table."""
    rows = [[cell.strip() for cell in line.strip(" |").split(" | ")] for line in lines]
    return {
        (row[0], column): row[i]
        for row in rows
        for i, column in enumerate(rows[0])
        if not row[0].startswith("---")
    }


@pytest.mark.parametrize("name", FILES)
def test_the_page_says_what_the_command_prints(name, found):
    """Of all graders that are installed; times differ between machines."""
    text = error_rates.NOTEBOOK.read_text(encoding="utf-8")
    section = text.partition(f"### {name}.jsonl")[2].partition("Milliseconds")[0]
    page = cells(line for line in section.splitlines() if line.startswith("|"))
    now = cells(error_rates.table(*found[name]))
    assert len(now) > 4 * len(KINDS)
    for key, cell in now.items():
        assert page.get(key) == cell, key


def test_wilson_covers(rng):
    """The interval holds the share that a sample was drawn with about 95 times of a hundred."""
    share, total = rng.uniform(0.02, 0.5), int(rng.integers(40, 600))
    held = 0
    for count in rng.binomial(total, share, size=2000):
        low, high = error_rates.wilson(int(count), total)
        held += low <= 100 * share <= high
    assert 0.89 < held / 2000 < 0.995
    assert error_rates.wilson(0, 500) == pytest.approx((0.0, 0.762), abs=1e-3)


def test_errors_are_counted(rng):
    """A grader that is right by the toss of a coin errs as often as the coin says."""
    pairs = [{"kind": "k", "right": bool(rng.integers(2))} for _ in range(200)]
    tossed = [bool(toss) for toss in rng.integers(2, size=200)]
    given = iter(tossed)
    errors = error_rates.measure(lambda pair: next(given), pairs)
    truth = np.array([pair["right"] for pair in pairs])
    assert errors.of("k") == ((np.array(tossed) & ~truth).sum(), (~np.array(tossed) & truth).sum())
    assert len(errors.wrong) == sum(errors.total()) and len(errors.seconds) == 200


# What the page shows as examples: (reference, right answers, wrong answers), read from it.
def examples():
    text = error_rates.NOTEBOOK.read_text(encoding="utf-8").partition("## Examples")[2]
    for line in text.partition("\n## ")[0].splitlines():
        row = [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")]
        if len(row) == 3 and row[0]:
            yield pytest.param(row[0][0], row[1], row[2], id=row[0][0])


@pytest.mark.parametrize(("reference", "right", "wrong"), list(examples()))
def test_examples_of_the_page(reference, right, wrong):
    assert right and wrong
    for answers, value in ((right, 1.0), (wrong, 0.0)):
        for answer in answers:
            completion = Completion(f"<think>t</think><answer>{answer}</answer>")
            assert accuracy_reward(completion, Example(answer=reference)) == value, answer
