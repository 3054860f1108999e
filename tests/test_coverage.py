"""Finite classes keep the demonstrator plausible as often as promised, at all times, whoever acts in between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.hypotheses.posterior import Rule
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.types import Actor

Floats = NDArray[np.float64]

N_WORLDS, STEPS, K, V = 2_000, 50, 4, 3
DELTA = 0.2


@dataclass(frozen=True)
class Worlds:
    """Simulated histories of ``n`` worlds: Markov members, who the demonstrator is, what was done and by whom."""

    members: Floats
    prior: Floats
    demonstrator: NDArray[np.int64]
    symbols: NDArray[np.int64]
    by_demonstrator: NDArray[np.bool_]


def pick(p: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """One symbol from each row of ``p [n, V]``."""
    return np.minimum((np.cumsum(p, axis=1) <= rng.random(len(p))[:, None]).sum(axis=1), p.shape[1] - 1)


def simulate(seed: int, *, fixed: bool) -> Worlds:
    """Whether the demonstrator acts depends on the past; otherwise an imitator does as some wrong member would.

    Symbol 0 starts a history. With ``fixed`` the demonstrator is member 0, otherwise it is drawn from the prior.
    """
    rng = np.random.default_rng(seed)
    n = np.arange(N_WORLDS)
    members = rng.dirichlet(np.full(V, 0.7), (N_WORLDS, K, V)) + 1e-9
    members /= members.sum(axis=-1, keepdims=True)
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    demonstrator = np.zeros(N_WORLDS, dtype=np.int64) if fixed else rng.choice(K, N_WORLDS, p=prior)
    misled = (demonstrator + rng.integers(1, K, N_WORLDS)) % K
    symbols = np.zeros((N_WORLDS, STEPS + 1), dtype=np.int64)
    by_demonstrator = np.zeros((N_WORLDS, STEPS), dtype=np.bool_)
    for t in range(STEPS):
        last = symbols[:, t]
        by_demonstrator[:, t] = rng.random(N_WORLDS) < np.array([0.9, 0.5, 0.2])[last]
        own = pick(members[n, demonstrator, last], rng)
        symbols[:, t + 1] = np.where(by_demonstrator[:, t], own, pick(members[n, misled, last], rng))
    return Worlds(members, prior, demonstrator, symbols, by_demonstrator)


def weights_over_time(worlds: Worlds, evidence: str, switching_rate: float = 0.0) -> Floats:
    """Posterior of every world after every step, ``[n, STEPS, K]``, in plain probabilities."""
    n = np.arange(N_WORLDS)
    weights, found = np.tile(worlds.prior, (N_WORLDS, 1)), []
    for t in range(STEPS):
        likelihood = worlds.members[n, :, worlds.symbols[:, t], worlds.symbols[:, t + 1]]
        updated = weights * likelihood
        updated = updated / updated.sum(axis=1, keepdims=True)
        updated = (1 - switching_rate) * updated + switching_rate * worlds.prior
        learned = worlds.by_demonstrator[:, t] | (evidence == "all")
        weights = np.where(learned[:, None], updated, weights)
        found.append(weights)
    return np.stack(found, axis=1)


def demonstrator_plausible(worlds: Worlds, weights: Floats, rule: Rule, alpha: float) -> NDArray[np.bool_]:
    """Whether each world's demonstrator is plausible after each step, ``[n, STEPS]``, by the rules as written."""
    own = np.take_along_axis(weights, worlds.demonstrator[:, None, None], axis=2)
    if rule == "best":
        inside = own >= alpha * weights.max(axis=2, keepdims=True)
    elif rule == "cumulative":
        inside = own >= alpha * np.where(weights >= own, weights, 0.0).sum(axis=2, keepdims=True)
    else:
        inside = own >= alpha * worlds.prior[worlds.demonstrator][:, None, None]
    return inside[:, :, 0]


def share_kept(worlds: Worlds, rule: Rule, alpha: float, evidence: str = "demonstrator") -> float:
    """Share of worlds whose demonstrator is plausible at all times."""
    inside = demonstrator_plausible(worlds, weights_over_time(worlds, evidence), rule, alpha)
    return float(inside.all(axis=1).mean())


