"""A reward from a service over HTTP, in the protocol of LMM-R1 and OpenRLHF.

    POST  {"query": [...], "prompts": [...], "labels": [...]}
    200   {"rewards": [...], "format_rewards": [...], "acc_rewards": [...]}      all of one length

A query is prompt and response in ChatML (`rewards.foreign`), a prompt the question, a label the
reference answer. Whatever lists of numbers the answer holds besides "rewards" are components.

    try --- failed --- wait --- try --- failed --- 2 x wait --- try --- failed: an error
        no connection, an answer cut short, status 408, 429 or 5xx; other answers are wrong at once

A request has up to 64 items, and a worker has one request at a time, so that no more are in flight
than there are workers (`Rl.reward_workers`). A silent service is left after `timeout_s`, which
should be under `Rl.reward_timeout_s`: beyond that the worker itself is ended.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from jaxr1.rewards.foreign import query
from jaxr1.rewards.types import Completion, Example

MAX_BYTES = 16 * 2**20  # of an answer
_PASSING = (408, 429)  # of statuses below 500, those that may be others soon


class Unanswered(RuntimeError):
    """The service gave no usable answer; the message names its address."""


def remote_reward(
    completions: Sequence[Completion],
    examples: Sequence[Example],
    *,
    url: str,
    timeout_s: float = 9.0,
    retries: int = 2,
    wait_s: float = 0.25,
) -> dict[str, Any]:
    """What a service gives responses.

    Args:
      completions: up to 64.
      examples: their rows.
      url: where requests are posted, "http://host:port/get_reward".
      timeout_s: seconds for all tries together.
      retries: tries after the one that comes before them.
      wait_s: seconds before the first retry; each later one waits twice as long.

    Returns:
      The answer: "rewards", a number or None for each completion, and its components by name.

    Raises:
      Unanswered: the service cannot be reached, is silent, or answers with another status than 200
        or not in this protocol; after all tries.
      ValueError: an option out of range.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"remote reward: url must begin with http:// or https://, got {url!r}")
    if timeout_s <= 0 or wait_s < 0 or retries < 0:
        raise ValueError(
            "remote reward: timeout_s must be over 0, retries and wait_s 0 or more, got "
            f"{timeout_s}, {retries} and {wait_s}"
        )
    asked = {
        "query": [query(c, e) for c, e in zip(completions, examples, strict=True)],
        "prompts": [example.question for example in examples],
        "labels": [example.answer for example in examples],
    }
    text = _posted(url, json.dumps(asked).encode(), timeout_s, retries, wait_s)
    try:
        answer = json.loads(text)
    except ValueError:
        raise Unanswered(f"{url} answers with what is no JSON: {text[:200]!r}") from None
    _check(answer, len(completions), url)
    return answer


def remote_reading(
    completion: Completion, example: Example | None = None, *, url: str, **options: float
) -> str:
    """Where the reward comes from, for a message; arguments as of it."""
    return f"reads what {url} answers"


def _posted(url: str, body: bytes, timeout_s: float, retries: int, wait_s: float) -> bytes:
    """The answer to a request.

    Raises:
      Unanswered: after all tries.
    """
    deadline, why = time.monotonic() + timeout_s, ""
    for tries in range(retries + 1):
        wait = wait_s * 2 ** (tries - 1) if tries else 0.0
        if time.monotonic() + wait >= deadline:
            raise Unanswered(f"{url} gave no answer in {timeout_s:g} s; the last try: {why}")
        time.sleep(wait)
        try:
            return _tried(url, body, deadline)
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace").strip()
            why = f"status {error.code}: {said}"
            if error.code < 500 and error.code not in _PASSING:
                raise Unanswered(f"{url} refuses the request with {why}") from None
        except (OSError, http.client.HTTPException) as error:  # also one that is late or cut short
            why = f"{type(error).__name__}: {error}"
    raise Unanswered(f"{url} gave no answer in {retries + 1} tries; the last: {why}")


def _tried(url: str, body: bytes, deadline: float) -> bytes:
    """The answer of one try.

    Raises:
      OSError, HTTPException: there is none.
      Unanswered: there is more of it than `MAX_BYTES`.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    request = urllib.request.Request(url, body, headers)
    found = b""
    left = max(0.01, deadline - time.monotonic())
    with urllib.request.urlopen(request, timeout=left) as answer:
        while part := answer.read1(1 << 16):  # a time-out is of one read: many short ones add up
            found += part
            if len(found) > MAX_BYTES:
                raise Unanswered(f"{url} answers with over {MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("it had not ended its answer")
        if answer.length:
            raise http.client.IncompleteRead(found, answer.length)
    return found


def _check(answer: Any, count: int, url: str) -> None:
    """Raises Unanswered where an answer is not in the protocol."""
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list):
        raise Unanswered(f"{url} answers without a list 'rewards': {answer!r:.200}")
    if len(rewards) != count:
        raise Unanswered(f"{url} answers with {len(rewards)} rewards to {count} queries")
    for value in rewards:
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if value is not None and not is_number:
            raise Unanswered(f"{url} answers with the reward {value!r:.80}, which is no number")
