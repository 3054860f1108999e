"""Every suffix tree written out, one by one: slow and obvious answers for ``test_context_tree.py``.

Nothing here comes from the library. A tree is the set of its leaves; a leaf is a context, oldest symbol first. Scores
are closed forms of the counts, plausibility is read off the list of all trees, and what a leaf's unknown parameters may
do is found by root finding and by search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp, softmax, xlogy

Context = tuple[int, ...]


def suffix_trees(n_context_symbols: int, depth: int, suffix: Context = ()) -> list[frozenset[Context]]:
    """All suffix trees below ``suffix``, each as the set of its leaves."""
    trees = [frozenset([suffix])]
    if len(suffix) < depth:
        below = [suffix_trees(n_context_symbols, depth, (symbol, *suffix)) for symbol in range(n_context_symbols)]
        trees += [frozenset().union(*subtrees) for subtrees in product(*below)]
    return trees


def all_contexts(n_context_symbols: int, depth: int) -> list[Context]:
    """Every context of length at most ``depth``, the shortest first."""
    return [c for length in range(depth + 1) for c in product(range(n_context_symbols), repeat=length)]


@cache
def _listing(n_context_symbols: int, depth: int) -> tuple[dict[Context, int], NDArray[np.bool_], NDArray[np.bool_]]:
    """Columns of the nodes, and for each tree which nodes are its leaves and its inner nodes: ``[T, N]`` each."""
    nodes = all_contexts(n_context_symbols, depth)
    column = {node: i for i, node in enumerate(nodes)}
    trees = suffix_trees(n_context_symbols, depth)
    is_leaf = np.zeros((len(trees), len(nodes)), dtype=np.bool_)
    for row, leaves in zip(is_leaf, trees, strict=True):
        row[[column[leaf] for leaf in leaves]] = True
    below = np.array([[len(a) < len(b) and b[len(b) - len(a) :] == a for a in nodes] for b in nodes], dtype=np.float32)
    return column, is_leaf, is_leaf.astype(np.float32) @ below > 0


@dataclass(frozen=True)
class Leaf:
    """A plausible leaf at some context: what was seen there, and how many nats its best tree is above the threshold."""

    counts: NDArray[np.int64]
    slack_nats: float

    @property
    def centre(self) -> NDArray[np.float64]:
        """Frequencies, ``[V]``; uniform where nothing was seen."""
        n = self.counts.sum()
        return self.counts / n if n else np.full(len(self.counts), 1 / len(self.counts))

    @property
    def radius_nats(self) -> float:
        """How far KL(centre || theta) may go before the log-likelihood has lost the slack."""
        n = self.counts.sum()
        return self.slack_nats / n if n else np.inf


@dataclass(frozen=True)
class ReferenceTrees:
    """The posterior over all trees, from the list of (context, symbol) pairs that were learned."""

    pairs: tuple[tuple[Context, int], ...]
    n_symbols: int
    depth: int
    n_context_symbols: int
    start_symbol: int
    stop_prob: float
    leaf: str
    complexity: str

    def path(self, context: Sequence[int]) -> list[int]:
        """Columns of the D + 1 suffixes of the padded ``context``, the root first."""
        padded = (self.start_symbol,) * self.depth + tuple(context)
        return [self._column[padded[len(padded) - d :]] for d in range(self.depth + 1)]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How often each symbol followed each node's context: ``[N, V]``."""
        counts = np.zeros((len(self._column), self.n_symbols), dtype=np.int64)
        for context, symbol in self.pairs:
            counts[self.path(context), symbol] += 1
        return counts

    @cached_property
    def log_priors(self) -> NDArray[np.float64]:
        """log prior of each tree, ``[T]``."""
        shallow = np.array([len(node) < self.depth for node in self._column])
        n_stops, n_splits = (self.is_leaf & shallow).sum(axis=1), self._is_inner.sum(axis=1)
        return n_stops * np.log(self.stop_prob) + n_splits * np.log1p(-self.stop_prob)

    @cached_property
    def log_scores(self) -> NDArray[np.float64]:
        """log prior + log-score of each tree, ``[T]``."""
        return self.log_priors + self.is_leaf @ (self._kt if self.leaf == "kt" else self._profile)

    @cached_property
    def log_evidence(self) -> float:
        """log of the probability that the mixture of all trees with KT leaves gives to all that was learned."""
        return float(logsumexp(self.log_priors + self.is_leaf @ self._kt))

    def mixture(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Posterior mean over the trees of their KT predictions at ``context``: probabilities ``[V]``."""
        path = self.path(context)
        predictions = self.kt_predictions[path][np.argmax(self.is_leaf[:, path], axis=1)]
        return softmax(self.log_priors + self.is_leaf @ self._kt) @ predictions

    @cached_property
    def kt_predictions(self) -> NDArray[np.float64]:
        """(n_a + 1/2) / (n + V/2) at each node: ``[N, V]``."""
        return (self.counts + 0.5) / (self.counts.sum(axis=1, keepdims=True) + 0.5 * self.n_symbols)

    def slacks(self, context: Sequence[int], alpha: float, rule: str = "best") -> NDArray[np.float64]:
        """Nats from the threshold to the best tree whose leaf at ``context`` has depth d, for each d: ``[D + 1]``."""
        best = np.array([self.log_scores[self.is_leaf[:, node]].max() for node in self.path(context)])
        threshold = (best.max() if rule == "best" else self.log_evidence) + np.log(alpha)
        return best - min(threshold, best.max())

    def plausible(self, context: Sequence[int], alpha: float, rule: str = "best") -> list[Leaf]:
        """The plausible leaves at ``context``."""
        slacks = self.slacks(context, alpha, rule)
        return [Leaf(self.counts[n], s) for n, s in zip(self.path(context), slacks, strict=True) if s >= 0]

    @property
    def is_leaf(self) -> NDArray[np.bool_]:
        """Which nodes are leaves of which tree: ``[T, N]``."""
        return _listing(self.n_context_symbols, self.depth)[1]

    @property
    def _is_inner(self) -> NDArray[np.bool_]:
        return _listing(self.n_context_symbols, self.depth)[2]

    @property
    def _column(self) -> dict[Context, int]:
        return _listing(self.n_context_symbols, self.depth)[0]

    @property
    def _kt(self) -> NDArray[np.float64]:
        """Log marginal likelihood of each node's symbols, in their order, under a Dirichlet(1/2) prior."""
        half, n = 0.5 * self.n_symbols, self.counts.sum(axis=1)
        return gammaln(half) - gammaln(half + n) + (gammaln(self.counts + 0.5) - gammaln(0.5)).sum(axis=1)

    @property
    def _profile(self) -> NDArray[np.float64]:
        """Maximised log-likelihood of each node's counts less the complexity."""
        n = self.counts.sum(axis=1)
        free = {
            "none": 0.0 * n,
            "support": np.maximum((self.counts > 0).sum(axis=1) - 1, 0),
            "bic": self.n_symbols - 1 + 0 * n,
        }[self.complexity]
        return xlogy(self.counts, self.counts).sum(axis=1) - xlogy(n, n) - free / 2 * np.log(n + 1)


def learned_pairs(sequences: Iterable[Sequence[int]], n_symbols: int) -> Iterator[tuple[Context, int]]:
    """(context, symbol) for every symbol below ``n_symbols``; contexts stay within their sequence."""
    for sequence in sequences:
        for t, symbol in enumerate(sequence):
            if symbol < n_symbols:
                yield tuple(int(s) for s in sequence[:t]), int(symbol)


def chain(n: int, n_symbols: int, rng: np.random.Generator) -> list[int]:
    """A sequence that depends on its last two symbols, sharply enough for trees to differ."""
    table = rng.dirichlet(np.full(n_symbols, 0.4), size=(n_symbols, n_symbols))
    sequence = [int(s) for s in rng.integers(n_symbols, size=2)]
    while len(sequence) < n:
        sequence.append(int(rng.choice(n_symbols, p=table[sequence[-2], sequence[-1]])))
    return sequence[:n]


def least_probability(p: float, radius: float) -> float:
    """Least q with KL(Bernoulli p || Bernoulli q) <= radius: the least probability of one action over a ball."""
    if p == 0 or radius == 0 or radius == np.inf:
        return p if radius == 0 else 0.0

    def excess(log_q: float) -> float:
        rest = (1 - p) * (np.log1p(-p) - np.log1p(-np.exp(log_q))) if p < 1 else 0.0
        return p * (np.log(p) - log_q) + rest - radius

    # At the lower end p (log p - log q) alone exceeds the radius and what the rest can take off.
    return float(np.exp(brentq(excess, np.log(p) - 1 - (radius + 1) / p, np.log(p), xtol=1e-14)))


def worst_kl_by_search(p: NDArray[np.float64], radius: float, pi: NDArray[np.float64]) -> float:
    """max KL(pi || theta) over {theta: KL(p || theta) <= radius} for at most three actions, in nats.

    The maximum of a convex function is on the boundary: found on rays from p, over the whole circle of directions, in
    each face of the simplex that holds p.
    """
    if (pi[p == 0] > 0).any() or radius == np.inf:
        return np.inf
    unseen, largest = np.flatnonzero(p == 0), _kl(pi, p)
    for size in range(len(unseen) + 1):
        for extra in combinations(unseen, size):
            face = np.sort(np.concatenate([np.flatnonzero(p > 0), extra]).astype(int))
            if len(face) == 2:
                for direction in ([1.0, -1.0], [-1.0, 1.0]):
                    largest = max(largest, _on_ray(p[face], radius, pi[face], np.array([direction]))[0])
            elif len(face) == 3:
                largest = max(largest, _on_circle(p[face], radius, pi[face]))
    return float(largest)


def _on_circle(p: NDArray[np.float64], radius: float, pi: NDArray[np.float64]) -> float:
    def value(angle: NDArray[np.float64]) -> NDArray[np.float64]:
        across, along = np.array([1.0, -1.0, 0.0]) / np.sqrt(2), np.array([1.0, 1.0, -2.0]) / np.sqrt(6)
        return _on_ray(p, radius, pi, np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * along)

    # Not a fraction of the circle, so that symmetric problems are not hit exactly by luck.
    middle, reach = np.sqrt(2), np.pi
    for _ in range(4):
        angles = np.linspace(middle - reach, middle + reach, 201)
        values = value(angles)
        middle, reach = angles[np.argmax(values)], angles[1] - angles[0]
    return float(values.max())


def _on_ray(
    p: NDArray[np.float64], radius: float, pi: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """KL(pi || theta) where each ray ``p + t direction`` leaves the ball, by bisection; -inf outside the simplex."""
    with np.errstate(divide="ignore", invalid="ignore"):
        farthest = np.where(directions < 0, -p / directions, np.inf).min(axis=1)
        low, high = np.zeros(len(directions)), farthest
        for _ in range(52):
            middle = 0.5 * (low + high)
            inside = _kl(p, p + middle[:, None] * directions) <= radius
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        return np.where(farthest > 0, _kl(pi, p + low[:, None] * directions), -np.inf)


def _kl(pi: NDArray[np.float64], nu: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pi > 0, pi * (np.log(np.where(pi > 0, pi, 1.0)) - np.log(nu)), 0.0).sum(axis=-1)


class RecursiveTrees:
    """The same two quantities from a recursion over the contexts that occurred, for classes too large to list.

    Args:
        pairs: what was learned, as (context, symbol).
        log_split: log(1 - stop_prob), given itself because 1 - stop_prob may not be a double.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Context, int]],
        *,
        n_symbols: int,
        depth: int,
        n_context_symbols: int,
        start_symbol: int,
        log_stop: float,
        log_split: float,
    ) -> None:
        self.n_symbols, self.depth, self.k, self.start_symbol = n_symbols, depth, n_context_symbols, start_symbol
        self.log_stop, self.log_split = log_stop, log_split
        self.counts: dict[Context, NDArray[np.int64]] = {}
        self.best = cache(self._best)
        for context, symbol in pairs:
            for node in self.path(context):
                self.counts.setdefault(node, np.zeros(n_symbols, dtype=np.int64))[symbol] += 1

    def path(self, context: Sequence[int]) -> list[Context]:
        padded = (self.start_symbol,) * self.depth + tuple(context)[max(0, len(context) - self.depth) :]
        return [padded[len(padded) - d :] for d in range(self.depth + 1)]

    def _best(self, node: Context) -> float:
        """Best log-score of a tree below ``node``, KT leaves."""
        if node not in self.counts:
            return self._unseen(len(node))
        if len(node) == self.depth:
            return self.kt(node)
        below = sum(self.best((c, *node)) for c in range(self.k))
        return max(self.log_stop + self.kt(node), self.log_split + below)

    def evidence(self, node: Context = ()) -> float:
        """log of the mixture's probability of what was learned below ``node``."""
        if node not in self.counts:
            return 0.0
        if len(node) == self.depth:
            return self.kt(node)
        below = sum(self.evidence((c, *node)) for c in range(self.k))
        return float(np.logaddexp(self.log_stop + self.kt(node), self.log_split + below))

    def slacks(self, context: Sequence[int], alpha: float) -> NDArray[np.float64]:
        """M_d - max M - log alpha for each depth d, ``[D + 1]``."""
        above, path, scores = 0.0, self.path(context), []
        for d, node in enumerate(path):
            scores.append(above + self.kt(node) + (self.log_stop if d < self.depth else 0.0))
            if d < self.depth:
                off_path = [(c, *node) for c in range(self.k) if (c, *node) != path[d + 1]]
                above += self.log_split + sum(self.best(other) for other in off_path)
        return np.array(scores) - max(scores) - np.log(alpha)

    def kt(self, node: Context) -> float:
        counts, half = self.counts.get(node, np.zeros(self.n_symbols)), 0.5 * self.n_symbols
        n = counts.sum()
        return float(gammaln(half) - gammaln(half + n) + (gammaln(counts + 0.5) - gammaln(0.5)).sum())

    def _unseen(self, depth: int) -> float:
        if depth == self.depth:
            return 0.0
        return max(self.log_stop, self.log_split + self.k * self._unseen(depth + 1))
