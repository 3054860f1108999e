"""The context tree against the list of all trees, one by one, and its promises as a data structure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax, xlogy

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.hypotheses.context_tree import ContextTree
from tests.reference_trees import (
    RecursiveTrees,
    ReferenceTrees,
    all_contexts,
    learned_pairs,
    least_probability,
    worst_kl_by_search,
)

LEAVES = [("kt", "none"), ("profile", "none"), ("profile", "support"), ("profile", "bic")]
ALPHAS = (1.0, 0.3, 1e-4)
SHAPES: list[dict[str, int]] = [
    {"n_symbols": 2, "depth": 0},
    {"n_symbols": 2, "depth": 1},
    {"n_symbols": 2, "depth": 2},
    {"n_symbols": 2, "depth": 3},
    {"n_symbols": 2, "depth": 3, "n_context_symbols": 2},
    {"n_symbols": 2, "depth": 2, "n_context_symbols": 5, "start_symbol": 3},
    {"n_symbols": 3, "depth": 1},
    {"n_symbols": 3, "depth": 2},
    {"n_symbols": 3, "depth": 2, "n_context_symbols": 3, "start_symbol": 0},
    {"n_symbols": 3, "depth": 1, "n_context_symbols": 7},
]

each_leaf = pytest.mark.parametrize(("leaf", "complexity"), LEAVES)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: ",".join(map(str, shape.values())))


def chain(n: int, n_symbols: int, rng: np.random.Generator) -> list[int]:
    """A sequence that depends on its last two symbols, sharply enough for trees to differ."""
    table = rng.dirichlet(np.full(n_symbols, 0.4), size=(n_symbols, n_symbols))
    sequence = [int(s) for s in rng.integers(n_symbols, size=2)]
    while len(sequence) < n:
        sequence.append(int(rng.choice(n_symbols, p=table[sequence[-2], sequence[-1]])))
    return sequence[:n]


def fitted(sequences: list[list[int]], stop_prob: float | None, **settings: Any) -> tuple[ContextTree, ReferenceTrees]:
    """The class under test and the list of all trees, having learned the same."""
    k = settings.get("n_context_symbols", settings["n_symbols"] + 1)
    start = settings.get("start_symbol", k - 1)
    usual = (k - 1) / k if k > 1 else 0.5
    reference = ReferenceTrees(
        tuple(learned_pairs(sequences, settings["n_symbols"])),
        n_symbols=settings["n_symbols"],
        depth=settings["depth"],
        n_context_symbols=k,
        start_symbol=start,
        stop_prob=usual if stop_prob is None else stop_prob,
        leaf=settings["leaf"],
        complexity=settings["complexity"],
    )
    rule = settings.pop("rule", "best")
    return ContextTree(stop_prob=stop_prob, plausible=rule, **settings).fit(sequences), reference


@cache
def worlds(key: tuple[tuple[str, int], ...], leaf: str, complexity: str) -> list[tuple[ContextTree, ReferenceTrees]]:
    """Trees of one shape that learned nothing, little and more, under several priors."""
    shape = dict(key)
    found, rng = [], np.random.default_rng(len(key) + 7 * shape["n_symbols"] + shape["depth"])
    # The start symbol may be the last one, so that sequences leave it out where the alphabet allows.
    n_used = max(shape["n_symbols"], shape.get("n_context_symbols", 0) - 1)
    learned = product((None, 0.05, 0.9), ((1, 0, 6), (40, 3, 25)))
    for stop_prob, lengths in [(0.5, ()), *learned]:
        sequences = [chain(n, n_used, rng) for n in lengths]
        found.append(fitted(sequences, stop_prob, **shape, leaf=leaf, complexity=complexity))
    return found


def asked(shape: dict[str, int], leaf: str, complexity: str) -> Iterator[tuple[ContextTree, ReferenceTrees, Any]]:
    """Every world with every context of length 0 to D, and one too long."""
    for tree, reference in worlds(tuple(shape.items()), leaf, complexity):
        for context in [*all_contexts(reference.n_context_symbols, reference.depth), (0, 1, 0, 1, 1, 0)]:
            yield tree, reference, context


def distributions(n_symbols: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Policies to charge: one anywhere, one near a corner, a corner."""
    yield rng.dirichlet(np.ones(n_symbols))
    yield rng.dirichlet(np.full(n_symbols, 0.05))
    yield np.eye(n_symbols)[rng.integers(n_symbols)]


