"""Reward functions as projects of other trainers write them; called by tests and by workers."""

import asyncio
import functools
import re

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def said(text):
    found = ANSWER.findall(text)
    return found[-1].strip() if found else text.strip()


# --- TRL ----------------------------------------------------------------------------------------
def trl_accuracy(completions, solution, **kwargs):
    """Chats, by the key that it reads."""
    contents = [completion[0]["content"] for completion in completions]
    return [
        None if gold is None else float(said(content) == gold)
        for content, gold in zip(contents, solution, strict=True)
    ]


def trl_brevity(completions: list[str], completion_ids, level, prompts, trainer_state=None):
    """Plain text, by its annotation; names what it takes and no more."""
    assert all(isinstance(prompt, str) for prompt in prompts)
    return [
        1.0 / (1 + len(ids)) + 0.1 * one + len(text)
        for text, ids, one in zip(completions, completion_ids, level, strict=True)
    ]


def trl_typed(completions: "list[list[dict[str, str]]]", prompts=None, **kwargs):
    assert prompts[0][0]["role"] == "user" and completions[0][0]["role"] == "assistant"
    return [float(len(turns[0]["content"])) for turns in completions]


def trl_logs(completions, answer, log_extra=None, log_metric=None, **kwargs):
    right = [float(said(text) == gold) for text, gold in zip(completions, answer, strict=True)]
    if log_extra:
        log_extra("extracted", [said(text) for text in completions])
        log_extra("characters", [len(text) for text in completions])
    if log_metric:
        log_metric("share", sum(right) / len(right))
    return right


async def trl_judge(completions, answer, **kwargs):
    async def ask(text, gold):
        await asyncio.sleep(0.01)
        return 0.75 if gold in text else 0.25

    return await asyncio.gather(*map(ask, completions, answer))


def trl_schedule(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step)] * len(completions)


def trl_needs_a_column(completions, difficulty, **kwargs):
    return [float(one) for one in difficulty]


def trl_numpy(completions, **kwargs):
    import numpy as np

    return np.array([len(text) for text in completions], np.float32) / 4


def trl_torch(completions, **kwargs):
    import torch

    return torch.tensor([len(text) for text in completions], dtype=torch.bfloat16) / 4


def logged(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapped


@logged
def trl_decorated(completions, answer, **kwargs):
    found = [said(turns[0]["content"]) for turns in completions]
    return [float(one == gold) for one, gold in zip(found, answer, strict=True)]


# --- ms-swift -----------------------------------------------------------------------------------
class ORM:
    def __call__(self, **kwargs):
        raise NotImplementedError


class SwiftAccuracy(ORM):
    def __init__(self):
        self.calls = 0

    def __call__(self, completions, solution, **kwargs):
        self.calls += 1
        return [float(said(text) == gold) for text, gold in zip(completions, solution, strict=True)]


class SwiftJudge(ORM):
    async def __call__(self, completions, **kwargs):
        await asyncio.sleep(0.01)
        return [len(text) / 8 for text in completions]


class Inherits(SwiftAccuracy):
    pass


swift_instance = SwiftAccuracy()


class NoCall:
    pass


# --- verl ---------------------------------------------------------------------------------------
def verl_score(data_source, solution_str, ground_truth, extra_info=None):
    right = said(solution_str) == ground_truth
    known = data_source == "geo3k" and extra_info["level"] >= 0
    return {
        "score": 0.9 * right + 0.1 * known,
        "acc": right,
        "known": known,
        "pred": said(solution_str),
    }


def verl_float(data_source, solution_str, ground_truth, extra_info=None, *, scale=2.0, **kwargs):
    return scale * (said(solution_str) == ground_truth)


async def verl_async(data_source, solution_str, ground_truth, extra_info=None):
    await asyncio.sleep(0.01)
    return {"score": float(len(solution_str)), "level": extra_info["level"]}


def verl_batch(data_sources, solution_strs, ground_truths, extra_infos):
    return [
        {"score": float(said(text) == gold), "level": info["level"]}
        for text, gold, info in zip(solution_strs, ground_truths, extra_infos, strict=True)
    ]


def verl_inner(solution_str, ground_truth):
    return float(said(solution_str) == ground_truth), "more"


# --- EasyR1 -------------------------------------------------------------------------------------
def easyr1_score(reward_inputs, format_weight=0.1):
    if not isinstance(reward_inputs, list):
        raise ValueError("a list is wanted")
    scores = []
    for one in reward_inputs:
        right = float(said(one["response"]) == one["ground_truth"])
        form = float(one["response_length"] < 8)
        total = (1 - format_weight) * right + format_weight * form
        scores.append({"overall": total, "format": form, "accuracy": right})
    return scores


def easyr1_one(reward_input):
    right = float(said(reward_input["response"]) == reward_input["ground_truth"])
    return {"overall": right, "accuracy": right}


# --- OpenRLHF -----------------------------------------------------------------------------------
def openrlhf_torch(queries, prompts, labels, **kwargs):
    import torch

    bodies = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    bodies = [body.removesuffix("<|im_end|>") for body in bodies]
    found = [float(said(body) == label) for body, label in zip(bodies, labels, strict=True)]
    right = torch.tensor(found)
    return {
        "rewards": right * 2 - 1,
        "scores": right,
        "extra_logs": {"characters": torch.tensor(list(map(len, bodies))), "batch": right.mean()},
    }


def openrlhf_list(queries, prompts, labels):
    return [float(label in query) for query, label in zip(queries, labels, strict=True)]


# --- none ---------------------------------------------------------------------------------------
def three(response, reference, image):
    return 0.0
