"""What a supervised stage's loss is over: the response, and the prompt where that is asked for."""

import dataclasses
import json

import numpy as np
import pytest
from reference import Checkpoint, torch_inputs

import jaxr1
from jaxr1.data import Files
from jaxr1.rl import Optimizer
from jaxr1.run import BucketOptions, Config, Sft


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, module_seed):
    return Checkpoint.make(tmp_path_factory.mktemp("model") / "m", module_seed)


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_sft_trains_on_completion_tokens_only_or_on_prompts_too(
    checkpoint, tmp_path, rng, train_on_prompt
):
    """The loss of a step is the mean over these very tokens, as transformers has it."""
    import torch
    from PIL import Image

    lines = []
    for i in range(4):
        name = f"{i}.png"
        pixels = rng.integers(0, 256, (int(rng.integers(28, 60)), 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        asked = f"{'<image>' * (i % 3)} what is number {i} of {'it ' * i}?"
        pictures = [name] * (i % 3)
        lines.append({"prompt": asked, "images": pictures, "response": f"it is {i}" + " so" * i})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    stage = Sft(
        data=Files(str(tmp_path / "rows.jsonl")),
        batch_size=4,
        max_prompt_tokens=128,
        max_response_tokens=64,
        optimizer=Optimizer(learning_rate=1e-3),
        buckets=BucketOptions(prompt=(128,), response=(64,), patches=(64,)),
        train_on_prompt=train_on_prompt,
    )
    made = dict(report=False, export=False, tensorboard=False)
    config = Config(
        model=str(checkpoint.folder), run_dir=str(tmp_path / "run"), stages=(stage,), **made
    )
    (row,) = [row for row in jaxr1.train(config).metrics if "policy/loss" in row]

    processor = checkpoint.processor
    forbidden = list(processor.media_token_ids)
    losses = []
    for example in stage.data.load():
        prompt = processor.encode(jaxr1.Prompt(example.messages))
        response = [*processor.spoken_ids(example.response), processor.turn_end_id]
        ids = np.concatenate([prompt.token_ids, response]).astype(np.int64)
        with torch.no_grad():
            inputs = torch_inputs(prompt, response=np.array(response))
            logits = checkpoint.reference(**inputs).logits[0].double()
        logits[:, forbidden] = -1e30
        logp = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:, None]))[:, 0]
        behind = len(prompt)
        if train_on_prompt:
            media = [i for i, token in enumerate(prompt.token_ids) if token in forbidden]
            behind = media[-1] + 1 if media else 1
        losses += (-logp[behind - 1 :]).tolist()
    assert row["policy/loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_prompt_that_does_not_fit_is_left_out(checkpoint, tmp_path):
    """`max_response_tokens` counts both."""
    rows = [{"prompt": "a " * n, "response": "b"} for n in (2, 2, 40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stage = Sft(
        data=Files(str(tmp_path / "rows.jsonl")),
        batch_size=2,
        max_prompt_tokens=128,
        max_response_tokens=32,
        train_on_prompt=True,
    )
    made = dict(report=False, export=False, tensorboard=False)
    config = Config(model="tiny", run_dir=str(tmp_path / "run"), stages=(stage,), **made)
    jaxr1.train(config)
    dropped = (tmp_path / "run" / "dropped.jsonl").read_text()
    assert "rows.jsonl:3" in dropped and "the prompt behind its media and the response" in dropped
    assert dataclasses.replace(stage, train_on_prompt=False).reads_prompt is False
