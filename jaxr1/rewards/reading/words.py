"""Words: phrases, and yes and no."""

from __future__ import annotations

import re

from jaxr1.rewards.reading.lexicon import COUNTRIES, excludes, predicate, with_forms_of
from jaxr1.rewards.reading.sentences import sentences

WORDY = r"A-Za-z\u00c0-\u024f\u4e00-\u9fff'’,.;:()\"\s-"
PLAIN = re.compile(f"[{WORDY}]*")
"""Words with nothing between them that mathematics could mean."""

# --- yes and no ---------------------------------------------------------------------------------
_YES = "yes yeah yep true correct 是 是的 对 对的 正确 正确的 没错 有 会 能 可以 真".split()
_NO = (
    "no nope false incorrect untrue 否 不 不是 不对 错 错误 错误的 错的 不正确 不正确的 没有 不会 "
    "不是的 并不是 并非 不能 不可以 假"
).split()
_TRUTHS = {word: True for word in _YES} | {word: False for word in _NO}
_REFERENCES = frozenset(
    "yes no true false 有 没有 是 否 不是 对 错 正确 错误 是的 不对 没错".split()
)
_WORD = "|".join(sorted(_TRUTHS, key=len, reverse=True))
_FIRST = re.compile(
    rf"(?i)({_WORD})(?=$|[\s,.;:!—-])"
    rf"|([{''.join(w for w in _TRUTHS if len(w) == 1 and w > '~')}])(?=它|这|图|的)"
)
_LAST = re.compile(rf"(?i)(?:^|[\s是为:,]|说法|结论|判断|命题|\bnot )({_WORD})$")
_PRONOUN = "(?:it|they|he|she|there|this|that|i|we|you)"
_AGREES = re.compile(
    r"(?i)\s*[,;.]?\s*(?:it|they|he|she|there|that|this|i|we|you)\s+(?:\w+)(?P<no>n't| not)?\s*$"
)
_THERE = re.compile(
    r"(?i)there (?:is|are|was|were)(?P<no>n't| not?\b| none\b)?"
    r"(?! (?:an? |any |no )?(?:doubt|mistake|error|reason|way|chance|problem|evidence"
    r"|question)\b)|(?P<none>no (?!doubt|one)\w+ (?:is|are|was|were|can be) \w)"
)
_ALSO = re.compile(rf"(?i)(?<![\w])({_WORD})(?=$|\s*[,.;!/]|\s+(?:yes|no|true|false|maybe)\b)")


def read_yes_no(text: str) -> bool | None:
    """True for a reference of yes, false for one of no; None for any other text."""
    word = text.casefold().strip()
    return _TRUTHS[word] if word in _REFERENCES else None


def says_yes_no(gold: bool, text: str) -> bool:
    """Whether a text says yes, or no, and does not say the other one too."""
    said: set[bool | None] = set()
    for sentence in re.split(r"(?<=[.!?;])\s+", text.strip()):
        said.add(_truth_of(sentence.strip(" .!;")))
    said.discard(None)
    return said == {gold}


def _truth_of(sentence: str) -> bool | None:
    """What one sentence says of yes and no; None for nothing or for both."""
    parts = [_TRUTHS.get(part.strip(" 也又但")) for part in sentence.split(",")]
    if {True, False} <= set(parts):
        return None
    if there := _THERE.match(sentence):  # "There is no dog."
        return not (there["no"] or there["none"])
    first = _FIRST.match(sentence)
    if first is None:
        last = _LAST.search(sentence)
        if last is None:
            return None
        denied = re.search(r"(?i)(?:\bnot|n't) (?:an? )?$|不是?$|并非$", sentence[: last.start(1)])
        return _TRUTHS[last.group(1).lower()] != bool(denied)
    word = (first.group(1) or first.group(2)).lower()
    value, rest = _TRUTHS[word], sentence[first.end() :]
    if word == "no" and re.match(rf"\s+(?!{_PRONOUN}\b)[a-z]", rest):  # "no doubt", "no cat"
        return None
    for other in _ALSO.finditer(rest):
        is_denied = re.search(r"(?i)(?:\bnot|n't)\s*$", rest[: other.start()])
        if (_TRUTHS[other.group(1).lower()] != value) != bool(is_denied):
            return None
    agrees = _AGREES.match(rest)
    if agrees and bool(agrees["no"]) == value:
        return None
    return value


# --- phrases ------------------------------------------------------------------------------------
_ARTICLE = re.compile(r"(?i)\b(?:the|an?)\s+(?=\w)")
_LINKS = (
    r"is|are|was|were|be|been|being|am|equals?|in|on|at|to|of|by|with|as|for|from|toward|towards|a"
    r"|an|the"
    r"|it|they|colou?rs?|called|named|it's|that's|there's|he's|she's|say|choose|pick|see|think"
    r"|answer|option|its|planet|city|country|state|river|letter|word|animal|character"
    r"|into|near|means?|called|like|will|would|must|should|can|very|clearly|definitely|probably"
    r"|likely|most likely|indeed"
    r"|[a-z]+ing|[a-z]+ed|[a-z]{2,}s"
)
_NO_LINK = (
    r"(?:[a-z]{3,}(?:ous|ss|us|is|les))|less|this|always|plus|minus|does|thus|perhaps|sometimes"
)
_FOLLOWS = re.compile(
    r"(?:on|in|at|near|next|behind|with|from|under|beside|above|below|for|because|since|as|which"
    r"|that"
    r"|triangles?|angles?|quadrilaterals?|lines?|shapes?|figures?|numbers?|functions?|expressions?"
    r"|emotions?|who|side|hand side|colou?red|(?:in )?colou?r|direction|one|here|there|of|to"
    r"|today|now|is|are"
    r"|was|were)\b"
)
# What may follow a phrase that a text begins with.
_CLOSES = re.compile(
    r"(?:triangles?$|angles?$|quadrilaterals?$|shapes?$|numbers?$|functions?$|expressions?$"
    r"|faces?$|emotions?$"
    r"|is|are|was|were|because|since|as|side|which|(?:in )?colou?r|one$|to each other|today"
    r"|now)\b"
)
_PLACES = frozenset(
    "behind;above;below;under;over;beside;inside;outside;near;between;in front of;next to;on top of"
    ";on;in;left of;right of;to left of;to right of;underneath;beneath".split(";")
)
_MODIFIED = re.compile(r"(?i)\b(?:and|or|nor|but|than)\b|[/&]")


