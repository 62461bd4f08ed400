"""Invariants 1 to 4 for sampling: equal to transformers, to the trainer, to itself elsewhere."""

import collections
import itertools
import json
import re
import shutil
import zlib

import jax
import numpy as np
import pytest
from reference import Checkpoint, mixed_prompts, random_image, torch_inputs

import jaxr1
from jaxr1.data import Example
from jaxr1.inputs.exchange import Draw
from jaxr1.inputs.sizes import BucketOptions
from jaxr1.nn.logprob import vocabulary_bias
from jaxr1.parallel import make_mesh
from jaxr1.rewards import accuracy_reward, format_reward
from jaxr1.rl.episodes import Episodes
from jaxr1.run.machine import CompileCounter
from jaxr1.sampling import decode
from jaxr1.sampling.draw import Filters, RandomStream, draw, filtered, prompt_key
from jaxr1.sampling.sampler import Drawn, Sampler, SamplingOptions
from jaxr1.sampling.stops import StopStrings

TIE = 1e-4  # top-2 gap below which greedy text may differ (invariant 1)
LOGP = 1e-5  # times max(1, max |logit|) (invariant 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, module_seed):
    return Checkpoint.make(tmp_path_factory.mktemp("model") / "m", module_seed)


def ids(completion) -> tuple[int, ...]:
    return tuple(completion.token_ids.tolist())


def reference_logits(reference, prompt, response):
    """float32[n, V]: what transformers predicts at each response position."""
    import torch

    with torch.no_grad():
        logits = reference(**torch_inputs(prompt, response=response)).logits[0].numpy()
    return logits[len(prompt) - 1 : -1]


def test_greedy_equals_transformers(checkpoint, rng):
    """64 tokens on 16 mixed prompts; after a tie the comparison goes on teacher-forced."""
    import torch

    reference, processor = checkpoint.reference, checkpoint.processor
    model, params = checkpoint.model, checkpoint.params
    prompts = mixed_prompts(rng, 16)
    groups = jaxr1.generate(model, params, processor, prompts, max_new_tokens=64, temperature=0)
    compared = 0
    bias = np.asarray(vocabulary_bias(model.text.vocab, processor.media_token_ids))
    for prompt, [ours] in zip(prompts, groups, strict=True):
        encoded = processor.encode(prompt)
        with torch.no_grad():
            out = reference.generate(
                **torch_inputs(encoded),
                max_new_tokens=64,
                do_sample=False,
                suppress_tokens=list(processor.media_token_ids),
                eos_token_id=list(processor.stop_token_ids),
                pad_token_id=0,
            )
        theirs = out[0, len(encoded) :].numpy()
        same = min(len(theirs), len(ours.token_ids))
        differ = np.flatnonzero(theirs[:same] != ours.token_ids[:same])
        compared += same if not len(differ) else differ[0]
        # Every one of our tokens must be (nearly) the most likely one, given our own text so far.
        logits = reference_logits(reference, encoded, ours.token_ids) + bias
        gap = logits.max(-1) - np.take_along_axis(logits, ours.token_ids[:, None], 1)[:, 0]
        assert gap.max() <= TIE
        if len(differ):
            top = np.sort(logits[differ[0]])[-2:]
            assert top[1] - top[0] <= TIE, "a difference without a tie"
        else:
            assert len(theirs) == len(ours.token_ids)
    assert compared > 16 * 32


