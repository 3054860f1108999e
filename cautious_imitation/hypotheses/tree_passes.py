"""Compiled passes of a context tree over many contexts: learn, predict, and list the plausible leaves."""

from __future__ import annotations

import numpy as np
from numba import njit

from cautious_imitation.hypotheses.tree_kernels import (
    ANYTIME,
    FIRST_COUNT,
    KT,
    LOSS,
    MAXIMUM,
    ORDER,
    TOTAL,
    Bools,
    Counts,
    Floats,
    Ints,
    anytime_slacks,
    find_path,
    learn_path,
    path_minimum,
    path_mixture,
    path_slacks,
    path_totals,
    slot_of,
)
from cautious_imitation.vector_math import padded


@njit(cache=True, nogil=True, error_model="numpy")
def path_scratch(depth: int) -> tuple[Ints, Ints, Ints]:
    """Room for the keys, nodes and totals of one path."""
    return np.zeros(depth + 1, np.int64), np.zeros(depth + 1, np.int64), np.zeros(padded(depth + 1), np.int64)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_pass(
    words: Ints,
    odds: Floats,
    counts: Counts,
    width: int,
    room: int,
    n_deepest: int,
    powers: Ints,
    start: Floats,
    start_mixture: float,
    leaf: int,
    complexity: int,
    buffer: Ints,
    stride: int,
    symbols: Ints,
    learn: Bools,
    begin: int,
    log_alpha: float,
    rule: int,
    scores: Floats,
    mixtures: Floats,
    minima: Floats,
) -> tuple[int, int, int]:
    """Predict and then learn position by position; context ``i`` is ``buffer[i * stride : i * stride + depth]``.

    Positions with ``learn`` False are passed over. ``scores`` accumulates [best tree's log-score, mixture's log-score];
    with the rule ``TOTAL`` plausibility is relative to the latter. ``n_deepest`` nodes of full depth are stored.
    With rows in ``mixtures`` and ``minima`` (``[T, V]``) the predictions made before learning are written there, as
    probabilities; with no rows only the learning is done. Stops early when fewer than depth + 1 of the ``room`` free
    rows are left; returns ``(next position, rows used, nodes of full depth)``.
    """
    depth, n_symbols = powers.shape[0] - 1, mixtures.shape[1]
    shift = 64 - _bits(words.shape[0] // width - 1)
    keys, nodes, totals = path_scratch(depth)
    slack = np.empty(depth + 1)
    room_for = padded(depth + 1)
    below, mixture, scratch = np.ones(room_for + 1), np.empty(n_symbols), np.ones((3, room_for))
    keep = mixtures.shape[0] > 0
    used = 0
    for i in range(begin, symbols.shape[0]):
        if not learn[i]:
            continue
        if room - used < depth + 1:
            return i, used, n_deepest
        symbol = symbols[i]
        stored = find_path(words, width, shift, powers, buffer, i * stride, depth, keys, nodes)
        path_totals(counts, nodes, stored, n_symbols, totals)
        path_mixture(odds, counts, nodes, totals, stored, depth, symbol, mixture, below, scratch)
        if keep:
            for a in range(n_symbols):
                mixtures[i, a] = mixture[a]
            level = min(0.0, log_alpha - scores[0] + scores[1]) if rule == TOTAL else log_alpha
            if rule == ANYTIME:
                n_depths = anytime_slacks(odds, counts, nodes, totals, stored, depth, n_symbols, level, slack)
            else:
                n_depths = path_slacks(odds, nodes, stored, depth, start, level, slack)
            path_minimum(counts, nodes, totals, stored, slack, n_depths, leaf, minima[i])
        log_prob = np.log(below[0])
        scores[1] += log_prob
        scores[0] += learn_path(
            words,
            odds,
            counts,
            width,
            keys,
            nodes,
            totals,
            stored,
            depth,
            start,
            start_mixture,
            symbol,
            n_symbols,
            leaf,
            complexity,
            below,
            scratch,
        )
        if stored <= depth:
            n_deepest += 1
            odds[nodes[depth] + ORDER] = n_deepest
            odds[nodes[depth] + LOSS] = 0.0
        odds[nodes[depth] + LOSS] -= log_prob
        used += depth + 1 - stored
    return symbols.shape[0], used, n_deepest


@njit(cache=True, nogil=True, error_model="numpy")
def mixture_pass(
    words: Ints, odds: Floats, counts: Counts, width: int, powers: Ints, contexts: Ints, out: Floats
) -> None:
    """Mixture predictions for ``contexts [N, depth]`` into ``out [N, V]``, as probabilities."""
    depth, n_symbols = powers.shape[0] - 1, out.shape[1]
    shift = 64 - _bits(words.shape[0] // width - 1)
    keys, nodes, totals = path_scratch(depth)
    room_for = padded(depth + 1)
    below, scratch = np.ones(room_for + 1), np.ones((3, room_for))
    for i in range(contexts.shape[0]):
        stored = find_path(words, width, shift, powers, contexts[i], 0, depth, keys, nodes)
        path_totals(counts, nodes, stored, n_symbols, totals)
        path_mixture(odds, counts, nodes, totals, stored, depth, 0, out[i], below, scratch)


@njit(cache=True, nogil=True, error_model="numpy")
def minimum_pass(
    words: Ints,
    odds: Floats,
    counts: Counts,
    width: int,
    powers: Ints,
    start: Floats,
    leaf: int,
    rule: int,
    contexts: Ints,
    log_alpha: float,
    out: Floats,
) -> None:
    """Plausible minima for ``contexts [N, depth]`` into ``out [N, V]``, as probabilities."""
    depth, n_symbols = powers.shape[0] - 1, out.shape[1]
    shift = 64 - _bits(words.shape[0] // width - 1)
    keys, nodes, totals = path_scratch(depth)
    slack = np.empty(depth + 1)
    for i in range(contexts.shape[0]):
        stored = find_path(words, width, shift, powers, contexts[i], 0, depth, keys, nodes)
        path_totals(counts, nodes, stored, n_symbols, totals)
        if rule == ANYTIME:
            n_depths = anytime_slacks(odds, counts, nodes, totals, stored, depth, n_symbols, log_alpha, slack)
        else:
            n_depths = path_slacks(odds, nodes, stored, depth, start, log_alpha, slack)
        path_minimum(counts, nodes, totals, stored, slack, n_depths, leaf, out[i])


@njit(cache=True, nogil=True, error_model="numpy")
def path_pass(
    words: Ints,
    odds: Floats,
    counts: Counts,
    width: int,
    powers: Ints,
    start: Floats,
    contexts: Ints,
    seen: Counts,
    gammas: Floats,
) -> None:
    """Counts ``seen [N, depth + 1, V]`` and gamma ``[N, depth + 1]`` of the nodes along each context."""
    depth, n_symbols = powers.shape[0] - 1, seen.shape[2]
    shift = 64 - _bits(words.shape[0] // width - 1)
    keys, nodes, _ = path_scratch(depth)
    for i in range(contexts.shape[0]):
        stored = find_path(words, width, shift, powers, contexts[i], 0, depth, keys, nodes)
        for d in range(depth + 1):
            gammas[i, d] = np.inf if d == depth else (odds[nodes[d] + MAXIMUM] if d < stored else start[d])
            for a in range(n_symbols):
                seen[i, d, a] = counts[2 * nodes[d] + FIRST_COUNT + a] if d < stored else 0


@njit(cache=True, nogil=True, error_model="numpy")
def leaves_pass(
    words: Ints,
    odds: Floats,
    counts: Counts,
    width: int,
    powers: Ints,
    start: Floats,
    leaf: int,
    rule: int,
    contexts: Ints,
    log_alpha: float,
    centres: Floats,
    radii: Floats,
    plausible: Bools,
) -> None:
    """The leaf of each depth as a ball: ``centres [N, depth + 1, V]``; radii in nats, plausibility ``[N, depth + 1]``.

    A leaf that saw nothing has an infinite radius (profile) or is uniform (KT).
    """
    depth, n_symbols = powers.shape[0] - 1, centres.shape[2]
    shift = 64 - _bits(words.shape[0] // width - 1)
    keys, nodes, totals = path_scratch(depth)
    slack = np.empty(depth + 1)
    for i in range(contexts.shape[0]):
        stored = find_path(words, width, shift, powers, contexts[i], 0, depth, keys, nodes)
        path_totals(counts, nodes, stored, n_symbols, totals)
        if rule == ANYTIME:
            n_depths = anytime_slacks(odds, counts, nodes, totals, stored, depth, n_symbols, log_alpha, slack)
        else:
            n_depths = path_slacks(odds, nodes, stored, depth, start, log_alpha, slack)
        for d in range(depth + 1):
            plausible[i, d] = d < n_depths and slack[d] >= 0.0
            radii[i, d] = 0.0
            if d >= stored:
                centres[i, d] = 1.0 / n_symbols
                if leaf != KT:
                    radii[i, d] = np.inf
                continue
            extra = 0.5 if leaf == KT else 0.0
            scale = 1.0 / (totals[d] + extra * n_symbols)
            for a in range(n_symbols):
                centres[i, d, a] = scale * (counts[2 * nodes[d] + FIRST_COUNT + a] + extra)
            if leaf != KT and plausible[i, d]:
                radii[i, d] = slack[d] / totals[d]


@njit(cache=True, nogil=True, error_model="numpy")
def rehash(old: Ints, new: Ints, width: int) -> None:
    """Copy every node of ``old`` into the larger, empty table ``new``."""
    shift = 64 - _bits(new.shape[0] // width - 1)
    for source in range(0, old.shape[0], width):
        if old[source] != 0:
            node = slot_of(old[source], shift) * width
            while new[node] != 0:
                node = (node + width) % new.shape[0]
            for i in range(width):
                new[node + i] = old[source + i]


@njit(cache=True, nogil=True, error_model="numpy")
def _bits(mask: int) -> int:
    bits = 0
    while mask:
        mask >>= 1
        bits += 1
    return bits
