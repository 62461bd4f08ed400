"""From chat messages to token ids: templates render, user text stays text.

The rendered template holds a sentinel in place of every special string in what the user wrote, and
of the pieces that would make one across the border of two texts. It is split at its own special
tokens, and the user's strings are put back afterwards, so that a
literal "<|image_pad|>" or "<|im_end|>" in a question is spelled out in ordinary tokens instead of
becoming the token of that name.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Sequence

from jaxr1.base.errors import UserError
from jaxr1.inputs.specials import SENTINEL, SENTINEL_PATTERN, Specials
from jaxr1.media.frames import check_rate
from jaxr1.media.references import is_empty

ROLES = ("system", "user", "assistant", "tool")
MEDIA = ("image", "video")
_ASKS_THE_DAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
TODAY = datetime.datetime(2024, 7, 26)

# VisualThinker-R1-Zero (arXiv:2503.05132): the template for a base model, which knows no chat
# turns.
R1_ZERO_PREFIX = "<think>"
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question about the image, and the "
    "Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user "
    "with the answer.\n"
    "User: {question}\nAssistant: Let me solve this step by step.\n"
)

# ChatML, and the system turn that goes before a conversation without one. "internvl2_5" is what the
# original InternVL2.5 and InternVL3 repositories do in code that they ship (and that is not
# executed here).
CHATML = {
    "chatml": "",
    "internvl2_5": (
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、"
        "清华大学及多家合作单位联合开发的多模态大语言模型。"
    ),
}
TEMPLATES = ("r1_zero", *CHATML)


class PromptError(UserError):
    """A prompt that cannot be encoded."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question to the model: what users write.

    Attributes:
      messages: chat messages {"role", "content"}; content is a string or a list of parts
        {"type": "text", "text": ...}, {"type": "image", "image": path | bytes | PIL.Image |
        uint8[H, W, 3]} and {"type": "video", "video": path | bytes | frames | uint8[T, H, W, 3],
        "fps": of frames without a file}. A path may be a `file://` address, bytes may be base64,
        see `jaxr1.media.references`.
      id: keys the random draws of this prompt; default is its place in the list.
      prefix: opens the response; the model continues from it. None is the template's own
        (base-model templates).
    """

    messages: Sequence[dict]
    id: int | str | None = None
    prefix: str | None = None


def content_parts(prompt: Prompt) -> list[tuple[str, list[dict]]]:
    """[(role, parts)] with plain-string contents made one text part.

    Raises:
      PromptError: a message that is not of the form above; names the message.
    """
    turns = []
    for i, message in enumerate(prompt.messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise PromptError(f"message {i} needs 'role' and 'content', got {message!r:.80}")
        if message["role"] not in ROLES:
            raise PromptError(
                f"message {i}: role {message['role']!r} is none of {', '.join(ROLES)}"
            )
        content = message["content"]
        if not isinstance(content, str | list | tuple):
            raise PromptError(
                f"message {i}: content must be a string or a list of parts, got {content!r:.80}"
            )
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        for j, part in enumerate(parts):
            kind = part.get("type") if isinstance(part, dict) else None
            if (
                kind not in ("text", *MEDIA)
                or kind not in part
                or (kind == "text" and not isinstance(part[kind], str))
            ):
                raise PromptError(
                    f"message {i}, part {j}: expected {{'type': 'text', 'text': ...}}, "
                    f"{{'type': 'image', 'image': ...}} or "
                    f"{{'type': 'video', 'video': ...}}, got {part!r:.80}"
                )
            if kind == "text":
                check_text(part["text"], f"message {i}, part {j}")
            elif is_empty(part[kind]):
                raise PromptError(
                    f"message {i}, part {j}: the {kind} is empty: {part[kind]!r:.80}; leave the "
                    "part out where there is none"
                )
            elif kind == "video":
                try:
                    check_rate("fps", part.get("fps"))
                except ValueError as e:
                    raise PromptError(f"message {i}, part {j}: {e}") from e
            known = ("type", kind, "fps") if kind == "video" else ("type", kind)
            # tables give every part all columns, most of them empty
            if other := [key for key in part if key not in known and part[key] is not None]:
                raise PromptError(
                    f"message {i}, part {j}: {other[0]!r} is none of {', '.join(map(repr, known))}"
                )
        turns.append((message["role"], parts))
    if not turns:
        raise PromptError("a prompt needs at least one message")
    return turns


def check_text(text: str, where: str) -> None:
    """Raises PromptError for half of a surrogate pair, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise PromptError(
            f"{where}: character {e.start} ({text[e.start]!r}) is half of a surrogate pair"
        ) from e


