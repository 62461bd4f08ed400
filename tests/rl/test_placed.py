"""Prompt rows go to the devices once for all passes over the same plans of a step."""

import jax
import numpy as np
from reference import given, learner, mixed_prompts

import jaxr1
from jaxr1.inputs.placed import MOST_KEPT, PlacedRows
from jaxr1.inputs.sizes import Buckets
from jaxr1.parallel import make_mesh
from jaxr1.rl import Kl, Ppo
from jaxr1.rl.learner import Learner
from jaxr1.rl.update import gradients, plan_episodes, score
from jaxr1.rl.work import Work


class Step:
    """A step's passes over random prompts with pictures: two scorings, and a gradient."""

    def __init__(self, rng, mesh=None):
        model, self.params = jaxr1.load_model("tiny", mesh=mesh)
        processor = jaxr1.load_processor("tiny")
        prompts = [processor.encode(p) for p in mixed_prompts(rng, 6, (1, 0, 2))]
        lengths = rng.integers(1, 9, (6, 3))
        of_length = lambda draw: [list(map(draw, row)) for row in lengths]
        tokens = of_length(lambda n: rng.integers(20, 500, n).astype(np.int32))
        columns = {"weight": of_length(lambda n: np.full(n, 0.1))}
        for name in ("advantage", "old_logp", "ref_logp"):
            columns[name] = of_length(lambda n: rng.normal(0.0, 1.0, n))
        self.episodes = given(prompts, tokens, **columns)
        self.episodes.columns["sampled_logp"] = self.episodes.columns["old_logp"]
        options = dict(budget=256, on_policy=False)
        buckets = Buckets((128,), (16,), (128,))
        self.policy: Learner = learner(model, processor, (Ppo(), Kl(0.1)), buckets, **options)

    def run(self, most: int):
        """What the passes give, the bytes that each has uploaded, and the rows that are left."""
        work, uploaded = Work(), []
        work.placed[self.policy.name] = placed = PlacedRows(most)
        state, found = self.policy.init(self.params), []
        for _ in range(2):
            every = self.episodes.valid_bg
            found.append(score(self.policy, self.params, self.episodes, every, work)["logp"])
            uploaded.append(placed.uploaded - sum(uploaded))
        sums = gradients(self.policy, state, self.episodes, work)
        uploaded.append(placed.uploaded - sum(uploaded))
        found += [np.asarray(x) for x in jax.tree.leaves(sums.grads)]
        return found, uploaded, placed, work


def test_rows_are_uploaded_once_and_nothing_else_changes(rng):
    devices = 2
    step = Step(rng, make_mesh((devices, 1, 1), jax.devices()[:devices]))
    plans = plan_episodes(step.policy, step.params, step.episodes, step.episodes.valid_bg)
    assert len(plans) > 1
    apart, again, kept_none, _ = step.run(0)
    assert again[0] == again[1] == again[2] > 0 and not kept_none.size
    shared, once, kept, work = step.run(MOST_KEPT)
    assert once == [again[0], 0, 0]
    assert kept.size == 0 and not kept._kept, "the update is the last to need them"
    assert len(work.padding) == len(plans)
    for one, other in zip(apart, shared, strict=True):
        np.testing.assert_array_equal(one, other)

    # Rows over the bound are uploaded at each pass.
    bound = int(again[0] // devices * rng.uniform(0.3, 0.9))
    bounded, uploaded, *_ = step.run(bound)
    assert uploaded[0] == again[0] and uploaded[1] == uploaded[2] >= again[0] - bound * devices
    for one, other in zip(apart, bounded, strict=True):
        np.testing.assert_array_equal(one, other)
