"""Choosing alpha from demonstrations alone: the pilot by hand, the search by exhaustion, the result against tau."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from cautious_imitation.calibration import Calibration, _Search, calibrate_alpha, pilot_world
from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.environments.dialogue_acts import STUDENT_ENDED, dialogue_acts_world, sample_demonstrations
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.environments.until_event import until_event_world
from cautious_imitation.finetuning.harness import finetune
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.regularizers import ExpectedBudget, Regularizer

V = 9
LEVELS = (0.5, 1.5, 3.0, 5.0, 8.0)
TARGET = 0.15
SETTINGS: dict[str, Any] = {
    "excess_nats": TARGET,
    "budget_nats": 1.0,
    "ask_price": 0.05,
    "n_replicates": 19,
    "log_inverse_alphas": LEVELS,
    "progress": False,
}


def tree() -> ContextTree:
    return ContextTree(V, 3, n_context_symbols=2 * V, start_symbol=STUDENT_ENDED)


@cache
def small_world() -> FiniteWorld:
    return dialogue_acts_world(horizon=16)


@cache
def records(n: int = 1_000) -> Demonstrations:
    return sample_demonstrations(small_world(), n, np.random.default_rng(1))


@cache
def calibrated() -> Calibration:
    return calibrate_alpha(tree(), records(), small_world(), **SETTINGS)


def by_hand(chats: Demonstrations, context: tuple[int, ...], start: list[int], first: int, row: Any) -> Any:
    """p_d = (n_d + p_{d-1}) / (N_d + 1), counted by walking through the chats; ``first`` is the speaker's symbol 0."""
    for depth in range(len(context) + 1):
        counts = np.zeros(V)
        for sequence in chats.sequences:
            said = start + sequence.tolist()
            for t in range(len(start), len(said)):
                if first <= said[t] < first + V and said[t - depth : t] == list(context[len(context) - depth :]):
                    counts[said[t] - first] += 1
        row = (counts + row) / (counts.sum() + 1)
    return row


def test_the_pilot_is_the_recursion_of_counts() -> None:
    world, chats = small_world(), records(300)
    pilot, partner = pilot_world(chats, world)
    start = world.contexts[world.start].tolist()
    rng = np.random.default_rng(0)
    seen = {tuple(chat[t : t + 3].tolist()) for chat in chats.sequences for t in range(len(chat) - 2)}
    states = [s for s in range(world.n_states) if tuple(world.contexts[s].tolist()) in seen]
    states = [world.start, *rng.choice(states, 12).tolist(), *rng.choice(world.n_states, 12).tolist()]
    assert len({bool(world.agent_turn[s]) for s in states}) == 2
    for s in states:
        context = tuple(world.contexts[s].tolist())
        if world.agent_turn[s]:
            expected = by_hand(chats, context, start, 0, np.full(V, 1 / V))
            np.testing.assert_allclose(pilot.demonstrator[s], expected, rtol=1e-12)
        else:
            expected = by_hand(chats, context, start, V, world.environment_policy[s])
            np.testing.assert_allclose(partner[s], expected, rtol=1e-12)
    np.testing.assert_array_equal(pilot.environment_policy, world.environment_policy)


def test_what_was_never_done_stays_nearly_forbidden() -> None:
    world = small_world()
    pilot, _ = pilot_world(records(), world)
    empty = pilot.demonstrator[world.start, world.end_of_turn or 0]
    assert 0 < empty < 1e-3
    assert empty < 0.1 / sum(chat[0] < V for chat in records().sequences)


def test_only_the_demonstrators_own_actions_count() -> None:
    world, chats = small_world(), records(400)
    noise = Demonstrations.from_symbols([[0, 1, 2] * 40], V)
    by_imitator = Demonstrations((*chats.sequences, *noise.sequences), (*chats.actors, np.ones(120, dtype=np.uint8)))
    pilot, partner = pilot_world(by_imitator, world)
    plain, plain_partner = pilot_world(chats, world)
    np.testing.assert_array_equal(pilot.demonstrator, plain.demonstrator)
    np.testing.assert_array_equal(partner, plain_partner)


def test_the_partner_puts_nothing_that_was_removed() -> None:
    chats = records()
    rare = small_world()
    environment = rare.environment_policy.copy()
    environment[:, 3] = 0.0
    environment /= environment.sum(axis=1, keepdims=True)
    world = replace(rare, environment_policy=environment).reachable()[0]
    assert world.removed is not None
    assert any((chat == V + 3).any() for chat in chats.sequences)
    pilot, partner = pilot_world(chats, world)
    assert (partner[world.removed] == 0).all()
    np.testing.assert_allclose(partner[~world.agent_turn].sum(axis=1), 1)
    sample_demonstrations(pilot.with_environment_policy(partner), 100, np.random.default_rng(0))


