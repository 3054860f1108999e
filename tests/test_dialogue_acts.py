"""The world of real chats: rows, trees, rewards and samples, recomputed from the conversations themselves."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.dialogue_labels import ACTS, END_OF_TURN, FAREWELL, LAUGH, NEGATIVE, POSITIVE, STATEMENT
from cautious_imitation.environments.dialogue_acts import (
    N_ACTS,
    N_SYMBOLS,
    NOVEL_SHARE,
    STUDENT_ENDED,
    dialogue_acts_world,
    sample_demonstrations,
)
from cautious_imitation.environments.finite_world import FiniteWorld
from cautious_imitation.hypotheses.context_tree import ContextTree

Context = tuple[int, ...]


@cache
def counted(student: bool) -> Counter[tuple[Context, int]]:
    """How often the speaker did each act after each context of up to three symbols, as the tree classes pad them."""
    counts: Counter[tuple[Context, int]] = Counter()
    for sequence in Demonstrations.dialogue_acts().sequences:
        symbols = [STUDENT_ENDED] * 3 + sequence.tolist()
        for t in range(3, len(symbols)):
            act = symbols[t] - N_ACTS if student else symbols[t]
            if 0 <= act < N_ACTS:
                for depth in range(4):
                    counts[tuple(symbols[t - depth : t]), act] += 1
    return counts


def acts_after(context: Context, student: bool) -> NDArray[np.float64]:
    return np.array([counted(student)[context, act] for act in range(N_ACTS)], dtype=np.float64)


@cache
def map_trees() -> tuple[ContextTree, ContextTree]:
    """The most probable trees of the two speakers, the student's in symbols as the student sees them."""
    chats = Demonstrations.dialogue_acts().sequences
    swapped = [(s + N_ACTS) % N_SYMBOLS for s in chats]
    ours = ContextTree(N_ACTS, 3, n_context_symbols=N_SYMBOLS, start_symbol=STUDENT_ENDED, complexity="bic")
    theirs = ContextTree(N_ACTS, 3, n_context_symbols=N_SYMBOLS, start_symbol=END_OF_TURN, complexity="bic")
    return ours.fit(chats), theirs.fit(swapped)


