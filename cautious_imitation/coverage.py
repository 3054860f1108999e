"""Held-out demonstrations against what an imitator grants: a test of coverage that needs no true demonstrator."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from cautious_imitation.demonstrations import Demonstrations, sequence_digests
from cautious_imitation.hypotheses.base import check_symbols
from cautious_imitation.imitators import BasePolicy
from cautious_imitation.sampling import on_host
from cautious_imitation.types import Array

Floats = NDArray[np.float64]

_RATES = np.array([0.05, 0.15, 0.4, 1.0, 2.5, 6.0])
"""The lambdas of the mixture: each is best where the demonstrator does about exp(-lambda) of what is granted."""

_BLOCK = 1 << 14
_ROWS_SHOWN = 10


@dataclass(frozen=True)
class CoverageRow:
    """One action in one group of contexts.

    Attributes:
        group: the group's label.
        action: the symbol.
        granted: sum over the group's held-out actions of the probability that the imitator gives to ``action``.
        count: how often the demonstrator did it there.
        p: probability, at most, of evidence as strong as this if the demonstrator does it at least as often as granted.
        adjusted_p: the same for all pairs tested together (Holm).
    """

    group: Hashable
    action: int
    granted: float
    count: int
    p: float
    adjusted_p: float


@dataclass(frozen=True)
class CoverageReport:
    """What held-out demonstrations say about nu <= tau.

    Attributes:
        rows: every action of every group with something granted, group by group.
        level: probability of a false alarm, at most.
        n_actions: how many held-out actions there were.
        n_tested: how many pairs of group and action the p-values are adjusted for.
        ask_share: share of the held-out actions at which the imitator would have asked, in expectation.
        overlap_checked: whether the imitator remembers sequences that it learned, so that these are known to be others.
    """

    rows: tuple[CoverageRow, ...]
    level: float
    n_actions: int
    n_tested: int
    ask_share: float
    overlap_checked: bool

    @property
    def violations(self) -> tuple[CoverageRow, ...]:
        """The rows that contradict coverage at the level, the clearest first."""
        return tuple(sorted((r for r in self.rows if r.adjusted_p <= self.level), key=lambda row: row.adjusted_p))

    @property
    def rejected(self) -> bool:
        """Whether there is a violation: then somewhere nu > tau."""
        return bool(self.violations)

    def __str__(self) -> str:
        found = self.violations
        lines = [
            f"Coverage is {'rejected' if found else 'not contradicted'} at level {self.level:g}: {len(found)} of "
            f"{self.n_tested} pairs of group and action are granted more than {self.n_actions:,} actions show.",
            f"The imitator would have asked at {self.ask_share:.1%} of them.",
        ]
        if not self.overlap_checked:
            lines.append("Whether it learned from these sequences is not known: it remembers none that it learned.")
        if found:
            width = max(len("group"), *(len(str(row.group)) for row in found[:_ROWS_SHOWN]))
            lines.append(f"{'group':>{width}}  action   granted   count  adjusted p")
            lines += [
                f"{row.group!s:>{width}}  {row.action:6}  {row.granted:8.1f}  {row.count:6}  {row.adjusted_p:10.2g}"
                for row in found[:_ROWS_SHOWN]
            ]
        if len(found) > _ROWS_SHOWN:
            lines.append(f"and {len(found) - _ROWS_SHOWN} more")
        return "\n".join(lines)


def check_coverage(
    imitator: BasePolicy,
    demonstrations: Demonstrations | Iterable[Array],
    *,
    groups: Callable[[NDArray[np.int64]], Hashable] | None = None,
    level: float = 0.05,
) -> CoverageReport:
    """Test on held-out demonstrations whether the imitator grants any action more than the demonstrator does it.

    If nu <= tau, then in any group of contexts the granted probabilities of an action sum to no more than its expected
    count. Each sum is compared with the count by an e-value, which is valid whoever chose the contexts, as long as the
    demonstrator chose the actions; see ``log_e_value``. Groups that do not show it may hide violations that cancel,
    and so may few data: a test that passes proves nothing.

    Args:
        imitator: any base policy; nothing is learned.
        demonstrations: sequences that it has not learned from; plain ones as in ``Hypotheses.fit``. Only the
            demonstrator's own actions count.
        groups: the label of the group to which what came before an action, ``[t]`` symbols, oldest first, belongs.
            Default: the most recent symbol, or the start symbol at the beginning. It must not depend on anything later,
            and which labels there are should be fixed in advance.
        level: probability of rejecting an imitator that does cover.

    Raises:
        ValueError: if the imitator has learned one of the sequences (of 16 symbols or more, by its own ``fit``),
            nothing in them is the demonstrator's or one of its actions is unknown, or ``level`` is not in (0, 1).

    Memory is eight numbers for each pair of group and action: over a vocabulary, make few groups.

    >>> from cautious_imitation import BayesianImitator, FiniteHypotheses
    >>> coin = BayesianImitator(FiniteHypotheses([np.log([0.5, 0.5])]))
    >>> tosses = np.random.default_rng(0).random((10, 50)) < 0.25
    >>> report = check_coverage(coin, tosses.astype(int), groups=lambda history: "all")
    >>> [(row.action, row.granted, row.count) for row in report.violations]
    [(1, 250.0, 112)]

    Source: e-values by betting, Ramdas, Grünwald, Vovk, Shafer 2023; Holm 1979.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}; 0.05 is usual")
    if not isinstance(demonstrations, Demonstrations):
        demonstrations = Demonstrations.from_symbols(demonstrations, imitator.n_symbols)
    if not demonstrations.n_learned():
        raise ValueError("demonstrations must hold actions of the demonstrator, got none; there is nothing to test")
    learned: frozenset[str] = getattr(imitator, "learned_digests", frozenset())
    _check_held_out(demonstrations, learned)
    hypotheses = getattr(imitator, "hypotheses", None)
    start = getattr(hypotheses, "start_symbol", None)
    label = groups if groups is not None else _most_recent("start" if start is None else start)
    index: dict[Hashable, int] = {}
    granted, counts, log_factors, asked = _Table(), _Table(), _Table(), 0.0
    for contexts, symbols, histories in _batches(demonstrations, getattr(hypotheses, "depth", None), start):
        prediction = imitator.predict(contexts)
        probabilities = np.exp(on_host(prediction.log_probs).astype(np.float64))
        asked += float(np.exp(on_host(prediction.log_ask).astype(np.float64)).sum())
        rows = np.array([index.setdefault(label(history), len(index)) for history in histories])
        granted.add(rows, probabilities)
        done = np.zeros_like(probabilities)
        done[np.arange(len(symbols)), check_symbols(symbols, done.shape[1], "the demonstrator's actions")] = 1.0
        counts.add(rows, done)
        log_factors.add(rows, np.moveaxis(_log_factors(probabilities), 0, -1))
    log_e = _log_mixture(np.moveaxis(log_factors.sums, -1, 0), counts.sums)
    p = np.exp(-np.maximum(log_e, 0.0))
    n_groups = max(len(index), getattr(hypotheses, "n_context_symbols", 0) if groups is None else 0)
    adjusted = _holm(p, n_groups * p.shape[1])
    return CoverageReport(
        rows=tuple(
            CoverageRow(
                group, a, float(granted.sums[g, a]), int(counts.sums[g, a]), float(p[g, a]), float(adjusted[g, a])
            )
            for group, g in index.items()
            for a in range(p.shape[1])
            if granted.sums[g, a] > 0
        ),
        level=level,
        n_actions=demonstrations.n_learned(),
        n_tested=n_groups * p.shape[1],
        ask_share=asked / demonstrations.n_learned(),
        overlap_checked=bool(learned),
    )


