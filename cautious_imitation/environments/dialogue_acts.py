"""Real conversations as a world that is known exactly: two speakers, nine dialogue acts, contexts of a few symbols.

The demonstrator (the agent's side) and the student (the other side) are the most probable single context trees of the
conversations, so the true policy is known and every divergence from it is exact. The reward is the mood of the
student's finished turn. Rewards, acts and symbols: ``dialogue_labels``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np

from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.dialogue_labels import ACTS, END_OF_TURN, FAREWELL, LAUGH, NEGATIVE, POSITIVE
from cautious_imitation.environments.finite_world import FiniteWorld, FloatArray, IntArray
from cautious_imitation.hypotheses.context_tree import ContextTree

Deployment: TypeAlias = Literal["same", "novel"]

N_ACTS = len(ACTS)
N_SYMBOLS = 2 * N_ACTS
STUDENT_ENDED = N_ACTS + END_OF_TURN
"""The symbol that begins the agent's turn; also pads contexts at the start of a conversation."""

NOVEL_SHARE = 0.3
"""Share of the novel student's acts that are farewells out of the blue."""

_SILENCE = 1e-9
_BACKOFF = 1.0
_MOOD = {LAUGH: 1.0, POSITIVE: 1.0, NEGATIVE: 0.0}
_NEUTRAL = 0.5


def dialogue_acts_world(
    demonstrations: Demonstrations | None = None,
    deployment: Deployment = "same",
    horizon: int = 64,
    depth: int = 3,
) -> FiniteWorld:
    """The dialogue world of real chats, restricted to the contexts that can occur.

    Args:
        demonstrations: conversations in dialogue symbols; default the shipped real chats.
        deployment: ``"same"``, the student of the chats, or ``"novel"``, one who keeps saying goodbye.
        horizon: symbols in an episode, both speakers together.
        depth: how many symbols demonstrator and student look at.

    Raises:
        ValueError: if ``deployment`` is unknown, or ``depth`` or ``horizon`` is below 1.

    >>> world = dialogue_acts_world()
    >>> world.n_states, world.n_actions
    (1468, 9)
    """
    if deployment not in get_args(Deployment):
        raise ValueError(f"deployment must be one of {', '.join(get_args(Deployment))}, got {deployment!r}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}; the last symbol says whose turn it is")
    world = _world(demonstrations if demonstrations is not None else Demonstrations.dialogue_acts(), depth)
    if deployment == "novel":
        novel = (1 - NOVEL_SHARE) * world.environment_policy
        novel[:, FAREWELL] += NOVEL_SHARE
        world = world.with_environment_policy(novel)
    return world.reachable()[0].with_horizon(horizon)