@pytest.mark.parametrize("evidence", ["demonstrator", "all"])
@pytest.mark.parametrize("switching_rate", [0.0, 0.05])
@pytest.mark.parametrize("rule", ["best", "cumulative", "anytime"])
def test_the_simulation_is_what_the_library_does(rule: Rule, switching_rate: float, evidence: str) -> None:
    """Step by step in some of the worlds; the tests below then speak of all of them."""
    worlds, alpha = simulate(1, fixed=False), 0.5
    weights = weights_over_time(worlds, evidence, switching_rate)
    plausible = demonstrator_plausible(worlds, weights, rule, alpha)
    seen = set()
    for world in range(12):
        hypotheses = FiniteHypotheses(
            list(np.log(worlds.members[world])), prior=worlds.prior, switching_rate=switching_rate, plausible=rule
        )
        imitator = CautiousImitator(hypotheses, alpha, evidence=evidence)  # type: ignore[arg-type]
        for t in range(STEPS):
            actor = Actor.DEMONSTRATOR if worlds.by_demonstrator[world, t] else Actor.IMITATOR
            imitator.observe(worlds.symbols[world, : t + 1], worlds.symbols[world, t + 1], actor)
            np.testing.assert_allclose(np.exp(hypotheses.log_weights), weights[world, t], rtol=1e-9, atol=1e-300)
            inside = bool(hypotheses.plausible_members(alpha)[worlds.demonstrator[world]])
            assert inside == plausible[world, t]
            seen.add(inside)
    assert seen == {True, False} or switching_rate > 0


@pytest.mark.parametrize("rule", ["best", "cumulative"])
def test_a_fixed_demonstrator_is_kept_as_often_as_promised(rule: Rule) -> None:
    worlds = simulate(2, fixed=True)
    assert share_kept(worlds, rule, DELTA * worlds.prior[0]) >= 1 - DELTA - 3 * (DELTA * (1 - DELTA) / N_WORLDS) ** 0.5
    assert share_kept(worlds, rule, 1.0) < 1 - DELTA, "nothing was at stake"


def test_every_member_is_kept_as_often_as_promised_by_its_own_prior() -> None:
    worlds = simulate(3, fixed=False)
    allowed = 1 - DELTA - 3 * (DELTA * (1 - DELTA) / N_WORLDS) ** 0.5
    assert share_kept(worlds, "anytime", DELTA) >= allowed
    for member in range(K):
        inside = demonstrator_plausible(worlds, weights_over_time(worlds, "demonstrator"), "anytime", DELTA).all(axis=1)
        mine = inside[worlds.demonstrator == member]
        assert mine.mean() >= 1 - DELTA - 3 * (DELTA * (1 - DELTA) / len(mine)) ** 0.5
    assert share_kept(worlds, "anytime", 1.0) < allowed, "nothing was at stake"


def test_the_promise_is_nearly_used_up_where_evidence_is_ambiguous() -> None:
    """Ville's inequality is an equality but for overshoot: a stronger promise would be false."""
    rng, delta = np.random.default_rng(4), 0.5
    log_ratio = np.cumsum(np.where(rng.random((N_WORLDS, 4_000)) < 0.51, 1, -1) * np.log(0.49 / 0.51), axis=1)
    lost = float((log_ratio >= -np.log(delta)).any(axis=1).mean())
    assert 0.9 * delta <= lost <= delta + 3 * (delta * (1 - delta) / N_WORLDS) ** 0.5


@pytest.mark.parametrize("rule", ["best", "cumulative"])
def test_switching_makes_it_certain(rule: Rule) -> None:
    worlds, rate = simulate(5, fixed=True), 0.05
    for evidence in ("demonstrator", "all"):
        weights = weights_over_time(worlds, evidence, rate)
        assert demonstrator_plausible(worlds, weights, rule, rate * worlds.prior[0]).all()
        assert not demonstrator_plausible(worlds, weights, rule, 1.5 * rate * worlds.prior[0]).all()


def test_evidence_of_ones_own_actions_breaks_the_promise() -> None:
    worlds = simulate(6, fixed=True)
    alpha = DELTA * worlds.prior[0]
    assert share_kept(worlds, "best", alpha) >= 1 - DELTA
    assert share_kept(worlds, "best", alpha, "all") < 0.5
