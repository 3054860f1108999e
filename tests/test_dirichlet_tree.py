"""Hierarchical shrinkage against sampling, a peer's formulas and a numerical optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import digamma
from scipy.stats import dirichlet_multinomial, multinomial

from cautious_imitation.environments.dialogue_acts import (
    STUDENT_ENDED,
    dialogue_acts_world,
    sample_demonstrations,
)
from cautious_imitation.hypotheses.dirichlet_tree import CONCENTRATIONS, DirichletTree
from cautious_imitation.hypotheses.shrinkage import (
    NodePosteriors,
    child_posteriors,
    kind_shares,
    log_evidence,
    responsibilities,
    root_posterior,
)
from cautious_imitation.imitators import CautiousImitator

Floats = NDArray[np.float64]

GRID = np.array([2.0, 20.0])


def some_nodes(rng: np.random.Generator, n: int = 6, v: int = 4) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of nodes and of their parents, which hold them."""
    counts = rng.integers(0, 6, (n, v))
    counts[0] = 0
    return counts, counts + rng.integers(0, 9, (n, v))


def test_evidence_is_the_dirichlet_multinomial_around_what_the_others_did() -> None:
    counts, above = some_nodes(np.random.default_rng(0))
    mean = np.random.default_rng(1).dirichlet(np.ones(4), 6)
    found = log_evidence(counts, above, mean, GRID)
    for i, own in enumerate(counts):
        others = above[i] - own
        centre = (others + mean[i]) / (others.sum() + 1)
        orders = multinomial.logpmf(own, own.sum(), centre) - own @ np.log(centre)
        wanted = [dirichlet_multinomial.logpmf(own, c * centre, own.sum()) - orders for c in GRID]
        np.testing.assert_allclose(found[i], [*wanted, own @ np.log(centre)], atol=1e-10)


def test_shares_maximise_the_evidence() -> None:
    rng = np.random.default_rng(2)
    evidence = rng.normal(0, 2, (200, 3)) + np.array([0.0, 1.0, -1.0])

    def missing(free: Floats) -> float:
        shares = np.exp(np.append(free, 0.0))
        shares /= shares.sum()
        return -float(np.logaddexp.reduce(evidence + np.log(shares), axis=1).sum() + np.log(shares).sum())

    best = minimize(missing, np.zeros(2), tol=1e-12)
    wanted = np.exp(np.append(best.x, 0.0))
    np.testing.assert_allclose(kind_shares(evidence), wanted / wanted.sum(), atol=1e-4)
    np.testing.assert_allclose(responsibilities(evidence, np.full(3, 1 / 3)).sum(axis=1), 1.0)


