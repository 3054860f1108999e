"""Compiled core of the context tree: nodes in one open-addressing table, D + 1 of them on the path of a context.

A node is ``width`` 64-bit words: key, mixture log-odds g, maximum log-odds gamma, then V 32-bit counts. The same memory
is passed in three flat views: ``words`` (int64), ``odds`` (float64) and ``counts`` (uint32); a node is named by the
position of its first word. A context suffix c_1 (the most
recent symbol), ..., c_d has the key 1 + sum_j (c_j + 1) (k + 1)^(j-1), unique over all depths; 0 marks a free row. All
D + 1 addresses of a path are computed before the first one is loaded, so that the cache misses overlap.

The recursions are those of docs/theory.md, "All context trees at once".
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.ball_kernels import least_probability, wilson_bound
from cautious_imitation.vector_math import padded, vector_exp, vector_log

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.uint32]
Bools = NDArray[np.bool_]

ROOT_KEY = 1

MIXTURE, MAXIMUM, FIRST_COUNT = 1, 2, 6
"""Offsets in a node: g and gamma in the float64 view, the first count in the uint32 view."""

LOSS, ORDER = MIXTURE, MAXIMUM
"""What the same two words hold at full depth, where g and gamma are infinite: the mixture's log-loss on the symbols
learned there, and the node's place, from 1, in the order in which the nodes of that depth were first seen."""

_FEW = 4
"""Alphabets up to this size are summed level by level in registers, larger ones symbol by symbol in vectors."""

KT, PROFILE = 0, 1
NONE, SUPPORT, BIC = 0, 1, 2
BEST, TOTAL, ANYTIME = 0, 1, 2

FIRST_SHARES = 100.0
"""About how many nodes get shares of delta of one size before shares begin to fall."""


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def find_path(
    words: Ints, width: int, shift: int, powers: Ints, buffer: Ints, offset: int, depth: int, keys: Ints, nodes: Ints
) -> int:
    """Nodes of the suffixes of ``buffer[offset : offset + depth]``, shortest first.

    Fills ``keys`` and ``nodes`` and returns how many are stored. All suffixes longer than a missing one are missing
    too; their ``nodes`` are where a search for free words begins.
    """
    key = ROOT_KEY
    keys[0] = key
    for d in range(1, depth + 1):
        key += (buffer[offset + depth - d] + 1) * powers[d]
        keys[d] = key
    touched = np.int64(0)
    for d in range(depth + 1):
        nodes[d] = slot_of(keys[d], shift) * width
        touched |= words[nodes[d]]
    if touched == 0:
        return 0
    stored = 0
    for d in range(depth + 1):
        node = nodes[d]
        found = words[node]
        while found != 0 and found != keys[d]:
            node += width
            if node == words.shape[0]:
                node = 0
            found = words[node]
        nodes[d] = node
        if found == 0:
            break
        stored = d + 1
    return stored


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def slot_of(key: int, shift: int) -> np.int64:
    """Where the search for ``key`` begins in a table of 2^(64 - shift) slots (Fibonacci hashing)."""
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift))


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def path_totals(counts: Counts, nodes: Ints, stored: int, n_symbols: int, totals: Ints) -> None:
    """Number of symbols seen at each stored node of the path."""
    for d in range(stored):
        row = counts_of(counts, nodes[d], n_symbols)
        total = 0
        for a in range(n_symbols):
            total += row[a]
        totals[d] = total


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def counts_of(counts: Counts, node: int, n_symbols: int) -> Counts:
    """The counts of one node; a slice, so that loops over it compile to vector instructions."""
    first = 2 * node + FIRST_COUNT
    return counts[first : first + n_symbols]


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def path_mixture(
    odds: Floats,
    counts: Counts,
    nodes: Ints,
    totals: Ints,
    stored: int,
    depth: int,
    symbol: int,
    mixture: Floats,
    below: Floats,
    scratch: Floats,
) -> None:
    """Context-tree-weighting prediction with Krichevsky-Trofimov leaves into ``mixture [V]`` (probabilities).

    ``below[d]`` gets the probability of ``symbol`` under the mixture of the subtree at depth d (uniform below the
    stored nodes), which the update needs. ``scratch [3, padded(depth + 1)]`` holds positive numbers.
    """
    n_symbols = mixture.shape[0]
    weights, shares, own, uniform = scratch[0], scratch[1], scratch[2], 1.0 / n_symbols
    inner = min(stored, depth)
    for d in range(inner):
        own[d] = odds[nodes[d] + MIXTURE]
    for d in range(padded(inner)):
        weights[d] = 1.0 / (1.0 + vector_exp(-own[d]))
    weights[depth] = 1.0
    for d in range(stored, depth + 2):
        below[d] = uniform
    for d in range(stored):
        shares[d] = 1.0 / (totals[d] + 0.5 * n_symbols)
    for d in range(stored):
        own[d] = weights[d] * (shares[d] * (counts[2 * nodes[d] + FIRST_COUNT + symbol] + 0.5))
    deeper = uniform
    for d in range(stored - 1, -1, -1):
        deeper = own[d] + (1.0 - weights[d]) * deeper
        below[d] = deeper
    left = 1.0
    for d in range(stored):
        shares[d] *= left * weights[d]
        left *= 1.0 - weights[d]
    if n_symbols <= _FEW:
        for a in range(n_symbols):
            total = left * uniform
            for d in range(stored):
                total += shares[d] * (counts[2 * nodes[d] + FIRST_COUNT + a] + 0.5)
            mixture[a] = total
        return
    for a in range(n_symbols):
        mixture[a] = left * uniform
    for d in range(stored):
        row, share = counts_of(counts, nodes[d], n_symbols), shares[d]
        for a in range(n_symbols):
            mixture[a] += share * (row[a] + 0.5)


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def path_slacks(
    odds: Floats, nodes: Ints, stored: int, depth: int, start: Floats, log_alpha: float, slack: Floats
) -> int:
    """log(F_d / F*) - log alpha for each depth d; returns the number of depths that can be plausible at all.

    F_d is the best score of a tree whose leaf here has depth d, F* the best of all; ``start`` holds gamma of nodes that
    are not stored. Depth d is plausible where its slack is at least 0; deeper than the returned number none is.
    """
    above = -log_alpha
    for d in range(depth + 1):
        gamma = np.inf if d == depth else (odds[nodes[d] + MAXIMUM] if d < stored else start[d])
        slack[d] = above + min(0.0, gamma)
        above += min(0.0, -gamma)
        if above < 0.0:
            return d + 1
    return depth + 1


