"""Extraction and comparison of answers: tables, and properties on random junk."""

import contextlib
import random
import secrets
import time

import pytest

from jaxr1.rewards import Completion, Example, accuracy_reward, parse_answer_problem
from jaxr1.rewards.accuracy import accuracy_reading, answers_match
from jaxr1.rewards.reading import algebra
from jaxr1.rewards.reading.answers import extract_answer
from jaxr1.rewards.reading.arithmetic import arithmetic, without_evaluator
from jaxr1.rewards.reading.letters import choice_letter
from jaxr1.rewards.reading.writing import normalise

EXTRACTED = [
    ("<think>a</think><answer>7</answer>", "7"),
    ("<think>a</think><answer>\n7\n</answer>", "7"),  # multi-line
    ("<answer>7</answer><answer>8</answer>", "7"),  # the first block
    ("<think>maybe <answer>3</answer>?</think><answer>7</answer>", "7"),  # a thought is no answer
    ("<think>it is \\boxed{5}</think><answer>7</answer>", "7"),
    ("so <answer>it is \\boxed{\\frac{1}{2}}</answer>", "\\frac{1}{2}"),
    ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),  # the last, with balanced braces
    ("\\boxed{1} then \\boxed{2", "1"),
    ("\\boxed{a \\boxed{b} c}", "a \\boxed{b} c"),
    ("<think>a</think><answer>7", None),  # never closed
    ("7", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), EXTRACTED)
def test_extract(text, expected):
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I count 3, so 1,204.5", "I count 3, so 1,204.5"),
        ("First 2.\n\nSo 7.\n", "So 7."),
        ("so\n$$\nx = 5\n$$", "x = 5"),
        ("<think>3\n4</think>\n5", "5"),
        (
            "M is\n\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}",
            "\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}",
        ),
        ("\n \n", None),
        ("so <answer>5", None),  # what marks an answer is all that is read
    ],
)
def test_extract_tail(text, expected):
    assert extract_answer(text, tail=True) == expected


def test_truncated_has_no_tail_but_may_have_a_block():
    example = Example(answer="7")
    assert accuracy_reward(Completion("I think 7", "stop"), example, tail=True) == 1.0
    assert accuracy_reward(Completion("I think 7", "length"), example, tail=True) == 0.0
    assert accuracy_reward(Completion("<answer>7</answer> and", "length"), example) == 1.0


