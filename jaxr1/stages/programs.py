"""Which programs a stage may compile: a list from its options alone, shown while a run compiles.

    sampling     prefill, start, decode, grow, select      `sampling.programs`
    scoring      score_batch                               shapes of `inputs.shapes`
    update       accumulate                                the same shapes
                 zeros, apply                              one each

Where arrays of several kinds may come, what reads prompts may be compiled for each: clips beside
pictures, text alone beside what a frozen tower has made, a reference whose parameters are others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from jaxr1.inputs.room import list_rooms
from jaxr1.inputs.shapes import Limits, list_shapes
from jaxr1.inputs.sizes import Buckets, rows_for
from jaxr1.models.vlm import Model
from jaxr1.rl.learner import Learner
from jaxr1.sampling.features import PATCHES_AT_ONCE
from jaxr1.sampling.programs import Program, list_prefills, list_sampling
from jaxr1.stages.answers import Answers
from jaxr1.stages.common import StageOptions
from jaxr1.stages.context import POLICY
from jaxr1.stages.options import Filter, Preference, Rl, Stage
from jaxr1.stages.scored import COLUMNS

COMPILED = frozenset(
    {
        "weights",
        "run_prefill",
        "start",
        "decode_until",
        "grow",
        "select",
        "score_batch",
        "accumulate",
        "zeros",
        "_apply",
        "_compute",
    }
)
"""Names of the functions on the list; what stands behind a name there tells arrays apart. Other
programs are small, and the same in every step.
"""

READ_PROMPTS = frozenset({"run_prefill", "score_batch", "accumulate", "_compute"})


def list_learning(
    learner: Learner, prompts: int, group: int, devices: int, scored: Sequence[int] = ()
) -> set[Program]:
    """The programs of a learner: its updates, and what is scored with its parameters.

    Args:
      prompts: of an optimiser step.
      group: responses of a prompt.
      devices: that share a batch.
      scored: prompts of each pass that only scores.
    """
    model, buckets = learner.model, learner.buckets
    programs: set[Program] = {("zeros", ()), ("_apply", ())}
    passes = [("accumulate", prompts), *(("score_batch", count) for count in scored)]
    for name, count in passes:
        tokens, strips = learner.micro_batch_tokens, learner.strips_at_once
        limits = Limits(tokens, strips or tokens, devices, count, group)
        shapes = itertools.chain(*list_shapes(buckets, limits))
        sizes = [dataclasses.astuple(shape) for shape in shapes]
        programs |= list_prefills(name, sizes, buckets, model.media, devices)
    return programs | list_features(model, learner.unchanging, buckets, devices)


def list_features(
    model: Model, frozen: Sequence[str], buckets: Buckets, devices: int
) -> set[Program]:
    """The programs of what is frozen and computed once."""
    programs: set[Program] = set()
    for tower in model.towers:
        if tower.part in frozen:
            most = max(PATCHES_AT_ONCE, buckets.patches[-1])
            room = dict(patches=most, devices=devices)
            for sizes in list_rooms(buckets.patches, tower.geometry, **room):
                programs.add(("_compute", sizes))
    return programs


def list_programs(
    options: Stage, learners: Mapping[str, Learner], devices: int, *, videos: bool = False
) -> set[Program]:
    """The programs that a stage may compile.

    Args:
      learners: what learns in it.
      devices: that share a batch.
      videos: whether there are clips among its media.
    """
    policy = learners[POLICY]
    if isinstance(options, Rl):
        programs = list_reinforced(options, learners, devices)
    elif isinstance(options, Preference):
        programs = list_preferred(options, policy, devices)
    elif isinstance(options, Filter):
        programs = list_answers(options, options.answers, policy, devices)
    else:
        programs = list_learning(policy, options.prompts_at_once, 1, devices)
    if videos:
        programs |= varied(programs, "with clips")
    if any(tower.part in policy.unchanging for tower in policy.model.towers):
        programs |= varied(programs, "of text alone")
    return programs


def varied(programs: set[Program], what: str, names: frozenset[str] = READ_PROMPTS) -> set[Program]:
    """Those of the programs that arrays of another kind compile again."""
    return {(f"{name} {what}", sizes) for name, sizes in programs if name in names}


def list_reinforced(options: Rl, learners: Mapping[str, Learner], devices: int) -> set[Program]:
    """The programs of a stage of reinforcement learning: rollouts, what is scored, updates."""
    policy = learners[POLICY]
    by_part = {*policy.objective.needs, *policy.objective.fresh, *options.corrected}
    asked = by_part | {*options.credited}
    scored = [options.prompts_at_once] if by_part & COLUMNS.keys() else []
    if {*options.credited} & COLUMNS.keys():
        scored.append(options.prompts_per_step)
    group, prompts = options.group_size, options.prompts_per_step
    learning = list_learning(policy, options.prompts_at_once, group, devices, scored)
    # What is asked of other parameters, or something else of the same, is another program.
    kinds = {COLUMNS[name] for name in asked & COLUMNS.keys()}
    once = set(learning)
    for source, read in sorted(kinds)[1:]:
        learning |= varied(once, f"{read} of {source}", frozenset({"score_batch"}))
    for name, learner in learners.items():
        if name != POLICY:
            own = list_learning(learner, options.prompts_at_once, group, devices, [prompts])
            learning |= {(f"{program} of the {name}", sizes) for program, sizes in own}

    # The last wave may be smaller, and one of a refill as small as it likes.
    wave = -(-prompts // options.waves)
    refills = options.online_filter is not None and options.online_filter.refill
    sizes = set(range(1, wave + 1)) if refills else {wave, prompts % wave or wave}
    rows = sorted({rows_for(size, devices) for size in sizes})
    most, media = options.max_response_tokens, policy.model.media
    samples = group + options.greedy
    return learning | list_sampling(rows, samples, most, policy.buckets, media, devices)


def list_preferred(options: Preference, policy: Learner, devices: int) -> set[Program]:
    """The programs of a stage of preference learning: answers, what is scored, updates."""
    prompts = options.prompts_at_once
    learning = list_learning(policy, prompts, 2 * options.pairs, devices, [prompts])
    if policy.objective.fresh:
        learning |= varied(learning, "of the policy at hand", frozenset({"score_batch"}))
    if options.answers is None:
        return learning
    return learning | list_answers(options, options.answers, policy, devices)


def list_answers(
    options: StageOptions, asked: Answers, policy: Learner, devices: int
) -> set[Program]:
    """The programs of a model's own answers to the rows of a stage."""
    # The last batch may have any number of rows.
    rows = sorted({rows_for(count, devices) for count in range(1, asked.batch_rows + 1)})
    most, media = options.max_response_tokens, policy.model.media
    return set(list_sampling(rows, asked.samples, most, policy.buckets, media, devices))