@njit(cache=True, nogil=True, error_model="numpy")
def anytime_slacks(
    odds: Floats,
    counts: Counts,
    nodes: Ints,
    totals: Ints,
    stored: int,
    depth: int,
    n_symbols: int,
    log_alpha: float,
    slack: Floats,
) -> int:
    """The same by the rule ``ANYTIME``: of all depths the full one alone is plausible.

    Its slack is log(1/delta_j) + L - n H, and 0 where that is negative: no distribution is left then, which happens
    with probability alpha at most if the demonstrator is a tree of the class, and a ball needs a centre.
    """
    slack[:depth] = -1.0
    slack[depth] = 0.0
    if stored > depth:
        node, entropy = nodes[depth], _n_log_n(np.float64(totals[depth]))
        row = counts_of(counts, node, n_symbols)
        for a in range(n_symbols):
            entropy -= _n_log_n(np.float64(row[a]))
        log_share = 1.5 * np.log(FIRST_SHARES + odds[node + ORDER]) - 0.5 * np.log(FIRST_SHARES) + np.log(2.0)
        slack[depth] = max(0.0, log_share - log_alpha + odds[node + LOSS] - entropy)
    return depth + 1


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def path_minimum(
    counts: Counts, nodes: Ints, totals: Ints, stored: int, slack: Floats, n_depths: int, leaf: int, out: Floats
) -> None:
    """Plausible minimum over the depths of one path into ``out [V]`` (probabilities)."""
    n_symbols = out.shape[0]
    if leaf == KT:
        for a in range(n_symbols):
            out[a] = 1.0
        for d in range(n_depths):
            if slack[d] >= 0.0:
                if d >= stored:
                    for a in range(n_symbols):
                        out[a] = min(out[a], 1.0 / n_symbols)
                    break
                row, scale = counts_of(counts, nodes[d], n_symbols), 1.0 / (totals[d] + 0.5 * n_symbols)
                for a in range(n_symbols):
                    out[a] = min(out[a], scale * (row[a] + 0.5))
        return
    for a in range(n_symbols):
        out[a] = _profile_minimum(counts, FIRST_COUNT + a, nodes, totals, stored, slack, n_depths)


