"""What an optimised policy's charge guarantees, under which assumptions, and what it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import BasePolicy, CautiousImitator

Status: TypeAlias = Literal["proven", "measured", "none"]

_NOT_PROMISED = (
    "nothing is said about the quality of what the demonstrator itself would do",
    "the bound is on the expected KL of a whole episode, not on any single trajectory",
    "a small KL does not make every event rare: an event of probability p can become likely at about log(1/p) nats",
)


@dataclass(frozen=True)
class Certificate:
    """An upper bound on KL(law of what the policy does || law of what the demonstrator does) over an episode.

    Attributes:
        bound_nats: the bound: the expected charge of an episode, plus the excess where it is known.
        charge_nats: expected charge with asking free of charge.
        excess_nats: measured shortfall of the charge where the demonstrator is known; None where it is not.
        plausible_set: which set of hypotheses was charged against.
        alpha: plausibility level; None for an anchor without one.
        delta: probability that the set misses the demonstrator at some time; None where nothing is proven about it.
        answers_from: who answers questions.
        status: ``"proven"`` (with probability 1 - delta), ``"measured"`` (the excess was measured or nothing proves the
            set), or ``"none"`` (the anchor bounds nothing: a Bayesian mixture).
        assumes: in words, what has to hold.
        does_not_promise: in words, what the bound does not say.
    """

    bound_nats: float
    charge_nats: float
    excess_nats: float | None
    plausible_set: str
    alpha: float | None
    delta: float | None
    answers_from: str
    status: Status
    assumes: tuple[str, ...]
    does_not_promise: tuple[str, ...]


def certify(
    anchor: BasePolicy,
    charge_nats: float,
    *,
    excess_nats: float | None = None,
    demonstrator_prior: float | None = None,
    answers_from: str = "demonstrator",
    dependent_answers: int = 0,
) -> Certificate:
    """The certificate that goes with a charge.

    Args:
        anchor: the base policy that was charged against.
        charge_nats: expected charge of an episode with asking free of charge (``Metrics.free_charge_nats``).
        excess_nats: measured excess, where the demonstrator is known.
        demonstrator_prior: prior weight of the demonstrator in a finite class, if it is known to be a member; a proof
            needs it. Context trees do without.
        answers_from: who answers the questions.
        dependent_answers: how many questions were answered or declined in a way that may depend on the answer, as
            ``QueryLog.statistics`` and ``Imitation`` count them. A single one, and nothing is proven any more.

    Raises:
        ValueError: if the charge, the excess or ``dependent_answers`` is negative or the prior outside (0, 1].

    >>> import numpy as np
    >>> from cautious_imitation.hypotheses.finite import FiniteHypotheses
    >>> coins = FiniteHypotheses([np.log([0.5, 0.5]), np.log([0.9, 0.1])])
    >>> certificate = certify(CautiousImitator(coins, alpha=0.01), 2.0, demonstrator_prior=0.5)
    >>> certificate.status, certificate.delta, certificate.bound_nats
    ('proven', 0.02, 2.0)

    Source: docs/guarantees.md; coverage by Ville's inequality, charge by data processing.
    """
    if not charge_nats >= 0:
        raise ValueError(f"charge_nats must be at least 0, got {charge_nats!r}; it is an expected KL")
    if demonstrator_prior is not None and not 0 < demonstrator_prior <= 1:
        raise ValueError(f"demonstrator_prior must be in (0, 1], got {demonstrator_prior!r}")
    if excess_nats is not None and not excess_nats >= 0:
        raise ValueError(f"excess_nats must be at least 0, got {excess_nats!r}; it adds to the charge")
    if dependent_answers < 0:
        raise ValueError(f"dependent_answers must be at least 0, got {dependent_answers!r}; it counts questions")
    bound = charge_nats + (excess_nats or 0.0)
    help_from = (
        "questions are answered by the demonstrator"
        if answers_from == "demonstrator"
        else f"the bound is against the demonstrator helped by {answers_from}, whose answers are no evidence about it"
    )
    if not isinstance(anchor, CautiousImitator):
        return Certificate(
            bound,
            charge_nats,
            excess_nats,
            type(anchor).__name__,
            None,
            None,
            answers_from,
            "none" if excess_nats is None else "measured",
            (help_from,),
            ("staying close to this anchor does not bound the KL to the demonstrator", *_NOT_PROMISED),
        )
    chosen_freely = answers_from == "demonstrator" and not dependent_answers
    delta = _delta(anchor, demonstrator_prior) if chosen_freely else None
    return Certificate(
        bound,
        charge_nats,
        excess_nats,
        f"{anchor.caution}, {type(anchor.hypotheses).__name__}",
        anchor.alpha,
        delta,
        answers_from,
        "proven" if delta is not None else "measured",
        (
            _membership(anchor, demonstrator_prior, delta),
            _independence(dependent_answers),
            help_from,
        ),
        _NOT_PROMISED,
    )


def _membership(anchor: CautiousImitator, demonstrator_prior: float | None, delta: float | None) -> str:
    if delta is None:
        return "the demonstrator is plausible in every context visited; nothing proves it for this set"
    if isinstance(anchor.hypotheses, ContextTree):
        depth = anchor.hypotheses.depth
        return f"the demonstrator looks at no more than {depth} symbols, and each of its actions is learned once"
    return f"the demonstrator is one of the hypotheses, with prior weight {demonstrator_prior:.3g}"


def _independence(dependent_answers: int) -> str:
    only = "only the demonstrator's actions are evidence"
    if not dependent_answers:
        return f"{only}, and whether one is asked for, recorded or declined does not depend on the action itself"
    questions = "1 question was" if dependent_answers == 1 else f"{dependent_answers} questions were"
    return (
        f"{only}; {questions} answered or declined in a way that may depend on the action, so that the answers learned "
        "from may be a selection, which can exclude the demonstrator"
    )


def _delta(anchor: CautiousImitator, demonstrator_prior: float | None) -> float | None:
    """Probability of ever losing the demonstrator from the set, where a proof gives one below 1."""
    hypotheses = anchor.hypotheses
    if anchor.evidence != "demonstrator":
        return None
    if isinstance(hypotheses, ContextTree):
        return anchor.alpha if hypotheses.rule == "anytime" and anchor.alpha < 1 else None
    if demonstrator_prior is None or not isinstance(hypotheses, FiniteHypotheses):
        return None
    if hypotheses.posterior.switching_rate > 0:
        kept = anchor.alpha <= hypotheses.posterior.switching_rate * demonstrator_prior
        return 0.0 if kept and hypotheses.posterior.rule != "anytime" else None
    delta = anchor.alpha if hypotheses.posterior.rule == "anytime" else anchor.alpha / demonstrator_prior
    return delta if delta < 1 else None