def test_means_are_those_of_samples_from_the_posterior() -> None:
    """A node below a parent that is known well: sampled kind by kind, as the model says."""
    rng = np.random.default_rng(3)
    counts, above = np.array([[5, 0, 1]]), np.array([[4_000, 1_000, 5_000]])
    parent = NodePosteriors(np.array([[0.4, 0.1, 0.5]]), np.log([[0.4, 0.1, 0.5]]))
    shares = np.array([0.3, 0.3, 0.4])
    weights = responsibilities(log_evidence(counts, above, parent.mean, GRID), shares)[0]
    kinds = rng.choice(3, 400_000, p=weights)
    samples = np.where(
        (kinds == 2)[:, None],
        parent.mean,
        np.where(
            (kinds == 0)[:, None],
            rng.dirichlet(counts[0] + GRID[0] * parent.mean[0], len(kinds)),
            rng.dirichlet(counts[0] + GRID[1] * parent.mean[0], len(kinds)),
        ),
    )
    found = child_posteriors(counts, above, parent, GRID, shares)
    np.testing.assert_allclose(found.mean[0], samples.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(found.log_mean[0], np.log(samples).mean(axis=0), rtol=2e-2)
    # The expected divergence is linear in the mean of log theta, and least at the centre of the set.
    pi = np.array([0.7, 0.1, 0.2])
    expected = float((pi * (np.log(pi) - np.log(samples))).sum(axis=1).mean())
    assert float(pi @ (np.log(pi) - found.log_mean[0])) == pytest.approx(expected, rel=2e-2)
    least = -np.log(np.exp(found.log_mean[0]).sum())
    centre = np.exp(found.log_mean[0] + least)
    divergence = (centre * (np.log(centre) - np.log(samples))).sum(axis=1)
    assert divergence.mean() == pytest.approx(least, rel=2e-2)
    for other in rng.dirichlet(np.ones(3), 50):
        assert float(other @ (np.log(other) - found.log_mean[0])) >= least - 1e-12
    for level in (1.5, 2.0, 4.0):
        assert (divergence > level * least).mean() <= 1 / level


def test_who_inherits_inherits_the_doubt() -> None:
    """The parent's own distribution is not known either, and its mean of log theta is not the log of its mean."""
    parent = root_posterior(np.array([[3, 0, 1]]))
    nothing, above = np.zeros((1, 3), dtype=np.int64), np.array([[3, 0, 1]])
    samples = np.random.default_rng(4).dirichlet([3.5, 0.5, 1.5], 400_000)
    found = child_posteriors(nothing, above, parent, GRID, np.array([1e-9, 1e-9, 1.0]))
    np.testing.assert_allclose(found.mean[0], samples.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(found.log_mean[0], np.log(samples).mean(axis=0), rtol=1e-2)


def test_the_root_is_dirichlet_with_half_a_count() -> None:
    found = root_posterior(np.array([[3, 0, 1]]))
    np.testing.assert_allclose(found.mean[0], [3.5 / 5.5, 0.5 / 5.5, 1.5 / 5.5])
    np.testing.assert_allclose(found.log_mean[0], digamma([3.5, 0.5, 1.5]) - digamma(5.5))


def learned(n: int = 3_000, seed: int = 0) -> DirichletTree:
    world = dialogue_acts_world(horizon=8)
    chats = sample_demonstrations(world, n, np.random.default_rng(seed))
    return DirichletTree(9, 3, n_context_symbols=18, start_symbol=STUDENT_ENDED).fit(chats)


def test_the_tree_is_the_recursion_along_each_path() -> None:
    tree, world = learned(), dialogue_acts_world(horizon=8)
    contexts = world.contexts[world.agent_turn][::40]
    found, alpha = tree.plausible(contexts, np.exp(-3.0)), np.exp(-3.0)
    for i, context in enumerate(contexts):
        counts = tree.path_counts(context)
        node = root_posterior(counts[:1])
        for d in range(1, 4):
            node = child_posteriors(
                counts[d : d + 1], counts[d - 1 : d], node, np.array(CONCENTRATIONS), tree.kind_shares[d - 1]
            )
        least = -float(np.log(np.exp(node.log_mean).sum()))
        np.testing.assert_allclose(tree.mixture(context), np.log(node.mean[0]), atol=1e-12)
        np.testing.assert_allclose(np.exp(found.log_centres[i, 0]), np.exp(node.log_mean[0] + least), atol=1e-12)
        assert found.radii_nats[i, 0] == pytest.approx(-np.log(alpha) * least)


def test_shares_are_learned_from_all_nodes_of_a_level() -> None:
    """Against a loop over the demonstrations in plain Python."""
    rng = np.random.default_rng(5)
    sequences = [rng.integers(0, 3, 60).tolist() for _ in range(5)]
    tree = DirichletTree(3, 2, concentrations=GRID).fit(sequences)
    counts: list[dict[tuple[int, ...], Floats]] = [{}, {}, {}]
    for sequence in sequences:
        padded = [3, 3, *sequence]
        for t, symbol in enumerate(sequence):
            for d in range(3):
                context = tuple(padded[t + 2 - d : t + 2])
                counts[d].setdefault(context, np.zeros(3, dtype=np.int64))[symbol] += 1
    nodes = {(): root_posterior(counts[0][()][None])}
    for d in (1, 2):
        contexts = sorted(counts[d])
        own = np.array([counts[d][c] for c in contexts])
        above = np.array([counts[d - 1][c[1:]] for c in contexts])
        parents = NodePosteriors(
            *(np.concatenate([getattr(nodes[c[1:]], m) for c in contexts]) for m in ("mean", "log_mean"))
        )
        shares = kind_shares(log_evidence(own, above, parents.mean, GRID))
        np.testing.assert_allclose(tree.kind_shares[d - 1], shares, atol=1e-8)
        below = child_posteriors(own, above, parents, GRID, shares)
        nodes |= {c: NodePosteriors(below.mean[i : i + 1], below.log_mean[i : i + 1]) for i, c in enumerate(contexts)}


def test_an_unseen_context_is_like_the_shorter_one_and_less_certain() -> None:
    tree = DirichletTree(2, 2, n_context_symbols=4).fit([[0, 1] * 100])
    seen, unseen = np.array([1, 0]), np.array([2, 0])
    assert tree.path_counts(unseen)[2].sum() == 0
    np.testing.assert_allclose(tree.mixture(unseen), tree.mixture([0, 0]), atol=1e-12)
    radii = [float(tree.plausible(c, 0.1).radii_nats[0]) for c in (seen, unseen)]
    assert radii[0] < radii[1] < np.inf


def test_learning_after_an_answer_changes_the_answer() -> None:
    tree = learned(500)
    before = tree.kind_shares.copy()
    tree.update(np.array([10, 11, 9]), 3)
    assert not np.array_equal(before, tree.kind_shares)


def test_blocks_of_contexts_answer_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, world = learned(500), dialogue_acts_world(horizon=8)
    whole = tree.mixture(world.contexts)
    monkeypatch.setattr("cautious_imitation.hypotheses.dirichlet_tree._BLOCK", 9 * 4 * 7)
    np.testing.assert_array_equal(tree.mixture(world.contexts), whole)


def test_its_own_level_is_the_default() -> None:
    assert CautiousImitator(DirichletTree(2, 1)).alpha == pytest.approx(np.exp(-2.5))
    assert CautiousImitator(DirichletTree(2, 1)).caution == "minimax"


@pytest.mark.parametrize("wrong", [(), (0.0,), (-1.0, 2.0), (np.nan,), (np.inf,)])
def test_concentrations_that_are_none(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="concentrations must be a list of positive numbers"):
        DirichletTree(2, 1, concentrations=wrong)


def test_without_depth_or_data_it_still_answers() -> None:
    for depth in (0, 2):
        tree = DirichletTree(3, depth)
        np.testing.assert_allclose(np.exp(tree.mixture([])), 1 / 3)
        assert np.isfinite(tree.plausible([], 0.5).radii_nats).all()
