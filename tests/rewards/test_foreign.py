"""Reward functions of other trainers: the same numbers in a worker as when called directly."""

import asyncio
import inspect
from pathlib import Path

import numpy as np
import pytest
import rewards.foreign_rewards as theirs
from cells import cell

from jaxr1.rewards import VLM_R1, Completion, Example, Reward, RewardError, RewardPool, Route
from jaxr1.rewards.foreign import Function, query
from jaxr1.rewards.source import check_file
from jaxr1.rewards.types import ImageSize

FILE = Path(__file__).with_name("foreign_rewards.py")


@pytest.fixture
def items(rng):
    """Eleven responses of random length, about half of them right, to rows with columns."""
    found = []
    for i in range(11):
        gold = str(rng.integers(100))
        text = (
            f"{'x' * int(rng.integers(9))}<answer>{gold if rng.random() < 0.5 else 'no'}</answer>"
        )
        ids = rng.integers(0, 500, int(rng.integers(1, 12))).astype(np.int32)
        row = {"level": int(rng.integers(4)), "data_source": "geo3k"}
        example = Example(f"question {i}", gold, f"rows.jsonl:{i}", row)
        reason = "stop" if rng.random() < 0.8 else "length"
        found.append((Completion(text, reason, len(ids), ids), example))
    return found


def graded(function, items, **options):
    with RewardPool([Reward(f"{FILE}:{function}", name="their", **options)], workers=2) as pool:
        return pool.grade(items)


def texts(items):
    return [completion.text for completion, _ in items]


def answers(items):
    return [example.answer for _, example in items]


def chats(items):
    return [[{"role": "assistant", "content": text}] for text in texts(items)]


def direct(given):
    return asyncio.run(given) if inspect.isawaitable(given) else given


def called(name, items):
    """What the function gives when it is called as its own trainer does."""
    function, said, gold = getattr(theirs, name), texts(items), answers(items)
    function = function() if inspect.isclass(function) else function
    level = [example.metadata["level"] for _, example in items]
    source, infos = ["geo3k"] * len(items), [example.metadata for _, example in items]
    plain = dict(completions=said, prompts=[e.question for _, e in items], answer=gold)
    if name in ("trl_accuracy", "trl_decorated"):
        return function(completions=chats(items), solution=gold, answer=gold, level=level)
    if name == "trl_typed":
        prompts = [[{"role": "user", "content": e.question}] for _, e in items]
        return function(completions=chats(items), prompts=prompts)
    if name == "trl_brevity":
        ids = [completion.token_ids.tolist() for completion, _ in items]
        del plain["answer"]
        return function(**plain, completion_ids=ids, level=level)
    if name.startswith("trl") or name.startswith("swift") or inspect.isclass(vars(theirs)[name]):
        return function(**plain, solution=gold, level=level)
    if name == "verl_batch":
        return function(source, said, gold, infos)
    if name == "verl_inner":
        return [function(*pair)[0] for pair in zip(said, gold, strict=True)]
    if name.startswith("verl"):
        return [direct(function(*row)) for row in zip(source, said, gold, infos, strict=True)]
    if name.startswith("easyr1"):
        rows = [
            {"response": c.text, "response_length": c.length, "ground_truth": e.answer}
            for c, e in items
        ]
        return function(rows) if name == "easyr1_score" else list(map(function, rows))
    prompts = [
        f"<|im_start|>user\n{e.question}<|im_end|>\n<|im_start|>assistant\n" for _, e in items
    ]
    ends = ["<|im_end|>" if c.finish_reason == "stop" else "" for c, _ in items]
    queries = ["".join(parts) for parts in zip(prompts, said, ends, strict=True)]
    return function(queries, prompts, gold)


