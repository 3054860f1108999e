"""One call that fine-tunes a policy close to an anchor and says what that guarantees."""

from __future__ import annotations

from dataclasses import dataclass

from cautious_imitation.certificates import Certificate, certify
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.finetuning.exact import ExactSolver, Solution
from cautious_imitation.finetuning.metrics import Metrics, evaluate
from cautious_imitation.imitators import BasePolicy, BayesianImitator
from cautious_imitation.regularizers import Regularizer


@dataclass(frozen=True)
class Run:
    """A fine-tuned policy.

    Attributes:
        solution: the policy and how it was found.
        metrics: exact metrics in the world it was optimised in.
        certificate: the bound on its KL to the demonstrator, and what that rests on.
    """

    solution: Solution
    metrics: Metrics
    certificate: Certificate


def finetune(
    env: FiniteWorld,
    anchor: BasePolicy,
    regularizer: Regularizer | None = None,
    optimizer: ExactSolver | None = None,
) -> Run:
    """Maximise reward in ``env`` while ``regularizer`` keeps the policy close to ``anchor``.

    Args:
        env: a finite world.
        anchor: the base policy; a Bayesian imitator never asks.
        regularizer: divergence, controller and ask accounting; default a budget of 2 nats an episode.
        optimizer: default ``ExactSolver()``.

    Raises:
        BudgetInfeasible: if no policy meets the budget.

    >>> import numpy as np
    >>> from cautious_imitation import CautiousImitator, ContextTree, ExpectedBudget
    >>> from cautious_imitation.environments.dialogue_acts import dialogue_acts_world, sample_demonstrations
    >>> world = dialogue_acts_world(horizon=16)
    >>> chats = sample_demonstrations(world, 10_000, np.random.default_rng(0))
    >>> tree = ContextTree(9, depth=3, n_context_symbols=18, start_symbol=9).fit(chats)
    >>> run = finetune(world, CautiousImitator(tree, alpha=0.01, caution="minimax"), Regularizer(ExpectedBudget(1.0)))
    >>> run.metrics.kl_demonstrator_nats <= run.certificate.bound_nats
    True
    """
    regularizer = regularizer if regularizer is not None else Regularizer()
    references = anchor.references(env.contexts[env.agent_turn])
    solution = (optimizer or ExactSolver()).solve(
        env, references, regularizer, may_ask=not isinstance(anchor, BayesianImitator)
    )
    metrics = evaluate(env, solution, references, regularizer.accounting)
    certificate = certify(anchor, metrics.free_charge_nats, excess_nats=metrics.excess_nats)
    return Run(solution, metrics, certificate)
