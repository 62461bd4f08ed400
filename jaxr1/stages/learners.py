"""What learns in a stage of reinforcement learning, made of its options."""

from __future__ import annotations

import dataclasses

from jaxr1.rl.learner import Learner
from jaxr1.rl.objectives import Entropy, PolicyStats
from jaxr1.rl.terms import Objective, Term
from jaxr1.rl.weights import WEIGHTINGS, Weighting
from jaxr1.stages.context import POLICY, Context
from jaxr1.stages.critic import Critic, critic_learner
from jaxr1.stages.options import Rl


def policy_learner(options: Rl, context: Context) -> Learner:
    """The policy: the surrogate, what is added to it, and what is measured beside it."""
    terms: list[Term] = [options.surrogate]
    if options.kl.coef:
        terms.append(options.kl)
    if options.entropy_coef or options.entropy is not None:
        terms.append(Entropy(options.entropy_coef, adaptive=options.entropy is not None))
    objective = Objective(
        terms=(*terms, PolicyStats()),
        name=POLICY,
        on_policy=options.is_on_policy,
        temperature=options.temperature,
        forbidden=context.processor.media_token_ids,
        corrected=bool(options.corrections),
    )
    length = options.length_norm or options.max_response_tokens
    own = Weighting(options.aggregation, length, options.count_empty)
    fixed = {
        name: dataclasses.replace(weighting, count_empty=options.count_empty)
        for name, weighting in WEIGHTINGS.items()
    }
    weightings = {"weight": own} | fixed
    used = sorted({term.weight for term in objective.terms} | {"weight"})
    return Learner(
        model=context.model,
        objective=objective,
        buckets=context.buckets,
        optimizer=options.optimizer,
        updates=options.policy_steps * options.updates,
        freeze=options.freeze,
        weightings=tuple((name, weightings[name]) for name in used),
        micro_batch_tokens=options.micro_batch_tokens,
        strips_at_once=options.strips_at_once,
    )


def critic_of(options: Rl, critic: Critic, policy: Learner) -> Learner:
    """The critic beside the policy."""
    return critic_learner(critic, policy, options.steps * options.updates)