def logs(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


@each_shape
def test_the_reference_lists_every_tree_once_with_a_prior_that_sums_to_one(shape):
    _, reference = worlds(tuple(shape.items()), "kt", "none")[0]
    k, n_trees = reference.n_context_symbols, 1
    for _ in range(shape["depth"]):
        n_trees = 1 + n_trees**k
    assert len(np.unique(reference.is_leaf, axis=0)) == len(reference.is_leaf) == n_trees
    assert np.exp(reference.log_priors).sum() == pytest.approx(1.0, abs=1e-12)


@each_shape
@each_leaf
def test_mixture_and_log_loss_are_those_of_all_trees(shape, leaf, complexity):
    for tree, reference, context in asked(shape, leaf, complexity):
        np.testing.assert_allclose(np.exp(tree.mixture(context)), reference.mixture(context), rtol=1e-10)
    for tree, reference in worlds(tuple(shape.items()), leaf, complexity):
        assert tree.log_loss_nats == pytest.approx(-reference.log_evidence, abs=1e-9)


@each_shape
@each_leaf
def test_a_depth_is_plausible_iff_some_tree_with_that_leaf_is(shape, leaf, complexity):
    n_plausible = 0
    for (tree, reference, context), alpha in product(asked(shape, leaf, complexity), ALPHAS):
        members, slacks = tree.plausible(context, alpha), reference.slacks(context, alpha)
        clear = np.abs(slacks) > 1e-9
        np.testing.assert_array_equal(members.plausible[clear], slacks[clear] > 0)
        assert members.plausible.any()
        n_plausible += int(members.plausible.sum())
        counts = reference.counts[reference.path(context)]
        np.testing.assert_array_equal(tree.path_counts(context), counts)
        for d in np.flatnonzero(members.plausible & clear):
            n = counts[d].sum()
            if leaf == "kt":
                expected = reference.kt_predictions[reference.path(context)[d]]
                np.testing.assert_allclose(np.exp(members.log_centres[d]), expected, rtol=1e-12)
                assert members.radii_nats[d] == 0
            elif n > 0:
                np.testing.assert_allclose(np.exp(members.log_centres[d]), counts[d] / n, rtol=1e-12)
                assert members.radii_nats[d] == pytest.approx(slacks[d] / n, abs=1e-10)
            else:
                assert members.radii_nats[d] == np.inf
    assert n_plausible > 0


@each_shape
@each_leaf
def test_plausible_minimum_is_that_of_all_plausible_trees(shape, leaf, complexity):
    for (tree, reference, context), alpha in product(asked(shape, leaf, complexity), ALPHAS):
        slacks = reference.slacks(context, alpha)
        if (np.abs(slacks[slacks != 0]) < 1e-9).any():
            continue
        if leaf == "kt":
            nodes = [n for n, s in zip(reference.path(context), slacks, strict=True) if s >= 0]
            expected = reference.kt_predictions[nodes].min(axis=0)
        else:
            leaves = reference.plausible(context, alpha)
            expected = np.min([[least_probability(p, m.radius_nats) for p in m.centre] for m in leaves], axis=0)
        got = np.exp(tree.plausible_min(context, alpha))
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(np.exp(tree.plausible(context, alpha).minimum()), got, rtol=1e-10, atol=1e-300)


@each_shape
@each_leaf
def test_worst_kl_is_what_a_search_over_all_plausible_trees_finds(shape, leaf, complexity):
    rng, n_finite = np.random.default_rng(3), 0
    for tree, reference in worlds(tuple(shape.items()), leaf, complexity):
        contexts = all_contexts(reference.n_context_symbols, reference.depth)
        alpha = rng.choice([0.4, 1e-2])
        context = contexts[rng.integers(len(contexts))]
        slacks = reference.slacks(context, alpha)
        if (np.abs(slacks) < 1e-9).any():
            continue
        leaves = reference.plausible(context, alpha)
        nodes = [n for n, s in zip(reference.path(context), slacks, strict=True) if s >= 0]
        for pi in [*distributions(reference.n_symbols, rng), leaves[0].centre]:
            if leaf == "kt":
                expected = max(float(xlogy(pi, pi / reference.kt_predictions[n]).sum()) for n in nodes)
            else:
                expected = max(worst_kl_by_search(m.centre, m.radius_nats, pi) for m in leaves)
            n_finite += int(np.isfinite(expected))
            assert tree.worst_kl(context, logs(pi), alpha) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert n_finite > 0


@each_shape
@each_leaf
def test_map_tree_is_the_best_of_all_trees(shape, leaf, complexity):
    for tree, reference in worlds(tuple(shape.items()), leaf, complexity):
        best = reference.log_scores.max()
        answer = tree.map_tree()
        assert answer.log_score == pytest.approx(best, abs=1e-9)
        nodes = all_contexts(reference.n_context_symbols, reference.depth)
        tied = reference.is_leaf[reference.log_scores >= best - 1e-9]
        seen = [{nodes[i] for i in np.flatnonzero(row) if reference.counts[i].any()} for row in tied]
        assert {context for context, counts in answer.leaves.items() if counts.any()} in seen
        for context, counts in answer.leaves.items():
            np.testing.assert_array_equal(counts, reference.counts[reference.path(context)[len(context)]])
        for context in nodes:
            assert reference.slacks(context, 1.0)[tree.map_depth(context)] == pytest.approx(0.0, abs=1e-9)


@each_shape
def test_total_compares_with_the_evidence_of_all_trees(shape):
    rejected = 0
    for (tree, reference), alpha in product(worlds(tuple(shape.items()), "kt", "none"), (0.6, 0.3, 0.1, 0.01, 1e-4)):
        total = ContextTree(**shape, leaf="kt", plausible="total", stop_prob=tree.stop_prob)
        for context, symbol in reference.pairs:
            total.update(context, symbol)
        for context in all_contexts(reference.n_context_symbols, reference.depth):
            slacks = reference.slacks(context, alpha, "total")
            clear = np.abs(slacks) > 1e-9
            plausible = total.plausible(context, alpha).plausible
            np.testing.assert_array_equal(plausible[clear], slacks[clear] > 0)
            assert plausible[np.argmax(slacks)]
            assert not (plausible & ~tree.plausible(context, alpha).plausible).any()
            rejected += int(tree.plausible(context, alpha).plausible.sum() - plausible.sum())
            kept = np.array(reference.path(context))[plausible]
            np.testing.assert_allclose(
                np.exp(total.plausible_min(context, alpha)), reference.kt_predictions[kept].min(axis=0), rtol=1e-12
            )
    assert rejected > 0 or shape["depth"] < 2


@pytest.mark.parametrize(("leaf", "complexity"), [("kt", "none"), ("profile", "support")])
def test_the_83522_trees_of_depth_3_over_4_context_symbols(leaf, complexity):
    rng = np.random.default_rng(8)
    sequences = [chain(n, 3, rng) for n in (60, 2, 30)]
    tree, reference = fitted(sequences, None, n_symbols=3, depth=3, leaf=leaf, complexity=complexity)
    assert len(reference.is_leaf) == 83522
    assert tree.map_tree().log_score == pytest.approx(reference.log_scores.max(), abs=1e-9)
    assert tree.log_loss_nats == pytest.approx(-reference.log_evidence, abs=1e-9)
    for context in [(), (1,), (0, 2), *(tuple(int(s) for s in rng.integers(4, size=3)) for _ in range(6))]:
        np.testing.assert_allclose(np.exp(tree.mixture(context)), reference.mixture(context), rtol=1e-10)
        slacks = reference.slacks(context, 1e-3)
        assert (np.abs(slacks) > 1e-9).all()
        np.testing.assert_array_equal(tree.plausible(context, 1e-3).plausible, slacks > 0)


@pytest.mark.parametrize("n_symbols", [2, 3, 4])
def test_minimum_and_charge_of_a_leaf_by_constrained_optimisation(n_symbols):
    """The joint region of a leaf's parameters, straight from its definition by likelihoods, in a nonlinear solver."""
    rng = np.random.default_rng(n_symbols)
    counts, alpha = np.array([3, 20, 7, 5])[:n_symbols], 0.05
    tree = ContextTree(n_symbols, 0).fit([np.repeat(np.arange(n_symbols), counts)])

    def slack(theta: NDArray[np.float64]) -> float:
        return float(xlogy(counts, theta).sum() - xlogy(counts, counts / counts.sum()).sum() - np.log(alpha))

    def least(objective: Any) -> float:
        """The smallest value over the region, from several starts."""
        inside = {"type": "ineq", "fun": lambda z: slack(softmax(z))}
        starts = [np.log(0.8 * counts / counts.sum() + 0.2 * rng.dirichlet(np.ones(n_symbols))) for _ in range(12)]
        found = [minimize(lambda z: objective(softmax(z)), z, constraints=inside, method="SLSQP") for z in starts]
        return min(f.fun for f in found if slack(softmax(f.x)) > -1e-7)

    minimum = np.exp(tree.plausible_min([], alpha))
    np.testing.assert_allclose([least(lambda t, a=a: t[a]) for a in range(n_symbols)], minimum, rtol=1e-5)
    for pi in (rng.dirichlet(np.ones(n_symbols)), np.eye(n_symbols)[0], counts / counts.sum()):
        expected = -least(lambda t, pi=pi: -float(xlogy(pi, pi).sum() - xlogy(pi, t).sum()))
        assert tree.worst_kl([], logs(pi), alpha) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("complexity", ["none", "support", "bic"])
def test_every_plausible_tree_with_its_parameters_lies_in_the_set(complexity):
    """Hypotheses drawn at random, scored by their definition: those within log 1/alpha of the best are contained."""
    rng, n_members, n_others = np.random.default_rng(5), 0, 0
    sequences = [chain(50, 2, rng), chain(12, 2, rng)]
    tree, reference = fitted(sequences, 0.5, n_symbols=2, depth=2, leaf="profile", complexity=complexity)
    n = reference.counts.sum(axis=1)
    contexts = all_contexts(3, 2)
    for _ in range(300):
        context, alpha = contexts[rng.integers(len(contexts))], float(10 ** rng.uniform(-3, 0))
        row = rng.integers(len(reference.is_leaf))
        (node,) = (i for i in reference.path(context) if reference.is_leaf[row, i])
        theta = rng.dirichlet(reference.counts[node] + 0.5)
        maximum = xlogy(reference.counts[node], reference.counts[node] / max(n[node], 1)).sum()
        score = reference.log_scores[row] - maximum + xlogy(reference.counts[node], theta).sum()
        pi = rng.dirichlet([1.0, 1.0])
        if score >= reference.log_scores.max() + np.log(alpha):
            n_members += 1
            assert tree.plausible(context, alpha).contains(np.log(theta))
            assert (tree.plausible_min(context, alpha) <= np.log(theta) + 1e-12).all()
            assert xlogy(pi, pi / theta).sum() <= tree.worst_kl(context, np.log(pi), alpha) + 1e-12
        else:
            n_others += 1
    assert min(n_members, n_others) > 20


@pytest.mark.parametrize(("n_symbols", "n_context_symbols", "depth"), [(2, 3, 12), (4, 60, 5), (105, 106, 4)])
def test_large_classes_against_the_recursion(n_symbols, n_context_symbols, depth):
    """Long sequences, many nodes, and alphabets where 1 - 2^(1-k) is 1 in doubles."""
    rng, k = np.random.default_rng(depth), n_context_symbols
    sequence = [int(s) for s in np.minimum(rng.geometric(0.3, size=1500) - 1, k - 2)]
    for t in range(2, len(sequence)):
        if rng.random() < 0.9:
            sequence[t] = sequence[t - 2]
    tree = ContextTree(n_symbols, depth, n_context_symbols=k, leaf="kt").fit([sequence])
    reference = RecursiveTrees(
        learned_pairs([sequence], n_symbols),
        n_symbols=n_symbols,
        depth=depth,
        n_context_symbols=k,
        start_symbol=k - 1,
        log_stop=np.log1p(-1 / k),
        log_split=-np.log(k),
    )
    assert tree.n_nodes == len(reference.counts)
    assert tree.log_loss_nats == pytest.approx(-reference.evidence(), rel=1e-11)
    assert tree.map_tree().log_score == pytest.approx(reference.best(()), rel=1e-11)
    assert max(len(leaf) for leaf in tree.map_tree().leaves) > 0
    for t in rng.integers(len(sequence), size=5):
        context = sequence[max(0, t - depth) : t]
        slacks = reference.slacks(context, 1e-4)
        np.testing.assert_array_equal(tree.plausible(context, 1e-4).plausible, slacks >= 0)


@each_leaf
def test_fit_update_and_prequential_learn_the_same(leaf, complexity):
    rng = np.random.default_rng(1)
    sequences = [chain(n, 4, rng) for n in (30, 0, 1, 17)]
    settings: dict[str, Any] = {"n_context_symbols": 5, "leaf": leaf, "complexity": complexity}
    at_once, one_by_one = ContextTree(2, 3, **settings).fit(sequences), ContextTree(2, 3, **settings)
    walked, in_batches = ContextTree(2, 3, **settings), ContextTree(2, 3, **settings)
    for context, symbol in learned_pairs(sequences, 2):
        one_by_one.update(context, symbol)
    for sequence in sequences:
        walked.prequential(sequence, 0.1)
    pairs = [((4, 4, 4, *context)[-3:], symbol) for context, symbol in learned_pairs(sequences, 2)]
    in_batches.update([context for context, _ in pairs], [symbol for _, symbol in pairs])
    every_context = all_contexts(5, 3)[-(5**3) :]
    for other in (one_by_one, walked, in_batches):
        assert other.n_nodes == at_once.n_nodes > 1
        assert other.log_loss_nats == at_once.log_loss_nats
        assert other.map_tree().log_score == at_once.map_tree().log_score
        np.testing.assert_array_equal(other.mixture(every_context), at_once.mixture(every_context))
        np.testing.assert_array_equal(
            other.plausible_min(every_context, 0.1), at_once.plausible_min(every_context, 0.1)
        )


@pytest.mark.parametrize(
    ("leaf", "complexity", "rule"), [*((*leaf, "best") for leaf in LEAVES), ("kt", "none", "total")]
)
def test_prequential_predicts_from_the_prefix(leaf, complexity, rule):
    rng = np.random.default_rng(2)
    before, sequence = chain(20, 3, rng), chain(40, 3, rng)
    settings: dict[str, Any] = {"n_context_symbols": 4, "leaf": leaf, "complexity": complexity, "plausible": rule}
    tree = ContextTree(2, 2, **settings).fit([before])
    mixtures, minima = tree.prequential(sequence, 0.05)
    for t, symbol in enumerate(sequence):
        if symbol >= 2:
            assert (mixtures[t] == 0).all()
            assert (minima[t] == 0).all()
            continue
        prefix = ContextTree(2, 2, **settings).fit([before, sequence[:t]])
        np.testing.assert_allclose(mixtures[t], prefix.mixture(sequence[:t]), rtol=0, atol=1e-13)
        np.testing.assert_allclose(np.exp(minima[t]), np.exp(prefix.plausible_min(sequence[:t], 0.05)), atol=1e-13)
    assert {0, 1, 2} <= set(sequence)


def test_prequential_log_loss_is_that_of_the_tree():
    sequence = chain(500, 2, np.random.default_rng(6))
    tree = ContextTree(2, 4)
    mixtures, _ = tree.prequential(sequence, 0.5)
    assert -mixtures[np.arange(500), sequence].sum() == pytest.approx(tree.log_loss_nats, abs=1e-9)


@given(
    sequences=st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=4),
    stop_prob=st.floats(0.01, 0.99),
    alpha=st.floats(1e-9, 1.0),
    leaf=st.sampled_from(LEAVES),
    context=st.lists(st.integers(0, 4), max_size=4),
)
def test_any_data_against_the_list_of_trees(sequences, stop_prob, alpha, leaf, context):
    settings = {"n_symbols": 2, "depth": 2, "n_context_symbols": 5, "leaf": leaf[0], "complexity": leaf[1]}
    tree, reference = fitted(sequences, stop_prob, **settings)
    np.testing.assert_allclose(np.exp(tree.mixture(context)), reference.mixture(context), rtol=1e-9)
    slacks = reference.slacks(context, alpha)
    clear = np.abs(slacks) > 1e-9
    np.testing.assert_array_equal(tree.plausible(context, alpha).plausible[clear], slacks[clear] > 0)


