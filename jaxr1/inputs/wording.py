"""What every question is asked with: a system prompt, and words around the question.

A model that is never asked for tags gives none, and a reward for them teaches it nothing. Training,
held-out sets, `python -m jaxr1.sample` and an export all ask through the processor, and so alike.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from jaxr1.checkpoints.tensors import PROMPT_FILE, CheckpointError, read_json
from jaxr1.inputs.specials import Specials
from jaxr1.inputs.template import TEMPLATES, Prompt, PromptError, content_parts, render

PLACE = "{question}"

# The system prompt of DeepSeek-R1 (arXiv:2501.12948, table 1), and that of Qwen2.5-Math.
SYSTEMS = {
    "r1": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant "
        "solves it. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer. The reasoning process and answer are enclosed within "
        "<think> </think> and <answer> </answer> tags, respectively, i.e., "
        "<think> reasoning process here </think><answer> answer here </answer>"
    ),
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
}
# The request of R1-V and VLM-R1 (arXiv:2504.07615), that of Qwen2.5-Math, and those of LLaVA-1.5
# (arXiv:2310.03744) for short answers.
QUESTIONS = {
    "think_answer": (
        "{question} Output the thinking process in <think> </think> and final answer in <answer> "
        "</answer> tags."
    ),
    "boxed": "{question}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "short": "{question}\nAnswer the question using a single word or phrase.",
    "letter": "{question}\nAnswer with the option's letter from the given choices directly.",
}
_NAME = re.compile(r"[a-z0-9_-]+")


@dataclasses.dataclass(frozen=True)
class Wording:
    """How prompts are worded.

    Attributes:
      template: a name of `TEMPLATES`, or None for the directory's own.
      system: goes before every conversation without a system turn of its own; "" is none.
      question: goes around the last user turn, which takes the place of "{question}".

    Raises:
      ValueError: a question without its place, a name that is not known, or a system prompt for a
        template that takes none.
    """

    template: str | None = None
    system: str = ""
    question: str = PLACE

    def __post_init__(self) -> None:
        if self.template is not None and self.template not in TEMPLATES:
            raise ValueError(f"template {self.template!r} is none of {', '.join(TEMPLATES)}")
        if self.question.count(PLACE) != 1:
            raise ValueError(
                f"question_template {self.question!r:.80} must hold {PLACE} once, the place of the "
                f"question, or be one of the names {_known(self.question, QUESTIONS)}"
            )
        if _NAME.fullmatch(self.system):
            raise ValueError(
                f"system {self.system!r:.80} is neither a text nor one of the names "
                f"{_known(self.system, SYSTEMS)}"
            )
        if self.system and self.template == "r1_zero":
            raise ValueError(
                "template 'r1_zero' has words of its own and takes no system prompt: leave one of "
                'them out (system "" is none)'
            )

    def given(
        self, template: str | None, system: str | None, question_template: str | None
    ) -> Wording:
        """This wording with what a user says instead, texts or names; None leaves it."""
        said: dict[str, str] = {}
        if template is not None:
            said["template"] = template
        if system is not None:
            said["system"] = SYSTEMS.get(system, system)
        if question_template is not None:
            said["question"] = QUESTIONS.get(question_template, question_template)
        return dataclasses.replace(self, **said)

    # --- asking ---------------------------------------------------------------------------------
    def asked(self, prompt: Prompt) -> Prompt:
        """The prompt in this wording.

        Raises:
          PromptError: as `content_parts`.
        """
        if not self.system and self.question == PLACE:
            return prompt
        turns = content_parts(prompt)
        users = [i for i, (role, _) in enumerate(turns) if role == "user"]
        if users:
            turns[users[-1]] = ("user", self._around(turns[users[-1]][1]))
        if self.system and turns[0][0] != "system":
            turns.insert(0, ("system", [_text(self.system)]))
        messages = [{"role": role, "content": parts} for role, parts in turns]
        return dataclasses.replace(prompt, messages=messages)

    def _around(self, parts: list[dict]) -> list[dict]:
        """The parts of a turn as the question: from the first text to the end.

        [image, "How many?"]    ->    [image, BEFORE + "How many?" + AFTER]
        ["Is", image, "red?"]   ->    [BEFORE + "Is", image, "red?" + AFTER]
        """
        before, _, after = self.question.partition(PLACE)
        places = [i for i, part in enumerate(parts) if part["type"] == "text"]
        if not places:
            return [*parts, _text(before + after)]
        asked = list(parts)
        asked[places[0]] = _text(before + parts[places[0]]["text"])
        if parts[-1]["type"] != "text":
            return [*asked, _text(after)] if after else asked
        asked[-1] = _text(asked[-1]["text"] + after)
        return asked

    def check(self, tokenizer, template: str | None, special: Specials, *, flat: bool) -> None:
        """Raises ValueError where the model's template has no place for the system prompt."""
        if not self.system:
            return
        try:
            asked = self.asked(Prompt([{"role": "user", "content": "a"}]))
            render(asked, tokenizer, template, (), special, flat=flat)
        except PromptError as e:
            raise ValueError(f"system: this model cannot be asked with one: {e}") from e

    # --- kept beside a model --------------------------------------------------------------------
    @classmethod
    def read(cls, directory: Path) -> Wording:
        """What the file of an exported model says, or nothing.

        Raises:
          CheckpointError: it says what cannot be used.
        """
        file = directory / PROMPT_FILE
        said = read_json(file, missing={})
        names = ("template", "system", "question_template")
        try:
            if other := [key for key in said if key not in names]:
                raise ValueError(f"{other[0]!r} is none of {', '.join(names)}")
            if wrong := [k for k, v in said.items() if not isinstance(v, str | None)]:
                raise ValueError(f"{wrong[0]} must be a text or null, got {said[wrong[0]]!r:.80}")
            return cls().given(*(said.get(name) for name in names))
        except ValueError as e:
            raise CheckpointError(f"{file}: {e}") from e

    def changed_file(self, directory: Path) -> dict[str, dict]:
        """{name: keys to set} of the file that a saved copy of the directory must have anew."""
        if self == Wording.read(directory):
            return {}
        keys = {
            "template": self.template,
            "system": self.system,
            "question_template": self.question,
        }
        return {PROMPT_FILE: keys}


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _known(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return ", ".join(names) + (f" (did you mean {near[0]!r}?)" if near else "")