def log_e_value(probabilities: ArrayLike, happened: ArrayLike) -> float:
    """Evidence, in nats, that an event happens less often than with ``probabilities [n]``, given whether it happened.

    The mixture over six lambda > 0 of prod_i exp(-lambda happened_i) / (1 - p_i + p_i exp(-lambda)). Under the
    hypothesis that each event has at least its probability, given all before, its exponential has a mean of at most 1.

    >>> round(log_e_value([0.5] * 20, [False] * 20), 2)
    12.22

    Source: Ramdas, Grünwald, Vovk, Shafer 2023, section 3.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return float(_log_mixture(_log_factors(p).sum(axis=1), np.asarray(np.count_nonzero(happened))))


def _log_factors(probabilities: Floats) -> Floats:
    """``[lambdas, ...]`` -log(1 - p + p exp(-lambda)): what each context adds whatever happens there."""
    rates = _RATES.reshape(-1, *[1] * probabilities.ndim)
    factors: Floats = -np.log1p(probabilities * np.expm1(-rates))
    return factors


def _log_mixture(log_factors: Floats, counts: NDArray[np.generic]) -> Floats:
    """``[...]`` log e-values from sums of log factors ``[lambdas, ...]`` and ``counts [...]``."""
    rates = _RATES.reshape(-1, *[1] * counts.ndim)
    mixed: Floats = logsumexp(log_factors - rates * counts, axis=0) - np.log(len(_RATES))
    return mixed


def _holm(p: Floats, n_tested: int) -> Floats:
    """Holm's adjustment of the p-values ``p``, of ``n_tested`` in all: those that are not here are 1."""
    order = np.argsort(p, axis=None)
    raised = np.minimum(1.0, (n_tested - np.arange(p.size)) * p.reshape(-1)[order])
    adjusted = np.empty(p.size)
    adjusted[order] = np.maximum.accumulate(raised)
    return adjusted.reshape(p.shape)