def test_short_contexts_are_padded_and_only_the_last_symbols_count():
    tree = ContextTree(2, 3, start_symbol=1, n_context_symbols=4).fit([chain(60, 2, np.random.default_rng(4))])
    for answer in (tree.mixture, lambda c: tree.plausible_min(c, 0.1), tree.path_counts):
        np.testing.assert_array_equal(answer([]), answer([1, 1, 1]))
        np.testing.assert_array_equal(answer([0]), answer([1, 1, 0]))
        np.testing.assert_array_equal(answer([3, 0, 2, 1, 0]), answer([2, 1, 0]))
    assert (tree.mixture([0]) != tree.mixture([1])).any()


def test_batches_of_any_shape_answer_one_by_one():
    rng = np.random.default_rng(9)
    tree = ContextTree(3, 2).fit([chain(80, 3, rng)])
    contexts, policies = rng.integers(4, size=(2, 5, 2)), np.log(rng.dirichlet(np.ones(3), size=(2, 5)))
    members = tree.plausible(contexts, 0.1)
    assert members.log_centres.shape == (2, 5, 3, 3)
    assert members.plausible.shape == members.radii_nats.shape == (2, 5, 3)
    assert tree.path_counts(contexts).shape == (2, 5, 3, 3)
    for i in np.ndindex(2, 5):
        np.testing.assert_array_equal(tree.mixture(contexts)[i], tree.mixture(contexts[i]))
        np.testing.assert_array_equal(tree.plausible_min(contexts, 0.1)[i], tree.plausible_min(contexts[i], 0.1))
        assert tree.worst_kl(contexts, policies, 0.1)[i] == tree.worst_kl(contexts[i], policies[i], 0.1)
        assert tree.map_depth(contexts)[i] == tree.map_depth(contexts[i])
    assert tree.mixture(np.zeros((0, 2), dtype=np.int64)).shape == (0, 3)
    np.testing.assert_array_equal(tree.mixture(np.zeros((4, 0), dtype=np.int64)), np.tile(tree.mixture([]), (4, 1)))