@njit(cache=True, nogil=True, error_model="numpy")
def _profile_minimum(
    counts: Counts, offset: int, nodes: Ints, totals: Ints, stored: int, slack: Floats, n_depths: int
) -> float:
    """Least probability of one action over the plausible profile leaves of a path.

    The leaf that looks lowest is solved first. Another one is solved only if it can be lower: kl(p, q) is at least
    (p - q)^2 / (2 v), with v the largest x (1 - x) between q and p.
    """
    lowest, at = 2.0, -1
    for d in range(n_depths - 1, -1, -1):
        if slack[d] >= 0.0:
            if d >= stored:
                return 0.0
            seen = counts[2 * nodes[d] + offset]
            if seen == 0:
                return 0.0
            wilson = wilson_bound(seen / totals[d], slack[d] / totals[d])
            if wilson < lowest:
                lowest, at = wilson, d
    least = least_probability(counts[2 * nodes[at] + offset] / totals[at], slack[at] / totals[at])
    for d in range(n_depths):
        if slack[d] >= 0.0 and d != at:
            p, radius = counts[2 * nodes[d] + offset] / totals[d], slack[d] / totals[d]
            if p <= least:
                least = least_probability(p, radius)
                continue
            spread = p * (1.0 - p) if p <= 0.5 else (0.25 if least < 0.5 else least * (1.0 - least))
            if (p - least) * (p - least) < 2.0 * radius * spread and _kl(p, least) < radius:
                least = least_probability(p, radius)
    return least


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _kl(p: float, q: float) -> float:
    """KL of two Bernoulli distributions, 0 < q < p <= 1, in nats."""
    return float(p * np.log(p / q) + ((1.0 - p) * (np.log1p(-p) - np.log1p(-q)) if p < 1.0 else 0.0))


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _complexity(kind: int, n_symbols: int, support: int) -> float:
    """What a leaf pays for its parameters, in multiples of log(total + 1)."""
    return 0.5 * (n_symbols - 1 if kind == BIC else max(support - 1, 0))


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _n_log_n(n: float) -> float:
    """n log n, with 0 log 0 = 0."""
    return n * vector_log(max(n, 1.0))


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _leaf_increments(
    counts: Counts,
    nodes: Ints,
    totals: Ints,
    depth: int,
    symbol: int,
    n_symbols: int,
    leaf: int,
    complexity: int,
    below: Floats,
    gains: Floats,
    changes: Floats,
    seen: Floats,
) -> None:
    """What adding ``symbol`` does to the scores, level by level, in nats; ``seen`` is scratch.

    ``gains [depth + 1]`` gets the change of each leaf's log-score, ``changes [depth + 1]`` that of the mixture's
    log-odds: the Krichevsky-Trofimov probability of the symbol against that of the mixture one level deeper.
    """
    levels, half = depth + 1, 0.5 * n_symbols
    for d in range(levels):
        seen[d] = counts[2 * nodes[d] + FIRST_COUNT + symbol]
    if leaf == KT:
        for d in range(padded(levels)):
            share = (seen[d] + 0.5) / (totals[d] + half)
            gains[d] = vector_log(share)
            changes[d] = vector_log(share / below[d + 1])
        return
    for d in range(padded(levels)):
        total = np.float64(totals[d])
        changes[d] = vector_log((seen[d] + 0.5) / ((total + half) * below[d + 1]))
        gains[d] = (_n_log_n(seen[d] + 1.0) - _n_log_n(seen[d])) - (_n_log_n(total + 1.0) - _n_log_n(total))
    if complexity == NONE:
        return
    for d in range(levels):
        first, support = 2 * nodes[d] + FIRST_COUNT, 0
        if complexity == SUPPORT:
            for a in range(n_symbols):
                support += 1 if counts[first + a] > 0 else 0
        fresh = 1 if counts[first + symbol] == 0 else 0
        gains[d] -= _complexity(complexity, n_symbols, support + fresh) * np.log(totals[d] + 2.0)
        gains[d] += _complexity(complexity, n_symbols, support) * np.log(totals[d] + 1.0)


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def learn_path(
    words: Ints,
    odds: Floats,
    counts: Counts,
    width: int,
    keys: Ints,
    nodes: Ints,
    totals: Ints,
    stored: int,
    depth: int,
    start: Floats,
    start_mixture: float,
    symbol: int,
    n_symbols: int,
    leaf: int,
    complexity: int,
    below: Floats,
    scratch: Floats,
) -> float:
    """Add ``symbol`` to every node of the path, creating missing ones; returns the change of the best tree's log-score.

    ``below`` is what ``path_mixture`` left; ``scratch`` is as there.
    """
    for d in range(stored, depth + 1):
        node = nodes[d]
        while words[node] != 0:
            node += width
            if node == words.shape[0]:
                node = 0
        words[node] = keys[d]
        odds[node + MIXTURE] = start_mixture
        odds[node + MAXIMUM] = start[d]
        nodes[d] = node
        totals[d] = 0
    gains, changes = scratch[0], scratch[1]
    _leaf_increments(
        counts, nodes, totals, depth, symbol, n_symbols, leaf, complexity, below, gains, changes, scratch[2]
    )
    best = float(gains[depth])
    counts[2 * nodes[depth] + FIRST_COUNT + symbol] += 1
    for d in range(depth - 1, -1, -1):
        node = nodes[d]
        before = odds[node + MAXIMUM]
        after = before + gains[d] - best
        odds[node + MAXIMUM] = after
        best = gains[d] + max(0.0, -after) - max(0.0, -before)
        odds[node + MIXTURE] += changes[d]
        counts[2 * node + FIRST_COUNT + symbol] += 1
    return best