def sample_demonstrations(
    world: FiniteWorld, n_symbols: int, rng: np.random.Generator, chat_length: int = 256
) -> Demonstrations:
    """Conversations between the demonstrator and the student, with ``n_symbols`` actions of the demonstrator in all.

    Args:
        world: a dialogue world; its demonstrator and environment speak.
        n_symbols: exactly how many demonstrator's actions to record; the last conversation is cut short there.
        rng: source of randomness; the same generator state gives the same conversations.
        chat_length: symbols in a conversation.

    Raises:
        ValueError: if ``n_symbols`` or ``chat_length`` is below 1.
    """
    if n_symbols < 1:
        raise ValueError(f"n_symbols must be at least 1, got {n_symbols}; it counts the demonstrator's actions")
    if chat_length < 1:
        raise ValueError(f"chat_length must be at least 1 symbol, got {chat_length}")
    cumulative = np.cumsum(np.where(world.agent_turn[:, None], world.demonstrator, world.environment_policy), axis=1)
    cumulative /= cumulative[:, -1:]
    chats: list[IntArray] = []
    missing = n_symbols
    while missing > 0:
        batch = max(1, (2 * missing) // chat_length)
        said, state = np.empty((batch, chat_length), dtype=np.int64), np.full(batch, world.start)
        for t in range(chat_length):
            action = (cumulative[state] <= rng.random(batch)[:, None]).sum(axis=1)
            state = world.next_state[state, action]
            said[:, t] = world.contexts[state, -1]
        for chat in said:
            ours = np.cumsum(chat < world.n_actions)
            chats.append(chat[: int(np.searchsorted(ours, missing)) + 1] if ours[-1] >= missing else chat)
            missing -= int(ours[-1])
            if missing <= 0:
                break
    return Demonstrations.from_symbols(chats, n_symbols=world.n_actions)


@lru_cache(maxsize=4)
def _world(demonstrations: Demonstrations, depth: int) -> FiniteWorld:
    """Every context of ``depth`` symbols as a state; the most recent symbol is the lowest digit."""
    n_states = N_SYMBOLS**depth
    index = np.arange(n_states)
    contexts = np.stack([index // N_SYMBOLS**j % N_SYMBOLS for j in range(depth - 1, -1, -1)], axis=1)
    last = contexts[:, -1]
    agent_turn = (last == STUDENT_ENDED) | ((last < N_ACTS) & (last != END_OF_TURN))
    symbol = np.arange(N_ACTS) + np.where(agent_turn, 0, N_ACTS)[:, None]
    student_act = last - N_ACTS
    mood = np.where(student_act >= 0, [_MOOD.get(int(act), _NEUTRAL) for act in student_act], _NEUTRAL)
    reward = np.zeros((n_states, N_ACTS))
    reward[:, END_OF_TURN] = np.where(agent_turn, 0.0, mood)
    turn_start = last == STUDENT_ENDED
    swapped = [(s + N_ACTS) % N_SYMBOLS for s in demonstrations.sequences]
    demonstrator = _speaker(demonstrations, contexts, STUDENT_ENDED)
    if not _ends_turns_at_start(demonstrations):
        demonstrator[turn_start, END_OF_TURN] = 0.0
        demonstrator[turn_start] *= (1 - _SILENCE) / demonstrator[turn_start].sum(axis=1, keepdims=True)
        demonstrator[turn_start, END_OF_TURN] = _SILENCE
    return FiniteWorld(
        next_state=(index * N_SYMBOLS % n_states)[:, None] + symbol,
        reward=reward,
        agent_turn=agent_turn,
        environment_policy=_speaker(swapped, (contexts + N_ACTS) % N_SYMBOLS, END_OF_TURN),
        demonstrator=demonstrator,
        start=int(np.flatnonzero((contexts == STUDENT_ENDED).all(axis=1))[0]),
        horizon=64,
        contexts=contexts,
        turn_start=turn_start,
        end_of_turn=END_OF_TURN,
        symbol_names=ACTS,
    )


def _speaker(sequences: Demonstrations | list[IntArray], contexts: IntArray, start_symbol: int) -> FloatArray:
    """One speaker as a single tree of the class: the most probable one, each leaf backed off to its parent."""
    tree = ContextTree(
        N_ACTS, contexts.shape[1], n_context_symbols=N_SYMBOLS, start_symbol=start_symbol, complexity="bic"
    ).fit(sequences)
    counts, depth = tree.path_counts(contexts), tree.map_depth(contexts)
    policy = np.full((len(contexts), N_ACTS), 1 / N_ACTS)
    for d in range(counts.shape[1]):
        seen = counts[:, d]
        backed_off = (seen + _BACKOFF * policy) / (seen.sum(axis=1, keepdims=True) + _BACKOFF)
        policy = np.where((d <= depth)[:, None], backed_off, policy)
    return policy


def _ends_turns_at_start(demonstrations: Demonstrations) -> bool:
    """Whether the demonstrator ever ended a turn that it had not begun."""
    return any(
        bool((learned & (s == END_OF_TURN) & (np.concatenate([[STUDENT_ENDED], s[:-1]]) == STUDENT_ENDED)).any())
        for s, learned in zip(demonstrations.sequences, demonstrations.learned(), strict=True)
    )