def test_logprobs_equal_transformers_and_score(checkpoint, rng):
    reference, processor = checkpoint.reference, checkpoint.processor
    model, params = checkpoint.model, checkpoint.params
    prompts = mixed_prompts(rng, 4)
    temperature = float(rng.uniform(0.6, 1.4))
    groups = jaxr1.generate(
        model, params, processor, prompts, n=3, max_new_tokens=24, temperature=temperature
    )
    tokens = [[completion.token_ids for completion in group] for group in groups]
    scored = jaxr1.score(model, params, processor, prompts, tokens, temperature=temperature)
    bias = np.asarray(vocabulary_bias(model.text.vocab, processor.media_token_ids))
    for prompt, group, ours in zip(prompts, groups, scored, strict=True):
        for completion, logp in zip(group, ours, strict=True):
            logits = reference_logits(reference, processor.encode(prompt), completion.token_ids)
            bound = LOGP * max(1.0, float(np.abs(logits).max()) / temperature)
            assert logp.dtype == np.float32 and logp.shape == completion.token_ids.shape
            assert np.abs(logp - completion.logprobs).max() <= bound
            tempered = logits.astype(np.float64) / temperature + bias
            tempered -= tempered.max(-1, keepdims=True)
            whole = tempered - np.log(np.exp(tempered).sum(-1, keepdims=True))
            theirs = whole[np.arange(len(logp)), completion.token_ids]
            np.testing.assert_allclose(logp, theirs, atol=1e-4)


def test_a_draw_depends_on_its_own_prompt_only(checkpoint, rng):
    """Alone, in other company, in another order, in a larger bucket: the same tokens."""
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = [jaxr1.Prompt(p.messages, id=f"row {i}") for i, p in enumerate(mixed_prompts(rng, 6))]

    def run(chosen, n=2, seed=5):
        """Ids of the responses, for each prompt."""
        options = dict(n=n, max_new_tokens=12, seed=seed)
        groups = jaxr1.generate(model, params, processor, chosen, **options)
        return [list(map(ids, group)) for group in groups]

    together = run(prompts)
    order = rng.permutation(6)
    assert run([prompts[i] for i in order]) == [together[i] for i in order]
    [alone] = run([prompts[3]], n=4)
    assert alone[:2] == together[3]
    drawn = set(itertools.chain(*together))
    assert len(drawn) == 12  # all draws differ
    assert drawn.isdisjoint(itertools.chain(*run(prompts, seed=6)))


@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 4, 1), (1, 2, 2)])
def test_meshes_generate_the_same(checkpoint, rng, sizes):
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 3)
    args = dict(n=2, max_new_tokens=10, seed=1)
    one = jaxr1.generate(model, params, processor, prompts, **args)
    mesh = make_mesh(sizes, jax.devices()[:4])
    model, sharded = jaxr1.load_model(checkpoint.folder, mesh=mesh)
    four = jaxr1.generate(model, sharded, processor, prompts, **args)
    for a, b in zip(one, four, strict=True):
        for x, y in zip(a, b, strict=True):
            assert ids(x) == ids(y)
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=2e-5)


def test_greedy_repeats_and_reports_temperature_one(checkpoint, rng):
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 2)
    groups = jaxr1.generate(model, params, processor, prompts, n=3, max_new_tokens=8, temperature=0)
    for group in groups:
        assert len(group) == 3 and len(set(map(ids, group))) == 1
    first = [group[0] for group in groups]
    scored = jaxr1.score(model, params, processor, prompts, [[c.token_ids] for c in first])
    for completion, [logp] in zip(first, scored, strict=True):
        assert np.abs(logp - completion.logprobs).max() < 1e-4


def test_stops(checkpoint, rng):
    """A stop id ends a response and belongs to it; a stop string ends it and is not in its text."""
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 6)
    tried = {"ids": 0, "strings": 0}

    def run(**stops):
        options = dict(n=2, max_new_tokens=40, seed=3)
        return jaxr1.generate(model, params, processor, prompts, **options, **stops)

    groups = run()
    for completion in itertools.chain(*groups):
        if len(completion.token_ids) == 40:
            assert completion.finish_reason == "length"
    for i, [free, _] in enumerate(groups):
        if len(free.token_ids) < 12:
            continue
        chosen = ids(free)[8]
        stopped = run(stop_token_ids=[chosen])[i][0]
        assert ids(stopped) == ids(free)[: ids(free).index(chosen) + 1]
        assert stopped.finish_reason == "stop"
        tried["ids"] += 1
        text = processor.decode(free.token_ids[6:9])
        if text.strip() and "\ufffd" not in text and text in free.text:
            cut = run(stop=[text])[i][0]
            assert cut.finish_reason == "stop"
            assert cut.text == free.text[: free.text.find(text)]
            assert text in processor.decode(cut.token_ids)
            assert text not in processor.decode(cut.token_ids[:-1])
            assert ids(cut) == ids(free)[: len(cut.token_ids)]
            tried["strings"] += 1
    assert min(tried.values()) >= 1, tried


