"""Law 5: learning whole sequences is learning their actions one by one, each at what came before it."""

from __future__ import annotations

import numpy as np

from tests.laws.table import N_CONTEXT_SYMBOLS, N_SYMBOLS, sequences

CONTEXTS = [[a, b, c] for a in (0, 2) for b in range(N_CONTEXT_SYMBOLS) for c in range(N_CONTEXT_SYMBOLS)]


def assert_same_answers(one, other):
    np.testing.assert_allclose(np.asarray(one.mixture(CONTEXTS)), np.asarray(other.mixture(CONTEXTS)), rtol=1e-12)
    for alpha in (0.5, 1e-4):
        np.testing.assert_allclose(
            np.exp(np.asarray(one.plausible_min(CONTEXTS, alpha))),
            np.exp(np.asarray(other.plausible_min(CONTEXTS, alpha))),
            rtol=1e-12,
        )


def test_fit_is_update_one_by_one(implementation, trained):
    one_by_one = implementation.make()
    for sequence in sequences():
        for t, symbol in enumerate(sequence):
            if symbol < N_SYMBOLS:
                one_by_one.update(sequence[:t], symbol)
    assert_same_answers(one_by_one, trained)


def test_a_batch_of_updates_is_each_in_turn(implementation):
    pairs = [(context, sum(context) % N_SYMBOLS) for context in CONTEXTS]
    in_turn, at_once = implementation.make(), implementation.make()
    for context, symbol in pairs:
        in_turn.update(context, symbol)
    at_once.update(np.array([context for context, _ in pairs]), np.array([symbol for _, symbol in pairs]))
    assert_same_answers(in_turn, at_once)


def test_fit_continues_and_returns_itself(implementation, trained):
    first, *rest = sequences()
    hypotheses = implementation.make()
    assert hypotheses.fit([first]) is hypotheses
    assert_same_answers(hypotheses.fit(rest), trained)


def test_learning_changes_the_answers(implementation, trained):
    untrained = implementation.make()
    mixtures = [np.asarray(hypotheses.mixture(CONTEXTS)) for hypotheses in (untrained, trained)]
    if implementation.mixture_learns:
        assert not np.allclose(*mixtures)
    else:
        np.testing.assert_array_equal(*mixtures)
        assert not np.allclose(*(np.asarray(one.plausible_min(CONTEXTS, 0.1)) for one in (untrained, trained)))
