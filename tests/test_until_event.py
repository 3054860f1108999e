"""The world of Theorem 1 against its definition: posteriors by brute force, the cost of silence, the minimum."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from cautious_imitation.environments.finite_world import BoolArray, FloatArray, IntArray
from cautious_imitation.environments.until_event import EVENT, Evidence, UntilEventWorld, until_event_world

ONE = ((0.1, 0.3, 0.6),)
THREE = ((0.1, 0.3, 0.6), (0.5, 0.25, 0.25), (0.2, 0.7, 0.1))


def episode(record: UntilEventWorld, rng: np.random.Generator, stay: float) -> tuple[IntArray, IntArray]:
    """States and symbols of one episode in which the agent repeats its last action with probability ``stay``."""
    world = record.world
    states, symbols, last = [world.start], [], 0
    for _ in range(world.horizon):
        if world.agent_turn[states[-1]]:
            last = last if rng.random() < stay else int(rng.integers(world.n_actions))
            symbols.append(last)
        else:
            symbols.append(int(rng.choice(world.n_actions, p=world.environment_policy[states[-1]])))
        states.append(int(world.next_state[states[-1], symbols[-1]]))
    return np.array(states), np.array(symbols)


def by_definition(
    demonstrators: FloatArray, log_prior: FloatArray, symbols: IntArray, evidence: Evidence
) -> FloatArray:
    """Bayesian prediction of the agent's next action after ``symbols``, hypothesis by hypothesis."""
    n_actions = demonstrators.shape[1]
    joint, predictions = [], []
    for k, weight in enumerate(log_prior):
        if k < len(demonstrators):
            demonstrator, always = demonstrators[k], None
        else:
            d, always = divmod(k - len(demonstrators), n_actions)
            demonstrator = demonstrators[d]
        log_weight, event = float(weight), False
        for position, symbol in enumerate(symbols):
            row = np.eye(n_actions)[always] if event and always is not None else demonstrator
            if position % 2 == 0:
                event = event or symbol == EVENT
            elif evidence == "all":
                log_weight += np.log(row[symbol]) if row[symbol] > 0 else -np.inf
        predictions.append(np.eye(n_actions)[always] if event and always is not None else demonstrator)
        joint.append(log_weight)
    weights = np.exp(np.array(joint) - logsumexp(joint))
    return np.asarray(weights @ np.array(predictions))


@pytest.mark.parametrize("evidence", ["all", "demonstrator"])
@pytest.mark.parametrize(("demonstrators", "horizon"), [(ONE, 20), (THREE, 11)])
@pytest.mark.parametrize("stay", [0.0, 0.8, 1.0])
def test_predictions_are_those_of_the_definition(
    demonstrators: tuple[tuple[float, ...], ...], horizon: int, evidence: Evidence, stay: float
) -> None:
    rng = np.random.default_rng(7)
    record = until_event_world(
        horizon=horizon,
        demonstrators=demonstrators,
        event_probability=0.4,
        description_length=6,
        n_demonstrations=5,
        rng=rng,
    )
    table = np.exp(record.bayesian_log_probs(evidence))
    for _ in range(20):
        states, symbols = episode(record, rng, stay)
        for position in np.flatnonzero(record.world.agent_turn[states[:-1]]):
            expected = by_definition(np.array(demonstrators), record.log_posterior, symbols[:position], evidence)
            np.testing.assert_allclose(table[states[position]], expected, rtol=1e-12, atol=1e-15)