LETTERS = [
    ("B", "B"),
    ("b", "B"),
    ("(B)", "B"),
    ("[b]", "B"),
    ("B.", "B"),
    ("**B**", "B"),
    ("\\text{B}", "B"),
    ("B. the red cube", "B"),
    ("(B) the red cube", "B"),
    ("The answer is B", "B"),
    ("The answer is (B).", "B"),
    ("the answer is b", "B"),
    ("Option C", "C"),
    ("I choose D because it is near", "D"),
    ("a cat", None),
    ("A cat", None),
    ("cab", None),
    ("Bad", None),
    ("The answer is A dog", None),
    ("the answer is a dog", None),
    ("(A) or (B)", None),
    ("A, B", None),
    ("A and B", None),
    ("vitamin B-12", None),
    ("Option A is correct", "A"),
    ("The answer is A because it is left", "A"),
    ("A is correct", "A"),
    ("A because it is closer", "A"),
    ("A red cube is closer", None),
    ("option b is right", "B"),
    ("choice a", "A"),
    ("I think B", "B"),
    ("The answer I give is B", "B"),
    ("(I)", "I"),
    ("I. blue", "I"),
    ("Option J", "J"),
    ("I", "I"),
    ("3", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_choice_letter(text, letter):
    assert choice_letter(text) == letter


NUMBERS_SAME = [
    ("7", "7"),
    ("7", "7.0"),
    ("7", "+7"),
    ("-7", "−7"),
    ("1234", "1,234"),
    ("1,234,567", "1234567"),
    ("0.5", ".5"),
    ("0.5", "1/2"),
    ("1/2", "\\frac{1}{2}"),
    ("1/2", "\\dfrac12"),
    ("1/2", "½"),
    ("1.5", "1 1/2"),
    ("1.5", "1\\frac{1}{2}"),
    ("-1.5", "-1 1/2"),
    ("15%", "0.15"),  # the reference says that a percentage is asked for
    ("15%", "15"),
    ("15%", "15\\%"),
    ("1200", "1.2e3"),
    ("1200", "1.2 \\times 10^{3}"),
    ("0.333333333", "1/3"),
    ("42", "$42$"),
    ("42", "\\$42"),
    ("42", "The answer is 42."),
    ("90", "90°"),
    ("3", "3 dogs"),
    ("3", "There are 3 dogs."),
    ("5", "5cm"),
    ("4.5", "It costs $4.50"),
    ("90", "90^\\circ"),
    ("7", "７"),  # full width
    ("-3", "negative 3"),
    ("-3", "minus 3"),
    ("-3", "It is minus 3."),
    ("3", "about 3"),
    ("5 cm", "5 centimeters"),
    ("5 cm", "5cm"),
    ("12", "12 cm^2"),
    ("12", "12\\text{ cm}^2"),
    ("12", "12 cm²"),
    ("12 cm²", "12\\,\\mathrm{cm}^{2}"),
    ("100", "100 km/h"),
    ("100 km/h", "100 km per hour"),
    ("60", "60 mph"),
    ("1/2", "0.5 m"),
]
NUMBERS_DIFFERENT = [
    ("7", "8"),
    ("7", "-7"),
    ("7", "70"),
    ("0.15", "1.5%"),
    ("0.15", "15%"),  # and here that none is
    ("15", "15%"),
    ("0.5", "50"),  # no hidden factor of a hundred
    ("1/2", "2/1"),
    ("1234", "12,34"),
    ("10000000", "10000001"),  # integers have no tolerance
    ("3", "3 or 4"),
    ("1/2", "1/0"),
    ("0", "0.0001"),
    ("7", "seven hundred"),
    ("7", "5, 7"),
    ("7", "5 7"),
    ("7", "1 2 3 4 5 6 7"),
    ("7", "7 or 8"),
    ("7", "x7"),
    ("7", "1.7"),
    ("7", "7e3"),
    ("7", "3-7"),
    ("3", "negative 3"),
    ("-3", "3"),
    ("3", "less than 3"),
    ("3", "more than 3"),
    ("3", "at least 3"),
    ("3", "It is not 3"),
    ("3", "It isn't 3"),
    ("5 cm", "5 m"),
    ("12 cm", "12 cm^2"),
    ("3 pm", "3 am"),
    ("5 dollars", "5 cents"),
]


@pytest.mark.parametrize(("gold", "answer"), NUMBERS_SAME)
def test_same_numbers(gold, answer):
    assert answers_match(gold, answer, math=False)
    assert answers_match(gold, answer)  # computer algebra changes nothing


@pytest.mark.parametrize(("gold", "answer"), NUMBERS_DIFFERENT)
def test_different_numbers(gold, answer):
    assert not answers_match(gold, answer, math=False)
    assert not answers_match(gold, answer)


EXPRESSIONS_SAME = [
    ("2\\sqrt{2}", "\\sqrt{8}"),
    ("x^2+1", "1+x^2"),
    ("(1,2)", "(1, 2)"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("2\\pi", "2π"),
    ("2", "\\sqrt{4}"),
    ("7", "3+4=7"),
    ("x=5", "5"),
    ("\\left(\\frac{1}{2}, 3\\right)", "(0.5, 3)"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("A,C", "A, C"),
    ("A,C", "(A) and (C)"),
    ("C, A", "A, C"),
    ("red", "Red."),
    ("to the left", "to the  left"),
]
EXPRESSIONS_DIFFERENT = [
    ("2\\sqrt{2}", "\\sqrt{7}"),
    ("x^2+1", "x^2-1"),
    ("(1,2)", "(2,1)"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
    ("A,C", "A, B"),
    ("A,C", "A"),
    ("B, C", "A, B, C"),
    ("cat", "act"),  # words are no products of variables
    ("red", "blue"),
    ("2", "\\sqrt{4} or 3"),
    ("10", "9^{9^{9^9}}"),
]


@pytest.mark.parametrize(("gold", "answer"), EXPRESSIONS_SAME)
def test_same_expressions(gold, answer):
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), EXPRESSIONS_DIFFERENT)
def test_different_expressions(gold, answer):
    assert not answers_match(gold, answer)


def reward(gold, answer, **metadata):
    return accuracy_reward(
        Completion(f"<think>t</think><answer>{answer}</answer>"), Example("q", gold, "s", metadata)
    )


def test_choices_by_letter_and_by_text():
    choices = ["a cat", "(B) a dog", "C. a bird"]
    assert reward("B", "a dog", choices=choices) == 1.0
    assert reward("B", "A Dog.", choices=choices) == 1.0
    assert reward("a dog", "(B)", choices=choices) == 1.0
    assert reward("B", "a cat", choices=choices) == 0.0
    assert reward("A", "a cat", choices={"A": "a cat", "B": "a dog"}) == 1.0
    assert reward("A", "a dog") == 0.0  # a word holding "a" is not option A
    assert reward("A", "banana") == 0.0
    assert reward("B", "The answer is (B)") == 1.0
    assert reward("3", "C", choices=["1", "2", "3"]) == 1.0


UNPARSABLE = ["", "   ", "???", "\\frac{", "\\frac{1}{", "x" * 5000, "9^{9^{9^9}}", "2^{99999999}"]
PARSABLE = [
    "7",
    "B",
    "(B)",
    "a red cube",
    "\\frac{1}{2}",
    "2\\sqrt{2}",
    "15%",
    "x^2+1",
    "Paris",
    "(1, 2)",
    "5 cm",
]


@pytest.mark.parametrize("gold", UNPARSABLE)
def test_unparsable_reference(gold):
    assert parse_answer_problem(gold)
    completion, example = Completion("<answer>7</answer>"), Example(answer=gold)
    assert accuracy_reward(completion, example) is None
    assert accuracy_reward(completion, example, unparsable_gold="one") == 1.0


@pytest.mark.parametrize("gold", PARSABLE)
def test_parsable_reference(gold):
    assert parse_answer_problem(gold) is None
    assert reward(gold, gold) == 1.0


def random_arithmetic(rng, depth: int = 3) -> str:
    """Digits, operators and brackets."""
    if depth == 0 or rng.random() < 0.3:
        number = str(rng.randint(0, 99))
        return number if rng.random() < 0.7 else f"{number}.{rng.randint(0, 99)}"
    one, other = random_arithmetic(rng, depth - 1), random_arithmetic(rng, depth - 1)
    sign = rng.choice(["+", "-", "*", "/", " - ", "*-", "**"])
    if sign == "**":
        one, other = f"({one})", str(rng.randint(0, 3))
    text = f"{one}{sign}{other}"
    return rng.choice([text, f"({text})", f"-({text})", f"-{text}"])


def test_arithmetic_equals_sympys():
    """The same expressions, evaluated and as they are written; junk is refused by both."""
    from sympy import srepr
    from sympy.parsing.sympy_parser import parse_expr

    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    fixed = [
        "7",
        "0.5",
        ".25",
        "3.",
        "1e3",
        " 2 + 3 ",
        "1/2/3",
        "-1/2",
        "(1+2)/-(3)",
        "2**-1",
        "+4",
    ]
    for text in [*fixed, *(random_arithmetic(rng) for _ in range(150))]:
        for evaluate in (True, False):
            expected = srepr(parse_expr(text, evaluate=evaluate))
            assert srepr(arithmetic(text, evaluate=evaluate)) == expected, text
    for text in ("", "x", "2(3)", "1 2", "007", "__import__('os')", "1 if 1 else 2", "2 // 1"):
        with pytest.raises(SyntaxError):
            arithmetic(text)
    for text in (
        "'a'",
        "3j",
        "True",
        "[1]",
        "1 < 2",
        "~1",
        "1; 2",
        "lambda: 1",
        "(" * 300 + ")" * 300,
    ):
        with pytest.raises(SyntaxError):
            arithmetic(text, evaluate=False)


def test_nothing_is_evaluated(monkeypatch):
    """Known pairs are graded alike where Python's and sympy's evaluators of strings fail."""
    import builtins
    import threading

    import math_verify.parser
    import sympy.physics.units  # it evaluates names of its own on import
    from sympy.parsing import sympy_parser

    plain = [
        ("1/2+\\frac{1}{4}", "3/4"),
        ("7", "it is 3+4"),
        ("\\sqrt{16}", "2**2"),
        ("x=1.5", "3/2"),
        ("\\lfloor 7.5 \\rfloor", "7"),  # these are left to math-verify
        ("8", "\\lfloor 7.5 \\rfloor"),
        ("\\lceil 1/2+\\frac{1}{4} \\rceil", "1"),
        ("\\min(2**3, 3+4)", "7"),
    ]
    pairs = [*EXPRESSIONS_SAME, *EXPRESSIONS_DIFFERENT, *plain]

    def graded():
        algebra.parsed_math.cache_clear()
        parse_answer_problem.cache_clear()
        for name in ("parse_latex_cached", "parse_expr_cached", "extract_latex"):
            getattr(math_verify.parser, name).cache_clear()
        problems = [parse_answer_problem(gold) for gold in (*PARSABLE, *UNPARSABLE)]
        return [answers_match(gold, answer) for gold, answer in pairs], problems

    with monkeypatch.context() as patched:
        patched.setattr(algebra, "without_evaluator", contextlib.nullcontext)
        before = graded()
    parse_expr, evaluated = sympy_parser.parse_expr, builtins.eval
    found: list[str] = []

    def refused(code, *args, **kwargs):
        found.append(str(code))
        raise AssertionError(f"evaluated: {code!r}")

    with monkeypatch.context() as patched:
        patched.setattr(sympy_parser, "eval_expr", refused)
        patched.setattr(sympy_parser, "parse_expr", refused)
        patched.setattr(builtins, "eval", refused)
        after = graded()
    assert (after, found) == (before, []) and True in after[0]
    assert sympy_parser.parse_expr is parse_expr and builtins.eval is evaluated

    # another thread goes on with sympy's own parser meanwhile
    with without_evaluator():
        theirs: list = []
        thread = threading.Thread(target=lambda: theirs.append(sympy.sympify("x + x")))
        thread.start()
        thread.join()
        with pytest.raises(sympy.SympifyError):
            sympy.sympify("x + x")
    assert str(theirs[0]) == "2*x"


def test_no_reference_gives_no_value():
    assert accuracy_reward(Completion("<answer>7</answer>"), Example(answer=None)) is None
    with pytest.raises(ValueError, match="unparsable_gold"):
        accuracy_reward(Completion(""), Example(answer="7"), unparsable_gold="zero")


def test_gold_goes_first_and_without_alarms(monkeypatch):
    calls = []

    class Spy:
        def parse(self, text, *, parsing_timeout):
            assert parsing_timeout is None
            return [text.strip("$")]

        def verify(self, gold, answer, *, timeout_seconds):
            assert timeout_seconds is None
            calls.append((gold, answer))
            return True

    monkeypatch.setattr(algebra, "math_verify_module", Spy)
    algebra.parsed_math.cache_clear()
    # a formula that the grammar does not have
    assert answers_match("\\lfloor \\sqrt{8} \\rfloor", "\\lceil \\sqrt{3} \\rceil")
    algebra.parsed_math.cache_clear()
    assert calls == [(["\\lfloor \\sqrt{8} \\rfloor"], ["\\lceil \\sqrt{3} \\rceil"])]


PIECES = [
    *"0123456789abABHx.,;:()[]{}%$^_+-*/=\\ \n'\"<>|!?°½²π√é\U0001f600\x00",
    *("\\frac", "\\sqrt{", "\\boxed{", "\\text{", "\\left(", "10^", "1,234", "nan", "inf", "1e999"),
    *("the ", "answer is ", "<answer>", "</answer>", "</think>"),
]


def test_random_junk_never_raises():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    words = ["".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(1500)]
    for one, other in zip(words, reversed(words), strict=True):
        assert answers_match(one, one, math=False)
        assert answers_match(one, other, math=False) in (True, False)
        extract_answer(one + other, tail=True)
        algebra.math_problem(normalise(one))
    for one, other in zip(words[:120], words[120:], strict=False):
        assert reward(one, other) in (None, 0.0, 1.0)
        parse_answer_problem(one)


LONG = [
    *("(x+y+z)^{300}+1", "x^{999}-1=0", "\\exp(\\exp(\\exp(99)))", "(1+\\sqrt{2})^{999}"),
    *(
        "\\boxed{" * 20_000,
        "{" * 100_000,
        "9" * 100_000,
        "^" * 50_000,
        "1," * 50_000,
        "<answer>" * 20_000,
    ),
    *(
        "(" * 3000 + "1" + ")" * 3000,
        "a " * 50_000,
        "\\text{" * 300,
        "$" * 1900,
        "A " * 900,
        "1 " * 900,
        "-" * 1900,
    ),
    *(
        "9^9^9^9^9^9^9",
        "((9^{999})^{999})^{999}",
        "1000000!",
        "9^{9^{9^9}}",
        "(2^9)^{(9^9)}",
        "\\sqrt{" * 12 + "2" + "}" * 12,
    ),
]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_bounded_time(text):
    start = time.perf_counter()
    parse_answer_problem(text)
    answers_match("7", text)
    answers_match(text, "7")
    extract_answer(text, tail=True)
    reward("\\sqrt{2}", text)
    assert time.perf_counter() - start < 5.0  # generous: the first case may import sympy


# What a model says that was never asked for tags: (response, reference, reward).
UNTAGGED = [
    ("There are 3 red shapes in the image.", "3", 1),
    ("3", "3", 1),
    ("I can see 3 red shapes.", "3", 1),
    ("First 2, then one more.\n\nAnswer: 3", "3", 1),
    ("I can see 4 red shapes.", "3", 0),
    ("1, 2, 3, 4 or 5", "3", 0),  # of a dump only the last number counts
    ("1/2", "1/2", 1),
    ("The answer is 1/2.", "0.5", 1),
    ("3 + 4", "7", 0),  # the question again
    ("so \\boxed{3}", "3", 1),
    ("cat", "cat", 1),
    ("It is a cat.", "cat", 1),
    ("It is not a cat.", "cat", 0),
    ("It isn't a cat.", "cat", 0),
    ("a dog or a cat", "cat", 0),
    ("**Answer:** left", "left", 1),
    ("Yes, there is one.", "yes", 1),
    ("No, that is wrong: yes", "yes", 0),
    ("The answer is (B).", "B", 1),
    # what marks an answer is all that is read
    ("<answer>4</answer> or 3", "3", 0),
    ("<answer>4</answer> 3", "3", 0),
    ("<answer>3", "3", 0),
    ("3 </answer>", "3", 0),
    ("<answer></answer> 3", "3", 0),
    ("\\boxed{4} 3", "3", 0),
    ("\\boxed{ 3", "3", 0),
    ("", "3", 0),
]


@pytest.mark.parametrize(("text", "gold", "value"), UNTAGGED)
def test_answers_without_tags_are_read_unless_told_not_to(text, gold, value):
    completion, example = Completion(text), Example(answer=gold)
    assert accuracy_reward(completion, example) == value
    if "\\boxed{3}" not in text:
        assert accuracy_reward(completion, example, tail=False) == 0
    assert accuracy_reward(Completion(text, "length"), example, tail=False) == accuracy_reward(
        Completion(text, "length"), example
    )


def test_what_accuracy_reads_is_said():
    read = lambda text, **options: accuracy_reading(
        Completion(text), Example(answer="3"), **options
    )
    assert read("\\boxed{4}") == "reads '4' (reference '3')"
    assert read("I see 3.") == "reads the last line 'I see 3.' (reference '3')"
    assert "tail is off" in read("I see 3.", tail=False)
    assert "no whole one" in read("<answer>3") and "the last line 'many'" in read("many")
    cut = accuracy_reading(Completion("3", "length"), Example(answer="3"))
    assert "the response was cut" in cut