def test_rows_are_normalised_in_every_deployment() -> None:
    for deployment in ("same", "novel"):
        world = dialogue_acts_world(deployment=deployment)  # type: ignore[arg-type]
        np.testing.assert_allclose(world.demonstrator[world.agent_turn].sum(axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(world.environment_policy[~world.agent_turn].sum(axis=1), 1, atol=1e-12)
        assert (world.demonstrator[world.agent_turn] > 0).all()
        assert world.contexts[world.start].tolist() == [STUDENT_ENDED] * 3
        assert (world.horizon, world.end_of_turn, world.symbol_names) == (64, END_OF_TURN, ACTS)


def test_states_are_contexts_and_turns_pass_at_their_end() -> None:
    world = dialogue_acts_world()
    agent = world.agent_turn[:, None]
    expected_last = np.arange(N_ACTS) + np.where(agent, 0, N_ACTS)
    after = world.contexts[world.next_state]
    used = np.ones_like(world.next_state, dtype=np.bool_) if world.removed is None else ~world.removed
    np.testing.assert_array_equal(after[used][:, -1], np.broadcast_to(expected_last, used.shape)[used])
    before = np.broadcast_to(world.contexts[:, None, 1:], (*used.shape, 2))
    np.testing.assert_array_equal(after[used][:, :-1], before[used])
    passes = np.broadcast_to(np.arange(N_ACTS) == END_OF_TURN, used.shape)
    np.testing.assert_array_equal((world.agent_turn[world.next_state] != agent)[used], passes[used])
    np.testing.assert_array_equal(world.turn_start, world.agent_turn & (world.contexts[:, -1] == STUDENT_ENDED))


def test_the_demonstrator_never_ends_a_turn_at_its_start() -> None:
    world = dialogue_acts_world()
    np.testing.assert_allclose(world.demonstrator[world.turn_start, END_OF_TURN], 1e-9, rtol=1e-12)
    elsewhere = world.agent_turn & ~world.turn_start
    assert world.demonstrator[elsewhere, END_OF_TURN].min() > 1e-4
    assert acts_after((STUDENT_ENDED,), student=False)[END_OF_TURN] == 0


def test_a_demonstrator_of_chats_with_empty_replies_makes_them_too() -> None:
    rng = np.random.default_rng(0)
    chats = []
    for _ in range(300):
        chat: list[int] = []
        for _ in range(8):
            chat += [*([] if rng.random() < 0.4 else [STATEMENT]), END_OF_TURN]
            chat += [N_ACTS + STATEMENT, STUDENT_ENDED]
        chats.append(chat)
    silent = Demonstrations.from_symbols(chats, N_ACTS)
    world = dialogue_acts_world(silent)
    start = world.demonstrator[world.start]
    assert start[END_OF_TURN] == pytest.approx(0.4, abs=0.1)
    spoken = Demonstrations.from_symbols([[s for s in chat if s != END_OF_TURN] for chat in chats], N_ACTS)
    assert dialogue_acts_world(spoken).demonstrator[world.turn_start.argmax()].min() >= 0


@pytest.mark.parametrize("student", [False, True])
def test_speakers_are_leaves_of_their_map_tree_backed_off_to_the_parents(student: bool) -> None:
    """Counts by hand, from the chats: (n + parent's probability) / (sum n + 1) down the path of the leaf."""
    world, tree = dialogue_acts_world(), map_trees()[student]
    mine = ~world.agent_turn if student else world.agent_turn
    table = world.environment_policy if student else world.demonstrator
    depths = []
    for state in np.random.default_rng(0).choice(np.flatnonzero(mine), 80, replace=False):
        context = world.contexts[state]
        depth = int(tree.map_depth((context + N_ACTS) % N_SYMBOLS if student else context))
        policy = np.full(N_ACTS, 1 / N_ACTS)
        for d in range(depth + 1):
            seen = acts_after(tuple(context[3 - d :].tolist()), student)
            policy = (seen + policy) / (seen.sum() + 1)
        if not student and world.turn_start[state]:
            policy[END_OF_TURN] = 0
            policy *= (1 - 1e-9) / policy.sum()
            policy[END_OF_TURN] = 1e-9
        np.testing.assert_allclose(table[state], policy, rtol=1e-9)
        depths.append(depth)
    assert len(set(depths)) >= 2


@pytest.mark.parametrize("student", [False, True])
def test_speakers_are_single_trees(student: bool) -> None:
    """Contexts that share a leaf share a row; the class of the imitators holds the demonstrator."""
    world, tree = dialogue_acts_world(), map_trees()[student]
    mine = np.flatnonzero(~world.agent_turn if student else world.agent_turn)
    table = world.environment_policy if student else world.demonstrator
    contexts = world.contexts[mine]
    depths = tree.map_depth((contexts + N_ACTS) % N_SYMBOLS if student else contexts)
    leaves: dict[Context, NDArray[np.float64]] = {}
    shared = 0
    for state, context, depth in zip(mine, contexts, depths, strict=True):
        row = leaves.setdefault(tuple(context[3 - depth :].tolist()), table[state])
        shared += row is not table[state]
        np.testing.assert_array_equal(row, table[state])
    assert shared > 0
    assert len(leaves) < len(mine)


def test_the_reward_is_the_mood_of_the_students_finished_turn() -> None:
    world = dialogue_acts_world()
    mood = {N_ACTS + LAUGH: 1.0, N_ACTS + POSITIVE: 1.0, N_ACTS + NEGATIVE: 0.0}
    for state in range(world.n_states):
        expected = np.zeros(N_ACTS)
        if not world.agent_turn[state]:
            expected[END_OF_TURN] = mood.get(int(world.contexts[state, -1]), 0.5)
        assert world.reward[state].tolist() == expected.tolist()


def test_the_novel_student_keeps_saying_goodbye() -> None:
    same, novel = dialogue_acts_world(), dialogue_acts_world(deployment="novel")
    states = {tuple(c): s for s, c in enumerate(same.contexts.tolist())}
    for state in np.flatnonzero(~novel.agent_turn):
        usual = same.environment_policy[states[tuple(novel.contexts[state].tolist())]]
        expected = (1 - NOVEL_SHARE) * usual + NOVEL_SHARE * (np.arange(N_ACTS) == FAREWELL)
        np.testing.assert_allclose(novel.environment_policy[state], expected, rtol=1e-12)
    for state in np.flatnonzero(novel.agent_turn):
        there = states[tuple(novel.contexts[state].tolist())]
        np.testing.assert_array_equal(novel.demonstrator[state], same.demonstrator[there])


@pytest.mark.parametrize("depth", [1, 2])
def test_shallower_worlds(depth: int) -> None:
    world = dialogue_acts_world(depth=depth, horizon=10)
    assert world.contexts.shape[1] == depth
    assert world.n_states <= N_SYMBOLS**depth
    assert world.horizon == 10
    np.testing.assert_allclose(world.demonstrator[world.turn_start, END_OF_TURN], 1e-9, rtol=1e-12)


def transitions(world: FiniteWorld, demonstrations: Demonstrations) -> NDArray[np.int64]:
    """How often each symbol came in each state, ``[S, V]``; fails where the other speaker's symbol comes."""
    counts = np.zeros((world.n_states, N_ACTS), dtype=np.int64)
    for sequence in demonstrations.sequences:
        state = world.start
        for symbol in sequence.tolist():
            assert (symbol < N_ACTS) == bool(world.agent_turn[state])
            counts[state, symbol % N_ACTS] += 1
            state = int(world.next_state[state, symbol % N_ACTS])
    return counts


@pytest.mark.parametrize("n", [1, 7, 1_000, 4_321])
def test_samples_hold_just_as_many_actions_as_asked_for(n: int) -> None:
    world = dialogue_acts_world()
    chats = sample_demonstrations(world, n, np.random.default_rng(n))
    assert chats.n_learned() == n
    assert chats.sequences[-1][-1] < N_ACTS
    assert {len(s) for s in chats.sequences[:-1]} <= {256}
    assert transitions(world, chats)[world.agent_turn].sum() == n


@pytest.mark.parametrize("deployment", ["same", "novel"])
def test_samples_have_the_frequencies_of_both_speakers(deployment: str) -> None:
    """Pearson's statistic over all contexts seen often enough; cut-offs are stopping times, so they do not bias it."""
    world = dialogue_acts_world(deployment=deployment)  # type: ignore[arg-type]
    counts = transitions(world, sample_demonstrations(world, 30_000, np.random.default_rng(0)))
    for mine, table in ((world.agent_turn, world.demonstrator), (~world.agent_turn, world.environment_policy)):
        visits = counts[mine].sum(axis=1, keepdims=True)
        expected = visits * table[mine]
        often = expected >= 5
        z = (counts[mine] - expected)[often] / np.sqrt((expected * (1 - table[mine]))[often])
        assert often.sum() > 300
        assert abs((z**2).mean() - 1) < 4 * np.sqrt(2.5 / often.sum())
        assert np.abs(z).max() < 5.5


def test_the_same_seed_gives_the_same_chats() -> None:
    world = dialogue_acts_world()
    first, second, other = (sample_demonstrations(world, 2_000, np.random.default_rng(s)) for s in (3, 3, 4))
    assert [s.tobytes() for s in first.sequences] == [s.tobytes() for s in second.sequences]
    assert [s.tobytes() for s in first.sequences] != [s.tobytes() for s in other.sequences]


def test_the_length_of_a_chat_is_kept() -> None:
    world = dialogue_acts_world()
    chats = sample_demonstrations(world, 200, np.random.default_rng(0), chat_length=40)
    assert {len(s) for s in chats.sequences[:-1]} == {40}


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="deployment must be one of same, novel, got 'other'"):
        dialogue_acts_world(deployment="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth must be at least 1, got 0; the last symbol says whose turn"):
        dialogue_acts_world(depth=0)
    with pytest.raises(ValueError, match="horizon must be at least 1 symbol, got 0"):
        dialogue_acts_world(horizon=0)
    world = dialogue_acts_world()
    with pytest.raises(ValueError, match="n_symbols must be at least 1, got 0"):
        sample_demonstrations(world, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="chat_length must be at least"):
        sample_demonstrations(world, 10, np.random.default_rng(0), chat_length=0)
