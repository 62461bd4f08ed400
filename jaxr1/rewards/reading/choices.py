"""Options that a question offers: an answer names one by its letter, its text or its value."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxr1.rewards.reading.kinds import LETTER, LETTERS, Kind, readings
from jaxr1.rewards.reading.letters import (
    choice_letter,
    choice_letters,
    is_choice_letter,
    marked_letters,
    said_letters,
    without_letter,
)
from jaxr1.rewards.reading.lexicon import predicate, with_forms_of
from jaxr1.rewards.reading.sentences import denies
from jaxr1.rewards.reading.structures import parts_of
from jaxr1.rewards.reading.words import PLAIN, canonical, may_precede, read_yes_no, says_yes_no

_JOINED = re.compile(r"(?i)\b(?:and|or|nor|but|than)\b|[,;/&]")
_ITEMS = re.compile(r"(?i)\s*(?:[,;]\s*(?:and\b|和)?|\band\b|和|与|及)\s*")


@dataclass(frozen=True)
class Choices:
    """The options of one question, {letter: normalised text}."""

    texts: dict[str, str]

    def named_by(self, reference: str) -> frozenset[str] | None:
        """The letters that a reference names; None where it is none of the options."""
        # the text first: an option may itself be the word "A" or "B"
        if not is_choice_letter(reference):
            same = [k for k, text in self.texts.items() if canonical(text) == canonical(reference)]
            if len(same) == 1:
                return frozenset(same)
        letter = choice_letter(reference)
        if letter in self.texts:
            return frozenset(filter(None, [letter]))
        letters = choice_letters(reference)
        if letters is not None and letters <= self.texts.keys():
            return letters
        return None

    def kind(self) -> Kind:
        """The kind of answers that name these options."""
        own = tuple(text for text in self.texts.values() if denies(text))
        own += tuple(filter(None, map(_essence, own)))
        has_or = any(re.search(r"(?i)\bor\b|或", text) for text in self.texts.values())
        return Kind(
            "option", self.named_by, self.says, has_or, denies=self._is_yes_no(), own=lambda _: own
        )

    def _is_yes_no(self) -> bool:
        return any(read_yes_no(text) is not None for text in self.texts.values())

    def says(self, wanted: frozenset[str], text: str) -> bool:
        """Whether a claim names the wanted options, and no other."""
        return self._named(text) == wanted

    def _named(self, text: str) -> frozenset[str] | None:
        """The options that a claim names; None for none, or for a contradiction."""
        exact = self._exactly(text)
        if len(exact) == 1 and not is_choice_letter(text):
            return exact
        letter = choice_letter(text) or self._with_its_text(text)
        if letter is not None:
            beside = without_letter(text, letter)
            named = self._stated(beside) if beside else frozenset()
            content = _content(beside) if PLAIN.fullmatch(beside) else frozenset()
            parts = {k for k, said in self.texts.items() if content <= _content(said)}
            if content and parts and letter not in parts:  # "B, the cube" where the cube is C
                return None
            agrees = named <= {letter} or self._leads(letter, beside)
            return frozenset(letter) if agrees and letter in self.texts else None
        letters = said_letters(text)
        named = self._stated(text)
        if letters is not None:  # "B (cat)" where the cat is A
            texts = [self.texts.get(letter, "") for letter in letters]
            return letters if named <= letters or not any(texts) else None
        if len(named) == 1:  # "5 cm, option D" contradicts itself
            (letter,) = named
            is_said = marked_letters(text) <= named and self._states(self.texts[letter], text, True)
            return named if is_said else None
        items = [self._stated(item) for item in parts_of(text, _ITEMS)]
        return frozenset().union(*items) if all(len(item) == 1 for item in items) else None

    def _exactly(self, text: str) -> frozenset[str]:
        """The options that a text says in whole, or says the same of their subject."""
        whole = canonical(text)
        exact = {k for k, said in self.texts.items() if canonical(said) == whole}
        if len(exact) > 1 or not PLAIN.fullmatch(text):  # "[2, 3)" and "(2, 3)"; "6!"
            exact = {k for k in exact if self.texts[k].rstrip(".") == text.rstrip(".")}
        if exact:
            return frozenset(exact)
        if not PLAIN.fullmatch(text):
            return frozenset()
        essence = _essence(text)
        words = {k: said for k, said in self.texts.items() if PLAIN.fullmatch(said)}
        same = frozenset(k for k, said in words.items() if _essence(said) == essence)
        content = _content(text)
        if same or not content - {"no", "not", "yes", "and", "or"}:
            return same
        # "left" is a part of "It moves to the left", and of no other option
        contents = {k: _content(said) for k, said in words.items()}
        holds = [
            k for k, said in contents.items() if content <= said and not _JOINED.search(words[k])
        ]
        if len(holds) != 1:
            return same
        others = frozenset().union(*(said for k, said in contents.items() if k != holds[0]))
        return frozenset(holds) if contents[holds[0]] - content <= others else same

    def _leads(self, letter: str, beside: str) -> bool:
        """Whether a letter's own text comes before what else is said, and no list goes on."""
        if not PLAIN.fullmatch(self.texts.get(letter, "0")):
            return False
        said = beside.casefold()
        words = map(re.escape, canonical(self.texts[letter]).split())
        own = r"\W+(?:the |an? )?".join(words)
        found = re.search(rf"(?<![\w-]){own}(?![\w-])", said) if own else None
        return (
            found is not None
            and not self._stated(said[: found.start()])
            and not re.match(
                r"\s*(?:[,;/&]\s*(?:and |or )?(?:the )?\w+(?: \w+)?$|and\b|or\b)",
                said[found.end() :],
            )
        )

    def _with_its_text(self, text: str) -> str | None:
        """The letter before its own text, which may name other letters: "(C) vitamin A"."""
        for letter, said in self.texts.items():
            beside = without_letter(text, letter)
            if said and beside != text and canonical(beside) == canonical(said):
                return letter
        return None

    def _stated(self, text: str) -> frozenset[str]:
        """The options whose text or value a claim states."""
        exact = self._exactly(text)
        if len(exact) == 1:
            return exact
        found = {k: said for k, said in self.texts.items() if said and self._states(said, text)}
        # "red" stands in "red cube": the longer one is meant
        longer = lambda said: any(
            said != other and canonical(said) in canonical(other) for other in found.values()
        )
        words = {
            k: said for k, said in found.items() if not (PLAIN.fullmatch(said) and longer(said))
        }
        return frozenset(words)

    @staticmethod
    def _states(option: str, text: str, whole: bool = False) -> bool:
        """Whether a text states an option; `whole`: and no longer name that ends with it."""
        if (truth := read_yes_no(option)) is not None:
            return says_yes_no(truth, text)
        if PLAIN.fullmatch(option):
            return _says_words(canonical(option), canonical(text), whole)
        return any(
            kind.says(value, text)
            for kind, value in readings(option)
            if kind not in (LETTER, LETTERS)
        )


