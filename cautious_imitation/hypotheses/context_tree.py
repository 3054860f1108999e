"""All context trees of bounded depth at once: an exact posterior over a doubly exponential class."""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load_file

from cautious_imitation.atomic_files import write_safetensors, write_text
from cautious_imitation.demonstrations import Demonstrations, Evidence
from cautious_imitation.hypotheses import tree_passes as passes
from cautious_imitation.hypotheses.base import Hypotheses, check_alpha, check_symbols
from cautious_imitation.hypotheses.suffix_tree import SuffixTree, by_depth, pruned_leaves
from cautious_imitation.hypotheses.tree_kernels import (
    ANYTIME,
    BEST,
    BIC,
    FIRST_COUNT,
    KT,
    MAXIMUM,
    NONE,
    PROFILE,
    SUPPORT,
    TOTAL,
)
from cautious_imitation.hypotheses.tree_settings import Complexity, Leaf, Plausible, check_choices, check_sizes
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.types import Array

_LEAVES = {"kt": KT, "profile": PROFILE}
_COMPLEXITIES = {"none": NONE, "support": SUPPORT, "bic": BIC}
_RULES = {"best": BEST, "total": TOTAL, "anytime": ANYTIME}
_SCHEMA = 1
_BLOCK = 1 << 14
_MAX_LOAD = 0.5