def test_stop_strings_with_special_tokens(checkpoint, rng):
    """The name of a special token as a stop string, alone and with text around it.

    It ends the response where `stop_token_ids` would; its text is what users get before it.
    """
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 4)
    options = dict(n=8, max_new_tokens=40, temperature=4.0, seed=int(rng.integers(99)))
    run = lambda **stops: jaxr1.generate(model, params, processor, prompts, **options, **stops)
    free = run()
    # whichever of them was drawn most often, but for those that end responses anyway
    added = processor.tokenizer.added_tokens_decoder.items()
    known = {i: t.content for i, t in added if t.special and i not in processor.stop_token_ids}
    counted = collections.Counter(itertools.chain(*map(ids, itertools.chain(*free))))
    token = max(known, key=lambda i: counted[i])
    name = known[token]
    by_id, by_name = run(stop_token_ids=[token]), run(stop=name)
    drew = 0
    flat = map(itertools.chain.from_iterable, (free, by_id, by_name))
    for plain, one, other in zip(*flat, strict=True):
        drew += token in ids(plain)
        assert ids(one) == ids(other) and one.text == other.text
        assert one.finish_reason == other.finish_reason
        assert token not in ids(other)[:-1]
    assert drew, "no response drew the token: more of them are needed"

    # with the text before it, as it is written
    held = [c for c in itertools.chain(*free) if token in ids(c)[1:]]
    for completion in held[:3]:
        place = ids(completion).index(token, 1)
        before = processor.decode(completion.token_ids[place - 1 : place], special=True)
        whole = processor.decode(completion.token_ids, special=True)
        stop = before + name
        if "\ufffd" in before or whole.find(stop) < 0:
            continue
        cuts = StopStrings((stop,), processor)
        cut = cuts.cut(completion.token_ids)
        kept = processor.decode(completion.token_ids[: cut.size], special=True)
        assert kept.endswith(stop) and kept.count(stop) == 1
        assert not cuts.found(completion.token_ids[: cut.size - 1])
        silent = kept.removesuffix(stop)
        for special in (t.content for _, t in added if t.special):
            if not re.fullmatch(r"</?[a-z]+>", special):  # answers are read by tags
                silent = silent.replace(special, "")
        assert cut.text == silent
    unheard = StopStrings((name,), processor)
    assert unheard.cut(np.array(processor.text_ids("a plain answer"))) is None


