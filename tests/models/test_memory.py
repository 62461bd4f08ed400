"""In the compiled programs no buffer is as large as repeated prompt keys or all response logits."""

import math
import re

import jax
import numpy as np
import pytest
from reference import given, learner, make_checkpoint, mixed_prompts

import jaxr1
from jaxr1.inputs.sizes import Buckets
from jaxr1.inputs.strips import plan_prompts
from jaxr1.nn import blocked, logprob
from jaxr1.rl import Kl, PolicyStats, Ppo
from jaxr1.rl.step import accumulate, zero_sums
from jaxr1.rl.update import make_batch, plan_episodes
from jaxr1.sampling import decode
from jaxr1.sampling.draw import Filters
from jaxr1.sampling.scoring import score_batch

# Sizes without common factors, so that a product names its tensor.
ROWS, GROUP, PROMPT, TOKENS, VOCAB = 4, 7, 184, 88, 512
HEADS, KV_HEADS, HEAD = 6, 2, 14


def shapes_of(compiled) -> set[tuple[int, ...]]:
    """The shape of every array in a compiled program."""
    found = set()
    for dims in re.findall(r"\b(?:f32|bf16|f16|s32|u32|pred)\[([0-9,]*)\]", compiled.as_text()):
        found.add(tuple(int(d) for d in dims.split(",") if d))
    return found


def sizes_of(compiled) -> set[int]:
    """Element counts of every array in a compiled program."""
    return {math.prod(shape) for shape in shapes_of(compiled)}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The compiled update, scoring and decode programs of one set of sizes.

    What may exist at once is as much smaller as the model is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprob, "LOGITS", 2**15)
        patch.setattr(blocked, "SCORES", 2**15)
        jax.clear_caches()
        yield compiled_programs(tmp_path_factory)
    jax.clear_caches()


def compiled_programs(tmp_path_factory):
    rng = np.random.default_rng()
    folder = tmp_path_factory.mktemp("m") / "m"
    make_checkpoint(folder, 0, hidden=HEAD * HEADS, heads=HEADS, kv_heads=KV_HEADS, layers=2)
    model, params = jaxr1.load_model(folder)
    processor = jaxr1.load_processor(folder)
    prompts = [processor.encode(p) for p in mixed_prompts(rng, ROWS)]
    buckets = Buckets((PROMPT,), (TOKENS,), (64,))
    tokens = [list(group) for group in rng.integers(20, 500, (ROWS, GROUP, TOKENS), np.int32)]
    policy = learner(model, processor, (Ppo(), Kl(0.1), PolicyStats()), buckets, on_policy=False)
    numbers = dict.fromkeys(policy.objective.columns, [[1.0] * GROUP] * ROWS)
    episodes = given(prompts, tokens, **numbers)
    [plan] = plan_episodes(policy, params, episodes, episodes.valid_bg)
    batch = make_batch(policy, plan, prompts, episodes)
    sums = zero_sums(policy.objective, params)
    update = accumulate.lower(
        model, policy.objective, params, {}, sums, batch, {}, plan.at_once
    ).compile()
    asked = (np.float32(1), ("logp",), processor.media_token_ids, plan.at_once)
    score = score_batch.lower(model, params, batch.prompt, batch.strips, *asked).compile()
    rows = plan_prompts(plan, prompts, buckets, model.media)
    prefilled = decode.run_prefill(model, params, rows, 0)
    keys, done = np.zeros((ROWS, GROUP, 2), np.uint32), np.zeros((ROWS, GROUP), bool)
    state, cache = decode.start(model, prefilled, keys, done, GROUP, TOKENS)
    static = decode.Static(Filters(), processor.media_token_ids, (2,))
    args = (cache, state, np.int32(9), np.float32(1), static)
    steps = decode.decode_until.lower(model, decode.weights(model, params), *args).compile()
    assert plan.rows == ROWS and batch.prompt.token_bp.shape == (ROWS, PROMPT)
    return plan, {"update": update, "score": score, "decode": steps}


@pytest.mark.parametrize("name", ["update", "score", "decode"])
def test_prompt_keys_are_never_repeated(programs, name):
    plan, compiled = programs
    one = ROWS * PROMPT * KV_HEADS * HEAD  # keys of one layer
    found = sizes_of(compiled[name])
    assert one in found, "the prompt's keys themselves should be there"
    for copies in {GROUP, plan.strips}:
        assert not found & {one * copies, 2 * one * copies}
    if name == "decode":  # without activations of whole responses, nothing at all is that large
        assert max(found) < GROUP * one


@pytest.mark.parametrize("name", ["update", "score", "decode"])
def test_response_logits_never_exist(programs, name):
    plan, compiled = programs
    positions = plan.rows * plan.strips * plan.strip_len
    wide = [shape for shape in shapes_of(compiled[name]) if VOCAB in shape]
    assert wide, "the output matrix at least"
    assert max(map(math.prod, wide)) < min(positions, ROWS * GROUP * TOKENS, ROWS * PROMPT) * VOCAB


@pytest.mark.parametrize("name", ["update", "score"])
def test_scores_of_all_tokens_never_exist(programs, name):
    """Neither those of responses nor those of prompts; masks are no larger than a block of them."""
    plan, compiled = programs
    keys = plan.prompt_len + plan.strip_len
    of_responses = plan.rows * HEADS * plan.strips * plan.strip_len * keys
    of_prompts = plan.rows * HEADS * plan.prompt_len**2
    found = sizes_of(compiled[name])
    assert of_prompts not in found and max(found) < of_responses // 2


def test_the_test_would_see_repeated_keys():
    """The same check finds a repetition where there is one."""
    keys = np.zeros((ROWS, PROMPT, KV_HEADS, HEAD), np.float32)
    factor = np.arange(1.0, GROUP + 1, dtype=np.float32)[:, None, None, None]
    repeated = jax.jit(lambda keys: keys[:, None] * factor).lower(keys)
    assert GROUP * keys.size in sizes_of(repeated.compile())