def test_symbols_from_n_symbols_on_are_context_only():
    tree = ContextTree(2, 1, n_context_symbols=4).fit([[0, 2, 1, 2, 1]])
    assert tree.path_counts([]).tolist() == [[1, 2], [1, 0]]
    assert tree.path_counts([2])[1].tolist() == [0, 2]
    assert tree.map_tree().leaves.keys() <= {(), (2,), (3,)}


def test_demonstrations_say_whose_action_it_was():
    codes = actor_codes(["demonstrator", "imitator", "demonstrator", "environment", "demonstrator"])
    tree = ContextTree(2, 1, n_context_symbols=4).fit(Demonstrations(([0, 1, 1, 0, 0],), (codes,)))
    assert tree.path_counts([1]).tolist() == [[2, 1], [0, 1]]
    assert tree.path_counts([0])[1].tolist() == [1, 0]


def test_contexts_do_not_reach_across_sequences():
    tree = ContextTree(2, 2)
    assert tree.fit([[1, 1, 1], [0], [0]]).path_counts([]).tolist()[1] == [2, 1]
    assert tree.path_counts([1])[1].tolist() == [0, 2]


def test_the_table_grows_with_the_contexts_seen_and_keeps_every_count():
    rng = np.random.default_rng(12)
    sequence = rng.integers(2, size=20_000)
    tree = ContextTree(2, 16).fit([sequence])
    suffixes = {tuple(sequence[t - d : t]) for d in range(6) for t in range(d, len(sequence))}
    assert tree.n_nodes > 50_000
    for suffix in list(suffixes)[::7]:
        d, windows = len(suffix), np.lib.stride_tricks.sliding_window_view(sequence, len(suffix) + 1)
        after = windows[(windows[:, :d] == suffix).all(axis=1), d]
        assert tree.path_counts(suffix)[d].tolist() == np.bincount(after, minlength=2).tolist()
    again = ContextTree(2, 16)
    for t, symbol in enumerate(sequence[:300]):
        again.update(sequence[max(0, t - 16) : t], symbol)
    np.testing.assert_array_equal(
        again.mixture(sequence[:300]), ContextTree(2, 16).fit([sequence[:300]]).mixture(sequence[:300])
    )


