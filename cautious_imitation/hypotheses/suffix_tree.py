"""One context tree out of all of them, as its leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.hypotheses.tree_kernels import ROOT_KEY


@dataclass(frozen=True)
class SuffixTree:
    """One context tree: its leaves and what was seen at them.

    Attributes:
        leaves: context of each leaf, oldest symbol first (the empty tuple is the root), to its counts ``[V]``.
            Subtrees that were never seen are left out.
        log_score: log prior plus log-score of all that was learned, in nats.
    """

    leaves: dict[tuple[int, ...], NDArray[np.int64]]
    log_score: float


def pruned_leaves(
    keys: NDArray[np.int64],
    counts: NDArray[np.int64],
    stops: NDArray[np.bool_],
    powers: NDArray[np.int64],
    n_context_symbols: int,
) -> dict[tuple[int, ...], NDArray[np.int64]]:
    """Leaves of the tree whose inner nodes are the stored nodes that do not stop.

    Args:
        keys: ``[N]`` keys of the stored nodes, as in ``tree_kernels``.
        counts: ``[N, V]`` their counts.
        stops: ``[N]`` whether each is a leaf if it is reached; nodes of full depth always are.
        powers: ``[depth + 1]`` what a context symbol adds to the key, by depth.
        n_context_symbols: k.

    Returns:
        Counts by context, oldest symbol first; contexts that were never seen are left out, but for an empty root.
    """
    index = {int(key): i for i, key in enumerate(keys)}
    if ROOT_KEY not in index:
        return {(): np.zeros(counts.shape[1], dtype=np.int64)}
    leaves: dict[tuple[int, ...], NDArray[np.int64]] = {}
    unvisited: list[tuple[int, tuple[int, ...]]] = [(ROOT_KEY, ())]
    while unvisited:
        key, suffix = unvisited.pop()
        if key not in index:
            continue
        if len(suffix) == len(powers) - 1 or stops[index[key]]:
            leaves[suffix] = counts[index[key]]
        else:
            step = int(powers[len(suffix) + 1])
            unvisited += [(key + (c + 1) * step, (c, *suffix)) for c in reversed(range(n_context_symbols))]
    return leaves


def by_depth(
    keys: NDArray[np.int64], counts: NDArray[np.int64], powers: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Stored nodes by depth: for each of 0..D their keys, in increasing order, and their counts ``[N, V]``.

    Args:
        keys, counts, powers: as for ``pruned_leaves``.
    """
    # The last digit of a key is not zero, so a node of depth d has a key of (k + 1)^(d - 1) or more, less the root's 1.
    depths = np.searchsorted(powers[1:], keys - ROOT_KEY, side="right")
    levels = []
    for d in range(len(powers)):
        rows = np.flatnonzero(depths == d)
        rows = rows[np.argsort(keys[rows])]
        levels.append((keys[rows], counts[rows]))
    return levels


def parent_keys(keys: NDArray[np.int64], depth: int, powers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys of the parents of nodes of ``depth`` 1..D: the oldest symbol is taken away."""
    return np.asarray((keys - ROOT_KEY) % powers[depth] + ROOT_KEY)
