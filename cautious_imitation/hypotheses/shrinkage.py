"""Hierarchical shrinkage: what a node of a context tree may be, given its own counts and what its parent is.

A node either inherits its parent's distribution or has one of its own, drawn from a Dirichlet distribution around the
parent's with one of a few concentrations. How often each happens is learned level by level (nonparametric empirical
Bayes); which one it was at a node is weighed by the node's counts. Two means of the posterior are kept: of theta, which
predicts, and of log theta, which charges: KL(pi || theta) is linear in log theta, so that the posterior expectation of
the true divergence is the divergence from exp E[log theta], a sub-distribution. Formulas: docs/theory.md, "Shrinkage".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaln

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROOT_PSEUDO_COUNT = 0.5
"""Of each symbol at the root, which has no parent (Krichevsky-Trofimov)."""

_PSEUDO_NODES = 1.0
"""Nodes that every kind has been seen at beforehand, so that no kind is ruled out."""

_ROUNDS, _TOLERANCE = 200, 1e-9


@dataclass(frozen=True)
class NodePosteriors:
    """What nodes of one depth may be.

    Attributes:
        mean: ``[N, V]`` posterior mean of theta, the predictive probability.
        log_mean: ``[N, V]`` posterior mean of log theta, in nats.
    """

    mean: Floats
    log_mean: Floats


def root_posterior(counts: Ints) -> NodePosteriors:
    """The root's, from its counts ``[N, V]``: Dirichlet with half a count of each symbol."""
    pseudo = counts + _ROOT_PSEUDO_COUNT
    total = pseudo.sum(axis=1, keepdims=True)
    return NodePosteriors(pseudo / total, digamma(pseudo) - digamma(total))


def log_evidence(counts: Ints, parent_counts: Ints, parent_mean: Floats, concentrations: Floats) -> Floats:
    """Log-probability of each node's counts ``[N, V]`` under each kind of node: ``[N, G + 1]`` nats, inheriting last.

    The parent's distribution is estimated without the node's own share of it, one pseudo-count of its mean added.
    """
    others = parent_counts - counts
    centre = (others + parent_mean) / (others.sum(axis=1, keepdims=True) + 1.0)
    totals = counts.sum(axis=1)
    rows, symbols = np.nonzero(counts)
    seen, expected = counts[rows, symbols], centre[rows, symbols]
    found = np.empty((len(counts), len(concentrations) + 1))
    for g, c in enumerate(concentrations):
        gained = gammaln(seen + c * expected) - gammaln(c * expected)
        found[:, g] = np.bincount(rows, gained, len(counts)) + gammaln(c) - gammaln(c + totals)
    found[:, -1] = np.bincount(rows, seen * np.log(expected), len(counts))
    return found


def kind_shares(evidence: Floats) -> Floats:
    """How often each kind of node occurs, ``[G + 1]``, by expectation-maximisation over the nodes' ``evidence``."""
    kinds = evidence.shape[1]
    shares = np.full(kinds, 1.0 / kinds)
    for _ in range(_ROUNDS):
        after = (responsibilities(evidence, shares).sum(axis=0) + _PSEUDO_NODES) / (
            len(evidence) + _PSEUDO_NODES * kinds
        )
        moved = np.abs(after - shares).max()
        shares = after
        if moved <= _TOLERANCE:
            break
    return shares


def responsibilities(evidence: Floats, shares: Floats) -> Floats:
    """Posterior probability of each kind at each node: ``[N, G + 1]``."""
    weights = evidence + np.log(shares)
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def child_posteriors(
    counts: Ints, parent_counts: Ints, parent: NodePosteriors, concentrations: Floats, shares: Floats
) -> NodePosteriors:
    """What nodes with ``counts [N, V]`` may be, below parents that were seen ``parent_counts [N, V]``."""
    weights = responsibilities(log_evidence(counts, parent_counts, parent.mean, concentrations), shares)
    mean, log_mean = weights[:, -1:] * parent.mean, weights[:, -1:] * parent.log_mean
    totals = counts.sum(axis=1, keepdims=True)
    for g, c in enumerate(concentrations):
        pseudo, weight = counts + c * parent.mean, weights[:, g : g + 1]
        mean += weight * pseudo / (totals + c)
        log_mean += weight * (digamma(pseudo) - digamma(totals + c))
    return NodePosteriors(mean / mean.sum(axis=1, keepdims=True), log_mean)