def _essence(text: str) -> str:
    """What a text says of its subject, in the words in which options are compared."""
    return re.sub(r"^(?:is|are|was|were) (?=\w)", "", predicate(canonical(text)))


_EMPTY_WORDS = frozenset("it they he she this is are was to in on at of by with".split())


def _content(text: str) -> frozenset[str]:
    """The words of a text that tell options apart."""
    words = canonical(text).split()
    return frozenset(word.removesuffix("s") for word in words if word not in _EMPTY_WORDS)


def _says_words(option: str, text: str, whole: bool) -> bool:
    """Whether a text says the words of an option, in the singular or plural."""
    if option > "~":  # Chinese has no spaces between words
        return option in text
    text = with_forms_of(option, text)
    words = r"\s+".join(re.escape(word.removesuffix("s")) + "s?" for word in option.split())
    found = re.search(rf"(?<![\w-]){words}(?![\w-])", text) if option else None
    if found is None or not whole:
        return found is not None
    return may_precede(text[: found.start()].rstrip()) or _VERBS.match(option) is not None


_VERBS = re.compile(
    r"(?:increase|decrease|stay|remain|rise|fall|double|halve|move|turn|become|go|expand|contract"
    r"|shrink"
    r"|grow|melt|freeze|float|sink|speed|slow|will|does|has|have|can|is|are)s?\b"
)