def test_the_search_finds_what_trying_all_levels_finds() -> None:
    found = calibrated()
    for target in (TARGET, 0.05, 0.3):
        result = (
            found
            if target == TARGET
            else calibrate_alpha(tree(), records(), small_world(), **{**SETTINGS, "excess_nats": target})
        )
        limits = every_level().max(axis=1)
        expected = int(np.argmax(limits <= target))
        assert limits[expected] <= target
        assert (result.reached, result.alpha) == (True, pytest.approx(np.exp(-LEVELS[expected])))
        assert result.excess_limit_nats == limits[expected]
        computed = ~np.isnan(result.replicate_excess_nats)
        tried = np.isin(LEVELS, result.log_inverse_alphas)
        np.testing.assert_array_equal(result.replicate_excess_nats[computed], every_level()[tried][computed])
        np.testing.assert_array_equal(~np.isnan(result.replicate_ask_rates), computed)
        rejected = result.log_inverse_alphas < LEVELS[expected]
        assert not computed[rejected].all(axis=1).any(), "went on after a level was lost"


@cache
def every_level() -> Any:
    """Excess ``[levels, replicates]`` at each level, none left out: alone it must be accepted under a huge target."""
    settings = {**SETTINGS, "excess_nats": 1e6}
    rows = [
        calibrate_alpha(tree(), records(), small_world(), **{**settings, "log_inverse_alphas": (level,)})
        for level in LEVELS
    ]
    return np.concatenate([row.replicate_excess_nats for row in rows])


def searched(excess: Any, target: float) -> tuple[_Search, list[tuple[int, int]]]:
    """A search over levels 0, 1, ... with known excess ``[levels, replicates]``, and what it asks for."""
    calls: list[tuple[int, int]] = []

    def measure(level: float, replicate: int) -> tuple[float, float]:
        calls.append((int(level), replicate))
        return float(excess[int(level), replicate]), 0.0

    return _Search(tuple(range(len(excess))), excess.shape[1], target, measure), calls


@pytest.mark.parametrize("n_replicates", [1, 19, 39, 99])
def test_a_level_is_judged_by_its_largest_excess(n_replicates: int) -> None:
    rng = np.random.default_rng(n_replicates)
    for _ in range(50):
        excess = -np.sort(-rng.random((12, n_replicates)), axis=0)
        target = float(rng.random())
        search, calls = searched(excess, target)
        limits = excess.max(axis=1)
        accepted = np.flatnonzero(limits <= target)
        chosen = search.smallest_accepted(lambda _: None)
        assert chosen == (accepted[0] if len(accepted) else None)
        assert len(calls) == len(set(calls))
        records = len({level for level, _ in calls})
        assert len(calls) <= 2 * n_replicates + 4 * records, "measured what cannot matter"
        result = search.calibration(chosen, 1.0)
        assert result.excess_limit_nats == limits[11 if chosen is None else chosen]
        assert result.n_replicates == n_replicates


def test_an_excess_that_does_not_fall_with_alpha_is_noticed() -> None:
    rng = np.random.default_rng(0)
    raised = 0
    for _ in range(200):
        excess = rng.random((8, 5)) * np.linspace(1, 0.3, 8)[:, None]
        search, _ = searched(excess, 0.5)
        chosen = search.smallest_accepted(lambda _: None)
        if chosen is None:
            continue
        assert excess[chosen].max() <= 0.5
        found_first, _ = searched(excess, 0.5)
        level = 0
        for replicate in range(5):
            level = found_first.raised(level, replicate)
        raised += chosen > level
    assert raised > 10, "never put to the test"


def test_the_chosen_level_holds_for_the_true_demonstrator() -> None:
    anchor = CautiousImitator(tree().fit(records()), calibrated().alpha, "minimax")
    metrics = finetune(small_world(), anchor, Regularizer(ExpectedBudget(1.0), ask_price=0.05)).metrics
    assert metrics.excess_nats <= TARGET
    bolder = CautiousImitator(tree().fit(records()), 1.0, "minimax")
    assert (
        finetune(small_world(), bolder, Regularizer(ExpectedBudget(1.0), ask_price=0.05)).metrics.excess_nats > TARGET
    )


def test_the_true_demonstrator_is_not_looked_at() -> None:
    world = small_world()
    wrong = np.random.default_rng(3).dirichlet(np.ones(V), world.n_states)
    again = calibrate_alpha(tree(), records(), replace(world, demonstrator=wrong), **SETTINGS)
    np.testing.assert_array_equal(again.replicate_excess_nats, calibrated().replicate_excess_nats)
    np.testing.assert_array_equal(again.replicate_ask_rates, calibrated().replicate_ask_rates)


def test_the_same_seed_gives_the_same_result_and_another_one_another() -> None:
    other, same = (calibrate_alpha(tree(), records(), small_world(), **SETTINGS, seed=seed) for seed in (1, 0))
    np.testing.assert_array_equal(same.replicate_excess_nats, calibrated().replicate_excess_nats)
    assert other.excess_limit_nats != same.excess_limit_nats