def test_rewards_read_tags_that_are_special_tokens(checkpoint, rng, tmp_path):
    """What a sampled response becomes for a reward, in training and in evaluations.

    The tags are special tokens of this tokenizer; the response ends with its stop token.
    """
    folder = tmp_path / "m"
    shutil.copytree(checkpoint.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    core = json.loads((folder / "tokenizer.json").read_text())
    for token in core["added_tokens"]:
        token["special"] |= token["content"] in ("<think>", "</think>", "<answer>", "</answer>")
    (folder / "tokenizer.json").write_text(json.dumps(core))
    processor = jaxr1.load_processor(folder)
    number = str(rng.integers(100))
    said = f"<think>it is {number}</think><answer>{number}</answer>"
    drawn_ids = np.array([*processor.spoken_ids(said), processor.turn_end_id])
    zeros = np.zeros(len(drawn_ids), np.float32)
    buckets = processor.buckets(BucketOptions(), 64, 64, videos=False)
    sampler = Sampler(checkpoint.model, processor, SamplingOptions(64), buckets)
    completion = sampler._completion(Drawn(drawn_ids, zeros, zeros, True))
    assert completion.text == said and completion.finish_reason == "stop"
    # A tag that was asked to end the response is its stop token, and no part of its text.
    tag = int(drawn_ids[-2])
    asking = SamplingOptions(64, stop_token_ids=(tag,))
    asked = Sampler(checkpoint.model, processor, asking, buckets)
    ended = asked._completion(Drawn(drawn_ids[:-1], zeros[:-1], zeros[:-1], True))
    assert ended.text == said.removesuffix("</answer>") and ended.token_ids[-1] == tag
    example = Example(({"role": "user", "content": "How many?"},), number)
    prompt = processor.encode(jaxr1.Prompt(example.messages))
    episodes = Episodes.sampled([Draw(0, 0, example, prompt)], [[completion]])
    [(seen, asked)] = episodes.items()
    assert (format_reward(seen), accuracy_reward(seen, asked)) == (1.0, 1.0)


def test_media_ids_are_never_sampled(checkpoint, rng):
    """Even when the model would say nothing else: the head is turned to the image pad."""
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    embed = params["decoder"]["embed"]
    boosted = embed.at[np.array(processor.media_token_ids)].multiply(50.0)
    turned = {**params, "decoder": {**params["decoder"], "embed": boosted}}
    groups = jaxr1.generate(model, turned, processor, mixed_prompts(rng, 2), n=4, max_new_tokens=30)
    seen = set()
    for completion in itertools.chain(*groups):
        seen |= set(ids(completion))
    assert seen and seen.isdisjoint(processor.media_token_ids)


def test_swapping_the_image_changes_the_logprobs(checkpoint, rng):
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    image = random_image(rng)

    def scored(image):
        content = [{"type": "image", "image": image}, {"type": "text", "text": "What"}]
        prompt = jaxr1.Prompt([{"role": "user", "content": content}])
        return jaxr1.score(model, params, processor, [prompt], [[np.arange(20, 30)]])[0][0]

    one, other = scored(image), scored(image.transpose(1))
    assert np.abs(one - other).max() > 1e-3


def test_compaction_changes_nothing(checkpoint, rng, monkeypatch):
    """Rows and samples that end early are dropped from the batch; what is left goes on the same."""
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 4)
    args = dict(n=4, max_new_tokens=256, seed=2)
    # Stop ids that leave two responses running and end all others at different places in the first
    # 24 tokens.
    free = itertools.chain(*jaxr1.generate(model, params, processor, prompts, **args))
    *others, one, other = sorted(free, key=lambda completion: len(completion.token_ids))
    ended = set()
    for completion in others:
        ended |= set(ids(completion)[:24])
    args["stop_token_ids"] = sorted(ended - set(ids(one)) - set(ids(other)))
    calls = []
    select = decode.select
    monkeypatch.setattr(decode, "select", lambda *a: calls.append(1) or select(*a))
    compacted = jaxr1.generate(model, params, processor, prompts, **args)
    monkeypatch.setattr(decode, "compaction", lambda *_: None)
    whole = jaxr1.generate(model, params, processor, prompts, **args)
    assert calls, "nothing was compacted"
    for a, b in zip(compacted, whole, strict=True):
        for x, y in zip(a, b, strict=True):
            assert ids(x) == ids(y) and x.finish_reason == y.finish_reason
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=2e-5)


def test_compaction_keeps_every_live_response(rng):
    for _ in range(200):
        rows, samples, multiple = 8, int(rng.choice([1, 2, 4, 8])), int(rng.choice([1, 2, 4]))
        done = rng.random((rows, samples)) < rng.uniform(0.3, 1.0)
        chosen = decode.compaction(done, multiple)
        if chosen is None:
            continue
        row, slot, filler = chosen
        assert len(row) % multiple == 0 and slot.shape == filler.shape and slot.size < done.size
        lost = ~done
        for i, j in np.argwhere(~filler):
            lost[row[i], slot[i, j]] = False
        assert not lost.any()


