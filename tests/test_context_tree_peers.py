"""The context tree against two independent libraries, in the settings where their models coincide with ours.

``vlmc`` (Rust) conditions on the first D symbols of each sequence and knows no start symbol. Its "bct" prior is ours,
with beta for the probability of a leaf; its "bic" criterion takes a constant from each leaf, which is our profile leaf
under a prior with log(1 - stop_prob) = -penalty (V - 1)^2 / 2 log N, up to -log(stop_prob) < 0.01 a leaf.

``bayesml`` mixes as we do (g is the probability of a split, KT its default prior), but counts the first D symbols of a
sequence at nodes where the history ends, as if they were leaves. ``pred_and_update`` on windows of D + 1 symbols leaves
those positions out. Its MAP tree is not the optimum under its own posterior in some small cases: not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import vlmc
from bayesml import contexttree
from numpy.typing import NDArray

from cautious_imitation.hypotheses.context_tree import ContextTree


def sequences(n_symbols: int, rng: np.random.Generator) -> list[list[int]]:
    """Two sequences from a random chain of order two."""
    table = rng.dirichlet(np.full(n_symbols, 0.5), size=(n_symbols, n_symbols))
    found = []
    for _ in range(2):
        sequence = [int(s) for s in rng.integers(n_symbols, size=2)]
        for _ in range(int(rng.integers(10, 400))):
            sequence.append(int(rng.choice(n_symbols, p=table[sequence[-2], sequence[-1]])))
        found.append(sequence)
    return found


def windows(sequences: list[list[int]], depth: int) -> Iterator[tuple[list[int], int]]:
    """(the last D symbols, the next one) wherever D symbols came before."""
    for sequence in sequences:
        for t in range(depth, len(sequence)):
            yield sequence[t - depth : t], sequence[t]


def learned(sequences: list[list[int]], n_symbols: int, depth: int, **settings: Any) -> ContextTree:
    tree = ContextTree(n_symbols, depth, n_context_symbols=n_symbols, **settings)
    for context, symbol in windows(sequences, depth):
        tree.update(context, symbol)
    return tree


def seen_leaves(model: vlmc.VLMC) -> dict[tuple[int, ...], tuple[int, ...]]:
    counts = {tuple(leaf): tuple(model.get_transition_counts(leaf)) for leaf in model.get_contexts()}
    return {leaf: n for leaf, n in counts.items() if any(n)}


def our_leaves(tree: ContextTree) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {leaf: tuple(counts.tolist()) for leaf, counts in tree.map_tree().leaves.items()}


@pytest.mark.parametrize("n_symbols", [2, 3, 4])
def test_map_tree_of_kt_leaves_is_that_of_vlmc(n_symbols):
    rng, sizes = np.random.default_rng(n_symbols), set()
    for _ in range(15):
        data, depth, stop_prob = sequences(n_symbols, rng), int(rng.integers(1, 6)), float(rng.uniform(0.5, 0.95))
        model = vlmc.VLMC(alphabet_size=n_symbols, max_depth=depth, method="bct", beta=stop_prob)
        model.fit(data)
        tree = learned(data, n_symbols, depth, leaf="kt", stop_prob=stop_prob)
        assert our_leaves(tree) == seen_leaves(model)
        for context in rng.integers(n_symbols, size=(5, depth)):
            assert tree.map_depth(context) == len(model.get_suffix(context.tolist()))
        sizes.add(len(our_leaves(tree)))
    assert len(sizes) > 3


@pytest.mark.parametrize("n_symbols", [2, 3, 4])
def test_map_tree_of_profile_leaves_is_the_bic_tree_of_vlmc(n_symbols):
    rng, sizes = np.random.default_rng(10 + n_symbols), set()
    for _ in range(15):
        data, depth, penalty = sequences(n_symbols, rng), int(rng.integers(1, 6)), 4 / (n_symbols - 1) ** 2
        model = vlmc.VLMC(alphabet_size=n_symbols, max_depth=depth, method="bic", penalty=penalty)
        model.fit(data)
        split_prob = float(model.sample_size ** (-penalty * (n_symbols - 1) ** 2 / 2))
        assert split_prob < 1e-2
        tree = learned(data, n_symbols, depth, leaf="profile", stop_prob=1 - split_prob)
        assert our_leaves(tree) == seen_leaves(model)
        sizes.add(len(our_leaves(tree)))
    assert len(sizes) > 2


@pytest.mark.parametrize("n_symbols", [2, 3, 5])
def test_mixture_and_log_loss_are_those_of_bayesml(n_symbols):
    rng = np.random.default_rng(20 + n_symbols)
    for depth in (1, 2, 4):
        data, split_prob = sequences(n_symbols, rng)[0], float(rng.uniform(0.1, 0.9))
        model = contexttree.LearnModel(c_k=n_symbols, c_d_max=depth, h0_g=split_prob)
        tree = ContextTree(n_symbols, depth, n_context_symbols=n_symbols, leaf="kt", stop_prob=1 - split_prob)
        log_loss = 0.0
        for context, symbol in windows([data], depth):
            window: NDArray[np.int64] = np.array([*context, symbol])
            theirs = model.pred_and_update(window)
            np.testing.assert_allclose(np.exp(tree.mixture(context)), theirs, rtol=1e-9)
            log_loss -= float(np.log(theirs[symbol]))
            tree.update(context, symbol)
        assert log_loss > 1
        assert tree.log_loss_nats == pytest.approx(log_loss, abs=1e-6)