def cost_of_playing_for_ever(record: UntilEventWorld, evidence: Evidence) -> FloatArray:
    """Nats that each repetition of the rewarded action costs, the event having come at once: ``[horizon // 2]``."""
    log_probs, world = record.bayesian_log_probs(evidence), record.world
    state, costs = int(world.next_state[world.start, EVENT]), []
    for _ in range(world.horizon // 2):
        costs.append(-log_probs[state, record.rewarded_action])
        state = int(world.next_state[world.next_state[state, record.rewarded_action], 0])
    return np.array(costs)


@pytest.mark.parametrize("description_length", [3.0, 10.0, 40.0])
@pytest.mark.parametrize("rewarded_action", [0, 2])
def test_learning_from_itself_bounds_the_cost_whatever_the_horizon(
    description_length: float, rewarded_action: int
) -> None:
    totals = []
    for horizon in (16, 32, 64, 128, 256, 512):
        record = until_event_world(
            horizon=horizon,
            demonstrators=ONE,
            description_length=description_length,
            rewarded_action=rewarded_action,
        )
        costs = cost_of_playing_for_ever(record, "all")
        assert record.kl_bound_nats == pytest.approx(description_length * np.log(2))
        assert costs.sum() <= record.kl_bound_nats + 1e-12
        assert (np.diff(costs) <= 1e-14).all(), "each repetition is cheaper than the one before"
        totals.append(costs.sum())
    assert totals[-1] == pytest.approx(record.kl_bound_nats, rel=1e-9), "the bound is reached in the end"


def test_learning_from_the_demonstrator_costs_the_same_each_time() -> None:
    for horizon in (16, 64, 512):
        record = until_event_world(horizon=horizon, demonstrators=ONE, description_length=10)
        costs = cost_of_playing_for_ever(record, "demonstrator")
        until = 2.0**-10
        expected = -np.log((1 - 3 * until) * 0.1 + until)
        np.testing.assert_allclose(costs, expected, rtol=1e-12)
    assert costs.sum() > 50 * record.kl_bound_nats


def test_a_broken_run_leaves_only_the_demonstrator() -> None:
    record = until_event_world(demonstrators=ONE)
    world = record.world
    state = int(world.next_state[world.start, EVENT])
    for action in (0, 1):
        state = int(world.next_state[world.next_state[state, action], 0])
    np.testing.assert_allclose(np.exp(record.bayesian_log_probs("all")[state]), ONE[0], rtol=1e-12)


def test_no_data_move_the_weight_of_the_until_hypotheses() -> None:
    bounds = []
    for n in (0, 10, 10_000):
        record = until_event_world(
            horizon=4, demonstrators=THREE, description_length=8, n_demonstrations=n, rng=np.random.default_rng(0)
        )
        assert logsumexp(record.log_posterior) == pytest.approx(0)
        bounds.append(record.kl_bound_nats)
    np.testing.assert_allclose(bounds, -np.log(3 * 2.0**-8), rtol=1e-12)
    assert record.log_posterior[0] > -0.1, "10,000 demonstrations tell the demonstrators apart all the same"


def insisting(record: UntilEventWorld) -> BoolArray:
    """States after the event in which no member is refuted by what the agent did since."""
    return record.after_event & np.isfinite(record.log_likelihood).all(axis=1)


@pytest.mark.parametrize("evidence", ["all", "demonstrator"])
def test_the_minimum_is_zero_where_members_insist_on_different_actions(evidence: Evidence) -> None:
    record = until_event_world(horizon=16, demonstrators=ONE, description_length=10)
    least = record.plausible_set(2.0**-11, evidence).minimum()
    where = insisting(record) if evidence == "all" else record.after_event
    assert where.any()
    assert (least[where] == -np.inf).all(), "the cautious imitator asks for certain"
    np.testing.assert_allclose(least[~record.after_event], np.log(ONE[0] * np.ones((2, 1))))


def test_one_repetition_under_all_refutes_those_who_insist_otherwise() -> None:
    record = until_event_world(horizon=16, demonstrators=ONE, description_length=10)
    least = record.plausible_set(2.0**-11, "all").minimum()
    in_a_run_of_0 = record.after_event & ~insisting(record) & np.isfinite(record.log_likelihood[:, 1])
    assert in_a_run_of_0.sum() == 16
    assert (least[in_a_run_of_0, 1:] == -np.inf).all()
    assert (least[in_a_run_of_0, 0] >= np.log(0.1) - 1e-12).all(), "now only the rewarded action keeps its mass"


def test_a_plausible_set_too_small_for_the_description_length_never_asks() -> None:
    record = until_event_world(horizon=16, demonstrators=ONE, description_length=10)
    chosen = record.plausible_set(2.0**-9)
    assert chosen.plausible[:, 0].all()
    assert not chosen.plausible[:, 1:].any()
    np.testing.assert_allclose(chosen.minimum(), np.log(ONE[0] * np.ones((record.world.n_states, 1))))


def test_states_grow_linearly_and_every_one_is_used() -> None:
    sizes = {h: until_event_world(horizon=h, demonstrators=ONE).world for h in (128, 256, 512)}
    assert sizes[512].n_states - sizes[256].n_states == 2 * (sizes[256].n_states - sizes[128].n_states)
    assert sizes[512].reachable()[0].n_states == sizes[512].n_states
    with pytest.raises(ValueError, match="build the world again"):
        sizes[128].with_horizon(129)


def test_world_pays_the_rewarded_action_only() -> None:
    record = until_event_world(horizon=6, demonstrators=ONE, rewarded_action=2, event_probability=0.25)
    world = record.world
    np.testing.assert_array_equal(world.reward[world.agent_turn], [[0, 0, 1]] * world.agent_turn.sum())
    assert not world.reward[~world.agent_turn].any()
    assert world.environment_policy[world.start].tolist() == [0.75, 0.25, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"demonstrators": ((0.5, 0.6),)}, "demonstrators must be distributions"),
        ({"demonstrators": ((0.0, 1.0),)}, "positive probability"),
        ({"demonstrators": ((1.0,),)}, "at least 2 actions, got 1"),
        ({"event_probability": 0.0}, r"event_probability must be in \(0, 1\], got 0.0"),
        ({"description_length": 2.0}, "description_length must be more than 2 bits for 4 hypotheses .* got 2.0"),
        ({"rewarded_action": 4}, r"rewarded_action must be in \[0, 4\), got 4"),
        ({"n_demonstrations": -1}, "n_demonstrations must be at least 0, got -1"),
        ({"n_demonstrations": 3}, "rng must be given to draw 3 demonstrations, got None"),
        ({"horizon": 0}, "horizon must be at least 1 symbol, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        until_event_world(**arguments)  # type: ignore[arg-type]


def test_bad_evidence_and_alpha_are_named() -> None:
    record = until_event_world(horizon=4)
    with pytest.raises(ValueError, match="evidence must be 'demonstrator' or 'all', got 'none'"):
        record.bayesian_log_probs("none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got 2"):
        record.plausible_set(2)
