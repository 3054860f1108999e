"""Compiled core of the context tree: nodes in one open-addressing table, D + 1 of them on the path of a context.

A node is a row of 64-bit words: key, mixture log-odds g, maximum log-odds gamma, then V 32-bit counts. The same memory
is passed in three views: ``words`` (int64), ``odds`` (float64) and ``counts`` (uint32). A context suffix c_1 (the most
recent symbol), ..., c_d has the key 1 + sum_j (c_j + 1) (k + 1)^(j-1), unique over all depths; 0 marks a free row. All
D + 1 addresses of a path are computed before the first one is loaded, so that the cache misses overlap.

The recursions are those of docs/theory.md, "All context trees at once".
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cautious_imitation.ball_kernels import least_probability

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.uint32]
Bools = NDArray[np.bool_]

MIXTURE, MAXIMUM, FIRST_COUNT = 1, 2, 6
"""Columns: g and gamma in the float64 view, the first count in the uint32 view."""

KT, PROFILE = 0, 1
NONE, SUPPORT, BIC = 0, 1, 2

_TABLE = 4096
_LOG = np.log(np.maximum(np.arange(2 * _TABLE) * 0.5, 1e-300))
"""Logs of half-integers, the only arguments that counts produce."""


@njit(cache=True, nogil=True)
def _log_half(twice: int) -> float:
    """log(twice / 2); counts make the same few arguments again and again."""
    return _LOG[twice] if twice < 2 * _TABLE else np.log(0.5 * twice)


@njit(cache=True, nogil=True)
def _xlogx(n: int) -> float:
    return n * _log_half(2 * n) if n > 0 else 0.0


@njit(cache=True, nogil=True)
def find_path(
    words: Ints, shift: int, powers: Ints, buffer: Ints, offset: int, depth: int, keys: Ints, slots: Ints
) -> int:
    """Rows of the suffixes of ``buffer[offset : offset + depth]`` in the table, shortest first.

    Fills ``keys`` and ``slots`` and returns how many nodes are stored. All suffixes longer than a missing one are
    missing too; their ``slots`` are where a search for a free row begins.
    """
    key = 1
    keys[0] = key
    for d in range(1, depth + 1):
        key += (buffer[offset + depth - d] + 1) * powers[d]
        keys[d] = key
    for d in range(depth + 1):
        slots[d] = (np.uint64(keys[d]) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift)
    mask = words.shape[0] - 1
    stored = 0
    for d in range(depth + 1):
        slot = slots[d]
        found = words[slot, 0]
        while found != 0 and found != keys[d]:
            slot = (slot + 1) & mask
            found = words[slot, 0]
        slots[d] = slot
        if found == 0:
            break
        stored = d + 1
    return stored


@njit(cache=True, nogil=True)
def path_totals(counts: Counts, slots: Ints, stored: int, n_symbols: int, totals: Ints) -> None:
    """Number of symbols seen at each stored node of the path."""
    for d in range(stored):
        total = 0
        for a in range(n_symbols):
            total += counts[slots[d], FIRST_COUNT + a]
        totals[d] = total


@njit(cache=True, nogil=True)
def path_mixture(
    odds: Floats,
    counts: Counts,
    slots: Ints,
    totals: Ints,
    stored: int,
    depth: int,
    symbol: int,
    mixture: Floats,
    below: Floats,
) -> None:
    """Context-tree-weighting prediction with Krichevsky-Trofimov leaves into ``mixture [V]`` (probabilities).

    ``below[d]`` gets the probability of ``symbol`` under the mixture of the subtree at depth d (uniform below the
    stored nodes), which the update needs.
    """
    n_symbols = mixture.shape[0]
    uniform = 1.0 / n_symbols
    mixture[:] = uniform
    for d in range(stored, depth + 2):
        below[d] = uniform
    for d in range(stored - 1, -1, -1):
        weight = 1.0 if d == depth else 1.0 / (1.0 + np.exp(-odds[slots[d], MIXTURE]))
        scale = weight / (totals[d] + 0.5 * n_symbols)
        rest = 1.0 - weight
        row = slots[d]
        for a in range(n_symbols):
            mixture[a] = scale * (counts[row, FIRST_COUNT + a] + 0.5) + rest * mixture[a]
        below[d] = mixture[symbol]


@njit(cache=True, nogil=True)
def path_slacks(odds: Floats, slots: Ints, stored: int, depth: int, start: Floats, log_alpha: float, slack: Floats) -> int:
    """log(F_d / F*) - log alpha for each depth d; returns the number of depths that can be plausible at all.

    F_d is the best score of a tree whose leaf here has depth d, F* the best of all; ``start`` holds gamma of nodes that
    are not stored. Depth d is plausible where its slack is at least 0; deeper than the returned number none is.
    """
    above = -log_alpha
    for d in range(depth + 1):
        gamma = np.inf if d == depth else (odds[slots[d], MAXIMUM] if d < stored else start[d])
        slack[d] = above + min(0.0, gamma)
        above += min(0.0, -gamma)
        if above < 0.0:
            return d + 1
    return depth + 1


@njit(cache=True, nogil=True)
def path_minimum(
    counts: Counts, slots: Ints, totals: Ints, stored: int, slack: Floats, n_depths: int, leaf: int, out: Floats
) -> None:
    """Plausible minimum over the depths of one path into ``out [V]`` (probabilities)."""
    n_symbols = out.shape[0]
    out[:] = 1.0
    for d in range(n_depths - 1, -1, -1):
        if slack[d] < 0.0:
            continue
        if d >= stored:
            least = 1.0 / n_symbols if leaf == KT else 0.0
            for a in range(n_symbols):
                out[a] = min(out[a], least)
            continue
        row, total = slots[d], totals[d]
        if leaf == KT:
            scale = 1.0 / (total + 0.5 * n_symbols)
            for a in range(n_symbols):
                out[a] = min(out[a], scale * (counts[row, FIRST_COUNT + a] + 0.5))
            continue
        radius = slack[d] / total
        for a in range(n_symbols):
            seen = counts[row, FIRST_COUNT + a]
            if seen == 0:
                out[a] = 0.0
            elif out[a] > 0.0:
                p = seen / total
                # KL(p, q) >= (p - q)^2 / (2 p) for q < p: skip where this depth cannot lower the minimum.
                if out[a] >= p or (p - out[a]) * (p - out[a]) > 2.0 * p * radius or _kl(p, out[a]) < radius:
                    out[a] = min(out[a], least_probability(p, radius))


@njit(cache=True, nogil=True)
def _kl(p: float, q: float) -> float:
    """KL of two Bernoulli distributions, 0 < q < p <= 1, in nats."""
    return p * np.log(p / q) + ((1.0 - p) * (np.log1p(-p) - np.log1p(-q)) if p < 1.0 else 0.0)


@njit(cache=True, nogil=True)
def _complexity(kind: int, n_symbols: int, total: int, support: int) -> float:
    if kind == NONE:
        return 0.0
    free = n_symbols - 1 if kind == BIC else max(support - 1, 0)
    return 0.5 * free * _log_half(2 * (total + 1))


@njit(cache=True, nogil=True)
def _leaf_increment(
    counts: Counts, row: int, total: int, symbol: int, n_symbols: int, leaf: int, complexity: int, log_kt: float
) -> float:
    """Change of a leaf's log-score when ``symbol`` is added to its counts, in nats."""
    if leaf == KT:
        return log_kt
    seen = counts[row, FIRST_COUNT + symbol]
    gain = _xlogx(seen + 1) - _xlogx(seen) - _xlogx(total + 1) + _xlogx(total)
    if complexity != NONE:
        support = 0
        if complexity == SUPPORT:
            for a in range(n_symbols):
                support += 1 if counts[row, FIRST_COUNT + a] > 0 else 0
        fresh = 1 if seen == 0 else 0
        gain -= _complexity(complexity, n_symbols, total + 1, support + fresh)
        gain += _complexity(complexity, n_symbols, total, support)
    return gain


