"""Invariants 1 to 4 for sampling: equal to transformers, to the trainer, to itself in other
company.
"""

import jax
import numpy as np
import pytest
from reference import Checkpoint, mixed_prompts, torch_inputs

import jaxr1
from jaxr1.nn.logprob import vocabulary_bias
from jaxr1.parallel import make_mesh
from jaxr1.run.machine import CompileCounter
from jaxr1.sampling import decode as loop
from jaxr1.sampling.draw import Filters, draw, filtered

TIE = 1e-4  # top-2 gap below which greedy text may differ (design, invariant 1)
LOGP = 1e-5  # times max(1, max |logit|) (design, invariant 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, module_seed):
    return Checkpoint.make(tmp_path_factory.mktemp("model") / "m", module_seed)


def reference_logits(reference, prompt, response):
    """float32[n, V]: what transformers predicts at each response position."""
    import torch

    inputs = torch_inputs(prompt)
    ids = torch.tensor(response[None].astype(np.int64))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    kinds = torch.zeros(1, len(response), dtype=inputs["mm_token_type_ids"].dtype)
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], kinds], 1)
    with torch.no_grad():
        logits = reference(**inputs).logits[0].numpy()
    return logits[len(prompt) - 1 : -1]


def test_greedy_equals_transformers(checkpoint, rng):
    """64 tokens on 16 mixed prompts; after a tie the comparison goes on teacher-forced."""
    import torch

    reference, model, params, processor = (
        checkpoint.reference,
        checkpoint.model,
        checkpoint.params,
        checkpoint.processor,
    )
    prompts = mixed_prompts(rng, 16)
    groups = jaxr1.generate(model, params, processor, prompts, max_new_tokens=64, temperature=0)
    compared = 0
    for prompt, (ours,) in zip(prompts, groups, strict=True):
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
        logits = reference_logits(reference, encoded, ours.token_ids) + np.asarray(
            vocabulary_bias(model.text.vocab, processor.media_token_ids)
        )
        gap = logits.max(-1) - np.take_along_axis(logits, ours.token_ids[:, None], 1)[:, 0]
        assert gap.max() <= TIE
        if len(differ):
            top = np.sort(logits[differ[0]])[-2:]
            assert top[1] - top[0] <= TIE, "a difference without a tie"
        else:
            assert len(theirs) == len(ours.token_ids)
    assert compared > 16 * 32


def test_logprobs_equal_transformers_and_score(checkpoint, rng):
    reference, model, params, processor = (
        checkpoint.reference,
        checkpoint.model,
        checkpoint.params,
        checkpoint.processor,
    )
    prompts = mixed_prompts(rng, 4)
    temperature = float(rng.uniform(0.6, 1.4))
    groups = jaxr1.generate(
        model, params, processor, prompts, n=3, max_new_tokens=24, temperature=temperature
    )
    scored = jaxr1.score(
        model,
        params,
        processor,
        prompts,
        [[c.token_ids for c in g] for g in groups],
        temperature=temperature,
    )
    bias = np.asarray(vocabulary_bias(model.text.vocab, processor.media_token_ids))
    for prompt, group, ours in zip(prompts, groups, scored, strict=True):
        for completion, logp in zip(group, ours, strict=True):
            logits = reference_logits(reference, processor.encode(prompt), completion.token_ids)
            bound = LOGP * max(1.0, float(np.abs(logits).max()) / temperature)
            assert logp.dtype == np.float32 and logp.shape == completion.token_ids.shape
            assert np.abs(logp - completion.logprobs).max() <= bound
            tempered = logits.astype(np.float64) / temperature + bias
            whole = tempered - np.log(
                np.exp(tempered - tempered.max(-1, keepdims=True)).sum(-1, keepdims=True)
            )
            theirs = (whole - tempered.max(-1, keepdims=True))[
                np.arange(len(logp)), completion.token_ids
            ]
            np.testing.assert_allclose(logp, theirs, atol=1e-4)


