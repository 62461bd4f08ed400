"""From chat messages to token ids: the template renders, user text stays text, media get their spans.

The rendered template holds a sentinel in place of every text the user wrote. It is split at its own special tokens,
and the user's text is put back afterwards, so that a literal "<|image_pad|>" or "<|im_end|>" in a question is spelled
out in ordinary tokens instead of becoming the token of that name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

ROLES = ("system", "user", "assistant", "tool")
MEDIA = ("image",)
# Private-use characters: a template may lower-case or trim around them, and never contains them itself.
SENTINEL = "\ue000{}\ue001"
SENTINEL_PATTERN = re.compile("\ue000([0-9]+)\ue001")

# VisualThinker-R1-Zero (arXiv:2503.05132): the template for a base model, which knows no chat turns.
R1_ZERO_PREFIX = "<think>"
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question about the image, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
    "User: {question}\nAssistant: Let me solve this step by step.\n"
)
TEMPLATES = ("r1_zero",)


class PromptError(ValueError):
    """A prompt that cannot be encoded."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question to the model: what users write.

    Attributes:
      messages: chat messages {"role", "content"}; content is a string or a list of parts
        {"type": "text", "text": ...} and {"type": "image", "image": path | bytes | PIL.Image | uint8[H, W, 3]}.
      id: keys the random draws of this prompt; default is its place in the list.
      prefix: opens the response; the model continues from it. None is the template's own (base-model templates).
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
            raise PromptError(f"message {i}: role {message['role']!r} is none of {', '.join(ROLES)}")
        content = message["content"]
        if not isinstance(content, str | list | tuple):
            raise PromptError(f"message {i}: content must be a string or a list of parts, got {content!r:.80}")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        for j, part in enumerate(parts):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", *MEDIA) or kind not in part or (kind == "text" and not isinstance(part[kind], str)):
                raise PromptError(
                    f"message {i}, part {j}: expected {{'type': 'text', 'text': ...}} or "
                    f"{{'type': 'image', 'image': ...}}, got {part!r:.80}"
                )
        turns.append((message["role"], parts))
    if not turns:
        raise PromptError("a prompt needs at least one message")
    return turns


def render(prompt: Prompt, tokenizer, template: str | None, pad: str) -> tuple[str, list[str]]:
    """The rendered template with sentinels, and the texts they stand for.

    Args:
      template: None is the tokenizer's chat template, or a name of `TEMPLATES`.
      pad: what the processor expects in place of one image ("<|vision_start|><|image_pad|><|vision_end|>").
    """
    texts: list[str] = []

    def hide(text: str) -> str:
        texts.append(text)
        return SENTINEL.format(len(texts) - 1)

    turns = content_parts(prompt)
    if template == "r1_zero":
        if len(turns) != 1 or turns[0][0] != "user":
            raise PromptError("template 'r1_zero' takes exactly one user message")
        images = "".join(pad for part in turns[0][1] if part["type"] == "image")
        question = "\n".join(hide(part["text"]) for part in turns[0][1] if part["type"] == "text")
        return images + R1_ZERO.replace("{question}", question), texts
    messages = [
        {
            "role": role,
            "content": [{"type": "text", "text": hide(p["text"])} if p["type"] == "text" else {"type": p["type"]} for p in parts]
            if any(p["type"] != "text" for p in parts)
            else "".join(hide(p["text"]) for p in parts),
        }
        for role, parts in turns
    ]  # fmt: skip
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    found = [int(n) for n in SENTINEL_PATTERN.findall(rendered)]
    if found != list(range(len(texts))):
        raise PromptError("the chat template drops, repeats or reorders message texts")
    return rendered, texts
