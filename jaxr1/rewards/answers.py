"""Answers: finding one in a completion, and writing it without differences that mean nothing."""

from __future__ import annotations

import re
import unicodedata

MAX_ANSWER_CHARS = 2000  # beyond this an answer is an essay: only equal strings are equal
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
# After an "A": not an article before a noun ("A dog"), but a letter that is something ("A is
# closer", "A and B").
_NO_NOUN = (
    r"(?:and|or|is|was|because|since|as|seems|looks|would|must|should|has|fits|matches|works)\b"
)
NO_ARTICLE = rf"(?:(?<!A)|(?<=A)(?! (?!{_NO_NOUN})[a-z]))"


def extract_answer(text: str, *, tail: bool = False) -> str | None:
    """The answer that a completion states, or None.

    The content of the first answer block (it may span lines; text inside a closed think block does
    not count, unless there is no other), else the content of the last balanced \\boxed{}. With
    `tail`, else the last number or lone choice letter of a text that marks no answer: lenient, for
    models that were never asked for tags. An answer block that is never closed is no answer.

    Args:
      text: a whole completion.
      tail: look for a last number or letter where there is neither an answer tag nor a box.
    """
    after_thought = text.find("</think>")
    block = _first_block(text, max(after_thought, 0)) if after_thought >= 0 else None
    if block is None:
        block = _first_block(text, 0)
    if block is not None:
        boxed = last_boxed(block)
        return (boxed if boxed is not None else block).strip()
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    return _tail_answer(text) if tail and not marks_answer(text) else None


def marks_answer(text: str) -> bool:
    """Whether a completion holds an answer tag or a box, be it closed or not.

    Only these are read then: a model that has learned the form gains nothing by what it says
    outside.
    """
    return any(mark in text for mark in (ANSWER_OPEN, ANSWER_CLOSE, "\\boxed", "\\fbox"))


def closing_line(text: str) -> str:
    """The last line of a completion that is not empty: often the answer alone, or a sentence."""
    return text.rstrip()[-MAX_ANSWER_CHARS:].rpartition("\n")[2].strip()


def _first_block(text: str, start: int) -> str | None:
    opened = text.find(ANSWER_OPEN, start)
    if opened < 0:
        return None
    closed = text.find(ANSWER_CLOSE, opened)
    return None if closed < 0 else text[opened + len(ANSWER_OPEN) : closed]


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{} or \\fbox{} whose braces balance; the outer of nested ones.

    In linear time.
    """
    found: str | None = None
    open_braces: list[int | None] = []  # where a box's content begins; None for any other brace
    for match in re.finditer(r"\\boxed\s{0,8}\{|\\fbox\s{0,8}\{|\\[{}]|[{}]", text):
        token = match.group()
        if token in ("\\{", "\\}"):
            continue
        if token == "}":
            if open_braces:
                start = open_braces.pop()
                if start is not None:
                    found = text[start : match.start()]
        else:
            open_braces.append(None if token == "{" else match.end())
    return found


_TAIL = re.compile(
    r"(?<![\w.])-?(?:\d{1,40}(?:,\d{3}){0,12}(?:\.\d{1,40})?%?|\.\d{1,40}|\(?[A-H]\)?)(?!\w)"
    + NO_ARTICLE
)


def _tail_answer(text: str) -> str | None:
    last = None
    for match in _TAIL.finditer(text[-MAX_ANSWER_CHARS:]):
        last = match.group()
    return last


# --- normalisation ------------------------------------------------------------------------------
_SUPERSCRIPTS = str.maketrans({c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})
_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "×": "\\times ",
        "÷": "/",
        "⁄": "/",
        "·": "\\cdot ",
        "π": "\\pi ",
        "∞": "\\infty ",
        "√": "\\sqrt ",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "\u200b": "",
        "\ufeff": "",
    }
)
_REWRITTEN = (
    ("\\%", "%"),
    ("\\$", ""),
    ("{,}", ","),
    ("\\!", ""),
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\cfrac", "\\frac"),
)
_VULGAR = re.compile(r"[¼-¾⅐-⅞↉]")
_WRAPPED_TEXT = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname|emph)\s?\{([^{}]*)\}"
)
# Not the second half of "\\", which ends a row of a matrix.
_SPACING = re.compile(r"(?<!\\)\\(?:[,;:!> ]|quad\b|qquad\b|displaystyle\b)|~")
_DELIMITERS = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|(?<!\\)\\[()\[\]]|\$\$?")
_DEGREES = re.compile(r"\^?\s?\{?\s?\\circ\s?\}?|°")


def normalise(answer: str) -> str:
    """An answer without the differences that mean nothing; letter case is kept.

    Idempotent on what it returns. Taken out, or made one of several forms: Unicode forms, minus
    signs and vulgar fractions; dollar signs and other maths delimiters; \\left, \\right, \\text{},
    spacing commands, \\dfrac; degree signs; markdown emphasis, quotes, a final full stop; runs of
    whitespace.
    """
    # removing one layer can uncover another ("**$5$.**"); each pass shortens or settles the string
    for _ in range(8):
        simpler = _normalise_once(answer)
        if simpler == answer:
            break
        answer = simpler
    return answer


def _normalise_once(answer: str) -> str:
    # a space first: 1½ is not 11/2
    text = _VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m.group()), answer)
    # superscripts become powers before Unicode's own normalisation makes them plain digits
    text = unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPTS)).translate(_CHARACTERS)
    for written, meant in _REWRITTEN:
        text = text.replace(written, meant)
    text = _DELIMITERS.sub("", text)
    text = _SPACING.sub(" ", text)
    text = _WRAPPED_TEXT.sub(r"\1", text)
    text = _DEGREES.sub("", text)
    if text.startswith("**") or "`" in text:
        text = text.replace("**", " ").replace("`", "")
    text = " ".join(text.split())
    text = text.strip("\"' ")
    while text.endswith((".", ",", ";")) and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


_ANNOUNCED = re.compile(
    r"(?i)^(?:so |thus |therefore |hence )?,? ?(?:the )?(?:final |correct )?answer(?: is|:| is:) +"
)


def statement(answer: str) -> str:
    """The normalised answer without an announcing phrase before it."""
    text = normalise(answer)
    stripped = _ANNOUNCED.sub("", text, count=1).strip()
    return normalise(stripped) if stripped else text


# What makes a sentence deny, or leave open, the words that it ends with.
_OPEN = re.compile(r"(?i)\b(?:not|no|nor|never|cannot|or|either|maybe)\b|n't\b|[;?]")
_YES_OR_NO = re.compile(r"(yes|no)\b")


def says_word(gold: str, line: str) -> bool:
    """Whether a sentence ends with a reference of words, or opens with it where it is yes or no.

    "The cube is on the left." says "left"; "It is not on the left." and "left or right" do not.
    """
    wanted, said = statement(gold).casefold(), statement(line).casefold()
    if opened := _YES_OR_NO.match(said):
        return opened.group() == wanted
    if len(wanted) < 2 or not wanted.replace(" ", "").isalpha():
        return False
    return said.endswith(f" {wanted}") and not _OPEN.search(said)