@each_leaf
def test_questions_change_nothing(leaf, complexity, tmp_path):
    rng = np.random.default_rng(10)
    tree = ContextTree(3, 2, leaf=leaf, complexity=complexity).fit([chain(40, 3, rng)])
    tree.save(tmp_path / "before")
    for context in all_contexts(4, 2):
        tree.mixture(context)
        tree.plausible_min(context, 0.1)
        tree.worst_kl(context, np.log([0.2, 0.3, 0.5]), 0.1)
        tree.plausible(context, 0.1).best_response(np.array([1.0, 0.0, 0.5]), 0.3)
        tree.map_depth(context)
        tree.path_counts(context)[:] = 77
    for counts in tree.map_tree().leaves.values():
        counts[:] = 77
    tree.save(tmp_path / "after")
    for name in ("context_tree.safetensors", "context_tree.json"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"leaf": "kt", "plausible": "total", "stop_prob": 0.3},
        {"complexity": "support", "start_symbol": 2, "n_context_symbols": 9},
        {"complexity": "bic"},
    ],
)
def test_save_and_load_keep_everything_bit_for_bit(settings, tmp_path):
    rng = np.random.default_rng(11)
    first, second = chain(3000, 3, rng), chain(50, 3, rng)
    tree = ContextTree(3, 4, **settings).fit([first])
    tree.save(tmp_path / "tree")
    assert sorted(p.name for p in (tmp_path / "tree").iterdir()) == ["context_tree.json", "context_tree.safetensors"]
    loaded = ContextTree.load(tmp_path / "tree")
    for _ in range(2):
        contexts = rng.integers(3, size=(200, 4))
        assert (loaded.n_nodes, loaded.log_loss_nats) == (tree.n_nodes, tree.log_loss_nats)
        assert loaded.map_tree().log_score == tree.map_tree().log_score
        np.testing.assert_array_equal(loaded.mixture(contexts), tree.mixture(contexts))
        for mine, theirs in zip(
            vars(loaded.plausible(contexts, 0.01)).values(), vars(tree.plausible(contexts, 0.01)).values(), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
        tree.fit([second])
        loaded.fit([second])


def test_an_empty_tree_is_saved_and_loaded(tmp_path):
    ContextTree(2, 3).save(tmp_path)
    tree = ContextTree.load(tmp_path)
    assert tree.n_nodes == 0
    assert tree.fit([[0, 1]]).log_loss_nats == ContextTree(2, 3).fit([[0, 1]]).log_loss_nats


def test_loading_what_is_not_there_or_from_another_version(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        ContextTree.load(tmp_path)
    ContextTree(2, 1).save(tmp_path)
    file = tmp_path / "context_tree.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 99}))
    with pytest.raises(ValueError, match="schema"):
        ContextTree.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_symbols": 0}, "n_symbols must be at least 1, got 0"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"depth": 60}, "depth must be at most .* got 60"),
        ({"n_context_symbols": 0}, "n_context_symbols must be at least 1, got 0"),
        ({"start_symbol": 3}, r"start_symbol must be in 0\.\.2, got 3"),
        ({"start_symbol": -1}, "start_symbol .* got -1"),
        ({"stop_prob": 0.0}, r"stop_prob must be in \(0, 1\), got 0.0"),
        ({"stop_prob": 1 - 2.0 ** (1 - 60)}, "stop_prob .* got 1.0; .* leave it out"),
        ({"stop_prob": float("nan")}, "stop_prob .* got nan"),
        ({"leaf": "laplace"}, "leaf must be one of profile, kt, got 'laplace'"),
        ({"complexity": "aic"}, "complexity must be one of none, support, bic, got 'aic'"),
        ({"plausible": "cumulative"}, "plausible must be one of best, total, got 'cumulative'"),
        ({"leaf": "kt", "complexity": "bic"}, "complexity must be .* got 'bic'"),
        ({"plausible": "total"}, 'plausible must be "best" .* got "total"'),
    ],
)
def test_bad_settings_name_the_argument_the_value_and_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        ContextTree(**({"n_symbols": 2, "depth": 2} | settings))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.plausible_min([0], 1.5), r"alpha must be in \(0, 1\], got 1.5"),
        (lambda t: t.plausible([0], 0.0), "alpha .* got 0.0"),
        (lambda t: t.worst_kl([0], np.log([0.5, 0.5]), -0.1), "alpha .* got -0.1"),
        (lambda t: t.prequential([0], float("nan")), "alpha .* got nan"),
        (lambda t: t.mixture([0, 3]), r"context must hold symbols in 0\.\.2, got 3"),
        (lambda t: t.mixture([[0, 1], [0, -1]]), "context .* got -1"),
        (lambda t: t.mixture(0), "context must be a sequence of symbols, got the scalar 0"),
        (lambda t: t.mixture([0.7]), "context .* got .*0.7"),
        (lambda t: t.update([0], 2), r"symbol must hold symbols in 0\.\.1, got 2"),
        (lambda t: t.update([0], -1), "symbol .* got -1"),
        (lambda t: t.update([0], 0.5), "symbol .* got .*0.5"),
        (lambda t: t.update([3], 0), "context .* got 3"),
        (lambda t: t.update([[0], [1]], 0), r"symbol must have shape \(2,\) to go with context, got \(\)"),
        (lambda t: t.fit([[0, 1], [0, 3]]), r"sequence must hold symbols in 0\.\.2, got 3"),
        (lambda t: t.fit([[0, -1]]), "sequence .* got -1"),
        (lambda t: t.fit([[0.5, 1.0]]), "sequence .* got .*0.5"),
        (lambda t: t.fit([0, 1, 0]), "sequence"),
        (lambda t: t.fit([[[0, 1], [1, 0]]]), "sequence"),
        (lambda t: t.prequential([0, 5], 0.5), "sequence .* got 5"),
        (lambda t: t.worst_kl([0], np.log([0.5, 0.25, 0.25]), 0.5), r"log_pi must have shape \(2,\), got \(3,\)"),
    ],
)
def test_bad_calls_name_the_argument_and_the_value_and_learn_nothing(call, message):
    tree = ContextTree(2, 2)
    with pytest.raises(ValueError, match=message):
        call(tree)
    assert tree.n_nodes == 0


def test_actions_that_no_context_can_hold_are_refused():
    """With fewer context symbols than actions a sequence would look up contexts that do not exist."""
    with pytest.raises(ValueError, match=r"n_context_symbols|sequence"):
        ContextTree(3, 2, n_context_symbols=2).fit([[0, 2, 1, 0]])
    tree = ContextTree(3, 0, n_context_symbols=1).fit([[0, 2, 1, 0]])
    assert tree.path_counts([]).tolist() == [[2, 1, 1]]
