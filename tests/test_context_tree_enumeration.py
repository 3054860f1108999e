"""The context tree against the list of all trees, one by one: predictions, plausible sets and the best tree."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax, xlogy

from cautious_imitation.hypotheses.context_tree import ContextTree
from tests.reference_trees import (
    RecursiveTrees,
    ReferenceTrees,
    all_contexts,
    chain,
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
