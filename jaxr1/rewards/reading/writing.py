"""The normal form of an answer: written without the differences that mean nothing."""

from __future__ import annotations

import functools
import re
import unicodedata

_SUPERSCRIPTS = str.maketrans(
    {c: f"^{d}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)} | {"⁻": "^-"}
)
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣", "-"),
        **dict.fromkeys("“”„«»「」『』", '"'),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("\u200b\u200c\u200d\ufeff\u2060", ""),
        "×": "\\times ",
        "÷": "/",
        "⁄": "/",
        "∕": "/",
        "·": "\\cdot ",
        "⋅": "\\cdot ",
        "π": "\\pi ",
        "∞": "\\infty ",
        "√": "\\sqrt ",
        "≤": "<=",
        "⩽": "<=",
        "≥": ">=",
        "⩾": ">=",
        "≠": "!=",
        "≈": "\\approx ",
        "∪": "\\cup ",
        "∈": "\\in ",
        "±": "\\pm ",
        "∠": "\\angle ",
        "△": "\\triangle ",
        "ℝ": "\\mathbb{R}",
        "θ": "\\theta ",
        "⟨": "\\langle ",
        "⟩": "\\rangle ",
        **dict.fromkeys("【】", " "),
        **dict.fromkeys("✓✔✅☑", ""),
        "。": ". ",
        "、": ", ",
        "㎡": "m^2",
        "㎠": "cm^2",
        "㎞": "km",
        "㎥": "m^3",
        "º": "°",
        "˚": "°",
    }
)
_COMMANDS = {
    "dfrac": "\\frac",
    "tfrac": "\\frac",
    "cfrac": "\\frac",
    "leq": "<=",
    "leqslant": "<=",
    "le": "<=",
    "geq": ">=",
    "geqslant": ">=",
    "ge": ">=",
    "neq": "!=",
    "ne": "!=",
    "lt": "<",
    "gt": ">",
    "lbrace": "\\{",
    "rbrace": "\\}",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "colon": ":",
    "degree": "°",
    "degrees": "°",
    "ast": "*",
    "div": "/",
    "euro": "€",
    "pounds": "£",
    "displaystyle": " ",
    "quad": " ",
    "qquad": " ",
    "limits": "",
    "checkmark": "",
    "sim": "\\approx ",
    "simeq": "\\approx ",
    "dots": "\\ldots ",
    "cdots": "\\ldots ",
}
_COMMAND = re.compile(rf"\\({'|'.join(sorted(_COMMANDS, key=len, reverse=True))})(?![a-zA-Z])")
_VULGAR = re.compile(r"[¼-¾⅐-⅞↉]")
_WRAPPED_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname|emph|boldsymbol"
    r"|bm|rm|underline|hbox|unit|si)\*?\s?\{((?:[^{}]|(?<=\^)\{[^{}]*\})*)\}"
)
# Not the second half of "\\", which ends a row of a matrix.
_SPACING = re.compile(r"(?<!\\)\\(?:[,;:> ])|~(?!\d)")
_THIN_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,!]|\{,\}|,\\!|\\,|\u2009|\u202f)(?=\d{3}(?!\d))")
_DELIMITERS = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?|(?<!\\)\\[()\[\]]")
_DEGREES = re.compile(r"\^\s?\{?\s?(?:\\circ|°)\s?\}?|\\circ(?![a-zA-Z])")
_ORDINAL = re.compile(r"(?i)(?<=\d)\s?(?:\^\s?\{?\s?)?(?:st|nd|rd|th)\b\}?")
_BASE = re.compile(r"(?i)(?<=[\dA-F])\s?\(?,? ?(?:in )?base[ -]?(\d{1,2})\)?")
_UNIT_POWER = re.compile(r"(?<=\d)(\s?(?:mm|cm|dm|km|m|ft|in|yd))([23])(?![\w.])")
_TERM = r"((?:[^{}\\]|\\(?!over\b)[a-zA-Z]+(?![a-zA-Z])|\{[^{}]*\})+?)"
_OVER = re.compile(rf"(?:\{{|(?<![^\s$]))\s*{_TERM}\s*\\over(?![a-zA-Z])\s*{_TERM}\s*(?:\}}|$)")
_MARKUP = re.compile(r"<(b|i|u|em|strong)>(.*?)</\1>")
_BOLD = re.compile(r"(?<![\w*])\*\*(?=\S)([^*]+?)(?<=\S)\*\*(?![\w*])|(?<![\w_])__([^_]+)__(?!\w)")
_WRAPPED = (
    re.compile(r"<answer>(.*)</answer>", re.DOTALL),
    re.compile(r"\\(?:boxed|fbox)\s?\{(.*)\}", re.DOTALL),
    re.compile(r"(?i)(?:the )?(?:final |correct )?answer\s?(?:is|:)\s*:?\s*(.+)", re.DOTALL),
    re.compile(r"答案\s?[:：是为]+\s*(.+)", re.DOTALL),
    re.compile(r"#{4}\s*(.+)", re.DOTALL),
)