class ContextTree(Hypotheses):
    """Every suffix tree of depth at most ``depth``, weighted exactly (``docs/theory.md``).

    A tree predicts the next symbol from the longest of its leaves that matches the most recent symbols. Its prior is
    ``stop_prob`` for each leaf above ``depth`` and ``1 - stop_prob`` for each inner node. The mixture over all trees is
    context tree weighting with Krichevsky-Trofimov (KT) leaves. Of the D + 1 depths that a leaf on the current path can
    have, those are plausible whose best tree is within log(1 / alpha) nats of the best tree of all.

    With ``plausible="anytime"`` only the deepest leaf is kept, as a ball that holds every tree's prediction: a tree of
    the class is in it at all contexts and all times at once with probability at least 1 - ``alpha``, if it is the
    demonstrator and nothing but its actions is learned, each of them once.

    Args:
        n_symbols: V, the number of actions 0..V-1 that are predicted.
        depth: D, how many recent symbols a tree may look at.
        n_context_symbols: k, how many symbols contexts are made of, the start symbol included. Symbols V..k-1 are
            context only (other speakers, say). Default: V + 1.
        start_symbol: pads contexts that are shorter than ``depth``; default k - 1.
        stop_prob: prior probability of a leaf; default (k-1)/k, at which a split costs least (1/2 for k = 1).
        leaf: ``"profile"`` (a leaf's parameters are unknown: a KL ball around the counts) or ``"kt"``.
        complexity: what a profile leaf pays for its parameters: ``"none"``, ``"support"``, (observed symbols - 1)/2
            log(n + 1), or ``"bic"``, (V - 1)/2 log(n + 1).
        plausible: ``"best"`` compares with the best tree, ``"total"`` with the whole mixture (``leaf="kt"`` only);
            ``"anytime"`` is proven to cover (``leaf="profile"`` without complexity only), and asks more.

    Raises:
        ValueError: if an argument is out of its range.

    Memory is (3 + V/2) 8-byte words a stored node, at most depth + 1 nodes a learned symbol.

    >>> tree = ContextTree(n_symbols=2, depth=2, leaf="kt").fit([[0, 1] * 50])
    >>> tree.map_tree().leaves[(0,)]
    array([ 0, 50])
    >>> np.exp(tree.mixture([0])).round(2)
    array([0.06, 0.94])

    Sources: Willems, Shtarkov, Tjalkens 1995 (mixture); Cohen, Hutter, Nanda 2022 (plausible minimum); Robbins 1970
    and Wasserman, Ramdas, Balakrishnan 2020 (sets that hold at all times, from a running likelihood ratio).
    """

    def __init__(
        self,
        n_symbols: int,
        depth: int,
        *,
        n_context_symbols: int | None = None,
        start_symbol: int | None = None,
        stop_prob: float | None = None,
        leaf: Leaf = "profile",
        complexity: Complexity = "none",
        plausible: Plausible = "best",
    ) -> None:
        k = n_symbols + 1 if n_context_symbols is None else n_context_symbols
        check_sizes(n_symbols, depth, k)
        check_choices(stop_prob, leaf, complexity, plausible)
        self.start_symbol = k - 1 if start_symbol is None else start_symbol
        if not 0 <= self.start_symbol < k:
            raise ValueError(f"start_symbol must be in 0..{k - 1}, got {start_symbol}")
        self.n_symbols, self.depth, self.n_context_symbols = n_symbols, depth, k
        self.stop_prob, self.leaf, self.complexity, self.rule = stop_prob, leaf, complexity, plausible
        self.default_alpha = 0.05 if plausible == "anytime" else float(np.exp(-5.0))
        stop = stop_prob if stop_prob is not None else ((k - 1) / k if k > 1 else 0.5)
        log_stop, log_split = np.log(stop), (np.log1p(-stop) if stop_prob is not None or k == 1 else -np.log(k))
        scores = np.zeros(depth + 2)
        for d in range(depth - 1, -1, -1):
            scores[d] = max(log_stop, log_split + k * scores[d + 1])
        self._start = np.array([log_stop - log_split - k * scores[d + 1] for d in range(depth)] + [np.inf])
        self._start_mixture = float(log_stop - log_split)
        self._powers = np.array([0] + [(k + 1) ** d for d in range(depth)], dtype=np.int64)
        self._scores = np.array([scores[0], 0.0])
        self._n_nodes, self._n_deepest = 0, 0
        self._words = self._table(10)

    @property
    def n_nodes(self) -> int:
        """Number of stored nodes."""
        return self._n_nodes

    @property
    def log_loss_nats(self) -> float:
        """Cumulative log-loss of the mixture on all that was learned, in nats."""
        return -float(self._scores[1])

    def mixture(self, context: Array) -> NDArray[np.float64]:
        """Context-tree-weighting prediction at ``context [..., L]``: ``[..., V]`` log-probabilities in nats."""
        contexts, shape = self._contexts(context)
        out = np.empty((len(contexts), self.n_symbols))
        passes.mixture_pass(*self._views(), self._powers, contexts, out)
        return np.log(out).reshape((*shape, self.n_symbols))

    def plausible(self, context: Array, alpha: float) -> PlausibleSet:
        """The D + 1 leaves on the path of ``context [..., L]`` as KL balls, with those of level ``alpha`` marked."""
        contexts, shape = self._contexts(context)
        n, members = len(contexts), self.depth + 1
        centres, radii = np.empty((n, members, self.n_symbols)), np.empty((n, members))
        plausible = np.empty((n, members), dtype=np.bool_)
        passes.leaves_pass(
            *self._views(),
            self._powers,
            self._start,
            _LEAVES[self.leaf],
            _RULES[self.rule],
            contexts,
            self._log_alpha(alpha),
            centres,
            radii,
            plausible,
        )
        with np.errstate(divide="ignore"):
            log_centres = np.log(centres)
        return PlausibleSet(
            log_centres.reshape((*shape, members, self.n_symbols)),
            radii.reshape((*shape, members)),
            plausible.reshape((*shape, members)),
        )

    def plausible_min(self, context: Array, alpha: float) -> NDArray[np.float64]:
        """Least probability of each action over the plausible leaves: ``[..., V]`` log-probabilities in nats."""
        contexts, shape = self._contexts(context)
        out = np.empty((len(contexts), self.n_symbols))
        kinds = _LEAVES[self.leaf], _RULES[self.rule]
        passes.minimum_pass(*self._views(), self._powers, self._start, *kinds, contexts, self._log_alpha(alpha), out)
        with np.errstate(divide="ignore"):
            return np.log(out).reshape((*shape, self.n_symbols))

    def update(self, context: Array, symbol: Array) -> None:
        """Learn that the demonstrator did ``symbol`` at ``context`` (an int and ``[L]``, or ``[B]`` and ``[B, L]``)."""
        contexts, shape = self._contexts(context)
        symbols = check_symbols(symbol, self.n_symbols, "symbol")
        if symbols.shape != shape:
            raise ValueError(f"symbol must have shape {shape} to go with context, got {symbols.shape}")
        symbols = symbols.reshape(-1)
        self._learn(contexts.reshape(-1), self.depth, symbols, np.ones(len(symbols), dtype=np.bool_))

    def fit(
        self, demonstrations: Demonstrations | Iterable[ArrayLike], *, evidence: Evidence = "demonstrator"
    ) -> ContextTree:
        """Learn whole sequences in order; contexts do not reach across sequences.

        In plain sequences every symbol below ``n_symbols`` is learned; ``Demonstrations`` name the actor instead, and
        ``evidence`` whose actions count.
        """
        for sequence, learn in self._sequences(demonstrations, evidence):
            self._learn(self._padded(sequence), 1, sequence, learn)
        return self

    def prequential(
        self, sequence: ArrayLike, alpha: float, *, context: ArrayLike = ()
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predict each symbol of one sequence, then learn it: the mixture and the plausible minimum before each update.

        Args:
            sequence: ``[T]`` symbols, oldest first. Those at or above ``n_symbols`` are context only.
            alpha: plausibility level in (0, 1].
            context: ``[L]`` symbols that came before, of which the last ``depth`` count: a long sequence can be taken
                block by block.

        Returns:
            Two ``[T, V]`` arrays of log-probabilities in nats (0 at positions that are context only).
        """
        ((symbols, learn),) = self._sequences([sequence])
        predictions = (np.empty((len(symbols), self.n_symbols)), np.empty((len(symbols), self.n_symbols)))
        before, shape = self._contexts(np.asarray(context))
        if shape:
            raise ValueError(f"context must be one sequence of symbols, got shape {np.shape(context)}")
        log_alpha, buffer = float(np.log(check_alpha(alpha))), np.concatenate([before[0], symbols])
        # Blocks small enough to take the logarithms while the probabilities are still in the cache.
        step = max(256, _BLOCK // self.n_symbols)
        for start in range(0, len(symbols), step):
            block = slice(start, start + step)
            views = (predictions[0][block], predictions[1][block])
            self._learn(buffer[start:], 1, symbols[block], learn[block], log_alpha, views)
            for probabilities in views:
                probabilities[~learn[block]] = 1.0
                with np.errstate(divide="ignore"):
                    np.log(probabilities, out=probabilities)
        return predictions

    def path_counts(self, context: Array) -> NDArray[np.int64]:
        """What was seen at every depth along ``context [..., L]``: counts ``[..., D + 1, V]``, the root first."""
        return self._paths(context)[0]

    def map_depth(self, context: Array) -> NDArray[np.int64]:
        """Depth of the most probable tree's leaf at ``context [..., L]``, shape ``[...]``; ties stop early."""
        return np.asarray(np.argmax(self._paths(context)[1] >= 0, axis=-1))

    def map_tree(self) -> SuffixTree:
        """The most probable single tree; ties go to the smaller one."""
        rows = self._nodes()
        counts = rows.view(np.uint32)[:, FIRST_COUNT : FIRST_COUNT + self.n_symbols].astype(np.int64)
        stops = rows.view(np.float64)[:, MAXIMUM] >= 0
        leaves = pruned_leaves(rows[:, 0], counts, stops, self._powers, self.n_context_symbols)
        return SuffixTree(leaves, float(self._scores[0]))

    def stored_counts(self) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], NDArray[np.int64]]:
        """Stored nodes by depth, see ``by_depth``, and what a context symbol adds to a node's key, by depth."""
        rows = self._nodes()
        counts = rows.view(np.uint32)[:, FIRST_COUNT : FIRST_COUNT + self.n_symbols].astype(np.int64)
        return by_depth(rows[:, 0], counts, self._powers), self._powers

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``context_tree.safetensors`` (the stored nodes) and ``context_tree.json`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / "context_tree.safetensors", {"nodes": self._nodes(), "scores": self._scores})
        write_text(folder / "context_tree.json", json.dumps({"schema": _SCHEMA, **self._settings()}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> ContextTree:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: if ``folder`` holds no saved tree.
            ValueError: if it was written by another version of the format.
        """
        folder = Path(folder)
        settings = json.loads((folder / "context_tree.json").read_text(encoding="utf-8"))
        if settings.pop("schema", None) != _SCHEMA:
            raise ValueError(f"{folder / 'context_tree.json'} has another schema than {_SCHEMA}; fit and save it again")
        tree = cls(**settings)
        arrays = load_file(folder / "context_tree.safetensors")
        nodes, tree._scores = arrays["nodes"], arrays["scores"].copy()
        tree._n_nodes, tree._n_deepest = len(nodes), int((nodes[:, 0] > tree._powers[-1]).sum())
        tree._words = tree._table(max(10, int(np.ceil(np.log2(max(len(nodes), 1) / _MAX_LOAD))) + 1))
        passes.rehash(np.ascontiguousarray(nodes).reshape(-1), tree._words, tree._width)
        return tree

    def _settings(self) -> dict[str, Any]:
        return {
            "n_symbols": self.n_symbols,
            "depth": self.depth,
            "n_context_symbols": self.n_context_symbols,
            "start_symbol": self.start_symbol,
            "stop_prob": self.stop_prob,
            "leaf": self.leaf,
            "complexity": self.complexity,
            "plausible": self.rule,
        }

    @property
    def _width(self) -> int:
        return 3 + (self.n_symbols + 1) // 2

    def _table(self, bits: int) -> NDArray[np.int64]:
        """Room for 2^bits nodes, all free."""
        return np.zeros((1 << bits) * self._width, dtype=np.int64)

    def _views(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.uint32], int]:
        return self._words, self._words.view(np.float64), self._words.view(np.uint32), self._width

    def _nodes(self) -> NDArray[np.int64]:
        """The stored nodes, one a row."""
        rows = self._words.reshape(-1, self._width)
        nodes: NDArray[np.int64] = rows[rows[:, 0] != 0]
        return nodes

    def _log_alpha(self, alpha: float) -> float:
        """Level relative to the best tree; the best one always belongs to the set."""
        level = float(np.log(check_alpha(alpha)))
        return min(0.0, level - self._scores[0] + self._scores[1]) if self.rule == "total" else level

    def _learn(
        self,
        buffer: NDArray[np.int64],
        stride: int,
        symbols: NDArray[np.int64],
        learn: NDArray[np.bool_],
        log_alpha: float = 0.0,
        predictions: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    ) -> None:
        """Run the compiled pass, growing the table whenever it fills up."""
        empty = np.empty((0, self.n_symbols))
        symbols = np.require(symbols, requirements=["C", "W"])  # one kind of array, so that the pass is compiled once
        position = 0
        while position < len(symbols):
            slots = len(self._words) // self._width
            room = int(_MAX_LOAD * slots) - self._n_nodes
            if room < self.depth + 1:
                grown = self._table(slots.bit_length())
                passes.rehash(self._words, grown, self._width)
                self._words = grown
                continue
            position, used, self._n_deepest = passes.learn_pass(
                *self._views(),
                room,
                self._n_deepest,
                self._powers,
                self._start,
                self._start_mixture,
                _LEAVES[self.leaf],
                _COMPLEXITIES[self.complexity],
                buffer,
                stride,
                symbols,
                learn,
                position,
                log_alpha,
                _RULES[self.rule],
                self._scores,
                *(predictions or (empty, empty)),
            )
            self._n_nodes += used

    def _paths(self, context: Array) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        contexts, shape = self._contexts(context)
        seen = np.empty((len(contexts), self.depth + 1, self.n_symbols), dtype=np.uint32)
        gammas = np.empty((len(contexts), self.depth + 1))
        passes.path_pass(*self._views(), self._powers, self._start, contexts, seen, gammas)
        return seen.astype(np.int64).reshape((*shape, *seen.shape[1:])), gammas.reshape((*shape, self.depth + 1))

    def _contexts(self, context: Array) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """The last ``depth`` symbols of each context, padded on the left: ``[N, depth]``, and the batch shape."""
        symbols = check_symbols(context, self.n_context_symbols, "context")
        if symbols.ndim == 0:
            raise ValueError(f"context must be a sequence of symbols, got the scalar {context!r}; [] is the empty one")
        shape = symbols.shape[:-1]
        symbols = symbols.reshape((-1, symbols.shape[-1])) if symbols.size else symbols.reshape((*shape, 0))
        out = np.full((int(np.prod(shape)), self.depth), self.start_symbol, dtype=np.int64)
        length = min(self.depth, symbols.shape[-1])
        if length:
            out[:, self.depth - length :] = symbols[:, symbols.shape[-1] - length :]
        return out, shape

    def _padded(self, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([np.full(self.depth, self.start_symbol, dtype=np.int64), sequence])

    def _sequences(
        self, demonstrations: Demonstrations | Iterable[ArrayLike], evidence: Evidence = "demonstrator"
    ) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Checked sequences, each with the positions to learn."""
        if isinstance(demonstrations, Demonstrations):
            sequences = list(demonstrations.sequences)
            masks = list(demonstrations.learned(evidence))
        else:
            sequences = [
                check_symbols(s, max(self.n_context_symbols, self.n_symbols), "sequence") for s in demonstrations
            ]
            masks = [s < self.n_symbols for s in sequences]
        for sequence, mask in zip(sequences, masks, strict=True):
            if sequence.ndim != 1:
                raise ValueError(
                    f"each sequence must be one-dimensional, got shape {sequence.shape}; fit takes a list of sequences"
                )
            check_symbols(sequence, max(self.n_context_symbols, self.n_symbols), "sequence")
            check_symbols(sequence[mask], self.n_symbols, "sequence")
        return list(zip(sequences, masks, strict=True))
