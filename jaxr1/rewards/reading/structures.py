"""Structures: intervals, sets and lists, tuples and ratios, matrices; made of texts of their"
" parts."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NESTING = re.compile(r"\\[{}]|\\langle|\\rangle|[()\[\]{}]")
INFINITY = "\\infty"
_AND = re.compile(r"(?i)\s*(?:[,;，；]\s*(?:and\b|or\b|和|或)?|\band\b|\bor\b|&|和|或|与|及)\s*")


def parts_of(text: str, separators: re.Pattern[str]) -> list[str]:
    """The parts of a text between separators that stand outside all brackets."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        nesting = _NESTING.match(text, at)
        if nesting:
            token = nesting.group()
            depth += 1 if token in ("(", "[", "{", "\\{", "\\langle") else -1
            at = nesting.end()
            continue
        match = separators.match(text, at) if depth == 0 else None
        if match and match.end() > at:
            parts.append(text[start:at].strip())
            start = at = match.end()
        else:
            at += 1
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) of a text that one pair of brackets encloses as a whole."""
    text = text.strip()
    opening = next((o for o in ("\\{", "\\langle", "(", "[", "{", "<") if text.startswith(o)), None)
    closing = next((c for c in ("\\}", "\\rangle", ")", "]", "}", ">") if text.endswith(c)), None)
    if opening is None or closing is None or len(text) < len(opening) + len(closing):
        return None
    depth = 0
    for match in _NESTING.finditer(text):
        depth += 1 if match.group() in ("(", "[", "{", "\\{", "\\langle") else -1
        if depth == 0 and match.end() < len(text):
            return None
    inside = text[len(opening) : len(text) - len(closing)]
    return opening, inside.strip(), closing


_ITEM = re.compile(r"(?i)\s*(?:[,;]\s*(?:and\b)?|\band\b|和)\s*")
_COMMA = re.compile(r"\s*[,;]\s*")
_NAMED = re.compile(
    r"(?:\(\w(?:,\s?\w)+\)|\\?[A-Za-z]{1,3}(?:_\{?\w{1,4}\}?)?(?:\([^()=]{1,6}\)|\^\{?-?\w\}?)?"
    r"|\\(?:vec|overrightarrow|mathbf)\s?\{\w+\})\s*(?:=|:(?=\s?[(\[{\\]))\s*"
)


def without_name(text: str) -> str:
    """What stands behind the name of a thing: "D = (0, 1)" is "(0, 1)"."""
    named = _NAMED.match(text)
    return text[named.end() :].strip() if named else text.strip()


# --- intervals ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Piece:
    """One interval: its ends as texts, "" for infinity, and whether they belong to it."""

    low: str
    high: str
    has_low: bool
    has_high: bool


Interval = tuple[Piece, ...]
_RELATION = re.compile(r"\s*(<=|>=|<|>)\s*")
_VARIABLE = re.compile(r"\\?[A-Za-z]{1,7}(?:_\{?\w\}?)?(?:\([a-z]\))?")
_UNION = re.compile(r"\s*(?:\\cup|\bU\b|(?<=[)\]])\s*(?:,|and|or)\s*(?=[(\[])|\bor\b|或)\s*")
_SUCH = re.compile(
    r"(?i)^(?:(?:all|every|any|each|for|the|real|numbers?|values?|of|where)\s+)*(?:\\?[a-z]\s+)?"
    r"(?:with|such that|where|for which|that satisfy|satisfying)\s+"
)
_ALL = re.compile(
    r"(?i)^(?:all |any |every |the )?(?:real )?(?:numbers?"
    r"|values?)?(?: of)?\s*(?=(?:\\?[a-z]\s*)?(?:[<>]|\\in))"
)
_BUILDER = re.compile(r"\\?[A-Za-z]\s*(?:\\in\s*\S+)?\s*[|:]")
_ALL_REAL = re.compile(r"(?i)(?:all )?real(?: numbers)?|\\mathbb\s?\{?R\}?|\\R|R")


_IN_WORDS = (
    (r"(?:is |are |be )?(?:greater|more|larger|bigger|higher) than or equal to", ">="),
    (r"(?:is |are |be )?(?:less|smaller|fewer|lower) than or equal to", "<="),
    (r"(?:is |are |be )?(?:at least|no less than|not less than)", ">="),
    (r"(?:is |are |be )?(?:at most|no more than|not more than|up to)", "<="),
    (r"(?:is |are |be )?(?:strictly )?(?:greater|more|larger|bigger|higher) than", ">"),
    (r"(?:is |are |be )?(?:strictly )?(?:less|smaller|fewer|lower) than", "<"),
    (r"(?:is |are |be )?not equal to|does not equal", "!="),
)
_BETWEEN = re.compile(
    r"(?i)(\\?[A-Za-z]) (?:is |lies |must be )?(?:strictly )?between (\S+) and (\S+)( inclusive"
    r"| \(inclusive\))?"
)


def read_interval(text: str) -> Interval | None:
    """The intervals that all of a text is: "(3, \\infty)", "-2 <= x < 5", a union; None"
    " otherwise."""
    text = _with_signs(text.strip())
    text = _ALL.sub("", _SUCH.sub("", text))
    if text.count("(") + text.count("[") != text.count(")") + text.count("]"):
        return None
    builder = enclosed(text)
    if builder and builder[0] in ("\\{", "{") and _BUILDER.match(builder[1]):
        text = re.split(r"[|:]", builder[1], maxsplit=1)[1].strip()
    text = re.sub(r"^(?:\\?[A-Za-z](?:\([a-z]\))?\s*(?:\\in|∈)|[A-Z]\s*=)\s*", "", text)
    if _ALL_REAL.fullmatch(text):
        return (Piece("", "", False, False),)
    pieces: list[Piece] = []
    for part in parts_of(text, _UNION):
        found = _pieces(part)
        if found is None:
            return None
        pieces += found
    return tuple(pieces)