def test_second_pass_compiles_nothing(checkpoint, rng):
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 4)
    args = dict(n=2, max_new_tokens=40)
    jaxr1.generate(model, params, processor, prompts, seed=0, **args)
    with CompileCounter() as compiles:
        jaxr1.generate(model, params, processor, list(reversed(prompts)), seed=0, **args)
        jaxr1.generate(model, params, processor, prompts, seed=0, **args)
    assert compiles.count == 0


def test_filters(rng):
    """top-k and top-p against plain numpy, and draws as frequent as their probabilities."""
    logits = rng.normal(size=(5, 40)).astype(np.float32) * 2
    order = np.sort(logits, -1)[:, ::-1]
    k = np.asarray(filtered(logits, Filters(top_k=7)))
    assert ((k > -1e29).sum(-1) == 7).all()
    assert (np.sort(k, -1)[:, ::-1][:, :7] == order[:, :7]).all()
    p = np.asarray(filtered(logits, Filters(top_p=0.8)))
    for row, kept in zip(logits, p, strict=True):
        prob = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        need = int(np.searchsorted(np.cumsum(np.sort(prob)[::-1]), 0.8)) + 1
        assert (kept > -1e29).sum() == need
    many = 20000
    keys = np.random.default_rng(0).integers(0, 2**32, (many, 2), dtype=np.uint32)
    tokens = np.asarray(draw(np.tile(logits[:1], (many, 1)), keys, 3, Filters()))
    prob = np.exp(logits[0] - logits[0].max()) / np.exp(logits[0] - logits[0].max()).sum()
    found = np.bincount(tokens, minlength=40) / many
    assert np.abs(found - prob).max() < 5 * np.sqrt(prob.max() * (1 - prob.max()) / many)


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(n=0), "n must be"),
        (dict(temperature=-1.0), "temperature"),
        (dict(top_p=0.0), "top_p"),
        (dict(top_k=-1), "top_k"),
        (dict(max_new_tokens=0), "max_new_tokens"),
    ],
)
def test_options_out_of_range(checkpoint, rng, bad, message):
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    with pytest.raises(ValueError, match=message):
        jaxr1.generate(model, params, processor, mixed_prompts(rng, 1), **bad)


def test_score_refuses_what_cannot_be_scored(checkpoint, rng):
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts, media = mixed_prompts(rng, 1), processor.media_token_ids[0]
    for response, message in (
        ([], "response 0 of prompt 0"),
        ([50, 60, media], f"id {media} at position 2 is a media id"),
        ([50, model.text.vocab], "position 1 is outside the vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxr1.score(model, params, processor, prompts, [[np.array(response, np.int64)]])


def test_streaming_shows_a_growing_answer(checkpoint, rng):
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    seen = []
    show = lambda groups: seen.append(list(groups[0][0]))
    options = dict(max_new_tokens=20, seed=1, on_tokens=show, stream_every=4)
    [[done]] = jaxr1.generate(model, params, processor, mixed_prompts(rng, 1), **options)
    assert len(seen) >= 2
    for a, b in itertools.pairwise(seen):
        assert b[: len(a)] == a
    assert seen[-1] == list(done.token_ids)


def test_prompts_of_different_names_do_not_share_their_draws():
    """Names that 32 bits do not tell apart: one pair in 100,000 prompts, as a rule."""
    one, other = "plumless", "buckeroo"
    assert zlib.crc32(one.encode()) == zlib.crc32(other.encode())
    keys = [prompt_key(0, RandomStream.GENERATE, name) for name in (one, other, "\ud800")]
    assert len({tuple(key.tolist()) for key in keys}) == 3