class _Table:
    """Sums by group of arrays ``[n, ...]``; groups appear as they come."""

    def __init__(self) -> None:
        self.sums: Floats = np.empty(0)

    def add(self, rows: NDArray[np.int64], values: Floats) -> None:
        missing = int(rows.max()) + 1 - len(self.sums)
        if missing > 0:
            zeros = np.zeros((missing, *values.shape[1:]))
            self.sums = np.concatenate([self.sums, zeros]) if len(self.sums) else zeros
        np.add.at(self.sums, rows, values)


def _most_recent(start: Hashable) -> Callable[[NDArray[np.int64]], Hashable]:
    return lambda history: int(history[-1]) if len(history) else start


def _batches(
    demonstrations: Demonstrations, depth: int | None, start: int | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]]:
    """Contexts ``[n, L]``, the demonstrator's actions ``[n]`` there and what came before each, a batch at a time.

    Where the class looks at ``depth`` symbols, contexts are those, with ``start`` before the first; otherwise all that
    came before, so that each length is a batch of its own.
    """
    padding = None if depth is None or start is None else np.full(depth, start, dtype=np.int64)
    by_length: dict[int, list[tuple[NDArray[np.int64], int]]] = {}
    for sequence, learned in zip(demonstrations.sequences, demonstrations.learned(), strict=True):
        for t in np.flatnonzero(learned):
            by_length.setdefault(int(t) if padding is None else len(padding), []).append((sequence, int(t)))
    for places in by_length.values():
        for first in range(0, len(places), _BLOCK):
            block = places[first : first + _BLOCK]
            histories = [sequence[:t] for sequence, t in block]
            contexts = histories if padding is None else [_window(history, padding) for history in histories]
            yield np.stack(contexts), np.array([sequence[t] for sequence, t in block]), histories


def _window(history: NDArray[np.int64], padding: NDArray[np.int64]) -> NDArray[np.int64]:
    recent = history[max(0, len(history) - len(padding)) :]
    return np.concatenate([padding[len(recent) :], recent])


def _check_held_out(demonstrations: Demonstrations, learned: frozenset[str]) -> None:
    both = [i for i, digest in sequence_digests(demonstrations.sequences).items() if digest in learned]
    if both:
        more = f" and {len(both) - 1} more" if len(both) > 1 else ""
        raise ValueError(
            f"demonstrations must be held out, got sequence {both[0]} of {len(demonstrations.sequences[both[0]])} "
            f"symbols{more}, which the imitator has learned from; split them before it is fitted"
        )
