"""Exact metrics against every episode listed by brute force, against rollouts, and the bound that they must obey."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cautious_imitation.environments.dialogue_acts import STUDENT_ENDED, dialogue_acts_world, sample_demonstrations
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.environments.gym import FiniteWorldVectorEnv
from cautious_imitation.finetuning.exact import ExactSolver, Solution, TimedPolicy
from cautious_imitation.finetuning.metrics import Metrics, evaluate
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.regularizers import Accounting, ExpectedBudget, Regularizer
from tests.random_worlds import (
    Floats,
    episodes,
    mixture,
    random_policy,
    random_references,
    random_world,
)

ACCOUNTINGS = get_args(Accounting)


def kl(p: Floats, q: Floats) -> float:
    """KL(p || q) in nats, by the definition."""
    return sum(float(x * np.log(x / y)) if y > 0 else np.inf for x, y in zip(p, q, strict=True) if x > 0)


@dataclass
class Sums:
    """Expectations under one policy, summed over every string."""

    reward: float = 0.0
    charge: float = 0.0
    free_charge: float = 0.0
    kl: float = 0.0
    excess: float = 0.0
    covered: float = 0.0
    decisions: float = 0.0
    asks: float = 0.0
    empty: float = 0.0
    turns: float = 0.0
    largest: float = 0.0


def brute_force(world: FiniteWorld, policy: TimedPolicy, references: PlausibleSet, accounting: str) -> Sums:
    row = {int(s): r for r, s in enumerate(policy.states)}
    members = np.exp(references.log_centres)
    sums = Sums()
    for episode in episodes(world, policy):
        p = episode.probability
        if p == 0:
            continue
        sums.reward += p * episode.reward
        sums.kl += p * np.log(p / episode.demonstrator_probability) if episode.demonstrator_probability > 0 else np.inf
        total = 0.0
        for t, (state, symbol) in enumerate(zip(episode.states, episode.symbols, strict=True)):
            if not world.agent_turn[state]:
                continue
            r = row[state]
            q, pi, tau = policy.act_share[t, r], policy.probabilities[t, r], world.demonstrator[state]
            charge = q * policy.act_charge[t, r] if q > 0 else 0.0
            sums.free_charge += p * charge
            if accounting == "outcome":
                nu = members[r, 0]
                charge = kl(np.append(q * pi, 1 - q), np.append(nu, 1 - nu.sum()))
            total += charge
            sums.charge += p * charge
            sums.asks += p * (1 - q)
            sums.decisions += p
            if q > 0 and kl(pi, tau) > policy.act_charge[t, r]:
                sums.excess += p * q * (kl(pi, tau) - policy.act_charge[t, r])
            inside = [m for m, yes in zip(members[r], references.plausible[r], strict=True) if yes]
            sums.covered += p * any((m <= tau + 1e-12).all() for m in inside)
            if world.turn_start[state]:
                sums.turns += p
                sums.empty += p * (symbol == world.end_of_turn)
        sums.largest = max(sums.largest, total)
    return sums


def assert_equal(metrics: Metrics, parts: list[tuple[float, Sums]]) -> None:
    def total(name: str) -> float:
        return sum(weight * getattr(sums, name) for weight, sums in parts)

    expected = {
        "reward": total("reward"),
        "charge_nats": total("charge"),
        "free_charge_nats": total("free_charge"),
        "kl_demonstrator_nats": total("kl"),
        "excess_nats": total("excess"),
        "coverage": total("covered") / total("decisions"),
        "ask_rate": total("asks") / total("decisions"),
        "asks_per_episode": total("asks"),
        "largest_charge_nats": max(sums.largest for _, sums in parts),
    }
    found = {name: getattr(metrics, name) for name in expected}
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert metrics.visits.sum() == pytest.approx(total("decisions"))
    if total("turns") > 0:
        assert metrics.empty_reply_share == pytest.approx(total("empty") / total("turns"), abs=1e-12)
    else:
        assert metrics.empty_reply_share is None


@given(st.integers(0, 2**32 - 1), st.sampled_from(ACCOUNTINGS), st.integers(1, 3))
@settings(max_examples=60)
def test_metrics_are_sums_over_all_episodes(seed: int, accounting: Accounting, n_policies: int) -> None:
    rng = np.random.default_rng(seed)
    world = random_world(rng, n_actions=int(rng.integers(2, 4)), horizon=int(rng.integers(1, 5)))
    n_members = 1 if accounting == "outcome" else int(rng.integers(1, 4))
    references = random_references(
        rng, 3, world.n_actions, n_members, ask=rng.random() < 0.7 or accounting == "outcome"
    )
    if rng.random() < 0.3:
        references = with_member(references, world.demonstrator[world.agent_turn])
    weights = rng.dirichlet(np.ones(n_policies))
    policies = [random_policy(rng, world, references, float(w), asks=accounting != "forbidden") for w in weights]
    metrics = evaluate(world, mixture(*policies), references, accounting)
    assert_equal(metrics, [(p.weight, brute_force(world, p, references, accounting)) for p in policies])


def with_member(references: PlausibleSet, probabilities: Floats) -> PlausibleSet:
    """The set with ``probabilities`` in the place of member 0, which always belongs."""
    log_centres = references.log_centres.copy()
    with np.errstate(divide="ignore"):
        log_centres[:, 0] = np.log(probabilities)
    return replace(references, log_centres=log_centres)


@given(st.integers(0, 2**32 - 1), st.sampled_from(ACCOUNTINGS))
@settings(max_examples=200)
def test_kl_to_the_demonstrator_is_within_charge_and_excess(seed: int, accounting: Accounting) -> None:
    """For any demonstrator, policy and references, right or wrong ones, and however asking is accounted."""
    rng = np.random.default_rng(seed)
    world = random_world(rng, horizon=6, zeros=float(rng.choice([0.0, 0.3])))
    references = random_references(rng, 3, 3, 1 if accounting == "outcome" else 3, ask=rng.random() < 0.5)
    policies = [
        random_policy(rng, world, references, weight, asks=accounting != "forbidden") for weight in (0.25, 0.75)
    ]
    metrics = evaluate(world, mixture(*policies), references, accounting)
    bound = metrics.free_charge_nats + metrics.excess_nats
    assert metrics.kl_demonstrator_nats <= bound * (1 + 1e-12) + 1e-12
    assert metrics.largest_charge_nats >= metrics.charge_nats * (1 - 1e-12) - 1e-12


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=100)
def test_references_that_cover_the_demonstrator_leave_no_excess(seed: int, pointwise: bool) -> None:
    rng = np.random.default_rng(seed)
    world = random_world(rng, horizon=6, zeros=0.0)
    references = with_member(random_references(rng, 3, 3, 3), world.demonstrator[world.agent_turn])
    if pointwise:
        references = PlausibleSet.points(references.minimum()[:, None])
    metrics = evaluate(world, mixture(random_policy(rng, world, references)), references)
    assert metrics.coverage == pytest.approx(1)
    assert metrics.excess_nats <= 1e-12
    assert metrics.kl_demonstrator_nats <= metrics.free_charge_nats + 1e-12


def test_asking_costs_no_kl_and_a_forbidden_action_infinitely_much() -> None:
    rng = np.random.default_rng(0)
    world = random_world(rng, zeros=0.0)
    references = random_references(rng, 3, 3, zeros=0.0)
    policy = random_policy(rng, world, references)
    always = replace(policy, act_share=np.zeros_like(policy.act_share))
    metrics = evaluate(world, mixture(always), references)
    assert metrics.kl_demonstrator_nats == pytest.approx(0, abs=1e-15)
    assert (metrics.charge_nats, metrics.excess_nats, metrics.ask_rate) == (0, 0, 1)
    never_done = replace(world, demonstrator=np.tile([1.0, 0.0, 0.0], (4, 1)))
    acting = replace(policy, act_share=np.ones_like(policy.act_share))
    metrics = evaluate(never_done, mixture(acting), references)
    assert metrics.kl_demonstrator_nats == metrics.excess_nats == np.inf
    assert np.isfinite(metrics.charge_nats)


def test_a_world_without_empty_turns_has_no_share_of_them() -> None:
    rng = np.random.default_rng(0)
    world, references = random_world(rng), random_references(rng, 3, 3)
    policy = random_policy(rng, world, references)
    assert evaluate(replace(world, end_of_turn=None), mixture(policy), references).empty_reply_share is None
    nobody = replace(world, turn_start=np.zeros(4, dtype=np.bool_))
    assert evaluate(nobody, mixture(policy), references).empty_reply_share is None


def test_policies_of_another_world_are_refused() -> None:
    rng = np.random.default_rng(0)
    world, references = random_world(rng), random_references(rng, 3, 3)
    policy = random_policy(rng, world, references)
    with pytest.raises(ValueError, match="solution must be for horizon 5, got 3"):
        evaluate(world.with_horizon(5), mixture(policy), references)
    other = replace(policy, states=policy.states[:2])
    with pytest.raises(ValueError, match="solution must be for the world's 3 agent's states, got 2"):
        evaluate(world, mixture(other), references)


@dataclass
class Rollouts:
    """Totals of each episode ``[n]``."""

    reward: Floats
    charge: Floats
    log_ratio: Floats
    asks: Floats
    decisions: Floats
    empty: Floats
    turns: Floats
    excess: Floats


def rollouts(world: FiniteWorld, solution: Solution, n: int, rng: np.random.Generator) -> Rollouts:
    """Follow the mixture in the vector environment; what was asked is decided here, what came of it there."""
    horizon, row = world.horizon, np.cumsum(world.agent_turn) - 1
    stacked = [np.stack([getattr(p, name) for p in solution.policies]) for name in ("probabilities", "act_share")]
    probabilities, act_share = stacked
    act_charge = np.stack([p.act_charge for p in solution.policies])
    drawn = rng.choice(len(solution.policies), size=n, p=[p.weight for p in solution.policies])
    tau = world.demonstrator[world.agent_turn]
    done = act_share[..., None] * probabilities + (1 - act_share[..., None]) * tau
    log_ratio = np.log(np.where(done > 0, done, 1.0) / tau)
    kl_acting = (probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0) / tau)).sum(axis=-1)
    envs = FiniteWorldVectorEnv(world, n, rng=rng)
    observation, _ = envs.reset()
    totals = Rollouts(*(np.zeros(n) for _ in range(8)))
    running = np.ones(n, dtype=np.bool_)
    while running.any():
        state, t = observation["state"], horizon - observation["symbols_left"]
        here = (drawn, np.minimum(t, horizon - 1), row[state])
        asks = rng.random(n) >= act_share[here]
        cumulative = np.cumsum(probabilities[here], axis=1)
        acts = (cumulative / np.maximum(cumulative[:, -1:], 1e-300) <= rng.random(n)[:, None]).sum(axis=1)
        actions = np.where(asks, world.n_actions, np.minimum(acts, world.n_actions - 1))
        observation, reward, terminated, _, info = envs.step(actions)
        totals.reward += np.where(running, reward, 0.0)
        counted = running & info["_symbol"]
        symbol = np.where(counted, info["symbol"], 0)
        totals.charge += np.where(counted, act_share[here] * act_charge[here], 0.0)
        totals.excess += np.where(counted, act_share[here] * np.maximum(kl_acting[here] - act_charge[here], 0.0), 0.0)
        totals.log_ratio += np.where(counted, log_ratio[(*here, symbol)], 0.0)
        totals.asks += counted & (info["actor"] == "demonstrator")
        totals.decisions += counted
        turns = counted & world.turn_start[state]
        totals.turns += turns
        totals.empty += turns & (symbol == world.end_of_turn)
        running &= ~terminated
    return totals


def assert_mean(values: Floats, expected: float) -> None:
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - expected) <= 4 * error + 1e-12, (values.mean(), expected, error)


def test_rollouts_agree_with_the_exact_metrics() -> None:
    world = dialogue_acts_world(deployment="novel", horizon=24)
    chats = sample_demonstrations(world, 3_000, np.random.default_rng(0))
    tree = ContextTree(9, 3, n_context_symbols=18, start_symbol=STUDENT_ENDED).fit(chats)
    references = CautiousImitator(tree, np.exp(-5), "minimax").references(world.contexts[world.agent_turn])
    solution = ExactSolver().solve(world, references, Regularizer(ExpectedBudget(2.0), ask_price=0.01))
    metrics = evaluate(world, solution, references)
    assert 0.05 < metrics.ask_rate < 0.95
    # The empty replies of the demonstrator are too rare to be seen, so a third policy that makes some is mixed in.
    careless = replace(
        solution.policies[0],
        probabilities=np.full_like(solution.policies[0].probabilities, 1 / 9),
        act_share=np.full_like(solution.policies[0].act_share, 0.7),
        act_charge=np.full_like(solution.policies[0].act_charge, 0.3),
        weight=0.2,
    )
    solution = replace(solution, policies=(*(replace(p, weight=0.8 * p.weight) for p in solution.policies), careless))
    metrics = evaluate(world, solution, references)
    seen = rollouts(world, solution, 20_000, np.random.default_rng(1))
    assert_mean(seen.reward, metrics.reward)
    assert_mean(seen.charge, metrics.charge_nats)
    assert_mean(seen.log_ratio, metrics.kl_demonstrator_nats)
    assert_mean(seen.excess, metrics.excess_nats)
    assert_mean(seen.asks, metrics.asks_per_episode)
    assert_mean(seen.decisions, float(metrics.visits.sum()))
    assert_mean(seen.asks - metrics.ask_rate * seen.decisions, 0.0)
    assert metrics.empty_reply_share is not None
    assert metrics.empty_reply_share > 0.01
    assert_mean(seen.empty - metrics.empty_reply_share * seen.turns, 0.0)
    assert seen.charge.max() <= metrics.largest_charge_nats + 1e-9
