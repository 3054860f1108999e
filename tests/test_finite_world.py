"""The finite world: what it accepts, and that dropping unreachable states changes nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cautious_imitation.environments.finite_world import FiniteWorld, FloatArray


def random_world(seed: int, n_states: int = 7, n_actions: int = 3, horizon: int = 5) -> FiniteWorld:
    """A world with sparse environment rows, so that some states cannot be reached."""
    rng = np.random.default_rng(seed)
    agent_turn = rng.random(n_states) < 0.5
    environment = rng.dirichlet(np.ones(n_actions), n_states) * (rng.random((n_states, n_actions)) < 0.5)
    environment[environment.sum(axis=1) == 0, 0] = 1
    environment /= environment.sum(axis=1, keepdims=True)
    return FiniteWorld(
        next_state=rng.integers(n_states, size=(n_states, n_actions)),
        reward=rng.normal(size=(n_states, n_actions)),
        agent_turn=agent_turn,
        environment_policy=environment,
        demonstrator=rng.dirichlet(np.ones(n_actions), n_states),
        start=int(rng.integers(n_states)),
        horizon=horizon,
        contexts=rng.integers(n_actions, size=(n_states, 2)),
        turn_start=agent_turn,
    )


def strings(world: FiniteWorld) -> dict[tuple[int, ...], tuple[float, float, int]]:
    """Every string of ``horizon`` symbols: the environment's share of its probability, its reward, its last state."""
    found = {}
    for symbols in product(range(world.n_actions), repeat=world.horizon):
        state, probability, reward = world.start, 1.0, 0.0
        for symbol in symbols:
            probability *= 1.0 if world.agent_turn[state] else world.environment_policy[state, symbol]
            reward += world.reward[state, symbol]
            state = int(world.next_state[state, symbol])
        if probability > 0:
            found[symbols] = (probability, reward, state)
    return found


@given(st.integers(0, 2**32 - 1))
def test_reachable_world_has_the_same_episodes(seed: int) -> None:
    world = random_world(seed)
    small, kept = world.reachable()
    full, reduced = strings(world), strings(small)
    assert full.keys() == reduced.keys()
    for symbols, (probability, reward, state) in reduced.items():
        assert (probability, reward, kept[state]) == full[symbols]
    for name in ("contexts", "demonstrator", "turn_start", "agent_turn"):
        np.testing.assert_array_equal(getattr(small, name), getattr(world, name)[kept])


@given(st.integers(0, 2**32 - 1))
def test_reachable_keeps_exactly_the_states_of_some_episode(seed: int) -> None:
    world = random_world(seed, n_states=4, horizon=4)
    visited = {world.start}
    for horizon in range(1, 5):  # 4 symbols are enough to get anywhere among 4 states
        visited |= {state for _, _, state in strings(world.with_horizon(horizon)).values()}
    assert set(world.reachable()[1].tolist()) == visited


def chain() -> FiniteWorld:
    """The environment may step from 0 to the agent's state 1 or, if it is let, to the agent's state 2."""
    return FiniteWorld(
        next_state=np.array([[1, 2], [0, 0], [0, 0]]),
        reward=np.zeros((3, 2)),
        agent_turn=np.array([False, True, True]),
        environment_policy=np.array([[1.0, 0.0], [0, 0], [0, 0]]),
        demonstrator=np.array([[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]]),
        start=0,
        horizon=4,
        contexts=np.zeros((3, 1), dtype=np.int64),
        turn_start=np.array([False, True, True]),
    )


def test_a_removed_symbol_cannot_be_given_probability() -> None:
    other: FloatArray = np.array([[0.5, 0.5], [0, 0], [0, 0]])
    world = chain().with_environment_policy(other)
    assert world.reachable()[0].n_states == 3
    small, kept = chain().reachable()
    assert kept.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"symbol 1 in state 0 was removed by reachable\(\).*first"):
        small.with_environment_policy(other[kept])


def test_reachable_twice_changes_nothing() -> None:
    once, _ = chain().reachable()
    twice, kept = once.reachable()
    assert kept.tolist() == [0, 1]
    np.testing.assert_array_equal(once.next_state, twice.next_state)
    np.testing.assert_array_equal(once.removed, twice.removed)


def test_rows_not_in_use_may_hold_anything() -> None:
    world = chain()
    nonsense = np.array([[1.0, 0.0], [np.nan, -3.0], [7.0, 0.0]])
    assert world.with_environment_policy(nonsense).reachable()[1].tolist() == [0, 1]


def test_with_horizon_respects_the_longest() -> None:
    world = replace(chain(), longest_horizon=6)
    assert world.with_horizon(6).horizon == 6
    with pytest.raises(ValueError, match=r"horizon must be at most 6, .* got 7; build the world again"):
        world.with_horizon(7)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("next_state", np.array([[1, 3], [0, 0], [0, 0]]), r"next_state .*\[0, 3\), got 3 at state 0, action 1"),
        ("next_state", np.array([[1.0, 2.0], [0, 0], [0, 0]]), "next_state must hold int64, got float64"),
        ("next_state", np.zeros((0, 2), dtype=np.int64), r"next_state must have shape \[S, V\]"),
        ("reward", np.zeros((3, 3)), r"reward must have shape \[3, 2\], got \[3, 3\]"),
        ("reward", np.full((3, 2), np.inf), "reward must be finite, got inf at state 0"),
        ("agent_turn", np.array([0, 1, 1]), "agent_turn must hold bool, got int64"),
        ("environment_policy", np.array([[0.5, 0.4], [0, 0], [0, 0]]), "environment_policy .* in state 0; divide"),
        ("environment_policy", np.array([[1.5, -0.5], [0, 0], [0, 0]]), "environment_policy must be a distribution"),
        ("demonstrator", np.array([[0, 0], [0.5, 0.5], [np.nan, 1.0]]), "demonstrator .* in state 2"),
        ("start", 3, r"start must be a state in \[0, 3\), got 3"),
        ("horizon", 0, "horizon must be at least 1 symbol, got 0"),
        ("contexts", np.zeros(3, dtype=np.int64), r"contexts must have shape \[3, any\]"),
        ("turn_start", np.array([True, True, True]), "turn_start must hold only where agent_turn does, got state 0"),
        ("end_of_turn", 2, r"end_of_turn must be an action in \[0, 2\) or None, got 2"),
        ("symbol_names", ("only one",), "symbol_names must have one name for each of 2 actions"),
        ("removed", np.array([[False, False], [True, False], [False, False]]), "symbol 0 in state 1 was removed"),
    ],
)
def test_bad_fields_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(chain(), **{field: value})  # type: ignore[arg-type]
