"""The contract of a hypothesis class: three questions, two ways to learn, and the laws they obey."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.types import Array

if TYPE_CHECKING:
    from cautious_imitation.demonstrations import Demonstrations, Evidence


class Hypotheses(ABC):
    """Candidates for the demonstrator, weighted by what the demonstrator was seen to do.

    A context is a sequence of integer symbols, oldest first: shape ``[L]``, or ``[B, L]`` for a batch. Predictions
    are log-probabilities in nats over the ``V = n_symbols`` actions, shape ``[V]`` or ``[B, V]``, ``-inf`` for zero.

    Laws, tested for every implementation:

    1. ``mixture`` sums to one.
    2. ``plausible_min`` is at most each plausible member, action by action; it is a sub-distribution.
    3. KL to each plausible member <= ``worst_kl`` <= KL to ``plausible_min``.
    4. A smaller ``alpha`` never lowers caution: the set grows, the minimum falls, ``worst_kl`` rises.
    5. ``fit`` on sequences equals the same ``update`` calls one by one.
    6. ``save`` then ``load`` gives the same answers, bit for bit.

    Attributes:
        n_symbols: V, the number of actions.
        default_alpha: the plausibility level of a ``CautiousImitator`` that is given none.
    """

    n_symbols: int
    default_alpha: float = 0.01

    @abstractmethod
    def mixture(self, context: Array) -> Array:
        """Posterior mixture (Bayesian prediction) at ``context``: ``[..., V]`` log-probabilities in nats."""

    @abstractmethod
    def plausible(self, context: Array, alpha: float) -> PlausibleSet:
        """The members' predictions at ``context`` that are plausible at level ``alpha``.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1].
        """

    @abstractmethod
    def update(self, context: Array, symbol: Array) -> None:
        """Learn that the demonstrator did ``symbol`` at ``context`` (``[L]`` and an int, or ``[B, L]`` and ``[B]``)."""

    @abstractmethod
    def fit(
        self, demonstrations: Demonstrations | Iterable[Array], *, evidence: Evidence = "demonstrator"
    ) -> Hypotheses:
        """Learn from whole sequences, in order; returns self.

        Plain sequences of symbols count as the demonstrator's wherever a symbol is below ``n_symbols``;
        ``Demonstrations`` say position by position whose action it was, and ``evidence`` whose actions are learned.
        """

    @abstractmethod
    def save(self, folder: str | PathLike[str]) -> None:
        """Write everything to ``folder`` as ``*.safetensors`` and ``*.json``; nothing is left half-written."""

    def plausible_min(self, context: Array, alpha: float) -> Array:
        """Least probability of each action over the plausible members: ``[..., V]`` log-probabilities in nats."""
        return self.plausible(context, alpha).minimum()

    def worst_kl(self, context: Array, log_pi: Array, alpha: float) -> Array:
        """Largest KL(pi || nu) over the plausible members nu, in nats, shape ``[...]``.

        Args:
            context: ``[..., L]`` symbols.
            log_pi: ``[..., V]`` log-probabilities of the policy that is charged.
            alpha: plausibility level in (0, 1].
        """
        return self.plausible(context, alpha).worst_kl(log_pi)


def check_alpha(alpha: float) -> float:
    """Return ``alpha`` if it lies in (0, 1]; raise ``ValueError`` otherwise."""
    if not (isinstance(alpha, (int, float, np.floating)) and 0 < alpha <= 1):
        raise ValueError(f"alpha must be in (0, 1], got {alpha!r}; smaller is more cautious")
    return float(alpha)


def check_symbols(values: Array, limit: int, name: str) -> NDArray[np.int64]:
    """``values`` as int64 symbols in 0..limit-1, of any shape; NumPy.

    Raises:
        ValueError: if they are not integers, or outside the alphabet; ``name`` is the argument's.
    """
    symbols = np.asarray(values)
    if symbols.size and not np.issubdtype(symbols.dtype, np.integer):
        raise ValueError(f"{name} must hold integer symbols, got {symbols.dtype} such as {symbols.flat[0]}")
    symbols = symbols.astype(np.int64, copy=False)
    outside = (symbols < 0) | (symbols >= limit)
    if outside.any():
        raise ValueError(f"{name} must hold symbols in 0..{limit - 1}, got {int(symbols[outside].flat[0])}")
    return symbols