NAMES = (
    "trl_accuracy trl_brevity trl_typed trl_logs trl_judge trl_numpy trl_torch trl_decorated "
    "SwiftAccuracy SwiftJudge Inherits swift_instance "
    "verl_score verl_float verl_async verl_batch verl_inner "
    "easyr1_score easyr1_one openrlhf_torch openrlhf_list"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_same_numbers_as_when_called_directly(name, items):
    if "torch" in name:
        pytest.importorskip("torch")
    want = direct(called(name, items))
    want = want["rewards"] if isinstance(want, dict) else want
    totals = [
        one.get("score", one.get("overall")) if isinstance(one, dict) else one for one in want
    ]
    found = graded(name, items)
    assert [grade.status for grade in found] == ["ok"] * len(items), found[0].detail
    assert [grade.total for grade in found] == pytest.approx([float(one) for one in totals])
    for grade, one in zip(found, want, strict=True):
        if isinstance(one, dict):  # every number has its name; text has none
            parts = {f"their/{key}": float(value) for key, value in one.items() if key != "pred"}
            parts = {
                key: v for key, v in parts.items() if key not in ("their/score", "their/overall")
            }
            assert grade.by_name == pytest.approx({"their": grade.total, **parts})


def test_what_openrlhf_logs_is_logged_by_name(items):
    pytest.importorskip("torch")
    want = called("openrlhf_torch", items[:4])
    found = graded("openrlhf_torch", items[:4])
    assert [grade.by_name["their/scores"] for grade in found] == want["scores"].tolist()
    characters = [grade.by_name["their/characters"] for grade in found]
    assert characters == want["extra_logs"]["characters"].tolist()
    assert all("their/batch" in grade.by_name for grade in found)


def test_a_query_ends_where_the_response_does():
    """A response that was cut has no end of its turn; what follows the prompt is the response."""
    example = Example("What is {this}?", "7")
    whole, cut = (query(Completion("<think>", reason), example) for reason in ("stop", "length"))
    prompt = "<|im_start|>user\nWhat is {this}?<|im_end|>\n<|im_start|>assistant\n"
    assert whole == f"{prompt}<think><|im_end|>" and cut == f"{prompt}<think>"


def test_what_trl_functions_log_is_logged_by_name(items):
    with RewardPool([Reward(f"{FILE}:trl_logs")]) as pool:
        found = pool.grade(items)
    share = np.mean([grade.total for grade in found])
    for grade, text in zip(found, texts(items), strict=True):
        assert grade.by_name == {
            "trl_logs": grade.total,
            "trl_logs/characters": len(text),
            "trl_logs/share": pytest.approx(share),
        }


def test_options_are_keywords_of_foreign_functions(items):
    weighted = graded("easyr1_score", items, options={"format_weight": 1.0})
    assert [g.total for g in weighted] == [g.by_name["their/format"] for g in weighted]
    scaled = graded("verl_float", items, options={"scale": 8.0})
    assert {grade.total for grade in scaled} <= {0.0, 8.0}
    with pytest.raises(ValueError, match=r"verl_score in .*unexpected keyword argument 'weight'"):
        Reward(f"{FILE}:verl_score", options={"weight": 1.0}).resolve(".")


def test_none_is_no_opinion(items):
    without = [(completion, Example("q", None)) for completion, _ in items]
    found = graded("trl_accuracy", without)
    assert {(grade.status, grade.total) for grade in found} == {("ok", None)}


def test_chats_or_text_is_recognised_and_can_be_said(items, tmp_path):
    source = (
        "def kind(completions, **kwargs):\n"
        "    return [float(isinstance(one, list)) for one in completions]\n"
        "def reads(completions, **kwargs):\n"
        "    return [float(isinstance(one, list)) + 0 * len('content') for one in completions]\n"
        "def text(completions: list[str], **kwargs):\n"
        "    content = 'content'\n"
        "    return [float(isinstance(one, list)) for one in completions]\n"
    )
    (tmp_path / "kinds.py").write_text(source)
    path = tmp_path / "kinds.py"
    rewards = [
        Reward(f"{path}:kind"),
        Reward(f"{path}:reads"),
        Reward(f"{path}:text"),
        Reward(f"{path}:kind", name="trl", style="trl"),
        Reward(f"{path}:reads", name="swift", style="ms-swift"),
    ]
    with RewardPool(rewards) as pool:
        (grade,) = pool.grade(items[:1])
    assert grade.by_name == {"kind": 0.0, "reads": 1.0, "text": 0.0, "trl": 1.0, "swift": 0.0}
    with pytest.raises(ValueError, match="style must be '' or one of item, batch, trl"):
        Reward(f"{path}:kind", style="tlr")
    with pytest.raises(ValueError, match="a built-in reward takes no style"):
        Reward("accuracy", style="trl")


def test_rows_of_verl_say_the_reference_themselves():
    row = {"reward_model": {"ground_truth": "7"}, "extra_info": {"level": 1, "split": "train"}}
    said = {}

    def compute_score(data_source, solution_str, ground_truth, extra_info):
        said.update(source=data_source, gold=ground_truth, extra=extra_info)
        return 1.0

    Function(compute_score, {}).one(Completion("7"), Example("q", "8", "geo.parquet:3", row))
    assert said == {"source": "geo.parquet", "gold": "7", "extra": row["extra_info"]}


def test_reward_type_says_how_easyr1_calls(tmp_path, items):
    body = (
        "def compute_score(data, **kwargs):\n    return {'overall': float(len(data['response']))}\n"
    )
    (tmp_path / "one.py").write_text(f'REWARD_TYPE = "sequential"\n{body}')
    with RewardPool([Reward(f"{tmp_path}/one.py:compute_score")]) as pool:
        assert [g.total for g in pool.grade(items)] == [len(text) for text in texts(items)]
    with pytest.raises(ValueError, match=r"compute_score in .*cannot be called as f\(completion"):
        (tmp_path / "two.py").write_text(body)
        Reward(f"{tmp_path}/two.py:compute_score").resolve(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trl_schedule", "trainer_state.global_step: rewards run in worker processes"),
        (
            "trl_needs_a_column",
            "wants 'difficulty', and no row has such a column; there are answer",
        ),
    ],
)
def test_what_a_worker_cannot_give_is_said(name, said, items):
    with pytest.raises(RewardError, match=said):
        graded(name, items)