def render(
    prompt: Prompt,
    tokenizer,
    template: str | None,
    pads: Sequence[str],
    special: Specials,
    *,
    flat: bool = False,
) -> tuple[str, list[str]]:
    """The rendered template, and the special strings of the user that sentinels stand for.

    It is rendered twice: with every text wholly behind a sentinel, to see that the template places
    each of them once and in order, and with the texts themselves, because templates look at them
    (trim them, cut thoughts out of earlier turns).

    Args:
      template: None is the tokenizer's chat template, or a name of `TEMPLATES`.
      pads: what the processor expects in place of each medium
        ("<|vision_start|><|image_pad|><|vision_end|>").
      special: the strings that are special tokens.
      flat: the chat template takes strings only, so that the pads are written into them.

    Raises:
      PromptError: the template fails, drops, repeats or reorders texts, or there is none.
    """
    turns = content_parts(prompt)
    if template == "r1_zero" and (len(turns) != 1 or turns[0][0] != "user"):
        raise PromptError("template 'r1_zero' takes exactly one user message")
    if template is None and not tokenizer.chat_template:
        raise PromptError(
            f"the model has no chat template; give one of {', '.join(TEMPLATES)} as template"
        )
    hidden: list[str] = []

    def hide(text: str) -> str:
        hidden.append(text)
        return SENTINEL.format(len(hidden) - 1)

    found = [
        int(n)
        for n in SENTINEL_PATTERN.findall(_rendered(turns, tokenizer, template, pads, flat, hide))
    ]
    if found != list(range(len(hidden))):
        raise PromptError("the chat template drops, repeats or reorders message texts")
    hidden.clear()
    spelled = lambda text: special.hide(text, hide)
    return _rendered(turns, tokenizer, template, pads, flat, spelled), hidden


def _rendered(
    turns: list[tuple[str, list[dict]]],
    tokenizer,
    template: str | None,
    pads: Sequence[str],
    flat: bool,
    write: Callable[[str], str],
) -> str:
    """The conversation in a template, every text as `write` gives it."""
    waiting = list(reversed(pads))
    if template == "r1_zero":
        media = "".join(waiting.pop() for part in turns[0][1] if part["type"] != "text")
        question = "\n".join(write(part["text"]) for part in turns[0][1] if part["type"] == "text")
        return media + R1_ZERO.replace("{question}", question)
    messages: list[dict] = []
    flat = flat or template in CHATML
    for role, parts in turns:
        content: str | list[dict]
        if flat or all(p["type"] == "text" for p in parts):
            content = "".join(
                write(p["text"]) if p["type"] == "text" else waiting.pop() for p in parts
            )
        else:
            content = [
                {"type": "text", "text": write(p["text"])}
                if p["type"] == "text"
                else {"type": p["type"]}
                for p in parts
            ]
        messages.append({"role": role, "content": content})
    if template is not None:
        return chatml(messages, CHATML[template])
    try:
        return apply_chat_template(tokenizer, messages, add_generation_prompt=True)
    except Exception as e:  # a template raises whatever jinja and its own checks do
        raise PromptError(f"the chat template cannot render these messages: {e}") from e


def apply_chat_template(tokenizer, messages: Sequence[dict], *, add_generation_prompt: bool) -> str:
    """The tokenizer's own template, on a day that never changes.

    Llama 3's says today's date: a run that is resumed tomorrow would have other prompts. The day is
    the one that this template falls back to where it cannot ask.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name, one of them for tools
        if "default" not in template:
            raise PromptError(
                "the tokenizer has chat templates "
                f"{', '.join(template)}, and none of the name 'default'"
            )
        template = template["default"]
    if isinstance(
        template, str
    ):  # transformers takes no other clock, so the answer is written into the template
        template = _ASKS_THE_DAY.sub(lambda m: repr(TODAY.strftime(m.group(2))), template)
    return tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )


def end_of_turn(tokenizer, template: str | None) -> int | None:
    """The special token that ends an assistant's turn in the template; None without one.

    It is not always the tokenizer's end of text: that of InternLM2 is </s>, and answers end with
    <|im_end|>.
    """
    mark = SENTINEL.format(0)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    try:
        if template in CHATML:
            rendered = chatml(turns, CHATML[template])
        elif template is None and tokenizer.chat_template:
            rendered = apply_chat_template(tokenizer, turns, add_generation_prompt=False)
        else:
            return None
    except Exception:  # a template that takes no such turns: then nothing is known
        return None
    after = rendered.partition(mark)[2].lstrip()
    ends = [
        i
        for i, t in tokenizer.added_tokens_decoder.items()
        if t.special and after.startswith(t.content)
    ]
    return max(ends, key=lambda i: len(tokenizer.added_tokens_decoder[i].content), default=None)


def chatml(messages: Sequence[dict], system: str) -> str:
    """Turns between <|im_start|> and <|im_end|>; `system` goes before messages without one."""
    turns = [(m["role"], m["content"]) for m in messages]
    if system and turns[0][0] != "system":
        turns.insert(0, ("system", system))
    return (
        "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
        + "<|im_start|>assistant\n"
    )