def test_the_template_stays_as_it_is() -> None:
    template = tree()
    calibrate_alpha(template, records(), small_world(), **{**SETTINGS, "log_inverse_alphas": (2.0,)})
    assert template.n_nodes == 0
    np.testing.assert_array_equal(template.plausible_min([0, 1], 0.1), tree().plausible_min([0, 1], 0.1))


def test_a_target_out_of_reach_is_said() -> None:
    found = calibrate_alpha(tree(), records(), small_world(), **{**SETTINGS, "log_inverse_alphas": (0.0, 0.1, 0.25)})
    assert not found.reached
    assert found.alpha == pytest.approx(np.exp(-0.25))
    assert found.excess_limit_nats > TARGET
    assert found.log_inverse_alphas[-1] == 0.25
    assert not np.isnan(found.replicate_excess_nats[-1]).any(), "the best there is was not measured to the end"
    assert f"no alpha keeps the excess within {TARGET}" in str(found)
    assert f"is {found.excess_limit_nats:.3g} nats" in found.message


def test_a_class_that_misses_the_demonstrator_is_not_trusted_with_any_alpha() -> None:
    shallow = ContextTree(V, 0, n_context_symbols=2 * V)
    found = calibrate_alpha(shallow, records(), small_world(), **{**SETTINGS, "log_inverse_alphas": (5.0, 8.0)})
    assert not found.reached


def test_the_message_says_what_was_chosen() -> None:
    found = calibrated()
    assert str(found) == found.message
    assert f"log(1/alpha) = {-np.log(found.alpha):g}" in found.message
    assert f"the limit {found.excess_limit_nats:.3g} nats over 19 replicates" in found.message
    assert (found.excess_nats, found.budget_nats, found.n_replicates) == (TARGET, 1.0, 19)


def test_progress_is_shown_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    few = {**SETTINGS, "log_inverse_alphas": (8.0,)}
    calibrate_alpha(tree(), records(), small_world(), **few)
    assert capsys.readouterr() == ("", "")
    calibrate_alpha(tree(), records(), small_world(), **{**few, "progress": True})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "calibrating alpha" in shown.err
    assert "38/38" in shown.err


def test_plain_sequences_will_do() -> None:
    few = {**SETTINGS, "log_inverse_alphas": (8.0,)}
    plain = calibrate_alpha(tree(), [s.tolist() for s in records().sequences], small_world(), **few)
    recorded = calibrate_alpha(tree(), records(), small_world(), **few)
    np.testing.assert_array_equal(plain.replicate_excess_nats, recorded.replicate_excess_nats)


def test_too_few_demonstrations_say_how_many_are_needed() -> None:
    with pytest.raises(ValueError, match=r"at least 180 of the demonstrator's actions .* 20 for each of 9, got 179"):
        calibrate_alpha(tree(), records(179), small_world(), **SETTINGS)
    pilot_world(records(180), small_world())
    alone = Demonstrations.from_symbols([[0, 1] * 200], V)
    with pytest.raises(ValueError, match=r"both speakers, got no symbol 9 to 17 of the partner"):
        calibrate_alpha(tree(), alone, small_world(), **SETTINGS)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("excess_nats", -1.0, r"excess_nats must be at least 0 and finite, got -1.0"),
        ("excess_nats", float("nan"), r"excess_nats must be at least 0 and finite, got nan"),
        ("budget_nats", float("inf"), r"budget_nats must be at least 0 and finite, got inf"),
        ("caution", "extreme", r"caution must be one of pointwise, minimax, got 'extreme'"),
        ("ask_price", -0.5, r"ask_price must be at least 0 units of reward, got -0.5"),
        ("n_replicates", 18, r"n_replicates must be at least 19, got 18"),
        ("log_inverse_alphas", (), r"log_inverse_alphas must be increasing numbers from 0 on, got \(\)"),
        ("log_inverse_alphas", (2.0, 1.0), r"log_inverse_alphas must be increasing"),
        ("log_inverse_alphas", (-1.0, 1.0), r"log_inverse_alphas must be increasing"),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate_alpha(tree(), records(), small_world(), **{**SETTINGS, setting: value})


def test_wrong_classes_and_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hypotheses must not be fitted, got \d+ nodes .* pass a new object"):
        calibrate_alpha(tree().fit(records()), records(), small_world(), **SETTINGS)
    with pytest.raises(TypeError, match=r"must be Hypotheses that are not fitted, got .*CautiousImitator"):
        calibrate_alpha(CautiousImitator(tree(), 0.1), records(), small_world(), **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"predict the world's 9 actions, got n_symbols=2"):
        calibrate_alpha(FiniteHypotheses([np.log([0.5, 0.5])]), records(), small_world(), **SETTINGS)
    other = until_event_world(horizon=4).world
    with pytest.raises(ValueError, match="world must have the most recent symbols as contexts"):
        pilot_world(records(), other)
    strange = Demonstrations((np.full(300, 20),), (np.zeros(300, dtype=np.uint8),))
    with pytest.raises(ValueError, match=r"demonstrations must hold symbols in 0\.\.17, got 20"):
        pilot_world(strange, small_world())