def _with_signs(text: str) -> str:
    """The text with relations in words as signs."""
    for words, sign in _IN_WORDS:
        text = re.sub(rf"(?i)\b{words}\b", sign, text)
    if match := _BETWEEN.fullmatch(text):
        sign = "<=" if match[4] else "<"
        return f"{match[2]} {sign} {match[1]} {sign} {match[3]}"
    return text


def _pieces(text: str) -> list[Piece] | None:
    """The intervals of one part of a union: two of "x != 3" and "|x| > 3", else one."""
    if match := re.fullmatch(r"\\?[A-Za-z]\s*!=\s*(.+)", text):
        return [Piece("", match[1], False, False), Piece(match[1], "", False, False)]
    if match := re.fullmatch(r"\|\s*\\?[A-Za-z]\s*\|\s*(<=|>=|<|>)\s*(.+)", text):
        end, closed = match[2], match[1].endswith("=")
        if match[1][0] == "<":
            return [Piece(f"-({end})", end, closed, closed)]
        return [Piece("", f"-({end})", False, closed), Piece(end, "", closed, False)]
    both = re.split(r"\s*(?:\band\b|\\land|\\wedge|且)\s*", text)
    pieces = [_piece(part) for part in both]
    if len(both) == 1:
        return None if pieces[0] is None else [pieces[0]]
    if len(both) == 2 and pieces[0] is not None and pieces[1] is not None:
        low, high = sorted(pieces, key=lambda piece: not piece.low)  # type: ignore[union-attr]
        if low.low and high.high and not low.high and not high.low:  # type: ignore[union-attr]
            return [Piece(low.low, high.high, low.has_low, high.has_high)]  # type: ignore[union-attr]
    return None


def _piece(text: str) -> Piece | None:
    text = re.sub(r"^\\?[A-Za-z]\s*\\in\s*", "", text)
    both = enclosed(text)
    if both and both[0] in "([" and both[2] in ")]":
        ends = parts_of(both[1], _COMMA)
        if len(ends) != 2 or not all(ends):
            return None
        low, high = _end(ends[0], "-"), _end(ends[1], "+")
        return Piece(low, high, both[0] == "[" and low != "", both[2] == "]" and high != "")
    if text[:1] in "<>":  # "all numbers > 3"
        text = f"x{text}"
    terms = _RELATION.split(text)
    return _chain(terms) if len(terms) in (3, 5) and all(terms) else None