def test_a_draw_depends_on_its_own_prompt_only(checkpoint, rng):
    """Alone, in other company, in another order, in a larger bucket: the same tokens."""
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = [jaxr1.Prompt(p.messages, id=f"row {i}") for i, p in enumerate(mixed_prompts(rng, 6))]
    run = lambda chosen, n=2: jaxr1.generate(
        model, params, processor, chosen, n=n, max_new_tokens=12, seed=5
    )
    together = run(prompts)
    order = rng.permutation(6)
    for i, group in zip(order, run([prompts[i] for i in order]), strict=True):
        assert [list(c.token_ids) for c in group] == [list(c.token_ids) for c in together[i]]
    alone = run([prompts[3]], n=4)[0]
    assert [list(c.token_ids) for c in alone[:2]] == [list(c.token_ids) for c in together[3]]
    texts = {tuple(c.token_ids) for g in together for c in g}
    assert len(texts) == 12  # all draws differ
    other = jaxr1.generate(model, params, processor, prompts, n=2, max_new_tokens=12, seed=6)
    assert {tuple(c.token_ids) for g in other for c in g}.isdisjoint(texts)


@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 4, 1), (1, 2, 2)])
def test_meshes_generate_the_same(checkpoint, rng, sizes):
    folder, model, params, processor = (
        checkpoint.folder,
        checkpoint.model,
        checkpoint.params,
        checkpoint.processor,
    )
    prompts = mixed_prompts(rng, 3)
    args = dict(n=2, max_new_tokens=10, seed=1)
    one = jaxr1.generate(model, params, processor, prompts, **args)
    mesh = make_mesh(sizes, jax.devices()[:4])
    sharded_model, sharded = jaxr1.load_model(folder, mesh=mesh)
    four = jaxr1.generate(sharded_model, sharded, processor, prompts, **args)
    for a, b in zip(one, four, strict=True):
        assert [list(c.token_ids) for c in a] == [list(c.token_ids) for c in b]
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=2e-5)


def test_greedy_repeats_and_reports_temperature_one(checkpoint, rng):
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 2)
    groups = jaxr1.generate(model, params, processor, prompts, n=3, max_new_tokens=8, temperature=0)
    assert all(
        len(g) == 3 and all(list(c.token_ids) == list(g[0].token_ids) for c in g) for g in groups
    )
    logp = jaxr1.score(model, params, processor, prompts, [[g[0].token_ids] for g in groups])
    assert all(np.abs(a[0] - g[0].logprobs).max() < 1e-4 for a, g in zip(logp, groups, strict=True))


def test_stops(checkpoint, rng):
    """A stop id ends a response and is part of its ids; a stop string ends it and is not part of
    its text.
    """
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 3)
    free = jaxr1.generate(model, params, processor, prompts, n=2, max_new_tokens=40, seed=3)
    for i, group in enumerate(free):
        ids = group[0].token_ids
        if len(ids) < 12:
            continue
        chosen = int(ids[8])
        stopped = jaxr1.generate(
            model,
            params,
            processor,
            prompts,
            n=2,
            max_new_tokens=40,
            seed=3,
            stop_token_ids=[chosen],
        )[i][0]
        first = int(np.flatnonzero(ids == chosen)[0])
        assert list(stopped.token_ids) == list(ids[: first + 1]) and stopped.finish_reason == "stop"
        text = processor.decode(ids[6:9])
        if text.strip() and "\ufffd" not in text and text in group[0].text:
            cut = jaxr1.generate(
                model, params, processor, prompts, n=2, max_new_tokens=40, seed=3, stop=[text]
            )[i][0]
            assert (
                cut.finish_reason == "stop"
                and cut.text == group[0].text[: group[0].text.find(text)]
            )
            assert text in processor.decode(cut.token_ids) and text not in processor.decode(
                cut.token_ids[:-1]
            )
            assert list(cut.token_ids) == list(ids[: len(cut.token_ids)])
    assert all(c.finish_reason == "length" for g in free for c in g if len(c.token_ids) == 40)


def test_media_ids_are_never_sampled(checkpoint, rng):
    """Even when the model would say nothing else: with the head turned to the image pad, other
    tokens come.
    """
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    embed = params["decoder"]["embed"]
    boosted = embed.at[np.array(processor.media_token_ids)].multiply(50.0)
    turned = {**params, "decoder": {**params["decoder"], "embed": boosted}}
    groups = jaxr1.generate(model, turned, processor, mixed_prompts(rng, 2), n=4, max_new_tokens=30)
    seen = {int(t) for g in groups for c in g for t in c.token_ids}
    assert seen and seen.isdisjoint(processor.media_token_ids)