_NONE_OF = re.compile(
    r"\bnone of (?:these|those|them|the (?:above|options|choices|given)\b)(?: options| choices"
    r"| ones)?"
)


def _spelled_out(text: str) -> str:
    """The text with its contracted negations in full: "aren't" is "are not"."""
    if text == "dne":
        return "does not exist"
    if "n't" not in text and "can not" not in text:
        return text
    text = re.sub(r"\b(?:can't|can not)\b", "cannot", text).replace("won't", "will not")
    return re.sub(r"(?<=[a-z])n't\b", " not", text)


def canonical(phrase: str) -> str:
    """A phrase without letter case, articles and punctuation."""
    text = _spelled_out(phrase.casefold())
    if "none of" in text:
        text = _NONE_OF.sub("none of the above", text)
    text = _ARTICLE.sub("", text)
    text = re.sub(r"[\"'“”.,;:!?()\[\]]+(?=\s|$)|(?<=\s)[\"'(\[]|^[\"'(\[]+", " ", text)
    return " ".join(text.split())


def read_phrase(text: str) -> str | None:
    """A phrase of words, in the form in which phrases are compared."""
    return canonical(text) or None


_APPOSITION = re.compile(r"(?i)\s*(?:\([^()]*\)|, (?:the|an?|which|who|where)\b[^,]*)$")


def says_phrase(gold: str, text: str) -> bool:
    """Whether a sentence says a phrase: "The cube is on the left side." says "left".

    Not where the phrase is a part of a longer one: "dark red" does not say "red".
    """
    text = (sentences(text) or [text])[-1]
    beside = _APPOSITION.search(text)
    if beside and excludes(gold, canonical(beside.group().strip(" ()"))):
        return False
    # "tomato (a fruit)", "Tokyo, the capital of Japan"
    said = canonical(_without_country(gold, _APPOSITION.sub("", text)))
    if said == gold or canonical(text) == gold:
        return True
    said = with_forms_of(gold, said)
    if gold in (said, predicate(said)):
        return True
    if gold > "~" and "\u4e00" <= gold[0] <= "\u9fff":
        return _says_han(gold, said)
    if _MODIFIED.search(said.replace(gold, " ")):
        return False
    for match in re.finditer(rf"(?<![\w-]){re.escape(gold)}(?![\w-])", said):
        before, after = said[: match.start()].rstrip(), said[match.end() :].strip()
        is_linked = may_precede(before)
        if is_linked and gold in _PLACES:  # "behind the tree"
            return True
        if is_linked and (not after or _FOLLOWS.match(after)):
            return bool(before or not after or _CLOSES.match(after))
    return False


def _without_country(gold: str, said: str) -> str:
    """A text without the country behind a city: "Tokyo, Japan"."""
    place = re.search(r"(?:,| in) ([A-Z][A-Za-z ]+)$", said)
    is_beside = place and place[1].lower() in COUNTRIES and gold not in COUNTRIES
    return said[: place.start()] if place and is_beside else said


def may_precede(before: str) -> bool:
    """Whether words may stand before a phrase without being a part of it: no "dark" before"
    " "red"."""
    if not before:
        return True
    is_linked = re.search(rf"(?:^|\s)(?:{_LINKS})$", before) is not None
    return is_linked and re.search(rf"\b(?:{_NO_LINK})$", before) is None


_HAN_ENDING = re.compile("^[向往朝在](?=.)|(?<=.)(?:色|边|侧|面|市|的|移动)+$")


def _says_han(gold: str, text: str) -> bool:
    """As `says_phrase`, for a language without spaces."""
    gold, text = (re.sub("(?:周|礼拜)(?=[一二三四五六日天])", "星期", one) for one in (gold, text))
    if gold[0] in "向往朝在" and text.endswith(gold):
        return not re.search("[不没非]", text.removesuffix(gold))
    if _HAN_ENDING.sub("", gold) == _HAN_ENDING.sub("", text):  # "红" is "红色"
        return True
    found = re.search(
        rf"(?:^|[是为在有选叫:,\s很们它他她都线形角]|互相|感到|觉得|位于|属于|等于|非常|十分|答案|的(?=[左右上下前后里外])"
        rf"|[一个种条只位]个?){re.escape(gold)}(?:的|色|侧|边|方|$|[,.;])",
        text,
    )
    return found is not None and not re.search(r"[和或与及]", text.replace(gold, ""))