@njit(cache=True, nogil=True)
def learn_path(
    words: Ints,
    odds: Floats,
    counts: Counts,
    keys: Ints,
    slots: Ints,
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
) -> float:
    """Add ``symbol`` to every node of the path, creating missing ones; returns the change of the best tree's log-score."""
    mask = words.shape[0] - 1
    for d in range(stored, depth + 1):
        row = slots[d]
        while words[row, 0] != 0:
            row = (row + 1) & mask
        words[row, 0] = keys[d]
        odds[row, MIXTURE] = start_mixture
        odds[row, MAXIMUM] = start[d]
        slots[d] = row
        totals[d] = 0
    best = 0.0
    for d in range(depth, -1, -1):
        row, total = slots[d], totals[d]
        log_kt = _log_half(2 * counts[row, FIRST_COUNT + symbol] + 1) - _log_half(2 * total + n_symbols)
        gain = _leaf_increment(counts, row, total, symbol, n_symbols, leaf, complexity, log_kt)
        if d == depth:
            best = gain
        else:
            before = odds[row, MAXIMUM]
            after = before + gain - best
            odds[row, MAXIMUM] = after
            best = gain + max(0.0, -after) - max(0.0, -before)
            odds[row, MIXTURE] += log_kt - np.log(below[d + 1])
        counts[row, FIRST_COUNT + symbol] += 1
    return best

