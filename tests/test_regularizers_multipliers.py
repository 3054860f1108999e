"""Prices of a nat that are learned: they settle where the optimum is known, step by their formula, keep nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_softmax, rel_entr

from cautious_imitation.finetuning.exact import ExactSolver
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import (
    AdaptivePenalty,
    ExpectedBudget,
    HardBudget,
    Lagrangian,
    Multiplier,
    Penalty,
    Regularizer,
)
from tests.random_worlds import random_references, random_world

REWARD = np.array([0.0, 0.2, 1.0, 0.4, 0.1])
LOG_ANCHOR = log_softmax([1.0, 2.0, -1.0, 0.5, 1.0])
BUDGET = 0.4


def charge_at(multiplier: float) -> float:
    """Nats of the best policy at that price: max E[r] - multiplier KL is at the anchor times exp(r / multiplier)."""
    if multiplier == 0:
        return float(-LOG_ANCHOR[REWARD.argmax()])
    tilted = np.exp(log_softmax(LOG_ANCHOR + REWARD / multiplier))
    return float(rel_entr(tilted, np.exp(LOG_ANCHOR)).sum())


BEST = float(brentq(lambda multiplier: charge_at(multiplier) - BUDGET, 1e-3, 1e3, xtol=1e-12))

SEEKING: dict[str, Multiplier] = {
    "adaptive": AdaptivePenalty(BUDGET, initial=5.0),
    "adaptive-from-below": AdaptivePenalty(BUDGET, initial=0.01),
    "lagrangian": Lagrangian(BUDGET, rate=0.2),
    "lagrangian-from-above": Lagrangian(BUDGET, rate=0.2, initial=5.0),
}


@pytest.mark.parametrize("controller", SEEKING.values(), ids=SEEKING.keys())
def test_the_multiplier_settles_where_the_budget_is_met(controller: Multiplier) -> None:
    multiplier = controller.begin()
    assert abs(multiplier - BEST) > 0.1
    for _ in range(2000):
        multiplier = controller.after(multiplier, charge_at(multiplier))
    assert multiplier == pytest.approx(BEST, rel=1e-6)
    assert charge_at(multiplier) == pytest.approx(BUDGET, rel=1e-6)


@pytest.mark.parametrize("controller", SEEKING.values(), ids=SEEKING.keys())
def test_it_settles_about_there_where_charges_are_estimates_and_the_policy_lags_behind(controller: Multiplier) -> None:
    rng, multiplier, charge, seen = np.random.default_rng(0), controller.begin(), 0.0, []
    for _ in range(6000):
        charge += 0.2 * (charge_at(multiplier) - charge)
        multiplier = controller.after(multiplier, charge * rng.gamma(8, 1 / 8))
        seen.append((multiplier, charge))
    multipliers, charges = np.array(seen[3000:]).T
    assert multipliers.mean() == pytest.approx(BEST, rel=0.15)
    assert charges.mean() == pytest.approx(BUDGET, rel=0.15)


def test_a_budget_that_does_not_bind_costs_nothing() -> None:
    controller = Lagrangian(charge_at(0) + 0.1, rate=0.2, initial=1.0)
    multiplier = controller.begin()
    for _ in range(200):
        multiplier = controller.after(multiplier, charge_at(multiplier))
    assert multiplier == 0


def test_dual_ascent_finds_what_the_exact_solver_finds() -> None:
    """Without questions: where a question costs the same as acting the charge jumps, and no multiplier settles."""
    rng = np.random.default_rng(4)
    world = random_world(rng, 4, 3, 3)
    references: PlausibleSet = random_references(rng, 3, 3, zeros=0.0)
    exact = ExactSolver().solve(world, references, Regularizer(ExpectedBudget(0.1), accounting="forbidden"))
    assert exact.status == "optimal"
    controller = Lagrangian(0.1, rate=1.0, initial=1.0)
    multiplier = controller.begin()
    for _ in range(100):
        solution = ExactSolver().solve(world, references, Regularizer(Penalty(multiplier), accounting="forbidden"))
        multiplier = controller.after(multiplier, solution.charge_nats)
    assert multiplier == pytest.approx(exact.multiplier, rel=1e-4)
    assert solution.charge_nats == pytest.approx(0.1, rel=1e-4)
    assert solution.reward == pytest.approx(exact.reward, abs=1e-4)


@given(multiplier=st.floats(1e-3, 1e3), charge=st.floats(0, 1e3), nats=st.floats(0.01, 100), gain=st.floats(0.01, 2))
def test_steps_are_those_of_the_formulas(multiplier: float, charge: float, nats: float, gain: float) -> None:
    stepped = Lagrangian(nats, rate=gain).after(multiplier, charge)
    assert stepped == max(multiplier + gain * (charge - nats), 0)
    factor = AdaptivePenalty(nats, gain=gain, clip=0.2).after(multiplier, charge) / multiplier
    assert factor == pytest.approx(1 + gain * np.clip(charge / nats - 1, -0.2, 0.2), rel=1e-9)
    assert 1 - 0.2 * gain - 1e-12 <= factor <= 1 + 0.2 * gain + 1e-12
    assert Penalty(multiplier).after(multiplier, charge) == multiplier
    # Nothing is kept: what a step leads to depends on its arguments alone, and a multiplier survives a checkpoint.
    controller = Lagrangian(nats, rate=gain)
    controller.after(99.0, 99.0)
    assert controller.after(json.loads(json.dumps(multiplier)), charge) == stepped


def test_where_they_begin() -> None:
    assert [each.begin() for each in (Penalty(0.3), AdaptivePenalty(2.0), Lagrangian(2.0, 0.1))] == [0.3, 0.1, 0.0]
    assert all(isinstance(each, Multiplier) for each in (Penalty(0.3), *SEEKING.values()))
    assert not isinstance(HardBudget(2.0), Multiplier)


@pytest.mark.parametrize("controller", [Penalty(1.0), *SEEKING.values()], ids=["penalty", *SEEKING])
@pytest.mark.parametrize("charge", [float("inf"), float("nan")])
def test_infinite_charges_are_refused(controller: Multiplier, charge: float) -> None:
    with pytest.raises(ValueError, match=f"mean_charge_nats must be a finite number, got {charge}"):
        controller.after(1.0, charge)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (HardBudget, {"nats": -1.0}, "nats must be at least 0 and finite, got -1.0"),
        (HardBudget, {"nats": float("inf")}, "nats must be at least 0 and finite, got inf"),
        (HardBudget, {"nats": float("nan")}, "nats must be at least 0 and finite, got nan"),
        (AdaptivePenalty, {"target_nats": 0.0}, "target_nats must be positive and finite, got 0.0"),
        (AdaptivePenalty, {"target_nats": 1.0, "initial": 0.0}, "initial must be positive and finite, got 0.0"),
        (AdaptivePenalty, {"target_nats": 1.0, "gain": -0.1}, "gain must be positive and finite, got -0.1"),
        (AdaptivePenalty, {"target_nats": 1.0, "clip": float("inf")}, "clip must be positive and finite, got inf"),
        (AdaptivePenalty, {"target_nats": 1.0, "gain": 5.0}, "gain times clip must be below 1, got 5.0 times 0.2"),
        (Lagrangian, {"nats": -1.0, "rate": 0.1}, "nats must be at least 0 and finite, got -1.0"),
        (Lagrangian, {"nats": 1.0, "rate": 0.1, "initial": float("inf")}, "initial must be at least 0 and finite"),
        (Lagrangian, {"nats": 1.0, "rate": 0.0}, "rate must be positive and finite, got 0.0"),
        (Lagrangian, {"nats": 1.0, "rate": float("nan")}, "rate must be positive and finite, got nan"),
    ],
)
def test_bad_settings_are_named(kind: Any, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    "controller", [HardBudget(1.0), AdaptivePenalty(1.0), Lagrangian(1.0, 0.1)], ids=["hard", "adaptive", "lagrangian"]
)
def test_the_exact_solver_says_what_it_does_not_solve(controller: Any) -> None:
    rng = np.random.default_rng(0)
    world, references = random_world(rng), random_references(rng, 3, 3)
    with pytest.raises(ValueError, match=rf"controller must be .* got {type(controller).__name__}\("):
        ExactSolver().solve(world, references, Regularizer(controller))