def _chain(terms: list[str]) -> Piece | None:
    """The interval of "-2 <= x < 5" or "x > 3", where one term is the variable."""
    if terms[1][0] == ">":
        terms = [term.translate(str.maketrans("<>", "><")) for term in reversed(terms)]
    if any(sign[0] != "<" for sign in terms[1::2]):
        return None
    if len(terms) == 5:
        if not _VARIABLE.fullmatch(terms[2]):
            return None
        low, high = _end(terms[0], "-"), _end(terms[4], "+")
        return Piece(low, high, terms[1] == "<=" and low != "", terms[3] == "<=" and high != "")
    if _VARIABLE.fullmatch(terms[0]):
        return Piece("", terms[2], False, terms[1] == "<=")
    return Piece(terms[0], "", terms[1] == "<=", False) if _VARIABLE.fullmatch(terms[2]) else None


def _end(text: str, sign: str) -> str:
    """An end of an interval, "" where it is the infinity of that sign."""
    bare = (
        text.replace(" ", "")
        .replace("\\infty", "oo")
        .replace("infinity", "oo")
        .replace("inf", "oo")
    )
    infinite = bare == "-oo" if sign == "-" else bare in ("oo", "+oo")
    return "" if infinite else text


# --- lists, tuples ------------------------------------------------------------------------------
_WORDY = re.compile(r"(?<!\\)[A-Za-z]{3}|[\u4e00-\u9fff]")
_SPACED = re.compile(r"-?\d+(?:\.\d+)?(?:\s+-?\d+(?:\.\d+)?)+")


def read_list(text: str) -> tuple[str, ...] | None:
    """The members of a set, or of a list without brackets, each once; None for anything else.

    "{2, 3}", "2, 3 and 5", "x = -1 or x = 4", "1 \\pm \\sqrt{2}". A list of one member is none,
    unless it has the brackets of a set.
    """
    text = re.sub(r"(?i)^(?:both|the set|\\?[a-z]\s*\\in)\s+", "", without_name(text))
    both = enclosed(text)
    is_set = both is not None and both[0] in ("\\{", "{") and both[2] in ("\\}", "}")
    inside = both[1] if both and is_set else text
    if both and not is_set and both[0] == "[" and both[2] == "]":
        return None
    members: list[str] = []
    if _SPACED.fullmatch(inside):
        return tuple(dict.fromkeys(inside.split()))
    for part in parts_of(inside, _AND):
        part = without_name(part)
        if not part:
            return None
        members += _both_signs(part)
    if "\\ldots" in inside or "..." in inside or (len(members) < 2 and not is_set):
        return None
    # "red or blue" leaves it open, "x = 1 or x = 2" does not
    if re.search(r"(?i)\bor\b|或", inside) and any(map(_WORDY.search, members)):
        return None
    return tuple(dict.fromkeys(members))


def _both_signs(text: str) -> list[str]:
    """The two values of a term with \\pm."""
    if text.count("\\pm") != 1:
        return [text]
    before, after = text.split("\\pm")
    return [f"{before}{sign}{after}".strip() for sign in "+-"]


_ASSIGNED = re.compile(r"\\?([A-Za-z]+|[A-Za-z]_\{?\w\}?)\s*=\s*([^=]+)")


def read_assignments(text: str) -> tuple[tuple[str, str], ...] | None:
    """(name, value) of each of several variables, by name: "x = 2, y = 3"; None otherwise."""
    text = re.sub(r"(?<![A-Za-z])([A-Za-z]) is (?=[-\d\\])", r"\1 = ", text)
    found: dict[str, str] = {}
    for part in parts_of(text, _ITEM):
        match = _ASSIGNED.fullmatch(part)
        if match is None or match[1] in found:
            return None
        found[match[1]] = match[2].strip()
    return tuple(sorted(found.items())) if len({name[0] for name in found}) > 1 else None


