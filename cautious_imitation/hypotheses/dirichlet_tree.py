"""A context tree whose contexts share what they know: each inherits from the shorter one, or has its own way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cautious_imitation.atomic_files import write_text
from cautious_imitation.demonstrations import Demonstrations, Evidence
from cautious_imitation.hypotheses.base import Hypotheses, check_alpha
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.shrinkage import (
    NodePosteriors,
    child_posteriors,
    kind_shares,
    log_evidence,
    root_posterior,
)
from cautious_imitation.hypotheses.suffix_tree import parent_keys
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.types import Array

_SCHEMA = 1
_BLOCK = 1 << 20
"""Numbers that a block of contexts takes at a time."""

CONCENTRATIONS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class DirichletTree(Hypotheses):
    """Every context of up to ``depth`` symbols, each like the next shorter one until its own counts say otherwise.

    A context that was never seen inherits from the one without its oldest symbol; how far to trust that is learned from
    how far siblings differ. Where a ``ContextTree`` splits all children of a node or none, here each goes its own way,
    so that a novel context does not pay for its siblings.

    The plausible set is one KL ball a context. Its centre is the posterior's geometric mean exp E[log theta],
    normalised: of all policies it has the least expected KL to what the demonstrator may be. Its radius is
    log(1 / alpha) times that least expectation: by Markov's inequality the posterior probability that the demonstrator
    is outside is at most 1 / log(1 / alpha). That is a credible set under this prior, measured and not proven
    (docs/guarantees.md).

    Args:
        n_symbols: V, the number of actions 0..V-1 that are predicted.
        depth: D, how many recent symbols count.
        n_context_symbols: k, how many symbols contexts are made of, the start symbol included; default V + 1.
        start_symbol: pads contexts that are shorter than ``depth``; default k - 1.
        concentrations: how close children may be to their parent, in pseudo-counts of its distribution; inheriting it
            unchanged is always one more possibility.

    Raises:
        ValueError: if an argument is out of its range.

    Memory is that of a ``ContextTree``. Learning a symbol costs what it costs there; the first question after learning
    goes over all stored nodes once, to learn how much children differ from their parents.

    >>> tree = DirichletTree(n_symbols=2, depth=1).fit([[0, 1] * 20])
    >>> np.exp(tree.mixture([0])).round(2)
    array([0.02, 0.98])
    >>> np.exp(tree.plausible_min([0], alpha=0.1)).round(2)
    array([0.  , 0.94])

    Source: MacKay, Peto 1995 (hierarchical Dirichlet language model); docs/theory.md, "Shrinkage".
    """

    default_alpha = float(np.exp(-2.5))

    def __init__(
        self,
        n_symbols: int,
        depth: int,
        *,
        n_context_symbols: int | None = None,
        start_symbol: int | None = None,
        concentrations: Sequence[float] = CONCENTRATIONS,
    ) -> None:
        grid = np.asarray(concentrations, dtype=np.float64)
        if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all() or not (grid > 0).all():
            raise ValueError(
                f"concentrations must be a list of positive numbers, got {concentrations!r}; they are pseudo-counts"
            )
        self._tree = ContextTree(
            n_symbols, depth, n_context_symbols=n_context_symbols, start_symbol=start_symbol, leaf="kt"
        )
        self.n_symbols, self.depth = n_symbols, depth
        self.n_context_symbols, self.start_symbol = self._tree.n_context_symbols, self._tree.start_symbol
        self.concentrations = tuple(grid.tolist())
        self._shares: NDArray[np.float64] | None = None

    @property
    def n_nodes(self) -> int:
        """Number of stored nodes."""
        return self._tree.n_nodes

    @property
    def kind_shares(self) -> NDArray[np.float64]:
        """How often a node of depth 1..D has each concentration, or inherits (last): ``[D, G + 1]``, from all nodes."""
        if self._shares is None:
            self._shares = self._learned_shares()
        return self._shares

    def mixture(self, context: Array) -> NDArray[np.float64]:
        """Posterior mean of what the demonstrator does at ``context [..., L]``: ``[..., V]`` logs in nats."""
        found, shape = self._posteriors(context)
        return np.log(found.mean).reshape((*shape, self.n_symbols))

    def plausible(self, context: Array, alpha: float) -> PlausibleSet:
        """One ball a context, around the posterior's geometric mean; see above."""
        level = -float(np.log(check_alpha(alpha)))
        found, shape = self._posteriors(context)
        top = found.log_mean.max(axis=1, keepdims=True)
        log_mass = top + np.log(np.exp(found.log_mean - top).sum(axis=1, keepdims=True))
        centres = (found.log_mean - log_mass).reshape((*shape, 1, self.n_symbols))
        radii = level * np.maximum(-log_mass[:, 0], 0.0).reshape((*shape, 1))
        return PlausibleSet(centres, radii, np.ones((*shape, 1), dtype=np.bool_))

    def update(self, context: Array, symbol: Array) -> None:
        """Learn that the demonstrator did ``symbol`` at ``context`` (an int and ``[L]``, or ``[B]`` and ``[B, L]``)."""
        self._tree.update(context, symbol)
        self._shares = None

    def fit(
        self, demonstrations: Demonstrations | Iterable[ArrayLike], *, evidence: Evidence = "demonstrator"
    ) -> DirichletTree:
        """Learn whole sequences; contexts do not reach across sequences. As ``ContextTree.fit``."""
        self._tree.fit(demonstrations, evidence=evidence)
        self._shares = None
        return self

    def path_counts(self, context: Array) -> NDArray[np.int64]:
        """What was seen at every depth along ``context [..., L]``: counts ``[..., D + 1, V]``, the root first."""
        return self._tree.path_counts(context)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the counts as ``ContextTree.save`` does, and ``dirichlet_tree.json``, into ``folder``."""
        self._tree.save(folder)
        settings = {"schema": _SCHEMA, "concentrations": self.concentrations}
        write_text(Path(folder) / "dirichlet_tree.json", json.dumps(settings, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> DirichletTree:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: if ``folder`` holds no saved tree.
            ValueError: if it was written by another version of the format.
        """
        path = Path(folder) / "dirichlet_tree.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("schema", None) != _SCHEMA:
            raise ValueError(f"{path} has another schema than {_SCHEMA}; fit and save it again")
        counts = ContextTree.load(folder)
        tree = cls(
            counts.n_symbols,
            counts.depth,
            n_context_symbols=counts.n_context_symbols,
            start_symbol=counts.start_symbol,
            **settings,
        )
        tree._tree = counts
        return tree

    def _posteriors(self, context: Array) -> tuple[NodePosteriors, tuple[int, ...]]:
        """Those of the deepest node at each context, and the batch shape."""
        counts = self._tree.path_counts(context)
        shape = counts.shape[:-2]
        counts = counts.reshape((-1, *counts.shape[-2:]))
        step = max(1, _BLOCK // (self.n_symbols * (self.depth + 1)))
        blocks = [self._along(counts[i : i + step]) for i in range(0, max(len(counts), 1), step)]
        mean, log_mean = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("mean", "log_mean"))
        return NodePosteriors(mean, log_mean), shape

    def _along(self, counts: NDArray[np.int64]) -> NodePosteriors:
        found, grid = root_posterior(counts[:, 0]), np.array(self.concentrations)
        for d in range(1, self.depth + 1):
            found = child_posteriors(counts[:, d], counts[:, d - 1], found, grid, self.kind_shares[d - 1])
        return found

    def _learned_shares(self) -> NDArray[np.float64]:
        """Level by level, since what a parent is has to be known before its children are compared with it."""
        grid = np.array(self.concentrations)
        levels, powers = self._tree.stored_counts()
        shares = np.full((self.depth, len(grid) + 1), 1.0 / (len(grid) + 1))
        if not len(levels[0][0]):
            return shares
        found = root_posterior(levels[0][1])
        for d in range(1, self.depth + 1):
            (keys_above, parent_counts), (keys, counts) = levels[d - 1], levels[d]
            at = np.searchsorted(keys_above, parent_keys(keys, d, powers))
            above = NodePosteriors(found.mean[at], found.log_mean[at])
            shares[d - 1] = kind_shares(log_evidence(counts, parent_counts[at], above.mean, grid))
            found = child_posteriors(counts, parent_counts[at], above, grid, shares[d - 1])
        return shares
