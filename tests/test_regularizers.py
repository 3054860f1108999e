"""What a step is charged under each accounting, against plain sums, and which settings are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cautious_imitation.regularizers import ExpectedBudget, Penalty, Regularizer, step_charge
from tests.random_worlds import distributions

LIBRARIES: dict[str, Any] = {"numpy": np.asarray, "torch": torch.as_tensor}


@pytest.mark.parametrize("library", LIBRARIES)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_charge_of_a_step_is_the_divergence_that_it_stands_for(library: str, seed: int) -> None:
    rng, array = np.random.default_rng(seed), LIBRARIES[library]
    pi, nu = distributions(rng, (2, 3), 0.2), distributions(rng, (2, 3)) * rng.uniform(0.2, 0.99, (2, 1))
    q = rng.choice([0.0, 1.0, rng.uniform()], size=2)
    charge = np.array([sum(x * np.log(x / y) for x, y in zip(*rows, strict=True) if x > 0) for rows in zip(pi, nu)])  # noqa: B905
    log_ask = np.log(1 - nu.sum(axis=1))
    free = step_charge("free", array(q), array(charge), array(log_ask))
    outcome = step_charge("outcome", array(q), array(charge), array(log_ask))
    for i in range(2):
        done, reference = [*(q[i] * pi[i]), 1 - q[i]], [*nu[i], 1 - nu[i].sum()]
        direct = sum(x * np.log(x / y) for x, y in zip(done, reference, strict=True) if x > 0)
        assert float(outcome[i]) == pytest.approx(direct, abs=1e-12)
        assert float(free[i]) == pytest.approx(q[i] * charge[i], abs=1e-12)
    ones = array(np.ones(2))
    np.testing.assert_allclose(np.asarray(step_charge("forbidden", ones, array(charge), array(log_ask))), charge)
    assert type(free) is type(outcome) is type(array(q))


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_never_done_costs_nothing_and_what_is_impossible_infinitely_much(library: str) -> None:
    array = LIBRARIES[library]
    q, charge = array([0.0, 0.5, 1.0, 0.5]), array([np.inf, np.inf, 1.0, 1.0])
    log_ask = array([0.0, -1.0, -np.inf, -np.inf])
    assert np.asarray(step_charge("free", q, charge, log_ask)).tolist() == [0.0, np.inf, 1.0, 0.5]
    assert np.asarray(step_charge("outcome", q, charge, log_ask)).tolist() == [0.0, np.inf, 1.0, np.inf]


def test_doing_what_the_cautious_imitator_does() -> None:
    """It costs -(1 - theta) log(1 - theta) a step where asking is free, nothing where it is one more symbol."""
    nu = np.array([0.5, 0.2])
    act_share, charge = np.array(nu.sum()), np.array(-np.log(nu.sum()))
    assert float(step_charge("free", act_share, charge, np.log(0.3))) == pytest.approx(-0.7 * np.log(0.7))
    assert float(step_charge("outcome", act_share, charge, np.log(0.3))) == pytest.approx(0, abs=1e-15)


def test_gradients_flow_through_torch() -> None:
    share = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    charge = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    step_charge("outcome", share, charge, torch.log(torch.tensor([0.3, 0.3, 0.3]))).sum().backward()
    assert charge.grad is not None
    assert charge.grad.tolist() == [0.0, 0.5, 1.0]
    assert share.grad is not None
    assert torch.isfinite(share.grad).all()


def test_forbidden_asking_is_refused() -> None:
    with pytest.raises(ValueError, match='act_share must be 1 everywhere under accounting "forbidden"'):
        step_charge("forbidden", np.array([1.0, 0.5]), np.ones(2), np.zeros(2))
    with pytest.raises(ValueError, match="accounting must be one of free, forbidden, outcome, got 'paid'"):
        step_charge("paid", np.ones(1), np.ones(1), np.zeros(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "reverse_kl"}, "divergence must be \"kl\", got 'reverse_kl'; only KL adds up"),
        ({"accounting": "paid"}, "accounting must be one of free, forbidden, outcome, got 'paid'"),
        ({"ask_price": -0.1}, "ask_price must be at least 0 units of reward, got -0.1"),
        ({"ask_price": float("nan")}, "ask_price must be"),
        ({"ask_budget": -1.0}, "ask_budget must be at least 0 questions an episode or None, got -1.0"),
        ({"ask_budget": float("nan")}, "ask_budget must be"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regularizer(**settings)


@pytest.mark.parametrize("nats", [-1.0, float("nan")])
def test_a_budget_is_not_negative(nats: float) -> None:
    with pytest.raises(ValueError, match=f"nats must be at least 0, got {nats}"):
        ExpectedBudget(nats)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan")])
def test_a_penalty_is_positive(multiplier: float) -> None:
    with pytest.raises(ValueError, match=f"multiplier must be positive, got {multiplier}"):
        Penalty(multiplier)


def test_defaults() -> None:
    regularizer = Regularizer()
    assert regularizer.controller == ExpectedBudget(2.0)
    assert (regularizer.accounting, regularizer.ask_price, regularizer.ask_budget) == ("free", 0.0, None)