@functools.lru_cache(maxsize=8192)
def normalise(answer: str) -> str:
    """An answer without the differences that mean nothing; letter case is kept.

    Idempotent on what it returns. Taken out, or made one of several forms: Unicode forms, minus
    signs and vulgar fractions; maths delimiters, \\left, \\right, \\text{}, spacing commands,
    \\dfrac; names of relations; thin spaces between thousands; ordinals; markdown emphasis, quotes,
    a final full stop; runs of whitespace. A dollar sign stays where it is a currency, a degree sign
    as "°".
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
    text = _THIN_THOUSANDS.sub("", text)
    # superscripts become powers before Unicode's own normalisation makes them plain digits
    text = unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPTS)).translate(_CHARACTERS)
    text = re.sub(r"\^-\^(\d)", r"^{-\1}", text)
    text = (
        text.replace("\\%", "%")
        .replace("\\!", "")
        .replace("\\&", "&")
        .replace("\\#", "#")
        .replace(":=", "=")
    )
    text = _MARKUP.sub(r"\2", text.replace("\\_", "_"))
    text = _without_delimiters(text)
    text = _DELIMITERS.sub("", text)
    text = _DEGREES.sub("°", text)
    text = _SPACING.sub(" ", text)
    text = _WRAPPED_TEXT.sub(r"\1", text)
    text = _COMMAND.sub(lambda match: _COMMANDS[match.group(1)], text)
    text = _ORDINAL.sub("", text)
    text = _OVER.sub(r"\\frac{\1}{\2}", text) if "\\over" in text else text
    text = re.sub(r"^#{1,6} ", "", _UNIT_POWER.sub(r"\1^\2", text))
    text = _BASE.sub(r"_\1", text)
    text = _BOLD.sub(lambda match: match.group(1) or match.group(2), text)
    text = " ".join(text.replace("`", "").split())
    return _bare_ends(text)


def _bare_ends(text: str) -> str:
    text = text.strip('" *')
    while len(text) > 1 and text[0] == "'":
        text = text.strip("' ")
    while text.endswith((".", ",", ";", "!", ":")) and not re.search(r"[\w)}]!$|\.\.$", text):
        text = text[:-1].rstrip()
    if re.search(r"[a-z]{3,}!$", text):  # "Yes!" exclaims, "5!" and "n!" are factorials
        text = text[:-1]
    return text


def _without_delimiters(text: str) -> str:
    """The text without the dollar signs that enclose mathematics; those of money stay."""
    text = text.replace("$$", " $ " if text.strip("$ \n") != text.strip() else " ")
    made, at = [], 0
    while (here := text.find("$", at)) >= 0:
        made.append(text[at:here])
        at = here + 1
        if here and text[here - 1] == "\\":
            made[-1] = made[-1][:-1]
            made.append("$")
            continue
        closing = text.find("$", at)
        inside = text[at:closing] if closing >= 0 else None
        if inside is None or text[closing - 1] == "\\":
            made.append("$" if text[at : at + 1].isdigit() or made[-1:] == ["US"] else "")
        elif inside[:1].isdigit() and re.search(r"\s$|[a-z]{2,} [a-z]{2,}", inside):
            made.append("$")  # "$5 or $6"
        else:
            made.append(inside)
            at = closing + 1
    return "".join([*made, text[at:]])


def unwrapped(reference: str) -> str:
    """What a reference holds inside tags, a box or an announcement: "<answer> 3 </answer>" is 3."""
    text = reference.strip()
    for _ in range(4):
        for pattern in _WRAPPED:
            inside = pattern.fullmatch(text)
            if inside and inside.group(1).strip():
                text = inside.group(1).strip()
                break
        else:
            break
    return text