def test_what_is_not_recognised_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError) as error:
        Reward(f"{FILE}:three").resolve(tmp_path)
    for part in (
        "three in",
        "(completion, example)",
        "(completions, prompts, **columns)",
        "solution_str",
        "reward_inputs",
        "queries, prompts, labels",
        "missing a required argument: 'image'",
    ):
        assert part in str(error.value), part
    with pytest.raises(ValueError, match=r"NoCall in .* is a class without __call__"):
        Reward(f"{FILE}:NoCall").resolve(tmp_path)


def test_token_ids_are_sent_only_where_they_are_asked_for(tmp_path):
    (tmp_path / "none.py").write_text("def f(completions, **kwargs):\n    return [1.0]\n")
    assert not check_file(tmp_path / "none.py", "f", {}).reads_ids
    for text in (
        "def f(completions, completion_ids): ...",
        "x = 'response_token_ids'\ndef f(a, b): ...",
    ):
        (tmp_path / "some.py").write_text(text + "\n")
        assert check_file(tmp_path / "some.py", "f", {}).reads_ids
    completion = Completion("a", "stop", 2, np.array([5, 6], np.int32))
    assert "token_ids" not in completion.to_json()
    assert completion.to_json(with_ids=True)["token_ids"] == [5, 6]


def test_classes_are_named_by_themselves(items):
    with RewardPool([Reward(theirs.SwiftAccuracy)]) as pool:
        found = pool.grade(items)
    want = called("SwiftAccuracy", items)
    assert [g.by_name["SwiftAccuracy"] for g in found] == want
    kind = type("Made", (), {"__call__": lambda self, completions: []})
    with pytest.raises(ValueError, match="class 'Made' cannot be copied"):
        Reward(kind).resolve(".")


NOTEBOOK = """
import re
PATTERN = re.compile("<answer>(.*?)</answer>")

def accuracy(completions, answer, **kwargs):
    found = [PATTERN.findall(turns[0]["content"]) for turns in completions]
    return [float(one[-1:] == [gold]) for one, gold in zip(found, answer)]
"""


