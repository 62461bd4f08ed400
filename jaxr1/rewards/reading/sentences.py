"""Sentences: what a text claims in the end, what it denies, and whether it leaves something open.

    text -> its last word ("A... no wait, it is B")   -> B
         -> without reasons ("B, because ...")        -> B
         -> without what it excludes ("A, not B")     -> A, and B is denied
         -> behind the last "so" ("4 times 5, so 20") -> 20

What is left is a claim that the kinds of answers read. It counts for nothing where it is a
question, leaves open which of two things it says, or denies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxr1.rewards.reading.writing import normalise


@dataclass(frozen=True)
class Claim:
    """What a text says in the end.

    Attributes:
      text: the claim, normalised.
      denied: what it says that the answer is not.
      leaves_open: whether it names alternatives ("either", "any of") or is a question.
      has_or: whether it joins parts by "or", which may be several solutions.
    """

    text: str
    denied: tuple[str, ...] = ()
    leaves_open: bool = False
    has_or: bool = False


_CORRECTED = re.compile(
    r"(?i)(?:^|[.,;:!?—…-]\s*|\.{2,}\s*|\b(?:no|oh|hmm|but|and|or)\b[\s,]*)"
    r"(?:no,? wait|wait,? no(?=[\s,.:;!-]+\S)|wait|hold on|actually|correction|scratch that"
    r"|i mean\b"
    r"|i meant|sorry"
    r"|oops|on second thoughts?|let me correct(?: myself)?|my mistake|make that|rather,"
    r"|不对|等等|更正|应该是)[\s,.:;!…-]*(?:no[\s,.:;!-]+(?=\w{2,}|[A-Z]\b|\d))?"
)
_FIRST_THOUGHT = re.compile(
    r"(?i)\b(?:first|initially|originally|thought|said|say|guessed|glance|seem(?:s|ed)?"
    r"|look(?:s|ed)?|considered|wondered|appear(?:s|ed)?|would be|took|tempting)\b"
    r"[^.]*?\bbut\b(?! .*\b(?:also|too|could|may|might)\b)\s*"
)
_CONCLUDED = re.compile(
    r"(?i)\b(?:the |my )?(?:final |correct |right |actual |true |best )*"
    r"(?:(?:answer|option|choice|number|value)|(?:(?<=correct )|(?<=right )"
    r"|(?<=best ))one)\s*(?:is|are|:|=|(?<=nswer )-(?= ))\s*:?\s*"
)
_UNDER = re.compile(
    r"(?i)\b(?:if|whether|that|think|thought|said|say|says|doubt|until|unless|believe)\W*$"
    r"|(?<![,.;:!?] )\b(?:not|n't|never)\b[^,.;]*$"
)
_CONCLUSION = re.compile(
    r"(?i)(?:^|[.,;:]\s*|\s(?=(?:so|thus|therefore|hence) (?:the|it|we|x|there|answer)\b))"
    r"(?:so|therefore|thus|hence|consequently|in conclusion|finally|所以|因此|故|综上)\b"
    r"(?! (?:that|as|far|on|called))[\s,:]*"
    r"|^(?:counting|adding|summing|subtracting|multiplying|dividing|taking|ruling out|eliminating"
    r"|excluding)\b.*?\b(?:gives?|leaves?|makes?|yields?|we get|I get)\s+(?:us )?"
    r"|(?:^|[.,;:]\s*)(?:this|that|which) leaves(?: us with| only)?\s+"
    r"|(?:^|[.,;:]\s*)I(?:'d| would)? (?:choose|pick|select|go (?:with|for))\s+"
    r"|(?<=[,.;]) ?(?:一共有?|总共有?|合计|共有?)(?=[\d零一二两三四五六七八九十])"
    r"|(?:所以|因此|综上所述|综上|(?<=[,.;] )故|(?<=[,.;])故)[,\s]*"
)
_REASON = re.compile(
    r"(?i)(?:[\s,;:(—-]{1,3}(?:because|due to the|given that|considering|since(?= \S+ \S+))\b"
    r"|\s?[,;(—-]{1,3}\s?(?:since|as|for(?= \w+ \w+ )|where"
    r"|none of which|with no|having no|which (?:is(?! (?:option |choice )?\(?[A-J]\b)|are|means"
    r"|makes|gives|has)|so that|given|after|when|if(?! not\b)"
    r"|rejecting|discarding|ignoring)\b"
    r"|[,;]?\s(?:while|whereas|(?:even |al)?though|even if)\b"
    r"(?!.*\b(?:could|may|might|also|equally|possible|too|right|correct)\b)"
    r"|[,;\s]*(?:因为|由于)).*$",
    re.DOTALL,
)
_CONDITION = re.compile(
    r"(?i)^(?:(?:out of|of|among|between|comparing|from) (?:[a-z]+ ){0,2}(?-i:[A-J])"
    r"(?:(?:,|,? and) (?-i:[A-J]))+,\s+"
    r"|(?:out of|of|among|from) [-\w.$%]{1,12}(?:, [-\w.$%]{1,12})*,? (?:and"
    r"|or) [-\w.$%]{1,12},?\s+"
    r"(?=(?:it|the|only|I)\b)"
    r"|(?:with|if|when|since|because|as|given|for|using|from|by|after|in|on|of|out of|among"
    r"|counting|comparing|considering|looking at)\b[^,]*,\s+(?:then\s+)?)"
)
_NOT_BUT = re.compile(
    r"(?i)^(?P<head>.*?\b)?(?:not|\w+n't) (?P<no>[^,.;]+?)"
    r"(?:[,;]? but(?: rather| instead)?|[,;] (?:it is|it's|they are|they're|only"
    r"|just)) (?P<yes>.+)$"
)
_NEITHER = re.compile(r"^不是(?P<no>[^,]+)[,]?\s*而?是(?P<yes>.+)$")
_NOT_LAST = re.compile(
    r"(?i)(?:\s?[,;(—-]{1,3}\s?(?:and |but |so |though |although |definitely |certainly |it is "
    r"|it's )*(?:not|neither|rather than|instead of|as opposed to|never|unlike)"
    r"|\s+(?:and|but) (?:definitely |certainly )?not|\s+(?:rather than|instead of|as opposed to)"
    r"|(?<=\b[A-J])\s+not(?=\s+[A-J]\b)|[,\s]*而?不是)\s*(?P<no>[^,.;()]+"
    r"|[^,.;()]*\([^()]+\))\)?[.\s]*$"
)
# Letters that a clause of their own rules out: "B; A, C and D are wrong".
_DISMISSED = re.compile(
    r"(?i)(?:^|[,;.]\s*|\s\()(?:and |but |while |whereas )?(?:options? |statements? |choices? )?"
    r"(?P<no>(?-i:[A-J])(?:(?:,? and |, )(?-i:[A-J]))*) (?:is|are|do|does|can|has|have)(?: all"
    r"| both)? "
    r"(?:not(?: \w+){0,3}|wrong|incorrect|false|impossible|be (?:excluded|ruled out|eliminated"
    r"|rejected))"
    r"(?:\)|(?=[;,.]|$))"
)
_I_THINK = re.compile(r"(?i),\s+I(?:'d| would)? (?:think|guess|believe|suppose|say)\W*$")
_SINGLED = re.compile(
    r"(?i)\s+is the only (?:one|option|choice|statement|figure|shape|chart|graph)\b"
    r"(?!.*(?:\bnot|n't|\bwrong|\bincorrect|\bfalse|\bfail|\bcannot)).*$"
)
_DENIES = re.compile(
    r"(?i)\b(?:not|never|no(?= \w)|neither|nor|without|except|excluding|excludes?|excluded"
    r"|other than"
    r"|anything but|all but|everything but|nothing but|any but|rul(?:e|es|ed|ing) out|eliminat\w+"
    r"|wrong|incorrect|false|fails?|cannot|unlikely|impossible|doubt\w*|reject\w*|far from"
    r"|opposite|apart from|aside from|besides|anything else|instead of|rather than|un(?:true|able)"
    r"|lacks?|is out|hardly|non|none of|too (?:big|large|small|high|low|long|short|much|many|few"
    r"|little))\b|n't\b|n’t|\bcant\b|\bisnt\b|[不非没除否错无]"
)
_OPEN = re.compile(
    r"(?i)\b(?:either|whichever|unsure|uncertain|unclear|unknown|unknowable|depends?|hard to say"
    r"|any of|one of|some of|any number|any option|all options|all (?:the )?choices|every option"
    r"|and/or|anywhere|ambiguous|undetermined|undefined|no idea|guess between|toss-up)\b|\?"
    r"|都(?:可以|行)|全部|任意|不确定|可能.*可能|先.+[后再]"
)
_TWICE_MAYBE = re.compile(
    r"(?i)\b(?:maybe|perhaps|possibly|could|might)\b.*\b(?:maybe|perhaps|possibly|could|might)\b"
)
_OR = re.compile(r"(?i)\bor\b|或|还是")
_STOP = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[.!?])(?=[A-Z][a-z])")
_NO_STOP = re.compile(
    r"(?i)(?:\b[ap]\.m|\b(?:no|approx|ca|vs|e\.g|i\.e|st|mr|mrs|dr|fig|eq)"
    r"|^\W*(?:[A-Z]\.\s?)*[A-Z])\.$"
)


def lines_joined(text: str) -> str:
    """The normalised text in which ends of lines are ends of sentences."""
    lines = [normalise(line) for line in text.splitlines()]
    return ". ".join(line for line in lines if line)


def sentences(text: str) -> list[str]:
    """The sentences of a normalised text; abbreviations and "B. blue" are not cut."""
    found: list[str] = []
    for piece in _STOP.split(text):
        is_name = re.search(r"\b[A-Z]\.$", found[-1]) and piece[:1].islower() if found else False
        if found and (is_name or _NO_STOP.search(found[-1])):
            found[-1] = f"{found[-1]} {piece}"
        else:
            found.append(piece)
    return [sentence.strip() for sentence in found if sentence.strip()]


def claim_of(text: str) -> Claim:
    """What a normalised text claims in the end, as drawn at the top of this file."""
    if text.endswith("?"):
        return Claim(text, leaves_open=True)
    text = _cut(_I_THINK, last_word(text))
    dismissed = [match["no"] for match in _DISMISSED.finditer(text)]
    if dismissed and (left := _DISMISSED.sub("", text).strip(" ,;.")):
        text = left
    else:
        dismissed = []
    whole, text = text, _cut(_REASON, _cut(_SINGLED, text))
    denied = dismissed
    if match := _NOT_BUT.match(text) or _NEITHER.match(text):
        denied.append(match["no"].strip())
        text = match["yes"].strip()
    while match := _NOT_LAST.search(text):
        head = text[: match.start()].strip(" ,;(")
        if not head:
            break
        denied.append(match["no"].strip())
        text = head
    if denies(text):  # "It is no square, as its angles differ, so it is a rhombus."
        text = _cut(_REASON, _after(_CONCLUSION, whole)) if _CONCLUSION.search(whole) else text
    text = _after(_CONCLUSION, text)
    if re.search(
        r"(?i)\b(?:is|are|equals|makes?|has|have)\b|=", (bare := _CONDITION.sub("", text))
    ):
        text = bare
    text = normalise(text)
    is_open = bool(_OPEN.search(text) or _TWICE_MAYBE.search(text))
    return Claim(text, tuple(denied), is_open, _OR.search(text) is not None)


def last_word(text: str) -> str:
    """The text behind its last correction of itself, or behind its last announced answer."""
    text = _after(_FIRST_THOUGHT, _after(_CORRECTED, text))
    announced = [m for m in _CONCLUDED.finditer(text) if not _UNDER.search(text[: m.start()])]
    rest = text[announced[-1].end() :] if announced else ""
    return rest.strip() if rest.strip(" .,;") else text


def denies(text: str) -> bool:
    """Whether a claim denies, excludes or refuses something."""
    return _DENIES.search(text) is not None


def _cut(pattern: re.Pattern[str], text: str) -> str:
    """The text before a match, where there is any."""
    match = pattern.search(text)
    return text[: match.start()].strip() if match and match.start() > 0 else text


def _after(pattern: re.Pattern[str], text: str) -> str:
    """The text behind the last match that something follows; all of it without one."""
    ends = [match.end() for match in pattern.finditer(text) if text[match.end() :].strip(" .,;")]
    return text[ends[-1] :].strip() if ends else text


_LEAD = re.compile(
    r"^(?:(?!(?:sin|cos|tan|log|ln|exp|sqrt|pi|max|min)\b)(?:[A-Za-z][a-z'’-]+|a|an|I"
    r"|[\u4e00-\u9fff]+)[,:]?(?:\s+|(?<=[\u4e00-\u9fff:])))+"
)
_TRAIL = re.compile(r"(?:[\s,]+(?!(?:or|and)\b)[a-z'’-]{2,}|[\u4e00-\u9fff])+[.,]?$")


def core(text: str) -> tuple[str, str]:
    """(words before, what stands between the words at either end of a sentence)."""
    lead = _LEAD.match(text)
    if lead and denies(lead.group()):
        return "", text
    start = lead.end() if lead else 0
    return text[:start], _TRAIL.sub("", text[start:]).strip(" ,:")