def test_swapping_the_image_changes_the_logprobs(checkpoint, rng):
    from reference import random_image

    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    image = random_image(rng)
    ask = lambda im: jaxr1.Prompt(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": im}, {"type": "text", "text": "What"}],
            }
        ]
    )
    ids = [[np.arange(20, 30)]]
    one = jaxr1.score(model, params, processor, [ask(image)], ids)[0][0]
    other = jaxr1.score(model, params, processor, [ask(image.transpose(1))], ids)[0][0]
    assert np.abs(one - other).max() > 1e-3


def test_compaction_changes_nothing(checkpoint, rng, monkeypatch):
    """Rows and samples that end early are dropped from the batch; what is left goes on the same."""
    model, params, processor = checkpoint.model, checkpoint.params, checkpoint.processor
    prompts = mixed_prompts(rng, 4)
    args = dict(n=4, max_new_tokens=128, seed=2)
    # Stop ids that leave two responses running and end all others at different places in the first
    # 24 tokens.
    free = jaxr1.generate(model, params, processor, prompts, **args)
    longest = sorted(
        ((len(c.token_ids), i, j) for i, g in enumerate(free) for j, c in enumerate(g)),
        reverse=True,
    )[:2]
    running = {(i, j) for _, i, j in longest}
    kept = {int(t) for i, j in running for t in free[i][j].token_ids}
    ended = {
        int(t)
        for i, g in enumerate(free)
        for j, c in enumerate(g)
        if (i, j) not in running
        for t in c.token_ids[:24]
    }
    args["stop_token_ids"] = sorted(ended - kept)
    calls = []
    select = loop.select
    monkeypatch.setattr(loop, "select", lambda *a: calls.append(1) or select(*a))
    compacted = jaxr1.generate(model, params, processor, prompts, **args)
    monkeypatch.setattr(loop, "compaction", lambda *_: None)
    whole = jaxr1.generate(model, params, processor, prompts, **args)
    assert calls, "nothing was compacted"
    for a, b in zip(compacted, whole, strict=True):
        for x, y in zip(a, b, strict=True):
            assert list(x.token_ids) == list(y.token_ids) and x.finish_reason == y.finish_reason
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=2e-5)


def test_compaction_keeps_every_live_response(rng):
    for _ in range(200):
        rows, samples, multiple = 8, int(rng.choice([1, 2, 4, 8])), int(rng.choice([1, 2, 4]))
        done = rng.random((rows, samples)) < rng.uniform(0.3, 1.0)
        chosen = loop.compaction(done, multiple)
        if chosen is None:
            continue
        row, slot, filler = chosen
        assert len(row) % multiple == 0 and slot.shape == filler.shape and slot.size < done.size
        kept = {
            (int(row[i]), int(slot[i, j])) for i, j in np.ndindex(slot.shape) if not filler[i, j]
        }
        assert kept >= set(zip(*map(lambda x: x.tolist(), np.nonzero(~done)), strict=True))


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
    """top-k and top-p against a plain numpy version, and the frequencies of draws against their
    distribution.
    """
    logits = rng.normal(size=(5, 40)).astype(np.float32) * 2
    order = np.sort(logits, -1)[:, ::-1]
    k = np.asarray(filtered(logits, Filters(top_k=7)))
    assert ((k > -1e29).sum(-1) == 7).all() and (
        np.sort(k, -1)[:, ::-1][:, :7] == order[:, :7]
    ).all()
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
    done = jaxr1.generate(
        model, params, processor, mixed_prompts(rng, 1), max_new_tokens=20, seed=1,
        on_tokens=lambda t: seen.append(list(t[0][0])), stream_every=4,
    )[0][0]  # fmt: skip
    assert len(seen) >= 2 and all(b[: len(a)] == a for a, b in zip(seen, seen[1:], strict=False))
    assert seen[-1] == list(done.token_ids)