def test_foreign_functions_of_a_notebook(items, tmp_path):
    function = cell(NOTEBOOK)["accuracy"]
    with RewardPool([Reward(function)], directory=tmp_path) as pool:
        found = pool.grade(items)
    want = [
        float(theirs.said(text) == gold)
        for text, gold in zip(texts(items), answers(items), strict=True)
    ]
    assert [grade.total for grade in found] == want


# --- routes -------------------------------------------------------------------------------------
def test_a_row_gets_the_reward_that_its_column_names(items):
    """Built-in and foreign, single and of lists, in one component."""
    kinds = ["right", "length", "swift", "other"]
    rows = []
    for i, (completion, example) in enumerate(items):
        row = {"task": kinds[i % 4], **example.metadata}
        rows.append((completion, Example(example.question, example.answer, "a.jsonl:3", row)))
    route = Route(
        "task",
        {
            "right": "accuracy",
            "length": Reward(f"{FILE}:verl_async"),
            "swift": f"{FILE}:SwiftAccuracy",
        },
        otherwise=Reward("format", options={"variant": "lenient"}),
    )
    reward = Reward(route, name="accuracy")
    assert reward.needs_reference and hash(reward)
    with RewardPool([reward, Reward("format")]) as pool:
        found = pool.grade(rows)
    for i, (grade, (completion, example)) in enumerate(zip(found, rows, strict=True)):
        right = float(theirs.said(completion.text) == example.answer)
        want = {"right": right, "length": len(completion.text), "swift": right, "other": 0.0}
        assert grade.by_name["accuracy"] == want[kinds[i % 4]], i
        assert ("accuracy/level" in grade.by_name) == (kinds[i % 4] == "length")
    saved = reward.to_json()
    assert saved["function"]["routes"]["right"]["function"] == "accuracy"


def test_a_row_that_no_route_is_for(items):
    completion, example = items[0]
    rows = [
        (completion, Example("q", "7", "a.jsonl:1")),
        (completion, Example("q", "7", "b.jsonl:1")),
    ]
    with RewardPool([Reward(Route("source", {"a.jsonl": "format"}))]) as pool:
        fine, lost = pool.grade(rows)
    assert fine.status == "ok" and lost.status == "error"
    assert "no reward is given for source 'b.jsonl'; there are 'a.jsonl'" in lost.detail
    with pytest.raises(ValueError, match="there is no reward to choose from"):
        Route("task", {})
    with pytest.raises(ValueError, match="routes on"):
        Route("task", {"a": Reward(Route("task", {"b": "format"}))})


def test_rows_of_vlm_r1_name_their_method():
    """Rows and responses of each kind in one batch, and one method that is not there."""
    box = '```json\n[{"bbox_2d": [0, 0, 14, 14], "label": "cat"}]\n```'
    rows = [
        ("default", "7", "7.0", 1.0),
        ("mcq", "(B) the cat", "B", 1.0),
        ("yes_no", "Yes, it is", "<answer> yes </answer>", 1.0),
        ("yes_no", "No, yes", "<answer> yes </answer>", 0.0),
        ("all_match", "red  Cube.", "red cube", 1.0),
        ("weighted_sum", box, '[{"bbox_2d": [0, 0, 50, 100], "label": "cat"}]', 1.0),
        ("iou", "[0, 0, 14, 7]", "[0, 0, 50, 100]", 0.5),
    ]
    made = []
    for method, said, gold, _ in rows:
        row = {"accu_reward_method": method}
        example = Example("?", gold, "a.jsonl:1", row, (ImageSize(100, 200, 28, 28),))
        made.append((Completion(f"<think>so</think><answer>{said}</answer>"), example))
    judged = Example("?", "7", "a.jsonl:1", {"accu_reward_method": "llm"})
    with RewardPool([Reward(Route("accu_reward_method", VLM_R1), name="accuracy")]) as pool:
        *found, lost = pool.grade([*made, (Completion("7"), judged)])
    assert [grade.total for grade in found] == [value for *_, value in rows]
    assert found[5].by_name["accuracy/position"] == 1.0
    assert "no reward is given for accu_reward_method 'llm'" in lost.detail