def read_tuple(text: str) -> tuple[str, ...] | None:
    """The members of a tuple or vector in their order; None for anything else.

    Two members in square brackets are an interval, and so is what reaches to infinity.
    """
    assigned = read_assignments(text)
    if assigned and [name for name, _ in assigned] in (["x", "y"], ["x", "y", "z"]):
        return tuple(value for _, value in assigned)
    text = without_name(
        re.sub(r"(?i)^(?:the )?(?:point|vector|coordinates?(?: are)?)\s+", "", text)
    )
    text = re.sub(r"^[A-Z]'?\s?(?=\()", "", text)
    both = enclosed(text)
    if (
        both is None
        or INFINITY in text
        or both[0] + both[2] not in ("()", "\\langle\\rangle", "[]", "<>")
    ):
        return None
    members = parts_of(both[1], _COMMA)
    least = 3 if both[0] == "[" else 2
    return tuple(members) if len(members) >= least and all(members) else None


def read_ratio(text: str) -> tuple[str, ...] | None:
    """The members of a ratio: "3:4", "3 to 4"."""
    text = re.sub(r"^(\d+)\s*/\s*(\d+)$", r"\1:\2", text)
    text = re.sub(r"(?<=\d)\s+to\s+(?=\d)|(?<=\d)\s*比\s*(?=\d)", ":", text)
    members = [member.strip() for member in text.split(":")]
    is_ratio = len(members) > 1 and all(re.fullmatch(r"[\w.\\{}()+^ -]{1,20}", m) for m in members)
    return (
        tuple(members)
        if is_ratio
        and not any(
            re.search(r"[A-Za-z]{3}", m.replace("\\sqrt", "").replace("\\frac", ""))
            for m in members
        )
        else None
    )


def read_sequence(text: str) -> tuple[str, ...] | None:
    """The terms of a sequence that goes on: "1, 3, 5, \\ldots, 2n-1"."""
    if "\\ldots" not in text and "..." not in text:
        return None
    both = enclosed(text)
    members = parts_of(both[1] if both else text, re.compile(r"\s*[,;:]\s*"))
    terms = tuple("..." if member in ("\\ldots", "...") else member for member in members)
    return terms if len(terms) > 2 else None


# --- matrices -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Matrix:
    """The cells of a matrix by rows, and the factor before it, as texts."""

    rows: tuple[tuple[str, ...], ...]
    factor: str = ""


_MATRIX = re.compile(
    r"(?P<factor>.*?)\s*(?:\\cdot|\*)?\s*[(\[|]?\s*\\begin\s?\{(?P<name>[pbB]?matrix|smallmatrix"
    r"|array)\}(?:\s*\{[clr| ]*\})?(?P<body>.*)"
    r"\\end\s?\{(?P=name)\}\s*[)\]|]?",
    re.DOTALL,
)


_TRANSPOSED = re.compile(r"([(\[][^()\[\]]+[)\]])\s*\^\s*\{?\s*(?:T|t|\\top|\\intercal|')\s*\}?")


def read_matrix(text: str) -> Matrix | None:
    """The matrix that all of a text is, in LaTeX or as nested lists; None for anything else."""
    text = without_name(text)
    if match := _MATRIX.fullmatch(text):
        if "\\begin" in match["body"] or len(match["factor"]) > 40:
            return None
        rows = [row.strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr\b", match["body"])]
        cells = [tuple(cell.strip() for cell in row.split("&")) for row in rows if row]
        return _matrix(cells, match["factor"].strip())
    if (flat := _TRANSPOSED.fullmatch(text)) and (row := enclosed(flat[1])):
        return _matrix([(cell,) for cell in parts_of(row[1], _COMMA)], "")
    both = enclosed(text)
    if both and both[0] == "[" and both[1].startswith("["):
        lists = [enclosed(row) for row in parts_of(both[1], _COMMA)]
        if all(row is not None and row[0] == "[" for row in lists):
            return _matrix([tuple(parts_of(row[1], _COMMA)) for row in lists if row], "")
    return None


def _matrix(rows: list[tuple[str, ...]], factor: str) -> Matrix | None:
    is_whole = bool(rows) and len({len(row) for row in rows}) == 1 and all(map(all, rows))
    return Matrix(tuple(rows), factor) if is_whole else None
