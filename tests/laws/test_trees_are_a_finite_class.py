"""A tree class answers like the same trees, listed as a finite class with their posterior as the prior."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from tests.laws.table import N_CONTEXT_SYMBOLS, N_SYMBOLS, sequences
from tests.reference_trees import ReferenceTrees, learned_pairs

DEPTH, STOP_PROB = 2, 0.4


def listed() -> FiniteHypotheses:
    """Each of the 17 trees as the Markov table of its KT predictions."""
    reference = ReferenceTrees(
        tuple(learned_pairs(sequences(), N_SYMBOLS)),
        n_symbols=N_SYMBOLS,
        depth=DEPTH,
        n_context_symbols=N_CONTEXT_SYMBOLS,
        start_symbol=N_CONTEXT_SYMBOLS - 1,
        stop_prob=STOP_PROB,
        leaf="kt",
        complexity="none",
    )
    tables = np.empty((len(reference.log_scores), N_CONTEXT_SYMBOLS, N_CONTEXT_SYMBOLS, N_SYMBOLS))
    for context in np.ndindex(N_CONTEXT_SYMBOLS, N_CONTEXT_SYMBOLS):
        path = reference.path(context)
        leaves = np.argmax(reference.is_leaf[:, path], axis=1)
        tables[(slice(None), *context)] = np.log(reference.kt_predictions[path][leaves])
    prior = softmax(reference.log_scores)
    return FiniteHypotheses(list(tables), prior=prior, start_symbol=N_CONTEXT_SYMBOLS - 1)


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.01, 1e-5])
def test_trees_are_a_finite_class(alpha):
    rng = np.random.default_rng(2)
    trees = ContextTree(N_SYMBOLS, DEPTH, n_context_symbols=N_CONTEXT_SYMBOLS, stop_prob=STOP_PROB, leaf="kt")
    trees.fit(sequences())
    finite = listed()
    assert len(finite) == 17
    for context in [[], [1], *([a, b] for a in range(4) for b in range(4))]:
        np.testing.assert_allclose(trees.mixture(context), finite.mixture(context), rtol=1e-10)
        np.testing.assert_allclose(
            trees.plausible_min(context, alpha), finite.plausible_min(context, alpha), rtol=1e-10
        )
        log_pi = np.log(rng.dirichlet(np.ones(N_SYMBOLS)))
        expected = finite.worst_kl(context, log_pi, alpha)
        assert trees.worst_kl(context, log_pi, alpha) == pytest.approx(expected, rel=1e-9)
