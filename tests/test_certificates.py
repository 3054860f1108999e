"""What is called proven, what measured, and the arithmetic of delta."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cautious_imitation.certificates import certify
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import BayesianImitator, CautiousImitator

COINS = [np.log([0.5, 0.5]), np.log([0.9, 0.1]), np.log([0.2, 0.8])]


def cautious(alpha: float = 0.02, evidence: Any = None, **options: Any) -> CautiousImitator:
    return CautiousImitator(FiniteHypotheses(COINS, **options), alpha, "pointwise", evidence=evidence)


@pytest.mark.parametrize(
    ("options", "alpha", "prior", "delta"),
    [
        ({}, 0.02, 0.5, 0.04),
        ({"plausible": "cumulative"}, 0.02, 0.25, 0.08),
        ({"plausible": "anytime"}, 0.02, 0.5, 0.02),
        ({"temperature": 0.5}, 0.02, 0.5, 0.04),
        ({"switching_rate": 0.1}, 0.05, 0.5, 0.0),
        ({"switching_rate": 0.1, "plausible": "cumulative"}, 0.01, 0.5, 0.0),
    ],
)
def test_a_finite_class_that_holds_the_demonstrator_is_a_proof(
    options: dict[str, Any], alpha: float, prior: float, delta: float
) -> None:
    certificate = certify(cautious(alpha, **options), 1.5, demonstrator_prior=prior)
    assert certificate.status == "proven"
    assert certificate.delta == pytest.approx(delta)
    assert certificate.bound_nats == certificate.charge_nats == 1.5
    assert certificate.excess_nats is None
    assert certificate.alpha == alpha
    assert certificate.plausible_set == "pointwise, FiniteHypotheses"
    assert any(f"prior weight {prior:.3g}" in line for line in certificate.assumes)


@pytest.mark.parametrize(
    ("options", "alpha", "prior"),
    [
        ({}, 0.02, None),
        ({}, 0.6, 0.5),
        ({}, 0.5, 0.5),
        ({"plausible": "anytime"}, 1.0, 0.5),
        ({"switching_rate": 0.1}, 0.051, 0.5),
        ({"switching_rate": 0.1, "plausible": "anytime"}, 0.01, 0.5),
        ({"evidence": "all"}, 0.02, 0.5),
    ],
    ids=["not a member", "alpha above w0", "alpha = w0", "alpha = 1", "alpha above s w0", "anytime, switching", "all"],
)
def test_what_nothing_proves_is_called_measured(options: dict[str, Any], alpha: float, prior: float | None) -> None:
    certificate = certify(cautious(alpha, **options), 1.5, demonstrator_prior=prior)
    assert (certificate.status, certificate.delta) == ("measured", None)
    assert any("nothing proves it" in line for line in certificate.assumes)


def test_a_context_tree_is_no_proof_by_the_ordinary_rules() -> None:
    anchor = CautiousImitator(ContextTree(2, depth=1), 0.01, "minimax")
    certificate = certify(anchor, 1.0, excess_nats=0.25, demonstrator_prior=0.5)
    assert (certificate.status, certificate.delta) == ("measured", None)
    assert (certificate.charge_nats, certificate.excess_nats, certificate.bound_nats) == (1.0, 0.25, 1.25)
    assert certificate.plausible_set == "minimax, ContextTree"


def test_a_bayesian_anchor_bounds_nothing_unless_the_excess_is_known() -> None:
    anchor = BayesianImitator(FiniteHypotheses(COINS))
    unknown, known = certify(anchor, 1.0), certify(anchor, 1.0, excess_nats=3.0)
    assert (unknown.status, unknown.alpha, unknown.delta) == ("none", None, None)
    assert (known.status, known.bound_nats) == ("measured", 4.0)
    for certificate in (unknown, known):
        assert "does not bound the KL to the demonstrator" in certificate.does_not_promise[0]


def test_answers_from_someone_else_are_said_and_prove_nothing_about_the_demonstrator() -> None:
    certificate = certify(cautious(), 1.0, demonstrator_prior=0.5, answers_from="a judge")
    assert (certificate.status, certificate.delta, certificate.answers_from) == ("measured", None, "a judge")
    assert any("helped by a judge" in line for line in certificate.assumes)


def test_every_certificate_says_what_it_does_not_promise() -> None:
    for anchor in (cautious(), BayesianImitator(FiniteHypotheses(COINS))):
        lines = certify(anchor, 1.0).does_not_promise
        assert any("not on any single trajectory" in line for line in lines)
        assert len(lines) == len(set(lines)) >= 3


@pytest.mark.parametrize(
    ("charge", "options", "message"),
    [
        (-0.1, {}, "charge_nats must be at least 0, got -0.1"),
        (float("nan"), {}, "charge_nats must be at least 0, got nan"),
        (1.0, {"demonstrator_prior": 0.0}, r"demonstrator_prior must be in \(0, 1\], got 0.0"),
        (1.0, {"demonstrator_prior": 1.1}, r"demonstrator_prior must be in \(0, 1\], got 1.1"),
        (1.0, {"demonstrator_prior": float("nan")}, r"demonstrator_prior must be in \(0, 1\], got nan"),
        (1.0, {"excess_nats": -0.5}, "excess_nats must be at least 0, got -0.5"),
        (1.0, {"excess_nats": float("nan")}, "excess_nats must be at least 0, got nan"),
    ],
)
def test_bad_arguments_are_named(charge: float, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(cautious(), charge, **options)
